"""What an editing run leaves: a row an image, means by edit and image with their definitions, pictures, a grid."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from boothlab.editing.drawing import Canvas, Drawn
from boothlab.editing.edits import EditTask
from boothlab.evaluation.edit_definitions import EditMetric
from boothlab.evaluation.edit_metrics import EDIT_SCORES, EditScore
from boothlab.evaluation.edit_summary import EditRow, EditSummary, ScoreMean
from boothlab.files import csv_cell, write_bytes, write_json, write_text
from boothlab.images.grid import build_grid, png_bytes, save_png

MOST_GRID_ROWS = 40
SOURCES, TRUTHS, MASKS = "sources", "truths", "masks"


@dataclass(frozen=True)
class PairRow:
    """One image under one edit, drawn from one seed, as it stands in scores.csv and metrics.json."""

    drawn: Drawn
    score: EditScore
    read: str | None = None

    @property
    def row(self) -> EditRow:
        """For the means."""
        item = self.drawn.item
        return EditRow(item.task.image_name, item.task.edit.name, self.score, seed=item.seed)

    def facts(self) -> dict[str, Any]:
        """Who it is, for both files."""
        item, edit = self.drawn.item, self.drawn.item.task.edit
        return {
            "image": item.task.image_name,
            "edit": edit.name,
            "seed": item.seed,
            "instruction": edit.instruction,
            "source_caption": edit.source_caption,
            "target_caption": edit.target_caption,
            "steps": self.drawn.steps,
        }


def write_pictures(samples: Path, tasks: Sequence[EditTask]) -> None:
    """Sources, known answers and masks as PNG, for reports and people. What is there stays."""
    for task in tasks:
        wanted = [(samples / SOURCES / f"{task.image_name}.png", task.source)]
        name = f"{task.image_name}__{task.edit.name}.png"
        wanted += [(samples / TRUTHS / name, task.truth)] if task.truth else []
        wanted += [(samples / MASKS / name, task.mask)] if task.mask else []
        for path, load in wanted:
            if not path.is_file():
                write_bytes(path, png_bytes(load()))


def write_scores(
    folder: Path, step: int, rows: Sequence[PairRow], summary: EditSummary, made: list[EditMetric]
) -> None:
    """scores.csv and metrics.json of one step, into its samples folder."""
    names = [name for name in EDIT_SCORES if any(name in row.score.values for row in rows)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    facts = [row.facts() for row in rows]
    writer.writerow([*facts[0], *names])
    for row, fact in zip(rows, facts, strict=True):
        cells = [csv_cell(value) if isinstance(value, str) else value for value in fact.values()]
        writer.writerow([*cells, *(row.score.values.get(name) for name in names)])
    write_text(folder / "scores.csv", text.getvalue())
    write_json(
        folder / "metrics.json",
        {
            "step": step,
            "metrics": [metric.to_dict() for metric in made],
            "per_edit": [_part("edit", name, means) for name, means in summary.per_edit.items()],
            "per_image": [_part("image", name, means) for name, means in summary.per_image.items()],
            "pairs": [_pair(folder, row) for row in rows],
        },
    )


def _part(kind: str, name: str, means: dict[str, ScoreMean]) -> dict[str, Any]:
    return {
        kind: name,
        "images": max((mean.images for mean in means.values()), default=0),
        "scores": {key: mean.value for key, mean in means.items() if mean.value is not None},
        "absent": {key: sum(mean.absent.values()) for key, mean in means.items() if mean.absent},
    }


def _pair(folder: Path, row: PairRow) -> dict[str, Any]:
    """One pair with the files that show it, relative to the run folder."""
    item, task = row.drawn.item, row.drawn.item.task
    samples, run = folder.parent, folder.parent.parent
    name = f"{task.image_name}__{task.edit.name}.png"
    own = folder / f"{item.stem}__source.png"
    conditions = {_kind(path): path for path in _conditions(folder, task)}
    files = {
        "file": folder / f"{item.stem}.png",
        "source": own if own.is_file() else samples / SOURCES / f"{task.image_name}.png",
        "truth": samples / TRUTHS / name if task.truth else None,
        "mask": samples / MASKS / name if task.mask else None,
    }
    return {
        **row.facts(),
        **{key: path.relative_to(run).as_posix() if path else None for key, path in files.items()},
        "conditions": {kind: path.relative_to(run).as_posix() for kind, path in conditions.items()},
        "notes": [*task.notes, *row.drawn.notes],
        "scores": row.score.values,
        "absent": row.score.absent,
        "fact": [*task.fact, row.read] if task.fact else None,
    }


def _conditions(folder: Path, task: EditTask) -> list[Path]:
    return sorted((folder / "conditions").glob(f"{task.image_name}__*.png"))


def write_grid(canvas: Canvas, rows: Sequence[PairRow], title: str) -> Path:
    """source | condition maps | edits by seed | known answer, a row an image and edit; the first ones of many."""
    by_task: dict[tuple[str, str], list[PairRow]] = {}
    for row in rows:
        by_task.setdefault((row.row.image, row.row.edit), []).append(row)
    shown = list(by_task.items())[:MOST_GRID_ROWS]
    kinds = sorted({_kind(path) for _, group in shown for path in _conditions_of(canvas, group)})
    seeds = list(dict.fromkeys(row.row.seed for _, group in shown for row in group))
    truth = any(group[0].drawn.item.task.truth for _, group in shown)
    columns = ["source", *kinds, *(f"seed {seed}" for seed in seeds), *(["truth"] if truth else [])]
    lines = []
    for (image, edit), group in shown:
        task = group[0].drawn.item.task
        blank = Image.new("RGB", group[0].drawn.image.size, (255, 255, 255))
        maps = {_kind(path): Image.open(path).convert("RGB") for path in _conditions_of(canvas, group)}
        edits = {row.row.seed: row.drawn.image for row in group}
        pictures = [group[0].drawn.source, *(maps.get(kind, blank) for kind in kinds)]
        pictures += [edits.get(seed, blank) for seed in seeds]
        pictures += [task.truth() if task.truth else blank] if truth else []
        lines.append((f"{image}: {edit}", pictures))
    more = f"   (the first {len(shown)} of {len(by_task)})" if len(by_task) > len(shown) else ""
    path = canvas.folder / "grid.png"
    save_png(path, build_grid(lines, columns, [], title + more))
    return path


def _kind(path: Path) -> str:
    """The kind of condition in a map's file name."""
    return path.stem.rpartition("__")[2]


def _conditions_of(canvas: Canvas, group: Sequence[PairRow]) -> list[Path]:
    return _conditions(canvas.folder, group[0].drawn.item.task)

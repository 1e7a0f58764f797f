"""What an editing run leaves: a row an image, means by edit and image with their definitions, pictures, a grid."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from boothlab.editing.drawing import Canvas, Drawn, Item
from boothlab.editing.edits import EditTask
from boothlab.evaluation.edit_definitions import EditMetric
from boothlab.evaluation.edit_metrics import EDIT_SCORES, EditScore
from boothlab.evaluation.edit_summary import EditRow, EditSummary, ScoreMean
from boothlab.files import csv_cell, json_chunks, write_bytes, write_chunks
from boothlab.images.grid import build_grid, png_bytes, save_png

MOST_GRID_ROWS = 40
SOURCES, TRUTHS, MASKS = "sources", "truths", "masks"


@dataclass(frozen=True, slots=True)
class PairRow:
    """One image under one edit, drawn from one seed, as it stands in scores.csv and metrics.json.

    It holds no picture: a run of thousands keeps a row of each, and reads a picture again where it shows one.
    """

    item: Item
    steps: int
    notes: tuple[str, ...]
    score: EditScore
    read: str | None = None

    @classmethod
    def of(cls, drawn: Drawn, score: EditScore, read: str | None = None) -> "PairRow":
        """The row of an image that was drawn and scored; its pictures are let go."""
        return cls(drawn.item, drawn.steps, drawn.notes, score, read)

    @property
    def row(self) -> EditRow:
        """For the means."""
        item = self.item
        return EditRow(item.task.image_name, item.task.edit.name, self.score, seed=item.seed)

    def facts(self) -> dict[str, Any]:
        """Who it is, for both files."""
        item, edit = self.item, self.item.task.edit
        return {
            "image": item.task.image_name,
            "edit": edit.name,
            "seed": item.seed,
            "instruction": edit.instruction,
            "source_caption": edit.source_caption,
            "target_caption": edit.target_caption,
            "steps": self.steps,
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
    """scores.csv and metrics.json of one step, into its samples folder; a row at a time, however many there are."""
    names = [name for name in EDIT_SCORES if any(name in row.score.values for row in rows)]
    write_chunks(folder / "scores.csv", _table(rows, names))
    maps = condition_maps(folder)
    parts: dict[str, Iterable[dict[str, Any]]] = {
        "metrics": (metric.to_dict() for metric in made),
        "pairs": (_pair(folder, row, maps) for row in rows),
        "per_edit": (_part("edit", name, means) for name, means in summary.per_edit.items()),
        "per_image": (_part("image", name, means) for name, means in summary.per_image.items()),
    }
    write_chunks(folder / "metrics.json", json_chunks(parts, {"step": step}))


def _table(rows: Sequence[PairRow], names: Sequence[str]) -> Iterator[bytes]:
    yield _line([*rows[0].facts(), *names])
    for row in rows:
        cells = [csv_cell(value) if isinstance(value, str) else value for value in row.facts().values()]
        yield _line([*cells, *(row.score.values.get(name) for name in names)])


def _line(cells: Sequence[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode("utf-8", "backslashreplace")


def _part(kind: str, name: str, means: dict[str, ScoreMean]) -> dict[str, Any]:
    return {
        kind: name,
        "images": max((mean.images for mean in means.values()), default=0),
        "scores": {key: mean.value for key, mean in means.items() if mean.value is not None},
        "absent": {key: sum(mean.absent.values()) for key, mean in means.items() if mean.absent},
    }


def files_of(folder: Path, row: PairRow) -> dict[str, Path | None]:
    """The pictures of a pair; None where there is none. `folder` is the step's samples folder."""
    task, samples = row.item.task, folder.parent
    name = f"{task.image_name}__{task.edit.name}.png"
    own = folder / f"{row.item.stem}__source.png"
    return {
        "file": folder / f"{row.item.stem}.png",
        "source": own if own.is_file() else samples / SOURCES / f"{task.image_name}.png",
        "truth": samples / TRUTHS / name if task.truth else None,
        "mask": samples / MASKS / name if task.mask else None,
    }


def _pair(folder: Path, row: PairRow, maps: Mapping[str, Mapping[str, Path]]) -> dict[str, Any]:
    """One pair with the files that show it, relative to the run folder."""
    task, run = row.item.task, folder.parent.parent
    conditions = maps.get(task.image_name, {})
    return {
        **row.facts(),
        **{key: path.relative_to(run).as_posix() if path else None for key, path in files_of(folder, row).items()},
        "conditions": {kind: path.relative_to(run).as_posix() for kind, path in conditions.items()},
        "notes": [*task.notes, *row.notes],
        "scores": row.score.values,
        "absent": row.score.absent,
        "fact": [*task.fact, row.read] if task.fact else None,
    }


def condition_maps(folder: Path) -> dict[str, dict[str, Path]]:
    """The condition maps of a step's samples folder: image → kind → file. The folder is listed once for all rows."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted((folder / "conditions").glob("*__*.png")):
        image, _, kind = path.stem.rpartition("__")
        found.setdefault(image, {})[kind] = path
    return found


def write_grid(canvas: Canvas, rows: Sequence[PairRow], title: str) -> Path:
    """source | condition maps | edits by seed | known answer, a row an image and edit; the first ones of many."""
    by_task: dict[tuple[str, str], list[PairRow]] = {}
    for row in rows:
        by_task.setdefault((row.item.task.image_name, row.item.task.edit.name), []).append(row)
    shown = list(by_task.items())[:MOST_GRID_ROWS]
    found = condition_maps(canvas.folder)
    maps = {image: found.get(image, {}) for (image, _), _ in shown}
    kinds = sorted({kind for of_image in maps.values() for kind in of_image})
    seeds = list(dict.fromkeys(row.item.seed for _, group in shown for row in group))
    truth = any(group[0].item.task.truth for _, group in shown)
    columns = ["source", *kinds, *(f"seed {seed}" for seed in seeds), *(["truth"] if truth else [])]
    lines = []
    for (image, edit), group in shown:
        task = group[0].item.task
        drawn = {row.item.seed: canvas.read(row.item) for row in group}
        first = drawn[group[0].item.seed]
        blank = Image.new("RGB", first.image.size, (255, 255, 255))
        pictures = [first.source]
        pictures += [Image.open(maps[image][kind]).convert("RGB") if kind in maps[image] else blank for kind in kinds]
        pictures += [drawn[seed].image if seed in drawn else blank for seed in seeds]
        pictures += [task.truth() if task.truth else blank] if truth else []
        lines.append((f"{image}: {edit}", pictures))
    more = f"   (the first {len(shown)} of {len(by_task)})" if len(by_task) > len(shown) else ""
    path = canvas.folder / "grid.png"
    save_png(path, build_grid(lines, columns, [], title + more))
    return path

"""An editing study's numbers as CSV and Parquet: `runs`, a row a run, and `edits`, a row a picture.

No times, hosts or paths: two machines that ran the same get the same bytes.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boothlab.evaluation.edit_metrics import EDIT_SCORES
from boothlab.files import write_text
from boothlab.reporting.edit_cells import row_of
from boothlab.reporting.edit_runs import EditRun
from boothlab.reporting.edit_study import EditGroup, EditStudy
from boothlab.reporting.export import Frame, csv_text, write_frame
from boothlab.tracking.manifest import hash8


def edit_runs_frame(study: EditStudy) -> Frame:
    """One row a run, group by group. `group` says which rows share images, edits and definitions.

    For each score its mean over all the run's pictures (seeds, then edits, then images), the ends of its 95% interval
    over images, the number of pictures that lack it, and the mean of the unedited sources (`_copy`). What was not
    measured is empty, never 0.
    """
    names = [f"{score}{part}" for score in EDIT_SCORES for part in ("", "_low", "_high", "_absent", "_copy")]
    columns = ("group", "run", "setting", "seed", "method", *_keys(study), "images", "edits", "pictures", *names)
    rows = []
    for group in study.groups:
        for run in group.alike.runs:
            edited, copied = row_of({}, run.pairs, [run.name]), row_of({}, run.copies, [run.name])
            values: list[Any] = []
            for score in EDIT_SCORES:
                cell, copy = edited.cells.get(score), copied.cells.get(score)
                lacking = edited.absent.get(score) if cell is None else sum(cell.absent.values())
                ends = (cell.mean, cell.low, cell.high) if cell else (None, None, None)
                values += [*ends, lacking, copy.mean if copy else None]
            counts = (len({pair.image for pair in run.pairs}), len({pair.edit for pair in run.pairs}), len(run.pairs))
            rows.append((*_told(study, group, run), *counts, *values, group.encoders))
    return Frame((*columns, "encoders"), rows)


def edits_frame(study: EditStudy) -> Frame:
    """One row a picture: what was asked, every score, why others are absent, and whether its setting was chosen.

    `chosen` and `best_by_truth` say of a method with several settings whether this one suits the image and edit best,
    by CLIP and by the truth (see edit_choice.py); empty where there is no choice, or no truth.
    """
    told = ("image", "edit", "seed_of_picture", "instruction", "source_caption", "target_caption")
    more = ("absent", "fact_wanted", "fact_read", "steps", "notes", "chosen", "best_by_truth", "encoders")
    columns = ("group", "run", "setting", "seed", "method", *_keys(study), *told, *EDIT_SCORES, *more)
    rows = []
    for group in study.groups:
        chosen = _chosen(group)
        short = {run.folder: setting.short for setting in group.settings for run in setting.runs}
        for run in group.alike.runs:
            for pair in run.pairs:
                about = (*pair.key, pair.instruction, pair.source_caption, pair.target_caption)
                scores = [pair.score.values.get(score) for score in EDIT_SCORES]
                absent = json.dumps(pair.score.absent, ensure_ascii=False, sort_keys=True) if pair.score.absent else ""
                fact = pair.fact or (None, None)
                choice = chosen.get((run.method, pair.image, pair.edit))
                picked = [None if one is None else one == short[run.folder] for one in choice or (None, None)]
                notes = "; ".join(pair.notes)
                row = (*_told(study, group, run), *about, *scores, absent, *fact, pair.steps, notes, *picked)
                rows.append((*row, group.encoders))
    return Frame(columns, rows)


def write_edit_csv(study: EditStudy, runs: Path, edits: Path) -> None:
    """Write both files. Numbers read back the same; what is not there is empty."""
    write_text(runs, csv_text(edit_runs_frame(study)))
    write_text(edits, csv_text(edits_frame(study)))


def write_edit_parquet(study: EditStudy, runs: Path, edits: Path) -> None:
    """Write both as Parquet. Raises UserError if pyarrow is not installed."""
    write_frame(edit_runs_frame(study), runs)
    write_frame(edits_frame(study), edits)


def _keys(study: EditStudy) -> list[str]:
    return [key for key in study.varied if key != "method"]


def _told(study: EditStudy, group: EditGroup, run: EditRun) -> Sequence[Any]:
    settings = [run.record.settings.get(key) for key in _keys(study)]
    shown = [json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value for value in settings]
    return (study.groups.index(group) + 1, run.name, hash8(run.record.setting), run.record.seed, run.method, *shown)


def _chosen(group: EditGroup) -> dict[tuple[str, str, str], tuple[str, str | None]]:
    return {
        (method.method, one.image, one.edit): (one.chosen, one.best)
        for method in group.choices
        for one in method.choices
    }

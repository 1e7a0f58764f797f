"""A study's numbers as files for other programs: runs.csv and checkpoints.csv, and the same as Parquet.

No times, hosts or paths: two machines that ran the same get the same bytes.
"""

import csv
import importlib.util
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boothlab.errors import UserError
from boothlab.files import csv_cell, write_bytes, write_text
from boothlab.reporting.runs import OPTIONAL_SCORES, SCORES, Checkpoint, RunRecord, settings_of, varied_keys
from boothlab.reporting.settings import entries_of_runs
from boothlab.tracking.manifest import hash8

CEILINGS = ("clip_i", "dino")


@dataclass(frozen=True)
class Frame:
    """Named columns and rows of plain values: text, whole numbers, floats, true and false, None."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]


def runs_frame(runs: Sequence[RunRecord]) -> Frame:
    """One row a run, sorted by the values of the varied keys and then by seed.

    Columns: run, status, seed, setting (the 8 digits of its folder), the varied keys; for each score its best value
    over the checkpoints after step 0, the step of that, its last value and its floor (step 0); the ceilings; the
    encoders' name (empty for the standard ones); the steps at which photos may have been copied, separated by blanks.
    """
    keys = varied_keys(runs)
    shown = _shown(runs)
    scores = [column for score in shown for column in _score_columns(score)]
    ceilings = [f"{score}_ceiling" for score in CEILINGS]
    columns = ("run", "status", "seed", "setting", *keys, *scores, *ceilings, "encoders", "copying_steps")
    rows = []
    for entry in entries_of_runs(runs, keys):
        run = entry.run
        values = [value for score in shown for value in _score_values(run, score)]
        ends = [run.ceilings.get(score) for score in CEILINGS]
        copying = " ".join(map(str, run.copying))
        rows.append((*_identity(run), *_settings(run, keys), *values, *ends, run.suffix, copying))
    return Frame(columns, rows)


def checkpoints_frame(runs: Sequence[RunRecord]) -> Frame:
    """One row a run and scored checkpoint, step 0 (the floor) included, in the order of `runs_frame` and by step."""
    keys = varied_keys(runs)
    shown = _shown(runs)
    columns = ("run", "status", "seed", "setting", *keys, "step", *shown, "constant_images", "encoders")
    rows = []
    for entry in entries_of_runs(runs, keys):
        run = entry.run
        points: list[Checkpoint] = [*([run.floor] if run.floor else []), *run.checkpoints]
        for point in points:
            scores = [point.scores.get(score) for score in shown]
            shared = (*_identity(run), *_settings(run, keys))
            rows.append((*shared, point.step, *scores, point.constant_images, run.suffix))
    return Frame(columns, rows)


def _shown(runs: Sequence[RunRecord]) -> list[str]:
    measured = {score for run in runs for point in run.checkpoints for score in point.scores}
    return [score for score in SCORES if score in measured or score not in OPTIONAL_SCORES]


def write_csv(runs: Sequence[RunRecord], path: Path) -> None:
    """Write runs.csv: see `runs_frame`. Numbers are written so that they read back the same; None is empty."""
    write_text(path, csv_text(runs_frame(runs)))


def write_checkpoints_csv(runs: Sequence[RunRecord], path: Path) -> None:
    """Write checkpoints.csv: see `checkpoints_frame`."""
    write_text(path, csv_text(checkpoints_frame(runs)))


def csv_text(frame: Frame) -> str:
    """The frame as CSV with "\\n" line ends; texts as `files.csv_cell` writes them."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([csv_cell(column) for column in frame.columns])
    writer.writerows([_text(value) for value in row] for row in frame.rows)
    return text.getvalue()


def parquet_available() -> bool:
    """Whether pyarrow is installed (the extra `parquet`)."""
    return importlib.util.find_spec("pyarrow") is not None


def require_parquet() -> None:
    """Raises UserError if pyarrow is not installed."""
    if not parquet_available():
        raise UserError("--parquet needs pyarrow: pip install 'boothlab[parquet]', or leave --parquet out")


def write_parquet(runs: Sequence[RunRecord], path: Path) -> None:
    """Write the table of `runs_frame` as Parquet. Raises UserError if pyarrow is not installed."""
    write_frame(runs_frame(runs), path)


def write_checkpoints_parquet(runs: Sequence[RunRecord], path: Path) -> None:
    """Write the table of `checkpoints_frame` as Parquet. Raises UserError if pyarrow is not installed."""
    write_frame(checkpoints_frame(runs), path)


def write_frame(frame: Frame, path: Path) -> None:
    """Write a frame as Parquet; a column of several kinds is text. Raises UserError if pyarrow is not installed."""
    require_parquet()
    import pyarrow
    from pyarrow import parquet

    columns = {name: _one_type([row[index] for row in frame.rows]) for index, name in enumerate(frame.columns)}
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), buffer)
    write_bytes(path, buffer.getvalue())


def _score_columns(score: str) -> tuple[str, ...]:
    return (f"{score}_best", f"{score}_best_step", f"{score}_last", f"{score}_floor")


def _score_values(run: RunRecord, score: str) -> tuple[float | int | None, ...]:
    best = run.best(score)
    last = run.last.scores.get(score) if run.last else None
    floor = run.floor.scores.get(score) if run.floor else None
    return (best.scores[score] if best else None, best.step if best else None, last, floor)


def _identity(run: RunRecord) -> tuple[str, str, int, str]:
    return run.name, run.status, run.seed, hash8(run.setting)


def _settings(run: RunRecord, keys: Sequence[str]) -> list[Any]:
    values = [settings_of(run).get(key) for key in keys]
    return [json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value for value in values]


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else csv_cell(value) if isinstance(value, str) else str(value)


def _one_type(values: list[Any]) -> list[Any]:
    """The column as Parquet takes it: as text if its values are of several kinds."""
    kinds = {bool if isinstance(value, bool) else type(value) for value in values if value is not None}
    if kinds == {int, float}:
        return [None if value is None else float(value) for value in values]
    return values if len(kinds) <= 1 else [None if value is None else _text(value) for value in values]

"""Run folders of `boothlab edit` as a report sees them: every edited picture with its scores, and its source."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from boothlab.errors import UserError
from boothlab.evaluation.edit_metrics import EDIT_SCORES, ENCODER_SCORES, EditScore
from boothlab.evaluation.edit_summary import EditRow
from boothlab.files import shown
from boothlab.reporting.runs import RunRecord, read_run
from boothlab.reporting.shapes import read_object
from boothlab.tracking.history import FILE_NAME as HISTORY
from boothlab.tracking.history import read_history

COPY, REGENERATE = "copy", "regenerate"
"""The two methods that every other lies between: nothing changed, and nothing kept."""
EDITED, UNEDITED = "step_000001", "step_000000"
"""The samples folders of the edited pictures and of their sources, scored as if they were edits."""
DEFINED_BY = ("encoder", "preprocessing", "token_policy", "pairing", "definition_version")
_HEAD = 16_384
"""Bytes at the beginning of a picture that tell it from another, with its size: enough, and quick for thousands."""

Key = tuple[str, str, int]
"""Image, edit and seed."""


@dataclass(frozen=True)
class Pair:
    """One edited picture. Files are None where they are not known; whether they are there is seen when they are read.

    `fact` is what the edit should have brought about and what a reader found; None where nobody can tell.
    """

    image: str
    edit: str
    seed: int
    instruction: str
    source_caption: str
    target_caption: str
    file: Path | None
    source: Path | None
    truth: Path | None
    mask: Path | None
    conditions: dict[str, Path]
    steps: int
    notes: tuple[str, ...]
    score: EditScore
    fact: tuple[str, str] | None

    @property
    def key(self) -> Key:
        """What tells it from the other pictures of its run."""
        return self.image, self.edit, self.seed

    def row(self) -> EditRow:
        """The scores as evaluation's summaries take them."""
        return EditRow(self.image, self.edit, self.score, seed=self.seed)


@dataclass(frozen=True)
class EditRun:
    """One editing run. `pairs` are its edited pictures, `copies` the same with the source in the edit's place.

    `suffix` is the name of unusual encoders, `measured` says of each score how it was measured.
    """

    record: RunRecord
    pairs: list[Pair] = field(repr=False)
    copies: list[Pair] = field(repr=False)
    suffix: str
    measured: dict[str, str] = field(repr=False)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.record.name

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.record.folder

    @property
    def method(self) -> str:
        """How the pictures were edited."""
        return str(self.record.config["method"])

    @cached_property
    def by_key(self) -> dict[Key, Pair]:
        """The edited pictures by image, edit and seed."""
        return {pair.key: pair for pair in self.pairs}

    @cached_property
    def contents(self) -> str:
        """A hash of the images and edits: runs share a table if it is the same. Seeds do not count.

        Images are told apart by name, size and beginning of the file; edits by name, instruction and captions.
        """
        heads: dict[str, str] = {}
        for pair in self.pairs:
            if pair.image not in heads:
                heads[pair.image] = _head(self.folder / "samples" / "sources" / f"{pair.image}.png")
        told = sorted(
            {
                (pair.image, heads[pair.image], pair.edit, pair.instruction, pair.source_caption, pair.target_caption)
                for pair in self.pairs
            }
        )
        return hashlib.sha256(repr(told).encode()).hexdigest()

    @property
    def own_sources(self) -> bool:
        """Whether the method drew the sources itself, so that its scores are against other pictures."""
        sources = self.folder / "samples" / "sources"
        return any(pair.source is not None and pair.source.parent != sources for pair in self.pairs)


def read_edit_run(folder: Path) -> EditRun:
    """One editing run, finished or not. Raises UserError if it cannot be read."""
    record = read_run(folder)
    edited, unedited = (folder / "samples" / name / "metrics.json" for name in (EDITED, UNEDITED))
    found = read_object(edited)
    history = folder / HISTORY
    scalars = [row.scalars for row in read_history(history).rows] if history.is_file() else []
    return EditRun(
        record=record,
        pairs=_pairs(found, folder, edited),
        copies=_pairs(read_object(unedited), folder, unedited),
        suffix=_suffix(scalars),
        measured=_measured(found),
    )


def _pairs(found: Mapping[str, Any], folder: Path, path: Path) -> list[Pair]:
    try:
        return [_pair(row, folder) for row in found.get("pairs", [])]
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        message = f"{shown(path)}: is not what an editing run writes ({shown(str(error))}); run it again"
        raise UserError(message) from error


def _pair(row: Mapping[str, Any], folder: Path) -> Pair:
    fact = row.get("fact")
    return Pair(
        image=str(row["image"]),
        edit=str(row["edit"]),
        seed=int(row["seed"]),
        instruction=str(row.get("instruction") or ""),
        source_caption=str(row.get("source_caption") or ""),
        target_caption=str(row.get("target_caption") or ""),
        file=_file(folder, row.get("file")),
        source=_file(folder, row.get("source")),
        truth=_file(folder, row.get("truth")),
        mask=_file(folder, row.get("mask")),
        conditions={
            str(kind): path for kind, name in (row.get("conditions") or {}).items() if (path := _file(folder, name))
        },
        steps=int(row.get("steps") or 0),
        notes=tuple(map(str, row.get("notes") or ())),
        score=_score(row),
        fact=(str(fact[-2]), str(fact[-1])) if fact else None,  # the fact's name may come first
    )


def _score(row: Mapping[str, Any]) -> EditScore:
    """The scores that this version knows; one that was written as "nan" counts as absent."""
    values, absent = {}, {str(name): str(why) for name, why in (row.get("absent") or {}).items() if name in EDIT_SCORES}
    for name, value in (row.get("scores") or {}).items():
        if name not in EDIT_SCORES or value is None:
            continue
        number = float(value)
        if number - number == 0:
            values[str(name)] = number
        else:
            absent[str(name)] = "not a finite number"
    return EditScore(values, {name: why for name, why in absent.items() if name not in values})


def _file(folder: Path, name: Any) -> Path | None:
    """A file that a run names, there or not, if it is in the run's folder: a report shows nothing else."""
    if not isinstance(name, str) or not name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        return None
    return folder / name


def _head(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.sha256(file.read(_HEAD) + str(path.stat().st_size).encode()).hexdigest()
    except OSError:
        return ""


def _measured(found: Mapping[str, Any]) -> dict[str, str]:
    metrics = found.get("metrics")
    rows = [row for row in metrics if isinstance(row, dict)] if isinstance(metrics, list) else []
    told = {str(row.get("name") or row.get("metric")): row for row in rows}
    return {
        name: " · ".join(str(told[name].get(part, "")) for part in DEFINED_BY) for name in EDIT_SCORES if name in told
    }


def _suffix(scalars: Sequence[Mapping[str, Any]]) -> str:
    """The encoders' name behind the metric keys; empty for the published encoders."""
    prefixes = [EDIT_SCORES[name].key + "/" for name in EDIT_SCORES if name in ENCODER_SCORES]
    found = {key.removeprefix(one) for row in scalars for key in row for one in prefixes if key.startswith(one)}
    return min(found, default="")

"""Many edits' scores as means with intervals, and how well one score goes with another. The unit is the source image.

Averages go upwards: seeds within an edit of an image, edits within the image, then images. No torch here.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from boothlab.errors import UserError
from boothlab.evaluation.edit_metrics import (
    CLIP_SCORES,
    EDIT_SCORES,
    PSNR_CAP,
    PSNR_SCORES,
    TRUTH_SCORES,
    EditScore,
)
from boothlab.evaluation.rank_correlation import RankCorrelation, rank_correlation
from boothlab.evaluation.statistics import RESAMPLES, mean_interval, unit_means

CORRELATION_RESAMPLES = 2_000
"""Fewer than for means: there are sixteen intervals over every picture, and their second digit is enough."""

HEADLINE = "mean of the images' means, each the mean of its edits'"


@dataclass(frozen=True, slots=True)
class EditRow:
    """One edited picture: which image, which edit, by which method and from which seed, and its scores."""

    image: str
    edit: str
    score: EditScore
    method: str = ""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ScoreMean:
    """One score over many rows. `value` is the headline, None when no row has the score.

    `low` and `high` bound it (bootstrap over images; None with one image, and for parts). `pooled` counts every row
    once. `rows` and `images` say how many are behind the value, `absent` how many rows lack it and why, `at_cap` how
    many PSNR stand at the cap.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    pooled: float | None = None
    rows: int = 0
    images: int = 0
    absent: dict[str, int] = field(default_factory=dict)
    at_cap: int = 0


@dataclass(frozen=True)
class EditSummary:
    """One method's scores: short name → mean, overall, by edit and by image."""

    overall: dict[str, ScoreMean]
    per_edit: dict[str, dict[str, ScoreMean]]
    per_image: dict[str, dict[str, ScoreMean]]
    rows: int
    images: int
    edits: int
    confidence: float
    unit: str = "image"
    headline: str = HEADLINE

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values."""
        return asdict(self)


@dataclass(frozen=True)
class Agreement:
    """How well a CLIP score predicts a score against the truth: +1 is always right, 0 no better than chance.

    `correlation` is of the two as "higher is better", so distances have their sign turned.
    """

    clip_score: str
    truth_score: str
    correlation: RankCorrelation

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values."""
        return asdict(self)


def summarise(rows: Sequence[EditRow], seed: int, confidence: float = 0.95, resamples: int = RESAMPLES) -> EditSummary:
    """The means of ONE method's rows. `seed` is that of the bootstrap.

    UserError for no rows, several methods, a doubled row, or a row that neither has a score that others have nor says
    why not: a mean over whatever happens to be there would change without anyone noticing.
    """
    names = _check(rows)
    images, edits = sorted({row.image for row in rows}), sorted({row.edit for row in rows})
    overall = {}
    for name in names:
        units = unit_values(rows, name)
        found = mean_interval(units, seed, confidence, resamples) if units else None
        overall[name] = _mean(rows, name, found.low if found else None, found.high if found else None)
    return EditSummary(
        overall,
        {edit: _means(group, names) for edit, group in _grouped(rows, "edit")},
        {image: _means(group, names) for image, group in _grouped(rows, "image")},
        len(rows),
        len(images),
        len(edits),
        confidence,
    )


def unit_values(rows: Sequence[EditRow], name: str) -> dict[str, list[float]]:
    """A score's edit means by image, for the tests of evaluation/statistics.py; images without a value are left out."""
    cells: dict[tuple[str, str], list[float]] = {}
    for row in sorted(rows, key=lambda row: (row.image, row.edit, row.method, row.seed)):
        if name in row.score.values:
            cells.setdefault((row.image, row.edit), []).append(row.score.values[name])
    units: dict[str, list[float]] = {}
    for (image, _), values in cells.items():
        units.setdefault(image, []).append(_average(values))
    return units


def clip_against_truth(
    rows: Sequence[EditRow],
    seed: int,
    truths: Sequence[str] = TRUTH_SCORES,
    confidence: float = 0.95,
    resamples: int = CORRELATION_RESAMPLES,
) -> list[Agreement]:
    """Every CLIP score against every score against the truth, over the rows (of any methods) that have both."""
    found = []
    for clip_score in CLIP_SCORES:
        for truth in truths:
            both = [row for row in rows if {clip_score, truth} <= row.score.values.keys()]
            found.append(
                Agreement(
                    clip_score,
                    truth,
                    rank_correlation(_oriented(both, clip_score), _oriented(both, truth), seed, confidence, resamples),
                )
            )
    return found


def _oriented(rows: Sequence[EditRow], name: str) -> dict[str, list[float]]:
    sign = -1 if EDIT_SCORES[name].higher_is_better is False else 1
    by_image: dict[str, list[float]] = {}
    for row in rows:
        by_image.setdefault(row.image, []).append(sign * row.score.values[name])
    return by_image


def _check(rows: Sequence[EditRow]) -> list[str]:
    """The names of the scores that the rows speak of, in the order of EDIT_SCORES."""
    if not rows:
        raise UserError("no edits to summarise")
    if len(methods := sorted({row.method for row in rows})) > 1:
        raise UserError(f"rows of several methods ({', '.join(methods)}) have no common mean; summarise one at a time")
    counts = Counter((row.image, row.edit, row.seed) for row in rows)
    if doubled := sorted(key for key, count in counts.items() if count > 1):
        image, edit, seed = doubled[0]
        raise UserError(f"{image}, {edit}, seed {seed}: more than one row; remove the doubled one")
    spoken = [row.score.values.keys() | row.score.absent.keys() for row in rows]
    names = [name for name in EDIT_SCORES if any(name in known for known in spoken)]
    for row, known in zip(rows, spoken, strict=True):
        if missing := [name for name in names if name not in known]:
            raise UserError(f"{row.image}, {row.edit}, seed {row.seed}: {missing[0]} is missing; score this edit again")
    return names


def _grouped(rows: Sequence[EditRow], part: str) -> list[tuple[str, list[EditRow]]]:
    """The rows by edit or by image, sorted by it."""
    found: dict[str, list[EditRow]] = {}
    for row in rows:
        found.setdefault(getattr(row, part), []).append(row)
    return sorted(found.items())


def _means(rows: Sequence[EditRow], names: Sequence[str]) -> dict[str, ScoreMean]:
    return {name: _mean(rows, name) for name in names}


def _mean(rows: Sequence[EditRow], name: str, low: float | None = None, high: float | None = None) -> ScoreMean:
    values = [row.score.values[name] for row in rows if name in row.score.values]
    units = unit_values(rows, name)
    absent = Counter(row.score.absent[name] for row in rows if name in row.score.absent)
    return ScoreMean(
        value=_average(list(unit_means(units).values())) if units else None,
        low=low,
        high=high,
        pooled=_average(values) if values else None,
        rows=len(values),
        images=len(units),
        absent={reason: absent[reason] for reason in sorted(absent)},
        at_cap=sum(value >= PSNR_CAP for value in values) if name in PSNR_SCORES else 0,
    )


def _average(values: Sequence[float]) -> float:
    return unit_means({"values": values})["values"]

"""The numbers of an editing report's tables: means over images with intervals, the best of a column and near ones."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from boothlab.evaluation.edit_metrics import EDIT_SCORES
from boothlab.evaluation.edit_summary import unit_values
from boothlab.evaluation.statistics import Interval, mean_interval, paired_bootstrap
from boothlab.reporting.edit_runs import Pair

SEED, RESAMPLES = 0, 2_000
"""Of every bootstrap of a report: the same runs give the same bytes. A page has thousands of intervals."""

Means = dict[tuple[str, str], float]
"""A score by (image, edit), each the mean over seeds."""


@dataclass(frozen=True)
class EditCell:
    """A score of one setting: the mean of the images' means, each the mean of its edits'. `low` and `high` bound it.

    `pairs` pictures have the score, `absent` counts those that lack it by reason. `difference` is from the best of the
    column, paired over images; `near` says that its interval holds 0, so that the two cannot be told apart.
    """

    mean: float
    low: float | None
    high: float | None
    images: int
    pairs: int
    absent: dict[str, int] = field(default_factory=dict)
    best: bool = False
    near: bool = False
    difference: Interval | None = None


@dataclass(frozen=True)
class EditTableRow:
    """One setting. `end` is `copy` or `regenerate` for the two ends, which compete for nothing; else empty.

    `means` holds each score by image and edit, for whatever compares settings in pairs.
    """

    labels: dict[str, str]
    cells: dict[str, EditCell]
    absent: dict[str, int]
    runs: tuple[str, ...]
    end: str = ""
    means: dict[str, Means] = field(default_factory=dict, repr=False)


def means_of(pairs: Iterable[Pair], score: str) -> Means:
    """A score by image and edit, over the seeds; pictures without it are left out."""
    found: dict[tuple[str, str], list[float]] = {}
    for pair in pairs:
        if score in pair.score.values:
            found.setdefault((pair.image, pair.edit), []).append(pair.score.values[score])
    return {key: sum(values) / len(values) for key, values in sorted(found.items())}


def by_image(means: Means) -> dict[str, list[float]]:
    """The same by image, as the tests of evaluation/statistics.py take it: the image is the unit."""
    found: dict[str, list[float]] = {}
    for (image, _), value in sorted(means.items()):
        found.setdefault(image, []).append(value)
    return found


def row_of(labels: dict[str, str], pairs: Sequence[Pair], runs: Sequence[str], end: str = "") -> EditTableRow:
    """A setting's row from all its pictures."""
    cells = {}
    rows = [pair.row() for pair in pairs]
    absent = {score: Counter(why for pair in pairs if (why := pair.score.absent.get(score))) for score in EDIT_SCORES}
    for score in EDIT_SCORES:
        if units := unit_values(rows, score):
            found = mean_interval(units, SEED, resamples=RESAMPLES)
            count = sum(score in pair.score.values for pair in pairs)
            reasons = dict(sorted(absent[score].items()))
            cells[score] = EditCell(found.mean, found.low, found.high, found.units, count, reasons)
    lacking = {score: counts.total() for score, counts in absent.items() if counts and score not in cells}
    return EditTableRow(labels, cells, lacking, tuple(runs), end, {score: means_of(pairs, score) for score in cells})


def mark_best(rows: Sequence[EditTableRow]) -> list[EditTableRow]:
    """The rows with the best cell of every column marked, and those near it, unless there is one row only.

    The ends do not compete. Nor does a row whose score is absent for images and edits of which others have it: the mean
    over what happens to be there is of another question.
    """
    marked = list(rows)
    for score, name in EDIT_SCORES.items():
        competing = [index for index, row in enumerate(rows) if not row.end and score in row.cells]
        most = max((len(rows[index].means[score]) for index in competing), default=0)
        competing = [index for index in competing if len(rows[index].means[score]) == most]
        if name.higher_is_better is None or len(competing) < 2:
            continue
        sign = 1 if name.higher_is_better else -1
        top = max(sign * rows[index].cells[score].mean for index in competing)
        first = next(index for index in competing if sign * rows[index].cells[score].mean == top)
        for index, row in enumerate(rows):
            if score in row.cells:
                best = index in competing and sign * row.cells[score].mean == top
                marked[index] = _against(marked[index], rows[first], score, best)
    return marked


def _against(row: EditTableRow, best: EditTableRow, score: str, is_best: bool) -> EditTableRow:
    cell = row.cells[score]
    found = None if is_best else paired_difference(row.means[score], best.means[score])
    holds_zero = bool(found and found.low is not None and found.high is not None and found.low <= 0 <= found.high)
    changed = replace(cell, best=is_best, near=holds_zero and not row.end, difference=found)
    return replace(row, cells={**row.cells, score: changed})


def paired_difference(first: Means, second: Means) -> Interval | None:
    """First less second over the images and edits that both have, images resampled; None if there are none."""
    common = first.keys() & second.keys()
    if not common:
        return None
    one, other = (by_image({key: means[key] for key in common}) for means in (first, second))
    return paired_bootstrap(one, other, SEED, resamples=RESAMPLES)


def ranks_of(values: Mapping[int, float], higher: bool) -> dict[int, int]:
    """Place 1 for the best; equals share the better place."""
    order = sorted(values.values(), reverse=higher)
    return {index: order.index(value) + 1 for index, value in values.items()}

"""Do CLIP and DINO see what the truth sees? Rankings of settings beside each other, and rank correlations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from boothlab.evaluation.edit_metrics import CLIP_SCORES, EDIT_SCORES
from boothlab.evaluation.rank_correlation import RankCorrelation, rank_correlation
from boothlab.reporting.edit_cells import SEED, EditTableRow, ranks_of
from boothlab.reporting.edit_runs import Pair

TRUTHS = ("psnr_truth", "happened", "dino_truth")
"""What knows the answer: pixels of the known target, a reader of facts, and DINO against the target."""
PREDICTORS = (*CLIP_SCORES, "structure", "lpips_outside", "psnr_outside")
"""What is used where nobody knows the answer."""
RANKED = ("psnr_truth", "happened", *CLIP_SCORES, "structure")
MOST_RESAMPLES, FEWEST_RESAMPLES, MOST_RANKED = 1_000, 200, 2_000_000
"""Resamples of a correlation, and how many values all of them together may rank: thousands of pictures take long."""


@dataclass(frozen=True)
class Place:
    """A setting's place by a score, 1 for the best, and the mean that gives it."""

    rank: int
    mean: float


@dataclass(frozen=True)
class RankRow:
    """A setting with its places by score; a score that it lacks has none."""

    labels: dict[str, str]
    end: str
    places: dict[str, Place]


@dataclass(frozen=True)
class Ranking:
    """The settings of a table by each score, ordered by the first of `scores`: the truth if it is known."""

    scores: tuple[str, ...]
    rows: tuple[RankRow, ...]


@dataclass(frozen=True)
class Agreement:
    """How well a score predicts the truth: +1 always, 0 no better than chance; distances with their sign turned.

    `over_pairs` is over all edited pictures, whole images resampled; `over_settings` over the means of settings.
    """

    score: str
    truth: str
    over_pairs: RankCorrelation
    over_settings: RankCorrelation


def ranking_of(rows: Sequence[EditTableRow]) -> Ranking | None:
    """The places of a table's settings, the two ends among them; None for less than two rows."""
    scores = tuple(score for score in RANKED if sum(score in row.cells for row in rows) > 1)
    if len(rows) < 2 or not scores:
        return None
    places: list[dict[str, Place]] = [{} for _ in rows]
    for score in scores:
        means = {index: row.cells[score].mean for index, row in enumerate(rows) if score in row.cells}
        for index, rank in ranks_of(means, _sign(score) > 0).items():
            places[index][score] = Place(rank, means[index])
    found = [RankRow(row.labels, row.end, places[index]) for index, row in enumerate(rows)]
    last = len(rows) + 1
    found.sort(key=lambda row: [row.places[score].rank if score in row.places else last for score in scores])
    return Ranking(scores, tuple(found))


def agreements_of(pairs_by_setting: Mapping[str, Sequence[Pair]], rows: Sequence[EditTableRow]) -> list[Agreement]:
    """Every predictor against every truth that is known. Give neither the pictures nor the row of `copy`.

    It has no direction, and is as far from an edit as can be: it would flatter every score of preservation.
    """
    pairs = [pair for setting in sorted(pairs_by_setting) for pair in pairs_by_setting[setting]]
    found = []
    for truth in TRUTHS:
        for score in PREDICTORS:
            both = [pair for pair in pairs if score in pair.score.values and truth in pair.score.values]
            if not both:
                continue
            over = rank_correlation(_by_image(both, score), _by_image(both, truth), SEED, resamples=_resamples(both))
            found.append(Agreement(score, truth, over, _over_settings(rows, score, truth)))
    return found


def _resamples(pairs: Sequence[Pair]) -> int:
    return max(FEWEST_RESAMPLES, min(MOST_RESAMPLES, MOST_RANKED // len(pairs)))


def _over_settings(rows: Sequence[EditTableRow], score: str, truth: str) -> RankCorrelation:
    named = {f"{index:05d}": row for index, row in enumerate(rows) if score in row.cells and truth in row.cells}
    one, other = (
        {name: [_sign(which) * row.cells[which].mean] for name, row in named.items()} for which in (score, truth)
    )
    return rank_correlation(one, other, SEED, resamples=MOST_RESAMPLES)


def _by_image(pairs: Sequence[Pair], score: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for pair in pairs:
        found.setdefault(pair.image, []).append(_sign(score) * pair.score.values[score])
    return found


def _sign(score: str) -> int:
    return -1 if EDIT_SCORES[score].higher_is_better is False else 1

"""What a search maximises: the objective at one checkpoint, and the values of a whole run folder."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from boothlab.config import SearchCheckpoint, SearchObjective
from boothlab.errors import UserError
from boothlab.files import shown
from boothlab.reporting.runs import Checkpoint, read_run

Scores = Mapping[str, float]


def _score(name: str) -> Callable[[Scores], float]:
    return lambda scores: scores.get(name, math.nan)


def _fidelity(scores: Scores) -> float:
    return fmean(scores.get(name, math.nan) for name in ("clip_i", "dino"))


def _balanced(scores: Scores) -> float:
    """As it was recorded; else the mean of the three, as in the published study."""
    if "balanced" in scores:
        return scores["balanced"]
    return fmean(scores.get(name, math.nan) for name in ("clip_i", "dino", "clip_t"))


_VALUES: dict[SearchObjective, dict[str, Callable[[Scores], float]]] = {
    SearchObjective.balanced: {"balanced": _balanced},
    SearchObjective.fidelity: {"fidelity": _fidelity},
    SearchObjective.clip_i: {"clip_i": _score("clip_i")},
    SearchObjective.dino: {"dino": _score("dino")},
    SearchObjective.clip_t: {"clip_t": _score("clip_t")},
    SearchObjective.pareto: {"fidelity": _fidelity, "clip_t": _score("clip_t")},
}


def names_of(objective: SearchObjective) -> tuple[str, ...]:
    """The names of an objective's values: one, or two for `pareto`. All are better when higher."""
    return tuple(_VALUES[objective])


def rank_of(scores: Scores, objective: SearchObjective) -> float:
    """The one number by which checkpoints are compared: the objective, or `balanced` for pareto. NaN if not scored."""
    if objective is SearchObjective.pareto:
        return _balanced(scores)
    return _VALUES[objective][objective.value](scores)


@dataclass(frozen=True)
class Measured:
    """The values of one run, in the order of `names_of`, and the step they were read at. NaN where not measurable."""

    values: tuple[float, ...]
    step: int


def values_of(folder: Path, objective: SearchObjective, at: SearchCheckpoint) -> Measured:
    """The objective of a finished run, from its metrics.jsonl. Step 0, the untrained model, does not count.

    Raises UserError if the folder holds no run, or one without a single scored checkpoint.
    """
    checkpoints = read_run(folder).checkpoints
    if not checkpoints:
        raise UserError(
            f"{shown(folder)} was not scored, and a search needs scores; run it with evaluation.enabled=true"
        )
    point = checkpoints[-1] if at is SearchCheckpoint.last else _best(checkpoints, objective)
    return Measured(tuple(value(point.scores) for value in _VALUES[objective].values()), point.step)


def curve_of(folder: Path, objective: SearchObjective) -> dict[int, float]:
    """The number that checkpoints are compared by, by step, where it is finite. Raises UserError if it is no run."""
    ranks = {point.step: rank_of(point.scores, objective) for point in read_run(folder).checkpoints}
    return {step: rank for step, rank in ranks.items() if math.isfinite(rank)}


def _best(checkpoints: list[Checkpoint], objective: SearchObjective) -> Checkpoint:
    """The earliest of the best; the last one if none has a finite number."""
    ranks = [(rank_of(point.scores, objective), point) for point in checkpoints]
    finite = [(rank, point) for rank, point in ranks if math.isfinite(rank)]
    return max(finite, key=lambda pair: (pair[0], -pair[1].step))[1] if finite else checkpoints[-1]

"""What the axis of a sweep did: every value against the first, tested over pairs, and whether it met expectations."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from boothlab.evaluation.statistics import holm, sign_flip_test
from boothlab.reporting.rows import Grid, axis_cells, value_of
from boothlab.reporting.sweeps import RISES
from boothlab.reporting.tables import Comparison, Verdict

FEWEST_SEEDS = 3
"""Differences over fewer seeds are shown but not tested."""
AS_EXPECTED, ENDS_ONLY, NOT_SEEN = "as expected", "ends only", "not seen"
TOO_FEW, NOT_MEASURED = "too few runs", "not measured"

Pairs = dict[str, tuple[float, float]]
"""By setting and seed: a score at the first value of the axis and at another one."""


def comparisons_of(grid: Grid, scores: Sequence[str], reading: str) -> list[Comparison]:
    """Every value of the axis against the first one, for every score, paired over all other settings and seeds.

    A comparison is tested by sign flips when its pairs have at least three seeds and are all finite; Holm's correction
    is over all that were tested. A pair is a run and its twin that differs in the axis only, so what seed and setting
    do to both cancels out. The test takes pairs for independent, those of one seed in several settings too.
    """
    found = []
    for score in scores:
        for value in grid.values[1:]:
            pairs, seeds = _pairs(grid, value, score, reading)
            if pairs:
                found.append(_compare(score, grid.values[0], value, pairs, seeds))
    tested = {f"{one.score} {one.after}": one.p_value for one in found if one.p_value is not None}
    corrected = holm(tested)
    return [replace(one, holm_p=corrected.get(f"{one.score} {one.after}")) for one in found]


def _pairs(grid: Grid, value: str, score: str, reading: str) -> tuple[Pairs, int]:
    pairs: Pairs = {}
    seeds = set()
    for index, other in enumerate(dict.fromkeys(other for _, other in grid.runs)):
        before = {run.seed: value_of(run, score, reading) for run in grid.runs.get((grid.values[0], other), [])}
        after = {run.seed: value_of(run, score, reading) for run in grid.runs.get((value, other), [])}
        for seed in sorted(before.keys() & after.keys()):
            one, two = before[seed], after[seed]
            if one is not None and two is not None:
                pairs[f"setting {index:04d} seed {seed}"] = (one, two)
                seeds.add(seed)
    return pairs, len(seeds)


def _compare(score: str, first: str, value: str, pairs: Pairs, seeds: int) -> Comparison:
    finite = all(math.isfinite(number) for pair in pairs.values() for number in pair)
    difference = math.fsum(after - before for before, after in pairs.values()) / len(pairs) if finite else math.nan
    if seeds < FEWEST_SEEDS or not finite:
        return Comparison(score, first, value, difference, len(pairs), None, None, None)
    befores = {name: [before] for name, (before, _) in pairs.items()}
    afters = {name: [after] for name, (_, after) in pairs.items()}
    test = sign_flip_test(afters, befores, seed=0)
    return Comparison(score, first, value, test.difference, len(pairs), test.p_value, None, test.smallest_p)


def verdicts_of(grid: Grid, expect: Mapping[str, str], scores: Sequence[str], reading: str) -> list[Verdict]:
    """What each expected score did along the axis, by its means over the other settings.

    `as expected`: every step goes the expected way. `ends only`: the last value is on the expected side of the first,
    but not every step goes there. `not seen`: neither. `too few runs`: less than two values to compare.
    """
    return [
        _verdict(grid, score, expected, reading) if score in scores else Verdict(score, expected, (), NOT_MEASURED)
        for score, expected in expect.items()
    ]


def _verdict(grid: Grid, score: str, expected: str, reading: str) -> Verdict:
    means = tuple(cell.mean for cell in axis_cells(grid, score, reading) if cell)
    if len(means) < 2 or len(means) < len(grid.values):
        return Verdict(score, expected, means, TOO_FEW)
    sign = 1 if expected == RISES else -1
    steps = [sign * (after - before) for before, after in pairwise(means)]
    if all(step > 0 for step in steps):  # a NaN is no step up
        return Verdict(score, expected, means, AS_EXPECTED)
    return Verdict(score, expected, means, ENDS_ONLY if sign * (means[-1] - means[0]) > 0 else NOT_SEEN)

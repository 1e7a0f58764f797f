"""Comparing runs honestly: intervals and tests over units (subjects, or prompts of one subject), never over images.

A unit's images are averaged first, so more samples of the same subjects sharpen the means but fake no more subjects.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from boothlab.errors import UserError
from boothlab.seeding import Stream, derive_seed

UnitValues = Mapping[str, Sequence[float]]
"""Image-level values by unit: {"dog": [0.61, 0.58], …}."""

RESAMPLES = 10_000
EXACT_UNITS = 14
"""Up to here all 2^n sign patterns are enumerated; beyond, they are sampled."""
CHUNK = 1_000
"""Resamples drawn at a time, to bound memory for many units."""


@dataclass(frozen=True)
class Interval:
    """A mean over `units` units with its interval (bootstrap or t); no bounds when there is only one unit."""

    mean: float
    low: float | None
    high: float | None
    confidence: float
    units: int


@dataclass(frozen=True)
class SignFlipTest:
    """Two-sided paired test of "no difference". `smallest_p` is the least p this many units can ever give: 2/2^n."""

    difference: float
    p_value: float
    smallest_p: float
    exact: bool
    units: int


def unit_means(values: UnitValues) -> dict[str, float]:
    """The mean of each unit's images, in the order of the units' names. UserError for no unit, no image, or NaN."""
    if not values:
        raise UserError("no units to compare: at least one subject or prompt is needed")
    means = {}
    for unit in sorted(values):
        if len(values[unit]) == 0:
            raise UserError(f"{unit}: no values; every subject or prompt needs at least one image")
        # fsum is exact, so doubling every image gives the very same mean.
        means[unit] = math.fsum(values[unit]) / len(values[unit])
        if not math.isfinite(means[unit]):
            raise UserError(f"{unit}: a value is NaN or infinite")
    return means


def mean_interval(values: UnitValues, seed: int, confidence: float = 0.95, resamples: int = RESAMPLES) -> Interval:
    """Mean of the unit means with its bootstrap interval. With fewer than about 8 units the interval is too narrow."""
    means_U = np.array(list(unit_means(values).values()))
    return _bootstrap(means_U, derive_seed(seed, Stream.EVALUATION, "mean_interval"), confidence, resamples)


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean of a few independent values, one a unit, with Student's t interval: for the 2 to 5 seeds of a setting.

    A bootstrap of so few would be far too narrow; this one is right if the values are about normal. UserError for no
    value, or NaN.
    """
    if not 0 < confidence < 1:
        raise UserError(f"confidence must be between 0 and 1, not {confidence}")
    if len(values) == 0 or not all(map(math.isfinite, values)):
        raise UserError(f"an interval needs at least one value, and finite ones, not {list(values)}")
    mean, units = math.fsum(values) / len(values), len(values)
    if units < 2:
        return Interval(mean, None, None, confidence, units)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (units - 1))
    half_width = _t_quantile((1 + confidence) / 2, units - 1) * spread / math.sqrt(units)
    return Interval(mean, mean - half_width, mean + half_width, confidence, units)


def paired_bootstrap(
    first: UnitValues, second: UnitValues, seed: int, confidence: float = 0.95, resamples: int = RESAMPLES
) -> Interval:
    """Mean of first - second over units, with its interval; whole pairs are resampled. UserError for unlike units."""
    differences_U = _paired_differences(first, second)
    return _bootstrap(differences_U, derive_seed(seed, Stream.EVALUATION, "paired_bootstrap"), confidence, resamples)


def sign_flip_test(first: UnitValues, second: UnitValues, seed: int, samples: int = RESAMPLES) -> SignFlipTest:
    """Paired permutation test: under "no difference" each unit's difference could as well have the other sign.

    Exact for up to 14 units. Beyond, sampled with the observed pattern counted in, so p is never 0.
    """
    differences_U = _paired_differences(first, second)
    units = len(differences_U)
    observed = abs(float(differences_U.mean()))
    # Patterns that tie with the observed one must count although they round differently.
    threshold = observed - 1e-12 * max(1.0, float(np.abs(differences_U).max()))
    exact = units <= EXACT_UNITS
    if exact:
        signs_SU = np.array(list(itertools.product((1.0, -1.0), repeat=units)))
        p_value = float((np.abs(signs_SU @ differences_U / units) >= threshold).mean())
    else:
        rng = np.random.default_rng(derive_seed(seed, Stream.EVALUATION, "sign_flip_test"))
        hits = 0
        for size in _chunks(samples):
            signs_SU = rng.choice((1.0, -1.0), size=(size, units))
            hits += int((np.abs(signs_SU @ differences_U / units) >= threshold).sum())
        p_value = (hits + 1) / (samples + 1)
    return SignFlipTest(float(differences_U.mean()), p_value, 2 / 2**units, exact, units)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm (1979) step-down correction: adjusted p by comparison, in the order given. UserError for p not in [0, 1]."""
    for name, p_value in p_values.items():
        if not 0 <= p_value <= 1:
            raise UserError(f"{name}: {p_value} is not a p value")
    adjusted, highest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


@lru_cache(maxsize=256)
def _t_quantile(probability: float, degrees_of_freedom: int) -> float:
    # Not scipy.stats.t, whose import takes over a second: its ppf is this very function.
    from scipy.special import stdtrit

    return float(stdtrit(degrees_of_freedom, probability))


def _paired_differences(first: UnitValues, second: UnitValues) -> NDArray[np.float64]:
    one, other = unit_means(first), unit_means(second)
    if one.keys() != other.keys():
        unpaired = ", ".join(sorted(one.keys() ^ other.keys()))
        raise UserError(f"the two runs must have the same subjects or prompts; only one of them has: {unpaired}")
    return np.array([one[unit] - other[unit] for unit in one])


def _bootstrap(values_U: NDArray[np.float64], seed: int, confidence: float, resamples: int) -> Interval:
    if not 0 < confidence < 1:
        raise UserError(f"confidence must be between 0 and 1, not {confidence}")
    units = len(values_U)
    mean = float(values_U.mean())
    if units < 2:
        return Interval(mean, None, None, confidence, units)
    rng = np.random.default_rng(seed)
    means_S = np.concatenate(
        [values_U[rng.integers(units, size=(size, units))].mean(axis=1) for size in _chunks(resamples)]
    )
    low, high = np.quantile(means_S, ((1 - confidence) / 2, (1 + confidence) / 2))
    return Interval(mean, float(low), float(high), confidence, units)


def _chunks(total: int) -> list[int]:
    if total < 1:
        raise UserError(f"at least one resample is needed, not {total}")
    return [min(CHUNK, total - start) for start in range(0, total, CHUNK)]

"""Spearman's rank correlation of two scores, with a bootstrap over units. No torch here."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from boothlab.errors import UserError
from boothlab.evaluation.statistics import RESAMPLES, UnitValues, unit_means
from boothlab.seeding import Stream, derive_seed

FEWEST_PAIRS = 3
"""Two pairs correlate with +1 or -1 whatever they are."""

CHUNK_CELLS = 200_000
"""Resamples times pairs held at a time, to bound memory for many pictures."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rho in [-1, 1] over `pairs` pairs, with its interval; None with the reason in `note`.

    Whole units are resampled. No bounds with a single unit. Resamples in which a score is constant have no rho and are
    left out; `note` says how many.
    """

    value: float | None
    low: float | None
    high: float | None
    confidence: float
    pairs: int
    units: int
    note: str = ""


def rank_correlation(
    first: UnitValues, second: UnitValues, seed: int, confidence: float = 0.95, resamples: int = RESAMPLES
) -> RankCorrelation:
    """Spearman's rho of two scores of the same pictures: by unit (image), in the same order in both.

    Ties share their mean rank. UserError for unlike units or counts, NaN, or a confidence outside 0..1.
    """
    if resamples < 1:
        raise UserError(f"at least one resample is needed, not {resamples}")
    if not 0 < confidence < 1:
        raise UserError(f"confidence must be between 0 and 1, not {confidence}")
    counts = {unit: len(values) for unit, values in first.items()}
    if counts != {unit: len(values) for unit, values in second.items()}:
        raise UserError("the two scores must be of the same pictures: their images or counts differ")
    units = sorted(counts)
    for values in (first, second):
        if values:
            unit_means(values)
    first_N, second_N = (np.array([v for unit in units for v in scores[unit]]) for scores in (first, second))
    pairs = len(first_N)
    if pairs < FEWEST_PAIRS:
        note = f"a rank correlation needs at least {FEWEST_PAIRS} pairs, here {pairs}"
        return RankCorrelation(None, None, None, confidence, pairs, len(units), note)
    value = float(_weighted_rho(first_N, second_N, np.ones((1, pairs)))[0])
    if np.isnan(value):
        return RankCorrelation(None, None, None, confidence, pairs, len(units), "all values of one score are equal")
    if len(units) < 2:
        return RankCorrelation(value, None, None, confidence, pairs, len(units), "one unit, so no interval")
    owner_N = np.repeat(np.arange(len(units)), [counts[unit] for unit in units])
    rho_S = _bootstrap_rho(
        first_N, second_N, owner_N, derive_seed(seed, Stream.EVALUATION, "rank_correlation"), resamples
    )
    defined_S = rho_S[~np.isnan(rho_S)]
    left_out = len(rho_S) - len(defined_S)
    note = f"{left_out} of {len(rho_S)} resamples have a constant score" if left_out else ""
    if len(defined_S) == 0:
        return RankCorrelation(value, None, None, confidence, pairs, len(units), note)
    low, high = np.quantile(defined_S, ((1 - confidence) / 2, (1 + confidence) / 2))
    return RankCorrelation(value, float(low), float(high), confidence, pairs, len(units), note)


def _bootstrap_rho(first_N: Floats, second_N: Floats, owner_N: NDArray[np.int64], seed: int, resamples: int) -> Floats:
    """Rho of each resample of whole units; pair n belongs to unit owner_N[n]."""
    rng = np.random.default_rng(seed)
    units = int(owner_N[-1]) + 1
    even = np.full(units, 1 / units)
    chunk = max(1, CHUNK_CELLS // len(owner_N))
    sizes = [min(chunk, resamples - start) for start in range(0, resamples, chunk)]
    counts = (rng.multinomial(units, even, size)[:, owner_N].astype(np.float64) for size in sizes)
    return np.concatenate([_weighted_rho(first_N, second_N, counts_SN) for counts_SN in counts])


def _weighted_rho(first_N: Floats, second_N: Floats, weights_SN: Floats) -> Floats:
    """Spearman's rho for each row of counts: pair n is there weights[s, n] times. NaN where a score is constant."""
    one_SN, other_SN = (_mean_ranks(values_N, weights_SN) for values_N in (first_N, second_N))
    total_S1 = weights_SN.sum(axis=1, keepdims=True)
    one_SN = one_SN - (weights_SN * one_SN).sum(axis=1, keepdims=True) / total_S1
    other_SN = other_SN - (weights_SN * other_SN).sum(axis=1, keepdims=True) / total_S1
    covariance_S = (weights_SN * one_SN * other_SN).sum(axis=1)
    scale_S = np.sqrt((weights_SN * one_SN**2).sum(axis=1) * (weights_SN * other_SN**2).sum(axis=1))
    rho_S = np.full(len(weights_SN), np.nan)
    # Ranks are halves of whole numbers, so a constant score leaves only rounding here.
    np.divide(covariance_S, scale_S, out=rho_S, where=scale_S > 1e-9)
    return np.clip(rho_S, -1, 1)


def _mean_ranks(values_N: Floats, weights_SN: Floats) -> Floats:
    """The rank of each value when each is there as often as its weight says; ties share their mean rank."""
    distinct_G, group_N = np.unique(values_N, return_inverse=True)
    order_N = np.argsort(group_N, kind="stable")
    starts_G = np.searchsorted(group_N[order_N], np.arange(len(distinct_G)))
    tied_SG = np.add.reduceat(weights_SN[:, order_N], starts_G, axis=1)
    ranks_SG: Floats = np.cumsum(tied_SG, axis=1) - (tied_SG - 1) / 2
    return ranks_SG[:, group_N]

"""Spearman's rho and its interval over units, against values worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boothlab.errors import UserError
from boothlab.evaluation.rank_correlation import _weighted_rho, rank_correlation

FEW = 300


def units(*values: float) -> dict[str, list[float]]:
    return {f"unit{index:02}": [value] for index, value in enumerate(values)}


def test_rho_of_five_pairs_without_ties() -> None:
    # Squared rank differences 1 1 1 1 0: rho = 1 - 6 · 4 / (5 · 24).
    found = rank_correlation(units(1, 2, 3, 4, 5), units(20, 10, 40, 30, 50), seed=0, resamples=FEW)
    assert found.value == pytest.approx(0.8, abs=1e-12)
    assert (found.pairs, found.units, found.confidence) == (5, 5, 0.95)


def test_ties_share_their_mean_rank() -> None:
    # Ranks 1 2.5 2.5 4 against 1 2 3 4: 4.5 / sqrt(4.5 · 5).
    found = rank_correlation(units(0, 7, 7, 9), units(1, 2, 3, 4), seed=0, resamples=FEW)
    assert found.value == pytest.approx(4.5 / math.sqrt(22.5), abs=1e-12)


def test_perfect_agreement_and_its_opposite() -> None:
    values = [math.exp(k) for k in range(8)]
    for sign in (1, -1):
        found = rank_correlation(units(*range(8)), units(*(sign * v for v in values)), seed=0, resamples=FEW)
        assert found.value == pytest.approx(sign, abs=1e-12)
        assert found.low == pytest.approx(sign, abs=1e-9) and found.high == pytest.approx(sign, abs=1e-9)


def test_duplicating_every_image_leaves_the_interval_unchanged() -> None:
    first, second = units(1, 2, 3, 4, 5, 6), units(2, 1, 4, 3, 6, 5)
    doubled = [{unit: values * 2 for unit, values in scores.items()} for scores in (first, second)]
    one, other = rank_correlation(first, second, 0, resamples=FEW), rank_correlation(*doubled, 0, resamples=FEW)
    assert other.value == pytest.approx(one.value, abs=0.05)  # Doubled pairs are ties, so not quite the same rho
    assert other.low is not None and one.low is not None
    assert other.low == pytest.approx(one.low, abs=0.1)
    assert other.units == one.units == 6


def test_units_are_resampled_whole() -> None:
    # Each unit holds a perfect order and all units are alike: any resample of whole units has rho 1.
    scores = {f"unit{k}": [1.0, 2.0, 3.0] for k in range(4)}
    found = rank_correlation(scores, scores, seed=0, resamples=FEW)
    assert (found.low, found.high, found.pairs) == (pytest.approx(1), pytest.approx(1), 12)


def test_the_seed_decides_the_interval_and_the_order_of_units_does_not() -> None:
    first, second = units(1, 2, 3, 4, 5, 6, 7), units(2, 1, 4, 3, 7, 5, 6)
    found = rank_correlation(first, second, seed=0, resamples=FEW)
    backwards = (dict(reversed(scores.items())) for scores in (first, second))
    assert rank_correlation(*backwards, seed=0, resamples=FEW) == found
    assert rank_correlation(first, second, seed=1, resamples=FEW) != found
    assert found.low is not None and found.high is not None and found.value is not None
    assert -1 <= found.low < found.value < found.high <= 1


def test_no_correlation_without_enough_pairs_or_with_a_constant() -> None:
    few = rank_correlation(units(1, 2), units(1, 2), seed=0)
    assert (few.value, few.note) == (None, "a rank correlation needs at least 3 pairs, here 2")
    assert rank_correlation({}, {}, seed=0).value is None
    constant = rank_correlation(units(1, 2, 3), units(5, 5, 5), seed=0)
    assert (constant.value, constant.note) == (None, "all values of one score are equal")
    alone = rank_correlation({"a": [1, 2, 3]}, {"a": [1, 3, 2]}, seed=0)
    assert (alone.value, alone.low, alone.note) == (pytest.approx(0.5), None, "one unit, so no interval")


def test_resamples_with_a_constant_are_left_out_and_counted() -> None:
    found = rank_correlation(units(1, 2, 3), units(1, 2, 3), seed=0, resamples=900)
    count = int(found.note.split()[0])
    assert found.note == f"{count} of 900 resamples have a constant score"
    assert 60 < count < 140  # All three the same unit: 1 of 9.
    assert (found.low, found.high) == (pytest.approx(1), pytest.approx(1))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (units(1, 2, 3), units(1, 2), "same pictures"),
        ({"a": [1.0, 2.0]}, {"a": [1.0]}, "same pictures"),
        (units(1, 2, math.nan), units(1, 2, 3), "NaN"),
    ],
)
def test_scores_of_unlike_pictures_are_a_user_error(
    first: dict[str, list[float]], second: dict[str, list[float]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        rank_correlation(first, second, seed=0)
    with pytest.raises(UserError, match="confidence"):
        rank_correlation(units(1, 2, 3), units(1, 2, 3), seed=0, confidence=1)
    with pytest.raises(UserError, match="resample"):
        rank_correlation(units(1, 2, 3), units(1, 2, 3), seed=0, resamples=0)


def naive_rho(first: list[int], second: list[int]) -> float:
    def ranks(values: list[int]) -> list[float]:
        return [sum(o < v for o in values) + (sum(o == v for o in values) + 1) / 2 for v in values]

    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(ranks(first), ranks(second))[0, 1])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 3)), min_size=2, max_size=8))
def test_counts_are_as_good_as_repeated_pairs(rows: list[tuple[int, int, int]]) -> None:
    repeated = [(a, b) for a, b, count in rows for _ in range(count)]
    if not repeated:
        return
    first, second, counts = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    found = float(_weighted_rho(first, second, counts[None])[0])
    expected = naive_rho([a for a, _ in repeated], [b for _, b in repeated]) if len(repeated) > 1 else math.nan
    assert found == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert float(_weighted_rho(second, first, counts[None])[0]) == pytest.approx(found, abs=1e-9, nan_ok=True)

"""Intervals and tests over units, against values worked out by hand."""

import math

import pytest

from boothlab.errors import UserError
from boothlab.evaluation import statistics as stats

FIRST = {"cat": [0.9, 0.7], "dog": [0.6], "toy": [0.5, 0.5, 0.8]}
SECOND = {"cat": [0.7], "dog": [0.5], "toy": [0.3]}


def units(*values: float) -> dict[str, list[float]]:
    return {f"unit{index:02}": [value] for index, value in enumerate(values)}


def test_unit_means_weigh_images_within_their_unit_only() -> None:
    assert stats.unit_means(FIRST) == pytest.approx({"cat": 0.8, "dog": 0.6, "toy": 0.6}, abs=1e-12)
    assert stats.mean_interval(FIRST, seed=0).mean == pytest.approx(2 / 3, abs=1e-12)


def test_unit_means_are_exact_under_duplication() -> None:
    # A running sum of ten 0.1 is 0.9999999999999999, and of twenty another mean again.
    once, twice = stats.unit_means({"dog": [0.1] * 10}), stats.unit_means({"dog": [0.1] * 20})
    assert once == twice == {"dog": 0.1}


def test_duplicating_every_image_leaves_the_interval_unchanged() -> None:
    doubled = {unit: [*values, *values] for unit, values in FIRST.items()}
    assert stats.mean_interval(doubled, seed=0) == stats.mean_interval(FIRST, seed=0)
    assert stats.paired_bootstrap(doubled, SECOND, seed=0) == stats.paired_bootstrap(FIRST, SECOND, seed=0)
    assert stats.sign_flip_test(doubled, SECOND, seed=0) == stats.sign_flip_test(FIRST, SECOND, seed=0)


def test_order_of_units_does_not_matter() -> None:
    values = units(*(math.sin(index) for index in range(9)))
    backwards = dict(reversed(values.items()))
    assert stats.mean_interval(backwards, seed=0) == stats.mean_interval(values, seed=0)


def test_the_seed_decides_the_interval_and_zero_is_a_seed() -> None:
    values = units(*(math.sin(index) for index in range(9)))
    assert stats.mean_interval(values, seed=0) == stats.mean_interval(values, seed=0)
    assert stats.mean_interval(values, seed=0) != stats.mean_interval(values, seed=1)


def test_interval_has_the_exact_bootstrap_quantiles() -> None:
    # Two units 0 and 1: the resampled mean is 0, 1/2 or 1 with probability 1/4, 1/2, 1/4.
    interval = stats.mean_interval(units(0, 1), seed=0)
    assert (interval.low, interval.mean, interval.high, interval.units) == (0, 0.5, 1, 2)
    narrow = stats.mean_interval(units(0, 1), seed=0, confidence=0.4)
    assert (narrow.low, narrow.high) == (0.5, 0.5)


def test_interval_width_matches_the_standard_error() -> None:
    values = [((index * 37) % 100) / 100 for index in range(100)]  # Each of 0.00 … 0.99 once.
    interval = stats.mean_interval(units(*values), seed=0)
    standard_error = math.sqrt(sum((value - 0.495) ** 2 for value in values) / 100) / 10
    assert interval.low is not None
    assert interval.high is not None
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * standard_error, rel=0.05)


def test_pairing_removes_what_the_units_share() -> None:
    first, second = units(0.9, 0.5, 0.1), units(0.8, 0.4, 0.0)
    interval = stats.paired_bootstrap(first, second, seed=0)
    assert (interval.low, interval.mean, interval.high) == pytest.approx((0.1, 0.1, 0.1), abs=1e-12)


def test_one_unit_has_a_mean_but_no_interval() -> None:
    interval = stats.mean_interval(units(0.3), seed=0)
    assert (interval.mean, interval.low, interval.high) == (0.3, None, None)


@pytest.mark.parametrize("count", [1, 3, 5, 14])
def test_smallest_exact_p_is_two_in_two_to_the_n(count: int) -> None:
    found = stats.sign_flip_test(units(*[0.1] * count), units(*[0.0] * count), seed=0)
    assert found.exact
    assert found.p_value == found.smallest_p == 2 / 2**count


def test_exact_p_counts_sign_patterns() -> None:
    # Differences 3, 2, -1: |sum| over the patterns is 4, 6, 2, 0 (each twice); 4 of 8 reach the observed 4.
    found = stats.sign_flip_test(units(3, 2, 0), units(0, 0, 1), seed=0)
    assert found.p_value == 0.5
    assert found.difference == pytest.approx(4 / 3, abs=1e-12)


def test_exact_p_counts_ties_that_round_differently() -> None:
    # 0.1 + 0.2 - 0.3 and its mirror images are all 0 but not in floating point: every pattern reaches the observed one.
    assert stats.sign_flip_test(units(0.1, 0.2, 0), units(0, 0, 0.3), seed=0).p_value == 1


def test_equal_runs_have_p_one() -> None:
    assert stats.sign_flip_test(FIRST, FIRST, seed=0).p_value == 1


def test_many_units_are_sampled_close_to_the_exact_p_and_never_zero() -> None:
    sampled = stats.sign_flip_test(units(*[1.0] * 15), units(*[0.0] * 15), seed=0, samples=2_000)
    assert not sampled.exact
    assert sampled.p_value >= 1 / 2_001
    # 12 of 16 equal differences positive: p = 2 · P(Binomial(16, 1/2) ≥ 12) = 0.0768.
    signs = [1.0] * 12 + [-1.0] * 4
    found = stats.sign_flip_test(units(*signs), units(*[0.0] * 16), seed=0)
    assert found.p_value == pytest.approx(2 * sum(math.comb(16, k) for k in range(12, 17)) / 2**16, abs=0.01)


def test_holm_steps_down_and_stays_monotone() -> None:
    adjusted = stats.holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.9})
    assert list(adjusted) == ["a", "b", "c", "d"]
    assert adjusted == pytest.approx({"a": 0.09, "b": 0.04, "c": 0.09, "d": 0.9}, abs=1e-12)
    assert stats.holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert stats.holm({}) == {}


def test_bad_input_is_a_user_error() -> None:
    with pytest.raises(UserError, match="only one of them has: dog"):
        stats.paired_bootstrap(FIRST, {key: SECOND[key] for key in ("cat", "toy")}, seed=0)
    with pytest.raises(UserError, match="no units"):
        stats.mean_interval({}, seed=0)
    with pytest.raises(UserError, match="dog: no values"):
        stats.mean_interval({"dog": []}, seed=0)
    with pytest.raises(UserError, match="NaN"):
        stats.mean_interval(units(0.1, float("nan")), seed=0)
    with pytest.raises(UserError, match="confidence"):
        stats.mean_interval(FIRST, seed=0, confidence=95)
    with pytest.raises(UserError, match="resample"):
        stats.mean_interval(FIRST, seed=0, resamples=0)
    with pytest.raises(UserError, match="p value"):
        stats.holm({"a": 1.5})

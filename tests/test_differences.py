"""The first difference between two histories: which step, which key, and where to look."""

import math
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boothlab.rerunning.differences import (
    Difference,
    Steps,
    Tolerance,
    Tolerances,
    by_step,
    compare_histories,
    differing_streams,
    likely_cause,
)
from boothlab.tracking.history import Row

EXACTLY = Tolerances()
HISTORY: Steps = {
    0: {"eval/clip_i": 0.5},
    1: {"train/loss": 0.1, "train/grad_norm": 2.0},
    2: {"train/loss": 0.1, "train/grad_norm": 1.0, "eval/clip_i": 0.6},
}


def changed(step: int, key: str, value: float | None) -> Steps:
    """HISTORY with one value changed, added, or (None) taken out."""
    copied = {number: dict(values) for number, values in HISTORY.items()}
    copied.setdefault(step, {})[key] = value if value is not None else 0.0
    if value is None:
        del copied[step][key]
    return copied


def test_equal_histories_have_no_difference() -> None:
    found = compare_histories(HISTORY, changed(0, "eval/clip_i", 0.5), EXACTLY)
    assert (found.compared, found.identical, found.equal_steps) == (6, 6, 3)
    assert found.first is None and found.farthest is None


@pytest.mark.parametrize(
    ("other", "line", "equal_steps"),
    [
        (changed(1, "train/loss", 0.2), "step 1: train/loss 0.1 → 0.2 (+1 of it)", 1),
        (changed(2, "train/loss", 0.099), "step 2: train/loss 0.1 → 0.099 (-0.01 of it)", 2),
        (changed(0, "eval/clip_i", math.nan), "step 0: eval/clip_i 0.5 → nan", 0),
        (changed(2, "eval/clip_i", None), "step 2: eval/clip_i = 0.6 is not in the rerun", 2),
        (changed(1, "eval/dino", 0.3), "step 1: eval/dino = 0.3 is only in the rerun", 1),
        (changed(3, "train/loss", 0.1), "step 3: train/loss = 0.1 is only in the rerun", 3),
        ({}, "step 0: eval/clip_i = 0.5 is not in the rerun", 0),
    ],
)
def test_the_first_difference_is_named(other: Steps, line: str, equal_steps: int) -> None:
    found = compare_histories(HISTORY, other, EXACTLY)
    assert str(found.first) == line
    assert found.equal_steps == equal_steps


def test_the_earliest_of_several_differences_counts() -> None:
    other = changed(2, "train/loss", 9.0)
    other[1]["train/grad_norm"] = 9.0
    first = compare_histories(HISTORY, other, EXACTLY).first
    assert first == Difference(1, "train/grad_norm", 2.0, 9.0)


VALUES = st.floats(allow_nan=True, allow_infinity=True, width=32)
HISTORIES = st.dictionaries(
    st.integers(0, 50),
    st.dictionaries(st.sampled_from(["train/loss", "train/lr_unet", "eval/dino", "other"]), VALUES, min_size=1),
    min_size=1,
    max_size=8,
)


@given(HISTORIES, st.data())
@settings(max_examples=200, deadline=None)
def test_one_changed_value_is_found_where_it_is(history: Steps, data: st.DataObject) -> None:
    step = data.draw(st.sampled_from(sorted(history)))
    key = data.draw(st.sampled_from(sorted(history[step])))
    value = history[step][key]
    other = data.draw(VALUES.filter(lambda new: new != value and not (math.isnan(new) and math.isnan(value))))
    altered: Steps = {**history, step: {**history[step], key: other}}
    found = compare_histories(history, altered, EXACTLY)
    assert found.first is not None
    assert (found.first.step, found.first.key) == (step, key)
    assert found.compared - found.identical == 1
    assert found.equal_steps == sum(number < step for number in history)
    assert compare_histories(history, history, EXACTLY).first is None


@given(HISTORIES, st.data())
@settings(max_examples=100, deadline=None)
def test_one_missing_value_is_found_where_it_was(history: Steps, data: st.DataObject) -> None:
    step = data.draw(st.sampled_from(sorted(history)))
    key = data.draw(st.sampled_from(sorted(history[step])))
    rest: Mapping[str, float] = {name: value for name, value in history[step].items() if name != key}
    for found, gone in (
        (compare_histories(history, {**history, step: dict(rest)}, EXACTLY).first, "after"),
        (compare_histories({**history, step: dict(rest)}, history, EXACTLY).first, "before"),
    ):
        assert found is not None and (found.step, found.key, getattr(found, gone)) == (step, key, None)


@pytest.mark.parametrize(
    ("tolerance", "before", "after", "same"),
    [
        (Tolerance(), 0.1, 0.1, True),
        (Tolerance(), 0.1, math.nextafter(0.1, 1), False),
        (Tolerance(), math.nan, math.nan, True),
        (Tolerance(absolute=1.0), math.nan, 0.0, False),
        (Tolerance(absolute=1.0), 0.0, math.inf, False),
        (Tolerance(), math.inf, math.inf, True),
        (Tolerance(), -math.inf, math.inf, False),
        (Tolerance(absolute=0.02), 0.5, 0.515, True),
        (Tolerance(absolute=0.02), 0.5, 0.525, False),
        (Tolerance(relative=0.1), -2.0, -2.1, True),
        (Tolerance(relative=0.1), -2.0, -2.3, False),
        (Tolerance(relative=0.1), 0.0, 1e-9, False),
    ],
)
def test_what_a_tolerance_allows(tolerance: Tolerance, before: float, after: float, same: bool) -> None:
    assert tolerance.allows(before, after) is same


def test_the_longest_prefix_chooses_the_tolerance() -> None:
    loose, looser, none = Tolerance(0.1), Tolerance(0.2), Tolerance()
    tolerances = Tolerances(none, (("train/", loose), ("train/loss", looser)))
    assert [tolerances.of(key) for key in ("train/loss_prior", "train/lr_unet", "eval/dino")] == [looser, loose, none]


def test_what_is_off_within_tolerance_is_said() -> None:
    other = changed(2, "eval/clip_i", 0.61)
    other[0]["eval/clip_i"] = 0.501
    found = compare_histories(HISTORY, other, Tolerances(Tolerance(absolute=0.02)))
    assert found.first is None
    assert (found.compared, found.identical, found.equal_steps) == (6, 4, 3)
    assert found.farthest == Difference(2, "eval/clip_i", 0.6, 0.61)


def test_rows_of_a_step_are_one_and_clocks_do_not_count() -> None:
    rows = [
        Row(0, 0.1, {"eval/sampling_seconds": 3.0}),
        Row(5, 0.2, {"train/loss": 1, "train/step_seconds": 9.0}),
        Row(5, 0.3, {"eval/dino/dollhouse": 0.5, "eval/scoring_seconds": 1.0, "mine": 2.0}),
        Row(2, 0.4, {"train/loss": 7.0}),
    ]
    assert by_step(rows) == {2: {"train/loss": 7.0}, 5: {"train/loss": 1.0, "eval/dino/dollhouse": 0.5, "mine": 2.0}}
    assert by_step(rows, ("train/",)) == {5: {"eval/dino/dollhouse": 0.5, "mine": 2.0}}
    assert list(by_step(rows)) == [2, 5]


def test_streams_with_other_seeds_are_named() -> None:
    before = {"noise": 1, "vae": 2, "lora_init": 3}
    assert differing_streams(before, dict(before)) == []
    assert differing_streams(before, {"noise": 1, "vae": 5, "crops": 4, "lora_init": 3}) == ["crops", "vae"]


@pytest.mark.parametrize(
    ("difference", "streams", "said"),
    [
        (Difference(7, "train/loss", 0.1, 0.2), ["noise", "vae"], "these streams have other seeds: noise, vae"),
        (Difference(0, "eval/dino_ceiling/dollhouse", 0.1, 0.2), [], "look at the photos and the encoders"),
        (Difference(0, "eval/dino", 0.1, 0.2), [], "look at the backbone, the sampler and the encoders"),
        (Difference(5, "train/loss", 0.1, 0.2), [], "how the adapter starts"),
        (Difference(7, "train/loss", 0.1, 0.2), [], "arithmetic that rounds differently"),
    ],
)
def test_the_hint_says_where_to_look(difference: Difference, streams: list[str], said: str) -> None:
    assert said in likely_cause(difference, 5, streams)

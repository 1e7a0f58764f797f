"""Means of edit scores over images, and how well one score predicts another, against values worked out by hand."""

import json
import subprocess
import sys

import pytest

from boothlab.errors import UserError
from boothlab.evaluation import statistics
from boothlab.evaluation.edit_metrics import EditScore
from boothlab.evaluation.edit_summary import EditRow, clip_against_truth, summarise, unit_values

FEW = 200


def row(image: str, edit: str, value: float | None, seed: int = 0, method: str = "", **more: float) -> EditRow:
    score = EditScore({}, {"clip_t": "no target caption"}) if value is None else EditScore({"clip_t": value})
    return EditRow(image, edit, score.plus(more), method, seed)


UNEVEN = [row("a", "night", 0.0, seed) for seed in range(4)] + [row("b", "night", 1.0, seed) for seed in range(6)]


def test_headline_is_the_mean_of_the_images_means() -> None:
    found = summarise(UNEVEN, seed=0, resamples=FEW)
    overall = found.overall["clip_t"]
    assert (overall.value, overall.pooled, overall.rows, overall.images) == (0.5, 0.6, 10, 2)
    assert (overall.low, overall.high) == (0, 1)
    assert (found.rows, found.images, found.edits, found.unit) == (10, 2, 1, "image")


def test_averages_go_upwards_through_seeds_edits_and_images() -> None:
    rows = [row("a", "night", 0.0, 0), row("a", "night", 0.2, 1), row("a", "hat", 0.5), row("b", "hat", 0.9)]
    found = summarise(rows, seed=0, resamples=FEW)
    assert found.per_image["a"]["clip_t"].value == pytest.approx(0.3, abs=1e-12)
    assert found.overall["clip_t"].value == pytest.approx(0.6, abs=1e-12)
    assert found.per_edit["hat"]["clip_t"].value == pytest.approx(0.7, abs=1e-12)
    assert found.per_edit["night"]["clip_t"].value == pytest.approx(0.1, abs=1e-12)
    assert found.per_edit["hat"]["clip_t"].low is None
    assert list(found.per_edit) == ["hat", "night"] and list(found.per_image) == ["a", "b"]


def test_duplicating_every_image_leaves_the_interval_unchanged() -> None:
    rows = [row(image, edit, 0.1 * k) for k, (image, edit) in enumerate((i, e) for i in "abcde" for e in "xy")]
    doubled = rows + [EditRow(r.image, r.edit, r.score, r.method, 1) for r in rows]
    one, other = (summarise(given, seed=0, resamples=FEW).overall["clip_t"] for given in (rows, doubled))
    assert (one.value, one.low, one.high) == (other.value, other.low, other.high)
    assert summarise(rows[::-1], seed=0, resamples=FEW) == summarise(rows, seed=0, resamples=FEW)


def test_absent_values_are_counted_and_never_zero() -> None:
    rows = [row("a", "night", 0.4), row("a", "hat", None), row("b", "hat", None), row("c", "hat", 0.8)]
    found = summarise(rows, seed=0, resamples=FEW)
    overall = found.overall["clip_t"]
    assert overall.value == pytest.approx(0.6, abs=1e-12)
    assert (overall.rows, overall.images, overall.absent) == (2, 2, {"no target caption": 2})
    nothing = found.per_image["b"]["clip_t"]
    assert (nothing.value, nothing.pooled, nothing.rows, nothing.absent) == (None, None, 0, {"no target caption": 1})
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_score_that_no_row_has_is_none() -> None:
    overall = summarise([row("a", "hat", None)], seed=0, resamples=FEW).overall["clip_t"]
    assert (overall.value, overall.low, overall.images) == (None, None, 0)


def test_capped_psnr_are_counted() -> None:
    rows = [
        row("a", "hat", 0.1, psnr_outside=100.0, mse_inside=100.0),
        row("b", "hat", 0.1, psnr_outside=30.0, mse_inside=1.0),
    ]
    found = summarise(rows, seed=0, resamples=FEW).overall
    assert (found["psnr_outside"].value, found["psnr_outside"].at_cap, found["mse_inside"].at_cap) == (65, 1, 0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no edits"),
        ([row("a", "hat", 0.1), row("a", "hat", 0.2)], "a, hat, seed 0: more than one row"),
        ([row("a", "hat", 0.1, method="copy"), row("b", "hat", 0.1, method="sdedit")], "several methods"),
        ([row("a", "hat", 0.1, happened=1.0), row("b", "hat", 0.1)], "b, hat, seed 0: happened is missing"),
    ],
    ids=["none", "doubled", "methods", "missing"],
)
def test_a_mean_over_whatever_is_there_is_refused(rows: list[EditRow], message: str) -> None:
    with pytest.raises(UserError, match=message):
        summarise(rows, seed=0, resamples=FEW)


def test_unit_values_go_into_the_paired_tests() -> None:
    copy = [row("a", "hat", 0.2), row("a", "night", 0.4), row("b", "hat", 0.1)]
    better = [row("a", "hat", 0.4), row("a", "night", 0.6), row("b", "hat", 0.3)]
    assert unit_values(copy, "clip_t") == {"a": [0.2, 0.4], "b": [0.1]}
    found = statistics.sign_flip_test(unit_values(better, "clip_t"), unit_values(copy, "clip_t"), seed=0)
    assert found.difference == pytest.approx(0.2, abs=1e-12)
    assert (found.p_value, found.smallest_p) == (0.5, 0.5)


def test_agreement_is_as_higher_is_better() -> None:
    rows = [
        row(image, "hat", clip, method=method, l1_truth=distance, happened=float(clip > 0.2))
        for image, clip, distance, method in [
            ("a", 0.1, 0.9, "x"),
            ("a", 0.2, 0.8, "y"),
            ("b", 0.3, 0.7, "x"),
            ("c", 0.4, 0.1, "y"),
        ]
    ]
    rows.append(row("d", "hat", None, l1_truth=0.0, happened=0.0))
    found = {
        (each.clip_score, each.truth_score): each.correlation for each in clip_against_truth(rows, 0, resamples=FEW)
    }
    assert len(found) == 16
    distance = found["clip_t", "l1_truth"]
    assert (distance.value, distance.pairs, distance.units) == (pytest.approx(1, abs=1e-12), 4, 3)
    # Ranks 1 2 3 4 against 1.5 1.5 3.5 3.5: 4 / sqrt(5 · 4).
    assert found["clip_t", "happened"].value == pytest.approx(4 / 20**0.5, abs=1e-12)
    assert found["clip_image", "l1_truth"].value is None
    json.dumps([each.to_dict() for each in clip_against_truth(rows, 0, resamples=FEW)], allow_nan=False)


def test_names_and_means_take_no_torch() -> None:
    code = "import sys, boothlab.evaluation.edit_summary; print(*sorted({'torch', 'scipy'} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []

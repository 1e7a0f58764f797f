"""The guess of how long a sweep takes: golden values from the costs of past runs."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from boothlab.compose.run import compose
from boothlab.compose.typed import load
from boothlab.config import ScoreConfig, TrainConfig
from boothlab.sweeping.estimate import Cost, estimate_seconds, past_costs, shown_seconds, work_of

CONFIG: dict[str, Any] = {
    "backbone": {"name": "dollhouse", "resolution": 32},
    "data": {"batch_size": 4},
    "prior": {"enabled": False},
    "lora": {"train_text_encoder": False, "rank": 4},
    "trainer": {"max_steps": 100, "checkpoint_every": 50},
    "evaluation": {
        "enabled": True,
        "every": None,
        "prompts": ["one", "two", "three"],
        "seeds": [0, 1],
        "pres_images": 4,
        "sampler": {"steps": 15},
    },
}
KIND = ("dollhouse", 32, 4, False, False, 15)
TIMINGS = {"sampling_seconds": 30.0, "scoring_seconds": 10.0, "median_step_seconds": 0.5, "training_seconds": 97.0}


def changed(**values: Any) -> dict[str, Any]:
    """The config with dotted keys (`trainer__max_steps`) set."""
    config = copy.deepcopy(CONFIG)
    for key, value in values.items():
        section, name = key.split("__")
        config[section][name] = value
    return config


def past_run(
    folder: Path,
    name: str,
    config: dict[str, Any],
    timings: dict[str, Any],
    status: str = "finished",
    attempts: list[Any] | None = None,
) -> Path:
    run_dir = folder / "experiment" / name
    run_dir.mkdir(parents=True)
    summary = {"status": status, "timings": timings}
    (run_dir / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    manifest = {"config": config, "earlier_attempts": attempts or []}
    (run_dir / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return run_dir


@pytest.mark.parametrize(
    ("changes", "work"),
    [
        ({}, (100, 20)),  # at 50 and 100: 3 prompts × 2 seeds and 4 class images
        ({"trainer__checkpoint_every": 30}, (100, 40)),  # at 30, 60, 90 and 100
        ({"evaluation__every": 100}, (100, 10)),
        ({"evaluation__every": 40}, (100, 30)),
        ({"evaluation__pres_images": 0}, (100, 12)),
        ({"evaluation__enabled": False}, (100, 0)),
        ({"trainer__max_steps": 7, "trainer__checkpoint_every": 7}, (7, 10)),
        ({"trainer__max_steps": None}, (0, 0)),
    ],
)
def test_the_work_of_a_run(changes: dict[str, Any], work: tuple[int, int]) -> None:
    assert work_of(changed(**changes)) == work


def test_the_work_of_the_shipped_run_is_what_it_draws() -> None:
    _, resolved = load(compose("train"), TrainConfig)
    assert work_of(resolved) == (250, 5 * (8 * 4 + 8))
    _, resolved = load(compose("score"), ScoreConfig)
    assert work_of(resolved) == (0, 0)  # a scoring trains nothing


def test_the_costs_of_past_runs(tmp_path: Path) -> None:
    past_run(tmp_path, "a", CONFIG, TIMINGS)
    past_run(tmp_path, "b", changed(lora__rank=64), {**TIMINGS, "training_seconds": 80.0})
    past_run(tmp_path, "c", changed(prior__enabled=True), {**TIMINGS, "median_step_seconds": 0.25})
    costs = past_costs(tmp_path)
    dear = (*KIND[:3], True, *KIND[4:])
    assert costs == {
        KIND: [Cost(0.5, 2.0, 7.0), Cost(0.5, 2.0, 0.0)],  # 97 - 100 × 0.5 - 40; never less than nothing
        dear: [Cost(0.25, 2.0, 32.0)],
    }


def test_edits_and_scorings_are_judged_by_whole_runs(tmp_path: Path) -> None:
    edit = {"backbone": {"name": "dollhouse"}, "editors": {}, "method": "sdedit", "steps": 20}
    for name, seconds in (("a", 30.0), ("b", 50.0)):
        past_run(tmp_path, name, edit | {"method": name}, {"total_seconds": seconds})
    past_run(tmp_path, "scoring", {"steps": 20}, {"total_seconds": 7.0})
    past = past_costs(tmp_path)
    assert estimate_seconds([(edit | {"method": "b"}, 0)], past) == 50  # the method's own past
    assert estimate_seconds([(edit, 0), (edit, 0)], past) == 80  # else that of all methods
    assert estimate_seconds([({"steps": 30}, 0)], past) == 7
    assert estimate_seconds([(edit | {"backbone": {"name": "sd15"}}, 0)], past) is None


def test_what_is_no_guide_is_left_out(tmp_path: Path) -> None:
    past_run(tmp_path, "failed", CONFIG, TIMINGS, status="failed")
    past_run(tmp_path, "resumed", CONFIG, TIMINGS, attempts=[{"status": "interrupted"}])
    past_run(tmp_path, "score", changed(trainer__max_steps=None), TIMINGS)
    past_run(tmp_path, "no steps timed", CONFIG, {"sampling_seconds": 1.0, "scoring_seconds": 1.0})
    past_run(tmp_path, "timings of words", CONFIG, {**TIMINGS, "median_step_seconds": "fast"})
    (past_run(tmp_path, "no manifest", CONFIG, TIMINGS) / "manifest.json").unlink()
    (past_run(tmp_path, "cut short", CONFIG, TIMINGS) / "summary.json").write_text('{"status": "fin')
    (past_run(tmp_path, "a list", CONFIG, TIMINGS) / "summary.json").write_text("[]")
    assert past_costs(tmp_path) == {}
    assert past_costs(tmp_path / "nowhere") == {}


def test_jobs_are_judged_by_runs_of_their_kind() -> None:
    past = {KIND: [Cost(0.5, 2.0, 10.0), Cost(0.7, 2.2, 20.0), Cost(0.6, 9.0, 90.0)]}
    # medians: 0.6 s a step, 2.2 s an image, 20 s besides
    assert estimate_seconds([(CONFIG, 0)], past) == pytest.approx(100 * 0.6 + 20 * 2.2 + 20)
    longer = changed(trainer__max_steps=200)
    assert estimate_seconds([(CONFIG, 0), (longer, 0)], past) == pytest.approx(124 + 200 * 0.6 + 40 * 2.2 + 20)


def test_what_is_done_already_is_not_counted_again() -> None:
    past = {KIND: [Cost(0.5, 2.0, 10.0)]}
    whole = 100 * 0.5 + 20 * 2.0
    for done, left in ((0, 1.0), (25, 0.75), (100, 0.0), (130, 0.0)):
        assert estimate_seconds([(CONFIG, done)], past) == pytest.approx(left * whole + 10)


def test_other_kinds_on_the_same_backbone_are_better_than_nothing() -> None:
    dear = (*KIND[:3], True, *KIND[4:])
    other_model = ("sd15", *KIND[1:])
    past = {dear: [Cost(1.0, 3.0, 5.0)], other_model: [Cost(99.0, 99.0, 99.0)]}
    assert estimate_seconds([(CONFIG, 0)], past) == pytest.approx(100 * 1.0 + 20 * 3.0 + 5)
    past[KIND] = [Cost(0.5, 2.0, 10.0)]  # once there is one of its own kind, that counts alone
    assert estimate_seconds([(CONFIG, 0)], past) == pytest.approx(100)


def test_without_a_past_nothing_is_guessed() -> None:
    assert estimate_seconds([(CONFIG, 0)], {}) is None
    past = {KIND: [Cost(0.5, 2.0, 10.0)]}
    assert estimate_seconds([(CONFIG, 0), (changed(backbone__name="sd15"), 0)], past) is None
    assert estimate_seconds([], past) == 0.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (45, "45 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (720, "12 min"),
        (90 * 60 - 1, "90 min"),
        (90 * 60, "1.5 h"),
        (12600, "3.5 h"),
    ],
)
def test_times_are_written_for_people(seconds: float, text: str) -> None:
    assert shown_seconds(seconds) == text


def test_the_kind_of_a_shipped_run_is_whole(tmp_path: Path) -> None:
    """Every key that makes a step dear or cheap is one that a training's config has."""
    _, resolved = load(compose("train"), TrainConfig)
    past_run(tmp_path, "run", resolved, {**TIMINGS, "training_seconds": 500.0})
    assert past_costs(tmp_path) == {KIND: [Cost(0.5, 0.2, 335.0)]}

"""W&B sweeps: the files in sweeps/wandb, an agent that runs one, and what W&B gets of a run's group, tags and past."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from boothlab.building.parts import build_tracker, scorer_suffix
from boothlab.compose.run import compose
from boothlab.compose.typed import load
from boothlab.config import TrackingConfig, TrainConfig
from boothlab.config import WandbMode as ConfigMode
from boothlab.tracking import metrics
from boothlab.tracking.run import Tracker
from boothlab.tracking.wandb import WandbMirror, WandbMode, WandbOptions
from wandb_double import Server, isolated_wandb, logged_in

FOLDER = Path(__file__).parents[1] / "sweeps" / "wandb"
FILES = sorted(FOLDER.glob("*.yaml"))
WANDB = [sys.executable, "-m", "wandb"]
ARGS = "${args_no_hyphens}"
TINY = (
    "trainer.max_steps=2",
    "trainer.checkpoint_every=1",
    "trainer.accelerator=cpu",
    "trainer.threads=1",
    "evaluation.seeds=[0]",
    "evaluation.prompts=['a photo of a {token} {class}']",
    "evaluation.sampler.steps=2",
    "evaluation.pres_images=0",
)


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with isolated_wandb(tmp_path / "wandb_home", monkeypatch):
        yield


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with logged_in(monkeypatch) as double:
        yield double


def sweep_in(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def extremes(parameter: dict[str, Any]) -> list[Any]:
    return parameter["values"] if "values" in parameter else [parameter["min"], parameter["max"]]


def config_of(sweep: dict[str, Any], values: dict[str, Any]) -> TrainConfig:
    """The config of a run as the agent starts it: `key=value` with Python's own text of the value."""
    start, train, *fixed, args = sweep["command"][1:]
    assert (start, train, args) == ("${program}", "train", ARGS)
    given = [argument.replace("${envvar:WANDB_SWEEP_ID}", "abc") for argument in fixed]
    typed, _ = load(compose("train", [*given, *(f"{key}={value}" for key, value in values.items())]), TrainConfig)
    assert isinstance(typed, TrainConfig)
    return typed


def test_there_is_a_grid_and_a_bayesian_search() -> None:
    assert {path.stem: sweep_in(path)["method"] for path in FILES} == {"bayes": "bayes", "learning_rate_rank": "grid"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_value_of_a_sweep_makes_a_valid_run_of_its_own_group(path: Path) -> None:
    sweep = sweep_in(path)
    assert sweep["name"] == path.stem
    choices = {key: extremes(parameter) for key, parameter in sweep["parameters"].items()}
    for index in range(max(map(len, choices.values()))):
        values = {key: some[index % len(some)] for key, some in choices.items()}
        assert not any(isinstance(value, str) for value in values.values()), "YAML reads 1e-3 as text"
        config = config_of(sweep, values)
        for key, value in values.items():
            section, _, name = key.rpartition(".")
            assert getattr(getattr(config, section), name) == value
        assert config.experiment == f"{path.stem}-abc"
        assert config.tracking.group == path.stem
        assert config.tracking.tags == ["sweep", sweep["method"]]
        assert config.tracking.wandb is ConfigMode.online


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_sweep_is_judged_by_the_balanced_score_under_the_key_its_runs_use(path: Path) -> None:
    sweep = sweep_in(path)
    suffix = scorer_suffix(config_of(sweep, {}).encoders)
    # Only what is logged along the way can stop a run early; the best value is known at its end.
    prefix = "" if "early_terminate" in sweep else "best/"
    name = prefix + metrics.variant(metrics.BALANCED, suffix)
    assert sweep["metric"] == {"name": name, "goal": "maximize"}


def test_the_search_stops_runs_at_checkpoints_that_exist() -> None:
    sweep = sweep_in(FOLDER / "bayes.yaml")
    trainer = config_of(sweep, {}).trainer
    evaluations = 1 + trainer.max_steps // trainer.checkpoint_every  # with that of the untrained model
    assert sweep["early_terminate"] == {"type": "hyperband", "min_iter": 2, "eta": 2}
    assert evaluations > 2 * 2
    assert sweep["run_cap"] == 20


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_comment_says_how_to_start_a_sweep_and_what_it_costs(path: Path) -> None:
    comment = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    text = "\n".join(comment)
    assert f"wandb sweep --project boothlab sweeps/wandb/{path.name}" in text
    assert "wandb agent ENTITY/boothlab/ID" in text
    runs = {"learning_rate_rank": "12 runs", "bayes": "at most 20 runs"}[path.stem]
    assert runs in text and "min" in text
    if path.stem == "learning_rate_rank":
        values = [len(extremes(parameter)) for parameter in sweep_in(path)["parameters"].values()]
        assert values[0] * values[1] == 12


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the sweep's command starts with /usr/bin/env")
def test_an_agent_runs_the_grid(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "boothlab"  # the sweep says `boothlab`, which need not be installed here
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m boothlab "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(program.parent), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "src"))
    monkeypatch.setenv("BOOTHLAB_CACHE", str(tmp_path / "cache"))
    sweep = sweep_in(FOLDER / "learning_rate_rank.yaml")
    sweep["command"] = [*sweep["command"][:-1], *TINY, ARGS]
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(sweep), encoding="utf-8")

    made = wandb(tmp_path, "sweep", "--entity", "tester", "--project", "toys", "tiny.yaml")
    assert "wandb agent tester/toys/sweep001" in made
    wandb(tmp_path, "agent", "--count", "2", "tester/toys/sweep001")
    assert server.sweeps["sweep001"].config == sweep
    assert list(server.runs) == ["sweep001run1", "sweep001run2"]
    for run, lr in zip(server.runs.values(), sweep["parameters"]["optim.lr"]["values"], strict=False):
        assert run.exit_code == 0
        sent = {key: run.fields[key] for key in ("sweep", "project", "groupName", "tags")}
        tags = ["sweep", "grid"]
        assert sent == {"sweep": "sweep001", "project": "toys", "groupName": "learning_rate_rank", "tags": tags}
        config = run.config_values
        assert (config["optim"]["lr"], config["lora"]["rank"], config["trainer"]["max_steps"]) == (lr, 4, 2)
        assert (config["optim.lr"], config["lora.rank"]) == (lr, 4)  # as the sweep itself knows them
        assert_local_and_judged(tmp_path, run, sweep["metric"]["name"])


def assert_local_and_judged(folder: Path, run: Any, best: str) -> None:
    """The run folder is where the name says, and both metrics by which a sweep judges have arrived."""
    local = folder / "outputs" / "learning_rate_rank-sweep001" / run.fields["displayName"]
    summary = json.loads((local / "summary.json").read_text(encoding="utf-8"))
    assert summary["status"] == "finished"
    logged = best.removeprefix("best/")
    assert run.summary[best] == summary["best"][logged]["value"]
    assert [row["trainer/global_step"] for row in run.history if logged in row] == [0, 1, 2]


def wandb(folder: Path, *arguments: str) -> str:
    done = subprocess.run([*WANDB, *arguments], cwd=folder, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stderr


def started(run_dir: Path, mode: str = "online") -> WandbMirror:
    mirror = WandbMirror()
    mirror.start(run_dir, "mine", "group", [], None, mode, {"optim": {"lr": 0.5}})
    return mirror


def under_an_agent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "config.yaml").write_text("optim.lr:\n  value: 0.5\nwandb_version: 1\n", encoding="utf-8")
    for name, value in {"SWEEP_ID": "sweep9", "RUN_ID": "run7", "PROJECT": "toys", "ENTITY": "tester"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(folder / "config.yaml"))


def test_an_agents_run_takes_its_id_sweep_and_project(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_an_agent(tmp_path, monkeypatch)
    mirror = started(tmp_path)
    mirror.log(1, {metrics.TRAIN_LOSS: 0.5})
    mirror.finish(0)
    (run,) = server.runs.values()
    assert (run.name, run.fields["sweep"], run.fields["project"]) == ("run7", "sweep9", "toys")
    assert run.config_values == {"optim": {"lr": 0.5}, "optim.lr": 0.5}


def test_an_agents_run_that_must_go_offline_keeps_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    under_an_agent(tmp_path, monkeypatch)
    mirror = started(tmp_path)  # no key
    assert mirror.mode is WandbMode.OFFLINE
    assert mirror.sync_dir is not None and mirror.sync_dir.name.endswith("-run7")
    mirror.finish(0)


def test_group_and_tags_of_the_config_reach_the_run(tmp_path: Path, server: Server) -> None:
    tagged = TrackingConfig(wandb=ConfigMode.online, project="toys", group="sweep name", tags=["lr", "x" * 70])
    plain = TrackingConfig(wandb=ConfigMode.online, project="toys")
    for name, config in (("first", tagged), ("second", plain)):
        (tmp_path / name).mkdir()
        with build_tracker(config, name, "the experiment", {"a": 1}, tmp_path / name, None):
            pass
    runs = {run.fields["displayName"]: run.fields for run in server.runs.values()}
    assert (runs["first"]["groupName"], runs["first"]["tags"]) == ("sweep name", ["lr", "x" * 64])
    assert (runs["second"]["groupName"], runs["second"].get("tags")) == ("the experiment", None)


def test_a_run_that_goes_on_after_a_checkpoint_is_whole_in_wandb(tmp_path: Path, server: Server) -> None:
    options = WandbOptions(project="toys", mode="online")
    with pytest.raises(KeyboardInterrupt), Tracker(tmp_path, wandb=options) as tracker:
        for step in (0, 10, 20):
            tracker.log(step, {metrics.TRAIN_LOSS: step})
        raise KeyboardInterrupt
    with Tracker(tmp_path, wandb=options, resume_step=10) as tracker:
        tracker.log(20, {metrics.TRAIN_LOSS: 99})
    with Tracker(tmp_path, wandb=options) as tracker:  # not resumed: started again
        tracker.log(0, {metrics.TRAIN_LOSS: 7})
    rows = [
        [(row["trainer/global_step"], row[metrics.TRAIN_LOSS]) for row in run.history] for run in server.runs.values()
    ]
    assert rows == [[(0, 0), (10, 10), (20, 20)], [(0, 0), (10, 10), (20, 99)], [(0, 7)]]
    assert [run.exit_code for run in server.runs.values()] == [255, 0, 0]

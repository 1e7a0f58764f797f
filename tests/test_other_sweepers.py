"""Sweeper plugins of Hydra that choose jobs as they go: they get a number from each job, and the exit code of none."""

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
from hydra.core.plugins import Plugins

from boothlab.compose.job import Outcome, code_of_multirun
from boothlab.compose.run import run
from boothlab.errors import UserError
from boothlab.tracking.summary import headline

PLUGIN = """
import json
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper


class ClimbingSweeper(Sweeper):
    def __init__(self, notes):
        self.notes = notes

    def setup(self, *, hydra_context, task_function, config):
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments):
        found = {}
        for lr in ("0.5", "0.25"):
            (returned,) = self.launcher.launch([[*arguments, f"optim.lr={lr}"]], initial_job_idx=len(found))
            found[lr] = float(returned.return_value)
        Path(self.notes).write_text(json.dumps(found))


ConfigStore.instance().store(
    group="hydra/sweeper",
    name="climbing",
    node={"_target_": "hydra_plugins.climbing_sweeper.ClimbingSweeper", "notes": "???"},
    provider="climbing_sweeper",
)
"""


def summary_of(lr: float) -> dict[str, Any]:
    keys = {"eval/balanced/dollhouse": 1 - lr, "eval/clip_i/dollhouse": 0.9, "train/loss": 0.1}
    return {"status": "finished", "best": {key: {"value": value, "step": 5} for key, value in keys.items()}}


@pytest.fixture
def climbing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plugin as pip would install one: a module of the namespace package that Hydra searches."""
    home = tmp_path / "site" / "hydra_plugins"
    home.mkdir(parents=True)
    (home / "climbing_sweeper.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(home.parent))
    plugins = Plugins.instance()
    monkeypatch.setattr(plugins, "plugin_type_to_subclass_list", {**plugins.plugin_type_to_subclass_list})
    monkeypatch.setattr(plugins, "class_name_to_class", {**plugins.class_name_to_class})
    import hydra_plugins

    monkeypatch.setattr(hydra_plugins, "__path__", [*hydra_plugins.__path__, str(home)])
    from importlib import import_module

    plugins.register(import_module("hydra_plugins.climbing_sweeper").ClimbingSweeper)
    return tmp_path / "notes.json"


def test_a_sweeper_gets_the_best_balanced_score_of_each_job(climbing: Path, tmp_path: Path) -> None:
    def body(config: Any, resolved: dict[str, Any], run_dir: Path, one_of_many: bool) -> dict[str, Any]:
        return summary_of(config.optim.lr)

    words = ["-m", "hydra/sweeper=climbing", f"hydra.sweeper.notes={climbing}", f"paths.outputs={tmp_path}"]
    assert run("train", body, words) == 0
    assert json.loads(climbing.read_text()) == {"0.5": 0.5, "0.25": 0.75}


def test_a_failing_job_is_not_a_number_and_does_not_stop_the_search(
    climbing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def body(config: Any, resolved: dict[str, Any], run_dir: Path, one_of_many: bool) -> dict[str, Any]:
        if config.optim.lr == 0.5:
            raise UserError("too fast")
        return summary_of(config.optim.lr)

    words = ["-m", "hydra/sweeper=climbing", f"hydra.sweeper.notes={climbing}", f"paths.outputs={tmp_path}"]
    assert run("train", body, words) == 0
    found = json.loads(climbing.read_text())
    assert math.isnan(found["0.5"]) and found["0.25"] == 0.75
    assert "failed: too fast" in capsys.readouterr().err


def test_an_outcome_travels_between_processes() -> None:
    sent = Outcome(0.25, code=1, value={"a": 1}, error="why", in_use=True)
    got = pickle.loads(pickle.dumps(sent))
    assert (float(got), got.code, got.value, got.error, got.in_use) == (0.25, 1, {"a": 1}, "why", True)
    assert got.exception is None and type(got) is Outcome


def test_a_run_without_scores_has_no_number() -> None:
    assert math.isnan(headline({})) and math.isnan(headline({"best": {}})) and math.isnan(Outcome())
    assert headline(summary_of(0.25)) == 0.75
    assert code_of_multirun(None) == 0


@pytest.mark.parametrize("target", ["optuna.samplers.TPESampler", "os.system", "optuna.samplersx.Y"])
def test_a_sampler_comes_from_optuna(target: str, climbing: Path, tmp_path: Path) -> None:
    words = [
        "-m",
        "hydra/sweeper=climbing",
        f"hydra.sweeper.notes={climbing}",
        f"+hydra.sweeper.sampler._target_={target}",
    ]
    if not target.startswith("optuna.samplers."):
        with pytest.raises(UserError, match="cannot name code"):
            run("train", lambda *_: {}, words)
        return
    from boothlab.compose.typed import refuse_targets

    refuse_targets({"hydra": {"sweeper": {"sampler": {"_target_": target}}}})

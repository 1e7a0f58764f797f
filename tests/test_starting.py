"""A command starts without needless work: no garbage collection over imports, one config, no idle imports."""

import gc
import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore

from boothlab import cli
from boothlab.compose import field_docs
from boothlab.compose.overrides import quote_text
from boothlab.compose.run import run
from boothlab.compose.schemas import register
from boothlab.config import TrainConfig
from boothlab.errors import UserError
from boothlab.starting import imports_uncollected


@pytest.fixture
def first_import(monkeypatch: pytest.MonkeyPatch) -> Any:
    """As in a process that has not imported torch."""
    assert torch is sys.modules["torch"]
    monkeypatch.delitem(sys.modules, "torch")
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("first_import")
def test_nothing_is_collected_in_the_block_and_what_is_there_is_frozen() -> None:
    before = gc.get_freeze_count()
    with imports_uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > before + 10_000


@pytest.mark.usefixtures("first_import")
def test_collection_goes_on_after_an_error() -> None:
    with pytest.raises(KeyboardInterrupt), imports_uncollected():
        raise KeyboardInterrupt
    assert gc.isenabled()


def test_a_later_block_freezes_nothing() -> None:
    before = gc.get_freeze_count()
    with imports_uncollected():
        assert gc.isenabled()
    assert gc.get_freeze_count() == before


@pytest.mark.usefixtures("first_import")
def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with imports_uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The overrides of every config that Hydra composes."""
    found: list[list[str]] = []
    compose = ConfigLoaderImpl.load_configuration

    def noted(self: Any, config_name: str | None, overrides: list[str], *rest: Any, **named: Any) -> Any:
        found.append(list(overrides))
        return compose(self, config_name, overrides, *rest, **named)

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", noted)
    return found


def test_a_single_run_composes_its_config_once(composed: list[list[str]], tmp_path: Path) -> None:
    given = [f"hydra.run.dir={tmp_path / 'run'}", "seed=7"]
    seen: list[int] = []
    assert run("train", lambda config, resolved, run_dir, one_of_many: seen.append(config.seed), given) == 0
    assert seen == [7]
    assert composed == [given]
    saved = (tmp_path / "run" / ".hydra" / "hydra.yaml").read_text(encoding="utf-8")
    assert "\n  mode: RUN\n" in saved
    assert "- hydra.mode=RUN\n" in saved  # as if it had been composed with it


def test_a_config_file_can_still_say_that_it_is_a_multirun(tmp_path: Path) -> None:
    (tmp_path / "many.yaml").write_text("defaults: [train, _self_]\nhydra: {mode: MULTIRUN}\n", encoding="utf-8")
    given = ["--config-dir", str(tmp_path), "--config-name", "many", f"hydra.sweep.dir={tmp_path / 'runs'}"]
    seen: list[tuple[int, bool]] = []

    def body(config: TrainConfig, resolved: dict[str, Any], run_dir: Path, one_of_many: bool) -> None:
        seen.append((config.seed, one_of_many))

    assert run("train", body, [*given, "seed=1,2"]) == 0
    assert seen == [(1, True), (2, True)]


def test_values_of_a_multirun_are_no_values_of_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"seed=1,2: .*add -m"):
        run("train", lambda *_: None, [f"hydra.run.dir={tmp_path / 'run'}", "seed=1,2"])


def test_a_bad_value_still_ends_before_a_folder_is_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lora\.rank=0: must be at least 1"):
        run("train", lambda *_: None, [f"hydra.run.dir={tmp_path / 'run'}", "lora.rank=0"])
    assert not (tmp_path / "run").exists()


def test_quoting_a_command_line_reads_no_source(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(config: type) -> dict[str, str]:
        raise AssertionError(f"the docs of {config} are read")

    monkeypatch.setattr(field_docs, "field_docs", refuse)
    given = ["subject.instance_prompt=a {token}, at night", "seed=7"]
    assert quote_text(given, TrainConfig, multirun=False) == ["subject.instance_prompt='a {token}, at night'", "seed=7"]


def test_a_schema_is_registered_when_its_command_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ConfigStore.instance(), "repo", {})
    register("sample")
    assert list(ConfigStore.instance().repo) == ["sample_schema.yaml"]
    first = ConfigStore.instance().repo["sample_schema.yaml"]
    register("sample")
    assert ConfigStore.instance().repo["sample_schema.yaml"] is first


@pytest.mark.usefixtures("first_import")
def test_a_command_is_imported_without_garbage_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    collected: list[bool] = []

    def noted(name: str) -> Any:
        collected.append(gc.isenabled())
        return importlib.import_module(name)

    monkeypatch.setattr(cli, "importlib", SimpleNamespace(import_module=noted))
    assert cli.main(["train", "--help"]) == 0
    assert collected == [False]
    assert gc.isenabled()


#: what a plain training has no use for, as far as the libraries that it needs do not import it themselves
UNUSED = (
    *("wandb", "tensorboard", "matplotlib", "pandas", "sklearn", "cv2", "kmodes", "imagehash", "pyarrow", "plotly"),
    *("optuna", "ray", "joblib", "submitit", "bitsandbytes", "lycoris", "datasets", "torchvision", "IPython"),
    *("prodigyopt", "schedulefree", "onnxruntime", "flash_attn", "xformers", "torch.utils.tensorboard"),
    *("boothlab.reporting", "boothlab.editing", "boothlab.inspecting", "boothlab.publishing", "boothlab.rerunning"),
    *("boothlab.captioning.run", "boothlab.building.edit", "boothlab.building.evaluate", "boothlab.building.inspect"),
)


@pytest.mark.slow
def test_a_plain_training_imports_nothing_that_it_does_not_use(tmp_path: Path) -> None:
    code = f"""import sys
from boothlab.cli import main
assert main(sys.argv[1:]) == 0
print("imported:", *sorted(set({UNUSED!r}) & sys.modules.keys()))"""
    words = [
        "train",
        "evaluation.enabled=false",
        "tracking.wandb=disabled",
        "trainer.max_steps=1",
        "trainer.checkpoint_every=1",
    ]
    places = [f"paths.outputs={tmp_path}", f"paths.cache={tmp_path / 'cache'}", f"hydra.run.dir={tmp_path / 'run'}"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words, *places],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["imported:"]

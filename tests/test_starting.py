"""A command starts without doing things twice: no garbage collection over imports, no composing of the same config."""

import gc
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from boothlab.compose.run import run
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


def test_a_single_run_composes_once_to_learn_what_it_is_and_once_for_itself(
    composed: list[list[str]], tmp_path: Path
) -> None:
    given = [f"hydra.run.dir={tmp_path / 'run'}", "seed=7"]
    seen: list[int] = []
    assert run("train", lambda config, resolved, run_dir, one_of_many: seen.append(config.seed), given) == 0
    assert seen == [7]
    assert composed == [given, [*given, "hydra.mode=RUN"]]
    assert (tmp_path / "run" / ".hydra" / "config.yaml").is_file()


def test_a_bad_value_still_ends_before_a_folder_is_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lora\.rank=0: must be at least 1"):
        run("train", lambda *_: None, [f"hydra.run.dir={tmp_path / 'run'}", "lora.rank=0"])
    assert not (tmp_path / "run").exists()

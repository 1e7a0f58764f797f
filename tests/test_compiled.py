"""trainer.compile: the run but for rounding, exact when it is resumed, and refused where nothing can be compiled."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from boothlab.cli import main
from boothlab.diffusion import compiled
from boothlab.errors import UserError
from training_runs import Lab, history, same_adapter, stopped_after

BLOCKS = "trainer.compile=blocks"


@pytest.fixture(scope="module")
def lab(pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"), pipelines["sd15"])


def can_compile() -> bool:
    try:
        compiled.check_compiler(torch.device("cpu"))
    except UserError:
        return False
    return True


@pytest.mark.slow
def test_a_compiled_run_is_the_run_but_for_rounding(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    if not can_compile():
        pytest.skip("no C++ compiler")
    plain, compiled_run = lab.train("plain"), lab.train("compiled", BLOCKS)
    assert plain.name != compiled_run.name  # another run: it rounds otherwise
    for (_, row), (_, other) in zip(history(plain), history(compiled_run), strict=True):
        if "train/loss" in row:
            assert math.isclose(row["train/loss"], other["train/loss"], rel_tol=1e-4)
    with stopped_after(2, monkeypatch):
        stopped = lab.train("stopped", BLOCKS, code=130)
    assert lab.train("stopped", BLOCKS) == stopped
    assert same_adapter(compiled_run, stopped)
    assert history(compiled_run) == history(stopped)
    after = lab.train("after")  # shares the process with the compiled ones, and not their UNet
    assert same_adapter(plain, after)
    manifest: Any = json.loads((compiled_run / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["config"]["trainer"]["compile"] == "blocks"


def test_a_machine_without_a_compiler_is_told(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_compiler(*arguments: Any, **settings: Any) -> Any:
        raise RuntimeError("No working C++ compiler found in CXX")

    monkeypatch.setattr(torch, "compile", no_compiler)
    assert main(["train", *lab.overrides("refused", BLOCKS)]) == 2
    assert "nothing can be compiled here (No working C++ compiler found in CXX); set trainer.compile=none" in (
        capsys.readouterr().err
    )

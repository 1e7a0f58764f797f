"""trainer.compile: the run but for rounding, exact when it is resumed, and refused where nothing can be compiled."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
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


@pytest.mark.slow
def test_the_gradients_of_a_single_sample_are_right(lab: Lab) -> None:
    """Batches of one are what two devices make of a batch of two."""
    if not can_compile():
        pytest.skip("no C++ compiler")
    extra = ("data.batch_size=1", "trainer.max_steps=2", "evaluation.enabled=false")
    plain, compiled_run = lab.train("single", *extra), lab.train("single-compiled", *extra, BLOCKS)
    for (_, row), (_, other) in zip(history(plain), history(compiled_run), strict=True):
        assert math.isclose(row["train/grad_norm"], other["train/grad_norm"], rel_tol=1e-4)


@pytest.mark.slow
def test_wrong_gradients_are_found_before_the_first_step(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not can_compile():
        pytest.skip("no C++ compiler")
    original = compiled._gradients

    def bent(backbone: Any, rows: int) -> dict[str, torch.Tensor]:
        found = original(backbone, rows)
        if calls:  # the second time: as compiled
            name = next(name for name, value in found.items() if float(value.norm()) > 1e-3)
            found[name] = found[name] * 1.1
        calls.append(rows)
        return found

    calls: list[int] = []
    monkeypatch.setattr(compiled, "_gradients", bent)
    assert main(["train", *lab.overrides("bent", BLOCKS, "data.batch_size=3")]) == 2
    assert "gradients come out wrong here" in capsys.readouterr().err
    assert calls == [3, 3]


def test_a_run_does_not_inherit_what_others_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the shapes of a sweep's earlier runs would make torch give up, and later ones round otherwise."""
    made = []

    def backend(graph: Any, inputs: Any) -> Any:
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(compiled, "check_compiler", lambda device: None)
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", compiled._SHAPES)
    function = torch.compile(lambda values: values + 1, backend=backend)
    for count in (1, 2):
        function(torch.zeros(2))
        function(torch.zeros(2))
        assert len(made) == count
        compiled.compile_unet(SimpleNamespace(device=torch.device("meta"), unet=torch.nn.Identity()), "whole")


def test_the_whole_is_refused_on_a_cpu(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *lab.overrides("whole", "trainer.compile=whole")]) == 2
    assert "trainer.compile=whole: torch computes wrong gradients with it on a CPU" in capsys.readouterr().err


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

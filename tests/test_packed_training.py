"""Jobs trained in a pack: the same adapters, metrics and folders as alone, whatever the other jobs do."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from boothlab.building import shared
from boothlab.cli import main
from boothlab.commands.train import train
from boothlab.compose.run import compose
from boothlab.compose.typed import load
from boothlab.config import Precision, TrainConfig
from boothlab.diffusion.lora import trainable
from boothlab.dreambooth.module import DreamBoothModule
from boothlab.packing.pack import Pack
from tiny_pipelines import build
from training_runs import ADAPTER, Lab, history, stopped_after, summary

#: jobs that differ in all that jobs of a pack may differ in
JOBS: tuple[tuple[str, ...], ...] = (
    ("lora.rank=2",),
    ("lora.rank=4", "optim.lr=0.005", "data.batch_size=1"),
    ("prior.enabled=true", "seed=1"),
    ("lora.train_text_encoder=true", "trainer.max_steps=8"),
    ("trainer.accumulate=2", "lora.alpha=1"),
    ("lora.dropout=0.3", "optim.schedule=cosine"),
    ("lora.train_text_encoder=true", "lora.rank=3", "prior.enabled=true", "loss.min_snr_gamma=5"),
)


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp(f"packed_{request.param}")
    return Lab(folder, build(request.param, folder / "pipeline"))


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything trained in float64: in float32 the order of additions alone moves what AdamW makes of a tiny
    gradient, as another number of threads does, and such a difference says nothing about a pack."""
    begin = DreamBoothModule.__init__

    def begin_in_float64(module: DreamBoothModule, backbone: Any, *rest: Any, **named: Any) -> None:
        for network in (backbone.unet, *backbone.text_encoders.values()):
            for value in trainable(network).values():
                value.data = value.data.double()
        begin(module, backbone, *rest, **named)

    monkeypatch.setitem(shared.DTYPES, Precision.fp32, torch.float64)
    monkeypatch.setattr(DreamBoothModule, "__init__", begin_in_float64)
    for kept in (shared._backbones, shared._identities):
        kept._values.clear()
    yield
    for kept in (shared._backbones, shared._identities):
        kept._values.clear()


def job(lab: Lab, name: str, *extra: str) -> tuple[Path, Callable[[], dict[str, Any]]]:
    """A run's folder, and what a launcher calls."""
    config, resolved = load(compose("train", lab.overrides(name, "trainer.max_steps=6", *extra)), TrainConfig)
    run_dir = lab.folder / name / "-".join(extra).replace("/", "_")
    run_dir.mkdir(parents=True, exist_ok=True)
    return run_dir, lambda: train(config, resolved, run_dir, True)


def apart(first: Path, second: Path) -> float:
    """The largest relative difference of a matrix of two adapters."""
    one, two = load_file(first / ADAPTER), load_file(second / ADAPTER)
    assert one.keys() == two.keys()
    return max(float((one[key] - two[key]).norm() / one[key].norm().clamp(min=1e-9)) for key in one)


def files(run_dir: Path) -> list[str]:
    return sorted(path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*") if path.is_file())


@pytest.mark.slow
def test_a_job_in_a_pack_is_the_job_alone(lab: Lab, float64: None) -> None:
    alone = [job(lab, "alone", *words) for words in JOBS]
    for _, work in alone:
        work()
    packed = [job(lab, "packed", *words) for words in JOBS]
    found = Pack(4, 8).run([work for _, work in packed])  # some join late, and long ones outlast the others
    assert not [one for one in found if isinstance(one, BaseException)]
    for (first, _), (second, _), words in zip(alone, packed, JOBS, strict=True):
        assert apart(first, second) < 1e-5, words
        assert files(first) == files(second)
        for (step, left), (other, right) in zip(history(first), history(second), strict=True):
            assert step == other and left.keys() == right.keys()
            assert left == pytest.approx(right, rel=1e-3, abs=2e-4), (words, step)
        assert summary(second)["status"] == "finished"


@pytest.mark.slow
def test_two_hundred_steps_in_a_pack_stay_the_same(lab: Lab, float64: None) -> None:
    words = ("trainer.max_steps=200", "evaluation.enabled=false", "trainer.checkpoint_every=200", "optim.lr=0.0005")
    jobs = [(*words, "lora.rank=2"), (*words, "lora.rank=4", "seed=2"), (*words, "prior.enabled=true")]
    alone = [job(lab, "alone200", *one) for one in jobs]
    for _, work in alone:
        work()
    packed = [job(lab, "packed200", *one) for one in jobs]
    Pack(3, 8).run([work for _, work in packed])
    for (first, _), (second, _) in zip(alone, packed, strict=True):
        assert apart(first, second) < 1e-5


@pytest.mark.slow
def test_in_bfloat16_the_loss_curves_agree(lab: Lab) -> None:
    words = ("backbone.precision=bf16", "evaluation.enabled=false", "trainer.max_steps=20", "optim.lr=0.001")
    jobs = [(*words, "lora.rank=2"), (*words, "lora.rank=4", "seed=2"), (*words, "lora.train_text_encoder=true")]
    alone = [job(lab, "alone_bf16", *one) for one in jobs]
    for _, work in alone:
        work()
    packed = [job(lab, "packed_bf16", *one) for one in jobs]
    assert not [one for one in Pack(3, 8).run([work for _, work in packed]) if isinstance(one, BaseException)]
    for (first, _), (second, _) in zip(alone, packed, strict=True):
        losses = [
            [row["train/loss"] for _, row in history(folder) if "train/loss" in row] for folder in (first, second)
        ]
        assert len(losses[0]) == 20 and losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.slow
def test_a_nan_in_one_adapter_ends_that_job_alone(lab: Lab) -> None:
    words: list[tuple[str, ...]] = [("seed=5",), ("optim.lr=1e30", "optim.grad_clip=null"), ("seed=6",)]
    jobs = [job(lab, "nan", *one) for one in words]
    first, broken, last = Pack(3, 8).run([work for _, work in jobs])
    assert isinstance(broken, Exception) and "lower optim.lr" in str(broken)
    assert summary(jobs[1][0])["status"] == "failed"
    for (folder, _), found in zip((jobs[0], jobs[2]), (first, last), strict=True):
        assert isinstance(found, dict) and summary(folder)["status"] == "finished"


@pytest.mark.slow
def test_a_pack_that_was_killed_goes_on_from_its_checkpoints(lab: Lab, float64: None, monkeypatch: Any) -> None:
    words: list[tuple[str, ...]] = [("seed=7",), ("seed=8", "lora.rank=4"), ("seed=9", "prior.enabled=true")]
    straight = [job(lab, "straight", *one) for one in words]
    Pack(3, 8).run([work for _, work in straight])
    jobs = [job(lab, "resumed", *one) for one in words]
    with stopped_after(3, monkeypatch, SystemExit), pytest.raises(SystemExit):
        Pack(3, 8).run([work for _, work in jobs])
    assert [summary(folder)["status"] for folder, _ in jobs] == ["interrupted"] * 3
    assert all((folder / "checkpoints" / "step_000002").is_dir() for folder, _ in jobs)
    Pack(3, 8).run([work for _, work in [job(lab, "resumed", *one) for one in words]])
    for (first, _), (second, _) in zip(straight, jobs, strict=True):
        assert apart(first, second) < 1e-5 and summary(second)["status"] == "finished"


@pytest.mark.slow
def test_the_launcher_leaves_what_one_job_at_a_time_leaves(lab: Lab) -> None:
    varied = ["lora.rank=2,4", "optim.lr=0.01,1e30", "optim.grad_clip=null"]
    folders = {}
    for launcher in ("basic", "packed"):
        words = [*lab.overrides(f"by_{launcher}", *varied), f"hydra/launcher={launcher}"]
        assert main(["train", "-m", *words]) == 1  # two of the four become NaN
        folders[launcher] = sorted(path for path in (lab.folder / f"by_{launcher}").glob("*/[!.]*") if path.is_dir())
    for first, second in zip(folders["basic"], folders["packed"], strict=True):
        assert first.name == second.name and files(first) == files(second)
        assert summary(first)["status"] == summary(second)["status"]
        for name in (".hydra/config.yaml", ".hydra/overrides.yaml"):
            left, right = ((folder / name).read_text().replace("by_basic", "by_packed") for folder in (first, second))
            assert left == right
        before, after = (json.loads((folder / "manifest.json").read_text()) for folder in (first, second))
        assert before["stream_seeds"] == after["stream_seeds"] and before.keys() == after.keys()


@pytest.mark.slow
def test_jobs_that_cannot_share_a_model_run_beside_the_pack(lab: Lab) -> None:
    words = lab.overrides("mixed", "seed=0,1", "backbone.resolution=32,16", "trainer.max_steps=2")
    assert main(["train", "-m", *words, "hydra/launcher=packed", "hydra.launcher.jobs=2"]) == 0
    found = sorted((lab.folder / "mixed").glob("*/[!.]*/summary.json"))
    assert [json.loads(path.read_text())["status"] for path in found] == ["finished"] * 4


@pytest.mark.slow
def test_other_launchers_hand_out_packs(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ["seed=0,1,2", "lora.rank=2,3", "trainer.max_steps=2"]
    assert main(["train", "-m", *lab.overrides("one_by_one", *words)]) == 0
    packed = [*lab.overrides("packs", *words), "sweep.pack=3", "hydra/launcher=boothlab_joblib"]
    assert main(["train", "-m", *packed]) == 0
    first, second = (sorted((lab.folder / name).glob("*/[!.]*/summary.json")) for name in ("one_by_one", "packs"))
    assert [path.parent.name for path in first] == [path.parent.name for path in second] and len(first) == 6
    for one, other in zip(first, second, strict=True):
        assert files(one.parent) == files(other.parent)
        (*_, (step, left)), (*_, (same, right)) = history(one.parent), history(other.parent)
        assert step == same and left == pytest.approx(right, rel=0.05, abs=0.02)


def test_a_launcher_setting_that_makes_no_sense_is_explained(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    words = lab.overrides("wrong", "seed=0,1", "hydra/launcher=packed")
    assert main(["train", "-m", *words, "hydra.launcher.rows=0"]) == 2
    assert "hydra.launcher.rows=0: must be at least 1" in capsys.readouterr().err

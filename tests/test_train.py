"""`boothlab train` from end to end on a tiny pipeline: what a run leaves, and what can never change its result."""

import csv
import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn

from boothlab.cli import main
from boothlab.diffusion.lora import trainable
from boothlab.dreambooth.callbacks import StepCallback
from boothlab.dreambooth.checkpoints import adapter_parameters
from boothlab.dreambooth.module import DreamBoothModule
from boothlab.tracking import metrics
from tiny_pipelines import RESOLUTION
from training_runs import ADAPTER, Lab, adapter, build, go, history, same_adapter, summary


@pytest.fixture(scope="module")
def lab(pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"), pipelines["sd15"])


@pytest.fixture(scope="module")
def straight(lab: Lab) -> Path:
    """The run that others are compared with."""
    return lab.train("straight")


def test_what_a_run_leaves(straight: Path) -> None:
    step_files = {"grid.png", "metrics.json", "prompt00_seed0.png", "scores.csv"}
    checkpoint_files = {"pytorch_lora_weights.safetensors", "resume.safetensors", "state.json"}
    expected = {"manifest.json", "metrics.jsonl", "summary.json", str(ADAPTER), "train.log"}
    expected |= {f".hydra/{name}.yaml" for name in ("config", "hydra", "overrides")}
    expected |= {f"samples/step_{step:06d}/{name}" for step in (0, 2, 4) for name in step_files}
    expected |= {f"checkpoints/step_{step:06d}/{name}" for step in (2, 4) for name in checkpoint_files}
    assert {path.relative_to(straight).as_posix() for path in straight.rglob("*") if path.is_file()} == expected
    with Image.open(straight / "samples" / "step_000004" / "prompt00_seed0.png") as image:
        assert image.size == (RESOLUTION, RESOLUTION)


def test_what_the_numbers_say(straight: Path) -> None:
    rows, found = history(straight), summary(straight)
    scored = [step for step, row in rows if metrics.variant(metrics.CLIP_I, "dollhouse") in row]
    assert scored == [0, 2, 4]
    assert [step for step, row in rows if metrics.TRAIN_LOSS in row] == [1, 2, 3, 4]
    assert found["status"] == "finished"
    assert set(found["ceilings"]) == {"eval/clip_i_ceiling/dollhouse", "eval/dino_ceiling/dollhouse"}
    assert "eval/dino/dollhouse" in found["baselines"]
    assert (found["counts"]["photos"], found["counts"]["last_step"]) == (3, 4)
    keys = {key for _, row in rows for key in row if key.startswith("eval/")} - {metrics.CONSTANT_IMAGES}
    assert all(key.endswith("/dollhouse") for key in keys)  # never the plain name for another encoder's score
    assert metrics.variant(metrics.PRES, "dollhouse") in keys
    assert json.loads((straight / "manifest.json").read_text())["status"] == "finished"


def test_several_seeds_give_diversity_and_one_row_an_image(lab: Lab) -> None:
    prompts = "['a photo of a {token} {class}','a {token} {class}, on the moon']"
    run_dir = lab.train("seeds", "trainer.max_steps=2", "evaluation.seeds=[0,7,3]", f"evaluation.prompts={prompts}")
    folder = run_dir / "samples" / "step_000002"
    with (folder / "scores.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["prompt_index"], row["seed"]) for row in rows] == [(p, s) for p in "01" for s in "037"]
    assert {row["prompt"] for row in rows} == {"a photo of a sks robot", "a sks robot, on the moon"}
    assert all(-1 <= float(row[name]) <= 1 for row in rows for name in ("clip_i", "dino", "clip_t"))
    names = {f"prompt0{p}_seed{s}.png" for p in (0, 1) for s in (0, 3, 7)}
    assert {path.name for path in folder.glob("prompt*.png")} == names
    assert dict(history(run_dir)[-1][1]).keys() >= {metrics.variant(metrics.DIV, "dollhouse")}


def test_the_adapter_says_what_it_is(straight: Path) -> None:
    with safe_open(straight / ADAPTER, framework="pt") as file:
        settings = json.loads(file.metadata()["boothlab"])
    assert (settings["token"], settings["class_noun"], settings["step"], settings["rank"]) == ("sks", "robot", 4, 2)
    assert settings["backbone"]["resolution"] == RESOLUTION
    assert all(value.dtype == torch.float32 for value in adapter(straight).values())
    assert any(bool(value.any()) for name, value in adapter(straight).items() if "lora_B" in name)


def test_the_same_command_gives_the_same_run(lab: Lab, straight: Path) -> None:
    """diffusers #1185, #6413; OneTrainer #1719."""
    torch.manual_seed(99)  # nothing a run does depends on it
    again = lab.train("again")
    assert same_adapter(straight, again)
    assert history(straight) == history(again)
    for png in sorted(path.relative_to(straight) for path in straight.rglob("*.png")):
        assert (straight / png).read_bytes() == (again / png).read_bytes()
    before = (again / ADAPTER).read_bytes()
    stale = again / "samples" / "step_000999"
    stale.mkdir()
    assert lab.train("again", "paths.overwrite=true") == again
    assert (again / ADAPTER).read_bytes() == before
    assert not stale.exists()
    assert history(straight) == history(again)


def test_a_finished_run_is_not_run_again(lab: Lab, straight: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in straight.rglob("*") if ".hydra" not in path.parts}
    monkeypatch.setattr("boothlab.building.build_training_run", None)  # would fail if it were called
    assert lab.train("straight") == straight
    after = {path: path.stat().st_mtime_ns for path in before}
    assert {path.name for path in before if before[path] != after[path]} <= {straight.name, "train.log"}


@pytest.mark.slow
def test_another_seed_is_another_run(lab: Lab, straight: Path) -> None:
    assert not same_adapter(straight, lab.train("seed1", "seed=1", "evaluation.enabled=false"))


@pytest.mark.parametrize(
    "changes",
    [
        ["evaluation.every=1"],
        ["evaluation.enabled=false"],
        pytest.param(["evaluation.every=4"], marks=pytest.mark.slow),
    ],
)
def test_evaluating_more_or_less_often_changes_nothing(changes: list[str], lab: Lab, straight: Path) -> None:
    """sd_dreambooth_extension #1060: sampling during training changed its result."""
    other = lab.train("-".join(changes).replace("=", "_"), *changes)
    assert same_adapter(straight, other)
    losses = [(step, row) for step, row in history(straight) if metrics.TRAIN_LOSS in row]
    assert losses == [(step, row) for step, row in history(other) if metrics.TRAIN_LOSS in row]


def states(module: nn.Module) -> dict[str, Any]:
    values = {name: (value.dtype, value.requires_grad, value._version) for name, value in module.named_parameters()}
    return values | {f"mode of {name}": part.training for name, part in module.named_modules()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluating_leaves_the_networks_alone(
    precision: str, lab: Lab, global_rng_untouched: AbstractContextManager[Any]
) -> None:
    """diffusers #13124: validation cast the live model."""
    extra = (f"backbone.precision={precision}", "lora.train_text_encoder=true", "lora.dropout=0.2")
    run = build(lab, f"states-{precision}", *extra)
    run.module.on_train_epoch_start()
    before = states(run.module)
    assert run.evaluator is not None
    with global_rng_untouched:
        run.evaluator.evaluate(0)
    assert states(run.module) == before
    trained = [value for network in run.module.networks.values() for value in trainable(network).values()]
    assert trained
    assert all(value.dtype == torch.float32 for value in trained)


def test_class_images_made_or_reused_give_the_same_adapter(lab: Lab, straight: Path) -> None:
    """In the diffusers scripts, making class images used up the numbers that the adapter was then initialised with."""
    extra = ("prior.enabled=true", f"paths.cache={lab.folder / 'prior-cache'}", "evaluation.enabled=false")
    made, reused = lab.train("prior-made", *extra), lab.train("prior-reused", *extra)
    assert same_adapter(made, reused)
    assert not same_adapter(made, straight)
    assert len(list((lab.folder / "prior-cache" / "class-images").iterdir())) == 1
    rows = [row for _, row in history(made) if metrics.TRAIN_LOSS in row]
    for row in rows:
        total = row[metrics.TRAIN_LOSS_INSTANCE] + row[metrics.TRAIN_LOSS_PRIOR]
        assert row[metrics.TRAIN_LOSS] == pytest.approx(total, rel=1e-5)
    first = next(row for step, row in history(straight) if step == 1)  # the subject's first batch is the same
    assert rows[0][metrics.TRAIN_LOSS_INSTANCE] == first[metrics.TRAIN_LOSS_INSTANCE]


@pytest.mark.slow
def test_a_changed_class_prompt_never_meets_stale_class_images(lab: Lab) -> None:
    """sd_dreambooth_extension #346."""
    cache = lab.folder / "prompt-cache"
    extra = ("prior.enabled=true", f"paths.cache={cache}")
    first = build(lab, "prompt1", *extra).module.data.prior
    second = build(lab, "prompt2", *extra, "prior.class_prompt=a drawing of a robot").module.data.prior
    again = build(lab, "prompt3", *extra).module.data.prior
    assert first is not None and second is not None and again is not None
    assert torch.equal(first.means_NCHW, again.means_NCHW)
    assert not torch.equal(first.means_NCHW, second.means_NCHW)
    assert len(list((cache / "class-images").iterdir())) == 2


class Recorder(StepCallback):
    """The adapter's parameters before the first step and after each."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.after_step(trainer, module, 0)

    def after_step(self, trainer: pl.Trainer, module: DreamBoothModule, step: int) -> None:
        self.seen.append({name: value.detach().clone() for name, value in adapter_parameters(module).items()})


def test_the_saved_adapter_is_the_moving_average(lab: Lab) -> None:
    recorder = Recorder()
    run = build(lab, "ema", "trainer.ema_decay=0.15", "evaluation.enabled=false")
    run_dir = go(run, recorder)
    average = recorder.seen[0]
    for step, values in enumerate(recorder.seen[1:], start=1):
        decay = min(0.15, (1 + step) / (10 + step))
        average = {name: decay * average[name] + (1 - decay) * value for name, value in values.items()}
    saved = adapter(run_dir)
    for name, value in average.items():
        key = name.replace(".boothlab.", ".")
        assert torch.allclose(saved[key], value, atol=1e-7), name
        if "lora_B" in name:
            assert not torch.allclose(saved[key], recorder.seen[-1][name], atol=1e-7)
    newest = run_dir / "checkpoints" / "step_000004" / "pytorch_lora_weights.safetensors"
    assert newest.read_bytes() == (run_dir / ADAPTER).read_bytes()  # what was evaluated is what a checkpoint holds


def test_gradient_checkpointing_changes_memory_alone(lab: Lab, straight: Path) -> None:
    other = lab.train("checkpointing", "trainer.gradient_checkpointing=true", "evaluation.enabled=false")
    for (_, mine), (_, theirs) in zip(
        [pair for pair in history(straight) if metrics.TRAIN_LOSS in pair[1]], history(other), strict=True
    ):
        assert theirs[metrics.TRAIN_LOSS] == pytest.approx(mine[metrics.TRAIN_LOSS], rel=1e-5)
        assert theirs[metrics.TRAIN_GRAD_NORM] == pytest.approx(mine[metrics.TRAIN_GRAD_NORM], rel=1e-4)


def test_bf16_trains_float32_adapters(lab: Lab, straight: Path) -> None:
    other = lab.train("bf16", "backbone.precision=bf16", "lora.train_text_encoder=true")
    assert all(value.dtype == torch.float32 for value in adapter(other).values())
    mine, theirs = history(straight)[2][1], history(other)[2][1]
    assert theirs[metrics.TRAIN_LOSS] == pytest.approx(mine[metrics.TRAIN_LOSS], rel=0.05)
    assert summary(other)["counts"]["trainable_parameters/text_encoder"] > 0


@pytest.mark.slow
def test_a_row_of_losses_is_the_mean_since_the_last(lab: Lab, straight: Path) -> None:
    other = lab.train("log3", "trainer.log_every=3", "evaluation.enabled=false")
    each = {step: row[metrics.TRAIN_LOSS] for step, row in history(straight) if metrics.TRAIN_LOSS in row}
    found = {step: row[metrics.TRAIN_LOSS] for step, row in history(other)}
    assert found == pytest.approx({3: (each[1] + each[2] + each[3]) / 3, 4: each[4]})


@pytest.mark.slow
def test_several_runs_at_once_and_a_second_time_none(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    for again in (False, True):
        capsys.readouterr()
        assert main(["train", "-m", "seed=0,1", *lab.overrides("many", "evaluation.enabled=false")]) == 0
        printed = capsys.readouterr().err
        assert f"sweep 2 jobs (2 {'finished' if again else 'new'}) in " in printed
        assert ("launcher BasicLauncher" in printed) != again
        assert "finished 2 of 2 jobs in " in printed
    runs = sorted((lab.folder / "many").glob("*/tiny-*"))
    assert [run.name[-3:] for run in runs] == ["-s0", "-s1"]
    assert runs[0].name[:-1] == runs[1].name[:-1]  # one setting, two seeds
    assert not same_adapter(*runs)


@pytest.mark.slow
def test_every_mirror_takes_what_a_run_logs(
    lab: Lab, straight: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(lab.folder / "wandb"))
    run_dir = lab.train("mirrors", "tracking.wandb=offline", "tracking.mirrors=[csv,tensorboard]")
    printed = capsys.readouterr()
    assert "is off for" not in printed.out + printed.err
    assert list(run_dir.rglob("*.wandb"))
    assert list((run_dir / "tensorboard").iterdir())
    with (run_dir / "metrics.csv").open(encoding="utf-8") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [step for step, _ in history(run_dir)]
    assert same_adapter(straight, run_dir)

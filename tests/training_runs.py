"""Short real runs through the command line on tiny pipelines, and what tests compare of their folders."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from safetensors.torch import load_file
from torch import Tensor

from boothlab.building import build_training_run
from boothlab.cli import main
from boothlab.compose.run import compose
from boothlab.compose.schemas import SCHEMAS
from boothlab.compose.typed import load
from boothlab.dreambooth.callbacks import CheckpointCallback
from boothlab.dreambooth.module import DreamBoothModule
from boothlab.dreambooth.run import TrainingRun, execute
from boothlab.progress import Reporter
from boothlab.tracking import metrics
from boothlab.tracking.history import read_history

ADAPTER = Path("lora") / "pytorch_lora_weights.safetensors"
TIMINGS = {metrics.SAMPLING_SECONDS, metrics.SCORING_SECONDS, metrics.TRAIN_STEP_SECONDS}
PROMPT = "a photo of a {token} {class}"
SMALL = (
    "backbone.name=tiny",
    "subject.images=dollhouse:robot/1",
    "subject.count=3",
    "lora.rank=2",
    "lora.unet_targets=[to_k,to_q,to_v,to_out.0]",
    "optim.lr=0.02",
    "prior.num_class_images=2",
    "prior.steps=2",
    "data.batch_size=2",
    "data.variants=2",
    "trainer.max_steps=4",
    "trainer.checkpoint_every=2",
    "trainer.accelerator=cpu",
    "trainer.threads=1",
    "trainer.log_every=1",
    "evaluation.seeds=[0]",
    f"evaluation.prompts=['{PROMPT}']",
    "evaluation.sampler.steps=2",
    "evaluation.pres_images=1",
    "tracking.wandb=disabled",
)


@dataclass
class Lab:
    """A folder for runs, and the pipeline they train."""

    folder: Path
    pipeline: Path

    def overrides(self, name: str, *extra: str) -> list[str]:
        """The command line of a small run whose outputs go to a folder `name`; later ones win."""
        given = {
            **dict(override.split("=", 1) for override in SMALL),
            "backbone.source": self.pipeline,
            "paths.outputs": self.folder / name,
            "paths.cache": self.folder / "cache",
            **dict(override.split("=", 1) for override in extra if "." in override.split("=")[0]),
        }
        return [f"{key}={value}" for key, value in given.items()] + [x for x in extra if "." not in x.split("=")[0]]

    def train(self, name: str, *extra: str, code: int = 0) -> Path:
        """Run `boothlab train`, expect an exit code, and give the run folder."""
        assert main(["train", *self.overrides(name, *extra)]) == code
        (run_dir,) = (self.folder / name).glob("*/[!.]*")
        return run_dir


def adapter(run_dir: Path) -> dict[str, Tensor]:
    return load_file(run_dir / ADAPTER)


def same_adapter(first: Path, second: Path) -> bool:
    """Whether two runs ended with the same numbers, bit for bit."""
    one, two = adapter(first), adapter(second)
    return one.keys() == two.keys() and all(one[name].equal(two[name]) for name in one)


def history(run_dir: Path) -> list[tuple[int, dict[str, float]]]:
    """metrics.jsonl without what a clock says."""
    rows = read_history(run_dir / "metrics.jsonl").rows
    return [(row.step, {key: value for key, value in row.scalars.items() if key not in TIMINGS}) for row in rows]


def summary(run_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    return found


def build(lab: Lab, name: str, *extra: str) -> TrainingRun:
    """A run as the command builds it, without Hydra and not started."""
    config, resolved = load(compose("train", lab.overrides(name, *extra)), SCHEMAS["train"])
    return build_training_run(config, resolved, lab.folder / name / "built", [], Reporter(quiet=True))


def go(run: TrainingRun, *callbacks: pl.Callback) -> Path:
    """Run it; gives the run folder."""
    with run.tracker:
        execute(run, callbacks)
    return run.run_dir


@contextmanager
def stopped_after(
    step: int, monkeypatch: pytest.MonkeyPatch, error: type[BaseException] = KeyboardInterrupt
) -> Iterator[None]:
    """Runs in this block are stopped when optimizer step `step` and its checkpoint, if it has one, are done."""
    original = CheckpointCallback.after_step

    def after_step(self: Any, trainer: pl.Trainer, module: DreamBoothModule, done: int) -> None:
        original(self, trainer, module, done)
        if done == step:
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointCallback, "after_step", after_step)
        yield

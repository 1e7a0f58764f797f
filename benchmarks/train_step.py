"""Training step time over the time of the bare loop on cached tensors, as one ratio: python benchmarks/train_step.py.

The bare loop is the UNet's forward and backward, gradient clipping and the optimizer on tensors that never change.
boothlab's own loop adds Lightning, the seed streams, the data, the noise and the logging. Both run the same number of
steps in turns in one process, so that whatever else the machine does hits both; the ratio is of medians.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.nn.functional as F

from boothlab.building import build_training_run
from boothlab.compose.run import compose
from boothlab.compose.schemas import SCHEMAS
from boothlab.compose.typed import load
from boothlab.dreambooth.callbacks import StepCallback
from boothlab.dreambooth.module import DreamBoothModule
from boothlab.dreambooth.run import TrainingRun, execute
from boothlab.progress import Reporter


class Clock(StepCallback):
    """Notes the time at the end of each optimizer step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def after_step(self, trainer: pl.Trainer, module: DreamBoothModule, step: int) -> None:
        self.times.append(time.perf_counter())


def bare_step(module: DreamBoothModule) -> Callable[[], None]:
    """One training step without anything around it."""
    optimizer = module.configure_optimizers()["optimizer"]
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    batch = module.data.batch(0)
    latents, noise = batch.means_BCHW, torch.zeros_like(batch.means_BCHW)
    timesteps = torch.arange(len(latents))
    text = module.embed(batch.prompts)

    def step() -> None:
        predicted = module.backbone.predict(latents, timesteps, text)
        F.mse_loss(predicted, noise).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def build(folder: Path, overrides: list[str], steps: int) -> TrainingRun:
    """A run that only trains."""
    settings = [
        f"trainer.max_steps={steps}",
        f"trainer.checkpoint_every={steps}",
        "evaluation.enabled=false",
        "tracking.wandb=disabled",
        f"paths.outputs={folder}",
    ]
    config, resolved = load(compose("train", [*settings, *overrides]), SCHEMAS["train"])
    return build_training_run(config, resolved, folder / "run", [], Reporter(quiet=True))


def measure(overrides: list[str], steps: int) -> tuple[float, float]:
    """Median seconds of a step: boothlab's, and the bare loop's."""
    with tempfile.TemporaryDirectory() as name:
        run = build(Path(name), overrides, steps)
        clock = Clock()
        with run.tracker:
            execute(run, extra_callbacks=[clock])
        ours = [after - before for before, after in pairwise(clock.times)]
        step, bare = bare_step(run.module), []
        for _ in range(steps):
            started = time.perf_counter()
            step()
            bare.append(time.perf_counter() - started)
    return statistics.median(ours[5:]), statistics.median(bare[5:])


def main() -> None:
    """Measure in turns and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="*", help="as for `boothlab train`")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rounds = [measure(args.overrides, args.steps) for _ in range(args.rounds)]
    for ours, bare in rounds:
        print(f"boothlab {1000 * ours:.1f} ms   bare loop {1000 * bare:.1f} ms   ratio {ours / bare:.3f}")
    print(f"median ratio {statistics.median(ours / bare for ours, bare in rounds):.3f}  (target <= 1.05)")


if __name__ == "__main__":
    main()

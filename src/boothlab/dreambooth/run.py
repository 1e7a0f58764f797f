"""A training run from its built parts to its summary: the order of events, nothing else."""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from boothlab.config import OptimizerName, TrainerConfig
from boothlab.dreambooth.callbacks import (
    BarCallback,
    CheckpointCallback,
    EmaCallback,
    EvaluationCallback,
    LogCallback,
    OwnSignalCallback,
    ParkCallback,
    ResumeCallback,
    ScheduleFreeCallback,
)
from boothlab.dreambooth.checkpoints import restore_checkpoint
from boothlab.dreambooth.evaluate import Evaluator, OnScores
from boothlab.dreambooth.module import DreamBoothModule
from boothlab.dreambooth.offload import Parking
from boothlab.dreambooth.saving import save_all
from boothlab.errors import memory_explained
from boothlab.loops import quiet_lightning, signals_told
from boothlab.progress import Bar, Reporter
from boothlab.tracking.run import Tracker

LESS_MEMORY = (
    "free some and run the same command, which goes on from the last checkpoint; or lower data.batch_size "
    "(trainer.accumulate makes up for it), evaluation.sampler.batch_size or backbone.resolution, "
    "or set trainer.gradient_checkpointing=true"
)


@dataclass
class TrainingRun:
    """Everything a run needs, built; `building/training.py` makes it from a config."""

    run_dir: Path
    module: DreamBoothModule
    evaluator: Evaluator | None
    trainer_config: TrainerConfig
    evaluate_every: int
    lightning: dict[str, Any]
    tracker: Tracker
    reporter: Reporter
    settings: Callable[[int], dict[str, Any]]
    resume_from: tuple[Path, int] | None = None
    on_scores: OnScores | None = None


def ema_callback(module: DreamBoothModule, config: TrainerConfig) -> EmaCallback | None:
    """What stands in for the trained weights in evaluations and files; None where they stand for themselves."""
    if module.optim_config.optimizer is OptimizerName.schedule_free:
        return ScheduleFreeCallback()
    return EmaCallback(config.ema_decay) if config.ema_decay is not None else None


def _callbacks(run: TrainingRun, bar: Bar) -> list[pl.Callback]:
    """In the order they act after a step. Saving comes last: a checkpoint means that all before it is written."""
    config = run.trainer_config
    ema = ema_callback(run.module, config)
    parking = Parking(run.module.backbone) if config.offload else None
    log = LogCallback(run.tracker, config.log_every)
    callbacks: list[pl.Callback] = [] if run.module.share.ranks.alone else [OwnSignalCallback()]
    callbacks += [ResumeCallback(run.resume_from[0], log, ema)] if run.resume_from else []
    callbacks += [*([ema] if ema else []), log, BarCallback(bar)]
    if run.evaluator is not None:
        every, ranks = run.evaluate_every, run.module.share.ranks
        callbacks.append(
            EvaluationCallback(run.evaluator, run.tracker, run.reporter, every, log, ema, run.on_scores, parking, ranks)
        )
    elif parking is not None:
        callbacks.append(ParkCallback(parking))
    callbacks.append(CheckpointCallback(run.run_dir, config.checkpoint_every, run.settings, log, ema))
    return callbacks


def fit(
    module: DreamBoothModule, config: TrainerConfig, lightning: dict[str, Any], callbacks: Sequence[pl.Callback]
) -> None:
    """Lightning's loop over micro-step numbers; the module makes each batch from its number."""
    steps = config.max_steps - module.resumed_at
    trainer = pl.Trainer(
        max_steps=steps,
        accumulate_grad_batches=module.turns_a_step,
        callbacks=[*callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        deterministic=config.deterministic,
        **lightning,
    )
    micro_steps: Any = range(steps * module.turns_a_step)
    loader: DataLoader[int] = DataLoader(micro_steps, batch_size=None, num_workers=0)
    with signals_told(trainer):
        trainer.fit(module, loader)


def _restore_only(run: TrainingRun, callbacks: list[pl.Callback]) -> None:
    assert run.resume_from is not None
    optimizers = run.module.configure_optimizers()
    schedule = optimizers["lr_scheduler"]["scheduler"]
    found = restore_checkpoint(run.resume_from[0], run.module, optimizers["optimizer"], schedule)
    for callback in callbacks:
        if isinstance(callback, EmaCallback):
            callback.take(run.module, found.average, optimizers["optimizer"])


def execute(run: TrainingRun, extra_callbacks: Sequence[pl.Callback] = ()) -> None:
    """Train, evaluate and save inside an open tracker. Errors pass through after the tracker has noted them."""
    quiet_lightning()
    config, started = run.trainer_config, time.perf_counter()
    left = config.max_steps - (run.resume_from[1] if run.resume_from else 0)

    def where() -> str:
        return f"near step {run.module.micro_step // config.accumulate}"

    with run.reporter.bar("training", left) as bar, memory_explained(where, LESS_MEMORY):
        callbacks = [*_callbacks(run, bar), *extra_callbacks]
        if left > 0:
            fit(run.module, config, run.lightning, callbacks)
        else:  # killed after the last checkpoint: only the adapter file and the summary are missing
            _restore_only(run, callbacks)
    ema = next((callback for callback in callbacks if isinstance(callback, EmaCallback)), None)
    settings = run.settings(config.max_steps)
    with ema.lent() if ema else nullcontext():
        paths = save_all(run.run_dir, run.module, settings)
    run.tracker.note("timings", {"training_seconds": round(time.perf_counter() - started, 3)})
    run.tracker.log_artifact(f"lora-{run.run_dir.name}", "model", paths, settings)

"""When things happen during training: logging, evaluation, checkpoints, the bar. No maths here."""

import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from boothlab.diffusion.sharding import put_together
from boothlab.diffusion.shared_sampling import dismiss, serve
from boothlab.dreambooth.checkpoints import adapter_parameters, restore_checkpoint, resume_tensors, save_checkpoint
from boothlab.dreambooth.ema import AdapterEma
from boothlab.dreambooth.evaluate import Evaluator, OnScores, evaluate_into
from boothlab.dreambooth.module import DreamBoothModule
from boothlab.dreambooth.offload import Parking
from boothlab.dreambooth.optimizers import WORDS, EvalWeights
from boothlab.progress import Bar, Reporter
from boothlab.ranks import ALONE, Ranks
from boothlab.tracking import metrics
from boothlab.tracking.run import Tracker

LR_KEYS = {
    "unet": metrics.TRAIN_LR_UNET,
    "text_encoder": metrics.TRAIN_LR_TEXT_ENCODER,
    WORDS: metrics.TRAIN_LR_EMBEDDINGS,
}
"""The metric of each parameter group's learning rate."""


def optimizer_step(trainer: pl.Trainer, module: DreamBoothModule) -> int:
    """Optimizer steps done over all sittings of the run."""
    return module.resumed_at + trainer.global_step


class StepCallback(pl.Callback):
    """Calls `after_step(trainer, module, step)` once after each optimizer step, not after each micro-step."""

    _last = -1

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = optimizer_step(trainer, module)
        if (batch_idx + 1) % module.turns_a_step == 0 and step != self._last:
            self._last = step
            self.after_step(trainer, module, step)

    def after_step(self, trainer: pl.Trainer, module: DreamBoothModule, step: int) -> None:
        """What to do after optimizer step `step`, counted from 1."""


class EmaCallback(StepCallback):
    """Moves the average after every step."""

    def __init__(self, decay: float):
        self.decay = decay
        self.ema: AdapterEma | EvalWeights | None = None

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        if self.ema is None:
            self.ema = AdapterEma(adapter_parameters(module), self.decay)

    def after_step(self, trainer: pl.Trainer, module: DreamBoothModule, step: int) -> None:
        assert isinstance(self.ema, AdapterEma)
        self.ema.update(step)

    def take(self, module: DreamBoothModule, average: dict[str, torch.Tensor], optimizer: Any) -> None:
        """Go on from a saved average."""
        self.ema = AdapterEma(adapter_parameters(module), self.decay)
        self.ema.take(average)

    def lent(self) -> AbstractContextManager[None]:
        """The networks with the average in them."""
        return self.ema.lent() if self.ema else nullcontext()


class ScheduleFreeCallback(EmaCallback):
    """In the average's place for schedule-free, which averages by itself."""

    def __init__(self) -> None:
        super().__init__(0.0)

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.take(module, {}, trainer.optimizers[0])

    def after_step(self, trainer: pl.Trainer, module: DreamBoothModule, step: int) -> None:
        """Nothing: the optimizer has seen to it."""

    def take(self, module: DreamBoothModule, average: dict[str, torch.Tensor], optimizer: Any) -> None:
        """Lend what this optimizer stands for; there is no other average."""
        self.ema = EvalWeights(adapter_parameters(module), optimizer, {})


class ResumeCallback(pl.Callback):
    """Puts a checkpoint back before the first step."""

    def __init__(self, folder: Path, clock: "LogCallback | None", ema: EmaCallback | None):
        self.folder, self.clock, self.ema = folder, clock, ema

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        schedule = trainer.lr_scheduler_configs[0].scheduler
        found = restore_checkpoint(self.folder, module, trainer.optimizers[0], schedule)
        if self.clock:
            self.clock.window = found.log_window
        if self.ema:
            self.ema.take(module, found.average, trainer.optimizers[0])


class LogCallback(StepCallback):
    """Writes losses, learning rates, gradient norm and step time every `every` steps; losses are means over the row."""

    def __init__(self, tracker: Tracker, every: int):
        self.tracker, self.every = tracker, every
        #: sums of losses since the last row, and under "count" the micro-steps in them; goes into checkpoints
        self.window: dict[str, float] = {}
        self._steps, self._since = 0, time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave the time spent on evaluating and saving out of the step time."""
        self._since, self._steps = time.perf_counter(), 0

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        batches = module.share.batches  # the losses are means over all of them
        for name in ("loss", "instance", "prior"):
            if name in module.latest:
                self.window[name] = self.window.get(name, 0.0) + float(module.latest[name]) * batches
        self.window["count"] = self.window.get("count", 0.0) + batches
        super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)

    def after_step(self, trainer: pl.Trainer, module: DreamBoothModule, step: int) -> None:
        self._steps += 1
        if step % self.every and step != module.max_steps:
            return
        keys = {"loss": metrics.TRAIN_LOSS, "instance": metrics.TRAIN_LOSS_INSTANCE, "prior": metrics.TRAIN_LOSS_PRIOR}
        row = {key: self.window[name] / self.window["count"] for name, key in keys.items() if name in self.window}
        for name, rate in module.rates.items():
            row[LR_KEYS[name]] = rate
        row[metrics.TRAIN_GRAD_NORM] = float(module.latest["grad_norm"])
        row[metrics.TRAIN_STEP_SECONDS] = (time.perf_counter() - self._since) / max(1, self._steps)
        row[metrics.TRAIN_EPOCH] = module.micro_step * module.data.batch_size / len(module.data.instance)
        self.tracker.log(step, row)
        self.window = {}
        self.restart_clock()


class EvaluationCallback(StepCallback):
    """Evaluates at step 0 (the base model: the floor), every `every` steps and at the last."""

    def __init__(
        self,
        evaluator: Evaluator,
        tracker: Tracker,
        reporter: Reporter,
        every: int,
        clock: LogCallback,
        ema: EmaCallback | None,
        on_scores: OnScores | None = None,
        parking: Parking | None = None,
        ranks: Ranks = ALONE,
    ):
        self.evaluator, self.tracker, self.reporter = evaluator, tracker, reporter
        self.every, self.clock, self.ema, self.on_scores = every, clock, ema, on_scores
        self.parking, self.ranks = parking, ranks

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        if self.parking is not None:
            self.parking.park()  # Lightning has just moved the text encoders to its device
        if module.resumed_at == 0:
            self.evaluator.note_ceilings(self.tracker)
            self._evaluate(module, 0)

    def after_step(self, trainer: pl.Trainer, module: DreamBoothModule, step: int) -> None:
        if step % self.every == 0 or step == module.max_steps:
            self._evaluate(module, step)

    def _evaluate(self, module: DreamBoothModule, step: int) -> None:
        with (
            self._weights(),
            put_together([module.networks]),
            self.parking.fetched() if self.parking else nullcontext(),
        ):
            found = evaluate_into(self.evaluator, step, self.tracker, self.reporter)
        dismiss(self.ranks)
        if self.on_scores is not None and step > 0:
            self.on_scores(step, found.scores)
        self.clock.restart_clock()

    def _weights(self) -> AbstractContextManager[None]:
        return self.ema.lent() if self.ema else nullcontext()


class HelpCallback(StepCallback):
    """On a rank that does not lead: draws what the leader's EvaluationCallback asks for, at the same steps."""

    def __init__(self, ranks: Ranks, every: int, ema: EmaCallback | None, parking: Parking | None):
        self.ranks, self.every, self.ema, self.parking = ranks, every, ema, parking

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        if self.parking is not None:
            self.parking.park()
        if module.resumed_at == 0:
            self._help(module)

    def after_step(self, trainer: pl.Trainer, module: DreamBoothModule, step: int) -> None:
        if step % self.every == 0 or step == module.max_steps:
            self._help(module)

    def _help(self, module: DreamBoothModule) -> None:
        with (
            self.ema.lent() if self.ema else nullcontext(),
            put_together([module.networks]),
            self.parking.fetched() if self.parking else nullcontext(),
        ):
            serve(module.backbone, self.ranks)


class OwnSignalCallback(pl.Callback):
    """Puts the process's own answer to SIGTERM back: Lightning's would tell the other ranks in the middle of a step."""

    def __init__(self) -> None:
        self.before = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.before)


class ParkCallback(pl.Callback):
    """Parks what training does not need where nothing is evaluated."""

    def __init__(self, parking: Parking):
        self.parking = parking

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.parking.park()


class CheckpointCallback(StepCallback):
    """Saves every `every` steps and at the last."""

    def __init__(
        self,
        run_dir: Path,
        every: int,
        settings: Callable[[int], dict[str, Any]],
        clock: LogCallback,
        ema: EmaCallback | None,
    ):
        self.run_dir, self.every, self.settings, self.clock, self.ema = run_dir, every, settings, clock, ema

    def after_step(self, trainer: pl.Trainer, module: DreamBoothModule, step: int) -> None:
        if step % self.every and step != module.max_steps:
            return
        optimizer, schedule = trainer.optimizers[0], trainer.lr_scheduler_configs[0].scheduler
        ema, window = self.ema.ema if self.ema else None, self.clock.window
        save_checkpoint(self.run_dir, module, optimizer, schedule, step, self.settings(step), ema, window)
        self.clock.restart_clock()


class GatherCallback(StepCallback):
    """On a rank that does not lead: gives its parts of sharded networks when the leader's CheckpointCallback saves."""

    def __init__(self, every: int, ema: EmaCallback | None):
        self.every, self.ema = every, ema

    def after_step(self, trainer: pl.Trainer, module: DreamBoothModule, step: int) -> None:
        if step % self.every and step != module.max_steps:
            return
        deque(resume_tensors(module, trainer.optimizers[0], self.ema.ema if self.ema else None), maxlen=0)


class BarCallback(StepCallback):
    """Moves the training bar."""

    def __init__(self, bar: Bar):
        self.bar = bar

    def after_step(self, trainer: pl.Trainer, module: DreamBoothModule, step: int) -> None:
        self.bar.advance()
        if step % 10 == 0:
            self.bar.describe(f"training  loss {float(module.latest['loss']):.4f}")

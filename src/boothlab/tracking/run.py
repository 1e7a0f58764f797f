"""The tracker: the one object through which a run writes down what happens, and which closes it properly."""

import logging
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from boothlab.errors import TERMINATED
from boothlab.files import json_bytes, sha256_bytes, write_json
from boothlab.tracking import history, manifest
from boothlab.tracking.history import History
from boothlab.tracking.manifest import RunStatus, close_manifest
from boothlab.tracking.mirrors import CsvMirror, Mirror, MirrorKind, TensorBoardMirror
from boothlab.tracking.summary import FILE_NAME as SUMMARY
from boothlab.tracking.summary import make_summary
from boothlab.tracking.wandb import WandbMirror, WandbOptions, check_mode

log = logging.getLogger(__name__)

# 255 is what W&B itself uses for Ctrl-C, and its server calls such a run killed instead of failed.
EXIT_CODES = {RunStatus.FINISHED: 0, RunStatus.FAILED: 1, RunStatus.INTERRUPTED: 255}
_SUMMARY_SECTIONS = ("baselines", "ceilings", "timings", "counts")


class Tracker:
    """Writes metrics.jsonl first and the mirrors after it; use it as a context manager around the whole run.

    A mirror that raises is reported once and dropped. An error of metrics.jsonl itself is raised: without the local
    truth the run would be worth nothing. `resume_step` continues a history up to that optimizer step; without it, the
    rows of an earlier attempt in the same folder are dropped. The manifest is written by the caller before the first
    step; the tracker closes it. Use one tracker a run, in the process of rank 0.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        mirrors: Sequence[MirrorKind | str] = (),
        wandb: WandbOptions | None = None,
        config: Mapping[str, Any] | None = None,
        resume_step: int | None = None,
        extra_mirrors: Sequence[Mirror] = (),
    ) -> None:
        self.run_dir = run_dir
        self._kinds = [MirrorKind(kind) for kind in mirrors]
        self._wandb = wandb
        self._config = config or {}
        self._resume_step = resume_step
        self._mirrors: list[Mirror] = list(extra_mirrors)
        self._history: History | None = None
        self._notes: dict[str, dict[str, Any]] = {section: {} for section in _SUMMARY_SECTIONS}
        self._old_handler: Any = None
        self._closed = False

    def __enter__(self) -> Self:
        self.open()
        self._catch_sigterm()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release_sigterm()
        if error is None:
            self.close(RunStatus.FINISHED)
            return
        # SystemExit covers sys.exit, Lightning's SIGTERMException and the handler below.
        stopped = isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
        status = RunStatus.INTERRUPTED if stopped else RunStatus.FAILED
        try:
            self.close(status, None if stopped else f"{type(error).__name__}: {error}")
        except Exception as second:  # the first error is the one the user must see
            log.warning("The run could not be closed properly: %s", second)

    def open(self) -> None:
        """Open the history and start the mirrors; `with` does it. Raises UserError for a wrong W&B mode."""
        if self._wandb is not None:
            check_mode(self._wandb.mode)  # before the first file is touched
        self._history = History(self.run_dir / history.FILE_NAME)
        self._history.truncate_after(-1 if self._resume_step is None else self._resume_step)
        for kind in self._kinds:
            try:
                self._mirrors.append(self._make(kind))
            except Exception as error:
                log.warning("The mirror %s could not start and is off for this run: %s", kind, error)
        if self._wandb is not None:
            mirror, to = WandbMirror(), self._wandb
            self._mirrors.append(mirror)
            mirror.start(self.run_dir, to.project, to.group, to.tags, to.name, to.mode, self._config)

    def _make(self, kind: MirrorKind) -> Mirror:
        if kind is MirrorKind.CSV:
            return CsvMirror(self.run_dir / history.FILE_NAME)
        return TensorBoardMirror(self.run_dir, self._resume_step)

    @property
    def mirrored(self) -> bool:
        """Whether the run is recorded for W&B."""
        return any(isinstance(mirror, WandbMirror) and mirror.sync_dir is not None for mirror in self._mirrors)

    def log(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Scalars at one optimizer step: Python, NumPy or one-element torch numbers.

        Raises TypeError or ValueError for a step or a value that is no number, UserError if the disk refuses.
        """
        if self._history is None:
            raise ValueError("the tracker is not open: use it in a `with` statement")
        plain = self._history.log(step, scalars)
        self._each("log", step, plain)

    def log_images(self, step: int, key: str, images: Sequence[tuple[Path, str]]) -> None:
        """Image files that the caller has already saved in the run folder, with their captions; to the mirrors."""
        self._each("log_images", step, key, images)

    def log_table(self, step: int, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table that the caller has already saved in the run folder; to the mirrors."""
        self._each("log_table", step, key, columns, rows)

    def log_curve(self, step: int, key: str, labels: Sequence[str], points: Sequence[Sequence[float]]) -> None:
        """A line through points (x, y), its axes named by `labels`; to the mirrors."""
        self._each("log_curve", step, key, labels, points)

    def log_artifact(
        self, name: str, type_: str, paths: Sequence[Path], metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Files or folders of the run folder, such as an adapter, to the mirrors."""
        self._each("log_artifact", name, type_, paths, metadata or {})

    def note(self, section: str, values: Mapping[str, Any]) -> None:
        """Add to a section of summary.json: baselines, ceilings, timings (seconds) or counts."""
        if section not in self._notes:
            raise ValueError(f"summary.json has no section {section!r}, only {', '.join(_SUMMARY_SECTIONS)}")
        self._notes[section].update(values)

    def close(self, status: RunStatus, error: str | None = None) -> None:
        """Write summary.json, close the manifest, then the mirrors. May be called twice; the first call counts.

        Local files come before the mirrors, because W&B may wait for its server and be interrupted meanwhile.
        """
        if self._closed:
            return
        self._closed = True
        status = RunStatus(status)
        try:
            if self._history is not None:
                self._history.close()
            summary = make_summary(self.run_dir, status, error=error, **self._notes)
            finished = status is RunStatus.FINISHED
            if not finished:
                write_json(self.run_dir / SUMMARY, summary)
            if (self.run_dir / manifest.FILE_NAME).exists():
                close_manifest(self.run_dir, status, {SUMMARY: sha256_bytes(json_bytes(summary))})
            if finished:  # last of all: who reads it never comes back to close the manifest
                write_json(self.run_dir / SUMMARY, summary)
            self._each("summarize", _best_for_mirrors(summary["best"]))
        finally:
            self._each("finish", EXIT_CODES[status])

    def _each(self, method: str, *arguments: Any) -> None:
        for mirror in list(self._mirrors):
            try:
                getattr(mirror, method)(*arguments)
            except Exception as error:  # a mirror is never worth a training run
                self._mirrors.remove(mirror)
                log.warning("%s failed and is off for the rest of this run: %s", type(mirror).__name__, error)

    def _catch_sigterm(self) -> None:
        """Make SIGTERM end the run through `finally`, unless someone else already handles it."""
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            self._old_handler = signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        # During fit, Lightning's handler calls ours and then stops between two batches, where a checkpoint is exact.
        # Raising here as well would stop in the middle of an optimizer step, so leave it to the one who took over.
        if signal.getsignal(signal.SIGTERM) == self._on_sigterm:
            raise SystemExit(TERMINATED)

    def _release_sigterm(self) -> None:
        if self._old_handler is not None:
            signal.signal(signal.SIGTERM, self._old_handler)
            self._old_handler = None


def _best_for_mirrors(best: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Flat keys, `best/eval/clip_i` and `best_step/eval/clip_i`, as a table of runs can show them."""
    values = {f"best/{key}": entry["value"] for key, entry in best.items()}
    return values | {f"best_step/{key}": entry["step"] for key, entry in best.items()}

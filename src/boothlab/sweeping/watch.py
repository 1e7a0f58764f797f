"""Progress over a whole sweep, whoever runs the jobs and wherever: read from the run folders while they grow."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from boothlab.compose.jobs import PlannedJob
from boothlab.progress import Reporter
from boothlab.sweeping.estimate import shown_seconds, work_of
from boothlab.sweeping.states import JobState, state_of
from boothlab.tracking import metrics
from boothlab.tracking.history import FILE_NAME as HISTORY
from boothlab.tracking.history import Row, read_history
from boothlab.tracking.show import value_of
from boothlab.tracking.summary import FILE_NAME as SUMMARY

POLL_S = 0.5
#: the scores in a line of progress; a run has those of training or those of editing
HEADLINE = (
    ("CLIP-I", metrics.CLIP_I),
    ("DINO", metrics.DINO),
    ("CLIP-T", metrics.CLIP_T),
    ("CLIP directional", metrics.EDIT_CLIP_DIRECTIONAL),
    ("CLIP image", metrics.EDIT_CLIP_IMAGE),
    ("PSNR to target", metrics.EDIT_PSNR_TRUTH),
    ("happened", metrics.EDIT_HAPPENED),
)


def differing(jobs: Sequence[PlannedJob]) -> set[str]:
    """The overrides that not all jobs share: what tells one from another."""
    common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    return {override for job in jobs for override in job.overrides} - common


def label(job: PlannedJob, telling: set[str]) -> str:
    """A job by what sets it apart: `optim.lr=1e-3 seed=0`."""
    words = [override for override in job.overrides if override in telling]
    return " ".join(words) or job.run_dir.name


def rows_of(run_dir: Path) -> list[Row]:
    """The history of a run as far as it is written."""
    path = run_dir / HISTORY
    return read_history(path).rows if path.is_file() else []


def best_of(rows: Sequence[Row]) -> Row | None:
    """The scored checkpoint after step 0 with the best balanced score; of an editing run, its scores."""
    scored = [row for row in rows if row.step > 0 and value_of(row, metrics.BALANCED) is not None]
    edits = [row for row in rows if row.step > 0 and value_of(row, metrics.EDIT_CLIP_IMAGE) is not None]
    return max(scored, key=balanced, default=edits[-1] if edits else None)


def balanced(row: Row | None) -> float:
    """The balanced score of a row; -1, below every cosine mean, where there is none."""
    value = value_of(row, metrics.BALANCED) if row else None
    return -1.0 if value is None else value


def shown_scores(row: Row | None) -> str:
    """CLIP-I, DINO and CLIP-T of a row, or what tells edits apart."""
    found = [(name, value_of(row, key)) for name, key in HEADLINE] if row else []
    return "  ".join(f"{name} {value:.3f}" for name, value in found if value is not None)


class SweepWatch:
    """Says a line when a job ends, and shows a bar over all steps of all jobs. Use it around the launch."""

    def __init__(self, jobs: Sequence[PlannedJob], everything: Sequence[PlannedJob], reporter: Reporter):
        self.jobs, self.reporter = list(jobs), reporter
        self.telling = differing(everything)
        self.total = sum(job.mistake is None for job in everything)
        self.open = {job.run_dir: job for job in jobs}
        self.started = time.monotonic()
        self.stale = {job.run_dir: _written(job.run_dir) for job in jobs}
        self.first_steps = {job.run_dir: steps_before(job) for job in jobs}
        self.best: tuple[float, str] | None = None
        for job in everything:
            self._weigh(job)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        units = sum(max(1, work_of(job.resolved)[0] - self.first_steps[job.run_dir]) for job in self.jobs)
        with self.reporter.bar("sweep", units) as bar:
            shown = 0
            while True:
                stopping = self._stop.wait(POLL_S)
                shown_now = self._look()
                bar.advance(shown_now - shown)
                shown = shown_now
                bar.describe(self._headline())
                if stopping:
                    return

    def _look(self) -> int:
        """Say which jobs ended since the last look; returns the steps done so far in this sitting."""
        for run_dir, job in list(self.open.items()):
            state = state_of(job).state
            ended = state in (JobState.FINISHED, JobState.FAILED)
            if ended and _written(run_dir) != self.stale[run_dir]:
                del self.open[run_dir]
                self._say_ended(job, state)
        done = 0
        for job in self.jobs:
            steps = max(1, work_of(job.resolved)[0] - self.first_steps[job.run_dir])
            ended = job.run_dir not in self.open
            done += steps if ended else min(steps, self._steps_since(job))
        return done

    def _steps_since(self, job: PlannedJob) -> int:
        """Optimizer steps of an open job in this sitting; what is yet to be overwritten is none of them."""
        stale = self.stale[job.run_dir]
        if job.overwrites and stale and stale == _written(job.run_dir):
            return 0
        return max(0, last_step(job.run_dir) - self.first_steps[job.run_dir])

    def _say_ended(self, job: PlannedJob, state: JobState) -> None:
        done = self.total - len(self.open)
        self._weigh(job)
        ended_here = len(self.jobs) - len(self.open)
        left = (time.monotonic() - self.started) / ended_here * len(self.open)
        eta = f"  (about {shown_seconds(left)} left)" if self.open else ""
        row = best_of(rows_of(job.run_dir)) if state is JobState.FINISHED else None
        style = "green" if state is JobState.FINISHED else "red"
        line = f"{label(job, self.telling)}  {shown_scores(row)}".rstrip()
        self.reporter.say(f"{line}{eta}", tag=f"[{done}/{self.total}] {state.value}", style=style)

    def _weigh(self, job: PlannedJob) -> None:
        """Remember the job if its best checkpoint is the best of the sweep so far."""
        row = best_of(rows_of(job.run_dir))
        if balanced(row) > (self.best[0] if self.best else -1.0):
            self.best = (balanced(row), label(job, self.telling))

    def _headline(self) -> str:
        ended = self.total - len(self.open)
        best = f"  best balanced {self.best[0]:.3f} ({self.best[1]})" if self.best else ""
        return f"{ended}/{self.total} jobs{best}"


def steps_before(job: PlannedJob) -> int:
    """The optimizer steps that need not be done again."""
    return 0 if job.overwrites else last_step(job.run_dir)


def last_step(run_dir: Path) -> int:
    """The optimizer step of the last row written; 0 before the first."""
    rows = rows_of(run_dir)
    return rows[-1].step if rows else 0


def _written(run_dir: Path) -> int:
    """When the summary was written, in ns; a job that is tried again still has that of its last failure."""
    path = run_dir / SUMMARY
    return path.stat().st_mtime_ns if path.is_file() else 0

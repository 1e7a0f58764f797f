"""How each job of a sweep stands, read from its run folder: the folder is the only memory a sweep has."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from boothlab.compose.jobs import PlannedJob
from boothlab.errors import UserError
from boothlab.files import read_json, write_json
from boothlab.tracking.history import FILE_NAME as HISTORY
from boothlab.tracking.lock import owner_of
from boothlab.tracking.summary import FILE_NAME as SUMMARY


class JobState(StrEnum):
    """What to do with a job. A run that nobody works in and that did not end was killed: it is interrupted."""

    FINISHED = "finished"
    RUNNING = "running elsewhere"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    NEW = "new"
    MISTAKEN = "bad input"


@dataclass(frozen=True)
class StandingJob:
    """A job and how it stands; `why` is what a failed or mistaken one said."""

    job: PlannedJob
    state: JobState
    why: str = ""


def state_of(job: PlannedJob) -> StandingJob:
    """How a job stands now."""
    if job.mistake is not None:
        return StandingJob(job, JobState.MISTAKEN, job.mistake)
    status, error = _status(job.run_dir)
    if status == "finished":
        return StandingJob(job, JobState.FINISHED)
    if owner := owner_of(job.run_dir):
        return StandingJob(job, JobState.RUNNING, str(owner))
    if status == "failed":
        return StandingJob(job, JobState.FAILED, error)
    begun = (job.run_dir / HISTORY).exists() or (job.run_dir / "checkpoints").exists()
    return StandingJob(job, JobState.INTERRUPTED if begun else JobState.NEW)


def _status(run_dir: Path) -> tuple[str | None, str]:
    path = run_dir / SUMMARY
    if not path.is_file():
        return None, ""
    try:
        summary = read_json(path)
    except (UserError, OSError):
        return None, ""
    if not isinstance(summary, dict):
        return None, ""
    return summary.get("status"), str(summary.get("error") or "")


def note_failure(run_dir: Path, error: str) -> None:
    """Remember a failure that came before the run could write its own summary; a finished run's is left alone."""
    if _status(run_dir)[0] not in (JobState.FAILED, JobState.FINISHED):
        run_dir.mkdir(parents=True, exist_ok=True)
        write_json(run_dir / SUMMARY, {"status": JobState.FAILED.value, "error": error})


def count(jobs: Iterable[StandingJob]) -> dict[JobState, int]:
    """How many jobs stand how, in the order of `JobState`, without zeros."""
    states = [job.state for job in jobs]
    return {state: states.count(state) for state in JobState if state in states}

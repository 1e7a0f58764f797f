"""What a search and the code that runs its jobs agree on: one job in, how it ended out."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

OnCheckpoint = Callable[[int, dict[str, float]], None]
"""Called after each scored checkpoint with its step (optimizer steps) and its scores by short name (clip_i, dino, …).

Best between scoring a checkpoint and saving it: a run that is killed in between then scores and calls once more."""


class Pruned(Exception):
    """Raised out of `OnCheckpoint`: the run is to end here, as interrupted, because the others did better by this step.

    The code that runs the job lets it through once the run is closed.
    """


@dataclass(frozen=True)
class JobResult:
    """How one job ended. `folder` is its run folder; `error` says in one line why it failed."""

    status: Literal["finished", "failed"]
    folder: Path
    error: str | None = None


RunJob = Callable[[list[str], OnCheckpoint], JobResult]
"""Runs one job with the given overrides. A run folder that is finished is taken as it is, one begun is gone on with."""

FolderOf = Callable[[list[str]], Path]
"""The run folder of a job with the given overrides, before it starts. Raises UserError if they are wrong."""

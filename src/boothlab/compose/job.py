"""One job as Hydra runs it: the typed config in, an outcome out, so that a failing job never stops the others."""

import logging
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.types import RunMode
from omegaconf import DictConfig

from boothlab.compose.typed import load
from boothlab.errors import RunFailedError, UserError, one_line
from boothlab.tracking.lock import RunInUseError
from boothlab.tracking.redaction import RedactingFilter, redact_file
from boothlab.tracking.summary import headline

T = TypeVar("T")
#: what a command does: (typed config, the same as a plain dict, run folder, whether it is one job of a multirun)
Body = Callable[[T, dict[str, Any], Path, bool], object]


class Outcome(float):
    """How a job of a multirun ended: an exit code. A single run keeps its exception, to be raised again.

    As a number it is what a sweeper plugin of Hydra may maximise: the best balanced score of the run, NaN without one.
    `in_use` means that another process works on that very run, so that this one left it alone.
    """

    def __new__(cls, number: float = math.nan, **_: object) -> Self:
        return super().__new__(cls, number)

    def __init__(
        self,
        number: float = math.nan,
        *,
        code: int = 0,
        value: object = None,
        error: str | None = None,
        in_use: bool = False,
        exception: BaseException | None = None,
    ):
        self.code, self.value, self.error, self.in_use, self.exception = code, value, error, in_use, exception


class Job(Generic[T]):
    """The task function given to Hydra; a class and not a closure, so that a launcher can send it to a worker.

    A worker stands where the command stood: relative paths mean the folder it was typed in, and the manifest has its
    words. Of themselves Ray's workers start in other folders, and those of every launcher have words of their own.
    """

    def __init__(self, schema: type[T], body: Body[T]):
        self.schema = schema
        self.body = body
        self.folder = os.getcwd()
        self.command = list(sys.argv)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrive in a worker, before Hydra makes the run folder there."""
        self.__dict__.update(state)
        sys.argv = list(self.command)
        if Path(self.folder).is_dir():  # on a node that lacks it absolute paths still work
            os.chdir(self.folder)

    def __call__(self, node: DictConfig) -> Outcome:
        """Run the job. Only Ctrl-C and being told to end go through Hydra and end a multirun.

        The latter are exit codes above 128, and the -1 of submitit, which queues the job again: it has no outcome yet.
        """
        return self.begin(node)()

    def begin(self, node: DictConfig) -> Callable[[], Outcome]:
        """Note what Hydra says of this job as long as it is the current one; returns the job, to be run at any time."""
        hydra = HydraConfig.get()
        alone, run_dir = hydra.mode != RunMode.MULTIRUN, Path(hydra.runtime.output_dir)
        overrides = [str(word) for word in hydra.overrides.task]
        logging.raiseExceptions = False  # a log that cannot be written, on a full disk, is no news beside the disk
        if not alone:  # one of many only speaks up to warn
            logging.getLogger("boothlab").setLevel(logging.WARNING)
        _keep_secrets_out_of_files()
        return partial(self._run, node, run_dir, alone, overrides)

    def _run(self, node: DictConfig, run_dir: Path, alone: bool, overrides: list[str]) -> Outcome:
        try:
            config, resolved = load(node, self.schema)
            value = self.body(config, resolved, run_dir, not alone)
            return Outcome(headline(value) if isinstance(value, Mapping) else math.nan, value=value)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            if alone or not 0 <= code <= 128:
                raise
            return Outcome(code=code, error=f"exit code {code}")
        except Exception as error:
            if alone:
                return Outcome(exception=error)
            return _report(error, overrides)


def _keep_secrets_out_of_files() -> None:
    """Redact what Hydra has just written about the job, and what will be logged to files."""
    hydra = HydraConfig.get()
    if hydra.output_subdir is not None:
        for path in sorted((Path(hydra.runtime.output_dir) / hydra.output_subdir).glob("*.yaml")):
            redact_file(path)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.addFilter(RedactingFilter())


def _report(error: Exception, overrides: Iterable[str]) -> Outcome:
    """Say on stderr how a job of a multirun failed."""
    job = " ".join(overrides) or "without overrides"
    if isinstance(error, UserError | RunFailedError):
        line = one_line(error)
    else:
        traceback.print_exception(error)
        line = f"{type(error).__name__}: {error}"
    print(f"boothlab: error: the job {job} failed: {line}", file=sys.stderr, flush=True)
    in_use = isinstance(error, RunInUseError)
    return Outcome(code=2 if isinstance(error, UserError) and not in_use else 1, error=line, in_use=in_use)


def code_of_run(job_return: JobReturn) -> int:
    """The exit code of a single run; what the command raised is raised again."""
    outcome: Outcome = job_return.return_value
    if outcome.exception is not None:
        raise outcome.exception
    return outcome.code


def code_of_multirun(batches: Iterable[Iterable[JobReturn]] | None) -> int:
    """The exit code of a multirun: 0 if all went well, 2 if all were bad input, 1 otherwise.

    Sweeper plugins keep what the jobs returned to themselves (None): 0, their failures were told as they happened.
    """
    codes = [job_return.return_value.code for batch in batches or () for job_return in batch]
    failed = [code for code in codes if code != 0]
    if not failed:
        return 0
    print(f"boothlab: {len(failed)} of {len(codes)} jobs failed", file=sys.stderr, flush=True)
    return 2 if failed == [2] * len(codes) else 1

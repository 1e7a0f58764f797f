"""Runs a sweep: the plan, the jobs that are left, and at the end a table of what failed and why."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table
from rich.text import Text

from boothlab.compose.job import Outcome
from boothlab.compose.jobs import Multirun, PlannedJob, check_jobs
from boothlab.errors import UserError
from boothlab.files import shown
from boothlab.progress import Reporter
from boothlab.sweeping.estimate import estimate_seconds, past_costs, shown_seconds
from boothlab.sweeping.states import JobState, StandingJob, count, note_failure, state_of
from boothlab.sweeping.watch import SweepWatch, balanced, best_of, differing, label, rows_of, shown_scores, steps_before
from boothlab.tracking.lock import last_owner

log = logging.getLogger(__name__)
RETRY = "--retry-failed"
DRY_RUN = "--dry-run"
CUT_SHORT = "its process was killed, or ended when another job's was (out of memory?); the same command goes on with it"
UNENDED = (JobState.NEW, JobState.INTERRUPTED)


@dataclass(frozen=True)
class SweepOptions:
    """What the command line says about the sweep itself."""

    dry_run: bool = False
    retry_failed: bool = False


def take_options(argv: Sequence[str], always_many: bool = False) -> tuple[SweepOptions, list[str]]:
    """The sweep's own options, and the arguments that are left for Hydra.

    Raises UserError for an option of a single run, which would start although only its plan was asked for.
    """
    given = [word for word in argv if word in (RETRY, DRY_RUN)]
    many = any(word in ("-m", "--multirun") or word.startswith("hydra.mode=") for word in argv)
    if given and not many and not always_many:
        raise UserError(f"{given[0]}: is for many runs; add -m")
    left = [word for word in argv if word not in (RETRY, DRY_RUN)]
    return SweepOptions(DRY_RUN in argv, RETRY in argv), left


def to_do(standing: Sequence[StandingJob], retry_failed: bool) -> list[StandingJob]:
    """The jobs to run now. What failed is only tried again when asked: it would most often fail again.

    A job that overwrites is run however it ended before.
    """
    wanted = {JobState.NEW, JobState.INTERRUPTED} | ({JobState.FAILED} if retry_failed else set())
    ended = {JobState.FINISHED, JobState.FAILED}
    return [one for one in standing if one.state in wanted or (one.state in ended and one.job.overwrites)]


def run_sweep(
    multirun: Multirun,
    schema: type,
    options: SweepOptions,
    reporter: Reporter,
    record: Callable[[Multirun], None] | None = None,
) -> int:
    """Show the plan, run what is left of it, show what failed; returns the exit code.

    `record` is called before the first job, with every mistake known; a dry run leaves it out.

    0 when every job is finished, 1 when some failed, 2 when all that did not finish are bad input. What is finished is
    never run again unless it is to be overwritten, what was interrupted goes on from its last checkpoint, and no
    failure stops the other jobs.
    """
    standing = [state_of(job) for job in multirun.jobs]
    unfinished = {one.job.run_dir for one in standing if one.state is not JobState.FINISHED}
    checked = {
        job.run_dir: job for job in check_jobs((job for job in multirun.jobs if job.run_dir in unfinished), schema)
    }
    standing = [state_of(checked.get(one.job.run_dir, one.job)) for one in standing]
    multirun = replace(multirun, jobs=tuple(one.job for one in standing))
    left = to_do(standing, options.retry_failed)
    show_plan(multirun, standing, left, reporter)
    if options.dry_run:
        return 0
    if record is not None:
        record(multirun)
    failures: dict[Path, str] = {}
    if left:
        failures = _launch(multirun, [one.job for one in left], reporter)
    return _conclude(multirun, [state_of(one.job) for one in standing], failures, reporter)


def _launch(multirun: Multirun, jobs: list[PlannedJob], reporter: Reporter) -> dict[Path, str]:
    """Run the jobs; returns why those failed that did. Ctrl-C passes through, after a word on how to go on.

    When a worker process is killed, its pool ends the others too: jobs that had not begun are then launched again.
    """
    failures: dict[Path, str] = {}
    left = list(jobs)
    try:
        with SweepWatch(jobs, multirun.jobs, reporter):
            while left:
                owners = {job.run_dir: last_owner(job.run_dir) for job in left}
                try:
                    failures |= _failures(left, multirun.launch(left))
                    break
                except UserError:
                    raise
                except Exception as error:  # of the launcher: those of the jobs are in their outcomes
                    log.debug("the launcher gave up", exc_info=error)
                    reporter.say(_first_line(error), tag="the launcher gave up", style="red")
                    cut = [job for job in left if last_owner(job.run_dir) not in (None, owners[job.run_dir])]
                    failures |= {job.run_dir: CUT_SHORT for job in cut}
                    # Only a broken pool has surely no other job under way, that could be started twice.
                    if not cut or not isinstance(error, BrokenProcessPool):
                        break
                    left = [job for job in left if job not in cut and state_of(job).state in UNENDED]
    except (KeyboardInterrupt, SystemExit):
        reporter.say("what is finished stays finished; the same command goes on", tag="interrupted")
        raise
    return failures


def _failures(jobs: Sequence[PlannedJob], outcomes: Sequence[Outcome]) -> dict[Path, str]:
    """Why those failed that did, which is noted in their folders as well."""
    failures = {}
    for job, outcome in zip(jobs, outcomes, strict=True):
        if outcome.code:
            failures[job.run_dir] = outcome.error or f"exit code {outcome.code}"
            if not outcome.in_use:
                note_failure(job.run_dir, failures[job.run_dir])
    return failures


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def show_plan(
    multirun: Multirun, standing: Sequence[StandingJob], left: Sequence[StandingJob], reporter: Reporter
) -> None:
    """What will happen, before it happens."""
    stands = ", ".join(f"{number} {state.value}" for state, number in count(standing).items())
    reporter.say(f"{len(standing)} jobs ({stands}) in {shown(multirun.folder)}", tag="sweep", style="bold")
    for key, values in multirun.params.items():
        reporter.say(f"  {key} = {', '.join(values)}")
    for one in standing:
        if one.state in (JobState.FAILED, JobState.MISTAKEN, JobState.RUNNING):
            retry = f" ({RETRY} runs it again)" if one.state is JobState.FAILED and one not in left else ""
            telling = differing([other.job for other in standing])
            reporter.say(f"{label(one.job, telling)}: {one.why}{retry}", tag=one.state.value, style="red")
    if not left:
        return
    reporter.say(f"  shared: {_shared([one.job for one in left])}")
    seconds = estimate_seconds(
        [(one.job.resolved, steps_before(one.job)) for one in left], past_costs(multirun.folder.parent)
    )
    guess = (
        f"about {shown_seconds(seconds)} one after another, judged by past runs"
        if seconds
        else "no past runs to judge the time by"
    )
    reporter.say(f"  to do: {len(left)} jobs, {guess}; launcher {multirun.launcher}")


def _shared(jobs: Sequence[PlannedJob]) -> str:
    """What the jobs have in common and is therefore made once."""

    prior = [job for job in jobs if (job.resolved.get("prior") or {}).get("enabled")]
    counts = {
        "backbones": len({str(job.resolved.get("backbone")) for job in jobs}),
        "subjects": len({str(job.resolved.get("subject")) for job in jobs}),
        "sets of class images": len({_class_images_of(job) for job in prior}),
    }
    return ", ".join(f"{what}: {number}" for what, number in counts.items() if number)


def _class_images_of(job: PlannedJob) -> str:
    prior = {key: value for key, value in job.resolved["prior"].items() if key not in ("enabled", "weight")}
    return str([prior, job.resolved["backbone"], job.resolved["seed"]])


def _conclude(
    multirun: Multirun, standing: Sequence[StandingJob], failures: dict[Path, str], reporter: Reporter
) -> int:
    telling = differing(multirun.jobs)
    # A finished run that was to be overwritten may have failed to begin again; it is whole, but not what was asked for.
    good = [one for one in standing if one.state is JobState.FINISHED and one.job.run_dir not in failures]
    bad = [one for one in standing if one not in good]
    rows = {one.job.run_dir: best_of(rows_of(one.job.run_dir)) for one in good}
    best = max(good, key=lambda one: balanced(rows[one.job.run_dir]), default=None)
    row = rows[best.job.run_dir] if best else None
    if best is not None and row is not None and balanced(row) > -1:  # edits have no balanced score
        reporter.say(
            f"{label(best.job, telling)}  step {row.step}  {shown_scores(row)}", tag="best balanced", style="green"
        )
    if any(True for one in good for _ in one.job.run_dir.glob("wandb/offline-run-*")):
        reporter.say(f"wandb sync {shown(multirun.folder)}/*/wandb/offline-run-*", tag="W&B offline, to send it:")
    if not bad:
        reporter.say(f"{len(good)} of {len(standing)} jobs in {shown(multirun.folder)}", tag="finished", style="green")
        return 0
    table = Table(title=Text(f"{len(bad)} of {len(standing)} jobs did not finish"), title_justify="left")
    for column in ("job", "status", "why"):
        table.add_column(column, overflow="fold")
    for one in bad:
        why = failures.get(one.job.run_dir) or one.why
        state = JobState.FAILED if one.state is JobState.FINISHED else one.state
        table.add_row(Text(label(one.job, telling)), state.value, Text(" ".join(why.split())))
    reporter.console.print(table)
    return 2 if not good and all(one.state is JobState.MISTAKEN for one in bad) else 1

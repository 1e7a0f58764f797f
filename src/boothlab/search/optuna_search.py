"""The search itself: choose a setting, run it with every seed, tell Optuna, until enough settings were tried."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from boothlab.errors import UserError

try:
    import optuna
except ImportError as error:
    raise UserError("search.engine=optuna needs Optuna; install it with: pip install 'boothlab[optuna]'") from error

from boothlab.config import SearchConfig, SearchSampler
from boothlab.progress import Reporter
from boothlab.search.jobs import FolderOf, RunJob
from boothlab.search.objective import names_of
from boothlab.search.result import SearchResult, read_result, result_path, write_result
from boothlab.search.space import SearchSpace
from boothlab.search.storage import Worker, open_storage
from boothlab.search.study import Chooser, Chosen, open_study, was_tried
from boothlab.search.trial import TrialRunner
from boothlab.search.workers import more_workers


def run_search(
    options: SearchConfig,
    space: SearchSpace,
    replicates: Sequence[Sequence[str]],
    run_job: RunJob,
    *,
    study_name: str,
    storage: Path,
    reporter: Reporter,
    folder_of: FolderOf | None = None,
    identity: str = "",
    worker_command: Sequence[str] = (),
) -> SearchResult:
    """Search until `options.trials` settings were tried, in this sitting and those before, or all there are.

    Every setting is run once for each of the `replicates` (the overrides of one each, `space.replicates` as a rule),
    and its objective is their mean. `storage` is the file of the trials; its sibling with the suffix .json is written
    after every trial. `folder_of` tells the run folder of a job before it starts; without it, a trial that was pruned
    names none. `identity` stands for whatever else all jobs have in common, such as the hash of their config: a
    search begun with another one is refused. `worker_command` is the command line of one more worker on the same
    search, needed for `options.workers` above 1.

    Raises UserError if the storage cannot be used, if the search was begun with other settings, or if a finished run
    was not scored. Whatever else `run_job` raises but UserError and NonFiniteLossError passes through; the trial is
    then gone on with in the next sitting.
    """
    if options.workers > 1 and not worker_command:
        raise ValueError("several workers need the command line of one")
    storage, names = storage.absolute(), names_of(options.objective)
    journal = open_storage(storage)
    with _quiet_optuna(), Worker(storage) as worker:
        with worker.choosing():
            settings = _settings(options, space, replicates, identity)
            study = open_study(journal, study_name, settings, len(names), options.seed)

        def save() -> SearchResult:
            with worker.choosing():  # or a slower worker could overwrite what a faster one knows already
                result = read_result(study, result_path(storage), names)
                write_result(result)
            return result

        chooser = Chooser(study, journal, space, options, worker)
        runner = TrialRunner(study, options, space, replicates, run_job, folder_of, storage.parent)
        with more_workers(worker_command, options.workers - 1, storage, reporter):
            while (chosen := chooser.next()) is not None:
                _announce(chosen, study, space, options, reporter)
                runner.run(chosen)
                _report(save(), chosen.trial.number, reporter)
        result = save()
    if not result.best:
        reporter.warn(f"no trial of the search {study_name} has finished ({result.line})")
    return result


def _settings(
    options: SearchConfig, space: SearchSpace, replicates: Sequence[Sequence[str]], identity: str
) -> dict[str, Any]:
    """All that the choices depend on, as JSON holds it. Not the number of trials: a search may be made longer."""
    sampler = SearchSampler.tpe if options.sampler is SearchSampler.auto else options.sampler
    settings = {
        "objective": options.objective.value,
        "at": options.at.value,
        "sampler": sampler.value,
        "pruner": options.pruner.value,
        "seed": options.seed,
        "space": [asdict(dimension) for dimension in space.dimensions],
        "fixed": list(space.fixed),
        "replicates": [list(replicate) for replicate in replicates],
        "identity": identity,
    }
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


def _announce(
    chosen: Chosen, study: optuna.Study, space: SearchSpace, options: SearchConfig, reporter: Reporter
) -> None:
    number = chosen.trial.number
    place = sum(map(was_tried, study.get_trials(deepcopy=False)[: number + 1]))
    again = " (a worker that is gone began it)" if chosen.begun else ""
    line = " ".join(space.overrides(chosen.values)) + again
    reporter.say(line, tag=f"trial {number} ({place} of {options.trials})")


def _report(result: SearchResult, number: int, reporter: Reporter) -> None:
    trial = result.trials[number]
    if trial.values is None:
        line = f"{trial.state}: {trial.error}" if trial.error else trial.state
    else:
        line = "  ".join(f"{name} {value:.4f}" for name, value in zip(result.objectives, trial.values, strict=True))
    if len(result.objectives) == 1 and result.best and result.best[0] != number:
        best = result.best_trials[0]
        line += f"  (best so far: trial {best.number}, {best.values[0]:.4f})" if best.values else ""
    reporter.say(line, tag=f"trial {number}")


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Optuna tells of every trial, and so do we."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)

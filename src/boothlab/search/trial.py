"""One trial from its overrides to what Optuna is told: its runs, its curve for the pruner, its end."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from optuna.study import Study
from optuna.trial import Trial, TrialState

from boothlab.config import SearchConfig
from boothlab.errors import NonFiniteLossError, UserError
from boothlab.search.jobs import FolderOf, JobResult, OnCheckpoint, Pruned, RunJob
from boothlab.search.objective import Measured, curve_of, rank_of, values_of
from boothlab.search.space import SearchSpace
from boothlab.search.study import ASKED_AT, BY_REPLICATE, ERROR, PRUNED_AT, RUNS, STEPS, Chosen
from boothlab.tracking.redaction import redact_text


class _FailedError(Exception):
    """A job of the trial failed; the message says why."""


def _no_callback(step: int, scores: dict[str, float]) -> None:
    """Only the first replicate is compared with the other trials while it runs."""


class TrialRunner:
    """Runs the jobs of a trial and tells Optuna how it ended. A failed job fails its trial, never the search."""

    def __init__(
        self,
        study: Study,
        options: SearchConfig,
        space: SearchSpace,
        replicates: Sequence[Sequence[str]],
        run_job: RunJob,
        folder_of: FolderOf | None,
        base: Path,
    ):
        self._study, self._options, self._space, self._replicates = study, options, space, replicates
        self._run_job, self._folder_of, self._base = run_job, folder_of, base

    def run(self, chosen: Chosen) -> None:
        """Raises UserError if a finished run was not scored; the others would not be either."""
        trial = chosen.trial
        overrides = [*self._space.fixed, *self._space.overrides(chosen.values)]
        try:
            measured = self._measure(trial, overrides)
        except Pruned:
            self._study.tell(trial, state=TrialState.PRUNED)
        except _FailedError as failure:
            trial.set_user_attr(ERROR, redact_text(" ".join(str(failure).split())))
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            trial.set_user_attr(STEPS, [run.step for run in measured])
            trial.set_user_attr(BY_REPLICATE, [list(run.values) for run in measured])
            values = [fmean(column) for column in zip(*(run.values for run in measured), strict=True)]
            self._study.tell(trial, values)

    def _measure(self, trial: Trial, overrides: list[str]) -> list[Measured]:
        """Every replicate run and read, in order."""
        curve = _Curve(trial, self._study, self._options)
        curve.go_on()
        measured: list[Measured] = []
        for index, replicate in enumerate(self._replicates):
            job = self._job(trial, [*overrides, *replicate], curve.on_checkpoint if index == 0 else _no_callback)
            if job.status == "failed":
                raise _FailedError(" ".join([*replicate, job.error or "the run failed"]))
            measured.append(values_of(job.folder, self._options.objective, self._options.at))
            if not all(map(math.isfinite, measured[-1].values)):
                raise _FailedError(" ".join([*replicate, "a score of the objective is missing or not a number"]))
            if index == 0:
                curve.complete(job.folder, ask=len(self._replicates) > 1)
        return measured

    def _job(self, trial: Trial, overrides: list[str], on_checkpoint: OnCheckpoint) -> JobResult:
        try:
            if self._folder_of is not None:  # noted before the job, so that a pruned trial has it too
                self._note_run(trial, self._folder_of(overrides))
            job = self._run_job(overrides, on_checkpoint)
        except (UserError, NonFiniteLossError) as error:
            raise _FailedError(str(error)) from error
        self._note_run(trial, job.folder)
        return job

    def _note_run(self, trial: Trial, folder: Path) -> None:
        """The run folders of the trial, in the order of the replicates, relative to the storage file's."""
        runs = trial.user_attrs.get(RUNS, [])
        run = Path(os.path.relpath(folder.absolute(), self._base)).as_posix()
        if run not in runs:
            trial.set_user_attr(RUNS, [*runs, run])


class _Curve:
    """The objective over the checkpoints of the first replicate, as Optuna's pruners see it.

    The others are run after it and to their end: all trials are compared on the same seed.
    """

    def __init__(self, trial: Trial, study: Study, options: SearchConfig):
        self._trial, self._study, self._objective = trial, study, options.objective
        self._single = len(study.directions) == 1  # Optuna keeps curves of one objective only
        self._reported = set(study.get_trials(deepcopy=False)[trial.number].intermediate_values)

    def go_on(self) -> None:
        """For a trial that was begun: raise Pruned if it was to end at its last report and only its end was missed."""
        attributes = self._trial.user_attrs
        asked_at = attributes.get(ASKED_AT)
        if PRUNED_AT not in attributes and asked_at in self._reported and self._trial.should_prune():
            self._trial.set_user_attr(PRUNED_AT, asked_at)
        if PRUNED_AT in self._trial.user_attrs:
            raise Pruned("behind the other trials")

    def on_checkpoint(self, step: int, scores: dict[str, float]) -> None:
        """Raises Pruned if the trial is to end here."""
        value = rank_of(scores, self._objective)
        if self._single and step > 0 and step not in self._reported and math.isfinite(value):
            self._report({step: value}, ask=True)

    def complete(self, folder: Path, ask: bool) -> None:
        """Add the checkpoints that no callback told of: scored in an earlier sitting, or before there was a search.

        With `ask`, raises Pruned if the trial is to end without its other replicates.
        """
        curve = curve_of(folder, self._objective) if self._single else {}
        if new := {step: value for step, value in curve.items() if step not in self._reported}:
            self._report(new, ask)

    def _report(self, new: Mapping[int, float], ask: bool) -> None:
        if ask:  # noted first: if only the answer is missed, the next sitting asks again
            self._trial.set_user_attr(ASKED_AT, max(new))
        for step, value in new.items():
            self._trial.report(value, step)
            self._reported.add(step)
        if ask and self._trial.should_prune():
            self._trial.set_user_attr(PRUNED_AT, max(new))  # Hyperband would not say it again
            raise Pruned(f"behind the other trials at step {max(new)}")

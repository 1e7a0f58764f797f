"""One Optuna study: opened or gone on with, the next trial chosen from it, and no point run twice."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from boothlab.config import SearchConfig
from boothlab.errors import UserError
from boothlab.search.samplers import NumberedSampler, derive_seed, make_pruner, suggest
from boothlab.search.space import SearchSpace, Value
from boothlab.search.storage import Worker

#: attributes of a trial
WORKER, OVERRIDES, REPEATS, ERROR = "worker", "overrides", "repeats", "error"
RUNS, STEPS, BY_REPLICATE = "runs", "steps", "by_replicate"
#: steps at which the pruner was asked, and at which it said yes
ASKED_AT, PRUNED_AT = "asked_at", "pruned_at"

_SHORT = 100
REPEATS_IN_A_ROW = 10
"""After so many known points in a row the next trial is a point that was not tried yet, if the space can list one."""
GIVE_UP_AFTER = 100
"""After so many the search is over: an interval may be too narrow to hold more numbers than were tried."""


def open_study(storage: JournalStorage, name: str, settings: dict[str, Any], objectives: int, seed: int) -> Study:
    """The study of that name, new or begun earlier. Only while `choosing`.

    `settings` is whatever the choices depend on. Raises UserError if the study was begun with others: Optuna would
    take scores of one question for answers to another.
    """
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        directions=["maximize"] * objectives,
        load_if_exists=True,
    )
    begun = study.user_attrs.get("settings")
    if begun is None and not study.get_trials(deepcopy=False):
        study.set_user_attr("settings", settings)
    elif begun != settings:
        old = begun if isinstance(begun, dict) else {}
        changed = next(key for key in [*settings, *old] if settings.get(key) != old.get(key))
        values = f" ({old.get(changed)}, now {settings.get(changed)})"
        raise UserError(
            f"the search {name!r} was begun with another {changed}{values if len(values) < _SHORT else ''}; "
            "take it back, or set another search.storage"
        )
    return study


def is_repeat(trial: FrozenTrial) -> bool:
    """Whether the trial is a point that an earlier trial had; it was not run."""
    return REPEATS in trial.user_attrs


def was_tried(trial: FrozenTrial) -> bool:
    """Whether the trial counts towards `search.trials`: repeats and trials still in the queue do not."""
    return trial.state is not TrialState.WAITING and not is_repeat(trial)


@dataclass(frozen=True)
class Chosen:
    """A trial this worker is to run: its values by key, and whether a worker that is gone began it."""

    trial: Trial
    values: dict[str, Value]
    begun: bool


class Chooser:
    """Hands out the trials of a study, one at a time and each to one worker."""

    def __init__(
        self, study: Study, storage: JournalStorage, space: SearchSpace, options: SearchConfig, worker: Worker
    ):
        self._study, self._storage, self._space, self._options = study, storage, space, options
        self._worker = worker

    def next(self) -> Chosen | None:
        """The next trial to run; None when enough settings, or all there are, were tried or are being run."""
        while True:
            with self._worker.choosing():
                trials = self._study.get_trials(deepcopy=False)
                self._prepare(trials)
                left = self._left_behind(trials)
                if left is None and self._is_done(trials):
                    return None
                trial = self._new_trial(trials) if left is None else self._take_over(left)
                values = suggest(trial, self._space.dimensions)
                trial.set_user_attr(WORKER, self._worker.name)
                overrides = self._space.overrides(values)
                trial.set_user_attr(OVERRIDES, overrides)
                known = self._known(trial.number, overrides)
                if known is None:
                    return Chosen(trial, values, left is not None)
                self._tell_known(trial, known)

    def _prepare(self, trials: Sequence[FrozenTrial]) -> None:
        self._study.sampler = NumberedSampler(self._options.sampler, self._options.seed)
        self._study.pruner = make_pruner(self._options.pruner, trials)

    def _left_behind(self, trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
        """The first trial whose worker is gone, or that never came to have one."""
        for trial in trials:
            worker = str(trial.user_attrs.get(WORKER, ""))
            if trial.state is TrialState.RUNNING and (not worker or self._worker.is_gone(worker)):
                return trial
        return None

    def _is_done(self, trials: Sequence[FrozenTrial]) -> bool:
        if sum(map(was_tried, trials)) >= self._options.trials:
            return True
        return len(self._points(trials)) == self._space.size or _only_repeats(trials, GIVE_UP_AFTER)

    def _new_trial(self, trials: Sequence[FrozenTrial]) -> Trial:
        waiting = any(trial.state is TrialState.WAITING for trial in trials)
        if _only_repeats(trials, REPEATS_IN_A_ROW) and not waiting and self._space.size is not None:
            self._study.enqueue_trial(self._untried(trials))
        return self._study.ask()

    def _untried(self, trials: Sequence[FrozenTrial]) -> dict[str, Value]:
        """A setting not tried yet: the first one from a place that depends on the seed and the trial's number."""
        size, points = self._space.size, self._points(trials)
        assert size is not None
        start = derive_seed(self._options.seed, len(trials), "untried")
        settings = (self._space.at((start + offset) % size) for offset in range(size))
        return next(values for values in settings if tuple(self._space.overrides(values)) not in points)

    def _take_over(self, left: FrozenTrial) -> Trial:
        """Go on with the same trial, under its number: what comes after it then is what would have come."""
        study_id = self._storage.get_study_id_from_name(self._study.study_name)
        return Trial(self._study, self._storage.get_trial_id_from_study_id_trial_number(study_id, left.number))

    def _points(self, trials: Sequence[FrozenTrial]) -> set[tuple[str, ...]]:
        return {tuple(trial.user_attrs[OVERRIDES]) for trial in trials if was_tried(trial) and _is_drawn(trial)}

    def _known(self, number: int, overrides: list[str]) -> FrozenTrial | None:
        """The earlier trial of the same point. Points are drawn one at a time, so the first of a number owns it."""
        for trial in self._study.get_trials(deepcopy=False)[:number]:
            if was_tried(trial) and _is_drawn(trial) and trial.user_attrs[OVERRIDES] == overrides:
                return trial
        return None

    def _tell_known(self, trial: Trial, known: FrozenTrial) -> None:
        """Tell what is known of the point. Failed and unfinished ones teach the sampler nothing."""
        trial.set_user_attr(REPEATS, known.number)
        if known.state is TrialState.COMPLETE:
            self._study.tell(trial, known.values)
        elif known.state is TrialState.PRUNED:
            reported = self._study.get_trials(deepcopy=False)[trial.number].intermediate_values
            for step, value in sorted(known.intermediate_values.items()):
                if step not in reported:
                    trial.report(value, step)
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, state=TrialState.FAIL)


def _only_repeats(trials: Sequence[FrozenTrial], count: int) -> bool:
    """Whether the last so many trials were all known points."""
    return len(trials) >= count and all(map(is_repeat, trials[-count:]))


def _is_drawn(trial: FrozenTrial) -> bool:
    return OVERRIDES in trial.user_attrs

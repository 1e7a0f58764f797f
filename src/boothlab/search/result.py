"""What a search came to: its trials, the best of them, as a table and as search/NAME.json."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table
from rich.text import Text

from boothlab.files import write_json
from boothlab.reporting.runs import shown_value
from boothlab.search.study import BY_REPLICATE, ERROR, OVERRIDES, PRUNED_AT, REPEATS, RUNS, STEPS

FORMAT = 1
_STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


@dataclass(frozen=True)
class TrialRecord:
    """One trial. `values` are the objectives, means over the replicates, of a finished one, else None.

    `overrides` are those of the searched keys; `runs` the run folders, one a replicate, as text relative to the folder
    of the JSON file; `steps` the checkpoints the values were read at, or where it was ended; `by_replicate` the values
    of each run; `repeats` the number of the earlier trial of the same point, whose result this one took over.
    """

    number: int
    state: str
    overrides: list[str]
    values: list[float] | None
    by_replicate: list[list[float]]
    steps: list[int]
    runs: list[str]
    repeats: int | None
    error: str | None


@dataclass(frozen=True)
class SearchResult:
    """A search so far. `best` are numbers of trials: one, or all of the Pareto set by falling first objective.

    It is empty while no trial has finished. `path` is the JSON file, `settings` all that the choices depend on.
    """

    name: str
    path: Path
    settings: dict[str, Any]
    objectives: list[str]
    trials: list[TrialRecord]
    best: list[int]

    @property
    def best_trials(self) -> list[TrialRecord]:
        """The best trial, or the Pareto set."""
        return [self.trials[number] for number in self.best]

    def runs_of(self, trial: TrialRecord) -> list[Path]:
        """The run folders of a trial, as paths that can be opened."""
        return [Path(os.path.normpath(self.path.parent / run)) for run in trial.runs]

    def count(self, state: str) -> int:
        """How many settings are in a state: finished, pruned, failed, running. Repeats of a setting do not count."""
        return sum(trial.state == state and trial.repeats is None for trial in self.trials)

    @property
    def line(self) -> str:
        """The counts in one line."""
        repeated = sum(trial.repeats is not None for trial in self.trials)
        counts = [(self.count(state), state) for state in ("finished", "pruned", "failed", "running")]
        counts.append((repeated, "drawn again, not run"))
        return ", ".join(f"{count} {state}" for count, state in counts if count) or "nothing was run"

    def table(self, rows: int = 20) -> Table:
        """The trials from the best down, at most `rows`; the best ones are marked."""
        table = Table(title=Text(f"search {self.name}: {self.line}"), title_justify="left")
        table.add_column("trial", justify="right")
        keys = [override.partition("=")[0] for override in next((t.overrides for t in self.trials if t.overrides), [])]
        for column in [*keys, *self.objectives, "step"]:
            table.add_column(column, justify="right")
        table.add_column("run", overflow="fold")
        for trial in self._ranked()[:rows]:
            table.add_row(*self._cells(trial), style="bold green" if trial.number in self.best else None)
        return table

    def _ranked(self) -> list[TrialRecord]:
        """The best ones first, then by the first objective, then those without values."""
        run = [trial for trial in self.trials if trial.repeats is None and trial.state != "waiting"]
        place = {number: index for index, number in enumerate(self.best)}

        def rank(trial: TrialRecord) -> tuple[int, float, int]:
            value = -trial.values[0] if trial.values else float("inf")
            return place.get(trial.number, len(place)), value, trial.number

        return sorted(run, key=rank)

    def _cells(self, trial: TrialRecord) -> list[Text]:
        settings = [_shown(override.partition("=")[2]) for override in trial.overrides]
        if trial.values:
            values = [f"{value:.3f}" for value in trial.values]
        else:
            values = [trial.state, *[""] * (len(self.objectives) - 1)]
        steps = ", ".join(str(step) for step in dict.fromkeys(trial.steps))
        where = trial.error or ", ".join(run.rpartition("/")[2] for run in trial.runs)
        return [Text(cell) for cell in (str(trial.number), *settings, *values, steps, where)]


def _shown(text: str) -> str:
    try:
        return shown_value(float(text)) if "." in text or "e" in text else text
    except ValueError:
        return text


def result_path(storage: Path) -> Path:
    """The JSON file of a storage file: its sibling."""
    return storage.absolute().with_suffix(".json")


def read_result(study: Study, path: Path, objectives: Sequence[str]) -> SearchResult:
    """The search as its study has it now."""
    frozen = study.get_trials(deepcopy=False)
    trials = [_record(trial) for trial in frozen]
    return SearchResult(
        study.study_name, path, dict(study.user_attrs.get("settings", {})), list(objectives), trials, _best(trials)
    )


def write_result(result: SearchResult) -> Path:
    """Write the JSON file, atomically, without times or hosts: a search run again gives the same bytes."""
    content = asdict(result) | {"format": FORMAT}
    del content["path"]
    write_json(result.path, content)
    return result.path


def _record(trial: FrozenTrial) -> TrialRecord:
    attributes = trial.user_attrs
    finished = trial.state is TrialState.COMPLETE
    return TrialRecord(
        number=trial.number,
        state=_STATES[trial.state],
        overrides=list(attributes.get(OVERRIDES, [])),
        values=list(trial.values) if finished else None,
        by_replicate=list(attributes.get(BY_REPLICATE, [])),
        steps=list(attributes.get(STEPS, [attributes[PRUNED_AT]] if PRUNED_AT in attributes else [])),
        runs=list(attributes.get(RUNS, [])),
        repeats=attributes.get(REPEATS),
        error=attributes.get(ERROR),
    )


def _best(trials: Sequence[TrialRecord]) -> list[int]:
    """The trials that no other beats in all objectives, the earlier of equals; with one objective that is the best."""
    found: list[tuple[list[float], int]] = []
    for trial in trials:
        if trial.values is None or trial.repeats is not None:
            continue
        others = [other.values for other in trials if other.values is not None and other.repeats is None]
        if not any(_dominates(other, trial.values) for other in others):
            found.append((trial.values, trial.number))
    found.sort(key=lambda pair: ([-value for value in pair[0]], pair[1]))
    return [number for index, (values, number) in enumerate(found) if values not in [v for v, _ in found[:index]]]


def _dominates(first: Sequence[float], second: Sequence[float]) -> bool:
    return first != second and all(one >= other for one, other in zip(first, second, strict=True))

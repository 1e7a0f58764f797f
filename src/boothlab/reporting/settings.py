"""What tells the runs of a table apart: the values of the keys in which they differ, as shown and in order."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from boothlab.reporting.runs import RunRecord, settings_of, shown_value, varied_keys
from boothlab.reporting.sweeps import SweepFile

LONGEST = 60
"""Characters of a value in a table; longer ones, such as lists of prompts, are cut and told apart by a hash."""

Order = tuple[Any, ...]


@dataclass(frozen=True)
class Entry:
    """A run in a table: its labels by key, in the order of the table's keys, and what sorts them."""

    run: RunRecord
    labels: dict[str, str]
    order: Order

    def other_labels(self, axis: str) -> tuple[str, ...]:
        """The labels without the axis's: what is held fixed when values of the axis are compared."""
        return tuple(label for key, label in self.labels.items() if key != axis)


def label_of(value: Any) -> str:
    """A config value as a short text; different values of one key have different texts."""
    text = _list_text(value) if isinstance(value, list) else shown_value(value)
    if text and len(text) <= LONGEST:
        return text
    digest = hashlib.sha256(json.dumps(value).encode()).hexdigest()[:6]
    return f"{text[: LONGEST - 12].rstrip()}… #{digest}" if text else "(empty)"


def _list_text(values: list[Any]) -> str:
    items = [shown_value(value) for value in values]
    # With commas inside, as prompts have, it would not be clear where an item ends.
    return json.dumps(values, ensure_ascii=False) if any("," in item for item in items) else ", ".join(items)


def natural_order(value: Any) -> Order:
    """A key that sorts config values: nothing, then off and on, then numbers by size, then texts."""
    if value is None:
        return (0, 0.0, "")
    if isinstance(value, bool):
        return (1, float(value), "")
    if isinstance(value, int | float):
        return (2, float(value), "")
    return (3, 0.0, value if isinstance(value, str) else json.dumps(value))


def entries_of_runs(runs: Sequence[RunRecord], keys: Sequence[str]) -> list[Entry]:
    """The runs with the labels of `keys`, sorted by their values, then by seed."""
    found = []
    for run in runs:
        settings = settings_of(run)
        values = [settings.get(key) for key in keys]
        labels = {key: label_of(value) for key, value in zip(keys, values, strict=True)}
        found.append(Entry(run, labels, (*map(natural_order, values), run.seed, run.name)))
    return sorted(found, key=lambda entry: entry.order)


def entries_of_sweep(runs: Mapping[str, RunRecord], sweep: SweepFile) -> list[Entry]:
    """The finished runs of a sweep (by the names of its jobs), sorted by the order in which the sweep gives the values.

    The keys are those that the sweep varies, in its order, and any other in which the runs of one job setting differ;
    the axis comes last. Keys that have one value throughout are left out, unless it is the axis.
    """
    jobs = {job.run: _typed(job.overrides) for job in sweep.jobs if job.run in runs}
    keys = _sweep_keys(runs, jobs, sweep)
    found = []
    for name, typed in jobs.items():
        settings = settings_of(runs[name])
        labels, order = {}, []
        for key in keys:
            # A key such as `subject` chooses a config group: it has no value of its own but the word that was typed.
            value = settings[key] if key in settings else typed.get(key)
            labels[key] = label_of(value)
            listed = sweep.params.get(key, [])
            place = listed.index(typed[key]) if typed.get(key) in listed else len(listed)
            order.append((place, *natural_order(value)))
        found.append(Entry(runs[name], labels, (*order, runs[name].seed, name)))
    return sorted(found, key=lambda entry: entry.order)


def _typed(overrides: Sequence[str]) -> dict[str, str]:
    """Key → value as typed, of overrides such as `lora.rank=4` and `+key=value`."""
    pairs = (override.partition("=") for override in overrides)
    return {key.lstrip("+~"): value for key, _, value in pairs}


def _sweep_keys(runs: Mapping[str, RunRecord], jobs: Mapping[str, dict[str, str]], sweep: SweepFile) -> list[str]:
    asked = [key for key in sweep.params if key not in ("seed", sweep.axis)]
    known = [key for key in (*asked, sweep.axis) if key]
    cells: dict[tuple[str | None, ...], list[RunRecord]] = {}
    for name, typed in jobs.items():
        cells.setdefault(tuple(typed.get(key) for key in known), []).append(runs[name])
    varied = [key for key in asked if len({typed.get(key) for typed in jobs.values()}) > 1]
    # Keys that follow from the sweep's own (the photos from `subject`) are not repeated; any other difference is shown.
    unexplained = dict.fromkeys(key for cell in cells.values() for key in varied_keys(cell) if key not in known)
    return [*varied, *unexplained, *([sweep.axis] if sweep.axis else [])]

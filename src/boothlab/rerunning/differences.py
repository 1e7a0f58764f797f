"""The first difference between two histories, and what it most likely comes from. Knows numbers, not files."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from boothlab.tracking import metrics
from boothlab.tracking.history import Row

#: rows of one step, merged: a run writes its losses and its scores apart
Steps = dict[int, dict[str, float]]


@dataclass(frozen=True)
class Tolerance:
    """How far a number may be off: `absolute` in the number's own unit, or `relative` to the recorded one."""

    absolute: float = 0.0
    relative: float = 0.0

    def allows(self, before: float, after: float) -> bool:
        """Whether the two count as the same. NaN is the same as NaN, infinities only as themselves."""
        if before == after or (math.isnan(before) and math.isnan(after)):
            return True
        gap = abs(after - before)
        return math.isfinite(gap) and gap <= max(self.absolute, self.relative * abs(before))


EXACT = Tolerance()


@dataclass(frozen=True)
class Tolerances:
    """Which tolerance a metric key gets, by the longest prefix in `by_prefix` that fits; `other` where none does."""

    other: Tolerance = EXACT
    by_prefix: tuple[tuple[str, Tolerance], ...] = ()

    def of(self, key: str) -> Tolerance:
        """The tolerance of a metric key."""
        fitting = [(len(prefix), tolerance) for prefix, tolerance in self.by_prefix if key.startswith(prefix)]
        return max(fitting, key=lambda pair: pair[0])[1] if fitting else self.other


@dataclass(frozen=True)
class Difference:
    """One number that is not the same. None stands for a number that is not there."""

    step: int
    key: str
    before: float | None
    after: float | None

    def __str__(self) -> str:
        if self.before is None or self.after is None:
            where = "not in the rerun" if self.after is None else "only in the rerun"
            value = self.before if self.after is None else self.after
            return f"step {self.step}: {self.key} = {value!r} is {where}"
        text = f"step {self.step}: {self.key} {self.before!r} → {self.after!r}"
        gap = self.after - self.before
        if math.isfinite(gap) and self.before:
            text += f" ({gap / abs(self.before):+.2g} of it)"
        return text


@dataclass(frozen=True)
class HistoryComparison:
    """What came of comparing: `compared` values, of which `identical` to the bit; `first` is None if all pass.

    `equal_steps` counts the steps before the first difference, all of whose values passed. `farthest` is the value
    that is furthest off among those that passed, None when all are identical.
    """

    compared: int
    identical: int
    equal_steps: int
    first: Difference | None
    farthest: Difference | None


def is_timing(key: str) -> bool:
    """Whether a clock wrote the value, and not the run."""
    metric = metrics.metric_for(key)
    return metric is not None and metric.unit == "s"


def by_step(rows: Iterable[Row], skipped: Sequence[str] = ()) -> Steps:
    """Rows merged by step, without timings and keys that start with one of `skipped`; a later value wins."""
    merged: Steps = {}
    for row in rows:
        kept = {
            key: float(value)
            for key, value in row.scalars.items()
            if not is_timing(key) and not key.startswith(tuple(skipped))
        }
        if kept:
            merged.setdefault(row.step, {}).update(kept)
    return dict(sorted(merged.items()))


def compare_histories(before: Steps, after: Steps, tolerances: Tolerances) -> HistoryComparison:
    """Every value of either history against the other's, step by step."""
    compared = identical = equal_steps = 0
    first: Difference | None = None
    farthest: tuple[float, Difference] | None = None
    for step in sorted(before.keys() | after.keys()):
        old, new = before.get(step, {}), after.get(step, {})
        for key in [*old, *(key for key in new if key not in old)]:
            found = Difference(step, key, old.get(key), new.get(key))
            compared += 1
            if _identical(found):
                identical += 1
            elif not _allowed(found, tolerances.of(key)):
                first = first or found
            elif farthest is None or _distance(found) > farthest[0]:
                farthest = (_distance(found), found)
        equal_steps += first is None
    return HistoryComparison(compared, identical, equal_steps, first, farthest[1] if farthest else None)


def _identical(found: Difference) -> bool:
    return _allowed(found, EXACT)


def _allowed(found: Difference, tolerance: Tolerance) -> bool:
    return found.before is not None and found.after is not None and tolerance.allows(found.before, found.after)


def _distance(found: Difference) -> float:
    """Relative to the recorded value; for those that passed, so both are there."""
    assert found.before is not None and found.after is not None
    return abs(found.after - found.before) / max(abs(found.before), 1e-12)


def differing_streams(before: Mapping[str, int], after: Mapping[str, int]) -> list[str]:
    """The streams of chance whose seeds are not the same, or that only one of the two runs has."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def likely_cause(first: Difference, first_trained_step: int | None, streams: Sequence[str]) -> str:
    """Where to look: which streams have other seeds, or else what had been used when the first difference showed."""
    if streams:
        return f"these streams have other seeds: {', '.join(streams)}"
    if first.key.split("/")[0] == "eval" and "_ceiling" in first.key:
        return "nothing was drawn or trained for it: look at the photos and the encoders"
    if first.step == 0:
        return "nothing had been trained: look at the backbone, the sampler and the encoders"
    if first.step == first_trained_step:
        return "the first step logged: look at the photos, captions and class images, and at how the adapter starts"
    return "earlier steps are the same: arithmetic that rounds differently (device, threads, libraries) or code"

"""How scores were measured: which runs may share a table, their floor and ceiling, and the lines that say so."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from boothlab.errors import UserError
from boothlab.reporting.runs import SCORES, RunRecord
from boothlab.reporting.tables import Best, MetricGroup


@dataclass
class Alike:
    """Runs measured alike. `measured` maps a score to how, and to the first run that says so."""

    suffix: str
    runs: list[RunRecord] = field(default_factory=list)
    measured: dict[str, tuple[str, RunRecord]] = field(default_factory=dict)

    def difference(self, run: RunRecord) -> str | None:
        """Why a run cannot be compared with these; None if it can. A score that it lacks is no difference."""
        if run.suffix != self.suffix:
            mine, other = (f"{name or 'the standard'} encoders" for name in (self.suffix, run.suffix))
            return f"{self.runs[0].name} was scored with {mine}, {run.name} with {other}"
        for score, how in _definition(run).items():
            kept, first = self.measured.get(score, (how, run))
            if kept != how:
                label = SCORES[score][0]
                return f"{label} of {first.name} was measured with {kept}, of {run.name} with {how}"
        return None

    def add(self, run: RunRecord) -> None:
        """Take a run in."""
        self.runs.append(run)
        for score, how in _definition(run).items():
            self.measured.setdefault(score, (how, run))


def groups_of(runs: Sequence[RunRecord], split: bool) -> list[Alike]:
    """The runs by how they were measured, in the order of their first ones.

    Raises UserError naming two runs and their difference if there would be several groups and `split` is off.
    """
    groups: list[Alike] = []
    for run in runs:
        fitting = next((group for group in groups if group.difference(run) is None), None)
        if fitting is None:
            if groups and not split:
                reason = groups[0].difference(run)
                raise UserError(f"{reason}; such scores share no table: give --split for a table each")
            fitting = Alike(run.suffix)
            groups.append(fitting)
        fitting.add(run)
    return groups


def metric_group(group: Alike, name: str, best: Sequence[Best]) -> MetricGroup:
    """The group as a report shows it."""
    floors = [(score, value) for run in group.runs if run.floor for score, value in run.floor.scores.items()]
    ceilings = [(score, value) for run in group.runs for score, value in run.ceilings.items()]
    floor, ceiling = _by_score(floors), _by_score(ceilings)
    return MetricGroup(
        name=name,
        runs=tuple(run.name for run in group.runs),
        floor={score: math.fsum(values) / len(values) for score, values in floor.items()},
        floor_spread={score: (min(values), max(values)) for score, values in floor.items()},
        ceiling={score: math.fsum(values) / len(values) for score, values in ceiling.items()},
        ceiling_spread={score: (min(values), max(values)) for score, values in ceiling.items()},
        best=tuple(best),
        definitions=tuple(_lines(group)),
        encoders=group.suffix,
    )


def _definition(run: RunRecord) -> dict[str, str]:
    return {score: how for score, how in run.definition.items() if score in SCORES}


def _by_score(pairs: Iterable[tuple[str, float]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for score, value in pairs:
        if math.isfinite(value):
            found.setdefault(score, []).append(value)
    return found


def _lines(group: Alike) -> list[str]:
    lines = [f"{SCORES[score][0]}: {group.measured[score][0]}" for score in SCORES if score in group.measured]
    if "clip_i" in group.measured:
        lines.insert(0, "measured with: encoder · preprocessing · token policy · version of the definition")
        lines.append("balanced: the mean of CLIP-I, DINO and CLIP-T")
    if counts := _counts(group.runs):
        lines.append(f"each score is over {counts}")
    unknown = [run.name for run in group.runs if not run.definition]
    if unknown:
        lines.append(f"how it was measured is not known of {len(unknown)} runs without samples/: {', '.join(unknown)}")
    return lines


def _counts(runs: Sequence[RunRecord]) -> str:
    """Images, prompts and references behind a score, as text; several, if runs differ in them."""
    found = dict.fromkeys(
        f"{counts.get('images')} images of {counts.get('prompts')} prompts against {counts.get('references')} photos"
        for run in runs
        if run.last
        for row in run.last.details.get("metrics", [])
        if row["name"] == "clip_i" and (counts := row.get("counts"))
    )
    return " or ".join(found)

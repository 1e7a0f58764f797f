"""Which editing runs may share a table: measured alike, of the same images and edits, over the same seeds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from boothlab.errors import UserError
from boothlab.evaluation.edit_metrics import EDIT_SCORES, ENCODER_SCORES
from boothlab.reporting.edit_runs import DEFINED_BY, EditRun, Key, Pair

MOST_NAMES = 4


@dataclass
class EditAlike:
    """Editing runs that may share tables. `measured` maps a score to how, and to the first run that says so.

    `seeds` are the pictures (image, edit and seed) that every run has: what a table compares.
    """

    suffix: str
    contents: str
    runs: list[EditRun] = field(default_factory=list)
    measured: dict[str, tuple[str, str]] = field(default_factory=dict)
    seeds: set[Key] = field(default_factory=set)

    def difference(self, run: EditRun) -> str | None:
        """Why the scores of a run cannot be compared with these, whatever they are of; None if they can."""
        if run.suffix != self.suffix:
            mine, other = (f"{name or 'the standard'} encoders" for name in (self.suffix, run.suffix))
            return f"{self.runs[0].name} was scored with {mine}, {run.name} with {other}"
        for score, how in run.measured.items():
            kept, first = self.measured.get(score, (how, run.name))
            if kept != how:
                return f"{EDIT_SCORES[score].label} of {first} was measured with {kept}, of {run.name} with {how}"
        return None

    def add(self, run: EditRun) -> None:
        """Take a run in."""
        self.seeds = self.seeds & run.by_key.keys() if self.runs else set(run.by_key)
        self.runs.append(run)
        for score, how in run.measured.items():
            self.measured.setdefault(score, (how, run.name))

    @property
    def images(self) -> list[str]:
        """The names of the images."""
        return sorted({image for image, _, _ in self.seeds})

    @property
    def edits(self) -> list[str]:
        """The names of the edits, in the order of the first run."""
        return list(dict.fromkeys(pair.edit for pair in self.runs[0].pairs))

    @property
    def title(self) -> str:
        """What is edited, in a few words: 8 images, 7 edits (at_night, lamp_on, …)."""
        listed = ", ".join(self.edits[:MOST_NAMES]) + (", …" if len(self.edits) > MOST_NAMES else "")
        images = f"{len(self.images)} image{'' if len(self.images) == 1 else 's'}"
        return f"{images}, {len(self.edits)} edit{'' if len(self.edits) == 1 else 's'} ({listed})"

    def shared(self, run: EditRun) -> list[Pair]:
        """The pictures of a run that all runs have."""
        return [pair for pair in run.pairs if pair.key in self.seeds]

    def left_over(self) -> int:
        """How many pictures are in no table, since not every run has them."""
        return sum(pair.key not in self.seeds for run in self.runs for pair in run.pairs)


def edit_groups(runs: Sequence[EditRun], split: bool) -> list[EditAlike]:
    """The runs by how they were measured and what they edit, in the order of their first ones.

    Other images or edits make a group of their own: nobody would take them for the same question. Raises UserError if
    scores were measured in several ways and `split` is off, naming two runs and their difference. Runs without a
    picture in common do not share a group either.
    """
    groups: list[EditAlike] = []
    for run in runs:
        alike = [group for group in groups if group.difference(run) is None]
        if groups and not alike and not split:
            reason = groups[0].difference(run)
            raise UserError(f"{reason}; such scores share no table: give --split for a table each")
        fitting = next((one for one in alike if one.contents == run.contents and one.seeds & run.by_key.keys()), None)
        if fitting is None:
            fitting = EditAlike(run.suffix, run.contents)
            groups.append(fitting)
        fitting.add(run)
    return groups


def group_names(groups: Sequence[EditAlike]) -> list[str]:
    """A name for each group; empty if there is one only."""
    if len(groups) == 1:
        return [""]
    suffixes = {group.suffix for group in groups}
    return [
        f"{index}: {group.title}" + (f", {group.suffix or 'standard'} encoders" if len(suffixes) > 1 else "")
        for index, group in enumerate(groups, start=1)
    ]


def definition_lines(group: EditAlike) -> list[str]:
    """How the group's scores were measured and what they are over, in a line each."""
    lines = [f"measured with: {' · '.join(part.replace('_', ' ') for part in DEFINED_BY)}"]
    alike: dict[str, list[str]] = {}
    for score, (how, _) in _in_order(group.measured.items()):
        alike.setdefault(how, []).append(EDIT_SCORES[score].label)
    lines += [f"{', '.join(labels)}: {how}" for how, labels in alike.items()]
    seeds = sorted({seed for _, _, seed in group.seeds})
    counted = f"{len(group.seeds)} pictures of {group.title}, {'seed' if len(seeds) == 1 else 'seeds'}"
    lines.append(f"each score is over {counted} {', '.join(map(str, seeds[:8]))}{', …' if len(seeds) > 8 else ''}")
    lines.append("means: seeds within an edit of an image, edits within the image, then images; absent is never 0")
    if group.suffix:
        made = ", ".join(EDIT_SCORES[score].label for score in group.measured if score in ENCODER_SCORES)
        lines.append(f"with the {group.suffix} encoders, and so not the published scores of that name: {made or 'all'}")
    if unknown := [run.name for run in group.runs if not run.measured]:
        lines.append(f"how it was measured is not known of {', '.join(unknown)}")
    return lines


def _in_order(measured: Iterable[tuple[str, tuple[str, str]]]) -> list[tuple[str, tuple[str, str]]]:
    place = {score: index for index, score in enumerate(EDIT_SCORES)}
    return sorted(measured, key=lambda one: place[one[0]])

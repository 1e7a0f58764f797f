"""The tables of a study: a row a setting, a column a score, means over seeds with intervals, tests and verdicts."""

from dataclasses import dataclass

BEST, LAST = "best", "last"
READINGS = {
    BEST: "the best over each run's checkpoints after step 0, every score on its own",
    LAST: "the last checkpoint of each run",
}
"""Which checkpoint the values of a table are taken from, in words."""


@dataclass(frozen=True)
class Cell:
    """A score over the seeds of a setting. `half_width` is of the 95% t interval, None for one seed."""

    mean: float
    half_width: float | None
    values: tuple[float, ...]
    best: bool = False


@dataclass(frozen=True)
class TableRow:
    """One setting (shown values by config key), or an average row (`average` says over what)."""

    labels: dict[str, str]
    cells: dict[str, Cell | None]
    runs: tuple[str, ...]
    average: str | None = None


@dataclass(frozen=True)
class Comparison:
    """One value of the axis against the first one, paired over all other settings and seeds; None where untested."""

    score: str
    before: str
    after: str
    difference: float
    pairs: int
    p_value: float | None
    holm_p: float | None
    smallest_p: float | None


@dataclass(frozen=True)
class Verdict:
    """What a score was expected to do along the axis (`rises`, `falls`) and whether it did."""

    score: str
    expected: str
    means: tuple[float, ...]
    outcome: str


@dataclass(frozen=True)
class StudyTable:
    """One table. `reading` is `best` (best over checkpoints, each score on its own) or `last` (the last checkpoint)."""

    name: str
    title: str
    about: str
    reading: str
    keys: tuple[str, ...]
    axis: str | None
    scores: tuple[str, ...]
    rows: tuple[TableRow, ...]
    comparisons: tuple[Comparison, ...]
    verdicts: tuple[Verdict, ...]
    published: tuple[str, ...]
    missing: tuple[str, ...]
    group: str = ""
    """The MetricGroup whose runs it holds; empty when all runs were measured alike."""
    encoders: str = ""
    """The name of the encoders, such as `dollhouse`, that must stand beside the scores; empty for the standard ones."""

    @property
    def reading_in_words(self) -> str:
        """What a value of this table is, for a caption."""
        return READINGS[self.reading]


@dataclass(frozen=True)
class Best:
    """Where a score is best: the single best checkpoint of a run, and the setting with the best mean over its seeds.

    `labels` are the shown values of the varied keys of that run, `setting` those of that setting. `mean` is over the
    seeds, of each run's own best checkpoint.
    """

    score: str
    value: float
    run: str
    step: int
    labels: dict[str, str]
    setting: dict[str, str]
    mean: Cell


@dataclass(frozen=True)
class MetricGroup:
    """Runs whose scores were measured alike, and so may share a table. `name` is empty when there is one group only.

    `floor` (step 0) and `ceiling` (real photos) are means over the runs, their spreads the lowest and highest of them;
    `definitions` says in a line each how the scores were measured and how many images they are over. `encoders` is the
    name that must stand beside the scores; empty for the standard encoders.
    """

    name: str
    runs: tuple[str, ...]
    floor: dict[str, float]
    floor_spread: dict[str, tuple[float, float]]
    ceiling: dict[str, float]
    ceiling_spread: dict[str, tuple[float, float]]
    best: tuple[Best, ...]
    definitions: tuple[str, ...]
    encoders: str = ""

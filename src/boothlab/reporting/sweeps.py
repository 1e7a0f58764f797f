"""`sweeps/<name>.json` beside the runs of an experiment: which runs a sweep means, its axis, and what to expect."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from boothlab.errors import UserError
from boothlab.files import read_json, shown, write_json

FORMAT = 1
FOLDER = "sweeps"
RISES, FALLS = "rises", "falls"


@dataclass(frozen=True)
class SweepJob:
    """One job: its overrides and the name of its run folder within the experiment."""

    overrides: list[str]
    run: str


@dataclass(frozen=True)
class SweepFile:
    """What a sweep was asked to do.

    `axis` is the config key that is compared; `params` are the values of every varied key, as typed and in order;
    `expect` says what each score does along the axis: `rises` or `falls`. `published` quotes the figures of the study
    that the sweep repeats, as lines of text.
    """

    name: str
    title: str
    about: str
    axis: str | None
    expect: dict[str, str]
    published: list[str]
    params: dict[str, list[str]]
    command: list[str]
    jobs: list[SweepJob]
    format: int = field(default=FORMAT)

    def runs_in(self, experiment: Path) -> list[Path]:
        """The run folders, in the order of the jobs."""
        return [experiment / job.run for job in self.jobs]


def write_sweep(experiment: Path, sweep: SweepFile) -> Path:
    """Write `<experiment>/sweeps/<name>.json`; returns its path."""
    path = experiment / FOLDER / f"{sweep.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(sweep))
    return path


def read_sweep(path: Path) -> SweepFile:
    """Raises UserError if the file is not a sweep's."""
    found: Any = read_json(path)
    try:
        if found["format"] > FORMAT:
            raise UserError(f"{shown(path)}: was written by a newer boothlab; update boothlab")
        jobs = [SweepJob(_texts(job["overrides"]), _name(job["run"])) for job in found["jobs"]]
        sweep = SweepFile(**{**found, "jobs": jobs})
        _check(sweep)
        return sweep
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{shown(path)}: is not the file of a sweep ({shown(str(error))})") from error


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError("something is no list of texts")
    return value


def _name(value: Any) -> str:
    """A run folder beside the sweep's own: a name, not a path to somewhere else."""
    if not isinstance(value, str) or value != Path(value).name or "\0" in value:
        raise TypeError("a job's run is no name of a folder")
    return value


def _check(sweep: SweepFile) -> None:
    """Raises TypeError for a field that is not of its type."""
    texts = (sweep.name, sweep.title, sweep.about, sweep.axis or "", *sweep.expect, *sweep.expect.values())
    if not all(isinstance(text, str) for text in texts) or isinstance(sweep.format, bool):
        raise TypeError("something is no text")
    for listed in (sweep.published, sweep.command, *sweep.params.values()):
        _texts(listed)


def find_sweeps(folders: Sequence[Path]) -> list[tuple[Path, SweepFile]]:
    """The sweeps of the given experiment folders, as (experiment folder, sweep), sorted by name."""
    paths = {path.resolve() for folder in folders for path in folder.glob(f"{FOLDER}/*.json")}
    return [(path.parent.parent, read_sweep(path)) for path in sorted(paths)]

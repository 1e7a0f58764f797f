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
        jobs = [SweepJob(list(job["overrides"]), str(job["run"])) for job in found["jobs"]]
        return SweepFile(**{**found, "jobs": jobs})
    except (KeyError, TypeError) as error:
        raise UserError(f"{shown(path)}: is not the file of a sweep ({error})") from error


def find_sweeps(folders: Sequence[Path]) -> list[tuple[Path, SweepFile]]:
    """The sweeps of the given experiment folders, as (experiment folder, sweep), sorted by name."""
    paths = {path.resolve() for folder in folders for path in folder.glob(f"{FOLDER}/*.json")}
    return [(path.parent.parent, read_sweep(path)) for path in sorted(paths)]

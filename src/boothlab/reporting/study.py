"""A study: the finished runs of some folders, their tables, the best settings, and what a reader must be warned of."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from boothlab.errors import UserError
from boothlab.files import shown
from boothlab.reporting.axis import comparisons_of, verdicts_of
from boothlab.reporting.definitions import Alike, groups_of, metric_group
from boothlab.reporting.rows import average_rows, grid_of, rows_of
from boothlab.reporting.runs import SCORES, RunRecord, find_trainings, higher_is_better, read_run, varied_keys
from boothlab.reporting.settings import Entry, entries_of_runs, entries_of_sweep
from boothlab.reporting.sweeps import SweepFile, find_sweeps
from boothlab.reporting.tables import BEST, READINGS, Best, MetricGroup, StudyTable

SHAPING = ("boothlab", "diffusers", "peft", "torch", "transformers")
"""Packages whose version can change a score."""
GENERAL = (("runs", "All runs", False), ("scorings", "All scorings", True))
"""The tables without a sweep: name, title, and whether they are of scorings. These have other keys than trainings."""


@dataclass
class Study:
    """What a report is about.

    `runs` are finished and scored, ordered by setting and seed; `left_out` names the others, each with the reason, and
    `unfinished` holds those of them that could be read. `varied` are the config keys in which the runs differ.
    `floor`, `ceiling`, `best` and `definitions` are those of the only group; empty when runs were measured in several
    ways, each of which is one of `groups`. `versions` maps a package to its version, or versions. `human` is what
    people voted, if a report has it.
    """

    title: str
    runs: list[RunRecord]
    left_out: list[tuple[str, str]]
    tables: list[StudyTable]
    varied: list[str]
    floor: dict[str, float]
    ceiling: dict[str, float]
    best: list[Best]
    warnings: list[str]
    definitions: list[str]
    versions: dict[str, str]
    groups: list[MetricGroup]
    unfinished: list[RunRecord] = field(default_factory=list)
    human: object | None = None

    def labels(self, run: RunRecord) -> dict[str, str]:
        """The shown values of the varied keys of a run."""
        return entries_of_runs([run], self.varied)[0].labels


@dataclass
class Found:
    """The run folders of a study. `by_path` has the finished ones, and for a repetition the run that it repeats."""

    finished: list[RunRecord] = field(default_factory=list)
    unfinished: list[RunRecord] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    by_path: dict[Path, RunRecord] = field(default_factory=dict)


def build_study(folders: Sequence[Path], *, title: str | None = None, split: bool = False) -> Study:
    """The study of the runs among and below `folders`, with a pair of tables for each sweep that names some of them.

    Raises UserError if no run is finished and scored, or if runs were measured differently and `split` is off.
    """
    paths = find_trainings(folders)
    found = _load(paths)
    if not found.finished:
        name, why = found.left_out[0]
        where = ", ".join(shown(folder) for folder in folders)
        raise UserError(f"{where}: none of {len(paths)} runs is finished and scored ({name}: {why}); finish one first")
    varied = varied_keys(found.finished)
    runs = [entry.run for entry in entries_of_runs(found.finished, varied)]
    alike = groups_of(runs, split)
    names = [f"{index}: {group.suffix or 'standard'} encoders" for index, group in enumerate(alike, start=1)]
    sweeps = find_sweeps(_experiments(folders, paths))
    tables: list[StudyTable] = []
    groups: list[MetricGroup] = []
    for group, name in zip(alike, names, strict=True):
        name = name if len(alike) > 1 else ""
        tables += _tables(group, sweeps, found, name)
        groups.append(metric_group(group, name, best_of(group.runs, varied)))
    only = groups[0] if len(groups) == 1 else MetricGroup("", (), {}, {}, {}, {}, (), ())
    return Study(
        title=title or ", ".join(folder.resolve().name for folder in folders),
        runs=runs,
        left_out=found.left_out,
        tables=tables,
        varied=varied,
        floor=only.floor,
        ceiling=only.ceiling,
        best=list(only.best),
        warnings=_warnings(runs, sweeps, tables),
        definitions=list(only.definitions),
        versions=_versions(runs),
        groups=groups,
        unfinished=found.unfinished,
    )


def _load(paths: Sequence[Path]) -> Found:
    found = Found()
    read: list[tuple[Path, RunRecord, str]] = []
    for path in paths:
        try:
            run = read_run(path)
            measured = str(sorted(run.definition.items()))  # read now, so that a broken file costs its own run only
        except UserError as error:
            found.left_out.append((path.name, str(error)))
            continue
        if why := _unusable(run):
            found.left_out.append((run.name, why))
            found.unfinished.append(run)
            continue
        read.append((path, run, measured))
    first: dict[tuple[str, int], RunRecord] = {}
    for path, run, measured in sorted(read, key=lambda one: one[1].is_rerun):  # the run itself before its reruns
        twin = first.setdefault((run.setting + run.suffix + measured, run.seed), run)
        found.by_path[path] = twin
        if twin is run:
            found.finished.append(run)
        else:
            where = f"{twin.folder.parent.name}/{twin.name}"
            why = f"is a rerun of {where}" if run.is_rerun else f"has the setting and the seed of {where}"
            found.left_out.append((run.name, f"{why}, and a seed counts once"))
    place = {path: index for index, path in enumerate(paths)}
    found.finished.sort(key=lambda run: place[run.folder])
    return found


def _unusable(run: RunRecord) -> str | None:
    if run.status == "finished":
        return None if run.checkpoints else "has no scores after step 0; was evaluation.enabled off?"
    if run.status == "running":
        return "is still running, or was killed"
    return f"{run.status}: {run.error}" if run.error else run.status


def _experiments(folders: Sequence[Path], paths: Sequence[Path]) -> list[Path]:
    """Where sweep files may lie: the given folders, and those of the runs found below them.

    The folder around a run that was named itself is not one: its sweep is about runs that nobody asked for.
    """
    given = [folder.resolve() for folder in folders]
    below = [path.parent for path in paths if path not in given]
    return list(dict.fromkeys([*given, *below]))


def _tables(group: Alike, sweeps: Sequence[tuple[Path, SweepFile]], found: Found, group_name: str) -> list[StudyTable]:
    """The tables of the sweeps, and one over all trainings (or scorings) if some of these belong to no sweep."""
    tables: list[StudyTable] = []
    members = {run.folder for run in group.runs}
    covered: set[Path] = set()
    for experiment, sweep in sweeps:
        finished = {job.run: run for job in sweep.jobs if (run := found.by_path.get((experiment / job.run).resolve()))}
        mine = {name: run for name, run in finished.items() if run.folder in members}
        if mine:
            covered |= {run.folder for run in mine.values()}
            missing = [job.run for job in sweep.jobs if job.run not in finished]
            tables += _pair(entries_of_sweep(mine, sweep), sweep, missing, (group_name, group.suffix))
    for name, title, scorings in GENERAL:
        runs = [run for run in group.runs if run.is_scoring is scorings]
        if {run.folder for run in runs} - covered:
            about = "Every finished one, whether a sweep asked for it or not." if covered else ""
            general = SweepFile(name, title, about, None, {}, [], {}, [], [])
            tables += _pair(entries_of_runs(runs, varied_keys(runs)), general, [], (group_name, group.suffix))
    return tables


def _pair(
    entries: Sequence[Entry], sweep: SweepFile, missing: Sequence[str], group: tuple[str, str]
) -> list[StudyTable]:
    """The two readings of one table. `group` is the name of its MetricGroup and of the encoders."""
    keys = tuple(entries[0].labels)
    measured = {score for entry in entries for point in entry.run.checkpoints for score in point.scores}
    scores = tuple(score for score in SCORES if score in measured)
    grid = grid_of(entries, sweep.axis) if sweep.axis else None
    others = [key for key in keys if key != sweep.axis]
    tables = []
    for reading in READINGS:
        rows = rows_of(entries, scores, reading)
        averages = average_rows(grid, others, scores, reading) if grid else []
        tables.append(
            StudyTable(
                name=sweep.name,
                title=sweep.title,
                about=sweep.about,
                reading=reading,
                keys=keys,
                axis=sweep.axis,
                scores=scores,
                rows=(*rows, *averages),
                comparisons=tuple(comparisons_of(grid, scores, reading)) if grid else (),
                verdicts=tuple(verdicts_of(grid, sweep.expect, scores, reading)) if grid else (),
                published=tuple(sweep.published),
                missing=tuple(missing),
                group=group[0],
                encoders=group[1],
            )
        )
    return tables


def best_of(runs: Sequence[RunRecord], varied: Sequence[str]) -> list[Best]:
    """The best checkpoint and the best setting for every score that any of the runs has."""
    entries = entries_of_runs(runs, varied)
    rows = rows_of(entries, list(SCORES), BEST)
    found = []
    for score in SCORES:
        sign = 1 if higher_is_better(score) else -1
        points = [(entry, point) for entry in entries if (point := entry.run.best(score))]
        settings = [(row, cell) for row in rows if (cell := row.cells[score]) and math.isfinite(cell.mean)]
        if points and settings:
            entry, point = max(points, key=lambda pair: sign * pair[1].scores[score])
            row, cell = max(settings, key=lambda pair: sign * pair[1].mean)
            run = entry.run.name
            found.append(Best(score, point.scores[score], run, point.step, entry.labels, row.labels, cell))
    return found


def _warnings(
    runs: Sequence[RunRecord], sweeps: Sequence[tuple[Path, SweepFile]], tables: Sequence[StudyTable]
) -> list[str]:
    """What a reader must know before believing a table, one line each."""
    lines = []
    for run in runs:
        if run.copying:
            ceiling = run.ceilings["dino"]
            what = f"DINO is above {ceiling:.4f}, the real photos' own likeness, at {_steps(run.copying)}"
            lines.append(f"{run.name}: {what}: the model may be copying its photos")
        if flat := [point.step for point in run.checkpoints if point.constant_images]:
            most = max(point.constant_images for point in run.checkpoints)
            lines.append(f"{run.name}: up to {most} images are of one flat colour at {_steps(flat)}")
        if lost := [point.step for point in run.checkpoints if not all(map(math.isfinite, point.scores.values()))]:
            lines.append(f"{run.name}: scores are NaN or infinite at {_steps(lost)}")
    named = {table.name for table in tables}
    for _, sweep in sweeps:
        if sweep.name not in named:
            lines.append(f"sweep {sweep.name}: none of its {len(sweep.jobs)} runs is finished, so it has no table")
    if len(runs) > 1 and all(len(row.runs) == 1 for table in tables for row in table.rows if not row.average):
        lines.append("every setting has one seed: no intervals and no tests, and differences may be chance")
    for package, version in _versions(runs).items():
        if package in SHAPING and " or " in version:
            lines.append(f"the runs were made with {package} {version}: small differences may come from that")
    return lines


def _steps(steps: Sequence[int]) -> str:
    return f"{'step' if len(steps) == 1 else 'steps'} {', '.join(map(str, steps))}"


def _versions(runs: Sequence[RunRecord]) -> dict[str, str]:
    """Package → its version, or the several of them joined by `or`."""
    found: dict[str, set[str]] = {}
    for run in runs:
        for package, version in (run.manifest.get("versions") or {}).items():
            found.setdefault(package, set()).add(str(version))
    return {package: " or ".join(sorted(found[package])) for package in sorted(found)}

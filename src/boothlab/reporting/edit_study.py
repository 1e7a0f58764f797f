"""The editing runs of some folders: groups that may be compared, their tables, rankings, agreements and choices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from boothlab.errors import UserError
from boothlab.files import shown
from boothlab.reporting.edit_agreement import Agreement, Ranking, agreements_of, ranking_of
from boothlab.reporting.edit_cells import EditTableRow, mark_best, row_of
from boothlab.reporting.edit_choice import MethodChoice, choice_of
from boothlab.reporting.edit_groups import EditAlike, definition_lines, edit_groups, group_names
from boothlab.reporting.edit_runs import COPY, REGENERATE, EditRun, Pair, read_edit_run
from boothlab.reporting.edit_settings import EditSetting, settings_of_group
from boothlab.reporting.runs import find_runs, is_editing, varied_keys
from boothlab.reporting.settings import Entry, entries_of_runs, entries_of_sweep
from boothlab.reporting.sweeps import SweepFile, find_sweeps
from boothlab.reporting.votes import HumanStudy

ALL = SweepFile(
    "runs", "All editing runs", "Every finished one of the same images and edits.", None, {}, [], {}, [], []
)
SHAPING = ("boothlab", "diffusers", "torch", "transformers")


@dataclass(frozen=True)
class EditTable:
    """The settings of a sweep on the same images, edits and seeds. `scores` are those that any row has, in order.

    `missing` names the jobs of the sweep that are not finished.
    """

    name: str
    title: str
    about: str
    keys: tuple[str, ...]
    axis: str | None
    rows: tuple[EditTableRow, ...]
    ranking: Ranking | None
    missing: tuple[str, ...]


@dataclass(frozen=True)
class EditGroup:
    """Runs that may be compared. `name` is empty if there is one group only; `title` says what is edited.

    `rows` are those of the settings, in the same order; `copied` is that of the unedited sources, if they were scored.
    """

    name: str
    title: str
    encoders: str
    alike: EditAlike
    settings: tuple[EditSetting, ...]
    rows: tuple[EditTableRow, ...]
    copied: EditTableRow | None
    tables: tuple[EditTable, ...]
    agreements: tuple[Agreement, ...]
    choices: tuple[MethodChoice, ...]
    definitions: tuple[str, ...]


@dataclass
class EditStudy:
    """What a report of editing runs is about. `left_out` names runs that are not in it, each with the reason.

    `human` is what people voted in a blind comparison, for whoever gives it one.
    """

    title: str
    runs: list[EditRun]
    groups: list[EditGroup]
    varied: list[str]
    left_out: list[tuple[str, str]]
    warnings: list[str]
    versions: dict[str, str]
    human: HumanStudy | None = None


@dataclass
class _Found:
    runs: list[EditRun] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    by_path: dict[Path, EditRun] = field(default_factory=dict)


def build_edit_study(folders: Sequence[Path], *, title: str | None = None, split: bool = False) -> EditStudy:
    """The study of the editing runs among and below `folders`.

    Raises UserError if none is finished and scored, or if scores were measured differently and `split` is off.
    """
    paths = [path for path in find_runs(folders) if is_editing(path)]
    found = _load(paths)
    if not found.runs:
        where = ", ".join(shown(folder) for folder in folders)
        name, why = found.left_out[0] if found.left_out else ("", "there is none")
        raise UserError(f"{where}: none of {len(paths)} editing runs is finished and scored ({name}: {why})")
    alike = edit_groups(found.runs, split)
    given = [folder.resolve() for folder in folders]
    experiments = list(dict.fromkeys([*given, *(path.parent for path in paths if path not in given)]))
    sweeps = find_sweeps(experiments)
    groups = [_group(one, name, sweeps, found) for one, name in zip(alike, group_names(alike), strict=True)]
    return EditStudy(
        title=title or ", ".join(folder.resolve().name for folder in folders),
        runs=[run for group in groups for run in group.alike.runs],
        groups=groups,
        varied=varied_keys([run.record for run in found.runs]),
        left_out=found.left_out,
        warnings=_warnings(groups),
        versions=_versions(found.runs),
    )


def _load(paths: Sequence[Path]) -> _Found:
    found = _Found()
    first: dict[tuple[str, str, int], EditRun] = {}
    for path in paths:
        try:
            run = read_edit_run(path)
            contents = run.contents + run.suffix + repr(run.measured)
        except UserError as error:
            found.left_out.append((path.name, str(error)))
            continue
        if why := _unusable(run):
            found.left_out.append((run.name, why))
            continue
        twin = first.setdefault((run.record.setting, contents, run.record.seed), run)
        found.by_path[path] = twin
        if twin is run:
            found.runs.append(run)
        else:
            where = f"{twin.folder.parent.name}/{twin.name}"
            what = "is a rerun of" if run.record.is_rerun else "has the setting and the seed of"
            found.left_out.append((run.name, f"{what} {where}, and pictures count once"))
    return found


def _unusable(run: EditRun) -> str | None:
    if run.record.status == "finished":
        return None if run.pairs else "has no scored pictures"
    if run.record.status == "running":
        return "is still running, or was killed"
    return f"{run.record.status}: {run.record.error}" if run.record.error else run.record.status


def _group(alike: EditAlike, name: str, sweeps: Sequence[tuple[Path, SweepFile]], found: _Found) -> EditGroup:
    shared = {run.folder: alike.shared(run) for run in alike.runs}
    settings = settings_of_group(alike.runs)
    ends = (_end(alike, shared, COPY), _end(alike, shared, REGENERATE))
    tables = _tables(alike, shared, sweeps, found, ends)
    pictures = {setting.label: [pair for run in setting.runs for pair in shared[run.folder]] for setting in settings}
    rows = [row_of({}, pictures[one.label], [run.name for run in one.runs]) for one in settings]
    drawn = {setting.label: pictures[setting.label] for setting in settings if setting.method != COPY}
    means = [row for row, setting in zip(rows, settings, strict=True) if setting.method != COPY]
    return EditGroup(
        name=name,
        title=alike.title,
        encoders=alike.suffix,
        alike=alike,
        settings=tuple(settings),
        rows=tuple(rows),
        copied=ends[0][0] if ends[0] else None,
        tables=tuple(tables),
        agreements=tuple(agreements_of(drawn, means)),
        choices=tuple(_choices(settings, pictures)),
        definitions=tuple(definition_lines(alike)),
    )


def _choices(settings: Sequence[EditSetting], pictures: Mapping[str, Sequence[Pair]]) -> list[MethodChoice]:
    methods: dict[str, dict[str, Sequence[Pair]]] = {}
    for setting in settings:
        if setting.method not in (COPY, REGENERATE):
            methods.setdefault(setting.method, {})[setting.short] = pictures[setting.label]
    found = (choice_of(method, by_setting) for method, by_setting in methods.items())
    return [choice for choice in found if choice]


Shared = Mapping[Path, Sequence[Pair]]
"""The pictures of a run, by its folder, that all runs of its group have."""
Ends = tuple[list[EditTableRow], list[EditTableRow]]
"""The rows of the two ends, each of one or none."""


def _tables(
    alike: EditAlike, shared: Shared, sweeps: Sequence[tuple[Path, SweepFile]], found: _Found, ends: Ends
) -> list[EditTable]:
    """The tables of the sweeps, and one over all runs if some of these belong to no sweep."""
    tables: list[EditTable] = []
    members = {run.folder: run for run in alike.runs}
    covered: set[Path] = set()
    for experiment, sweep in sweeps:
        finished = {job.run: run for job in sweep.jobs if (run := found.by_path.get((experiment / job.run).resolve()))}
        mine = {name: run for name, run in finished.items() if run.folder in members}
        if mine:
            covered |= {run.folder for run in mine.values()}
            missing = [job.run for job in sweep.jobs if job.run not in finished]
            entries = entries_of_sweep({name: run.record for name, run in mine.items()}, sweep)
            tables.append(_table(entries, sweep, missing, alike, shared, ends))
    if members.keys() - covered:
        records = [run.record for run in alike.runs]
        tables.append(_table(entries_of_runs(records, varied_keys(records)), ALL, [], alike, shared, ends))
    return tables


def _table(
    entries: Sequence[Entry], sweep: SweepFile, missing: Sequence[str], alike: EditAlike, shared: Shared, ends: Ends
) -> EditTable:
    """A row a setting between the two ends: the sources as they are, and pictures from the caption alone."""
    by_folder = {run.folder: run for run in alike.runs}
    gathered: dict[str, list[Entry]] = {}
    for entry in entries:
        gathered.setdefault(entry.run.setting, []).append(entry)
    rows = []
    for group in gathered.values():
        runs = [by_folder[entry.run.folder] for entry in group]
        if runs[0].method not in (COPY, REGENERATE):
            pairs = [pair for run in runs for pair in shared[run.folder]]
            rows.append(row_of(group[0].labels, pairs, [run.name for run in runs]))
    marked = mark_best([*ends[0], *rows, *ends[1]])
    keys = tuple(entries[0].labels)
    return EditTable(
        sweep.name, sweep.title, sweep.about, keys, sweep.axis, tuple(marked), ranking_of(marked), tuple(missing)
    )


def _end(alike: EditAlike, shared: Shared, end: str) -> list[EditTableRow]:
    """The row of an end; `copy` is scored in every run, `regenerate` needs a run of its own."""
    runs = [run for run in alike.runs if run.method == end]
    if runs:
        return [row_of({}, [pair for run in runs for pair in shared[run.folder]], [run.name for run in runs], end)]
    source = next((run for run in alike.runs if run.copies and not run.own_sources), None)
    if end != COPY or source is None:
        return []
    seeds = alike.seeds
    return [row_of({}, [pair for pair in source.copies if pair.key in seeds], [], end)]


def _warnings(groups: Sequence[EditGroup]) -> list[str]:
    """What a reader must know before believing a table, one line each."""
    lines = []
    for group in groups:
        if count := group.alike.left_over():
            lines.append(f"{group.title}: {count} pictures are in no table, since not every run has their seed")
        if len(group.alike.images) < 8:
            few = f"{group.title}: intervals over {len(group.alike.images)} images are too narrow, or missing"
            lines.append(f"{few}; some 8 are needed")
        for run in group.alike.runs:
            if run.own_sources:
                lines.append(f"{run.name}: {run.method} draws its own sources, and is scored against those")
    for package, version in _versions([run for group in groups for run in group.alike.runs]).items():
        if package in SHAPING and " or " in version:
            lines.append(f"the runs were made with {package} {version}: small differences may come from that")
    return lines


def _versions(runs: Sequence[EditRun]) -> dict[str, str]:
    """Package → its version, or the several of them joined by `or`."""
    found: dict[str, set[str]] = {}
    for run in runs:
        for package, version in (run.record.manifest.get("versions") or {}).items():
            found.setdefault(package, set()).add(str(version))
    return {package: " or ".join(sorted(found[package])) for package in sorted(found)}

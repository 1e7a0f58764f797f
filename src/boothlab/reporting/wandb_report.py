"""A study as a W&B report and dashboard: its tables as text beside panels over its runs, and publishing them."""

import importlib
import logging
import os
import shlex
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from boothlab.errors import UserError
from boothlab.reporting import wandb_panels as panels
from boothlab.reporting.markdown import to_markdown
from boothlab.reporting.runs import RunRecord
from boothlab.reporting.study import Study
from boothlab.tracking.metrics import STEP_KEY
from boothlab.tracking.wandb import has_key

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2.interface import Report, Runset
    from wandb_workspaces.workspaces.interface import Workspace

log = logging.getLogger(__name__)

_LONGEST_TITLE = 128  # W&B refuses longer ones
_SOURCE = "The tables come from the metrics.jsonl of the run folders; the panels show what W&B was sent of them."


def publish(study: Study, entity: str, project: str, *, dashboard: bool) -> str:
    """Save a study's report in a W&B project, with `dashboard` a dashboard that it links to, and return its URL.

    An empty entity is the key's own. Every call makes a new report. Runs that W&B does not have are named in the log.
    Raises UserError when the extra is not installed, W&B is set to offline, no key is set, the project has no runs yet,
    or the server does not answer or refuses.
    """
    _modules()
    _refuse_offline()
    with _server_errors():
        import wandb

        api = wandb.Api()
        entity = entity or str(api.default_entity)
        _warn_of_missing(study, api, entity, project)
    links: list[str] = []
    if dashboard:
        workspace = build_workspace(study, entity, project)
        with _server_errors():
            links.append(str(workspace.save().url))
        log.info("W&B dashboard: %s", links[0])
    report = build_report(study, entity, project, links=links)
    with _server_errors():
        return quote(str(report.save().url), safe=":/=")  # the title is part of it, and may hold anything


def build_report(study: Study, entity: str, project: str, *, links: Sequence[str] = ()) -> "Report":
    """The report: the text of the local one, with panels over the study's own runs between its headline and tables.

    `links` are URLs shown under the headline. Not saved; but W&B's library asks the server for the project when the
    report is turned into JSON. Raises UserError when the extra is not installed.
    """
    wr, _ = _modules()
    headline, tables = _text(study)
    headline += "".join(f"\n\nDashboard: {link}" for link in links)
    blocks = [wr.MarkdownBlock(text=headline), wr.TableOfContents()]
    for name, runs in _groups(study):
        title = f": {name}" if name else ""
        charts = panels.curves(wr, runs)
        below = max((chart.layout.y + chart.layout.h for chart in charts), default=0)
        charts += panels.trade_offs(wr, runs, study.varied, below)
        by = [f"config.{key}" for key in panels.axes(runs, study.varied)]
        blocks.append(wr.H1(text=f"Curves and trade-offs{title}"))
        blocks.append(wr.PanelGrid(runsets=_run_sets(study, runs, entity, project, by), panels=charts))
        blocks.append(wr.H1(text=f"Samples{title}"))
        blocks.append(wr.PanelGrid(runsets=_run_sets(study, runs, entity, project), panels=panels.grids(wr)))
    blocks.append(wr.H1(text="Tables, and how they were measured"))
    blocks += [wr.MarkdownBlock(text=text) for text in [*tables, _SOURCE]]
    report: Report = wr.Report(
        entity=entity,
        project=project,
        title=study.title[:_LONGEST_TITLE],
        description=f"{len(study.runs)} runs",
        blocks=blocks,
    )
    return report


def build_workspace(study: Study, entity: str, project: str) -> "Workspace":
    """The dashboard: curves, trade-offs, sample grids, training and the tables, with only the study's runs beside them.

    Not saved. Raises UserError when the extra is not installed.
    """
    wr, ws = _modules()
    groups, sections = _groups(study), []
    for name, runs in groups:
        title = f" ({_plain(name)})" if name else ""
        charts = {
            "Scores": (panels.curves(wr, runs), 3),
            "Trade-offs": (panels.trade_offs(wr, runs, study.varied), 2),
            "Samples": (panels.grids(wr), 1),
            "Training": (panels.training(wr, runs), 4),
        }
        sections += [_section(ws, part + title, found, columns) for part, (found, columns) in charts.items()]
    texts = [wr.MarkdownPanel(markdown=text) for text in _text(study)[1]]
    sections.append(_section(ws, "Tables (when this was made)", texts, 1))
    pinned = dict.fromkeys(column for _, runs in groups for column in panels.columns(runs, study.varied))
    workspace: Workspace = ws.Workspace(
        entity=entity,
        project=project,
        name=_plain(study.title)[:_LONGEST_TITLE],
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis=STEP_KEY, max_runs=max(10, len(study.runs))),
        runset_settings=ws.RunsetSettings(filters=panels.only(study.runs), pinned_columns=list(pinned)),
    )
    return workspace


def _text(study: Study) -> tuple[str, list[str]]:
    """The text of the local report: what stands before its first section, without the title, and its sections."""
    headline, *sections = to_markdown(study).split("\n\n## ")
    # W&B shows GitHub's marker of a warning as it is written.
    return headline.partition("\n\n")[2].replace("> [!WARNING]\n", "> ⚠\n"), [f"## {text}" for text in sections]


def _section(ws: ModuleType, name: str, found: Sequence[Any], columns: int) -> Any:
    """An open section with all its panels on one page."""
    layout = ws.SectionLayoutSettings(columns=columns, rows=max(1, -(-len(found) // columns)))
    return ws.Section(name=name, panels=list(found), is_open=True, layout_settings=layout)


def _groups(study: Study) -> list[tuple[str, list[RunRecord]]]:
    """The names of the groups of runs that were measured alike, each with its runs."""
    return [(group.name, [run for run in study.runs if run.name in group.runs]) for group in study.groups]


def _run_sets(
    study: Study, runs: Sequence[RunRecord], entity: str, project: str, by: Sequence[str] = ()
) -> list["Runset"]:
    """A run set for each W&B group of the runs. Runs with the same values of `by` are drawn as one, the mean of their
    seeds, and the legend then names those values.
    """
    wr, _ = _modules()
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(panels.group_of(run), []).append(run)
    return [
        wr.Runset(
            entity=entity,
            project=project,
            name=group or "no group",
            filters=panels.only(members, group),
            groupby=list(by),
            pinned_columns=panels.columns(members, study.varied),
        )
        for group, members in groups.items()
    ]


def _plain(text: str) -> str:
    """The text as W&B takes it for a dashboard's name: mathematical and other symbols count as emojis there."""
    text = text.replace("×", "x")
    kept = (char if unicodedata.category(char) not in ("So", "Sk", "Sm", "Sc", "Cs") else " " for char in text)
    return " ".join("".join(kept).split())


def _modules() -> tuple[ModuleType, ModuleType]:
    """W&B's libraries of reports and of dashboards. Raises UserError when they are not installed."""
    try:
        names = ("wandb_workspaces.reports.v2", "wandb_workspaces.workspaces")
        reports, workspaces = (importlib.import_module(name) for name in names)
    except ImportError as error:
        raise UserError(f"W&B reports need an extra ({error}): pip install 'boothlab[wandb-reports]'") from error
    return reports, workspaces


def _refuse_offline() -> None:
    mode = os.environ.get("WANDB_MODE", "")
    if mode in ("offline", "dryrun", "disabled"):
        raise UserError(f"WANDB_MODE={mode}: a W&B report needs the server; unset it, or use the local report alone")
    if not has_key():
        raise UserError("no W&B key is set, and a W&B report needs one; `wandb login` sets it")


@contextmanager
def _server_errors() -> Iterator[None]:
    """Turns whatever W&B's libraries throw when the server does not answer, or refuses, into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        log.debug("W&B failed", exc_info=True)
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"W&B did not take the report: {reason}; the local report is complete without it") from error


def _warn_of_missing(study: Study, api: Any, entity: str, project: str) -> None:
    """Say which runs W&B does not have. Raises UserError if there is no such project."""
    ids = {found: run for run in study.runs if (found := panels.wandb_id(run))}
    try:
        known = {run.id for run in api.runs(f"{entity}/{project}", filters={"name": {"$in": sorted(ids)}})}
    except ValueError as error:
        raise UserError(f"there is no W&B project {entity}/{project}; send the runs first ({error})") from error
    missing = [str(panels.wandb_folder(run)) for found, run in ids.items() if found not in known]
    if missing:
        flag = "" if all("offline-run-" in folder for folder in missing) else "--include-online "
        command = f"wandb sync {flag}{' '.join(map(shlex.quote, missing))}"
        log.warning("W&B lacks %d of the study's %d runs. Send them with: %s", len(missing), len(study.runs), command)
    if unrecorded := len(study.runs) - len(ids):
        log.warning("%d runs have no wandb/ in their folders; the panels look for all runs by name", unrecorded)

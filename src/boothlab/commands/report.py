"""`boothlab report`: tables, a page and CSV files of finished runs; a blind comparison and a W&B report on request."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from boothlab.errors import UserError
from boothlab.files import shown, write_text
from boothlab.progress import Reporter
from boothlab.reporting.export import (
    parquet_available,
    require_parquet,
    write_checkpoints_csv,
    write_checkpoints_parquet,
    write_csv,
    write_parquet,
)
from boothlab.reporting.markdown import to_markdown
from boothlab.reporting.runs import RunRecord, find_runs, is_captioning, is_editing, is_run_folder, read_run
from boothlab.reporting.study import Study, build_study

if TYPE_CHECKING:
    from boothlab.reporting.votes import HumanStudy

NO_PARQUET = "no runs.parquet: that takes pyarrow (pip install 'boothlab[parquet]')"
SEVERAL = Path("outputs") / "report"
"""Where the report of several folders goes."""
USAGE = "boothlab report DIR… [options], or boothlab report --compare RUN_A RUN_B"
ABOUT = "Tables, a page and CSV files of the finished runs in some folders; a table for each sweep among them."
EXAMPLES = (
    ("boothlab report outputs/train", "report.md, report.html, runs.csv and checkpoints.csv, in that folder"),
    ("boothlab report outputs/rank outputs/prior --out outputs/both", "two experiments in one report"),
    ("boothlab report outputs/edit_methods", "editing runs: report.md, report.html, runs.csv and edits.csv"),
    (
        "boothlab report outputs/rank --compare RUN_A RUN_B",
        "a page on which people choose between the images of two runs",
    ),
    ("boothlab report outputs/rank --votes votes-ann.json votes-bo.json", "with what they chose"),
    ("boothlab report outputs/rank --wandb lab/boothlab --dashboard", "on W&B too"),
)


class _Parser(argparse.ArgumentParser):
    """Bad arguments raise UserError, so that they end like all bad input."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `boothlab report --help` lists what it takes")


def run(argv: list[str]) -> int:
    """Run the command and return its exit code."""
    parser = _parser()
    if any(word in ("-h", "--help") for word in argv):
        print(_help(parser))
        return 0
    arguments = parser.parse_args(argv)
    _check(arguments)
    reporter = Reporter()
    folders = [Path(folder) for folder in arguments.folders]
    if not folders:
        _compare([], arguments.compare, Path(arguments.out) if arguments.out else None, reporter)
        return 0
    out = Path(arguments.out) if arguments.out else (folders[0] if len(folders) == 1 else SEVERAL)
    editing = [is_editing(path) for path in _without_captionings(find_runs(folders), reporter)]
    _check_kinds(arguments, editing)
    human = _human(arguments.votes, [*folders, out], editing) if arguments.votes else None
    records: list[RunRecord] = []
    if not all(editing):
        records += _report_trainings(folders, out, arguments, reporter, human)
    if any(editing):
        prefix = "" if all(editing) else "edit_"
        records += _report_edits(folders, out, arguments, reporter, human, prefix)
    if arguments.compare:
        _compare(records, arguments.compare, out, reporter)
    return 0


def _without_captionings(runs: Sequence[Path], reporter: Reporter) -> list[Path]:
    """The runs that have scores. Raises UserError if all are of `boothlab caption`, naming the page that one has."""
    captionings = [path for path in runs if is_captioning(path)]
    if captionings and len(captionings) == len(runs):
        page = shown(captionings[0] / "report.html")
        raise UserError(f"{shown(captionings[0])}: a run of boothlab caption has no scores to compare; see {page}")
    if captionings:
        reporter.say(f"left out: runs of boothlab caption, {len(captionings)}, each has its own report.html")
    return [path for path in runs if path not in captionings]


def _human(votes: Sequence[str], folders: Sequence[Path], editing: Sequence[bool]) -> "HumanStudy":
    """What people voted. Raises UserError if that was about other runs than those of the report."""
    from boothlab.reporting.votes import read_votes

    keys = sorted(path for folder in folders for path in folder.glob("*.key.json"))
    human = read_votes([Path(path) for path in votes], keys=list(dict.fromkeys(keys)))
    if human.is_editing not in editing:
        kind = "editing runs" if human.is_editing else "training runs"
        raise UserError(f"--votes: the votes are on {kind}, and these folders hold none; give the folder of both")
    return human


def _report_trainings(
    folders: list[Path], out: Path, arguments: argparse.Namespace, reporter: Reporter, human: "HumanStudy | None"
) -> list[RunRecord]:
    study = build_study(folders, title=arguments.title, split=arguments.split)
    study.human = human if human is None or not human.is_editing else None
    _say_what_is_in_it(study, reporter)
    _write(study, out, arguments, reporter)
    if arguments.wandb:
        _publish(study, arguments, reporter)
    return study.runs


def _report_edits(
    folders: list[Path],
    out: Path,
    arguments: argparse.Namespace,
    reporter: Reporter,
    human: "HumanStudy | None",
    prefix: str,
) -> list[RunRecord]:
    """The report of the editing runs; beside that of trainings its files have a prefix."""
    from boothlab.reporting.edit_export import write_edit_csv, write_edit_parquet
    from boothlab.reporting.edit_markdown import edit_markdown
    from boothlab.reporting.edit_study import build_edit_study

    study = build_edit_study(folders, title=arguments.title, split=arguments.split)
    study.human = human if human is not None and human.is_editing else None
    tables = sum(len(group.tables) for group in study.groups)
    counted = [(len(study.runs), "finished editing run"), (tables, "table")]
    reporter.say(", ".join(f"{count} {what}{'' if count == 1 else 's'}" for count, what in counted))
    _say_left_out(study.left_out, reporter)
    write_text(out / f"{prefix}report.md", edit_markdown(study))
    reporter.say(shown(out / f"{prefix}report.md"), tag="report ", style="green")
    if not arguments.no_html:
        from boothlab.reporting.edit_page import write_edit_page

        write_edit_page(study, out / f"{prefix}report.html")
        reporter.say(shown(out / f"{prefix}report.html"), tag="page   ", style="green")
    write_edit_csv(study, out / f"{prefix}runs.csv", out / "edits.csv")
    reporter.say(f"{shown(out / f'{prefix}runs.csv')}, edits.csv", tag="numbers", style="green")
    if parquet_available():
        write_edit_parquet(study, out / f"{prefix}runs.parquet", out / "edits.parquet")
        reporter.say(f"{shown(out / f'{prefix}runs.parquet')}, edits.parquet", tag="numbers", style="green")
    else:
        reporter.say(NO_PARQUET)
    return [run.record for run in study.runs]


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="boothlab report", add_help=False, allow_abbrev=False)
    add = parser.add_argument
    add("folders", nargs="*", metavar="DIR", help="a run, an experiment, or any folder of runs")
    add(
        "--out",
        metavar="DIR",
        help=f"where to write; default: DIR itself, or {SEVERAL.as_posix()} if there are several",
    )
    add("--title", metavar="TEXT", help="title of the report; default: the names of the folders")
    add("--split", action="store_true", help="separate tables for runs whose scores were measured differently")
    add("--no-html", action="store_true", help="leave report.html out")
    add("--parquet", action="store_true", help="fail if runs.parquet cannot be written, for want of pyarrow")
    add(
        "--compare", nargs=2, metavar=("RUN_A", "RUN_B"), help="write a blind comparison of two runs (names or folders)"
    )
    add("--votes", nargs="+", metavar="FILE", help="votes exported from such a comparison, to be counted")
    add("--wandb", metavar="ENTITY/PROJECT", help="publish the report on W&B")
    add("--dashboard", action="store_true", help="with --wandb: set up the project's workspace too")
    return parser


def _help(parser: argparse.ArgumentParser) -> str:
    """The page, made of the parser's own arguments."""
    rows = [(_shown_argument(action), action.help or "") for action in parser._actions]
    width = max(len(argument) for argument, _ in rows)
    options = "\n".join(f"  {argument:<{width}}  {what}" for argument, what in rows)
    examples = "\n".join(f"  {command}\n      {what}" for command, what in EXAMPLES)
    return f"usage: {USAGE}\n\n{ABOUT}\n\nexamples\n{examples}\n\noptions\n{options}"


def _shown_argument(action: argparse.Action) -> str:
    names = [action.metavar] if isinstance(action.metavar, str) else [*(action.metavar or ())]
    more = "…" if action.nargs == "+" else ""
    return " ".join([*action.option_strings, *names]) + more


def _check(arguments: argparse.Namespace) -> None:
    """Raises UserError for arguments that do not go together, before anything is read."""
    if not arguments.folders and not arguments.compare:
        raise UserError("no folder of runs given, as in boothlab report outputs/train; see boothlab report --help")
    if not arguments.folders and (arguments.votes or arguments.wandb):
        raise UserError("--votes and --wandb belong to a report; give the folder of its runs too")
    if arguments.dashboard and not arguments.wandb:
        raise UserError("--dashboard sets up a W&B workspace; give --wandb ENTITY/PROJECT too")
    if arguments.wandb and len([part for part in arguments.wandb.split("/") if part.strip()]) != 2:
        raise UserError(f"--wandb {arguments.wandb}: must be ENTITY/PROJECT, as in --wandb my-team/boothlab")
    if arguments.out and Path(arguments.out).is_file():
        raise UserError(f"--out {shown(arguments.out)}: is a file; give a folder")
    if arguments.parquet:
        require_parquet()


def _check_kinds(arguments: argparse.Namespace, editing: Sequence[bool]) -> None:
    """Raises UserError for what only a report of trainings has."""
    if arguments.wandb and all(editing):
        raise UserError("--wandb is for training runs, and these folders hold runs of boothlab edit only")


def _say_what_is_in_it(study: Study, reporter: Reporter) -> None:
    counts = {"finished run": len(study.runs), "table": len({(table.name, table.group) for table in study.tables})}
    reporter.say(", ".join(f"{count} {what}{'' if count == 1 else 's'}" for what, count in counts.items()))
    _say_left_out(study.left_out, reporter)
    for table in study.tables:
        if table.missing and table.reading == "best":
            count = len(table.missing)
            reporter.warn(f"sweep {table.name} is not complete: {count} run{'' if count == 1 else 's'} missing")


def _say_left_out(left_out: Sequence[tuple[str, str]], reporter: Reporter) -> None:
    if left_out:
        name, why = left_out[0]
        more = f" and {len(left_out) - 1} more, named in the report" if len(left_out) > 1 else ""
        reporter.warn(f"left out: {name} ({why}){more}")


def _write(study: Study, out: Path, arguments: argparse.Namespace, reporter: Reporter) -> None:
    everything = [*study.runs, *study.unfinished]
    write_text(out / "report.md", to_markdown(study))
    reporter.say(shown(out / "report.md"), tag="report ", style="green")
    if not arguments.no_html:
        from boothlab.reporting.page import write_page

        write_page(study, out / "report.html")
        reporter.say(shown(out / "report.html"), tag="page   ", style="green")
    write_csv(everything, out / "runs.csv")
    write_checkpoints_csv(everything, out / "checkpoints.csv")
    reporter.say(f"{shown(out / 'runs.csv')}, checkpoints.csv", tag="numbers", style="green")
    if parquet_available():
        write_parquet(everything, out / "runs.parquet")
        write_checkpoints_parquet(everything, out / "checkpoints.parquet")
        reporter.say(f"{shown(out / 'runs.parquet')}, checkpoints.parquet", tag="numbers", style="green")
    else:
        reporter.say(NO_PARQUET)


def _compare(runs: Sequence[RunRecord], names: Sequence[str], out: Path | None, reporter: Reporter) -> None:
    """Write the page of questions, in `out` or beside the first of the two runs."""
    from boothlab.reporting.comparison import key_path

    run_a, run_b = (_run_named(runs, name) for name in names)
    if run_a.folder == run_b.folder:
        raise UserError(f"--compare: {run_a.name} is given twice; name two runs")
    editing = is_editing(run_a.folder)
    if editing != is_editing(run_b.folder):
        raise UserError(
            f"--compare: of {run_a.name} and {run_b.name} one is a training and one an edit; name two alike"
        )
    path = (out or run_a.folder.parent) / f"compare-{run_a.name}-{run_b.name}.html"
    if editing:
        _compare_edits(run_a, run_b, path, reporter)
    else:
        from boothlab.reporting.compare import write_comparison

        write_comparison(run_a, run_b, path)
    reporter.say(shown(path), tag="compare", style="green")
    reporter.say(f"{shown(key_path(path))} says which is which: keep it, and do not show it to those who vote")


def _compare_edits(run_a: RunRecord, run_b: RunRecord, path: Path, reporter: Reporter) -> None:
    from boothlab.reporting.edit_compare import write_edit_comparison
    from boothlab.reporting.edit_runs import read_edit_run

    asked, there = write_edit_comparison(read_edit_run(run_a.folder), read_edit_run(run_b.folder), path)
    of = f" of {there}, drawn at random" if asked < there else ""
    reporter.say(f"{asked} pairs of pictures{of}, two questions each")


def _run_named(runs: Sequence[RunRecord], name: str) -> RunRecord:
    """One of the runs by its name or folder, or any other run by its folder."""
    folder = Path(name)
    for run in runs:
        if run.name == name or run.folder == folder.resolve():
            return run
    if is_run_folder(folder):
        return read_run(folder.resolve())
    raise UserError(f"--compare {shown(name)}: is no run folder, nor a finished run of this report; give its folder")


def _publish(study: Study, arguments: argparse.Namespace, reporter: Reporter) -> None:
    from boothlab.reporting.wandb_report import publish

    entity, project = arguments.wandb.split("/")
    url = publish(study, entity, project, dashboard=arguments.dashboard)
    reporter.say(url, tag="W&B    ", style="green")

"""`boothlab report`: tables, a page and CSV files of finished runs; a blind comparison and a W&B report on request."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

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
from boothlab.reporting.runs import RunRecord, find_runs, is_editing, is_run_folder, read_run
from boothlab.reporting.study import Study, build_study

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
    editing = [is_editing(path) for path in find_runs(folders)]
    if all(editing):
        _check_editing_only(arguments)
    else:
        _report_trainings(folders, out, arguments, reporter)
    if any(editing):
        _report_edits(folders, out, arguments, reporter, prefix="" if all(editing) else "edit_")
    return 0


def _report_trainings(folders: list[Path], out: Path, arguments: argparse.Namespace, reporter: Reporter) -> None:
    study = build_study(folders, title=arguments.title, split=arguments.split)
    if arguments.votes:
        from boothlab.reporting.votes import read_votes

        keys = sorted(path for folder in (*folders, out) for path in folder.glob("*.key.json"))
        study.human = read_votes([Path(path) for path in arguments.votes], keys=list(dict.fromkeys(keys)))
    _say_what_is_in_it(study, reporter)
    _write(study, out, arguments, reporter)
    if arguments.compare:
        _compare(study.runs, arguments.compare, out, reporter)
    if arguments.wandb:
        _publish(study, arguments, reporter)


def _report_edits(
    folders: list[Path], out: Path, arguments: argparse.Namespace, reporter: Reporter, *, prefix: str
) -> None:
    """The report of the editing runs; beside that of trainings its files have a prefix."""
    from boothlab.reporting.edit_export import write_edit_csv
    from boothlab.reporting.edit_markdown import edit_markdown
    from boothlab.reporting.edit_study import build_edit_study

    study = build_edit_study(folders, title=arguments.title, split=arguments.split)
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


def _check_editing_only(arguments: argparse.Namespace) -> None:
    """Raises UserError for what only a report of trainings has."""
    for name in ("compare", "votes", "wandb", "parquet"):
        if getattr(arguments, name):
            raise UserError(f"--{name} is for training runs, and these folders hold runs of boothlab edit only")


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
        reporter.say("no runs.parquet: that takes pyarrow (pip install 'boothlab[parquet]')")


def _compare(runs: Sequence[RunRecord], names: Sequence[str], out: Path | None, reporter: Reporter) -> None:
    """Write the page of questions, in `out` or beside the first of the two runs."""
    from boothlab.reporting.compare import key_path, write_comparison

    run_a, run_b = (_run_named(runs, name) for name in names)
    if run_a.folder == run_b.folder:
        raise UserError(f"--compare: {run_a.name} is given twice; name two runs")
    path = (out or run_a.folder.parent) / f"compare-{run_a.name}-{run_b.name}.html"
    write_comparison(run_a, run_b, path)
    reporter.say(shown(path), tag="compare", style="green")
    reporter.say(f"{shown(key_path(path))} says which is which: keep it, and do not show it to those who vote")


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

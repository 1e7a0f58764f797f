"""`boothlab sweep NAME`: a study from sweeps/NAME.yaml, planned, run, continued, and reported."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boothlab.commands.edit import edit
from boothlab.commands.score import score
from boothlab.commands.train import train
from boothlab.compose.job import Body
from boothlab.compose.jobs import Explorer, Multirun
from boothlab.compose.run import run as run_composed
from boothlab.compose.schemas import SCHEMAS, sweeps_dir
from boothlab.config import SearchConfig, SearchEngine, TrainConfig
from boothlab.errors import UserError
from boothlab.files import shown
from boothlab.progress import Reporter
from boothlab.reporting.sweeps import SweepFile, SweepJob, write_sweep
from boothlab.sweeping.adaptive import run_adaptive, take_search
from boothlab.sweeping.run import DRY_RUN, RETRY, SweepOptions, run_sweep, take_options
from boothlab.tracking.redaction import redact, redact_command

NO_REPORT = "--no-report"
#: what a sweep's file can run, by the primary config among its defaults
BODIES: dict[str, Body[Any]] = {"train": train, "score": score, "edit": edit}


def sweep_files() -> dict[str, Path]:
    """The sweeps by name: those of ./sweeps before those of the package."""
    folders = [sweeps_dir(), Path("sweeps")]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def about(path: Path) -> str:
    """The first line of a sweep's file: what it asks."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[0].lstrip("# ") if lines else ""


def run(argv: list[str]) -> int:
    """Run the command and return its exit code."""
    files = sweep_files()
    if not argv or argv[0] in ("-h", "--help"):
        print(_help(files))
        return 0 if argv else 2
    name, *rest = argv
    if name not in files:
        raise UserError(f"there is no sweep {name!r}; there are {', '.join(files)}, or write sweeps/{name}.yaml")
    if any(word in ("-h", "--help") for word in rest):
        print(files[name].read_text(encoding="utf-8", errors="replace"), end="")
        return 0
    search, rest = take_search(rest)
    options, left = take_options(rest, always_many=True)
    with_report = NO_REPORT not in left
    left = [word for word in left if word != NO_REPORT]
    primary = _primary_of(files[name])
    reporter = Reporter()

    def multirun(jobs: Multirun) -> int:
        return _sweep(name, jobs, SCHEMAS[primary], options, with_report, reporter)

    def explore(explorer: Explorer) -> int:
        return _search(name, explorer, search, worker_command(name, left, search), with_report, reporter)

    if search.engine is SearchEngine.optuna and (primary != "train" or options.dry_run or options.retry_failed):
        raise UserError(f"search=optuna: goes with sweeps that train, and without {DRY_RUN} and {RETRY}")
    arguments = ["--config-name", name, "-m", *left]
    return run_composed(
        primary,
        BODIES[primary],
        arguments,
        multirun,
        search_in=files[name].parent,
        explore=explore if search.engine is SearchEngine.optuna else None,
    )


def _primary_of(path: Path) -> str:
    """`train`, `score` or `edit`: the primary config that a sweep's file begins with."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        found = [entry for entry in content["defaults"] if isinstance(entry, str) and entry in BODIES]
    except (OSError, yaml.YAMLError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{shown(path)}: is not a sweep; it needs `defaults: [train, _self_]`") from error
    if not found:
        raise UserError(f"{shown(path)}: its defaults name none of {', '.join(BODIES)}; begin them with `- train`")
    return str(found[0])


def _sweep(
    name: str, jobs: Multirun, schema: type, options: SweepOptions, with_report: bool, reporter: Reporter
) -> int:
    def record(checked: Multirun) -> None:
        if any(job.mistake is None for job in checked.jobs):
            write_sweep(checked.folder, _record(name, checked))

    before = _newest(jobs)
    code = run_sweep(jobs, schema, options, reporter, record)
    if options.dry_run or not with_report:
        return code
    page = jobs.folder / "report.html"
    if not page.is_file() or _newest(jobs) != before:
        _report(jobs.folder, reporter)
    else:
        reporter.say(shown(page), tag="report", style="green")
    return code


def worker_command(name: str, left: Sequence[str], search: SearchConfig) -> list[str]:
    """The command line of one more worker on the same search."""
    options = {key: getattr(value, "value", value) for key, value in vars(search).items() if value is not None} | {
        "workers": 1
    }
    asked = [f"search={options.pop('engine')}", *(f"search.{key}={value}" for key, value in options.items())]
    return [sys.executable, "-m", "boothlab", "sweep", name, NO_REPORT, *asked, *left]


def _search(
    name: str,
    explorer: Explorer,
    search: SearchConfig,
    worker: Sequence[str],
    with_report: bool,
    reporter: Reporter,
) -> int:
    """Let a search choose the jobs; its record holds those that it ran."""
    code, jobs = run_adaptive(explorer, TrainConfig, train, search, name, worker, reporter)
    params = dict(override.split("=", 1) for override in explorer.overrides)
    varied = {key: [value] for key, value in params.items() if any(f"{key}={value}" not in j.overrides for j in jobs)}
    found = Multirun("train", tuple(jobs), explorer.folder, varied, explorer.settings, "search", lambda _: [])
    if jobs:
        write_sweep(explorer.folder, dataclasses.replace(_record(name, found), name=f"{name}_search"))
        if with_report:
            _report(explorer.folder, reporter)
    return code


def _newest(jobs: Multirun) -> list[int]:
    """The times of the jobs' summaries: whether anything new can be reported."""
    paths = [job.run_dir / "summary.json" for job in jobs.jobs]
    return [path.stat().st_mtime_ns if path.is_file() else 0 for path in paths]


def _report(folder: Path, reporter: Reporter) -> None:
    """The report of the experiment; a sweep without a single finished run has none."""
    from boothlab.commands.report import run as report

    try:
        report([str(folder)])
    except UserError as error:
        reporter.warn(f"no report: {error}")


def _record(name: str, jobs: Multirun) -> SweepFile:
    """What the report needs to know about the sweep."""
    settings = jobs.settings
    return SweepFile(
        name=name,
        title=settings.get("title") or name,
        about=settings.get("about") or "",
        axis=settings.get("axis"),
        expect={str(score): _text(value) for score, value in (settings.get("expect") or {}).items()},
        published=list(settings.get("published") or []),
        params=redact(dict(jobs.params)),
        command=["boothlab", *redact_command(sys.argv[1:])],
        jobs=[SweepJob(redact(list(job.overrides)), job.run_dir.name) for job in jobs.jobs if job.mistake is None],
    )


def _text(value: object) -> str:
    return str(getattr(value, "name", value))


def _help(files: dict[str, Path]) -> str:
    width = max(map(len, files))
    lines = "\n".join(f"  {name:<{width}}  {about(path)}" for name, path in files.items())
    return f"""usage: boothlab sweep NAME [{DRY_RUN}] [{RETRY}] [{NO_REPORT}] [key=value …]

A study from sweeps/NAME.yaml. The plan comes first; what is finished is never run again, what was interrupted goes on,
and one failing job never stops the others. The same command continues a sweep. At the end comes the report.

  {DRY_RUN}       show the plan and stop
  {RETRY}  run jobs again that failed
  {NO_REPORT}     leave report.md, report.html and runs.csv as they are

  boothlab sweep lora_rank
  boothlab sweep lora_rank lora.rank=2,8 seed=0     other values
  boothlab sweep lora_rank hydra/launcher=boothlab_joblib    several processes
  boothlab sweep lora_rank search=optuna optim.lr='tag(log,interval(1e-5,1e-2))'   choose the next values by the scores
  boothlab sweep NAME --help                        the file itself, with its costs and expectations

sweeps, those in ./sweeps first:
{lines}"""

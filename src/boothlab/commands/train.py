"""`boothlab train`: one DreamBooth run, or with -m one for each combination."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from boothlab.commands.devices import company
from boothlab.commands.dry_run import asks_for_one, normalised, show_one
from boothlab.commands.help import HelpPage, asks_for_help, print_help
from boothlab.compose.jobs import Multirun
from boothlab.compose.run import run as run_composed
from boothlab.config import NOT_HASHED, TrainConfig
from boothlab.errors import UserError
from boothlab.files import sha256_file, shown
from boothlab.progress import Reporter
from boothlab.search import Pruned
from boothlab.starting import imports_uncollected
from boothlab.sweeping.run import run_sweep, take_options
from boothlab.tracking.lock import owned
from boothlab.tracking.manifest import RunStatus, config_hash, read_manifest

HELP = HelpPage(
    config_name="train",
    usage="boothlab train [group=option …] [key=value …] [-m]",
    about="One DreamBooth run, evaluated at every checkpoint; with -m one run for each combination of values.",
    examples=(
        ("boothlab train", "the built-in miniature, a minute and a half on two CPU cores"),
        ("boothlab train subject=bear lora.train_text_encoder=true prior.enabled=true", "another toy, more is trained"),
        ("boothlab train backbone=sd15 subject=folder subject.images=photos subject.class_noun=dog", "your own photos"),
        ("boothlab train backbone=sd15 backbone.source=/models/sd15", "weights from a local diffusers folder"),
        ("boothlab train -m optim.lr=1e-3,1e-4 lora.rank=4,16 seed=0,1", "eight runs"),
        ("boothlab train method=textual_inversion", "a word alone; also full and pivotal"),
        ("boothlab train backbone=sdxl memory=low --dry-run", "what it would train, take and need; nothing is done"),
        ("boothlab train backbone=sd15 --cfg job --resolve", "show the config and stop"),
    ),
)


def run(argv: list[str]) -> int:
    """Run the command and return its exit code."""
    if asks_for_help(argv):
        return print_help(HELP, argv)
    argv = normalised(argv)
    if asks_for_one(argv):
        return show_one(HELP.config_name, argv)
    options, left = take_options(argv)

    def multirun(jobs: Multirun) -> int:
        return run_sweep(jobs, TrainConfig, options, Reporter())

    return run_composed(HELP.config_name, train, left, multirun)


def train(
    config: TrainConfig,
    resolved: dict[str, Any],
    run_dir: Path,
    one_of_many: bool,
    on_scores: Callable[[int, dict[str, float]], None] | None = None,
) -> dict[str, Any]:
    """One run, or what is left of it, or nothing if it is finished; returns its summary.

    `on_scores` is told of each evaluation; when it raises Pruned, the run is closed as interrupted.
    """
    from boothlab.tracking.show import finished_summary

    reporter = Reporter(quiet=one_of_many)
    if not config.paths.overwrite:
        refuse_another_run(run_dir, resolved)
        if summary := finished_summary(run_dir):
            reporter.say(f"{run_dir} (paths.overwrite=true runs it again)", tag="finished already", style="green")
            _warn_of_changed_photos(run_dir, reporter)
            _show(run_dir, reporter)
            return summary
    reporter.say(f"run folder {run_dir}")
    with owned(run_dir), company(config) as others:
        # torch and diffusers: only once the config is known to be good
        with imports_uncollected():
            from boothlab.building import build_training_run
            from boothlab.dreambooth.run import execute

        others.meet()
        run = build_training_run(config, resolved, run_dir, sys.argv, reporter, ranks=others.ranks)
        run.on_scores = on_scores
        with run.tracker, others.explained():
            try:
                execute(run)
            except Pruned:
                run.tracker.close(RunStatus.INTERRUPTED)
                raise
            except (KeyboardInterrupt, SystemExit):
                reporter.say(f"{shown(run_dir)}; the same command goes on", tag="interrupted")
                raise
    _show(run_dir, reporter)
    return finished_summary(run_dir) or {}


def _show(run_dir: Path, reporter: Reporter) -> None:
    from boothlab.tracking.show import show_run

    if not reporter.quiet:
        show_run(run_dir, reporter.console)


def _warn_of_changed_photos(run_dir: Path, reporter: Reporter) -> None:
    """The config names a folder, so a photo replaced in it leaves the run's identity as it was: say so at least."""
    for name, digest in (read_manifest(run_dir).get("inputs") or {}).items():
        if Path(name).is_file() and sha256_file(name) != digest:
            reporter.warn(f"{shown(name)} has changed since; paths.overwrite=true runs it with the new one")


def refuse_another_run(run_dir: Path, resolved: dict[str, Any]) -> None:
    """A folder that the user named (hydra.run.dir=…) may hold a run of another config: never resume or report it."""
    try:
        begun = read_manifest(run_dir)["config_hash"]
    except (UserError, KeyError):
        return
    if begun != config_hash(resolved, NOT_HASHED):
        raise UserError(
            f"{shown(run_dir)} holds a run of another config; choose another folder, or paths.overwrite=true"
        )

"""`boothlab score`: a trained adapter under other scales, guidance, steps or samplers, without training."""

import sys
from pathlib import Path
from typing import Any

import filelock

from boothlab.commands.help import HelpPage, asks_for_help, print_help
from boothlab.commands.train import train
from boothlab.compose.jobs import Multirun
from boothlab.compose.naming import folder_name, run_name
from boothlab.compose.run import compose
from boothlab.compose.run import run as run_composed
from boothlab.compose.typed import from_resolved, load
from boothlab.config import ScoreConfig, TrainConfig
from boothlab.errors import UserError
from boothlab.files import shown
from boothlab.progress import Reporter
from boothlab.starting import imports_uncollected
from boothlab.sweeping.run import run_sweep, take_options
from boothlab.tracking.lock import owned
from boothlab.tracking.manifest import read_manifest

HELP = HelpPage(
    config_name="score",
    usage="boothlab score [run=DIR] [key=value …] [-m]",
    about="A trained adapter's evaluation again, at other scales or with another sampler; nothing is trained.",
    examples=(
        ("boothlab score run=outputs/train/RUN unet_scale=0.7", "a weaker adapter"),
        ("boothlab score -m run=outputs/train/RUN guidance_scale=2,4,8", "three guidance scales"),
        ("boothlab sweep lora_scale", "a grid of UNet and text-encoder scales on one adapter, trained first"),
    ),
)


def run(argv: list[str]) -> int:
    """Run the command and return its exit code."""
    if asks_for_help(argv):
        return print_help(HELP, argv)
    options, left = take_options(argv)

    def multirun(jobs: Multirun) -> int:
        return run_sweep(jobs, ScoreConfig, options, Reporter())

    return run_composed(HELP.config_name, score, left, multirun)


def score(config: ScoreConfig, resolved: dict[str, Any], run_dir: Path, one_of_many: bool) -> dict[str, Any]:
    """One scoring, or nothing if it is finished; returns its summary."""
    with imports_uncollected():
        from boothlab.building import build_score_run
        from boothlab.tracking.show import finished_summary, show_run

    reporter = Reporter(quiet=one_of_many)
    if not config.paths.overwrite and (summary := finished_summary(run_dir)):
        reporter.say(f"{run_dir} (paths.overwrite=true runs it again)", tag="finished already", style="green")
        return summary
    trained_dir = Path(config.run).expanduser() if config.run else _trained(config, reporter)
    settings = read_manifest(trained_dir)["config"]
    if "lora" not in settings:
        raise UserError(f"run={shown(trained_dir)}: is not a training run; give the folder of one")
    trained, _ = from_resolved(settings, TrainConfig)
    reporter.say(f"run folder {run_dir}")
    with owned(run_dir):
        scoring = build_score_run(config, trained, trained_dir, resolved, run_dir, sys.argv, reporter)
        with scoring.tracker:
            scoring.execute()
    if not reporter.quiet:
        show_run(run_dir, reporter.console)
    return finished_summary(run_dir) or {}


def _trained(config: ScoreConfig, reporter: Reporter) -> Path:
    """The folder of the run that `train` describes, trained now unless it is finished, by one process at a time."""
    overrides = [f"seed={config.seed}", f"tracking.wandb={config.tracking.wandb.value}", *config.train]
    if config.threads is not None:
        overrides.append(f"trainer.threads={config.threads}")
    node = compose("train", overrides)
    node.paths.outputs, node.paths.cache = config.paths.outputs, config.paths.cache
    typed, resolved = load(node, TrainConfig)
    run_dir = Path(typed.paths.outputs) / folder_name(typed.experiment) / run_name(resolved)
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(run_dir.with_name(f".{run_dir.name}.lock")):
        train(typed, resolved, run_dir, reporter.quiet)
    return run_dir

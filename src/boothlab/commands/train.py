"""`boothlab train`: one DreamBooth-LoRA run, or with -m one for each combination."""

import sys
from pathlib import Path
from typing import Any

from boothlab.commands.help import HelpPage, asks_for_help, print_help
from boothlab.compose.run import run as run_composed
from boothlab.config import TrainConfig
from boothlab.files import clear_run
from boothlab.progress import Reporter

HELP = HelpPage(
    config_name="train",
    usage="boothlab train [group=option …] [key=value …] [-m]",
    about="One DreamBooth-LoRA run, evaluated at every checkpoint; with -m one run for each combination of values.",
    examples=(
        ("boothlab train", "the built-in miniature, about a minute on two CPU cores"),
        ("boothlab train subject=bear lora.train_text_encoder=true prior.enabled=true", "another toy, more is trained"),
        ("boothlab train backbone=sd15 subject=folder subject.images=photos subject.class_noun=dog", "your own photos"),
        ("boothlab train backbone=sd15 backbone.source=/models/sd15", "weights from a local diffusers folder"),
        ("boothlab train -m optim.lr=1e-3,1e-4 lora.rank=4,16 seed=0,1", "eight runs"),
        ("boothlab train backbone=sd15 --cfg job --resolve", "show the config and stop"),
    ),
)


def run(argv: list[str]) -> int:
    """Run the command and return its exit code."""
    if asks_for_help(argv):
        return print_help(HELP, argv)
    return run_composed(HELP.config_name, _train, argv)


def _train(config: TrainConfig, resolved: dict[str, Any], run_dir: Path) -> dict[str, Any]:
    # torch and diffusers: only once the config is known to be good
    from boothlab.build import build_training_run
    from boothlab.dreambooth.run import execute
    from boothlab.tracking.show import finished_summary, show_run

    reporter = Reporter()
    summary = finished_summary(run_dir)
    if summary is not None and not config.paths.overwrite:
        reporter.say(f"[green]finished already[/] {run_dir} (paths.overwrite=true runs it again)")
        show_run(run_dir, reporter.console)
        return summary
    if config.paths.overwrite:
        clear_run(run_dir)
    reporter.say(f"run folder {run_dir}")
    run = build_training_run(config, resolved, run_dir, sys.argv, reporter)
    with run.tracker:
        execute(run)
    show_run(run_dir, reporter.console)
    return finished_summary(run_dir) or {}

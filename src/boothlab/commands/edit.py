"""`boothlab edit`: a method over images and edits, scored; with -m one run for each combination of values."""

import sys
from pathlib import Path
from typing import Any

from boothlab.commands.help import HelpPage, asks_for_help, print_help
from boothlab.commands.train import refuse_another_run
from boothlab.compose.jobs import Multirun
from boothlab.compose.run import run as run_composed
from boothlab.config_edit import EditConfig
from boothlab.progress import Reporter
from boothlab.starting import imports_uncollected
from boothlab.sweeping.run import run_sweep, take_options
from boothlab.tracking.lock import owned

HELP = HelpPage(
    config_name="edit",
    usage="boothlab edit method=METHOD [group=option …] [key=value …] [-m]",
    about="A method over images and edits, scored against what was there, what was asked for and, if known, the truth.",
    examples=(
        ("boothlab edit method=instruct_pix2pix", "seven edits of eight hotel rooms of the built-in miniature"),
        ("boothlab edit -m method=sdedit strength=0.4,0.6,0.8", "three strengths"),
        ("boothlab edit method=sdedit data.edits=[at_night] seeds=[0,1,2]", "one edit, three images each"),
        (
            "boothlab edit method=controlnet_depth backbone=sd15 data.images=photos data.file=edits.yaml",
            "your own photos",
        ),
        (
            "boothlab edit method=sdedit backbone=sd15 … 'adapters=[{path: outputs/train/RUN, unet_scale: 0.8}]'",
            "with a trained subject, or a LoRA file from elsewhere",
        ),
        ("boothlab sweep edit_methods", "all methods on the same images, edits and seeds"),
    ),
)


def run(argv: list[str]) -> int:
    """Run the command and return its exit code."""
    if asks_for_help(argv):
        return print_help(HELP, argv)
    options, left = take_options(argv)

    def multirun(jobs: Multirun) -> int:
        return run_sweep(jobs, EditConfig, options, Reporter())

    return run_composed(HELP.config_name, edit, left, multirun)


def edit(config: EditConfig, resolved: dict[str, Any], run_dir: Path, one_of_many: bool) -> dict[str, Any]:
    """One editing run, or what is left of it, or nothing if it is finished; returns its summary."""
    from boothlab.tracking.show import finished_summary

    reporter = Reporter(quiet=one_of_many)
    if not config.paths.overwrite:
        refuse_another_run(run_dir, resolved)
        if summary := finished_summary(run_dir):
            reporter.say(f"{run_dir} (paths.overwrite=true runs it again)", tag="finished already", style="green")
            return summary
    with imports_uncollected():
        from boothlab.building.edit import build_edit_run
        from boothlab.files import remove_leftovers_below

    reporter.say(f"run folder {run_dir}")
    with owned(run_dir):
        remove_leftovers_below(run_dir)
        editing = build_edit_run(config, resolved, run_dir, sys.argv, reporter)
        with editing.tracker:
            editing.execute()
    return finished_summary(run_dir) or {}

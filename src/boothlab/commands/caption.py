"""`boothlab caption`: the audit of a folder of images, captions and tags for what it accepts, and a report."""

import shutil
import sys
from pathlib import Path
from typing import Any

from boothlab.commands.help import HelpPage, asks_for_help, print_help
from boothlab.commands.train import refuse_another_run
from boothlab.compose.jobs import Explorer
from boothlab.compose.run import run as run_composed
from boothlab.config_caption import CaptionConfig
from boothlab.errors import UserError
from boothlab.files import shown
from boothlab.progress import Reporter
from boothlab.tracking.lock import owned
from boothlab.tracking.manifest import read_manifest

HELP = HelpPage(
    config_name="caption",
    usage="boothlab caption images=DIR [method=METHOD] [models=standard] [key=value …]",
    about="What is in a folder of images, what can be used, and a caption beside each image that can.",
    examples=(
        ("boothlab caption images=photos method=audit recursive=true", "what is there, nothing else"),
        ("boothlab caption images=photos models=standard", "sentences by BLIP into photos/*.txt"),
        (
            "boothlab caption images=hotels recursive=true models=standard method=clip_tags captions_dir=captions",
            "tags of hotel rooms, a group for each subfolder, the images folder untouched",
        ),
        ("boothlab caption images=photos method=template 'template=a photo of a {class}, {tags}' class_noun=dog", ""),
    ),
)


def run(argv: list[str]) -> int:
    """Run the command and return its exit code."""
    if asks_for_help(argv):
        return print_help(HELP, argv)
    return run_composed(HELP.config_name, caption, argv, explore=_refuse_multirun)


def _refuse_multirun(jobs: Explorer) -> int:
    raise UserError(
        "boothlab caption makes one caption an image, so -m has nothing to vary; run it once for each value"
    )


def caption(config: CaptionConfig, resolved: dict[str, Any], run_dir: Path, one_of_many: bool) -> dict[str, Any]:
    """One run, or what is left of it, or nothing if it is finished and the images are the same; returns its summary."""
    from boothlab.tracking.show import finished_summary

    reporter = Reporter(quiet=one_of_many)
    if not config.paths.overwrite:
        refuse_another_run(run_dir, resolved)
        if (summary := finished_summary(run_dir)) and _is_current(config, run_dir, reporter):
            reporter.say(f"{run_dir} (paths.overwrite=true runs it again)", tag="finished already", style="green")
            return summary
    from boothlab.building.caption import STATE, build_caption_run
    from boothlab.files import clear_run
    from boothlab.reporting.caption_page import write_caption_page

    reporter.say(f"run folder {run_dir}")
    with owned(run_dir):
        if config.paths.overwrite:
            shutil.rmtree(run_dir / STATE, ignore_errors=True)
            clear_run(run_dir)
        captioning = build_caption_run(config, resolved, run_dir, sys.argv, reporter)
        captioning.report = lambda figures: write_caption_page(run_dir, captioning.images, figures)
        with captioning.tracker:
            captioning.execute()
        captioning.close()
    reporter.say(shown(run_dir / "report.html"), tag="report  ", style="green")
    return finished_summary(run_dir) or {}


def _is_current(config: CaptionConfig, run_dir: Path, reporter: Reporter) -> bool:
    """Whether the folder still holds the images that were captioned."""
    from boothlab.building.caption import listing_digest
    from boothlab.images.collection import check_folder

    images = Path(config.images).expanduser()
    check_folder(images)
    if (read_manifest(run_dir).get("inputs") or {}).get("listing") == listing_digest(images, config.recursive):
        return True
    reporter.say(f"{shown(images)} has changed since: it is looked at again")
    return False

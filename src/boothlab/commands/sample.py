"""`boothlab sample`: images from a trained adapter, or from a bare backbone."""

from pathlib import Path
from typing import Any

from boothlab.commands.help import HelpPage, asks_for_help, print_help
from boothlab.compose.run import run as run_composed
from boothlab.config import SampleConfig
from boothlab.files import write_json, write_text
from boothlab.progress import Reporter
from boothlab.starting import imports_uncollected
from boothlab.tracking.redaction import redact

HELP = HelpPage(
    config_name="sample",
    usage="boothlab sample run=DIR prompt=TEXT [key=value …]",
    about="Images from a trained adapter, one for each prompt and seed; each can be made again on its own.",
    examples=(
        (
            "boothlab sample run=outputs/train/RUN prompt='a {token} {class} on the moon'",
            "words from the run",
        ),
        (
            "boothlab sample run=outputs/train/RUN prompt='a {token} {class}' seeds=[0,1,2,3] unet_scale=0.7",
            "weaker",
        ),
        (
            "boothlab sample run=outputs/train/RUN prompt='a {token} {class}' best_of=8 best_by=balanced",
            "the best of 8",
        ),
        ("boothlab sample run=photo_lora.safetensors backbone=sd15 prompt='a sks dog'", "an adapter from elsewhere"),
        ("boothlab sample backbone=dollhouse prompt='a photo of a robot on the beach'", "the bare backbone"),
    ),
)


def run(argv: list[str]) -> int:
    """Run the command and return its exit code."""
    if asks_for_help(argv):
        return print_help(HELP, argv)
    return run_composed(HELP.config_name, _sample, argv)


def _sample(config: SampleConfig, resolved: dict[str, Any], run_dir: Path, one_of_many: bool) -> list[str]:
    # torch and diffusers: only once the config is known to be good
    with imports_uncollected():
        from boothlab.building import build_sample_run
        from boothlab.images.grid import save_png

    reporter = Reporter(quiet=one_of_many)
    run = build_sample_run(config, reporter)
    with reporter.bar("drawing", run.total) as bar:
        pictures = run.draw(bar.advance)
    paths = []
    for name, picture in pictures:
        save_png(run.folder / name, picture)
        paths.append(str(run.folder / name))
    for name, text in run.tables.items():
        write_text(run.folder / name, text)
    write_json(run.folder / "sample.json", redact({**run.record, "config": resolved}))
    reporter.say(f"{len(paths) - 1} images and {paths[-1]}")
    if run.best is not None:
        found = run.best.record
        said = f"mean {found['by']} of all {run.total}: {found['mean_of_all']:.3f}, of the chosen: "
        reporter.say(f"{said}{found['mean_of_chosen']:.3f}; {found['note']}", tag="selection bias")
    return paths

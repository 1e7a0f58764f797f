"""`boothlab inspect`: a look inside a finished training run."""

from pathlib import Path
from typing import Any

from boothlab.commands.help import HelpPage, asks_for_help, print_help
from boothlab.compose.run import run as run_composed
from boothlab.compose.typed import from_resolved
from boothlab.config import TrainConfig
from boothlab.config_inspect import InspectConfig
from boothlab.errors import UserError
from boothlab.files import read_json, sha256_file, shown
from boothlab.progress import Reporter
from boothlab.tracking.lock import owned
from boothlab.tracking.manifest import read_manifest

HELP = HelpPage(
    config_name="inspect",
    usage="boothlab inspect run=DIR [key=value …]",
    about="A look inside a finished training run: forward noise, denoising steps, VAE, cross-attention, CLIP matrix, "
    "best of n, the adapter's norms and ranks, memorisation and language drift. Leaves inspect.html, PNGs and CSVs.",
    examples=(
        ("boothlab inspect run=outputs/train/RUN", "everything, into RUN/inspect/"),
        ("boothlab inspect run=outputs/train/RUN parts=[anatomy,memorisation]", "two parts"),
        (
            "boothlab inspect run=outputs/train/RUN without=[best_of] prompt='a {token} {class} in the snow' seed=3",
            "all but one",
        ),
        (
            "boothlab inspect run=outputs/train/RUN unet_scale=0.6 out=weaker",
            "a weaker adapter, into a folder of its own",
        ),
    ),
)


def run(argv: list[str]) -> int:
    """Run the command and return its exit code."""
    if asks_for_help(argv):
        return print_help(HELP, argv)
    return run_composed(HELP.config_name, inspect, argv)


def inspect(config: InspectConfig, resolved: dict[str, Any], run_dir: Path, one_of_many: bool) -> dict[str, Any]:
    """One inspection, or nothing if it is finished and the adapter is the same; returns its summary.

    `run_dir` is Hydra's and not used: the files go to inspect/ in the run folder, or to `out`.
    """
    from boothlab.tracking.show import finished_summary

    reporter = Reporter(quiet=one_of_many)
    trained_dir = Path(config.run).expanduser()
    trained = _finished_training(trained_dir)
    from boothlab.building.inspect import build_inspect_run, identity

    full_hash = identity(resolved)
    folder = Path(config.out).expanduser() if config.out else trained_dir / "inspect" / f"inspect-{full_hash[:8]}"
    summary = finished_summary(folder)
    if summary and not config.paths.overwrite and _is_of(folder, full_hash, trained_dir, bool(config.out)):
        reporter.say(
            f"{folder / 'inspect.html'} (paths.overwrite=true looks again)", tag="finished already", style="green"
        )
        return summary
    reporter.say(f"inspecting {trained_dir} into {folder}")
    with owned(folder):
        inspection = build_inspect_run(config, trained, trained_dir, resolved, folder, reporter)
        with inspection.tracker:
            inspection.execute()
    return finished_summary(folder) or {}


def _finished_training(folder: Path) -> TrainConfig:
    """The config of a finished training. Raises UserError for any other folder."""
    from boothlab.tracking.show import finished_summary

    if not folder.is_dir():
        raise UserError(f"run={shown(folder)}: there is no such folder; give the folder of a finished training run")
    manifest = read_manifest(folder)
    if "lora" not in manifest["config"]:
        raise UserError(f"run={shown(folder)}: is not a training run; give the folder of one")
    method = manifest["config"].get("method", "lora")
    if method != "lora":
        raise UserError(
            f"run={shown(folder)}: trained by method={method}; what inspect takes apart are adapters (lora)"
        )
    if finished_summary(folder) is None:
        status = manifest.get("status")
        raise UserError(f"run={shown(folder)}: is not finished ({status}); run the training again, and it goes on")
    trained, _ = from_resolved(manifest["config"], TrainConfig)
    return trained


def _is_of(folder: Path, full_hash: str, trained_dir: Path, chosen: bool) -> bool:
    """Whether a finished inspection shows this adapter under this config; one of another adapter is made again.

    UserError if it lies in a folder that the user chose and shows something else.
    """
    from boothlab.diffusion.lora import find_adapter

    record: Any = read_json(folder / "inspect.json")
    known = record if isinstance(record, dict) else {}
    same = known.get("config_hash") == full_hash and known.get("adapter") == sha256_file(find_adapter(trained_dir))
    if chosen and not same:
        raise UserError(
            f"out={shown(folder)}: holds another inspection; choose another folder, or paths.overwrite=true"
        )
    return same

"""`boothlab train … --dry-run`: what one training would train, keep in memory, write and take, and nothing is done."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from boothlab.compose.run import compose
from boothlab.compose.typed import load
from boothlab.config import TrainConfig
from boothlab.errors import UserError
from boothlab.progress import Reporter
from boothlab.sweeping.estimate import estimate_seconds, past_costs, shown_seconds, work_of
from boothlab.sweeping.run import DRY_RUN

KEYS = {"dry_run=true": True, "dry_run=True": True, "dry_run=false": False, "dry_run=False": False}


def normalised(argv: Sequence[str]) -> list[str]:
    """`dry_run=true` as the option it stands for; it is no key of the config, so that no run is named after it."""
    words = [word for word in argv if KEYS.get(word, True)]
    return [DRY_RUN if word in KEYS else word for word in words]


def asks_for_one(argv: Sequence[str]) -> bool:
    """Whether a dry run of a single training is asked for; those of many show their plan."""
    many = any(word in ("-m", "--multirun") or word.startswith("hydra.mode=") for word in argv)
    return DRY_RUN in argv and not many


def show_one(config_name: str, argv: Sequence[str]) -> int:
    """Print the forecast of one training; returns 0. Raises UserError for bad input, as the training would."""
    config, resolved = load(compose(config_name, [word for word in argv if word != DRY_RUN]), TrainConfig)
    from boothlab.building.forecast import Forecast, forecast  # torch: only once the config is known to be good
    from boothlab.building.methods import check_optimizer

    reporter = Reporter()
    found: Forecast = forecast(config)
    console = reporter.console
    console.print(Text(f"shapes from {found.known_from}"))
    table = Table(title=Text(f"what method={config.method.value} trains"), title_justify="left")
    for column, justify in (("component", "left"), ("trained", "right"), ("of", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for name in [*found.whole, *(name for name in found.trained if name not in found.whole)]:
        table.add_row(name, f"{found.trained.get(name, 0):,}", f"{found.whole[name]:,}" if name in found.whole else "")
    console.print(table)
    console.print(Text(f"files     {shown_bytes(found.file_bytes)} for users at the end"))
    for title, parts in (("memory, training", found.training), ("memory, evaluating", found.evaluating)):
        if parts:
            console.print(_sum(title, parts))
    console.print(Text(f"memory    {shown_bytes(found.peak)} at the peak, as worked out above"))
    console.print(Text(f"time      {_time(config, resolved)}"))
    try:
        check_optimizer(config, "")
    except UserError as error:
        reporter.warn(str(error))
    return 0


def shown_bytes(size: int) -> str:
    """3.21 GiB, 512.00 MiB or 12.3 KiB."""
    for unit, width in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= width:
            return f"{size / width:.2f} {unit}"
    return f"{size / 1024:.1f} KiB"


def _sum(title: str, parts: Sequence[Any]) -> Table:
    table = Table(title=Text(title), title_justify="left")
    for column, justify in (("part", "left"), ("worked out as", "left"), ("", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for part in parts:
        table.add_row(Text(part.what), Text(part.how), shown_bytes(part.size))
    table.add_section()
    table.add_row("sum", "", shown_bytes(sum(part.size for part in parts)))
    return table


def _time(config: TrainConfig, resolved: dict[str, Any]) -> str:
    """By past runs of the same kind, else by two steps done now where the model is small, else unknown."""
    past = past_costs(Path(config.paths.outputs))
    seconds = estimate_seconds([(resolved, 0)], past) if past else None
    if seconds is not None:
        return f"about {shown_seconds(seconds)}, judged by past runs in {config.paths.outputs}"
    from boothlab.building.forecast import measured_seconds

    measured = measured_seconds(config)
    if measured is None:
        return "unknown: no past runs of this backbone to judge by, and it is too large to try"
    steps, images = work_of(resolved)
    whole = shown_seconds(steps * measured[0] + images * measured[1])
    return (
        f"about {whole} here: {steps} steps of {measured[0]:.2f} s and {images} images of {measured[1]:.2f} s, as tried"
    )

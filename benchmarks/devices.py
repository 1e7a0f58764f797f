"""One run on one device and on several, in turn: python benchmarks/devices.py [--devices 1 2] [key=value …].

The same command in new folders, with an empty cache, so that class images are drawn as well. What a step and an
evaluation take is read from the runs' own metrics.jsonl, less the first row, which warms up.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from boothlab.tracking import metrics


@dataclass(frozen=True)
class Run:
    """One run: seconds of the whole command, of a step and of drawing an evaluation, and its losses by step."""

    whole: float
    step: float
    drawing: float
    losses: list[float]


def measure(devices: int, overrides: list[str]) -> Run:
    """Run the command once."""
    with tempfile.TemporaryDirectory() as folder:
        words = [f"trainer.devices={devices}", f"paths.outputs={folder}/out", f"paths.cache={folder}/cache"]
        started = time.perf_counter()
        command = [sys.executable, "-m", "boothlab", "train", *words, "tracking.wandb=disabled", *overrides]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        whole = time.perf_counter() - started
        (history,) = Path(folder).glob("out/*/*/metrics.jsonl")
        rows: list[dict[str, Any]] = [json.loads(line) for line in history.read_text(encoding="utf-8").splitlines()]
    scalars = [row.get("scalars", row) for row in rows]

    def column(key: str) -> list[float]:
        return [row[key] for row in scalars if key in row]

    drawing = column(metrics.SAMPLING_SECONDS)[1:]
    step = statistics.median(column(metrics.TRAIN_STEP_SECONDS)[1:])
    return Run(whole, step, statistics.median(drawing) if drawing else float("nan"), column(metrics.TRAIN_LOSS))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("overrides", nargs="*", help="of the run, e.g. backbone=sd15 backbone.source=/models/sd15")
    args = parser.parse_args()
    overrides = ["seed=0", "trainer.max_steps=60", "trainer.checkpoint_every=20", *args.overrides]
    found: dict[int, list[Run]] = {count: [] for count in args.devices}
    for _ in range(args.rounds):
        for count in args.devices:
            found[count].append(measure(count, overrides))
            print(f"{count} devices: {found[count][-1].whole:.1f} s", flush=True)
    one = found[args.devices[0]]
    table = Table(title=f"medians of {args.rounds} rounds; load {os.getloadavg()[0]:.1f} at the end")
    for title in ("devices", "step", "", "drawing", "", "whole command", "", "largest difference of a loss"):
        table.add_column(title, justify="right")
    for count, runs in found.items():
        cells = [str(count)]
        for name in ("step", "drawing", "whole"):
            value, base = (statistics.median(getattr(run, name) for run in some) for some in (runs, one))
            cells += [f"{1000 * value:.0f} ms" if name == "step" else f"{value:.1f} s", f"{base / value:.2f}×"]
        pairs = [
            abs(ours - theirs) / abs(theirs)
            for run in runs
            for ours, theirs in zip(run.losses, one[0].losses, strict=True)
        ]
        table.add_row(*cells, f"{max(pairs):.1e}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()

"""Do the settings move the scores the way the published study says? python benchmarks/directions.py [--write FILE]

Runs learning rate, rank, text encoder and prior preservation, three seeds each, on the dollhouse as `boothlab train`
jobs (finished ones are not run again), and prints for each axis whether CLIP-I, DINO and CLIP-T moved in the expected
direction.
A score of a run is its best over the checkpoints, as in the study.
"""

import argparse
import platform
import statistics
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from boothlab.tracking import metrics
from boothlab.tracking.history import FILE_NAME, read_history
from boothlab.tracking.show import value_of

EXPERIMENT = "directions"
SEEDS = (0, 1, 2)
SCORES = (("CLIP-I", metrics.CLIP_I), ("DINO", metrics.DINO), ("CLIP-T", metrics.CLIP_T))


@dataclass(frozen=True)
class Axis:
    """Settings in the order in which fidelity should rise (`up`) or fall, and what each one overrides."""

    name: str
    up: bool
    settings: tuple[tuple[str, tuple[str, ...]], ...]


AXES = (
    Axis("learning rate", True, tuple((lr, (f"optim.lr={lr}",)) for lr in ("1e-4", "5e-4", "2e-3"))),
    Axis("rank", True, tuple((str(rank), (f"lora.rank={rank}",)) for rank in (2, 8, 32))),
    Axis("text encoder", True, (("frozen", ()), ("trained", ("lora.train_text_encoder=true",)))),
    Axis("prior preservation", False, (("off", ()), ("on", ("prior.enabled=true",)))),
)


def run(overrides: tuple[str, ...], seed: int, outputs: Path, common: list[str]) -> dict[str, float]:
    """Train (or find) one run and give its best score over the checkpoints for each metric."""
    name = "-".join(part.split(".")[-1].replace("=", "") for part in overrides) or "default"
    settings = [f"experiment={EXPERIMENT}", f"name={name}", f"seed={seed}", f"paths.outputs={outputs}"]
    command = [sys.executable, "-m", "boothlab", "train", "tracking.wandb=disabled", *settings, *common, *overrides]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    folders = sorted((outputs / EXPERIMENT).glob(f"{name}-????????-s{seed}"), key=lambda path: path.stat().st_mtime)
    rows = [row for row in read_history(folders[-1] / FILE_NAME).rows if row.step > 0]
    found = {key: [value for row in rows if (value := value_of(row, key)) is not None] for _, key in SCORES}
    return {key: max(values) for key, values in found.items()}


def direction(means: list[float], up: bool) -> str:
    """Whether the means move as expected from each setting to the next."""
    steps = [after - before for before, after in pairwise(means)]
    holds = all(step > 0 for step in steps) if up else all(step < 0 for step in steps)
    ends = (means[-1] - means[0] > 0) == up
    return "yes" if holds else ("ends only" if ends else "**no**")


def table(axis: Axis, outputs: Path, common: list[str]) -> list[str]:
    """One axis as markdown."""
    lines = ["| " + " | ".join([axis.name, *(name for name, _ in SCORES)]) + " |", "|---|---|---|---|"]
    means: dict[str, list[float]] = {key: [] for _, key in SCORES}
    for label, overrides in axis.settings:
        runs = [run(overrides, seed, outputs, common) for seed in SEEDS]
        cells = []
        for _, key in SCORES:
            values = [found[key] for found in runs]
            means[key].append(statistics.mean(values))
            cells.append(f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
        print(lines[-1], file=sys.stderr, flush=True)
    verdicts = [direction(means[key], axis.up if name != "CLIP-T" else not axis.up) for name, key in SCORES]
    expected = ["rises" if axis.up else "falls"] * 2 + ["falls" if axis.up else "rises"]
    cells = [f"{want}: {verdict}" for want, verdict in zip(expected, verdicts, strict=True)]
    return [*lines, "| *expected, and so?* | " + " | ".join(cells) + " |", ""]


def main() -> None:
    """Run all axes and print (or write) the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outputs", type=Path, default=Path("outputs"))
    parser.add_argument("--write", type=Path, help="write the tables to this file")
    parser.add_argument("overrides", nargs="*", help="for every run")
    args = parser.parse_args()
    lines = [line for axis in AXES for line in table(axis, args.outputs, args.overrides)]
    where = f"{platform.machine()} CPU, {torch.get_num_threads()} threads, torch {torch.__version__}"
    text = "\n".join([*lines, f"Mean ± standard deviation over seeds {SEEDS}; {where}.", ""])
    if args.write:
        args.write.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

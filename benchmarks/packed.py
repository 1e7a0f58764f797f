"""Packed against one at a time and against processes side by side: python benchmarks/packed.py [--jobs 16] [key=value].

The same multirun by each way, one after another in one session: seconds of the whole command, so that what starting
costs counts. `--rounds 2` repeats all in turn and takes the faster of each. The limit is arithmetic: what one sample
costs the bare network in the largest batch, against what it costs alone; no packing can be faster than that.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from boothlab.diffusion.backbone import load_backbone


@dataclass
class Row:
    """One way of running the jobs: seconds of the whole command, and the largest memory of one process in MiB."""

    way: str
    seconds: float
    peak_mib: float


def measure(way: str, jobs: int, overrides: list[str]) -> Row:
    """Run the multirun once, in folders of its own but for the cache, which is warm."""
    with tempfile.TemporaryDirectory() as folder:
        words = [f"seed=range({jobs})", f"paths.outputs={folder}", "tracking.wandb=disabled", *overrides]
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "boothlab", "train", "-m", *words],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        finished = len(list(Path(folder).glob("*/*/lora/*.safetensors")))
    if finished != jobs:
        raise RuntimeError(f"{way}: {finished} of {jobs} jobs finished")
    return Row(way, seconds, peak / 1024 if peak > before else float("nan"))


def limit(source: str, batch: int) -> float:
    """How much cheaper a sample is in a batch of 64 than in the job's own: forward and backward of the bare UNet."""
    backbone = load_backbone(source, name="bench", resolution=32 if source == "dollhouse" else 512,
                             device=torch.device("cpu"))  # fmt: skip

    def seconds(rows: int) -> float:
        noisy = torch.randn(rows, *backbone.latent_shape, requires_grad=True)
        text = backbone.embed(backbone.tokenize(["a photo"] * rows))
        times = torch.randint(1000, (rows,))
        best = float("inf")
        for _ in range(6):
            started = time.perf_counter()
            backbone.predict(noisy, times, text).pow(2).mean().backward()
            best = min(best, time.perf_counter() - started)
        return best / rows

    return seconds(batch) / seconds(64)


def show(rows: list[Row], jobs: int, ceiling: float) -> None:
    """A table of all ways."""
    base = rows[0].seconds
    table = Table(title=f"{jobs} jobs; limit by the batch's arithmetic, same threads: {ceiling:.1f}x")
    for column in ("way", "seconds", "a job", "speed-up", "peak memory of a process"):
        table.add_column(column)
    for row in rows:
        table.add_row(row.way, f"{row.seconds:.1f}", f"{row.seconds / jobs:.2f}", f"{base / row.seconds:.2f}x",
                      f"{row.peak_mib:.0f} MiB")  # fmt: skip
    Console(width=120).print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=16)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--source", default="dollhouse", help="backbone for the limit")
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*", help="for the jobs, e.g. evaluation.enabled=true")
    args = parser.parse_args()
    plain = ["evaluation.enabled=false", f"data.batch_size={args.batch}", f"trainer.max_steps={args.steps}",
             f"trainer.checkpoint_every={args.steps}", *args.overrides]  # fmt: skip
    ways = {"one at a time": plain}
    if args.processes and args.processes > 1:
        beside = ["hydra/launcher=boothlab_joblib", f"hydra.launcher.n_jobs={args.processes}", "trainer.threads=1"]
        ways[f"{args.processes} processes"] = [*plain, *beside]
    for size in args.sizes:
        if size <= args.jobs:
            ways[f"packed, {size} at once"] = [*plain, "hydra/launcher=packed", f"hydra.launcher.jobs={size}"]
    if args.processes and args.processes > 1:
        size = max(1, args.jobs // args.processes)
        ways[f"{args.processes} processes of packs of {size}"] = [*plain, *beside, f"sweep.pack={size}"]
    best: dict[str, Row] = {}
    measure("warm-up", 1, plain)
    for _ in range(args.rounds):
        for way, overrides in ways.items():
            row = measure(way, args.jobs, overrides)
            print(f"{way}: {row.seconds:.1f} s", flush=True)
            if way not in best or row.seconds < best[way].seconds:
                best[way] = row
    ceiling = limit(args.source, args.batch)
    show(list(best.values()), args.jobs, ceiling)
    if args.json:
        device = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
        found = {"device": device, "jobs": args.jobs, "steps": args.steps, "batch": args.batch, "limit": ceiling}
        rows = [asdict(row) for row in best.values()]
        args.json.write_text(json.dumps({**found, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

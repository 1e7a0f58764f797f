"""What a sweep costs beside its jobs: python benchmarks/sweep.py [--jobs 4] [key=value …].

First a sweep of real jobs: the seconds of the whole command over those of the jobs themselves. Then the same command on
50 finished jobs, which has nothing to do but to see that.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from boothlab.files import write_json


def command(outputs: Path, *overrides: str) -> float:
    """Seconds of one `boothlab sweep seeds`."""
    words = [f"paths.outputs={outputs}", "tracking.wandb=disabled", "--no-report", *overrides]
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "boothlab", "sweep", "seeds", *words],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - started


def own_seconds(outputs: Path) -> list[float]:
    """The time that each job's training, drawing and scoring took."""
    return [
        float(json.loads(path.read_text(encoding="utf-8"))["timings"]["training_seconds"])
        for path in sorted(outputs.glob("*/*/summary.json"))
    ]


def finished_fifty(outputs: Path) -> float:
    """Seconds to see that 50 jobs are finished."""
    from boothlab.commands.sweep import sweep_files
    from boothlab.commands.train import train
    from boothlab.compose.jobs import Multirun
    from boothlab.compose.run import run

    folders: list[Path] = []

    def note(jobs: Multirun) -> int:
        folders.extend(job.run_dir for job in jobs.jobs)
        return 0

    run(
        "train",
        train,
        ["--config-name", "seeds", "-m", f"paths.outputs={outputs}", "seed=range(50)"],
        note,
        search_in=sweep_files()["seeds"].parent,
    )
    for folder in folders:
        folder.mkdir(parents=True)
        write_json(folder / "summary.json", {"status": "finished"})
    return command(outputs, "seed=range(50)")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("overrides", nargs="*", help="for the real jobs")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outputs = Path(folder) / "real"
        whole = command(outputs, f"seed=range({args.jobs})", *args.overrides)
        jobs = own_seconds(outputs)
        share = whole / sum(jobs) - 1
        print(f"{len(jobs)} jobs: {whole:.1f} s in all, {sum(jobs):.1f} s in the jobs themselves: {share:.1%} more")
        print(f"50 finished jobs: {finished_fifty(Path(folder) / 'finished'):.1f} s")


if __name__ == "__main__":
    main()

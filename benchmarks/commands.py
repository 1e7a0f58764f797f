"""Wall-clock seconds of the commands a user waits for: `make bench`."""

import platform
import subprocess
import sys
import tempfile
import time

COMMANDS = (
    ("boothlab --help", ["--help"], 3),
    ("boothlab train --help", ["train", "--help"], 3),
    ("boothlab train --cfg job", ["train", "--cfg", "job"], 3),
    ("boothlab train", ["train", "tracking.wandb=disabled"], 1),
)


def seconds(arguments: list[str], repeats: int) -> float:
    """The best of a few runs, each in a process of its own; a training writes to a folder that is thrown away."""
    best = float("inf")
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="boothlab-bench-") as folder:
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "boothlab", *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL
            )
            best = min(best, time.perf_counter() - start)
    return best


if __name__ == "__main__":
    print(f"{platform.machine()}, Python {platform.python_version()}")
    for label, arguments, repeats in COMMANDS:
        print(f"{label:<26} {seconds(arguments, repeats):7.2f} s", flush=True)

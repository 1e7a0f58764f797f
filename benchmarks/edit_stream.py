"""What an editing run of many images costs: images a second, and the peak of memory, which should not grow with them.

`python benchmarks/edit_stream.py [N …] [--side PIXELS] [--methods copy,sdedit]`: for each number of photos (200 and
2000) a folder of noise and gradients with a side-car caption each, one edit, and `boothlab edit` with the dollhouse in
a process of its own. What a run may keep of an image is its place, its texts and its scores, and no pixels.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

EDITS = """
- name: night
  instruction: make it night
  target_caption: "{caption}, at night"
"""


@dataclass(frozen=True)
class Cost:
    """One run: seconds of wall time, the start of the process included; peak resident memory in bytes."""

    images: int
    seconds: float
    peak: int


def photos(folder: Path, count: int, side: int) -> Path:
    """A folder of so many pictures, each with a caption of its own."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 255, (4, 4, 3), np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"photo_{index:05d}.png")
        (folder / f"photo_{index:05d}.txt").write_text(f"a photo of room number {index}", encoding="utf-8")
    return folder


def edited(root: Path, images: Path, method: str) -> Cost:
    """One run in a fresh process; the peak is the system's own count for it. Raises CalledProcessError if it fails."""
    words = [
        *("edit", f"method={method}", f"data.images={images}", f"data.file={root / 'edits.yaml'}", "steps=4"),
        *("strength=0.5", "threads=1", "accelerator=cpu", "tracking.wandb=disabled", f"paths.outputs={root / 'out'}"),
        *(f"experiment={images.name}", f"paths.cache={root / 'cache'}"),
    ]
    log = root / f"{images.name}-{method}.log"
    started = time.perf_counter()
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-m", "boothlab", *words], stdout=file, stderr=file)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if code := os.waitstatus_to_exitcode(status):
        print(log.read_text(encoding="utf-8")[-2000:], file=sys.stderr)
        raise subprocess.CalledProcessError(code, words)
    scale = 1 if sys.platform == "darwin" else 1024
    return Cost(len(list(images.glob("*.png"))), seconds, usage.ru_maxrss * scale)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("counts", nargs="*", type=int, default=[200, 2000])
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--methods", default="copy,sdedit")
    arguments = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {arguments.side} px, one thread, batches of the config's size"
    )
    print(f"{'method':8} {'images':>7} {'seconds':>8} {'images/s':>9} {'peak MB':>8} {'bytes/image more':>17}")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        (root / "edits.yaml").write_text(EDITS, encoding="utf-8")
        folders = [photos(root / f"n{count}", count, arguments.side) for count in arguments.counts]
        for method in arguments.methods.split(","):
            before: Cost | None = None
            for folder in folders:
                cost = edited(root, folder, method)
                more = f"{(cost.peak - before.peak) / (cost.images - before.images):17.0f}" if before else f"{'':17}"
                rate = cost.images / cost.seconds
                row = f"{method:8} {cost.images:7} {cost.seconds:8.1f} {rate:9.1f} {cost.peak / 1e6:8.0f} {more}"
                print(row, flush=True)
                before = cost


if __name__ == "__main__":
    main()

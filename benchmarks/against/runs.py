"""Whole commands in processes of their own: their time, their memory, and when their steps were done."""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import psutil

LAUNCHER = Path(__file__).parent / "launcher.py"
WATCH_EVERY = 0.05
"""Seconds between two looks at the memory of a process and its children."""


@dataclass(frozen=True)
class Measured:
    """One command: seconds by the clock and of processor time (user + system, children included); MiB; bytes."""

    wall: float
    processor: float
    first_step: float
    first_step_processor: float
    step: float
    step_processor: float
    steps: int
    memory: float
    cuda_memory: float | None
    file_size: int = 0
    loss: float = float("nan")


class CommandFailedError(RuntimeError):
    """A command that ended with another exit code than 0; says the last lines it wrote."""


def measure(arguments: Sequence[str], folder: Path, changes: Mapping[str, str], stand_in: Path | None) -> Measured:
    """Run `launcher.py` on the arguments in `folder`. Raises CommandFailedError."""
    folder.mkdir(parents=True, exist_ok=True)
    notes, said = folder / "notes.json", folder / "said.txt"
    extra = ["--stand-in", str(stand_in)] if stand_in is not None else []
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with said.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            [sys.executable, str(LAUNCHER), str(notes), *extra, *arguments],
            cwd=folder, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **changes},
        )  # fmt: skip
        memory = _watch(process)
    wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode != 0:
        lines = said.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise CommandFailedError("\n".join(lines[-6:]))
    noted = json.loads(notes.read_text(encoding="utf-8"))
    ends, processor = noted["steps"], noted["processor"]
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak = None if noted["cuda_peak"] is None else noted["cuda_peak"] / 2**20
    return Measured(
        wall, used, ends[0] - started, processor[0], _middle(ends), _middle(processor), len(ends), memory, peak
    )


def _middle(ends: Sequence[float]) -> float:
    """The median time between the ends of two steps, the first few left out; NaN for fewer than two steps."""
    gaps = [after - before for before, after in pairwise(ends)]
    late = gaps[5:] if len(gaps) > 10 else gaps
    return statistics.median(late) if late else float("nan")


def _watch(process: "subprocess.Popen[bytes]") -> float:
    """Wait for a process; the most memory, in MiB, that it and its children had at one look."""
    peak, watched = 0, psutil.Process(process.pid)
    while process.poll() is None:
        total = 0
        try:
            for one in (watched, *watched.children(recursive=True)):
                total += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
        peak = max(peak, total)
        time.sleep(WATCH_EVERY)
    return peak / 2**20


def summary(rounds: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """Of each figure the median, the least and the most over the rounds; figures that are not there are left out."""
    tables = [asdict(one) for one in rounds]
    found = {}
    for name in tables[0]:
        values = [table[name] for table in tables if table[name] is not None]
        if values:
            found[name] = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return found

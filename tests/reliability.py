"""Tries every fault for real, after 50 kills at random moments, and prints what survived; `make reliability`.

    python tests/reliability.py [--kills 50] [--minutes 30] [--write docs/reliability.md]

Exit code 0: nothing was lost and everything was tried. 1: something was lost, or the time ran out before the end.
"""

import argparse
import os
import platform
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

import boothlab
import kill_sweep
from boothlab.files import write_text
from fault_bench import Bench, CannotInjectError
from faults import FAULTS
from tiny_pipelines import build

KILLED = "a sweep killed with SIGKILL at random moments"
AT_ONCE = 2
"""Cases tried side by side."""


@dataclass(frozen=True)
class Tried:
    """How one case ended: `lost` says what was lost, `left_out` why it was not tried; both are empty if it survived."""

    fault: str
    case: str
    cases: int = 1
    lost: str = ""
    left_out: str = ""


def try_fault(fault: str, case: str, attempt: Callable[[], None]) -> Tried:
    """One case, and how it ended; whatever it raises is a loss."""
    started = time.monotonic()
    try:
        attempt()
        found = Tried(fault, case)
    except CannotInjectError as reason:
        found = Tried(fault, case, left_out=str(reason))
    except Exception as error:
        found = Tried(fault, case, lost=f"{type(error).__name__}: {error}")
    how = f"LOST {found.lost}" if found.lost else f"not tried: {found.left_out}" if found.left_out else "survived"
    print(f"{fault}, {case}: {how} ({time.monotonic() - started:.0f} s)", flush=True)
    return found


def try_kills(folder: Path, pipeline: Path, kills: int, seed: int, deadline: float) -> list[Tried]:
    """The sweep under kills: a row for each place at which they fell, so that the table says how many fell there."""
    try:
        outcome = kill_sweep.kill_sweep(folder, pipeline, kills, seed, deadline=deadline)
    except Exception as error:
        return [Tried(KILLED, "all", kills, lost=f"{type(error).__name__}: {error}")]
    print(outcome.line(), flush=True)
    lost = "; ".join(outcome.differences[:5])
    tried = [Tried(KILLED, f"in {place}", number, lost) for place, number in outcome.places.items() if number]
    if outcome.kills < kills:
        tried.append(Tried(KILLED, f"{kills - outcome.kills} kills", left_out="the time or the sweep was over before"))
    return tried


def try_everything(folder: Path, kills: int, seed: int, deadline: float, only: str = "") -> list[Tried]:
    """The kills, and every fault whose title and case match `only`, two at a time; none begins after `deadline`."""
    pipeline = build("sd15", folder / "pipeline")
    bench = Bench(folder / "faults", pipeline)

    def attempt(index: int, case: str) -> Tried:
        if time.monotonic() > deadline:
            return Tried(FAULTS[index].title, case, left_out="the time was over")
        return try_fault(FAULTS[index].title, case, lambda: FAULTS[index].run(bench, case))

    wanted = [(index, case) for index, fault in enumerate(FAULTS) for case in fault.cases]
    wanted = [(index, case) for index, case in wanted if re.search(only, f"{FAULTS[index].title}: {case}")]
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        first = [pool.submit(try_kills, folder / "kills", pipeline, kills, seed, deadline)] if kills else []
        others = [pool.submit(attempt, index, case) for index, case in wanted]
        return [*(one for future in first for one in future.result()), *(future.result() for future in others)]
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C, say, those that have begun clean up and no other begins


def table(tried: Sequence[Tried]) -> str:
    """fault | cases tried | survived | lost, with a sum."""
    rows = ["| fault | cases tried | survived | lost |", "|---|---|---|---|"]
    total = [0, 0]
    for title in dict.fromkeys(one.fault for one in tried):
        mine = [one for one in tried if one.fault == title and not one.left_out]
        cases, lost = sum(one.cases for one in mine), sum(one.cases for one in mine if one.lost)
        if cases:
            names = ", ".join(f"{one.case} {one.cases}" if one.cases > 1 else one.case for one in mine)
            rows.append(f"| {title}: {names} | {cases} | {cases - lost} | {lost} |")
        total = [total[0] + cases, total[1] + lost]
    rows.append(f"| **all** | **{total[0]}** | **{total[0] - total[1]}** | **{total[1]}** |")
    return "\n".join(rows)


def device() -> str:
    """Processor, cores, system and versions: nothing that names this machine."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (match := re.search(r"model name\s*: (.+)", cpuinfo.read_text(encoding="utf-8"))):
        processor = match[1].strip()
    system = f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, boothlab {boothlab.__version__}"
    return f"{processor}, {os.cpu_count()} cores, {system}, {versions}"


MEANING = """\
**Survived** means, for every case:

- What was on disk when the fault came is still there and unaltered: rows of metrics.jsonl, whole checkpoints, samples.
- The command ended with the exit code for it and, unless it was killed outright, one clear last line and no
  traceback: 2 for what the user can mend (a full or read-only disk, a folder in use), 1 for a run that failed (no
  memory, no number), 130 and 143 for Ctrl-C and SIGTERM, 0 where the run does without (cache, W&B, clock).
- Once the cause was mended, the same command went on after the newest whole checkpoint and ended with the adapter, the
  metrics, the images, the checkpoints and the manifest of a run that nothing disturbed, bit for bit, with no
  half-written file left. For the killed sweep: all 12 runs, and runs.csv byte for byte."""


def page(tried: Sequence[Tried], minutes: float) -> str:
    """docs/reliability.md; paths of this machine are left out of it."""
    lost = [f"- {one.fault}, {one.case}: {re.sub(r'(/[^/ ]+)+/', '…/', one.lost)[:300]}" for one in tried if one.lost]
    left_out = [f"- {one.fault}, {one.case}: {one.left_out}" for one in tried if one.left_out]
    parts = [
        "# Reliability: faults, put in for real",
        "Written by `make reliability`, which makes this page anew. Every fault is real: signals are sent, small\n"
        "disks fill up, bits in files are turned over, a W&B server on the same machine goes away.",
        f"{datetime.now(UTC):%Y-%m-%d}, {device()}, {minutes:.0f} minutes.",
        table(tried),
        *(["## Lost", "\n".join(lost)] if lost else []),
        *(["## Not tried", "\n".join(left_out)] if left_out else []),
        "## What the words mean",
        MEANING,
        "## What is not tried",
        "A power cut (files are synced before they are renamed, which is as far as a program can go), a file system\n"
        "that loses what it has confirmed, faults of a GPU, and more than one machine on one run folder.",
        "Each case is a function in `tests/faults.py`, and a test: `python -m pytest tests/test_faults.py`.",
    ]
    return "\n\n".join(parts) + "\n"


@contextmanager
def workplace(asked: Path | None) -> Iterator[Path]:
    """The folder that was asked for, which stays, or one that goes."""
    if asked is not None:
        asked.mkdir(parents=True)
        yield asked
        return
    with tempfile.TemporaryDirectory(prefix="boothlab-reliability-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def main() -> int:
    """Try, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=30.0, help="no kill and no case begins after so many")
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which the sweep is killed")
    parser.add_argument("--folder", type=Path, help="keeps everything in this new folder, for a look at what was lost")
    parser.add_argument(
        "--only", default="", help="faults that match this regular expression, as in --kills 0 --only disk"
    )
    parser.add_argument("--write", type=Path, help="a page with the table, such as docs/reliability.md")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of `finally`, where small disks are unmounted
    started = time.monotonic()
    deadline = started + 60 * arguments.minutes
    with workplace(arguments.folder) as folder:
        tried = try_everything(folder, arguments.kills, arguments.seed, deadline, arguments.only)
    print("\n" + table(tried))
    if arguments.write:
        write_text(arguments.write, page(tried, (time.monotonic() - started) / 60))
    late = [one for one in tried if one.left_out.startswith("the time")]
    print(f"{len([one for one in tried if one.lost])} cases lost something; {len(late)} not tried for want of time")
    return 1 if late or any(one.lost for one in tried) else 0


if __name__ == "__main__":
    sys.exit(main())

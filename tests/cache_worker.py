"""What each process of test_cache's concurrency test runs: a module without torch, so that spawning it is cheap."""

import os
import time
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

from boothlab.cache import Cache


def ask(root: str, barrier: Barrier, results: "Queue[list[str]]") -> None:
    """Ask for one folder at the same moment as the others; leave a trace if this process is the one that makes it."""

    def make(folder: Path) -> None:
        (Path(root) / f"made-{os.getpid()}").touch()
        for index in range(5):
            (folder / f"{index}.txt").write_text(str(index))
            time.sleep(0.02)

    barrier.wait()
    folder = Cache(Path(root) / "cache").get_or_make_files("k", {"a": 1}, make)
    results.put(sorted(path.name for path in folder.iterdir()))

"""More processes for the same search: started with it, waited for at its end, ended with it."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from boothlab.files import shown
from boothlab.progress import Reporter
from boothlab.search.storage import worker_folder

PATIENCE_S = 30.0
"""How long a worker that is told to end may take to close its run."""


@contextmanager
def more_workers(command: Sequence[str], count: int, storage: Path, reporter: Reporter) -> Iterator[None]:
    """Run `command` `count` times beside the block, each with its output in a log file, and wait for all of them.

    If the block raises, they are told to end; what they were running can be gone on with.
    """
    folder = worker_folder(storage.absolute())
    started: list[tuple[subprocess.Popen[bytes], Path]] = []
    try:
        if count:
            folder.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            log = folder / f"worker-{index + 2}.txt"
            with log.open("wb") as output:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
            started.append((process, log))
            reporter.say(f"worker {index + 2} writes to {shown(log)}")
        yield
        for process, log in started:
            if code := process.wait():
                reporter.warn(f"a worker ended with exit code {code}; {shown(log)} says why")
    except BaseException:
        for process, _ in started:
            process.terminate()
        for process, _ in started:
            _reap(process)
        raise


def _reap(process: subprocess.Popen[bytes]) -> None:
    with suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE_S)
        return
    process.kill()
    process.wait()

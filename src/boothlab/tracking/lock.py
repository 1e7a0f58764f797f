"""One process a run folder: who works in it now, and refusal of a second one."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import filelock

from boothlab.errors import UserError
from boothlab.files import read_json, remove_leftovers_below, shown, storage_errors, write_json

FOLDER = ".locks"
#: whoever looks at a lock holds it for a moment, and a sweep looks at all its jobs' twice a second
PATIENCE_S = 0.5


class RunInUseError(UserError):
    """The run folder belongs to another process that is alive."""


@dataclass(frozen=True)
class Owner:
    """The process that works in a run folder."""

    pid: int
    host: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


def _files(run_dir: Path) -> tuple[Path, Path]:
    """The lock and its owner, beside the run folder: a lock that is deleted with the run would be free at once."""
    folder = run_dir.resolve().parent / FOLDER
    return folder / f"{run_dir.resolve().name}.lock", folder / f"{run_dir.resolve().name}.json"


def _read_owner(run_dir: Path) -> Owner:
    try:
        found = read_json(_files(run_dir)[1])
        return Owner(int(found["pid"]), str(found["host"]), str(found["since"]))  # type: ignore[index]
    except (UserError, OSError, KeyError, TypeError, ValueError):
        return Owner(0, "an unknown host", "an unknown time")


def last_owner(run_dir: Path) -> Owner | None:
    """Who works in a run folder now, or was killed in it; None after an owner that left by itself."""
    return _read_owner(run_dir) if _files(run_dir)[1].exists() else None


def owner_of(run_dir: Path) -> Owner | None:
    """Who works in a run folder now; None if nobody does. What a killed process left behind does not count."""
    path = _files(run_dir)[0]
    if not path.exists():
        return None
    lock = filelock.FileLock(path, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        return _read_owner(run_dir)
    except OSError:
        return None
    lock.release()
    return None


@contextmanager
def owned(run_dir: Path) -> Iterator[None]:
    """Work in a run folder alone. Raises RunInUseError, naming the owner, if another process already does.

    The operating system drops the lock with the process, however that ends. Half-written temporary files that an
    earlier owner left when it was killed are removed.
    """
    path, owner = _files(run_dir)
    lock = filelock.FileLock(path, timeout=PATIENCE_S)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(poll_interval=0.01)
    except filelock.Timeout as error:
        raise RunInUseError(
            f"{shown(run_dir)} is in use by {_read_owner(run_dir)}; wait for it, or stop it first"
        ) from error
    except OSError:
        with storage_errors(path):
            raise
    try:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(owner, asdict(Owner(os.getpid(), socket.gethostname(), now)))
        remove_leftovers_below(run_dir)
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()

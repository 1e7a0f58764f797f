"""The file of a study: Optuna's journal, the lock for choosing, and who of its workers is still alive."""

import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import filelock
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from boothlab.errors import UserError
from boothlab.files import shown

_RECORD = b'{"op_code":'
"""How every line of a journal begins."""


def worker_folder(storage: Path) -> Path:
    """Where the workers of a storage file keep their locks and logs."""
    return storage.with_name(f"{storage.name}.workers")


class Worker:
    """This process's claim on the trials it runs: a lock that the operating system releases when the process ends.

    Unlike a process number it is never taken for another process's, and it works across containers and over network
    file systems that know `flock`. Use it as a context manager around a search.
    """

    def __init__(self, storage: Path):
        self._folder = worker_folder(storage)
        #: tells a person which process it was; told apart by the random end
        self.name = f"{_safe(socket.gethostname())}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._lock = filelock.FileLock(self._path(self.name))
        self._choosing = filelock.FileLock(self._folder / "choosing.lock")

    def _path(self, name: str) -> Path:
        return self._folder / f"{_safe(name)}.lock"

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        self._path(self.name).unlink(missing_ok=True)

    @contextmanager
    def choosing(self) -> Iterator[None]:
        """One worker at a time decides what to run next, so that no point is run twice."""
        with self._choosing:
            yield

    def is_gone(self, name: str) -> bool:
        """Whether the worker of that name has ended, however it did. Only while `choosing`."""
        if name == self.name:
            return False
        path = self._path(name)
        if not path.exists():
            return True
        lock = filelock.FileLock(path)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            return False
        lock.release()
        path.unlink(missing_ok=True)
        return True


def _safe(name: str) -> str:
    return "".join(char if char.isalnum() or char in "-_." else "-" for char in name)


def open_storage(path: Path) -> JournalStorage:
    """Optuna's journal in a file, for several processes at once; made if missing.

    The path is made absolute: the lock is its sibling, and stays the same wherever a worker was started. Raises
    UserError if the file cannot be written or is no journal.
    """
    path = path.absolute()
    lock = JournalFileOpenLock(str(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            _check_beginning(path)
            _drop_torn_line(path, lock)
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot use {shown(path)}: {reason}; choose another search.storage") from error
    except (ValueError, KeyError, TypeError, AssertionError) as error:  # a line of it is not what Optuna wrote
        raise UserError(f"{shown(path)} is not the journal of a search; choose another search.storage") from error


def _check_beginning(path: Path) -> None:
    """Optuna would take any single line for an empty journal, and write behind it. Raises ValueError."""
    with path.open("rb") as file:
        beginning = file.read(len(_RECORD))
    if not _RECORD.startswith(beginning):
        raise ValueError("not a journal")


def _drop_torn_line(path: Path, lock: JournalFileOpenLock) -> None:
    """Cut off a last line without its end, left by a full disk or a power cut.

    Optuna would write the next record behind it, and then could read neither. The line was never acknowledged.
    """
    if path.read_bytes()[-1:] in (b"", b"\n"):
        return
    lock.acquire()  # and look again: another worker may have been in the middle of the line
    try:
        with path.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
    finally:
        with suppress(RuntimeError):
            lock.release()

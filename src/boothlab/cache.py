"""The content-addressed cache: tensors and folders kept under a hash of everything they were made from."""

import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import filelock
import platformdirs

from boothlab.errors import UserError
from boothlab.files import (
    atomic_directory,
    is_clutter,
    is_unwritable,
    read_json,
    remove_leftovers,
    sha256_bytes,
    sha256_file,
    shown,
    write_bytes,
    write_json,
)
from boothlab.turns import undivided

# torch is imported where tensors are handled: a folder of files, or a key, does not need those seconds.
if TYPE_CHECKING:
    from torch import Tensor

ENVIRONMENT_VARIABLE = "BOOTHLAB_CACHE"
_SIDECAR = "entry.json"
_PAYLOAD = "payload.safetensors"
_FOLDER = "files"
_PATIENCE_S = 5.0
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class _DamagedError(Exception):
    """An entry that is there but is not what was written."""


def cache_root(explicit: str | None = None) -> Path:
    """The cache folder: `explicit`, else $BOOTHLAB_CACHE, else the user's cache folder. Empty text counts as unset."""
    chosen = explicit or os.environ.get(ENVIRONMENT_VARIABLE)
    if not chosen:
        return platformdirs.user_cache_path("boothlab", appauthor=False)
    try:
        return Path(chosen).expanduser()
    except RuntimeError as error:
        raise UserError(f"the cache folder {shown(chosen)} names an unknown home; give a full path") from error


def cache_key(kind: str, /, **parts: object) -> str:
    """SHA-256 (64 hexadecimal digits) of `kind` and `parts` as canonical JSON: the same on every platform.

    The order of keys does not count; types do (1, 1.0, True and "1" give four keys), except that a tuple counts as
    the list and an Enum of str or int as its value. Parts are to describe content: give a file's hash, not its path.

    Raises:
        TypeError: a part with no JSON form, or a dict key that is not a string.
        ValueError: a NaN or infinite number.
    """
    _check_keys(parts)
    text = json.dumps(
        {"kind": kind, "parts": parts}, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False
    )
    # Not ASCII escapes: they write a pair of lone surrogates and the character they would form alike.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Cache:
    """Entries at root/kind/key, each a folder with a sidecar entry.json that holds the key's parts and the hashes.

    An entry is made once, under a lock between processes and threads, and appears whole or not at all; it is
    verified at each read, and a damaged one is made again with a warning. Where the cache cannot be written, values are
    made and used without it, with one warning. A `make` must not ask for the entry it is making.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self._warned = False
        self._scratch: list[tempfile.TemporaryDirectory[str]] = []

    def get_or_make(
        self, kind: str, key_parts: Mapping[str, object], make: "Callable[[], dict[str, Tensor]]"
    ) -> "dict[str, Tensor]":
        """The tensors under (kind, key_parts), made by `make` if they are not there.

        Always detached, contiguous CPU tensors that share no memory, so that a first run and a later one compute with
        the same. Exceptions of `make` pass unchanged and leave no entry.

        Raises:
            TypeError: `make` returned something else than a dict of tensors; or see `cache_key`.
            ValueError: a `kind` that is not lowercase letters, digits, - and _; or see `cache_key`.
        """
        entry = self._locate(kind, key_parts)
        found = self._find(entry, _read_tensors, quiet=True)
        if found is not None:
            return found
        with undivided(), self._lock(entry) as locked:
            if locked and (found := self._find(entry, _read_tensors)) is not None:
                return found
            tensors = _plain_tensors(make())
            if locked:
                try:
                    _store(entry, key_parts, tensors)
                except (UserError, OSError) as error:
                    self._warn_unwritable(error)
            return tensors

    def get_or_make_files(self, kind: str, key_parts: Mapping[str, object], make: Callable[[Path], None]) -> Path:
        """The folder under (kind, key_parts), filled by `make(empty_folder)` if it is not there.

        Treat the folder as read-only. Where the cache cannot be written it is a temporary folder that lives as long as
        this Cache; so too where its disk fills up meanwhile: it is then made again there. Other exceptions of `make`
        pass unchanged and leave no entry. Raises TypeError and ValueError as `get_or_make` does.
        """
        entry = self._locate(kind, key_parts)
        found = self._find(entry, _read_files, quiet=True)
        if found is not None:
            return found
        with undivided(), self._lock(entry) as locked:
            if not locked:
                return self._make_in_scratch(make)
            if (found := self._find(entry, _read_files)) is not None:
                return found
            started = False
            try:
                with atomic_directory(entry, replace=True) as building:
                    started = True
                    folder = building / _FOLDER
                    folder.mkdir()
                    make(folder)
                    write_json(building / _SIDECAR, _sidecar(entry, key_parts, _hash_list(folder)))
            except (UserError, OSError) as error:
                cause = error if isinstance(error, OSError) else error.__cause__
                if started and not (isinstance(cause, OSError) and is_unwritable(cause)):
                    raise
                self._warn_unwritable(error)
                return self._make_in_scratch(make)
            return entry / _FOLDER

    def _locate(self, kind: str, key_parts: Mapping[str, object]) -> Path:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", kind) or kind == "locks":
            raise ValueError(f"a cache kind is lowercase letters, digits, - and _ (and not 'locks'), got {kind!r}")
        return self.root / kind / cache_key(kind, **key_parts)

    def _find(self, entry: Path, read: Callable[[Path], _T], *, quiet: bool = False) -> _T | None:
        """The entry's verified content, or None if it is absent or damaged (said so unless `quiet`)."""
        try:
            # lexists: a dangling link or a stray file in the entry's place is damage, not absence.
            return read(entry) if os.path.lexists(entry) else None
        except _DamagedError as damage:
            if not quiet:  # the look without the lock may fall into another process's repair; the one with it cannot
                _log.warning("the cache entry %s is damaged (%s); it is made again", shown(entry), damage)
            return None

    @contextmanager
    def _lock(self, entry: Path) -> Iterator[bool]:
        """Hold the entry's lock; gives False, after a warning, where the cache cannot be written."""
        lock = None
        try:
            folder = self.root / "locks"
            folder.mkdir(parents=True, exist_ok=True)
            entry.parent.mkdir(exist_ok=True)
            lock = filelock.FileLock(folder / f"{entry.parent.name}-{entry.name}.lock")
            try:
                lock.acquire(timeout=_PATIENCE_S)
            except filelock.Timeout:
                _log.info("waiting for another process that makes %s", shown(entry))
                lock.acquire()
            remove_leftovers(entry)
        except (OSError, NotImplementedError) as error:
            self._warn_unwritable(error)
            lock = None
        try:
            yield lock is not None
        finally:
            if lock is not None:
                lock.release()

    def _make_in_scratch(self, make: Callable[[Path], None]) -> Path:
        scratch = tempfile.TemporaryDirectory(prefix="boothlab-", ignore_cleanup_errors=True)
        try:
            make(Path(scratch.name))
        except BaseException:
            scratch.cleanup()
            raise
        self._scratch.append(scratch)
        return Path(scratch.name)

    def _warn_unwritable(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            hint = f"set {ENVIRONMENT_VARIABLE} to a folder with space that you may write to"
            _log.warning("the cache %s cannot be written (%s); going on without it; %s", shown(self.root), error, hint)


def _store(entry: Path, key_parts: Mapping[str, object], tensors: "dict[str, Tensor]") -> None:
    import safetensors.torch

    payload = safetensors.torch.save(tensors)
    with atomic_directory(entry, replace=True) as building:
        write_bytes(building / _PAYLOAD, payload)
        write_json(building / _SIDECAR, _sidecar(entry, key_parts, {_PAYLOAD: sha256_bytes(payload)}))


def _sidecar(entry: Path, key_parts: Mapping[str, object], hashes: dict[str, str]) -> dict[str, object]:
    return {"kind": entry.parent.name, "key": entry.name, "parts": dict(key_parts), "sha256": hashes}


def _read_sidecar(entry: Path) -> dict[str, str]:
    """The entry's hashes by file name, once the sidecar is seen to belong to this entry. Raises _DamagedError."""
    kind, key = entry.parent.name, entry.name
    try:
        sidecar = read_json(entry / _SIDECAR)
    except UserError as error:
        raise _DamagedError(str(error)) from error
    if not isinstance(sidecar, dict) or (sidecar.get("kind"), sidecar.get("key")) != (kind, key):
        raise _DamagedError("its sidecar belongs to another entry")
    parts, hashes = sidecar.get("parts"), sidecar.get("sha256")
    try:
        intact = isinstance(parts, dict) and isinstance(hashes, dict) and cache_key(kind, **parts) == key
    except (TypeError, ValueError):  # Python's JSON reader lets NaN in
        intact = False
    if not intact:
        raise _DamagedError("its sidecar was altered")
    return cast(dict[str, str], hashes)


def _read_tensors(entry: Path) -> "dict[str, Tensor]":
    import safetensors.torch

    hashes = _read_sidecar(entry)
    try:
        payload = (entry / _PAYLOAD).read_bytes()  # read once, so that what is verified is what is used
    except OSError as error:
        raise _DamagedError(f"{_PAYLOAD}: {error.strerror or error}") from error
    if hashes.get(_PAYLOAD) != sha256_bytes(payload):
        raise _DamagedError(f"{_PAYLOAD} was altered or cut short")
    try:
        return dict(sorted(safetensors.torch.load(payload).items()))
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise _DamagedError(f"{_PAYLOAD}: {error}") from error


def _read_files(entry: Path) -> Path:
    expected = _read_sidecar(entry)
    if not (entry / _FOLDER).is_dir():
        raise _DamagedError(f"the folder {_FOLDER} is missing")
    try:
        found = _hash_list(entry / _FOLDER)
    except (UserError, OSError) as error:
        raise _DamagedError(str(error)) from error
    if expected != found:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise _DamagedError(f"{shown(wrong[0])} is missing, altered or not its own; {len(wrong)} such file(s)")
    return entry / _FOLDER


def _hash_list(folder: Path) -> dict[str, str]:
    """SHA-256 by path relative to `folder`, with slashes; what file browsers leave behind (.DS_Store) is left out."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not is_clutter(path.name)]
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


def _plain_tensors(tensors: object) -> "dict[str, Tensor]":
    """The tensors as they come back from disk: sorted by name, on the CPU, detached, contiguous, nothing shared."""
    import torch

    if not isinstance(tensors, dict):
        raise TypeError(f"a cache entry is a dict of tensors, got {type(tensors).__name__}")
    for name, value in tensors.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise TypeError(f"a cache entry is a dict of tensors, got {name!r}: {type(value).__name__}")
    return {
        name: tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        for name, tensor in sorted(tensors.items())
    }


def _check_keys(value: object) -> None:
    """Refuse dict keys that JSON would turn into strings, and so make equal to others."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"the keys of cache parts must be strings, got {key!r}")
            _check_keys(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_keys(item)

"""Writing and hashing files: every file boothlab leaves on disk is written here, whole or not at all."""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from boothlab.errors import UserError

_CLUTTER = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})
PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
"""Endings of weights that are pickled, and so can run code when they are read."""
_DEEPEST = 100
"""Levels of a JSON file; ours have a handful."""
_TEMPORARY = re.compile(r"\..{1,50}\.[0-9a-f]{16}\.tmp", re.DOTALL)  # what _sibling gives
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG}
_REMEDIES = {
    errno.EROFS: ("the file system is read-only", "choose another folder"),
    errno.EACCES: ("permission denied", "choose a folder you may write to, or change its permissions"),
    errno.EPERM: ("permission denied", "choose a folder you may write to, or change its permissions"),
    errno.EISDIR: ("a folder of that name is in the way", "move it away or choose another name"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "move that file away or choose another folder"),
    errno.EEXIST: ("something of that name is in the way", "move it away or choose another name"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
}


def shown(path: Path | str) -> str:
    """The path as text fit for a one-line UTF-8 message: control characters and undecodable bytes are escaped."""
    text = str(path).encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def is_clutter(name: str) -> bool:
    """Whether a file of this name is left behind by an operating system (dotfiles, Thumbs.db, desktop.ini)."""
    return name.startswith(".") or name.lower() in _CLUTTER


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write `data` so that a reader sees the old file or the whole new one, never a part: see `write_chunks`."""
    write_chunks(path, (data,))


def write_chunks(path: Path | str, chunks: Iterable[bytes]) -> None:
    """Write one piece after another, so that a reader sees the old file or the whole new one, never a part.

    Missing parent folders are made. The temporary file is a hidden sibling, removed on any failure. An existing
    symbolic link at `path` is replaced by the file. Raises UserError (disk full, read-only, no permission, …).
    """
    target = Path(path)
    temporary = _sibling(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Mode "x" and not mkstemp: the file gets the permissions the user's umask asks for, not 0600.
            with temporary.open("xb") as file:
                file.writelines(chunks)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise cannot_write(target, error) from error
    _sync_folder(target.parent)


def write_text(path: Path | str, text: str) -> None:
    """Write text as UTF-8, atomically; line ends are kept as they are on every platform.

    Lone surrogates (from file names that are not valid UTF-8) are written as backslash escapes. Raises UserError.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path | str, value: object) -> None:
    """Write strict JSON, atomically: keys sorted, indented by two, UTF-8, a newline at the end.

    JSON has no NaN: non-finite floats become the strings "nan", "inf" and "-inf", which `float()` reads back, so that
    a diverged metric is not mistaken for a missing one (null). Paths become strings, tuples become lists.

    Raises:
        TypeError: a key that is not a string, or a value with no JSON form.
        UserError: the file cannot be written.
    """
    write_bytes(path, json_bytes(value))


def json_bytes(value: object) -> bytes:
    """What `write_json` writes."""
    plain = _json_safe(value)
    try:
        data = json.dumps(plain, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate; its \uXXXX escape is valid JSON and reads back the same
        data = json.dumps(plain, sort_keys=True, indent=2, allow_nan=False).encode("ascii")
    return data + b"\n"


def json_chunks(lists: Mapping[str, Iterable[object]], values: Mapping[str, object]) -> Iterator[bytes]:
    """The bytes that `write_json` gives an object of these lists and values, a row at a time: for lists of thousands.

    The rows may come from generators; none is kept. TypeError as in `write_json`.
    """
    yield b"{"
    for place, key in enumerate(sorted({*lists, *values})):
        yield (",\n" if place else "\n").encode() + f"  {json.dumps(key, ensure_ascii=False)}: ".encode()
        if key in values:
            yield _indented(values[key], 1)
            continue
        empty = True
        for row in lists[key]:
            yield (b"[" if empty else b",") + b"\n    " + _indented(row, 2)
            empty = False
        yield b"[]" if empty else b"\n  ]"
    yield b"\n}\n"


def _indented(value: object, levels: int) -> bytes:
    """A value's JSON inside an object: JSON has no line ends within texts, so every one is a line of the layout."""
    return json_bytes(value)[:-1].replace(b"\n", b"\n" + b"  " * levels)


def read_json(path: Path | str) -> object:
    """The value in a UTF-8 JSON file. Raises UserError if it is missing, unreadable, not JSON, or absurdly nested."""
    try:
        value: object = json.loads(Path(path).read_text(encoding="utf-8"))
        if _is_deep(value):
            raise ValueError(f"it is nested more than {_DEEPEST} levels deep")
        return value
    except OSError as error:
        raise UserError(f"cannot read {shown(path)}: {error.strerror or error}; check the path") from error
    except (ValueError, RecursionError) as error:
        message = f"{shown(path)} is not valid JSON ({shown(str(error))}); mend it, or delete it and make it again"
        raise UserError(message) from error


def csv_cell(text: str) -> str:
    """A text as a cell of a CSV file: what a spreadsheet would run as a formula gets a quote in front of it."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _is_deep(value: object) -> bool:
    """Whether it is nested so deeply that going through it would end in a RecursionError."""
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            item
            for one in level
            for item in (one.values() if isinstance(one, dict) else one if isinstance(one, list) else ())
            if isinstance(item, dict | list)
        ]
        if not level:
            return False
    return True


def check_shards(folder: Path, where: str) -> None:
    """Refuse an index of weight files that names anything but safetensors files in its own folder.

    Loaders read whatever it names, pickles too. Raises UserError that begins with `where`.
    """
    for path in sorted(folder.glob("*.index.json")):
        index = read_json(path)
        named = index.get("weight_map") if isinstance(index, dict) else None
        shards = sorted({str(shard) for shard in named.values()}) if isinstance(named, dict) else [""]
        for shard in shards:
            if not shard.endswith(".safetensors") or shard != Path(shard).name or "\\" in shard:
                raise UserError(
                    f"{where}{shown(path.name)} names {shown(shard) or 'no weight files'}; it may only name "
                    ".safetensors files beside it: save the model with save_pretrained(..., safe_serialization=True)"
                )


def sha256_bytes(data: bytes) -> str:
    """SHA-256 as 64 lowercase hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path | str) -> str:
    """SHA-256 of a file's content as 64 lowercase hexadecimal digits. Raises UserError if it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {shown(path)}: {error.strerror or error}; check the path") from error


@contextmanager
def atomic_directory(path: Path | str, *, replace: bool = False) -> Iterator[Path]:
    """Build a folder in a hidden temporary sibling, renamed to `path` when the block ends without an exception.

    On any exception, KeyboardInterrupt included, the temporary folder is removed and `path` is untouched. With
    `replace`, whatever stands at `path` is moved aside just before the rename and deleted after it; without, an
    existing `path` is refused. Storage errors (disk full, read-only) in the block become UserError; other
    exceptions of the block pass unchanged.
    """
    target = Path(path)
    temporary = _sibling(target)
    try:
        if not replace and os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    except OSError as error:
        raise cannot_write(target, error) from error
    try:
        try:
            yield temporary
        except OSError as error:
            if error.errno in _FULL or error.errno == errno.EROFS:
                raise cannot_write(target, error) from error
            raise
        try:
            _rename_over(temporary, target)
        except OSError as error:
            raise cannot_write(target, error) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync_folder(target.parent)


def remove_leftovers(path: Path | str) -> None:
    """Delete temporary siblings of `path` left by a killed process. Only for a caller that holds a lock on `path`."""
    target = Path(path)
    prefix = _temporary_prefix(target)
    with suppress(OSError):
        for leftover in list(target.parent.iterdir()):
            if leftover.name.startswith(prefix) and leftover.name.endswith(".tmp"):
                _remove(leftover)


def remove_leftovers_below(folder: Path | str) -> None:
    """Delete every temporary file and folder that killed processes left in a folder or below; links are not followed.

    Only what is named as this module names it (`.NAME.<16 hexadecimal digits>.tmp`) goes. Only for a caller that alone
    writes below `folder`.
    """
    for root, folders, files in os.walk(folder):
        leftovers = [name for name in (*folders, *files) if _TEMPORARY.fullmatch(name)]
        for name in leftovers:
            _remove(Path(root, name))
        folders[:] = [name for name in folders if name not in leftovers]


def _rename_over(temporary: Path, target: Path) -> None:
    """Rename a folder to `target`; what stands there is moved aside first, and back if the rename fails."""
    if not os.path.lexists(target):
        temporary.rename(target)
        return
    aside = _sibling(target)
    target.rename(aside)
    try:
        temporary.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _temporary_prefix(target: Path) -> str:
    # Shortened, so that the longest legal name still has a legal temporary one (255 bytes, 4 a character at most).
    return f".{target.name[:50]}."


def _sibling(target: Path) -> Path:
    return target.with_name(f"{_temporary_prefix(target)}{uuid.uuid4().hex[:16]}.tmp")


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut, where the platform can (not on Windows)."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of this block, which writes to `path` in a way of its own, into a UserError of one line."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


def _json_safe(value: object) -> object:
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"JSON keys must be strings, got {key!r}")
        return {str(key): _json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_safe(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    return str(value) if isinstance(value, Path) else value


def is_unwritable(error: OSError) -> bool:
    """Whether the disk is full or read-only: nothing else about the path is wrong."""
    return error.errno in _FULL or error.errno == errno.EROFS


def cannot_write(path: Path, error: OSError) -> UserError:
    """The one line for an OSError while `path` was written."""
    if error.errno in _FULL:
        what, remedy = "the disk is full (or a quota is used up)", "free some space or choose another folder"
    else:
        default = (error.strerror or str(error), "check the folder or choose another one")
        what, remedy = _REMEDIES.get(error.errno or 0, default)
    return UserError(f"cannot write {shown(path)}: {what}; {remedy}")


_LEFT_BY_A_RUN = (
    *("metrics.jsonl", "metrics.csv", "summary.json", "manifest.json"),
    *("samples", "checkpoints", "tensorboard", "lora", "embedding", "unet", "text_encoder", "text_encoder_2"),
)


def clear_run(run_dir: Path) -> None:
    """Remove what an earlier run left in its folder, keeping Hydra's own notes, which are already the new run's."""
    for name in _LEFT_BY_A_RUN:
        target = run_dir / name
        if target.is_dir() and not target.is_symlink():  # of a link only the link goes: what it points to may be kept
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)

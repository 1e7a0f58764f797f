"""What the published benchmarks' loaders share: their annotation files found and read, each record checked."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from boothlab.editing.names import inside
from boothlab.errors import UserError
from boothlab.files import read_json, shown


def annotations(folder: Path, names: Sequence[str], benchmark: str) -> tuple[Path, Any]:
    """The first of some annotation files that a benchmark's folder has, and what it holds. Raises UserError."""
    for name in names:
        if (folder / name).is_file():
            return folder / name, read_json(folder / name)
    wanted = " or ".join(names)
    below = sorted(path.parent for name in names for path in folder.glob(f"*/{name}")) if folder.is_dir() else []
    hint = f"did you mean {shown(below[0])}?" if below else f"give the folder of {benchmark} that holds it"
    raise UserError(f"{shown(folder)} holds no {wanted}, which {benchmark} has; {hint}")


def record(value: Any, place: str, keys: Sequence[str]) -> dict[str, Any]:
    """The value, if it is a mapping that has all the keys. Raises UserError."""
    if not isinstance(value, dict):
        raise UserError(f"{place}: expected a mapping with {', '.join(keys)}; is this the benchmark's own file?")
    missing = [key for key in keys if key not in value]
    if missing:
        found = ", ".join(shown(key) for key in list(value)[:8]) or "nothing"
        raise UserError(f"{place}: {missing[0]!r} is missing (it has {found}); is this the benchmark's own file?")
    return value


def text_of(item: Mapping[str, Any], key: str, place: str, *, empty: bool = False) -> str:
    """A text of a record, its white space made single spaces. Raises UserError: no text, or empty if it must not be."""
    value = item.get(key)
    if not isinstance(value, str) or any(0xD800 <= ord(char) <= 0xDFFF for char in value):
        raise UserError(f"{place}: {key!r} must be a text; is this the benchmark's own file?")
    text = " ".join(value.split())
    if not text and not empty:
        raise UserError(f"{place}: {key!r} is empty; is this the benchmark's own file?")
    return text


def file_of(folder: Path, relative: str, place: str, what: str) -> Path:
    """A file of the benchmark, named in a record. Raises UserError if it is missing or not inside the folder."""
    path = inside(folder, relative, place, what)
    if not path.is_file():
        raise UserError(f"{place}: there is no {what} {shown(path)}; unpack the benchmark's images there")
    return path


def must_be(value: Any, kind: type, place: str, what: str) -> Any:
    """The value, if it is of a type and not empty. Raises UserError, which says `what` was expected."""
    if not isinstance(value, kind) or not value:
        raise UserError(f"{place}: expected {what}; is this the benchmark's own file?")
    return value

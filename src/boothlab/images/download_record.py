"""The record of a download: a JSON object a line for each result, readable after a kill at any moment."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from boothlab.errors import UserError
from boothlab.files import shown, storage_errors


@dataclass(frozen=True)
class Job:
    """One image: a key that is unique, its address, and the file it becomes, relative to the folder, with slashes."""

    key: str
    url: str
    target: str


@dataclass(frozen=True)
class Result:
    """What became of a job. `final`: trying again would not help. Sizes in pixels and bytes; 0 where nothing came.

    `original_*` are of what was sent, upright; `width`, `height`, `bytes` and `form` of the file that was written.
    """

    key: str
    url: str
    target: str
    ok: bool
    reason: str = ""
    final: bool = False
    attempts: int = 0
    format: str = ""
    original_width: int = 0
    original_height: int = 0
    original_bytes: int = 0
    width: int = 0
    height: int = 0
    bytes: int = 0
    form: str = ""


def read_record(path: Path) -> dict[str, Result]:
    """The last result of each target in a record; lines that are cut short or not ours are passed over."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"cannot read {shown(path)}: {error.strerror or error}; check the path") from error
    found = {}
    for line in lines:
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and (result := _result(row)):
                found[result.target] = result
    return found


def _result(row: Mapping[str, Any]) -> Result | None:
    kinds = {one.name: type(getattr(_EMPTY, one.name)) for one in fields(Result)}
    if set(row) != set(kinds) or any(type(row[name]) is not kind for name, kind in kinds.items()):
        return None
    return Result(**row)


_EMPTY = Result("", "", "", False)


class Lines:
    """The record while it is written: each result is handed to the system at once."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> "Lines":
        with storage_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=0)
            if self._path.stat().st_size and not self._path.read_bytes().endswith(b"\n"):
                self._file.write(b"\n")  # a killed process left half a line
        return self

    def append(self, result: Result) -> None:
        """Write one result. Raises UserError if the disk is full."""
        with storage_errors(self._path):
            self._file.write(json.dumps(asdict(result), sort_keys=True, ensure_ascii=True).encode("ascii") + b"\n")

    def __exit__(self, *error: object) -> None:
        self._file.close()

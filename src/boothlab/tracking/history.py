"""metrics.jsonl, the local truth of a run: every scalar, one JSON object a line, flushed as it is written."""

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, NoReturn

from boothlab.files import storage_errors, write_bytes

FILE_NAME = "metrics.jsonl"
RESERVED = frozenset({"step", "time"})
_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_LARGEST = sys.float_info.max
"""Of a number: a longer integer is no measurement, and cannot be drawn or averaged."""
_LARGEST_STEP = 2**53


@dataclass(frozen=True)
class Row:
    """One line: `step` in optimizer steps, `time` in seconds since the run started, and the scalars by key."""

    step: int
    time: float
    scalars: dict[str, int | float]


@dataclass(frozen=True)
class HistoryFile:
    """The rows of a file in the order they were written, and how many lines could not be read."""

    rows: list[Row]
    dropped: int


def as_scalar(key: str, value: Any) -> int | float:
    """A plain number from a Python, NumPy or one-element torch number. Raises TypeError naming the key otherwise."""
    if isinstance(value, int):  # bool included: True is stored as 1
        return int(value)
    if isinstance(value, float):
        return float(value)
    item = getattr(value, "item", None)
    if item is None:
        raise TypeError(f"the metric {key!r} must be a number, not {type(value).__name__}")
    try:
        number = item()
    except (RuntimeError, ValueError) as error:
        raise TypeError(f"the metric {key!r} must be a single number: {error}") from error
    if not isinstance(number, int | float):
        raise TypeError(f"the metric {key!r} must be a number, not {type(number).__name__}")
    return as_scalar(key, number)


def encode_number(value: int | float) -> int | float | str:
    """The value as valid JSON can hold it: NaN and infinities become the strings "nan", "inf" and "-inf"."""
    if math.isfinite(value):
        return value
    return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")


def decode_number(value: Any) -> int | float:
    """The reverse of `encode_number`. Raises ValueError for anything else than a number or one of its strings."""
    if isinstance(value, str) and value in _NON_FINITE:
        return _NON_FINITE[value]
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _LARGEST:
        raise ValueError("not a number")
    return value


def _decode_line(line: bytes) -> Row:
    """Raises ValueError if the line is not a whole row as `History` writes it."""
    record = json.loads(line.decode("utf-8"), parse_constant=_refuse, object_pairs_hook=_without_doubles)
    step = record.get("step") if isinstance(record, dict) else None
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step <= _LARGEST_STEP:
        raise ValueError("not a row")
    scalars = {key: decode_number(value) for key, value in record.items() if key not in RESERVED}
    time_s = float(decode_number(record.get("time")))
    if not 0 <= time_s < math.inf:
        raise ValueError("not a time")
    return Row(step, time_s, scalars)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are each there once: of two rows that were glued together neither is to be trusted."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def _scan(content: bytes) -> tuple[list[tuple[Row, bytes]], int]:
    """Every readable row with its line, and the number of lines that are not readable."""
    pairs: list[tuple[Row, bytes]] = []
    dropped = 0
    for line in content.split(b"\n"):
        if not line.strip():
            continue
        try:
            pairs.append((_decode_line(line), line))
        except (ValueError, RecursionError):  # JSON and UTF-8 errors are ValueErrors
            dropped += 1
    return pairs, dropped


def read_history(path: Path) -> HistoryFile:
    """Read a metrics.jsonl, also one that is being written or whose last line was cut off by a kill.

    Raises FileNotFoundError if there is no such file.
    """
    pairs, dropped = _scan(path.read_bytes())
    return HistoryFile([row for row, _ in pairs], dropped)


class History:
    """Appends rows to a metrics.jsonl; an existing file is continued, its clock too.

    `clock` returns seconds; only its increases count, so a clock that jumps back never makes time run backwards.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._clock = clock
        self._elapsed = 0.0
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                self._elapsed = max((row.time for row in read_history(path).rows), default=0.0)
            self._last_tick = clock()
            self._file: FileIO | None = self._open()

    def _open(self) -> FileIO:
        file = self.path.open("a+b", buffering=0)  # a buffer would try again, and fail again, when it is closed
        if file.tell() > 0:
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")  # or the next row would be glued to a half line, and both would be lost
        return file

    def elapsed(self) -> float:
        """Seconds since the run started, without the time between an interruption and its resumption."""
        tick = self._clock()
        self._elapsed += max(0.0, tick - self._last_tick)
        self._last_tick = tick
        return self._elapsed

    def log(self, step: int, scalars: Mapping[str, Any]) -> dict[str, int | float]:
        """Append one row and flush it; returns the scalars as plain numbers.

        `step` counts optimizer steps and may repeat. Raises TypeError or ValueError for a step or a value that cannot
        be stored, before anything is written, and UserError if the disk refuses, which leaves the file as it was.
        """
        if self._file is None:
            raise ValueError(f"{self.path} is closed")
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise ValueError(f"the step must be a whole number of at least 0, not {step!r}")
        if taken := RESERVED & set(scalars):
            raise ValueError(f"a metric cannot be called {sorted(taken)[0]!r}: the row itself uses that key")
        plain = {str(key): as_scalar(key, value) for key, value in scalars.items()}
        record: dict[str, int | float | str] = {"step": step, "time": round(self.elapsed(), 4)}
        record.update({key: encode_number(value) for key, value in plain.items()})
        self._append(self._file, json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        return plain

    def _append(self, file: FileIO, line: bytes) -> None:
        with storage_errors(self.path):
            size = file.seek(0, 2)
            left = line
            try:
                while left:  # the last page before a full disk takes a part
                    left = left[file.write(left) :]
            except OSError:
                with suppress(OSError):
                    file.truncate(size)
                raise

    def truncate_after(self, step: int) -> int:
        """Drop the rows of later steps, and unreadable lines, as a run that resumes at `step` needs. Atomic.

        Returns the number of lines dropped.
        """
        if self._file is not None:
            self._file.close()
        pairs, dropped = _scan(self.path.read_bytes())
        kept = [(row, line) for row, line in pairs if row.step <= step]
        write_bytes(self.path, b"".join(line + b"\n" for _, line in kept))
        self._elapsed = max((row.time for row, _ in kept), default=0.0)
        self._last_tick = self._clock()
        self._file = self._open()
        return dropped + len(pairs) - len(kept)

    def close(self) -> None:
        """Close the file; may be called twice."""
        if self._file is not None:
            self._file.close()
            self._file = None

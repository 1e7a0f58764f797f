"""The notebook of a collection's audit: one row a file in SQLite, so that it goes on after a kill and fits any size."""

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from boothlab.errors import UserError
from boothlab.files import cannot_write, shown
from boothlab.images.perceptual import Hashes, Indices

ACCEPTED, REJECTED, IGNORED = "accepted", "rejected", "ignored"
_PAGE = 2000
_TABLE = """
CREATE TABLE IF NOT EXISTS files (
  path BLOB PRIMARY KEY, place INTEGER, stamp TEXT, status TEXT, reason TEXT, width INTEGER, height INTEGER,
  mode TEXT, format TEXT, orientation INTEGER, sha256 TEXT, hash BLOB, duplicate_of BLOB, near_duplicate_of BLOB);
CREATE INDEX IF NOT EXISTS by_place ON files (place);
CREATE TABLE IF NOT EXISTS settings (text TEXT);
"""
SAME_BYTES = "the same bytes as "
"""How the reason begins where a duplicate is rejected."""
_COLUMNS = (
    "path, status, reason, width, height, mode, format, orientation, sha256, hash, duplicate_of, near_duplicate_of"
)


@dataclass(frozen=True)
class FileRecord:
    """What the audit found of one file. `file` is relative to the folder, with forward slashes.

    Width and height are in pixels, upright; mode and format as stored; `orientation` is the EXIF value (1: as stored);
    `hash` is the 64-bit perceptual hash. What could not be known is None.
    """

    file: str
    status: str
    reason: str = ""
    width: int | None = None
    height: int | None = None
    mode: str | None = None
    format: str | None = None
    orientation: int | None = None
    sha256: str | None = None
    hash: int | None = None
    duplicate_of: str | None = None
    near_duplicate_of: str | None = None

    @property
    def aspect(self) -> float | None:
        """Width divided by height."""
        return self.width / self.height if self.width and self.height else None


class CollectionStore:
    """The rows of one audit, in the order of the walk. Made for one thread; `commit` makes what was put safe."""

    def __init__(self, path: Path, settings: str):
        """Opens `path`, anew if it was begun with other `settings` or is damaged. UserError if it cannot be written."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from error
        try:
            self._open(path, settings)
        except sqlite3.DatabaseError:
            path.unlink(missing_ok=True)
            try:
                self._open(path, settings)
            except sqlite3.DatabaseError as error:
                raise UserError(
                    f"cannot write {shown(path)}: {error}; free some space or choose another folder"
                ) from error

    def _open(self, path: Path, settings: str) -> None:
        self._base = sqlite3.connect(path)
        self._base.execute("PRAGMA synchronous=NORMAL")
        self._base.executescript(_TABLE)
        if self._base.execute("SELECT text FROM settings").fetchone() != (settings,):
            self._base.execute("DELETE FROM settings")
            self._base.execute("DELETE FROM files")
            self._base.execute("INSERT INTO settings VALUES (?)", (settings,))
        self.commit()

    def commit(self) -> None:
        """Make what was put so far safe."""
        self._base.commit()

    def close(self) -> None:
        """Commit and close."""
        self._base.commit()
        self._base.close()

    def list_files(self, files: Iterable[tuple[str, str, str]]) -> None:
        """Take over the listing: (file, stamp, why it is ignored or ""). What is known of unchanged files is kept."""
        self._base.execute("UPDATE files SET place = NULL")
        for place, (file, stamp, ignored) in enumerate(files):
            status = IGNORED if ignored else None
            self._base.execute(
                "INSERT INTO files (path, place, stamp, status, reason) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (path) DO UPDATE SET place = excluded.place, stamp = excluded.stamp, "
                "status = CASE WHEN excluded.status IS NULL AND stamp = excluded.stamp AND status != 'ignored' "
                "THEN status ELSE excluded.status END, "
                "reason = CASE WHEN excluded.status IS NULL AND stamp = excluded.stamp THEN reason "
                "ELSE excluded.reason END",
                (_packed(file), place, stamp, status, ignored),
            )
        self._base.execute("DELETE FROM files WHERE place IS NULL")
        self.commit()

    def counts(self) -> dict[str, int]:
        """How many files have each status; those not looked at yet are under `waiting`."""
        return {status or "waiting": count for status, count in self.query("status, count(*)", "GROUP BY status")}

    def waiting(self) -> Iterator[str]:
        """The files that have not been looked at, in order; rows may be put meanwhile."""
        yield from (_unpacked(path) for (path,) in self._pages("path", "status IS NULL"))

    def put(self, record: FileRecord) -> None:
        """Note what was found of a file."""
        self._base.execute(
            "UPDATE files SET status=?, reason=?, width=?, height=?, mode=?, format=?, orientation=?, sha256=?, hash=? "
            "WHERE path=?",
            (
                *(record.status, record.reason, record.width, record.height, record.mode, record.format),
                *(record.orientation, record.sha256),
                None if record.hash is None else record.hash.to_bytes(8, "big"),
                _packed(record.file),
            ),
        )

    def reject(self, file: str, reason: str) -> None:
        """Take back that a file is accepted."""
        self._base.execute("UPDATE files SET status=?, reason=? WHERE path=?", (REJECTED, reason, _packed(file)))

    def note_duplicates(self) -> int:
        """Name for each accepted file the first accepted one with the same bytes; how many have one."""
        self._base.execute("UPDATE files SET duplicate_of = NULL, near_duplicate_of = NULL")
        self._base.execute(  # those that an earlier sitting rejected
            f"UPDATE files SET status = 'accepted', reason = '' "
            f"WHERE status = 'rejected' AND reason LIKE '{SAME_BYTES}%'"
        )
        self._base.execute("CREATE INDEX IF NOT EXISTS by_hash ON files (sha256, place)")
        self._base.execute(
            "UPDATE files SET duplicate_of = (SELECT path FROM files AS other WHERE other.sha256 = files.sha256 AND "
            "other.status = 'accepted' AND other.place < files.place ORDER BY place LIMIT 1) WHERE status = 'accepted'"
        )
        self.commit()
        return int(self.query("count(*)", "WHERE duplicate_of IS NOT NULL")[0][0])

    def hashes(self) -> tuple[Indices, Hashes]:
        """Places and perceptual hashes of the accepted files that are no duplicates of others, in order."""
        rows = self.query("place, hash", "WHERE status='accepted' AND hash IS NOT NULL AND duplicate_of IS NULL "
                          "ORDER BY place")  # fmt: skip
        places = np.fromiter((place for place, _ in rows), dtype=np.int64, count=len(rows))
        hashes = np.fromiter((int.from_bytes(packed, "big") for _, packed in rows), dtype=np.uint64, count=len(rows))
        return places, hashes

    def note_near_duplicates(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Name for files, by place, the earlier one that looks alike."""
        self._base.executemany(
            "UPDATE files SET near_duplicate_of = (SELECT path FROM files WHERE place = ?2) WHERE place = ?1", pairs
        )
        self.commit()

    def records(self, condition: str = "1") -> Iterator[FileRecord]:
        """The rows in order, a page at a time; `condition` is SQL. Rows may be put meanwhile."""
        for row in self._pages(_COLUMNS, condition):
            path, status, *rest, packed, duplicate, near = row
            digest = None if packed is None else int.from_bytes(packed, "big")
            originals = (None if one is None else _unpacked(one) for one in (duplicate, near))
            fields: list[Any] = [_unpacked(path), status, rest[0] or "", *rest[1:], digest, *originals]
            yield FileRecord(*fields)

    def query(self, columns: str, rest: str = "") -> list[tuple[Any, ...]]:
        """Rows of a small question, such as a count; SQL."""
        return self._base.execute(f"SELECT {columns} FROM files {rest}").fetchall()

    def _pages(self, columns: str, condition: str) -> Iterator[tuple[Any, ...]]:
        last = -1
        while rows := self._base.execute(
            f"SELECT place, {columns} FROM files WHERE place > ? AND ({condition}) ORDER BY place LIMIT {_PAGE}",
            (last,),
        ).fetchall():
            yield from (row[1:] for row in rows)
            last = rows[-1][0]


def _packed(file: str) -> bytes:
    return os.fsencode(file)  # a name need not be UTF-8, and SQLite's text must be


def _unpacked(path: bytes) -> str:
    return os.fsdecode(path)

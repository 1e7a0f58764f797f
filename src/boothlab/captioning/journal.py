"""The notebook of a captioning run: one row an image in SQLite, so that a killed run goes on where it was."""

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from boothlab.captioning.tags import ImageTags
from boothlab.errors import UserError
from boothlab.files import shown

KEPT = "kept"
"""The method of a caption that was there before."""
_TABLE = """
CREATE TABLE IF NOT EXISTS captions (
  file BLOB PRIMARY KEY, sha256 TEXT, sidecar BLOB UNIQUE, written INTEGER, row TEXT);
CREATE TABLE IF NOT EXISTS settings (text TEXT);
"""


@dataclass(frozen=True)
class Captioned:
    """The caption of one image. `tags` are those in the caption, `found` all that CLIP finds, if it was asked.

    `note` says what is odd: that the side-car belongs to another image, or that what lies there is unreadable.
    """

    file: str
    group: str
    caption: str
    method: str
    tags: tuple[str, ...] = ()
    found: ImageTags | None = None
    note: str = ""


@dataclass(frozen=True)
class Entry:
    """A row of the journal. `sidecar` is the key of the file that takes the caption; None: it is not written."""

    captioned: Captioned
    sha256: str
    sidecar: str | None


@dataclass
class Journal:
    """What was captioned so far. A caption is noted before its side-car is written, and marked after."""

    path: Path
    settings: str
    _base: sqlite3.Connection = field(init=False)

    def __post_init__(self) -> None:
        try:
            self._open()
        except sqlite3.DatabaseError:
            self.path.unlink(missing_ok=True)
            try:
                self._open()
            except sqlite3.DatabaseError as error:
                raise UserError(f"cannot write {shown(self.path)}: {error}; free some space") from error

    def _open(self) -> None:
        self._base = sqlite3.connect(self.path)
        self._base.execute("PRAGMA synchronous=NORMAL")
        self._base.executescript(_TABLE)
        if self._base.execute("SELECT text FROM settings").fetchone() != (self.settings,):
            self._base.execute("DELETE FROM settings")
            self._base.execute("DELETE FROM captions")
            self._base.execute("INSERT INTO settings VALUES (?)", (self.settings,))
        self._base.commit()

    def close(self) -> None:
        """Close the file."""
        self._base.close()

    def count(self) -> int:
        """How many images are done."""
        return int(self._base.execute("SELECT count(*) FROM captions").fetchone()[0])

    def get(self, file: str, sha256: str | None) -> Captioned | None:
        """What was noted of an image with these bytes."""
        row = self._base.execute("SELECT sha256, row FROM captions WHERE file = ?", (os.fsencode(file),)).fetchone()
        return _captioned(file, row[1]) if row is not None and row[0] == sha256 else None

    def owner(self, sidecar: str) -> str | None:
        """The image whose caption a side-car holds."""
        row = self._base.execute("SELECT file FROM captions WHERE sidecar = ?", (os.fsencode(sidecar),)).fetchone()
        return None if row is None else os.fsdecode(row[0])

    def note(self, entries: Iterable[Entry]) -> None:
        """Note captions and make that safe; those with a side-car are to be written."""
        self._base.executemany(
            "INSERT OR REPLACE INTO captions VALUES (?, ?, ?, ?, ?)",
            [
                (
                    os.fsencode(one.captioned.file),
                    one.sha256,
                    None if one.sidecar is None else os.fsencode(one.sidecar),
                    int(one.sidecar is None or one.captioned.method == KEPT),
                    json.dumps({key: value for key, value in asdict(one.captioned).items() if key != "file"}),
                )
                for one in entries
            ],
        )
        self._base.commit()

    def mark_written(self, files: Sequence[str]) -> None:
        """The side-cars of these images are there now."""
        self._base.executemany("UPDATE captions SET written = 1 WHERE file = ?", [(os.fsencode(one),) for one in files])
        self._base.commit()

    def unwritten(self) -> Iterator[Captioned]:
        """The captions that a killed run noted and may not have written."""
        for file, row in self._base.execute("SELECT file, row FROM captions WHERE written = 0").fetchall():
            yield _captioned(os.fsdecode(file), row)


def _captioned(file: str, row: str) -> Captioned:
    told: dict[str, Any] = json.loads(row)
    found = told["found"]
    tags = None if found is None else ImageTags(
        tuple(found["tags"]), tuple(found["cosines"]), tuple(found["softmax"]), found["gap_10"]
    )  # fmt: skip
    return Captioned(file, **{**told, "tags": tuple(told["tags"]), "found": tags})

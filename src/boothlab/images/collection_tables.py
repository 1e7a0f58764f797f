"""What an audit leaves for people and programs: audit.csv, one row a file, and audit.md with the tables."""

import csv
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from boothlab.files import cannot_write, csv_cell, shown, write_text
from boothlab.images.collection_store import ACCEPTED, IGNORED, REJECTED, CollectionStore, FileRecord

COLUMNS = (
    *("file", "status", "reason", "width", "height", "aspect", "mode", "format", "orientation", "sha256"),
    *("perceptual_hash", "duplicate_of", "near_duplicate_of"),
)
_LISTED = 200
_SIZES = 20
ASPECTS = (0.5, 0.66, 0.74, 0.79, 0.99, 1.01, 1.26, 1.4, 1.6, 1.85, 2.4)
"""Upper edges of the classes of width / height; what is above the last is a class, too."""


@contextmanager
def atomic_stream(path: Path) -> Iterator[IO[str]]:
    """A UTF-8 text file to be written a line at a time; it is at `path` once the block has ended well, or not at all.

    Raises UserError if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:16]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("x", encoding="utf-8", errors="backslashreplace", newline="") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise cannot_write(path, error) from error


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A CSV file, row by row, whole or not at all; cells that a spreadsheet would run are made harmless."""
    with atomic_stream(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            writer.writerow([csv_cell(cell) if isinstance(cell, str) else cell for cell in row])


def write_audit_csv(path: Path, store: CollectionStore) -> None:
    """One row a file, in order of path."""
    write_rows(path, COLUMNS, map(_row, store.records()))


def _row(record: FileRecord) -> list[object]:
    return [
        *(shown(record.file), record.status, record.reason, record.width, record.height),
        None if record.aspect is None else f"{record.aspect:.4f}",
        *(record.mode, record.format, record.orientation, record.sha256),
        None if record.hash is None else f"{record.hash:016x}",
        *(shown(one) if one else None for one in (record.duplicate_of, record.near_duplicate_of)),
    ]


def aspect_counts(store: CollectionStore) -> list[tuple[str, int]]:
    """How many accepted images lie in each class of width / height; empty classes are left out."""
    edges = " ".join(f"WHEN 1.0 * width / height < {edge} THEN {place}" for place, edge in enumerate(ASPECTS))
    found = dict(store.query(f"CASE {edges} ELSE {len(ASPECTS)} END AS class, count(*)",
                             "WHERE status = 'accepted' GROUP BY class"))  # fmt: skip
    return [(_aspect_label(place), found[place]) for place in range(len(ASPECTS) + 1) if place in found]


def _aspect_label(place: int) -> str:
    if place == 0:
        return f"below {ASPECTS[0]:g}"
    if place == len(ASPECTS):
        return f"{ASPECTS[-1]:g} and above"
    low, high = ASPECTS[place - 1], ASPECTS[place]
    known = {(0.66, 0.74): "2:3, 5:7", (0.74, 0.79): "3:4", (0.99, 1.01): "square", (1.26, 1.4): "4:3",
             (1.4, 1.6): "3:2", (1.6, 1.85): "16:10, 16:9"}  # fmt: skip
    named = known.get((low, high))
    return f"{low:g} to {high:g}" + (f" ({named})" if named else "")


def audit_markdown(store: CollectionStore, folder: Path) -> str:
    """The findings as Markdown: counts, tables of sizes, aspect ratios, formats and modes, lists of what is odd.

    Lists end after some hundreds of lines and say how many more audit.csv has.
    """
    counts = store.counts()
    lines = [f"# Audit of {_cell(shown(folder))}", ""]
    duplicates, near = (
        store.query("count(*)", f"WHERE {column} IS NOT NULL")[0][0] for column in ("duplicate_of", "near_duplicate_of")
    )
    told = [(status, counts.get(status, 0)) for status in (ACCEPTED, REJECTED, IGNORED)]
    lines += _table(("files", "count"), [*told, ("duplicates (same bytes)", duplicates), ("near duplicates", near)])
    sizes = store.query("width, height, count(*) AS n", "WHERE status='accepted' GROUP BY width, height "
                        f"ORDER BY n DESC, width, height LIMIT {_SIZES}")  # fmt: skip
    different = len(store.query("DISTINCT width, height", "WHERE status='accepted' LIMIT 100000"))
    title = "Sizes (pixels, upright)" if different <= _SIZES else f"Sizes (the {_SIZES} most frequent of {different})"
    lines += ["", f"## {title}", "", *_table(("size", "images"), [(f"{w}x{h}", n) for w, h, n in sizes])]
    lines += ["", "## Aspect ratios (width / height)", "", *_table(("ratio", "images"), aspect_counts(store))]
    for title, column in (("Formats", "format"), ("Modes", "mode"), ("EXIF orientations", "orientation")):
        found = store.query(f"{column}, count(*) AS n", f"WHERE status='accepted' GROUP BY {column} ORDER BY n DESC, 1")
        lines += ["", f"## {title}", "", *_table((column, "images"), found)]
    lines += _listed(store, "Rejected", "status = 'rejected'", lambda record: record.reason)
    lines += _listed(store, "Accepted with a note", "status = 'accepted' AND reason != ''", lambda one: one.reason)
    lines += _listed(store, "Duplicates", "duplicate_of IS NOT NULL", lambda one: f"same bytes as {one.duplicate_of}")
    lines += _listed(
        store, "Near duplicates", "near_duplicate_of IS NOT NULL", lambda one: f"looks like {one.near_duplicate_of}"
    )
    lines += _listed(store, "Ignored", "status = 'ignored' AND reason != 'caption'", lambda record: record.reason)
    return "\n".join(lines) + "\n"


def write_audit_markdown(path: Path, store: CollectionStore, folder: Path) -> None:
    """Write `audit_markdown`."""
    write_text(path, audit_markdown(store, folder))


def _listed(store: CollectionStore, title: str, condition: str, told: Callable[[FileRecord], str]) -> list[str]:
    count = store.query("count(*)", f"WHERE {condition}")[0][0]
    if not count:
        return []
    rows: list[tuple[str, str]] = []
    for record in store.records(condition):
        if len(rows) == _LISTED:
            break
        rows.append((record.file, told(record)))
    more = [f"\nand {count - _LISTED} more, in audit.csv"] if count > _LISTED else []
    return ["", f"## {title} ({count})", "", *_table(("file", "why"), rows), *more]


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    head = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return head + [f"| {' | '.join(_cell(shown(str(cell))) for cell in row)} |" for row in rows]


def _cell(text: str) -> str:
    """Text in a Markdown table: a file's name is no markup."""
    return "".join(f"\\{char}" if char in "\\`*_{}[]<>#|~" else char for char in text)

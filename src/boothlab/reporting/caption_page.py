"""The page of a captioning run, which works from a file without any network: tables, sizes, a gallery."""

import base64
import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from boothlab import __version__
from boothlab.errors import UserError
from boothlab.files import csv_cell, write_text
from boothlab.images.load import read_image
from boothlab.reporting.page import _environment, _policy, _script, _template, script_json

MOST_ACCEPTED, MOST_REJECTED, MOST_LISTED, MOST_GROUPS = 240, 60, 300, 100
THUMBNAIL = 168
_BINS = 32
FIGURES = {
    "tags_per_image": ("tags an image", "mean"),
    "top1_cosine": ("cosine of the best label", "mean over images; raw CLIP cosine, no probability"),
    "gap_10": ("gap to the tenth label", "best cosine less the tenth's, mean over images"),
    "distinct_tags_per_group": ("distinct tags a group", "mean over groups"),
    "distinct_tags": ("distinct tags", "in the whole collection"),
}


@dataclass
class Card:
    """An image in the gallery. `picture` is a data URI, empty where the image cannot be read."""

    file: str
    size: str
    picture: str
    caption: str = ""
    method: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass
class _Audit:
    """audit.csv read once, a row at a time: counts, and as many rows as the page shows."""

    status: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    orientations: Counter[str] = field(default_factory=Counter)
    longer: list[int] = field(default_factory=list)
    aspects: list[float] = field(default_factory=list)
    rejected: list[dict[str, str]] = field(default_factory=list)
    odd: list[tuple[str, str]] = field(default_factory=list)
    duplicates: int = 0
    near: int = 0


def write_caption_page(run_dir: Path, images: Path, figures: Mapping[str, float]) -> None:
    """Write report.html into the run folder from its audit.csv, captions.jsonl and groups.csv.

    The page asks for nothing over the network and its policy forbids it. It shows some hundreds of images, taken
    evenly over the collection; the files have all. Raises UserError if it cannot be written.
    """
    audit = _read_audit(run_dir / "audit.csv")
    rows = _evenly(run_dir / "audit.csv", audit.status["accepted"], MOST_ACCEPTED)
    captions = _captions(run_dir / "captions.jsonl", {row["file"] for row in rows})
    accepted = [_card(images, row, captions.get(row["file"])) for row in rows]
    rejected = [_card(images, row, None) for row in audit.rejected[:MOST_REJECTED]]
    write_text(run_dir / "report.html", _render(run_dir, images, audit, accepted, rejected, figures))


def _render(
    run_dir: Path, images: Path, audit: _Audit, accepted: list[Card], rejected: list[Card], figures: Mapping[str, float]
) -> str:
    from plotly.offline import get_plotlyjs  # here: a third of a second

    js, plotly = _script(_template("caption.js")), _script(get_plotlyjs())
    data = {"longer": _histogram(audit.longer), "aspect": _histogram(audit.aspects)}
    groups = list(_rows(run_dir / "groups.csv")) if (run_dir / "groups.csv").exists() else []
    return (
        _environment()
        .get_template("caption.html.j2")
        .render(
            version=__version__,
            folder=str(images),
            run=run_dir.name,
            policy=_policy(js, plotly),
            css=Markup("\n".join(map(_template, ("report.css", "caption.css")))),
            js=Markup(js),
            plotly=Markup(plotly),
            data=Markup(script_json(data)),
            audit=audit,
            tables=_tables(audit),
            figures=[(*FIGURES[name], f"{value:.4g}") for name, value in figures.items() if name in FIGURES],
            groups=groups[:MOST_GROUPS],
            groups_count=len(groups),
            accepted=accepted,
            rejected=rejected,
            most_listed=MOST_LISTED,
        )
    )


def _tables(audit: _Audit) -> list[tuple[str, list[tuple[str, int]], int]]:
    """Title, the most frequent values with their counts, and how many more there are."""
    found = (("Size", audit.sizes), ("Format", audit.formats), ("Mode", audit.modes), ("EXIF", audit.orientations))
    return [(title, counts.most_common(12), max(len(counts) - 12, 0)) for title, counts in found if counts]


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _read_audit(path: Path) -> _Audit:
    audit = _Audit()
    for row in _rows(path):
        audit.status[row["status"]] += 1
        audit.duplicates += bool(row["duplicate_of"])
        audit.near += bool(row["near_duplicate_of"])
        if row["status"] == "rejected" and len(audit.rejected) < MOST_LISTED:
            audit.rejected.append(row)
        if row["status"] != "accepted":
            continue
        audit.sizes[f"{row['width']}×{row['height']}"] += 1
        audit.formats[row["format"]] += 1
        audit.modes[row["mode"]] += 1
        audit.orientations[row["orientation"]] += 1
        audit.longer.append(max(int(row["width"]), int(row["height"])))
        audit.aspects.append(float(row["aspect"]))
        audit.odd += [(row["file"], note) for note in _notes(row) if len(audit.odd) < MOST_LISTED]
    return audit


def _notes(row: Mapping[str, str]) -> list[str]:
    told = [row["reason"]] if row["reason"] else []
    told += [f"same bytes as {row['duplicate_of']}"] if row["duplicate_of"] else []
    return told + ([f"looks like {row['near_duplicate_of']}"] if row["near_duplicate_of"] else [])


def _evenly(path: Path, count: int, most: int) -> list[dict[str, str]]:
    """At most so many of the accepted rows, evenly spread."""
    wanted = {index * count // most for index in range(most)} if count > most else set(range(count))
    accepted = (row for row in _rows(path) if row["status"] == "accepted")
    return [row for index, row in enumerate(accepted) if index in wanted]


def _captions(path: Path, files: set[str]) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    found: dict[str, dict[str, Any]] = {}
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            name = csv_cell(row["file"])
            if name in files:
                found[name] = row
    return found


def _card(images: Path, row: Mapping[str, str], told: Mapping[str, Any] | None) -> Card:
    size = f"{row['width']}×{row['height']}" if row["width"] else ""
    notes = _notes(row) + ([told["note"]] if told and told.get("note") else [])
    card = Card(_file(row["file"]), size, _thumbnail(images / _file(row["file"])), notes=notes)
    if told:
        card.caption, card.method = told["caption"], told["method"]
    return card


def _file(cell: str) -> str:
    """The name behind a cell of audit.csv."""
    return cell[1:] if cell.startswith(("'=", "'+", "'-", "'@")) else cell


def _thumbnail(path: Path) -> str:
    """A small JPEG, or a PNG of pictures that are small as they are; "" where there is no picture."""
    try:
        image = read_image(path, at_least=THUMBNAIL).image
    except UserError:
        return ""
    small = max(image.size) <= THUMBNAIL
    image.thumbnail((THUMBNAIL * 2, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "PNG") if small else image.save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{'png' if small else 'jpeg'};base64,{data}"


def _histogram(values: Sequence[float]) -> dict[str, list[float]]:
    """Edges and counts of equal bins; a single value has one bin of its own."""
    if not values:
        return {"edges": [], "counts": []}
    low, high = min(values), max(values)
    if low == high:
        return {"edges": [low, high], "counts": [len(values)]}
    counts, edges = np.histogram(np.asarray(values, dtype=np.float64), bins=_BINS)
    return {"edges": [round(float(edge), 4) for edge in edges], "counts": counts.tolist()}

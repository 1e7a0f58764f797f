"""What a part hands over: pictures, charts, tables and numbers of one section of the page, and how they are written."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from boothlab.files import csv_cell, write_text
from boothlab.images.grid import save_png

Cell = str | int | float | bool | None


@dataclass(frozen=True)
class Picture:
    """A picture of the page; `name` is its PNG without the ending. One that the page draws better is a file alone."""

    name: str
    image: Image.Image
    caption: str
    on_page: bool = True


@dataclass(frozen=True)
class Chart:
    """A plot of the page, as plotly's plain traces and layout; colours come from the page's theme."""

    name: str
    title: str
    traces: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any] = field(default_factory=dict)
    height: int = 380


@dataclass(frozen=True)
class Table:
    """A table of the page and a CSV file. `folded` hides it behind its title."""

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    folded: bool = False


@dataclass(frozen=True)
class Fact:
    """One number in large type: what it is, its value as shown, and a line on how to read it."""

    label: str
    value: str
    note: str = ""


@dataclass
class Section:
    """One part as the page shows it. `numbers` go to the history under their metric keys."""

    part: str
    title: str
    about: str
    facts: list[Fact] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)


def write_section(section: Section, folder: Path) -> list[Path]:
    """The section's PNG and CSV files in `folder`; returns the pictures' paths."""
    for table in section.tables:
        write_text(folder / f"{table.name}.csv", table_csv(table))
    paths = []
    for picture in section.pictures:
        paths.append(folder / f"{picture.name}.png")
        save_png(paths[-1], picture.image)
    return paths


def files_of(section: Section) -> list[str]:
    """The names of the files that `write_section` writes."""
    return [*(f"{one.name}.csv" for one in section.tables), *(f"{one.name}.png" for one in section.pictures)]


def table_csv(table: Table) -> str:
    """The table as CSV; a missing value is an empty cell, and no text can be a formula."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    for row in table.rows:
        writer.writerow([csv_cell(value) if isinstance(value, str) else value for value in row])
    return text.getvalue()

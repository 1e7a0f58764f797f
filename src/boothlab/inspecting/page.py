"""An inspection as one page that works from a file, without any network: inspect.html, in the look of the reports."""

import base64
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from boothlab import __version__
from boothlab.files import write_text
from boothlab.images.grid import png_bytes
from boothlab.inspecting.sections import Cell, Section, Table
from boothlab.reporting.page import _policy, _script, _template, script_json

FILE_NAME = "inspect.html"


def write_page(
    sections: Sequence[Section], path: Path, title: str, lead: str, settings: Sequence[tuple[str, str]]
) -> None:
    """Write the page, whole or not at all: it asks for nothing over the network, and its policy forbids it.

    Every text in it is escaped. The same sections give the same bytes. Raises UserError if it cannot be written.
    """
    from plotly.offline import get_plotlyjs  # here: a third of a second

    js = _script("\n".join((_template("report.js"), _own("inspect.js"))))
    plotly = _script(get_plotlyjs())
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("boothlab.inspecting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": figure, "numeric": _is_numeric}
    page = environment.get_template("inspect.html.j2").render(
        title=title,
        lead=lead,
        settings=settings,
        sections=sections,
        sources={one.name: _source(one.image) for section in sections for one in section.pictures if one.on_page},
        version=__version__,
        policy=_policy(js, plotly),
        css=Markup(_template("report.css") + _own("inspect.css")),
        js=Markup(js),
        plotly=Markup(plotly),
        data=Markup(script_json(page_data(sections, title))),
    )
    write_text(path, page)


def page_data(sections: Sequence[Section], title: str) -> dict[str, Any]:
    """What the page's scripts need: the plots. The rest is what the scripts of the reports look for, and empty."""
    empty: dict[str, Any] = {key: [] for key in ("scores", "axes", "keys", "settings", "runs", "prompts", "subjects")}
    charts = [
        {"name": one.name, "traces": list(one.traces), "layout": dict(one.layout), "height": one.height}
        for section in sections
        for one in section.charts
    ]
    return empty | {"title": title, "groups": [{"name": "", "encoders": ""}], "charts": charts}


def figure(value: Cell) -> str:
    """A cell as shown: floats with four digits that count, nothing as a dash."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _is_numeric(table: Table, column: int) -> bool:
    values = [row[column] for row in table.rows if row[column] is not None]
    return bool(values) and all(isinstance(value, int | float) for value in values)


def _source(image: Any) -> str:
    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode("ascii")


def _own(name: str) -> str:
    return (files("boothlab.inspecting") / "templates" / name).read_text(encoding="utf-8")

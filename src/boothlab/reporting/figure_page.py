"""A page of plots and tables that works from a file, without any network; plots are plain data for plotly."""

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from boothlab import __version__
from boothlab.files import write_text
from boothlab.reporting.page import _environment, _policy, _script, _template, script_json

ACCENT, FAINT = "--accent", "--faint"
"""Colours of the page's own look, which plots may name; the page fills them in, light or dark."""


def write_figure_page(
    path: Path, template: str, figures: Mapping[str, Mapping[str, Any]], values: Mapping[str, Any]
) -> None:
    """Write a template's page to `path`, whole or not at all; text in `values` is escaped.

    `figures` are plotly's `data` and `layout` by the id of the element they are drawn in. The page asks for nothing
    over the network and its policy forbids it. The same values give the same bytes. Raises UserError.
    """
    from plotly.offline import get_plotlyjs  # here: a third of a second

    js, plotly = _script(_template("figures.js")), _script(get_plotlyjs())
    environment = _environment()
    environment.filters["figure"] = _figure
    page = environment.get_template(template).render(
        **values,
        version=__version__,
        policy=_policy(js, plotly),
        css=Markup(_template("report.css") + _template("figures.css")),
        js=Markup(js),
        plotly=Markup(plotly),
        data=Markup(script_json(figures)),
    )
    write_text(path, page)


def bars(labels: list[str], values: list[float], axis: str, *, title: str = "", log: bool = False) -> dict[str, Any]:
    """A bar plot across, the first label on top; `title` is of the axis of labels."""
    trace = {
        "type": "bar",
        "orientation": "h",
        "y": [html.escape(label, quote=False) for label in labels],
        "x": values,
        "marker": {"color": ACCENT},
    }
    trace |= {"hovertemplate": "%{y}: %{x:,}<extra></extra>"}
    layout = {
        "xaxis": {"title": {"text": axis}, "type": "log" if log else "linear"},
        "yaxis": {"autorange": "reversed", "type": "category", "automargin": True, "title": {"text": title}},
        "height": 110 + 22 * max(len(labels), 2),
    }
    return {"data": [trace], "layout": layout}


def _figure(value: float | int | None, digits: int = 3) -> str:
    """A number for a table: thousands apart, no digits where they would say nothing, a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:,.{digits}f}"

"""The page of clusters of tagged images: curves, the confusion with known groups, and a gallery of each cluster."""

import base64
import html
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from boothlab.errors import UserError
from boothlab.images.load import load_image
from boothlab.reporting.figure_page import ACCENT, FAINT, write_figure_page

THUMBNAIL = 160
"""The longer side of a picture in the gallery, in pixels."""
ABOUT = {
    "ari": "Adjusted Rand index: pairs of images on which clusters and groups agree, 0 by chance",
    "ami": "Adjusted mutual information: what a cluster tells of the group, 0 by chance",
    "nmi": "Normalised mutual information: not corrected for chance, rises with the number of clusters",
}
_CELLS_SHOWN = 400
"""Cells of the heat map that have their number in them."""


def write_cluster_page(record: Mapping[str, Any], images: Path | None, path: Path) -> None:
    """Write the page of what summary.json and clusters.csv hold; `images` is the folder of the pictures, if known.

    Pictures are small and as many as `record` names; one that cannot be read, or lies outside of the folder, leaves a
    gap. Raises UserError if the place cannot be written.
    """
    clusters = [
        {**one, "pictures": [_pictured(picture, images) for picture in one["pictures"]] if images else []}
        for one in record["clusters"]
    ]
    sections = [("summary", "Summary"), ("number", "How many")]
    sections += [("confusion", "Clusters and groups")] if record["confusion"] else []
    values = {
        "title": "Clusters of tagged images",
        "brand": "boothlab clusters",
        "sections": [*sections, ("clusters", "Clusters")],
        "abouts": ABOUT,
    }
    write_figure_page(path, "clusters.html.j2", _figures(record), {**record, **values, "clusters": clusters})


def _pictured(picture: Mapping[str, Any], images: Path) -> dict[str, Any]:
    return {**picture, "source": thumbnail(images, picture["file"])}


def thumbnail(folder: Path, file: str) -> str:
    """A picture of the folder as a small data URI; "" if it cannot be read or lies outside."""
    try:
        path = (folder / file).resolve()
        if not path.is_relative_to(folder.resolve()):
            return ""
        image = load_image(path)
    except (UserError, OSError, ValueError):
        return ""
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=78, method=1)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _figures(record: Mapping[str, Any]) -> dict[str, Any]:
    curve, chosen = record["curve"], record["chosen"]["k"]
    found = {
        "plot-cost": _curve(curve, "cost", "cost", chosen, record["elbow"]),
        "plot-silhouette": _curve(curve, "silhouette", "silhouette", chosen, None),
    }
    if record["confusion"]:
        found["plot-confusion"] = _heat_map(record["confusion"])
    return found


def _curve(curve: list[dict[str, Any]], key: str, title: str, chosen: int, elbow: int | None) -> dict[str, Any]:
    ks = [one["k"] for one in curve]
    line: dict[str, Any] = {"type": "scatter", "mode": "lines+markers", "x": ks, "y": [one[key] for one in curve]}
    line |= {"line": {"color": ACCENT}, "marker": {"size": 7}, "hovertemplate": "k = %{x}: %{y}<extra></extra>"}
    marks = [(chosen, f"k = {chosen}", "dash")]
    marks += [(elbow, f"bend at {elbow}", "dot")] if elbow is not None and elbow != chosen else []
    shapes = [
        {"type": "line", "x0": k, "x1": k, "yref": "paper", "y0": 0, "y1": 1, "line": {"color": FAINT, "dash": dash}}
        for k, _, dash in marks
    ]
    notes = [{"x": k, "yref": "paper", "y": 1.08, "text": text, "showarrow": False} for k, text, _ in marks]
    layout = {
        "height": 340,
        "xaxis": {"title": {"text": "clusters (k)"}, "dtick": 1 if len(ks) <= 20 else None},
        "yaxis": {"title": {"text": title}},
        "shapes": shapes,
        "annotations": notes,
    }
    return {"data": [line], "layout": layout}


def _heat_map(confusion: Mapping[str, Any]) -> dict[str, Any]:
    groups, columns = confusion["groups"], confusion["clusters"]
    cells = len(groups) * len(columns)
    trace = {
        "type": "heatmap",
        "z": confusion["counts"],
        "x": [f"cluster {number}" for number in columns],
        "y": [html.escape(group, quote=False) for group in groups],
        "colorscale": [[0, "--card"], [1, ACCENT]],
        "xgap": 2,
        "ygap": 2,
        "hovertemplate": "%{y}, %{x}: %{z} images<extra></extra>",
        "texttemplate": "%{z}" if cells <= _CELLS_SHOWN else "",
        "colorbar": {"title": {"text": "images"}},
    }
    layout = {
        "height": 130 + 26 * max(len(groups), 3),
        "xaxis": {"side": "top", "type": "category"},
        "yaxis": {"autorange": "reversed", "type": "category", "automargin": True},
        "margin": {"t": 60, "r": 20, "b": 20, "l": 60},
    }
    return {"data": [trace], "layout": layout}

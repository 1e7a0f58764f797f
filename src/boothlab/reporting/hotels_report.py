"""The report on a hotel data set: eda.md and eda.html."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from boothlab.files import write_text
from boothlab.reporting.figure_page import ACCENT, _figure, bars, write_figure_page
from boothlab.reporting.markdown import escape

MOST_CHAINS = 30
"""Chains in a plot."""
_BALANCE = ("classes", "smallest", "largest", "ratio", "evenness", "effective", "gini")
_SIZES = ("min", "p5", "median", "p95", "max")


def write_hotels_page(record: Mapping[str, Any], path: Path) -> None:
    """Write eda.html from what eda.json holds. Raises UserError if the place cannot be written."""
    sections = [("summary", "Summary"), ("chains", "Chains"), ("balance", "Balance"), ("sources", "Sources")]
    sections += [("files", "Downloaded")] if record["download"] else []
    values = {
        "title": f"Hotels-50K, {record['eda']['split']} set",
        "brand": "boothlab hotels",
        "lead": lead(record),
        "sections": sections,
        "choice": choice(record),
        "plotted": MOST_CHAINS,
    }
    write_figure_page(path, "hotels.html.j2", _figures(record), {**record, **values})


def lead(record: Mapping[str, Any]) -> str:
    """The data set in one line."""
    totals = record["eda"]["totals"]
    return f"{totals['images']:,} images of {totals['hotels']:,} hotels in {totals['chains']:,} chains."


def choice(record: Mapping[str, Any]) -> str:
    """How the hotels were chosen, in a sentence."""
    settings, chosen = record["settings"], record["chosen"]
    rules = [f"{key}={value}" for key, value in settings.items() if value is not None]
    return f"Chosen: {chosen['hotels']:,} hotels with {chosen['images']:,} images, by {', '.join(rules)}."


def _figures(record: Mapping[str, Any]) -> dict[str, Any]:
    eda = record["eda"]
    chains = eda["chains"][:MOST_CHAINS]
    names = _distinct([chain["chain"] for chain in chains], [chain["chain_id"] for chain in chains])
    counts = eda["hotels_by_images"]
    per_hotel: dict[str, Any] = {"type": "bar", "x": [row[0] for row in counts], "y": [row[1] for row in counts]}
    per_hotel |= {"marker": {"color": ACCENT}, "hovertemplate": "%{x} images: %{y} hotels<extra></extra>"}
    axes = {"xaxis": {"title": {"text": "images of a hotel"}}, "yaxis": {"title": {"text": "hotels"}}}
    found: dict[str, Any] = {
        "plot-chain-images": bars(names, [chain["images"] for chain in chains], "images"),
        "plot-chain-hotels": bars(names, [chain["hotels"] for chain in chains], "hotels"),
        "plot-per-hotel": {"data": [per_hotel], "layout": axes | {"height": 320}},
        "plot-sources": bars(
            [one["source"] for one in eda["sources"]], [one["images"] for one in eda["sources"]], "images"
        ),
    }
    if record["download"]:
        points = record["download"]["points"]
        trace: dict[str, Any] = {
            "type": "scatter",
            "mode": "markers",
            "x": [p[0] for p in points],
            "y": [p[1] for p in points],
        }
        trace |= {"marker": {"color": ACCENT, "size": 6, "opacity": 0.5}}
        axes = {"xaxis": {"title": {"text": "width in pixels, as sent"}}, "yaxis": {"title": {"text": "height"}}}
        found["plot-sizes"] = {"data": [trace], "layout": axes | {"height": 380}}
    return found


def _distinct(names: Sequence[str], ids: Sequence[str]) -> list[str]:
    """The names, with the id of those that are there twice: plotly would put equal names on one bar."""
    return [f"{name} ({one})" if names.count(name) > 1 else name for name, one in zip(names, ids, strict=True)]


def write_hotels_markdown(record: Mapping[str, Any], path: Path) -> None:
    """Write eda.md from what eda.json holds; names are escaped. Raises UserError if the place cannot be written."""
    eda, download = record["eda"], record["download"]
    blocks = [f"# Hotels-50K, {eda['split']} set", lead(record), choice(record)]
    if eda["warnings"]:
        blocks.append("\n".join(f"- {line}" for line in eda["warnings"]))
    rows = [
        [
            chain["chain"],
            chain["hotels"],
            chain["images"],
            f"{100 * chain['share']:.1f}%",
            chain["median_images_per_hotel"],
        ]
        for chain in eda["chains"]
    ]
    blocks += ["## Chains", _table(["chain", "hotels", "images", "share", "median images per hotel"], rows)]
    rows = [[name, *(one[key] for key in _BALANCE)] for name, one in eda["balance"].items()]
    blocks += ["## Balance", _table(["of", *_BALANCE], rows)]
    rows = [[one["source"], one["images"], f"{100 * one['share']:.1f}%"] for one in eda["sources"]]
    blocks += ["## Image sources", _table(["source", "images", "share"], rows)]
    if download:
        rows = [
            [name.replace("_", " "), *(one[key] for key in _SIZES)] for name, one in download["sizes"].items() if one
        ]
        blocks += ["## Downloaded", f"{download['downloaded']:,} images are here, {download['failed']:,} are not."]
        blocks += [_table(["size", *_SIZES], rows)] if rows else []
        missing = [[one["name"], one["count"]] for one in download["reasons"]]
        blocks += [_table(["why an image is missing", "images"], missing)] if missing else []
    write_text(path, "\n\n".join(blocks) + "\n")


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    return escape(value) if isinstance(value, str) else _figure(value)

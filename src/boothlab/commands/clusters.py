"""`boothlab clusters`: tagged images in groups by k-modes, held against known classes."""

import csv
import io
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boothlab.commands.help import HelpPage, asks_for_help, print_help
from boothlab.compose.run import run as run_composed
from boothlab.config_clusters import ClusterChoice, ClustersConfig, ClusterStart
from boothlab.errors import UserError
from boothlab.files import csv_cell, read_json, shown, write_json, write_text
from boothlab.progress import Reporter

if TYPE_CHECKING:
    from boothlab.captioning.clusters import Partition, TagTable

HELP = HelpPage(
    config_name="clusters",
    usage="boothlab clusters run=DIR | tags=FILE [images=DIR] [k=2..12] [key=value …]",
    about="Tagged images in groups by k-modes; how many, what they have in common, how far they are the known groups.",
    examples=(
        ("boothlab clusters run=outputs/caption/RUN", "the tags of a captioning run"),
        ("boothlab clusters tags=tags.csv images=photos k=4", "any table of tags, four clusters"),
        (
            "boothlab clusters run=outputs/caption/RUN choose=elbow start=cao",
            "by the bend of the cost curve; no chance",
        ),
    ),
)


def run(argv: list[str]) -> int:
    """Run the command and return its exit code."""
    if asks_for_help(argv):
        return print_help(HELP, argv)
    return run_composed(HELP.config_name, _clusters, argv)


def _clusters(config: ClustersConfig, resolved: dict[str, Any], run_dir: Path, one_of_many: bool) -> dict[str, Any]:
    from boothlab.captioning.clusters import check_counts, read_tags
    from boothlab.reporting.cluster_page import write_cluster_page

    reporter = Reporter(quiet=one_of_many)
    tags = Path(config.tags or Path(config.run or "") / "tags.csv").expanduser()
    if config.run and not tags.is_file():
        raise UserError(f"run={shown(config.run)}: has no tags.csv; caption with method=clip_tags, or give tags=FILE")
    out = Path(config.out).expanduser() if config.out else tags.parent / "clusters"
    images = _images(config, reporter)
    table = read_tags(tags)
    check_counts(table, config.counts)
    record, chosen = _cluster(config, table, reporter)
    settings = {key: value for key, value in resolved.items() if key not in ("run", "tags", "images", "out")}
    write_json(out / "summary.json", {**record, "settings": settings})
    _write_clusters(out / "clusters.csv", table, chosen)
    write_cluster_page({**record, "capped": config.gallery}, images if config.gallery else None, out / "clusters.html")
    if not reporter.quiet:
        _show(record, reporter)
    reporter.say(f"{shown(out / 'clusters.html')}, clusters.csv, summary.json", tag="report", style="green")
    return record


def _images(config: ClustersConfig, reporter: Reporter) -> Path | None:
    """The folder of the images: as given, or the captioning run's; None if it is not known or no longer there."""
    if config.images is not None:
        folder = Path(config.images).expanduser()
        if not folder.is_dir():
            raise UserError(f"images={shown(folder)}: there is no such folder; give that of the images, or null")
        return folder
    manifest = Path(config.run).expanduser() / "manifest.json" if config.run else None
    if manifest is None or not manifest.is_file():
        return None
    found = read_json(manifest)
    settings = found.get("config") if isinstance(found, dict) else None
    named = settings.get("images") if isinstance(settings, dict) else None
    folder = Path(named).expanduser() if isinstance(named, str) else Path("/nowhere")
    if not folder.is_dir():
        reporter.warn("the run's images are no longer where they were: no gallery; images=DIR says where they are")
        return None
    return folder


def _cluster(config: ClustersConfig, table: "TagTable", reporter: Reporter) -> "tuple[dict[str, Any], Partition]":
    """What summary.json holds, and the partition that was chosen."""
    from boothlab.captioning import clusters as work
    from boothlab.captioning.cluster_agreement import agreement, scores_of, why_not
    from boothlab.captioning.cluster_record import choice, confusion, described, lead

    both = (work.CAO, work.HUANG)
    starts = both if config.start is ClusterStart.both else (config.start.value,)
    settings = work.Settings(starts, config.restarts, config.max_iter, config.seed)
    counts = config.counts
    with reporter.bar("k-modes", len(counts)) as bar:
        partitions = work.each_k(table, counts, settings, lambda k: bar.advance())
    bend = work.elbow(partitions)
    chosen = work.choose_by_silhouette(partitions)
    by_elbow = config.choose is ClusterChoice.elbow
    if by_elbow and bend is not None:
        chosen = next(one for one in partitions if one.k == bend)
    reason = why_not(table.groups)
    known = [index for index, group in enumerate(table.groups) if group]
    classes = [table.groups[index] for index in known]
    found = []
    if not reason:
        with reporter.bar("permutations", config.permutations) as bar:
            found = agreement(chosen.labels_N[known], classes, config.permutations, config.seed, bar.advance)
    curve = [
        {
            **{key: getattr(one, key) for key in ("k", "used", "cost", "silhouette", "stability", "start", "costs")},
            **({} if reason else scores_of(one.labels_N[known], classes)),
        }
        for one in partitions
    ]
    record = {
        "lead": lead(table),
        "choice": choice(config.k.strip(), len(counts), chosen, by_elbow, bend),
        "images": len(table.files),
        "labels": len(table.labels),
        "chosen": {"k": chosen.k, "used": chosen.used},
        "elbow": bend,
        "curve": curve,
        "agreement": [asdict(one) for one in found],
        "compared": {"images": len(known), "classes": len(set(classes)), "why_not": reason},
        "confusion": None if reason else confusion(table, chosen),
        "clusters": described(table, chosen, config.gallery),
    }
    return record, chosen


def _write_clusters(path: Path, table: "TagTable", chosen: "Partition") -> None:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["file", "cluster"])
    writer.writerows(
        [csv_cell(shown(name)), int(label) + 1] for name, label in zip(table.files, chosen.labels_N, strict=True)
    )
    write_text(path, file.getvalue())


def _show(record: dict[str, Any], reporter: Reporter) -> None:
    """The clusters and scores as tables on the terminal."""
    from rich.markup import escape
    from rich.table import Table

    reporter.say(record["lead"])
    reporter.say(record["choice"])
    table = Table("cluster", "images", "labels of more than half", "groups", box=None, pad_edge=False)
    for one in record["clusters"]:
        mode = ", ".join(tag for tag, _ in one["mode"][:8]) or "none"
        groups = ", ".join(f"{name} {count}" for name, count in one["groups"][:4])
        more = f" and {len(one['groups']) - 4} more" if len(one["groups"]) > 4 else ""
        table.add_row(str(one["number"]), str(one["size"]), escape(shown(mode)), escape(shown(groups)) + more)
    reporter.console.print(table)
    if not record["agreement"]:
        reporter.say(f"not held against known groups: {record['compared']['why_not']}")
        return
    scores = Table("score", "value", "by chance", "95% below", "p", box=None, pad_edge=False)
    for one in record["agreement"]:
        numbers = [f"{one[key]:.3f}" for key in ("value", "null_mean", "null_95")]
        scores.add_row(one["score"].upper(), *numbers, f"{one['p_value']:.4f}")
    reporter.console.print(scores)

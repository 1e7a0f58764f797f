"""`boothlab hotels`: what is in Hotels-50K, a seeded choice of its hotels, and their images."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boothlab.commands.help import HelpPage, asks_for_help, print_help
from boothlab.compose.run import run as run_composed
from boothlab.config_hotels import FetchConfig, HotelsConfig
from boothlab.errors import UserError
from boothlab.files import csv_cell, shown, write_json, write_text
from boothlab.progress import Reporter

if TYPE_CHECKING:
    from boothlab.images.download import DownloadSettings
    from boothlab.images.download_record import Result
    from boothlab.images.hotels50k import Catalogue, HotelImage

RECORD = "downloads.jsonl"
_CHOICE = ("split", "hotels", "images_per_hotel", "min_images", "chains", "sources", "seed")
HELP = HelpPage(
    config_name="hotels",
    usage="boothlab hotels data=DIR [hotels=N] [download=true] [key=value …]",
    about="What is in the CSV files of Hotels-50K; a choice of hotels by chance; their images, fetched politely.",
    examples=(
        ("boothlab hotels data=Hotels-50K/input/dataset", "numbers, plots and a choice of ten hotels"),
        ("boothlab hotels data=DIR hotels=50 min_images=20 images_per_hotel=40 download=true", "with their images"),
        ("boothlab hotels data=DIR chains=['best western','hilton'] sources=[traffickcam]", "two chains, one source"),
        ("boothlab hotels data=DIR hotels=50 download=true fetch.retry_failed=true", "what failed for good again, too"),
    ),
)


def run(argv: list[str]) -> int:
    """Run the command and return its exit code."""
    if asks_for_help(argv):
        return print_help(HELP, argv)
    return run_composed(HELP.config_name, _hotels, argv)


def _hotels(config: HotelsConfig, resolved: dict[str, Any], run_dir: Path, one_of_many: bool) -> list[str]:
    from boothlab.images.hotels50k import Split, choose_hotels, choose_images, read_catalogue
    from boothlab.tracking.lock import owned

    reporter = Reporter(quiet=one_of_many)
    out = Path(config.out).expanduser()
    if out.exists() and not out.is_dir():
        raise UserError(f"out={shown(out)}: is a file; give a folder")
    catalogue = read_catalogue(Path(config.data).expanduser(), Split(config.split.value))
    sources = config.sources or ()
    hotels = choose_hotels(
        catalogue, config.hotels, config.seed, chains=config.chains or (), sources=sources, min_images=config.min_images
    )
    images = choose_images(catalogue, hotels, config.images_per_hotel, config.seed, sources)
    with owned(out):
        _write_selection(out / "selection.csv", catalogue, images)
        results = _fetched(config, catalogue, images, out, reporter)
        if results:
            _write_failures(out / "failures.csv", catalogue, images, results)
        _report(catalogue, len(hotels), images, results, {key: resolved[key] for key in _CHOICE}, out, reporter)
    return [str(out)]


def target_of(catalogue: "Catalogue", image: "HotelImage") -> str:
    """Where an image goes: images/<chain>/<hotel>/<image>.jpg, by their ids."""
    return f"images/{catalogue.hotels[image.hotel_id].chain_id}/{image.hotel_id}/{image.id}.jpg"


def _fetched(
    config: HotelsConfig, catalogue: "Catalogue", images: "Sequence[HotelImage]", out: Path, reporter: Reporter
) -> "list[Result]":
    """The results of a download now, or of an earlier one; none if there was none."""
    if not config.download and not (out / RECORD).exists():
        return []
    from boothlab.images.download import download  # torch, for the image loader's sake
    from boothlab.images.download_record import Job, read_record

    jobs: list[Job] = [Job(image.id, image.url, target_of(catalogue, image)) for image in images]
    if not config.download:
        known = read_record(out / RECORD)
        return [known[job.target] for job in jobs if job.target in known]
    reporter.say(f"{len(jobs)} images into {shown(out)}; Ctrl-C stops, and the same command goes on")
    return download(jobs, out, out / RECORD, _settings(config.fetch, config.seed), reporter)


def _settings(fetch: FetchConfig, seed: int) -> "DownloadSettings":
    from boothlab.images.download import DownloadSettings
    from boothlab.images.fetching import FetchLimits

    limits = FetchLimits(
        max_bytes=fetch.max_bytes,
        timeout_s=fetch.timeout_s,
        deadline_s=fetch.deadline_s,
        max_redirects=fetch.max_redirects,
        allow_private=fetch.allow_private,
    )
    return DownloadSettings(
        limits=limits,
        long_side=fetch.long_side,
        quality=fetch.quality,
        workers=fetch.workers,
        per_host=fetch.per_host,
        rate=fetch.rate,
        attempts=fetch.attempts,
        backoff_s=fetch.backoff_s,
        backoff_max_s=fetch.backoff_max_s,
        longest_wait_s=fetch.longest_wait_s,
        seed=seed,
        retry_failed=fetch.retry_failed,
    )


def _report(
    catalogue: "Catalogue",
    hotels: int,
    images: "Sequence[HotelImage]",
    results: "Sequence[Result]",
    settings: dict[str, Any],
    out: Path,
    reporter: Reporter,
) -> None:
    from boothlab.images.hotels_eda import explore, sizes
    from boothlab.reporting.hotels_report import choice, lead, write_hotels_markdown, write_hotels_page

    record: dict[str, Any] = {
        "eda": explore(catalogue),
        "chosen": {"hotels": hotels, "images": len(images)},
        "settings": settings,
        "download": sizes(results) if results else None,
    }
    write_json(out / "eda.json", record)
    write_hotels_markdown(record, out / "eda.md")
    write_hotels_page(record, out / "eda.html")
    reporter.say(lead(record))
    for line in record["eda"]["warnings"]:
        reporter.warn(line)
    reporter.say(choice(record))
    if results:
        failed = record["download"]["failed"]
        reporter.say(f"{record['download']['downloaded']} images are in {shown(out / 'images')}, {failed} failed")
        for one in record["download"]["reasons"][:3]:
            reporter.warn(f"{one['count']} × {one['name']}")
    reporter.say(f"{shown(out / 'eda.html')}, eda.md, eda.json, selection.csv", tag="report", style="green")


def _write_selection(path: Path, catalogue: "Catalogue", images: "Iterable[HotelImage]") -> None:
    head = ["image_id", "hotel_id", "hotel_name", "chain_id", "chain_name", "image_source", "image_url", "file"]
    rows = []
    for image in images:
        hotel = catalogue.hotels[image.hotel_id]
        chain = catalogue.chain_name(hotel.chain_id)
        file = target_of(catalogue, image)
        rows.append([image.id, hotel.id, hotel.name, hotel.chain_id, chain, image.source, image.url, file])
    _write_csv(path, head, rows)


def _write_failures(
    path: Path, catalogue: "Catalogue", images: "Iterable[HotelImage]", results: "Iterable[Result]"
) -> None:
    """The images that are missing, with the reason; only the heading if none is."""
    found = {result.key: result for result in results if not result.ok}
    head = ["image_id", "hotel_id", "chain_id", "image_url", "reason", "final", "attempts"]
    rows = []
    for image in images:
        if result := found.get(image.id):
            chain = catalogue.hotels[image.hotel_id].chain_id
            row = [image.id, image.hotel_id, chain, image.url, result.reason, str(result.final).lower()]
            rows.append([*row, str(result.attempts)])
    _write_csv(path, head, rows)


def _write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    # A chain id may be -1: a number is no formula.
    writer.writerows([cell if cell.lstrip("-").isdigit() else csv_cell(cell) for cell in row] for row in rows)
    write_text(path, file.getvalue())

"""What is in a Hotels-50K catalogue, in numbers: chains, hotels, images, sources, balance; sizes once downloaded."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from boothlab.images.download_record import Result
from boothlab.images.hotels50k import Catalogue

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def explore(catalogue: Catalogue) -> dict[str, Any]:
    """The numbers of a catalogue, fit for JSON: totals, chains by number of images, sources, balance and warnings.

    A chain counts with the hotels of which the split has images. Shares are of all images counted, 0 to 1.
    """
    images_of = {hotel: counts.total() for hotel, counts in catalogue.counts.items()}
    total = sum(images_of.values())
    sources: Counter[str] = Counter()
    for counts in catalogue.counts.values():
        sources.update(counts)
    chains = _chains(catalogue, images_of, total)
    return {
        "split": catalogue.split.name,
        "totals": {
            "chains": len(chains),
            "chains_listed": len(catalogue.chains),
            "hotels": len(images_of),
            "hotels_listed": len(catalogue.hotels),
            "images": total,
        },
        "chains": chains,
        "sources": [
            {"source": source, "images": count, "share": count / total}
            for source, count in sorted(sources.items(), key=lambda item: (-item[1], item[0]))
        ],
        "images_per_hotel": quantiles(images_of.values()),
        "hotels_by_images": _histogram(images_of.values()),
        "balance": {
            "hotels": balance(images_of.values()),
            "chains": balance(chain["images"] for chain in chains),
        },
        "warnings": _warnings(catalogue),
    }


def balance(counts: Iterable[int]) -> dict[str, float | int | None]:
    """How evenly images are spread over classes of which each has at least one.

    `ratio` is largest by smallest class. With shares p: `entropy` H = -Σ p ln p in nats, `effective` exp(H) is how many
    classes of equal size have that entropy, `evenness` H / ln(classes), 1 if all are of a size (Pielou's J; None with
    one class). `gini` is Gini's coefficient, 0 if all are of a size.
    """
    sizes = np.sort(np.array(list(counts), dtype=np.float64))
    if not len(sizes):
        return dict.fromkeys(("classes", "smallest", "largest", "ratio", "entropy", "effective", "evenness", "gini"))
    share = sizes / sizes.sum()
    entropy = max(0.0, float(-(share * np.log(share)).sum()))
    rank = np.arange(1, len(sizes) + 1)
    return {
        "classes": len(sizes),
        "smallest": int(sizes[0]),
        "largest": int(sizes[-1]),
        "ratio": float(sizes[-1] / sizes[0]),
        "entropy": entropy,
        "effective": math.exp(entropy),
        "evenness": entropy / math.log(len(sizes)) if len(sizes) > 1 else None,
        "gini": float(((2 * rank - len(sizes) - 1) * sizes).sum() / (len(sizes) * sizes.sum())),
    }


def quantiles(values: Iterable[float]) -> dict[str, float] | None:
    """Mean and quantiles (linear interpolation) of numbers; None if there are none."""
    found = np.array(list(values), dtype=np.float64)
    if not len(found):
        return None
    names = ("min", "p5", "p25", "median", "p75", "p95", "max")
    at = np.quantile(found, QUANTILES)
    return {"mean": float(found.mean())} | {name: float(value) for name, value in zip(names, at, strict=True)}


def sizes(results: Sequence[Result]) -> dict[str, Any]:
    """What a download brought: counts, why images are missing, and sizes in pixels and bytes, as sent and as kept."""
    kept = [result for result in results if result.ok]
    columns = ("original_width", "original_height", "original_bytes", "width", "height", "bytes")
    return {
        "downloaded": len(kept),
        "failed": len(results) - len(kept),
        "reasons": _counted(result.reason for result in results if not result.ok),
        "formats": _counted(result.format for result in kept),
        "sizes": {column: quantiles(getattr(result, column) for result in kept) for column in columns},
        "points": sorted([one.original_width, one.original_height] for one in kept),
    }


def _counted(texts: Iterable[str]) -> list[dict[str, Any]]:
    found = sorted(Counter(texts).items(), key=lambda item: (-item[1], item[0]))
    return [{"name": name, "count": count} for name, count in found]


def _chains(catalogue: Catalogue, images_of: dict[str, int], total: int) -> list[dict[str, Any]]:
    members: dict[str, list[str]] = {}
    for hotel in images_of:
        members.setdefault(catalogue.hotels[hotel].chain_id, []).append(hotel)
    rows = []
    for chain, hotels in members.items():
        by_source: Counter[str] = Counter()
        for hotel in hotels:
            by_source.update(catalogue.counts[hotel])
        images = [images_of[hotel] for hotel in hotels]
        row = {"chain_id": chain, "chain": catalogue.chain_name(chain), "hotels": len(hotels), "images": sum(images)}
        row |= {"share": sum(images) / total, "median_images_per_hotel": float(np.median(images))}
        row |= {"smallest_hotel": min(images), "largest_hotel": max(images), "sources": dict(sorted(by_source.items()))}
        rows.append(row)
    return sorted(rows, key=lambda row: (-int(str(row["images"])), int(str(row["chain_id"]))))


def _histogram(values: Iterable[int]) -> list[list[int]]:
    """[images, hotels with so many], by images."""
    return [[images, hotels] for images, hotels in sorted(Counter(values).items())]


def _warnings(catalogue: Catalogue) -> list[str]:
    without = len(catalogue.hotels) - len(catalogue.counts)
    nameless = len({hotel.chain_id for hotel in catalogue.hotels.values()} - set(catalogue.chains) - {"-1"})
    found = [
        ("images of hotels that hotel_info.csv does not have, left out", catalogue.orphans),
        ("lines that repeat an image_id, left out", catalogue.doubles),
        (f"hotels without an image in {catalogue.split.file}", without),
        ("chains of hotels that are not in chain_info.csv", nameless),
        ("hotels with coordinates that are not on earth", catalogue.misplaced),
    ]
    return [f"{what}: {count:,}" for what, count in found if count]

"""The pictures of an editing report's page: sources, condition maps, edits and targets, each once, small enough."""

import base64
import hashlib
import io
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from boothlab.reporting.edit_groups import EditAlike
from boothlab.reporting.edit_runs import Key, Pair
from boothlab.reporting.pictures import spread

SMALL = 64
"""The longer side in pixels up to which a picture is kept as it is."""
SIDES = (384, 256, 192)
"""What larger ones are reduced to: the first whose page is small enough."""
MOST_BYTES, MOST_WORK = 40_000_000.0, 40_000.0
"""What the pictures of a page may cost: bytes of HTML, and milliseconds to read on one core, as estimated."""
# Pillow's plugins raise almost anything on damaged files, and one picture is not worth a report.
_READABLE = (Exception,)


@dataclass(frozen=True)
class PicturePlan:
    """What a page shows of each group: which pictures, and the longest side. `whole` says that it is all of them."""

    keys: tuple[tuple[Key, ...], ...]
    side: int
    whole: bool


class Album:
    """Pictures as data URIs by a short name of their content, so that runs share their sources and targets."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.sources: dict[str, str] = {}
        self._names: dict[Path, str] = {}
        self._lock = threading.Lock()

    def add(self, paths: Sequence[Path]) -> None:
        """Read the files, several at once. Those that are missing or damaged are left out."""
        # Pillow decodes and encodes outside the interpreter's lock, so threads are worth their while here.
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            list(pool.map(self._add, dict.fromkeys(paths)))

    def name(self, path: Path | None) -> str | None:
        """The name of a picture; None if it is not in the album."""
        return self._names.get(path) if path else None

    def _add(self, path: Path) -> None:
        try:
            # A link may lead out of the run's folder, and a report is passed on.
            data = b"" if path.is_symlink() else path.read_bytes()
        except OSError:
            return
        name = hashlib.sha256(data).hexdigest()[:16]
        with self._lock:
            known = name in self.sources
        source = "" if known else self._source(data)
        with self._lock:
            if known or source:
                self._names[path] = name
                self.sources.setdefault(name, source)

    def _source(self, data: bytes) -> str:
        try:
            with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                picture = image.convert("RGB")
        except _READABLE:
            return ""
        small = max(picture.size) <= SMALL
        if max(picture.size) > self.side:
            picture.thumbnail((self.side, self.side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", lossless=small, quality=20 if small else 80, method=1)
        return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def plan_pictures(groups: Sequence[EditAlike]) -> PicturePlan:
    """The largest pictures that a page can hold all of; else as many as it can, of every image and edit first."""
    for side in SIDES:
        costs = [_cost(group, side) for group in groups]
        size = sum(cost[0] * len(group.seeds) for cost, group in zip(costs, groups, strict=True))
        work = sum(cost[1] * len(group.seeds) for cost, group in zip(costs, groups, strict=True))
        share = min(MOST_BYTES / size if size else 1.0, MOST_WORK / work if work else 1.0)
        if share >= 1:
            return PicturePlan(tuple(tuple(sorted(group.seeds)) for group in groups), side, True)
    return PicturePlan(tuple(_most(group, share) for group in groups), SIDES[-1], False)


def files_of(pair: Pair) -> list[Path]:
    """The files that a page shows of a picture."""
    return [path for path in (pair.file, pair.source, pair.truth, *pair.conditions.values()) if path]


def _most(group: EditAlike, share: float) -> tuple[Key, ...]:
    """A share of the group's pictures: the first seed of each image and edit comes first, then the next."""
    order: dict[tuple[str, str], int] = {}
    ranked = []
    for key in sorted(group.seeds):
        place = order[key[:2]] = order.get(key[:2], -1) + 1
        ranked.append((place, key))
    ranked.sort()
    count = max(1, int(share * len(ranked)))
    first = [key for place, key in ranked if place == 0]
    if count <= len(first):
        return tuple(sorted(first[index] for index in spread(len(first), count)))
    return tuple(sorted(key for _, key in ranked[:count]))


def _cost(group: EditAlike, side: int) -> tuple[float, float]:
    """Bytes of HTML and milliseconds for one image, edit and seed by all runs, as estimated."""
    native = next((found for run in group.runs for pair in run.pairs[:1] if (found := _native(pair))), SMALL)
    shown = min(native, side)
    bytes_a_pixel = 0.22 if native > SMALL else 2.2
    many = len(group.runs) + 2  # the source and the target, and condition maps now and then
    return many * shown**2 * bytes_a_pixel * 4 / 3, many * (0.35 + 40e-6 * native**2 + 60e-6 * shown**2)


def _native(pair: Pair) -> int | None:
    try:
        with Image.open(pair.file or "", formats=("PNG",)) as image:
            return max(image.size)
    except _READABLE:
        return None

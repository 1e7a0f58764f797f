"""The pictures of a report's page: the samples of a checkpoint as one small sheet, and the subject's photos.

A sheet has a row a prompt and a column an image seed. Cells are square with sides of a multiple of 16 pixels, the
block of WebP, so that neighbours do not bleed into each other.
"""

import base64
import hashlib
import io
import os
import re
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from PIL import Image, ImageOps

from boothlab.files import sha256_bytes
from boothlab.reporting.runs import Checkpoint, RunRecord

LARGEST_CELL, SMALL, BLOCK = 160, 64, 16
"""Sides in pixels: of the largest cell, of the largest image that is kept as it is, of a block of WebP."""
MOST_WORK, MOST_BYTES = 24_000.0, 36_000_000.0
"""What the samples of a page may cost: milliseconds to read on one core, as estimated, and bytes of HTML."""
CAPS: tuple[tuple[str, int], ...] = (
    *(("prompts", 64), ("seeds", 8), ("checkpoints", 8), ("checkpoints", 5), ("seeds", 4), ("prompts", 32)),
    *(("seeds", 2), ("checkpoints", 3), ("prompts", 16), ("checkpoints", 2), ("seeds", 1), ("prompts", 8)),
    *(("checkpoints", 1), ("prompts", 4), ("prompts", 2), ("prompts", 1)),
)
"""What is left out first, and next, until a page costs no more than it may."""
PHOTOS_SHOWN, PHOTO_SIDE = 8, 192
# Pillow's plugins raise almost anything on damaged files, and one picture is not worth a report.
_READABLE = (Exception,)
_CLASS_IMAGE = re.compile(r"class_images/\d{4}")


@dataclass(frozen=True)
class Plan:
    """How much of each run is shown: at most so many prompts, image seeds and checkpoints. `lossless` is of sheets."""

    prompts: int
    seeds: int
    checkpoints: int
    lossless: bool


@dataclass(frozen=True)
class Sheet:
    """The samples of one checkpoint. `id` is of the content: equal samples share a sheet. `cell` is a side in pixels.

    `prompts` are indices into the run's prompts, `seeds` image seeds; `gaps` are the cells, counted by rows, whose
    image is missing or damaged.
    """

    id: str
    cell: int
    prompts: tuple[int, ...]
    seeds: tuple[int, ...]
    gaps: tuple[int, ...]
    source: str


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the indices 0 … count - 1: the first, the last and evenly between."""
    if count <= most:
        return list(range(count))
    return [round(index * (count - 1) / (most - 1)) for index in range(most)] if most > 1 else [0]


def shown_points(run: RunRecord, most: int) -> list[Checkpoint]:
    """At most `most` checkpoints by step, step 0 among them: the best balanced and the last come first."""
    points = [*([run.floor] if run.floor else []), *run.checkpoints]
    if len(points) <= most:
        return points
    best = run.best("balanced")
    first = {point.step: point for point in (best, run.last) if point}
    rest = [point for point in points if point.step not in first]
    free = max(most - len(first), 0)
    kept = [*list(first.values())[:most], *(rest[index] for index in spread(len(rest), free) if free)]
    return sorted(kept, key=lambda point: point.step)


def native_side(run: RunRecord) -> int | None:
    """The longer side of a run's samples in pixels; None if none can be read."""
    for point in reversed([*([run.floor] if run.floor else []), *run.checkpoints]):
        for seed in run.image_seeds[:1]:
            path = point.image(0, seed)
            if path:
                try:
                    with Image.open(path, formats=("PNG",)) as image:
                        return max(image.size)
                except _READABLE:
                    continue
    return None


Shape = tuple[int, int, int, int]
"""How much of a run there is: prompts, image seeds, checkpoints, and the side of its samples in pixels."""


def shapes_of(runs: Sequence[RunRecord]) -> Counter[Shape]:
    """The shapes of the runs that have samples, each with the number of such runs."""
    sides = [(run, native_side(run)) for run in runs]
    return Counter(
        (len(run.prompts), len(run.image_seeds), len(run.checkpoints) + (run.floor is not None), side)
        for run, side in sides
        if side
    )


def whole_plan(shapes: Iterable[Shape]) -> Plan:
    """The plan that leaves nothing out."""
    prompts, seeds, checkpoints, _ = map(max, zip(*shapes, (0, 0, 0, 0), strict=True))
    return Plan(prompts, seeds, checkpoints, lossless=True)


def plan_of(shapes: Counter[Shape], most_work: float = MOST_WORK, most_bytes: float = MOST_BYTES) -> Plan:
    """The fullest plan whose estimated work and size are within the limits; the poorest one if none is."""
    plan = whole_plan(shapes)
    for name, cap in (("prompts", plan.prompts), *CAPS):
        plan = replace(plan, **{name: min(getattr(plan, name), cap)})
        for lossless in (True, False):
            plan = replace(plan, lossless=lossless)
            work, size = cost_of(shapes, plan)
            if work <= most_work and size <= most_bytes:
                return plan
    return plan


def cost_of(shapes: Counter[Shape], plan: Plan) -> tuple[float, float]:
    """The estimated milliseconds of reading and bytes of HTML; benchmarks/report.py measures both."""
    work = size = 0.0
    for (prompts, seeds, checkpoints, side), runs in shapes.items():
        images = runs * min(plan.prompts, prompts) * min(plan.seeds, seeds) * min(plan.checkpoints, checkpoints)
        pixels = min(side, LARGEST_CELL) ** 2
        bytes_a_pixel = 0.25 if side > SMALL else 2.2 if plan.lossless else 0.6
        work += images * (0.35 + 40e-6 * side**2)
        size += images * pixels * bytes_a_pixel * 4 / 3
    return work, size


def sheets_of(runs: Sequence[RunRecord], plan: Plan) -> dict[tuple[int, int], Sheet]:
    """The sheets by (index of the run, step). Equal samples have the same id, and only one of them its `source`."""
    jobs = [(index, run, point) for index, run in enumerate(runs) for point in shown_points(run, plan.checkpoints)]
    seen: set[str] = set()
    lock = threading.Lock()

    def draw(job: tuple[int, RunRecord, Checkpoint]) -> Sheet | None:
        return _draw(job[1], job[2], plan, seen, lock)

    # Pillow decodes and encodes outside the interpreter's lock, so threads are worth their while here.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        drawn = list(pool.map(draw, jobs))
    return {(index, point.step): sheet for (index, _, point), sheet in zip(jobs, drawn, strict=True) if sheet}


def _draw(run: RunRecord, point: Checkpoint, plan: Plan, seen: set[str], lock: threading.Lock) -> Sheet | None:
    prompts = spread(len(run.prompts), plan.prompts)
    seeds = run.image_seeds[: plan.seeds]
    paths = [point.image(prompt, seed) for prompt in prompts for seed in seeds]
    files = [_bytes(path) for path in paths]
    if not any(files):
        return None
    marks = b"".join(hashlib.sha256(file).digest() for file in files) + repr((prompts, seeds)).encode()
    name = sha256_bytes(marks)[:16]
    images = [_decoded(file) for file in files]
    sides = [max(image.size) for image in images if image]
    if not sides:
        return None
    cell = _cell(max(sides))
    gaps = tuple(index for index, image in enumerate(images) if image is None)
    with lock:
        known = name in seen
        seen.add(name)
    source = "" if known else _sheet_source(images, cell, len(seeds), plan.lossless and max(sides) <= SMALL)
    return Sheet(name, cell, tuple(prompts), tuple(seeds), gaps, source)


def _bytes(path: Path | None) -> bytes:
    try:
        return path.read_bytes() if path else b""
    except OSError:
        return b""


def _decoded(file: bytes) -> Image.Image | None:
    """The picture, or None if it is missing or damaged: a report shows what there is."""
    if not file:
        return None
    try:
        with Image.open(io.BytesIO(file), formats=("PNG",)) as image:
            picture = image.convert("RGB")
    except _READABLE:
        return None
    if max(picture.size) > LARGEST_CELL:
        picture.thumbnail((LARGEST_CELL, LARGEST_CELL), Image.Resampling.LANCZOS)
    return picture


def _cell(side: int) -> int:
    return min(LARGEST_CELL, -(-side // BLOCK) * BLOCK)


def _sheet_source(images: Sequence[Image.Image | None], cell: int, columns: int, lossless: bool) -> str:
    sheet = Image.new("RGB", (columns * cell, -(-len(images) // columns) * cell), (128, 128, 128))
    for index, image in enumerate(images):
        if image is None:
            continue
        if image.size != (cell, cell):  # fill the cell: a pixel of a small image becomes a few
            resample = Image.Resampling.NEAREST if cell <= SMALL else Image.Resampling.BICUBIC
            image = ImageOps.fit(image, (cell, cell), resample)
        sheet.paste(image, (index % columns * cell, index // columns * cell))
    return _webp(sheet, lossless, 90 if cell <= SMALL else 76)


def _webp(image: Image.Image, lossless: bool, quality: int) -> str:
    buffer = io.BytesIO()
    # Methods and efforts beyond these take five times as long for a tenth of the bytes.
    image.save(buffer, "WEBP", lossless=lossless, quality=20 if lossless else quality, method=1)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


# The subject's photos


def subject_of(run: RunRecord) -> str:
    """What tells subjects apart: a hash of the photos a run was given; empty if it does not say."""
    digests = sorted(digest for _, digest in _photos(run))
    return sha256_bytes("\n".join(digests).encode())[:16] if digests else ""


def subject_photos(runs: Iterable[RunRecord]) -> list[str]:
    """Up to eight photos of a subject as data URIs, of the first of its runs whose photos are still to be found.

    They are the files that a manifest names, if unchanged, or else what a sample grid shows of them.
    """
    for run in runs:
        found = [photo for path, digest in _photos(run)[:PHOTOS_SHOWN] if (photo := _photo(path, digest))]
        found = found or _photos_in_grid(run)
        if found:
            return [_webp(photo, max(photo.size) <= SMALL, 82) for photo in found[:PHOTOS_SHOWN]]
    return []


def _photos(run: RunRecord) -> list[tuple[Path, str]]:
    inputs = run.manifest.get("inputs")
    named = inputs.items() if isinstance(inputs, dict) else ()
    return [(Path(name), str(digest)) for name, digest in sorted(named) if not _CLASS_IMAGE.fullmatch(name)]


def _photo(path: Path, digest: str) -> Image.Image | None:
    data = _bytes(path)
    if not data or sha256_bytes(data) != digest:
        return None
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")) as image:
            image.draft("RGB", (PHOTO_SIDE, PHOTO_SIDE))
            photo = ImageOps.exif_transpose(image).convert("RGB")
    except _READABLE:
        return None
    photo.thumbnail((PHOTO_SIDE, PHOTO_SIDE), Image.Resampling.LANCZOS)
    return photo


def _photos_in_grid(run: RunRecord) -> list[Image.Image]:
    """The photos cut from the first row of the last sample grid (see `images.grid.build_grid`)."""
    side = native_side(run)
    path = run.last.grid if run.last else None
    if path is None or side is None:
        return []
    try:
        with Image.open(path, formats=("PNG",)) as image:
            sheet = image.convert("RGB")
    except _READABLE:
        return []
    from boothlab.images.grid import GAP, MIN_CELL, PAPER  # here, since it imports torch

    cell = min(side if side >= MIN_CELL else side * -(-MIN_CELL // side), 256)
    left, top = round(cell * 1.55), max(12, cell // 9) + 14
    count = min(len(_photos(run)) or PHOTOS_SHOWN, max(len(run.image_seeds), 1))
    edges = [left + index * (cell + GAP) for index in range(count + 1)]
    gutters = [sheet.crop((right - GAP, top, right, top + cell)) for right in edges[1:]]
    # A grid laid out otherwise has something else where the gaps between the photos should be.
    if edges[-1] > sheet.width or any(gutter.getcolors() != [(GAP * cell, PAPER)] for gutter in gutters):
        return []
    return [sheet.crop((edge, top, right - GAP, top + cell)) for edge, right in pairwise(edges)]

"""The audit of an image collection of any size: every file looked at, none kept in memory, none dropped in silence."""

import hashlib
import json
import os
import unicodedata
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from boothlab.errors import UserError
from boothlab.files import is_clutter, shown
from boothlab.images.collection_store import ACCEPTED, REJECTED, SAME_BYTES, CollectionStore, FileRecord
from boothlab.images.load import READABLE, ImageError, Loaded, read_image
from boothlab.images.perceptual import SIDE, earliest_near, perceptual_hash, require_hashing
from boothlab.progress import Reporter

#: endings of files that lie beside images and are none
NO_IMAGES = frozenset({".csv", ".html", ".json", ".jsonl", ".md", ".ndjson", ".pdf", ".toml", ".yaml", ".yml"})
_COMMIT_EVERY = 256
A = TypeVar("A")
B = TypeVar("B")
_VERSION = 1
"""Of what a row says; rows of another version are made anew."""
_TURNED = {2: "mirrored", 3: "turned by 180°", 4: "flipped", 5: "transposed", 6: "turned by 90°", 7: "transversed"}


@dataclass(frozen=True)
class AuditSettings:
    """What is used. Sides are in pixels; `near_distance` is in bits of a perceptual hash's 64, None for no search."""

    recursive: bool = False
    min_side: int = 32
    max_aspect: float = 4.0
    max_pixels: int = 100_000_000
    near_distance: int | None = 4
    reject_duplicates: bool = False

    def digest(self, folder: Path) -> str:
        """What a row of the audit depends on, as text."""
        looked_at = {key: value for key, value in asdict(self).items() if key != "reject_duplicates"}
        return json.dumps({**looked_at, "folder": str(folder.resolve()), "version": _VERSION}, sort_keys=True)


def audit_collection(
    folder: Path, settings: AuditSettings, store: CollectionStore, reporter: Reporter, threads: int | None = None
) -> None:
    """Look at every file of a folder, and of those below if `recursive`; the findings go to `store`, in order of path.

    What the store already knows of an unchanged file (size and time) is kept, so a killed audit goes on. Images are
    decoded at a fraction of their size where their format can, by `threads` threads (None: one a core).

    Raises:
        UserError: the folder is missing, is a file, cannot be read, or holds no usable image; ImageHash is missing.
    """
    if settings.near_distance is not None:
        require_hashing()
    check_folder(folder)
    store.list_files(walk(folder, settings.recursive))
    counts = store.counts()
    waiting, workers = counts.get("waiting", 0), threads or os.cpu_count() or 1
    known = counts.get(ACCEPTED, 0) + counts.get(REJECTED, 0)
    if known and waiting:
        reporter.say(f"{known} files were looked at before, {waiting} are left", tag="audit goes on")
    with reporter.bar("audit", waiting) as bar, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # once for all threads: Pillow's own are kept quiet one by one
        found = in_order(store.waiting(), lambda file: inspect_file(folder, file, settings), workers)
        try:
            for number, record in enumerate(found, start=1):
                store.put(record)
                bar.advance()
                if number % _COMMIT_EVERY == 0:
                    store.commit()
        finally:
            store.commit()
    note_likenesses(store, settings)
    if not store.counts().get(ACCEPTED):
        raise UserError(nothing_usable(folder, store, settings.recursive))


def in_order(items: Iterator[A], work: Callable[[A], B], workers: int) -> Iterator[B]:
    """`work` of each item by several threads, in the items' order; only a few are under way, however many come."""
    pending: deque[Future[B]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="images") as pool:
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) >= 4 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def check_folder(folder: Path) -> None:
    """Raise UserError unless this is a folder that can be listed and holds something."""
    name = shown(folder)
    try:
        if not folder.is_dir():
            problem = "is a file, not a folder of images" if folder.exists() else "does not exist"
            raise UserError(f"the images folder {name} {problem}; check the path")
        with os.scandir(folder) as entries:
            if next(entries, None) is None:
                raise UserError(f"the images folder {name} is empty; put {READABLE} images in it")
    except OSError as error:
        raise UserError(f"the images folder {name} cannot be read ({error.strerror or error})") from error


def walk(folder: Path, recursive: bool) -> Iterator[tuple[str, str, str]]:
    """Every entry in order of path as (relative path, stamp, why it is ignored or ""). Linked folders are not entered.

    The stamp is size and time of change; that of a folder is empty.
    """
    yield from _walk(folder, "", recursive)


def _walk(folder: Path, inside: str, recursive: bool) -> Iterator[tuple[str, str, str]]:
    try:
        with os.scandir(folder / inside) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        yield f"{inside}/", "", f"the folder cannot be read ({error.strerror or error})"
        return
    texts = {_nfc_stem(entry.name) for entry in entries if not _is_text(entry.name) and not is_clutter(entry.name)}
    for entry in entries:
        file = f"{inside}/{entry.name}" if inside else entry.name
        try:
            below = entry.is_dir(follow_symlinks=False)
            linked = entry.is_symlink() and entry.is_dir()
        except OSError:
            below = linked = False
        if is_clutter(entry.name):
            yield file, "", "system or hidden file"
        elif linked:
            yield f"{file}/", "", "linked folder (not searched)"
        elif below and recursive:
            yield from _walk(folder, file, recursive)
        elif below:
            yield f"{file}/", "", "subfolder (not searched; recursive=true does)"
        else:
            yield file, _stamp(entry), _why_ignored(entry.name, texts)


def _stamp(entry: os.DirEntry[str]) -> str:
    with suppress(OSError):
        stat = entry.stat()
        return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"  # the last also tells of permissions
    return ""


def _why_ignored(name: str, images: set[str]) -> str:
    if _is_text(name):
        return "caption" if _nfc_stem(name) in images else "text that is no image's caption"
    suffix = Path(name).suffix.lower()
    return f"no image by its ending {suffix}" if suffix in NO_IMAGES else ""


def _is_text(name: str) -> bool:
    return name.lower().endswith(".txt")


def _nfc_stem(name: str) -> str:
    return unicodedata.normalize("NFC", Path(name).stem)


def inspect_file(folder: Path, file: str, settings: AuditSettings) -> FileRecord:
    """What can be said of one file on its own."""
    path = folder / file
    try:
        loaded = read_image(path, max_pixels=settings.max_pixels, at_least=SIDE)
        phash = None if settings.near_distance is None else perceptual_hash(loaded.image)
    except ImageError as error:
        return FileRecord(file, REJECTED, error.reason, sha256=_sha256(path))
    except Exception as error:  # one odd file must not end the audit of a hundred thousand
        return FileRecord(file, REJECTED, f"it cannot be read ({type(error).__name__}); copy or export it again")
    problem = _shape_problem(loaded, settings)
    return FileRecord(
        file,
        REJECTED if problem else ACCEPTED,
        problem or "; ".join(_notes(file, loaded)),
        *loaded.size,
        mode=loaded.mode,
        format=loaded.format,
        orientation=loaded.orientation,
        sha256=loaded.sha256,
        hash=phash,
    )


def _sha256(path: Path) -> str | None:
    """The hash of an ordinary file that is no image; None for pipes, devices and what cannot be read."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError:
        return None


def _shape_problem(loaded: Loaded, settings: AuditSettings) -> str:
    width, height = loaded.size
    if min(width, height) < settings.min_side:
        return f"too small: {width}x{height} pixels, below audit.min_side={settings.min_side}"
    if max(width, height) > settings.max_aspect * min(width, height):
        return f"odd aspect ratio: {width}x{height} pixels, beyond audit.max_aspect={settings.max_aspect:g}"
    return ""


def _notes(file: str, loaded: Loaded) -> Iterator[str]:
    """What is odd about an accepted image and how it is read all the same."""
    if loaded.orientation != 1:
        yield f"{_TURNED.get(loaded.orientation, 'turned by 270°')} as its EXIF says"
    if loaded.mode not in ("RGB", "L") and not loaded.notes:
        yield f"mode {loaded.mode} converted to RGB"
    yield from loaded.notes
    usual = {"JPEG": ("jpg", "jpeg", "jpe", "jfif"), "MPO": ("jpg", "jpeg", "mpo"), "PNG": ("png", "apng")}
    suffix = Path(file).suffix.lower().removeprefix(".")
    if suffix not in usual.get(loaded.format, (suffix,)):
        yield f"read as {loaded.format}, though its name ends in {shown('.' + suffix)}"


def note_likenesses(store: CollectionStore, settings: AuditSettings) -> None:
    """Find duplicates and near duplicates; the first of the same bytes stays accepted in any case."""
    store.note_duplicates()
    if settings.reject_duplicates:
        for record in store.records("duplicate_of IS NOT NULL AND status = 'accepted'"):
            store.reject(record.file, SAME_BYTES + str(record.duplicate_of))
        store.commit()
    if settings.near_distance is not None:
        places, hashes = store.hashes()
        earliest = earliest_near(hashes, settings.near_distance)
        later = [index for index, first in enumerate(earliest.tolist()) if first < index]
        store.note_near_duplicates([(int(places[index]), int(places[earliest[index]])) for index in later])


def nothing_usable(folder: Path, store: CollectionStore, recursive: bool) -> str:
    """The line that says why a folder without a usable image is of no use."""
    rejected = store.counts().get(REJECTED, 0)
    if not rejected:
        kinds = sorted({kind for (kind,) in store.query("DISTINCT reason", "LIMIT 5")})
        hint = "" if recursive else "; recursive=true searches subfolders too"
        return f"the images folder {shown(folder)} holds no image (only: {', '.join(kinds)}){hint}"
    first = store.query("path, reason", "WHERE status = 'rejected' ORDER BY place LIMIT 3")
    told = "; ".join(f"{shown(os.fsdecode(path))}: {reason.split(';')[0]}" for path, reason in first)
    more = f"; and {rejected - len(first)} more" if rejected > len(first) else ""
    return f"none of the {rejected} file(s) in {shown(folder)} is a usable image ({told}{more}); use {READABLE} images"

"""Tasks from a folder of photos and a file of edits, one after another, however many photos there are."""

import difflib
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path

from boothlab.editing.edits import CaptionOrigin, Edit, EditRow, EditTask, caption_notes, read_edits
from boothlab.editing.names import inside, unique_names
from boothlab.editing.task_files import mask_of, picture_of
from boothlab.errors import UserError
from boothlab.files import is_clutter, sha256_file, shown
from boothlab.images.audit import read_caption
from boothlab.images.load import READABLE, ImageError, read_image

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".avif"),
        *(".heic", ".heif"),  # which cannot be read: the error says so, and passing over them in silence would not
    }
)
"""What counts as an image where an edit is for all of them; an edit may name any other file."""
_IGNORED = frozenset((".txt", ".yaml", ".yml", ".json", ".jsonl", ".ndjson", ".md", ".csv"))

Rejected = Callable[[Path, str], None]


@dataclass(frozen=True)
class _Folder:
    """File names of a folder, in order, and what belongs to them: ids, and side-cars by stem."""

    path: Path
    names: tuple[str, ...]
    ids: Mapping[str, str]
    sidecars: Mapping[str, Path]


@dataclass(frozen=True)
class _Caption:
    text: str | None = None
    origin: CaptionOrigin = "none"
    sha256: Mapping[str, str] = field(default_factory=dict)


def folder_tasks(
    images: Path,
    edits: Path,
    *,
    captions: Mapping[str, str] | None = None,
    rejected: Rejected | None = None,
    warn: Callable[[str], None] | None = None,
) -> Iterator[EditTask]:
    """The tasks of a folder of photos (not of its subfolders): photo by photo by name, its edits in their file's order.

    What the file of edits says is checked before this returns; each photo is decoded once, when its turn comes, and
    none is kept. A photo's source caption is the edit's own, else that of its side-car (dog.txt beside dog.jpg), else
    that of `captions` (file name to caption, as the caption command gives them). {caption} in a target caption stands
    for it. A mask is relative to the file of edits, and {image} in it stands for the photo's name without its ending.

    `rejected` is told of a photo that cannot be used, and why, and the photo is left out; without it that is an error.
    `warn` is told of side-cars that cannot be used.

    Raises:
        UserError: a bad file of edits or folder, an edit for images that are not there, a missing mask or one outside
            the folder of the file of edits; while tasks are drawn: an unusable photo, or {caption} without a caption.
    """
    images, edits = Path(images), Path(edits)
    rows = read_edits(edits)
    folder = _listed(images, edits)
    chosen = _chosen(rows, folder)
    for name, wanted in chosen.items():
        for row in wanted:
            _mask_path(row, edits, name)
    edits_hash = {f"edits/{edits.name}": sha256_file(edits)}
    return _tasks(folder, edits, chosen, captions if captions is not None else {}, edits_hash, rejected, warn)


def _tasks(
    folder: _Folder,
    edits: Path,
    chosen: Mapping[str, list[EditRow]],
    captions: Mapping[str, str],
    edits_hash: Mapping[str, str],
    rejected: Rejected | None,
    warn: Callable[[str], None] | None,
) -> Iterator[EditTask]:
    for name, rows in chosen.items():
        path = folder.path / name
        try:
            source_hash = {f"source/{name}": read_image(path).sha256}
        except ImageError as error:
            if rejected is None:
                raise
            rejected(path, error.reason)
            continue
        asked = any(not row.edit.source_caption for row in rows)  # a caption may have to be made
        found = _caption_of(name, folder, captions if asked else {}, warn)
        for row in rows:
            caption = _Caption(row.edit.source_caption, "file") if row.edit.source_caption else found
            mask, mask_hash = _mask_path(row, edits, name), {}
            if mask is not None:
                mask_hash = {f"mask/{mask.relative_to(edits.parent).as_posix()}": sha256_file(mask)}
            edit = _filled(row, caption.text, mask, path)
            yield EditTask(
                image_name=folder.ids[name],
                edit=edit,
                source=picture_of(path),
                mask=mask_of(mask, path) if mask is not None else None,
                sha256={**source_hash, **edits_hash, **caption.sha256, **mask_hash},
                caption_origin=caption.origin,
                notes=caption_notes(edit),
            )


def _filled(row: EditRow, caption: str | None, mask: Path | None, path: Path) -> Edit:
    """The row's edit with this photo's caption and mask."""
    target = row.edit.target_caption
    if target and "{caption}" in target:
        if caption is None:
            raise UserError(
                f"{row.place}: its target_caption has {{caption}}, and {shown(path)} has none; write one in "
                f"{shown(path.with_suffix('.txt').name)}, or give the edit a source_caption"
            )
        target = target.replace("{caption}", caption)
    return replace(row.edit, source_caption=caption, target_caption=target, mask=mask)


def _listed(images: Path, edits: Path) -> _Folder:
    name = shown(images)
    try:
        if not images.is_dir():
            problem = "is a file, not a folder of images" if images.exists() else "does not exist"
            raise UserError(f"the images folder {name} {problem}; check the path")
        entries = sorted((path for path in images.iterdir() if not is_clutter(path.name)), key=lambda path: path.name)
        files = [path for path in entries if not path.is_dir() and not _is_same(path, edits)]
    except OSError as error:
        raise UserError(f"the images folder {name} cannot be read ({error.strerror or error})") from error
    sidecars: dict[str, Path] = {}
    for path in files:
        if path.suffix.lower() == ".txt" and path.is_file():
            sidecars.setdefault(_nfc(path.stem), path)
    names = tuple(path.name for path in files if path.suffix.lower() not in _IGNORED)
    if not names:
        raise UserError(f"the images folder {name} holds no image; put {READABLE} photos in it")
    for first, again in pairwise(sorted(names, key=lambda text: (_nfc(text), text))):
        if _nfc(first) == _nfc(again):
            raise UserError(f"{shown(images)} has two files called {shown(again)}, their accents apart; rename one")
    return _Folder(images, names, dict(zip(names, unique_names(names), strict=True)), sidecars)


def _is_same(path: Path, other: Path) -> bool:
    return path.name == other.name and path.resolve() == other.resolve()


def _chosen(rows: list[EditRow], folder: _Folder) -> dict[str, list[EditRow]]:
    """For each photo that has any, its edits; photos by name, edits in the order of their file."""
    everything = {name for name in folder.names if Path(name).suffix.lower() in IMAGE_SUFFIXES}
    chosen: dict[str, list[EditRow]] = {name: [] for name in folder.names}
    by_nfc = {_nfc(name): name for name in folder.names}
    for row in rows:
        wanted = set(everything) if not row.images else set()
        for pattern in row.images:
            wanted |= _matching(pattern, row, folder, by_nfc)
        if not wanted:
            raise UserError(f"the images folder {shown(folder.path)} holds no image; put {READABLE} photos in it")
        for name in sorted(wanted):
            chosen[name].append(row)
    return {name: wanted_rows for name, wanted_rows in chosen.items() if wanted_rows}


def _matching(pattern: str, row: EditRow, folder: _Folder, by_nfc: Mapping[str, str]) -> set[str]:
    exact = by_nfc.get(_nfc(pattern))  # first, since a file's name may hold [ and ]
    found = {exact} if exact else {name for nfc, name in by_nfc.items() if fnmatchcase(nfc, _nfc(pattern))}
    if not found:
        near = difflib.get_close_matches(pattern, folder.names, n=1)
        hint = f"did you mean {shown(near[0])}?" if near else "check the name"
        raise UserError(f"{row.place}: no image in {shown(folder.path)} is named {shown(pattern)}; {hint}")
    return found


def _mask_path(row: EditRow, edits: Path, name: str) -> Path | None:
    if row.edit.mask is None:
        return None
    relative = str(row.edit.mask).replace("{image}", Path(name).stem)
    path = inside(edits.parent, relative, row.place, "mask")
    if not path.is_file():
        raise UserError(f"{row.place}: there is no mask {shown(path)} (for {shown(name)}); draw it, or name another")
    return path


def _caption_of(
    name: str, folder: _Folder, captions: Mapping[str, str], warn: Callable[[str], None] | None
) -> _Caption:
    sidecar = folder.sidecars.get(_nfc(Path(name).stem))
    if sidecar is not None:
        warnings: list[str] = []
        text = read_caption(sidecar, warnings)
        for warning in warnings if warn is not None else ():
            warn(warning)  # type: ignore[misc]
        if text is not None:
            return _Caption(text, "side-car", {f"caption/{sidecar.name}": sha256_file(sidecar)})
    text = captions.get(name)
    return _Caption(text, "caption command") if text else _Caption()


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)

"""Finding a run's photos, captions and class images again by what is in them, wherever they lie now."""

import shutil
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from boothlab.errors import UserError
from boothlab.files import atomic_directory, is_clutter, sha256_file, shown
from boothlab.images.audit import Audit

CLASS_IMAGE = "class_images/"
BESIDE = "inputs"
"""A folder in a run folder in which files of the run are looked for, whatever their names."""


@dataclass(frozen=True)
class Item:
    """One photo: its file name and hash, and those of its caption, if it has one that is used."""

    name: str
    sha256: str
    caption_name: str | None = None
    caption_sha256: str | None = None

    @property
    def content(self) -> tuple[str, str | None]:
        """What training sees of it; names only give the order."""
        return self.sha256, self.caption_sha256


@dataclass
class Search:
    """What came of looking for a set of photos: `folder` holds exactly these; else `gathered` says where each file
    was found, by the name it had; `missing` says of each that was not found what it is. `note` is for the user.
    """

    what: str
    folder: str | None = None
    gathered: dict[str, Path] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    note: str = ""


def recorded_photos(manifest: Mapping[str, Any]) -> list[Item]:
    """The photos in a manifest, in the order in which the run saw them."""
    captions = {_stem(PurePosixPath(path).name): (path, digest) for path, digest in _files(manifest, "captions")}
    items = []
    for path, digest in _files(manifest, "inputs"):
        # Manifests of format 1 had the adapter of a scoring among the photos.
        if path.startswith(CLASS_IMAGE) or path.endswith(".safetensors"):
            continue
        caption = captions.get(_stem(PurePosixPath(path).name))
        name = PurePosixPath(path).name
        items.append(Item(name, digest, caption and PurePosixPath(caption[0]).name, caption and caption[1]))
    return sorted(items, key=lambda item: item.name)


def recorded_class_images(manifest: Mapping[str, Any]) -> list[Item]:
    """The class images in a manifest, in order; their names are their numbers."""
    found = [Item(PurePosixPath(path).name, digest) for path, digest in _files(manifest, "inputs") if _is_class(path)]
    return sorted(found, key=lambda item: item.name)


def _is_class(path: str) -> bool:
    return path.startswith(CLASS_IMAGE)


def _files(manifest: Mapping[str, Any], section: str) -> list[tuple[str, str]]:
    found = manifest.get(section)
    return [(str(path), str(digest)) for path, digest in found.items()] if isinstance(found, Mapping) else []


def knows_captions(manifest: Mapping[str, Any]) -> bool:
    """Whether captions were recorded at all: manifests of format 1 have none."""
    return isinstance(manifest.get("captions"), Mapping)


def audited(audit: Audit, captions: Mapping[str, str]) -> list[Item]:
    """The photos of a folder as `recorded_photos` gives those of a manifest; `captions` are their hashes by path."""
    by_stem = {_stem(Path(path).name): (Path(path).name, digest) for path, digest in captions.items()}
    return [
        Item(photo.path.name, photo.sha256, *by_stem.get(_stem(photo.path.name), (None, None)))
        for photo in audit.accepted
    ]


def _stem(name: str) -> str:
    return unicodedata.normalize("NFC", PurePosixPath(name).stem)


def places_to_look(given: str, manifest: Mapping[str, Any], run_dir: Path) -> list[Path]:
    """Where photos of a run may lie, most likely first: the folder that its config names, also from the folder in which
    the run was started; beside the run; and where its manifest says that each file was.
    """
    places = [] if given.startswith("dollhouse:") else [Path(given).expanduser()]
    started_in = manifest.get("working_directory")
    if places and isinstance(started_in, str):
        places.append(Path(started_in) / places[0])
    places.append(run_dir / BESIDE)
    for section in ("inputs", "captions"):
        places += [Path(path).parent for path, _ in _files(manifest, section) if not _is_class(path)]
    return list(dict.fromkeys(places))


def search(
    what: str, wanted: Sequence[Item], found: Iterable[tuple[str, Sequence[Item]]], places: Iterable[Path], key: str
) -> Search:
    """Match `wanted` with the photos `found` in folders that could be used as they are, else gather it file by file
    from all `places`. `key` is the config key by which the user can name another folder.
    """
    result = Search(what)
    content = [item.content for item in wanted]
    for folder, items in found:
        if [item.content for item in items] == content:
            result.folder = folder
            return result
    pool = _pool(places)
    for item in wanted:
        for name, digest, kind in _parts(item, what):
            if digest in pool:
                result.gathered[name] = pool[digest]
            else:
                result.missing.append(f"{kind} {shown(name)} (SHA-256 {digest})")
    if result.missing:
        result.note = f"name the folder that has it with {key}=…, or put it into {BESIDE}/ in the run folder"
    else:
        result.note = f"gathered by content: the folder itself holds other {what} now"
    return result


def _parts(item: Item, what: str) -> list[tuple[str, str, str]]:
    parts = [(item.name, item.sha256, what.removesuffix("s"))]
    if item.caption_name and item.caption_sha256:
        parts.append((item.caption_name, item.caption_sha256, "caption"))
    return parts


def _pool(places: Iterable[Path]) -> dict[str, Path]:
    """Every file in the folders by its hash; of equal files the first."""
    pool: dict[str, Path] = {}
    for folder in places:
        if not folder.is_dir():
            continue
        for path in sorted(folder.iterdir()):
            if path.is_file() and not is_clutter(path.name):
                try:
                    pool.setdefault(sha256_file(path), path)
                except UserError:  # unreadable is as good as absent
                    continue
    return pool


def stage(gathered: Mapping[str, Path], folder: Path) -> Path:
    """Copy gathered files into a new folder, under the names they had in the run; class images get their ending."""
    with atomic_directory(folder, replace=True) as building:
        for name, path in sorted(gathered.items()):
            shutil.copyfile(path, building / (name if PurePosixPath(name).suffix else name + path.suffix.lower()))
    return folder

"""The pre-flight audit: what in a folder of photos can be used, what cannot and why, before anything is trained."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from boothlab.errors import UserError
from boothlab.files import is_clutter, shown
from boothlab.images.load import MAX_PIXELS, READABLE, ImageError, Loaded, read_image

_NORMAL_SUFFIXES = {
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif"},
    "MPO": {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"},
    "PNG": {".png", ".apng"},
    "WEBP": {".webp"},
    "GIF": {".gif"},
    "BMP": {".bmp", ".dib"},
    "TIFF": {".tif", ".tiff"},
    "PPM": {".ppm", ".pgm", ".pbm", ".pnm", ".pfm"},
    "JPEG2000": {".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".jpc"},
    "AVIF": {".avif", ".avifs"},
}
_REASONS_SHOWN = 3
CAPTION = "caption"
"""The kind, among what is ignored, of a side-car that is in use."""
MAX_CAPTION_BYTES = 1 << 16
"""Of a side-car: text encoders read some hundred bytes of it."""


@dataclass(frozen=True)
class Photo:
    """An accepted image. Width and height are in pixels, upright; mode and format are as stored in the file.

    `caption` is the text of the side-car (dog.txt beside dog.jpg) with runs of white space made single spaces, or
    None. `notes` say what the loader did; they are no warnings.
    """

    path: Path
    caption: str | None
    width: int
    height: int
    mode: str
    format: str
    sha256: str
    notes: tuple[str, ...]


@dataclass
class Audit:
    """The findings on one folder, each list sorted by file name.

    `accepted` are the photos to use; `rejected` the other files with the reason; `ignored` what is passed over
    without a word (system files, dotfiles, captions, subfolders) with its kind; `warnings` need the user's eye.
    """

    folder: Path
    accepted: list[Photo] = field(default_factory=list)
    rejected: list[tuple[Path, str]] = field(default_factory=list)
    ignored: list[tuple[Path, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def audit_folder(
    folder: Path | str, *, min_side: int = 8, max_aspect: float = 20.0, max_pixels: int = MAX_PIXELS
) -> Audit:
    """Decode every file of a folder (not of its subfolders), in order of name, and sort it into an `Audit`.

    Images with a side below `min_side` pixels, with sides in a ratio above `max_aspect`, or with more than
    `max_pixels` are rejected. A caption that is not UTF-8 (a byte-order mark is tolerated) is a warning and ignored.

    Raises:
        UserError: the folder is missing, is a file, cannot be read, is empty, or holds no usable image.
    """
    folder = Path(folder)
    audit = Audit(folder)
    files = _list_files(folder, audit)
    sidecars = [path for path in files if path.suffix.lower() == ".txt"]
    images = [path for path in files if path.suffix.lower() != ".txt"]
    stems = {_stem(path) for path in images}
    captions: dict[str, Path] = {}
    for path in sidecars:
        used = _stem(path) in stems and captions.setdefault(_stem(path), path) is path
        audit.ignored.append((path, CAPTION if used else "text that is no image's caption"))
    audit.ignored.sort(key=lambda item: item[0].name)
    texts = {stem: read_caption(path, audit.warnings) for stem, path in captions.items()}
    for path in images:
        try:
            loaded = read_image(path, max_pixels=max_pixels)
            _check_shape(path, loaded, min_side, max_aspect)
        except ImageError as error:
            audit.rejected.append((path, error.reason))
        else:
            audit.accepted.append(_photo(path, loaded, texts.get(_stem(path))))
    audit.warnings.extend(_duplicates(audit.accepted))
    if not audit.accepted:
        raise UserError(_nothing_usable(audit))
    return audit


def captioned_from(audit: Audit, folder: Path) -> Audit:
    """The same photos with the side-cars of another folder, where they have the photos' names; their own count no more.

    Raises UserError for a folder that is missing, cannot be read, or has no caption for any of the photos.
    """
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".txt" and path.is_file())
    except OSError as error:
        raise UserError(f"the captions folder {shown(folder)} cannot be read ({error.strerror}); check it") from error
    stems, found = {_stem(photo.path) for photo in audit.accepted}, dict[str, Path]()
    for path in files:
        if _stem(path) in stems and not is_clutter(path.name):
            found.setdefault(_stem(path), path)
    warnings = list(audit.warnings)
    texts = {stem: read_caption(path, warnings) for stem, path in found.items()}
    captioned = [replace(photo, caption=texts.get(_stem(photo.path))) for photo in audit.accepted]
    bare = [photo.path.name for photo in captioned if photo.caption is None]
    if len(bare) == len(captioned):
        raise UserError(
            f"the captions folder {shown(folder)} has no caption for any photo of {shown(audit.folder)}; "
            f"that of {shown(bare[0])} would be {shown(Path(bare[0]).stem)}.txt"
        )
    if bare:
        more = f" and {len(bare) - 1} more" if len(bare) > 1 else ""
        warnings.append(f"{shown(bare[0])}{more} of {len(captioned)} photos have no caption in {shown(folder)}")
    ignored = [(path, "caption that is not asked for" if kind == CAPTION else kind) for path, kind in audit.ignored]
    return Audit(folder=audit.folder, accepted=captioned, rejected=audit.rejected, warnings=warnings,
                 ignored=[*ignored, *((path, CAPTION) for path in found.values())])  # fmt: skip


def _list_files(folder: Path, audit: Audit) -> list[Path]:
    """Everything in the folder that may be an image or a caption, by name; the rest goes to `audit.ignored`."""
    name = shown(folder)
    try:
        if not folder.exists():
            raise UserError(f"the images folder {name} does not exist; check the path, or make it and put photos in it")
        if not folder.is_dir():
            raise UserError(f"{name} is a file, not a folder of images; give the folder that holds it")
        entries = sorted(folder.iterdir(), key=lambda path: path.name)
        if not entries:
            raise UserError(f"the images folder {name} is empty; put {READABLE} photos in it")
        files = []
        for path in entries:
            if is_clutter(path.name):
                audit.ignored.append((path, "system or hidden file"))
            elif path.is_dir():
                audit.ignored.append((path, "subfolder (not searched)"))
            elif path.suffix.lower() == ".txt" and path.exists() and not path.is_file():
                audit.ignored.append((path, "no ordinary file"))  # reading a pipe or a device would never end
            else:
                files.append(path)
        return files
    except OSError as error:
        detail = error.strerror or error
        raise UserError(f"the images folder {name} cannot be read ({detail}); check its permissions") from error


def _stem(path: Path) -> str:
    # NFC: macOS may store the accents of one name decomposed and of the other composed.
    return unicodedata.normalize("NFC", path.stem)


def read_caption(path: Path, warnings: list[str]) -> str | None:
    try:
        if path.stat().st_size > MAX_CAPTION_BYTES:
            warnings.append(f"the caption {shown(path)} is larger than {MAX_CAPTION_BYTES >> 10} KiB and is ignored")
            return None
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        warnings.append(f"the caption {shown(path)} is not UTF-8 text and is ignored; save it as UTF-8")
        return None
    except OSError as error:
        warnings.append(f"the caption {shown(path)} cannot be read ({error.strerror}) and is ignored")
        return None
    if "\0" in text:  # UTF-16 without a byte-order mark decodes as UTF-8, with a null after every letter
        warnings.append(f"the caption {shown(path)} is not UTF-8 text and is ignored; save it as UTF-8")
        return None
    # Control characters, such as a terminal's escape codes, are no part of a caption.
    caption = " ".join("".join(char for char in text if char.isspace() or unicodedata.category(char) != "Cc").split())
    if not caption:
        warnings.append(f"the caption {shown(path)} is empty and is ignored; write one or delete the file")
    return caption or None


def _check_shape(path: Path, loaded: Loaded, min_side: int, max_aspect: float) -> None:
    width, height = loaded.image.size
    if min(width, height) < min_side:
        reason = f"it is {width}x{height} pixels, below the smallest side of {min_side}; use a larger image"
        raise ImageError(shown(path), reason)
    if max(width, height) > max_aspect * min(width, height):
        reason = f"it is {width}x{height} pixels, longer than {max_aspect:g} times its other side; crop it"
        raise ImageError(shown(path), reason)


def _photo(path: Path, loaded: Loaded, caption: str | None) -> Photo:
    notes = loaded.notes
    normal = _NORMAL_SUFFIXES.get(loaded.format, set())
    if path.suffix.lower() not in normal:
        named = f"its name ends in {shown(path.suffix)}" if path.suffix else "its name has no ending"
        notes = (*notes, f"read as {loaded.format}, though {named}")
    width, height = loaded.image.size
    return Photo(path, caption, width, height, loaded.mode, loaded.format, loaded.sha256, notes)


def _duplicates(photos: Iterable[Photo]) -> list[str]:
    first: dict[str, Photo] = {}
    warnings = []
    for photo in photos:
        original = first.setdefault(photo.sha256, photo)
        if original is not photo:
            same = f"{shown(photo.path)} is the same file as {shown(original.path.name)}"
            warnings.append(f"{same}, so this picture counts twice; delete one of them if that is not meant")
    return warnings


def _nothing_usable(audit: Audit) -> str:
    name = shown(audit.folder)
    if not audit.rejected:
        kinds = sorted({kind for _, kind in audit.ignored})
        return f"the images folder {name} holds no image (only: {', '.join(kinds)}); put {READABLE} photos in it"
    reasons = [f"{shown(path.name)}: {reason.split(';')[0]}" for path, reason in audit.rejected[:_REASONS_SHOWN]]
    more = len(audit.rejected) - len(reasons)
    tail = f"; and {more} more" if more else ""
    count = len(audit.rejected)
    found = f"none of the {count} file(s) in {name} is a usable image"
    return f"{found} ({'; '.join(reasons)}{tail}); use {READABLE} photos"

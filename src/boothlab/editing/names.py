"""Names and paths that are safe: file-name ids of any text, unique in a set, and paths that stay inside a folder."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath

from boothlab.errors import UserError
from boothlab.files import shown

LONGEST = 60
"""Characters of an id: two of them and an ending are still a legal file name everywhere."""
# No `__`, and no `_` at an end: that parts an image's id from its edit's in the names of results.
_SAFE = re.compile(rf"(?!.*__)(?!.{{{LONGEST + 1}}})[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?", re.ASCII)
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE | re.ASCII)


def is_safe(name: str) -> bool:
    """Whether a name is one already: 1 to 60 ASCII letters, digits, and `_` (never `__`), `-` or `.` between them.

    Names that Windows reserves are not.
    """
    return bool(_SAFE.fullmatch(name)) and not _RESERVED.fullmatch(name)


def safe_name(text: str, otherwise: str = "edit") -> str:
    """An id for any text that is a legal file name on every system; a safe name is its own id.

    White space and punctuation become `_`. Where that loses more (letters of another script, a long text's end), eight
    hexadecimal digits of the text's SHA-256 are added; a text of which no letter is left is named `otherwise`.
    """
    if is_safe(text):
        return text
    plain = unicodedata.normalize("NFKD", text)
    kept = "".join(c for c in plain if c.isascii() or not (c.isalnum() or unicodedata.combining(c)))
    slug = re.sub(r"[^A-Za-z0-9.-]+", "_", kept).strip("_.-")
    lost = any(not char.isascii() for char in text) or len(slug) > LONGEST or not slug
    if not lost and is_safe(slug):
        return slug
    name = f"{slug[: LONGEST - 9].strip('_.-') or otherwise}-{_digits(text)}"
    return name if is_safe(name) else f"{otherwise}-{_digits(text)}"


def unique_names(texts: Sequence[str], otherwise: str = "image") -> list[str]:
    """An id for each of some different file names, no two alike even where case does not count.

    The name's stem is used; where two stems give one id, the ending too (bird_jpeg, bird_png); and where that is not
    enough (bird.png, Bird.png), eight digits of the whole name's SHA-256. So a name depends on those it collides with
    alone, never on their order.
    """
    stems = [safe_name(Path(text).stem, otherwise) for text in texts]
    whole = [safe_name(f"{Path(text).stem}_{Path(text).suffix[1:]}", otherwise) for text in texts]
    hashed = [f"{stem[: LONGEST - 9].strip('_.-')}-{_digits(text)}" for stem, text in zip(stems, texts, strict=True)]
    names = list(stems)
    for better in (whole, hashed):
        counts = Counter(name.casefold() for name in names)
        names = [other if counts[name.casefold()] > 1 else name for name, other in zip(names, better, strict=True)]
    if len({name.casefold() for name in names}) < len(names):  # a file is called just what another's id became
        return hashed
    return names


def inside(folder: Path, relative: str, where: str, what: str) -> Path:
    """The path of a file named relative to a folder that it must not leave, neither by `..` nor by a link.

    `where` begins the message and `what` says what the file is. Raises UserError; the file need not exist.
    """
    parts = PureWindowsPath(relative)  # it knows both separators, and drives
    if not relative.strip() or not relative.isprintable():
        raise UserError(f"{where}: the {what} {shown(relative)!r} is no file name; give one below {shown(folder)}")
    if parts.drive or parts.root or ".." in parts.parts:
        raise UserError(
            f"{where}: the {what} {shown(relative)} lies outside {shown(folder)}; give a path below it, without '..'"
        )
    path = folder / relative
    try:
        stays = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{where}: the {what} {shown(relative)} cannot be found ({error}); check the path") from error
    if not stays:
        raise UserError(
            f"{where}: the {what} {shown(relative)} is a link that leads out of {shown(folder)}; copy the file there"
        )
    return path


def _digits(text: str) -> str:
    # NFC: the same name must not differ between macOS, which may store accents decomposed, and the rest.
    return hashlib.sha256(unicodedata.normalize("NFC", text).encode("utf-8", "surrogatepass")).hexdigest()[:8]

"""Edits as data: what an edit is, what one method has to do with one image, and files of edits, read and checked."""

import difflib
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from boothlab.editing.edit_file import read_rows
from boothlab.editing.names import safe_name
from boothlab.errors import UserError
from boothlab.files import shown

if TYPE_CHECKING:  # reading a file of edits takes no imaging library
    from PIL import Image

Loader: TypeAlias = Callable[[], "Image.Image"]
"""Reads one picture when it is called, so that a set of thousands is never in memory."""
CaptionOrigin: TypeAlias = Literal["file", "side-car", "caption command", "none"]
"""Where a source caption comes from; "file" is the file of edits or the benchmark's own annotations."""

_TEXTS = ("instruction", "source_caption", "target_caption")
_KEYS = ("name", *_TEXTS, "mask", "image", "images", "changes")
_PLACEHOLDER = re.compile(r"\{(\w*)\}")


@dataclass(frozen=True)
class Setting:
    """What an override may be: whole or not, and its range, both ends included (`above` excludes the lower one)."""

    whole: bool
    low: float
    high: float
    above: bool = False


SETTINGS: Mapping[str, Setting] = {
    "strength": Setting(False, 0, 1, above=True),
    "steps": Setting(True, 1, 1000),
    "guidance_scale": Setting(False, 0, 1000),
    "image_guidance_scale": Setting(False, 0, 1000),
    "seed": Setting(True, 0, 2**63 - 1),
}
"""The overrides an edit may carry, by name."""


@dataclass(frozen=True)
class Edit:
    """One thing to do to an image.

    `name` is an id fit for file names. `changes` says what the edit sets to what ({"time": "night"}), for series.
    `mask` is a picture, white where the image may change. `settings` override a method's, by the names in SETTINGS.
    """

    name: str
    instruction: str
    source_caption: str | None = None
    target_caption: str | None = None
    changes: Mapping[str, str] = field(default_factory=dict)
    mask: Path | None = None
    settings: Mapping[str, float | int] = field(default_factory=dict)


@dataclass(frozen=True)
class EditTask:
    """One image with one edit: everything that a method and the scores need. `image_name` and `edit.name` are its key.

    `source` and `truth` (the exact answer, where it is known) give upright RGB; `mask` gives "L", 255 where the image
    may change and 0 elsewhere; all three, and the `controls`, have one size. `fact` is what the dollhouse's judge must
    read after the edit: its name and its value. `sha256` has the hash of each file behind the task, by role and name
    ("source/dog.jpg"). `notes` say what is odd about it.
    """

    image_name: str
    edit: Edit
    source: Loader
    mask: Loader | None = None
    truth: Loader | None = None
    controls: Mapping[str, Loader] = field(default_factory=dict)
    fact: tuple[str, str] | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)
    caption_origin: CaptionOrigin = "none"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class EditRow:
    """A row of a file of edits: an edit, and the images it is for: file names or globs, none for all.

    The target caption may still hold {caption}, and the mask, a path relative to the file, {image}. `place` is where
    the row stands, for messages.
    """

    edit: Edit
    images: tuple[str, ...] = ()
    place: str = ""

    def values(self) -> dict[str, Any]:
        """The row as a file of edits has it: `read_edits` makes the same row of it."""
        edit = self.edit
        values: dict[str, Any] = {"name": edit.name, "instruction": edit.instruction}
        values |= {key: getattr(edit, key) for key in ("source_caption", "target_caption") if getattr(edit, key)}
        if edit.changes:
            values["changes"] = dict(edit.changes)
        if edit.mask is not None:
            values["mask"] = edit.mask.as_posix()
        if self.images:
            values["images"] = list(self.images)
        return values | dict(edit.settings)


def read_edits(path: Path) -> list[EditRow]:
    """The edits of a file, in its order: YAML or JSON (a list, bare or under `edits`), or JSON lines.

    A row has `name` (left out, it is made from the instruction), `instruction` (left out, it is the target caption),
    `source_caption`, `target_caption`, `mask`, `image` or `images` (file name, glob, or a list of them; left out: all
    images), `changes`, and any of SETTINGS.

    Raises:
        UserError: the file cannot be read, holds nothing, or has an unknown key, a wrong type, a value out of range or
            two edits of one name (case does not count); the message names the row.
    """
    rows = [_row(place, value) for place, value in read_rows(Path(path))]
    seen: dict[str, EditRow] = {}
    for row in rows:
        first = seen.setdefault(row.edit.name.casefold(), row)
        if first is not row:
            raise UserError(f"{row.place}: the name {row.edit.name!r} is taken by {first.place}; give it another name")
    return rows


def caption_notes(edit: Edit) -> tuple[str, ...]:
    """What is odd about an edit's captions, though it is allowed."""
    same = edit.source_caption is not None and edit.source_caption == edit.target_caption
    return ("the source caption and the target caption are the same",) if same else ()


def _row(place: str, value: Any) -> EditRow:
    if not isinstance(value, dict):
        raise UserError(f"{place}: an edit is a mapping with a name and an instruction, got {_shown_value(value)}")
    _check_keys(place, value)
    texts = {key: _text(place, key, value[key]) for key in _TEXTS if value.get(key) is not None}
    instruction = texts.get("instruction") or texts.get("target_caption")
    if instruction is None:
        raise UserError(f"{place}: the edit has neither an instruction nor a target_caption; write one of them")
    _check_placeholders(place, texts)
    named = value.get("name")
    edit = Edit(
        name=safe_name(instruction if named is None else _text(place, "name", named)),
        instruction=instruction,
        source_caption=texts.get("source_caption"),
        target_caption=texts.get("target_caption"),
        changes=_changes(place, value.get("changes")),
        mask=_mask(place, value.get("mask")),
        settings={key: _setting(place, key, value[key]) for key in SETTINGS if value.get(key) is not None},
    )
    return EditRow(edit, _images(place, value), place)


def _check_keys(place: str, value: Mapping[str, Any]) -> None:
    known = [*_KEYS, *SETTINGS]
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(known)}"
            raise UserError(f"{place}: unknown key {shown(key)!r}; {hint}")


def _check_placeholders(place: str, texts: Mapping[str, str]) -> None:
    for key, text in texts.items():
        for word in _PLACEHOLDER.findall(text):
            if key == "target_caption" and word != "caption":
                raise UserError(f"{place}: target_caption has an unknown {{{shown(word)}}}; it may have {{caption}}")
            if key != "target_caption" and word == "caption":
                raise UserError(f"{place}: {key} has {{caption}}, which only target_caption may have; write it out")


def _text(place: str, key: str, value: Any) -> str:
    """A text with its white space made single spaces, and without control characters."""
    if not isinstance(value, str):
        raise UserError(f"{place}: {key} must be a text, got {_shown_value(value)}; put it in quotes")
    if any(0xD800 <= ord(char) <= 0xDFFF for char in value):
        raise UserError(f"{place}: {key} holds half a character (a lone surrogate); write it again")
    kept = "".join(char for char in value if char.isspace() or unicodedata.category(char) != "Cc")
    text = " ".join(kept.split())
    if not text:
        raise UserError(f"{place}: {key} is empty; write it, or leave the key out")
    return text


def _file_name(place: str, key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f"{place}: {key} must be a file's name, got {_shown_value(value)}; put it in quotes")
    if not value.strip() or not value.isprintable():
        raise UserError(f"{place}: {key} is no file's name, got {_shown_value(value)}; write it again")
    return value


def _changes(place: str, value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{place}: changes must be a mapping such as {{time: night}}, got {_shown_value(value)}")
    changes = {}
    for key, item in value.items():
        if isinstance(item, bool | int | float):
            item = str(item).lower() if isinstance(item, bool) else str(item)
        changes[_text(place, "a key of changes", key)] = _text(place, f"changes.{shown(key)}", item)
    return changes


def _mask(place: str, value: Any) -> Path | None:
    if value is None:
        return None
    text = _file_name(place, "mask", value)
    parts = PureWindowsPath(text)
    if parts.drive or parts.root or ".." in parts.parts:
        raise UserError(f"{place}: the mask {shown(text)} lies outside the folder of this file; give a path below it")
    for word in _PLACEHOLDER.findall(text):
        if word != "image":
            raise UserError(f"{place}: the mask has an unknown {{{shown(word)}}}; it may have {{image}}")
    return Path(text)


def _images(place: str, value: Mapping[str, Any]) -> tuple[str, ...]:
    if value.get("image") is not None and value.get("images") is not None:
        raise UserError(f"{place}: the edit has image and images; keep one of them")
    key = "image" if value.get("image") is not None else "images"
    given = value.get(key)
    if given is None:
        return ()
    listed = given if isinstance(given, list) else [given]
    if not listed:
        raise UserError(f"{place}: {key} is an empty list; name an image, or leave it out for all images")
    names = tuple(_file_name(place, key, item) for item in listed)
    for name in names:
        if "/" in name or "\\" in name:
            raise UserError(f"{place}: {key} names a path, {shown(name)}; give names of files in the images folder")
    return names


def _setting(place: str, key: str, value: Any) -> float | int:
    setting = SETTINGS[key]
    kind = "a whole number" if setting.whole else "a number"
    allowed = isinstance(value, int if setting.whole else int | float) and not isinstance(value, bool)
    inside = allowed and setting.low <= value <= setting.high  # neither holds of NaN
    if not inside or (setting.above and value == setting.low):
        low = f"above {setting.low:g} and at most" if setting.above else f"from {setting.low:g} to"
        raise UserError(f"{place}: {key} must be {kind} {low} {setting.high:g}, got {_shown_value(value)}")
    return int(value) if setting.whole else float(value)


def _shown_value(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "a huge number"
    return "nothing" if value is None else shown(text if len(text) <= 60 else f"{text[:57]}...")

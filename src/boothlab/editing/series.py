"""Series: edits of which exactly one thing varies over the whole image set, seeds and settings being the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from boothlab.editing.edits import Edit, EditRow
from boothlab.errors import UserError

_ABSENT = "nothing"
_NAMED = 3


@dataclass(frozen=True)
class Series:
    """Edits in their order, the one key of `changes` that varies, its value in each, and the settings they share."""

    axis: str
    values: tuple[str, ...]
    edits: tuple[Edit, ...]
    settings: Mapping[str, float | int]


def check_series(edits: Sequence[Edit | EditRow]) -> Series:
    """The edits as a series, if they are one: at least two, alike in all but the value of one key of `changes`.

    Settings (the seed among them), masks, source captions and, of rows, the images they are for must be the same.

    Raises:
        UserError: fewer than two edits, nothing varies, more than one thing does, or two edits have one value; the
            message names the edits and what varies.
    """
    members = tuple(item.edit if isinstance(item, EditRow) else item for item in edits)
    names = _names([edit.name for edit in members])
    if len(members) < 2:
        raise UserError(f"a series needs at least 2 edits, got {names or 'none'}; add what it is to be compared with")
    axes = _varying([edit.changes for edit in members])
    others = _other_differences(edits, members)
    if not axes and not others:
        raise UserError(f"the series of {names} varies nothing: give each edit its own value under changes")
    if not axes:
        raise UserError(f"the series of {names} varies {_listed(others)} and no key of changes; name there what varies")
    if len(axes) > 1 or others:
        varying = [f"changes.{key}" for key in axes] + others
        raise UserError(f"a series varies one thing, and that of {names} varies {_listed(varying)}; make it several")
    axis = axes[0]
    values = [edit.changes.get(axis, _ABSENT) for edit in members]
    for index, value in enumerate(values):
        if value in values[:index]:
            same = _names([members[values.index(value)].name, members[index].name])
            raise UserError(f"the series over {axis} has {value!r} twice, in {same}; keep one of them")
    return Series(axis, tuple(values), members, dict(members[0].settings))


def _other_differences(edits: Sequence[Edit | EditRow], members: Sequence[Edit]) -> list[str]:
    others = [f"the setting {key}" for key in _varying([edit.settings for edit in members])]
    alike: dict[str, list[object]] = {
        "the mask": [edit.mask for edit in members],
        "the source caption": [edit.source_caption for edit in members],
        "the images": [sorted(item.images) if isinstance(item, EditRow) else [] for item in edits],
    }
    return others + [what for what, values in alike.items() if any(value != values[0] for value in values)]


def _varying(mappings: Sequence[Mapping[str, object]]) -> list[str]:
    """The keys whose values differ, in alphabetical order; a key that only some have differs."""
    missing = object()
    keys = sorted({key for mapping in mappings for key in mapping})
    return [key for key in keys if any(m.get(key, missing) != mappings[0].get(key, missing) for m in mappings)]


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"


def _listed(things: Sequence[str]) -> str:
    return " and ".join([", ".join(things[:-1]), things[-1]] if len(things) > 1 else things)

"""What the config dataclasses say of themselves: a field's key, type and doc, and the nearest key to a typo."""

import ast
import difflib
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any

_PLAIN_NAMES = {int: "whole number", float: "number", bool: "true or false", str: "text"}


@dataclass(frozen=True)
class FieldInfo:
    """One settable key of a config."""

    #: dotted key, as typed on the command line
    key: str
    #: the section's dotted key; empty at the top
    section: str
    #: what values it takes, in words
    expects: str
    #: the one-line doc
    doc: str
    #: the Python type
    hint: Any


@cache
def field_docs(config: type) -> dict[str, str]:
    """The `#:` comment above each field of a dataclass, by field name; fields without one are left out."""
    source = textwrap.dedent(inspect.getsource(config))
    lines = source.splitlines()
    definition = ast.parse(source).body[0]
    assert isinstance(definition, ast.ClassDef)
    docs = {}
    for statement in definition.body:
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        first = last = statement.lineno - 1
        while lines[first - 1].strip().startswith("#:"):
            first -= 1
        doc = " ".join(line.strip().removeprefix("#:").strip() for line in lines[first:last])
        if doc:
            docs[statement.target.id] = doc
    return docs


def section_type(hint: Any) -> type | None:
    """The dataclass behind a field's type, with or without `| None`; None for a plain field."""
    for option in typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,):
        if isinstance(option, type) and is_dataclass(option):
            return option
    return None


def expects(hint: Any) -> str:
    """What values a field of this type takes, in words."""
    if isinstance(hint, types.UnionType):
        inner = [expects(option) for option in typing.get_args(hint) if option is not type(None)]
        return " or ".join([*inner, "null"] if type(None) in typing.get_args(hint) else inner)
    if typing.get_origin(hint) is list:
        (item,) = typing.get_args(hint)
        return f"list of {expects(item)}"
    if typing.get_origin(hint) is dict:
        return f"{{name: {expects(typing.get_args(hint)[1]).replace('|', ' or ')}}}"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "|".join(member.name for member in hint)
    if section_type(hint) is not None:
        return f"{{{', '.join(one.name for one in fields(hint))}}}"
    return _PLAIN_NAMES.get(hint, getattr(hint, "__name__", str(hint)))


def walk(schema: type, section: str = "") -> Iterator[FieldInfo]:
    """Every settable field, top-level ones first, then section by section, in the order they are written in."""
    for key, hint, owner in _fields(schema, section):
        above, _, name = key.rpartition(".")
        yield FieldInfo(key, above, expects(hint), field_docs(owner).get(name, ""), hint)


def types_by_key(schema: type) -> dict[str, Any]:
    """The type of every settable field by its dotted key; unlike `walk` this reads no source, and takes no time."""
    return {key: hint for key, hint, _ in _fields(schema, "")}


def _fields(schema: type, section: str) -> Iterator[tuple[str, Any, type]]:
    """Dotted key, type and dataclass of every settable field, in the order of `walk`."""
    hints = typing.get_type_hints(schema)
    nested = []
    for one in fields(schema):
        key = f"{section}.{one.name}" if section else one.name
        below = section_type(hints[one.name])
        if below is None:
            yield key, hints[one.name], schema
        else:
            nested.append((key, below))
    for key, below in nested:
        yield from _fields(below, key)


def sections(schema: type, prefix: str = "") -> dict[str, str]:
    """The one-line doc of each section by dotted key; the schema's own under the empty key."""
    found = {prefix: (inspect.getdoc(schema) or "").splitlines()[0]}
    for name, hint in typing.get_type_hints(schema).items():
        if (below := section_type(hint)) is not None:
            found |= sections(below, f"{prefix}.{name}" if prefix else name)
    return found


def nearest_key(key: str, schema: type) -> str | None:
    """The key that was probably meant: the same last part elsewhere, or a similar spelling."""
    keys = [*(info.key for info in walk(schema)), *filter(None, sections(schema))]
    leaf = key.rpartition(".")[2]
    if same_leaf := [one for one in keys if one.rpartition(".")[2] == leaf]:
        return (difflib.get_close_matches(key, same_leaf, n=1, cutoff=0.0) or same_leaf)[0]
    if similar := difflib.get_close_matches(key, keys, n=1, cutoff=0.6):
        return similar[0]
    leaves = {one.rpartition(".")[2]: one for one in reversed(keys)}
    similar = difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.7)
    return leaves[similar[0]] if similar else None

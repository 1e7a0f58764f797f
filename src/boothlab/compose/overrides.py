"""Makes plain text on the command line mean plain text: quotes what Hydra's override grammar would take apart."""

import re
import types
import typing
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType
from hydra.errors import HydraException

from boothlab.compose.field_docs import types_by_key

_ASSIGNMENT = re.compile(r"(?P<key>[A-Za-z_][\w.]*)=(?P<value>.*)", re.DOTALL)
_NOT_TEXT = ("list", "dict", "unreadable")


def quote_text(overrides: Sequence[str], schema: type, *, multirun: bool) -> list[str]:
    """The overrides with the values of text fields quoted where they need it, and lone values put into lists.

    `prompt=a {token}, at night` is one prompt: Hydra alone would refuse the braces and take the comma for a sweep. In a
    multirun commas do mean a sweep, so only what Hydra cannot read at all is quoted there.
    """
    hints = types_by_key(schema)
    parser = OverridesParser.create()
    return [_quoted(override, hints, parser, multirun) for override in overrides]


def _quoted(override: str, hints: dict[str, Any], parser: OverridesParser, multirun: bool) -> str:
    match = _ASSIGNMENT.fullmatch(override)
    if match is None or match["key"] not in hints or match["value"].startswith("${"):
        return override
    key, value, hint = match["key"], match["value"], hints[match["key"]]
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    items = [typing.get_args(option)[0] for option in options if typing.get_origin(option) is list]
    read_as = _read(override, parser)
    if not items:
        broken = read_as in _NOT_TEXT or (read_as == "commas" and not multirun)
        return f"{key}={_quote(value)}" if str in options and broken else override
    if read_as == "scalar":
        return f"{key}=[{value}]"
    broken = (read_as in _NOT_TEXT or read_as == "commas") and not multirun and not value.startswith("[")
    return f"{key}=[{_quote(value)}]" if str in items and broken else override


def _read(override: str, parser: OverridesParser) -> str:
    """What Hydra makes of the value: scalar (text, number, …), null, list, dict, commas, sweep or unreadable."""
    try:
        parsed = parser.parse_override(override)
        if parsed.is_sweep_override():
            return "commas" if parsed.value_type == ValueType.SIMPLE_CHOICE_SWEEP else "sweep"
        value = parsed.value()
    except (HydraException, ValueError):
        return "unreadable"
    return {type(None): "null", list: "list", dict: "dict"}.get(type(value), "scalar")


def _quote(value: str) -> str:
    """The value in single quotes, by the rules of Hydra's grammar: backslashes count only before a quote."""
    escaped = re.sub(r"(\\*)'", lambda match: match[1] * 2 + "\\'", value)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{chr(92) * trailing}'"

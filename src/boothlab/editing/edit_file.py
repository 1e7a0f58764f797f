"""Files of edits as plain values: YAML, JSON or JSON lines in; rows out, each with the place it stands at."""

import codecs
import json
import re
from pathlib import Path
from typing import Any

import yaml

from boothlab.errors import UserError
from boothlab.files import shown

MAX_BYTES = 64 << 20
MAX_VALUES = 1_000_000
"""Of a YAML file once its aliases are written out; a row has about 15."""
_DEEPEST = 8  # the deepest that means anything is {edits: [{changes: {time: night}}]}
_YAML_TAG = "tag:yaml.org,2002:"

Row = tuple[str, Any]
"""A place ("edits.yaml, row 2 (line 7)") and the value found there, of whatever type."""


class _Loader(yaml.SafeLoader):
    """YAML as it reads: `on`, `no`, 12:30 and 2024-01-01 are texts; only true/false, plain numbers and null are not.

    Everything that is no text here is none to PyYAML either, so that what it writes without quotes is read back.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own way
    nesting = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The node that comes next; one that is nested too deeply is an error before Python's stack is full."""
        if self.nesting > _DEEPEST:
            raise yaml.composer.ComposerError(problem="nested too deeply", problem_mark=self.peek_event().start_mark)
        self.nesting += 1
        node = super().compose_node(parent, index)
        self.nesting -= 1
        return node


_TRUTH = r"^(?:true|True|TRUE|false|False|FALSE)$"
_WHOLE = r"^[-+]?(?:0|[1-9][0-9]*)$"
_REAL = (
    r"^(?:[-+]?[0-9]+\.[0-9]*(?:[eE][-+][0-9]+)?|\.[0-9]+(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_Loader.add_implicit_resolver(f"{_YAML_TAG}bool", re.compile(_TRUTH), list("tTfF"))
_Loader.add_implicit_resolver(f"{_YAML_TAG}int", re.compile(_WHOLE), list("-+0123456789"))
_Loader.add_implicit_resolver(f"{_YAML_TAG}float", re.compile(_REAL), list("-+0123456789."))
_Loader.add_implicit_resolver(f"{_YAML_TAG}null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])


def read_rows(path: Path) -> list[Row]:
    """The rows of a file: a YAML or JSON list (bare, or under `edits`), or JSON lines. Raises UserError."""
    name, kind = shown(path.name), path.suffix.lower()
    text = _text(path)
    if kind in (".jsonl", ".ndjson"):
        rows = _json_lines(text, name)
    elif kind == ".json":
        rows = _numbered(_json(text, name), name)
    elif kind in (".yaml", ".yml"):
        rows = _yaml_rows(text, name)
    else:
        raise UserError(f"{shown(path)} is no file of edits by its ending; use .yaml, .yml, .json or .jsonl")
    if not rows:
        raise UserError(f"{shown(path)} holds no edits; write at least one, with a name and an instruction")
    return rows


def _text(path: Path) -> str:
    """The file's text: UTF-8 with or without a byte-order mark, or UTF-16 with one, as Windows writes it."""
    try:
        if not path.is_file():
            problem = "is a folder" if path.is_dir() else "is no ordinary file" if path.exists() else "does not exist"
            raise UserError(f"the file of edits {shown(path)} {problem}; check the path")
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"the file of edits {shown(path)} is larger than {MAX_BYTES >> 20} MiB; split it")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        detail = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the file of edits {shown(path)}: {detail}; check the path") from error
    try:
        marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{shown(path)} is not UTF-8 text; save it as UTF-8") from error
    if "\0" in text:
        raise UserError(f"{shown(path)} is not UTF-8 text (it holds null characters); save it as UTF-8")
    return text


def _numbered(value: Any, name: str, lines: list[int] | None = None) -> list[Row]:
    """Rows of a parsed file; `lines` are those of the rows, where they are known."""
    rows = value
    if isinstance(value, dict):
        others = [str(key) for key in value if key != "edits"]
        if others or not value:
            found = f"the key {shown(others[0])!r} beside it" if others else "nothing"
            raise UserError(f"{name}: expected a list of edits, bare or under 'edits', and found {found}; remove it")
        rows = value["edits"]
    if rows is None:
        return []
    if not isinstance(rows, list):
        raise UserError(f"{name}: expected a list of edits, got {_kind(rows)}; begin each edit with '- name: …'")
    known = lines if lines is not None and len(lines) == len(rows) else None
    places = [f"{name}, row {i + 1}" + (f" (line {known[i]})" if known else "") for i in range(len(rows))]
    return list(zip(places, rows, strict=True))


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_no_doubles, parse_constant=_no_constants)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is not valid JSON ({_json_problem(error)}); mend it") from error


def _json_lines(text: str, name: str) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: U+2028 is legal inside a JSON string
        if line.strip():
            place = f"{name}, line {number}"
            try:
                value = json.loads(line, object_pairs_hook=_no_doubles, parse_constant=_no_constants)
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{place} is not valid JSON ({_json_problem(error)}); it may be cut short, so mend or delete it"
                ) from error
            rows.append((place, value))
    return rows


def _json_problem(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else shown(str(error))


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {key!r} is there twice")
        values[key] = value
    return values


def _no_constants(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


def _yaml_rows(text: str, name: str) -> list[Row]:
    try:
        node = yaml.compose(text, Loader=_Loader)
        value = _Values(name).plain(node) if node is not None else None
    except yaml.YAMLError as error:
        raise UserError(f"{name} is not valid YAML ({_yaml_problem(error)}); mend it") from error
    return _numbered(value, name, _row_lines(node))


def _row_lines(node: Any) -> list[int]:
    if isinstance(node, yaml.MappingNode) and len(node.value) == 1:
        node = node.value[0][1]
    return [item.start_mark.line + 1 for item in node.value] if isinstance(node, yaml.SequenceNode) else []


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    line = f"line {mark.line + 1}: " if mark is not None else ""
    return shown(" ".join(f"{line}{problem or error}".split()))


class _Values:
    """Turns YAML nodes into values. No constructor of PyYAML runs, so that no tag can make anything."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.left = MAX_VALUES

    def plain(self, node: Any, depth: int = 0) -> Any:
        self.left -= 1
        if self.left < 0:
            raise UserError(f"{self.name}: its aliases (*name) stand for more than {MAX_VALUES} values; write them out")
        where = f"{self.name}, line {node.start_mark.line + 1}"
        if depth > _DEEPEST:
            raise UserError(f"{where}: this is nested too deeply for a file of edits; mend it")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, where)
        expected = "seq" if isinstance(node, yaml.SequenceNode) else "map"
        if node.tag != f"{_YAML_TAG}{expected}":
            raise _no_tag(node.tag, where)
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(item, depth + 1) for item in node.value]
        return self._mapping(node, where, depth)

    def _mapping(self, node: Any, where: str, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(f"{where}: a key must be a word; mend it")
            key = key_node.value  # as it is written: `on: 3` has the key "on"
            if key in values:
                raise UserError(f"{where}: the key {shown(key)!r} is there twice; keep one of them")
            values[key] = self.plain(value_node, depth + 1)
        return values

    def _scalar(self, node: Any, where: str) -> Any:
        text, tag = node.value, node.tag.removeprefix(_YAML_TAG)
        try:
            if tag == "str":
                return text
            if tag == "null":
                return None
            if tag == "bool":
                return {"true": True, "false": False}[text.lower()]
            if tag == "int":
                return int(text)
            if tag == "float":
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except (ValueError, KeyError) as error:
            raise UserError(f"{where}: {shown(text[:40])!r} cannot be read as a {tag}; mend it") from error
        raise _no_tag(node.tag, where)


def _no_tag(tag: str, where: str) -> UserError:
    return UserError(f"{where}: the tag {shown(tag.replace(_YAML_TAG, '!!'))} is not allowed; write a plain value")


def _kind(value: object) -> str:
    return {str: "a text", bool: "true or false", int: "a number", float: "a number"}.get(type(value), "a mapping")

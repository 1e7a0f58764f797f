"""`boothlab COMMAND --help`: the groups with their options, and every field with its default, type and doc."""

import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from boothlab.compose.field_docs import FieldInfo, sections, walk
from boothlab.compose.run import compose, group_options
from boothlab.compose.schemas import SCHEMAS

_PIPE_WIDTH = 200
_LONGEST = 40  # characters of a default value
_FLAGS = (
    ("-m, --multirun", "a run for each combination of comma-separated values"),
    ("--cfg job [--resolve]", "print the config and stop"),
    ("--info [defaults-tree]", "how the config came about"),
    ("--config-dir DIR", "config files of your own, searched besides the built-in ones"),
    ("--hydra-help", "the rest of what Hydra can do"),
)


@dataclass(frozen=True)
class HelpPage:
    """What a help page says beyond what the config itself says."""

    config_name: str
    usage: str
    about: str
    examples: Sequence[tuple[str, str]]


def asks_for_help(argv: Sequence[str]) -> bool:
    """Whether the arguments ask for the help page."""
    return any(word in ("-h", "--help") for word in argv)


def print_help(page: HelpPage, argv: Sequence[str]) -> int:
    """Print the page; the defaults shown are those of the other arguments, such as backbone=sd15."""
    words = [word for word in argv if word not in ("-h", "--help", "-m", "--multirun")]
    defaults = OmegaConf.to_container(compose(page.config_name, words), resolve=False, enum_to_str=True)
    groups = group_options(page.config_name)
    # Composed in memory first: tables pad each line with blanks, which no one wants in a pipe.
    terminal = sys.stdout.isatty()
    width = Console().width if terminal else _PIPE_WIDTH
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width, highlight=False)
    for block in _blocks(page, groups, defaults):
        console.print(block)
    text = console.file.getvalue()  # type: ignore[attr-defined]  # the StringIO above
    print("\n".join(line.rstrip() for line in text.splitlines()))
    return 0


def _blocks(page: HelpPage, groups: dict[str, list[str]], defaults: Any) -> Iterator[Any]:
    yield f"[bold]usage:[/] {escape(page.usage)}\n\n{escape(page.about)}\n"
    yield "[bold]examples[/]"
    for command, comment in page.examples:
        yield f"  [cyan]{escape(command)}[/]\n      {escape(comment)}"
    yield "\n[bold]options[/]"
    yield _table((flag, what) for flag, what in _FLAGS)
    for group, first in list(groups.items())[:1]:  # `score` has none
        yield f"\n[bold]groups[/]: ready-made values, as in {group}={first[0]}"
        yield _table((name, " | ".join(options)) for name, options in groups.items())
    yield "\n[bold]keys[/]: key=default, what it is (what it takes)"
    schema = SCHEMAS[page.config_name]
    fields = list(walk(schema))
    for section, doc in sections(schema).items():
        yield f"\n[bold]{section or page.config_name}[/]: {escape(doc)}"
        rows = [info for info in fields if info.section == section]
        yield _table((f"{info.key}={_shown(info, defaults)}", f"{info.doc} ({_expects(info)})") for info in rows)


def _expects(info: FieldInfo) -> str:
    """What it takes; a long choice gets spaces, at which its line can be broken."""
    return info.expects if len(info.expects) <= _LONGEST else info.expects.replace("|", " | ")


def _table(rows: Iterable[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", overflow="fold")
    table.add_column(overflow="fold")
    for left, right in rows:
        table.add_row("  " + escape(left), escape(right))
    return table


def _shown(info: FieldInfo, defaults: Any) -> str:
    """The default as it would be typed, shortened; `…` for a value that must be given."""
    value = defaults
    for part in info.key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value == "???":
        return "…"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        text = ",".join(map(str, value))
        return f"[{text}]" if len(text) <= _LONGEST else f"[… {len(value)} in all]"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"

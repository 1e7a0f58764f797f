"""Pieces of Markdown that a card is made of; whatever text goes in, it shows as it is."""

import re
from collections.abc import Iterable, Sequence


def code(text: str) -> str:
    """Text as code, with a fence that is longer than any run of backticks in it."""
    line = " ".join(text.split())
    longest = max((len(run) for run in re.findall(r"`+", line)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def fenced(text: str, language: str) -> str:
    """A block of code."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are Markdown already."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def counted(number: int, what: str) -> str:
    """`1 photo`, `5 photos`."""
    return f"{number} {what}{'' if number == 1 else 's'}"

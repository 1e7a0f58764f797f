"""`key=value` arguments of commands that no Hydra config stands behind."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from boothlab.errors import UserError
from boothlab.files import shown

YES, NO = ("true", "yes", "1"), ("false", "no", "0")


def split_arguments(
    argv: Sequence[str], keys: Mapping[str, str], command: str, positional: int = 0
) -> tuple[list[str], dict[str, str]]:
    """The words without `=` and the values by key; `--key=value` is taken too.

    `keys` are the known ones with what they are. Raises UserError for an unknown or repeated key, and for more than
    `positional` words without one.
    """
    words: list[str] = []
    values: dict[str, str] = {}
    for argument in argv:
        key, equals, value = argument.removeprefix("--").partition("=")
        if equals and key in keys:
            if key in values:
                raise UserError(f"{key}: is given twice; give it once")
            values[key] = value
        elif not equals and not argument.startswith("-") and len(words) < positional:
            words.append(argument)
        elif positional and ("/" in key or Path(argument).exists()) and not argument.startswith("-"):
            words.append(argument)  # a path with an equals sign in it
        else:
            near = difflib.get_close_matches(key, keys, n=1)
            meant = f"did you mean {near[0]}=?" if near else f"the keys are {', '.join(keys)}"
            raise UserError(f"{shown(argument)}: `boothlab {command}` takes no such argument; {meant}")
    if len(words) > positional:
        raise UserError(f"{shown(words[positional])}: one too many; `boothlab {command} --help` lists what it takes")
    return words, values


def switch(values: Mapping[str, str], key: str, default: bool = False) -> bool:
    """A true-or-false value. Raises UserError for anything else."""
    text = values.get(key)
    if text is None:
        return default
    if text.lower() not in (*YES, *NO):
        raise UserError(f"{key}={shown(text)}: is neither true nor false")
    return text.lower() in YES


def usage_page(usage: str, about: str, keys: Mapping[str, str], examples: Sequence[tuple[str, str]]) -> str:
    """A help page as the other commands have it."""
    width = max(map(len, keys))
    shown_examples = "\n".join(f"  {command}\n      {comment}" for command, comment in examples)
    shown_keys = "\n".join(f"  {key + '=':<{width + 1}}  {what}" for key, what in keys.items())
    return f"usage: {usage}\n\n{about}\n\nexamples\n{shown_examples}\n\nkeys\n{shown_keys}"

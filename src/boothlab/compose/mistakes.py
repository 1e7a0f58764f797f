"""Says in one line what is wrong with a command line or a config file, whatever Hydra or OmegaConf made of it."""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    InterpolationResolutionError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from boothlab.compose.field_docs import nearest_key, sections, walk
from boothlab.errors import UserError
from boothlab.files import cannot_write, is_unwritable, shown

#: what composing can raise for bad input; anything else is a fault of the program
BAD_INPUT = (
    HydraException,
    OmegaConfBaseException,
    yaml.YAMLError,
    ValueError,
    OSError,
    AssertionError,
    AttributeError,
)

#: launchers that are Hydra plugins, and the extra that brings each
LAUNCHER_EXTRAS = {"joblib": "joblib", "submitit_local": "submitit", "submitit_slurm": "submitit", "ray": "ray"}


def explain(error: BaseException, schema: type) -> UserError:
    """The one line for an exception of BAD_INPUT; a UserError anywhere behind it stays as it is."""
    chain = list(_chain(error))
    place = _file_named_in(chain)
    for one in chain:
        if isinstance(one, UserError):
            return one
        if isinstance(one, OverrideParseException):
            return _unreadable(one.override)
        if isinstance(one, MissingConfigException):
            return _missing_file(one)
        if isinstance(one, OSError) and is_unwritable(one):  # Hydra's own files; a full disk does not say which
            return cannot_write(Path(one.filename or "the run folder, in paths.outputs"), one)
    for one in reversed(chain):
        if isinstance(one, OmegaConfBaseException) and one.full_key:
            return UserError(place + _about_key(one, schema, _override_named_in(chain)))
    return UserError(place + _from_message(chain, schema))


def _chain(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _file_named_in(chain: list[BaseException]) -> str:
    for one in chain:
        if match := re.match(r"In '([^']+)': \w+ raised while", str(one)):
            return f"in the config file {match[1]}.yaml: "
    return ""


def _override_named_in(chain: list[BaseException]) -> str | None:
    for one in chain:
        if match := re.match(r"Error merging override (.*)", str(one), re.DOTALL):
            return match[1].lstrip("+")
    return None


def _unreadable(override: str) -> UserError:
    key, equals, value = override.partition("=")
    if not equals or not re.fullmatch(r"[+~]*[\w./@]+", key):
        return UserError(f"cannot read {override!r}: write key=value, as in seed=1")
    quoted = shown(value.strip(chr(34)))
    hint = f"put a value with special characters in quotes, as in '{key}=\"{quoted}\"'"
    return UserError(f"cannot read {override!r}: {hint}")


def _missing_file(error: MissingConfigException) -> UserError:
    missing = error.missing_cfg_file or ""
    group, _, option = missing.rpartition("/")
    if group == "hydra/launcher" and option in LAUNCHER_EXTRAS:
        return UserError(f"{group}={option} needs an extra: pip install 'boothlab[{LAUNCHER_EXTRAS[option]}]'")
    if group and error.options:
        closest = difflib.get_close_matches(option, error.options, n=1)
        meant = f"did you mean {closest[0]}? " if closest else ""
        return UserError(
            f"{group}={option}: no such option; {meant}{group} is one of {', '.join(sorted(error.options))}"
        )
    return UserError(f"there is no config file {missing or 'folder'}: {_one_line(str(error).partition(chr(10))[0])}")


def _about_key(error: OmegaConfBaseException, schema: type, override: str | None) -> str:
    key = str(error.full_key)
    if isinstance(error, ConfigKeyError | ConfigAttributeError) and not isinstance(error, InterpolationKeyError):
        return unknown_key(key, schema)
    message = _lower_first(_one_line(str(error.msg or error).partition("\n    full_key")[0]))
    if isinstance(error, MissingMandatoryValue):
        return f"{key} has no value; give it, as in {key}=…"
    if isinstance(error, InterpolationToMissingValueError | InterpolationKeyError | InterpolationResolutionError):
        return f"{key} cannot be filled in: {message}"
    if key in sections(schema):
        first = next(info.key for info in walk(schema) if info.section == key)
        return f"{key} is a section; set its fields, as in {first}=…"
    value = error_value(error, key, override)
    return f"{key}={value}: {_expected(key, value, schema) or message}"


def error_value(error: OmegaConfBaseException, key: str, override: str | None) -> str:
    """The refused value as it was written, or else as OmegaConf has it."""
    if override and override.startswith(f"{key}="):
        return override.partition("=")[2]
    return str(getattr(error, "value", None))


def _expected(key: str, value: str, schema: type) -> str:
    """What the field takes; for an item of a list, what the list's items are. Empty if no field has that key."""
    name, index = re.fullmatch(r"(.*?)((?:\[\d+\])?)", key).groups()  # type: ignore[union-attr]  # matches any text
    wanted = next((info.expects for info in walk(schema) if info.key == name), "")
    if index:
        wanted = wanted.removeprefix("list of ")
    if "|" not in wanted:
        return wanted and f"expected {wanted}"
    choices = wanted.removeprefix("list of ").split("|")
    closest = difflib.get_close_matches(value, choices, n=1)
    return f"expected one of {', '.join(choices)}" + (f"; did you mean {closest[0]}?" if closest else "")


def unknown_key(key: str, schema: type) -> str:
    """The line for a key that no schema has, with the key that was probably meant."""
    if key in sections(schema):  # a group that the chosen files do not list in their defaults
        return f"{key}: the chosen config files have no such group; write +{key}=… to add it"
    nearest = None if key.startswith("hydra") else nearest_key(key, schema)
    return f"there is no key {key}; " + (f"did you mean {nearest}?" if nearest else "--help lists them all")


def _from_message(chain: list[BaseException], schema: type) -> str:
    """For exceptions that carry their facts only in their text."""
    for one in chain:
        if isinstance(one, OSError) and one.filename is not None:
            return f"cannot use {shown(one.filename)}: {_lower_first(one.strerror or 'it failed')}"
    texts = [str(one) for one in chain if str(one).strip()] or [type(chain[0]).__name__]
    if "Unexpected type for root: NoneType" in texts[0]:  # OmegaConf's assertion for a key below a null
        return "a key lies in a section that is null; choose the section first, as in backbone=sd15"
    if match := re.match(r"'NoneType' object has no attribute.*full_key: (\S+)", texts[0], re.DOTALL):
        return f"{match[1]}: is null and takes no values; choose it first, as in {match[1]}=sd15 {match[1]}.KEY=VALUE"
    if match := re.match(r"Ambiguous value for argument '(.*?)=(.*?)'\n1\.", texts[0], re.DOTALL):
        key, values = match[1], match[2]
        return f"{key}={values}: for a list write {key}=[{values}]; for a run with each value add -m"
    if match := re.match(r"Sweep parameters '(.*)' requires", texts[0], re.DOTALL):
        return f"{match[1]}: add -m for a run with each value"
    if match := re.match(r"Could not override '([^']*)'|Could not delete from config\. '([^']*)'", texts[0]):
        return unknown_key(match[1] or match[2], schema)
    return _lower_first(_one_line(texts[0]))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:] if text[1:2].islower() else text

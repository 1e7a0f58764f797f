"""From a composed or saved config to the checked dataclass; here the last DictConfig ends."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from boothlab.compose.mistakes import explain
from boothlab.errors import UserError

T = TypeVar("T")
_PLUGIN_HOMES = ("hydra._internal.core_plugins.", "hydra_plugins.")
# logging.config, which Hydra hands its logging sections to, calls what they name: another way to run code.
_LOGGING = ("hydra.job_logging.", "hydra.hydra_logging.")
_LOGGING_CLASSES = frozenset(
    {
        *("logging.Formatter", "logging.StreamHandler", "logging.FileHandler", "logging.NullHandler"),
        *("logging.handlers.RotatingFileHandler", "logging.handlers.TimedRotatingFileHandler"),
        *("colorlog.ColoredFormatter", "rich.logging.RichHandler"),
    }
)
_STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
#: the only keys that may name code, and where that code may live
_PLUGINS = {
    "hydra.launcher._target_": _PLUGIN_HOMES,
    "hydra.sweeper._target_": _PLUGIN_HOMES,
    "hydra.sweeper.sampler._target_": ("optuna.samplers.",),
}


def load(node: DictConfig, schema: type[T]) -> tuple[T, dict[str, Any]]:
    """The checked dataclass and the same as a plain dict with every interpolation resolved. Raises UserError."""
    tree = OmegaConf.to_container(node, resolve=False)
    refuse_targets(tree)
    if missing := [key for key, value in leaves(tree) if value == "???"]:
        verb, them = ("have no value", "them") if len(missing) > 1 else ("has no value", "it")
        raise UserError(f"{', '.join(missing)} {verb}; give {them}, as in {' '.join(f'{key}=…' for key in missing)}")
    try:
        resolved = OmegaConf.to_container(node, resolve=True, throw_on_missing=True, enum_to_str=True)
    except OmegaConfBaseException as error:
        raise explain(error, schema) from error
    assert isinstance(resolved, dict)
    return from_resolved({str(key): value for key, value in resolved.items()}, schema)


def from_resolved(resolved: Mapping[str, Any], schema: type[T]) -> tuple[T, dict[str, Any]]:
    """`load` for a plain dict, such as the config in a manifest: text in it is data, and `${…}` is never filled in.

    Raises UserError.
    """
    refuse_targets(resolved)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), as_data(dict(resolved)))
        typed = OmegaConf.to_object(merged)
        plain = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True, enum_to_str=True)
    except OmegaConfBaseException as error:
        raise explain(error, schema) from error
    assert isinstance(typed, schema)
    assert isinstance(plain, dict)
    for key, value in leaves(plain):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key}={value}: must be a finite number")
    return typed, {str(key): value for key, value in plain.items()}


def as_data(tree: Any) -> Any:
    """The tree with every `${` escaped, so that OmegaConf gives each text back as it is.

    A config that was saved has nothing left to fill in: what looks like a resolver is part of somebody's prompt, or
    the wish of a stranger's manifest to read this machine's environment.
    """
    if isinstance(tree, Mapping):
        return {key: as_data(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [as_data(value) for value in tree]
    if isinstance(tree, str):
        return re.sub(r"(\\*)\$\{", lambda found: f"{found[1] * 2}\\${{", tree)
    return tree


def refuse_targets(tree: object) -> None:
    """Raise UserError for a `_target_` anywhere: a config says what to do, it never names code to run.

    Hydra's own launcher and sweeper are named that way; they pass if they come from Hydra or its plugins. Handlers and
    formatters of its logging pass if they are the usual ones.
    """
    for key, value in leaves(tree):
        if key.startswith(_LOGGING) and _names_code(key, str(value)):
            raise UserError(f"{key}={value}: a config cannot name code to run; remove the key")
        if "_target_" not in key.split("."):
            continue
        if not str(value).startswith(_PLUGINS.get(key, ())):
            raise UserError(f"{key}={value}: a config cannot name code to run; remove the key")


def _names_code(key: str, value: str) -> bool:
    """Whether a key of a logging section would make `logging.config` import or call something that is not its own."""
    if key.rpartition(".")[2] in ("class", "()"):
        return value not in _LOGGING_CLASSES
    called = any(part.startswith("()") for part in key.split("."))
    return called or (value.startswith("ext://") and value not in _STREAMS)


def leaves(tree: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Each plain value of nested dicts and lists with its dotted key."""
    if isinstance(tree, Mapping):
        for key, item in tree.items():
            yield from leaves(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(tree, list):
        for index, item in enumerate(tree):
            yield from leaves(item, f"{prefix}[{index}]")
    else:
        yield prefix, tree

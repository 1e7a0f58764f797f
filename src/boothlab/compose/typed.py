"""From a composed or saved config to the checked dataclass; here the last DictConfig ends."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from boothlab.compose.mistakes import explain
from boothlab.errors import UserError

T = TypeVar("T")
_PLUGINS = {"hydra.launcher._target_", "hydra.sweeper._target_"}
_PLUGIN_HOMES = ("hydra._internal.core_plugins.", "hydra_plugins.")


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
    """`load` for a plain dict, such as the config in a manifest. Raises UserError."""
    refuse_targets(resolved)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), dict(resolved))
        typed = OmegaConf.to_object(merged)
        plain = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True, enum_to_str=True)
    except OmegaConfBaseException as error:
        raise explain(error, schema) from error
    assert isinstance(typed, schema)
    assert isinstance(plain, dict)
    return typed, {str(key): value for key, value in plain.items()}


def refuse_targets(tree: object) -> None:
    """Raise UserError for a `_target_` anywhere: a config says what to do, it never names code to run.

    Hydra's own launcher and sweeper are named that way; they pass if they come from Hydra or its plugins.
    """
    for key, value in leaves(tree):
        if "_target_" not in key.split("."):
            continue
        if key not in _PLUGINS or not str(value).startswith(_PLUGIN_HOMES):
            raise UserError(f"{key}={value}: a config cannot name code to run; remove the key")


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

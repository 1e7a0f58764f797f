"""What is to be run: the config in a manifest, proved to be the one it was written with, and what the user changes.

Configs are plain dicts here; the command makes the dataclass of them.
"""

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from boothlab.compose.mistakes import BAD_INPUT, explain
from boothlab.compose.overrides import quote_text
from boothlab.compose.schemas import SCHEMAS
from boothlab.compose.typed import as_data, from_resolved, leaves, refuse_targets
from boothlab.config import NOT_HASHED
from boothlab.config_edit import EditorsConfig
from boothlab.errors import UserError
from boothlab.tracking.manifest import config_hash
from boothlab.tracking.redaction import REDACTED

EDITORS = tuple(f"editors.{field.name}" for field in dataclasses.fields(EditorsConfig) if field.name != "revisions")
LOCATIONS = (
    *(
        "subject.images",
        "subject.captions_dir",
        "prior.class_images",
        "backbone.source",
        "encoders.clip",
        "encoders.dino",
        "run",
    ),
    *("data.images", "data.file", *EDITORS),
)
"""Keys that say where something lies. Another value is the same run if what lies there is the same, by its hashes."""


@dataclass(frozen=True)
class Recipe:
    """A run to be made again, or a fork of it.

    `kind` names its config in conf/: train, edit or score. `resolved` is its whole config; `trained`, for a scoring,
    that of the run whose adapter it scores, as far as the manifest has it. `changes` holds (recorded, asked) by key.
    """

    kind: str
    resolved: dict[str, Any]
    trained: dict[str, Any] | None
    changes: dict[str, tuple[Any, Any]]
    warnings: tuple[str, ...]

    @property
    def forks(self) -> dict[str, tuple[Any, Any]]:
        """The changes that make it another run."""
        hidden = tuple(f"{key}." for key in NOT_HASHED)
        return {
            key: change
            for key, change in self.changes.items()
            if key not in (*NOT_HASHED, *LOCATIONS) and not key.startswith(hidden)
        }


def kind_of(config: Mapping[str, Any]) -> str:
    """Which command wrote the config. Raises UserError for one that cannot be run again."""
    if "lora" in config:
        return "train"
    if "editors" in config:
        return "edit"
    if "unet_scale" in config:
        return "score"
    if "tag_template" in config:
        raise UserError(
            "a run of boothlab caption is no training, editing run or scoring; `boothlab caption images=DIR "
            "overwrite=true paths.overwrite=true`, with the settings in its manifest, makes its captions again"
        )
    raise UserError("the manifest is of no training, editing run or scoring; only those can be run again")


def read_recipe(manifest: Mapping[str, Any], overrides: Sequence[str], allowed: Sequence[str] = ()) -> Recipe:
    """The recipe in a manifest, with `overrides` as a command line has them (key=value).

    Raises UserError for a config that names code, that was altered after it was written (unless "config" is allowed),
    that this version cannot read, or for a wrong override.
    """
    recorded: dict[str, Any] = dict(manifest["config"])
    refuse_targets(recorded)
    kind = kind_of(recorded)
    given = _parse(overrides, kind)
    config = _revealed(recorded, given)
    warnings = _check_hash(manifest, config, allowed)
    filled = _readable(config, kind, manifest)
    ours = {key: value for key, value in given.items() if kind != "score" or key not in LOCATIONS}
    changed = _apply(filled, ours, kind)
    changes = _changes(filled, changed, ours)
    if "train" in changes:
        raise UserError("train: a rerun scores the adapter that was scored; `boothlab score` trains another")
    theirs = {key: given[key] for key in given.keys() - ours.keys()}
    run = {"run": (filled["run"], str(theirs.pop("run")))} if kind == "score" and theirs.get("run") else {}
    trained, moved = _trained(manifest, theirs)
    recipe = Recipe(kind, changed, trained, changes | moved | run, tuple(warnings))
    if recipe.forks:
        return dataclasses.replace(recipe, resolved=pinned(changed, {"run": run["run"][1], "train": []} if run else {}))
    # Not `changed`: settings that are younger than the manifest would give the same run another hash.
    same = pinned(config, {key: asked for key, (_, asked) in changes.items()})
    return dataclasses.replace(recipe, resolved=same)


def _parse(overrides: Sequence[str], kind: str) -> dict[str, Any]:
    """Dotted key to value. Raises UserError for anything but key=value."""
    schema = SCHEMAS[kind]
    try:
        parsed = OverridesParser.create().parse_overrides(quote_text(overrides, schema, multirun=False))
    except BAD_INPUT as error:
        raise explain(error, schema) from error
    found = {}
    for one in parsed:
        _check_simple(one)
        found[str(one.key_or_group)] = one.value()
    return found


def _check_simple(one: Override) -> None:
    if one.is_add() or one.is_force_add() or one.is_delete() or one.is_sweep_override() or one.package is not None:
        raise UserError(f"{one.input_line}: a rerun takes single values, written key=value, and nothing else")


def _revealed(config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the values that were redacted when it was written, which the user has to give."""
    whole = copy.deepcopy(dict(config))
    for key, value in leaves(config):
        if isinstance(value, str) and REDACTED in value:
            name = key.partition("[")[0]
            if name not in given:
                raise UserError(f"{name} held a key or token, which no manifest keeps; give it, as in {name}=…")
            _set(whole, name, given[name])
    return whole


def _check_hash(manifest: Mapping[str, Any], config: Mapping[str, Any], allowed: Sequence[str]) -> list[str]:
    excluded = manifest.get("not_hashed") or NOT_HASHED  # manifests of format 1 do not say
    now, recorded = config_hash(config, list(excluded)), manifest.get("config_hash")
    if now == recorded:
        return []
    line = f"the config in the manifest was changed after it was written (hash {now[:8]}, not {str(recorded)[:8]})"
    if "config" in allowed:
        return [line]
    raise UserError(f"{line}; put the original back, or add --allow config to run it as it is now")


def _readable(config: Mapping[str, Any], kind: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The config as the schema of today has it: settings that did not exist then get their defaults."""
    try:
        return from_resolved(config, SCHEMAS[kind])[1]
    except UserError as error:
        version = (manifest.get("versions") or {}).get("boothlab", "another version")
        raise UserError(
            f"the manifest is of boothlab {version}, whose config does not fit this one: {error}"
        ) from error


def _apply(config: Mapping[str, Any], given: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The config with values set, checked. Raises UserError for a key or value that the schema does not know."""
    schema = SCHEMAS[kind]
    try:
        node = OmegaConf.merge(OmegaConf.structured(schema), as_data(dict(config)))
        for key, value in given.items():
            if OmegaConf.is_dict(OmegaConf.select(node, key)):
                raise UserError(f"{key} is a section; a rerun takes single values, as in {key}.KEY=VALUE")
            OmegaConf.update(node, key, value)
        resolved = OmegaConf.to_container(node, resolve=True, enum_to_str=True)
    except BAD_INPUT as error:
        raise explain(error, schema) from error
    assert isinstance(resolved, dict)
    return from_resolved({str(key): value for key, value in resolved.items()}, schema)[1]


def _trained(
    manifest: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[dict[str, Any] | None, dict[str, tuple[Any, Any]]]:
    """The config of the run that was scored, with other locations, and what changed in it."""
    trained = manifest.get("scored")
    if trained is None:
        if given:
            raise UserError(f"{min(given)}: this manifest does not hold the config of the scored run; give run=DIR")
        return None, {}
    refuse_targets(trained)
    filled = _readable(trained, "train", manifest)
    moved = _apply(filled, given, "train")
    return moved, _changes(filled, moved, given)


def _changes(before: Mapping[str, Any], after: Mapping[str, Any], keys: Iterable[str]) -> dict[str, tuple[Any, Any]]:
    pairs = {key: (value_at(before, key), value_at(after, key)) for key in keys}
    return {key: (old, new) for key, (old, new) in pairs.items() if old != new}


def pinned(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with values set by dotted key: what the run is held to, and its manifest says elsewhere."""
    copied = copy.deepcopy(dict(config))
    for key, value in values.items():
        _set(copied, key, value)
    return copied


def _set(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, last = dotted.split(".")
    for name in sections:
        tree = tree.setdefault(name, {})
    tree[last] = value


def value_at(tree: Mapping[str, Any], dotted: str) -> Any:
    """The value under a dotted key; None where there is none."""
    found: Any = tree
    for name in dotted.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found

"""Everything that is known before a rerun starts: what it will use, what differs, and whether it may start."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from boothlab.building.parts import build_device, set_determinism, set_threads
from boothlab.cache import Cache
from boothlab.compose.schemas import SCHEMAS
from boothlab.compose.typed import from_resolved
from boothlab.config import MOST_THREADS, Accelerator
from boothlab.errors import UserError
from boothlab.ranks import ALONE, Ranks
from boothlab.rerunning.circumstances import Circumstance, differing, expects_same_bits, here
from boothlab.rerunning.edit_materials import check_edit_materials
from boothlab.rerunning.inputs import BESIDE, stage
from boothlab.rerunning.materials import (
    ASKED_BY,
    PLACE_OF,
    Material,
    Where,
    check_adapter,
    check_backbone,
    check_class_images,
    check_encoders,
    check_photos,
    pinned_revisions,
)
from boothlab.rerunning.origin import Origin
from boothlab.rerunning.recipe import Recipe, pinned, value_at
from boothlab.tracking.manifest import read_manifest

GROUP = "reruns"
"""The W&B group of reruns: in that of the run they would count twice."""


@dataclass(frozen=True)
class Plan:
    """What is to be run, checked. `training` is the config that says what is trained, edited or was scored.

    `config` and `training` are plain dicts held to what the manifest says of threads, device and revisions.
    """

    origin: Origin
    recipe: Recipe
    config: dict[str, Any]
    training: dict[str, Any]
    materials: tuple[Material, ...]
    circumstances: tuple[Circumstance, ...]
    exact: bool

    @property
    def adapter(self) -> Path | None:
        """What a scoring scores."""
        return next((material.found for material in self.materials if material.found is not None), None)

    def refuse(self, allowed: Sequence[str]) -> list[str]:
        """The problems that were allowed. Raises UserError for one that was not, and that no fork asked for."""
        let_pass = []
        for material in self.materials:
            if not material.problem:
                continue
            if not _asked_for(material.what, self.recipe) and material.kind not in allowed:
                raise UserError(f"{material.problem} (--allow {material.kind} runs it with what is there)")
            let_pass.append(material.problem)
        return let_pass

    def settle(self, out: Path) -> tuple[Any, Any]:
        """The dataclasses of `config` and `training`, once gathered files are copied to `out`/inputs."""
        pins: dict[str, Any] = {}
        for material in self.materials:
            pins |= material.pins
            if material.gathered:
                folder = out / BESIDE / material.what.replace(" ", "_")
                pins[material.gathered_for] = str(stage(material.gathered, folder))
        if self.recipe.kind == "edit":
            editing: Any = from_resolved(pinned(self.config, pins), SCHEMAS["edit"])[0]
            return editing, editing
        training: Any = from_resolved(pinned(self.training, pins), SCHEMAS["train"])[0]
        if self.recipe.kind == "train":
            return training, training
        return from_resolved(self.config, SCHEMAS[self.recipe.kind])[0], training


def _asked_for(what: str, recipe: Recipe) -> bool:
    """Whether a fork is to have another material of this kind than its parent."""
    return bool(recipe.forks) and any(key in recipe.changes for key in ASKED_BY.get(what, ()))


def make_plan(origin: Origin, recipe: Recipe, cache: Path) -> Plan:
    """Set threads, determinism and device as the run will have them, then compare everything with the manifest."""
    config = pinned(recipe.resolved, _pins(origin.manifest, recipe, cache))
    adapter: Material | None = None
    if recipe.kind != "score":
        config = pinned(config, pinned_revisions(origin.manifest, config, recipe.changes))
        training = config
    else:
        run = recipe.changes["run"][1] if "run" in recipe.changes else config["run"]
        adapter = check_adapter(run, origin.manifest, origin.folder)
        another = adapter.same is False and _asked_for("adapter", recipe)
        training = recipe.trained if recipe.trained and not another else _config_beside(adapter)
        training = pinned(training, pinned_revisions(origin.manifest, training, recipe.changes))
    editing = recipe.kind == "edit"
    typed: Any = from_resolved(training, SCHEMAS["edit" if editing else "train"])[0]
    deterministic = editing or typed.trainer.deterministic
    section = "trainer." if recipe.kind == "train" else ""
    set_threads(value_at(config, f"{section}threads"))
    set_determinism(deterministic)
    ranks = Ranks(size=typed.trainer.devices) if recipe.kind == "train" else ALONE
    device = build_device(Accelerator(value_at(config, f"{section}accelerator") or "auto"), ranks)
    circumstances = differing(origin.manifest, here(str(device), ranks.size))
    if editing:
        materials = check_edit_materials(typed, origin.manifest)
    else:
        materials = _materials(origin, recipe, typed, Cache(cache), adapter)
    exact = expects_same_bits(circumstances, origin.manifest, deterministic)
    return Plan(origin, recipe, config, training, tuple(materials), tuple(circumstances), exact)


def _materials(origin: Origin, recipe: Recipe, training: Any, cache: Cache, adapter: Material | None) -> list[Material]:
    manifest, folder = origin.manifest, origin.folder

    def where(what: str) -> Where:
        if _asked_for(what, recipe):
            return Where.AS_IT_IS
        return Where.NAMED if PLACE_OF[what] in recipe.changes else Where.ANYWHERE

    class_images = None
    if adapter is None:
        class_images = check_class_images(training.prior, manifest, folder, where("class images"))
    found = [
        check_photos(training.subject, manifest, folder, cache, where("photos")),
        class_images,
        check_backbone(training.backbone, manifest),
        *check_encoders(training.encoders, manifest),
        adapter,
    ]
    return [material for material in found if material is not None]


def _config_beside(adapter: Material) -> dict[str, Any]:
    """The config of the run in whose folder an adapter lies: manifests of format 1 did not hold it."""
    for folder in adapter.found.parents if adapter.found else ():
        if (folder / "manifest.json").is_file():
            config: dict[str, Any] = read_manifest(folder)["config"]
            return config
    raise UserError(adapter.problem or f"{adapter.found}: lies in no run folder; name its run with run=DIR")


def _pins(manifest: Mapping[str, Any], recipe: Recipe, cache: Path) -> dict[str, Any]:
    """What the run is held to: the recorded threads and device unless the user says otherwise, and a cache."""
    section = "trainer." if recipe.kind == "train" else ""
    threads, accelerator = f"{section}threads", f"{section}accelerator"
    pins: dict[str, Any] = {"paths.cache": str(cache), "paths.overwrite": False}
    if "tracking.group" not in recipe.changes:
        pins["tracking.group"] = GROUP
    recorded = (manifest.get("numerics") or {}).get("torch_threads")
    if threads not in recipe.changes and isinstance(recorded, int) and 1 <= recorded <= MOST_THREADS:
        pins[threads] = recorded
    if accelerator not in recipe.changes:
        pins[accelerator] = _recorded_accelerator(manifest)
    return pins


def _recorded_accelerator(manifest: Mapping[str, Any]) -> str:
    """The kind of device the run had, where this machine has it too; else whatever it has."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    kind = str((manifest.get("machine") or {}).get("device")).partition(":")[0]
    return kind if there.get(kind) else "auto"

"""What goes into an editing run, checked against its manifest: images, masks and edits, models, LoRA files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boothlab.building.edit import build_tasks, inputs_of
from boothlab.config_edit import EditConfig
from boothlab.diffusion.formats.container import adapter_digest
from boothlab.diffusion.lora import find_adapter
from boothlab.errors import UserError
from boothlab.files import shown
from boothlab.progress import Reporter
from boothlab.rerunning.materials import DATA, WEIGHTS, Material, check_backbone, check_encoders

NAMED_BY = "data.images=…, data.file=…"


def check_edit_materials(config: EditConfig, manifest: Mapping[str, Any]) -> list[Material]:
    """Everything that an editing run is made of, in the order of its manifest. The models are hashed as they load."""
    return [
        _images(config, manifest),
        check_backbone(config.backbone, manifest),
        *check_encoders(config.encoders, manifest),
        *_adapters(config, manifest),
    ]


def _images(config: EditConfig, manifest: Mapping[str, Any]) -> Material:
    """The images, masks and edits where the config says, file by file."""
    recorded: Mapping[str, str] = manifest.get("inputs") or {}
    try:
        now = inputs_of(build_tasks(config.data, Reporter(quiet=True)))
    except UserError as error:
        return Material("images", DATA, False, "cannot be read", f"images: {error} ({NAMED_BY} name other places)")
    wrong = sorted(name for name in recorded.keys() | now.keys() if recorded.get(name) != now.get(name))
    if wrong:
        name = wrong[0]
        how = "is gone" if name not in now else "is new" if name not in recorded else "has changed"
        more = f" and {len(wrong) - 1} more differ" if len(wrong) > 1 else ""
        detail = f"{len(wrong)} of {len(recorded)} files differ"
        return Material("images", DATA, False, detail, f"images: {shown(name)} {how}{more}; {NAMED_BY} name others")
    counted = f"{len(recorded)} files" if recorded else "drawn again"
    return Material("images", DATA, True, counted)


def _adapters(config: EditConfig, manifest: Mapping[str, Any]) -> list[Material]:
    """The LoRA files that the backbone wears, in their order."""
    recorded = list(((manifest.get("weights") or {}).get("adapter") or {}).items())
    found = []
    for number, one in enumerate(config.adapters):
        was, digest = recorded[number] if number < len(recorded) else ("", "")
        what = "adapter" if len(config.adapters) == 1 else f"adapter {number + 1}"
        try:
            path = find_adapter(Path(one.path).expanduser())
        except UserError as error:
            found.append(Material(what, WEIGHTS, False, "not there", f"{what}: {error}"))
            continue
        same = adapter_digest(path) == digest
        problem = "" if same else f"{what}: {shown(path)} is another file than {shown(was)} was"
        found.append(Material(what, WEIGHTS, same, shown(path), problem))
    return found

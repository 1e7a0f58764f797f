"""PEFT's folders: `adapter_model.safetensors` beside `adapter_config.json`, one pair for each network."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import transformers
from torch import Tensor

from boothlab.diffusion.formats.adapter import Adapter, LayerWeights
from boothlab.diffusion.formats.architecture import Architecture, text_path
from boothlab.diffusion.formats.container import PEFT_CONFIG, PEFT_WEIGHTS, Found, RawFile, safetensors_bytes
from boothlab.diffusion.formats.diffusers_format import METADATA_KEY
from boothlab.diffusion.formats.peft_settings import settings_alpha, settings_of
from boothlab.errors import UserError
from boothlab.files import json_bytes, shown

NAME = "peft"
PREFIX = "base_model.model."
_KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_TEXT = ("text_model.", "encoder.layers.", "text_projection")


def claims(key: str) -> bool:
    """Whether a key may be one of this format."""
    return key.startswith(PREFIX)


def find(raws: Sequence[RawFile], architecture: Architecture | None) -> Found:
    """Where each key of the files belongs. Raises UserError for a key that belongs nowhere, or without a config."""
    found = Found()
    for raw in raws:
        config = _config(raw)
        for key, value in raw.tensors.items():
            match = _KEY.fullmatch(key)
            if match is None:
                raise UserError(f"{shown(raw.path)}: {shown(key)} is no key of a LoRA that PEFT saved; take it out")
            component = raw.component or ("text_encoder" if match[1].startswith(_TEXT) else "unet")
            module = match[1] if component == "unet" else text_path(match[1])
            kind = "down" if match[2] == "A" else "up"
            found.add(raw.path, (component, module, kind), key, value)
            if kind == "down" and value.ndim > 1:
                rank = int(value.shape[0])
                found.alphas[component, module] = settings_alpha(config, raw.path, component, module, rank)
    return found


def _config(raw: RawFile) -> Mapping[str, Any]:
    if raw.config is None and (own := said(raw)):
        return own
    if raw.config is None:
        raise UserError(
            f"{shown(raw.path)}: has PEFT's keys and no {PEFT_CONFIG} beside it, which holds alpha; put it there, or "
            "take alpha = rank with repair=true of `boothlab convert`"
        )
    kind = str(raw.config.get("peft_type", "LORA"))
    if kind != "LORA":
        raise UserError(f"{shown(raw.path)}: is PEFT's {shown(kind)}; only LORA is read")
    return raw.config


def said(raw: RawFile) -> dict[str, Any]:
    """The settings in the metadata of a file that was written here; empty for others."""
    try:
        said = json.loads(raw.metadata.get(METADATA_KEY, "{}"))
    except (ValueError, RecursionError):
        return {}
    items = said.items() if isinstance(said, dict) else ()
    return {key.removeprefix(PREFIX): value for key, value in items if key.startswith(PREFIX)}


def module_name(component: str, path: str) -> str:
    """A module as the installed transformers calls it: since version 5 CLIPTextModel has no `text_model`."""
    dropped = component == "text_encoder" and int(transformers.__version__.split(".")[0]) >= 5
    return path.removeprefix("text_model.") if dropped else path


def write(adapter: Adapter, metadata: Mapping[str, str], architecture: Architecture | None) -> dict[str, bytes]:
    """A folder for each network; a single network's files lie in the folder itself."""
    files: dict[str, bytes] = {}
    held = {component: layers for component, layers in adapter.components.items() if layers}
    for component, layers in held.items():
        folder = "" if list(held) == ["unet"] else f"{component}/"
        settings = _settings(component, layers)
        # `load_lora_adapter(..., prefix="base_model.model")` of diffusers reads alpha by these.
        said = {f"{PREFIX}{key}": value for key, value in settings_of(layers, component).items()}
        notes = {**metadata, METADATA_KEY: json.dumps(said, sort_keys=True)}
        files[folder + PEFT_WEIGHTS] = safetensors_bytes(_state(component, layers), notes)
        files[folder + PEFT_CONFIG] = json_bytes({**_FIXED, **settings})
    return files


_FIXED: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": None,
    "bias": "none",
    "inference_mode": True,
    "base_model_name_or_path": None,
    "fan_in_fan_out": False,
    "lora_dropout": 0.0,
    "modules_to_save": None,
}


def _state(component: str, layers: Mapping[str, LayerWeights]) -> dict[str, Tensor]:
    state = {}
    for path, layer in layers.items():
        name = PREFIX + module_name(component, path)
        state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"] = layer.down, layer.up
    return state


def _settings(component: str, layers: Mapping[str, LayerWeights]) -> dict[str, Any]:
    """With the modules' whole names: PEFT then says so when the model has other ones."""
    settings = settings_of(layers, component)
    settings["target_modules"] = [module_name(component, path) for path in sorted(layers)]
    return settings

"""PEFT's folders: `adapter_model.safetensors` beside `adapter_config.json`, one pair for each network."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import transformers
from torch import Tensor

from boothlab.diffusion.formats.adapter import Adapter, Layer, low_rank
from boothlab.diffusion.formats.architecture import Architecture, text_path
from boothlab.diffusion.formats.container import PEFT_CONFIG, PEFT_WEIGHTS, Found, RawFile, safetensors_bytes
from boothlab.diffusion.formats.diffusers_format import METADATA_KEY, magnitude_as_peft, magnitude_of
from boothlab.diffusion.formats.peft_settings import (
    lora_settings,
    product_alpha,
    product_settings,
    settings_alpha,
    settings_rank,
)
from boothlab.diffusion.formats.products import HADAMARD, KRONECKER, ProductWeights, rank_of
from boothlab.errors import UserError
from boothlab.files import json_bytes, shown

NAME = "peft"
PREFIX = "base_model.model."
_KEY = re.compile(
    r"base_model\.model\.(.+)\."
    rf"(lora_[AB]\.weight|lora_magnitude_vector(?:\.weight)?|{'|'.join((*HADAMARD, *KRONECKER))})"
)
_KINDS = {"lora_A.weight": "down", "lora_B.weight": "up"}
_TYPES = {"lora": "LORA", "dora": "LORA", "loha": "LOHA", "lokr": "LOKR"}
_TEXT = ("text_model.", "encoder.layers.", "text_projection")


def claims(key: str) -> bool:
    """Whether a key may be one of this format."""
    return key.startswith(PREFIX)


def find(raws: Sequence[RawFile], architecture: Architecture | None) -> Found:
    """Where each key of the files belongs. Raises UserError for a key that belongs nowhere, or without a config."""
    found = Found()
    for raw in raws:
        for key, value in raw.tensors.items():
            match = _KEY.fullmatch(key)
            if match is None:
                raise UserError(f"{shown(raw.path)}: {shown(key)} is no key of an adapter that PEFT saved; take it out")
            component = raw.component or ("text_encoder" if match[1].startswith(_TEXT) else "unet")
            module = match[1] if component == "unet" else text_path(match[1])
            kind = "magnitude" if match[2].startswith("lora_magnitude") else _KINDS.get(match[2], match[2])
            held = magnitude_of(raw, key, value) if kind == "magnitude" else value
            found.add(raw.path, (component, module, kind), key, held)
        _add_scales(raw, found)
    return found


def _add_scales(raw: RawFile, found: Found) -> None:
    """Rank and alpha of each layer of a file, by its config."""
    names = set(raw.tensors)
    for (component, module), parts in found.layers().items():
        if not any(key in names for key, _ in parts.values()) or (component, module) in found.alphas:
            continue
        factors = {kind: value for kind, (_, value) in parts.items() if kind in (*HADAMARD, *KRONECKER)}
        config = _config(raw, _type_of(factors))
        if factors and all(value.ndim > 1 for value in factors.values()):
            found.ranks[component, module] = settings_rank(config, raw.path, component, module, rank_of(factors))
            found.alphas[component, module] = product_alpha(config, raw.path, component, module)
        elif "down" in parts and parts["down"][1].ndim > 1:
            rank, is_dora = int(parts["down"][1].shape[0]), "magnitude" in parts
            alpha = settings_alpha(config, raw.path, component, module, rank, is_dora=is_dora)
            found.alphas[component, module] = alpha


def _type_of(factors: Mapping[str, Tensor]) -> str:
    """PEFT's name for the kind of a layer with these factors."""
    return ("LOHA" if min(factors).startswith("hada_") else "LOKR") if factors else "LORA"


def _config(raw: RawFile, expected: str) -> Mapping[str, Any]:
    if raw.config is None and (own := said(raw)):
        return own
    if raw.config is None:
        raise UserError(
            f"{shown(raw.path)}: has PEFT's keys and no {PEFT_CONFIG} beside it, which holds alpha; put it there, or "
            "take alpha = rank with repair=true of `boothlab convert`"
        )
    kind = str(raw.config.get("peft_type", "LORA"))
    if kind not in _TYPES.values():
        raise UserError(f"{shown(raw.path)}: is PEFT's {shown(kind)}; LORA, LOHA and LOKR are read")
    if kind != expected:
        raise UserError(
            f"{shown(raw.path)}: its {PEFT_CONFIG} is a {kind}'s and its matrices are a {expected}'s; "
            "the config is another file's"
        )
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
        shapes = architecture.shapes[component] if architecture else None
        settings, notes = _settings(component, layers, shapes)
        files[folder + PEFT_WEIGHTS] = safetensors_bytes(_state(component, layers), {**metadata, **notes})
        files[folder + PEFT_CONFIG] = json_bytes(settings)
    return files


_FIXED: dict[str, Any] = {
    "task_type": None,
    "inference_mode": True,
    "base_model_name_or_path": None,
    "modules_to_save": None,
}
_LORA: dict[str, Any] = {"bias": "none", "fan_in_fan_out": False, "lora_dropout": 0.0}
_PRODUCT: dict[str, Any] = {"rank_dropout": 0.0, "module_dropout": 0.0, "use_effective_conv2d": False}
_NAMES = {"down": "lora_A.weight", "up": "lora_B.weight", "magnitude": "lora_magnitude_vector"}


def _state(component: str, layers: Mapping[str, Layer]) -> dict[str, Tensor]:
    state = {}
    for path, layer in layers.items():
        name = PREFIX + module_name(component, path)
        for kind, value in layer.tensors.items():
            state[f"{name}.{_NAMES.get(kind, kind)}"] = value
        if not isinstance(layer, ProductWeights) and (magnitude := magnitude_as_peft(layer)) is not None:
            state[f"{name}.{_NAMES['magnitude']}"] = magnitude
    return state


def _settings(
    component: str, layers: Mapping[str, Layer], shapes: Mapping[str, tuple[int, ...]] | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The config, with the modules' whole names: PEFT then says so when the model has other ones; and metadata."""
    notes: dict[str, str] = {}
    products = {path: layer for path, layer in layers.items() if isinstance(layer, ProductWeights)}
    if products:
        settings = _PRODUCT | product_settings(products, component, shapes)
    else:
        own = lora_settings(low_rank(layers), component)
        # `load_lora_adapter(..., prefix="base_model.model")` of diffusers reads alpha by these.
        said = {f"{PREFIX}{key}": value for key, value in own.items()}
        notes[METADATA_KEY] = json.dumps(said, sort_keys=True)
        settings = _LORA | own
    settings["peft_type"] = _TYPES[next(iter(layers.values())).variant]
    settings["target_modules"] = [module_name(component, path) for path in sorted(layers)]
    return _FIXED | settings, notes

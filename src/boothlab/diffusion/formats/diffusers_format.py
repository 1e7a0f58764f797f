"""diffusers' files: `unet.….lora_A.weight`, `….lora.down.weight` and the attention processors' of before."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft
from diffusers.utils.state_dict_utils import StateDictType
from torch import Tensor

from boothlab.diffusion.formats.adapter import COMPONENTS, Adapter, LayerWeights, low_rank
from boothlab.diffusion.formats.architecture import Architecture, text_path
from boothlab.diffusion.formats.container import Found, RawFile, number, safetensors_bytes
from boothlab.diffusion.formats.peft_settings import lora_settings, settings_alpha
from boothlab.errors import UserError
from boothlab.files import shown

NAME = "diffusers"
FILE_NAME = "pytorch_lora_weights.safetensors"
METADATA_KEY = "lora_adapter_metadata"  # diffusers' own key: it carries rank and alpha to load_lora_weights
_MATRIX = re.compile(r"(.+)\.lora_([AB])\.weight")
_MAGNITUDE = re.compile(r"(.+)\.lora_magnitude_vector(?:\.weight)?")


def claims(key: str) -> bool:
    """Whether a key may be one of this format."""
    return key.split(".", 1)[0] in COMPONENTS


def place_of(key: str) -> tuple[str, str, str] | None:
    """(component, module, kind) of a key of any age, by diffusers' own tables; None when it is none.

    Kinds are `down`, `up` and `magnitude`.
    """
    component, _, rest = key.partition(".")
    if component not in COMPONENTS or not rest:
        return None
    nothing = torch.empty(0)
    if component == "unet":
        (name,) = convert_unet_state_dict_to_peft({rest: nothing})
    else:
        name = rest
        for kind in (StateDictType.DIFFUSERS_OLD, StateDictType.DIFFUSERS):
            (name,) = convert_state_dict_to_peft({name: nothing}, original_type=kind)
        (name,) = convert_unet_state_dict_to_peft({name: nothing})
    match = _MATRIX.fullmatch(name)
    kind = "magnitude" if match is None else {"A": "down", "B": "up"}[match[2]]
    match = match or _MAGNITUDE.fullmatch(name)
    if match is None:
        return None
    return component, match[1] if component == "unet" else text_path(match[1]), kind


def magnitude_of(raw: RawFile, key: str, value: Tensor) -> Tensor:
    """A DoRA's magnitudes, [out], from PEFT's shapes: [out], of convolutions [1, out, 1, 1]. Raises UserError."""
    if value.ndim != 1 and (value.ndim != 4 or value.numel() != value.shape[1]):
        raise UserError(
            f"{shown(raw.path)}: {shown(key)} is {list(value.shape)}; a DoRA's magnitudes are [out], of a convolution "
            "[1, out, 1, 1]"
        )
    return value.reshape(-1)


def magnitude_as_peft(layer: LayerWeights) -> Tensor | None:
    """Back in PEFT's shape for the layer; None of a plain LoRA."""
    if layer.magnitude is None or layer.down.ndim == 2:
        return layer.magnitude
    return layer.magnitude.reshape(1, -1, *[1] * (layer.down.ndim - 2))


def find(raws: Sequence[RawFile], architecture: Architecture | None) -> Found:
    """Where each key of the file belongs. Raises UserError for a key that belongs nowhere."""
    found = Found()
    for raw in raws:
        for key, value in raw.tensors.items():
            if key.endswith(".alpha"):
                stem = key.removesuffix(".alpha")
                place = place_of(f"{stem}.down.weight") or place_of(f"{stem}.lora_A.weight")
                if place is not None:
                    found.alphas[place[:2]] = number(value, raw.path, key)
                    continue
            place = place_of(key)
            if place is None:
                raise UserError(
                    f"{shown(raw.path)}: {shown(key)} is no key of a LoRA; take it out, or name the right file"
                )
            found.add(raw.path, place, key, magnitude_of(raw, key, value) if place[2] == "magnitude" else value)
        _add_alphas(found, raw)
    return found


def _add_alphas(found: Found, raw: RawFile) -> None:
    """The alphas of the file's metadata; those in the file's tensors go before."""
    text = raw.metadata.get(METADATA_KEY)
    if not text:
        return
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise UserError(f"{shown(raw.path)}: its {METADATA_KEY} is not a JSON object; alpha would be lost without it")
    for (component, module, kind), (_, value) in found.matrices.items():
        own = {key.removeprefix(f"{component}."): one for key, one in said.items() if key.startswith(f"{component}.")}
        if kind == "down" and own and value.ndim > 1:
            is_dora = (component, module, "magnitude") in found.matrices
            alpha = settings_alpha(own, raw.path, component, module, int(value.shape[0]), is_dora=is_dora)
            found.alphas.setdefault((component, module), alpha)


def state_of(component: str, layers: Mapping[str, LayerWeights]) -> dict[str, Tensor]:
    """A component's matrices under the names of a diffusers file.

    UNet keys are all of PEFT's kind (`lora_A`) and text-encoder keys all of diffusers' (`lora_linear_layer.down`):
    diffusers looks at one key to tell which kind a file is, and silently drops the others of a mixture.
    """
    down, up = ("lora_A", "lora_B") if component == "unet" else ("lora_linear_layer.down", "lora_linear_layer.up")
    state = {}
    for path, layer in layers.items():
        state[f"{component}.{path}.{down}.weight"] = layer.down
        state[f"{component}.{path}.{up}.weight"] = layer.up
        if (magnitude := magnitude_as_peft(layer)) is not None:
            # transformers 5 only finds the magnitudes of text encoders by the longer name
            state[f"{component}.{path}.lora_magnitude_vector{'' if component == 'unet' else '.weight'}"] = magnitude
    return state


def metadata_of(components: Mapping[str, Mapping[str, LayerWeights]]) -> dict[str, Any]:
    """What diffusers wants to know of rank and alpha: PEFT's settings with the component's name in front."""
    return {
        f"{component}.{key}": value
        for component, layers in components.items()
        if layers
        for key, value in lora_settings(layers, component).items()
    }


def write(adapter: Adapter, metadata: Mapping[str, str], architecture: Architecture | None) -> dict[str, bytes]:
    """The one file of this format, with every layer's rank and alpha in its metadata."""
    state: dict[str, Tensor] = {}
    held = {component: low_rank(layers) for component, layers in adapter.components.items()}
    for component, layers in held.items():
        state |= state_of(component, layers)
    said = json.dumps(metadata_of(held), sort_keys=True)
    return {FILE_NAME: safetensors_bytes(state, {**metadata, METADATA_KEY: said})}

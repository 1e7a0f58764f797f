"""kohya's files, which A1111 and ComfyUI read: `lora_unet_….lora_down.weight`, with an alpha tensor for each layer.

DoRA, LoHa and LoKr have the names that LyCORIS gives them in such files: `.dora_scale`, `.hada_w1_a`, `.lokr_w1`.
"""

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import SimpleNamespace

import torch
from torch import Tensor

from boothlab.diffusion.formats import diffusers_format
from boothlab.diffusion.formats.adapter import Adapter
from boothlab.diffusion.formats.architecture import Architecture
from boothlab.diffusion.formats.container import Found, RawFile, number, safetensors_bytes
from boothlab.diffusion.formats.products import HADAMARD, KRONECKER
from boothlab.diffusion.variants import VARIANT_KEY
from boothlab.errors import UserError
from boothlab.files import shown
from boothlab.quiet import quiet_libraries

NAME = "kohya"
FILE_NAME = "kohya.safetensors"
_PREFIXES = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
_EMBEDDING = re.compile(r"bundle_emb\.(.+)\.string_to_param\.\*")
_KINDS = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "dora_scale": "magnitude",
    **{factor: factor for factor in (*HADAMARD, *KRONECKER)},
}
_SUFFIXES = {kind: suffix for suffix, kind in _KINDS.items()}
_RESNET = {"conv1": "in_layers_2", "conv2": "out_layers_3", "time_emb_proj": "emb_layers_1"}
_RESNET["conv_shortcut"] = "skip_connection"
_OUTSIDE = {
    "conv_in": "input_blocks_0_0",
    "conv_out": "out_2",
    "time_embedding.linear_1": "time_embed_0",
    "time_embedding.linear_2": "time_embed_2",
    "add_embedding.linear_1": "label_emb_0_0",
    "add_embedding.linear_2": "label_emb_0_2",
}


def claims(key: str) -> bool:
    """Whether a key may be one of this format."""
    return key.startswith((*_PREFIXES, "bundle_emb."))


def find(raws: Sequence[RawFile], architecture: Architecture | None) -> Found:
    """Where each key of the file belongs. Raises UserError for a key that belongs nowhere."""
    found = Found()
    table = _table(architecture) if architecture is not None else {}
    for raw in raws:
        groups: dict[str, dict[str, tuple[str, Tensor]]] = defaultdict(dict)
        for key, value in raw.tensors.items():
            if match := _EMBEDDING.fullmatch(key):
                found.embeddings[match[1]] = value
                continue
            name, _, kind = key.partition(".")
            if kind not in (*_KINDS, "alpha"):
                raise UserError(
                    f"{shown(raw.path)}: {shown(key)} is no key of a LoRA; take it out, or name the right file"
                )
            groups[name][kind] = (key, value)
        for name, parts in groups.items():
            place = table.get(name) or _by_diffusers(raw, name, architecture)
            for kind, (key, value) in parts.items():
                if kind != "alpha":
                    held = _rows(raw, key, value) if kind == "dora_scale" else value
                    found.add(raw.path, (*place, _KINDS[kind]), key, held)
                elif place in found.alphas:
                    raise UserError(f"{shown(raw.path)}: {shown(key)} is a second alpha for its layer; take one out")
                else:
                    found.alphas[place] = number(value, raw.path, key)
        _add_own_scale(raw, found)
    return found


def _rows(raw: RawFile, key: str, value: Tensor) -> Tensor:
    """A DoRA's magnitudes, [out]. Raises UserError for those of columns, LyCORIS' other kind.

    LyCORIS (`wd_on_output`) and ComfyUI tell the two by the axis: [out, 1] or [out, 1, 1, 1] for rows, [1, in] or
    [1, in, 1, 1] for columns.
    """
    if value.ndim > 1 and value.shape[0] == 1 and value.numel() > 1:
        raise UserError(
            f"{shown(raw.path)}: {shown(key)} is {list(value.shape)}, a number for each column of a weight; only "
            "a DoRA of rows is read, [out, 1]: train it with wd_on_output=True"
        )
    if value.ndim not in (1, 2, 4) or value.numel() != value.shape[0]:
        raise UserError(f"{shown(raw.path)}: {shown(key)} is {list(value.shape)}; a DoRA's magnitudes are [out, 1]")
    return value.reshape(-1)


def _add_own_scale(raw: RawFile, found: Found) -> None:
    """What a file of boothlab's own says of its scale: the rank of a LoKr whose factors show none, alpha unrounded."""
    try:
        said = json.loads(raw.metadata.get(VARIANT_KEY, "{}"))
    except (ValueError, RecursionError):
        return
    for component, one in said.items() if isinstance(said, dict) else ():
        if not isinstance(one, dict):
            continue
        rank, alpha = one.get("rank"), one.get("alpha")
        for place in [place for place in found.alphas if place[0] == component]:
            if isinstance(rank, int) and rank > 0:
                found.ranks[place] = rank
            if isinstance(alpha, int | float) and torch.tensor(float(alpha)).item() == found.alphas[place]:
                found.alphas[place] = float(alpha)


def _table(architecture: Architecture) -> dict[str, tuple[str, str]]:
    """(component, module) by every name that tools give the layers of an architecture."""
    table: dict[str, tuple[str, str]] = {}
    for component, shapes in architecture.shapes.items():
        for path in shapes:
            flat = path.replace(".", "_")
            prefixes = {"unet": _PREFIXES[:1], "text_encoder": _PREFIXES[1:3], "text_encoder_2": _PREFIXES[3:]}
            names = [prefix + flat for prefix in prefixes[component]]
            if component == "unet":
                names.append(_PREFIXES[0] + original_name(path, architecture))
            table |= dict.fromkeys(names, (component, path))
    return table


def _by_diffusers(raw: RawFile, name: str, architecture: Architecture | None) -> tuple[str, str]:
    """(component, module) of a layer that no known table has, as diffusers' own loader names it.

    It is asked for one layer at a time: of a whole file it drops without a word what it takes for a double.
    """
    down = f"{name}.lora_down.weight"
    layer = {down: torch.empty(0), f"{name}.lora_up.weight": torch.empty(0)}
    blocks = SimpleNamespace(layers_per_block=architecture.layers_per_block if architecture else 2)
    try:
        with quiet_libraries():
            from diffusers import StableDiffusionXLPipeline  # its import speaks

            state, _ = StableDiffusionXLPipeline.lora_state_dict(layer, unet_config=blocks)
    except (ValueError, IndexError, KeyError):
        state = {}
    places = {place[:2] for key in state if (place := diffusers_format.place_of(key)) is not None}
    if len(places) != 1:
        raise UserError(f"{shown(raw.path)}: {shown(down)} is no layer's name; take it out, or convert the file again")
    return places.pop()


def original_name(path: str, architecture: Architecture) -> str:
    """A UNet layer in the numbering of the original Stable Diffusion, flat: `input_blocks_1_1_proj_in`.

    As kohya's scripts name SDXL's layers; diffusers' `_maybe_map_sgm_blocks_to_diffusers` is the way back.
    """
    if path in _OUTSIDE:
        return _OUTSIDE[path]
    parts = path.split(".")
    per_block = architecture.layers_per_block + 1
    if parts[0] == "mid_block":
        kind, number_, *rest = parts[1:]
        block = f"middle_block_{1 if kind == 'attentions' else 2 * int(number_)}"
        return f"{block}_{_inner(kind, rest)}"
    block_number, kind, number_, *rest = [int(parts[1]), *parts[2:]]
    up = parts[0] == "up_blocks"
    stem = "output_blocks" if up else "input_blocks"
    place = int(block_number) * per_block + (0 if up else 1)
    if kind == "downsamplers":
        return f"{stem}_{place + per_block - 1}_0_op"
    if kind == "upsamplers":
        attended = any(name.startswith(f"up_blocks.{block_number}.attentions") for name in architecture.shapes["unet"])
        return f"{stem}_{place + per_block - 1}_{2 if attended else 1}_conv"
    return f"{stem}_{place + int(str(number_))}_{0 if kind == 'resnets' else 1}_{_inner(str(kind), rest)}"


def _inner(kind: str, rest: list[str]) -> str:
    return _RESNET.get(rest[0], rest[0]) if kind == "resnets" else "_".join(rest)


def write(adapter: Adapter, metadata: Mapping[str, str], architecture: Architecture | None) -> dict[str, bytes]:
    """The one file of this format. SDXL's UNet gets the original numbering, as kohya's scripts give it."""
    is_sdxl = bool(adapter.components.get("text_encoder_2")) or (architecture is not None and architecture.is_sdxl)
    prefixes = {"unet": "lora_unet_", "text_encoder": "lora_te1_" if is_sdxl else "lora_te_"}
    prefixes["text_encoder_2"] = "lora_te2_"
    state: dict[str, Tensor] = {}
    for component, path, layer in adapter.layers():
        original = is_sdxl and component == "unet" and architecture is not None
        flat = original_name(path, architecture) if original and architecture else path.replace(".", "_")
        name = prefixes[component] + flat
        for kind, value in layer.tensors.items():
            if kind == "magnitude":
                dimensions = len(architecture.shapes[component][path]) if architecture else layer.tensors["down"].ndim
                value = value.reshape(-1, *[1] * (dimensions - 1))
            state[f"{name}.{_SUFFIXES[kind]}"] = value
        state[f"{name}.alpha"] = _alpha_tensor(layer.alpha)
    return {FILE_NAME: safetensors_bytes(state, metadata)}


def _alpha_tensor(alpha: float) -> Tensor:
    """In float32, as tools write it, unless that would round it."""
    short = torch.tensor(alpha, dtype=torch.float32)
    return short if short.item() == alpha else torch.tensor(alpha, dtype=torch.float64)

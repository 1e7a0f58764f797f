"""Adapters beyond plain LoRA, through peft: DoRA, LoHa and LoKr. Attach them, and save them under others' names.

rsLoRA is no form of its own: its scale alpha / √rank is written as the alpha of a plain LoRA (`plain_alpha`).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import LoHaConfig, LoKrConfig, PeftConfig
from peft import LoraConfig as PeftLoraConfig
from peft.tuners.lora import LoraLayer
from peft.tuners.lycoris_utils import LycorisLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from boothlab.seeding import Stream, generator

ADAPTER = "boothlab"
VARIANT_KEY = "boothlab_variant"
"""Metadata of an adapter file: the kind, rank and alpha of each component, to the last digit."""
_ZERO_AT_START = ("hada_w2_b", "lokr_w1", "lokr_w1_a")
"""One factor of each update starts at zero, as in peft, so that the update does."""
_PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_", "text_encoder_2": "lora_te2_"}
"""LyCORIS' names for the components; SDXL's first text encoder is lora_te1_."""


def plain_alpha(variant: str, rank: int, alpha: float) -> float:
    """The alpha with which a plain LoRA, scaled by alpha / rank, is the variant: rsLoRA scales by alpha / √rank.

    Kalajdzievski 2023, arXiv 2312.03732. Loaders that know nothing of it then draw the same image.
    """
    return alpha * rank**0.5 if variant == "rslora" else alpha


def peft_config(variant: str, rank: int, alpha: float, dropout: float, targets: Sequence[str]) -> PeftConfig:
    """peft's settings of a variant. Raises ValueError for one that peft has not."""
    if variant == "loha":
        return LoHaConfig(r=rank, alpha=alpha, target_modules=list(targets))
    if variant == "lokr":
        return LoKrConfig(r=rank, alpha=alpha, target_modules=list(targets))
    if variant not in ("lora", "rslora", "dora"):
        raise ValueError(f"variant={variant}: lora, rslora, dora, loha or lokr")
    return PeftLoraConfig(
        r=rank,
        lora_alpha=plain_alpha(variant, rank, alpha),
        lora_dropout=dropout,
        target_modules=list(targets),
        use_dora=variant == "dora",
    )


def lycoris_layers(module: nn.Module) -> dict[str, LycorisLayer]:
    """The layers that carry a LoHa or LoKr, by name, in a fixed order."""
    found = {name: layer for name, layer in module.named_modules() if isinstance(layer, LycorisLayer)}
    return dict(sorted(found.items()))


def variant_of(module: nn.Module) -> str | None:
    """dora, loha or lokr if the module carries one; None for plain LoRA or nothing."""
    for layer in module.modules():
        if isinstance(layer, LycorisLayer):
            return "loha" if hasattr(layer, "hada_w1_a") else "lokr"
        if isinstance(layer, LoraLayer):
            return "dora" if len(layer.lora_magnitude_vector) else None
    return None


def start_lycoris(module: nn.Module, component: str, seed: int) -> int:
    """Draw each factor from a generator of its own, He-uniform as in peft, or zero; returns how many layers."""
    layers = lycoris_layers(module)
    for name, layer in layers.items():
        # peft leaves a layer out when torch.rand(1) is not above this: at 0 that is once in 2^24 times, by chance.
        layer.module_dropout[ADAPTER] = -1.0
        for kind, factor in _factors(layer).items():
            values = torch.zeros(factor.shape, dtype=torch.float32)
            if kind not in _ZERO_AT_START:
                stream = generator(seed, Stream.LORA_INIT, component, name, kind)
                nn.init.kaiming_uniform_(values, a=5**0.5, generator=stream)
            factor.data = values.to(factor.device)
    return len(layers)


def _factors(layer: BaseTunerLayer) -> dict[str, nn.Parameter]:
    """The trained tensors of one layer by peft's names."""
    found: dict[str, nn.Parameter] = {}
    for kind in layer.adapter_layer_names:
        held = getattr(layer, kind, {})
        if ADAPTER in held:
            one = held[ADAPTER]
            found[kind] = one if isinstance(one, nn.Parameter) else one.weight
    return {kind: value for kind, value in found.items() if value.numel()}


def _name_in_file(component: str, module: nn.Module, name: str, is_sdxl: bool) -> str:
    """LyCORIS' name of a layer: kohya's, `lora_unet_down_blocks_0_…`."""
    prefix = "lora_te1_" if is_sdxl and component == "text_encoder" else _PREFIXES[component]
    if component != "unet" and not hasattr(module, "text_model"):
        prefix += "text_model_"
    return prefix + name.replace(".", "_")


def lycoris_state(components: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """LoHa and LoKr under LyCORIS' names with an `.alpha` each, float32 on the CPU: tools that know LyCORIS read it."""
    is_sdxl = "text_encoder_2" in components
    state: dict[str, Tensor] = {}
    for component, module in components.items():
        for name, layer in lycoris_layers(module).items():
            key = _name_in_file(component, module, name, is_sdxl)
            for kind, factor in _factors(layer).items():
                state[f"{key}.{kind}"] = factor.detach().to("cpu", torch.float32, copy=True).contiguous()
            state[f"{key}.alpha"] = torch.tensor(float(layer.alpha[ADAPTER]))
    return dict(sorted(state.items()))


def magnitudes(components: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """DoRA's magnitudes under diffusers' names, which go into the file beside the matrices."""
    state: dict[str, Tensor] = {}
    for component, module in components.items():
        prefix = component if component == "unet" or hasattr(module, "text_model") else f"{component}.text_model"
        for name, layer in module.named_modules():
            if isinstance(layer, LoraLayer) and ADAPTER in layer.lora_magnitude_vector:
                value = layer.lora_magnitude_vector[ADAPTER].weight
                # transformers 5 only finds the magnitudes of text encoders by the longer name.
                ending = "" if component == "unet" else ".weight"
                state[f"{prefix}.{name}.lora_magnitude_vector{ending}"] = value.detach().to(
                    "cpu", torch.float32, copy=True
                )
    return state


def variant_metadata(components: Mapping[str, nn.Module]) -> dict[str, str]:
    """The kind and for each component rank, alpha and targets, which LyCORIS' keys leave out. Empty for plain LoRA."""
    said: dict[str, Any] = {}
    for component, module in components.items():
        variant = variant_of(module)
        if variant is None:
            continue
        config: Any = module.peft_config[ADAPTER]  # type: ignore[index]
        alpha = config.lora_alpha if variant == "dora" else config.alpha
        targets = sorted(config.target_modules)
        said[component] = {"variant": variant, "rank": config.r, "alpha": alpha, "targets": targets}
    return {VARIANT_KEY: json.dumps(said, sort_keys=True)} if said else {}


def shed_variants(module: nn.Module) -> None:
    """Take LoHa and LoKr layers off and leave what they were put around."""
    for name in lycoris_layers(module):
        parent, _, last = name.rpartition(".")
        owner = module.get_submodule(parent)
        setattr(owner, last, module.get_submodule(name).get_base_layer())  # type: ignore[operator]
    if hasattr(module, "peft_config"):
        del module.peft_config
        setattr(module, "_hf_peft_config_loaded", False)  # noqa: B010  # a plain flag, which nn.Module has no type for

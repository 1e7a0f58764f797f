"""An adapter into a loaded pipeline: diffusers makes the layers, which then get exactly what the file holds."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from boothlab.diffusion.backbone import Backbone
from boothlab.diffusion.formats.adapter import LayerWeights
from boothlab.diffusion.formats.architecture import canonical_layers, text_path
from boothlab.diffusion.formats.diffusers_format import metadata_of, state_of
from boothlab.diffusion.formats.products import ProductWeights
from boothlab.diffusion.variants import ADAPTER, lycoris_layers, peft_config
from boothlab.errors import UserError
from boothlab.files import shown


def inject(backbone: Backbone, component: str, held: Mapping[str, LayerWeights], adapter: str) -> None:
    """Put one component's layers in by diffusers' loaders; raises UserError unless each is there, as it was given."""
    module = _network(backbone, component)
    bases = canonical_layers(component, module)
    fitted = {path: _fitted(weights, bases[path]) for path, weights in held.items()}
    given: dict[str, Any] = {
        "network_alphas": None,
        "adapter_name": adapter,
        "metadata": metadata_of({component: fitted}),
        "_pipeline": backbone.pipeline,
        "low_cpu_mem_usage": True,
    }
    state = state_of(component, fitted)
    if component == "unet":
        backbone.pipeline.load_lora_into_unet(state, unet=module, **given)
    else:
        backbone.pipeline.load_lora_into_text_encoder(state, text_encoder=module, prefix=component, **given)
    there = {
        _canonical(component, name): layer
        for name, layer in module.named_modules()
        if isinstance(layer, LoraLayer) and adapter in layer.lora_A
    }
    _refuse_lost(backbone, there, fitted)
    for path, layer in there.items():
        weights = fitted[path]
        matrices = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        for matrix, value in zip(matrices, (weights.down, weights.up), strict=True):
            matrix.data = value.to(matrix.device, torch.float32, copy=True)  # the loader rounds to the backbone's
        layer.r[adapter], layer.lora_alpha[adapter] = weights.rank, weights.alpha
        if weights.magnitude is not None:
            rows = layer.lora_magnitude_vector[adapter].weight
            rows.data = weights.magnitude.to(rows.device, torch.float32, copy=True).reshape(rows.shape)


def inject_products(backbone: Backbone, component: str, held: Mapping[str, ProductWeights]) -> None:
    """Put one component's LoHa or LoKr in: PEFT makes the layers, whose factors are then those of the file.

    So none of PEFT's rules about their shapes binds a file of LyCORIS'. Raises UserError unless each layer is there.
    """
    module = _network(backbone, component)
    targets = [name for name, _ in module.named_modules() if _canonical(component, name) in held]
    variant = next(iter(held.values())).variant
    module.add_adapter(peft_config(variant, 1, 1.0, 0.0, targets), adapter_name=ADAPTER)
    there = {_canonical(component, name): layer for name, layer in lycoris_layers(module).items()}
    _refuse_lost(backbone, there, held)
    for path, layer in there.items():
        weights = held[path]
        for kind in layer.adapter_layer_names:
            stored: Any = getattr(layer, kind)
            if ADAPTER in stored:
                stored.pop(ADAPTER)
            if kind in weights.factors:
                value = weights.factors[kind].to(layer.get_base_layer().weight.device, torch.float32, copy=True)
                stored[ADAPTER] = nn.Parameter(value, requires_grad=False)
        layer.r[ADAPTER], layer.alpha[ADAPTER] = weights.rank, weights.alpha


def _network(backbone: Backbone, component: str) -> Any:
    return backbone.unet if component == "unet" else backbone.text_encoders[component]


def _canonical(component: str, name: str) -> str:
    return name if component == "unet" else text_path(name)


def _refuse_lost(backbone: Backbone, there: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    if there.keys() != wanted.keys():
        lost = ", ".join(sorted(there.keys() ^ wanted.keys())[:3])
        raise UserError(f"the backbone {backbone.name} did not take the layers {lost}; was it changed by another tool?")


def _fitted(weights: LayerWeights, base: nn.Module) -> LayerWeights:
    """The matrices in the shapes of a layer: a 1 × 1 convolution's and a linear layer's stand for each other."""
    shape: tuple[int, ...] = tuple(base.weight.shape)  # type: ignore[arg-type]
    rank = weights.rank
    down = weights.down.reshape(rank, *shape[1:])
    up = weights.up.reshape(shape[0], rank, *([1] * (len(shape) - 2)))
    return replace(weights, down=down, up=up)


def add_words(backbone: Backbone, embeddings: Mapping[str, Tensor], path: Path) -> None:
    """Teach the first text encoder the words of a textual inversion. Raises UserError when their width is another."""
    encoder = backbone.pipeline.text_encoder
    width = encoder.get_input_embeddings().weight.shape[1]
    for word, vector in sorted(embeddings.items()):
        if vector.shape[-1] != width or vector.ndim > 2:
            raise UserError(
                f"{shown(path)}: the embedding of {shown(word)} is {list(vector.shape)}, where the text encoder of "
                f"{backbone.name} has words of {width} numbers; it was made for another architecture"
            )
    for word, vector in sorted(embeddings.items()):
        backbone.pipeline.load_textual_inversion(vector, token=word)
        encoder.requires_grad_(False)
        backbone.words.append(word)

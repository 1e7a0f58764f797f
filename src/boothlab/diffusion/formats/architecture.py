"""The layers that an adapter may be for: their names, shapes and order, of a live pipeline or of a known architecture.

Known architectures are built without weights, on PyTorch's meta device, from the numbers of their published configs.
"""

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from boothlab.diffusion.architectures import KNOWN as CONFIGS
from boothlab.diffusion.backbone import Backbone, first_line, local_folder
from boothlab.diffusion.formats.adapter import Layer, LayerWeights, plain_shape
from boothlab.errors import UserError
from boothlab.files import read_json, shown
from boothlab.quiet import quiet_libraries

KNOWN = {"sd15": "SD 1.x", "sd21": "SD 2.x", "sdxl": "SDXL"}
"""Architectures by the name of their backbone config, with the name people have for them."""


@dataclass(frozen=True)
class Architecture:
    """The layers of a pipeline that an adapter may change.

    `shapes` has each linear and convolutional layer's weight shape by component and module; `ancestors` the class of
    a module and the layers in it, in the order in which the modules were registered. `version` is the name people have
    for it, empty when it is none of the known ones.
    """

    name: str
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
    layers_per_block: int = 2
    is_sdxl: bool = False
    version: str = ""
    ancestors: Mapping[str, list[tuple[str, str]]] = field(default_factory=dict)

    def misfit(self, component: str, path: str, kind: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """The shape that a matrix should have (its rank taken from it) when it has another; None when it fits."""
        weight = plain_shape(self.shapes[component][path])
        if kind == "magnitude":
            return None if shape == weight[:1] else weight[:1]
        rank = shape[0 if kind == "down" else 1] if len(shape) > 1 else 1
        expected = (rank, *weight[1:]) if kind == "down" else (weight[0], rank)
        return None if plain_shape(shape) == expected else expected

    def flat_shape(self, component: str, path: str) -> tuple[int, int]:
        """(out, in · kh · kw) of a layer's weight."""
        rows, *columns = self.shapes[component][path]
        return rows, math.prod(columns)

    def takes(self, component: str, path: str, layer: Layer) -> bool:
        """Whether it has the layer, with a weight of the update's shape."""
        if path not in self.shapes.get(component, {}):
            return False
        if not isinstance(layer, LayerWeights):
            return layer.update_shape == self.flat_shape(component, path)
        return all(
            self.misfit(component, path, kind, tuple(value.shape)) is None for kind, value in layer.tensors.items()
        )


def text_path(name: str) -> str:
    """A text encoder's module with the `text_model.` that transformers 5 dropped from CLIPTextModel."""
    return name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}"


def canonical_layers(component: str, module: nn.Module) -> dict[str, nn.Module]:
    """The linear and convolutional layers of a component by their names in an adapter; adapted ones as they were."""
    adapted = {name: layer.base_layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}
    inner = tuple(f"{name}." for name in adapted)
    found: dict[str, nn.Module] = {}
    for name, layer in module.named_modules():
        layer = adapted.get(name, layer)
        if isinstance(layer, nn.Linear | nn.Conv2d) and not (inner and name.startswith(inner)):
            found[name if component == "unet" else text_path(name)] = layer
    return found


def of_modules(name: str, unet: Any, text_encoders: Mapping[str, nn.Module], version: str = "") -> Architecture:
    """The architecture of loaded networks, or of networks on the meta device."""
    parts: dict[str, nn.Module] = {**({} if unet is None else {"unet": unet}), **text_encoders}
    layers = {component: canonical_layers(component, module) for component, module in parts.items()}
    shapes = {
        component: {path: tuple(layer.weight.shape) for path, layer in found.items()}  # type: ignore[arg-type]
        for component, found in layers.items()
    }
    ancestors = {component: _ancestors(component, module, layers[component]) for component, module in parts.items()}
    config = getattr(unet, "config", None)
    per_block = getattr(config, "layers_per_block", 2)
    return Architecture(
        name,
        shapes,
        layers_per_block=per_block if isinstance(per_block, int) else 2,
        is_sdxl="text_encoder_2" in parts or getattr(config, "addition_embed_type", None) == "text_time",
        version=version,
        ancestors=ancestors,
    )


def _ancestors(component: str, module: nn.Module, layers: Mapping[str, nn.Module]) -> list[tuple[str, str]]:
    known = {id(layer): path for path, layer in layers.items()}
    found = []
    for parent in module.modules():
        if isinstance(parent, LoraLayer) or type(parent).__name__ not in _HOLDERS:
            continue
        found += [(type(parent).__name__, known[id(one)]) for one in parent.modules() if id(one) in known]
    return found


_HOLDERS = {"Attention", "GEGLU", "ResnetBlock2D", "CLIPAttention"}
"""Modules whose layers cloneofsimo's tool numbers."""


def of_backbone(backbone: Backbone) -> Architecture:
    """The architecture of a loaded backbone."""
    return of_modules(backbone.name, backbone.unet, backbone.text_encoders)


@functools.cache
def known_architecture(name: str) -> Architecture:
    """One of the known architectures: sd15, sd21 or sdxl."""
    with torch.device("meta"), quiet_libraries():
        configs = CONFIGS[name]
        unet = UNet2DConditionModel(**configs["unet"])
        texts: dict[str, nn.Module] = {"text_encoder": CLIPTextModel(CLIPTextConfig(**configs["text_encoder"]))}
        if name == "sdxl":
            texts["text_encoder_2"] = CLIPTextModelWithProjection(CLIPTextConfig(**configs["text_encoder_2"]))
    return of_modules(name, unet, texts, KNOWN[name])


def architecture_of(base: str) -> Architecture:
    """`sd15`, `sd21`, `sdxl`, `dollhouse`, or a local pipeline folder, of which only the configs are read.

    Raises UserError when it is none of them.
    """
    if base in KNOWN:
        return known_architecture(base)
    folder = local_folder(base)
    if folder is None or not (folder / "unet" / "config.json").is_file():
        raise UserError(
            f"base={shown(base)}: no pipeline folder is there (no unet/config.json); give sd15, sd21, sdxl, dollhouse "
            "or the folder of a diffusers pipeline"
        )
    configs = {
        "unet": UNet2DConditionModel,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
    }
    built: dict[str, Any] = {}
    for component, kind in configs.items():
        path = folder / component / "config.json"
        if not path.is_file():
            continue
        config = read_json(path)
        try:
            with torch.device("meta"), quiet_libraries():
                made = UNet2DConditionModel.from_config(config) if kind is UNet2DConditionModel else None
                built[component] = made or kind(CLIPTextConfig.from_dict(config))
        except Exception as error:
            raise UserError(
                f"base={shown(base)}: {component}/config.json cannot be used ({first_line(error)})"
            ) from error
    return of_modules(folder.name if base != "dollhouse" else base, built.pop("unet"), built)


def recognise(layers: Iterable[tuple[str, str, Layer]]) -> tuple[Architecture, ...]:
    """The known architectures that all layers fit; failing those, the nearest one if most layers fit it; else none."""
    held = list(layers)
    counts = {name: sum(known_architecture(name).takes(*one) for one in held) for name in KNOWN}
    most = max(counts.values(), default=0)
    if not held or most * 2 <= len(held):
        return ()
    best = [name for name, count in counts.items() if count == most]
    return tuple(known_architecture(name) for name in (best if most == len(held) else best[:1]))

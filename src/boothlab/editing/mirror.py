"""The backbone's LoRA adapters, worn by UNets that stand beside it: InstructPix2Pix's and inpainting's."""

import copy
import logging
from typing import Any

import torch
from torch import nn

from boothlab.diffusion.backbone import Backbone
from boothlab.diffusion.lora import lora_layers
from boothlab.quiet import quiet_libraries

log = logging.getLogger(__name__)


class Mirror:
    """Keeps UNets beside the backbone in the LoRA adapters that the backbone's own UNet wears."""

    def __init__(self, backbone: Backbone):
        self.backbone = backbone
        self._worn: dict[str, tuple[Any, ...]] = {}
        self._lost: dict[str, tuple[str, ...]] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """Layers whose adapter could not be worn, by UNet."""
        return tuple(
            f"{name}: the LoRA on {', '.join(lost)} does not fit and is left out"
            for name, lost in sorted(self._lost.items())
            if lost
        )

    def update(self, name: str, unet: nn.Module) -> None:
        """Dress the UNet as the backbone's is dressed now; nothing happens when it is already."""
        worn = _state(self.backbone.unet)
        if self._worn.get(name, ()) == worn:
            return
        self._lost[name] = copy_adapters(self.backbone.unet, unet)
        self._worn[name] = worn
        if self._lost[name]:
            log.warning(self.notes[0])


def _state(unet: nn.Module) -> tuple[Any, ...]:
    """What tells two states of dress apart: the layers, their adapters, scales and matrices."""
    return tuple(
        (name, tuple(layer.active_adapters), *((one, layer.scaling[one], layer.lora_A[one]) for one in layer.lora_A))
        for name, layer in lora_layers(unet).items()
    )


def copy_adapters(source: Any, target: Any) -> tuple[str, ...]:
    """Put the LoRA adapters of one UNet on another that has the same layers; returns the layers that do not fit.

    The target's own are taken off first. InstructPix2Pix's and inpainting's first convolution takes more channels than
    the backbone's, so that an adapter of it cannot be worn.
    """
    if lora_layers(target):
        target.unload_lora()
    layers = lora_layers(source)
    modules = dict(target.named_modules())
    shapes = {name: modules[name].weight.shape for name in layers if name in modules}
    fit = {name for name, layer in layers.items() if shapes.get(name) == layer.base_layer.weight.shape}
    for adapter in dict.fromkeys(one for layer in layers.values() for one in layer.lora_A):
        config = copy.deepcopy(source.peft_config[adapter])
        config.target_modules = {name for name in fit if adapter in layers[name].lora_A}
        if config.target_modules:
            with quiet_libraries(), torch.random.fork_rng(devices=[]):  # peft draws a start, which is replaced below
                target.add_adapter(config, adapter_name=adapter)
    for name, layer in lora_layers(target).items():
        for adapter in layer.lora_A:
            for ours, theirs in ((layer.lora_A, layers[name].lora_A), (layer.lora_B, layers[name].lora_B)):
                ours[adapter].weight.data = theirs[adapter].weight.data.clone()
            layer.scaling[adapter] = layers[name].scaling[adapter]
        layer.set_adapter([one for one in layers[name].active_adapters if one in layer.lora_A])
    target.requires_grad_(False).eval()
    return tuple(sorted(set(layers) - fit))

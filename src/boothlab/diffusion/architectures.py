"""Backbones without weights, on the meta device: from a folder's configs, or those of the models that are known."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from boothlab.diffusion.backbone import local_folder
from boothlab.errors import UserError
from boothlab.files import shown
from boothlab.quiet import quiet_libraries

_CLIP_L: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
_CLIP_L |= {"num_attention_heads": 12, "projection_dim": 768}
_OPENCLIP_H: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23}
_OPENCLIP_H |= {"num_attention_heads": 16, "projection_dim": 512, "hidden_act": "gelu"}
_OPENCLIP_G: dict[str, Any] = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32}
_OPENCLIP_G |= {"num_attention_heads": 20, "projection_dim": 1280, "hidden_act": "gelu"}
_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
#: the parts of the published configs that shape the networks; what is left out is diffusers' and transformers' default
KNOWN: dict[str, dict[str, dict[str, Any]]] = {
    "sd15": {"unet": {"cross_attention_dim": 768}, "text_encoder": _CLIP_L, "vae": _VAE},
    "sd21": {
        "unet": {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
        "text_encoder": _OPENCLIP_H,
        "vae": _VAE,
    },
    "sdxl": {
        "unet": {
            "cross_attention_dim": 2048,
            "attention_head_dim": [5, 10, 20],
            "use_linear_projection": True,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": [1, 2, 10],
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        "text_encoder": _CLIP_L,
        "text_encoder_2": _OPENCLIP_G,
        "vae": _VAE,
    },
}


@dataclass
class Skeleton:
    """The networks of a backbone without their weights, and where their shapes were read."""

    unet: Any
    vae: Any
    text_encoders: dict[str, Any] = field(default_factory=dict)
    known_from: str = ""

    @property
    def networks(self) -> dict[str, nn.Module]:
        """What can be trained, by the pipeline's names."""
        return {"unet": self.unet, **self.text_encoders}

    @property
    def is_sdxl(self) -> bool:
        """Whether it has two text encoders."""
        return "text_encoder_2" in self.text_encoders


def build_skeleton(source: str, name: str, revision: str | None = None) -> Skeleton:
    """The shapes of a backbone: from its folder or the hub's cache, else those known by its name.

    Nothing is downloaded. Raises UserError for a hub id that is neither here nor known.
    """
    folder = local_folder(source) or _cached(source, revision)
    if folder is not None:
        if not (folder / "unet" / "config.json").is_file():
            raise UserError(
                f"backbone.source={shown(folder)}: no unet/config.json there; give a diffusers pipeline folder, or a "
                "hub id"
            )
        return _skeleton(_read(folder), f"the configs in {folder}")
    if name not in KNOWN:
        raise UserError(
            f"backbone.source={shown(source)}: is not here, and only the shapes of {', '.join(KNOWN)} are known "
            "without it; give a local folder"
        )
    return _skeleton(KNOWN[name], f"the architecture of {name}; its weights are not here")


def _cached(source: str, revision: str | None) -> Path | None:
    """The snapshot of a hub id in the cache, if its UNet's config is there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source, "unet/config.json", revision=revision)
    return Path(found).parents[1] if isinstance(found, str) else None


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    parts = ("unet", "vae", "text_encoder", "text_encoder_2")
    files = {part: folder / part / "config.json" for part in parts}
    return {part: json.loads(path.read_text(encoding="utf-8")) for part, path in files.items() if path.is_file()}


def _skeleton(configs: dict[str, dict[str, Any]], known_from: str) -> Skeleton:
    classes = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    with quiet_libraries(), torch.device("meta"):
        unet = UNet2DConditionModel.from_config(configs["unet"])
        vae = AutoencoderKL.from_config(configs["vae"])
        text = {name: made(CLIPTextConfig(**configs[name])) for name, made in classes.items() if name in configs}
    for network in (unet, vae, *text.values()):
        network.requires_grad_(False)
    return Skeleton(unet, vae, text, known_from)

"""Model folders and pictures that both sides get: random seeded weights in the real layout, toy photos at any size."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from boothlab.diffusion.backbone import DOLLHOUSE
from boothlab.dollhouse.architectures import MAX_TOKENS, build_tokenizer
from boothlab.dollhouse.photos import photo_scenes
from boothlab.dollhouse.scenes import render
from boothlab.images.grid import save_png
from boothlab.quiet import quiet_libraries

NOISE: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
DOWN = "CrossAttnDownBlock2D"
UP = "CrossAttnUpBlock2D"
#: name: resolution in pixels, tokens of a prompt, configs of the networks, and the type the weights have on disk
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "resolution": 64,
        "tokens": MAX_TOKENS,
        "dtype": torch.float32,
        "unet": {
            "sample_size": 16, "layers_per_block": 1, "block_out_channels": (32, 64), "norm_num_groups": 8,
            "down_block_types": (DOWN, "DownBlock2D"), "up_block_types": ("UpBlock2D", UP),
            "cross_attention_dim": 64, "attention_head_dim": 4,
        },
        "vae": {
            "block_out_channels": (16, 16, 32), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 64,
            "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3,
        },
        "text": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    },
    "sd15": {
        "resolution": 512,
        "tokens": 77,
        "dtype": torch.float16,
        "unet": {
            "sample_size": 64, "layers_per_block": 2, "block_out_channels": (320, 640, 1280, 1280),
            "down_block_types": (DOWN, DOWN, DOWN, "DownBlock2D"), "up_block_types": ("UpBlock2D", UP, UP, UP),
            "cross_attention_dim": 768, "attention_head_dim": 8,
        },
        "vae": {
            "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512,
            "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
        },
        "text": {
            "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12,
        },
    },
}  # fmt: skip


def model_folder(size: str, folder: Path) -> tuple[Path, int]:
    """The pipeline folder of a size, built in `folder` unless it ships with the package, and its resolution."""
    if size == "dollhouse":
        return DOLLHOUSE / "pipeline", 32
    wanted = SIZES[size]
    place = folder / f"model-{size}"
    if not (place / "model_index.json").is_file():
        _build(wanted, place)
    return place, int(wanted["resolution"])


def _build(wanted: Mapping[str, Any], place: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = wanted["tokens"]
    text: dict[str, Any] = {"vocab_size": len(tokenizer), "hidden_act": "quick_gelu", **wanted["text"]}
    with quiet_libraries(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = CLIPTextConfig(
            **text,
            max_position_embeddings=wanted["tokens"],
            projection_dim=text["hidden_size"],
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        StableDiffusionPipeline(
            vae=AutoencoderKL(**wanted["vae"], scaling_factor=0.18215),
            text_encoder=CLIPTextModel(config),
            tokenizer=tokenizer,
            unet=UNet2DConditionModel(**wanted["unet"]),
            scheduler=PNDMScheduler(**NOISE, skip_prk_steps=True, set_alpha_to_one=False),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).to(wanted["dtype"]).save_pretrained(place)


def picture_folder(place: Path, kind: str, index: int, count: int, resolution: int) -> Path:
    """`count` toy photos, a fifth larger than the resolution, so that there is something to resize; no captions."""
    side = resolution + resolution // 5
    for number, scene in enumerate(photo_scenes(kind, index, count)):
        save_png(place / f"{number:02d}.png", Image.fromarray(render(scene, side)))
    return place

"""Builders of tiny pipelines with seeded random weights, in the real architectures and folder layout, for tests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessorPil,
)

from boothlab.diffusion.backbone import Backbone, load_backbone
from boothlab.dollhouse.architectures import MAX_TOKENS, build_tokenizer
from boothlab.quiet import quiet_libraries

RESOLUTION = 32
NOISE: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def _tokenizer(pad_token: str | None = None) -> CLIPTokenizer:
    tokenizer = build_tokenizer()
    if pad_token is not None:  # SD 2.x and SDXL's second encoder pad with "!", not with the end token
        tokenizer.pad_token = pad_token
    return tokenizer


def _text_config(tokenizer: CLIPTokenizer, hidden: int, activation: str, eos_token_id: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=hidden,
        hidden_act=activation,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_factor=4.0,  # larger than usual, so that prompts differ enough to change an image
    )


def _vae(scaling_factor: float = 0.18215) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=RESOLUTION,
        scaling_factor=scaling_factor,
    )


def _unet(**changes: Any) -> UNet2DConditionModel:
    settings: dict[str, Any] = {
        "sample_size": RESOLUTION // 4,
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**(settings | changes))


def _as_on_the_hub(folder: Path) -> None:
    """The hub's scheduler files say this whatever their class; diffusers passes it on to samplers that read it."""
    path = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"clip_sample": False}
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def build_sd15(folder: Path) -> None:
    """SD 1.x: epsilon, convolutions around the transformers, a quick-gelu text encoder, PNDM."""
    tokenizer = _tokenizer()
    eos = 2  # what the hub's config says; transformers then takes the largest id for the end
    StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config(tokenizer, 32, "quick_gelu", eos)),
        tokenizer=tokenizer,
        unet=_unet(cross_attention_dim=32, attention_head_dim=4),
        scheduler=PNDMScheduler(**NOISE, skip_prk_steps=True, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def build_sd21(folder: Path) -> None:
    """SD 2.x: v-prediction, linear projections, a list of head sizes, OpenCLIP's gelu, "!" for padding."""
    tokenizer = _tokenizer("!</w>")
    eos = tokenizer.eos_token_id
    StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config(tokenizer, 48, "gelu", eos)),
        tokenizer=tokenizer,
        unet=_unet(cross_attention_dim=48, attention_head_dim=[2, 4], use_linear_projection=True),
        scheduler=DDIMScheduler(**NOISE, prediction_type="v_prediction", set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def build_sdxl(folder: Path) -> None:
    """SDXL: two text encoders, pooled text and sizes as extra conditions, its own latent scale, Euler."""
    first, second = _tokenizer(), _tokenizer("!</w>")
    eos = first.eos_token_id
    time_width, pooled = 8, 48
    StableDiffusionXLPipeline(
        vae=_vae(0.13025),
        text_encoder=CLIPTextModel(_text_config(first, 32, "quick_gelu", eos)),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(second, pooled, "gelu", eos)),
        tokenizer=first,
        tokenizer_2=second,
        unet=_unet(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32 + pooled,
            attention_head_dim=[2, 4],
            transformer_layers_per_block=[1, 2],
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=time_width,
            projection_class_embeddings_input_dim=6 * time_width + pooled,
        ),
        scheduler=EulerDiscreteScheduler(**NOISE, timestep_spacing="leading"),
    ).save_pretrained(folder)


BUILDERS: dict[str, Callable[[Path], None]] = {"sd15": build_sd15, "sd21": build_sd21, "sdxl": build_sdxl}


def build(name: str, folder: Path, seed: int = 0) -> Path:
    """Write one tiny pipeline; the same seed gives the same weights, and the global generator is left alone."""
    with torch.random.fork_rng(devices=[]), quiet_libraries():
        torch.manual_seed(seed)
        BUILDERS[name](folder)
    _as_on_the_hub(folder)
    return folder


def build_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """A ControlNet for maps that are four times as large as latents, already trained to say something."""
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8, 16))
    for zero in (net.controlnet_cond_embedding.conv_out, *net.controlnet_down_blocks, net.controlnet_mid_block):
        nn.init.normal_(zero.weight, std=0.5)
    return net


def build_t2i_adapter(unet: UNet2DConditionModel, channels: int, is_sdxl: bool) -> T2IAdapter:
    """A T2I-Adapter for maps of one channel (edges) or three (depth)."""
    widths = list(unet.config.block_out_channels)
    adapter = T2IAdapter(
        in_channels=channels,
        channels=[*widths, widths[-1]] if is_sdxl else widths,
        num_res_blocks=1,
        downscale_factor=8 if is_sdxl else 4,
        adapter_type="full_adapter_xl" if is_sdxl else "full_adapter",
    )
    for value in adapter.parameters():  # louder than a fresh one, so that its part in an image is seen
        value.data.mul_(2.0)
    return adapter


def build_wider_unet(unet: UNet2DConditionModel, extra: int) -> UNet2DConditionModel:
    """The UNet with `extra` more input channels, random ones: InstructPix2Pix's has four, inpainting's five."""
    channels = unet.config.in_channels + extra
    wider = UNet2DConditionModel.from_config(unet.config, in_channels=channels)
    state = wider.state_dict()
    first = state["conv_in.weight"].clone()
    first[:, : unet.config.in_channels] = unet.state_dict()["conv_in.weight"]
    wider.load_state_dict({**state, **unet.state_dict(), "conv_in.weight": first})
    return wider


def build_depth_estimator(folder: Path, side: int = RESOLUTION) -> None:
    """A DPT with its preprocessing."""
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = DPTConfig(
        **shape,
        image_size=side,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16],
        reassemble_factors=[4, 2, 1, 0.5],
        fusion_hidden_size=8,
        is_hybrid=False,
        initializer_range=0.3,
    )
    DPTForDepthEstimation(config).save_pretrained(folder)
    DPTImageProcessorPil(size={"height": side, "width": side}, ensure_multiple_of=8).save_pretrained(folder)


def build_editors(pipeline: Path, folder: Path, seed: int = 0) -> dict[str, str]:
    """Write every extra model that editing can use with a tiny pipeline; returns their sources by name."""
    with torch.random.fork_rng(devices=[]), quiet_libraries():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel.from_pretrained(pipeline / "unet")
        is_sdxl = unet.config.addition_embed_type == "text_time"
        for kind, channels in (("canny", 1), ("depth", 3)):
            build_controlnet(unet).save_pretrained(folder / f"controlnet_{kind}")
            build_t2i_adapter(unet, channels, is_sdxl).save_pretrained(folder / f"t2i_adapter_{kind}")
        build_wider_unet(unet, 4).save_pretrained(folder / "instruct_pix2pix" / "unet")
        build_wider_unet(unet, 5).save_pretrained(folder / "inpaint")
        build_depth_estimator(folder / "depth_estimator")
    return {path.name: str(path) for path in sorted(folder.iterdir())}


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Backbone:
    """A fresh backbone of a tiny pipeline."""
    return load_backbone(str(folder), name=folder.name, resolution=RESOLUTION, device=torch.device("cpu"), dtype=dtype)


def plain_pipeline(folder: Path, scheduler: str = "DDIMScheduler", **changes: Any) -> Any:
    """The pipeline as a user of diffusers alone loads it, with one of its schedulers."""
    with quiet_libraries():
        extra = {} if folder.name == "sdxl" else {"safety_checker": None}
        pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, **extra)
        pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config, **changes)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def plain_image(pipeline: Any, prompt: str, seed: int, steps: int = 3, guidance: float = 5.0, **extra: Any) -> Tensor:
    """One image, uint8 [3, H, W], from prompt strings and a generator, as a user of diffusers alone draws it."""
    (image,) = pipeline(
        prompt,
        height=RESOLUTION,
        width=RESOLUTION,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(seed),
        **extra,
    ).images
    return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1)


def most_levels_apart(first: Tensor, second: Tensor) -> int:
    """The largest difference between two uint8 images."""
    assert first.shape == second.shape
    return int((first.int() - second.int()).abs().max())

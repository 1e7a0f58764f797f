"""The loss of an adapter on noise that never changes, through plain diffusers: one function for everybody's adapter."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from boothlab.quiet import quiet_libraries


def _pixels(image: Image.Image, resolution: int) -> Tensor:
    small = image.convert("RGB").resize((resolution, resolution), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).float().div(127.5).sub(1)


@torch.no_grad()
def fixed_loss(
    model: Path, adapter: Path | None, photos: Path, prompt: str, resolution: int, device: str, draws: int = 16
) -> float:
    """Mean squared error of the predicted noise: each photo at `draws` evenly spaced timesteps, with seeded noise.

    Float32 on the CPU, bfloat16 elsewhere for the UNet. Without an adapter it is the loss before training.
    """
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    with quiet_libraries():
        pipeline = StableDiffusionPipeline.from_pretrained(
            model, torch_dtype=torch.float32, safety_checker=None, requires_safety_checker=False
        )
        if adapter is not None:
            pipeline.load_lora_weights(adapter.parent, weight_name=adapter.name)
    schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
    pipeline.vae.to(device)
    pipeline.unet.to(device, dtype)
    tokens = pipeline.tokenizer([prompt], padding="max_length", truncation=True, return_tensors="pt")
    text_1TD = pipeline.text_encoder(tokens.input_ids)[0].to(device, dtype)
    losses: list[float] = []
    for index, path in enumerate(sorted(photos.glob("*.png"))):
        image_1CHW = _pixels(Image.open(path), resolution)[None].to(device)
        latent_1CHW = pipeline.vae.encode(image_1CHW).latent_dist.mean * pipeline.vae.config.scaling_factor
        losses += _losses(pipeline.unet, schedule, latent_1CHW, text_1TD, _timesteps(draws), index)
    return float(np.mean(losses))


def _timesteps(draws: int) -> list[int]:
    return np.linspace(20, 980, draws).astype(int).tolist()


def _losses(
    unet: torch.nn.Module,
    schedule: DDPMScheduler,
    latent_1CHW: Tensor,
    text_1TD: Tensor,
    times: Sequence[int],
    seed: int,
) -> list[float]:
    """The loss at each timestep, a small batch at a time."""
    noise_NCHW = torch.randn((len(times), *latent_1CHW.shape[1:]), generator=torch.Generator().manual_seed(seed))
    found: list[float] = []
    for start in range(0, len(times), 4):
        times_B = torch.tensor(times[start : start + 4], device=latent_1CHW.device)
        noise_BCHW = noise_NCHW[start : start + 4].to(latent_1CHW.device)
        noisy_BCHW = schedule.add_noise(latent_1CHW.expand_as(noise_BCHW), noise_BCHW, times_B).to(text_1TD.dtype)
        said_BCHW = unet(noisy_BCHW, times_B, text_1TD.expand(len(times_B), -1, -1), return_dict=False)[0].float()
        found += F.mse_loss(said_BCHW, noise_BCHW, reduction="none").mean(dim=(1, 2, 3)).tolist()
    return found

"""DDIM inversion: a picture run back to the noise that its caption would make it from, then forward by another."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from PIL import Image
from torch import Tensor

from boothlab.diffusion.backbone import Backbone
from boothlab.diffusion.sampling import build_sampler
from boothlab.editing.fitting import Prepared
from boothlab.editing.pipelines import build_pipeline, draw, pictures, size_of
from boothlab.editing.requests import EditMethod, EditSettings, steps_run
from boothlab.quiet import quiet_libraries


class _Part:
    """Keeps the cleaner `kept` of a scheduler's timesteps, so that a picture goes only part of the way to noise."""

    kept: int
    timesteps: Tensor

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        super().set_timesteps(num_inference_steps, device)  # type: ignore[misc]
        self.timesteps = self._cleaner(self.timesteps)

    def _cleaner(self, timesteps: Tensor) -> Tensor:
        raise NotImplementedError


class PartialInverse(_Part, DDIMInverseScheduler):
    """From the picture towards noise."""

    def _cleaner(self, timesteps: Tensor) -> Tensor:
        return timesteps[: self.kept]


class PartialDdim(_Part, DDIMScheduler):
    """From there back to a picture."""

    def _cleaner(self, timesteps: Tensor) -> Tensor:
        return timesteps[-self.kept :]


def ddim_pair(backbone: Backbone, kept: int) -> tuple[Any, Any]:
    """The schedulers there and back, over the same timesteps."""
    config = dict(build_sampler("ddim", backbone.pipeline.scheduler.config).config)
    if config.get("timestep_spacing") not in ("leading", "trailing"):
        config["timestep_spacing"] = "leading"  # the inverse knows no other
    with quiet_libraries():
        pair = PartialInverse.from_config(config), PartialDdim.from_config(config)
    for scheduler in pair:
        scheduler.kept = kept
    return pair


def invert_and_edit(
    backbone: Backbone, batch: Sequence[Prepared], settings: EditSettings
) -> tuple[list[Image.Image], list[Image.Image]]:
    """The edited pictures, and the sources reconstructed by their own captions without guidance.

    `strength` says how far back the pictures go: 1 is all the way to noise.
    """
    inverse, forward = ddim_pair(backbone, steps_run(EditMethod.ddim_inversion, settings))
    backward, onward = build_pipeline(backbone, "", inverse), build_pipeline(backbone, "", forward)
    pixels = [backward.image_processor.preprocess(one.image) for one in batch]
    means_BCHW = torch.cat([backbone.encode_images(pixels_1CHW)[0] for pixels_1CHW in pixels])  # nothing is drawn
    latents_BCHW = means_BCHW.to(backbone.device, backbone.dtype)
    sources = [one.asked.source_caption or "" for one in batch]
    targets = [one.asked.target_caption or "" for one in batch]
    unguided = replace(settings, guidance_scale=1.0)  # with guidance, the way back would not be the way there
    size = size_of(batch)

    noise_BCHW = draw(backward, backbone, sources, batch, unguided, latents=latents_BCHW, **size)
    rebuilt_BCHW = draw(onward, backbone, sources, batch, unguided, latents=noise_BCHW, **size)
    edited_BCHW = draw(onward, backbone, targets, batch, settings, latents=noise_BCHW, **size)
    return pictures(backbone, edited_BCHW), pictures(backbone, rebuilt_BCHW)


def psnr(first: Image.Image, second: Image.Image) -> float:
    """Peak signal-to-noise ratio of two 8-bit pictures in dB; infinite for equal ones."""
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    error = float((difference**2).mean())
    return 10 * math.log10(255**2 / error) if error else math.inf

"""diffusers' own pipelines around the backbone's networks: nothing is loaded again and nothing shared is changed."""

import copy
import inspect
import logging
from collections.abc import Sequence
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from PIL import Image
from torch import Tensor

from boothlab.diffusion.backbone import Backbone
from boothlab.diffusion.sampling import Prompts, build_sampler, image_generator
from boothlab.editing.fitting import Prepared
from boothlab.editing.requests import EditSettings
from boothlab.images.grid import to_pil
from boothlab.quiet import quiet_libraries

log = logging.getLogger(__name__)


class FullPrecisionVae(AutoencoderKL):
    """The backbone's VAE, computing in float32 between half-precision latents; pipelines cannot cast it.

    Pipelines hand the VAE images in the UNet's precision, and SDXL's would cast the VAE itself to and fro.
    """

    outer: torch.dtype

    @property
    def dtype(self) -> torch.dtype:
        """What it takes and gives."""
        return self.outer

    def to(self, *args: Any, **kwargs: Any) -> "FullPrecisionVae":
        """Stays as it is."""
        return self

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """The latents' distribution, computed in float32."""
        with torch.autocast(x.device.type, enabled=False):
            moments = super().encode(x.float()).latent_dist.parameters
        posterior = DiagonalGaussianDistribution(moments.to(self.outer))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)


def pipeline_vae(backbone: Backbone) -> AutoencoderKL:
    """The VAE as pipelines are given it: itself in float32, else a view of it that shares its weights."""
    if backbone.dtype == torch.float32:
        return backbone.vae
    view = copy.copy(backbone.vae)
    view.__class__ = FullPrecisionVae
    view.outer = backbone.dtype
    view.register_to_config(force_upcast=False)
    return view


def four_channels(backbone: Backbone) -> Any:
    """The UNet as inpainting pipelines want it: they ask for four channels, and mask latents of any number."""
    unet = backbone.unet
    if unet.config.in_channels == 4:
        return unet
    view = copy.copy(unet)  # the weights and adapters are shared, the config is its own
    view.register_to_config(in_channels=4)
    return view


def build_scheduler(backbone: Backbone, name: str | None) -> Any:
    """A fresh scheduler by our name, or one like the model's own."""
    own = backbone.pipeline.scheduler
    if name is not None:
        return build_sampler(name, own.config)
    with quiet_libraries():
        return type(own).from_config(own.config)


def build_pipeline(backbone: Backbone, name: str, scheduler: Any, **parts: Any) -> Any:
    """`StableDiffusion<name>Pipeline`, or `StableDiffusionXL<name>Pipeline`, of the backbone's parts and `parts`."""
    family = "StableDiffusionXL" if backbone.is_sdxl else "StableDiffusion"
    with quiet_libraries():  # the class's module is only imported now, and says what it misses
        pipeline_class = getattr(diffusers, f"{family}{name}Pipeline")
    given = {**backbone.pipeline.components, "vae": pipeline_vae(backbone), "scheduler": scheduler, **parts}
    given |= {"requires_safety_checker": False, "add_watermarker": False}
    given["force_zeros_for_empty_prompt"] = backbone.pipeline.config.get("force_zeros_for_empty_prompt", True)
    accepted = inspect.signature(pipeline_class.__init__).parameters
    with quiet_libraries():
        pipeline = pipeline_class(**{key: value for key, value in given.items() if key in accepted})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(
    pipeline: Any, backbone: Backbone, prompts: Sequence[str], batch: Sequence[Prepared], settings: EditSettings,
    **arguments: Any,
) -> Tensor:  # fmt: skip
    """Run a pipeline on a batch, each image with its own generator; returns latents.

    Latents, and not images: pipelines would hand half-precision latents to the float32 VAE, and fail.
    """
    with quiet_libraries():
        drawn: Tensor = pipeline(
            **{
                **Prompts(backbone, settings.negative_prompt).arguments(prompts),
                "num_inference_steps": settings.steps,
                "guidance_scale": settings.guidance_scale,
                "generator": [image_generator(one.asked.seed) for one in batch],
                "output_type": "latent",
                **arguments,
            }
        ).images
    return drawn


def size_of(batch: Sequence[Prepared]) -> dict[str, int]:
    """Height and width of a batch, as pipelines want them."""
    return {"height": batch[0].image.height, "width": batch[0].image.width}


def pictures(backbone: Backbone, latents_BCHW: Tensor) -> list[Image.Image]:
    """Latents as 8-bit pictures. Those that are not finite come out black, with a warning."""
    images_BCHW = backbone.decode_latents(latents_BCHW)
    broken = int((~images_BCHW.isfinite()).flatten(1).any(1).sum())
    if broken:
        log.warning("%d of %d images are not finite numbers and come out black", broken, len(images_BCHW))
    levels = images_BCHW.nan_to_num(0.0).mul(255).round().to(torch.uint8).cpu()
    return [to_pil(pixels_CHW) for pixels_CHW in levels]

"""Images from prompts and seeds: batched, each image with its own generator, by a named sampler."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor

from boothlab.diffusion.backbone import Backbone, TextEmbedding
from boothlab.errors import UserError
from boothlab.quiet import quiet_libraries

log = logging.getLogger(__name__)
#: our name: diffusers' class and what it changes of the model's own schedule. Latents are never clipped to [-1, 1].
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": False}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
}


@dataclass(frozen=True)
class SamplerSettings:
    """How images are drawn: sampler name, its steps, guidance, negative prompt, images denoised together."""

    scheduler: str
    steps: int
    guidance_scale: float
    negative_prompt: str = ""
    batch_size: int = 8


@dataclass(frozen=True)
class Request:
    """One image to draw: its prompt and its seed. Nothing else of the batch it lands in can change it."""

    prompt: str
    seed: int


def build_sampler(name: str, config: Any) -> Any:
    """A diffusers scheduler by our name, on the model's own noise schedule. Raises UserError for an unknown name."""
    if name not in SAMPLERS:
        raise UserError(f"scheduler={name}: is not known; choose one of {', '.join(SAMPLERS)}")
    class_name, changes = SAMPLERS[name]
    with quiet_libraries():
        return getattr(diffusers, class_name).from_config(config, **changes)


class Prompts:
    """Prompts as a pipeline's keyword arguments, embedded one by one and remembered."""

    def __init__(self, backbone: Backbone, negative_prompt: str):
        self.backbone, self.negative_prompt = backbone, negative_prompt
        self._embeddings: dict[str, TextEmbedding] = {}

    def forget(self) -> None:
        """Drop remembered embeddings: call when the text encoders have changed."""
        self._embeddings.clear()

    def _embed(self, prompts: Sequence[str]) -> TextEmbedding:
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._embeddings:  # one by one: in a batch, the last bits would depend on the others
                self._embeddings[prompt] = self.backbone.embed(self.backbone.tokenize([prompt]))
        return TextEmbedding.cat([self._embeddings[prompt] for prompt in prompts])

    def _embed_negative(self, count: int) -> TextEmbedding:
        embedding = self._embed([self.negative_prompt] * count)
        # SDXL was trained to hear nothing as zeros, and not as the empty text; its pipeline does the same.
        if not self.negative_prompt and self.backbone.pipeline.config.get("force_zeros_for_empty_prompt"):
            pooled = embedding.pooled_BP
            return TextEmbedding(
                torch.zeros_like(embedding.states_BTD), None if pooled is None else torch.zeros_like(pooled)
            )
        return embedding

    @torch.no_grad()
    def arguments(self, prompts: Sequence[str]) -> dict[str, Any]:
        """`prompt_embeds`, `negative_prompt_embeds` and for SDXL the pooled ones, a row a prompt."""
        positive = self._embed(prompts)
        negative = self._embed_negative(len(prompts))
        arguments = {"prompt_embeds": positive.states_BTD, "negative_prompt_embeds": negative.states_BTD}
        if positive.pooled_BP is not None and negative.pooled_BP is not None:
            arguments |= {
                "pooled_prompt_embeds": positive.pooled_BP,
                "negative_pooled_prompt_embeds": negative.pooled_BP,
            }
        return arguments


class Sampler:
    """Draws images with a backbone as it is now, adapter included; never touches a global generator.

    An image's noise comes from its own seed alone, so that image k of a batch can be made again without the others
    (diffusers #612, #3158). Networks are put in eval mode and back; their dtypes are left alone.
    """

    def __init__(self, backbone: Backbone, settings: SamplerSettings):
        self.backbone, self.settings = backbone, settings
        self._prompts = Prompts(backbone, settings.negative_prompt)
        build_sampler(settings.scheduler, backbone.pipeline.scheduler.config)  # a wrong name fails now, not mid-run

    def forget_prompts(self) -> None:
        """Drop remembered prompt embeddings: call when the text encoders have changed."""
        self._prompts.forget()

    @torch.no_grad()
    def _draw_batch(self, requests: Sequence[Request]) -> Tensor:
        backbone, settings = self.backbone, self.settings
        with self._ready():
            # Latents, and not images: the pipeline would hand half-precision latents to the float32 VAE, and fail.
            latents_BCHW = backbone.pipeline(
                **self._prompts.arguments([request.prompt for request in requests]),
                height=backbone.resolution,
                width=backbone.resolution,
                num_inference_steps=settings.steps,
                guidance_scale=settings.guidance_scale,
                generator=[image_generator(request.seed) for request in requests],
                output_type="latent",
            ).images
            images_BCHW = backbone.decode_latents(latents_BCHW)
        broken = int((~images_BCHW.isfinite()).flatten(1).any(1).sum())
        if broken:
            log.warning("%d of %d images are not finite numbers and come out black", broken, len(requests))
        return images_BCHW.nan_to_num(0.0).mul(255).round().to(torch.uint8).cpu()

    @contextmanager
    def _ready(self) -> Iterator[None]:
        """The sampler's scheduler and eval mode for one batch; everything is as it was afterwards, whatever happens."""
        pipeline, scheduler = self.backbone.pipeline, self.backbone.pipeline.scheduler
        networks = [self.backbone.unet, *self.backbone.text_encoders.values()]
        modes = [(module, module.training) for network in networks for module in network.modules()]
        try:
            pipeline.scheduler = build_sampler(self.settings.scheduler, scheduler.config)
            for network in networks:
                network.eval()
            with self._arithmetic():
                yield
        finally:
            pipeline.scheduler = scheduler
            for module, mode in modes:
                module.training = mode

    def _arithmetic(self) -> AbstractContextManager[Any]:
        """Networks that are trained whole are float32 in a half-precision backbone: computed with as in training."""
        backbone = self.backbone
        if all(network.dtype == backbone.dtype for network in (backbone.unet, *backbone.text_encoders.values())):
            return nullcontext()
        return torch.autocast(backbone.device.type, dtype=backbone.dtype)

    def batches(self, requests: Sequence[Request]) -> Iterator[Tensor]:
        """Draw the images, a uint8 [B, 3, H, W] tensor a batch, in the order asked for."""
        for start in range(0, len(requests), self.settings.batch_size):
            yield self._draw_batch(requests[start : start + self.settings.batch_size])

    def draw(self, requests: Sequence[Request], progress: Callable[[int], None] | None = None) -> Tensor:
        """All images as one uint8 [N, 3, H, W] tensor; `progress` is told how many more are done."""
        done = []
        for batch in self.batches(requests):
            done.append(batch)
            if progress:
                progress(len(batch))
        shape = (0, 3, self.backbone.resolution, self.backbone.resolution)
        return torch.cat(done) if done else torch.empty(shape, dtype=torch.uint8)


def image_generator(seed: int) -> torch.Generator:
    """The generator of one image: `torch.Generator().manual_seed(seed)`, so that other tools make the same image."""
    return torch.Generator(device="cpu").manual_seed(seed)

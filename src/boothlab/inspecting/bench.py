"""What all parts work with: the backbone, whose adapter can be lifted off, the encoders, photos and samples."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from torch import Tensor

from boothlab.diffusion.backbone import Backbone
from boothlab.diffusion.sampling import Request, Sampler, SamplerSettings
from boothlab.evaluation.fidelity import strip_token
from boothlab.evaluation.results import GeneratedImage
from boothlab.evaluation.scoring import Scorer
from boothlab.images.grid import to_pil
from boothlab.tracking import metrics


@contextmanager
def bare(backbone: Backbone) -> Iterator[None]:
    """The backbone without its adapter for the time of this block: its layers compute as they did before it."""
    networks = (backbone.unet, *backbone.text_encoders.values())
    layers = [one for network in networks for one in network.modules() if isinstance(one, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for network in networks:
            network.requires_grad_(False)  # enabling also makes them trainable


@dataclass
class Bench:
    """One run on the table. The adapter is on; `base` and `tuned` say with which an image is drawn.

    `prompt` and `prompts` are full texts with the token. `ceilings` are those the run itself logged.
    """

    backbone: Backbone
    settings: SamplerSettings
    scorer: Scorer
    photos: Sequence[Image.Image]
    prompt: str
    instance_prompt: str
    class_prompt: str
    seed: int
    suffix: str
    load_samples: Callable[["Bench"], list[GeneratedImage]]

    def draw(self, requests: Sequence[Request], *, adapter: bool = True) -> Tensor:
        """Images uint8 [N, 3, H, W], with the adapter or by the base model, from the same seeds' noise."""
        if adapter:
            return Sampler(self.backbone, self.settings).draw(requests)
        with bare(self.backbone):
            return Sampler(self.backbone, self.settings).draw(requests)

    def key(self, key: str) -> str:
        """A score's metric key; scores of miniature or unusual encoders carry the encoder's name."""
        return metrics.variant(key, self.suffix) if self.suffix else key

    def without_token(self, prompt: str) -> str:
        """The prompt as CLIP is asked about it."""
        return strip_token(prompt, self.scorer.token) or prompt

    @property
    def encoders(self) -> str:
        """A word on the encoders for captions; empty for the published ones."""
        return f" ({self.suffix} encoders)" if self.suffix else ""

    @cached_property
    def samples(self) -> list[GeneratedImage]:
        """The run's own last images, or the same drawn now if the run kept none."""
        return self.load_samples(self)

    @cached_property
    def sample_features(self) -> tuple[Tensor, Tensor]:
        """CLIP's and DINO's features of the samples, unit float32 [N, D] each."""
        pixels = [one.pixels_CHW for one in self.samples]
        return self.scorer.clip.encode_images(pixels), self.scorer.dino.encode_images(pixels)


def pil(images_BCHW: Tensor) -> list[Image.Image]:
    """Pictures of uint8 images [B, 3, H, W]."""
    return [to_pil(image) for image in images_BCHW]


def as_bytes(images_BCHW: Tensor) -> Tensor:
    """[0, 1] images as uint8, rounded; what is no number comes out black."""
    return images_BCHW.nan_to_num(0.0).clamp(0, 1).mul(255).round().to(torch.uint8).cpu()

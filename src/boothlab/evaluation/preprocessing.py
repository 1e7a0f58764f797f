"""From pixels to an encoder's input: the named resize, crop and normalisation, done with PIL as in the papers."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from boothlab.errors import UserError

Images = Tensor | Sequence[Tensor]
"""uint8 [B, 3, H, W], or float [B, 3, H, W] in [-1, 1], or a sequence of uint8 [3, H, W] of any sizes."""

Triple = tuple[float, float, float]
CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
PUBLISHED_IMAGE_SIZE = 224


class Preset(StrEnum):
    """Whose preprocessing an encoder was trained with."""

    CLIP = "clip"
    DINO = "dino"


@dataclass(frozen=True)
class Preprocessing:
    """Bicubic resize of the short side to `resize` px, centre crop of `crop` px, (c - mean) / std for c in [0, 1]."""

    name: str
    resize: int
    crop: int
    mean: Triple
    std: Triple

    def __post_init__(self) -> None:
        if not 0 < self.crop <= self.resize:
            raise ValueError(f"{self.name}: the crop ({self.crop}) must be in 1..resize ({self.resize})")

    def __call__(self, images: Images) -> Tensor:
        """`images` (see `Images`) → float32 [B, 3, crop, crop] on the CPU. UserError for non-finite pixels."""
        pixels_CHW = [self._one(image_CHW) for image_CHW in to_uint8(images)]
        if not pixels_CHW:
            return torch.empty(0, 3, self.crop, self.crop)
        return torch.stack(pixels_CHW)

    def _one(self, image_CHW: Tensor) -> Tensor:
        cropped = self.resize_and_crop(Image.fromarray(image_CHW.permute(1, 2, 0).contiguous().numpy()))
        pixels_CHW = torch.from_numpy(np.array(cropped)).permute(2, 0, 1).to(torch.float32) / 255
        return (pixels_CHW - torch.tensor(self.mean).view(3, 1, 1)) / torch.tensor(self.std).view(3, 1, 1)

    def resize_and_crop(self, image: Image.Image) -> Image.Image:
        """An RGB image → crop × crop. Rounds as torchvision does (long side down, crop offset half to even)."""
        width, height = image.size
        short = min(width, height)
        if short != self.resize:
            size = (self.resize * width // short, self.resize * height // short)
            image = image.resize(size, Image.Resampling.BICUBIC)
        left, top = round((image.width - self.crop) / 2), round((image.height - self.crop) / 2)
        return image.crop((left, top, left + self.crop, top + self.crop))


def preset(family: Preset, image_size: int) -> Preprocessing:
    """The published preprocessing at 224 px; for other input sizes, short side to `image_size` and a crop of the same.

    OpenAI CLIP: resize 224, crop 224. DINO (Caron et al. 2021, arXiv 2104.14294, eval code): resize 256, crop 224.
    The values are ours and never a hub folder's preprocessor_config.json: `facebook/dino-vits16` ships a wrong one.
    """
    family = Preset(family)
    resize = 256 if family is Preset.DINO and image_size == PUBLISHED_IMAGE_SIZE else image_size
    mean, std = (CLIP_MEAN, CLIP_STD) if family is Preset.CLIP else (IMAGENET_MEAN, IMAGENET_STD)
    return Preprocessing(f"{family}-bicubic{resize}-crop{image_size}", resize, image_size, mean, std)


def to_uint8(images: Images) -> list[Tensor]:
    """Every accepted form of `images` → a list of CPU uint8 [3, H, W].

    Float images are rounded to 8 bits first, so an image scores the same before and after it is saved as PNG.
    Raises ValueError for a wrong shape or type and UserError for NaN or infinite pixels.
    """
    if isinstance(images, Tensor):
        if images.ndim != 4:
            raise ValueError(f"images must be [B, 3, H, W] or a sequence of [3, H, W], not {list(images.shape)}")
        if images.is_floating_point():
            images = _round_to_uint8(images)
    unpacked = [image_CHW.detach().cpu() for image_CHW in images]
    for image_CHW in unpacked:
        right_shape = image_CHW.ndim == 3 and image_CHW.shape[0] == 3 and image_CHW.numel() > 0
        if not right_shape or image_CHW.dtype != torch.uint8:
            raise ValueError(f"each image must be uint8 [3, H, W], not {image_CHW.dtype} {list(image_CHW.shape)}")
    return unpacked


def _round_to_uint8(images_BCHW: Tensor) -> Tensor:
    if not torch.isfinite(images_BCHW).all():
        raise UserError(
            "images hold NaN or infinite pixels: the model that made them diverged; lower the learning rate"
        )
    return ((images_BCHW.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

"""Sizes: pictures are padded to what the networks can take, and the edited ones cropped back."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from boothlab.editing.requests import EditInput


@dataclass(frozen=True)
class Prepared:
    """One input as the networks take it: image, mask and maps padded alike; `shown` are the maps before padding."""

    asked: EditInput
    image: Image.Image
    mask: Image.Image | None
    maps: Mapping[str, Image.Image]
    shown: Mapping[str, Image.Image]
    notes: tuple[str, ...]

    def cropped(self, image: Image.Image) -> Image.Image:
        """An image of the padded size, at the size of the source."""
        return image.crop((0, 0, *self.asked.image.size))


def padded_size(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    """The smallest multiple that holds each side."""
    width, height = (multiple * math.ceil(side / multiple) for side in size)
    return width, height


def pad(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Grown to the right and below by its mirror image, or by its last pixels where it is too small for that."""
    if image.size == size:
        return image
    right, below = size[0] - image.width, size[1] - image.height
    pixels = np.asarray(image)
    mode = "reflect" if right < image.width and below < image.height else "edge"
    widths = [(0, below), (0, right)] + [(0, 0)] * (pixels.ndim - 2)
    return Image.fromarray(np.pad(pixels, widths, mode=mode))  # type: ignore[call-overload]


def prepare(asked: EditInput, mask: Image.Image | None, maps: Mapping[str, Image.Image], multiple: int) -> Prepared:
    """The input with the mask and maps it needs, padded. A mask is mirrored with what it covers, so that none stays."""
    before, size = asked.image.size, padded_size(asked.image.size, multiple)
    notes: tuple[str, ...] = ()
    if before != size:
        notes = (f"padded from {before[0]}×{before[1]} to {size[0]}×{size[1]} and cropped back",)
    padded = {kind: pad(picture, size) for kind, picture in maps.items()}
    return Prepared(asked, pad(asked.image, size), None if mask is None else pad(mask, size), padded, dict(maps), notes)


def unit_tensor(images: list[Image.Image]) -> Tensor:
    """Pictures of one size and mode to one float32 [B, C, H, W] tensor in [0, 1], as diffusers makes it of PIL."""
    pixels = np.stack([np.asarray(image) for image in images]).astype(np.float32) / 255.0
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())

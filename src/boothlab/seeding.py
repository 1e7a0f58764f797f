"""Seeds are streams: every source of chance has its own generator, derived from (seed, stream name, indices).

No stream can disturb another: evaluating more often, or reusing class images instead of generating them, leaves
the weights bit for bit the same. Nothing in boothlab draws from a global generator.
"""

import hashlib
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # deriving a seed takes no torch, and a report that resamples should not wait for it
    import torch


class Stream(StrEnum):
    """The named sources of chance in a run."""

    LORA_INIT = "lora_init"
    DATA_ORDER = "data_order"
    AUGMENTATION = "augmentation"
    NOISE = "noise"
    TIMESTEPS = "timesteps"
    VAE = "vae"
    DROPOUT = "dropout"
    CLASS_IMAGES = "class_images"
    EVALUATION = "evaluation"


def derive_seed(seed: int, stream: str, *indices: int | str) -> int:
    """A 63-bit seed from the run's seed, the stream's name and any indices (step, image number, …).

    SHA-256 over an unambiguous text, so the value is the same on every platform and in every Python version.
    """
    text = "\x1f".join([str(int(seed)), str(stream), *(str(index) for index in indices)])
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") >> 1


def generator(seed: int, stream: str, *indices: int | str) -> "torch.Generator":
    """A CPU generator for one stream at one place. CPU always, so that results do not depend on the device."""
    import torch

    return torch.Generator(device="cpu").manual_seed(derive_seed(seed, stream, *indices))

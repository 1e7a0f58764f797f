"""Perceptual distance between images and DIV, the diversity of the images of one prompt.

The formula is LPIPS (Zhang et al. 2018, arXiv 1801.03924, eq. 1) with uniform weights. The paper's own backbone and
learned weights (AlexNet, as in the `lpips` package) come only through torchvision, which this project does not use, so
the distance runs over the hidden layers of a named ViT instead. Its values are comparable with each other, not with
published LPIPS figures; the name `lpips-uniform/<encoder>` says so in every result row.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from boothlab.evaluation.encoders import PatchEncoder
from boothlab.evaluation.preprocessing import Images

EPS = 1e-10
"""Keeps an all-zero position at zero, as LPIPS's own normalisation does."""


def distance_name(encoder: PatchEncoder) -> str:
    """What the distance is called in a result row."""
    return f"lpips-uniform/{encoder.name}"


def perceptual_distance(features_LND: Tensor, others_LND: Tensor) -> float:
    """Features [L, N, D] of two images → distance in [0, 4], 0 for equal features.

    Unit-normalised along D at each position, squared difference summed over D, then the mean over the N positions and
    the L layers. (eq. 1 sums over layers; the mean keeps ViTs of different depth on one scale.)
    """
    if features_LND.shape != others_LND.shape:
        raise ValueError(f"features differ in shape: {list(features_LND.shape)} and {list(others_LND.shape)}")
    unit_LND = normalize(features_LND.to(torch.float32), dim=-1, eps=EPS)
    others_unit_LND = normalize(others_LND.to(torch.float32), dim=-1, eps=EPS)
    return float((unit_LND - others_unit_LND).square().sum(dim=-1).mean())


def pairwise_distances(features_BLND: Tensor) -> list[float]:
    """Features [B, L, N, D] of B images → the distances of the B·(B-1)/2 unordered pairs of different images."""
    return [perceptual_distance(one, other) for one, other in itertools.combinations(features_BLND, 2)]


def diversity(encoder: PatchEncoder, images: Images) -> float | None:
    """DIV (DreamBooth §4.3): mean pairwise distance between the images of ONE prompt; None for fewer than two."""
    if len(images) < 2:
        return None
    distances = pairwise_distances(encoder.encode_patches(images))
    return math.fsum(distances) / len(distances)


def mean_diversity(per_prompt: Sequence[float | None]) -> float | None:
    """Mean of the prompts' DIV over those that have one; None when none has."""
    known = [value for value in per_prompt if value is not None]
    return math.fsum(known) / len(known) if known else None

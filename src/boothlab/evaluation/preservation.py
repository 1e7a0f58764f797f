"""How far two pictures are apart inside one area of the frame: MSE, PSNR, SSIM and perceptual distance over a mask.

Each is over exactly the pixels that count: what lies elsewhere cannot change it. PIE-Bench (Ju et al. 2023, arXiv
2310.01506) instead blackens what does not count and averages over the whole frame, which makes a small background look
well kept: its PSNR is too high by -10·log10(share of background). `blackened` gives that variant.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import conv2d, normalize, pad

from boothlab.evaluation.edit_metrics import PSNR_CAP
from boothlab.evaluation.perceptual import EPS

Picture = NDArray[np.uint8]
"""uint8 [H, W, 3]."""
Area = NDArray[np.bool_]
"""bool [H, W]; True where a pixel counts."""

SSIM_RADIUS, SSIM_SIGMA = 5, 1.5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2
SMALLEST_SIDE = SSIM_RADIUS + 1
"""px. SSIM mirrors the picture at its edges, and a smaller one has not enough to mirror."""


def absolute_error(one: Picture, other: Picture) -> float:
    """Mean absolute difference over all pixels and colours, on [0, 1]: MagicBrush's L1."""
    return float(np.abs(_levels(one) - _levels(other)).mean())


def squared_error(one: Picture, other: Picture, area: Area | None = None) -> float:
    """Mean squared difference over the pixels of `area` (all by default) and the colours, on [0, 1].

    ValueError for an empty area.
    """
    squares = np.square(_levels(one) - _levels(other))
    counted = squares if area is None else squares[area]
    if counted.size == 0:
        raise ValueError("no pixel counts")
    return float(counted.mean())


def psnr(mean_squared_error: float) -> float:
    """Peak signal-to-noise ratio in dB for values on [0, 1], at most PSNR_CAP, which equal pixels have."""
    if mean_squared_error <= 0:
        return PSNR_CAP
    return min(-10 * math.log10(mean_squared_error), PSNR_CAP)


def ssim(one: Picture, other: Picture, area: Area | None = None) -> float | None:
    """Mean SSIM (Wang et al. 2004) over the pixels of `area` (all by default) and the colours, in [-1, 1].

    Gaussian window 11 × 11, σ 1.5, edges mirrored. The means and variances of a window are over its counted pixels
    alone (normalised convolution), so nothing leaks in over the border of the area; over the whole frame this is the
    usual SSIM. None for pictures under SMALLEST_SIDE px. ValueError for an empty area.
    """
    if min(one.shape[:2]) < SMALLEST_SIDE:
        return None
    # Torch takes no mirrored views, hence the copy.
    counted = np.ones(one.shape[:2], dtype=np.bool_) if area is None else np.ascontiguousarray(area)
    if not counted.any():
        raise ValueError("no pixel counts")
    one_C1HW, other_C1HW = (torch.from_numpy(_levels(image)).permute(2, 0, 1)[:, None] for image in (one, other))
    weights_11HW = torch.from_numpy(counted.astype(np.float64))[None, None]
    sums = _window_sums(
        torch.cat([weights_11HW, *(weights_11HW * term for term in _moments(one_C1HW, other_C1HW))]), SSIM_SIGMA
    )
    # Where no pixel of a window counts the sums are zero, and the place itself is left out below.
    means = sums[1:] / sums[:1].clamp(min=torch.finfo(torch.float64).tiny)
    mean_one, mean_other, square_one, square_other, product = means.split(len(one_C1HW))
    variance = (square_one - mean_one.square()).clamp(min=0) + (square_other - mean_other.square()).clamp(min=0)
    covariance = product - mean_one * mean_other
    luminance = (2 * mean_one * mean_other + SSIM_C1) / (mean_one.square() + mean_other.square() + SSIM_C1)
    similarity_CHW = (luminance * (2 * covariance + SSIM_C2) / (variance + SSIM_C2))[:, 0]
    return float(similarity_CHW[:, torch.from_numpy(counted)].mean())


def area_distance(features_LND: Tensor, others_LND: Tensor, shares_N: Tensor) -> float | None:
    """Perceptual distance (see perceptual.py) with each of the N positions counting by its share in [0, 1].

    With all shares equal this is `perceptual_distance`. None when no position counts.
    """
    total = float(shares_N.sum())
    if total <= 0:
        return None
    unit_LND = normalize(features_LND.to(torch.float32), dim=-1, eps=EPS)
    others_unit_LND = normalize(others_LND.to(torch.float32), dim=-1, eps=EPS)
    distances_N = (unit_LND - others_unit_LND).square().sum(dim=-1).mean(dim=0)
    return float((distances_N.double() * shares_N.double()).sum() / total)


def blackened(image: Picture, area: Area) -> Picture:
    """The picture with every pixel outside `area` set to 0."""
    return np.where(area[..., None], image, np.uint8(0))


def composite(image: Picture, elsewhere: Picture, area: Area) -> Picture:
    """`image` inside `area` and `elsewhere` outside it.

    A ViT's features at one place depend on the whole picture. With the rest taken from the other picture, only what
    differs inside the area can make a distance.
    """
    return np.where(area[..., None], image, elsewhere)


def _levels(image: Picture) -> NDArray[np.float64]:
    return image.astype(np.float64) / 255


def _moments(one: Tensor, other: Tensor) -> tuple[Tensor, ...]:
    return one, other, one.square(), other.square(), one * other


def _window_sums(planes_B1HW: Tensor, sigma: float) -> Tensor:
    """Gaussian-weighted sums over the window around each pixel; the weights sum to 1."""
    offsets = torch.arange(-SSIM_RADIUS, SSIM_RADIUS + 1, dtype=planes_B1HW.dtype)
    weights = torch.exp(-offsets.square() / (2 * sigma**2))
    weights = weights / weights.sum()
    mirrored = pad(planes_B1HW, (SSIM_RADIUS,) * 4, mode="reflect")
    return conv2d(conv2d(mirrored, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))

"""Photos through the VAE and back: what no training of the UNet can bring back."""

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from boothlab.evaluation.preservation import psnr, squared_error, ssim
from boothlab.images.grid import build_grid
from boothlab.images.load import fit
from boothlab.inspecting.bench import Bench, as_bytes, pil
from boothlab.inspecting.heat import colours
from boothlab.inspecting.sections import Fact, Picture, Section, Table
from boothlab.tracking import metrics

ABOUT = (
    "The diffusion model never sees pixels, only the VAE's latents. This is each photo encoded (to the mean of its "
    "latents) and decoded again: a ceiling on detail that no adapter can lift. The error is the absolute "
    "difference, the mean over colours."
)


def round_trip(bench: Bench, photos: list[Image.Image]) -> tuple[Tensor, Tensor]:
    """The photos as the model takes them and what comes back, both uint8 [N, 3, H, W]."""
    before, after = [], []
    for photo in photos:  # one at a time, since a real VAE fills the memory
        pixels_CHW = fit(photo, bench.backbone.resolution).pixels_CHW
        latents, _ = bench.backbone.encode_images(pixels_CHW[None])
        before.append(as_bytes(pixels_CHW[None] * 0.5 + 0.5))
        after.append(as_bytes(bench.backbone.decode_latents(latents)))
    return torch.cat(before), torch.cat(after)


def vae(bench: Bench) -> Section:
    """Photo, reconstruction and error, with PSNR and SSIM."""
    before, after = round_trip(bench, list(bench.photos))
    pairs = [
        (one.permute(1, 2, 0).numpy(), other.permute(1, 2, 0).numpy()) for one, other in zip(before, after, strict=True)
    ]
    scores = [psnr(squared_error(one, other)) for one, other in pairs]
    alike = [ssim(one, other) for one, other in pairs]
    errors = [np.abs(one.astype(np.float64) - other.astype(np.float64)).mean(axis=2) / 255 for one, other in pairs]
    highest = max(float(error.max()) for error in errors)
    maps = [Image.fromarray(colours(error, 0.0, highest)) for error in errors]
    rows = [("photo", pil(before)), ("decoded again", pil(after)), (f"error, black 0 to white {highest:.2f}", maps)]
    names = [f"photo {place}\n{score:.1f} dB" for place, score in enumerate(scores)]
    section = Section("vae", "VAE round trip", ABOUT)
    shape = bench.backbone.latent_shape
    section.pictures.append(Picture("vae", build_grid(rows, names, [], f"VAE round trip, latents {_times(shape)}"), ""))
    section.facts += _facts(bench, scores)
    table = [
        [place, score, same, float(error.mean()), float(error.max())]
        for place, (score, same, error) in enumerate(zip(scores, alike, errors, strict=True))
    ]
    section.tables.append(
        Table("vae", "Each photo", ["photo", "PSNR in dB", "SSIM", "mean error", "largest error"], table)
    )
    section.numbers[metrics.INSPECT_VAE_PSNR] = math.fsum(scores) / len(scores)
    return section


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _facts(bench: Bench, scores: list[float]) -> list[Fact]:
    channels, height, width = bench.backbone.latent_shape
    side = bench.backbone.resolution
    fewer = 3 * side * side / (channels * height * width)
    return [
        Fact("PSNR, the mean", f"{math.fsum(scores) / len(scores):.1f} dB", f"{min(scores):.1f} to {max(scores):.1f}"),
        Fact("downsampling factor", f"{side // height} ×", f"{side} × {side} px to {height} × {width}"),
        Fact("numbers fewer by", f"{fewer:.0f} ×", f"3 colours to {channels} channels"),
    ]

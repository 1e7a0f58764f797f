"""What each training step sees: cached latents and prompts, as a pure function of (seed, micro-step)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from PIL import Image
from torch import Tensor

from boothlab.cache import Cache
from boothlab.diffusion.backbone import Backbone
from boothlab.images.load import Crop, fit
from boothlab.seeding import Stream, derive_seed, generator

#: images the VAE encodes at once; another number may change the last bits
ENCODED_TOGETHER = 16
#: names what `variants_of` does to a picture; to be changed with it, so that no cached latent of another recipe is used
PREPROCESSING = "shorter side Lanczos, whole-pixel crop, mirror"


@dataclass(frozen=True)
class TrainingImage:
    """An upright RGB picture with the prompt it is trained under and the hash of its file."""

    image: Image.Image
    prompt: str
    sha256: str


@dataclass
class LatentTable:
    """Means and deviations of the latents of every variant of every picture; `rows[i]` are picture i's variants."""

    means_NCHW: Tensor
    stds_NCHW: Tensor
    rows: list[list[int]]
    prompts: list[str]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass
class Batch:
    """Latent means and deviations [B, C, h, w], the prompt of each sample, and which samples are class images."""

    means_BCHW: Tensor
    stds_BCHW: Tensor
    prompts: list[str]
    num_instance: int


def variants_of(
    item: TrainingImage, resolution: int, crop: Crop, flip: bool, variants: int, seed: int
) -> list[tuple[tuple[int, int, bool], Tensor]]:
    """The distinct crops and flips of one picture, each with its decision (left, top, flipped) and [-1, 1] pixels."""
    found: dict[tuple[int, int, bool], Tensor] = {}
    for index in range(variants):
        fitted = fit(item.image, resolution, crop, generator(seed, Stream.AUGMENTATION, item.sha256, index), flip)
        found.setdefault((fitted.left, fitted.top, fitted.flipped), fitted.pixels_CHW)
        if crop is Crop.CENTER and not flip:
            break
    return list(found.items())


def _pixels(
    items: Sequence[TrainingImage], resolution: int, crop: Crop, flip: bool, variants: int, seed: int, counts: list[int]
) -> Iterator[Tensor]:
    """Every variant of every picture, one after the other; notes in `counts` how many each picture has."""
    for item in items:
        cut = variants_of(item, resolution, crop, flip, variants, seed)
        counts.append(len(cut))
        yield from (pixels_CHW for _, pixels_CHW in cut)


def encode_images(
    backbone: Backbone,
    items: Sequence[TrainingImage],
    *,
    crop: Crop,
    flip: bool,
    variants: int,
    seed: int,
    cache: Cache,
    vae_identity: Mapping[str, str],
    batch_size: int = ENCODED_TOGETHER,
) -> LatentTable:
    """Encode every variant of every picture once; the cache is keyed by content, preprocessing and the VAE's hash."""

    def make() -> dict[str, Tensor]:
        counts: list[int] = []
        stream, parts = _pixels(items, backbone.resolution, crop, flip, variants, seed, counts), []
        while batch := list(islice(stream, batch_size)):  # a few at a time: all variants at 1024 pixels take gigabytes
            parts.append(backbone.encode_images(torch.stack(batch)))
        return {
            "means": torch.cat([mean for mean, _ in parts]),
            "stds": torch.cat([std for _, std in parts]),
            "counts": torch.tensor(counts),
        }

    chance = crop is Crop.RANDOM or flip
    key = {
        "images": [item.sha256 for item in items],
        "preprocessing": {"recipe": PREPROCESSING, "crop": crop.value, "flip": flip, "resolution": backbone.resolution},
        "chance": {"variants": variants, "seed": seed} if chance else None,
        "vae": dict(vae_identity),
        # Another thread count or device changes the last bits, and a rerun must be exact.
        "numerics": {"device": backbone.device.type, "threads": torch.get_num_threads()},
        **({} if batch_size == ENCODED_TOGETHER else {"encoded_together": batch_size}),
    }
    tensors = cache.get_or_make("latents", key, make)
    rows, start = [], 0
    for count in tensors["counts"].tolist():
        rows.append(list(range(start, start + count)))
        start += count
    return LatentTable(tensors["means"], tensors["stds"], rows, [item.prompt for item in items])


def draw_items(seed: int, name: str, size: int, count: int, step: int) -> list[tuple[int, int]]:
    """(item, epoch) of the `count` samples of micro-step `step`: shuffled passes over `size` items, back to back.

    A function of its arguments alone, so a resumed run needs no loader state to see what it would have seen.
    """
    order: dict[int, list[int]] = {}
    drawn = []
    for position in range(step * count, (step + 1) * count):
        epoch, place = divmod(position, size)
        if epoch not in order:
            order[epoch] = torch.randperm(size, generator=generator(seed, Stream.DATA_ORDER, name, epoch)).tolist()
        drawn.append((order[epoch][place], epoch))
    return drawn


class TrainingData:
    """The subject's latents and, with prior preservation, the class images': batch k of a run."""

    def __init__(self, instance: LatentTable, prior: LatentTable | None, batch_size: int, seed: int):
        self.instance, self.prior, self.batch_size, self.seed = instance, prior, batch_size, seed

    @property
    def prompts(self) -> list[str]:
        """Every prompt that training uses, once each, in a fixed order."""
        tables = [self.instance] + ([self.prior] if self.prior else [])
        return sorted({prompt for table in tables for prompt in table.prompts})

    def _rows(self, table: LatentTable, name: str, step: int) -> tuple[list[int], list[str]]:
        rows, prompts = [], []
        for item, epoch in draw_items(self.seed, name, len(table), self.batch_size, step):
            choices = table.rows[item]
            rows.append(choices[derive_seed(self.seed, Stream.AUGMENTATION, name, item, epoch) % len(choices)])
            prompts.append(table.prompts[item])
        return rows, prompts

    def batch(self, step: int) -> Batch:
        """The samples of micro-step `step`: `batch_size` of the subject, then as many class images if there are any."""
        rows, prompts = self._rows(self.instance, "instance", step)
        means, stds = [self.instance.means_NCHW[rows]], [self.instance.stds_NCHW[rows]]
        if self.prior is not None:
            rows, more = self._rows(self.prior, "prior", step)
            means.append(self.prior.means_NCHW[rows])
            stds.append(self.prior.stds_NCHW[rows])
            prompts = prompts + more
        return Batch(torch.cat(means), torch.cat(stds), prompts, self.batch_size)

"""Class images for prior preservation (DreamBooth §3.3): drawn once by the frozen backbone, then cached."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from boothlab.cache import Cache
from boothlab.diffusion.sampling import Request, Sampler
from boothlab.images.grid import save_png, to_pil
from boothlab.seeding import Stream, derive_seed


def class_images(
    sampler: Sampler,
    prompt: str,
    count: int,
    seed: int,
    cache: Cache,
    identity: Mapping[str, str],
    progress: Callable[[int], None] | None = None,
) -> Path:
    """A folder of `count` class images. Must be called before an adapter is attached.

    Keyed by everything that shapes them (weights, prompt, sampler, seed), so that a changed prompt can never meet
    stale images (sd_dreambooth_extension #346). Each has a seed of its own from the run's `class_images` stream.
    """

    def make(folder: Path) -> None:
        seeds = [derive_seed(seed, Stream.CLASS_IMAGES, index) for index in range(count)]
        images = sampler.draw([Request(prompt, s) for s in seeds], progress)
        for index, pixels in enumerate(images):
            save_png(folder / f"{index:04d}.png", to_pil(pixels))

    backbone, settings = sampler.backbone, sampler.settings
    drawn_by = {name: value for name, value in asdict(settings).items() if name != "batch_size"}
    key = {"prompt": prompt, "count": count, "seed": seed, "resolution": backbone.resolution, "sampler": drawn_by}
    return cache.get_or_make_files(
        "class-images", {**key, "weights": dict(identity), "dtype": str(backbone.dtype)}, make
    )

"""Captions of training photos by CLIP's tags: the labels of a list that it finds in each photo, kept in the cache."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import torch

import boothlab
from boothlab.building.shared import encoder_identity, shared_clip
from boothlab.cache import Cache
from boothlab.captioning.tags import Tagger, read_labels
from boothlab.config import CaptionSource, SubjectConfig
from boothlab.diffusion.backbone import DOLLHOUSE as WEIGHTS
from boothlab.files import write_text
from boothlab.images.audit import Photo
from boothlab.images.load import load_image, to_tensor

MINIATURE = "dollhouse"
STANDARD = "openai/clip-vit-base-patch32"
THRESHOLD, MINIATURE_THRESHOLD = 0.25, 0.38
"""As `models=standard` and `models=dollhouse` of `boothlab caption` have them: the miniature's cosines are higher."""


def tag_source(config: SubjectConfig) -> str:
    """The CLIP that tags: `dollhouse`, a local folder or a hub id."""
    return config.tag_clip or (MINIATURE if config.images.startswith("dollhouse:") else STANDARD)


def _location(source: str) -> str:
    return str(WEIGHTS / "clip") if source == MINIATURE else source


def tagger_identity(config: SubjectConfig) -> dict[str, dict[str, str]]:
    """What the tagging CLIP is, for the manifest; nothing where captions are not made of tags."""
    if config.captions_from is not CaptionSource.tags:
        return {}
    return {"tagger": encoder_identity(_location(tag_source(config)), None)}


def tag_captions(config: SubjectConfig, photos: Sequence[Photo], cache: Cache) -> Path:
    """A folder of the cache with NAME.txt for each photo: its tags, best first, as `boothlab caption` writes them.

    Always on the CPU, so that every machine trains on the same captions. Photos of one name share the first's, as they
    share a side-car. Raises UserError for a label list or a CLIP that cannot be used.
    """
    lists = [read_labels(name) for name in config.tag_labels or [MINIATURE]]
    labels = list(dict.fromkeys(label for one in lists for label in one.labels))
    source = tag_source(config)
    if not Path(_location(source)).expanduser().is_dir():
        shared_clip(_location(source), None, torch.device("cpu"))  # only then is it known which revision it is
    by_default = MINIATURE_THRESHOLD if source == MINIATURE else THRESHOLD
    threshold = by_default if config.tag_threshold is None else config.tag_threshold
    by_name: dict[str, Photo] = {}
    for photo in photos:
        by_name.setdefault(unicodedata.normalize("NFC", photo.path.stem), photo)

    def write(folder: Path) -> None:
        clip = shared_clip(_location(source), None, torch.device("cpu"))
        tagger = Tagger(clip, labels, threshold=threshold)
        for name, photo in by_name.items():
            image_1D = clip.encode_images([to_tensor(clip.shrink(load_image(photo.path)))])
            write_text(folder / f"{name}.txt", ", ".join(tagger.tags(image_1D)[0].tags) + "\n")

    key = {"photos": {name: photo.sha256 for name, photo in by_name.items()}, "labels": labels, "threshold": threshold}
    return cache.get_or_make_files(
        "tag-captions",
        key | {"clip": encoder_identity(_location(source), None), "version": boothlab.__version__},
        write,
    )

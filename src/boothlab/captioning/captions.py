"""One batch of images to captions: by a template, by CLIP's tags, by BLIP, or by BLIP and the tags that help."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from boothlab.captioning.tags import ImageTags, Tagger, greedy_tags
from boothlab.images.load import to_tensor

SHORTLIST = 16
"""Of the labels nearest to an image, so many are tried behind its caption."""


class Captioner(Protocol):
    """What writes a sentence for each image."""

    def shrink(self, image: Image.Image) -> Image.Image:
        """The picture at the size the model sees; its caption stays the same."""

    def captions(self, images: Sequence[Image.Image]) -> list[str]:
        """One caption an RGB image."""


@dataclass(frozen=True)
class Views:
    """A picture at the sizes that the models look at; None for a model that does not. Large photos are not kept."""

    clip: Image.Image | None
    blip: Image.Image | None


@dataclass(frozen=True)
class Made:
    """A caption, the tags in it, and all tags that CLIP finds in the image, if it was asked."""

    caption: str
    tags: tuple[str, ...]
    found: ImageTags | None


@dataclass(frozen=True)
class Maker:
    """How captions are made: the models, the text of a template, the most tags behind a sentence."""

    method: str
    tagger: Tagger | None = None
    captioner: Captioner | None = None
    template: str = ""
    class_noun: str = ""
    most_tags: int = 8

    @property
    def needs_image(self) -> bool:
        """Whether anything is looked at: a template alone does without."""
        return self.tagger is not None or self.captioner is not None

    def views(self, image: Image.Image, *, captioned: bool) -> Views:
        """What the models will look at, which needs no thread of its own. `captioned` images need no sentence."""
        return Views(
            self.tagger.shrink(image) if self.tagger is not None else None,
            self.captioner.shrink(image) if self.captioner is not None and not captioned else None,
        )

    def find_tags(self, views: Sequence[Views]) -> tuple[list[ImageTags | None], Tensor]:
        """The tags of each image and its CLIP features [B, D]; Nones and nothing without a tagger."""
        if self.tagger is None:
            return [None] * len(views), torch.empty(len(views), 0)
        features_BD = self.tagger.clip.encode_images([to_tensor(view.clip) for view in views if view.clip is not None])
        return list(self.tagger.tags(features_BD)), features_BD

    def make(self, files: Sequence[str], root: str, views: Sequence[Views]) -> list[Made]:
        """A caption for each file. `root` is the name of the images folder; a template may do without `views`."""
        found, features_BD = self.find_tags(views) if self.needs_image else ([None] * len(files), torch.empty(0))
        makers: Mapping[str, Callable[[], list[Made]]] = {
            "template": lambda: [self._fill(file, root, tags) for file, tags in zip(files, found, strict=True)],
            "clip_tags": lambda: [_as_caption(tags) for tags in found],
            "blip": lambda: [Made(text, (), tags) for text, tags in zip(self._said(views), found, strict=True)],
            "blip_clip_tags": lambda: self._extended(views, found, features_BD),
        }
        return makers[self.method]()

    def _said(self, views: Sequence[Views]) -> list[str]:
        assert self.captioner is not None
        return self.captioner.captions([view.blip for view in views if view.blip is not None])

    def _fill(self, file: str, root: str, found: ImageTags | None) -> Made:
        tags = found.tags if found and "{tags}" in self.template else ()
        words = words_of(file, root) | {"class": self.class_noun, "tags": ", ".join(tags)}
        return Made(" ".join(self.template.format_map(words).split()), tags, found)

    def _extended(self, views: Sequence[Views], found: Sequence[ImageTags | None], features_BD: Tensor) -> list[Made]:
        assert self.tagger is not None
        nearest = self.tagger.cosines(features_BD).argsort(dim=1, descending=True, stable=True)[:, :SHORTLIST].tolist()
        made = []
        for text, tags, image_D, places in zip(self._said(views), found, features_BD, nearest, strict=True):
            candidates = [self.tagger.labels[place] for place in places]
            chosen = greedy_tags(text, image_D, self.tagger.clip, candidates, self.most_tags)
            made.append(Made(", ".join([text, *chosen]), tuple(chosen), tags))
        return made


def _as_caption(found: ImageTags | None) -> Made:
    assert found is not None
    return Made(", ".join(found.tags), found.tags, found)


def words_of(file: str, root: str) -> dict[str, str]:
    """What stands for {folder} and {name}: the folder the image is in, and its name without the ending."""
    path = PurePosixPath(file)
    return {"folder": path.parent.name or root, "name": path.stem}

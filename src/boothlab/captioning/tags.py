"""Tags of images: label lists, and the labels of a list that CLIP finds in a picture, best first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from boothlab.errors import UserError
from boothlab.evaluation.encoders import TextImageEncoder
from boothlab.files import sha256_bytes, shown

SEPARATOR = "; "
"""Between the tags of an image in tags.csv."""
LOGIT_SCALE = 100.0
"""What CLIP multiplies cosines with before its softmax."""
TENTH = 10
_LARGEST = 1 << 22


@dataclass(frozen=True)
class LabelList:
    """Labels in the order of their file, none twice. `repeated` counts the lines that only said one again."""

    name: str
    labels: tuple[str, ...]
    sha256: str
    repeated: int = 0


def shipped_labels() -> list[str]:
    """The names of the lists that come with the package."""
    folder = files("boothlab.captioning") / "labels"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".txt"))


def read_labels(source: str) -> LabelList:
    """A list that ships with the package, by name, or a text file of one label a line; `#` begins a comment line.

    Raises UserError for an unknown name, an unreadable file, a list without labels, or a label with a semicolon.
    """
    if source in shipped_labels():
        data = (files("boothlab.captioning") / "labels" / f"{source}.txt").read_bytes()
        return parse_labels(data, source)
    path = Path(source).expanduser()
    try:
        if not path.is_file():
            known = ", ".join(shipped_labels())
            raise UserError(f"labels={shown(source)}: there is no such file, nor a list of that name ({known})")
        if path.stat().st_size > _LARGEST:
            raise UserError(f"labels={shown(source)}: is larger than {_LARGEST >> 20} MiB; give a list of labels")
        return parse_labels(path.read_bytes(), source)
    except OSError as error:
        raise UserError(f"labels={shown(source)}: cannot be read ({error.strerror or error})") from error


def parse_labels(data: bytes, name: str) -> LabelList:
    """The labels in the bytes of a list. Raises UserError, naming the line."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"labels={shown(name)}: is not UTF-8 text; save it as UTF-8") from error
    found: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        label = " ".join(line.split())
        if not label or label.startswith("#"):
            continue
        if SEPARATOR.strip() in label or not label.isprintable():
            raise UserError(
                f"labels={shown(name)} line {number}: a label may not have semicolons or control characters; "
                "write one label a line"
            )
        found.append(label)
    labels = tuple(dict.fromkeys(found))
    if not labels:
        raise UserError(f"labels={shown(name)}: holds no label; write one a line")
    return LabelList(name, labels, sha256_bytes(data), len(found) - len(labels))


@dataclass(frozen=True)
class ImageTags:
    """The tags of one image, best first, each with its cosine and its share of the softmax over all labels.

    `gap_10` is the cosine of the best label less that of the tenth; None for lists of fewer than ten.
    """

    tags: tuple[str, ...]
    cosines: tuple[float, ...]
    softmax: tuple[float, ...]
    gap_10: float | None

    @property
    def top1(self) -> str:
        """The best label."""
        return self.tags[0]

    @property
    def top1_cosine(self) -> float:
        """The cosine of the best label."""
        return self.cosines[0]


class Tagger:
    """CLIP as a tagger: the labels whose "a photo of a {label}" has a cosine above a threshold, else the best one.

    Cosines are raw: between -1 and 1, some 0.2 to 0.35 for a good pair of OpenAI's ViT-B/32; no probabilities. Beside
    them stands the softmax of 100 × cosine over all labels, as CLIP's own zero-shot classification has it.
    """

    def __init__(
        self, clip: TextImageEncoder, labels: Sequence[str], *, template: str = "a photo of a {label}",
        threshold: float = 0.25,
        shrink: Callable[[Image.Image], Image.Image] = lambda image: image,
    ):  # fmt: skip
        """`shrink` makes a picture as small as the encoder sees it; its features must stay the same."""
        self.clip = clip
        self.labels = tuple(labels)
        self.prompts = [template.replace("{label}", label) for label in self.labels]
        self.threshold = threshold
        self._labels_KD = clip.encode_texts(self.prompts)
        self.shrink = shrink

    def cosines(self, images_BD: Tensor) -> Tensor:
        """Cosines [B, K] of unit image features [B, D] with the K labels."""
        return images_BD @ self._labels_KD.T

    def tags(self, images_BD: Tensor) -> list[ImageTags]:
        """The tags of each image, from unit features [B, D]."""
        return [tags_of(row, self.labels, self.threshold) for row in self.cosines(images_BD)]


def tags_of(cosines_K: Tensor, labels: Sequence[str], threshold: float) -> ImageTags:
    """Labels with a cosine above `threshold`, best first, ties in the list's order; the best one if none passes."""
    order = torch.argsort(cosines_K, descending=True, stable=True).tolist()
    softmax = torch.softmax(LOGIT_SCALE * cosines_K.double(), dim=0)
    above = [index for index in order if float(cosines_K[index]) > threshold] or order[:1]
    gap = float(cosines_K[order[0]] - cosines_K[order[TENTH - 1]]) if len(order) >= TENTH else None
    return ImageTags(
        tuple(labels[index] for index in above),
        tuple(float(cosines_K[index]) for index in above),
        tuple(float(softmax[index]) for index in above),
        gap,
    )


def greedy_tags(
    caption: str, image_D: Tensor, clip: TextImageEncoder, candidates: Sequence[str], most: int
) -> list[str]:
    """The tags that, put after the caption one by one, raise the CLIP similarity of the whole text to the image most.

    As CLIP Interrogator chains phrases: each round tries all that are left and keeps the best, until none helps or
    `most` are there. Labels that the caption already has in its words are not tried.
    """
    left = [label for label in candidates if f" {label.lower()} " not in f" {caption.lower()} "]
    text, chosen = caption, list[str]()
    best = float(clip.encode_texts([text])[0] @ image_D)
    while left and len(chosen) < most:
        similarity = clip.encode_texts([f"{text}, {label}" for label in left]) @ image_D
        place = int(similarity.argmax())
        if float(similarity[place]) <= best:
            break
        best = float(similarity[place])
        chosen.append(left.pop(place))
        text = ", ".join([caption, *chosen])
    return chosen

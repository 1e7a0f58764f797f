"""What scoring takes and gives: generated images with their identity, and the scores of each, by prompt and overall."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from boothlab.errors import UserError
from boothlab.evaluation.fidelity import MetricRow


@dataclass(frozen=True, eq=False)
class GeneratedImage:
    """One generated image; (prompt_index, seed) identifies it. `pixels_CHW` is uint8 [3, H, W]."""

    prompt_index: int
    prompt: str
    seed: int
    pixels_CHW: Tensor


@dataclass(frozen=True)
class ImageScore:
    """One image's raw cosines, each in [-1, 1]. `clip_t` is against the prompt without the unique token.

    `feature_similarity` is None, and no column, unless a further encoder measured it.
    """

    prompt_index: int
    prompt: str
    seed: int
    clip_i: float
    dino: float
    clip_t: float
    clip_t_with_token: float
    feature_similarity: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Column → value, in the order of the fields."""
        return _columns(self)


@dataclass(frozen=True)
class PromptScore:
    """The means over one prompt's `images` images; `div` is None when there is only one."""

    prompt_index: int
    prompt: str
    images: int
    clip_i: float
    dino: float
    clip_t: float
    clip_t_with_token: float
    div: float | None
    feature_similarity: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Column → value, in the order of the fields."""
        return _columns(self)


def _columns(score: "ImageScore | PromptScore") -> dict[str, Any]:
    values = {column.name: getattr(score, column.name) for column in fields(score)}
    if values["feature_similarity"] is None:
        del values["feature_similarity"]
    return values


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of one subject's images. `overall` holds the values alone, `rows` the same with their definitions."""

    per_image: list[ImageScore]
    per_prompt: list[PromptScore]
    overall: dict[str, float | None]
    rows: list[MetricRow]
    copy_warning: bool
    constant_images: int
    warnings: list[str]


def check_complete(images: Sequence[GeneratedImage], expected: Collection[tuple[int, int]] | None = None) -> None:
    """UserError unless `images` are each there once, exactly those of `expected`, with one text a prompt index."""
    if len(images) == 0:
        raise UserError("no generated images to score")
    seen: set[tuple[int, int]] = set()
    prompts: dict[int, str] = {}
    for image in images:
        key = (image.prompt_index, image.seed)
        if key in seen:
            raise UserError(f"prompt {key[0]}, seed {key[1]}: more than one image; remove the doubled one")
        seen.add(key)
        if prompts.setdefault(image.prompt_index, image.prompt) != image.prompt:
            raise UserError(f"prompt {image.prompt_index} has two texts: {prompts[key[0]]!r} and {image.prompt!r}")
    if expected is None:
        return
    if missing := set(expected) - seen:
        raise UserError(
            f"{len(missing)} of {len(set(expected))} images are missing: {_list(missing)}; generate them again"
        )
    if extra := seen - set(expected):
        raise UserError(f"{len(extra)} images were not expected: {_list(extra)}; remove them or add their prompts")


def is_constant(pixels_CHW: Tensor) -> bool:
    """Whether every pixel of uint8 [C, H, W] has the same colour, as the all-black images of a failed decode do."""
    return bool((pixels_CHW == pixels_CHW[:, :1, :1]).all())


def _list(keys: Collection[tuple[int, int]]) -> str:
    shown = ", ".join(f"prompt {index} seed {seed}" for index, seed in sorted(keys)[:3])
    return shown + (", …" if len(keys) > 3 else "")

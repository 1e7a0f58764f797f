"""Scores edited pictures against their sources, captions, masks and known targets: what `boothlab edit` calls.

Definitions: directional and image similarity as in InstructPix2Pix (Brooks et al. 2022, arXiv 2211.09800); structure
and preservation as in PIE-Bench (Ju et al. 2023, arXiv 2310.01506), the latter over the true background too; distances
to a known target as in MagicBrush (Zhang et al. 2023, arXiv 2306.10012). Raw cosines: no ×100, no clamp.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from boothlab.errors import UserError
from boothlab.evaluation import preservation
from boothlab.evaluation.edit_metrics import EDIT_SCORES, EditScore
from boothlab.evaluation.encoders import DinoEncoder, TextImageEncoder
from boothlab.evaluation.perceptual import perceptual_distance
from boothlab.evaluation.preprocessing import Images
from boothlab.evaluation.preservation import Area, Picture
from boothlab.evaluation.structure import SpatialEncoder, SpatialVit, structure_distance

__all__ = ["EDIT_SCORES", "EditScore", "EditScorer", "EditedPair", "did_it_happen", "directional_similarity"]

MOST_CAPTIONS = 1_000
"""Embeddings that are kept: enough for edits that many images share, and never more with thousands of captions."""
STILL = 1e-6
"""A difference of unit embeddings this short is rounding, and its direction noise."""

NO_SOURCE_CAPTION, NO_TARGET_CAPTION = "no source caption", "no target caption"
SAME_CAPTIONS = "identical captions"
SAME_TEXTS = "captions that the encoder cannot tell apart"
NO_MASK, MASK_FULL, MASK_EMPTY = "no mask", "mask is full", "mask is empty"
TOO_SMALL = f"picture is under {preservation.SMALLEST_SIDE} px"
CROPPED_AWAY = "area lies outside the encoder's crop"
NO_TRUTH = "no known target"

Key = TypeVar("Key")
Sheets = list["_Sheet"]


@dataclass(frozen=True, eq=False)
class EditedPair:
    """A picture before and after an edit, uint8 [H, W, 3] both, with what is known about the edit.

    The captions say what is in the picture before and after; an instruction ("make it night") is neither. `mask` is
    bool [H, W], True where the edit belongs; `truth` is the exact answer, as large as the edited picture.
    """

    source: Picture
    edited: Picture
    source_caption: str | None = None
    target_caption: str | None = None
    mask: Area | None = None
    truth: Picture | None = None

    def __post_init__(self) -> None:
        for name, image in (("source", self.source), ("edited picture", self.edited), ("known target", self.truth)):
            if image is not None and (image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3):
                raise UserError(f"the {name} must be uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")
            if image is not None and image.shape != self.source.shape:
                raise UserError(
                    f"the {name} is {image.shape[1]}×{image.shape[0]} px but the source "
                    f"{self.source.shape[1]}×{self.source.shape[0]}; resize them alike before scoring"
                )
        if self.mask is not None and (self.mask.dtype != np.bool_ or self.mask.shape != self.source.shape[:2]):
            raise UserError(
                f"the mask must be bool {list(self.source.shape[:2])}, not {self.mask.dtype} {list(self.mask.shape)}"
            )


@dataclass
class _Sheet:
    """One pair's scores while they are being filled in."""

    values: dict[str, float] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def put(self, name: str, value: float | None, reason: str = "") -> None:
        if value is None:
            self.absent[name] = reason
        else:
            self.values[name] = value


class EditScorer:
    """Holds the encoders and the last captions met, encoded once. Pictures are not kept."""

    def __init__(self, clip: TextImageEncoder, dino: SpatialEncoder | DinoEncoder, batch_size: int = 8) -> None:
        """`batch_size` pairs at a time: about 20 MB a pair with DINO ViT-S/16. UserError when it is under 1."""
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, not {batch_size}")
        self.clip = clip
        self.dino: SpatialEncoder = dino if isinstance(dino, SpatialEncoder) else SpatialVit.of(dino)
        self._batch_size = batch_size
        self._texts: dict[str, Tensor] = {}
        self._cut: dict[str, bool] = {}

    def score(self, pairs: Sequence[EditedPair]) -> list[EditScore]:
        """Every score of each pair, in their order; `happened` and `effective_steps` are for others to add.

        Takes `pairs` a slice at a time, so a sequence that reads from disk is never in memory whole.
        """
        scores: list[EditScore] = []
        for start in range(0, len(pairs), self._batch_size):
            scores += self._score_batch(pairs[start : start + self._batch_size])
        return scores

    def _score_batch(self, pairs: Sequence[EditedPair]) -> list[EditScore]:
        sheets = [_Sheet() for _ in pairs]
        self._read_captions(pairs)
        self._score_clip(pairs, sheets)
        self._score_structure(pairs, sheets)
        for pair, sheet in zip(pairs, sheets, strict=True):
            _score_pixels(pair, sheet)
        self._score_perceptual(pairs, sheets)
        self._score_truth(pairs, sheets)
        return [EditScore(sheet.values, sheet.absent, tuple(sheet.warnings)) for sheet in sheets]

    # Captions and CLIP

    def _read_captions(self, pairs: Sequence[EditedPair]) -> None:
        captions = (caption for pair in pairs for caption in (pair.source_caption, pair.target_caption))
        new = [text for text in dict.fromkeys(captions) if text and text.strip() and text not in self._texts]
        if new:
            if self._texts and len(self._texts) + len(new) > MOST_CAPTIONS:
                self._texts.clear()
                self._cut.clear()
                return self._read_captions(pairs)
            self._texts.update(zip(new, self.clip.encode_texts(new), strict=True))
            self._cut.update(zip(new, self.clip.truncated(new), strict=True))

    def _score_clip(self, pairs: Sequence[EditedPair], sheets: Sheets) -> None:
        images: dict[tuple[int, str], Picture] = {}
        for index, pair in enumerate(pairs):
            images[index, "source"], images[index, "edited"] = pair.source, pair.edited
            if pair.mask is not None and _central(pair.mask).any():
                images[index, "area"] = preservation.blackened(pair.edited, pair.mask)
        features = _encoded(self.clip.encode_images, images)
        for index, (pair, sheet) in enumerate(zip(pairs, sheets, strict=True)):
            source_D, edited_D = features[index, "source"], features[index, "edited"]
            sheet.put("clip_image", _cosine(source_D, edited_D))
            target_D = self._texts.get(pair.target_caption or "")
            if target_D is None:
                sheet.put("clip_t", None, NO_TARGET_CAPTION)
                sheet.put("clip_t_edited", None, NO_TARGET_CAPTION)
            else:
                sheet.put("clip_t", _cosine(edited_D, target_D))
                area_D = features.get((index, "area"))
                sheet.put("clip_t_edited", None if area_D is None else _cosine(area_D, target_D), _no_area(pair.mask))
            self._score_direction(pair, source_D, edited_D, sheet)
            for caption in (pair.source_caption, pair.target_caption):
                if caption and self._cut.get(caption):
                    sheet.warnings.append(f"caption is longer than CLIP's context, its end is not scored: {caption!r}")

    def _score_direction(self, pair: EditedPair, source_D: Tensor, edited_D: Tensor, sheet: _Sheet) -> None:
        before_D, after_D = self._texts.get(pair.source_caption or ""), self._texts.get(pair.target_caption or "")
        if before_D is None or after_D is None:
            sheet.put("clip_directional", None, NO_SOURCE_CAPTION if before_D is None else NO_TARGET_CAPTION)
        elif pair.source_caption == pair.target_caption:
            sheet.put("clip_directional", None, SAME_CAPTIONS)
        else:
            # An equal picture is not left to the encoder, whose rounding may differ with the place in a batch.
            edited_D = source_D if np.array_equal(pair.source, pair.edited) else edited_D
            sheet.put("clip_directional", directional_similarity(source_D, edited_D, before_D, after_D), SAME_TEXTS)

    # Structure and preservation

    def _score_structure(self, pairs: Sequence[EditedPair], sheets: Sheets) -> None:
        images = {
            (index, role): image for index, p in enumerate(pairs) for role, image in enumerate((p.source, p.edited))
        }
        keys = _encoded(self.dino.encode_keys, images)
        for index, sheet in enumerate(sheets):
            sheet.put("structure", structure_distance(keys[index, 0], keys[index, 1]))

    def _score_perceptual(self, pairs: Sequence[EditedPair], sheets: Sheets) -> None:
        """Perceptual distances; what has no area was noted with the pixels already."""
        images: dict[tuple[int, str], Picture] = {}
        for index, pair in enumerate(pairs):
            for where, area in _areas(pair).items():
                if not isinstance(area, str):
                    images[index, "source"] = pair.source
                    images[index, where] = preservation.composite(pair.edited, pair.source, area)
            if not isinstance(outside := _areas(pair)["outside"], str):
                images[index, "black source"] = preservation.blackened(pair.source, outside)
                images[index, "black edited"] = preservation.blackened(pair.edited, outside)
        patches = _encoded(self.dino.encode_patches, images)
        for index, (pair, sheet) in enumerate(zip(pairs, sheets, strict=True)):
            for where, area in _areas(pair).items():
                if not isinstance(area, str):
                    shares_N = self.dino.patch_shares(area)
                    distance = preservation.area_distance(patches[index, where], patches[index, "source"], shares_N)
                    sheet.put(f"lpips_{where}", distance, CROPPED_AWAY)
            if (index, "black source") in patches:
                black, edited = patches[index, "black source"], patches[index, "black edited"]
                sheet.put("lpips_outside_piebench", perceptual_distance(edited, black))

    # A known target

    def _score_truth(self, pairs: Sequence[EditedPair], sheets: Sheets) -> None:
        images: dict[tuple[int, str], Picture] = {}
        for index, pair in enumerate(pairs):
            if pair.truth is not None:
                images[index, "edited"], images[index, "truth"] = pair.edited, pair.truth
        clip = _encoded(self.clip.encode_images, images)
        dino = _encoded(self.dino.encode_images, images)
        for index, (pair, sheet) in enumerate(zip(pairs, sheets, strict=True)):
            if pair.truth is None:
                for name in ("l1_truth", "l2_truth", "psnr_truth", "clip_i_truth", "dino_truth"):
                    sheet.put(name, None, NO_TRUTH)
                continue
            error = preservation.squared_error(pair.edited, pair.truth)
            sheet.put("l1_truth", preservation.absolute_error(pair.edited, pair.truth))
            sheet.put("l2_truth", error)
            sheet.put("psnr_truth", preservation.psnr(error))
            sheet.put("clip_i_truth", _cosine(clip[index, "edited"], clip[index, "truth"]))
            sheet.put("dino_truth", _cosine(dino[index, "edited"], dino[index, "truth"]))


def directional_similarity(source_D: Tensor, edited_D: Tensor, before_D: Tensor, after_D: Tensor) -> float | None:
    """cos(edited - source, after - before) of two image and two text embeddings, each made unit length first.

    0 when the images embed alike: a picture that does not move does not move as told. None when the texts embed alike,
    for then there is no direction to hold it against. UserError for NaN or infinite features.
    """
    units = [_unit(features_D) for features_D in (source_D, edited_D, before_D, after_D)]
    image_D, text_D = units[1] - units[0], units[3] - units[2]
    if float(text_D.norm()) < STILL:
        return None
    if float(image_D.norm()) < STILL:
        return 0.0
    return _cosine(image_D, text_D)


def did_it_happen(reader: Callable[[Picture], str], images: Sequence[Picture], wanted: Sequence[str]) -> list[float]:
    """1.0 for each image in which `reader` reads the wanted value, else 0.0; their mean is the share of edits done.

    ValueError unless there is one wanted value for each image.
    """
    return [float(reader(image) == value) for image, value in zip(images, wanted, strict=True)]


def _areas(pair: EditedPair) -> dict[str, Area | str]:
    """The pixels outside and inside the mask; a text instead says why there are none."""
    if pair.mask is None:
        return {"outside": NO_MASK, "inside": NO_MASK}
    return {
        "outside": MASK_FULL if pair.mask.all() else ~pair.mask,
        "inside": pair.mask if pair.mask.any() else MASK_EMPTY,
    }


def _central(area: Area) -> Area:
    """The middle square, which is all that CLIP sees of a picture: the rest it crops away."""
    side = min(area.shape)
    top, left = ((length - side) // 2 for length in area.shape)
    return area[top : top + side, left : left + side]


def _no_area(mask: Area | None) -> str:
    """Why CLIP sees nothing of the edited area: a black picture would have a score, and it would mean nothing."""
    if mask is None:
        return NO_MASK
    return CROPPED_AWAY if mask.any() else MASK_EMPTY


def _score_pixels(pair: EditedPair, sheet: _Sheet) -> None:
    """MSE, PSNR and SSIM over each area; for an area that there is not, the reason under all its names."""
    for where, area in _areas(pair).items():
        if isinstance(area, str):
            for name in EDIT_SCORES:
                if f"_{where}" in name:
                    sheet.put(name, None, area)
        else:
            _score_against(where, pair.edited, pair.source, area, sheet)
            if where == "outside":
                edited, source = (preservation.blackened(image, area) for image in (pair.edited, pair.source))
                _score_against("outside_piebench", edited, source, None, sheet)


def _score_against(where: str, edited: Picture, source: Picture, area: Area | None, sheet: _Sheet) -> None:
    error = preservation.squared_error(edited, source, area)
    sheet.put(f"mse_{where}", error)
    sheet.put(f"psnr_{where}", preservation.psnr(error))
    sheet.put(f"ssim_{where}", preservation.ssim(edited, source, area), TOO_SMALL)


def _encoded(encode: Callable[[Images], Tensor], images: Mapping[Key, Picture]) -> dict[Key, Tensor]:
    """All images in one call; each one's features under its own key."""
    if not images:
        return {}
    return dict(zip(images, encode([_chw(image) for image in images.values()]), strict=True))


def _chw(image: Picture) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def _unit(features_D: Tensor) -> Tensor:
    if not torch.isfinite(features_D).all():
        raise UserError("an encoder gave NaN or infinite features; check its weights and the images")
    return normalize(features_D.to(torch.float64), dim=-1)


def _cosine(one_D: Tensor, other_D: Tensor) -> float:
    return float(_unit(one_D) @ _unit(other_D))

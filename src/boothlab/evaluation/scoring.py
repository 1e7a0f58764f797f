"""Scores one subject's generated images: what the training callback and `boothlab evaluate` both call."""

import math
from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor

from boothlab.errors import UserError
from boothlab.evaluation import fidelity, perceptual
from boothlab.evaluation.encoders import ImageEncoder, PatchEncoder, TextImageEncoder
from boothlab.evaluation.fidelity import Ceiling, MetricRow
from boothlab.evaluation.results import (
    EvaluationResult,
    GeneratedImage,
    ImageScore,
    PromptScore,
    check_complete,
    is_constant,
)

__all__ = ["EvaluationResult", "GeneratedImage", "ImageScore", "PromptScore", "Scorer", "check_complete", "is_constant"]

FEATURES = "feature_similarity"
IMAGE_SCORES = ("clip_i", "dino", "clip_t", "clip_t_with_token")
TOKEN_REMOVED, TOKEN_KEPT, NO_TEXT = "unique token removed", "unique token kept", "no text"


class Scorer:
    """Holds a subject's references, encoded once, and every text met so far, encoded once."""

    def __init__(
        self,
        clip: TextImageEncoder,
        dino: PatchEncoder,
        references: Sequence[Tensor],
        token: str,
        class_noun: str,
        features: ImageEncoder | None = None,
    ) -> None:
        """`references` are uint8 [3, H, W] of any sizes, `token` e.g. "sks", `class_noun` e.g. "dog".

        `features` is one more encoder that measures likeness, as `feature_similarity`. UserError when there are no
        references.
        """
        if len(references) == 0:
            raise UserError("no reference images: at least one photo of the subject is needed")
        self.clip, self.dino, self.token, self.class_noun = clip, dino, token, class_noun
        self._clip_references_RD = clip.encode_images(references)
        self._dino_references_RD = dino.encode_images(references)
        self.features = features
        self._feature_references_RD = None if features is None else features.encode_images(references)
        self._text_cache: dict[str, Tensor] = {}
        self._ceilings: dict[str, Ceiling] = {
            "clip_i": fidelity.ceiling(self._clip_references_RD),
            "dino": fidelity.ceiling(self._dino_references_RD),
        }
        if self._feature_references_RD is not None:
            self._ceilings[FEATURES] = fidelity.ceiling(self._feature_references_RD)

    def ceiling(self) -> dict[str, float | None]:
        """`clip_i`, `dino` (and `feature_similarity`) of the real photos among themselves; None for a single photo.

        Self-pairs are excluded.
        """
        return {name: found.value for name, found in self._ceilings.items()}

    @property
    def reference_features(self) -> tuple[Tensor, Tensor]:
        """CLIP's and DINO's features of the references, unit float32 [R, D] each."""
        return self._clip_references_RD, self._dino_references_RD

    def preservation(self, class_images: Sequence[Tensor]) -> float:
        """PRES of uint8 [3, H, W] images made from the bare class prompt. UserError when there are none."""
        if len(class_images) == 0:
            raise UserError("no class images: PRES needs images of the bare class prompt")
        return fidelity.preservation(self.dino.encode_images(class_images), self._dino_references_RD)

    def score(
        self,
        images: Sequence[GeneratedImage],
        expected: Collection[tuple[int, int]] | None = None,
        class_images: Sequence[Tensor] | None = None,
    ) -> EvaluationResult:
        """All metrics of `images`; PRES too when `class_images` are given.

        `expected` is the full set of (prompt_index, seed). UserError for a missing, unexpected or doubled image: a mean
        over whatever happens to be there would change without anyone noticing.
        """
        check_complete(images, expected)
        ordered = sorted(images, key=lambda image: (image.prompt_index, image.seed))
        per_image = self._score_images(ordered)
        per_prompt = [self._score_prompt(ordered, per_image, index) for index in _prompt_indices(ordered)]
        overall: dict[str, float | None] = {name: _accumulated(per_image, name) for name in self._names}
        overall["div"] = perceptual.mean_diversity([prompt.div for prompt in per_prompt])
        if class_images is not None:
            overall["pres"] = self.preservation(class_images)
        limit, reached = self._ceilings["dino"].value, overall["dino"]
        copied = limit is not None and reached is not None and reached > limit
        constant = sum(is_constant(image.pixels_CHW) for image in ordered)
        return EvaluationResult(
            per_image,
            per_prompt,
            overall,
            self._rows(overall, per_prompt, len(class_images or ())),
            copied,
            constant,
            self._warnings(ordered, copied, constant),
        )

    def _score_images(self, images: Sequence[GeneratedImage]) -> list[ImageScore]:
        pixels = [image.pixels_CHW for image in images]
        clip_GD, dino_GD = self.clip.encode_images(pixels), self.dino.encode_images(pixels)
        kept = [image.prompt for image in images]
        removed = [self._without_token(prompt) for prompt in kept]
        columns = torch.stack(
            [
                fidelity.image_alignment(clip_GD, self._clip_references_RD),
                fidelity.image_alignment(dino_GD, self._dino_references_RD),
                fidelity.text_alignment(clip_GD, self._encode_texts(removed)),
                fidelity.text_alignment(clip_GD, self._encode_texts(kept)),
                *self._feature_column(pixels),
            ],
            dim=1,
        ).tolist()
        return [
            ImageScore(image.prompt_index, image.prompt, image.seed, *row)
            for image, row in zip(images, columns, strict=True)
        ]

    @property
    def _names(self) -> tuple[str, ...]:
        return IMAGE_SCORES if self.features is None else (*IMAGE_SCORES, FEATURES)

    def _feature_column(self, pixels: Sequence[Tensor]) -> list[Tensor]:
        """The mean likeness [G] of each image, if there is an encoder for it."""
        if self.features is None or self._feature_references_RD is None:
            return []
        return [fidelity.image_alignment(self.features.encode_images(pixels), self._feature_references_RD)]

    def _score_prompt(self, images: Sequence[GeneratedImage], scores: Sequence[ImageScore], index: int) -> PromptScore:
        mine = [score for score in scores if score.prompt_index == index]
        # One prompt at a time: the hidden layers of all images at once would not fit in memory.
        pixels = [image.pixels_CHW for image in images if image.prompt_index == index]
        means = {name: _mean_of(mine, name) for name in self._names}
        return PromptScore(index, mine[0].prompt, len(mine), **means, div=perceptual.diversity(self.dino, pixels))

    def _without_token(self, prompt: str) -> str:
        text = fidelity.strip_token(prompt, self.token)
        if not text:
            raise UserError(
                f"prompt {prompt!r} is only the unique token: write the class noun too, as in 'a {self.token} dog'"
            )
        return text

    def _encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts, with repeats → [B, D]; only texts never seen before are encoded."""
        new = [text for text in dict.fromkeys(texts) if text not in self._text_cache]
        if new:
            self._text_cache.update(zip(new, self.clip.encode_texts(new), strict=True))
        return torch.stack([self._text_cache[text] for text in texts])

    def _rows(
        self, overall: dict[str, float | None], per_prompt: Sequence[PromptScore], class_images: int
    ) -> list[MetricRow]:
        images, references = sum(prompt.images for prompt in per_prompt), len(self._clip_references_RD)
        counts = {"images": images, "prompts": len(per_prompt)}
        pairs = {**counts, "references": references, "pairs": images * references}
        every = "all generated × all reference pairs"
        own = "each image with its own prompt"
        rows = [
            _row("clip_i", overall["clip_i"], self.clip, NO_TEXT, every, pairs),
            _row("dino", overall["dino"], self.dino, NO_TEXT, every, pairs),
            _row("clip_t", overall["clip_t"], self.clip, TOKEN_REMOVED, own, counts),
            _row("clip_t_with_token", overall["clip_t_with_token"], self.clip, TOKEN_KEPT, own, counts),
            self._diversity_row(overall["div"], per_prompt, counts),
            self._ceiling_row("clip_i", self.clip),
            self._ceiling_row("dino", self.dino),
        ]
        if self.features is not None:
            rows.append(_row(FEATURES, overall[FEATURES], self.features, NO_TEXT, every, pairs))
            rows.append(self._ceiling_row(FEATURES, self.features))
        if "pres" in overall:
            pairing = f"all pairs of images of the bare class prompt ({self.class_noun}) and references"
            counts = {"class_images": class_images, "references": references, "pairs": class_images * references}
            rows.append(_row("pres", overall["pres"], self.dino, NO_TEXT, pairing, counts, higher_is_better=False))
        return rows

    def _diversity_row(
        self, value: float | None, per_prompt: Sequence[PromptScore], counts: dict[str, int]
    ) -> MetricRow:
        pairs = sum(math.comb(prompt.images, 2) for prompt in per_prompt)
        return MetricRow(
            name="div",
            value=value,
            higher_is_better=True,
            encoder=perceptual.distance_name(self.dino),
            preprocessing=self.dino.preprocessing,
            token_policy=NO_TEXT,
            pairing="pairs of images of one prompt, then the mean over prompts",
            counts={**counts, "pairs": pairs},
            note="" if pairs else "DIV needs at least 2 images of a prompt",
        )

    def _ceiling_row(self, name: str, encoder: ImageEncoder) -> MetricRow:
        found = self._ceilings[name]
        counts = {"references": len(self._clip_references_RD), "pairs": found.pairs}
        pairing = "pairs of different references"
        return _row(f"{name}_ceiling", found.value, encoder, NO_TEXT, pairing, counts, note=found.reason)

    def _warnings(self, images: Sequence[GeneratedImage], copied: bool, constant: int) -> list[str]:
        prompts = list(dict.fromkeys(image.prompt for image in images))
        warnings = []
        if copied:
            warnings.append("DINO is above the real-image ceiling: the model may be copying its references")
        if constant:
            warnings.append(
                f"{constant} of {len(images)} images are one flat colour (black from fp16 or a safety checker?)"
            )
        for prompt, cut in zip(prompts, self.clip.truncated(prompts), strict=True):
            if cut:
                warnings.append(f"prompt is longer than CLIP's context, its end is not scored: {prompt!r}")
        return warnings


def _prompt_indices(images: Iterable[GeneratedImage]) -> list[int]:
    return list(dict.fromkeys(image.prompt_index for image in images))


def _mean_of(scores: Sequence[ImageScore], name: str) -> float:
    return math.fsum(getattr(score, name) for score in scores) / len(scores)


def _accumulated(scores: Sequence[ImageScore], name: str) -> float:
    """The headline as torchmetrics accumulates it; one subject here, so the mean of its images."""
    metric = fidelity.SubjectMean(sync_on_compute=False)  # on several devices the images of all are here already
    metric.update(torch.tensor([getattr(score, name) for score in scores]), subject=0)
    return float(metric.compute()["subject_mean"])


def _row(
    name: str,
    value: float | None,
    encoder: ImageEncoder,
    token_policy: str,
    pairing: str,
    counts: dict[str, int],
    *,
    higher_is_better: bool = True,
    note: str = "",
) -> MetricRow:
    return MetricRow(
        name=name,
        value=value,
        higher_is_better=higher_is_better,
        encoder=encoder.name,
        preprocessing=encoder.preprocessing,
        token_policy=token_policy,
        pairing=pairing,
        counts=counts,
        note=note,
    )

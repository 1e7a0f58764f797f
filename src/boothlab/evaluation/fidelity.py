"""Subject and prompt fidelity, as pure functions and accumulators: CLIP-I, DINO, CLIP-T, PRES, real-image ceiling.

Definitions: DreamBooth (Ruiz et al. 2022, arXiv 2208.12242 §4). Raw cosines throughout: no ×100, no ×2.5, no clamp.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from boothlab.errors import UserError

DEFINITION_VERSION = 1
"""Raise it whenever a change here or in the preprocessing can change a value."""


@dataclass(frozen=True)
class MetricRow:
    """One value with everything needed to know what it is; `note` says why a value is None."""

    name: str
    value: float | None
    higher_is_better: bool
    encoder: str
    preprocessing: str
    token_policy: str
    pairing: str
    counts: dict[str, int] = field(default_factory=dict)
    definition_version: int = DEFINITION_VERSION
    note: str = ""

    @property
    def label(self) -> str:
        """For tables and plots. Always names the encoder, so that no miniature passes for plain CLIP-I or DINO."""
        return f"{self.name} [{self.encoder}]"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values, in the order of the fields."""
        return asdict(self)


@dataclass(frozen=True)
class Ceiling:
    """How alike the real photos are among themselves: `value` over `pairs` pairs, or None and the `reason`."""

    value: float | None
    pairs: int
    reason: str = ""


def cosine_matrix(features_GD: Tensor, others_RD: Tensor) -> Tensor:
    """[G, D] and [R, D] → every cosine, float32 [G, R] in [-1, 1]. UserError for non-finite features."""
    for features in (features_GD, others_RD):
        if not torch.isfinite(features).all():
            raise UserError("an encoder gave NaN or infinite features; check its weights and the images")
    # Normalised here too, in fp32: a metric must not rely on its caller having done so, or on fp16 sums.
    return normalize(features_GD.to(torch.float32), dim=-1) @ normalize(others_RD.to(torch.float32), dim=-1).T


def image_alignment(generated_GD: Tensor, references_RD: Tensor) -> Tensor:
    """Each generated image's mean cosine over ALL references, float32 [G]. UserError when there is no reference."""
    if len(references_RD) == 0:
        raise UserError("no reference images: at least one photo of the subject is needed")
    return cosine_matrix(generated_GD, references_RD).mean(dim=1)


def mean_pairwise_cosine(generated_GD: Tensor, references_RD: Tensor) -> float:
    """CLIP-I or DINO, by the encoder: the mean over all G·R pairs. UserError when either side is empty."""
    if len(generated_GD) == 0:
        raise UserError("no generated images to score")
    return float(image_alignment(generated_GD, references_RD).mean())


def text_alignment(images_BD: Tensor, texts_BD: Tensor) -> Tensor:
    """CLIP-T of each image with ITS prompt (row by row), float32 [B]. ValueError when the rows do not match up."""
    if images_BD.shape != texts_BD.shape:
        raise ValueError(f"one text for each image: {list(images_BD.shape)} and {list(texts_BD.shape)}")
    return cosine_matrix(images_BD, texts_BD).diagonal()


def ceiling(references_RD: Tensor) -> Ceiling:
    """Mean cosine over the R·(R-1)/2 pairs of different references; a photo is never compared with itself."""
    count = len(references_RD)
    if count < 2:
        return Ceiling(None, 0, f"a ceiling needs at least 2 reference photos, here {count}")
    rows, columns = torch.triu_indices(count, count, offset=1)
    return Ceiling(float(cosine_matrix(references_RD, references_RD)[rows, columns].mean()), len(rows))


def preservation(class_images_CD: Tensor, references_RD: Tensor) -> float:
    """PRES (DreamBooth §4.3, lower is better): mean DINO cosine of bare-class-prompt images with the subject's photos.

    High means that the prior has collapsed: asked for any dog, the model draws THE dog.
    """
    if len(class_images_CD) == 0:
        raise UserError("no class images: PRES needs images of the bare class prompt")
    return mean_pairwise_cosine(class_images_CD, references_RD)


def mean_of_subject_means(scores: Mapping[str, Sequence[float]]) -> float:
    """The headline: every subject counts once, however many pairs or images it has. UserError for an empty subject."""
    return _mean([_mean(values, subject) for subject, values in scores.items()])


def pooled_mean(scores: Mapping[str, Sequence[float]]) -> float:
    """Every pair or image counts once; logged beside the headline. UserError when there is none."""
    return _mean([value for values in scores.values() for value in values])


def _mean(values: Sequence[float], whose: str = "the mean") -> float:
    if len(values) == 0:
        raise UserError(f"{whose}: no scores, so no mean")
    return math.fsum(values) / len(values)


def strip_token(prompt: str, token: str) -> str:
    """The prompt without the unique token: "a sks dog" → "a dog". Whole words, case-sensitive, no double space left.

    `token` may be several words. Hyphens belong to a word ("sks-like" stays), other punctuation does not. An empty
    token changes nothing but white space.
    """
    words = token.split()
    if words:
        body = r"\s+".join(re.escape(word) for word in words)
        whole = re.compile(rf"(?<![\w-]){body}(?![\w-])")
        # Removing "a b" from "a a b b" makes a new "a b": until none is left.
        while match := whole.search(prompt):
            prompt = _join(prompt[: match.start()], prompt[match.end() :])
    return " ".join(prompt.split())


def _join(before: str, after: str) -> str:
    """Closes the gap a removed word leaves: one space if there was any, none beside brackets or before punctuation."""
    left, right = before.rstrip(), after.lstrip()
    had_space = left != before or right != after
    space = had_space and not left.endswith(tuple("([{")) and not right.startswith(tuple(".,;:!?)]}"))
    return left + (" " if space else "") + right


class SubjectFidelity(Metric):
    """CLIP-I or DINO over many subjects, accumulated batch by batch; each subject meets only its own references."""

    higher_is_better = True
    full_state_update = False
    features: list[Tensor]
    subjects: list[Tensor]
    real: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for state in ("features", "subjects", "real"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, features_BD: Tensor, subject: int, real: bool) -> None:
        """Adds features [B, D] of `subject`: reference photos when `real`, else generated images."""
        self.features.append(features_BD.detach().to(torch.float32))
        self.subjects.append(torch.full((len(features_BD),), subject, device=features_BD.device))
        self.real.append(torch.full((len(features_BD),), real, device=features_BD.device))

    def pair_scores(self) -> dict[str, list[float]]:
        """Every (generated, reference) cosine by subject. UserError for a subject with one side missing."""
        features_BD, subjects_B, real_B = (dim_zero_cat(state) for state in (self.features, self.subjects, self.real))
        scores: dict[str, list[float]] = {}
        for subject in sorted(set(subjects_B.tolist())):
            mine_B = subjects_B == subject
            generated_GD, references_RD = features_BD[mine_B & ~real_B], features_BD[mine_B & real_B]
            if len(generated_GD) == 0 or len(references_RD) == 0:
                side = "generated images" if len(generated_GD) == 0 else "reference photos"
                raise UserError(f"subject {subject}: no {side}")
            scores[str(subject)] = cosine_matrix(generated_GD, references_RD).flatten().tolist()
        return scores

    def compute(self) -> dict[str, Tensor]:
        """`subject_mean` (the headline) and `pooled_mean`."""
        scores = self.pair_scores()
        return {
            "subject_mean": torch.tensor(mean_of_subject_means(scores), dtype=torch.float64),
            "pooled_mean": torch.tensor(pooled_mean(scores), dtype=torch.float64),
        }


class SubjectMean(Metric):
    """Any per-image score (CLIP-T) over many subjects, accumulated batch by batch."""

    full_state_update = False
    scores: list[Tensor]
    subjects: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for state in ("scores", "subjects"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, scores_B: Tensor, subject: int) -> None:
        """Adds the scores [B] of images of `subject`."""
        self.scores.append(scores_B.detach().to(torch.float32))
        self.subjects.append(torch.full((len(scores_B),), subject, device=scores_B.device))

    def compute(self) -> dict[str, Tensor]:
        """`subject_mean` (the headline) and `pooled_mean`."""
        scores_B, subjects_B = dim_zero_cat(self.scores), dim_zero_cat(self.subjects)
        scores = {
            str(subject): scores_B[subjects_B == subject].tolist() for subject in sorted(set(subjects_B.tolist()))
        }
        return {
            "subject_mean": torch.tensor(mean_of_subject_means(scores), dtype=torch.float64),
            "pooled_mean": torch.tensor(pooled_mean(scores), dtype=torch.float64),
        }

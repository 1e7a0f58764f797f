"""Best of n: the scores that images are chosen by, the choice, and how much choosing flatters."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from boothlab.errors import UserError
from boothlab.evaluation.encoders import TextImageEncoder
from boothlab.evaluation.fidelity import image_alignment, text_alignment

BIAS = (
    "the chosen images were picked by this very score, so their scores are higher than those of images that were not "
    "picked, and the two must not be compared"
)
"""What is said wherever chosen images come with scores."""


@dataclass(frozen=True)
class Candidate:
    """One image that could be chosen: which wanted image it stands for, its own seed, its raw cosines in [-1, 1].

    `clip_i` is None without photos of the subject. `value` is what it is chosen by.
    """

    wanted: int
    seed: int
    clip_t: float
    clip_i: float | None
    value: float


def candidate_seeds(seed: int, n: int) -> list[int]:
    """The n seeds that stand for one image seed: s·n to s·n+n-1. Those of different image seeds never meet."""
    return list(range(seed * n, seed * n + n))


def weighted(clip_t_B: Tensor, clip_i_B: Tensor, weight: float) -> Tensor:
    """weight · CLIP-I + (1 - weight) · CLIP-T, float32 [B]. Raw cosines: the one that varies more decides more."""
    return weight * clip_i_B + (1 - weight) * clip_t_B


def score_candidates(
    encoder: TextImageEncoder,
    images: Sequence[Tensor],
    seeds: Sequence[int],
    wanted: Sequence[int],
    texts: Sequence[str],
    references_RD: Tensor | None,
    by: str,
    weight: float = 0.5,
) -> list[Candidate]:
    """Score uint8 [3, H, W] images, each with its text (without the unique token), by clip_t, clip_i or balanced.

    `references_RD` are the features of the subject's photos. UserError when `by` needs them and there are none.
    """
    if references_RD is None and by != "clip_t":
        raise UserError(
            f"best_by={by}: compares with the subject's photos; give run=RUN of a training, or best_by=clip_t"
        )
    features_BD = encoder.encode_images(images)
    clip_t_B = text_alignment(features_BD, encoder.encode_texts(texts))
    clip_i_B = None if references_RD is None else image_alignment(features_BD, references_RD)
    value_B = clip_t_B
    if clip_i_B is not None and by != "clip_t":
        value_B = clip_i_B if by == "clip_i" else weighted(clip_t_B, clip_i_B, weight)
    likeness = [None] * len(images) if clip_i_B is None else clip_i_B.tolist()
    rows = zip(wanted, seeds, clip_t_B.tolist(), likeness, value_B.tolist(), strict=True)
    return [Candidate(*row) for row in rows]


def choose(candidates: Sequence[Candidate]) -> list[int]:
    """The place of the best candidate of each wanted image, in the order of the wanted; the first of equals."""
    best: dict[int, int] = {}
    for place, one in enumerate(candidates):
        held = best.get(one.wanted)
        if held is None or one.value > candidates[held].value:
            best[one.wanted] = place
    return [best[wanted] for wanted in sorted(best)]


def flattery(candidates: Sequence[Candidate]) -> tuple[float, float]:
    """The mean score of all candidates, and that of the chosen alone: what choosing by a score does to that score."""
    values = torch.tensor([one.value for one in candidates], dtype=torch.float64)
    chosen = values[torch.tensor(choose(candidates))]
    return float(values.mean()), float(chosen.mean())

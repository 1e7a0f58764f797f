"""The maths of memorisation: each generated image's nearest photo, against how alike the photos are themselves."""

from dataclasses import dataclass

import torch
from torch import Tensor

from boothlab.evaluation.fidelity import ceiling, cosine_matrix


@dataclass(frozen=True)
class Neighbours:
    """For each of G images: the place of its nearest photo and the cosine. Limits are None for a single photo.

    `ceiling` is the real-image ceiling of the evaluation, the mean over pairs of photos. `closest` is the cosine of the
    two photos that are most alike: an image nearer to a photo than that is nearer than any other photo.
    """

    nearest: list[int]
    cosine: list[float]
    ceiling: float | None
    closest: float | None

    @property
    def above_ceiling(self) -> list[bool]:
        """Nearer to a photo than photos are to each other on average."""
        return [self.ceiling is not None and value > self.ceiling for value in self.cosine]

    @property
    def above_closest(self) -> list[bool]:
        """Nearer to a photo than any two photos are."""
        return [self.closest is not None and value > self.closest for value in self.cosine]


def nearest_references(generated_GD: Tensor, references_RD: Tensor) -> Neighbours:
    """The nearest reference of each generated image by cosine; the first of equals."""
    found_GR = cosine_matrix(generated_GD, references_RD)
    best = found_GR.max(dim=1)
    return Neighbours(
        best.indices.tolist(), best.values.tolist(), ceiling(references_RD).value, _closest(references_RD)
    )


def _closest(references_RD: Tensor) -> float | None:
    count = len(references_RD)
    if count < 2:
        return None
    rows, columns = torch.triu_indices(count, count, offset=1)
    return float(cosine_matrix(references_RD, references_RD)[rows, columns].max())

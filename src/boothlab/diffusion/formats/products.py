"""Updates that are products of small matrices, after LyCORIS: Hadamard's of a LoHa, Kronecker's of a LoKr."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

HADAMARD = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
KRONECKER = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
"""The factors' names, the same in LyCORIS' files and in PEFT's."""


def rank_of(factors: Mapping[str, Tensor]) -> int | None:
    """The rank that the factors have; None for a LoKr whose two sides are whole, which have none."""
    return next((int(value.shape[0]) for kind, value in sorted(factors.items()) if kind.endswith("_b")), None)


@dataclass(frozen=True)
class ProductWeights(ABC):
    """One layer's update by its factors, scaled by alpha / rank."""

    factors: Mapping[str, Tensor]
    alpha: float
    rank: int

    @property
    @abstractmethod
    def variant(self) -> str:
        """loha or lokr."""

    @property
    @abstractmethod
    def update_shape(self) -> tuple[int, int]:
        """(out, in · kh · kw) of the weight that it is for."""

    @property
    @abstractmethod
    def is_consistent(self) -> bool:
        """Whether its factors can be multiplied; the other properties may fail otherwise."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Its numbers by name."""
        return self.factors

    @property
    def is_zero(self) -> bool:
        """Whether it changes nothing."""
        return self.alpha == 0 or not all(bool(value.any()) for value in self.factors.values())


@dataclass(frozen=True)
class HadamardWeights(ProductWeights):
    """LoHa: W + alpha / rank * (w1_a @ w1_b) ∘ (w2_a @ w2_b), of `hada_w1_a` [out, rank], `hada_w1_b` [rank, in] …"""

    @property
    def variant(self) -> str:
        """loha."""
        return "loha"

    @property
    def update_shape(self) -> tuple[int, int]:
        """(out, in · kh · kw) of the weight that it is for."""
        return int(self.factors["hada_w1_a"].shape[0]), int(self.factors["hada_w1_b"].shape[1])

    @property
    def is_consistent(self) -> bool:
        """Whether both matrices are the product of two, of one shape and one rank."""
        first, second = (
            [tuple(self.factors[f"hada_{side}_{end}"].shape) for end in "ab"] for side in ("w1", "w2")
        )  # fmt: skip
        if first != second or any(len(shape) != 2 for shape in first):
            return False
        return first[0][1] == first[1][0] and 0 not in (*first[0], *first[1])


@dataclass(frozen=True)
class KroneckerWeights(ProductWeights):
    """LoKr: W + alpha / rank * w1 ⊗ w2, each side whole (`lokr_w1`) or the product of two (`lokr_w1_a @ lokr_w1_b`).

    With both sides whole the rank is only a part of the scale: LyCORIS and ComfyUI then scale by 1, PEFT by
    alpha / rank.
    """

    @property
    def variant(self) -> str:
        """lokr."""
        return "lokr"

    @property
    def is_whole(self) -> bool:
        """Whether neither side is a product."""
        return "lokr_w1" in self.factors and "lokr_w2" in self.factors

    @property
    def is_consistent(self) -> bool:
        """Whether each side is there once, and its two matrices have one rank."""
        shapes = {kind: tuple(value.shape) for kind, value in self.factors.items()}
        ranks = set()
        for side, whole in (("lokr_w1", (2,)), ("lokr_w2", (2, 4))):
            a, b = shapes.get(f"{side}_a"), shapes.get(f"{side}_b")
            if (side in shapes) == (a is not None or b is not None):
                return False
            if side in shapes and (len(shapes[side]) not in whole or 0 in shapes[side]):
                return False
            if side not in shapes:
                if a is None or b is None or len(a) != 2 or len(b) != 2 or a[1] != b[0] or 0 in (*a, *b):
                    return False
                ranks.add(a[1])
        return len(ranks) <= 1

    def side(self, name: str) -> tuple[int, int]:
        """Rows and columns of `lokr_w1` or `lokr_w2`; of a convolution's w2 the columns are in · kh · kw."""
        if name in self.factors:
            rows, *columns = self.factors[name].shape
            return int(rows), math.prod(map(int, columns))
        return int(self.factors[f"{name}_a"].shape[0]), int(self.factors[f"{name}_b"].shape[1])

    @property
    def update_shape(self) -> tuple[int, int]:
        """(out, in · kh · kw) of the weight that it is for."""
        (rows, columns), (more_rows, more_columns) = self.side("lokr_w1"), self.side("lokr_w2")
        return rows * more_rows, columns * more_columns

    @property
    def least_rank(self) -> int:
        """The rank from which on LyCORIS and PEFT leave w2 whole: half its longer side (its kernel left out)."""
        rows, columns = self.factors["lokr_w2"].shape[:2] if self.is_whole else (0, 0)
        return math.ceil(max(rows, columns) / 2)

    def folded(self) -> "KroneckerWeights":
        """The same update with alpha equal to the rank: the scale is multiplied into w1, rounded to its precision.

        A layer of which one side is not whole stays as it is: every reader scales it by alpha / rank.
        """
        if not self.is_whole or (self.alpha == self.rank and self.rank >= self.least_rank):
            return self
        left, rank = self.factors["lokr_w1"], max(self.rank, self.least_rank)
        scaled = (left.double() * (self.alpha / self.rank)).to(left.dtype)
        return replace(self, factors={**self.factors, "lokr_w1": scaled}, alpha=float(rank), rank=rank)

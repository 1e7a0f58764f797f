"""What an adapter is, whatever its file looked like: each layer's matrices and alpha, under one set of names."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from boothlab.diffusion.formats.products import HadamardWeights, KroneckerWeights

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class LayerWeights:
    """One layer's update: W' = W + alpha / rank * up @ down, and of a DoRA W' · magnitude / ‖W'‖, row by row.

    `down` is [rank, in] or, of a convolution, [rank, in, kh, kw]; `up` is [out, rank] or [out, rank, 1, 1];
    `magnitude` is [out], None for a plain LoRA.
    """

    down: Tensor
    up: Tensor
    alpha: float
    magnitude: Tensor | None = None

    @property
    def variant(self) -> str:
        """lora or dora."""
        return "lora" if self.magnitude is None else "dora"

    @property
    def rank(self) -> int:
        """Rows of down."""
        return int(self.down.shape[0])

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Its numbers by name."""
        extra = {} if self.magnitude is None else {"magnitude": self.magnitude}
        return {"down": self.down, "up": self.up, **extra}

    @property
    def is_zero(self) -> bool:
        """Whether it adds nothing; a DoRA's magnitudes are then those that training started from."""
        return self.alpha == 0 or not bool(self.up.any()) or not bool(self.down.any())

    def folded(self) -> "LayerWeights":
        """The same update with alpha equal to the rank: the scale is multiplied into up, rounded to its precision."""
        if self.alpha == self.rank:
            return self
        up = (self.up.double() * (self.alpha / self.rank)).to(self.up.dtype)
        return replace(self, up=up, alpha=float(self.rank))


Layer = LayerWeights | HadamardWeights | KroneckerWeights
"""One layer's update, of any kind."""


@dataclass(frozen=True)
class Adapter:
    """An adapter of a Stable Diffusion pipeline.

    `components` has the layers of `unet`, `text_encoder` and `text_encoder_2` by the names of their modules: diffusers'
    for the UNet, and for text encoders with `text_model.` in front, as transformers 4 has them. `embeddings` are the
    words of a textual inversion that came with it, [width] or [vectors, width]. `metadata` is what its file said.
    """

    components: Mapping[str, Mapping[str, Layer]]
    embeddings: Mapping[str, Tensor] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    format: str = ""
    notes: tuple[str, ...] = ()

    def layers(self) -> Iterator[tuple[str, str, Layer]]:
        """(component, module, weights) of each layer, in a fixed order."""
        for component in COMPONENTS:
            for path, layer in sorted(self.components.get(component, {}).items()):
                yield component, path, layer

    @property
    def variants(self) -> Counter[str]:
        """How many layers are of each kind: lora, dora, loha, lokr."""
        return Counter(layer.variant for _, _, layer in self.layers())

    @property
    def ranks(self) -> Counter[int]:
        """How many layers have each rank."""
        return Counter(layer.rank for _, _, layer in self.layers())

    @property
    def alphas(self) -> Counter[float]:
        """How many layers have each alpha."""
        return Counter(layer.alpha for _, _, layer in self.layers())

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The precisions of its matrices, as `float16`."""
        found = {str(value.dtype) for _, _, layer in self.layers() for value in layer.tensors.values()}
        return tuple(sorted(name.removeprefix("torch.") for name in found))

    @property
    def is_zero(self) -> bool:
        """Whether no layer changes anything."""
        return all(layer.is_zero for _, _, layer in self.layers())


def same_update(first: Adapter, second: Adapter) -> bool:
    """Whether two adapters have the same layers with the same numbers, ranks and alphas, bit for bit."""
    ours, theirs = ({(c, p): w for c, p, w in one.layers()} for one in (first, second))
    if ours.keys() != theirs.keys():
        return False
    return all(_same_layer(weights, theirs[key]) for key, weights in ours.items())


def _same_layer(first: Layer, second: Layer) -> bool:
    if (first.variant, first.rank, first.alpha) != (second.variant, second.rank, second.alpha):
        return False
    ours, theirs = first.tensors, second.tensors
    return ours.keys() == theirs.keys() and all(_same(ours[kind], theirs[kind]) for kind in ours)


def _same(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and first.shape == second.shape and torch.equal(first, second)


def low_rank(layers: Mapping[str, Layer]) -> dict[str, LayerWeights]:
    """The layers for a format that holds LoRA and DoRA alone. Raises ValueError for others, to be refused before."""
    found = {path: layer for path, layer in layers.items() if isinstance(layer, LayerWeights)}
    if len(found) < len(layers):
        raise ValueError("a LoHa or LoKr has no down and up matrices")
    return found


def plain_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without the two ones at the end that a 1 × 1 convolution has and a linear layer lacks."""
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else shape


def as_text(number: float) -> str:
    """A rank or alpha as tools write it: `4`, `0.5`; every digit that is needed to read it back."""
    return str(int(number)) if float(number).is_integer() else repr(float(number))

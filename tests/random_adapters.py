"""Adapters with seeded random numbers for an architecture, for tests of file formats and publishing."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch
from peft.tuners.lokr.layer import factorization

from boothlab.diffusion.formats.adapter import Adapter, Layer, LayerWeights
from boothlab.diffusion.formats.architecture import Architecture
from boothlab.diffusion.formats.products import HadamardWeights, KroneckerWeights

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")


def random_layer(
    shape: Sequence[int], rank: int, alpha: float, stream: torch.Generator, dtype: torch.dtype = torch.float32
) -> LayerWeights:
    """One layer's matrices, large enough that an image changes."""
    down = torch.randn(rank, *shape[1:], generator=stream) / rank
    up = torch.randn(shape[0], rank, *([1] * (len(shape) - 2)), generator=stream) * 0.3
    return LayerWeights(down.to(dtype), up.to(dtype), float(alpha))


def random_adapter(
    architecture: Architecture,
    *,
    endings: Sequence[str] = ATTENTION,
    components: Sequence[str] = ("unet", "text_encoder", "text_encoder_2"),
    ranks: Sequence[int] = (4,),
    alphas: Sequence[float] = (6.0,),
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    metadata: Mapping[str, str] | None = None,
) -> Adapter:
    """Matrices for every layer whose name has one of the endings; ranks and alphas take turns over the layers."""
    stream = torch.Generator().manual_seed(seed)
    made: dict[str, dict[str, LayerWeights]] = {}
    number = 0
    for component in components:
        for path, shape in sorted(architecture.shapes.get(component, {}).items()):
            if not path.endswith(tuple(endings)):
                continue
            rank, alpha = ranks[number % len(ranks)], alphas[number % len(alphas)]
            made.setdefault(component, {})[path] = random_layer(shape, rank, alpha, stream, dtype)
            number += 1
    return Adapter(made, {}, dict(metadata or {}), "diffusers")


def random_variant_layer(
    variant: str,
    shape: Sequence[int],
    rank: int,
    alpha: float,
    stream: torch.Generator,
    dtype: torch.dtype = torch.float32,
    *,
    factor: int = -1,
    decompose_both: bool = False,
) -> Layer:
    """One layer of a kind, for a weight of a shape; LoKr's factors have the shapes that LyCORIS and PEFT give them."""

    def drawn(*size: int) -> torch.Tensor:
        return (torch.randn(*size, generator=stream) / math.sqrt(rank)).to(dtype)

    if variant in ("lora", "dora"):
        layer = random_layer(shape, rank, alpha, stream, dtype)
        rows = torch.rand(shape[0], generator=stream) + 0.5
        return dataclasses.replace(layer, magnitude=rows.to(dtype)) if variant == "dora" else layer
    out, flat, kernel = shape[0], math.prod(shape[1:]), tuple(shape[2:])
    if variant == "loha":
        sizes = {"a": (out, rank), "b": (rank, flat)}
        factors = {f"hada_{side}_{end}": drawn(*size) for side in ("w1", "w2") for end, size in sizes.items()}
        return HadamardWeights(factors, float(alpha), rank)
    (left, right), (left_in, right_in) = factorization(out, factor), factorization(shape[1], factor)
    if decompose_both and rank < max(left, left_in) / 2:
        factors = {"lokr_w1_a": drawn(left, rank), "lokr_w1_b": drawn(rank, left_in)}
    else:
        factors = {"lokr_w1": drawn(left, left_in)}
    if rank < max(right, right_in) / 2:
        factors |= {"lokr_w2_a": drawn(right, rank), "lokr_w2_b": drawn(rank, right_in * math.prod(kernel))}
    else:
        factors["lokr_w2"] = drawn(right, right_in, *kernel)
    made = KroneckerWeights(factors, float(alpha), rank)
    return dataclasses.replace(made, alpha=float(rank)) if made.is_whole else made


def random_variant(
    architecture: Architecture,
    variant: str,
    *,
    endings: Sequence[str] = ATTENTION,
    ranks: Sequence[int] = (2,),
    alphas: Sequence[float] = (3.0,),
    dtype: torch.dtype = torch.float32,
    metadata: Mapping[str, str] | None = None,
    **settings: int,
) -> Adapter:
    """An adapter of a kind for every layer whose name has one of the endings, in all networks."""
    stream = torch.Generator().manual_seed(0)
    made: dict[str, dict[str, Layer]] = {}
    number = 0
    for component, shapes in architecture.shapes.items():
        for path, shape in sorted(shapes.items()):
            if path.endswith(tuple(endings)):
                rank, alpha = ranks[number % len(ranks)], alphas[number % len(alphas)]
                layer = random_variant_layer(variant, shape, rank, alpha, stream, dtype, **settings)  # type: ignore[arg-type]
                made.setdefault(component, {})[path] = layer
                number += 1
    return Adapter(made, {}, dict(metadata or {}), "diffusers")

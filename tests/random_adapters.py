"""Adapters with seeded random numbers for an architecture, for tests of file formats and publishing."""

from collections.abc import Mapping, Sequence

import torch

from boothlab.diffusion.formats.adapter import Adapter, LayerWeights
from boothlab.diffusion.formats.architecture import Architecture

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

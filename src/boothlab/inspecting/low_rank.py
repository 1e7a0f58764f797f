"""The maths of a low-rank update ΔW = scale · B·A: its norm and ranks from the factors, never from the full matrix."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class UpdateNumbers:
    """One layer's update. `relative` is ‖ΔW‖/‖W‖; ranks are 0 for an update of zero, `rank` is the one it may have."""

    norm: float
    base_norm: float
    relative: float
    spectral: float
    effective_rank: float
    stable_rank: float
    rank: int


def singular_values(up: Tensor, down: Tensor) -> Tensor:
    """The singular values of B·A, float64 [r], largest first, for B [out, r] and A [r, in].

    B = Q₁R₁ and Aᵀ = Q₂R₂ give B·A = Q₁(R₁R₂ᵀ)Q₂ᵀ: the values are those of an r × r matrix.
    """
    up64, down64 = up.detach().to("cpu", torch.float64), down.detach().to("cpu", torch.float64)
    _, small_up = torch.linalg.qr(up64)
    _, small_down = torch.linalg.qr(down64.T)
    return torch.linalg.svdvals(small_up @ small_down.T)


def effective_rank(values: Tensor) -> float:
    """exp(H(σ/Σσ)), Roy & Vetterli 2007: k equal singular values give k, one gives 1; 0 if all are zero."""
    total = values.sum()
    if total <= 0:
        return 0.0
    shares = values / total
    return float(torch.exp(-torch.special.xlogy(shares, shares).sum()))


def stable_rank(values: Tensor) -> float:
    """Σσ² / σ_max², at most the rank and blind to small directions; 0 if all are zero."""
    largest = values.max()
    return float(values.square().sum() / largest.square()) if largest > 0 else 0.0


def flat_factors(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The factors as matrices: a convolution's up [out, r, 1, 1] and down [r, in, kh, kw] are flattened."""
    return up.flatten(1), down.flatten(1)


def measure_update(up: Tensor, down: Tensor, scale: float, base: Tensor) -> UpdateNumbers:
    """All numbers of ΔW = scale · B·A beside its base weight W; `scale` is alpha/rank times the adapter's own scale.

    Frobenius norms. Convolutions are read as matrices [out, in·kh·kw], which is what their LoRA factorises.
    """
    matrices = flat_factors(up, down)
    values = singular_values(*matrices) * abs(scale)
    return _numbers(values, base, int(matrices[1].shape[0]))


def measure_dense(update: Tensor, base: Tensor, rank: int) -> UpdateNumbers:
    """The same of an update that is only known as a whole; `rank` is what its method calls its rank."""
    return _numbers(torch.linalg.svdvals(update.detach().to("cpu", torch.float64).flatten(1)), base, rank)


def _numbers(values: Tensor, base: Tensor, rank: int) -> UpdateNumbers:
    norm = float(values.square().sum().sqrt())
    base_norm = float(torch.linalg.vector_norm(base.detach().to("cpu", torch.float64)))
    return UpdateNumbers(
        norm=norm,
        base_norm=base_norm,
        relative=norm / base_norm if base_norm > 0 else float("inf") if norm > 0 else 0.0,
        spectral=float(values.max()),
        effective_rank=effective_rank(values),
        stable_rank=stable_rank(values),
        rank=rank,
    )

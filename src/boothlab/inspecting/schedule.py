"""The noise schedule's maths: signal and noise levels, SNR, and the clean image that a prediction implies.

Formulas: DDPM (Ho et al. 2020, arXiv 2006.11239, eq. 4 and 15), v-prediction (Salimans & Ho 2022, arXiv 2202.00512).
"""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

#: samplers whose latents are x0 + σ·noise, not scaled to unit variance
UNSCALED = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler")


@dataclass(frozen=True)
class NoiseLevel:
    """How noisy a latent is: x = signal · x0 + noise · ε."""

    signal: float
    noise: float

    @property
    def alpha_bar(self) -> float:
        """ᾱ, the share of the signal in the variance, 0 to 1."""
        return self.signal**2 / (self.signal**2 + self.noise**2)

    @property
    def snr(self) -> float:
        """Signal-to-noise ratio ᾱ / (1 - ᾱ); infinite without noise."""
        return self.signal**2 / self.noise**2 if self.noise else math.inf

    @property
    def snr_db(self) -> float:
        """The SNR in decibels."""
        return 10 * math.log10(self.snr) if 0 < self.snr < math.inf else math.copysign(math.inf, self.snr - 1)


def level_of_alpha_bar(alpha_bar: float) -> NoiseLevel:
    """x = √ᾱ · x0 + √(1 - ᾱ) · ε."""
    return NoiseLevel(math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar))


def predicted_clean(sample: Tensor, prediction: Tensor, level: NoiseLevel, prediction_type: str) -> Tensor:
    """x̂0 from a noisy latent and what the UNet says of it; same shape as `sample`.

    epsilon: (x - σ·ε) / α. v_prediction: α'·x' - σ'·v, on the latent scaled to unit variance (α'² + σ'² = 1).
    sample: the prediction itself. ValueError for another type.
    """
    if prediction_type == "sample":
        return prediction
    if prediction_type == "epsilon":
        return (sample - level.noise * prediction) / level.signal
    if prediction_type == "v_prediction":
        norm = math.hypot(level.signal, level.noise)
        return (level.signal * sample / norm - level.noise * prediction) / norm
    raise ValueError(f"prediction_type {prediction_type!r} is not known")


def level_at(scheduler: Any, index: int, timestep: Any) -> NoiseLevel:
    """The noise level of the latent that a diffusers scheduler is given at its `index`-th step.

    Schedulers with a table of σ (in the σ = √((1-ᾱ)/ᾱ) of Karras et al. 2022, arXiv 2206.00364) are read by index,
    since their timesteps are rounded; the others by ᾱ of the timestep.
    """
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None:
        return level_of_alpha_bar(float(scheduler.alphas_cumprod[int(timestep)]))
    sigma = float(sigmas[index])
    if type(scheduler).__name__ in UNSCALED:
        return NoiseLevel(1.0, sigma)
    return level_of_alpha_bar(1 / (1 + sigma**2))

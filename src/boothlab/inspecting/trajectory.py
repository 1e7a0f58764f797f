"""The recorder of a denoising: at each step the clean latents that the prediction implies, beside the usual drawing."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boothlab.diffusion.backbone import Backbone
from boothlab.diffusion.sampling import Sampler, SamplerSettings
from boothlab.inspecting.schedule import NoiseLevel, level_at, predicted_clean


@dataclass(frozen=True)
class Trajectory:
    """One batch's way from noise: at each of K steps the timestep, the noise level and x̂0, latents [K, N, C, h, w]."""

    timesteps: list[float]
    levels: list[NoiseLevel]
    steps_KNCHW: Tensor


class RecordingSampler(Sampler):
    """Draws the very images that Sampler draws, and keeps what each step predicted (guidance included)."""

    def __init__(self, backbone: Backbone, settings: SamplerSettings):
        super().__init__(backbone, settings)
        self._clean: list[Tensor] = []
        self._levels: list[NoiseLevel] = []
        self._timesteps: list[float] = []

    def trajectory(self) -> Trajectory:
        """What was recorded of the last batch. ValueError before anything was drawn."""
        if not self._clean:
            raise ValueError("nothing was drawn yet")
        return Trajectory(list(self._timesteps), list(self._levels), torch.stack(self._clean))

    @contextmanager
    def _ready(self) -> Iterator[None]:
        with super()._ready():
            scheduler = self.backbone.pipeline.scheduler
            self._clean, self._levels, self._timesteps = [], [], []
            scheduler.step = self._watched(scheduler)
            yield

    def _watched(self, scheduler: Any) -> Any:
        step, kind = scheduler.step, str(scheduler.config.prediction_type)

        @functools.wraps(step)  # the pipeline asks the signature which arguments it may pass
        def watched(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            level = level_at(scheduler, len(self._clean), timestep)
            clean = predicted_clean(sample.detach().float(), model_output.detach().float(), level, kind)
            self._clean.append(clean.cpu())
            self._levels.append(level)
            self._timesteps.append(float(timestep))
            return step(model_output, timestep, sample, *args, **kwargs)

        return watched


def spread(count: int, columns: int) -> list[int]:
    """At most `columns` of `count` places, evenly, the first and the last among them."""
    if count <= columns:
        return list(range(count))
    return [round(index * (count - 1) / (columns - 1)) for index in range(columns)]

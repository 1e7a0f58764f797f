"""An exponential moving average of the adapter."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from boothlab.diffusion.sharding import parted_like


class AdapterEma:
    """Keeps a running average of the adapter's parameters and lends it to the networks for evaluation and saving."""

    def __init__(self, parameters: Mapping[str, Tensor], decay: float):
        self.parameters, self.decay = dict(parameters), decay
        self.shadow = {name: value.detach().clone() for name, value in self.parameters.items()}

    def take(self, average: Mapping[str, Tensor]) -> None:
        """Go on from a saved average."""
        self.shadow = {
            name: parted_like(average[name].to(value.device, copy=True), value)
            for name, value in self.parameters.items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average after optimizer step `step` (from 1); early steps count more, as in diffusers' EMAModel."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in self.parameters.items():
            self.shadow[name].lerp_(value.detach(), 1.0 - decay)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """The networks carry the average inside this block and their own weights again after it."""
        own = {name: value.detach().clone() for name, value in self.parameters.items()}
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(self.shadow[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in self.parameters.items():
                    value.copy_(own[name])

"""Keeps off the device what a training step does not need: the VAE, and text encoders that are not trained."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from boothlab.diffusion.backbone import Backbone
from boothlab.diffusion.lora import trainable


class Parking:
    """Parks networks in main memory while training, and fetches them for an evaluation. Nothing moves on a CPU.

    Latents and, with frozen text encoders, embeddings were made before the first step and stay.
    """

    def __init__(self, backbone: Backbone):
        self.device = backbone.device
        text = [encoder for encoder in backbone.text_encoders.values() if not trainable(encoder)]
        self.networks: list[nn.Module] = [backbone.vae, *text]

    def park(self) -> None:
        """Move them to main memory."""
        self._move(torch.device("cpu"))

    @contextmanager
    def fetched(self) -> Iterator[None]:
        """They are on the device in this block."""
        self._move(self.device)
        try:
            yield
        finally:
            self.park()

    def _move(self, device: torch.device) -> None:
        if self.device.type == "cpu":
            return
        for network in self.networks:
            network.to(device)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

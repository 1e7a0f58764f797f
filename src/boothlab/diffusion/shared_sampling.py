"""Drawing images on several devices: the leading rank asks, every rank draws its batches, the leader gets them all."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from boothlab.diffusion.backbone import Backbone
from boothlab.diffusion.learned_words import without_words
from boothlab.diffusion.sampling import Request, Sampler, SamplerSettings
from boothlab.ranks import Ranks


@dataclass(frozen=True)
class _Order:
    """What the leader wants drawn, and how."""

    settings: SamplerSettings
    requests: tuple[Request, ...]
    wordless: bool


def _shared_out(order: _Order, ranks: Ranks) -> list[Request]:
    """The requests of this rank: every `size`-th batch, cut as on one device, so that no image's bits move."""
    size = order.settings.batch_size
    starts = range(ranks.rank * size, len(order.requests), ranks.size * size)
    return [request for start in starts for request in order.requests[start : start + size]]


class SharedSampler(Sampler):
    """The leader's sampler. Each image is drawn once, by one of the ranks; the others must be in `serve`."""

    def __init__(self, backbone: Backbone, settings: SamplerSettings, ranks: Ranks):
        super().__init__(backbone, settings)
        self.ranks = ranks

    def draw(self, requests: Sequence[Request], progress: Callable[[int], None] | None = None) -> Tensor:
        """All images as one uint8 [N, 3, H, W] tensor in the order asked for; `progress` counts those of all ranks."""
        order = _Order(self.settings, tuple(requests), self.backbone.learned is None)
        self.ranks.broadcast(order)
        mine, told = [], 0
        for batch in self.batches(_shared_out(order, self.ranks)):
            mine.append(batch)
            if progress:
                done = min(len(requests), told + self.ranks.size * self.settings.batch_size)
                progress(done - told)
                told = done
        of_ranks = self.ranks.gather(mine)
        drawn = [batch for turn in zip_longest(*of_ranks) for batch in turn if batch is not None]
        shape = (0, 3, self.backbone.resolution, self.backbone.resolution)
        return torch.cat(drawn) if drawn else torch.empty(shape, dtype=torch.uint8)


def dismiss(ranks: Ranks) -> None:
    """The leader has no more to draw for now: the others leave `serve`."""
    ranks.broadcast(None)


def serve(backbone: Backbone, ranks: Ranks) -> None:
    """Draw what the leader asks for, with the networks as they are, until it dismisses this rank."""
    nothing: _Order | None = None
    while (order := ranks.broadcast(nothing)) is not None:
        sampler = Sampler(backbone, order.settings)
        with without_words(backbone) if order.wordless else nullcontext():
            ranks.gather(list(sampler.batches(_shared_out(order, ranks))))

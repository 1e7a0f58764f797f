"""The recorder of cross-attention: probabilities of every token at every place, through diffusers' processors.

After DAAM (Tang et al. 2022, arXiv 2210.04885), as means and not sums: over heads, layers and steps. A mean of
probabilities is one again, so at every place the tokens' shares sum to 1.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn.functional import interpolate


class AttentionMaps:
    """The running mean of the cross-attention of `images` images, over heads, layers and steps."""

    def __init__(self, images: int, side: int):
        """`side` is that of the latents; maps of deeper layers are enlarged to it."""
        self.images, self.side = images, side
        self.layers: set[str] = set()
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, layer: str, probabilities_BHQT: Tensor) -> None:
        """One layer at one step: [batch, heads, places, tokens]. Of a guided batch the last rows have the prompt."""
        shares_NQT = probabilities_BHQT[-self.images :].float().mean(dim=1)
        side = math.isqrt(shares_NQT.shape[1])
        if side * side != shares_NQT.shape[1]:
            raise ValueError(f"{layer}: {shares_NQT.shape[1]} places are no square")
        maps_NTHW = shares_NQT.transpose(1, 2).unflatten(2, (side, side))
        # Bilinear: its weights sum to 1 at each place, so the shares still do.
        large_NTHW = interpolate(maps_NTHW, (self.side, self.side), mode="bilinear", align_corners=False).cpu()
        self._sum = large_NTHW if self._sum is None else self._sum + large_NTHW
        self._count += 1
        self.layers.add(layer)

    def mean(self) -> Tensor:
        """Each token's share of the attention at each place, float32 [images, tokens, side, side], 0 to 1.

        ValueError if nothing was recorded.
        """
        if self._sum is None:
            raise ValueError("no cross-attention was recorded")
        return self._sum / self._count


class RecordingProcessor:
    """Lets the layer's own processor do the work, and computes the probabilities beside it, for the record alone."""

    def __init__(self, inner: Any, layer: str, maps: AttentionMaps):
        self.inner, self.layer, self.maps = inner, layer, maps

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **rest: Any,
    ) -> Tensor:
        """What the inner processor gives, untouched."""
        output: Tensor = self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, temb, **rest)
        if encoder_hidden_states is not None:
            self.maps.add(self.layer, probabilities(attn, hidden_states, encoder_hidden_states, attention_mask))
        return output


@torch.no_grad()
def probabilities(attn: Any, hidden: Tensor, text_BTD: Tensor, mask: Tensor | None = None) -> Tensor:
    """The attention of a diffusers layer, float32 [batch, heads, places, tokens]; sums to 1 over the tokens."""
    places = hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden
    if attn.group_norm is not None:
        places = attn.group_norm(places.transpose(1, 2)).transpose(1, 2)
    text = attn.norm_encoder_hidden_states(text_BTD) if attn.norm_cross else text_BTD
    query, key = (
        values.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for values in (attn.to_q(places), attn.to_k(text))
    )
    query = query if attn.norm_q is None else attn.norm_q(query)
    key = key if attn.norm_k is None else attn.norm_k(key)
    scores = query.float() @ key.float().transpose(-1, -2) * attn.scale
    if mask is not None:
        prepared = attn.prepare_attention_mask(mask, text.shape[1], len(text))
        scores = scores + prepared.view(len(text), attn.heads, -1, prepared.shape[-1])
    return scores.softmax(dim=-1)


@contextmanager
def recorded_attention(unet: UNet2DConditionModel, images: int, side: int) -> Iterator[AttentionMaps]:
    """Record the cross-attention of what is drawn in this block; the UNet's own processors are put back after it."""
    own = dict(unet.attn_processors)
    maps = AttentionMaps(images, side)
    unet.set_attn_processor(
        {
            name: RecordingProcessor(processor, name.removesuffix(".processor"), maps)
            if name.endswith("attn2.processor")
            else processor
            for name, processor in own.items()
        }
    )
    try:
        yield maps
    finally:
        unet.set_attn_processor(dict(own))

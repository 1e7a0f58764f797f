"""What autograd keeps of a training step, counted by running the UNet without numbers on the meta device."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boothlab.diffusion.architectures import Skeleton

DECODER_COPIES = 3
"""Tensors of the largest size that live at once in the VAE's decoder: a layer's input, its output, the shortcut."""


@dataclass
class _Count:
    """Bytes of the distinct storages that were packed; `held` keeps them alive, so that no address comes twice."""

    parameters: set[int]
    held: dict[int, Any] = field(default_factory=dict)

    def add(self, value: Any) -> Any:
        """Count one tensor and hand it back."""
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            if storage._cdata not in self.parameters:
                self.held[storage._cdata] = storage
        return value

    @property
    def total(self) -> int:
        """All of them, in bytes."""
        return sum(storage.nbytes() for storage in self.held.values())


class _Attention(torch.autograd.Function):
    """Keeps what fused attention keeps: queries, keys, values and the output, never the matrix of weights."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _fused(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    return _Attention.apply(query, key, value)


@contextmanager
def _fused_attention() -> Iterator[None]:
    before = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = _fused
    try:
        yield
    finally:
        F.scaled_dot_product_attention = before


def activation_bytes(skeleton: Skeleton, rows: int, side: int, dtype: torch.dtype, checkpointing: bool) -> int:
    """Bytes that the UNet keeps for its backward pass, for `rows` latents of side × side in a precision.

    Each distinct tensor that autograd saves is counted once. With checkpointing: the inputs of the blocks, and the most
    that computing one of them again keeps. The trained parameters decide what is saved; adapters stay float32, for
    which their inputs are copied. Workspace of the kernels is not in it.
    """
    unet = skeleton.unet
    owned = {value.untyped_storage()._cdata for value in [*unet.parameters(), *unet.buffers()]}
    outer, most = _Count(owned), 0

    def block(module: nn.Module, *inputs: Any) -> Any:
        nonlocal most
        for one in inputs:
            outer.add(one)
        inner = _Count(owned)
        with torch.autograd.graph.saved_tensors_hooks(inner.add, lambda value: value):
            output = module(*inputs)
        most = max(most, inner.total)
        return output

    if checkpointing:
        unet.enable_gradient_checkpointing(block)
    try:
        with _fused_attention(), torch.autograd.graph.saved_tensors_hooks(outer.add, lambda value: value):
            outer.add(unet(**_inputs(skeleton, rows, side, dtype), return_dict=False)[0])
    finally:
        if checkpointing:
            unet.disable_gradient_checkpointing()
    return outer.total + most


def _inputs(skeleton: Skeleton, rows: int, side: int, dtype: torch.dtype) -> dict[str, Any]:
    config = skeleton.unet.config
    made: dict[str, Any] = {"device": "meta", "dtype": dtype}
    tokens = skeleton.text_encoders["text_encoder"].config.max_position_embeddings
    states = torch.empty(rows, tokens, config.cross_attention_dim, **made).requires_grad_(True)
    inputs: dict[str, Any] = {
        "sample": torch.empty(rows, config.in_channels, side, side, **made),
        "timestep": torch.empty(rows, device="meta", dtype=torch.long),
        "encoder_hidden_states": states,
    }
    if skeleton.is_sdxl:
        pooled = skeleton.text_encoders["text_encoder_2"].config.projection_dim
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.empty(rows, pooled, **made),
            "time_ids": torch.empty(rows, 6, **made),
        }
    return inputs


@torch.no_grad()
def decoding_bytes(skeleton: Skeleton, images: int, side: int) -> int:
    """Bytes at the peak of decoding latents of side × side in float32: `DECODER_COPIES` of the largest tensor."""
    largest = 0

    def note(module: nn.Module, inputs: Sequence[Any], output: Any) -> None:
        nonlocal largest
        sizes = [one.numel() * 4 for one in (*inputs, output) if isinstance(one, Tensor)]
        largest = max(largest, *sizes)

    hooks = [one.register_forward_hook(note) for one in skeleton.vae.decoder.modules() if not list(one.children())]
    try:
        with _fused_attention():
            shape = (images, skeleton.vae.config.latent_channels, side, side)
            skeleton.vae.decode(torch.empty(shape, device="meta"), return_dict=False)
    finally:
        for hook in hooks:
            hook.remove()
    return DECODER_COPIES * largest

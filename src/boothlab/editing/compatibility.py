"""Whether an extra model belongs to the backbone: refused in one line before tensors of wrong shapes meet."""

from typing import Any

from boothlab.diffusion.backbone import Backbone
from boothlab.errors import UserError


def _same(label: str, facts: dict[str, tuple[Any, Any]], backbone: Backbone) -> None:
    for fact, (found, wanted) in facts.items():
        if found != wanted:
            raise UserError(
                f"{label}: was made for another architecture ({fact} {found}, where the backbone {backbone.name} needs "
                f"{wanted}); take the one for this backbone"
            )


def check_controlnet(label: str, net: Any, backbone: Backbone, vae_factor: int) -> None:
    """Raise UserError unless the ControlNet's features and its map's size are those of the backbone."""
    theirs, ours = net.config, backbone.unet.config
    keys = ("in_channels", "cross_attention_dim", "block_out_channels", "addition_embed_type")
    facts = {key: (_plain(theirs[key]), _plain(ours[key])) for key in keys}
    shrinks = 2 ** (len(theirs.conditioning_embedding_out_channels) - 1)
    _same(label, facts | {"its map is shrunk by": (shrinks, vae_factor)}, backbone)


def check_adapter(label: str, adapter: Any, backbone: Backbone) -> None:
    """Raise UserError unless the T2I-Adapter's features have the widths of the backbone's blocks."""
    ours = _plain(backbone.unet.config.block_out_channels)
    channels = _plain(adapter.config.channels)[: len(ours)]
    is_xl = adapter.config.adapter_type == "full_adapter_xl"
    _same(label, {"channels": (channels, ours), "for SDXL": (is_xl, backbone.is_sdxl)}, backbone)


def check_unet(label: str, unet: Any, backbone: Backbone, channels: int) -> None:
    """Raise UserError unless the UNet takes the conditions of its method and the text of the backbone."""
    theirs, ours = unet.config, backbone.unet.config
    keys = ("out_channels", "cross_attention_dim", "addition_embed_type")
    facts = {key: (theirs[key], ours[key]) for key in keys}
    _same(label, {"in_channels": (theirs.in_channels, channels)} | facts, backbone)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value

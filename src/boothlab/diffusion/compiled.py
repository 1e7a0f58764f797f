"""torch.compile for the UNet: kernels made for it, in exchange for a minute or more before the first step."""

import torch

from boothlab.diffusion.backbone import Backbone, first_line
from boothlab.errors import UserError

REGION, WHOLE = "blocks", "whole"
_SHAPES = 64
"""Shapes of a block that are compiled before torch gives up on it: resolutions, batch sizes, training and drawing."""


def compile_unet(backbone: Backbone, how: str) -> None:
    """Compile the UNet's transformer blocks (`blocks`, each kind once) or all of it (`whole`).

    Every shape is compiled for itself: kernels for any shape would depend on which one came first, and a resumed run
    could not be exact. The backbone is marked as altered: whoever shares it loads it anew. Raises UserError where
    nothing can be compiled, as without a C++ compiler.
    """
    check_compiler(backbone.device)
    torch._dynamo.config.recompile_limit = _SHAPES
    backbone.altered, backbone.compiled = True, how
    if how == REGION:
        backbone.unet.compile_repeated_blocks(dynamic=False)
    else:
        backbone.unet.compile(dynamic=False)


def check_compiler(device: torch.device) -> None:
    """Compile one addition, so that a missing compiler is known before anything long begins."""
    try:
        torch.compile(_add_one)(torch.zeros(8, device=device))
    except Exception as error:
        reason = first_line(error)
        raise UserError(
            f"trainer.compile: nothing can be compiled here ({reason}); set trainer.compile=none"
        ) from error


def _add_one(values: torch.Tensor) -> torch.Tensor:
    return values + 1

"""torch.compile for the UNet: kernels made for it, in exchange for a minute or more before the first step."""

import torch

from boothlab.diffusion.backbone import Backbone, first_line
from boothlab.diffusion.lora import trainable
from boothlab.errors import UserError

REGION, WHOLE = "blocks", "whole"
_SHAPES = 64
"""Shapes of a block that are compiled before torch gives up on it: resolutions, batch sizes, training and drawing."""

_SOUND_ON_CPU = {"cpp.max_horizontal_fusion_size": 1}
"""With more kernels side by side in a loop, torch 2.13 computes gradients of a batch of one that are a tenth off."""


def compile_unet(backbone: Backbone, how: str) -> None:
    """Compile the UNet's transformer blocks (`blocks`, each kind once) or all of it (`whole`).

    Every shape is compiled for itself: kernels for any shape would depend on which one came first, and a resumed run
    could not be exact. What earlier jobs of this process compiled is dropped, or their shapes would count towards the
    number at which torch gives up. The backbone is marked as altered: whoever shares it loads it anew. Raises UserError
    where nothing can be compiled, as without a C++ compiler, and for the whole UNet on a CPU.
    """
    # torch 2.13's gradients of a batch of one are then up to twice themselves off.
    if how == WHOLE and backbone.device.type == "cpu":
        raise UserError("trainer.compile=whole: torch computes wrong gradients with it on a CPU; use blocks or none")
    torch.compiler.reset()
    check_compiler(backbone.device)
    torch._dynamo.config.recompile_limit = _SHAPES
    backbone.altered, backbone.compiled = True, how
    options = _SOUND_ON_CPU if backbone.device.type == "cpu" else None
    if how == REGION:
        backbone.unet.compile_repeated_blocks(dynamic=False, options=options)
    else:
        backbone.unet.compile(dynamic=False, options=options)


def check_compiler(device: torch.device) -> None:
    """Compile one addition, so that a missing compiler is known before anything long begins."""
    try:
        torch.compile(_add_one)(torch.zeros(8, device=device))
    except Exception as error:
        reason = first_line(error)
        raise UserError(
            f"trainer.compile: nothing can be compiled here ({reason}); set trainer.compile=none"
        ) from error


def check_gradients(backbone: Backbone, rows: int) -> None:
    """Hold the compiled UNet's gradients for a batch of `rows` samples against those of the UNet as it is.

    A wrong kernel would train, and nobody would see it. Random latents, one step each; what is compiled is used again.
    Raises UserError when they differ by more than rounding: a hundredth of a gradient in float32, a tenth in halves.
    """
    with torch.compiler.set_stance("force_eager"):
        expected = _gradients(backbone, rows)
    found = _gradients(backbone, rows)
    limit = 0.01 if backbone.dtype == torch.float32 else 0.1
    wrong = [
        name
        for name, gradient in expected.items()
        if float((found[name] - gradient).norm()) > limit * float(gradient.norm()) + _ZERO
    ]
    if wrong:
        raise UserError(
            f"trainer.compile={backbone.compiled}: {len(wrong)} of {len(expected)} gradients come out wrong here (as "
            f"that of {wrong[0]}), by a fault of torch {torch.__version__}; set trainer.compile=none"
        )


_ZERO = 1e-7
"""The norm of a gradient that is nothing but rounding, as of a layer whose other half is still zero."""


def _gradients(backbone: Backbone, rows: int) -> dict[str, torch.Tensor]:
    """Of every trained value of the UNet, by name, with the same noise, timesteps and text each time."""
    chance = torch.Generator().manual_seed(0)
    noisy_BCHW, target_BCHW = (torch.randn((rows, *backbone.latent_shape), generator=chance) for _ in range(2))
    times_B = torch.linspace(100, 900, rows).long().to(backbone.device)
    values = trainable(backbone.unet)
    mixed = torch.autocast(backbone.device.type, dtype=backbone.dtype, enabled=backbone.dtype != torch.float32)
    with torch.no_grad():
        text = backbone.embed(backbone.tokenize(["a photo"] * rows))
    with mixed:
        predicted_BCHW = backbone.predict(noisy_BCHW.to(backbone.device), times_B, text)
    loss = (predicted_BCHW.float() - target_BCHW.to(backbone.device)).pow(2).mean()
    gradients = torch.autograd.grad(loss, list(values.values()), allow_unused=True)
    return {
        name: gradient.detach().float()
        for name, gradient in zip(values, gradients, strict=True)
        if gradient is not None
    }


def _add_one(values: torch.Tensor) -> torch.Tensor:
    return values + 1

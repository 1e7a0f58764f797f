"""Bad input, refused in one line before any model runs."""

import math
from collections.abc import Sequence

import numpy as np

from boothlab.diffusion.sampling import SAMPLERS
from boothlab.editing.conditions import require_opencv
from boothlab.editing.edits import Edit
from boothlab.editing.models import EditParts
from boothlab.editing.requests import (
    COMPUTED_CONTROLS,
    PARTIAL,
    EditInput,
    EditMethod,
    EditSettings,
    control_kinds,
    needs,
    steps_run,
)
from boothlab.errors import UserError

MEANS = {
    "instruction": "an instruction",
    "source_caption": "a caption of the source",
    "target_caption": "a caption of the target",
}


def check(
    method: EditMethod, inputs: Sequence[EditInput], settings: EditSettings, parts: EditParts | None = None
) -> None:
    """Raise UserError for the first thing that would not work: a setting, an input, and with `parts` a model.

    Without `parts` nothing that depends on the models is looked at.
    """
    _check_settings(method, settings)
    if parts is not None:
        _check_parts(method, settings, parts)
    for index, one in enumerate(inputs):
        where = one.name or f"input {index}"
        _check_input(where, method, one, settings, parts)


def _refuse(condition: bool, message: str) -> None:
    if condition:
        raise UserError(message)


def _check_settings(method: EditMethod, settings: EditSettings) -> None:
    if method is EditMethod.copy:
        return
    _refuse(settings.steps < 1, f"steps={settings.steps}: must be at least 1")
    _refuse(
        settings.scheduler is not None and settings.scheduler not in SAMPLERS,
        f"scheduler={settings.scheduler}: is not known; choose one of {', '.join(SAMPLERS)}",
    )
    scale = settings.guidance_scale
    _refuse(not 0 <= scale < math.inf, f"guidance_scale={scale}: must be a number from 0 up; 1 and below mean none")
    if method in PARTIAL:
        _check_strength(method, settings)
    if method is EditMethod.ddim_inversion:
        _refuse(
            settings.scheduler not in (None, "ddim"),
            f"scheduler={settings.scheduler}: ddim_inversion runs DDIM backwards and forwards; use ddim or null",
        )
    if method is EditMethod.instruct_pix2pix:
        # diffusers would silently drop all guidance, that of the text too
        scale = settings.image_guidance_scale
        _refuse(not 1 <= scale < math.inf, f"image_guidance_scale={scale}: must be at least 1")
    _check_controls(method, settings)


def _check_strength(method: EditMethod, settings: EditSettings) -> None:
    strength = settings.strength
    _refuse(not 0 <= strength <= 1, f"strength={strength}: must be above 0 and at most 1")
    if steps_run(method, settings) < 1:
        raise UserError(
            f"strength={strength}: runs none of the {settings.steps} steps; the smallest that does is "
            f"{smallest_strength(settings.steps):g}, or raise steps"
        )


def smallest_strength(steps: int) -> float:
    """The smallest strength, to four digits or as many as it takes, with which one of `steps` is run."""
    digits = max(4, len(str(steps)) + 1)
    value = math.ceil(10**digits / steps) / 10**digits
    return value if int(steps * value) >= 1 else round(value + 10**-digits, digits)


def _check_controls(method: EditMethod, settings: EditSettings) -> None:
    if method in (EditMethod.controlnet, EditMethod.t2i_adapter):
        _refuse(not settings.controls, f"controls: {method} needs at least one, such as canny")
        twice = sorted({kind for kind in settings.controls if settings.controls.count(kind) > 1})
        _refuse(bool(twice), f"controls={','.join(settings.controls)}: {', '.join(twice)} is there twice")
    for kind in control_kinds(method, settings):
        scale = settings.control_scales.get(kind, 1.0)
        _refuse(not 0 <= scale < math.inf, f"control_scales.{kind}={scale}: must be a number from 0 up")
    low, high = settings.canny_thresholds
    _refuse(not 0 <= low < high <= 255, f"canny_thresholds={low},{high}: must be two rising numbers from 0 to 255")


def _check_parts(method: EditMethod, settings: EditSettings, parts: EditParts) -> None:
    for name in needs(method, settings).models:
        parts.require(name, f"method={method}")
    timesteps = parts.backbone.noise_scheduler.config.num_train_timesteps
    _refuse(
        method is not EditMethod.copy and settings.steps > timesteps,
        f"steps={settings.steps}: the backbone {parts.backbone.name} was trained with {timesteps}; use fewer",
    )


def _check_input(
    where: str, method: EditMethod, one: EditInput, settings: EditSettings, parts: EditParts | None
) -> None:
    width, height = one.image.size
    _refuse(width < 1 or height < 1, f"{where}: the image has no pixels ({width}×{height})")
    _refuse(one.image.mode != "RGB", f"{where}: the image is {one.image.mode}, not RGB; convert it")
    wanted = needs(method, settings)
    check_texts(method, where, one, settings)
    if "mask" in wanted.given:
        _check_mask(where, method, one, parts)
    for kind in wanted.controls:
        _check_control(where, kind, one, parts)


def check_texts(method: EditMethod, where: str, one: EditInput | Edit, settings: EditSettings) -> None:
    """Raise UserError if a text that the method cannot do without is missing; `where` says of which image."""
    for name in needs(method, settings).given:
        if name in MEANS and not (getattr(one, name) or "").strip():
            raise UserError(f"{where}: method={method} needs {MEANS[name]}; give {name}")


def _check_mask(where: str, method: EditMethod, one: EditInput, parts: EditParts | None) -> None:
    mask = one.mask
    if mask is None:
        raise UserError(f"{where}: method={method} needs a mask; give a picture that is white where it may change")
    _refuse(mask.mode != "L", f"{where}: the mask is {mask.mode}, not 8-bit grey (L); convert it")
    _same_size(where, "mask", mask.size, one.image.size)
    open_HW = np.asarray(mask) >= 128
    _refuse(
        not open_HW.any(), f"{where}: the mask is empty (nothing is white), so nothing may change; draw it, or copy"
    )
    if parts is not None:
        factor = parts.vae_factor
        _refuse(  # diffusers looks at one pixel of each latent's
            not open_HW[::factor, ::factor].any(),
            f"{where}: the mask is too thin: nothing of it is left in the latents, a {factor}th of the size; widen it",
        )


def _check_control(where: str, kind: str, one: EditInput, parts: EditParts | None) -> None:
    if kind in one.controls:
        _same_size(where, f"{kind} map", one.controls[kind].size, one.image.size)
        return
    _refuse(
        kind not in COMPUTED_CONTROLS,
        f"{where}: no {kind} map is given, and only {', '.join(COMPUTED_CONTROLS)} are computed; give one",
    )
    if kind == "canny":
        require_opencv()
    elif parts is not None:
        parts.require("depth_estimator", f"{where}: no depth map is given")


def _same_size(where: str, what: str, size: tuple[int, int], wanted: tuple[int, int]) -> None:
    _refuse(
        size != wanted,
        f"{where}: the {what} is {size[0]}×{size[1]} and the image {wanted[0]}×{wanted[1]}; they must be of one size",
    )

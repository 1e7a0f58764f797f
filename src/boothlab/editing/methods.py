"""The editing methods: one short function each over diffusers' own pipelines, and batches of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from diffusers import MultiAdapter
from PIL import Image
from torch import Tensor

from boothlab.editing.checks import check
from boothlab.editing.conditions import canny_map
from boothlab.editing.fitting import Prepared, padded_size, prepare, unit_tensor
from boothlab.editing.inversion import invert_and_edit, psnr
from boothlab.editing.models import EditParts, load_edit_adapters
from boothlab.editing.pipelines import build_pipeline, build_scheduler, draw, four_channels, pictures, size_of
from boothlab.editing.requests import (
    EditInput,
    EditMethod,
    EditOutput,
    EditSettings,
    Needs,
    control_kinds,
    needs,
    steps_run,
)
from boothlab.errors import UserError

__all__ = [
    "EditInput", "EditMethod", "EditOutput", "EditParts", "EditSettings", "Needs", "check", "edit_batch",
    "load_edit_adapters", "needs",
]  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """A batch's edited pictures, and what the method made of the sources where it does so."""

    images: list[Image.Image]
    sources: list[Image.Image] | None = None
    notes: list[str] | None = None


Batch = Sequence[Prepared]
Method = Callable[[EditParts, Batch, EditSettings], Drawn]


def _run(
    parts: EditParts, name: str, batch: Batch, settings: EditSettings, prompts: Sequence[str], models: dict[str, Any],
    **arguments: Any,
) -> list[Image.Image]:  # fmt: skip
    """Build the pipeline with extra models, run it, decode."""
    pipeline = build_pipeline(parts.backbone, name, build_scheduler(parts.backbone, settings.scheduler), **models)
    return pictures(parts.backbone, draw(pipeline, parts.backbone, prompts, batch, settings, **arguments))


def _targets(batch: Batch) -> list[str]:
    return [one.asked.target_caption or "" for one in batch]


def _images(batch: Batch) -> list[Image.Image]:
    return [one.image for one in batch]


def copy(parts: EditParts, batch: Batch, settings: EditSettings) -> Drawn:
    """The source, untouched."""
    return Drawn([one.image.copy() for one in batch])


def regenerate(parts: EditParts, batch: Batch, settings: EditSettings) -> Drawn:
    """A new picture from the target caption; nothing is taken from the source but its size."""
    return Drawn(_run(parts, "", batch, settings, _targets(batch), {}, **size_of(batch)))


def sdedit(parts: EditParts, batch: Batch, settings: EditSettings) -> Drawn:
    """SDEdit: the source, noised by `strength`, denoised by the target caption."""
    arguments: dict[str, Any] = {"image": _images(batch), "strength": settings.strength}
    return Drawn(_run(parts, "Img2Img", batch, settings, _targets(batch), {}, **arguments))


def controlnet(kinds: Sequence[str], parts: EditParts, batch: Batch, settings: EditSettings) -> Drawn:
    """A picture from the target caption along the condition maps, each through its ControlNet."""
    nets = [parts.controlnet(kind) for kind in kinds]
    maps = [unit_tensor([one.maps[kind].convert("RGB") for one in batch]) for kind in kinds]
    scales = _scales(kinds, settings)
    several = len(kinds) > 1
    arguments: dict[str, Any] = {
        "image": maps if several else maps[0],
        "controlnet_conditioning_scale": scales if several else scales[0],
    }
    models = {"controlnet": nets if several else nets[0]}
    return Drawn(_run(parts, "ControlNet", batch, settings, _targets(batch), models, **arguments, **size_of(batch)))


def t2i_adapter(kinds: Sequence[str], parts: EditParts, batch: Batch, settings: EditSettings) -> Drawn:
    """A picture from the target caption along the condition maps, each through its T2I-Adapter."""
    adapters = [parts.t2i_adapter(kind) for kind in kinds]
    maps = [_adapter_maps(adapter, batch, kind) for adapter, kind in zip(adapters, kinds, strict=True)]
    scales = _scales(kinds, settings)
    several = len(kinds) > 1
    arguments: dict[str, Any] = {
        "image": maps if several else maps[0],
        "adapter_conditioning_scale": scales if several else scales[0],
    }
    models = {"adapter": _several_adapters(kinds, adapters) if several else adapters[0]}
    return Drawn(_run(parts, "Adapter", batch, settings, _targets(batch), models, **arguments, **size_of(batch)))


def _several_adapters(kinds: Sequence[str], adapters: list[Any]) -> MultiAdapter:
    """The sum of adapters. Raises UserError unless they shrink their maps alike."""
    try:
        return MultiAdapter(adapters)
    except ValueError as error:
        factors = ", ".join(f"{kind} {one.downscale_factor}" for kind, one in zip(kinds, adapters, strict=True))
        raise UserError(
            f"controls={','.join(kinds)}: these T2I-Adapters shrink their maps by different factors ({factors}); "
            "take adapters of one family"
        ) from error


def _adapter_maps(adapter: Any, batch: Batch, kind: str) -> Tensor:
    """Maps in the channels that the adapter takes: the public ones take one for edges and three for depth."""
    mode = "L" if adapter.config.in_channels == 1 else "RGB"
    return unit_tensor([one.maps[kind].convert(mode) for one in batch])


def _scales(kinds: Sequence[str], settings: EditSettings) -> list[float]:
    return [float(settings.control_scales.get(kind, 1.0)) for kind in kinds]


def instruct_pix2pix(parts: EditParts, batch: Batch, settings: EditSettings) -> Drawn:
    """InstructPix2Pix: the instruction, with the source as a condition."""
    size = size_of(batch) if parts.backbone.is_sdxl else {}  # the other takes it from the source
    instructions = [one.asked.instruction or "" for one in batch]
    models = {"unet": parts.instruct_unet()}
    arguments: dict[str, Any] = {"image": _images(batch), "image_guidance_scale": settings.image_guidance_scale}
    return Drawn(_run(parts, "InstructPix2Pix", batch, settings, instructions, models, **arguments, **size))


def inpaint(parts: EditParts, batch: Batch, settings: EditSettings) -> Drawn:
    """What the mask shows, by the target caption; without an inpainting model, the rest is put back after each step.

    A full mask is let pass, and noted: an edit of the light has no background, and belongs among the others.
    """
    unet = parts.inpainting_unet()
    models = {"unet": four_channels(parts.backbone) if unet is None else unet}
    arguments: dict[str, Any] = {"image": _images(batch), "mask_image": [one.mask for one in batch]}
    arguments |= {"strength": float(settings.strength), **size_of(batch)}
    return Drawn(_run(parts, "Inpaint", batch, settings, _targets(batch), models, **arguments))


def ddim_inversion(parts: EditParts, batch: Batch, settings: EditSettings) -> Drawn:
    """The source inverted along its caption, drawn again by the target's; notes say how well it is reconstructed."""
    images, rebuilt = invert_and_edit(parts.backbone, batch, settings)
    quality = [psnr(one.cropped(image), one.asked.image) for one, image in zip(batch, rebuilt, strict=True)]
    return Drawn(
        images, rebuilt, [f"the inversion reconstructs the source at {value:.1f} dB PSNR" for value in quality]
    )


def fixed_noise(parts: EditParts, batch: Batch, settings: EditSettings) -> Drawn:
    """Source and target caption drawn from the same noise; the source picture gives its size alone."""
    sources = [one.asked.source_caption or "" for one in batch]
    drawn = [_run(parts, "", batch, settings, texts, {}, **size_of(batch)) for texts in (_targets(batch), sources)]
    return Drawn(drawn[0], drawn[1])


METHODS: dict[EditMethod, Method] = {
    EditMethod.copy: copy,
    EditMethod.regenerate: regenerate,
    EditMethod.sdedit: sdedit,
    EditMethod.instruct_pix2pix: instruct_pix2pix,
    EditMethod.inpaint: inpaint,
    EditMethod.ddim_inversion: ddim_inversion,
    EditMethod.fixed_noise: fixed_noise,
}
"""The methods that follow no condition map."""


def _draw(method: EditMethod, parts: EditParts, batch: Batch, settings: EditSettings) -> Drawn:
    kinds = control_kinds(method, settings)
    if not kinds:
        return METHODS[method](parts, batch, settings)
    follow = controlnet if method.startswith("controlnet") else t2i_adapter
    return follow(kinds, parts, batch, settings)


def edit_batch(
    method: EditMethod, parts: EditParts, inputs: Sequence[EditInput], settings: EditSettings
) -> list[EditOutput]:
    """Edit the images, those of one size together; an image depends on its own input and seed alone.

    Beyond that only the rounding of floats in batches of other sizes differs. Raises UserError as `check` does, before
    any network runs, and for a model that cannot be loaded.
    """
    check(method, inputs, settings, parts)
    multiple = 1 if method is EditMethod.copy else _multiple(method, parts, settings)
    by_size: dict[tuple[int, int], list[int]] = {}
    for index, one in enumerate(inputs):
        by_size.setdefault(padded_size(one.image.size, multiple), []).append(index)
    done: dict[int, EditOutput] = {}
    for indices in by_size.values():
        batch = [_prepare(method, parts, inputs[index], settings, multiple) for index in indices]
        drawn = _draw(method, parts, batch, settings)
        for row, index in enumerate(indices):
            done[index] = _output(method, parts, batch[row], drawn, row, settings)
    return [done[index] for index in range(len(inputs))]


def _output(
    method: EditMethod, parts: EditParts, one: Prepared, drawn: Drawn, row: int, settings: EditSettings
) -> EditOutput:
    source = None if drawn.sources is None else one.cropped(drawn.sources[row])
    notes = [*one.notes, *([drawn.notes[row]] if drawn.notes else [])]
    models = ("instruct_pix2pix",) if method is EditMethod.instruct_pix2pix else ("inpaint",)
    if method in (EditMethod.instruct_pix2pix, EditMethod.inpaint):
        notes += [note for note in parts.notes if note.startswith(models)]
    if method is EditMethod.inpaint and _mask_is_full(one.asked):
        notes.append("the mask is full (all is white), so nothing is kept")
    steps = steps_run(method, settings)
    return EditOutput(one.cropped(drawn.images[row]), source, one.shown, steps, tuple(notes))


def _mask_is_full(asked: EditInput) -> bool:
    """Whether a mask leaves nothing of the source to be kept."""
    return asked.mask is not None and int(np.asarray(asked.mask).min()) >= 128


def _multiple(method: EditMethod, parts: EditParts, settings: EditSettings) -> int:
    """What both sides must be multiples of: diffusers asks for 8, the VAE and each T2I-Adapter for their own."""
    kinds = control_kinds(method, settings) if method.startswith("t2i_adapter") else ()
    factors = [parts.t2i_adapter(kind).downscale_factor for kind in kinds]
    return math.lcm(8, parts.vae_factor, *factors)


def _prepare(method: EditMethod, parts: EditParts, asked: EditInput, settings: EditSettings, multiple: int) -> Prepared:
    """One input, padded, with its mask if the method reads one and its maps: those given, the rest computed."""
    maps = {kind: _map(kind, parts, asked, settings) for kind in control_kinds(method, settings)}
    mask = asked.mask if "mask" in needs(method, settings).given else None
    return prepare(asked, mask, maps, multiple)


def _map(kind: str, parts: EditParts, asked: EditInput, settings: EditSettings) -> Image.Image:
    if kind in asked.controls:
        return asked.controls[kind]
    return (
        canny_map(asked.image, *settings.canny_thresholds) if kind == "canny" else parts.depth_estimator()(asked.image)
    )

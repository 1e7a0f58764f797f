"""The miniature editors as ordinary diffusers pipelines around the house's own parts, and one call for all of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    ControlNetModel,
    DPMSolverMultistepScheduler,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)

from boothlab.dollhouse.controls import control_map, edit_mask
from boothlab.dollhouse.edits import EditPair
from boothlab.seeding import Stream, generator

PLAIN: dict[str, Any] = {
    "generate": StableDiffusionPipeline,
    "sdedit": StableDiffusionImg2ImgPipeline,
    "inpaint": StableDiffusionInpaintPipeline,
}
"""Methods that need the house's own weights and nothing else."""
METHODS = (
    *PLAIN,
    "instruct_pix2pix",
    "controlnet_canny",
    "controlnet_depth",
    "t2i_adapter_canny",
    "t2i_adapter_depth",
)
STEPS, BATCH = 20, 48
DEFAULTS: dict[str, dict[str, float]] = {
    "generate": {"guidance_scale": 5.0},
    "sdedit": {"guidance_scale": 5.0, "strength": 0.7},
    "inpaint": {"guidance_scale": 5.0, "strength": 1.0},
    "instruct_pix2pix": {"guidance_scale": 3.0, "image_guidance_scale": 2.0},
    "controlnet": {"guidance_scale": 5.0, "controlnet_conditioning_scale": 1.0},
    "t2i_adapter": {"guidance_scale": 5.0, "adapter_conditioning_scale": 1.0},
}


def _float(module: Any) -> Any:
    """Stored in half precision, run in single: a CPU is no faster in half."""
    return module.float().eval()


def admit_to_inpainting(unet: UNet2DConditionModel) -> None:
    """Let `StableDiffusionInpaintPipeline` take a UNet of any latent width for a plain one.

    diffusers tells plain UNets from inpainting ones by 4 and 9 input channels and refuses the house's 8. The number is
    read for that alone, so the UNet in memory says 4; its weights stay as they are. Nothing else should use it then.
    """
    unet.register_to_config(in_channels=4)


def editing_pipeline(weights: Path, method: str, device: str = "cpu") -> Any:
    """The diffusers pipeline of one of METHODS over the weights' folder, in float32, with DPM-Solver++ 2M.

    Raises ValueError for an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"no editing method is called {method!r}; there are {', '.join(METHODS)}")
    house = StableDiffusionPipeline.from_pretrained(weights / "pipeline")
    parts = {**house.components, "requires_safety_checker": False}
    for name in ("unet", "vae", "text_encoder"):
        _float(parts[name])
    if method == "inpaint":
        admit_to_inpainting(parts["unet"])
    if method in PLAIN:
        pipeline = PLAIN[method](**parts)
    elif method == "instruct_pix2pix":
        parts["unet"] = _float(UNet2DConditionModel.from_pretrained(weights / method / "unet"))
        pipeline = StableDiffusionInstructPix2PixPipeline(**parts)
    elif method.startswith("controlnet"):
        net = _float(ControlNetModel.from_pretrained(weights / method))
        pipeline = StableDiffusionControlNetPipeline(**parts, controlnet=net)
    else:
        del parts["image_encoder"]  # this pipeline alone takes none
        pipeline = StableDiffusionAdapterPipeline(**parts, adapter=_float(T2IAdapter.from_pretrained(weights / method)))
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, algorithm_type="dpmsolver++", solver_order=2
    )
    return pipeline


def _pictures(arrays: Sequence[np.ndarray], channels: int = 3) -> torch.Tensor:
    """H×W or H×W×3 uint8 arrays to [B, channels, H, W] in [0, 1]."""
    images = torch.from_numpy(np.stack(arrays)).float().div(255)
    return images.permute(0, 3, 1, 2) if images.ndim == 4 else images[:, None].expand(-1, channels, -1, -1)


def arguments_for(pipeline: Any, method: str, pairs: Sequence[EditPair]) -> dict[str, Any]:
    """What a method is called with for these pairs, its settings apart: prompts, source pictures, masks, maps.

    The instruction goes to InstructPix2Pix alone; every other method gets the target's caption, and maps are the
    source's.
    """
    if method == "generate":
        return {"prompt": [pair.target_caption for pair in pairs]}
    if method == "instruct_pix2pix":
        sources = _pictures([pair.pictures()[0] for pair in pairs])
        return {"prompt": [pair.instruction for pair in pairs], "image": sources}
    prompts = [pair.target_caption for pair in pairs]
    if method in PLAIN:
        inputs = {"prompt": prompts, "image": _pictures([pair.pictures()[0] for pair in pairs])}
        if method == "inpaint":
            inputs["mask_image"] = _pictures([edit_mask(pair).astype(np.uint8) * 255 for pair in pairs], 1)
        return inputs
    channels = pipeline.adapter.config.in_channels if method.startswith("t2i") else 3
    maps = [control_map(pair.source, method.rsplit("_", 1)[1]) for pair in pairs]
    return {"prompt": prompts, "image": _pictures(maps, channels)}


@torch.inference_mode()
def edit_pictures(
    weights: Path,
    method: str,
    pairs: Sequence[EditPair],
    device: str = "cpu",
    seed: int = 0,
    steps: int = STEPS,
    **settings: float,
) -> list[np.ndarray]:
    """The edited pictures, 32×32×3 uint8, one a pair, each from a generator of its own, so that no batch changes it.

    `settings` go to the pipeline over the method's DEFAULTS (`strength=0.5`, `image_guidance_scale=2.0`, …).
    """
    pipeline = editing_pipeline(weights, method, device)
    chosen = {**DEFAULTS[method if method in DEFAULTS else method.rsplit("_", 1)[0]], **settings}
    pictures: list[np.ndarray] = []
    for start in range(0, len(pairs), BATCH):
        batch = pairs[start : start + BATCH]
        generators = [generator(seed, Stream.EVALUATION, "edit", start + i) for i in range(len(batch))]
        images = pipeline(
            **arguments_for(pipeline, method, batch),
            **chosen,
            num_inference_steps=steps,
            generator=generators,
            output_type="np",
        ).images
        pictures += list((images * 255).round().astype(np.uint8))
    return pictures

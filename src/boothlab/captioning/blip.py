"""BLIP as a captioner: loaded from a folder or the hub, asked with the settings of published captions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, BlipForConditionalGeneration

from boothlab.errors import UserError
from boothlab.evaluation.loading import LOAD_ERRORS, _cannot_load, _check_complete, _locate, _name, _square
from boothlab.evaluation.preprocessing import CLIP_MEAN, CLIP_STD
from boothlab.files import shown
from boothlab.quiet import quiet_libraries

GENERATION: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 30, "do_sample": False}
"""Said explicitly: models carry defaults of their own, and transformers' change."""


class BlipCaptioner:
    """BLIP (Li et al. 2022, arXiv 2201.12086): an image in, a caption out; the same image gives the same caption."""

    def __init__(
        self, model: BlipForConditionalGeneration, tokenizer: Any, name: str, *, image_size: int, prompt: str = "",
        device: torch.device | str = "cpu",
    ):  # fmt: skip
        """Takes the model over: fp32, eval mode, frozen, on `device`. A caption goes on from `prompt` and holds it."""
        self._device = torch.device(device)
        self._model = model.to(device=self._device, dtype=torch.float32).eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self.name = name
        self.image_size = image_size
        self.prompt = prompt

    def shrink(self, image: Image.Image) -> Image.Image:
        """The picture squashed to the model's square; its caption is the same."""
        return image.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)

    @torch.inference_mode()
    def captions(self, images: Sequence[Image.Image]) -> list[str]:
        """One caption an RGB image of any size, with runs of white space made single spaces."""
        if not images:
            return []
        pixels_BCHW = blip_pixels(images, self.image_size).to(self._device)
        asked: dict[str, Any] = {}
        if self.prompt:
            ids = self._tokenizer([self.prompt] * len(images), return_tensors="pt").input_ids
            asked = {"input_ids": ids.to(self._device)}
        tokens = self._model.generate(pixel_values=pixels_BCHW, **asked, **GENERATION)
        texts: list[str] = self._tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]


def blip_pixels(images: Sequence[Image.Image], side: int) -> Tensor:
    """RGB images → float32 [B, 3, side, side]: squashed (bicubic), (c - mean) / std of CLIP for c in [0, 1]."""
    squashed = [np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)) for image in images]
    pixels_BHWC = torch.from_numpy(np.stack(squashed)).to(torch.float32) / 255
    return ((pixels_BHWC - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)).permute(0, 3, 1, 2).contiguous()


def load_blip(
    source: str | Path, revision: str | None = None, device: torch.device | str = "cpu", prompt: str = ""
) -> BlipCaptioner:
    """A captioner from a folder or hub id; the tokenizer lies beside the weights or in `tokenizer/` below them.

    Raises UserError when it is missing, unreachable, pickled, incomplete or not for square images.
    """
    location, options = _locate(source, revision)
    below = Path(location) / "tokenizer"
    try:
        with quiet_libraries():
            loaded: Any = BlipForConditionalGeneration.from_pretrained(
                location, dtype=torch.float32, output_loading_info=True, **options
            )
            tokenizer: Any = AutoTokenizer.from_pretrained(
                str(below) if below.is_dir() else location, revision=options["revision"]
            )
    except LOAD_ERRORS as error:
        raise _cannot_load(location, error) from error
    model, report = loaded
    _check_complete(location, report)
    if len(tokenizer) > model.config.text_config.vocab_size:
        raise UserError(
            f"{shown(location)}: the tokenizer has {len(tokenizer)} tokens and the model only "
            f"{model.config.text_config.vocab_size}; give the folder of the tokenizer the model was trained with"
        )
    size = _square(location, model.config.vision_config.image_size)
    return BlipCaptioner(model, tokenizer, _name(location, model), image_size=size, prompt=prompt, device=device)

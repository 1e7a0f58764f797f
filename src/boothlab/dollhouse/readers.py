"""The miniature encoders and the judge as readers of pictures: features, and facts by name."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer, ViTModel

from boothlab.dollhouse.architectures import JUDGE_HEADS, MAX_TOKENS, Judge, to_images
from boothlab.dollhouse.grammar import Facts, toy_prompt
from boothlab.dollhouse.parts import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, normalise
from boothlab.dollhouse.scenes import ACCESSORIES, CLASSES, COLORS, PLACES

ZERO_SHOT_VALUES: dict[str, tuple[str, ...]] = {
    "class_noun": CLASSES,
    "color": tuple(COLORS),
    "place": PLACES,
    "accessory": ACCESSORIES[1:],
}


def batches(images_BCHW: Tensor, device: str, size: int = 128) -> Iterable[Tensor]:
    """The images on the device, part by part."""
    return (part.to(device) for part in images_BCHW.split(size))


def zero_shot(images_ND: Tensor, texts_KD: Tensor) -> Tensor:
    """For each image the index of the text that is nearest by cosine."""
    return (F.normalize(images_ND.float(), dim=-1) @ F.normalize(texts_KD.float(), dim=-1).T).argmax(1)


@torch.inference_mode()
def judged(weights: Path, pictures: Sequence[np.ndarray], device: str) -> dict[str, list[str]]:
    """What the judge reads in each picture: fact name to one value a picture."""
    judge = Judge()
    judge.load_state_dict(
        {name: value.float() for name, value in load_file(weights / "judge" / "model.safetensors").items()}
    )
    judge.to(device).eval()
    readings: dict[str, list[str]] = {name: [] for name in JUDGE_HEADS}
    for images in batches(to_images(list(pictures)), device):
        for name, logits in judge(images).items():
            readings[name] += [JUDGE_HEADS[name][i] for i in logits.argmax(1).tolist()]
    return readings


class MiniatureClip:
    """The miniature CLIP as a zero-shot reader of one fact at a time, with the grammar's own prompts."""

    def __init__(self, weights: Path, device: str):
        self.device = device
        self.model = CLIPModel.from_pretrained(weights / "clip", dtype=torch.float32).to(device).eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(weights / "clip")

    @torch.inference_mode()
    def image_features(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """Projected features, one row a picture."""
        parts = batches(to_images(list(pictures)), self.device)
        features = [self.model.get_image_features(normalise(x, CLIP_MEAN, CLIP_STD)).pooler_output for x in parts]
        return torch.cat(features).cpu()

    @torch.inference_mode()
    def read(self, features_ND: Tensor, fact: str) -> list[str]:
        """The value of one fact ("color") for each picture: the one whose prompt is nearest."""
        values = ZERO_SHOT_VALUES[fact]
        asked: list[dict[str, Any]] = [{fact: value} for value in values]
        prompts = [toy_prompt(Facts(**one)) for one in asked]
        tokens = self.tokenizer(
            prompts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
        ).input_ids
        texts = self.model.get_text_features(tokens.to(self.device)).pooler_output.cpu()
        return [values[i] for i in zero_shot(features_ND, texts).tolist()]


@torch.inference_mode()
def dino_features(weights: Path, pictures: Sequence[np.ndarray], device: str) -> Tensor:
    """The [CLS] feature of the ViT in DINO's place, one row a picture."""
    dino = ViTModel.from_pretrained(weights / "dino", add_pooling_layer=False, dtype=torch.float32).to(device).eval()
    inputs = (normalise(x, IMAGENET_MEAN, IMAGENET_STD) for x in batches(to_images(list(pictures)), device))
    return torch.cat([dino(pixel_values=x).last_hidden_state[:, 0].cpu() for x in inputs])

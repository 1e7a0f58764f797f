"""The miniature captioner: its words, its shape, what it is shown, and its training."""

import string
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
    BlipTextConfig,
    BlipVisionConfig,
    CLIPModel,
)

from boothlab.dollhouse.architectures import to_images
from boothlab.dollhouse.captions import PROMPTS, caption_of, captioned_scene
from boothlab.dollhouse.grammar import vocabulary
from boothlab.dollhouse.parts import CLIP_MEAN, CLIP_STD, Losses, Part, normalise
from boothlab.dollhouse.scenes import render, rng_for

FOLDER = "captioner"
IMAGE_SIZE, PATCH_SIZE, WIDTH = 64, 8, 128
MAX_TOKENS = 40
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
IGNORED = -100  # what the loss passes over: the prompt and the padding
RENDERED_SIZES = (32, 32, 32, 64)
"""Pixels a side of the pictures shown; all are brought to IMAGE_SIZE. Most are as small as the house's own."""
PROMPTED = 0.4  # the share of captions that begin with a prompt
NOISE = 0.2  # standard deviation of the most noise a batch is given, in CLIP's units: about 7 of 255 levels

Batch = dict[str, Tensor]


def build_word_tokenizer() -> BertTokenizer:
    """A BERT tokenizer to which every word of the grammar is one token; any other word falls to its letters."""
    signs = [*string.ascii_lowercase, *string.digits]
    tokens = [*SPECIAL, *vocabulary(), *string.punctuation, *signs, *(f"##{sign}" for sign in signs)]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return BertTokenizer(vocab=vocab, do_lower_case=True, model_max_length=MAX_TOKENS)


def build_captioner(tokenizer: BertTokenizer) -> BlipForConditionalGeneration:
    """BLIP: a ViT of four layers, a text decoder of three that attends to its patches; captions begin with [CLS]."""
    text = BlipTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=WIDTH,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        sep_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = BlipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        projection_dim=WIDTH,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_act="quick_gelu",  # the miniature CLIP's
        initializer_range=0.02,  # the class's own 1e-10 is for weights that are loaded afterwards
    )
    config = BlipConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=WIDTH, image_text_hidden_size=WIDTH
    )
    return BlipForConditionalGeneration(config)


def to_pixels(pictures: list[np.ndarray]) -> Tensor:
    """H×W×3 uint8 pictures of any size as BLIP is given them: [B, 3, 64, 64], squashed (bicubic), in CLIP's units."""
    side = (IMAGE_SIZE, IMAGE_SIZE)
    squashed = [np.asarray(Image.fromarray(p).resize(side, Image.Resampling.BICUBIC)) for p in pictures]
    return normalise(to_images(squashed), CLIP_MEAN, CLIP_STD)


@torch.no_grad()
def start_from_clip(model: BlipForConditionalGeneration, clip: CLIPModel) -> None:
    """Give BLIP's image encoder, which reads patches twice as wide, the weights of the miniature CLIP's.

    BLIP has no norm before its first layer. CLIP's is folded into the embeddings, with the mean spread of a token in
    place of each token's own; what comes out at the other end is then very nearly CLIP's.
    """
    mine, theirs = model.vision_model, clip.vision_model
    weights = theirs.state_dict()
    for name in mine.state_dict():
        if "qkv" in name:
            parts = [weights.pop(name.replace("qkv", f"{x}_proj")) for x in "qkv"]
            weights[name] = torch.cat(parts)
        elif "projection" in name:
            weights[name] = weights.pop(name.replace("projection", "out_proj"))
    norm = theirs.pre_layrnorm
    pictures = to_images([render(captioned_scene(rng_for(0, "captioner", "spread", i))) for i in range(64)])
    spread = theirs.embeddings(normalise(pictures, CLIP_MEAN, CLIP_STD)).std(dim=-1, unbiased=False).mean()
    fold = torch.diag(norm.weight / spread) @ (torch.eye(WIDTH) - 1 / WIDTH)
    patch = torch.einsum("ij,jchw->ichw", fold, weights["embeddings.patch_embedding.weight"])
    position = weights.pop("embeddings.position_embedding.weight") @ fold.T + norm.bias
    weights["embeddings.position_embedding"] = position[None]
    weights["embeddings.class_embedding"] = (fold @ weights["embeddings.class_embedding"])[None, None]
    weights["embeddings.patch_embedding.weight"] = patch.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4
    weights["embeddings.patch_embedding.bias"] = torch.zeros(WIDTH)
    mine.load_state_dict({name: value for name, value in weights.items() if not name.startswith("pre_layrnorm")})


class Captioner(Part):
    """BLIP's captioning loss (LM), teacher forced, on captions that say everything the grammar can say of a scene.

    Some captions begin with a prompt ("a photo of"), which the loss passes over, as BLIP's does: so the captioner goes
    on from a prompt, and without one begins with the thing itself. Every render is exact and has one right caption,
    so labels are not smoothed. Its image encoder begins as the miniature CLIP's.
    """

    name, batch_size, peak_lr, ema_decay = FOLDER, 64, 8e-4, 0.998

    def __init__(self, seed: int, device: str, out: Path):
        super().__init__(seed, device)
        self.tokenizer = build_word_tokenizer()
        self.blip = build_captioner(self.tokenizer)
        start_from_clip(self.blip, CLIPModel.from_pretrained(out / "clip", dtype=torch.float32))
        self.modules = nn.ModuleDict({"blip": self.blip})

    def tokens(self, captions: list[str], prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids [B, T] of each prompt with its caption, and labels [B, T]: the ids of the caption and of [SEP]."""
        texts = [f"{prompt} {caption}".strip() for prompt, caption in zip(prompts, captions, strict=True)]
        ids = self.tokenizer(texts, padding=True, return_tensors="pt").input_ids
        asked = torch.tensor([len(self.tokenizer.tokenize(prompt)) for prompt in prompts])
        spoken = (torch.arange(ids.shape[1]) > asked[:, None]) & (ids != self.tokenizer.pad_token_id)
        return ids, torch.where(spoken, ids, IGNORED)

    def batch(self, step: int) -> Batch:
        rng = self._rng(step)
        scenes = [captioned_scene(rng) for _ in range(self.batch_size)]
        sizes = rng.choice(RENDERED_SIZES, self.batch_size).tolist()
        pixels = to_pixels([render(scene, size) for scene, size in zip(scenes, sizes, strict=True)])
        pixels = pixels + torch.from_numpy(rng.standard_normal(pixels.shape, dtype=np.float32)) * rng.uniform(0, NOISE)
        asked = rng.random(self.batch_size) < PROMPTED
        prompts = [PROMPTS[int(rng.integers(len(PROMPTS)))] if one else "" for one in asked]
        ids, labels = self.tokens([caption_of(scene) for scene in scenes], prompts)
        return {"pixel_values": pixels.float(), "input_ids": ids, "labels": labels}

    def loss(self, batch: Batch, step: int) -> Losses:
        on_device = {name: value.to(self.device) for name, value in batch.items()}
        with self._autocast():
            output = self.blip(**on_device)
        right = output.logits[:, :-1].argmax(-1) == on_device["labels"][:, 1:]
        spoken = on_device["labels"][:, 1:] != IGNORED
        return {"loss": output.loss.float(), "wrong": 1 - right[spoken].float().mean()}

    def export(self, out: Path) -> None:
        self.blip.half().save_pretrained(out / FOLDER)
        size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        BlipProcessor(BlipImageProcessorPil(size=size), self.tokenizer).save_pretrained(out / FOLDER)

    def start_from(self, out: Path) -> None:
        blip = BlipForConditionalGeneration.from_pretrained(out / FOLDER)
        self.blip.load_state_dict(blip.float().state_dict())

"""The miniatures' shapes: ordinary diffusers and transformers classes, small enough to ship."""

from graphlib import TopologicalSorter
from itertools import pairwise

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer, ViTConfig, ViTModel

from boothlab.dollhouse.grammar import vocabulary
from boothlab.dollhouse.scenes import CLASSES, COLORS, PATTERNS, PLACES, Lamp, Time

IMAGE_SIZE = 32
LATENT_SIZE = 8
LATENT_CHANNELS = 8
MAX_TOKENS = 32
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def _merges() -> list[tuple[str, str]]:
    """The merges that build every word from its characters, left to right, in an order under which none is split.

    BPE applies the earliest merge that fits anywhere in a word: a+t before c+a would break "cat". So at each stage of
    a word, the merge that is wanted comes before any other merge that would fit there.
    """
    stages: list[tuple[tuple[str, str], list[tuple[str, str]]]] = []
    for word in vocabulary():
        if "'" in word:  # the tokenizer cuts "robot's" before any merge
            continue
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            stages.append(((pieces[0], pieces[1]), list(pairwise(pieces))))
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    earlier: dict[tuple[str, str], list[tuple[str, str]]] = {wanted: [] for wanted, _ in stages}
    for wanted, fitting in stages:
        for other in fitting:
            if other in earlier and other != wanted and wanted not in earlier[other]:
                earlier[other].append(wanted)
    return list(TopologicalSorter(earlier).static_order())


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer over bytes, whose merges know the dollhouse's words; any other text falls to pieces of them."""
    characters = sorted(ByteLevel.alphabet())
    tokens = characters + [c + "</w>" for c in characters]
    merges = _merges()
    tokens += ["".join(merge) for merge in merges]
    vocab = {token: index for index, token in enumerate(dict.fromkeys([*tokens, BOS, EOS]))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)


def build_vae() -> AutoencoderKL:
    """32×32×3 to 8×8×8 and back (f = 4)."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=16,
        sample_size=IMAGE_SIZE,
    )


def build_unet() -> UNet2DConditionModel:
    """Two resolutions (8×8 and 4×4), cross-attention at both."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        layers_per_block=2,
        block_out_channels=(64, 128),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """The text side of both the pipeline and the miniature CLIP: two layers of width 128."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The pipeline's text encoder."""
    return CLIPTextModel(text_config(tokenizer))


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion 1.5's own noise schedule."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def _vision(hidden: int, layers: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "image_size": IMAGE_SIZE,
        "patch_size": 4,
    }


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """A CLIPModel: vision width 128, four layers, patches of 4 pixels; 128 shared dimensions."""
    config = CLIPConfig(
        text_config=text_config(tokenizer).to_dict(),
        vision_config={**_vision(128, 4), "projection_dim": 128},
        projection_dim=128,
    )
    return CLIPModel(config)


def build_dino() -> ViTModel:
    """A ViT in DINO's place: width 128, four layers, patches of 4 pixels."""
    return ViTModel(ViTConfig(**_vision(128, 4), layer_norm_eps=1e-6), add_pooling_layer=False)


JUDGE_HEADS: dict[str, tuple[str, ...]] = {
    "class_noun": CLASSES,
    "color": tuple(COLORS),
    "pattern": PATTERNS,
    "place": PLACES,
    "time": tuple(Time),
    "lamp": tuple(Lamp),
}


class Judge(nn.Module):
    """A small convolutional reader of facts, trained on renders alone; it never sees a generated image in training."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, 128)
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(widths)):
            layers += [nn.Conv2d(a, b, 3, stride=1 if i == 0 else 2, padding=1), nn.GroupNorm(8, b), nn.SiLU()]
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, 256), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(256, len(values)) for name, values in JUDGE_HEADS.items()})

    def forward(self, images_BCHW: torch.Tensor) -> dict[str, torch.Tensor]:
        """[-1, 1] images in, one table of logits a fact out."""
        features_BD = self.trunk(images_BCHW)
        return {name: head(features_BD) for name, head in self.heads.items()}


def to_images(pictures: list[np.ndarray]) -> torch.Tensor:
    """Rendered H×W×3 uint8 pictures to one [B, 3, H, W] tensor in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)

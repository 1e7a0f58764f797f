"""BLIP as it is asked here, against transformers called directly, on a tiny one with random weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessorPil

from bad_images import picture
from boothlab.captioning.blip import GENERATION, BlipCaptioner, blip_pixels, load_blip
from boothlab.errors import UserError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "bear", "robot", "red", "blue", "##s"]
SIDE = 32


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a BLIP of two layers and its tokenizer."""
    folder = tmp_path_factory.mktemp("blip")
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)})
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = small | {
        "vocab_size": len(WORDS),
        "bos_token_id": 2,
        "eos_token_id": 3,
        "sep_token_id": 3,
        "pad_token_id": 0,
    }
    vision = small | {"image_size": SIDE, "patch_size": 8, "initializer_range": 0.5}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BlipConfig(text_config=text | {"projection_dim": 16}, vision_config=vision, projection_dim=16)
        model = BlipForConditionalGeneration(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.7)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


IMAGES = [picture(seed, *size) for seed, size in enumerate([(96, 80), (40, 90), (32, 32), (200, 50)])]


def directly(folder: Path, images: list[Image.Image], prompt: str = "") -> list[str]:
    model = BlipForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = BertTokenizer.from_pretrained(folder)
    processor = BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    pixels = processor(images=images, return_tensors="pt").pixel_values
    asked = {"input_ids": tokenizer([prompt] * len(images), return_tensors="pt").input_ids} if prompt else {}
    with torch.inference_mode():
        tokens = model.generate(pixel_values=pixels, **asked, num_beams=3, max_new_tokens=30, do_sample=False)
    return [" ".join(tokenizer.decode(row, skip_special_tokens=True).split()) for row in tokens]


def test_the_pixels_are_those_of_transformers() -> None:
    pixels = BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})(
        images=IMAGES, return_tensors="pt"
    ).pixel_values
    assert torch.allclose(blip_pixels(IMAGES, SIDE), torch.as_tensor(np.asarray(pixels)), atol=1e-6)


def test_a_constant_colour_and_a_squash_not_a_crop() -> None:
    grey = blip_pixels([Image.new("RGB", (7, 3), (128, 128, 128))], 4)
    assert grey[0, 0, 0, 0] == pytest.approx((128 / 255 - 0.48145466) / 0.26862954)
    wide = Image.new("RGB", (64, 32), "blue")
    wide.paste("red", (0, 0, 16, 32))
    assert blip_pixels([wide], 32)[0, 0, :, 0].min() > 1  # the red outer quarter is still there


@pytest.mark.parametrize("prompt", ["", "a photo of"])
def test_captions_are_those_of_transformers_called_directly(tiny: Path, prompt: str) -> None:
    captioner = load_blip(tiny, prompt=prompt)
    captions = captioner.captions(IMAGES)
    assert captions == directly(tiny, IMAGES, prompt)
    assert all(caption.startswith(prompt) for caption in captions)
    assert len(set(captions)) > 1 or captions[0]  # it says something
    assert captioner.captions([captioner.shrink(image) for image in IMAGES]) == captions
    assert captioner.captions([]) == []


def test_the_settings_are_said_explicitly(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner, told = load_blip(tiny), dict[str, object]()

    def generate(**options: object) -> torch.Tensor:
        told.update(options)
        return torch.tensor([[2, 5, 8, 3]])

    monkeypatch.setattr(captioner._model, "generate", generate)
    assert captioner.captions(IMAGES[:1]) == ["a bear"]
    assert {key: told[key] for key in GENERATION} == {"num_beams": 3, "max_new_tokens": 30, "do_sample": False}
    assert isinstance(captioner, BlipCaptioner) and captioner.image_size == SIDE


def test_a_tokenizer_in_a_folder_of_its_own(tiny: Path, tmp_path: Path) -> None:
    BlipForConditionalGeneration.from_pretrained(tiny).save_pretrained(tmp_path)
    BertTokenizer.from_pretrained(tiny).save_pretrained(tmp_path / "tokenizer")
    assert load_blip(tmp_path).captions(IMAGES[:2]) == load_blip(tiny).captions(IMAGES[:2])


def test_what_is_no_captioner_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_blip(tmp_path / "none")
    with pytest.raises(UserError, match=r"no config\.json here"):
        load_blip(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "blip"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="pickled"):
        load_blip(tmp_path)

"""Encoders and their preprocessing, on the real architectures with small random weights."""

import json
import re
import shutil
import string
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, ViTConfig, ViTModel

from boothlab.errors import UserError
from boothlab.evaluation.encoders import ClipEncoder, DinoEncoder, PatchEncoder, TextImageEncoder
from boothlab.evaluation.loading import load_clip, load_dino
from boothlab.evaluation.preprocessing import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    Preset,
    preset,
)

START, END = "<|startoftext|>", "<|endoftext|>"
CONTEXT = 16

# PIL bicubic of the 8 × 6 pattern below to 5 × 4, then the 4 × 4 centre crop. Checked against an independent numpy
# implementation of the antialiased bicubic kernel (a = -0.5): at most one 8-bit level apart.
GOLDEN_CHW = [
    [[40, 105, 170, 148], [162, 94, 115, 105], [68, 119, 125, 148], [189, 121, 79, 89]],
    [[97, 166, 176, 134], [147, 107, 131, 136], [118, 150, 140, 161], [174, 107, 86, 150]],
    [[161, 139, 173, 92], [106, 98, 122, 187], [164, 162, 111, 91], [127, 104, 147, 169]],
]


def pattern() -> Tensor:
    values = [[[(37 * x + 91 * y + 53 * c) % 256 for x in range(8)] for y in range(6)] for c in range(3)]
    return torch.tensor(values, dtype=torch.uint8)


def noise(count: int, size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def make_tokenizer() -> CLIPTokenizer:
    characters = [*string.ascii_lowercase, *(letter + "</w>" for letter in string.ascii_lowercase)]
    vocab = {token: index for index, token in enumerate([*characters, START, END])}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=CONTEXT)


def make_clip(eos_token_id: int = 2, dropout: float = 0.0) -> CLIPModel:
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer = make_tokenizer()
    config = CLIPConfig(
        text_config={
            **small,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": CONTEXT,
            "eos_token_id": eos_token_id,
            "attention_dropout": dropout,
        },
        vision_config={**small, "image_size": 32, "patch_size": 8, "attention_dropout": dropout},
        projection_dim=12,
    )
    torch.manual_seed(0)
    return CLIPModel(config)


def make_vit(image_size: int = 224, dropout: float = 0.0) -> ViTModel:
    """ViT-S/16 in width, one block deep, with the wrong eps that the hub's config has."""
    config = ViTConfig(
        hidden_size=384,
        num_hidden_layers=1,
        num_attention_heads=6,
        intermediate_size=64,
        image_size=image_size,
        patch_size=16,
        layer_norm_eps=1e-12,
        hidden_dropout_prob=dropout,
    )
    torch.manual_seed(0)
    return ViTModel(config, add_pooling_layer=False)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-clip"
    make_clip().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-dino"
    make_vit().save_pretrained(folder)
    # What the hub's facebook/dino-vits16 ships: squash, bilinear, mean and std of one half.
    wrong = {"do_resize": True, "size": 224, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(wrong))
    return folder


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> ClipEncoder:
    return load_clip(clip_folder)


@pytest.fixture(scope="module")
def dino(dino_folder: Path) -> DinoEncoder:
    return load_dino(dino_folder)


# Preprocessing


def test_pixels_match_golden_bicubic_resize_and_crop() -> None:
    prepare = Preprocessing("test", 4, 4, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    levels_BCHW = prepare([pattern()]) * 255
    torch.testing.assert_close(levels_BCHW[0], torch.tensor(GOLDEN_CHW, dtype=torch.float32), atol=1.0, rtol=0)


@pytest.mark.parametrize(
    ("family", "mean", "std"),
    [
        (Preset.CLIP, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        (Preset.DINO, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_constant_colour_is_normalised_channel_by_channel(
    family: Preset, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    colour = torch.tensor([10, 120, 250], dtype=torch.uint8)
    pixels_BCHW = preset(family, 224)([colour.view(3, 1, 1).expand(3, 300, 260)])
    expected = (colour / 255 - torch.tensor(mean)) / torch.tensor(std)
    assert pixels_BCHW.shape == (1, 3, 224, 224)
    assert pixels_BCHW.dtype == torch.float32
    torch.testing.assert_close(pixels_BCHW[0], expected.view(3, 1, 1).expand(3, 224, 224), atol=1e-5, rtol=0)


def test_wide_image_is_cropped_and_not_squashed() -> None:
    wide = torch.zeros(3, 224, 448, dtype=torch.uint8)
    wide[2] = 255
    wide[0, :, :112], wide[0, :, 336:], wide[2, :, :112], wide[2, :, 336:] = 255, 255, 0, 0
    pixels_CHW = preset(Preset.CLIP, 224)([wide])[0]
    red_HW = pixels_CHW[0] * CLIP_STD[0] + CLIP_MEAN[0]
    blue_HW = pixels_CHW[2] * CLIP_STD[2] + CLIP_MEAN[2]
    assert red_HW.abs().max() < 1e-6
    assert blue_HW.min() > 1 - 1e-6


@pytest.mark.parametrize(
    ("family", "size", "name", "resize"),
    [
        ("clip", 224, "clip-bicubic224-crop224", 224),
        ("dino", 224, "dino-bicubic256-crop224", 256),
        ("clip", 32, "clip-bicubic32-crop32", 32),
        ("dino", 32, "dino-bicubic32-crop32", 32),
        ("clip", 336, "clip-bicubic336-crop336", 336),
    ],
)
def test_presets_are_named_for_what_they_do(family: str, size: int, name: str, resize: int) -> None:
    found = preset(Preset(family), size)
    assert (found.name, found.resize, found.crop) == (name, resize, size)


@pytest.mark.parametrize("offset", [-0.4, 0.4])
def test_float_images_equal_the_8_bit_images_they_round_to(clip: ClipEncoder, offset: float) -> None:
    images_BCHW = noise(2, 40)
    unrounded = (images_BCHW.float() + offset) / 127.5 - 1
    assert torch.equal(clip.encode_images(unrounded.clamp(-1, 1)), clip.encode_images(images_BCHW))


def test_float_images_beyond_the_range_are_clamped(clip: ClipEncoder) -> None:
    white = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    assert torch.equal(clip.encode_images(torch.full((1, 3, 8, 8), 1.3)), clip.encode_images(white))


def test_images_of_different_sizes_equal_one_by_one(clip: ClipEncoder) -> None:
    images = [noise(1, 40)[0], noise(1, 64, seed=1)[0][:, :, :50]]
    one_by_one = torch.cat([clip.encode_images([image]) for image in images])
    torch.testing.assert_close(clip.encode_images(images), one_by_one, atol=1e-6, rtol=0)


def test_nan_pixels_are_a_user_error(clip: ClipEncoder) -> None:
    with pytest.raises(UserError, match="NaN"):
        clip.encode_images(torch.full((1, 3, 8, 8), float("nan")))


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        [torch.zeros(3, 8, 8)],
        [torch.zeros(1, 8, 8, dtype=torch.uint8)],
        [torch.zeros(3, 0, 8, dtype=torch.uint8)],
    ],
)
def test_wrong_shapes_and_types_are_refused(clip: ClipEncoder, images: Tensor | list[Tensor]) -> None:
    with pytest.raises(ValueError, match=r"\[3, H, W\]"):
        clip.encode_images(images)


# CLIP


def test_clip_features_are_the_projected_embedding_normalised(clip: ClipEncoder) -> None:
    images_BCHW = noise(3, 32)
    pixels = images_BCHW / 255
    pixels = (pixels - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)
    model = make_clip().train(False)
    with torch.no_grad():
        projected = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    expected = projected / projected.norm(dim=-1, keepdim=True)
    features_BD = clip.encode_images(images_BCHW)
    torch.testing.assert_close(features_BD, expected, atol=1e-5, rtol=0)
    assert (features_BD.dtype, features_BD.shape, clip.dim) == (torch.float32, (3, 12), 12)
    assert not features_BD.is_inference()


def test_clip_satisfies_the_contracts(clip: ClipEncoder, dino: DinoEncoder) -> None:
    assert isinstance(clip, TextImageEncoder)
    assert isinstance(dino, PatchEncoder)
    assert not isinstance(clip, PatchEncoder)


def test_empty_inputs_give_no_rows(clip: ClipEncoder, dino: DinoEncoder) -> None:
    assert clip.encode_images([]).shape == (0, 12)
    assert clip.encode_texts([]).shape == (0, 12)
    assert dino.encode_images([]).shape == (0, 384)
    assert dino.encode_patches([]).shape[:2] == (0, 1)


@pytest.mark.parametrize("eos_token_id", [2, 53], ids=["openai-config", "corrected-config"])
def test_long_prompts_keep_their_end_of_text(eos_token_id: int) -> None:
    assert make_tokenizer().eos_token_id == 53
    encoder = ClipEncoder(make_clip(eos_token_id), make_tokenizer(), "tiny", preset(Preset.CLIP, 32))
    long = ["a b " * 50, "c d " * 50]
    features_BD = encoder.encode_texts(long)
    assert (features_BD[0] - features_BD[1]).abs().max() > 1e-3
    # Exactly the text of the context's length, and so pooled at its end-of-text token.
    fits = " ".join((["a", "b"] * CONTEXT)[: CONTEXT - 2])
    torch.testing.assert_close(features_BD[0], encoder.encode_texts([fits])[0], atol=1e-6, rtol=0)


def test_truncation_is_reported_exactly(clip: ClipEncoder) -> None:
    fits, too_long = " ".join("a" * (CONTEXT - 2)), " ".join("a" * (CONTEXT - 1))
    assert clip.truncated(["a dog", fits, too_long]) == [False, False, True]


def test_text_features_do_not_depend_on_the_padding_of_the_batch(clip: ClipEncoder) -> None:
    together = clip.encode_texts(["a dog", "a very long one"])
    torch.testing.assert_close(together[0], clip.encode_texts(["a dog"])[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(2), atol=1e-6, rtol=0)


def test_tokenizer_of_another_model_is_refused() -> None:
    with pytest.raises(UserError, match="end-of-text"):
        ClipEncoder(make_clip(eos_token_id=7), make_tokenizer(), "tiny", preset(Preset.CLIP, 32))
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<sks>"])  # Its id is above end-of-text, and OpenAI's configs pool at the highest.
    with pytest.raises(UserError, match="end-of-text"):
        ClipEncoder(make_clip(eos_token_id=2), tokenizer, "tiny", preset(Preset.CLIP, 32))


# DINO


def test_dino_ignores_the_wrong_shipped_configuration(dino: DinoEncoder) -> None:
    prepared = dino._preprocess
    assert dino.preprocessing == prepared.name == "dino-bicubic256-crop224"
    assert (prepared.mean, prepared.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert dino.dim == 384
    norms = [module for module in dino._model.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(norms) == 3
    assert {norm.eps for norm in norms} == {1e-6}


def test_dino_features_are_the_class_token_after_the_final_layer_norm(dino: DinoEncoder) -> None:
    images_BCHW = noise(2, 256)
    pixels = (images_BCHW[:, :, 16:240, 16:240] / 255 - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(
        IMAGENET_STD
    ).view(3, 1, 1)
    model = dino._model
    with torch.no_grad():
        hidden_BND = model.layers[0](model.embeddings(pixels))
        expected = model.layernorm(hidden_BND)[:, 0]
    features_BD = dino.encode_images(images_BCHW)
    torch.testing.assert_close(features_BD, expected / expected.norm(dim=-1, keepdim=True), atol=1e-5, rtol=0)
    patches_BLND = dino.encode_patches(images_BCHW)
    torch.testing.assert_close(patches_BLND, hidden_BND[:, None, 1:], atol=1e-5, rtol=0)
    assert patches_BLND.shape == (2, 1, 196, 384)


def test_batch_size_does_not_change_features(dino_folder: Path) -> None:
    images_BCHW = noise(3, 64)
    one, many = load_dino(dino_folder, batch_size=1), load_dino(dino_folder, batch_size=8)
    torch.testing.assert_close(one.encode_images(images_BCHW), many.encode_images(images_BCHW), atol=1e-6, rtol=0)
    torch.testing.assert_close(one.encode_patches(images_BCHW), many.encode_patches(images_BCHW), atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="batch_size"):
        load_dino(dino_folder, batch_size=0)


# Exactness


def test_train_mode_half_weights_and_autocast_change_nothing() -> None:
    images_BCHW = noise(2, 64)
    clip_plain = ClipEncoder(make_clip().train(False), make_tokenizer(), "tiny", preset(Preset.CLIP, 32))
    clip_train = ClipEncoder(make_clip(dropout=0.5).train(), make_tokenizer(), "tiny", preset(Preset.CLIP, 32))
    dino_plain = DinoEncoder(make_vit(32).train(False), "tiny", preset(Preset.DINO, 32))
    dino_train = DinoEncoder(make_vit(32, dropout=0.5).train(), "tiny", preset(Preset.DINO, 32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(clip_train.encode_images(images_BCHW), clip_plain.encode_images(images_BCHW))
        in_autocast = [clip_train.encode_images(images_BCHW), clip_train.encode_texts(["a dog"])]
        in_autocast += [dino_train.encode_images(images_BCHW), dino_train.encode_patches(images_BCHW)]
    outside = [clip_plain.encode_images(images_BCHW), clip_plain.encode_texts(["a dog"])]
    outside += [dino_plain.encode_images(images_BCHW), dino_plain.encode_patches(images_BCHW)]
    for one, other in zip(in_autocast, outside, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)


def test_encoders_are_frozen_fp32(clip_folder: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(clip_folder, half)
    stored: torch.nn.Module = make_clip()
    stored.to(torch.float16)
    assert isinstance(stored, CLIPModel)
    stored.save_pretrained(half)
    assert load_file(half / "model.safetensors")["visual_projection.weight"].dtype == torch.float16
    parameters = list(load_clip(half)._model.parameters())
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in parameters)


# Loading


def test_a_folder_is_named_with_the_hash_of_its_weights(clip_folder: Path, clip: ClipEncoder, tmp_path: Path) -> None:
    assert re.fullmatch(r"tiny-clip@[0-9a-f]{7}", clip.name)
    changed = tmp_path / "tiny-clip"
    shutil.copytree(clip_folder, changed)
    assert load_clip(changed).name == clip.name
    weights = load_file(changed / "model.safetensors")
    weights["visual_projection.weight"] += 1
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    assert load_clip(changed).name != clip.name


def test_preprocessing_can_be_chosen_by_name(dino_folder: Path) -> None:
    assert load_dino(dino_folder, preprocessing="clip").preprocessing == "clip-bicubic224-crop224"
    with pytest.raises(UserError, match="clip, dino"):
        load_dino(dino_folder, preprocessing="resnet")


def test_pickled_weights_are_refused_with_the_way_to_convert(clip_folder: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "pickled"
    shutil.copytree(clip_folder, pickled)
    (pickled / "model.safetensors").unlink()
    torch.save(make_clip().state_dict(), pickled / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin is pickled.*save_pretrained") as caught:
        load_clip(pickled)
    assert "\n" not in str(caught.value)


def test_missing_folders_and_files_are_user_errors(clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_clip(tmp_path / "absent")
    with pytest.raises(UserError, match=r"config\.json"):
        load_dino(tmp_path)
    bare = tmp_path / "bare"
    shutil.copytree(clip_folder, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(UserError, match="no weights"):
        load_clip(bare)


def test_missing_weights_are_not_filled_with_random_ones(clip_folder: Path, tmp_path: Path) -> None:
    partial = tmp_path / "partial"
    shutil.copytree(clip_folder, partial)
    weights = load_file(partial / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"visual_projection\.weight"):
        load_clip(partial)


def test_an_unreachable_hub_is_one_line_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        assert kwargs["revision"] == "abc1234"
        raise OSError("We couldn't connect to the hub\nand a second line")

    monkeypatch.setattr(CLIPModel, "from_pretrained", unreachable)
    with pytest.raises(UserError, match=r"couldn't connect.*local folder") as caught:
        load_clip("openai/clip-vit-base-patch32", revision="abc1234")
    assert "\n" not in str(caught.value)

"""The scorer on stub encoders whose every cosine is known."""

import json
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from boothlab.errors import UserError
from boothlab.evaluation.preprocessing import Images, to_uint8
from boothlab.evaluation.scoring import GeneratedImage, ImageScore, Scorer

HALF = math.cos(math.radians(60))


class StubEncoder:
    """Images become unit vectors at the angle (in degrees) of one channel's first pixel; counts what it is asked."""

    preprocessing = "stub-bicubic4-crop4"
    dim = 2

    def __init__(self, name: str, channel: int) -> None:
        self.name = name
        self.channel = channel
        self.encoded_images = 0
        self.encoded_texts: list[str] = []

    def encode_images(self, images: Images) -> Tensor:
        self.encoded_images += len(images)
        return directions([float(image[self.channel, 0, 0]) for image in to_uint8(images)])

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        self.encoded_texts += texts
        return directions([0.0 if "sks" in text else 90.0 for text in texts])

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        return [len(text) > 40 for text in texts]

    def encode_patches(self, images: Images) -> Tensor:
        return self.encode_images(images)[:, None, None]


def directions(degrees: Sequence[float]) -> Tensor:
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1).float()


def picture(degrees: int, dino_degrees: int | None = None) -> Tensor:
    """CLIP sees `degrees` in red, DINO `dino_degrees` in green. Not constant: a last blue pixel differs."""
    pixels_CHW = torch.full((3, 4, 4), degrees, dtype=torch.uint8)
    pixels_CHW[1] = degrees if dino_degrees is None else dino_degrees
    pixels_CHW[2, -1, -1] = 255
    return pixels_CHW


def image(index: int, seed: int, degrees: int, prompt: str = "a sks dog") -> GeneratedImage:
    return GeneratedImage(index, prompt, seed, picture(degrees))


def make_scorer(*references: int) -> Scorer:
    return Scorer(
        StubEncoder("clip@1", 0),
        StubEncoder("dino@1", 1),
        [picture(r) for r in references],
        token="sks",
        class_noun="dog",
    )


def test_every_score_of_one_image() -> None:
    result = make_scorer(0, 60).score([GeneratedImage(3, "a sks dog", 7, picture(0, dino_degrees=90))])
    dino = math.cos(math.radians(30)) / 2
    (score,) = result.per_image
    assert isinstance(score, ImageScore)
    assert (score.prompt_index, score.prompt, score.seed) == (3, "a sks dog", 7)
    found = (score.clip_i, score.dino, score.clip_t, score.clip_t_with_token)
    assert found == pytest.approx((0.75, dino, 0, 1), abs=1e-6)
    assert result.overall == pytest.approx(
        {"clip_i": 0.75, "dino": dino, "clip_t": 0, "clip_t_with_token": 1, "div": None}, abs=1e-6
    )


def test_the_text_encoder_never_sees_the_token_in_clip_t() -> None:
    scorer = make_scorer(0)
    scorer.score([image(0, 1, 0, "a sks dog"), image(1, 1, 0, "a photo of sks dog, at night")])
    assert isinstance(scorer.clip, StubEncoder)
    seen = set(scorer.clip.encoded_texts)
    assert seen == {"a sks dog", "a dog", "a photo of sks dog, at night", "a photo of dog, at night"}


def test_references_and_texts_are_encoded_once() -> None:
    scorer = make_scorer(0, 60)
    images = [image(0, seed, 0) for seed in range(3)]
    scorer.score(images)
    scorer.score(images)
    assert isinstance(scorer.clip, StubEncoder)
    assert scorer.clip.encoded_images == 2 + 3 + 3
    assert sorted(scorer.clip.encoded_texts) == ["a dog", "a sks dog"]


def test_prompt_table_and_overall_means() -> None:
    images = [image(1, 1, 60, "sks dog at night"), image(0, 2, 90), image(0, 1, 0)]
    result = make_scorer(0).score(images)
    assert [(score.prompt_index, score.seed) for score in result.per_image] == [(0, 1), (0, 2), (1, 1)]
    first, second = result.per_prompt
    assert (first.prompt, first.images, second.prompt, second.images) == ("a sks dog", 2, "sks dog at night", 1)
    assert first.dino == pytest.approx(0.5, abs=1e-6)
    assert first.div == pytest.approx(2.0, abs=1e-6)
    assert second.dino == pytest.approx(HALF, abs=1e-6)
    assert second.div is None
    assert result.overall["dino"] == pytest.approx((1 + 0 + HALF) / 3, abs=1e-6)
    assert result.overall["div"] == pytest.approx(2.0, abs=1e-6)
    assert list(first.to_dict()) == ["prompt_index", "prompt", "images", *result.overall]
    assert list(result.per_image[0].to_dict())[:3] == ["prompt_index", "prompt", "seed"]


def test_order_of_images_does_not_matter() -> None:
    images = [image(index, seed, 10 * index + seed) for index in range(2) for seed in range(2)]
    assert make_scorer(0).score(images[::-1]) == make_scorer(0).score(images)


# What must not pass unnoticed


def test_a_missing_image_is_an_error() -> None:
    expected = {(0, 1), (0, 2)}
    images = [image(0, 1, 0), image(0, 2, 0)]
    assert len(make_scorer(0).score(images, expected).per_image) == 2
    with pytest.raises(UserError, match="1 of 2 images are missing: prompt 0 seed 2"):
        make_scorer(0).score(images[:1], expected)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no generated images"),
        ([image(0, 1, 0), image(0, 1, 5)], "prompt 0, seed 1: more than one"),
        ([image(0, 1, 0), image(0, 9, 0)], "1 images were not expected: prompt 0 seed 9"),
        ([image(0, 1, 0), image(0, 2, 0, "a sks cat")], "two texts"),
        ([image(0, 1, 0, "sks")], "only the unique token"),
    ],
)
def test_wrong_sets_of_images_are_errors(images: list[GeneratedImage], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_scorer(0).score(images, expected={(0, 1)})


def test_a_doubled_image_is_an_error_even_when_nothing_is_expected() -> None:
    with pytest.raises(UserError, match="more than one"):
        make_scorer(0).score([image(0, 1, 0), image(0, 1, 0)])


def test_no_references_is_an_error() -> None:
    with pytest.raises(UserError, match="no reference images"):
        make_scorer()


# Ceiling and copying


def test_the_ceiling_is_between_different_photos() -> None:
    ceiling = make_scorer(0, 90).ceiling()
    assert ceiling == {"clip_i": pytest.approx(0, abs=1e-6), "dino": pytest.approx(0, abs=1e-6)}


def test_copying_the_references_is_flagged_and_honest_images_are_not() -> None:
    scorer = make_scorer(0, 90)
    copied = scorer.score([image(0, 1, 0), image(0, 2, 90)])
    assert copied.copy_warning
    assert any("copying" in warning for warning in copied.warnings)
    honest = scorer.score([image(0, 1, 180)])
    assert not honest.copy_warning
    assert honest.warnings == []


def test_one_reference_has_no_ceiling_and_no_copy_warning() -> None:
    scorer = make_scorer(0)
    result = scorer.score([image(0, 1, 0)])
    assert scorer.ceiling() == {"clip_i": None, "dino": None}
    assert not result.copy_warning
    row = next(row for row in result.rows if row.name == "dino_ceiling")
    assert row.value is None
    assert "at least 2" in row.note


# Alarms


@pytest.mark.parametrize("colour", [(0, 0, 0), (10, 20, 30)])
def test_images_of_one_flat_colour_are_counted(colour: tuple[int, int, int]) -> None:
    flat = torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1).expand(3, 4, 4)
    result = make_scorer(0).score([GeneratedImage(0, "a sks dog", 1, flat), image(0, 2, 90)])
    assert result.constant_images == 1
    assert any("1 of 2 images" in warning for warning in result.warnings)


def test_truncated_prompts_are_reported() -> None:
    long = "a sks dog " + "in the snow " * 5
    result = make_scorer(0).score([image(0, 1, 90), image(1, 1, 90, long)])
    assert [long in warning for warning in result.warnings] == [True]


# PRES and rows


def test_preservation_is_over_class_images_and_is_better_low() -> None:
    scorer = make_scorer(0)
    class_images = [picture(0), picture(90)]
    assert scorer.preservation(class_images) == pytest.approx(0.5, abs=1e-6)
    result = scorer.score([image(0, 1, 90)], class_images=class_images)
    assert result.overall["pres"] == pytest.approx(0.5, abs=1e-6)
    row = next(row for row in result.rows if row.name == "pres")
    assert not row.higher_is_better
    assert row.counts == {"class_images": 2, "references": 1, "pairs": 2}
    assert "dog" in row.pairing
    with pytest.raises(UserError, match="no class images"):
        scorer.preservation([])


def test_rows_say_what_each_number_is() -> None:
    result = make_scorer(0, 60, 90).score([image(0, 1, 0), image(0, 2, 60), image(1, 1, 90, "sks dog")])
    found = {row.name: row for row in result.rows}
    assert set(found) == {*result.overall, "clip_i_ceiling", "dino_ceiling"}
    assert {name: found[name].value for name in result.overall} == result.overall
    assert found["dino"].counts == {"images": 3, "prompts": 2, "references": 3, "pairs": 9}
    assert found["div"].counts == {"images": 3, "prompts": 2, "pairs": 1}
    assert found["dino_ceiling"].counts == {"references": 3, "pairs": 3}
    assert (found["clip_t"].token_policy, found["clip_t_with_token"].token_policy) == (
        "unique token removed",
        "unique token kept",
    )
    assert (found["clip_i"].encoder, found["dino"].encoder) == ("clip@1", "dino@1")
    assert found["div"].encoder == "lpips-uniform/dino@1"
    assert {row.preprocessing for row in result.rows} == {"stub-bicubic4-crop4"}
    assert all(row.higher_is_better for row in result.rows)
    assert json.dumps([row.to_dict() for row in result.rows])

"""The renderer: the same scene gives the same pixels, every fact shows, and the mask is exact."""

import hashlib
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from boothlab.dollhouse.scenes import (
    ACCESSORIES,
    CLASSES,
    COLORS,
    MARKINGS,
    PATTERNS,
    PLACES,
    Lamp,
    RoomScene,
    Scene,
    Subject,
    Time,
    ToyScene,
    held_out_subject,
    lamp_position,
    render,
    rng_for,
    sample_room_scene,
    sample_scene,
    sample_subject,
    sample_toy_scene,
    toy_layer,
)

GOLDEN = Path(__file__).parent / "golden" / "dollhouse_scenes.png"
GOLDEN_PILLOW = "13.0.0"
SUBJECT = Subject(
    "robot", "red", COLORS["red"], "plain", (40, 190, 180), "dot", (250, 220, 60), (0.5, 0.4, 0.6, 0.3, 0.7)
)
BEAR = Subject(
    "bear", "blue", COLORS["blue"], "striped", (230, 200, 90), "patch", (90, 30, 90), (0.2, 0.8, 0.5, 0.5, 0.1)
)
TEAPOT = replace(BEAR, class_noun="teapot", color_name="pink", color=COLORS["pink"], pattern="checked", marking="none")
SCENE = ToyScene(SUBJECT, "meadow")
ROOM = RoomScene("red", "blue", "green")
# Facts written out, not drawn: a change in NumPy's generators cannot move these pictures. The digests are of pixels.
GOLDEN_SCENES: dict[str, tuple[Scene, str]] = {
    "robot": (SCENE, "78816f073be6e7cdfb4e8f0068e6ce390d25930d08fba5b74ecacdeb172e3a40"),
    "bear": (
        ToyScene(BEAR, "beach", Time.NIGHT, Lamp.ON, "crown", 0.06, 0.7, True, 1),
        "7502bec44093789ff44af0dd2e5aad5601bc5b4d8f416102672da694c88db968",
    ),
    "teapot": (
        ToyScene(TEAPOT, "library", Time.DUSK, Lamp.OFF, "scarf", -0.08, 0.78, False, 2),
        "cc676a4a9228a492a17f74eef28a02bf3fdc0ba8b17ddf9c40f8157fd40fdbf7",
    ),
    "rocket": (
        ToyScene(replace(TEAPOT, class_noun="rocket", pattern="spotted"), "moon", variant=3),
        "786e7f9c5fc83c0ddf6f240c3a4179a3b977ef2623ed4fce66d27d90f8718d3f",
    ),
    "room": (ROOM, "9913f44f5f276191143fc8d70492a17554897b833817ea23c7b53c221375726d"),
    "dark room": (
        RoomScene("white", "purple", "orange", True, 2, Time.NIGHT, Lamp.ON, True, 1),
        "8d5bbd15e9000dbad5d9db32e406e89142ac4fc9dd59c143b0feea46dc5489ba",
    ),
}


def changed_pixels(one: np.ndarray, other: np.ndarray, by: int = 20) -> int:
    """How many pixels differ by more than `by` in some channel."""
    return int((np.abs(one.astype(int) - other.astype(int)).max(axis=2) > by).sum())


def on_every_axis() -> dict[str, list[Scene]]:
    """For each fact of a scene, scenes that differ in that fact alone."""
    subject = replace(SUBJECT, pattern="striped")
    return {
        "class": [replace(SCENE, subject=replace(SUBJECT, class_noun=noun)) for noun in CLASSES],
        "color": [replace(SCENE, subject=replace(SUBJECT, color=color)) for color in COLORS.values()],
        "pattern": [replace(SCENE, subject=replace(SUBJECT, pattern=pattern)) for pattern in PATTERNS],
        "marking": [replace(SCENE, subject=replace(subject, marking=marking)) for marking in MARKINGS],
        "place": [replace(SCENE, place=place) for place in PLACES],
        "time": [replace(SCENE, time=time) for time in Time],
        "time indoors": [replace(SCENE, place="kitchen", time=time) for time in Time],
        "lamp": [replace(SCENE, lamp=lamp) for lamp in Lamp],
        "lamp at night": [replace(SCENE, time=Time.NIGHT, lamp=lamp) for lamp in Lamp],
        "pose": [SCENE, replace(SCENE, shift=0.08), replace(SCENE, scale=0.68)],
        "room bed": [replace(ROOM, bed=color) for color in COLORS],
        "room curtains": [replace(ROOM, curtains=color) for color in COLORS],
        "room carpet": [replace(ROOM, carpet=color) for color in COLORS],
        "room pictures": [replace(ROOM, pictures=count) for count in range(3)],
        "room window": [replace(ROOM, curtains_closed=closed) for closed in (False, True)],
        "room time": [replace(ROOM, time=time) for time in Time],
        "room lamp": [replace(ROOM, lamp=lamp) for lamp in (Lamp.OFF, Lamp.ON)],
        "room flip": [replace(ROOM, flip=flip) for flip in (False, True)],
    }


@pytest.mark.parametrize("name", GOLDEN_SCENES)
@pytest.mark.skipif(PIL.__version__ != GOLDEN_PILLOW, reason="another Pillow may round an ellipse's edge otherwise")
def test_the_pixels_are_these(name: str) -> None:
    scene, digest = GOLDEN_SCENES[name]
    assert hashlib.sha256(render(scene).tobytes()).hexdigest() == digest


def test_any_pillow_draws_nearly_the_golden_pictures() -> None:
    golden = np.asarray(Image.open(GOLDEN).convert("RGB"))
    for i, (name, (scene, _)) in enumerate(GOLDEN_SCENES.items()):
        picture, expected = render(scene), golden[:, 32 * i : 32 * (i + 1)]
        assert np.abs(picture.astype(float) - expected).mean() < 2.0, name
        assert changed_pixels(picture, expected, by=48) <= 20, name


def test_a_scene_renders_the_same_twice_and_leaves_no_state_behind() -> None:
    first = render(GOLDEN_SCENES["bear"][0])
    render(GOLDEN_SCENES["teapot"][0], 48)
    assert np.array_equal(first, render(GOLDEN_SCENES["bear"][0]))


@pytest.mark.parametrize("axis", on_every_axis())
def test_every_value_of_a_fact_looks_different(axis: str) -> None:
    pictures = [render(scene) for scene in on_every_axis()[axis]]
    enough = 4 if axis == "marking" else 10  # a blaze is a few pixels at this size
    for one, other in combinations(pictures, 2):
        assert changed_pixels(one, other) >= enough


@pytest.mark.parametrize("class_noun", CLASSES)
def test_every_toy_wears_every_accessory_visibly(class_noun: str) -> None:
    subject = replace(SUBJECT, class_noun=class_noun)
    pictures = [render(replace(SCENE, subject=subject, accessory=accessory)) for accessory in ACCESSORIES]
    for one, other in combinations(pictures, 2):
        assert changed_pixels(one, other) >= 10


@pytest.mark.parametrize("size", [32, 48, 64])
@pytest.mark.parametrize("name", GOLDEN_SCENES)
def test_every_size_shows_the_same_scene(size: int, name: str) -> None:
    picture = render(GOLDEN_SCENES[name][0], size)
    assert picture.shape == (size, size, 3)
    assert picture.dtype == np.uint8
    small = np.asarray(Image.fromarray(picture).resize((16, 16), Image.Resampling.BOX), dtype=float)
    reference = render(GOLDEN_SCENES[name][0], 32)
    expected = np.asarray(Image.fromarray(reference).resize((16, 16), Image.Resampling.BOX), dtype=float)
    assert np.abs(small - expected).mean() < 6


@given(st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_any_scene_renders(seed: int) -> None:
    picture = render(sample_scene(rng_for(seed, "test")))
    assert picture.shape == (32, 32, 3)
    assert picture.std() > 5  # never a blank


@pytest.mark.parametrize("accessory", ACCESSORIES)
@pytest.mark.parametrize("class_noun", CLASSES)
def test_the_layer_is_the_exact_mask_of_the_toy(class_noun: str, accessory: str) -> None:
    subject = replace(BEAR, class_noun=class_noun)
    painted = replace(subject, color=(10, 250, 10), second=(250, 10, 250), marking_color=(0, 255, 255))
    scene = ToyScene(subject, "city", Time.DUSK, Lamp.ON, accessory, 0.05, 0.74, True, 1)
    other = replace(scene, subject=painted)
    alpha = toy_layer(scene, 32)[..., 3]
    assert np.array_equal(alpha, toy_layer(other, 32)[..., 3])
    one, two = render(scene), render(other)
    assert np.array_equal(one[alpha == 0], two[alpha == 0])
    assert changed_pixels(one, two) > 0.2 * (alpha == 255).sum()


def test_the_layer_is_premultiplied() -> None:
    layer = toy_layer(SCENE, 32)
    assert layer.shape == (32, 32, 4)
    assert 100 < (layer[..., 3] > 0).sum() < 900
    assert (layer[..., :3] <= layer[..., 3:] + 1e-3).all()


def test_the_lamp_stands_where_the_toy_does_not() -> None:
    assert lamp_position(replace(SCENE, shift=0.05))[0] < 0.5 < lamp_position(replace(SCENE, shift=-0.05))[0]


def test_held_out_subjects_are_themselves_forever() -> None:
    subject = held_out_subject("robot", 1)
    assert subject == held_out_subject("robot", 1)
    assert (subject.color_name, subject.pattern, subject.marking) == ("green", "plain", "bar")
    assert subject.proportions == pytest.approx((0.19007, 0.10513, 0.24649, 0.58822, 0.96156), abs=1e-4)


def test_there_is_no_last_held_out_subject() -> None:
    subjects = [held_out_subject(noun, index) for noun in CLASSES for index in (*range(30), 10**6, 10**18)]
    assert len(set(subjects)) == len(subjects)
    assert {subject.class_noun for subject in subjects} == set(CLASSES)


def test_an_unknown_class_is_named() -> None:
    with pytest.raises(ValueError, match="no 'dragon'; its classes are bear, cat"):
        held_out_subject("dragon", 0)


def test_held_out_subjects_are_not_in_the_training_stream() -> None:
    held_out = {held_out_subject(noun, index).proportions for noun in CLASSES for index in range(25)}
    trained = set()
    for part in ("vae", "diffusion", "clip", "dino", "judge"):
        for step in range(10):
            rng = rng_for(0, "pretrain", part, step)
            trained |= {sample_subject(rng).proportions for _ in range(20)}
    assert not held_out & trained


def test_samples_stay_within_the_world() -> None:
    rng = rng_for(0, "test", "samples")
    toys = [sample_toy_scene(rng) for _ in range(400)]
    assert {toy.place for toy in toys} == set(PLACES)
    assert {toy.time for toy in toys} == set(Time)
    assert {toy.lamp for toy in toys} == set(Lamp)
    assert {toy.accessory for toy in toys} == set(ACCESSORIES)
    assert {toy.subject.color_name for toy in toys} == set(COLORS)
    assert {toy.subject.pattern for toy in toys} == set(PATTERNS)
    assert {sample_room_scene(rng).lamp for _ in range(50)} == {Lamp.OFF, Lamp.ON}
    rooms = sum(isinstance(sample_scene(rng), RoomScene) for _ in range(1000))
    assert 100 < rooms < 200


def write_golden() -> None:
    """Draw tests/golden/dollhouse_scenes.png anew and print the digests (after a wished change of the renderer)."""
    pictures = [render(scene) for scene, _ in GOLDEN_SCENES.values()]
    Image.fromarray(np.concatenate(pictures, axis=1)).save(GOLDEN)
    for name, picture in zip(GOLDEN_SCENES, pictures, strict=True):
        print(name, hashlib.sha256(picture.tobytes()).hexdigest())


if __name__ == "__main__":
    write_golden()

"""Photos of a dollhouse subject: the same every time, of one toy, in many places."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boothlab.building.photos import build_subject
from boothlab.cache import Cache
from boothlab.compose.run import compose
from boothlab.compose.typed import load
from boothlab.config import TrainConfig
from boothlab.dollhouse.grammar import Facts, toy_prompt
from boothlab.dollhouse.photos import parse_subject, photo_scenes, write_photos
from boothlab.dollhouse.scenes import CLASSES, PLACES, Lamp, Time, held_out_subject, render
from boothlab.errors import UserError


def pixels(folder: Path) -> list[bytes]:
    return [Image.open(path).tobytes() for path in sorted(folder.glob("*.png"))]


def test_photos_are_pngs_of_the_scenes(tmp_path: Path) -> None:
    write_photos(tmp_path / "new" / "photos", "robot", 1, 3)
    found = sorted((tmp_path / "new" / "photos").iterdir())
    paths = [path for path in found if path.suffix == ".png"]
    assert [path.name for path in paths] == ["photo_00.png", "photo_01.png", "photo_02.png"]
    assert [path.name for path in found if path not in paths] == ["photo_00.txt", "photo_01.txt", "photo_02.txt"]
    for path, scene in zip(paths, photo_scenes("robot", 1, 3), strict=True):
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (32, 32))
            assert np.array_equal(np.asarray(image), render(scene))


def test_a_caption_says_where_and_when_and_nothing_of_the_toy(tmp_path: Path) -> None:
    write_photos(tmp_path, "robot", 6, 5)
    assert [path.read_bytes().decode() for path in sorted(tmp_path.glob("*.txt"))] == [
        "a photo of a robot in the snow in daylight\n",
        "a photo of a robot on the moon at dusk\n",
        "a photo of a robot under the sea in daylight\n",
        "a photo of a robot in the forest at night\n",
        "a photo of a robot in the desert in daylight\n",
    ]
    toy = held_out_subject("robot", 6)
    for path in tmp_path.glob("*.txt"):
        assert toy.color_name not in path.read_text(encoding="utf-8")
        assert toy.pattern not in path.read_text(encoding="utf-8")


def test_photos_are_the_same_every_time(tmp_path: Path) -> None:
    write_photos(tmp_path / "one", "cat", 0, 4)
    write_photos(tmp_path / "two", "cat", 0, 4)
    names = [path.name for path in sorted((tmp_path / "one").iterdir())]
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes() for n in names)


def test_more_photos_leave_the_first_as_they_are() -> None:
    assert photo_scenes("duck", 2, 12)[:5] == photo_scenes("duck", 2, 5)


@pytest.mark.parametrize("class_noun", CLASSES)
def test_a_set_is_one_toy_in_many_places(class_noun: str) -> None:
    scenes = photo_scenes(class_noun, 3, 5)
    assert {scene.subject for scene in scenes} == {held_out_subject(class_noun, 3)}
    assert len({scene.place for scene in scenes}) == 5
    assert [scene.time for scene in scenes].count(Time.DAY) == 3
    assert {scene.time for scene in scenes} == set(Time)
    assert len({(scene.shift, scene.scale) for scene in scenes}) == 5
    assert {(scene.lamp, scene.accessory) for scene in scenes} == {(Lamp.NONE, "none")}


def test_places_come_again_only_when_all_were_there() -> None:
    places = [scene.place for scene in photo_scenes("car", 0, 20)]
    assert set(places[:10]) == set(places[10:]) == set(PLACES)


def test_another_subject_has_other_photos(tmp_path: Path) -> None:
    for name, subject in {"a": ("bear", 0), "b": ("bear", 1), "c": ("rocket", 0)}.items():
        write_photos(tmp_path / name, *subject, 2)
    assert len({photo for name in "abc" for photo in pixels(tmp_path / name)}) == 6


@pytest.mark.parametrize("subject", ["robot", "bear", "car"])
def test_the_shipped_subjects_use_their_captions_only_when_asked(subject: str, tmp_path: Path) -> None:
    def prompts(*words: str) -> list[str]:
        config, _ = load(compose("train", [f"subject={subject}", *words]), TrainConfig)
        return [item.prompt for item in build_subject(config.subject, Cache(tmp_path)).items]

    assert prompts() == [f"a photo of a sks {subject}"] * 5
    captioned = prompts("subject.captions=true")
    assert captioned == [
        f"a photo of a sks {subject} {rest}"
        for scene in photo_scenes(subject, {"robot": 6}.get(subject, 1), 5)
        for rest in [
            toy_prompt(Facts(class_noun=subject, place=scene.place, time=scene.time)).partition(f"{subject} ")[2]
        ]
    ]
    assert len(set(captioned)) == 5
    assert len(list((tmp_path / "dollhouse-photos").iterdir())) == 1  # the photos are the same, captions or not


@pytest.mark.parametrize("count", [0, -1])
def test_no_photos_is_refused(tmp_path: Path, count: int) -> None:
    with pytest.raises(UserError, match=f"at least 1 photo, got count={count}"):
        write_photos(tmp_path, "bear", 0, count)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dollhouse:robot/1", ("robot", 1)),
        ("dollhouse:teapot/0", ("teapot", 0)),
        ("dollhouse:cat/123456789", ("cat", 123456789)),
        ("photos/robot/1", None),
        ("dollhouse", None),
        ("", None),
        ("C:\\photos", None),
    ],
)
def test_a_subject_is_read_from_its_name(text: str, expected: tuple[str, int] | None) -> None:
    assert parse_subject(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("dollhouse:dragon/1", "dollhouse:robot", "dollhouse:robot/", "dollhouse:robot/-1", "dollhouse:robot/x"),
        *("dollhouse:", "dollhouse:/1", "dollhouse:Robot/1", "dollhouse:robot/1/2", "dollhouse:robot/1.0"),
        *("dollhouse: robot/1", "dollhouse:robot/1\n", "dollhouse:robot/١", "dollhouse:robot/" + "9" * 5000),
    ],
)
def test_a_bad_subject_is_explained_in_one_line(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_subject(text)
    message = str(caught.value)
    assert "\n" not in message
    assert all(noun in message for noun in CLASSES)
    assert "dollhouse:CLASS/INDEX" in message

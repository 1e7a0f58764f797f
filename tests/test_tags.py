"""Tags: label lists, which labels an image gets, in which order, and what they come to over a collection."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from boothlab.captioning.groups import Groups, read_groups
from boothlab.captioning.statistics import TagStatistics
from boothlab.captioning.tags import ImageTags, Tagger, greedy_tags, parse_labels, read_labels, shipped_labels, tags_of
from boothlab.dollhouse.grammar import LAMP_PHRASES, PLACE_PHRASES, TIME_PHRASES, WEAR_PHRASES
from boothlab.dollhouse.scenes import ACCESSORIES, CLASSES, COLORS, PATTERNS
from boothlab.errors import UserError


class StubClip:
    """Texts by a table of vectors; what was asked is kept."""

    name, preprocessing, dim = "stub", "none", 3

    def __init__(self, texts: dict[str, Sequence[float]]) -> None:
        self.texts = texts
        self.asked: list[str] = []

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        self.asked += texts
        return torch.tensor([self.texts.get(text, (0, 0, 0)) for text in texts], dtype=torch.float32)

    def encode_images(self, images: object) -> Tensor:
        raise NotImplementedError

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        return [False] * len(texts)


def test_tags_are_the_labels_above_the_threshold_best_first() -> None:
    found = tags_of(torch.tensor([0.26, 0.25, 0.31, 0.1]), ["a", "b", "c", "d"], 0.25)
    assert found.tags == ("c", "a")  # 0.25 is not above 0.25
    assert found.cosines == pytest.approx((0.31, 0.26))
    total = sum(math.exp(100 * value) for value in (0.26, 0.25, 0.31, 0.1))
    assert found.softmax == pytest.approx((math.exp(31) / total, math.exp(26) / total), rel=1e-4)
    assert (found.top1, found.top1_cosine, found.gap_10) == ("c", pytest.approx(0.31), None)


def test_where_none_is_above_the_best_one_is_the_tag_and_ties_go_by_the_list() -> None:
    assert tags_of(torch.tensor([0.1, 0.2, 0.2]), ["a", "b", "c"], 0.25).tags == ("b",)
    assert tags_of(torch.tensor([0.3, 0.3, 0.3]), ["a", "b", "c"], 0.25).tags == ("a", "b", "c")


def test_the_gap_is_that_to_the_tenth_label() -> None:
    cosines = torch.arange(12) / 100
    assert tags_of(cosines, [str(i) for i in range(12)], 0.5).gap_10 == pytest.approx(0.11 - 0.02)
    assert tags_of(cosines[:10], [str(i) for i in range(10)], 0.5).gap_10 == pytest.approx(0.09)
    assert tags_of(cosines[:9], [str(i) for i in range(9)], 0.5).gap_10 is None


def test_the_tagger_asks_by_its_template() -> None:
    clip = StubClip({"a photo of a bed": (1, 0, 0), "a photo of a desk": (0, 1, 0)})
    tagger = Tagger(clip, ["bed", "desk"], threshold=0.5)
    assert clip.asked == ["a photo of a bed", "a photo of a desk"]
    found = tagger.tags(torch.tensor([[0.6, 0.8, 0.0], [0.9, 0.1, 0.0]]))
    assert [one.tags for one in found] == [("desk", "bed"), ("bed",)]


def test_greedy_tags_are_added_while_the_whole_text_comes_nearer() -> None:
    clip = StubClip(
        {
            "a room": (0.2, 0, 0),
            "a room, bed": (0.4, 0, 0),
            "a room, desk": (0.5, 0, 0),
            "a room, desk, bed": (0.6, 0, 0),
            "a room, desk, bed, sofa": (0.6, 0, 0),  # no nearer: not added
        }
    )
    image = torch.tensor([1.0, 0.0, 0.0])
    assert greedy_tags("a room", image, clip, ["bed", "desk", "sofa"], 8) == ["desk", "bed"]
    assert greedy_tags("a room", image, clip, ["bed", "desk", "sofa"], 1) == ["desk"]
    assert greedy_tags("a room", image, clip, [], 8) == []
    clip.asked.clear()
    greedy_tags("a room with a bed", image, clip, ["bed", "be"], 8)
    assert "a room with a bed, bed" not in clip.asked and "a room with a bed, be" in clip.asked


def test_the_lists_that_ship() -> None:
    assert shipped_labels() == ["dollhouse", "hotel_room"]
    hotel = read_labels("hotel_room")
    assert len(hotel.labels) == 20 and hotel.repeated == 0
    words = [*PLACE_PHRASES.values(), *TIME_PHRASES.values(), *LAMP_PHRASES.values()]
    words += [WEAR_PHRASES[name] for name in ACCESSORIES if name != "none"]
    rooms = [
        f"hotel room with {part}"
        for name in COLORS
        for part in (f"a {name} bed", f"{name} curtains", f"a {name} carpet")
    ]
    expected = [*CLASSES, *(f"{word} toy" for word in (*COLORS, *PATTERNS[1:])), *(f"toy {word}" for word in words)]
    assert set(read_labels("dollhouse").labels) == {*expected, "hotel room", *rooms}


def test_a_list_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes("\ufeff# beds\n double   bed\r\n\nfauteuil é\nsofa\nsofa\n".encode())
    found = read_labels(str(path))
    assert found.labels == ("double bed", "fauteuil é", "sofa")
    assert (found.repeated, len(found.sha256)) == (1, 64)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "holds no label"),
        (b"# only this\n\n", "holds no label"),
        (b"bed; desk\n", "line 1: a label may not have semicolons"),
        (b"bed\nde\x07sk\n", "line 2"),
        (b"\xff\xfeb\0", "not UTF-8"),
    ],
)
def test_a_bad_list_is_one_line(data: bytes, words: str) -> None:
    with pytest.raises(UserError, match=r"^labels=mine[^\n]*$") as error:
        parse_labels(data, "mine")
    assert words in str(error.value)


def test_an_unknown_list_names_those_that_ship() -> None:
    with pytest.raises(UserError, match=r"no such file, nor a list of that name \(dollhouse, hotel_room\)"):
        read_labels("hotel_rooms")


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_labels_or_one_line(data: bytes) -> None:
    try:
        labels = parse_labels(data, "x").labels
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert labels and len(set(labels)) == len(labels)
        again = parse_labels("\n".join(labels).encode(), "x")
        assert again.labels == labels and all(";" not in label for label in labels)


def test_statistics_over_images_and_groups() -> None:
    statistics = TagStatistics()
    statistics.add("a", ImageTags(("x", "y"), (0.3, 0.28), (0.9, 0.1), 0.1))
    statistics.add("a", ImageTags(("y",), (0.2,), (1.0,), 0.3))
    statistics.add("b", ImageTags(("y", "z", "x"), (0.4, 0.3, 0.26), (0.5, 0.3, 0.2), None))
    assert statistics.summary() == pytest.approx(
        {"tags_per_image": 2, "top1_cosine": 0.3, "gap_10": 0.2, "distinct_tags_per_group": 2.5, "distinct_tags": 3}
    )
    assert [row[:3] + row[5:] for row in statistics.rows()] == [("a", 2, 1.5, 2), ("b", 1, 3.0, 3)]
    assert TagStatistics().summary() == {}


def test_groups_by_subfolder_and_by_table(tmp_path: Path) -> None:
    assert [Groups(2).of(file) for file in ("a.png", "x/a.png", "x/y/z/a.png")] == [".", "x", "x/y"]
    path = tmp_path / "hotels.csv"
    path.write_text("file,chain\nx/a.png,Ritz\nb.png,  Grand   Hotel\n", encoding="utf-8")
    groups = Groups(table=read_groups(path, "chain"))
    assert [groups.of(file) for file in ("x/a.png", "y/b.png", "c.png")] == ["Ritz", "Grand Hotel", ""]
    with pytest.raises(UserError, match="has no column hotel; its columns are: file, chain"):
        read_groups(path, "hotel")
    with pytest.raises(UserError, match="cannot be read"):
        read_groups(tmp_path / "none.csv", "chain")
    path.write_bytes(b"\xff\xfe,\n")
    with pytest.raises(UserError, match="not a UTF-8 CSV"):
        read_groups(path, "chain")

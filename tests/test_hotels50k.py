"""Hotels-50K: the published schema checked line by line, numbers, the seeded choice, and the command end to end."""

import csv
import json
import math
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bad_server import BadServer, bad_server
from boothlab.cli import main
from boothlab.config_hotels import HotelsConfig
from boothlab.errors import UserError
from boothlab.images.download_record import Result
from boothlab.images.hotels50k import Split, choose_hotels, choose_images, read_catalogue, read_images
from boothlab.images.hotels_eda import balance, explore, quantiles, sizes
from dollhouse_hotels import make_hotels

TRAIN = Split("train")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_hotels(tmp_path / "data", "https://example.org", side=16).folder


@pytest.fixture
def server() -> Iterator[BadServer]:
    with bad_server() as running:
        yield running


def add(path: Path, *lines: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)


def test_the_catalogue_is_read(data: Path) -> None:
    catalogue = read_catalogue(data, TRAIN)
    assert catalogue.chains == {"0": "Alpha Inns", "1": "Beta & Sons <Hotels>", "-1": "unknown"}
    hotel = catalogue.hotels["11"]
    assert (hotel.name, hotel.chain_id, hotel.latitude, hotel.longitude) == ("House 1", "0", 51.5, -1.25)
    assert catalogue.hotels["20"].latitude is None
    assert catalogue.counts["13"] == {"travel_website": 4, "traffickcam": 2}
    assert (catalogue.images_of("13"), catalogue.images_of("20"), catalogue.chain_name("7")) == (6, 0, "chain 7")
    first = next(read_images(data, TRAIN))
    assert first == ("100", "10", "https://example.org/100.jpg", "travel_website", "2017-01-01")
    assert read_catalogue(data, Split("test")).counts == {"10": {"travel_website": 1}}


def test_a_header_is_optional_as_in_the_published_training_set(data: Path) -> None:
    before = read_catalogue(data, TRAIN)
    for path in data.glob("*.csv"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().split(b"\n", 1)[1].replace(b"\n", b"\r\n"))
    after = read_catalogue(data, TRAIN)
    assert (after.chains, after.hotels, after.counts) == (before.chains, before.hotels, before.counts)


def test_names_may_hold_commas_in_quotes(data: Path) -> None:
    add(data / "hotel_info.csv", '30,"House, the ""Old""",1,1,2')
    assert read_catalogue(data, TRAIN).hotels["30"].name == 'House, the "Old"'


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("hotel_info.csv", "x1,House,0,1,2", "line 7: hotel_id is 'x1'; it must be a whole number"),
        ("hotel_info.csv", "30,House,0,1", "line 7: 4 columns instead of 5; they are hotel_id,hotel_name,"),
        ("hotel_info.csv", "30,,0,1,2", "line 7: hotel_name is empty; give one"),
        ("hotel_info.csv", "30,House,../x,1,2", "line 7: chain_id is '../x'; it must be a whole number"),
        ("hotel_info.csv", "30,House,0,north,2", "line 7: latitude is 'north'; give degrees as a number, or nothing"),
        ("hotel_info.csv", "30,House,0,1,nan", "line 7: longitude is 'nan'; give degrees"),
        ("hotel_info.csv", "10,House,0,1,2", "line 7: hotel_id 10 was given in line 2; delete one"),
        ("chain_info.csv", "1,Gamma", "line 5: chain_id 1 was given in line 3; delete one"),
        ("train_set.csv", "../../etc,10,u,s,t", "line 26: image_id is '../../etc'; it must be a whole number"),
        ("train_set.csv", "999,10,,s,t", "line 26: image_url is empty; give it, or delete the line"),
        ("train_set.csv", "999,10,u,,t", "line 26: image_source is empty; give it, or delete the line"),
        ("train_set.csv", "999,10,u", "line 26: 3 columns instead of 5"),
        ("train_set.csv", "999,10," + "u" * 200_000 + ",s,t", "no valid CSV (field larger than field limit"),
    ],
)
def test_every_mistake_names_its_file_and_line(data: Path, file: str, line: str, message: str) -> None:
    add(data / file, line)
    with pytest.raises(UserError) as found:
        read_catalogue(data, TRAIN)
    assert f"{data / file} " in str(found.value)
    assert message in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: the file is empty; its columns are chain_id,chain_name"),
        (b"chain,name\n0,a\n", "line 1: the columns are 'chain,name'; they must be chain_id,chain_name"),
        (b"chain_id;chain_name\n0;a\n", "line 1: the columns are 'chain_id;chain_name'"),
        (b"chain_id,chain_name\n0,a\n1,caf\xe9\n", "line 3: not UTF-8 text; save the file as UTF-8"),
    ],
)
def test_files_that_are_something_else_are_refused(data: Path, content: bytes, message: str) -> None:
    (data / "chain_info.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"chain_info\.csv") as found:
        read_catalogue(data, TRAIN)
    assert message in str(found.value)


def test_missing_files_and_folders_are_named(data: Path) -> None:
    (data / "train_set.csv").unlink()
    with pytest.raises(UserError, match=r"train_set.csv: there is no such file; unpack input/dataset.tar.gz"):
        read_catalogue(data, TRAIN)
    with pytest.raises(UserError, match="there is no such folder"):
        read_catalogue(data / "none", TRAIN)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "train_set.csv").write_bytes(content)
    try:
        images = list(read_images(folder, TRAIN))
    except UserError as error:
        assert str(error).isprintable()
    else:
        assert all(int(image.id) is not None and image.url and image.source for image in images)


def test_what_does_not_fit_together_is_counted_and_left_out(data: Path) -> None:
    add(data / "train_set.csv", "900,99,u,s,t", "100,11,u,s,t", "0100,11,u,s,t")
    add(data / "hotel_info.csv", "40,Lost,8,91,0")
    eda = explore(read_catalogue(data, TRAIN))
    assert eda["totals"]["images"] == 24
    assert eda["warnings"] == [
        "images of hotels that hotel_info.csv does not have, left out: 1",
        "lines that repeat an image_id, left out: 2",
        "hotels without an image in train_set.csv: 2",
        "chains of hotels that are not in chain_info.csv: 1",
        "hotels with coordinates that are not on earth: 1",
    ]


def test_the_numbers_are_golden(data: Path) -> None:
    add(data / "train_set.csv", *(f"{800 + i},13,https://example.org/x.jpg,traffickcam," for i in range(6)))
    eda = explore(read_catalogue(data, TRAIN))
    assert eda["totals"] == {"chains": 2, "chains_listed": 3, "hotels": 4, "hotels_listed": 5, "images": 30}
    assert eda["chains"][0] == {
        **{"chain_id": "1", "chain": "Beta & Sons <Hotels>", "hotels": 2, "images": 18, "share": 0.6},
        **{"median_images_per_hotel": 9.0, "smallest_hotel": 6, "largest_hotel": 12},
        "sources": {"traffickcam": 10, "travel_website": 8},
    }
    assert eda["sources"] == [
        {"source": "travel_website", "images": 16, "share": 16 / 30},
        {"source": "traffickcam", "images": 14, "share": 14 / 30},
    ]
    assert eda["hotels_by_images"] == [[6, 3], [12, 1]]
    assert eda["images_per_hotel"]["mean"] == 7.5
    assert (eda["images_per_hotel"]["median"], eda["images_per_hotel"]["max"]) == (6, 12)
    even = eda["balance"]["hotels"]
    assert (even["classes"], even["smallest"], even["largest"], even["ratio"]) == (4, 6, 12, 2.0)
    entropy = -(3 * 0.2 * math.log(0.2) + 0.4 * math.log(0.4))
    assert even["entropy"] == pytest.approx(entropy)
    assert even["evenness"] == pytest.approx(entropy / math.log(4))
    assert even["gini"] == pytest.approx(0.15)  # mean absolute difference 2.25 by twice the mean 7.5


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_balance_is_within_its_bounds_and_even_classes_are_even(counts: list[int]) -> None:
    found = balance(counts)
    assert found == balance(counts[::-1])
    assert 1 <= found["effective"] <= len(counts) + 1e-9  # type: ignore[operator]
    mean_difference = sum(abs(a - b) for a in counts for b in counts) / len(counts) ** 2
    assert found["gini"] == pytest.approx(mean_difference / (2 * sum(counts) / len(counts)))
    assert balance([7] * len(counts))["gini"] == pytest.approx(0)


def test_nothing_has_no_numbers() -> None:
    assert quantiles([]) is None
    assert balance([])["gini"] is None
    assert balance([5])["evenness"] is None
    assert sizes([Result("1", "u", "t", False, reason="HTTP 404")])["sizes"]["bytes"] is None


def chosen(data: Path, count: int | None, seed: int, **filters: object) -> list[str]:
    return [hotel.id for hotel in choose_hotels(read_catalogue(data, TRAIN), count, seed, **filters)]  # type: ignore[arg-type]


def test_the_choice_is_of_the_seed_and_grows_without_dropping_any(data: Path) -> None:
    assert [chosen(data, 2, seed) for seed in range(4)] == [["10", "12"], ["11", "13"], ["10", "11"], ["10", "12"]]
    for seed in range(10):
        nested = [set(chosen(data, count, seed)) for count in (1, 2, 3, 4)]
        assert all(small < large for small, large in pairwise(nested))
    add(data / "hotel_info.csv", "50,New,1,,")
    add(data / "train_set.csv", "950,50,u,s,t")
    assert set(chosen(data, 2, 0)) - {"50"} <= {"10", "12"}


def test_filters(data: Path) -> None:
    add(data / "train_set.csv", "950,12,u,booking,t")
    assert chosen(data, None, 0) == ["10", "11", "12", "13"]
    assert chosen(data, None, 0, chains=["alpha inns"]) == chosen(data, None, 0, chains=["0"]) == ["10", "11"]
    assert chosen(data, None, 0, min_images=7) == ["12"]
    assert chosen(data, None, 0, sources=["booking"]) == ["12"]
    assert chosen(data, None, 0, sources=["traffickcam"], min_images=2) == ["10", "11", "12", "13"]
    for filters, message in (
        ({"chains": ["hilton"]}, "there is no chain 'hilton'; chain_info.csv has 3, such as Alpha Inns"),
        ({"sources": ["flickr"]}, "no image is from 'flickr'; there are booking, traffickcam, travel_website"),
        ({"min_images": 99}, "no hotel of .* passes chains, sources and min_images=99"),
        ({"chains": ["-1"]}, "no hotel of .* passes"),
    ):
        with pytest.raises(UserError, match=message):
            chosen(data, None, 0, **filters)
    with pytest.raises(UserError, match="hotels=5: only 4 pass"):
        chosen(data, 5, 0)


def test_images_are_chosen_by_chance_too_and_none_twice(data: Path) -> None:
    add(data / "train_set.csv", "100,11,u,s,t", "0100,10,u,s,t")
    catalogue = read_catalogue(data, TRAIN)
    hotels = choose_hotels(catalogue, None, 0)
    some, more = (choose_images(catalogue, hotels, count, 0) for count in (2, 4))
    assert [image.hotel_id for image in some] == [hotel for hotel in ("10", "11", "12", "13") for _ in range(2)]
    assert set(some) < set(more)
    every = [image.id for image in choose_images(catalogue, hotels, None, 0)]
    assert every == sorted(set(every), key=int)
    only = choose_images(catalogue, hotels, None, 0, ["traffickcam"])
    assert {image.source for image in only} == {"traffickcam"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hotels": None, "download": True}, "hotels=null: would download every image there is"),
        ({"hotels": 0}, "hotels=0: must be at least 1"),
        ({"chains": []}, r"chains=\[\]: must name at least one"),
        ({"seed": -1}, "seed=-1"),
        ({"data": " "}, "data="),
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        HotelsConfig(**{"data": "x", **values})  # type: ignore[arg-type]


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


@pytest.mark.slow
def test_the_command_from_csv_files_to_images(
    server: BadServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_hotels(tmp_path / "data", server.url, side=32)
    server.pages |= made.pages
    add(made.folder / "train_set.csv", f"900,10,{server.url}/gone.jpg,traffickcam,", f"901,11,=cmd{server.url},s,")
    out = tmp_path / "out"
    words = ["hotels", f"data={made.folder}", "hotels=4", f"out={out}", "download=true"]
    words += ["fetch.allow_private=true", "fetch.rate=1000"]
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "24 images are in" in said and "2 failed" in said
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.jpg"))
    assert len(files) == 24
    assert files[0] == "images/0/10/100.jpg"
    with Image.open(out / files[0]) as image:
        assert (image.size, image.format) == ((32, 32), "JPEG")
    selection = list(csv.DictReader((out / "selection.csv").open(encoding="utf-8")))
    assert len(selection) == 26
    assert selection[-1]["file"] == "images/1/13/405.jpg"
    failures = (out / "failures.csv").read_text(encoding="utf-8").splitlines()
    assert failures == [
        "image_id,hotel_id,chain_id,image_url,reason,final,attempts",
        f"900,10,0,{server.url}/gone.jpg,HTTP 404 Not Found,true,1",
        f"901,11,0,'=cmd{server.url},not an http or https address,true,0",
    ]
    record = json.loads((out / "eda.json").read_text(encoding="utf-8"))
    assert record["download"]["sizes"]["width"] == dict.fromkeys(
        ("mean", "min", "p5", "p25", "median", "p75", "p95", "max"), 32.0
    )
    assert record["chosen"] == {"hotels": 4, "images": 26}
    page = (out / "eda.html").read_text(encoding="utf-8")
    parsed = _Page()
    parsed.feed(page)
    assert "hotels" not in parsed.tags  # the name of a chain is text
    assert all(link.startswith("#") for link in parsed.links)
    assert "Beta &amp; Sons &lt;Hotels&gt;" in page
    assert "Beta \\& Sons \\<Hotels\\>" in (out / "eda.md").read_text(encoding="utf-8")
    # Again: nothing is asked for a second time, and everything comes out the same.
    asked = server.asked.copy()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert main(words) == 0
    assert server.asked == asked
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert main([word for word in words if not word.startswith("download")]) == 0  # the sizes of what is there stay
    assert (out / "eda.json").read_bytes() == before[out / "eda.json"]


def test_without_a_download_nothing_is_asked_for(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: object, **kwargs: object) -> Callable[[], None]:
        raise AssertionError("the network was used")

    monkeypatch.setattr("socket.socket.connect", refuse)
    out = tmp_path / "out"
    assert main(["hotels", f"data={data}", "hotels=2", "chains=['beta & sons <hotels>']", f"out={out}"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["eda.html", "eda.json", "eda.md", "selection.csv"]
    capsys.readouterr()
    (tmp_path / "file").touch()
    assert main(["hotels", f"data={data}", "hotels=2", f"out={tmp_path / 'file'}"]) == 2
    assert capsys.readouterr().err.endswith("is a file; give a folder\n")

"""`boothlab evaluate`: the metrics on any folder of images, and what it refuses."""

import csv
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from boothlab.building.evaluate import place
from boothlab.building.parts import encoder_sources
from boothlab.cli import main
from boothlab.config import EncodersConfig
from boothlab.errors import UserError
from boothlab.evaluation.efficientnet import PACKAGE
from boothlab.evaluation.loading import load_clip, load_dino
from boothlab.evaluation.scoring import GeneratedImage, Scorer
from boothlab.images.load import load_image, to_tensor

TABLE = "file,prompt\nb.png,a sks toy on the beach\na.png,a sks toy on the beach\nc.png,a red sks toy\n"


def pictures(folder: Path, *names: str) -> Path:
    """A folder of small pictures of noise, each of its own."""
    folder.mkdir(parents=True)
    for index, name in enumerate(names):
        noise = np.random.default_rng([index, *folder.name.encode()]).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
    return folder


@pytest.fixture
def place_of_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pictures(tmp_path / "images", "a.png", "b.png", "c.png")
    pictures(tmp_path / "photos", "0.png", "1.png")
    (tmp_path / "prompts.csv").write_text(TABLE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


GIVEN = ["images=images", "references=photos", "encoders=dollhouse"]


def test_the_scores_are_those_of_the_scorer(place_of_work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", *GIVEN, "prompts=prompts.csv", "token=sks", "out=found"]) == 0
    record = json.loads(Path("found/metrics.json").read_text(encoding="utf-8"))
    photos = [to_tensor(load_image(path)) for path in sorted(Path("photos").iterdir())]
    sources = encoder_sources(EncodersConfig(clip="dollhouse", dino="dollhouse"))
    scorer = Scorer(load_clip(sources["clip"]), load_dino(sources["dino"]), photos, "sks", "")
    prompts = [(0, "a sks toy on the beach", 0), (0, "a sks toy on the beach", 1), (1, "a red sks toy", 0)]
    images = [
        GeneratedImage(*prompt, to_tensor(load_image(path)))
        for prompt, path in zip(prompts, sorted(Path("images").iterdir()), strict=True)
    ]
    expected = scorer.score(images)
    assert record["metrics"] == [row.to_dict() for row in expected.rows]
    assert [row["images"] for row in record["per_prompt"]] == [2, 1]
    with Path("found/scores.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["a.png", "b.png", "c.png"]
    assert [float(row["clip_i"]) for row in rows] == [score.clip_i for score in expected.per_image]
    assert "clip@" in "".join(capsys.readouterr())


def test_without_prompts_only_likeness_is_measured(place_of_work: Path) -> None:
    assert main(["evaluate", *GIVEN]) == 0
    record = json.loads(Path("outputs/evaluate/metrics.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in record["metrics"]] == ["clip_i", "dino", "clip_i_ceiling", "dino_ceiling"]
    header = Path("outputs/evaluate/scores.csv").read_text(encoding="utf-8").splitlines()[0]
    assert (header, "per_prompt" in record) == ("file,clip_i,dino", False)


@pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason="pip install 'boothlab[features]'")
def test_efficientnet_measures_under_its_own_name(place_of_work: Path) -> None:
    assert main(["evaluate", "images=images", "references=dreambench:dog", "encoders=efficientnet"]) == 0
    record = json.loads(Path("outputs/evaluate/metrics.json").read_text(encoding="utf-8"))
    found = {row["name"]: row for row in record["metrics"]}
    assert found["feature_similarity"]["encoder"].startswith("efficientnet-lite0@")
    assert found["feature_similarity"]["counts"] == {"images": 3, "prompts": 1, "references": 5, "pairs": 15}
    assert found["feature_similarity_ceiling"]["value"] == pytest.approx(0.7552, abs=0.005)


def test_a_reference_among_the_images_is_named(place_of_work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("images/d.png").write_bytes(Path("photos/1.png").read_bytes())
    assert main(["evaluate", *GIVEN]) == 0
    printed = " ".join("".join(capsys.readouterr()).split())
    assert "is the reference 1.png itself" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["references=photos"], "images has no value"),
        ([*GIVEN, "images=nowhere"], "the images folder nowhere does not exist"),
        ([*GIVEN, "references=dreambench:nope"], "there are no photos of such a subject"),
        ([*GIVEN, "prompts=nope.csv"], "prompts=nope.csv: cannot be read"),
        ([*GIVEN, "encoders.features=resnet"], "encoders.features=resnet: must be efficientnet-lite0, or null"),
        ([*GIVEN, "token=a,b", "-m"], "boothlab evaluate measures one folder"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    place_of_work: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["evaluate", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not Path("outputs/evaluate").exists()


def test_a_table_gives_each_image_its_prompt(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text(TABLE, encoding="utf-8")
    assert place(["a.png", "b.png", "c.png"], path) == {
        "a.png": (0, "a sks toy on the beach", 0),
        "b.png": (0, "a sks toy on the beach", 1),
        "c.png": (1, "a red sks toy", 0),
    }
    path = tmp_path / "prompts.txt"
    path.write_text("one\n\ntwo\n", encoding="utf-8")
    assert place(["prompt01_seed7.png"], path) == {"prompt01_seed7.png": (1, "two", 7)}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", "a,b\n", "line 1 must name the columns file and prompt"),
        ("p.csv", "file,prompt\n", "has no row for 'a.png'"),
        ("p.csv", "file,prompt\na.png,\n", "line 2: has no prompt"),
        ("p.csv", "file,prompt\nb.png,x\n", "line 2: there is no image 'b.png'"),
        ("p.csv", "file,prompt\na.png,x\na.png,y\n", "line 3: a.png is there twice"),
        ("p.txt", "x\n", "is not named as prompt00_seed0.png"),
    ],
)
def test_prompts_that_do_not_fit_are_refused_with_the_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        place(["a.png"], tmp_path / name)
    assert message.replace("'a.png'", "a.png") in str(caught.value) and "\n" not in str(caught.value)


@given(st.text(max_size=200))
def test_any_text_is_a_table_or_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("prompts") / "p.csv"
    path.write_bytes(b"file,prompt\n" + text.encode("utf-8", "surrogatepass"))
    try:
        assert set(place(["a"], path)) == {"a"}
    except UserError as error:
        assert "\n" not in str(error)

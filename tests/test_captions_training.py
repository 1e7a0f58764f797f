"""Captions in training: CLIP's tags and side-cars of another folder, how they are trained, recorded, and made again."""

import functools
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import boothlab.building.tag_captions as tag_captions
from boothlab.building.photos import build_subject, caption_hashes, training_prompt
from boothlab.cache import Cache
from boothlab.cli import main
from boothlab.compose.run import compose
from boothlab.compose.schemas import SCHEMAS
from boothlab.compose.typed import load
from boothlab.config import NOT_HASHED, CaptionSource, SubjectConfig
from boothlab.dollhouse.photos import write_photos
from boothlab.errors import UserError
from boothlab.files import sha256_bytes
from boothlab.publishing.privacy import public_command
from boothlab.tracking.manifest import config_hash, read_manifest
from training_runs import Lab, same_adapter, stopped_after

QUICK = ("trainer.max_steps=2", "trainer.checkpoint_every=1", "evaluation.enabled=false", "data.variants=1")
TAGGED = [
    "toy in the snow, orange toy, sks robot",
    "orange toy, sks robot, toy on the moon, toy at dusk",
    "orange toy, sks robot, toy in daylight, toy under the sea",
    "orange toy, sks robot, toy in the forest, toy at night",
    "toy in the desert, sks robot, orange toy",
]


@functools.cache
def subject(*words: str) -> SubjectConfig:
    config, _ = load(compose("train", list(words)), SCHEMAS["train"])
    found: SubjectConfig = config.subject
    return found


def prompts(cache: Path, *words: str) -> list[str]:
    return [item.prompt for item in build_subject(subject(*words), Cache(cache)).items]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photos of a dollhouse robot as a user's own folder, the first with a side-car."""
    folder = tmp_path / "photos"
    write_photos(folder, "robot", 6, 3)
    for path in sorted(folder.glob("*.txt"))[1:]:
        path.unlink()
    return folder


def of_folder(photos: Path, *words: str) -> list[str]:
    return ["subject=folder", f"subject.images={photos}", "subject.class_noun=robot", *words]


def captions_in(folder: Path, **texts: str) -> Path:
    folder.mkdir(exist_ok=True)
    for stem, text in texts.items():
        (folder / f"{stem}.txt").write_text(text + "\n", encoding="utf-8")
    return folder


# --- what a photo is trained under


@pytest.mark.parametrize(
    ("caption", "prompt"),
    [
        ("a robot in the snow", "a sks robot in the snow"),
        ("robot, toy in the snow", "sks robot, toy in the snow"),
        ("toy in the snow, robot", "toy in the snow, sks robot"),
        ("A robot. A robot!", "A sks robot. A robot!"),
        ("sks, at night", "sks, at night"),
        ("a robotic arm, robots", "a sks robot, a robotic arm, robots"),
        ("a micro-robot", "a sks robot, a micro-robot"),
        (r"\1 robot", r"\1 sks robot"),
        (None, "a photo of a sks robot"),
    ],
)
def test_the_token_goes_before_the_class_noun(caption: str | None, prompt: str) -> None:
    assert training_prompt(subject("subject.captions=true"), caption) == prompt
    assert training_prompt(subject("subject.captions=false"), caption) == "a photo of a sks robot"
    assert training_prompt(subject("subject.caption_source=sidecar"), caption) == prompt


def test_the_source_says_more_than_the_switch() -> None:
    assert subject().captions_from is None  # the toys that ship are trained under the instance prompt
    assert subject("subject.captions=true").captions_from is CaptionSource.sidecar
    for switch in ("true", "false"):
        words = (f"subject.captions={switch}", "subject.caption_source=")
        assert subject(words[0], words[1] + "tags").captions_from is CaptionSource.tags
        assert subject(words[0], words[1] + "sidecar").captions_from is CaptionSource.sidecar


def test_keys_that_came_later_rename_no_run() -> None:
    _, now = load(compose("train", []), SCHEMAS["train"])
    before = {**now, "subject": dict(now["subject"])}
    for key in ("caption_source", "captions_dir", "tag_labels", "tag_clip", "tag_threshold"):
        assert before["subject"].pop(key) is None
    assert config_hash(before, NOT_HASHED) == config_hash(now, NOT_HASHED)
    others = ("caption_source=tags", "captions_dir=c", "tag_labels=[dollhouse]", "tag_clip=x", "tag_threshold=0.3")
    hashes = {
        config_hash(load(compose("train", [f"subject.{word}"]), SCHEMAS["train"])[1], NOT_HASHED) for word in others
    }
    assert len(hashes | {config_hash(now, NOT_HASHED)}) == len(others) + 1


# --- tags


def test_a_toy_s_photos_are_trained_under_their_tags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tags = ("subject.caption_source=tags",)
    assert prompts(tmp_path, *tags) == TAGGED
    monkeypatch.setattr(tag_captions, "shared_clip", lambda *_: pytest.fail("the tags are in the cache"))
    assert prompts(tmp_path, *tags) == TAGGED
    config = subject(*tags)
    hashes = caption_hashes(config, build_subject(config, Cache(tmp_path)).audit)
    assert [Path(path).name for path in hashes] == [f"photo_{i:02d}.txt" for i in range(5)]
    assert next(iter(hashes.values())) == sha256_bytes(b"toy in the snow, orange toy, robot\n")
    assert tag_captions.tagger_identity(config)["tagger"].keys() >= {"model.safetensors", "config.json"}
    assert tag_captions.tagger_identity(subject()) == {}


def test_labels_threshold_and_clip_are_one_s_own(photos: Path, tmp_path: Path) -> None:
    labels = tmp_path / "mine.txt"
    labels.write_text("robot\nrocket\ntoy at night\n", encoding="utf-8")
    words = of_folder(
        photos, "subject.caption_source=tags", f"subject.tag_labels=[{labels}]", "subject.tag_clip=dollhouse"
    )
    assert prompts(tmp_path / "cache", *words) == ["sks robot"] * 3
    every = prompts(tmp_path / "cache", *words, "subject.tag_threshold=-1")
    assert [sorted(prompt.split(", ")) for prompt in every] == [["rocket", "sks robot", "toy at night"]] * 3
    labels.write_text("rocket\n", encoding="utf-8")
    assert prompts(tmp_path / "cache", *words) == ["a sks robot, rocket"] * 3
    assert sorted(path.name for path in photos.glob("*.txt")) == ["photo_00.txt"]  # the folder is as it was


def test_the_clip_is_that_of_the_photos(photos: Path) -> None:
    asked = ("subject.caption_source=tags", "subject.tag_labels=[hotel_room]")
    assert tag_captions.tag_source(subject(*of_folder(photos, *asked))) == "openai/clip-vit-base-patch32"
    assert tag_captions.tag_source(subject(*asked)) == "dollhouse"
    assert tag_captions.tag_source(subject(*asked, "subject.tag_clip=there")) == "there"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["subject.caption_source=tags"], "subject.tag_labels=None: must name label lists"),
        (["subject.caption_source=tags", "subject.tag_labels=[]"], "subject.tag_labels=[]: must name label lists"),
        (["subject.tag_threshold=1.5"], "subject.tag_threshold=1.5: is a cosine"),
        (["subject.captions_dir=''"], "subject.captions_dir='': must name a folder"),
        (["subject.caption_source=words"], "subject.caption_source"),
    ],
)
def test_bad_settings_are_refused(photos: Path, words: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        subject(*of_folder(photos, *words))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_label_list_that_is_not_there_is_named(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"labels=none\.txt: there is no such file"):
        prompts(tmp_path, *of_folder(photos, "subject.caption_source=tags", "subject.tag_labels=[none.txt]"))


# --- a folder of captions


def test_captions_of_another_folder_stand_in_for_those_beside_the_photos(photos: Path, tmp_path: Path) -> None:
    captions = captions_in(tmp_path / "captions", photo_00="a robot, one", photo_02="two", photo_07="nobody's")
    words = of_folder(photos, f"subject.captions_dir={captions}")
    built = build_subject(subject(*words), Cache(tmp_path / "cache"))
    assert [item.prompt for item in built.items] == ["a sks robot, one", "a photo of a sks robot", "a sks robot, two"]
    assert built.audit.warnings == [f"photo_01.png of 3 photos have no caption in {captions}"]
    hashes = caption_hashes(subject(*words), built.audit)
    assert hashes == {
        str(captions / "photo_00.txt"): sha256_bytes(b"a robot, one\n"),
        str(captions / "photo_02.txt"): sha256_bytes(b"two\n"),
    }


def test_captions_that_nobody_asked_for_are_not_read_but_said(photos: Path, tmp_path: Path) -> None:
    captions = captions_in(tmp_path / "captions", photo_00="one")
    words = of_folder(photos, f"subject.captions_dir={captions}", "subject.captions=false")
    built = build_subject(subject(*words), Cache(tmp_path / "cache"))
    assert {item.prompt for item in built.items} == {"a photo of a sks robot"}
    assert built.audit.warnings == [
        f"subject.captions_dir={captions} is not used: subject.captions=true uses it"
    ] and not caption_hashes(subject(*words), built.audit)


@pytest.mark.parametrize(("name", "said"), [("none", "cannot be read"), ("empty", "has no caption for any photo")])
def test_a_folder_without_captions_is_refused(photos: Path, tmp_path: Path, name: str, said: str) -> None:
    captions_in(tmp_path / "empty", other="x")
    with pytest.raises(UserError, match=said):
        prompts(tmp_path / "cache", *of_folder(photos, f"subject.captions_dir={tmp_path / name}"))


def test_what_the_caption_command_leaves_is_what_training_reads(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    quick = ("tracking.wandb=disabled", "threads=1", "audit.near_distance=null")
    assert main(["caption", "images=photos", "method=clip_tags", "captions_dir=made", *quick]) == 0
    made = prompts(tmp_path / "cache", *of_folder(photos, "subject.captions_dir=made"))
    clip = ("subject.tag_clip=dollhouse", "subject.tag_labels=[dollhouse]")
    assert made == TAGGED[:3] == prompts(tmp_path / "cache", *of_folder(photos, "subject.caption_source=tags", *clip))


def test_a_published_command_does_not_say_where_captions_lie() -> None:
    command = ["train", "subject.captions_dir=my/captions", "subject.tag_labels=[mine.txt]", "subject.tag_clip=my/clip"]
    assert [word.partition("=")[2] for word in public_command(command)] == ["", "PATH", "PATH", "PATH"]


# --- recorded, resumed, made again


@pytest.fixture
def lab(pipelines: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.chdir(tmp_path)
    return Lab(tmp_path, pipelines["sd15"])


def of_run(photos: Path, labels: Path) -> list[str]:
    return [
        *(f"subject.images={photos}", "subject.class_noun=robot", "subject.tag_clip=dollhouse", *QUICK),
        *("subject.caption_source=tags", f"subject.tag_labels=[{labels}]"),
    ]


@pytest.mark.slow
def test_a_run_on_tags_is_made_again_and_other_tags_are_noticed(
    lab: Lab, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("robot\ntoy in the snow\n", encoding="utf-8")
    run = lab.train("run", *of_run(photos, labels))
    assert "3 of 3 photos, by CLIP's tags, as toy in the snow, sks robot" in capsys.readouterr().err
    manifest = read_manifest(run)
    assert sorted(Path(path).name for path in manifest["captions"]) == [f"photo_0{i}.txt" for i in range(3)]
    assert "model.safetensors" in manifest["weights"]["tagger"]
    assert main(["rerun", str(run)]) == 0
    assert same_adapter(run, tmp_path / "outputs" / "reruns" / run.name)
    labels.write_text("rocket\n", encoding="utf-8")
    shutil.rmtree(lab.folder / "cache" / "tag-captions")
    capsys.readouterr()
    assert main(["rerun", str(run)]) == 2
    assert "captions: CLIP's tags are others now" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_is_not_resumed_with_other_tags(
    lab: Lab, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("robot\n", encoding="utf-8")
    with stopped_after(1, monkeypatch):
        lab.train("run", *of_run(photos, labels), code=130)
    labels.write_text("rocket\n", encoding="utf-8")
    lab.train("run", *of_run(photos, labels), code=2)
    assert "photo_00.txt and 2 more changed since it was begun" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_on_a_folder_of_captions_is_made_again_wherever_they_lie(
    lab: Lab, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captions_in(tmp_path / "captions", photo_00="a robot, one", photo_01="a robot, two")
    (photos / "photo_02.txt").write_text("not asked for\n", encoding="utf-8")
    words = (f"subject.images={photos}", "subject.captions=true", "subject.captions_dir=captions", *QUICK)
    run = lab.train("run", *words)
    assert main(["rerun", str(run)]) == 0
    (tmp_path / "captions").rename(tmp_path / "moved")
    capsys.readouterr()
    assert main(["rerun", str(run)]) == 2
    said = capsys.readouterr().err
    assert "caption photo_00.txt" in said and "with subject.captions_dir=…" in said
    assert main(["rerun", str(run), "subject.captions_dir=moved"]) == 0
    captions_in(run / "inputs", photo_00="a robot, one", photo_01="a robot, two")  # gathered beside the photos
    assert main(["rerun", str(run)]) == 0


def test_pictures_of_one_name_share_a_caption(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, value in (("a.png", 10), ("a.bmp", 200)):
        Image.fromarray(np.full((32, 32, 3), value, np.uint8)).save(folder / name)
    words = of_folder(folder, "subject.caption_source=tags", "subject.tag_labels=[dollhouse]")
    assert len(set(prompts(tmp_path / "cache", *words, "subject.tag_clip=dollhouse"))) == 1

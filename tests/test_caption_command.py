"""`boothlab caption`: what a run leaves, that it keeps and goes on, and bad input in one line."""

import csv
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import boothlab.captioning.run as captioning_run
from bad_images import picture, write_bad_images
from boothlab.captioning.captions import Maker
from boothlab.captioning.sidecars import Sidecars
from boothlab.cli import main
from boothlab.dollhouse.photos import write_photos
from boothlab.images.audit import audit_folder

QUICK = ("tracking.wandb=disabled", "threads=1")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In an empty folder; Hydra's log handlers are taken off again."""
    monkeypatch.chdir(tmp_path)
    before = logging.getLogger().handlers[:]
    yield
    logging.getLogger().handlers[:] = before


@pytest.fixture
def toys(tmp_path: Path) -> Path:
    """Six photos of two toys in two subfolders; one has a caption."""
    folder = tmp_path / "toys"
    for name in ("bear", "robot"):
        write_photos(folder / name, name, 1, 3)
        for path in sorted((folder / name).glob("*.txt"))[name == "bear" :]:
            path.unlink()
    return folder


def caption(*words: str) -> int:
    return main(["caption", *words, *QUICK])


def only_run() -> Path:
    (found,) = (path.parent for path in Path("outputs/caption").glob("*/manifest.json"))
    return found


def captions_of(run: Path) -> dict[str, dict[str, Any]]:
    lines = (run / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["file"]: row for row in map(json.loads, lines)}


def test_tags_beside_the_images_and_everything_a_run_leaves(toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert caption("images=toys", "recursive=true", "method=clip_tags") == 0
    run, said = only_run(), capsys.readouterr().err
    assert "5 written, 1 that were there are kept (overwrite=true replaces them)" in said
    rows = captions_of(run)
    assert [row["method"] for row in rows.values()] == ["kept"] + ["clip_tags"] * 5
    for file, row in rows.items():
        assert (toys / file).with_suffix(".txt").read_text(encoding="utf-8") == row["caption"] + "\n"
    assert "bear" in rows["bear/photo_01.png"]["tags"] and "robot" in rows["robot/photo_00.png"]["tags"]
    assert rows["robot/photo_00.png"]["caption"] == ", ".join(rows["robot/photo_00.png"]["tags"])
    with (run / "tags.csv").open(encoding="utf-8", newline="") as file:
        tags = list(csv.DictReader(file))
    assert list(tags[0])[:6] == ["file", "group", "tags", "top1", "top1_cosine", "gap_10"]
    assert [row["group"] for row in tags] == ["bear"] * 3 + ["robot"] * 3  # the kept one has its tags, too
    for row in tags:
        cosines = [float(value) for value in row["cosines"].split("; ")]
        assert cosines == sorted(cosines, reverse=True) and row["tags"].split("; ")[0] == row["top1"]
        assert len(cosines) == len(row["tags"].split("; ")) == len(row["softmax"].split("; "))
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert (summary["status"], summary["counts"]["accepted"], summary["counts"]["captions_kept"]) == ("finished", 6, 1)
    mean = sum(float(row["top1_cosine"]) for row in tags) / 6
    assert summary["final"]["caption/top1_cosine"]["value"] == pytest.approx(mean, abs=1e-6)
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    assert {"labels/dollhouse", "listing"} == manifest["inputs"].keys() and "clip" in manifest["weights"]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "bear/photo_01.png" in page and page.count("data:image/png;base64,") >= 6
    assert [photo.caption for photo in audit_folder(toys / "robot").accepted] == [
        rows[f"robot/photo_0{number}.png"]["caption"] for number in range(3)
    ]
    assert caption("images=toys", "recursive=true", "method=clip_tags") == 0
    assert "finished already" in capsys.readouterr().err
    picture(0).save(toys / "new.png")
    assert caption("images=toys", "recursive=true", "method=clip_tags") == 0
    said = capsys.readouterr().err
    assert "has changed since" in said and "1 written, 6 that were there are kept" in said


def test_a_template_needs_no_model_and_can_leave_the_folder_alone(toys: Path) -> None:
    words = ("method=template", "template=a {class} in {folder}, {name} {{x}}", "class_noun=toy", "captions_dir=c")
    before = sorted(toys.rglob("*"))
    assert caption("images=toys", "recursive=true", *words) == 0
    assert sorted(toys.rglob("*")) == before
    assert Path("c/robot/photo_02.txt").read_text(encoding="utf-8") == "a toy in robot, photo_02 {x}\n"
    assert {row["method"] for row in captions_of(only_run()).values()} == {"template"}


def test_overwrite_replaces_what_is_there(toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("images=toys/bear", "method=template", "template=new", "overwrite=true")
    assert caption(*words) == 0
    assert "3 written, beside the images" in capsys.readouterr().err
    assert {path.read_text(encoding="utf-8") for path in (toys / "bear").glob("*.txt")} == {"new\n"}


def test_a_run_that_was_stopped_goes_on_and_comes_out_the_same(
    toys: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("images=toys", "recursive=true", "method=clip_tags", "batch_size=2")
    assert caption(*words, "captions_dir=whole", "experiment=other") == 0
    usual, made = Maker.make, list[str]()

    def make(self: Maker, files: list[str], root: str, views: Any) -> Any:
        if len(made) >= 4:
            raise KeyboardInterrupt
        made.extend(files)
        return usual(self, files, root, views)

    monkeypatch.setattr(Maker, "make", make)
    assert caption(*words, "captions_dir=parts") == 130
    assert len(list(Path("parts").rglob("*.txt"))) == 4
    monkeypatch.setattr(Maker, "make", lambda self, files, root, views: (made.extend(files), usual(self, files, root, views))[1])  # fmt: skip  # noqa: E501
    assert caption(*words, "captions_dir=parts") == 0
    assert len(made) == len(set(made)) == 6  # none twice
    said = capsys.readouterr().err
    assert "4 images are done, 2 are left" in said and "6 written, parts" in said
    for path in sorted(Path("whole").rglob("*.txt")):
        assert path.read_bytes() == Path("parts", path.relative_to("whole")).read_bytes()
    (other,) = Path("outputs/other").glob("*-s0")
    assert (only_run() / "tags.csv").read_bytes() == (other / "tags.csv").read_bytes()


def test_a_kill_between_note_and_side_car_loses_nothing(toys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("images=toys/robot", "method=template", "template={name}")
    usual = Sidecars.write

    def killed(self: Sidecars, captions: Any) -> None:
        if captions := list(captions):
            raise KeyboardInterrupt

    monkeypatch.setattr(Sidecars, "write", killed)
    assert caption(*words) == 130
    assert list((toys / "robot").glob("*.txt")) == []
    (toys / "robot" / "photo_01.txt").write_text("mine\n", encoding="utf-8")
    monkeypatch.setattr(Sidecars, "write", usual)
    assert caption(*words) == 0
    texts = [path.read_text(encoding="utf-8") for path in sorted((toys / "robot").glob("*.txt"))]
    assert texts == ["photo_00\n", "mine\n", "photo_02\n"]


def test_odd_files_are_told_of_and_none_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_bad_images(tmp_path / "bad")
    (tmp_path / "bad" / "turned.txt").write_bytes(b"\xff\xfe\0")
    (tmp_path / "bad" / "deep.txt").touch()
    assert caption("images=bad", "recursive=true", "method=template", "template={name} of {folder}") == 0
    rows, said = captions_of(only_run()), capsys.readouterr().err
    assert len(rows) == 15 and rows["ok.jpg"]["caption"] == "waves"
    assert "sub/x.webp: its side-car is that of sub/x.png" in said
    assert rows["sub/x.webp"]["note"].startswith("its side-car") and rows["sub/x.png"]["caption"] == "x of sub"
    assert (tmp_path / "bad" / "turned.txt").read_bytes() == b"\xff\xfe\0"  # theirs, until overwrite=true
    assert "turned.txt is there and is no caption" in rows["turned.jpg"]["note"]
    assert (tmp_path / "bad" / "deep.txt").read_text(encoding="utf-8") == "deep of bad\n"
    page = (only_run() / "report.html").read_text(encoding="utf-8")
    assert "<b>&" not in page and "zmłynek &lt;b&gt;&amp;.png" in page


def test_an_image_that_goes_bad_after_the_audit_is_left_out(toys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = captioning_run.read_image

    def read(path: Path) -> Any:
        if path.name == "photo_01.png":
            path.write_bytes(b"gone")
        return usual(path)

    monkeypatch.setattr(captioning_run, "read_image", read)
    assert caption("images=toys/robot", "method=clip_tags") == 0
    assert list(captions_of(only_run())) == ["photo_00.png", "photo_02.png"]
    with (only_run() / "audit.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert rows["photo_01.png"]["status"] == "rejected" and "since the audit" in rows["photo_01.png"]["reason"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "images has no value"),
        (["images=none"], "the images folder none does not exist"),
        (["images=a.png"], "is a file, not a folder of images"),
        (["images=empty"], "is empty"),
        (["images=text"], "none of the 1 file(s) in text is a usable image"),
        (["images=toys/bear", "labels=[nowhere]"], "labels=nowhere: there is no such file"),
        (["images=toys/bear", "labels=blank.txt"], "labels=blank.txt: holds no label"),
        (["images=toys/bear", "labels=[]"], "labels=[]: must name at least one label list"),
        (["images=toys/bear", "captions_dir=a.png"], "captions_dir=a.png: is a file"),
        (["images=toys/bear", "captions_dir=a.png/x"], "a part of the path is a file"),
        (["images=toys/bear", "clip=nowhere/at/all"], "no such folder"),
        (["images=toys/bear", "groups=none.csv"], "groups=none.csv: cannot be read"),
        (["images=toys/bear", "tag_threshold=2"], "tag_threshold=2.0: is a cosine"),
        (["images=toys/bear", "tag_template=a photo"], "must hold {label}"),
        (["images=toys/bear", "method=template"], "class_noun=None: must say what {class}"),
        (["images=toys/bear", "method=template", "template={klass}"], "takes {class}, {folder}, {name}, {tags}"),
        (["images=toys/bear", "method=template", "template={name.__class__}"], "takes {class}"),
        (["images=toys/bear", "method=blop"], "method=blop"),
        (["images=toys/bear", "audit.min_side=0"], "audit.min_side=0"),
        (["-m", "images=toys/bear", "seed=0,1"], "-m has nothing to vary"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line(words: list[str], said: str, toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    Path("text").mkdir()
    Path("text/a.png").write_text("x")
    Path("a.png").write_text("x")
    Path("blank.txt").write_text("# nothing\n")
    method = [] if any(word.startswith("method=") for word in words) else ["method=clip_tags"]
    assert caption(*words, *method) == 2
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("boothlab: error: ")]
    assert len(errors) == 1 and said in errors[0] and "Traceback" not in "\n".join(lines)


def test_a_read_only_folder_is_refused_before_anything_is_made(
    toys: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import os

    usual = os.access  # root may write everywhere, so permissions alone prove nothing
    monkeypatch.setattr(os, "access", lambda path, mode, **more: Path(path) != Path("toys/robot") and usual(path, mode))
    assert caption("images=toys/robot", "method=template", "template=x") == 2
    assert "is read-only" in capsys.readouterr().err
    assert caption("images=toys/robot", "method=template", "template=x", "captions_dir=c") == 0


def test_the_miniatures_say_when_pictures_are_none_of_theirs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(200, 150).save(tmp_path / "large.png")
    picture(128, 128).save(tmp_path / "small.png")
    assert caption("images=.", "method=clip_tags", "captions_dir=c") == 0
    said = capsys.readouterr().err
    assert "1 of 2 images have sides of more than 128 pixels" in said and "take models=standard" in said
    (tmp_path / "large.png").unlink()
    assert caption("images=.", "method=clip_tags", "captions_dir=d") == 0
    assert "128 pixels" not in capsys.readouterr().err


def test_what_no_model_looks_at_needs_no_such_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(200, 150).save(tmp_path / "large.png")
    assert caption("images=.", "method=audit") == 0
    assert caption("images=.", "method=template", "template=x", "captions_dir=c") == 0
    assert "128 pixels" not in capsys.readouterr().err


def test_report_and_rerun_name_what_a_caption_run_has_instead(toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert caption("images=toys/bear", "method=clip_tags", "captions_dir=c") == 0
    run = only_run()
    capsys.readouterr()
    for words in (["report", str(run)], ["report", "outputs"]):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "a run of boothlab caption has no scores to compare" in said
        assert str(run / "report.html") in said
    page = (run / "report.html").read_bytes()
    assert main(["rerun", str(run)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "a run of boothlab caption is no training" in said
    assert (run / "report.html").read_bytes() == page and not Path("outputs/reruns").exists()

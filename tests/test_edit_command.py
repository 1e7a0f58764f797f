"""`boothlab edit`: what a run leaves, that it goes on and comes out the same, and bad input in one line."""

import csv
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from boothlab.building.caption import missing_captions
from boothlab.cli import main
from boothlab.config_edit import Method
from boothlab.editing.methods import EditMethod
from training_runs import history, summary

EDITS = """
- name: night
  instruction: make it night
  source_caption: a photo of {stem} by day
  target_caption: a photo of a room at night
- name: red
  instruction: make the carpet red
  source_caption: a photo of a room
  target_caption: a photo of a room with a red carpet
  mask: mask.png
  strength: 0.9
"""


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Hydra's logging set-up is undone."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    for handler in set(root.handlers) - set(before[0]):
        handler.close()
    root.handlers[:], root.level = before


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two photos with edits beside them, one under a mask."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("hall", "room"):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / f"{name}.png")
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 255
    (tmp_path / "edits").mkdir()
    Image.fromarray(mask).save(tmp_path / "edits" / "mask.png")
    (tmp_path / "edits" / "edits.yaml").write_text(EDITS.replace("{stem}", "a room"), encoding="utf-8")
    return folder


def words_of(photos: Path, name: str, *extra: str) -> list[str]:
    """A short run on the photos with the miniature; later words win."""
    root = photos.parent
    given = [f"data.images={photos}", f"data.file={root / 'edits' / 'edits.yaml'}", f"paths.outputs={root / name}"]
    common = [
        "steps=2",
        "threads=1",
        "accelerator=cpu",
        "tracking.wandb=disabled",
        "batch_size=3",
        f"paths.cache={root}",
    ]
    return ["edit", "method=sdedit", *given, *common, *extra]


def edit(photos: Path, name: str, *extra: str) -> Path:
    assert main(words_of(photos, name, *extra)) == 0
    (run_dir,) = (photos.parent / name / "edit").glob("[!.]*")
    return run_dir


def pairs(run_dir: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run_dir / "samples/step_000001/metrics.json").read_text())["pairs"]
    return found


def pictures(run_dir: Path) -> dict[str, bytes]:
    return {path.relative_to(run_dir).as_posix(): path.read_bytes() for path in sorted(run_dir.rglob("*.png"))}


def test_our_methods_are_those_that_can_be_asked_for() -> None:
    assert [method.value for method in Method] == [method.value for method in EditMethod]


def test_a_folder_with_another_run_is_refused(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = edit(photos, "first")
    capsys.readouterr()
    assert main([*words_of(photos, "first", "strength=0.9"), f"hydra.run.dir={run_dir}"]) == 2
    assert "holds a run of another config" in capsys.readouterr().err


def test_what_a_run_leaves(photos: Path) -> None:
    run_dir = edit(photos, "out", "seeds=[0,5]")
    assert summary(run_dir)["status"] == "finished"
    assert summary(run_dir)["counts"] | {"images": 8, "edits": 2, "sources": 2} == summary(run_dir)["counts"]
    rows = pairs(run_dir)
    who = [(row["image"], row["edit"], row["seed"]) for row in rows]
    assert who == [(image, name, seed) for image in ("hall", "room") for name in ("night", "red") for seed in (0, 5)]
    for row in rows:
        assert Image.open(run_dir / row["file"]).size == (32, 32)
        assert (run_dir / row["source"]).is_file() and row["truth"] is None
        assert (row["mask"] is None) == (row["edit"] == "night")
        assert row["absent"]["happened"] == "nothing reads it"
        assert row["steps"] == 1  # int(2 × 0.6) and int(2 × 0.9)
    by_edit = {row["edit"]: row for row in rows}
    assert by_edit["night"]["absent"]["psnr_outside"] == "no mask"
    assert 0 < by_edit["red"]["scores"]["psnr_outside"] <= 100
    (copied, edited) = history(run_dir)
    assert (copied[0], edited[0]) == (0, 1)
    assert copied[1]["edit/clip_image/dollhouse"] == pytest.approx(1, abs=1e-5)
    assert copied[1]["edit/psnr_outside"] == 100
    assert edited[1]["edit/clip_image/dollhouse"] < 0.999
    with (run_dir / "samples/step_000001/scores.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [(line["image"], line["edit"], int(line["seed"])) for line in table] == who
    assert table[0]["psnr_outside"] == "" and float(table[2]["psnr_outside"]) > 0
    manifest = json.loads((run_dir / "manifest.json").read_text(encoding="utf-8"))
    assert len(manifest["inputs"]) == 4 and manifest["status"] == "finished"  # two photos, the mask, the edits
    assert Image.open(run_dir / "samples/step_000001/grid.png").width > 300


def test_copy_and_regenerate_are_the_two_ends(photos: Path) -> None:
    copied, anew = edit(photos, "copy", "method=copy"), edit(photos, "anew", "method=regenerate")
    assert all(row["scores"]["clip_image"] == pytest.approx(1, abs=1e-5) for row in pairs(copied))
    assert all(row["scores"]["clip_image"] < 0.99 for row in pairs(anew))
    for row in pairs(copied):
        assert np.array_equal(Image.open(copied / row["file"]), Image.open(copied / row["source"]))


def test_it_goes_on_where_it_stopped_and_comes_out_the_same(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = edit(photos, "whole")
    left = edit(photos, "left")
    kept = left / "samples/step_000001/hall__night__s0.png"
    lost = left / "samples/step_000001/room__red__s0.png"
    torn = left / "samples/step_000001/room__night__s0.png"
    before = kept.stat().st_mtime_ns
    lost.unlink()
    torn.write_bytes(torn.read_bytes()[:300])
    (left / "summary.json").unlink()
    assert edit(photos, "left") == left
    assert kept.stat().st_mtime_ns == before
    assert pictures(left) == pictures(whole)
    assert history(left) == history(whole)
    capsys.readouterr()
    edit(photos, "left")
    assert "finished already" in capsys.readouterr().err


def test_an_edit_s_own_settings_and_seed_win(photos: Path) -> None:
    own = photos.parent / "edits" / "own.yaml"
    own.write_text(EDITS.replace("{stem}", "a room").replace("strength: 0.9", "steps: 4\n  seed: 9"), encoding="utf-8")
    rows = pairs(edit(photos, "own", f"data.file={own}", "seeds=[1,2]", "strength=0.5"))
    assert [(row["edit"], row["seed"], row["steps"]) for row in rows[:3]] == [
        ("night", 1, 1),
        ("night", 2, 1),
        ("red", 9, 2),
    ]


def test_batches_do_not_change_an_image(photos: Path) -> None:
    one, many = edit(photos, "one", "batch_size=1"), edit(photos, "many", "batch_size=8")
    for name, data in pictures(one).items():
        first, second = (np.asarray(Image.open(run / name).convert("RGB"), np.int16) for run in (one, many))
        if "grid" not in name:
            assert np.abs(first - second).max() <= 1, name
        del data


def test_methods_without_their_model_or_text_are_refused_before_anything_runs(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, told in (
        (("method=instruct_pix2pix", "editors.instruct_pix2pix=null"), "instruct_pix2pix"),
        (("strength=0.1",), "strength"),
        (("data.edits=[nigt]",), "there is no such edit"),
        (("data.file=null",), "data.file"),
        (("strength=2",), "strength=2"),
        (("data.one_change=true",), "varies the setting strength"),
        (("data.limit=0",), "data.limit=0"),
    ):
        assert main(words_of(photos, "bad", *words)) == 2, words
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("boothlab: error:") and told in error, (words, error)
    assert not list((photos.parent / "bad").rglob("step_*/*__*.png"))


def test_every_text_is_looked_at_before_anything_is_drawn(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = photos.parent / "edits" / "own.yaml"
    first = "- {name: a, instruction: x, target_caption: a room, images: hall.png}\n"
    own.write_text(first + "- {name: b, instruction: y, images: room.png}\n", encoding="utf-8")
    assert main(words_of(photos, "texts", f"data.file={own}")) == 2
    assert "room, b: method=sdedit needs a caption of the target; give target_caption" in capsys.readouterr().err
    assert list((photos.parent / "texts").glob("edit/*/samples/step_000001/*.png")) == []
    own.write_text(first.replace("a room,", "a room, strength: 0.1,"), encoding="utf-8")
    assert main(words_of(photos, "weak", f"data.file={own}")) == 2
    assert "the edit a: strength=0.1: runs none of the 2 steps" in capsys.readouterr().err


def test_a_run_whose_captions_tell_nothing_says_what_it_lacks(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = photos.parent / "edits" / "own.yaml"
    captions = "source_caption: a room, target_caption: a room"
    own.write_text(f"- {{name: a, instruction: x, {captions}}}\n", encoding="utf-8")
    run_dir = edit(photos, "lacking", f"data.file={own}", "method=copy")
    assert "2 of 2 images have no CLIP directional: identical captions" in capsys.readouterr().err
    assert all("clip_directional" not in row["scores"] for row in pairs(run_dir))


def test_it_can_be_made_again_and_forked(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = edit(photos, "first", "data.edits=[night]")
    again = photos.parent / "again"
    assert main(["rerun", str(run_dir), "--out", str(again)]) == 0
    out = capsys.readouterr().out
    assert "bit for bit" in out and "samples  same bit for bit       2 files" in out
    assert pictures(again) == pictures(run_dir)
    assert main(["rerun", str(run_dir), "--check"]) == 0
    table = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert table["images"].startswith("same") and "3 files" in table["images"]
    assert main(["rerun", str(run_dir), "--out", str(photos.parent / "fork"), "strength=0.9"]) == 0
    assert "a fork of" in capsys.readouterr().out
    Image.new("RGB", (32, 32)).save(photos / "hall.png")
    assert main(["rerun", str(run_dir), "--out", str(photos.parent / "changed")]) == 2
    assert "hall.png has changed" in capsys.readouterr().err


@pytest.mark.slow
def test_two_devices_make_the_same_images(photos: Path) -> None:
    alone = edit(photos, "alone", "batch_size=1")
    shared = edit(photos, "shared", "batch_size=1", "devices=2")
    assert pictures(shared) == pictures(alone) and history(shared) == history(alone)


def test_every_sweep_of_edits_can_be_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = {"edit_methods": 11, "sdedit_strength": 8, "instruct_guidance": 7, "control_scale": 10, "edit_search": 12}
    for name, count in (jobs | {"one_change_at_a_time": 6}).items():
        assert main(["sweep", name, "--dry-run", f"paths.outputs={tmp_path}"]) == 0
        assert f"{count} jobs ({count} new)" in capsys.readouterr().err


NEEDY = """
- name: night
  instruction: make it night
  target_caption: "{caption} at night"
- name: red
  instruction: make the carpet red
  source_caption: a photo of a room
  target_caption: a photo of a room with a red carpet
"""


def asks_for_captions(photos: Path) -> Path:
    """A file of two edits, of which the first has no source caption; the second photo has a side-car."""
    path = photos.parent / "edits" / "needy.yaml"
    path.write_text(NEEDY, encoding="utf-8")
    (photos / "room.txt").write_text("a blue room\n", encoding="utf-8")
    return path


def test_missing_source_captions_are_made_and_said(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = edit(photos, "made", f"data.file={asks_for_captions(photos)}", "seeds=[0]")
    said = " ".join(capsys.readouterr().err.split())
    assert "1 source captions were missing and are" in said and "for hall.png; side-cars of your own come first" in said
    by_name = {(row["image"], row["edit"]): row for row in pairs(run_dir)}
    made = by_name["hall", "night"]
    assert made["source_caption"] and made["target_caption"] == made["source_caption"] + " at night"
    assert repr(made["source_caption"]) in said
    assert by_name["room", "night"]["source_caption"] == "a blue room"
    assert by_name["hall", "red"]["source_caption"] == "a photo of a room"
    manifest = json.loads((run_dir / "manifest.json").read_text(encoding="utf-8"))
    assert "model.safetensors" in manifest["weights"]["captioner"]
    assert sorted(path.name for path in photos.iterdir()) == ["hall.png", "room.png", "room.txt"]  # none is written


def test_captions_that_are_there_need_no_captioner(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = edit(photos, "own", "seeds=[0]")
    assert "source captions were missing" not in capsys.readouterr().err
    assert "captioner" not in json.loads((run_dir / "manifest.json").read_text(encoding="utf-8"))["weights"]


def test_without_a_captioner_missing_captions_stay_missing(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = asks_for_captions(photos)
    assert main(words_of(photos, "none", f"data.file={path}", "data.captioner=none")) == 2
    assert "hall.png has none; write one in hall.txt" in capsys.readouterr().err
    path.write_text(NEEDY.replace("{caption}", "a room"), encoding="utf-8")
    run_dir = edit(photos, "none", f"data.file={path}", "data.captioner=none", "seeds=[0]")
    assert "source captions were missing and" not in capsys.readouterr().err
    absent = {(row["image"], row["edit"]): row["absent"] for row in pairs(run_dir)}
    assert "clip_directional" in absent["hall", "night"] and "clip_directional" not in absent["room", "night"]
    assert "clip_directional" not in absent["hall", "red"]


def test_the_miniature_captions_for_the_miniature_backbone_alone(photos: Path) -> None:
    cpu = torch.device("cpu")
    assert missing_captions(photos, None, False, cpu) is None
    assert missing_captions(photos, "none", True, cpu) is None
    assert missing_captions(photos, None, True, cpu) is not None
    asked = missing_captions(photos, "somewhere/blip", False, cpu)
    assert asked is not None and asked.source == "somewhere/blip"

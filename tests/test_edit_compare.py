"""The human study of two editing runs: what is asked, that the page is blind, and that its votes are counted."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from boothlab.commands import report
from boothlab.errors import UserError
from boothlab.reporting import edit_compare
from boothlab.reporting.comparison import EDITING, key_path
from boothlab.reporting.edit_compare import write_edit_comparison
from boothlab.reporting.edit_runs import EditRun, read_edit_run
from boothlab.reporting.votes import read_votes
from edit_report_runs import EDITS, IMAGES, MadeEdits, make_edit_runs
from report_runs import make_runs
from test_compare import page_data, pixels

FEW = MadeEdits(images=IMAGES[:2], edits=EDITS[:2])
TWO = [{"method": "sdedit", "strength": 0.4}, {"method": "instruct_pix2pix"}]


def two_runs(tmp_path: Path, made: MadeEdits = FEW) -> tuple[EditRun, EditRun]:
    folder = make_edit_runs(tmp_path, TWO, made=made)
    a, b = sorted((read_edit_run(path.parent) for path in folder.glob("*/manifest.json")), key=lambda run: run.method)
    return a, b


def written(tmp_path: Path, a: EditRun, b: EditRun, seed: int = 0) -> tuple[dict[str, Any], dict[str, Any], Path]:
    page = tmp_path / "out" / "compare.html"
    write_edit_comparison(a, b, page, seed=seed)
    return page_data(page), json.loads(key_path(page).read_text(encoding="utf-8")), page


def test_every_image_edit_and_seed_is_asked_twice_beside_its_source(tmp_path: Path) -> None:
    a, b = two_runs(tmp_path)
    data, key, page = written(tmp_path, a, b)
    assert key["questions"] == ["instruction", "rest"] and len(data["questions"]) == 2 * 2 * 2
    assert {(pair["image"], pair["edit"], pair["seed"]) for pair in key["pairs"].values()} == set(a.by_key)
    runs = {"a": a, "b": b}
    for item in data["questions"]:
        pair = key["pairs"][item["pair"]]
        name = (pair["image"], pair["edit"], pair["seed"])
        left = pair["left"][item["question"]]
        for side, owner in (("left", left), ("right", {"a": "b", "b": "a"}[left])):
            file = runs[owner].by_key[name].file
            assert file is not None and pixels(data["images"][item[side]]) == pixels(file)
        source = a.by_key[name].source
        assert source is not None and pixels(data["images"][item["source"]]) == pixels(source)
        assert item["prompt"] == pair["instruction"] == a.by_key[name].instruction
    text = page.read_text(encoding="utf-8")
    assert not any(word in text for word in (a.name, b.name, "sdedit", "instruct_pix2pix", str(tmp_path)))
    assert all(one.text in text for one in EDITING.values()) and "more like the subject" not in text
    again = page.read_bytes()
    written(tmp_path, a, b)
    assert page.read_bytes() == again and written(tmp_path, a, b, seed=1)[1]["study"] != key["study"]


def test_of_many_pairs_some_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edit_compare, "MOST_PAIRS", 3)
    a, b = two_runs(tmp_path)
    assert write_edit_comparison(a, b, tmp_path / "page.html") == (3, 4)
    assert len(page_data(tmp_path / "page.html")["questions"]) == 6


def test_what_cannot_be_compared_is_said_in_one_line(tmp_path: Path) -> None:
    a, b = two_runs(tmp_path)
    with pytest.raises(UserError, match="is compared with itself"):
        write_edit_comparison(a, a, tmp_path / "page.html")
    others = make_edit_runs(tmp_path, TWO[:1], experiment="x", made=MadeEdits(images=["else"], edits=EDITS[:1]))
    with pytest.raises(UserError, match="have no picture of the same image, edit and seed"):
        write_edit_comparison(a, read_edit_run(next(others.glob("*/manifest.json")).parent), tmp_path / "page.html")
    words = make_edit_runs(tmp_path, TWO[:1], experiment="y", made=MadeEdits(IMAGES[:1], EDITS[:1], words=", please"))
    with pytest.raises(UserError, match="the edit at_night of room_00 has two instructions"):
        write_edit_comparison(b, read_edit_run(next(words.glob("*/manifest.json")).parent), tmp_path / "page.html")
    shutil.copy(a.folder / "samples/sources/room_01.png", a.folder / "samples/sources/room_00.png")
    with pytest.raises(UserError, match="the image room_00 is not the same in both runs"):
        write_edit_comparison(a, b, tmp_path / "page.html")


def votes(data: dict[str, Any], key: dict[str, Any], question: str, wanted: str) -> dict[str, Any]:
    """A ballot that names run `wanted` whenever `question` is asked, and cannot tell otherwise."""
    found = []
    for item in data["questions"]:
        left = key["pairs"][item["pair"]]["left"][item["question"]]
        answer = ("left" if left == wanted else "right") if item["question"] == question else "undecided"
        found.append({"pair": item["pair"], "question": item["question"], "answer": answer})
    moment = "2026-03-04T05:06:07Z"
    told = {"rater": "ann", "sitting": "s", "started": moment, "exported": moment}
    return {"kind": "boothlab votes", "format": 1, "study": data["study"], "votes": found, **told}


def test_votes_are_counted_and_stand_in_the_report(tmp_path: Path) -> None:
    a, b = two_runs(tmp_path)
    assert report.run([str(a.folder.parent), "--compare", a.name, b.name, "--no-html"]) == 0
    page = a.folder.parent / f"compare-{a.name}-{b.name}.html"
    key = json.loads(key_path(page).read_text(encoding="utf-8"))
    ballot = a.folder.parent / "votes-ann.json"
    ballot.write_text(json.dumps(votes(page_data(page), key, "rest", "b")), encoding="utf-8")
    human = read_votes([ballot])
    assert human.is_editing and [one.question for one in human.questions] == ["instruction", "rest"]
    assert [(one.wins_a, one.wins_b, one.undecided) for one in human.questions] == [(0, 0, 4), (0, 4, 0)]
    assert report.run([str(a.folder.parent), "--votes", str(ballot)]) == 0
    text = (a.folder.parent / "report.md").read_text(encoding="utf-8")
    assert "| Which keeps the rest better? | 4 | 0 (0%) | 4 (100%)" in text and "image, edit and seed" in text
    assert f"A is `{a.name}`, B is `{b.name}`." in text and "at step" not in text
    assert "What people chose" in (a.folder.parent / "report.html").read_text(encoding="utf-8")


def test_a_training_and_an_edit_are_not_compared_nor_are_votes_mixed_up(tmp_path: Path) -> None:
    a, b = two_runs(tmp_path)
    training = next(make_runs(tmp_path, [{"lora.rank": 4}], experiment="t").glob("*/manifest.json")).parent
    with pytest.raises(UserError, match="one is a training and one an edit; name two alike"):
        report.run([str(a.folder.parent), "--compare", a.name, str(training), "--no-html"])
    data, key, page = written(tmp_path, a, b)
    (page.parent / "votes.json").write_text(json.dumps(votes(data, key, "rest", "a")), encoding="utf-8")
    with pytest.raises(UserError, match="the votes are on editing runs, and these folders hold none"):
        report.run([str(training.parent), "--votes", str(page.parent / "votes.json"), "--no-html"])

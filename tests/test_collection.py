"""The audit of a collection: every file listed with its reason, likenesses found, killed audits go on."""

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import boothlab.images.collection as collection
from bad_images import EXPECTED, picture, write_bad_images
from boothlab.errors import UserError
from boothlab.images.collection import AuditSettings, audit_collection, inspect_file
from boothlab.images.collection_store import CollectionStore, FileRecord
from boothlab.images.collection_tables import COLUMNS, audit_markdown, write_audit_csv
from boothlab.images.load import ImageError, read_image
from boothlab.images.perceptual import earliest_near, perceptual_hash
from boothlab.progress import Reporter

QUIET = Reporter(quiet=True)


def audited(folder: Path, base: Path, threads: int = 2, **settings: object) -> CollectionStore:
    chosen = AuditSettings(**settings)  # type: ignore[arg-type]
    store = CollectionStore(base, chosen.digest(folder))
    audit_collection(folder, chosen, store, QUIET, threads)
    return store


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad") / "images"
    write_bad_images(folder)
    return folder


def test_every_file_is_listed_with_its_reason_and_none_ends_the_audit(bad: Path, tmp_path: Path) -> None:
    store = audited(bad, tmp_path / "a.sqlite", recursive=True)
    found = {record.file: record for record in store.records()}
    assert list(found) == sorted(EXPECTED, key=lambda name: name.rstrip("/").split("/"))
    for file, (status, reason) in EXPECTED.items():
        assert found[file].status == status, file
        assert reason in found[file].reason if reason else found[file].reason == "", file
    turned, deep = found["turned.jpg"], found["deep.png"]
    assert (turned.width, turned.height, turned.aspect, turned.orientation) == (80, 96, 80 / 96, 6)
    assert (deep.mode, deep.format, found["two.jpg"].format) == ("I;16", "PNG", "MPO")
    assert found["same.jpg"].duplicate_of == "ok.jpg" and found["ok.jpg"].duplicate_of is None
    assert found["same.jpg"].sha256 == read_image(bad / "ok.jpg").sha256
    assert store.counts() == {"accepted": 15, "rejected": 10, "ignored": 5}


def test_subfolders_are_named_when_they_are_not_searched(bad: Path, tmp_path: Path) -> None:
    found = {record.file: record for record in audited(bad, tmp_path / "a.sqlite").records()}
    assert found["sub/"].status == "ignored" and "recursive=true" in found["sub/"].reason
    assert "sub/x.png" not in found


def test_the_number_of_threads_changes_nothing(bad: Path, tmp_path: Path) -> None:
    one, four = (audited(bad, tmp_path / f"{n}.sqlite", n, recursive=True) for n in (1, 4))
    assert list(one.records()) == list(four.records())


def test_a_draft_accepts_and_refuses_what_the_whole_picture_does(bad: Path) -> None:
    for file in EXPECTED:
        answers = []
        for at_least in (None, 8):
            try:
                loaded = read_image(bad / file, at_least=at_least)
                answers.append((loaded.size, loaded.sha256, loaded.notes, loaded.orientation))
            except ImageError as error:
                answers.append(error.reason)
        assert answers[0] == answers[1], file
    assert read_image(bad / "turned.jpg", at_least=8).image.size == (10, 12)
    assert read_image(bad / "turned.jpg").image.size == read_image(bad / "turned.jpg").size == (80, 96)


def test_the_files_say_what_was_found(bad: Path, tmp_path: Path) -> None:
    store = audited(bad, tmp_path / "a.sqlite", recursive=True)
    write_audit_csv(tmp_path / "audit.csv", store)
    with (tmp_path / "audit.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS and len(rows) == len(EXPECTED)
    by_name = {row["file"]: row for row in rows}
    assert by_name["same.jpg"]["duplicate_of"] == "ok.jpg"
    assert by_name["ok.jpg"]["aspect"] == "1.2000" and len(by_name["ok.jpg"]["perceptual_hash"]) == 16
    assert {"'=cmd.png", "new\\nline.png"} <= by_name.keys()  # neither a formula nor a broken line
    text = audit_markdown(store, bad)
    for line in ("| accepted | 15 |", "| 96x80 | 13 |", "| MPO | 1 |", "## Rejected (10)"):
        assert line in text
    assert "| same.jpg | same bytes as ok.jpg |" in text


def test_duplicates_can_be_rejected_and_the_first_stays(bad: Path, tmp_path: Path) -> None:
    for _ in range(2):  # and again, from what is known
        store = audited(bad, tmp_path / "a.sqlite", reject_duplicates=True)
        found = {record.file: record for record in store.records()}
        assert found["same.jpg"].status == "rejected" and found["same.jpg"].reason == "the same bytes as ok.jpg"
        assert found["ok.jpg"].status == "accepted"
        store.close()


def test_a_copy_of_another_size_is_a_near_duplicate(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    picture(0, 192, 160).save(folder / "a.png")
    picture(0, 192, 160).resize((96, 80)).save(folder / "b.jpg", quality=70)
    picture(1, 192, 160).save(folder / "c.png")
    found = {one.file: one.near_duplicate_of for one in audited(folder, tmp_path / "a.sqlite").records()}
    assert found == {"a.png": None, "b.jpg": "a.png", "c.png": None}
    found = {one.file: one.near_duplicate_of for one in audited(folder, tmp_path / "b", near_distance=None).records()}
    assert set(found.values()) == {None}


def test_a_killed_audit_goes_on_and_looks_again_only_at_what_changed(
    bad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(12):
        picture(number).save(folder / f"{number:02d}.png")
    looked: list[str] = []

    def look(where: Path, file: str, settings: AuditSettings) -> FileRecord:
        if len(looked) == 5:
            raise KeyboardInterrupt
        looked.append(file)
        return inspect_file(where, file, settings)

    monkeypatch.setattr(collection, "inspect_file", look)
    with pytest.raises(KeyboardInterrupt):
        audited(folder, tmp_path / "a.sqlite", 1)
    looked[:] = [""] * 6
    store = audited(folder, tmp_path / "a.sqlite", 1)
    again = looked[6:]
    assert again == [f"{number:02d}.png" for number in range(5, 12)]
    store.close()
    picture(40).save(folder / "03.png")
    (folder / "07.png").unlink()
    looked[:] = [""] * 6
    store = audited(folder, tmp_path / "a.sqlite", 1)
    assert looked[6:] == ["03.png"]
    whole = audited(folder, tmp_path / "b.sqlite", 1)
    assert list(store.records()) == list(whole.records()) and len(list(whole.records())) == 11
    store.close()
    looked[:] = [""] * 6
    audited(folder, tmp_path / "a.sqlite", 1, min_side=50)
    assert len(looked) == 6 + 11  # another setting starts anew


def test_a_damaged_notebook_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    picture(0).save(tmp_path / "images" / "a.png")
    (tmp_path / "a.sqlite").write_bytes(b"no database" * 500)
    assert audited(tmp_path / "images", tmp_path / "a.sqlite").counts() == {"accepted": 1}


def test_what_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "images"
    (folder / "locked").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        picture(0).save(folder / name)
    usual_read, usual_scan = Path.read_bytes, os.scandir

    def read(path: Path) -> bytes:  # root may read everything, so permissions alone prove nothing
        if path.name == "b.png":
            raise PermissionError(13, "Permission denied")
        return usual_read(path)

    def scan(path: Path) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return usual_scan(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    monkeypatch.setattr(os, "scandir", scan)
    found = {one.file: (one.status, one.reason) for one in audited(folder, tmp_path / "a", recursive=True).records()}
    assert found["b.png"] == ("rejected", "it cannot be read (Permission denied); check its permissions")
    assert found["locked/"] == ("ignored", "the folder cannot be read (Permission denied)")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: None, "does not exist"),
        (lambda folder: folder.write_text("x"), "is a file, not a folder of images"),
        (lambda folder: folder.mkdir(), "is empty"),
        (lambda folder: (folder / "sub").mkdir(parents=True), "recursive=true searches subfolders too"),
        (lambda folder: (folder.mkdir(), (folder / "a.png").write_text("x")), "none of the 1 file(s)"),
    ],
)
def test_a_folder_of_no_use_is_one_line(make: object, words: str, tmp_path: Path) -> None:
    make(tmp_path / "images")  # type: ignore[operator]
    with pytest.raises(UserError, match=r"^[^\n]*$") as error:
        audited(tmp_path / "images", tmp_path / "a.sqlite")
    assert words in str(error.value)


@given(
    st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 255) | st.sampled_from([0, 2**64 - 1]), max_size=40),
    st.integers(0, 12),
)
def test_near_hashes_are_those_of_a_search_through_all(hashes: list[int], distance: int) -> None:
    found = earliest_near(np.array(hashes, dtype=np.uint64), distance).tolist()
    assert found == [
        next(j for j, other in enumerate(hashes) if (one ^ other).bit_count() <= distance) for one in hashes
    ]


def test_near_hashes_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = np.random.default_rng(0).integers(0, 2**20, 300, dtype=np.uint64)  # the upper bands are all alike
    whole = earliest_near(hashes, 4)
    monkeypatch.setattr("boothlab.images.perceptual._BLOCK", 7)
    assert np.array_equal(earliest_near(hashes, 4), whole)
    with pytest.raises(ValueError, match="distance"):
        earliest_near(hashes, 64)


def test_the_perceptual_hash_is_golden() -> None:
    image = picture(0)
    assert f"{perceptual_hash(image):016x}" == "daf0e56ac0952795"
    assert (perceptual_hash(image) ^ perceptual_hash(image.resize((192, 160)))).bit_count() <= 4
    assert (perceptual_hash(image) ^ perceptual_hash(picture(1))).bit_count() > 16


def test_without_the_library_the_line_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images").mkdir()
    picture(0).save(tmp_path / "images" / "a.png")
    monkeypatch.setitem(__import__("sys").modules, "imagehash", None)
    with pytest.raises(UserError, match=r"boothlab\[caption\].*audit.near_distance=null"):
        audited(tmp_path / "images", tmp_path / "a.sqlite")
    assert audited(tmp_path / "images", tmp_path / "a.sqlite", near_distance=None).counts() == {"accepted": 1}
    shutil.rmtree(tmp_path / "images")

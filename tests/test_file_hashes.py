"""A remembered hash is the file's hash, whatever was done to the file or to the note."""

import os
import time
from pathlib import Path

import pytest

from boothlab import file_hashes
from boothlab.file_hashes import remembered_sha256
from boothlab.files import sha256_file


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is worth remembering and was written a while ago."""
    monkeypatch.setattr(file_hashes, "WORTH_IT", 4)
    monkeypatch.setattr(file_hashes, "_SETTLED_NS", -(10**12))
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"first content")
    return path


def no_hashing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> str:
        raise AssertionError("hashed again")

    monkeypatch.setattr(file_hashes, "sha256_file", fail)


def test_it_is_hashed_once(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = sha256_file(large)
    assert remembered_sha256(large, tmp_path / "notes") == expected
    no_hashing(monkeypatch)
    assert remembered_sha256(large, tmp_path / "notes") == expected
    monkeypatch.chdir(tmp_path)
    assert remembered_sha256(Path("weights.safetensors"), tmp_path / "notes") == expected


def test_other_content_of_the_same_size_and_time_is_hashed_anew(large: Path, tmp_path: Path) -> None:
    before, first = large.stat(), remembered_sha256(large, tmp_path / "notes")
    time.sleep(0.02)  # a tick of the file system's clock
    large.write_bytes(b"other content")
    os.utime(large, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert large.stat().st_mtime_ns == before.st_mtime_ns
    assert remembered_sha256(large, tmp_path / "notes") == sha256_file(large) != first


def test_a_file_put_in_its_place_is_hashed_anew(large: Path, tmp_path: Path) -> None:
    before = large.stat()
    remembered_sha256(large, tmp_path / "notes")
    other = tmp_path / "other"
    other.write_bytes(b"other content")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(large)
    assert remembered_sha256(large, tmp_path / "notes") == sha256_file(large)


def test_what_has_just_changed_is_not_remembered(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_hashes, "_SETTLED_NS", 10**12)
    remembered_sha256(large, tmp_path / "notes")
    assert not (tmp_path / "notes").exists()


@pytest.mark.parametrize("note", ["", "[]", "{", '{"sha256": 3}', '{"size": 13}'])
def test_a_damaged_note_is_no_note(large: Path, tmp_path: Path, note: str) -> None:
    expected = remembered_sha256(large, tmp_path / "notes")
    (written,) = (tmp_path / "notes").iterdir()
    written.write_text(note, encoding="utf-8")
    assert remembered_sha256(large, tmp_path / "notes") == expected


def test_small_files_and_places_that_cannot_be_written(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    assert remembered_sha256(large, tmp_path / "file") == sha256_file(large)
    monkeypatch.setattr(file_hashes, "WORTH_IT", 1000)
    assert remembered_sha256(large, tmp_path / "notes") == sha256_file(large)
    assert not (tmp_path / "notes").exists()

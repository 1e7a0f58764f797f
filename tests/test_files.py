"""Atomic writes, strict JSON, hashes."""

import errno
import hashlib
import json
import math
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boothlab import files
from boothlab.errors import UserError

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=25, deadline=None)
@given(JSON_VALUES)
def test_json_round_trip(value: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "value.json"
        files.write_json(path, value)
        assert files.read_json(path) == value


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=200))
def test_bytes_round_trip_and_replace(first: bytes, second: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.bin"
        files.write_bytes(path, first)
        files.write_bytes(path, second)
        assert path.read_bytes() == second
        assert files.sha256_file(path) == files.sha256_bytes(second) == hashlib.sha256(second).hexdigest()
        assert os.listdir(folder) == ["data.bin"]


def test_json_is_sorted_strict_and_utf8(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "é 写.json"
    files.write_json(path, {"b": math.nan, "a": (math.inf, -math.inf), "é": "写", "p": Path("x")})
    raw = path.read_bytes()
    assert "写".encode() in raw and raw.endswith(b"}\n")
    pairs = json.loads(raw, object_pairs_hook=list, parse_constant=lambda name: pytest.fail(name))
    assert pairs == [("a", ["inf", "-inf"]), ("b", "nan"), ("p", "x"), ("é", "写")]


def test_json_with_lone_surrogate_is_still_utf8(tmp_path: Path) -> None:
    files.write_json(tmp_path / "s.json", {"name": "a\udcff"})
    assert files.read_json(tmp_path / "s.json") == {"name": "a\udcff"}


def test_json_refuses_what_has_no_form(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="keys must be strings"):
        files.write_json(tmp_path / "x.json", {"a": [{1: 2}]})
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "x.json", {"a": object()})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"", b"[" * 200_000])
def test_read_json_speaks_to_the_user(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.json is not valid JSON") as caught:
        files.read_json(tmp_path / "bad.json")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"cannot read .*gone\.json"):
        files.read_json(tmp_path / "gone.json")
    with pytest.raises(UserError, match=r"cannot read .*gone\.json"):
        files.sha256_file(tmp_path / "gone.json")


def test_text_keeps_line_ends(tmp_path: Path) -> None:
    files.write_text(tmp_path / "t.txt", "é\r\nb\n\udcff")
    assert (tmp_path / "t.txt").read_bytes() == "é\r\nb\n\\udcff".encode()


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_written_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        files.write_bytes(tmp_path / "f", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "disk is full.*free some space"),
        (errno.EROFS, "read-only.*another folder"),
        (errno.EACCES, "permission denied"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_failed_write_names_the_path_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    (tmp_path / "f.txt").write_text("old")

    def fail(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=rf"cannot write .*f\.txt: .*{words}"):
        files.write_text(tmp_path / "f.txt", "new")
    assert os.listdir(tmp_path) == ["f.txt"]
    assert (tmp_path / "f.txt").read_text() == "old"


def test_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_text(tmp_path / "f.txt", "new")
    assert os.listdir(tmp_path) == []


def test_real_obstacles(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="folder of that name is in the way"):
        files.write_text(tmp_path / "folder", "x")
    with pytest.raises(UserError, match=r"is a file, not a folder|in the way"):
        files.write_text(tmp_path / "file" / "below", "x")
    with pytest.raises(UserError, match="shorter"):
        files.write_text(tmp_path / ("n" * 300), "x")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_longest_legal_name(tmp_path: Path) -> None:
    path = tmp_path / ("写" * 85)  # 255 bytes
    files.write_text(path, "x")
    assert path.read_text() == "x"


def test_atomic_directory(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "dir"
    with files.atomic_directory(target) as building:
        (building / "a").write_text("1")
        assert not target.exists() and building.parent == target.parent
    assert (target / "a").read_text() == "1"
    with pytest.raises(UserError, match="in the way"), files.atomic_directory(target):
        pytest.fail("the block must not run")
    with files.atomic_directory(target, replace=True) as building:
        (building / "b").write_text("2")
    assert os.listdir(target) == ["b"]
    assert os.listdir(target.parent) == ["dir"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("x"), OSError(errno.EIO, "x")])
def test_failed_directory_leaves_the_old_one(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "dir"
    target.mkdir()
    (target / "old").write_text("1")
    with pytest.raises(type(error)) as caught, files.atomic_directory(target, replace=True) as building:
        (building / "new").write_text("2")
        raise error
    assert caught.value is error
    assert os.listdir(tmp_path) == ["dir"] and os.listdir(target) == ["old"]


def test_full_disk_in_directory_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="disk is full"), files.atomic_directory(tmp_path / "dir"):
        raise OSError(errno.ENOSPC, "x")
    assert os.listdir(tmp_path) == []


def test_old_directory_returns_when_the_rename_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "dir"
    target.mkdir()
    (target / "old").write_text("1")
    rename = Path.rename

    def fail_on_new(self: Path, other: Path) -> Path:
        if (self / "new").exists():
            raise OSError(errno.EIO, "x")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", fail_on_new)
    with pytest.raises(UserError, match="cannot write"), files.atomic_directory(target, replace=True) as building:
        (building / "new").write_text("2")
    assert os.listdir(tmp_path) == ["dir"] and os.listdir(target) == ["old"]


def test_leftovers_of_a_killed_process(tmp_path: Path) -> None:
    target = tmp_path / "entry"
    (tmp_path / ".entry.0123.tmp").mkdir()
    (tmp_path / ".entry.0123.tmp" / "x").write_text("x")
    (tmp_path / ".entry.4567.tmp").write_text("x")
    (tmp_path / ".other.0123.tmp").write_text("x")
    target.mkdir()
    files.remove_leftovers(target)
    assert sorted(os.listdir(tmp_path)) == [".other.0123.tmp", "entry"]


def test_shown_is_one_printable_line() -> None:
    assert files.shown("a b/写.png") == "a b/写.png"
    text = files.shown("a\nb\x1b\udcff")
    assert text == "a\\nb\\x1b\\udcff" and text.isprintable()


@pytest.mark.parametrize(
    ("name", "clutter"),
    [(".DS_Store", True), ("Thumbs.db", True), ("DESKTOP.INI", True), ("._dog.jpg", True), ("dog.jpg", False)],
)
def test_clutter(name: str, clutter: bool) -> None:
    assert files.is_clutter(name) is clutter


@given(
    st.lists(
        st.dictionaries(st.text(max_size=4), st.none() | st.floats() | st.text(max_size=6), max_size=3), max_size=4
    )
)
def test_rows_one_at_a_time_make_the_bytes_of_the_whole(rows: list[dict[str, object]]) -> None:
    values = {"step": 1, "a": {"deep": [1, [2]]}, "note": "two\nlines"}
    chunks = files.json_chunks({"pairs": iter(rows), "none": iter(())}, values)
    assert b"".join(chunks) == files.json_bytes({**values, "pairs": rows, "none": []})

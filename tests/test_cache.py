"""The cache: keys, round trips, damage, concurrency, interruption, and a cache that cannot be written."""

import hashlib
import json
import logging
import math
import multiprocessing
import os
import tempfile
import threading
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from boothlab import cache as cache_module
from boothlab.cache import Cache, cache_key, cache_root
from boothlab.errors import UserError

FINITE = st.floats(allow_nan=False, allow_infinity=False)
PARTS = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none() | st.booleans() | st.integers() | FINITE | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=5,
    ),
    max_size=4,
)


def strictly(value: object) -> object:
    """A form whose equality tells 1 from True from 1.0 from "1", and 0.0 from -0.0, but not the order of keys."""
    if isinstance(value, dict):
        return ("dict", frozenset((key, strictly(item)) for key, item in value.items()))
    if isinstance(value, list):
        return ("list", tuple(strictly(item) for item in value))
    return (type(value).__name__, repr(value))


def turned_round(value: object) -> object:
    """The same with every dict's keys in the opposite order."""
    if isinstance(value, dict):
        return {key: turned_round(item) for key, item in reversed(value.items())}
    return [turned_round(item) for item in value] if isinstance(value, list) else value


@settings(max_examples=80, deadline=None)
@given(PARTS, PARTS)
def test_different_parts_different_keys(first: dict[str, Any], second: dict[str, Any]) -> None:
    assume(strictly(first) != strictly(second))
    assert cache_key("kind", **first) != cache_key("kind", **second)


@settings(max_examples=80, deadline=None)
@given(PARTS)
def test_order_is_irrelevant_and_kind_is_not(parts: dict[str, Any]) -> None:
    assert cache_key("kind", **parts) == cache_key("kind", **turned_round(parts))  # type: ignore[arg-type]
    assert cache_key("kind", **parts) != cache_key("other", **parts)


def test_key_is_the_same_everywhere() -> None:
    class Colour(StrEnum):
        RED = "red"

    text = '{"kind":"latents","parts":{"colour":"red","kind":"é","scale":0.5,"size":[64,32]}}'
    key = cache_key("latents", kind="é", size=(64, 32), scale=0.5, colour=Colour.RED)
    assert key == cache_key("latents", colour="red", scale=0.5, size=[64, 32], kind="é")
    assert key == hashlib.sha256(text.encode()).hexdigest()
    assert len({cache_key("k", a=value) for value in (1, 1.0, True, "1", None, [1])}) == 6
    assert cache_key("k", a="\ud800\udc00") != cache_key("k", a="\U00010000")


def test_key_refuses_what_is_not_content() -> None:
    with pytest.raises(TypeError):
        cache_key("k", path=Path("x"))
    with pytest.raises(TypeError, match="must be strings"):
        cache_key("k", a=[{1: 2}])
    with pytest.raises(ValueError):
        cache_key("k", a=math.nan)


def test_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BOOTHLAB_CACHE", str(tmp_path / "env"))
    assert cache_root("given") == Path("given")
    assert cache_root(None) == tmp_path / "env"
    monkeypatch.setenv("BOOTHLAB_CACHE", "")
    assert cache_root("") == cache_root() != Path() and "boothlab" in str(cache_root())
    with pytest.raises(UserError, match="unknown home"):
        cache_root("~no-such-user-here/cache")


DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
TENSORS = st.dictionaries(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=5),
    st.tuples(st.lists(st.integers(0, 3), max_size=3), DTYPES).map(lambda pair: torch.ones(pair[0]).to(pair[1])),
    max_size=3,
)


@settings(max_examples=25, deadline=None)
@given(TENSORS)
def test_tensors_round_trip(tensors: dict[str, Tensor]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = Cache(folder).get_or_make("k", {"a": 1}, lambda: tensors)
        read = Cache(folder).get_or_make("k", {"a": 1}, never)
    assert list(made) == list(read) == sorted(tensors)
    for name, tensor in tensors.items():
        assert read[name].dtype == made[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor) and torch.equal(made[name], tensor)


def never(*_: object) -> Any:
    pytest.fail("the entry is there and must not be made again")


def two() -> dict[str, Tensor]:
    return {"x": torch.arange(64.0)}


def one_file(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "é.txt").write_text("text", encoding="utf-8")


def entry_of(root: Path, kind: str = "k") -> Path:
    (entry,) = (root / kind).iterdir()
    return entry


def test_shared_and_transposed_tensors(tmp_path: Path) -> None:
    base = torch.arange(6.0, requires_grad=True).reshape(2, 3)
    result = Cache(tmp_path).get_or_make("k", {}, lambda: {"b": base.T, "a": base})
    assert list(result) == ["a", "b"] and result["b"].is_contiguous() and not result["a"].requires_grad
    result["a"].zero_()
    assert result["b"].sum() == 15 and base.sum() == 15


def test_sidecar_tells_the_parts_and_nothing_is_pickled(tmp_path: Path) -> None:
    Cache(tmp_path).get_or_make("k", {"kind": "é", "size": (1, 2)}, two)
    entry = entry_of(tmp_path)
    sidecar = json.loads((entry / "entry.json").read_text(encoding="utf-8"))
    assert sidecar["parts"] == {"kind": "é", "size": [1, 2]}
    assert sorted(path.name for path in entry.iterdir()) == ["entry.json", "payload.safetensors"]
    assert cache_key("k", **sidecar["parts"]) == entry.name == sidecar["key"]


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def put_nan(path: Path) -> None:
    path.write_text(path.read_text().replace('"a": 1', '"a": NaN'))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("payload.safetensors", flip_bit),
        ("payload.safetensors", cut_short),
        ("payload.safetensors", Path.unlink),
        ("entry.json", flip_bit),
        ("entry.json", cut_short),
        ("entry.json", put_nan),
        ("entry.json", Path.unlink),
        ("entry.json", lambda path: path.write_text("[]")),
    ],
)
def test_damaged_tensors_are_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Any
) -> None:
    Cache(tmp_path).get_or_make("k", {"a": 1}, two)
    damage(entry_of(tmp_path) / name)
    calls: list[int] = []
    with caplog.at_level(logging.WARNING):
        result = Cache(tmp_path).get_or_make("k", {"a": 1}, lambda: calls.append(1) or two())  # type: ignore[func-returns-value]
    assert torch.equal(result["x"], two()["x"]) and calls == [1]
    assert len(caplog.records) == 1 and "damaged" in caplog.text
    Cache(tmp_path).get_or_make("k", {"a": 1}, never)


def test_entry_moved_to_another_key_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = Cache(tmp_path)
    cache.get_or_make("k", {"a": 1}, two)
    entry_of(tmp_path).rename(tmp_path / "k" / cache_key("k", a=2))
    assert cache.get_or_make("k", {"a": 2}, lambda: {"y": torch.zeros(1)}).keys() == {"y"}
    assert "another entry" in caplog.text


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip_bit(folder / "sub" / "é.txt"),
        lambda folder: (folder / "sub" / "é.txt").unlink(),
        lambda folder: (folder / "stray.png").write_bytes(b"x"),
        lambda folder: folder.rename(folder.with_name("elsewhere")),
    ],
)
def test_damaged_folder_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any) -> None:
    folder = Cache(tmp_path).get_or_make_files("k", {"a": 1}, one_file)
    damage(folder)
    again = Cache(tmp_path).get_or_make_files("k", {"a": 1}, one_file)
    assert again == folder and (folder / "sub" / "é.txt").read_text(encoding="utf-8") == "text"
    assert len(caplog.records) == 1 and "damaged" in caplog.text and not (folder / "stray.png").exists()


def test_file_browsers_do_not_damage_a_folder(tmp_path: Path) -> None:
    folder = Cache(tmp_path).get_or_make_files("k", {"a": 1}, one_file)
    (folder / ".DS_Store").write_bytes(b"x")
    assert Cache(tmp_path).get_or_make_files("k", {"a": 1}, never) == folder


def test_stray_file_in_the_place_of_an_entry(tmp_path: Path) -> None:
    (tmp_path / "k").mkdir()
    (tmp_path / "k" / cache_key("k", a=1)).write_text("x")
    Cache(tmp_path).get_or_make("k", {"a": 1}, two)
    Cache(tmp_path).get_or_make("k", {"a": 1}, never)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("x"), UserError("x"), OSError("x")])
def test_interrupted_making_leaves_no_entry(tmp_path: Path, error: BaseException) -> None:
    def fail(folder: Path | None = None) -> dict[str, Tensor]:
        if folder is not None:
            (folder / "half.png").write_bytes(b"x")
        raise error

    cache = Cache(tmp_path)
    with pytest.raises(type(error)) as caught:
        cache.get_or_make("k", {"a": 1}, fail)
    assert caught.value is error
    with pytest.raises(type(error)) as caught:
        cache.get_or_make_files("k", {"a": 2}, fail)  # type: ignore[arg-type]
    assert caught.value is error
    assert os.listdir(tmp_path / "k") == []
    cache.get_or_make("k", {"a": 1}, two)  # the lock was given back


def test_remains_of_a_killed_process_are_swept(tmp_path: Path) -> None:
    remains = tmp_path / "k" / f".{cache_key('k', a=1)[:50]}.0123456789abcdef.tmp"
    remains.mkdir(parents=True)
    Cache(tmp_path).get_or_make("k", {"a": 1}, two)
    assert not remains.exists()


@pytest.mark.parametrize("bad", [None, {"x": 1}, {1: torch.zeros(1)}])
def test_make_must_give_tensors(tmp_path: Path, bad: Any) -> None:
    with pytest.raises(TypeError, match="dict of tensors"):
        Cache(tmp_path).get_or_make("k", {}, lambda: bad)


@pytest.mark.parametrize("kind", ["", "..", "a/b", "A", "locks"])
def test_kind_is_a_plain_name(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ValueError, match="cache kind"):
        Cache(tmp_path).get_or_make(kind, {}, two)


def test_unwritable_cache_is_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "root").write_text("a file where the cache should be, which stops even the superuser")
    cache = Cache(tmp_path / "root")
    for _ in range(2):
        assert torch.equal(cache.get_or_make("k", {"a": 1}, two)["x"], two()["x"])
    folder = cache.get_or_make_files("k", {"a": 1}, one_file)
    assert (folder / "sub" / "é.txt").exists() and tmp_path not in folder.parents
    assert len(caplog.records) == 1 and "cannot be written" in caplog.text
    with pytest.raises(ValueError, match="from make"):
        cache.get_or_make("k", {"a": 1}, lambda: (_ for _ in ()).throw(ValueError("from make")))


def test_entry_that_cannot_be_stored_is_still_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, **_: object) -> None:
        raise UserError(f"cannot write {path}: the disk is full")

    monkeypatch.setattr(cache_module, "atomic_directory", refuse)
    cache = Cache(tmp_path)
    assert torch.equal(cache.get_or_make("k", {"a": 1}, two)["x"], two()["x"])
    assert (cache.get_or_make_files("k", {"a": 1}, one_file) / "sub" / "é.txt").exists()
    assert len(caplog.records) == 1 and "disk is full" in caplog.text


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind the superuser")
def test_cache_without_write_permission(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Cache(tmp_path / "root").get_or_make("k", {"a": 1}, two)
    for path in [tmp_path / "root", tmp_path / "root" / "k", tmp_path / "root" / "locks"]:
        path.chmod(0o555)
    try:
        cache = Cache(tmp_path / "root")
        cache.get_or_make("k", {"a": 1}, never)
        assert not caplog.records
        assert "x" in cache.get_or_make("k", {"a": 2}, two)
        assert "cannot be written" in caplog.text
    finally:
        for path in [tmp_path / "root", tmp_path / "root" / "k", tmp_path / "root" / "locks"]:
            path.chmod(0o755)


def test_a_present_entry_needs_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Cache(tmp_path).get_or_make("k", {"a": 1}, two)
    monkeypatch.setattr(Cache, "_lock", never)
    Cache(tmp_path).get_or_make("k", {"a": 1}, never)


def test_waiting_is_told_and_threads_make_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_PATIENCE_S", 0.01)
    entered, calls = threading.Event(), []

    def slowly() -> dict[str, Tensor]:
        calls.append(1)
        entered.set()
        threading.Event().wait(0.2)
        return two()

    with caplog.at_level(logging.INFO, logger="boothlab.cache"):
        thread = threading.Thread(target=Cache(tmp_path).get_or_make, args=("k", {"a": 1}, slowly))
        thread.start()
        assert entered.wait(5)
        Cache(tmp_path).get_or_make("k", {"a": 1}, slowly)
        thread.join()
    assert calls == [1] and "waiting for another process" in caplog.text


def test_four_processes_make_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    from cache_worker import ask

    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(4), context.Queue()
    workers = [context.Process(target=ask, args=(str(tmp_path), barrier, results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert found == [[f"{index}.txt" for index in range(5)]] * 4
    assert len(list(tmp_path.glob("made-*"))) == 1
    assert len(list((tmp_path / "cache" / "k").iterdir())) == 1

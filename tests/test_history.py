"""metrics.jsonl: what is written is read back, whatever kill or clock comes in between."""

import csv
import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from boothlab.tracking.history import History, Row, as_scalar, read_history
from boothlab.tracking.mirrors import CsvMirror, TensorBoardMirror

KEYS = st.text(min_size=1, max_size=8).filter(lambda key: key not in {"step", "time"})
KEYS = KEYS.filter(lambda key: not any(0xD800 <= ord(char) < 0xE000 for char in key))
VALUES = st.one_of(st.integers(-(2**63), 2**63), st.floats(allow_nan=True, allow_infinity=True))
ROWS = st.lists(st.tuples(st.integers(0, 10**9), st.dictionaries(KEYS, VALUES, max_size=4)), max_size=6)


@contextmanager
def folder() -> Iterator[Path]:
    """A fresh folder for each example; pytest's tmp_path is one for all of them."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def write(path: Path, rows: list[tuple[int, dict[str, Any]]]) -> None:
    history = History(path, clock=lambda: 0.0)  # digits of the time would move what is cut off at a place drawn before
    for step, scalars in rows:
        history.log(step, scalars)
    history.close()


def comparable(rows: list[Row]) -> list[tuple[int, dict[str, str]]]:
    """repr tells 1 from 1.0 and makes NaN equal to itself."""
    return [(row.step, {key: repr(value) for key, value in row.scalars.items()}) for row in rows]


def expected(rows: list[tuple[int, dict[str, Any]]]) -> list[tuple[int, dict[str, str]]]:
    return [(step, {key: repr(value) for key, value in scalars.items()}) for step, scalars in rows]


@given(ROWS)
@settings(max_examples=60, deadline=None)
def test_round_trip(rows: list[tuple[int, dict[str, Any]]]) -> None:
    with folder() as root:
        write(root / "metrics.jsonl", rows)
        content = read_history(root / "metrics.jsonl")
    assert comparable(content.rows) == expected(rows)
    assert content.dropped == 0


@given(ROWS, st.data())
@settings(max_examples=60, deadline=None)
def test_a_file_cut_at_any_byte_keeps_its_whole_rows_and_can_be_continued(
    rows: list[tuple[int, dict[str, Any]]], data: st.DataObject
) -> None:
    with folder() as root:
        path = root / "metrics.jsonl"
        write(path, rows)
        whole = path.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:cut])
        # A row is whole once its closing brace is there, with or without the line end.
        lines = whole[:cut].split(b"\n")
        full = sum(line in whole.split(b"\n") and line != b"" for line in lines)
        content = read_history(path)
        assert comparable(content.rows) == expected(rows)[:full]
        assert content.dropped == (1 if lines[-1] and full < len(lines) else 0)

        write(path, [(7, {"late": 1})])
        continued = read_history(path)
    assert comparable(continued.rows) == [*expected(rows)[:full], (7, {"late": "1"})]
    assert continued.dropped == content.dropped


def test_every_line_is_strict_json_even_with_nan(tmp_path: Path) -> None:
    write(tmp_path / "m.jsonl", [(0, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.0})])

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    record = json.loads((tmp_path / "m.jsonl").read_text(), parse_constant=refuse)
    assert {key: record[key] for key in "abcd"} == {"a": "nan", "b": "inf", "c": "-inf", "d": 1.0}


def test_a_row_is_on_disk_before_the_next_one(tmp_path: Path) -> None:
    history = History(tmp_path / "m.jsonl")
    history.log(0, {"a": 1})
    assert len(read_history(tmp_path / "m.jsonl").rows) == 1
    history.close()


def test_broken_lines_in_the_middle_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    write(path, [(0, {"a": 1})])
    with path.open("ab") as file:
        file.write(b'{"step": 1, "ti\n\x00\x00\xff\n[1]\n{"step": 2, "time": 0.1, "a": "text"}\n')
    write(path, [(3, {"a": 2})])
    content = read_history(path)
    assert [row.step for row in content.rows] == [0, 3]
    assert content.dropped == 4


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
@settings(max_examples=40, deadline=None)
def test_time_never_runs_backwards_whatever_the_clock_does(ticks: list[float]) -> None:
    clock = iter([*ticks, *[ticks[-1]] * 3])
    with folder() as root:
        history = History(root / "m.jsonl", clock=lambda: next(clock))
        for step in range(len(ticks) - 1):
            history.log(step, {})
        history.close()
        times = [row.time for row in read_history(root / "m.jsonl").rows]
    assert len(times) == len(ticks) - 1
    assert all(time >= 0 for time in times)
    assert times == sorted(times)


def test_time_goes_on_where_an_earlier_attempt_stopped(tmp_path: Path) -> None:
    for ticks in ([100.0, 105.0], [3.0, 5.0]):
        clock = iter(ticks)
        history = History(tmp_path / "m.jsonl", clock=lambda clock=clock: next(clock))  # type: ignore[misc]
        history.log(0, {})
        history.close()
    assert [row.time for row in read_history(tmp_path / "m.jsonl").rows] == [5.0, 7.0]


def test_truncate_after_drops_later_steps_and_continues(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    history = History(path)
    for step in (0, 10, 20, 30):
        history.log(step, {"a": step, "é": math.nan})
    with path.open("ab") as file:
        file.write(b'{"half')
    assert history.truncate_after(10) == 3
    history.log(11, {"a": 11})
    history.close()
    content = read_history(path)
    assert [row.step for row in content.rows] == [0, 10, 11]
    assert math.isnan(content.rows[1].scalars["é"])
    assert content.dropped == 0
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", [-1, 1.0, True, "1"])
def test_a_step_that_is_no_count_is_refused(tmp_path: Path, step: Any) -> None:
    history = History(tmp_path / "m.jsonl")
    with pytest.raises(ValueError, match="step"):
        history.log(step, {"a": 1})
    history.close()
    assert (tmp_path / "m.jsonl").read_bytes() == b""


@pytest.mark.parametrize("scalars", [{"a": 1, "b": "x"}, {"b": None}, {"b": torch.ones(2)}, {"b": np.ones(0)}])
def test_a_value_that_is_no_number_is_refused_before_anything_is_written(tmp_path: Path, scalars: Any) -> None:
    history = History(tmp_path / "m.jsonl")
    with pytest.raises(TypeError, match="'b'"):
        history.log(0, scalars)
    history.close()
    assert (tmp_path / "m.jsonl").read_bytes() == b""


def test_reserved_keys_are_refused(tmp_path: Path) -> None:
    history = History(tmp_path / "m.jsonl")
    with pytest.raises(ValueError, match="'time'"):
        history.log(0, {"time": 1})
    history.close()


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(torch.tensor(0.5), 0.5), (torch.tensor([2]), 2), (np.float32(0.5), 0.5), (np.int64(3), 3), (True, 1)],
)
def test_tensors_and_numpy_numbers_become_plain(value: Any, wanted: int | float) -> None:
    plain = as_scalar("a", value)
    assert plain == wanted
    assert type(plain) is type(wanted)


def test_csv_has_the_union_of_columns(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, [(0, {"a": 1}), (1, {"b": math.nan, "a": 2.5}), (2, {"c,d": 3})])
    CsvMirror(path).finish(0)
    with (tmp_path / "metrics.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["step", "time", "a", "b", "c,d"]
    assert [[row[0], *row[2:]] for row in rows] == [["0", "1", "", ""], ["1", "2.5", "nan", ""], ["2", "", "", "3"]]


@pytest.mark.slow
def test_tensorboard_gets_scalars_and_images_and_hides_repeated_steps(tmp_path: Path) -> None:
    from PIL import Image

    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    Image.new("RGB", (5, 3), (255, 0, 0)).save(tmp_path / "a.png")
    first = TensorBoardMirror(tmp_path)
    for step in (0, 1, 2):
        first.log(step, {"train/loss": float(step)})
    first.finish(1)
    second = TensorBoardMirror(tmp_path, resume_step=1)
    second.log(2, {"train/loss": 9.0})
    second.log_images(2, "samples/grid", [(tmp_path / "a.png", "a toy")])
    second.finish(0)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"), purge_orphaned_data=True)
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(0, 0.0), (1, 1.0), (2, 9.0)]
    image = events.Images("samples/grid/0")[0]
    assert (image.width, image.height, image.step) == (5, 3, 2)

"""A run's table on the terminal, the lines and bars of a long job, and libraries that keep quiet."""

import io
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from boothlab.progress import Reporter
from boothlab.quiet import quiet_libraries
from boothlab.tracking import metrics
from boothlab.tracking.history import Row
from boothlab.tracking.show import finished_summary, score_table, show_run, value_of


def scores(clip_i: float, dino: float, clip_t: float, name: str = "") -> dict[str, float]:
    values = {metrics.CLIP_I: clip_i, metrics.DINO: dino, metrics.CLIP_T: clip_t, metrics.DIV: 0.25, metrics.PRES: 0.5}
    values[metrics.BALANCED] = (clip_i + dino + clip_t) / 3
    return {metrics.variant(key, name) if name else key: value for key, value in values.items()}


def write(run_dir: Path, rows: list[tuple[int, dict[str, float]]]) -> None:
    lines = [json.dumps({"step": step, "time": float(step), **scalars}) for step, scalars in rows]
    (run_dir / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def shown(run_dir: Path) -> str:
    console = Console(file=io.StringIO(), width=120, soft_wrap=True)
    show_run(run_dir, console)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def cells(text: str) -> list[list[str]]:
    """The table's rows of words."""
    lines = [line[1:-1] for line in text.splitlines() if line.startswith(("│", "┃"))]
    return [[cell.strip() for cell in line.replace("┃", "│").split("│")] for line in lines]


@pytest.mark.parametrize("name", ["", "dollhouse"])
def test_the_table_has_floor_checkpoints_and_ceiling(name: str, tmp_path: Path) -> None:
    ceiling = {metrics.CLIP_I_CEILING: 0.9, metrics.DINO_CEILING: 0.8}
    write(
        tmp_path,
        [
            (0, {metrics.variant(key, name) if name else key: value for key, value in ceiling.items()}),
            (0, scores(0.9, 0.9, 0.9, name)),
            (10, {metrics.TRAIN_LOSS: 0.5}),
            (20, scores(0.5, 0.4, 0.3, name)),
            (40, scores(0.7, 0.6, 0.2, name)),
            (60, scores(0.6, 0.5, 0.1, name)),
        ],
    )
    text = shown(tmp_path)
    assert cells(text) == [
        ["step", "CLIP-I", "DINO", "CLIP-T", "DIV", "PRES ↓", "balanced"],
        ["0 (base model)", "0.900", "0.900", "0.900", "0.250", "0.500", "0.900"],
        ["20", "0.500", "0.400", "0.300", "0.250", "0.500", "0.400"],
        ["40", "0.700", "0.600", "0.200", "0.250", "0.500", "0.500"],
        ["60", "0.600", "0.500", "0.100", "0.250", "0.500", "0.400"],
        ["real photos", "0.900", "0.800", "", "", "", ""],
    ]
    assert ("(dollhouse encoders)" in text) is bool(name)


def test_the_best_trained_row_is_marked_and_the_base_model_never() -> None:
    rows = [Row(0, 0.0, dict(scores(0.9, 0.9, 0.9))), Row(2, 1.0, dict(scores(0.5, 0.5, 0.5)))]
    table = score_table([*rows, Row(4, 2.0, dict(scores(0.4, 0.4, 0.4)))])
    assert [row.style for row in table.rows] == [None, "bold green", None]


def test_missing_scores_are_blank(tmp_path: Path) -> None:
    write(tmp_path, [(0, {metrics.CLIP_I: 0.5, metrics.BALANCED: 0.5})])
    assert cells(shown(tmp_path))[1:] == [["0 (base model)", "0.500", "", "", "", "", "0.500"]]


def test_a_run_without_scores_has_no_table_and_paths_are_no_markup(tmp_path: Path) -> None:
    run_dir = tmp_path / "run [red] [/nothing] :bear:"
    (run_dir / "samples" / "step_000002").mkdir(parents=True)
    (run_dir / "samples" / "step_000002" / "grid.png").touch()
    write(run_dir, [(2, {metrics.TRAIN_LOSS: 0.5})])
    assert shown(run_dir).splitlines() == [
        f"grid      {run_dir}/samples/step_000002/grid.png",
        f"adapter   {run_dir}/lora/pytorch_lora_weights.safetensors",
        f"numbers   {run_dir}/summary.json",
    ]


def test_a_ceiling_is_not_a_score() -> None:
    row = Row(0, 0.0, {"eval/clip_i_ceiling": 0.9, "eval/clip_i_ceiling/dollhouse": 0.8})
    assert value_of(row, metrics.CLIP_I) is None
    assert value_of(row, metrics.CLIP_I_CEILING) == 0.9


@pytest.mark.parametrize("content", [None, "{", "[]", '{"status": "failed"}', '{"status": "interrupted"}'])
def test_only_a_finished_summary_counts(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "summary.json").write_text(content, encoding="utf-8")
    assert finished_summary(tmp_path) is None
    (tmp_path / "summary.json").write_text('{"status": "finished"}', encoding="utf-8")
    assert finished_summary(tmp_path) == {"status": "finished"}


def reporter(terminal: bool = False, quiet: bool = False) -> tuple[Reporter, io.StringIO]:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100, highlight=False, soft_wrap=True)
    return Reporter(quiet, console), stream


def test_lines_are_printed_as_they_are() -> None:
    lines, stream = reporter()
    lines.say("run folder /tmp/[red]x[/] :bear: " + "x" * 200)
    lines.say("dog.jpg: it is empty", tag="left out")
    lines.warn("a photo of [sks]")
    first = "run folder /tmp/[red]x[/] :bear: " + "x" * 200
    assert stream.getvalue().splitlines() == [first, "left out dog.jpg: it is empty", "warning a photo of [sks]"]


def test_quiet_says_nothing_and_a_pipe_gets_no_bars() -> None:
    for lines, stream in (reporter(quiet=True), reporter(quiet=True, terminal=True)):
        lines.say("x")
        with lines.bar("drawing", 3) as bar:
            bar.advance()
        assert stream.getvalue() == ""
    lines, stream = reporter()
    with lines.bar("drawing", 3) as bar:
        bar.advance(2)
        bar.describe("still drawing")
    assert stream.getvalue() == ""


def test_bars_stack_on_a_terminal_and_go_away() -> None:
    lines, stream = reporter(terminal=True)
    with lines.bar("training", 2) as outer:
        outer.advance()
        outer.describe("training  loss 0.5")
        with pytest.raises(KeyboardInterrupt), lines.bar("drawing", 3) as inner:
            inner.advance()
            lines.say("step 2")
            raise KeyboardInterrupt
        outer.advance()
    assert "step 2" in stream.getvalue()
    with lines.bar("again", 1):  # a new display, after the first has ended
        pass


def test_libraries_are_quiet_inside_and_as_before_outside() -> None:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    def state() -> list[tuple[Any, bool]]:
        libraries = (diffusers_logging, transformers_logging)
        return [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]

    before = state()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(ValueError, match="x"), quiet_libraries():
            assert all(level == 40 and not bars for level, bars in state())
            warnings.warn("not heard", stacklevel=1)
            raise ValueError("x")
        assert caught == []
        warnings.warn("heard", stacklevel=1)
        assert len(caught) == 1
    assert state() == before

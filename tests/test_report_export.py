import csv
import io
import json
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from boothlab.errors import UserError
from boothlab.reporting import export
from boothlab.reporting.export import checkpoints_frame, csv_text, runs_frame, write_csv, write_parquet
from boothlab.reporting.markdown import escape, to_markdown
from boothlab.reporting.study import build_study
from report_runs import FLOOR, Made, make_runs

RANK = "lora.rank"


def two_point_scores(config: Mapping[str, Any], seed: int, step: int) -> dict[str, float]:
    """A third of everything, so that only repr writes the numbers in full."""
    gain = {0: 0.0, 50: 0.2, 100: 0.1}[step] / 3 + seed / 1000
    return {**FLOOR, "clip_i": 0.5 + gain, "dino": 0.2 + gain, "clip_t": 0.3, "pres": 0.4 - gain, "balanced": 1 / 3}


def frame_of(folder: Path) -> list[dict[str, str]]:
    study = build_study([folder])
    return list(csv.DictReader(io.StringIO(csv_text(runs_frame([*study.runs, *study.unfinished])))))


# --- CSV -------------------------------------------------------------------------------------------------------------


def test_runs_csv_whole(tmp_path: Path) -> None:
    settings = [{RANK: 16}, {RANK: 4, "optim.text_encoder_lr": 1e-5}]
    made = Made(ceilings={"clip_i": 0.7, "dino": 0.26})
    study = build_study([make_runs(tmp_path, settings, scores=two_point_scores, made=made)])
    first, second = study.runs
    write_csv(study.runs, tmp_path / "runs.csv")
    lines = (tmp_path / "runs.csv").read_bytes().decode("utf-8").split("\n")
    assert lines[0] == (
        "run,status,seed,setting,lora.rank,optim.text_encoder_lr,"
        "clip_i_best,clip_i_best_step,clip_i_last,clip_i_floor,dino_best,dino_best_step,dino_last,dino_floor,"
        "clip_t_best,clip_t_best_step,clip_t_last,clip_t_floor,"
        "balanced_best,balanced_best_step,balanced_last,balanced_floor,div_best,div_best_step,div_last,div_floor,"
        "pres_best,pres_best_step,pres_last,pres_floor,clip_i_ceiling,dino_ceiling,encoders,copying_steps"
    )
    numbers = (
        "0.5666666666666667,50,0.5333333333333333,0.5,0.26666666666666666,50,0.23333333333333334,0.2,"
        "0.3,50,0.3,0.3,0.3333333333333333,50,0.3333333333333333,0.3333333333333333,0.3,50,0.3,0.3,"
        "0.33333333333333337,50,0.3666666666666667,0.4,0.7,0.26,dollhouse,50"
    )
    assert lines[1] == f"{first.name},finished,0,{first.setting[:8]},4,1e-05,{numbers}"
    assert lines[2] == f"{second.name},finished,0,{second.setting[:8]},16,,{numbers}"
    assert lines[3:] == [""]


def test_numbers_read_back_exactly(tmp_path: Path) -> None:
    folder = make_runs(tmp_path, [{"optim.lr": 0.1 + 0.2}])
    make_runs(tmp_path, [{"optim.lr": 1e-7 / 3}])
    study = build_study([folder])
    for run, row in zip(study.runs, frame_of(folder), strict=True):
        assert float(row["optim.lr"]) == run.config["optim"]["lr"]
        assert float(row["dino_best"]) == run.best("dino").scores["dino"]  # type: ignore[union-attr]


def test_rows_are_sorted_by_values_as_numbers_and_then_by_seed(tmp_path: Path) -> None:
    folder = make_runs(tmp_path, [{RANK: rank} for rank in (128, 4, 16)], (10, 2))
    assert [(row[RANK], row["seed"]) for row in frame_of(folder)] == [
        ("4", "2"),
        ("4", "10"),
        ("16", "2"),
        ("16", "10"),
        ("128", "2"),
        ("128", "10"),
    ]


def test_two_machines_write_the_same_bytes(tmp_path: Path) -> None:
    settings = [{RANK: rank} for rank in (4, 16)]
    folders = [make_runs(tmp_path / machine, settings, (0, 1)) for machine in ("here", "elsewhere")]
    for number, manifest in enumerate(sorted(folders[1].glob("*/manifest.json"))):
        found = json.loads(manifest.read_text(encoding="utf-8"))
        found["config"]["paths"]["outputs"] = "/another/disk"
        found["config"]["trainer"]["threads"] = 7
        found |= {"started": f"2030-01-0{number + 1}", "machine": {"device": "cuda:0"}, "command": ["elsewhere"]}
        manifest.write_text(json.dumps(found), encoding="utf-8")
    texts = []
    for folder in folders:
        runs = build_study([folder]).runs
        texts.append((csv_text(runs_frame(runs)), csv_text(checkpoints_frame(runs[::-1]))))
    assert texts[0] == texts[1]
    assert str(tmp_path) not in "".join(texts[0])


def test_unfinished_runs_have_a_row_with_what_they_have(tmp_path: Path) -> None:
    made = Made(statuses={(0, 1): "failed"})
    finished, failed = frame_of(make_runs(tmp_path, [{}], (0, 1), made=made, scores=two_point_scores))
    assert (finished["status"], failed["status"]) == ("finished", "failed")
    assert finished["clip_i_last"] == "0.5333333333333333"
    assert (failed["clip_i_best_step"], failed["seed"]) == ("50", "1")


def test_texts_with_commas_lists_and_nothing(tmp_path: Path) -> None:
    settings = [{"prior.class_prompt": 'a "robot", old', "evaluation.seeds": [0]}, {"prior.class_images": "a\nb"}]
    rows = frame_of(make_runs(tmp_path, settings))
    assert [row["prior.class_prompt"] for row in rows] == ["a photo of a robot", 'a "robot", old']
    assert [row["evaluation.seeds"] for row in rows] == ["[0, 1]", "[0]"]
    assert [row["prior.class_images"] for row in rows] == ["a\nb", ""]


def test_values_that_are_not_finite_are_written_as_such(tmp_path: Path) -> None:
    def scores(config: Mapping[str, Any], seed: int, step: int) -> dict[str, float]:
        return {**FLOOR, "dino": math.nan if step == 100 else 0.5}

    (row,) = frame_of(make_runs(tmp_path, [{}], scores=scores))
    assert (row["dino_best"], row["dino_best_step"], row["dino_last"]) == ("0.5", "50", "nan")


def test_checkpoints_csv_has_the_floor_and_every_checkpoint(tmp_path: Path) -> None:
    study = build_study([make_runs(tmp_path, [{RANK: 4}, {RANK: 8}], scores=two_point_scores)])
    frame = checkpoints_frame(study.runs)
    assert frame.columns == (
        *("run", "status", "seed", "setting", RANK, "step"),
        *("clip_i", "dino", "clip_t", "balanced", "div", "pres", "constant_images", "encoders"),
    )
    first = study.runs[0]
    shared = (first.name, "finished", 0, first.setting[:8], 4)
    assert frame.rows[0] == (*shared, 0, 0.5, 0.2, 0.3, 1 / 3, 0.3, 0.4, 0, "dollhouse")
    assert [row[5] for row in frame.rows] == [0, 50, 100, 0, 50, 100]


# --- Parquet ---------------------------------------------------------------------------------------------------------


def test_parquet_holds_the_same_table(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    settings: list[dict[str, Any]] = [{RANK: 4}, {RANK: 8, "lora.alpha": 2.5, "evaluation.seeds": [3]}]
    runs = build_study([make_runs(tmp_path, settings)]).runs
    frame = runs_frame(runs)
    write_parquet(runs, tmp_path / "runs.parquet")
    found = parquet.read_table(tmp_path / "runs.parquet").to_pydict()
    assert tuple(found) == frame.columns
    assert [tuple(row) for row in zip(*found.values(), strict=True)] == frame.rows
    assert found["lora.alpha"] == [None, 2.5] and found[RANK] == [4, 8]


def test_a_column_of_several_kinds_becomes_text(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    settings: list[dict[str, Any]] = [{"subject.count": 3}, {"subject.count": "all"}, {"subject.count": 2.5}]
    write_parquet(build_study([make_runs(tmp_path, settings)]).runs, tmp_path / "runs.parquet")
    assert parquet.read_table(tmp_path / "runs.parquet").to_pydict()["subject.count"] == ["2.5", "3", "all"]


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = build_study([make_runs(tmp_path, [{}])]).runs
    monkeypatch.setattr(export, "parquet_available", lambda: False)
    with pytest.raises(UserError, match=r"pip install 'boothlab\[parquet\]'"):
        write_parquet(runs, tmp_path / "runs.parquet")


def test_no_export_loads_pyarrow_before_it_is_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    write_csv(build_study([make_runs(tmp_path, [{}])]).runs, tmp_path / "runs.csv")


# --- Markdown --------------------------------------------------------------------------------------------------------


def rendered(markdown: str) -> str:
    """As HTML, by an independent reader of Markdown with GitHub's tables and strikethrough."""
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown)


def cells(html: str) -> list[str]:
    return [re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", html, re.DOTALL)]


def plain(html: str) -> str:
    for entity, sign in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        html = html.replace(entity, sign)
    return html


NASTY = "a|b <img src=x> `code` **bold** __init__ _x_ ~~no~~ [a](b) ![c](d) &lt; \\ $x$ {token} # 1. *"


@given(
    st.one_of(st.just(NASTY), st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), min_size=1))
)
def test_escaped_text_shows_as_it_is(text: str) -> None:
    expected = " ".join(text.split())
    for markdown in (f"| h | i |\n| --- | --- |\n| {escape(text)} | x |\n", f"- {escape(text)}\n", f"{escape(text)}\n"):
        html = rendered(markdown)
        found = cells(html)[0] if "<td" in html else re.sub("<[^>]*>", "", html).strip()
        assert plain(found) == expected


def test_escaped_text_is_one_line_and_keeps_words_readable() -> None:
    assert escape("two\nlines\x1b[0m") == "two lines\\\\x1b\\[0m"
    assert escape("lora.train_text_encoder") == "lora.train_text_encoder"


def test_the_report_shows_tables_tests_and_verdicts(tmp_path: Path) -> None:
    sweep = {
        "name": "rank",
        "title": "LoRA rank",
        "about": "More rank, more likeness.",
        "axis": RANK,
        "expect": {"clip_i": "rises"},
        "published": ["rank 4 → 16: .8003 → .8198"],
    }

    def scores(config: Mapping[str, Any], seed: int, step: int) -> dict[str, float]:
        return {**FLOOR, "clip_i": 0.5 + config["lora"]["rank"] / 100 + seed / 100 if step else 0.4}

    made = Made(statuses={(2, 0): "failed", (2, 1): "failed", (2, 2): "failed"})
    settings = [{RANK: rank} for rank in (4, 16, 64)]
    folder = make_runs(tmp_path, settings, (0, 1, 2), (50,), sweep=sweep, scores=scores, made=made)
    text = to_markdown(build_study([folder], title="Ranks | and <more>"))
    assert text.startswith(
        "# Ranks \\| and \\<more\\>\n\n6 finished runs of 2 settings, seeds 0, 1, 2. Scored with the doll"
    )
    assert text.count("More rank, more likeness.") == 1
    lines = text.split("\n")
    assert "## LoRA rank: best checkpoints (dollhouse encoders)" in lines
    assert "## LoRA rank: last checkpoints (dollhouse encoders)" in lines
    assert (
        sum("the best over each run's checkpoints after step 0, every score on its own" in line for line in lines) == 1
    )
    assert "| lora.rank | seeds | CLIP-I | DINO | CLIP-T | balanced | DIV | PRES ↓ |" in lines
    assert "| :-- | --: | --: | --: | --: | --: | --: | --: |" in lines
    rows = [line for line in lines if line.startswith(("| 4 | 3 ", "| 16 | 3 "))]
    assert rows[0].startswith("| 4 | 3 | 0.5500 ± 0.0248 | **0.2400 ± 0.0000** |")
    assert rows[1].startswith("| 16 | 3 | **0.6700 ± 0.0248** | **0.2400 ± 0.0000** |")
    assert "| *floor: the base model, step 0* |  | 0.4000 | 0.2400 | 0.6700 | 0.4367 | 0.3000 | 0.2400 |" in lines
    assert "| *ceiling: the real photos among themselves* |  | 0.6900 | 0.9100 |  |  |  |  |" in lines
    assert "| CLIP-I | rises | 0.5500 → 0.6700 | **as expected** |" in lines
    assert "| CLIP-I | 4 | 16 | +0.1200 | 3 | 0.2500 | 1.0000 | 0.2500 |" in lines
    assert "- rank 4 → 16: .8003 → .8198" in lines
    assert "Missing, since not finished: 3 runs of this sweep: dollhouse" in text
    assert "### Runs left out" in lines
    assert "- CLIP-T: clip@3391974 · clip-bicubic32-crop32 · unique token removed · 1" in lines
    assert "- torch 2.13.0+cpu" in lines


def test_the_report_of_one_run_has_no_intervals_and_no_tests(tmp_path: Path) -> None:
    text = to_markdown(build_study([make_runs(tmp_path, [{}], made=Made(suffix=""))]))
    assert "1 finished run of 1 setting, seed 0.\n" in text
    assert "one seed a setting, so no intervals" in text and "±" not in text
    assert "| all runs | 1 | " in text
    assert "sign-flip" not in text and "encoders)" not in text


def test_comparisons_without_a_test_say_why(tmp_path: Path) -> None:
    folder = make_runs(tmp_path, [{RANK: 4}, {RANK: 8}], (0, 1), sweep={"name": "rank", "axis": RANK})
    text = to_markdown(build_study([folder]))
    assert "Not tested: that takes pairs of at least 3 seeds." in text
    assert re.search(r"\| CLIP-I \| 4 \| 8 \| \+0\.\d{4} \| 2 \| – \| – \| – \|", text)


def test_prompts_in_tables_cannot_break_them(tmp_path: Path) -> None:
    settings = [{"prior.class_prompt": NASTY}, {"prior.class_prompt": "a photo"}]
    html = rendered(to_markdown(build_study([make_runs(tmp_path, settings)])))
    assert "<img" not in html and "<code>" not in html and "<a " not in html
    shortened = next(cell for cell in cells(html) if cell.startswith("a|b"))
    assert plain(shortened).startswith("a|b <img src=x> `code` **bold** __init__")


def test_warnings_are_shown_and_cut(tmp_path: Path) -> None:
    folder = make_runs(tmp_path, [{}], range(12), made=Made(ceilings={"dino": 0.3}, constant_images=1))
    study = build_study([folder])
    text = to_markdown(study)
    assert len(study.warnings) == 24
    assert "> [!WARNING]\n> - dollhouse" in text
    assert text.count("\n> - dollhouse") == 20 and "> - … and 4 more; see runs.csv and checkpoints.csv" in text


def test_groups_have_their_own_sections(tmp_path: Path) -> None:
    folder = make_runs(tmp_path, [{RANK: 4}])
    make_runs(tmp_path, [{RANK: 8}], made=Made(suffix="", clip="clip@standard"))
    text = to_markdown(build_study([folder], split=True))
    first, second = (
        text.index("# Measured with 1: dollhouse encoders"),
        text.index("# Measured with 2: standard encoders"),
    )
    assert first < text.index("- CLIP-I: clip@3391974") < second < text.index("- CLIP-I: clip@standard")


def test_floors_that_runs_do_not_share_are_given_as_a_range(tmp_path: Path) -> None:
    def scores(config: Mapping[str, Any], seed: int, step: int) -> dict[str, float]:
        return {**FLOOR, "dino": 0.2 + 0.1 * seed}

    text = to_markdown(build_study([make_runs(tmp_path, [{}], (0, 1), scores=scores)]))
    assert "| 0.5200 | 0.2500 (0.2000 to 0.3000) | 0.6700 |" in text


class Votes:
    """What reporting.votes reads, as far as the report needs it."""

    def summary_rows(self) -> list[dict[str, Any]]:
        return [{"question": "subject", "run_a": "x|y", "wins_a": 7, "share_a": 0.7, "kappa": None}]


def test_votes_are_a_table(tmp_path: Path) -> None:
    study = build_study([make_runs(tmp_path, [{}])])
    assert "Human votes" not in to_markdown(study)
    study.human = Votes()
    text = to_markdown(study)
    assert "| question | run a | wins a | share a | kappa |" in text
    assert "| subject | x\\|y | 7 | 0.7000 | – |" in text

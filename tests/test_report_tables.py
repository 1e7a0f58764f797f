import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from boothlab.errors import UserError
from boothlab.evaluation.statistics import t_interval
from boothlab.reporting.runs import RunRecord, find_runs, read_run
from boothlab.reporting.settings import LONGEST, label_of, natural_order
from boothlab.reporting.study import Study, build_study
from boothlab.reporting.tables import StudyTable
from report_runs import FLOOR, Made, make_runs

RANK, TEXT_ENCODER = "lora.rank", "lora.train_text_encoder"
PUBLISHED = {
    (4, False): (0.8003, 0.7664, 0.3303),
    (16, False): (0.8198, 0.7804, 0.3309),
    (64, False): (0.8345, 0.7851, 0.3230),
    (4, True): (0.8470, 0.7984, 0.3112),
    (16, True): (0.8633, 0.8136, 0.3049),
    (64, True): (0.8701, 0.8113, 0.2911),
}
"""Best CLIP-I, DINO and CLIP-T of a published study, by rank and whether the text encoder was trained."""


def published_scores(config: Mapping[str, Any], seed: int, step: int) -> dict[str, float]:
    """The published value at one checkpoint and 0.01 less at every other: CLIP-T peaks at 50, the others at 100."""
    if step == 0:
        return dict(FLOOR)
    clip_i, dino, clip_t = PUBLISHED[config["lora"]["rank"], config["lora"]["train_text_encoder"]]
    late, early = (0.0, 0.01) if step == 100 else (0.01, 0.0)
    return {"clip_i": clip_i - late, "dino": dino - late, "clip_t": clip_t - early, "pres": 0.5, "div": 0.2}


def published_runs(root: Path, **extra: Any) -> Path:
    settings = [{RANK: rank, TEXT_ENCODER: trained} for rank in (4, 16, 64) for trained in (False, True)]
    sweep = {"name": "text_encoder", "axis": TEXT_ENCODER, "expect": {"clip_i": "rises", "clip_t": "falls"}}
    return make_runs(root, settings, checkpoints=(50, 100), sweep=sweep, scores=published_scores, **extra)


def rank_runs(root: Path, by_rank: Mapping[int, tuple[float, ...]], score: str = "clip_i", **extra: Any) -> Path:
    """One setting a rank, with the value of each seed for one score at the only checkpoint."""

    def scores(config: Mapping[str, Any], seed: int, step: int) -> dict[str, float]:
        return {**FLOOR, score: by_rank[config["lora"]["rank"]][seed] if step else FLOOR[score]}

    seeds = range(len(next(iter(by_rank.values()))))
    sweep = {"name": "rank", "axis": RANK, "expect": {score: "rises"}}
    settings: list[dict[str, Any]] = [{RANK: rank} for rank in by_rank]
    return make_runs(root, settings, seeds, (50,), scores=scores, **{"sweep": sweep, **extra})


def table_of(study: Study, name: str, reading: str = "best", group: str = "") -> StudyTable:
    (table,) = [table for table in study.tables if (table.name, table.reading, table.group) == (name, reading, group)]
    return table


def column(table: StudyTable, score: str, average: bool = False) -> list[float]:
    cells = [row.cells[score] for row in table.rows if (row.average is not None) == average]
    return [round(cell.mean, 4) if cell else math.nan for cell in cells]


def edit_json(path: Path, **changes: Any) -> None:
    found = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**found, **changes}), encoding="utf-8")


# --- the published table ---------------------------------------------------------------------------------------------


def test_the_table_of_a_published_sweep_with_its_averages(tmp_path: Path) -> None:
    table = table_of(build_study([published_runs(tmp_path)]), "text_encoder")
    assert table.keys == (RANK, TEXT_ENCODER)
    labels = [tuple(row.labels[key] for key in table.keys) for row in table.rows[:6]]
    assert labels == [(rank, trained) for rank in ("4", "16", "64") for trained in ("off", "on")]
    assert column(table, "clip_i") == [0.8003, 0.847, 0.8198, 0.8633, 0.8345, 0.8701]
    averages = [column(table, score, average=True) for score in ("clip_i", "dino", "clip_t")]
    assert averages == [[0.8182, 0.8601], [0.7773, 0.8078], [0.3281, 0.3024]]
    assert [row.labels for row in table.rows[6:]] == [{TEXT_ENCODER: "off"}, {TEXT_ENCODER: "on"}]
    assert {row.average for row in table.rows[6:]} == {"average over 3 settings of lora.rank"}


def test_each_score_is_read_at_its_own_best_checkpoint_or_at_the_last(tmp_path: Path) -> None:
    study = build_study([published_runs(tmp_path)])
    best, last = table_of(study, "text_encoder", "best"), table_of(study, "text_encoder", "last")
    assert (column(best, "clip_i")[0], column(best, "clip_t")[0]) == (0.8003, 0.3303)
    assert (column(last, "clip_i")[0], column(last, "clip_t")[0]) == (0.8003, 0.3203)
    assert best.reading_in_words == "the best over each run's checkpoints after step 0, every score on its own"
    assert last.reading_in_words == "the last checkpoint of each run"


def test_the_best_cell_of_a_column_is_marked_and_pres_is_better_when_lower(tmp_path: Path) -> None:
    folder = make_runs(tmp_path, [{RANK: 4}, {RANK: 64}], checkpoints=(50,))
    rows = table_of(build_study([folder]), "runs").rows
    marked = {score: [cell.best for row in rows if (cell := row.cells[score])] for score in rows[0].cells}
    assert marked["clip_i"] == [False, True]
    assert rows[0].cells["pres"].mean < rows[1].cells["pres"].mean  # type: ignore[union-attr]
    assert marked["pres"] == [True, False]


def test_a_single_row_is_not_its_own_winner_and_equals_win_together(tmp_path: Path) -> None:
    (row,) = table_of(build_study([make_runs(tmp_path / "one", [{}])]), "runs").rows
    assert not any(cell.best for cell in row.cells.values() if cell)
    table = table_of(build_study([rank_runs(tmp_path / "two", {4: (0.5,), 16: (0.5,), 64: (0.4,)})]), "rank")
    assert [row.cells["clip_i"].best for row in table.rows] == [True, True, False]  # type: ignore[union-attr]


# --- intervals -------------------------------------------------------------------------------------------------------


def test_the_t_interval_has_textbook_values() -> None:
    three = t_interval([1.0, 2.0, 3.0])
    # t(0.975; 2) = 4.302653, times s / sqrt(n) = 1 / sqrt(3)
    assert (three.mean, three.units) == (2.0, 3)
    assert three.high == pytest.approx(2 + 4.302652729911275 / math.sqrt(3), abs=1e-9)
    assert three.low == pytest.approx(2 - 4.302652729911275 / math.sqrt(3), abs=1e-9)
    two = t_interval([0.0, 1.0])
    assert two.high == pytest.approx(0.5 + 12.706204736432095 / 2, abs=1e-9)
    assert t_interval([1.0, 2.0, 3.0], confidence=0.9).high == pytest.approx(2 + 2.919985580355516 / math.sqrt(3))


def test_the_t_interval_needs_two_values_for_bounds_and_finite_ones() -> None:
    one = t_interval([0.7])
    assert (one.mean, one.low, one.high) == (0.7, None, None)
    assert t_interval([0.5, 0.5]).high == 0.5
    for values in ([], [0.5, math.nan]):
        with pytest.raises(UserError, match="finite"):
            t_interval(values)
    with pytest.raises(UserError, match="confidence"):
        t_interval([0.5, 0.6], confidence=1.0)


def test_seeds_of_a_setting_are_one_row_with_an_interval(tmp_path: Path) -> None:
    table = table_of(build_study([rank_runs(tmp_path, {4: (0.5, 0.6, 0.7), 16: (0.8, 0.8, 0.8)})]), "rank")
    first, second = (row.cells["clip_i"] for row in table.rows)
    assert first and second
    assert first.values == (0.5, 0.6, 0.7)
    assert first.mean == pytest.approx(0.6)
    assert first.half_width == pytest.approx(0.1 * 4.302652729911275 / math.sqrt(3))
    assert second.half_width == pytest.approx(0.0)
    assert [len(row.runs) for row in table.rows] == [3, 3]


def test_averages_are_taken_seed_by_seed_where_seeds_match(tmp_path: Path) -> None:
    settings = [{RANK: rank, TEXT_ENCODER: trained} for rank in (4, 16) for trained in (False, True)]

    def scores(config: Mapping[str, Any], seed: int, step: int) -> dict[str, float]:
        # Rank and seed cancel out in the average: its interval is narrow although the rows' are wide.
        shift = 0.1 * seed if config["lora"]["rank"] == 4 else -0.1 * seed
        return {**FLOOR, "clip_i": 0.5 + shift}

    made = Made(statuses={(3, 2): "failed"})
    sweep = {"name": "te", "axis": TEXT_ENCODER}
    folder = make_runs(tmp_path, settings, (0, 1, 2), (50,), sweep=sweep, scores=scores, made=made)
    off, on = (row.cells["clip_i"] for row in table_of(build_study([folder]), "te").rows if row.average)
    assert off and on
    assert off.values == pytest.approx((0.5, 0.5, 0.5)) and off.half_width == pytest.approx(0, abs=1e-12)
    # One seed of one setting failed: means of the settings, and no interval that would mix settings with seeds.
    assert on.values == pytest.approx((0.6, 0.45)) and on.half_width is None


# --- comparisons and verdicts ----------------------------------------------------------------------------------------


def test_three_pairs_are_tested_but_never_below_a_quarter(tmp_path: Path) -> None:
    folder = rank_runs(tmp_path, {4: (0.50, 0.51, 0.52), 16: (0.60, 0.62, 0.61), 64: (0.70, 0.72, 0.71)})
    comparisons = [one for one in table_of(build_study([folder]), "rank").comparisons if one.score == "clip_i"]
    assert [(one.before, one.after, one.pairs) for one in comparisons] == [("4", "16", 3), ("4", "64", 3)]
    assert comparisons[0].difference == pytest.approx((0.10 + 0.11 + 0.09) / 3)
    assert [(one.p_value, one.holm_p, one.smallest_p) for one in comparisons] == [(0.25, 1.0, 0.25)] * 2


def test_pairs_are_over_other_settings_too_and_holm_is_over_the_table(tmp_path: Path) -> None:
    settings = [{RANK: rank, TEXT_ENCODER: trained} for rank in (4, 16, 64) for trained in (False, True)]
    sweep = {"name": "te", "axis": TEXT_ENCODER}
    table = table_of(build_study([make_runs(tmp_path, settings, (0, 1, 2), (50,), sweep=sweep)]), "te")
    assert [one.score for one in table.comparisons] == list(table.scores)
    assert {one.pairs for one in table.comparisons} == {9}
    assert {one.p_value for one in table.comparisons} == {2 / 2**9} == {one.smallest_p for one in table.comparisons}
    assert {one.holm_p for one in table.comparisons} == {6 * 2 / 2**9}


def test_two_seeds_are_shown_but_not_tested(tmp_path: Path) -> None:
    table = table_of(build_study([rank_runs(tmp_path, {4: (0.5, 0.5), 16: (0.6, 0.7)})]), "rank")
    (one,) = [one for one in table.comparisons if one.score == "clip_i"]
    assert one.difference == pytest.approx(0.15)
    assert (one.pairs, one.p_value, one.holm_p, one.smallest_p) == (2, None, None, None)


@pytest.mark.parametrize(
    ("means", "outcome"),
    [
        ((0.5, 0.6, 0.7), "as expected"),
        ((0.5, 0.7, 0.6), "ends only"),
        ((0.5, 0.5, 0.6), "ends only"),
        ((0.5, 0.7, 0.5), "not seen"),
        ((0.7, 0.6, 0.5), "not seen"),
    ],
)
def test_verdicts(tmp_path: Path, means: tuple[float, ...], outcome: str) -> None:
    by_rank = {rank: (mean,) for rank, mean in zip((4, 16, 64), means, strict=True)}
    (verdict,) = table_of(build_study([rank_runs(tmp_path, by_rank)]), "rank").verdicts
    assert (verdict.score, verdict.expected, verdict.outcome) == ("clip_i", "rises", outcome)
    assert verdict.means == pytest.approx(means)


def test_verdicts_follow_the_order_of_the_sweep_and_not_of_the_numbers(tmp_path: Path) -> None:
    sweep = {"name": "rank", "axis": RANK, "expect": {"clip_i": "falls", "div": "rises", "user_score": "rises"}}
    sweep["params"] = {RANK: ["64", "4", "16"]}
    table = table_of(build_study([rank_runs(tmp_path, {4: (0.6,), 16: (0.5,), 64: (0.7,)}, sweep=sweep)]), "rank")
    assert [row.labels[RANK] for row in table.rows] == ["64", "4", "16"]
    assert [one.after for one in table.comparisons if one.score == "clip_i"] == ["4", "16"]
    outcomes = {verdict.score: verdict.outcome for verdict in table.verdicts}
    assert outcomes == {"clip_i": "as expected", "div": "not seen", "user_score": "not measured"}


def test_a_single_value_of_the_axis_is_too_few(tmp_path: Path) -> None:
    table = table_of(build_study([rank_runs(tmp_path, {4: (0.6,)})]), "rank")
    assert [verdict.outcome for verdict in table.verdicts] == ["too few runs"]
    assert table.comparisons == () and table.keys == (RANK,)


def test_incomplete_settings_are_left_out_of_averages_and_verdicts(tmp_path: Path) -> None:
    # Rank 64, which is the best, failed with the text encoder: counting it on one side only would turn the verdict.
    folder = published_runs(tmp_path, made=Made(statuses={(5, 0): "failed"}))
    table = table_of(build_study([folder]), "text_encoder")
    assert column(table, "clip_i", average=True) == [round((0.8003 + 0.8198) / 2, 4), round((0.8470 + 0.8633) / 2, 4)]
    assert "average over 2 settings of lora.rank (1 left out" in str(table.rows[-1].average)
    assert [one.pairs for one in table.comparisons if one.score == "clip_i"] == [2]
    assert [name[-3:] for name in table.missing] == ["-s0"]


# --- rows and keys ---------------------------------------------------------------------------------------------------


def test_without_a_sweep_rows_are_sorted_as_numbers(tmp_path: Path) -> None:
    settings = [{RANK: rank, "optim.lr": rate} for rate in (1e-3, 1e-4) for rank in (64, 4, 16)]
    table = table_of(build_study([make_runs(tmp_path, settings)]), "runs")
    assert table.keys == (RANK, "optim.lr") and table.axis is None
    assert [tuple(row.labels.values()) for row in table.rows][:3] == [("4", "1e-4"), ("4", "1e-3"), ("16", "1e-4")]
    assert table.comparisons == () and table.verdicts == ()


def test_the_axis_comes_last_and_keys_of_one_value_are_left_out(tmp_path: Path) -> None:
    settings = [{RANK: rank, "optim.lr": 1e-3, "data.flip": flip} for rank in (4, 16) for flip in (False, True)]
    folder = make_runs(tmp_path, settings, sweep={"name": "rank", "axis": RANK})
    assert table_of(build_study([folder]), "rank").keys == ("data.flip", RANK)


def test_a_config_group_that_sets_many_keys_is_one_column(tmp_path: Path) -> None:
    toys: dict[str, dict[str, Any]] = {
        "robot": {"subject.class_noun": "robot"},
        "bear": {"subject.class_noun": "bear", "prior.class_prompt": "a photo of a bear"},
    }
    folder = make_runs(tmp_path, list(toys.values()), sweep={"name": "subject", "axis": "subject"})
    path = folder / "sweeps" / "subject.json"
    jobs = json.loads(path.read_text(encoding="utf-8"))["jobs"]
    for job, toy in zip(jobs, toys, strict=True):
        job["overrides"] = [f"subject={toy}", "seed=0"]
    edit_json(path, jobs=jobs, params={"subject": ["robot", "bear"], "seed": ["0"]})
    study = build_study([folder])
    table = table_of(study, "subject")
    assert table.keys == ("subject",)
    assert [row.labels["subject"] for row in table.rows] == ["robot", "bear"]
    assert set(study.varied) == {"subject.class_noun", "prior.class_prompt"}


def test_a_difference_that_the_sweep_did_not_ask_for_is_a_column(tmp_path: Path) -> None:
    # As when the recipe was changed between two halves of a sweep: the two must not pass for seeds of one setting.
    settings = [{RANK: 4, "optim.lr": 1e-3}, {RANK: 16, "optim.lr": 1e-3}, {RANK: 4, "optim.lr": 1e-4}]
    folder = make_runs(tmp_path, settings, sweep={"name": "rank", "axis": RANK})
    path = folder / "sweeps" / "rank.json"
    jobs = json.loads(path.read_text(encoding="utf-8"))["jobs"]
    for job in jobs:
        job["overrides"] = [word for word in job["overrides"] if not word.startswith("optim")]
    edit_json(path, jobs=jobs, params={RANK: ["4", "16"]})
    table = table_of(build_study([folder]), "rank")
    assert table.keys == ("optim.lr", RANK)
    assert [tuple(row.labels.values()) for row in table.rows] == [("1e-4", "4"), ("1e-3", "4"), ("1e-3", "16")]


def test_other_evaluation_prompts_make_another_row(tmp_path: Path) -> None:
    first = make_runs(tmp_path, [{}], (0,))
    make_runs(tmp_path, [{}], (1,), made=Made(prompts=("a {token} {class}, in snow", "a {token} {class}")))
    table = table_of(build_study([first]), "runs")
    assert table.keys == ("evaluation.prompts",) and len(table.rows) == 2
    labels = {row.labels["evaluation.prompts"] for row in table.rows}
    assert '["a {token} {class}, in snow", "a {token} {class}"]' in labels
    assert all(len(label) <= LONGEST for label in labels)


def test_labels_of_long_values_differ_when_the_values_do() -> None:
    long, other = "a photo of a {token} {class} " * 9 + "1", "a photo of a {token} {class} " * 9 + "2"
    assert label_of(long) != label_of(other)
    assert len(label_of(long)) <= LONGEST
    assert label_of(["a, b"]) != label_of(["a", "b"])
    assert [label_of(value) for value in (None, True, 1e-4, 4, "", [0, 1])] == [
        "–",
        "on",
        "1e-4",
        "4",
        "(empty)",
        "0, 1",
    ]


def test_values_of_all_kinds_can_be_sorted() -> None:
    values = ["b", None, 2, True, 0.5, False, [1], "a"]
    assert sorted(values, key=natural_order) == [None, False, True, 0.5, 2, [1], "a", "b"]


# --- which runs ------------------------------------------------------------------------------------------------------


def test_runs_outside_a_sweep_get_a_table_over_all_runs(tmp_path: Path) -> None:
    folder = rank_runs(tmp_path, {4: (0.5,), 16: (0.6,)})
    assert {table.name for table in build_study([folder]).tables} == {"rank"}
    make_runs(tmp_path, [{RANK: 128}], checkpoints=(50,))
    study = build_study([folder])
    assert [(table.name, table.reading) for table in study.tables] == [
        ("rank", "best"),
        ("rank", "last"),
        ("runs", "best"),
        ("runs", "last"),
    ]
    assert [row.labels for row in table_of(study, "runs").rows] == [{RANK: "4"}, {RANK: "16"}, {RANK: "128"}]


def test_a_folder_of_experiments_finds_their_sweeps_and_a_run_alone_does_not(tmp_path: Path) -> None:
    folder = rank_runs(tmp_path, {4: (0.5,), 16: (0.6,)})
    assert table_of(build_study([tmp_path]), "rank").missing == ()
    run = sorted(folder.glob("dollhouse*"))[0]
    assert {table.name for table in build_study([run]).tables} == {"runs"}


def test_unfinished_and_absent_runs_are_named(tmp_path: Path) -> None:
    statuses = {(0, 0): "running", (1, 0): "failed"}
    folder = make_runs(
        tmp_path,
        [{RANK: rank} for rank in (4, 16, 64, 128)],
        sweep={"name": "rank", "axis": RANK},
        made=Made(statuses=statuses),
    )
    jobs = [job["run"] for job in json.loads((folder / "sweeps" / "rank.json").read_text(encoding="utf-8"))["jobs"]]
    shutil.rmtree(folder / jobs[2])
    study = build_study([folder])
    assert table_of(study, "rank").missing == tuple(jobs[:3])
    assert dict(study.left_out) == {
        jobs[0]: "is still running, or was killed",
        jobs[1]: "failed: the loss became nan at step 60",
    }
    assert [run.name for run in study.runs] == [jobs[3]]
    assert sorted(run.name for run in study.unfinished) == sorted(jobs[:2])


def test_a_sweep_without_a_finished_run_is_a_warning(tmp_path: Path) -> None:
    folder = make_runs(tmp_path, [{RANK: 4}], sweep={"name": "rank"}, made=Made(statuses={(0, 0): "failed"}))
    make_runs(tmp_path, [{RANK: 8}])
    study = build_study([folder])
    assert "sweep rank: none of its 1 runs is finished, so it has no table" in study.warnings
    assert {table.name for table in study.tables} == {"runs"}


def test_nothing_finished_is_an_error_that_says_why(tmp_path: Path) -> None:
    folder = make_runs(tmp_path, [{}], (0, 1), made=Made(statuses={(0, 0): "failed", (0, 1): "running"}))
    with pytest.raises(UserError, match=r"none of 2 runs is finished and scored \(.*-s0: failed: the loss became nan"):
        build_study([folder])


def test_a_broken_run_is_left_out_and_the_others_are_not(tmp_path: Path) -> None:
    folder = make_runs(tmp_path, [{}], (0, 1, 2))
    first, second, third = sorted(folder.iterdir())
    (first / "manifest.json").write_text("{", encoding="utf-8")
    (second / "samples" / "step_000100" / "metrics.json").write_text("[", encoding="utf-8")
    study = build_study([folder])
    assert [run.folder for run in study.runs] == [third]
    assert [name for name, _ in study.left_out] == [first.name, second.name]
    assert all("is not valid JSON" in why for _, why in study.left_out)


def test_a_run_that_was_never_scored_is_left_out(tmp_path: Path) -> None:
    folder = make_runs(tmp_path, [{}], (0, 1))
    first = sorted(folder.iterdir())[0]
    lines = (first / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if "eval/clip_i/" not in line]
    (first / "metrics.jsonl").write_text("\n".join(kept) + "\n", encoding="utf-8")
    assert build_study([folder]).left_out == [(first.name, "has no scores after step 0; was evaluation.enabled off?")]


def test_the_same_setting_and_seed_counts_once(tmp_path: Path) -> None:
    # The experiment is no part of a run's identity, so two sweeps may hold the same run.
    for experiment in ("one", "two"):
        rank_runs(tmp_path, {4: (0.5, 0.6), 16: (0.7, 0.8)}, experiment=experiment)
    study = build_study([tmp_path / "one", tmp_path / "two"])
    assert len(study.runs) == 4 and len(study.left_out) == 4
    assert all(why.startswith("has the setting and the seed of one/") for _, why in study.left_out)
    tables = [table for table in study.tables if table.reading == "best"]
    assert [len(row.runs) for table in tables for row in table.rows] == [2, 2, 2, 2]
    assert [table.missing for table in tables] == [(), ()]


def test_a_rerun_gives_way_to_the_run_that_it_repeats_and_a_fork_does_not(tmp_path: Path) -> None:
    for experiment in ("reruns", "train"):  # in the order of the report, the rerun comes first
        rank_runs(tmp_path, {4: (0.5, 0.6)}, experiment=experiment)
    again = next((tmp_path / "reruns").glob("*-s0"))
    for fork, kept in ((False, "train"), (True, "reruns")):
        manifest = json.loads((again / "manifest.json").read_text(encoding="utf-8"))
        manifest["parent"] = {"run": again.name, "fork": fork}
        (again / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        study = build_study([tmp_path / "reruns", tmp_path / "train"])
        assert {run.seed: run.folder.parent.name for run in study.runs}[0] == kept
        why = dict(study.left_out)[again.name]
        assert why.startswith("is a rerun of train/" if kept == "train" else "has the setting and the seed of reruns/")
    assert len(build_study([again]).runs) == 1  # asked for by itself it is a run like any other


def test_the_title_is_the_folders_names_unless_given(tmp_path: Path) -> None:
    one, two = (make_runs(tmp_path, [{RANK: rank}], experiment=name) for name, rank in (("one", 4), ("two", 8)))
    assert build_study([one, two]).title == "one, two"
    assert build_study([one], title="Ranks").title == "Ranks"


def test_a_sweep_over_seeds_alone_is_one_row(tmp_path: Path) -> None:
    folder = make_runs(tmp_path, [{}], range(5), sweep={"name": "seeds"})
    (row,) = table_of(build_study([folder]), "seeds").rows
    cell = row.cells["clip_i"]
    assert row.labels == {} and cell and len(cell.values) == 5 and cell.half_width


def test_runs_are_found_below_folders_but_not_within_runs(tmp_path: Path) -> None:
    folder = make_runs(tmp_path, [{}], (0, 1), experiment="deep/study")
    first, second = sorted(folder.iterdir())
    shutil.copytree(second, first / "samples" / "copy")
    assert find_runs([tmp_path, folder, second]) == [first, second]
    with pytest.raises(UserError, match="holds no run"):
        find_runs([first / "samples" / "step_000000"])


def test_a_manifest_without_a_seed_is_no_run(tmp_path: Path) -> None:
    folder = make_runs(tmp_path, [{}], (0, 1))
    first = sorted(folder.iterdir())[0]
    edit_json(first / "manifest.json", seed=None)
    ((name, why),) = build_study([folder]).left_out
    assert name == first.name and why.endswith("has no config or no seed; run it again, or move it elsewhere")


def test_scorings_have_a_table_apart_from_trainings(tmp_path: Path) -> None:
    folder = make_runs(tmp_path, [{RANK: 4}, {RANK: 8}], checkpoints=(50,))
    for scale, run in zip((0.5, 1.0), sorted(folder.iterdir()), strict=True):
        scored = folder.with_name("scored") / f"score-{scale}-s0"
        shutil.copytree(run, scored)
        edit_json(scored / "manifest.json", config={"seed": 0, "run": None, "unet_scale": scale})
    study = build_study([tmp_path])
    assert study.varied == [RANK, "unet_scale"]
    assert table_of(study, "runs").keys == (RANK,)
    table = table_of(study, "scorings")
    assert [row.labels for row in table.rows] == [{"unet_scale": "0.5"}, {"unet_scale": "1"}]
    scoring = next(run for run in study.runs if run.is_scoring)
    assert scoring.image_seeds == [0, 1] and study.labels(scoring) == {RANK: "–", "unet_scale": "0.5"}


# --- how it was measured ---------------------------------------------------------------------------------------------


def test_scores_of_other_encoders_are_not_mixed(tmp_path: Path) -> None:
    plain = make_runs(tmp_path, [{RANK: 4}], made=Made(suffix=""))
    make_runs(tmp_path, [{RANK: 8}])
    first, second = sorted(map(read_run, plain.glob("doll*")), key=lambda run: run.config["lora"]["rank"])
    with pytest.raises(UserError) as caught:
        build_study([plain])
    assert str(caught.value) == (
        f"{first.name} was scored with the standard encoders, {second.name} with dollhouse encoders; "
        "such scores share no table: give --split for a table each"
    )


@pytest.mark.parametrize("change", [{"clip": "clip@other"}, {"definition_version": 2}])
def test_scores_of_another_definition_are_not_mixed(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = make_runs(tmp_path, [{RANK: 4}])
    make_runs(tmp_path, [{RANK: 8}], made=Made(**change))
    first, second = (run.name for run in map(read_run, folder.glob("doll*")))
    with pytest.raises(UserError, match=r"CLIP-I of .* was measured with clip@.* of .* with clip@") as caught:
        build_study([folder])
    assert first in str(caught.value) and second in str(caught.value)


def test_split_makes_tables_of_their_own(tmp_path: Path) -> None:
    folder = make_runs(tmp_path, [{RANK: 4}, {RANK: 16}], made=Made(clip="clip@other"))
    make_runs(tmp_path, [{RANK: 8}], (0, 1))
    study = build_study([folder], split=True)
    names = ["1: dollhouse encoders", "2: dollhouse encoders"]
    assert [group.name for group in study.groups] == names
    assert [row.labels[RANK] for row in table_of(study, "runs", group=names[0]).rows] == ["4", "16"]
    (row,) = table_of(study, "runs", group=names[1]).rows
    assert row.labels == {} and len(row.runs) == 2
    assert study.floor == {} and study.best == [] and study.definitions == []
    assert [best.score for best in study.groups[1].best][:2] == ["clip_i", "dino"]
    assert any("clip@other" in line for line in study.groups[0].definitions)


def test_subjects_with_other_class_nouns_are_measured_alike(tmp_path: Path) -> None:
    settings = [{"subject.class_noun": noun} for noun in ("robot", "bear")]
    study = build_study([make_runs(tmp_path, settings)])
    assert len(study.groups) == 1


def test_a_score_that_one_run_lacks_is_no_difference(tmp_path: Path) -> None:
    def without_pres(config: Mapping[str, Any], seed: int, step: int) -> dict[str, float]:
        return {name: value for name, value in FLOOR.items() if name != "pres"}

    folder = make_runs(tmp_path, [{"evaluation.pres_images": 0}], scores=without_pres)
    make_runs(tmp_path, [{}])
    table = table_of(build_study([folder]), "runs")
    assert [row.cells["pres"] is None for row in table.rows] == [True, False]
    assert "pres" in table.scores


def test_floor_ceiling_and_definitions(tmp_path: Path) -> None:
    def scores(config: Mapping[str, Any], seed: int, step: int) -> dict[str, float]:
        return {**FLOOR, "dino": 0.2 + 0.1 * seed}

    folder = make_runs(tmp_path, [{}], (0,), scores=scores)
    make_runs(tmp_path, [{}], (1,), scores=scores, made=Made(ceilings={"dino": 0.81}))
    study = build_study([folder])
    (group,) = study.groups
    assert study.floor["dino"] == pytest.approx(0.25) and group.floor_spread["dino"] == pytest.approx((0.2, 0.3))
    assert study.ceiling == pytest.approx({"clip_i": 0.69, "dino": 0.86})
    assert group.ceiling_spread["dino"] == (0.81, 0.91)
    assert "CLIP-T: clip@3391974 · clip-bicubic32-crop32 · unique token removed · 1" in study.definitions
    assert "each score is over 4 images of 2 prompts against 5 photos" in study.definitions
    assert study.versions["torch"] == "2.13.0+cpu"
    assert group.encoders == "dollhouse" == study.tables[0].encoders


def test_runs_without_samples_are_kept_and_named(tmp_path: Path) -> None:
    folder = make_runs(tmp_path, [{RANK: 4}], made=Made(samples=False))
    make_runs(tmp_path, [{RANK: 8}])
    study = build_study([folder])
    assert len(study.runs) == 2 and len(study.groups) == 1
    assert study.definitions[-1].startswith("how it was measured is not known of 1 runs without samples/: dollhouse")


# --- best settings and warnings --------------------------------------------------------------------------------------


def test_best_settings_of_the_published_table(tmp_path: Path) -> None:
    study = build_study([published_runs(tmp_path)])
    best = {one.score: one for one in study.best}
    assert best["clip_i"].value == pytest.approx(0.8701) and best["clip_i"].step == 100
    assert best["clip_i"].setting == {RANK: "64", TEXT_ENCODER: "on"}
    assert best["dino"].setting == {RANK: "16", TEXT_ENCODER: "on"}
    assert (best["clip_t"].setting, best["clip_t"].step) == ({RANK: "16", TEXT_ENCODER: "off"}, 50)
    # The published best average over the three: rank 16 with the text encoder.
    assert best["balanced"].setting == {RANK: "16", TEXT_ENCODER: "on"}


def test_the_best_run_need_not_be_of_the_best_setting(tmp_path: Path) -> None:
    study = build_study([rank_runs(tmp_path, {4: (0.5, 0.9), 16: (0.75, 0.75)})])
    best = study.best[0]
    assert (best.score, best.value, best.labels, best.setting) == ("clip_i", 0.9, {RANK: "4"}, {RANK: "16"})
    assert best.mean.values == (0.75, 0.75)


def test_warnings_of_copies_flat_images_and_single_seeds(tmp_path: Path) -> None:
    folder = make_runs(tmp_path, [{RANK: 64}], made=Made(ceilings={"dino": 0.4}, constant_images=3))
    study = build_study([folder])
    (run,) = study.runs
    assert study.warnings[0].startswith(f"{run.name}: DINO is above 0.4000, the real photos' own likeness, at step")
    assert study.warnings[1] == f"{run.name}: up to 3 images are of one flat colour at steps 50, 100"
    make_runs(tmp_path, [{RANK: 4}])
    assert build_study([folder]).warnings[-1].startswith("every setting has one seed: no intervals and no tests")


def test_runs_of_several_versions_are_a_warning(tmp_path: Path) -> None:
    folder = make_runs(tmp_path, [{}], (0, 1))
    edit_json(sorted(folder.iterdir())[0] / "manifest.json", versions={"torch": "2.6.0", "rich": "1"})
    assert build_study([folder]).warnings == [
        "the runs were made with torch 2.13.0+cpu or 2.6.0: small differences may come from that"
    ]


def test_a_diverged_run_does_not_vanish_in_a_mean(tmp_path: Path) -> None:
    folder = rank_runs(tmp_path, {4: (0.5, 0.6, 0.7), 16: (0.6, math.nan, 0.8)})
    study = build_study([folder])
    last = table_of(study, "rank", "last")
    first, second = (row.cells["clip_i"] for row in last.rows)
    assert first and second
    assert (math.isnan(second.mean), second.half_width, second.best, first.best) == (True, None, False, True)
    (one,) = [one for one in last.comparisons if one.score == "clip_i"]
    assert math.isnan(one.difference) and one.p_value is None
    assert [verdict.outcome for verdict in last.verdicts] == ["not seen"]
    assert any("scores are NaN or infinite at step 50" in line for line in study.warnings)


def test_labels_of_a_run(tmp_path: Path) -> None:
    study = build_study([make_runs(tmp_path, [{RANK: 4}, {RANK: 8}])])
    assert [study.labels(run) for run in study.runs] == [{RANK: "4"}, {RANK: "8"}]
    assert isinstance(study.runs[0], RunRecord)

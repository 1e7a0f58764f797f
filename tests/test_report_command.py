import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from boothlab.commands import report
from boothlab.errors import UserError
from boothlab.reporting import export
from boothlab.reporting.runs import RunRecord
from boothlab.reporting.study import Study, build_study
from report_runs import Made, make_runs

RANK = "lora.rank"
VOTES = SimpleNamespace(is_editing=False)


@dataclass
class Calls:
    """What the command asked of the parts that are not tested here."""

    pages: list[tuple[Study, Path]] = field(default_factory=list)
    comparisons: list[tuple[str, str, Path]] = field(default_factory=list)
    votes: list[list[Path]] = field(default_factory=list)
    published: list[tuple[str, str, bool]] = field(default_factory=list)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Stand-ins for the page, the comparison, the votes and W&B: each keeps what it was given."""
    found = Calls()

    def write_page(study: Study, path: Path) -> None:
        found.pages.append((study, path))

    def write_comparison(run_a: RunRecord, run_b: RunRecord, path: Path, *, seed: int = 0) -> None:
        found.comparisons.append((run_a.name, run_b.name, path))

    def read_votes(paths: list[Path], keys: list[Path]) -> str:
        found.votes.append([*paths, *keys])
        return VOTES

    def publish(study: Study, entity: str, project: str, *, dashboard: bool) -> str:
        found.published.append((entity, project, dashboard))
        return "https://wandb.example/report"

    parts = {
        "page": {"write_page": write_page},
        "compare": {"write_comparison": write_comparison, "key_path": lambda path: path.with_suffix(".key.json")},
        "votes": {"read_votes": read_votes},
        "wandb_report": {"publish": publish},
    }
    for name, functions in parts.items():
        module = ModuleType(name)
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, f"boothlab.reporting.{name}", module)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_runs(tmp_path, [{RANK: 4}, {RANK: 16}], (0, 1), sweep={"name": "rank", "axis": RANK})


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


def test_a_report_goes_into_the_folder_and_says_where(
    folder: Path, calls: Calls, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "parquet_available", lambda: False)
    assert report.run([str(folder)]) == 0
    assert files(folder) == {"report.md", "runs.csv", "checkpoints.csv"}
    ((study, page),) = calls.pages
    assert page == folder / "report.html" and len(study.runs) == 4
    said = capsys.readouterr().err
    assert said.startswith("4 finished runs, 1 table\n")
    for line in (
        f"report  {folder}/report.md",
        f"page    {folder}/report.html",
        f"numbers {folder}/runs.csv, checkpoints.csv",
    ):
        assert line in said.splitlines()
    assert "no runs.parquet: that takes pyarrow (pip install 'boothlab[parquet]')" in said


def test_parquet_is_written_where_pyarrow_is(folder: Path, calls: Calls) -> None:
    pytest.importorskip("pyarrow")
    assert report.run([str(folder), "--no-html"]) == 0
    assert {"runs.parquet", "checkpoints.parquet"} <= files(folder)
    assert calls.pages == []


def test_a_second_report_has_the_same_bytes(folder: Path, calls: Calls) -> None:
    report.run([str(folder)])
    first = {name: (folder / name).read_bytes() for name in files(folder)}
    report.run([str(folder)])
    assert {name: (folder / name).read_bytes() for name in files(folder)} == first


def test_several_folders_go_into_outputs(folder: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    other = make_runs(folder.parent, [{RANK: 64}], experiment="other")
    monkeypatch.chdir(folder.parent)
    assert report.run([str(folder), str(other)]) == 0
    assert "report.md" in files(folder.parent / "outputs" / "report")
    assert files(folder) == files(other) == set()
    assert calls.pages[0][0].title == "study, other"


def test_out_and_title(folder: Path, calls: Calls, tmp_path: Path) -> None:
    out = tmp_path / "a" / "new folder"
    assert report.run([str(folder), "--out", str(out), "--title", "Ranks"]) == 0
    assert (out / "report.md").read_text(encoding="utf-8").startswith("# Ranks\n")
    assert files(folder) == set()


def test_a_run_that_did_not_finish_is_said_and_has_a_row(
    tmp_path: Path, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Made(statuses={(1, 0): "failed"})
    folder = make_runs(tmp_path, [{RANK: 4}, {RANK: 16}], sweep={"name": "rank", "axis": RANK}, made=made)
    assert report.run([str(folder)]) == 0
    said = capsys.readouterr().err
    assert "warning left out: dollhouse" in said and "(failed: the loss became nan at step 60)" in said
    assert "warning sweep rank is not complete: 1 run missing" in said
    rows = (folder / "runs.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert [row.split(",")[1] for row in rows] == ["finished", "failed"]


def test_comparison_by_name_and_by_folder(folder: Path, calls: Calls) -> None:
    first, second = sorted(path for path in folder.glob("dollhouse*-s0"))
    report.run([str(folder), "--compare", first.name, str(second)])
    expected = folder / f"compare-{first.name}-{second.name}.html"
    assert calls.comparisons == [(first.name, second.name, expected)]


def test_comparison_with_a_run_from_elsewhere(folder: Path, calls: Calls, tmp_path: Path) -> None:
    (other,) = make_runs(tmp_path, [{RANK: 64}], experiment="other").glob("doll*")
    first = sorted(folder.glob("doll*"))[0]
    report.run([str(folder), "--compare", str(first), str(other)])
    assert calls.comparisons[0][:2] == (first.name, other.name)


def test_comparison_alone_writes_no_report(folder: Path, calls: Calls, tmp_path: Path) -> None:
    first, second = sorted(path for path in folder.glob("dollhouse*-s0"))
    assert report.run(["--compare", str(first), str(second)]) == 0
    assert calls.comparisons == [(first.name, second.name, folder / f"compare-{first.name}-{second.name}.html")]
    assert (calls.pages, files(folder)) == ([], set())
    report.run(["--compare", str(first), str(second), "--out", str(tmp_path / "elsewhere")])
    assert calls.comparisons[1][2].parent == tmp_path / "elsewhere"


def test_votes_reach_the_study(folder: Path, calls: Calls) -> None:
    (folder / "compare.key.json").write_text("{}", encoding="utf-8")
    report.run([str(folder), "--votes", "ann.json", "bo.json"])
    assert calls.votes == [[Path("ann.json"), Path("bo.json"), folder / "compare.key.json"]]
    assert calls.pages[0][0].human is VOTES


def test_publishing_says_the_address(folder: Path, calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    report.run([str(folder), "--wandb", "lab/boothlab", "--dashboard"])
    assert calls.published == [("lab", "boothlab", True)]
    assert "https://wandb.example/report" in capsys.readouterr().err


def test_split_makes_tables_of_what_cannot_be_mixed(folder: Path, calls: Calls) -> None:
    make_runs(folder.parent, [{RANK: 64}], made=Made(clip="clip@other"))
    with pytest.raises(UserError, match="give --split"):
        report.run([str(folder)])
    assert files(folder) == set()
    assert report.run([str(folder), "--split"]) == 0
    assert len(calls.pages[0][0].groups) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no folder of runs given, as in boothlab report outputs/train; see boothlab report --help"),
        (["--compare", "a", "b", "--votes", "v.json"], "--votes and --wandb belong to a report"),
        (["{folder}", "--colour"], "unrecognized arguments: --colour; `boothlab report --help`"),
        (["{folder}", "--titl", "x"], "unrecognized arguments: --titl x"),
        (["{folder}", "--compare", "one"], "argument --compare: expected 2 arguments"),
        (["{folder}/nowhere"], "there is no such folder; give a run, or a folder of runs"),
        (["{folder}/sweeps"], "holds no run"),
        (["{folder}", "--dashboard"], "--dashboard sets up a W&B workspace; give --wandb ENTITY/PROJECT too"),
        (["{folder}", "--wandb", "boothlab"], "--wandb boothlab: must be ENTITY/PROJECT"),
        (["{folder}", "--wandb", "a/b/c"], "--wandb a/b/c: must be ENTITY/PROJECT"),
        (["{folder}", "--out", "{folder}/sweeps/rank.json"], "rank.json: is a file; give a folder"),
        (["{folder}", "--compare", "x", "y"], "--compare x: is no run folder, nor a finished run of this report"),
    ],
)
def test_bad_input_is_one_line(folder: Path, calls: Calls, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        report.run([argument.replace("{folder}", str(folder)) for argument in arguments])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_cannot_be_compared_with_itself(folder: Path, calls: Calls) -> None:
    run = sorted(folder.glob("doll*"))[0]
    with pytest.raises(UserError, match="is given twice; name two runs"):
        report.run([str(folder), "--compare", run.name, str(run)])


def test_asking_for_parquet_without_pyarrow_fails_before_anything_is_written(
    folder: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "parquet_available", lambda: False)
    with pytest.raises(UserError, match="--parquet needs pyarrow"):
        report.run([str(folder), "--parquet"])
    assert files(folder) == set()


def test_nothing_finished_writes_nothing(tmp_path: Path, calls: Calls) -> None:
    folder = make_runs(tmp_path, [{}], made=Made(statuses={(0, 0): "running"}))
    with pytest.raises(UserError, match="none of 1 runs is finished and scored"):
        report.run([str(folder)])
    assert files(folder) == set()


def test_help_lists_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert report.run(["--help"]) == 0
    page = capsys.readouterr().out
    assert page.startswith("usage: boothlab report DIR… [options], or boothlab report --compare RUN_A RUN_B\n")
    for option in ("--out DIR", "--title TEXT", "--split", "--no-html", "--parquet", "--compare RUN_A RUN_B"):
        assert f"\n  {option} " in page
    for option in ("--votes FILE…", "--wandb ENTITY/PROJECT", "--dashboard"):
        assert f"\n  {option} " in page
    assert max(map(len, page.splitlines())) <= 120


@pytest.mark.slow
def test_five_hundred_runs_take_seconds(tmp_path: Path, calls: Calls) -> None:
    settings: list[dict[str, Any]] = [
        {RANK: rank, "optim.lr": rate, "lora.train_text_encoder": trained}
        for rank in (4, 8, 16, 32, 64)
        for rate in (1e-3, 5e-4, 2e-4, 1e-4, 1e-5)
        for trained in (False, True)
    ]
    sweep = {"name": "te", "axis": "lora.train_text_encoder"}
    folder = make_runs(tmp_path, settings, range(10), (50, 100, 150), sweep=sweep, made=Made(images=False))
    started = time.process_time()  # not the clock: other processes must not fail this test
    assert report.run([str(folder)]) == 0
    assert time.process_time() - started < 8
    assert len((folder / "runs.csv").read_text(encoding="utf-8").splitlines()) == 501
    study = build_study([folder])
    assert len(study.tables[0].rows) == 52
    assert {one.pairs for one in study.tables[0].comparisons} == {250}
    assert json.dumps(study.left_out) == "[]"

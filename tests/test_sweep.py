"""Sweeps: what is finished stays, what failed is named and stops nothing, what was interrupted goes on."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from boothlab.cli import main
from boothlab.commands import sweep as sweep_command
from boothlab.compose.jobs import PlannedJob
from boothlab.config import NOT_HASHED, TrainConfig
from boothlab.errors import NonFiniteLossError, UserError
from boothlab.progress import Bar, Reporter
from boothlab.reporting.sweeps import SweepFile, SweepJob, read_sweep
from boothlab.sweeping import watch
from boothlab.sweeping.run import SweepOptions, take_options
from boothlab.sweeping.states import JobState, note_failure, state_of
from boothlab.sweeping.watch import SweepWatch, differing, label
from boothlab.tracking import metrics
from boothlab.tracking.lock import RunInUseError, owned
from boothlab.tracking.manifest import config_hash
from boothlab.tracking.run import Tracker
from training_runs import ADAPTER, Lab, history, same_adapter, stopped_after, summary

MINE = """# Does the rank matter?
defaults: [train, _self_]
experiment: mine
sweep:
  name: mine
  title: My ranks
  about: Two ranks.
  axis: lora.rank
  expect: {clip_i: rises, clip_t: falls}
  published: ["r4 .8 · r16 .9"]
tracking: {group: mine, wandb: disabled}
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      seed: 0,1
      lora.rank: 2,4
"""
Ending = Callable[[], None]


class Trainings:
    """Stands in for building and running a training: a few rows in no time. Knows which jobs it ran.

    `endings` say what a job does instead of finishing, by its rank, `refusals` what it does before it is built.
    """

    def __init__(self) -> None:
        self.ran: list[tuple[int, int]] = []
        self.endings: dict[int, BaseException] = {}
        self.refusals: dict[int, BaseException] = {}
        self.warnings: list[str] = []

    def build(
        self, config: TrainConfig, resolved: dict[str, Any], run_dir: Path, command: Any, reporter: Reporter, **_: Any
    ) -> Any:
        self.ran.append((config.lora.rank, config.seed))
        if config.lora.rank in self.refusals:
            raise self.refusals[config.lora.rank]
        for warning in self.warnings:
            reporter.warn(warning)
        manifest = {"config": resolved, "config_hash": config_hash(resolved, NOT_HASHED), "inputs": {}}
        (run_dir / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        return SimpleNamespace(tracker=Tracker(run_dir), config=config)

    def execute(self, run: Any) -> None:
        rank, seed = run.config.lora.rank, run.config.seed
        for step in (0, 1, 2):
            run.tracker.log(step, scores(rank, seed, step))
        if rank in self.endings:
            raise self.endings[rank]


def scores(rank: int, seed: int, step: int) -> dict[str, float]:
    """What the stand-in measures: better with the rank, a little with the seed; step 1 is the best."""
    clip_i, dino, clip_t = 0.5 + 0.01 * rank + 0.001 * seed, 0.4, 0.3 - 0.1 * abs(step - 1)
    values = {metrics.CLIP_I: clip_i, metrics.DINO: dino, metrics.CLIP_T: clip_t}
    values[metrics.BALANCED] = sum(values.values()) / 3
    return {metrics.variant(key, "dollhouse"): value for key, value in values.items()}


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder; Hydra's logging set-up is undone."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield folder
    for handler in set(root.handlers) - set(before[0]):
        handler.close()
    root.handlers[:], root.level = before


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    """Every training in the test is a stand-in."""
    fake = Trainings()
    monkeypatch.setattr("boothlab.building.build_training_run", fake.build)
    monkeypatch.setattr("boothlab.dreambooth.run.execute", fake.execute)
    return fake


def runs_in(folder: Path, experiment: str = "train") -> dict[tuple[int, int], Path]:
    """The run folders by rank and seed."""
    found = {}
    for path in sorted((folder / "outputs" / experiment).glob("*/manifest.json")):
        config = json.loads(path.read_text(encoding="utf-8"))["config"]
        found[config["lora"]["rank"], config["seed"]] = path.parent
    return found


def fingerprints(folder: Path) -> dict[Path, tuple[int, int]]:
    """Inode and time of every result; a file that is written again has others."""
    names = ("metrics.jsonl", "summary.json", "manifest.json", "pytorch_lora_weights.safetensors", "grid.png")
    paths = [path for path in folder.rglob("*") if path.name in names]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def flat(text: str) -> str:
    """Text without the line breaks and borders that a table puts into it."""
    return " ".join(text.replace("│", " ").split())


# --- what runs ----------------------------------------------------------------------------------------------------


def test_every_job_runs_once_and_its_end_is_said(
    trainings: Trainings, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "-m", "lora.rank=2,4", "seed=0,1"]) == 0
    assert trainings.ran == [(2, 0), (2, 1), (4, 0), (4, 1)]
    lines = capsys.readouterr().err.splitlines()
    assert lines[:6] == [
        "sweep 4 jobs (4 new) in outputs/train",
        "  lora.rank = 2, 4",
        "  seed = 0, 1",
        "  shared: backbones: 1, subjects: 1",
        "  to do: 4 jobs, no past runs to judge the time by; launcher BasicLauncher",
        lines[5],
    ]
    ended = [line.partition("  (about")[0] for line in lines[5:9]]
    assert ended == [
        f"[{number}/4] finished lora.rank={rank} seed={seed}  CLIP-I {0.5 + 0.01 * rank + 0.001 * seed:.3f}  "
        "DINO 0.400  CLIP-T 0.300"
        for number, (rank, seed) in enumerate(trainings.ran, start=1)
    ]
    assert lines[9:] == [
        "best balanced lora.rank=4 seed=1  step 1  CLIP-I 0.541  DINO 0.400  CLIP-T 0.300",
        "finished 4 of 4 jobs in outputs/train",
    ]


def test_what_is_finished_is_not_run_again(
    trainings: Trainings, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "-m", "lora.rank=2,4", "seed=0"]
    assert main(command) == 0
    before = fingerprints(workplace)
    assert len(before) == 6
    trainings.ran.clear()
    capsys.readouterr()
    assert main(command) == 0
    assert trainings.ran == []  # nothing was built: no model was loaded
    assert fingerprints(workplace) == before
    printed = capsys.readouterr().err
    assert printed.splitlines()[0] == "sweep 2 jobs (2 finished) in outputs/train"
    assert "to do" not in printed
    assert main([*command[:-1], "seed=0,1"]) == 0  # a wider sweep runs what is new
    assert trainings.ran == [(2, 1), (4, 1)]
    assert {path: fingerprints(workplace)[path] for path in before} == before
    assert "sweep 4 jobs (2 finished, 2 new) in outputs/train" in capsys.readouterr().err


def test_what_is_to_be_overwritten_is_run_again(
    trainings: Trainings, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "-m", "lora.rank=2,4"]
    assert main(command) == 0
    before = fingerprints(workplace)
    assert main([*command, "paths.overwrite=true"]) == 0
    assert trainings.ran == [(2, 0), (4, 0)] * 2
    assert not fingerprints(workplace).items() & before.items()
    printed = capsys.readouterr().err
    assert printed.count("[1/2] finished lora.rank=2") == printed.count("[2/2] finished lora.rank=4") == 2
    trainings.refusals[2] = UserError("photos: no image there")
    before = fingerprints(runs_in(workplace)[2, 0])
    assert main([*command, "paths.overwrite=true"]) == 1
    assert "lora.rank=2 failed photos: no image there" in flat(capsys.readouterr().err)
    assert fingerprints(runs_in(workplace)[2, 0]) == before  # what it was to replace is still whole
    assert main(command) == 0


def test_a_single_run_counts_in_a_sweep_and_the_other_way_round(trainings: Trainings) -> None:
    assert main(["train", "lora.rank=2"]) == 0
    assert main(["train", "-m", "lora.rank=2,4"]) == 0
    assert main(["train", "lora.rank=4"]) == 0
    assert trainings.ran == [(2, 0), (4, 0)]


def test_jobs_that_are_one_run_run_once(trainings: Trainings) -> None:
    assert main(["train", "-m", "lora.rank=2,2", "tracking.group=a,b", "trainer.log_every=5,10"]) == 0
    assert trainings.ran == [(2, 0)]


def test_jobs_may_differ_in_their_experiment(trainings: Trainings, workplace: Path) -> None:
    assert main(["train", "-m", "experiment=one,two"]) == 0
    assert len(trainings.ran) == 2
    assert [len(runs_in(workplace, name)) for name in ("one", "two")] == [1, 1]
    assert main(["train", "-m", "experiment=one,two"]) == 0
    assert len(trainings.ran) == 2


# --- what fails ---------------------------------------------------------------------------------------------------


FAILURES = {
    "nan": (NonFiniteLossError("the loss became nan at step 3"), "the loss became nan at step 3"),
    "memory": (MemoryError(), "MemoryError:"),
    "bug": (RuntimeError("CUDA error: an illegal memory access"), "RuntimeError: CUDA error: an illegal memory access"),
    "exit": (SystemExit(5), "exit code 5"),
    "bad input found late": (UserError("photos: no image there"), "photos: no image there"),
}


@pytest.mark.parametrize(
    ("kind", "when"),
    [
        ("nan", "run"),
        ("bad input found late", "built"),
        pytest.param("memory", "run", marks=pytest.mark.slow),
        pytest.param("bug", "built", marks=pytest.mark.slow),
        pytest.param("bug", "run", marks=pytest.mark.slow),
        pytest.param("exit", "run", marks=pytest.mark.slow),
    ],
)
def test_a_failing_job_stops_no_other(
    kind: str, when: str, trainings: Trainings, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error, why = FAILURES[kind]
    (trainings.endings if when == "run" else trainings.refusals)[3] = error
    command = ["train", "-m", "lora.rank=2,3,4"]
    assert main(command) == 1
    assert trainings.ran == [(2, 0), (3, 0), (4, 0)]
    printed = capsys.readouterr().err
    assert "1 of 3 jobs did not finish" in printed
    assert f"lora.rank=3 failed {why}" in flat(printed.rpartition("did not finish")[2])
    assert "best balanced lora.rank=4" in printed
    trainings.ran.clear()

    assert main(command) == 1  # it would most likely fail again, so it is not tried
    assert trainings.ran == []
    printed = capsys.readouterr().err
    assert "sweep 3 jobs (2 finished, 1 failed) in outputs/train" in printed
    assert "failed lora.rank=3: " in printed
    assert why in printed
    assert "(--retry-failed runs it again)" in printed

    trainings.endings.clear(), trainings.refusals.clear()
    before = fingerprints(workplace / "outputs" / "train")
    assert main([*command, "--retry-failed"]) == 0
    assert trainings.ran == [(3, 0)]
    ours = runs_in(workplace)[3, 0]
    assert summary(ours)["status"] == "finished"
    after = fingerprints(workplace / "outputs" / "train")
    assert all(after[path] == before[path] for path in before if path.parent != ours)
    assert "finished 3 of 3 jobs" in capsys.readouterr().err


def test_a_bad_value_in_one_job_is_reported_and_the_others_run(
    trainings: Trainings, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "-m", "lora.rank=2,0,4", "seed=0"]) == 1
    assert trainings.ran == [(2, 0), (4, 0)]
    printed = capsys.readouterr().err
    assert printed.startswith("sweep 3 jobs (2 new, 1 bad input) in outputs/train\n")
    assert "bad input lora.rank=0: lora.rank=0: must be at least 1\n" in printed
    assert "[1/2] finished lora.rank=2" in printed
    assert "[2/2] finished lora.rank=4" in printed
    assert "lora.rank=0 bad input lora.rank=0: must be at least 1" in flat(printed)
    assert "1 of 3 jobs did not finish" in printed
    assert len(list((workplace / "outputs" / "train").glob("*-s0"))) == 2


def test_a_sweep_of_bad_input_alone_exits_with_2_and_leaves_nothing(trainings: Trainings, workplace: Path) -> None:
    assert main(["train", "-m", "lora.rank=0,-1"]) == 2
    assert main(["train", "-m", "subject=folder", "seed=0,1"]) == 2
    assert main(["train", "-m", "trainer.max_stpes=1,2"]) == 2
    assert main(["train", "-m", "backbone=sd8,sd9"]) == 2
    assert main(["train", "-m", "seed=0,1", "lora.rank=x"]) == 2
    assert trainings.ran == []
    assert files_below(workplace) == []


def test_a_run_of_another_process_is_left_alone(
    trainings: Trainings, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "-m", "lora.rank=2,4"]) == 0
    theirs = runs_in(workplace)[2, 0]
    (theirs / "summary.json").unlink()  # as if it were under way
    trainings.ran.clear()
    capsys.readouterr()
    with owned(theirs):
        assert main(["train", "-m", "lora.rank=2,4"]) == 1
    assert trainings.ran == []
    assert f"running elsewhere lora.rank=2: process {os.getpid()} on " in capsys.readouterr().err
    assert not (theirs / "summary.json").exists()
    trainings.refusals[2] = RunInUseError("it is in use by process 1")  # taken between the plan and its turn
    assert main(["train", "-m", "lora.rank=2,4"]) == 1
    assert "lora.rank=2 interrupted it is in use by process 1" in flat(capsys.readouterr().err)
    assert not (theirs / "summary.json").exists()  # it did not fail: its owner goes on


# --- what is interrupted ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["built", "run"])
def test_ctrl_c_ends_the_sweep_and_the_same_command_goes_on(
    when: str, trainings: Trainings, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stops = trainings.endings if when == "run" else trainings.refusals
    stops[3] = KeyboardInterrupt()
    command = ["train", "-m", "lora.rank=2,3,4"]
    assert main(command) == 130
    assert trainings.ran == [(2, 0), (3, 0)]
    printed = capsys.readouterr().err
    assert "[1/3] finished lora.rank=2" in printed
    assert printed.endswith(
        "interrupted what is finished stays finished; the same command goes on\nboothlab: interrupted\n"
    )
    assert "Traceback" not in printed
    before = fingerprints(runs_in(workplace)[2, 0])
    stops.clear(), trainings.ran.clear()
    assert main(command) == 0
    assert trainings.ran == [(3, 0), (4, 0)]
    assert fingerprints(runs_in(workplace)[2, 0]) == before
    state = "1 interrupted" if when == "run" else "2 new"
    assert f"(1 finished, {state}" in capsys.readouterr().err.splitlines()[0]


def test_being_told_to_end_ends_the_sweep_with_its_exit_code(trainings: Trainings) -> None:
    trainings.endings[3] = SystemExit(143)
    with pytest.raises(SystemExit) as caught:
        main(["train", "-m", "lora.rank=2,3,4"])
    assert caught.value.code == 143
    assert trainings.ran == [(2, 0), (3, 0)]


# --- the plan -----------------------------------------------------------------------------------------------------


def test_a_dry_run_writes_nothing(trainings: Trainings, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "-m", "lora.rank=2,0", "seed=0,1", "--dry-run"]) == 0
    assert main(["sweep", "lora_rank", "--dry-run"]) == 0
    assert main(["sweep", "guidance", "--dry-run", "run=nowhere"]) == 0
    assert files_below(workplace) == []
    assert trainings.ran == []
    printed = capsys.readouterr().err
    assert "sweep 4 jobs (2 new, 2 bad input) in outputs/train" in printed
    assert "sweep 12 jobs (12 new) in outputs/study" in printed
    assert "  lora.rank = 1, 4, 16, 64" in printed
    assert main(["train", "-m", "lora.rank=2"]) == 0
    before = {path: path.stat().st_mtime_ns for path in workplace.rglob("*")}
    assert main(["train", "-m", "lora.rank=2,4", "--dry-run"]) == 0
    assert {path: path.stat().st_mtime_ns for path in workplace.rglob("*")} == before
    assert "sweep 2 jobs (1 finished, 1 new)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "option"), [("train", "--retry-failed"), ("score", "--retry-failed"), ("score", "--dry-run")]
)
def test_a_single_run_has_no_plan_to_show(
    command: str, option: str, trainings: Trainings, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It must not start the run that it was asked only to show."""
    assert main([command, option]) == 2
    assert capsys.readouterr().err == f"boothlab: error: {option}: is for many runs; add -m\n"
    assert trainings.ran == []
    assert files_below(workplace) == []


def test_the_sweep_s_own_options_are_taken_from_the_command_line() -> None:
    words = ["-m", "seed=0", "--dry-run", "--retry-failed"]
    assert take_options(words) == (SweepOptions(dry_run=True, retry_failed=True), ["-m", "seed=0"])
    assert take_options(["hydra.mode=MULTIRUN", "--retry-failed"])[0] == SweepOptions(retry_failed=True)
    assert take_options(["seed=0"]) == (SweepOptions(), ["seed=0"])


def test_the_plan_says_what_is_shared(trainings: Trainings, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prior.enabled=true,false", "seed=0,1", "lora.rank=2,4", "subject=robot,bear", "--dry-run"]
    assert main(["train", "-m", *words]) == 0
    printed = capsys.readouterr().err
    assert "  shared: backbones: 1, subjects: 2, sets of class images: 4\n" in printed  # 2 classes × 2 seeds


def test_the_plan_judges_the_time_by_past_runs(
    trainings: Trainings, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "-m", "lora.rank=2,4"]) == 0
    for run_dir in runs_in(workplace).values():
        path = run_dir / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "earlier_attempts": []}))
        timings = {"sampling_seconds": 50.0, "scoring_seconds": 4.0, "median_step_seconds": 0.2}
        content = json.loads((run_dir / "summary.json").read_text())
        timings["training_seconds"] = 107.0
        (run_dir / "summary.json").write_text(json.dumps({**content, "timings": timings}))
    capsys.readouterr()
    assert main(["train", "-m", "lora.rank=2,8", "seed=0,1", "--dry-run"]) == 0
    # 250 steps of 0.2 s, 54 s of drawing and scoring, 3 s besides, three times over
    assert "to do: 3 jobs, about 5 min one after another, judged by past runs" in capsys.readouterr().err


# --- `boothlab sweep` ---------------------------------------------------------------------------------------------


@pytest.fixture
def mine(workplace: Path) -> Path:
    """A sweep of one's own."""
    path = workplace / "sweeps" / "mine.yaml"
    path.parent.mkdir()
    path.write_text(MINE, encoding="utf-8")
    return path


def test_a_sweep_of_ones_own_runs_and_leaves_a_record(
    trainings: Trainings, mine: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/boothlab", "sweep", "mine"])
    assert main(["sweep", "mine", "--no-report"]) == 0
    assert trainings.ran == [(2, 0), (4, 0), (2, 1), (4, 1)]
    runs = runs_in(workplace, "mine")
    path = workplace / "outputs" / "mine" / "sweeps" / "mine.json"
    overrides = [[f"seed={seed}", f"lora.rank={rank}"] for rank, seed in trainings.ran]
    expected = SweepFile(
        name="mine",
        title="My ranks",
        about="Two ranks.",
        axis="lora.rank",
        expect={"clip_i": "rises", "clip_t": "falls"},
        published=["r4 .8 · r16 .9"],
        params={"seed": ["0", "1"], "lora.rank": ["2", "4"]},
        command=["boothlab", "sweep", "mine"],
        jobs=[SweepJob(words, runs[ran].name) for words, ran in zip(overrides, trainings.ran, strict=True)],
    )
    assert read_sweep(path) == expected
    assert json.loads(path.read_text(encoding="utf-8"))["format"] == 1
    assert all(folder.is_dir() for folder in expected.runs_in(path.parent.parent))


def test_a_sweep_leaves_its_bad_jobs_out_of_its_record(trainings: Trainings, mine: Path, workplace: Path) -> None:
    assert main(["sweep", "mine", "--no-report", "lora.rank=0,2", "subject=folder,robot", "seed=1"]) == 1
    assert trainings.ran == [(2, 1)]
    record = read_sweep(workplace / "outputs" / "mine" / "sweeps" / "mine.json")
    assert [job.run for job in record.jobs] == [runs_in(workplace, "mine")[2, 1].name]
    before = files_below(workplace)
    assert main(["sweep", "mine", "--no-report", "lora.rank=0,-1"]) == 2
    assert files_below(workplace) == before
    assert read_sweep(workplace / "outputs" / "mine" / "sweeps" / "mine.json") == record  # nothing to record


def test_a_sweep_goes_on_and_reports_only_what_is_new(
    trainings: Trainings,
    mine: Path,
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reports: list[list[str]] = []
    page = workplace / "outputs" / "mine" / "report.html"

    def report(argv: list[str]) -> int:
        reports.append(argv)
        page.write_text("a page")
        return 0

    monkeypatch.setattr("boothlab.commands.report.run", report)
    trainings.endings[4] = RuntimeError("out of memory")
    assert main(["sweep", "mine"]) == 1
    assert reports == [["outputs/mine"]]
    capsys.readouterr()
    assert main(["sweep", "mine"]) == 1
    assert len(reports) == 1
    assert capsys.readouterr().err.endswith("report outputs/mine/report.html\n")
    trainings.endings.clear()
    assert main(["sweep", "mine", "--retry-failed"]) == 0
    assert len(reports) == 2
    page.unlink()
    assert main(["sweep", "mine"]) == 0
    assert len(reports) == 3
    assert main(["sweep", "mine", "--no-report", "seed=5"]) == 0
    assert main(["sweep", "mine", "--dry-run", "seed=6"]) == 0
    assert len(reports) == 3


def test_a_report_that_cannot_be_made_is_a_warning(
    trainings: Trainings, mine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def report(argv: list[str]) -> int:
        raise UserError("there is no finished run")

    monkeypatch.setattr("boothlab.commands.report.run", report)
    assert main(["sweep", "mine", "seed=0", "lora.rank=2"]) == 0
    assert "warning no report: there is no finished run\n" in capsys.readouterr().err


def test_sweeps_are_listed_with_what_they_ask(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (mine.parent / "seeds.yaml").write_text("# My own seeds?\n" + MINE, encoding="utf-8")
    assert main(["sweep", "--help"]) == 0
    page = capsys.readouterr().out
    assert "  mine                  Does the rank matter?\n" in page
    assert "  lora_rank             Does a bigger adapter come closer to the subject" in page
    assert "  seeds                 My own seeds?\n" in page  # one's own comes before the one that ships
    assert main(["sweep"]) == 2
    capsys.readouterr()
    assert main(["sweep", "mine", "--help"]) == 0
    assert capsys.readouterr().out == MINE


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["minne"], "there is no sweep 'minne'; there are "),
        (["bad"], "sweeps/bad.yaml: is not a sweep; it needs `defaults: [train, _self_]`"),
        (["none"], "sweeps/none.yaml: is not a sweep; it needs `defaults: [train, _self_]`"),
        (["other"], "sweeps/other.yaml: its defaults name none of train, score, edit; begin them with `- train`"),
        (["mine", "lora.rnak=3"], "there is no key lora.rnak; did you mean lora.rank?"),
    ],
)
def test_what_is_no_sweep_is_said_in_one_line(
    words: list[str], line: str, trainings: Trainings, mine: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in {"bad": "defaults: [", "none": "seed: 1\n", "other": "defaults: [sample, _self_]\n"}.items():
        (mine.parent / f"{name}.yaml").write_text(text, encoding="utf-8")
    before = files_below(workplace)
    assert main(["sweep", *words]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"boothlab: error: {line}")
    assert printed.count("\n") == 1
    assert files_below(workplace) == before
    assert trainings.ran == []


def test_a_sweep_that_ships_takes_a_finished_run_s_place_in_another(trainings: Trainings) -> None:
    assert main(["sweep", "seeds", "--no-report", "seed=0,1", "tracking.wandb=disabled"]) == 0
    assert main(["sweep", "lora_rank", "--no-report", "seed=0,1", "lora.rank=1,4", "tracking.wandb=disabled"]) == 0
    assert trainings.ran == [(4, 0), (4, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize("name", ["guidance", "lora_scale"])
def test_a_sweep_of_scorings_takes_a_run_as_its_file_says(
    name: str, monkeypatch: pytest.MonkeyPatch, workplace: Path
) -> None:
    seen = []

    def body(config: Any, resolved: dict[str, Any], run_dir: Path, one_of_many: bool) -> None:
        seen.append((config.run, config.unet_scale, config.text_encoder_scale, config.guidance_scale, one_of_many))
        (run_dir / "summary.json").write_text('{"status": "finished"}')

    monkeypatch.setitem(sweep_command.BODIES, "score", body)
    assert main(["sweep", name, "run=outputs/train/RUN", "--no-report"]) == 0
    grid = [(u, t, None) for t in (0.1, 0.5, 1.0) for u in (0.25, 0.5, 0.75, 1.0)]
    expected = grid if name == "lora_scale" else [(1.0, 1.0, guidance) for guidance in (1.0, 2.0, 4.0, 8.0)]
    assert seen == [("outputs/train/RUN", *values, True) for values in expected]


# --- what is said -------------------------------------------------------------------------------------------------


def test_a_quiet_job_s_warnings_reach_the_log(
    trainings: Trainings, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainings.warnings = ["the text encoder cuts the last 3 of 'a long prompt'"]
    assert main(["train", "-m", "lora.rank=2,4"]) == 0
    printed = capsys.readouterr()
    assert (printed.out + printed.err).count("cuts the last 3") == 2
    for run_dir in runs_in(workplace).values():
        assert "WARNING boothlab.progress: the text encoder cuts the last 3" in (run_dir / "train.log").read_text()
    assert "run folder" not in printed.err  # what a single run says about itself is not said for each of many


class Listener(Reporter):
    """Keeps what is said, and what the bar shows and counts."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []
        self.shown: list[str] = []
        self.done = 0
        self.total = 0

    def say(self, line: str, tag: str = "", style: str = "yellow") -> None:
        self.lines.append(f"{tag} {line}".strip())

    def bar(self, what: str, total: int) -> Any:
        self.total = total
        listener = self

        class Counting(Bar):
            def advance(self, amount: int = 1) -> None:
                listener.done += amount

            def describe(self, what: str) -> None:
                listener.shown.append(what)

            def __enter__(self) -> "Counting":
                return self

            def __exit__(self, *_: Any) -> None:
                pass

        return Counting(None, None)


def planned(folder: Path, rank: int, steps: int = 10, mistake: str | None = None) -> PlannedJob:
    config = {"lora": {"rank": rank}, "trainer": {"max_steps": steps, "checkpoint_every": steps}}
    return PlannedJob((f"lora.rank={rank}", "seed=0"), config, folder / f"r{rank}", mistake)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_progress_counts_steps_and_jobs_and_knows_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "POLL_S", 0.01)
    jobs = [planned(tmp_path, rank) for rank in (1, 2, 3, 4)]
    everything = [*jobs, planned(tmp_path, 0, mistake="must be at least 1")]
    before = Tracker(jobs[0].run_dir)
    (jobs[0].run_dir).mkdir()
    (jobs[0].run_dir / "manifest.json").write_text('{"config": {}}')
    with before:
        before.log(1, scores(1, 0, 1))
    listener = Listener()
    with SweepWatch(jobs[1:], everything, listener):
        until(lambda: listener.shown[-1:] == ["1/4 jobs  best balanced 0.403 (lora.rank=1)"])
        assert (listener.total, listener.done) == (30, 0)
        for job in jobs[1:3]:
            job.run_dir.mkdir()
            (job.run_dir / "manifest.json").write_text('{"config": {}}')
        with Tracker(jobs[1].run_dir) as tracker:
            tracker.log(0, scores(2, 0, 0))
            tracker.log(7, scores(2, 0, 1))
            until(lambda: listener.done == 7)
        until(lambda: listener.shown[-1] == "2/4 jobs  best balanced 0.407 (lora.rank=2)")
        assert listener.done == 10
        with pytest.raises(RuntimeError), Tracker(jobs[2].run_dir) as tracker:
            tracker.log(2, {metrics.TRAIN_LOSS: 1.0})
            raise RuntimeError("a bug")
        until(lambda: listener.shown[-1] == "3/4 jobs  best balanced 0.407 (lora.rank=2)")
        note_failure(jobs[3].run_dir, "no photos")
    assert listener.done == listener.total
    lines = [line.partition("  (about")[0] for line in listener.lines]
    assert lines == [
        "[2/4] finished lora.rank=2  CLIP-I 0.520  DINO 0.400  CLIP-T 0.300",
        "[3/4] failed lora.rank=3",
        "[4/4] failed lora.rank=4",
    ]
    assert [" left)" in line for line in listener.lines] == [True, True, False]


def test_a_job_that_is_tried_again_is_not_told_of_by_its_old_failure(tmp_path: Path) -> None:
    job = planned(tmp_path, 1)
    note_failure(job.run_dir, "out of memory")
    listener = Listener()
    with SweepWatch([job], [job], listener):
        pass
    assert listener.lines == []
    with SweepWatch([job], [job], listener):
        (job.run_dir / "summary.json").unlink()
        note_failure(job.run_dir, "out of memory")
    assert listener.lines == ["[1/1] failed lora.rank=1 seed=0"]


def test_the_bar_of_a_sweep_is_drawn_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "POLL_S", 0.01)
    monkeypatch.setenv("TERM", "xterm")
    with (tmp_path / "screen").open("w", encoding="utf-8") as screen:
        console = Console(file=screen, force_terminal=True, width=100)
        job = planned(tmp_path, 1, steps=4)
        job.run_dir.mkdir()
        (job.run_dir / "manifest.json").write_text('{"config": {}}')
        with SweepWatch([job], [job], Reporter(console=console)), Tracker(job.run_dir) as tracker:
            tracker.log(3, scores(1, 0, 1))
            time.sleep(0.5)
    drawn = (tmp_path / "screen").read_text(encoding="utf-8")
    assert "0/1 jobs" in drawn
    assert "3/4" in drawn
    assert "[1/1] finished" in drawn


def test_a_job_is_called_by_what_sets_it_apart(tmp_path: Path) -> None:
    jobs = [planned(tmp_path, 1), planned(tmp_path, 2)]
    assert differing(jobs) == {"lora.rank=1", "lora.rank=2"}
    assert label(jobs[1], differing(jobs)) == "lora.rank=2"
    assert label(jobs[0], differing(jobs[:1])) == "lora.rank=1 seed=0"


# --- how a job stands ---------------------------------------------------------------------------------------------


def test_how_a_job_stands_is_read_from_its_folder(tmp_path: Path) -> None:
    job = planned(tmp_path, 1)
    assert state_of(job).state is JobState.NEW
    job.run_dir.mkdir()
    (job.run_dir / ".hydra").mkdir()  # all that a job leaves that is killed before its first row
    assert state_of(job).state is JobState.NEW
    (job.run_dir / "metrics.jsonl").touch()
    assert state_of(job).state is JobState.INTERRUPTED
    for content, state in {
        '{"status": "finished"}': JobState.FINISHED,
        '{"status": "interrupted"}': JobState.INTERRUPTED,
        '{"status": "failed", "error": "why"}': JobState.FAILED,
        '{"status": "fin': JobState.INTERRUPTED,
        "[]": JobState.INTERRUPTED,
    }.items():
        (job.run_dir / "summary.json").write_text(content)
        assert state_of(job).state is state
    (job.run_dir / "summary.json").write_text('{"status": "failed", "error": "why"}')
    assert state_of(job).why == "why"
    with owned(job.run_dir):
        assert state_of(job).state is JobState.RUNNING
    bad = planned(tmp_path, 1, mistake="must be at least 1")
    assert (state_of(bad).state, state_of(bad).why) == (JobState.MISTAKEN, "must be at least 1")


def test_looking_at_a_job_never_keeps_it_from_starting(tmp_path: Path) -> None:
    """The watch looks at every open job's lock twice a second, also at the moment at which a job takes its own."""
    job = planned(tmp_path, 1)
    with owned(job.run_dir):
        pass
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            state_of(job)

    looker = threading.Thread(target=look)
    looker.start()
    try:
        for _ in range(100):
            with owned(job.run_dir):
                pass
    finally:
        stop.set()
        looker.join()


def test_a_failure_that_the_run_has_noted_is_kept_as_it_is(tmp_path: Path) -> None:
    note_failure(tmp_path / "run", "first")
    before = (tmp_path / "run" / "summary.json").read_bytes()
    note_failure(tmp_path / "run", "second")
    assert (tmp_path / "run" / "summary.json").read_bytes() == before


# --- with real trainings ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"), pipelines["sd15"])


def real_runs(lab: Lab, name: str) -> dict[int, Path]:
    """The run folders by seed."""
    return {int(path.name.rpartition("-s")[2]): path for path in (lab.folder / name).glob("*/tiny-*")}


@pytest.mark.slow
def test_an_interrupted_job_goes_on_from_its_checkpoint(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = lab.train("straight", "seed=1")
    command = ["train", "-m", *lab.overrides("stopped"), "seed=0,1,2"]
    original = []

    with monkeypatch.context() as patch:
        from boothlab.dreambooth.callbacks import CheckpointCallback

        after = CheckpointCallback.after_step

        def after_step(self: Any, trainer: Any, module: Any, step: int) -> None:
            after(self, trainer, module, step)
            if module.seed == 1 and step == 3:
                original.append(step)
                raise KeyboardInterrupt

        patch.setattr(CheckpointCallback, "after_step", after_step)
        assert main(command) == 130
    assert original == [3]
    runs = real_runs(lab, "stopped")
    assert sorted(runs) == [0, 1]
    assert (summary(runs[0])["status"], summary(runs[1])["status"]) == ("finished", "interrupted")
    before = fingerprints(runs[0])
    assert main(command) == 0
    runs = real_runs(lab, "stopped")
    assert fingerprints(runs[0]) == before
    assert same_adapter(runs[1], straight)
    assert history(runs[1]) == history(straight)
    attempts = json.loads((runs[1] / "manifest.json").read_text(encoding="utf-8"))["earlier_attempts"]
    assert [attempt["status"] for attempt in attempts] == ["interrupted"]
    assert summary(runs[2])["status"] == "finished"


@pytest.mark.slow
def test_a_diverging_job_and_a_job_out_of_memory_leave_the_others_whole(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from boothlab.dreambooth.module import DreamBoothModule

    original = DreamBoothModule.training_step

    def training_step(self: DreamBoothModule, index: int, batch_index: int) -> Any:
        if self.seed == 2:
            raise MemoryError
        return original(self, index, batch_index)

    monkeypatch.setattr(DreamBoothModule, "training_step", training_step)
    words = [word for word in lab.overrides("failing") if not word.startswith("optim.lr=")]
    assert main(["train", "-m", *words, "optim.lr=0.02,1e30", "seed=0,2"]) == 1
    printed = flat(capsys.readouterr().err)
    assert "3 of 4 jobs did not finish" in printed
    assert "optim.lr=1e+30 seed=0 failed the loss became " in printed
    assert "optim.lr=0.02 seed=2 failed out of memory near step 0 (MemoryError); free some " in printed
    found = sorted(summary(path)["status"] for path in (lab.folder / "failing").glob("*/tiny-*"))
    assert found == ["failed", "failed", "failed", "finished"]
    (good,) = [path for path in (lab.folder / "failing").glob("*/tiny-*") if (path / ADAPTER).exists()]
    assert same_adapter(good, lab.train("alone"))


@pytest.mark.slow
def test_sigterm_ends_a_sweep_and_the_same_command_goes_on(lab: Lab) -> None:
    extra = ("trainer.max_steps=30", "trainer.checkpoint_every=3", "evaluation.every=15")
    straight = lab.train("straight-30", "seed=1", *extra)
    words = ["train", "-m", *lab.overrides("told", *extra), "seed=0,1"]
    command = [sys.executable, "-m", "boothlab", *words]
    root = Path(__file__).parent.parent  # the current folder may be all that leads to the package
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, cwd=root, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not list((lab.folder / "told").glob("*/tiny-*-s1/checkpoints/step_000006/state.json")):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=300)[1]
    assert process.returncode == 143
    assert "Traceback" not in printed
    assert "interrupted what is finished stays finished; the same command goes on" in printed
    runs = real_runs(lab, "told")
    assert (summary(runs[0])["status"], summary(runs[1])["status"]) == ("finished", "interrupted")
    before = fingerprints(runs[0])
    assert main(words) == 0
    assert fingerprints(runs[0]) == before
    assert same_adapter(runs[1], straight)
    assert history(runs[1]) == history(straight)


@pytest.mark.slow
def test_a_sweep_of_real_runs_is_trained_once_and_reported(
    lab: Lab, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [word for word in lab.overrides("whole") if not word.startswith("lora.rank=")]
    assert main(["sweep", "mine", *words]) == 0
    folder = lab.folder / "whole" / "mine"
    record = read_sweep(folder / "sweeps" / "mine.json")
    assert [summary(path)["status"] for path in record.runs_in(folder)] == ["finished"] * 4
    assert "My ranks" in (folder / "report.md").read_text(encoding="utf-8")
    assert len((folder / "runs.csv").read_text(encoding="utf-8").splitlines()) == 5
    monkeypatch.setattr("boothlab.building.build_training_run", None)  # would fail if it were called
    before = fingerprints(folder)
    assert main(["sweep", "mine", *words]) == 0
    assert fingerprints(folder) == before


@pytest.mark.slow
def test_a_stop_between_two_jobs_loses_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped on the very last step of a job: only its adapter file and its summary are missing."""
    command = ["train", "-m", *lab.overrides("last"), "seed=0,1"]
    with stopped_after(4, monkeypatch):
        assert main(command) == 130
    assert main(command) == 0
    runs = real_runs(lab, "last")
    straight = lab.train("straight-last", "seed=0")
    assert same_adapter(runs[0], straight)
    assert history(runs[0]) == history(straight)

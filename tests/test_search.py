"""Adaptive search with jobs that only pretend to train: resumed, crashed, shared, pruned and failed searches."""

import dataclasses
import hashlib
import io
import json
import math
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from boothlab.config import (
    SearchCheckpoint,
    SearchConfig,
    SearchEngine,
    SearchObjective,
    SearchPruner,
    SearchSampler,
)
from boothlab.errors import NonFiniteLossError, UserError
from boothlab.files import write_json
from boothlab.progress import Reporter
from boothlab.search import JobResult, OnCheckpoint, Pruned, parse_space
from boothlab.search.objective import names_of, values_of
from boothlab.tracking.history import History

pytest.importorskip("optuna", reason="needs the extra `optuna`")

from optuna.storages.journal import JournalFileBackend

from boothlab.search import samplers
from boothlab.search.optuna_search import run_search
from boothlab.search.result import SearchResult
from boothlab.search.storage import Worker, open_storage
from boothlab.search.workers import more_workers

STEPS = (100, 200, 300)
SPACE = ["optim.lr=tag(log,interval(1e-5,1e-2))", "lora.rank=range(2,34,2)", "lora.train_text_encoder=true,false"]


class Killed(BaseException):
    """The process ends here, as by a signal."""


def scores_at(settings: dict[str, str], step: int) -> dict[str, float]:
    """Likeness peaks at lr 1e-3 and rises with rank and steps; prompt-following falls with both."""
    lr, rank, seed = float(settings["optim.lr"]), int(settings.get("lora.rank", 16)), int(settings.get("seed", 0))
    text = settings.get("lora.train_text_encoder") == "True"
    likeness = 0.9 - 0.1 * abs(math.log10(lr) + 3) + rank / 1000 + step / 10000 + 0.02 * text + seed / 1000
    return {"clip_i": likeness, "dino": likeness - 0.05, "clip_t": 0.35 - rank / 700 - 0.03 * text - step / 20000}


@dataclass
class Lab:
    """Runs jobs by writing run folders under `root`; a run folder that is begun is gone on with."""

    root: Path
    scores: Callable[[dict[str, str], int], dict[str, float]] = scores_at
    #: raised instead of finishing, by the first words of a job's overrides
    trouble: dict[str, Exception] = field(default_factory=dict)
    #: killed when this many checkpoints were scored in this sitting
    lives: float = math.inf
    jobs: list[list[str]] = field(default_factory=list)
    pause: float = 0.0

    def __call__(self, overrides: list[str], on_checkpoint: OnCheckpoint) -> JobResult:
        self.jobs.append(overrides)
        settings = dict(override.split("=", 1) for override in overrides)
        folder = self.folder_of(overrides)
        for prefix, error in self.trouble.items():
            if " ".join(overrides).startswith(prefix):
                raise error
        try:
            return self._train(folder, settings, on_checkpoint)
        except Pruned:
            close(folder, settings, "interrupted")
            raise

    def folder_of(self, overrides: list[str]) -> Path:
        settings = dict(override.split("=", 1) for override in overrides)
        name = hashlib.sha256(" ".join(overrides).encode()).hexdigest()[:8]
        return self.root / f"run-{name}-s{settings.get('seed', 0)}"

    def _train(self, folder: Path, settings: dict[str, str], on_checkpoint: OnCheckpoint) -> JobResult:
        if (folder / "summary.json").is_file() and status_of(folder) == "finished":
            return JobResult("finished", folder)
        history = History(folder / "metrics.jsonl")
        saved = json.loads((folder / "saved.json").read_text()) if (folder / "saved.json").is_file() else 0
        history.truncate_after(saved)
        for step in STEPS:
            if step <= saved:
                continue
            time.sleep(self.pause)
            self.lives -= 1
            if self.lives < 0:
                raise Killed
            scores = self.scores(settings, step)
            history.log(step, {f"eval/{key}/toy": value for key, value in scores.items()})
            on_checkpoint(step, scores)
            write_json(folder / "saved.json", step)
        close(folder, settings, "finished")
        return JobResult("finished", folder)


def close(folder: Path, settings: dict[str, str], status: str) -> None:
    write_json(folder / "manifest.json", {"config": settings, "seed": int(settings.get("seed", 0)), "status": status})
    write_json(folder / "summary.json", {"status": status})


def status_of(folder: Path) -> str:
    return str(json.loads((folder / "summary.json").read_text())["status"])


def options(**changes: Any) -> SearchConfig:
    return SearchConfig(**{"engine": SearchEngine.optuna, "trials": 8, **changes})


def search(lab: Lab, config: SearchConfig, overrides: list[str] = SPACE, **more: Any) -> SearchResult:
    space = parse_space(overrides)
    quiet = Reporter(quiet=True)
    given = {
        "study_name": "toy",
        "storage": lab.root / "search" / "toy.log",
        "reporter": quiet,
        "folder_of": lab.folder_of,
        **more,
    }
    return run_search(config, space, space.replicates, lab, **given)


def text_of(lab: Lab) -> str:
    return (lab.root / "search" / "toy.json").read_text()


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


KINDS = {
    "tpe": options(trials=16),
    "random": options(sampler=SearchSampler.random),
    "nsga2": options(sampler=SearchSampler.nsga2, objective=SearchObjective.pareto, trials=24),
    "pareto": options(objective=SearchObjective.pareto, trials=14),
    "median": options(pruner=SearchPruner.median, trials=16),
    "hyperband": options(pruner=SearchPruner.hyperband, trials=16),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_in_sittings_equals_one_without_a_break(kind: str, tmp_path: Path) -> None:
    config = KINDS[kind]
    whole, parts = Lab(tmp_path / "whole"), Lab(tmp_path / "parts")
    search(whole, config)
    for trials in (1, 5, 6, config.trials, config.trials):
        search(parts, dataclasses.replace(config, trials=trials))
    assert text_of(parts) == text_of(whole)
    assert parts.jobs == whole.jobs
    assert len(whole.jobs) == config.trials


@pytest.mark.parametrize("kind", ["median", "hyperband", "pareto"])
def test_a_search_killed_in_its_runs_equals_one_without_a_break(kind: str, tmp_path: Path) -> None:
    config = dataclasses.replace(KINDS[kind], trials=10)
    whole, parts = Lab(tmp_path / "whole"), Lab(tmp_path / "parts")
    search(whole, config, [*SPACE, "seed=0,1"])
    for lives in (0, 1, 2, 5, 3, 0, 7):
        parts.lives = lives
        with pytest.raises(Killed):
            search(parts, config, [*SPACE, "seed=0,1"])
    parts.lives = math.inf
    search(parts, config, [*SPACE, "seed=0,1"])
    assert text_of(parts) == text_of(whole)
    assert {tuple(job) for job in parts.jobs} == {tuple(job) for job in whole.jobs}


def kind_of(record: dict[str, Any]) -> str:
    """`worker`, `pruned_at` and so on for an attribute, else the number of the operation."""
    return "".join(record.get("user_attr", record.get("system_attr", [str(int(record["op_code"]))])))


@pytest.mark.parametrize(
    ("kind", "before"),
    [
        ("median", ["pruned_at", "6"]),  # 6: a trial is told
        pytest.param("median", ["each"], marks=pytest.mark.slow),
        pytest.param("pareto", ["each"], marks=pytest.mark.slow),
    ],
)
def test_a_search_killed_at_any_record_equals_one_without_a_break(
    kind: str, before: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optuna's journal is the only memory of a search; the process may end before any of its records."""
    config, overrides = dataclasses.replace(KINDS[kind], trials=8), ["optim.lr=1e-5,1e-4,1e-3", SPACE[1]]
    append, records = JournalFileBackend.append_logs, {"left": math.inf}
    written: list[str] = []

    def counted(self: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
        if records["left"] <= 0:
            raise Killed
        records["left"] -= 1
        written.extend(map(kind_of, logs))
        append(self, logs)

    monkeypatch.setattr(JournalFileBackend, "append_logs", counted)
    whole = Lab(tmp_path / "whole")
    search(whole, config, overrides)
    last_of_each = {name: index for index, name in enumerate(written)}
    assert set(last_of_each) >= {"settings", "worker", "overrides", "runs", "steps", "by_replicate", "4", "5", "6"}
    ends = [last_of_each[name] for name in before] if before != ["each"] else sorted({*last_of_each.values(), 0, 1, 40})
    for left in ends:
        parts = Lab(tmp_path / str(left))
        records["left"] = left
        with pytest.raises(Killed):
            search(parts, config, overrides)
        records["left"] = math.inf
        search(parts, config, overrides)
        assert text_of(parts) == text_of(whole), left


def _share(root: str, trials: int, overrides: list[str], pause: float) -> None:
    lab = Lab(Path(root), pause=pause)
    search(lab, options(trials=trials), overrides)
    write_json(Path(root) / f"jobs-{os.getpid()}.json", lab.jobs)


def _die(root: str) -> None:
    lab = Lab(Path(root), lives=7)
    lab.scores = lambda settings, step: os._exit(9) if lab.lives < 1 else scores_at(settings, step)
    search(lab, options(trials=6))


def spawned(target: Callable[..., None], *arguments: object) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    process.start()
    return process


@pytest.mark.slow
def test_two_processes_share_a_search_and_run_nothing_twice(tmp_path: Path) -> None:
    overrides = ["optim.lr=1e-5,1e-4,1e-3,1e-2", "lora.rank=4,8,16"]
    workers = [spawned(_share, str(tmp_path), 10, overrides, 0.03) for _ in range(2)]
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    shares = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("jobs-*.json"))]
    jobs = [tuple(job) for share in shares for job in share]
    assert len(jobs) == len(set(jobs)) == 10
    assert len(shares) == 2 and all(shares)
    result = search(Lab(tmp_path), options(trials=10), overrides)
    assert result.count("finished") == 10
    assert json.loads(text_of(Lab(tmp_path)))["best"] == result.best


@pytest.mark.slow
def test_a_search_starts_its_other_workers_itself(tmp_path: Path) -> None:
    overrides = ["optim.lr=1e-5,1e-4,1e-3,1e-2", "lora.rank=4,8,16"]
    share = f"import test_search as t; t._share({str(tmp_path)!r}, 9, {overrides}, 0.1)"
    code = f"import sys; sys.path[:0] = {sys.path!r}; {share}"
    lab = Lab(tmp_path, pause=0.3)
    result = search(lab, options(trials=9, workers=2), overrides, worker_command=[sys.executable, "-c", code])
    (other,) = (json.loads(path.read_text()) for path in tmp_path.glob("jobs-*.json"))
    assert result.count("finished") == 9 == len({tuple(job) for job in [*lab.jobs, *other]})
    assert lab.jobs and other and len(lab.jobs) + len(other) == 9
    assert json.loads(text_of(lab))["best"] == result.best


@pytest.mark.slow
def test_a_killed_process_leaves_its_trial_to_the_next(tmp_path: Path) -> None:
    killed, whole = Lab(tmp_path / "killed"), Lab(tmp_path / "whole")
    process = spawned(_die, str(killed.root))
    process.join(120)
    assert process.exitcode == 9
    assert len(list(killed.root.glob("run-*"))) == 3
    search(killed, options(trials=6))
    search(whole, options(trials=6))
    assert text_of(killed) == text_of(whole)
    assert killed.jobs == whole.jobs[2:]  # the third is gone on with under its number


def test_a_trial_of_a_living_worker_is_left_alone(tmp_path: Path) -> None:
    lab, seen = Lab(tmp_path), list[list[str]]()

    def outer(overrides: list[str], on_checkpoint: OnCheckpoint) -> JobResult:
        if not seen:
            seen.append(overrides)
            search(lab, options(trials=3))  # another worker, while this one is at its first trial
        return lab(overrides, on_checkpoint)

    space = parse_space(SPACE)
    storage = tmp_path / "search" / "toy.log"
    result = run_search(
        options(trials=3), space, space.replicates, outer, study_name="toy", storage=storage, reporter=Reporter(True)
    )
    assert len(lab.jobs) == 3 and lab.jobs.count(seen[0]) == 1
    assert [trial.state for trial in result.trials] == ["finished"] * 3


def test_known_points_are_told_and_not_run(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    overrides = ["optim.lr=1e-5,1e-4,1e-3,1e-2", "lora.rank=4,8"]
    result = search(lab, options(trials=50), overrides)
    assert len(lab.jobs) == len({tuple(job) for job in lab.jobs}) == result.count("finished") == 8
    repeats = [trial for trial in result.trials if trial.repeats is not None]
    assert repeats
    for trial in repeats:
        known = result.trials[trial.repeats or 0]
        assert (trial.overrides, trial.values, trial.runs) == (known.overrides, known.values, [])
    search(lab, options(trials=50), overrides)
    assert len(lab.jobs) == 8


def test_a_sampler_that_insists_is_given_something_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers.NumberedSampler, "sample_independent", lambda *args: 0.001)
    monkeypatch.setattr(samplers.NumberedSampler, "sample_relative", lambda *args: {})
    monkeypatch.setattr(samplers, "_suggest", lambda trial, one: trial.suggest_float(one.key, 0.001, 0.005, step=0.001))
    lab = Lab(tmp_path)
    result = search(lab, options(trials=4), ["optim.lr=range(0.001,0.006,0.001)"])
    assert len(lab.jobs) == len({tuple(job) for job in lab.jobs}) == 4
    assert lab.jobs[0] == ["optim.lr=0.001"]
    assert sum(trial.repeats == 0 for trial in result.trials) >= 10


def test_an_interval_of_a_single_number_ends_the_search(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    result = search(lab, options(trials=3), ["optim.lr=interval(0.1,0.1000001)"])
    assert lab.jobs == [["optim.lr=0.1"]]
    assert result.line == "1 finished, 100 drawn again, not run"


def test_a_failed_job_fails_its_trial_and_not_the_search(tmp_path: Path) -> None:
    trouble = {
        "optim.lr=0.01": NonFiniteLossError("the loss is nan at step 3\nbatch 1"),
        "optim.lr=0.1": UserError("optim.lr=0.1: is too high"),
    }
    lab = Lab(tmp_path, trouble=trouble)
    lab.scores = lambda settings, step: (
        scores_at(settings, step) | ({"dino": math.nan} if settings["optim.lr"] == "1.0" else {})
    )
    result = search(lab, options(trials=9), ["optim.lr=1e-4,1e-3,1e-2,1e-1,1.0", "seed=0,1"])
    errors = {trial.overrides[0]: trial.error for trial in result.trials if trial.repeats is None}
    assert errors == {
        "optim.lr=0.0001": None,
        "optim.lr=0.001": None,
        "optim.lr=0.01": "the loss is nan at step 3 batch 1",
        "optim.lr=0.1": "optim.lr=0.1: is too high",
        "optim.lr=1.0": "seed=0 a score of the objective is missing or not a number",
    }
    assert result.count("failed") == 3 and result.count("finished") == 2
    assert result.best_trials[0].overrides == ["optim.lr=0.001"]
    assert len(lab.jobs) == 2 * 2 + 3  # no second seed after a failure, no failed point twice


def test_a_job_that_reports_its_failure(tmp_path: Path) -> None:
    def job(overrides: list[str], on_checkpoint: OnCheckpoint) -> JobResult:
        return JobResult("failed", tmp_path / "run-x", "CUDA out of memory")

    space = parse_space(SPACE)
    result = run_search(
        options(trials=2),
        space,
        space.replicates,
        job,
        study_name="toy",
        storage=tmp_path / "toy.log",
        reporter=Reporter(True),
    )
    assert result.best == [] and result.line == "2 failed"
    assert {(trial.error, *trial.runs) for trial in result.trials} == {("CUDA out of memory", "run-x")}


def test_a_faulty_program_is_not_a_failed_run(tmp_path: Path) -> None:
    lab = Lab(tmp_path, trouble={"": ZeroDivisionError()})
    with pytest.raises(ZeroDivisionError):
        search(lab, options())
    lab.trouble = {}
    assert search(lab, options(trials=1)).count("finished") == 1
    assert lab.jobs[0] == lab.jobs[1]


def test_runs_that_fall_behind_are_ended_early(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    overrides = ["optim.lr=range(0.0001,0.0021,0.0001)", "seed=0,1"]
    result = search(lab, options(trials=14, pruner=SearchPruner.median), overrides)
    pruned = [trial for trial in result.trials if trial.state == "pruned" and trial.repeats is None]
    assert pruned and result.count("finished") >= 5
    for trial in pruned:
        (run,) = result.runs_of(trial)
        assert status_of(run) == "interrupted"
        assert trial.values is None
        ran = [job for job in lab.jobs if job[0] == trial.overrides[0]]
        assert ran == [[trial.overrides[0], "seed=0"]]  # and not with the other seed
    worst = min(trial.values[0] for trial in result.trials if trial.values)
    for trial in pruned:
        end = scores_at(dict(o.split("=") for o in trial.overrides), STEPS[-1])
        assert sum(end.values()) / 3 <= result.best_trials[0].values[0]  # type: ignore[index]
    assert worst < result.best_trials[0].values[0]  # type: ignore[index]


def test_runs_that_were_there_before_have_a_curve_too(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    search(lab, options(trials=5, pruner=SearchPruner.median))
    (tmp_path / "search" / "toy.log").unlink()
    again = Lab(tmp_path)
    search(again, options(trials=5, pruner=SearchPruner.median))
    study = [json.loads(line) for line in (tmp_path / "search" / "toy.log").read_text().splitlines()]
    reported = [(record["trial_id"], record["step"]) for record in study if "intermediate_value" in record]
    assert reported == [(trial, step) for trial in range(5) for step in STEPS]


def test_replicates_are_averaged(tmp_path: Path) -> None:
    result = search(Lab(tmp_path), options(trials=1), ["optim.lr=1e-3,1e-4", "seed=0,1,2"])
    (trial,) = result.trials
    each = [sum(scores_at({"optim.lr": trial.overrides[0][9:], "seed": str(s)}, 300).values()) / 3 for s in range(3)]
    assert [value for (value,) in trial.by_replicate] == pytest.approx(each, abs=1e-12)
    assert trial.values == pytest.approx([sum(each) / 3], abs=1e-12)
    assert trial.steps == [300, 300, 300]
    assert [run.name[-2:] for run in result.runs_of(trial)] == ["s0", "s1", "s2"]
    assert all(run.is_dir() for run in result.runs_of(trial))


def test_pareto_keeps_what_nothing_beats(tmp_path: Path) -> None:
    result = search(
        Lab(tmp_path), options(objective=SearchObjective.pareto, trials=12), ["optim.lr=1e-3,1e-4", SPACE[1]]
    )
    values = {trial.number: tuple(trial.values or ()) for trial in result.trials if trial.repeats is None}
    assert result.objectives == ["fidelity", "clip_t"]
    for number, value in values.items():
        beaten = any(other != value and other[0] >= value[0] and other[1] >= value[1] for other in values.values())
        assert (number in result.best) == (not beaten)
    front = [values[number] for number in result.best]
    assert len(front) > 1 and front == sorted(front, reverse=True)


def test_pruning_two_objectives_is_refused() -> None:
    with pytest.raises(UserError, match=r"search\.pruner=median: cannot prune with search\.objective=pareto"):
        options(objective=SearchObjective.pareto, pruner=SearchPruner.median)


@pytest.mark.parametrize(
    ("field_name", "value"), [("trials", 0), ("workers", 0), ("seed", -1), ("storage", "x.json"), ("storage", " ")]
)
def test_bad_settings_name_their_key(field_name: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"search\.{field_name}="):
        options(**{field_name: value})


def run_with(folder: Path, rows: list[dict[str, float]]) -> Path:
    history = History(folder / "metrics.jsonl")
    for index, row in enumerate(rows):
        history.log(index * 100, {f"eval/{key}": value for key, value in row.items()})
    close(folder, {}, "finished")
    return folder


ROWS = [
    {"clip_i": 0.99, "dino": 0.99, "clip_t": 0.99},  # the untrained model never counts
    {"clip_i": 0.6, "dino": 0.5, "clip_t": 0.4},
    {"clip_i": 0.8, "dino": 0.7, "clip_t": 0.33},
    {"clip_i": 0.85, "dino": 0.75, "clip_t": 0.2},
]


@pytest.mark.parametrize(
    ("objective", "at", "values", "step"),
    [
        ("balanced", "best", [0.61], 200),
        ("balanced", "last", [0.6], 300),
        ("fidelity", "best", [0.8], 300),
        ("clip_i", "best", [0.85], 300),
        ("dino", "last", [0.75], 300),
        ("clip_t", "best", [0.4], 100),
        ("pareto", "best", [0.75, 0.33], 200),
        ("pareto", "last", [0.8, 0.2], 300),
    ],
)
def test_objectives(tmp_path: Path, objective: str, at: str, values: list[float], step: int) -> None:
    measured = values_of(run_with(tmp_path, ROWS), SearchObjective(objective), SearchCheckpoint(at))
    assert list(measured.values) == pytest.approx(values, abs=1e-12)
    assert measured.step == step
    assert len(names_of(SearchObjective(objective))) == len(values)


def test_the_recorded_balance_counts_and_nan_does_not(tmp_path: Path) -> None:
    rows = [dict(row, balanced=value) for row, value in zip(ROWS, [0.9, 0.3, math.nan, 0.2], strict=True)]
    measured = values_of(run_with(tmp_path, rows), SearchObjective.balanced, SearchCheckpoint.best)
    assert (measured.values, measured.step) == ((0.3,), 100)


def test_a_run_without_scores_stops_the_search_and_is_tried_again(tmp_path: Path) -> None:
    lab = Lab(tmp_path, scores=lambda settings, step: {"pres": 0.5})
    with pytest.raises(UserError, match=r"was not scored, and a search needs scores; run it with evaluation\.enabled"):
        search(lab, options(trials=2))
    for folder in tmp_path.glob("run-*"):
        (folder / "summary.json").unlink()
        (folder / "saved.json").unlink()
    lab.scores = scores_at
    assert search(lab, options(trials=2)).count("finished") == 2


@pytest.mark.parametrize(
    ("changes", "more", "what"),
    [
        ({"seed": 1}, {}, "seed (0, now 1)"),
        ({"objective": SearchObjective.dino}, {}, "objective (balanced, now dino)"),
        ({}, {"overrides": [*SPACE, "seed=0,1"]}, "replicates"),
        ({}, {"overrides": [*SPACE, "optim.eps=1e-6"]}, "fixed ([], now ['optim.eps=1e-6'])"),
        ({}, {"overrides": SPACE[:2]}, "space; take it back"),
        ({}, {"identity": "abc"}, "identity (, now abc)"),
    ],
)
def test_another_search_under_the_same_name_is_refused(
    tmp_path: Path, changes: dict[str, Any], more: dict[str, Any], what: str
) -> None:
    lab = Lab(tmp_path)
    search(lab, options(trials=1))
    with pytest.raises(UserError) as caught:
        search(lab, options(trials=2, **changes), **more)
    assert str(caught.value).startswith("the search 'toy' was begun with another " + what)
    assert "\n" not in str(caught.value) and len(lab.jobs) == 1


def test_auto_is_tpe(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    search(lab, options(trials=1))
    assert search(lab, options(trials=2, sampler=SearchSampler.tpe)).settings["sampler"] == "tpe"


def test_a_line_that_was_torn_is_dropped_and_no_other_file_is_touched(tmp_path: Path) -> None:
    lab, whole = Lab(tmp_path / "torn"), Lab(tmp_path / "whole")
    search(lab, options(trials=3))
    journal = lab.root / "search" / "toy.log"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])  # the power went while the last trial was told
    search(lab, options(trials=5))
    search(whole, options(trials=5))
    assert text_of(lab) == text_of(whole)
    journal.write_bytes(lines[0][:9])
    open_storage(journal)
    assert journal.read_bytes() == b""

    notes = tmp_path / "notes.txt"
    for content in (b"dear diary\nno end of line", b"[1]", b"{}\n"):
        notes.write_bytes(content)
        with pytest.raises(UserError, match=r"notes\.txt is not the journal of a search"):
            open_storage(notes)
        assert notes.read_bytes() == content


def test_a_storage_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot use .*toy\.log: .*; choose another search\.storage"):
        open_storage(tmp_path / "file" / "toy.log")


def test_workers_know_who_is_gone(tmp_path: Path) -> None:
    storage = tmp_path / "toy.log"
    with Worker(storage) as first:
        with Worker(storage) as second, first.choosing():
            assert not first.is_gone(first.name) and not first.is_gone(second.name)
        assert first.is_gone(second.name) and first.is_gone("nobody-1-abcdef01")
        lost = storage.with_name("toy.log.workers") / "lost-2-00000000.lock"
        lost.touch()  # what a killed process leaves
        assert first.is_gone("lost-2-00000000") and not lost.exists()


def test_the_table_shows_the_best_first(tmp_path: Path) -> None:
    lab = Lab(tmp_path, trouble={"optim.lr=0.1": UserError("too high")})
    result = search(lab, options(trials=3), ["optim.lr=1e-4,1e-3,1e-1"])
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(result.table())
    lines = [line.split() for line in console.export_text().splitlines()]
    shown = [line for line in lines if line and line[0] == "│"]
    assert [line[3] for line in shown] == ["1e-3", "1e-4", "0.1"]
    assert shown[0][5] == f"{result.best_trials[0].values[0]:.3f}"  # type: ignore[index]
    assert "too high" in " ".join(shown[2])
    assert result.line == "2 finished, 1 failed" + ("" if len(result.trials) == 3 else ", 1 drawn again, not run")


def test_a_search_says_what_it_does(tmp_path: Path) -> None:
    told = Console(record=True, file=io.StringIO(), width=200)
    lab = Lab(tmp_path, trouble={"optim.lr=1.0": UserError("too high")})
    search(lab, options(trials=3), ["optim.lr=1e-3,1e-2,1.0"], reporter=Reporter(console=told))
    lines = told.export_text().splitlines()
    assert len(lines) == 6
    assert lines[0] == f"trial 0 (1 of 3) {lab.jobs[0][0]}"
    assert f"trial {len(lines)}" not in lines
    (failed,) = (line for line in lines if "failed" in line)
    assert failed.partition("  (best")[0].endswith(" failed: too high")
    good = scores_at({"optim.lr": "0.001"}, 300)
    assert any(line.endswith(f" balanced {sum(good.values()) / 3:.4f}") for line in lines)


def test_the_file_holds_no_time_and_no_host(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    result = search(lab, options(trials=2))
    content = json.loads(text_of(lab))
    assert set(content) == {"best", "format", "name", "objectives", "settings", "trials"}
    assert result.path == tmp_path / "search" / "toy.json"
    assert str(tmp_path) not in text_of(lab)
    assert [trial["runs"][0][:7] for trial in content["trials"]] == ["../run-"] * 2


def test_more_workers_are_waited_for_and_ended(tmp_path: Path) -> None:
    told = Console(record=True, file=io.StringIO(), width=300)
    storage = tmp_path / "toy.log"
    write = [sys.executable, "-c", "import sys, pathlib; print('hello'); pathlib.Path(sys.argv[1]).touch()"]
    with more_workers([*write, str(tmp_path / "done")], 1, storage, Reporter(console=told)):
        pass
    assert (tmp_path / "done").exists()
    assert (tmp_path / "toy.log.workers" / "worker-2.txt").read_text() == "hello\n"
    with more_workers([sys.executable, "-c", "exit(3)"], 1, storage, Reporter(console=told)):
        pass
    assert "a worker ended with exit code 3" in told.export_text()
    began = time.monotonic()
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(KeyError), more_workers(sleeper, 2, storage, Reporter(console=told)):
        raise KeyError
    assert time.monotonic() - began < 30


def test_several_workers_need_the_command_of_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the command line of one"):
        search(Lab(tmp_path), options(workers=2))


def test_the_package_is_light_and_says_what_is_missing() -> None:
    code = "import sys, boothlab.search; print(*sorted({'optuna', 'torch', 'rich'} & sys.modules.keys()))"
    light = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert light.stdout.split() == []
    code = "import sys; sys.modules['optuna'] = None; import boothlab.search.optuna_search"
    missing = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "UserError: search.engine=optuna needs Optuna; install it with: pip install" in missing.stderr

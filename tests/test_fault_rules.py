"""What surviving rests on: half-written files go, rows are whole, `finished` is said last, a full memory is named."""

import errno
import os
import signal
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
import torch

import boothlab.commands.train
from boothlab import files
from boothlab.cache import Cache
from boothlab.cli import main
from boothlab.compose.job import Outcome
from boothlab.compose.jobs import Multirun, PlannedJob
from boothlab.errors import NonFiniteLossError, OutOfMemoryError, UserError, is_out_of_memory, memory_explained
from boothlab.progress import Reporter
from boothlab.sweeping.run import CUT_SHORT, _launch
from boothlab.tracking.history import History, read_history
from boothlab.tracking.lock import last_owner, owned
from boothlab.tracking.manifest import RunStatus, write_manifest
from boothlab.tracking.run import Tracker
from wandb_double import isolated_wandb, logged_in

HEX = "0123456789abcdef"

# --- half-written files -------------------------------------------------------------------------------------------


def test_what_killed_processes_left_goes_and_nothing_else(tmp_path: Path) -> None:
    run_dir, outside = tmp_path / "run", tmp_path / "outside"
    kept = ["metrics.jsonl", ".hidden.tmp", f"{HEX}.tmp", f".x.{HEX[:15]}.tmp", f".x.{HEX}f.tmp", f".x.{HEX}.tmp.png"]
    kept += [f".x.{HEX.upper()}.tmp", f"..{HEX}.tmp", f"a.x.{HEX}.tmp", "checkpoints/step_000002/state.json"]
    gone = [f".summary.json.{HEX}.tmp", f"checkpoints/.step_000004.{HEX}.tmp/resume.safetensors"]
    gone += [f"samples/step_000000/.grid.png.{HEX}.tmp", f".{'写' * 50}.{HEX}.tmp", f".a\nb.{HEX}.tmp"]
    for name in (*kept, *gone):
        (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (run_dir / name).write_text("x")
    (outside / f".x.{HEX}.tmp").mkdir(parents=True)
    (run_dir / "link").symlink_to(outside)
    (run_dir / f".link.{HEX}.tmp").symlink_to(outside)
    files.remove_leftovers_below(run_dir)
    found = {path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*") if path.is_file()}
    assert found == set(kept)
    assert not (run_dir / f".link.{HEX}.tmp").is_symlink()
    assert (outside / f".x.{HEX}.tmp").is_dir()
    files.remove_leftovers_below(tmp_path / "missing")


@pytest.mark.parametrize("name", ["f", "x" * 200, "写" * 85, ".hidden"])
def test_the_names_that_are_swept_are_those_that_are_made(name: str, tmp_path: Path) -> None:
    files._sibling(tmp_path / name).write_text("x")
    files.remove_leftovers_below(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_owner_sweeps_its_folder_and_a_refused_one_does_not(tmp_path: Path) -> None:
    left = tmp_path / "run" / "samples" / f".grid.png.{HEX}.tmp"
    left.parent.mkdir(parents=True)
    left.touch()
    with owned(tmp_path / "run"):
        assert not left.exists()
        left.touch()
        with pytest.raises(UserError, match="in use"), owned(tmp_path / "run"):
            pass
        assert left.exists()


def test_who_was_killed_in_a_folder_is_known(tmp_path: Path) -> None:
    with owned(tmp_path / "run"):
        owner = last_owner(tmp_path / "run")
        assert owner is not None and owner.pid == os.getpid()
        note = (tmp_path / ".locks" / "run.json").read_bytes()
    assert last_owner(tmp_path / "run") is None
    (tmp_path / ".locks" / "run.json").write_bytes(note)
    assert last_owner(tmp_path / "run") == owner


# --- rows and summaries -------------------------------------------------------------------------------------------

GROW = """
import resource, signal, sys
from pathlib import Path
from boothlab.errors import UserError
from boothlab.tracking.history import History
history = History(Path(sys.argv[1]))
history.log(1, {"a": 1})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (history.path.stat().st_size + 9, resource.RLIM_INFINITY))
try:
    history.log(2, {"a": 2})
except UserError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
history.log(3, {"a": 3})
history.close()
"""


def test_a_row_that_does_not_fit_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    done = subprocess.run([sys.executable, "-c", GROW, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"cannot write {path}: the disk is full")
    found = read_history(path)
    assert ([row.step for row in found.rows], found.dropped) == ([1, 3], 0)


def test_a_history_that_cannot_be_opened_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl"):
        History(tmp_path / "file" / "metrics.jsonl")


@pytest.mark.parametrize("when", ["before the manifest", "before the summary"])
def test_a_run_killed_while_it_ends_is_never_finished_with_an_open_manifest(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about: dict[str, Any] = {"resolved_config": {"seed": 0}, "config_hash": "0" * 64, "seed": 0, "inputs": {}}
    write_manifest(tmp_path, **about, weights={}, command=["boothlab"], device="cpu")
    doomed = "close_manifest" if when == "before the manifest" else "write_json"

    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(f"boothlab.tracking.run.{doomed}", kill)
    tracker = Tracker(tmp_path)
    tracker.open()
    with pytest.raises(Killed):
        tracker.close(RunStatus.FINISHED)
    assert not (tmp_path / "summary.json").exists()
    monkeypatch.undo()
    with Tracker(tmp_path) as again:
        again.log(1, {"train/loss": 1.0})
    manifest: Any = files.read_json(tmp_path / "manifest.json")
    assert manifest["status"] == "finished"
    assert manifest["outputs"]["summary.json"] == files.sha256_file(tmp_path / "summary.json")


def test_a_cache_whose_disk_fills_up_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        if tmp_path in folder.parents:
            raise files.cannot_write(folder / "x", OSError(errno.ENOSPC, "x")) from OSError(errno.ENOSPC, "x")
        (folder / "x").write_text("whole")

    folder = Cache(tmp_path / "cache").get_or_make_files("k", {"a": 1}, make)
    assert (folder / "x").read_text() == "whole" and tmp_path not in folder.parents
    assert len(made) == 2 and len(caplog.records) == 1 and "going on without it" in caplog.text
    assert list((tmp_path / "cache" / "k").iterdir()) == []


# --- memory -------------------------------------------------------------------------------------------------------


def from_the_allocator() -> RuntimeError:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    return caught.value


def test_pytorch_s_own_refusal_is_known_for_what_it_is() -> None:
    assert is_out_of_memory(from_the_allocator())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 17.92 GB)"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_what_to_lower_is_said() -> None:
    with pytest.raises(OutOfMemoryError) as caught, memory_explained(lambda: "near step 3", "lower data.batch_size"):
        raise RuntimeError("CUDA out of memory. Tried 2 GiB.\nSee the manual") from None
    assert str(caught.value) == "out of memory near step 3 (CUDA out of memory. Tried 2 GiB.); lower data.batch_size"
    with pytest.raises(RuntimeError, match="a bug"), memory_explained(lambda: "", ""):
        raise RuntimeError("a bug")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory.\nTried")])
def test_memory_that_runs_out_anywhere_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr(boothlab.commands.train, "run", fail)
    assert main(["train"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("boothlab: error: out of memory (") and printed.count("\n") == 1


def test_errors_of_a_failed_run_exit_with_one() -> None:
    assert issubclass(OutOfMemoryError, Exception) and not issubclass(OutOfMemoryError, UserError)
    assert OutOfMemoryError.__mro__[1] is NonFiniteLossError.__mro__[1]


# --- being told to end --------------------------------------------------------------------------------------------

TOLD = """
import os, signal, sys
import boothlab.commands.train as command
from boothlab.cli import main
def run(argv):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    finally:
        print("closed", flush=True)
command.run = run
sys.exit(main(["train"]))
"""


def test_sigterm_at_any_time_closes_what_is_open_and_is_said() -> None:
    done = subprocess.run([sys.executable, "-c", TOLD], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (143, "closed\n", "boothlab: terminated\n")


def test_the_caller_s_own_handler_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def look(argv: list[str]) -> int:
        seen.append(signal.getsignal(signal.SIGTERM))
        return 0

    monkeypatch.setattr(boothlab.commands.train, "run", look)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert main(["train"]) == 0
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        assert main(["train"]) == 0
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen[0] is signal.SIG_IGN and callable(seen[1])


# --- W&B ----------------------------------------------------------------------------------------------------------

UPLOAD = """
import logging, sys
from pathlib import Path
from boothlab.tracking import wandb as mirrors, wandb_service
logging.basicConfig(level=logging.WARNING)
wandb_service.GRACE_S = float(sys.argv[3])
mirror = mirrors.WandbMirror(finish_timeout=3.0)
mirror.start(Path(sys.argv[1]), "toys", None, [], None, "online", {})
mirror.log(1, {"train/loss": 1.0})
mirror.log_artifact("adapter", "model", [Path(sys.argv[2])], {})
mirror.finish(0)
print("ended", flush=True)
"""


@pytest.mark.slow
def test_a_server_that_dies_while_it_is_sent_a_file_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B tries the upload of an artifact's manifest again for ever, whatever its finish timeout says."""
    (tmp_path / "run").mkdir()
    (tmp_path / "weights").write_bytes(b"x" * 1000)
    with isolated_wandb(tmp_path / "home", monkeypatch), logged_in(monkeypatch) as server:
        server.dies_at_upload = "/store/manifest"
        command = [sys.executable, "-c", UPLOAD, str(tmp_path / "run"), str(tmp_path / "weights"), "2"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["ended"]), done.stderr
    assert "Traceback" not in done.stderr
    assert "Send it with: wandb sync --include-online " in done.stderr
    assert server.dead and list((tmp_path / "run").rglob("*.wandb"))


# --- a launcher that gives up -------------------------------------------------------------------------------------


def jobs(tmp_path: Path, count: int) -> list[PlannedJob]:
    return [
        PlannedJob((f"seed={index}",), {"seed": index}, tmp_path / "study" / f"run-s{index}") for index in range(count)
    ]


def multirun(planned: list[PlannedJob], launch: Any) -> Multirun:
    return Multirun("train", tuple(planned), planned[0].run_dir.parent, {}, {}, "JoblibLauncher", launch)


def die_in(job: PlannedJob) -> None:
    """What a process that is killed in a run folder leaves."""
    lock = job.run_dir.parent / ".locks"
    lock.mkdir(parents=True, exist_ok=True)
    files.write_json(lock / f"{job.run_dir.name}.json", {"pid": 1, "host": "h", "since": f"{len(os.listdir(lock))}"})
    job.run_dir.mkdir(parents=True)
    (job.run_dir / "metrics.jsonl").write_text("")


def finish(job: PlannedJob) -> None:
    files.write_json(job.run_dir / "summary.json", {"status": "finished"})


def test_what_a_broken_pool_had_not_begun_is_run_and_what_was_cut_short_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned, launched = jobs(tmp_path, 5), []

    def launch(left: list[PlannedJob]) -> list[Outcome]:
        launched.append([job.overrides[0] for job in left])
        if len(launched) == 1:
            finish(left[0])
            die_in(left[1]), die_in(left[2])
            raise BrokenProcessPool("A worker was killed.\nThe exit codes are {SIGKILL(-9)}")
        for job in left:
            finish(job)
        return [Outcome() for _ in left]

    failures = _launch(multirun(planned, launch), planned, Reporter())
    assert launched == [[f"seed={index}" for index in range(5)], ["seed=3", "seed=4"]]
    assert failures == {planned[1].run_dir: CUT_SHORT, planned[2].run_dir: CUT_SHORT}
    assert "the launcher gave up A worker was killed.\n" in capsys.readouterr().err


@pytest.mark.parametrize("error", [BrokenProcessPool("no job had begun"), RuntimeError('Could not detect "srun"')])
def test_a_launcher_that_cannot_work_is_not_tried_again(
    error: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned, launched = jobs(tmp_path, 2), []

    def launch(left: list[PlannedJob]) -> list[Outcome]:
        launched.append(left)
        raise error

    assert _launch(multirun(planned, launch), planned, Reporter()) == {}
    assert len(launched) == 1
    assert f"the launcher gave up {error}" in capsys.readouterr().err


def test_jobs_that_may_still_run_elsewhere_are_not_launched_twice(tmp_path: Path) -> None:
    """Another launcher's other jobs live on when one is lost."""
    planned, launched = jobs(tmp_path, 3), []

    def launch(left: list[PlannedJob]) -> list[Outcome]:
        launched.append(left)
        die_in(left[0])
        raise RuntimeError("the job has not produced any output")

    assert _launch(multirun(planned, launch), planned, Reporter()) == {planned[0].run_dir: CUT_SHORT}
    assert len(launched) == 1

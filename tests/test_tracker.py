"""The tracker: local files first, mirrors after, and the right status however the run ends."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from boothlab.errors import UserError
from boothlab.tracking.history import read_history
from boothlab.tracking.manifest import RunStatus, read_manifest, write_manifest
from boothlab.tracking.run import Tracker
from boothlab.tracking.wandb import WandbOptions


class Recorder:
    """A mirror that notes every call, and what was on disk at the time; it raises in the methods named in `broken`."""

    def __init__(self, run_dir: Path, broken: Sequence[str] = ()) -> None:
        self.run_dir = run_dir
        self.broken = broken
        self.calls: list[tuple[Any, ...]] = []
        self.rows_on_disk: list[int] = []
        self.status_on_disk: str | None = None

    def _note(self, method: str, *arguments: Any) -> None:
        self.calls.append((method, *arguments))
        if method in self.broken:
            raise ConnectionError("no route")

    def log(self, step: int, scalars: Mapping[str, int | float]) -> None:
        self.rows_on_disk.append(len(read_history(self.run_dir / "metrics.jsonl").rows))
        self._note("log", step, dict(scalars))

    def log_images(self, step: int, key: str, images: Sequence[tuple[Path, str]]) -> None:
        self._note("log_images", step, key, images)

    def log_table(self, step: int, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._note("log_table", step, key, columns, rows)

    def log_artifact(self, name: str, type_: str, paths: Sequence[Path], metadata: Mapping[str, Any]) -> None:
        self._note("log_artifact", name, type_, paths, metadata)

    def summarize(self, values: Mapping[str, Any]) -> None:
        self._note("summarize", dict(values))

    def finish(self, exit_code: int) -> None:
        self.status_on_disk = summary(self.run_dir)["status"]
        self._note("finish", exit_code)


def summary(run_dir: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return content


def begin(run_dir: Path) -> None:
    """What the train command does before the tracker opens."""
    nothing: dict[str, str] = {}
    write_manifest(
        run_dir, resolved_config={}, config_hash="0", seed=0, inputs=nothing, weights=nothing, command=[], device="cpu"
    )


def test_a_finished_run(tmp_path: Path) -> None:
    begin(tmp_path)
    mirror = Recorder(tmp_path)
    with Tracker(tmp_path, mirrors=["csv"], extra_mirrors=[mirror]) as tracker:
        tracker.log(0, {"eval/clip_i": 0.5})
        tracker.log(5, {"eval/clip_i": 0.75})
        tracker.log_images(5, "samples/grid", [(tmp_path / "a.png", "a toy")])
        tracker.log_table(5, "eval/scores", ["a"], [[1]])
        tracker.log_artifact("adapter", "model", [tmp_path / "lora"])
        tracker.note("counts", {"images": 4})
        tracker.note("ceilings", {"eval/dino_ceiling": 0.9})
    assert mirror.rows_on_disk == [1, 2]  # the local truth comes first
    assert mirror.calls == [
        ("log", 0, {"eval/clip_i": 0.5}),
        ("log", 5, {"eval/clip_i": 0.75}),
        ("log_images", 5, "samples/grid", [(tmp_path / "a.png", "a toy")]),
        ("log_table", 5, "eval/scores", ["a"], [[1]]),
        ("log_artifact", "adapter", "model", [tmp_path / "lora"], {}),
        ("summarize", {"best/eval/clip_i": 0.75, "best_step/eval/clip_i": 5}),
        ("finish", 0),
    ]
    assert mirror.status_on_disk == "finished"
    assert read_manifest(tmp_path)["status"] == "finished"
    assert summary(tmp_path)["counts"]["images"] == 4
    assert summary(tmp_path)["ceilings"] == {"eval/dino_ceiling": 0.9}
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == "step,time,eval/clip_i"


@pytest.mark.parametrize(
    ("error", "status", "text", "exit_code"),
    [
        (ValueError("bad photo"), "failed", "ValueError: bad photo", 1),
        (UserError("no photos"), "failed", "UserError: no photos", 1),
        (KeyboardInterrupt(), "interrupted", None, 255),
        (SystemExit(143), "interrupted", None, 255),
    ],
)
def test_a_run_that_ends_early(
    tmp_path: Path, error: BaseException, status: str, text: str | None, exit_code: int
) -> None:
    begin(tmp_path)
    mirror = Recorder(tmp_path)
    with pytest.raises(type(error)) as caught, Tracker(tmp_path, extra_mirrors=[mirror]) as tracker:
        tracker.log(0, {"train/loss": 1.0})
        raise error
    assert caught.value is error
    assert (summary(tmp_path)["status"], summary(tmp_path)["error"]) == (status, text)
    assert read_manifest(tmp_path)["status"] == status
    assert mirror.calls[-1] == ("finish", exit_code)
    assert len(read_history(tmp_path / "metrics.jsonl").rows) == 1


def test_lightnings_sigterm_exception_is_an_interruption(tmp_path: Path) -> None:
    from pytorch_lightning.utilities.exceptions import SIGTERMException

    with pytest.raises(SIGTERMException), Tracker(tmp_path):
        raise SIGTERMException
    assert summary(tmp_path)["status"] == "interrupted"


def test_a_mirror_that_raises_is_dropped_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken, sound = Recorder(tmp_path, broken=["log"]), Recorder(tmp_path)
    with Tracker(tmp_path, extra_mirrors=[broken, sound]) as tracker:
        for step in range(3):
            tracker.log(step, {"train/loss": 1.0})
    assert [call[0] for call in broken.calls] == ["log"]
    assert [call[0] for call in sound.calls] == ["log", "log", "log", "summarize", "finish"]
    assert [record.getMessage() for record in caplog.records] == [
        "Recorder failed and is off for the rest of this run: no route"
    ]
    assert len(read_history(tmp_path / "metrics.jsonl").rows) == 3
    assert summary(tmp_path)["status"] == "finished"


def test_a_mirror_that_cannot_start_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # as if tensorboard were not installed
    with Tracker(tmp_path, mirrors=["tensorboard"]) as tracker:
        tracker.log(0, {"train/loss": 1.0})
    assert "tensorboard" in caplog.text
    assert summary(tmp_path)["status"] == "finished"


def test_a_value_that_is_no_number_reaches_no_mirror(tmp_path: Path) -> None:
    mirror = Recorder(tmp_path)
    with Tracker(tmp_path, extra_mirrors=[mirror]) as tracker, pytest.raises(TypeError, match="train/loss"):
        tracker.log(0, {"train/loss": "low"})
    assert [call[0] for call in mirror.calls] == ["summarize", "finish"]


def test_mirrors_are_finished_even_if_the_summary_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Silent(Recorder):
        def finish(self, exit_code: int) -> None:
            self._note("finish", exit_code)

    mirror = Silent(tmp_path)
    (tmp_path / "summary.json").mkdir()  # nothing can be written there
    with pytest.raises(ValueError, match="the first error"), Tracker(tmp_path, extra_mirrors=[mirror]):
        raise ValueError("the first error")
    assert mirror.calls == [("finish", 1)]
    assert "summary.json" in caplog.text
    with pytest.raises(UserError, match=r"summary\.json"), Tracker(tmp_path):
        pass


def test_resuming_continues_and_starting_again_starts_afresh(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Tracker(tmp_path) as tracker:
        for step in (0, 10, 20):
            tracker.log(step, {"train/loss": step})
        raise KeyboardInterrupt
    with Tracker(tmp_path, resume_step=10) as tracker:
        tracker.log(20, {"train/loss": 99})
    rows = read_history(tmp_path / "metrics.jsonl").rows
    assert [(row.step, row.scalars["train/loss"]) for row in rows] == [(0, 0), (10, 10), (20, 99)]
    with Tracker(tmp_path) as tracker:
        tracker.log(0, {"train/loss": 7})
    assert [row.step for row in read_history(tmp_path / "metrics.jsonl").rows] == [0]


def test_the_first_close_counts(tmp_path: Path) -> None:
    with Tracker(tmp_path) as tracker:
        tracker.close(RunStatus.FAILED, "stopped by hand")
    assert summary(tmp_path)["status"] == "failed"


def test_misuse_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not open"):
        Tracker(tmp_path).log(0, {})
    with pytest.raises(ValueError, match="'count'"):
        Tracker(tmp_path).note("count", {})
    with pytest.raises(ValueError, match="'csvv'"):
        Tracker(tmp_path, mirrors=["csvv"])
    run_dir = tmp_path / "new"
    with pytest.raises(UserError, match="W&B mode"), Tracker(run_dir, wandb=WandbOptions(mode="onlin")):
        pass
    assert not run_dir.exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to send")
def test_sigterm_closes_the_run_and_leaves_the_handler_as_it_was(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, Tracker(tmp_path):
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.code == 143
    assert summary(tmp_path)["status"] == "interrupted"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to send")
def test_sigterm_is_left_to_a_handler_that_took_over(tmp_path: Path) -> None:
    """Lightning's handler calls the one it found and then stops between two batches by itself."""
    calls = []
    with Tracker(tmp_path):
        ours = signal.getsignal(signal.SIGTERM)
        assert callable(ours)

        def composed(number: int, frame: Any) -> None:
            ours(number, frame)
            calls.append(number)

        signal.signal(signal.SIGTERM, composed)
        os.kill(os.getpid(), signal.SIGTERM)
    assert calls == [signal.SIGTERM]
    assert summary(tmp_path)["status"] == "finished"


KILLED = """
import os, signal, sys
from pathlib import Path
from boothlab.tracking.run import Tracker
with Tracker(Path(sys.argv[1])) as tracker:
    for step in range(50):
        tracker.log(step, {"train/loss": step})
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_kill_9_loses_no_row(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    content = read_history(tmp_path / "metrics.jsonl")
    assert [row.scalars["train/loss"] for row in content.rows] == list(range(50))
    assert not (tmp_path / "summary.json").exists()


def test_with_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    for name in ("DIR", "DATA_DIR", "CACHE_DIR", "CONFIG_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / "wandb_home"))
    run_dir = tmp_path / "run"
    wandb.teardown()
    try:
        with (
            pytest.raises(RuntimeError),
            Tracker(run_dir, wandb=WandbOptions(mode="offline"), config={"a": 1}) as tracker,
        ):
            tracker.log(3, {"train/loss": 0.5})
            raise RuntimeError("out of memory")
    finally:
        wandb.teardown()
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run_dir / "wandb")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    (row,) = [record["history"]["item"] for record in found if record["type"] == "history"]
    assert (row["trainer/global_step"], row["train/loss"]) == (3, 0.5)
    assert [record["exit"]["exit_code"] for record in found if record["type"] == "exit"] == [1]

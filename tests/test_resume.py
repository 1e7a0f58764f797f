"""N + M resumed steps equal N + M straight, bit for bit, wherever a run is stopped and whatever it trains."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from boothlab.dollhouse.photos import write_photos
from boothlab.dreambooth.checkpoints import newest_checkpoint
from training_runs import ADAPTER, Lab, history, same_adapter, stopped_after, summary

FEATURES: dict[str, tuple[str, ...]] = {
    "plain": (),
    "accumulation and rows of three steps": ("trainer.accumulate=2", "trainer.log_every=3"),
    "prior, min-SNR and noise offset": ("prior.enabled=true", "loss.min_snr_gamma=5.0", "loss.noise_offset=0.1"),
    "text encoder and dropout": ("lora.train_text_encoder=true", "lora.dropout=0.3", "optim.text_encoder_lr=0.005"),
    "average": ("trainer.ema_decay=0.9",),
    "cosine after a warm-up": ("optim.schedule=cosine", "optim.warmup_steps=2"),
}
FEATURES["everything"] = tuple(word for words in FEATURES.values() for word in words)


@pytest.fixture(scope="module")
def lab(pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"), pipelines["sd15"])


@pytest.fixture(scope="module")
def straight(lab: Lab) -> Path:
    return lab.train("straight")


def stop(lab: Lab, name: str, step: int, monkeypatch: pytest.MonkeyPatch, *extra: str) -> Path:
    """Start or go on with a run and press Ctrl-C after a step."""
    with stopped_after(step, monkeypatch):
        return lab.train(name, *extra, code=130)


def test_an_interrupted_run_goes_on_where_it_was(
    lab: Lab, straight: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = stop(lab, "stopped", 3, monkeypatch)
    assert summary(stopped)["status"] == "interrupted"
    assert newest_checkpoint(stopped) == (stopped / "checkpoints" / "step_000002", 2)
    assert not (stopped / ADAPTER).exists()
    capsys.readouterr()
    assert lab.train("stopped") == stopped
    printed = capsys.readouterr()
    assert "resuming after step 2" in printed.err
    assert "Traceback" not in printed.out + printed.err
    assert same_adapter(straight, stopped)
    assert history(straight) == history(stopped)
    assert summary(stopped)["ceilings"] == summary(straight)["ceilings"]
    attempts = json.loads((stopped / "manifest.json").read_text())["earlier_attempts"]
    assert [attempt["status"] for attempt in attempts] == ["interrupted"]


@pytest.mark.slow
@pytest.mark.parametrize("features", FEATURES)
def test_stopped_at_every_boundary_it_ends_the_same(features: str, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped before the first checkpoint, on each, between two, and after the last. diffusers #4936, #5412, #6366."""
    name = features.replace(" ", "-").replace(",", "")
    extra = (*FEATURES[features], "trainer.max_steps=6")
    straight = lab.train(f"straight-{name}", *extra)
    for step in (1, 2, 3, 4, 6):
        stopped = stop(lab, f"stopped-{name}", step, monkeypatch, *extra)
    lab.train(f"stopped-{name}", *extra)
    assert same_adapter(straight, stopped)
    assert history(straight) == history(stopped)
    for folder in (straight / "checkpoints").iterdir():
        for file in folder.glob("*.safetensors"):
            assert file.read_bytes() == (stopped / "checkpoints" / folder.name / file.name).read_bytes()


def test_a_checkpoint_holds_no_base_weights(straight: Path, lab: Lab) -> None:
    base = sum(file.stat().st_size for file in lab.pipeline.rglob("*.safetensors"))
    for folder in (straight / "checkpoints").iterdir():
        assert sum(file.stat().st_size for file in folder.iterdir()) < base / 4
        names = json.loads((folder / "state.json").read_text())["files"]
        assert set(names) == {"pytorch_lora_weights.safetensors", "resume.safetensors"}


@pytest.mark.parametrize("damage", ["cut short", "altered", "no state", "state is no JSON", "state is a list"])
def test_a_damaged_checkpoint_is_named_and_passed_over(
    damage: str, straight: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(straight / "checkpoints", tmp_path / "checkpoints")
    newest = tmp_path / "checkpoints" / "step_000004"
    tensors, state = newest / "resume.safetensors", newest / "state.json"
    if damage == "cut short":
        tensors.write_bytes(tensors.read_bytes()[:-100])
    elif damage == "altered":
        tensors.write_bytes(tensors.read_bytes()[:-1] + b"x")
    elif damage == "no state":
        state.unlink()
    else:
        state.write_text("{" if damage == "state is no JSON" else "[]", encoding="utf-8")
    assert newest_checkpoint(tmp_path) == (tmp_path / "checkpoints" / "step_000002", 2)
    assert len(caplog.messages) == 1
    assert str(newest) in caplog.messages[0]
    assert "passed over" in caplog.messages[0]


@pytest.mark.slow
def test_a_run_with_a_truncated_newest_checkpoint_ends_the_same(
    lab: Lab, straight: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = stop(lab, "truncated", 4, monkeypatch)
    tensors = stopped / "checkpoints" / "step_000004" / "resume.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:1000])
    capsys.readouterr()
    lab.train("truncated")
    printed = capsys.readouterr()
    assert str(tensors.parent) in printed.out + printed.err
    assert same_adapter(straight, stopped)
    assert history(straight) == history(stopped)


@pytest.mark.slow
def test_photos_that_changed_meanwhile_are_refused(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    write_photos(photos, "robot", 1, 3)
    extra = (f"subject.images={photos}", "evaluation.enabled=false")
    stopped = stop(lab, "changed", 3, monkeypatch, *extra)
    before = (stopped / "metrics.jsonl").read_bytes()
    (photos / "photo_00.png").write_bytes((photos / "photo_01.png").read_bytes())
    capsys.readouterr()
    lab.train("changed", *extra, code=2)
    assert "photo_00.png changed since it was begun; paths.overwrite=true starts it anew" in capsys.readouterr().err
    assert (stopped / "metrics.jsonl").read_bytes() == before
    lab.train("changed", *extra, "paths.overwrite=true")
    assert summary(stopped)["status"] == "finished"


def test_a_folder_with_another_run_is_refused(lab: Lab, straight: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (straight / "summary.json").read_bytes()
    lab.train("straight", f"hydra.run.dir={straight}", "optim.lr=0.3", code=2)
    assert "holds a run of another config" in capsys.readouterr().err
    assert (straight / "summary.json").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_process_goes_on_where_it_was(how: signal.Signals, lab: Lab) -> None:
    extra = ("trainer.max_steps=30", "trainer.checkpoint_every=3", "evaluation.every=15")
    straight = lab.train("straight-30", *extra)
    command = [sys.executable, "-m", "boothlab", "train", *lab.overrides(how.name, *extra)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not list((lab.folder / how.name).glob("*/*/checkpoints/step_000006/state.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(how)
    printed = process.communicate(timeout=300)[1]
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[how]
    assert "Traceback" not in printed
    if how != signal.SIGKILL:
        (run_dir,) = (lab.folder / how.name).glob("*/[!.]*")
        assert summary(run_dir)["status"] == "interrupted"
    run_dir = lab.train(how.name, *extra)
    assert same_adapter(straight, run_dir)
    assert history(straight) == history(run_dir)


@pytest.mark.slow
def test_a_finished_run_says_when_a_photo_has_changed(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    write_photos(photos, "robot", 1, 3)
    extra = (f"subject.images={photos}", "evaluation.enabled=false")
    lab.train("finished", *extra)
    (photos / "photo_02.png").write_bytes((photos / "photo_01.png").read_bytes())
    capsys.readouterr()
    lab.train("finished", *extra)
    printed = capsys.readouterr().err
    assert f"warning {photos}/photo_02.png has changed since" in printed
    assert printed.count("warning") == 1

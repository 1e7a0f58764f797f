"""N + M resumed steps equal N + M straight, bit for bit, wherever a run is stopped and whatever it trains."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save

from boothlab.config import LrSchedule
from boothlab.dollhouse.photos import write_photos
from boothlab.dreambooth import checkpoints
from boothlab.dreambooth import run as running
from boothlab.dreambooth.callbacks import CheckpointCallback
from boothlab.dreambooth.checkpoints import newest_checkpoint
from boothlab.dreambooth.evaluate import Evaluator
from boothlab.dreambooth.module import DreamBoothModule
from training_runs import ADAPTER, Lab, history, same_adapter, stopped_after, summary

FEATURES: dict[str, tuple[str, ...]] = {
    "plain": (),
    "accumulation": ("trainer.accumulate=2",),
    "rows of three steps": ("trainer.log_every=3",),
    "prior preservation": ("prior.enabled=true",),
    "min-SNR": ("loss.min_snr_gamma=5.0",),
    "noise offset": ("loss.noise_offset=0.1",),
    "text encoder": ("lora.train_text_encoder=true", "optim.text_encoder_lr=0.005"),
    "dropout": ("lora.dropout=0.3",),
    "average": ("trainer.ema_decay=0.9",),
    "flips and captions": ("data.flip=true", "subject.captions=true"),
    "bfloat16": ("backbone.precision=bf16",),
    "gradient checkpointing": ("trainer.gradient_checkpointing=true",),
    **{
        schedule.value: (f"optim.schedule={schedule.value}", "optim.warmup_steps=2", "optim.restarts=2")
        for schedule in LrSchedule
        if schedule is not LrSchedule.constant
    },
}
ALONE = tuple(FEATURES)
EVERYTHING = tuple(word for name in ALONE for word in FEATURES[name] if name != "bfloat16")  # the last schedule wins
FEATURES["everything"] = EVERYTHING
SCORED = ("plain", "text encoder", "average", "everything")  # options that a drawn image can tell from the others
MICRO_STEPS = 12  # of six steps of two


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


def same_run(straight: Path, other: Path) -> bool:
    """Adapter, history and every checkpoint, bit for bit."""
    files = sorted(path.relative_to(straight) for path in straight.glob("checkpoints/*/*"))
    assert files == sorted(path.relative_to(other) for path in other.glob("checkpoints/*/*"))
    unequal = [name for name in files if (straight / name).read_bytes() != (other / name).read_bytes()]
    assert unequal == []
    return same_adapter(straight, other) and history(straight) == history(other)


@pytest.mark.slow
@pytest.mark.parametrize("features", FEATURES)
def test_stopped_at_every_boundary_it_ends_the_same(features: str, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped before the first checkpoint, on each, between two, and after the last. diffusers #4936, #5412, #6366."""
    name = features.replace(" ", "-")
    scored = str(features in SCORED).lower()
    extra = (*FEATURES[features], "trainer.max_steps=6", f"evaluation.enabled={scored}")
    straight = lab.train(f"straight-{name}", *extra)
    for step in (1, 2, 3, 4, 5, 6):
        stopped = stop(lab, f"stopped-{name}", step, monkeypatch, *extra)
    lab.train(f"stopped-{name}", *extra)
    assert same_run(straight, stopped)


@pytest.mark.slow
def test_everything_stopped_once_at_each_boundary_ends_the_same(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a checkpoint at each step, so that each step is once the first of a sitting."""
    extra = (*EVERYTHING, "trainer.max_steps=6", "trainer.checkpoint_every=1", "evaluation.every=3")
    straight = lab.train("straight-once", *extra)
    for step in range(1, 7):
        stop(lab, f"stopped-once-{step}", step, monkeypatch, *extra)
        assert same_run(straight, lab.train(f"stopped-once-{step}", *extra)), step


@pytest.mark.slow
def test_everything_stopped_within_each_batch_ends_the_same(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of an accumulated gradient is never saved: the step is made again from its first micro-step."""
    extra = (*EVERYTHING, "trainer.max_steps=6", "trainer.checkpoint_every=1", "evaluation.enabled=false")
    straight = lab.train("straight-within", *extra)
    original = DreamBoothModule.training_step
    for wanted in range(MICRO_STEPS):

        def training_step(self: Any, index: int, batch_index: int, wanted: int = wanted) -> Any:
            if self.micro_step == wanted:
                raise KeyboardInterrupt
            return original(self, index, batch_index)

        with monkeypatch.context() as patch:
            patch.setattr(DreamBoothModule, "training_step", training_step)
            stopped = lab.train("stopped-within", *extra, code=130)
        found = newest_checkpoint(stopped)
        assert (found[1] if found else 0) == wanted // 2
    assert same_run(straight, lab.train("stopped-within", *extra))


#: what is going on when a run is stopped, and what then raises: owner, attribute, at which call
MOMENTS: dict[str, tuple[Any, str, int]] = {
    "an evaluation draws": (Evaluator, "evaluate", 2),
    "scores are written, the checkpoint is not": (CheckpointCallback, "after_step", 4),
    "half of a checkpoint is written": (checkpoints, "save_small", 2),
    "all but the adapter is written": (running, "save_all", 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_stopped_in_the_midst_of_something_it_ends_the_same(
    moment: str, lab: Lab, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, attribute, nth = MOMENTS[moment]
    original, calls = getattr(owner, attribute), []

    def stops(*arguments: Any, **named: Any) -> Any:
        calls.append(attribute)
        if len(calls) == nth:
            raise KeyboardInterrupt
        return original(*arguments, **named)

    name = moment.replace(" ", "-").replace(",", "")
    with monkeypatch.context() as patch:
        patch.setattr(owner, attribute, stops)
        stopped = lab.train(name, code=130)
    assert len(calls) == nth
    assert same_run(straight, lab.train(name))
    assert not list((stopped / "checkpoints").glob(".*"))


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def optimizer_size(folder: Path) -> int:
    """Bytes of a file with the optimizer's tensors of a checkpoint and nothing else."""
    tensors = load_file(folder / "resume.safetensors")
    return len(save({name: value for name, value in tensors.items() if name.startswith("optimizer/")}))


@pytest.mark.parametrize(
    "extra", [(), ("trainer.ema_decay=0.9", "lora.train_text_encoder=true")], ids=["plain", "average"]
)
def test_a_checkpoint_holds_adapter_and_optimizer_and_no_base_weights(extra: tuple[str, ...], lab: Lab) -> None:
    """The adapter, its parameters, with an average those too: three times the adapter, and AdamW's two moments.

    One part in a hundred is left for the names of the tensors, which tell for so small an adapter.
    """
    short = ("trainer.max_steps=1", "trainer.checkpoint_every=1", "evaluation.enabled=false", "lora.rank=16")
    run = lab.train(f"size-{len(extra)}", *short, *extra)
    (folder,) = (run / "checkpoints").iterdir()
    adapter = (folder / "pytorch_lora_weights.safetensors").stat().st_size
    assert size(folder) <= 1.01 * (3 * adapter + optimizer_size(folder))
    assert optimizer_size(folder) > adapter  # two moments of each number, or the bound would be for something else
    assert set(json.loads((folder / "state.json").read_text())["files"]) == {
        "pytorch_lora_weights.safetensors",
        "resume.safetensors",
    }
    names = set(load_file(folder / "resume.safetensors"))
    assert {name.partition("/")[0] for name in names} == {"parameter", "optimizer", *(["ema"] if extra else [])}
    assert all(".lora_" in name for name in names)


def damaged(newest: Path, name: str, how: str) -> None:
    """Do to a file of a checkpoint, or to the folder, what a full disk, a bad sector or a person may do."""
    path = newest / name
    if how == "cut short":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "one bit":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "gone":
        path.unlink()
    elif how == "empty folder":
        shutil.rmtree(newest)
        newest.mkdir()
    elif how == "a file in its place":
        shutil.rmtree(newest)
        newest.write_bytes(b"")
    elif how == "of another step":
        shutil.rmtree(newest)
        shutil.copytree(newest.with_name("step_000002"), newest)
    else:
        path.write_text(how, encoding="utf-8")


DAMAGE = [
    *((name, how) for name in ("pytorch_lora_weights.safetensors", "resume.safetensors") for how in ("cut short",)),
    *((name, "one bit") for name in ("pytorch_lora_weights.safetensors", "resume.safetensors")),
    *((name, "empty") for name in ("pytorch_lora_weights.safetensors", "resume.safetensors", "state.json")),
    *((name, "gone") for name in ("pytorch_lora_weights.safetensors", "resume.safetensors", "state.json")),
    *(("state.json", content) for content in ("{", "[]", '{"step": 4}', '{"step": 4, "files": {}}', "null")),
    *(("", how) for how in ("empty folder", "a file in its place", "of another step")),
]


@pytest.mark.parametrize(("name", "how"), DAMAGE)
def test_a_damaged_checkpoint_is_named_and_passed_over(
    name: str, how: str, straight: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(straight / "checkpoints", tmp_path / "checkpoints")
    newest = tmp_path / "checkpoints" / "step_000004"
    damaged(newest, name, how)
    assert newest_checkpoint(tmp_path) == (tmp_path / "checkpoints" / "step_000002", 2)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"{newest} is damaged (")
    assert caplog.messages[0].endswith(") and is passed over")


def test_no_bit_of_a_state_can_flip_unseen(straight: Path, tmp_path: Path) -> None:
    """It has the step, the schedule and the sums of the next row, which are as good as weights."""
    shutil.copytree(straight / "checkpoints", tmp_path / "checkpoints")
    path = tmp_path / "checkpoints" / "step_000004" / "state.json"
    content = path.read_bytes()
    whole = {key: value for key, value in json.loads(content).items() if key != "sha256"}
    for index in range(len(content)):
        flipped = bytearray(content)
        flipped[index] ^= 1 << index % 8
        path.write_bytes(flipped)
        found = newest_checkpoint(tmp_path)
        assert found is not None
        if found[1] == 4:  # then at most the name of the hash itself was hit
            assert whole.items() <= json.loads(bytes(flipped)).items()


def test_of_two_checkpoints_the_later_is_the_newer_whatever_the_names_sort_like(straight: Path, tmp_path: Path) -> None:
    for step, name in ((999_999, "step_999999"), (1_000_000, "step_1000000")):
        folder = tmp_path / "checkpoints" / name
        shutil.copytree(straight / "checkpoints" / "step_000004", folder)
        state = {**json.loads((folder / "state.json").read_text()), "step": step}
        state.pop("sha256")  # as older versions wrote it
        (folder / "state.json").write_text(json.dumps(state))
    assert newest_checkpoint(tmp_path) == (tmp_path / "checkpoints" / "step_1000000", 1_000_000)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("resume.safetensors", "cut short"),
        ("resume.safetensors", "one bit"),
        ("state.json", "gone"),
        ("", "empty folder"),
    ],
)
def test_a_run_with_a_damaged_newest_checkpoint_ends_the_same(
    name: str,
    how: str,
    lab: Lab,
    straight: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = f"damaged-{how}".replace(" ", "-")
    newest = stop(lab, folder, 4, monkeypatch) / "checkpoints" / "step_000004"
    damaged(newest, name, how)
    capsys.readouterr()
    stopped = lab.train(folder)
    printed = capsys.readouterr()
    assert f"{newest} is damaged" in printed.out + printed.err
    assert "resuming after step 2" in printed.err
    assert same_run(straight, stopped)


@pytest.mark.slow
def test_a_run_whose_checkpoints_are_all_damaged_begins_anew(
    lab: Lab, straight: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = stop(lab, "all-damaged", 4, monkeypatch)
    for folder in sorted((stopped / "checkpoints").iterdir()):
        damaged(folder, "resume.safetensors", "cut short")
    capsys.readouterr()
    lab.train("all-damaged")
    printed = capsys.readouterr()
    assert (printed.out + printed.err).count("is damaged") == 2 and "resuming" not in printed.err
    assert same_run(straight, stopped)


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
    process = subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
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

"""Several devices train the run that one trains: each sample and image once, the same losses, one writer."""

import json
import math
import os
import re
import shutil
import signal
import sys
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from boothlab.cli import main
from boothlab.commands import devices
from boothlab.compose.run import compose
from boothlab.compose.schemas import SCHEMAS
from boothlab.compose.typed import load
from boothlab.config import NOT_HASHED
from boothlab.dreambooth.checkpoints import newest_checkpoint
from boothlab.dreambooth.module import _SeededGlobal
from boothlab.errors import RunFailedError
from boothlab.ranks import ALONE, Ranks, Share, can_share
from boothlab.tracking.manifest import config_hash
from training_runs import Lab, build, history, same_adapter, stopped_after, summary

TWO, SHARDED = "trainer.devices=2", "trainer.sharded=true"
#: relative; the ranks' sums round otherwise than one sum, and AdamW turns a last bit of a small gradient into more
SAME_LOSS = 2e-4


@pytest.fixture(scope="module")
def lab(pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"), pipelines["sd15"])


@given(
    st.integers(1, 8), st.integers(1, 8), st.integers(1, 8), st.integers(1, 3), st.booleans()
)  # devices, batch size, accumulate, steps, prior preservation
def test_the_ranks_compute_every_sample_once(size: int, batch: int, accumulate: int, steps: int, prior: bool) -> None:
    if not can_share(size, batch, accumulate):
        return
    found: Counter[tuple[int, int]] = Counter()
    a_batch = batch * (2 if prior else 1)
    for rank in range(size):
        share = Share.of(Ranks(rank, size), batch)
        turns = accumulate // share.batches
        own = share.own(batch, a_batch)
        # As many of the subject as of the class images, so that the mean of the ranks' losses is the loss.
        assert sum(row < batch for row in own) * size * turns == batch * accumulate
        for turn in range(steps * turns):
            found.update((turn * share.batches + share.turn, row) for row in own)
    assert found == Counter((number, row) for number in range(steps * accumulate) for row in range(a_batch))


def test_samples_that_do_not_divide_are_refused(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    lab.folder.joinpath("refused").mkdir()
    assert main(["train", *lab.overrides("refused", TWO, "data.batch_size=3")]) == 2
    assert "trainer.devices=2: cannot share data.batch_size=3 × trainer.accumulate=1" in capsys.readouterr().err
    assert not any(lab.folder.joinpath("refused").iterdir())


@pytest.mark.parametrize(
    "extra", [(), (TWO,), (TWO, "method=full", "optim.optimizer=adamw8bit"), ("method=full",)], ids=str
)
def test_sharding_needs_something_to_share(
    lab: Lab, capsys: pytest.CaptureFixture[str], extra: tuple[str, ...]
) -> None:
    assert main(["train", *lab.overrides("refused", SHARDED, *extra)]) == 2
    assert "trainer.sharded=True: is for trainer.devices above 1, method=full" in capsys.readouterr().err


def test_the_number_of_devices_is_no_part_of_a_run(lab: Lab) -> None:
    """It is hardware: a run goes on with another number, and a sweep knows what is finished."""
    one, two = (
        load(compose("train", lab.overrides("named", f"trainer.devices={n}")), SCHEMAS["train"])[1] for n in (1, 2)
    )
    assert one != two
    assert config_hash(one, NOT_HASHED) == config_hash(two, NOT_HASHED)


@pytest.mark.parametrize(("size", "batch"), [(2, 4), (2, 1), (4, 2)])
def test_ranks_draw_what_one_device_draws(lab: Lab, size: int, batch: int) -> None:
    """Without processes: the mean of the ranks' losses, each computed alone, is the loss of one device."""
    extra = (f"data.batch_size={batch}", "trainer.accumulate=2", "prior.enabled=true", "evaluation.enabled=false")
    whole = build(lab, f"whole-{size}-{batch}", *extra).module
    expected = [float(whole.training_step(number, number).detach()) for number in range(2)]
    parts = []
    for rank in range(size):
        module = build(lab, f"part-{size}-{batch}-{rank}", *extra).module
        module.share = Share(_Silent(rank, size), Share.of(Ranks(rank, size), batch).rows)
        parts.append([float(module.training_step(number, number).detach()) for number in range(module.turns_a_step)])
        assert module.micro_step == 2
    means = [sum(losses) / len(losses) for losses in parts]
    assert math.isclose(sum(means) / size, sum(expected) / 2, rel_tol=1e-6)


class _Silent(Ranks):
    """A rank whose others are not there."""

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        return values


@pytest.mark.parametrize(("cuda", "expected"), [(True, [3]), (False, [])])
def test_dropout_touches_the_generator_of_one_device(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, expected: list[int]
) -> None:
    """All GPUs of a machine would be started otherwise, with a warning, by each process; an Apple GPU has no number."""
    asked = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices=None: asked.append(devices) or nullcontext())
    state = torch.get_rng_state()
    with _SeededGlobal(1):
        pass
    torch.set_rng_state(state)
    assert asked == [expected]


def test_one_device_needs_no_group() -> None:
    assert ALONE.leads
    assert ALONE.broadcast("word") == "word"
    assert ALONE.gather(3) == [3]
    assert not torch.distributed.is_initialized()


#: a few runs, each with several features that have nothing to do with each other
FEATURES: dict[str, tuple[str, ...]] = {
    "rows, schedule-free": ("data.batch_size=4", "optim.optimizer=schedule_free", "optim.lr=0.02"),
    "batches of a step, pivotal": ("data.batch_size=1", "trainer.accumulate=2", "method=pivotal"),
    "both, four devices": (
        *("data.batch_size=2", "trainer.accumulate=2", "trainer.devices=4"),
        *("trainer.gradient_checkpointing=true", "trainer.offload=true"),
    ),
    "prior, text encoder, average": (
        *("prior.enabled=true", "prior.num_class_images=5", "lora.train_text_encoder=true", "trainer.ema_decay=0.9"),
        "evaluation.pres_images=3",
    ),
    "whole": ("method=full", "optim.lr=0.0001"),
    "whole, sharded, average": (
        *("method=full", "full.train_text_encoder=true", "optim.lr=0.0001", "trainer.ema_decay=0.9"),
        *("trainer.sharded=true", "trainer.accumulate=2"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FEATURES)
def test_two_devices_train_the_run_of_one(lab: Lab, name: str) -> None:
    slug = re.sub(r"\W+", "-", name)
    # A cache each, or the second would be handed the images that it is to draw.
    caches = {kind: lab.folder / f"cache-{kind}-{slug}" for kind in ("one", "two")}
    extra = (*FEATURES[name], "evaluation.sampler.batch_size=1", "trainer.log_every=2")
    alone = (word for word in extra if "devices" not in word and "sharded" not in word)
    one = lab.train(f"one-{slug}", *alone, f"paths.cache={caches['one']}")
    two = lab.train(f"two-{slug}", TWO, *extra, f"paths.cache={caches['two']}")
    assert one.name == two.name
    ours, theirs = history(one), history(two)
    assert [(step, sorted(row)) for step, row in ours] == [(step, sorted(row)) for step, row in theirs]
    for (step, row), (_, other) in zip(ours, theirs, strict=True):
        for key, value in row.items():
            # At step 0 nothing is trained yet: the very images, so the very scores.
            tolerance = 0.0 if step == 0 else SAME_LOSS if key.startswith("train/") else 2e-2
            assert math.isclose(value, other[key], rel_tol=tolerance, abs_tol=tolerance), (step, key)
    assert [path.name for path in sorted((one / "samples").rglob("*.png"))] == [
        path.name for path in sorted((two / "samples").rglob("*.png"))
    ]
    first, second = (
        [path.read_bytes() for path in sorted((cache / "class-images").rglob("*.png"))] for cache in caches.values()
    )
    assert len(first) == (5 if "prior" in name else 0)
    assert first == second  # drawn once each, and alike
    manifest: Any = json.loads((two / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["numerics"]["devices"] == (4 if "four" in name else 2)
    assert not _children()


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_devices(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = ("data.batch_size=1", "trainer.accumulate=2", "trainer.log_every=3", "trainer.max_steps=6")
    straight, straight_by_two = lab.train("numbers-straight", *extra), lab.train("numbers-two", TWO, *extra)
    with stopped_after(4, monkeypatch):
        stopped = lab.train("numbers", TWO, *extra, code=130)
        other = lab.train("numbers-back", *extra, code=130)
    assert newest_checkpoint(stopped) == (stopped / "checkpoints" / "step_000004", 4)
    shutil.copytree(lab.folder / "numbers", lab.folder / "numbers-again")
    assert lab.train("numbers", *extra) == stopped
    assert lab.train("numbers-back", TWO, *extra) == other
    for run in (stopped, other):
        for (_, row), (_, expected) in zip(history(run), history(straight), strict=True):
            for key in (key for key in row if key.startswith("train/")):
                assert math.isclose(row[key], expected[key], rel_tol=SAME_LOSS, abs_tol=1e-7), key
    again = lab.train("numbers-again", TWO, *extra)
    assert same_adapter(straight_by_two, again)  # with the same number, to the bit


def test_a_traceback_of_another_device_is_told_by_its_last_line(caplog: pytest.LogCaptureFixture) -> None:
    found = devices.Company(2, reasons=[(1, True, "Traceback (most recent call last):\n  deep down\nKeyError: 'x'\n")])
    assert found.told() == "device 1: KeyError: 'x'"
    assert "deep down" in caplog.text  # for whoever is to mend it
    found.reasons.append((2, False, "out of memory here"))
    assert found.told() == "device 2: out of memory here"


@pytest.mark.slow
def test_both_text_encoders_of_sdxl_can_be_sharded(pipelines: dict[str, Path], tmp_path: Path) -> None:
    """transformers hands out hidden states, which SDXL reads, by the class of a layer; sharding changes classes."""
    sdxl = Lab(tmp_path, pipelines["sdxl"])
    extra = ("method=full", "full.train_text_encoder=true", "optim.lr=0.0001", "trainer.max_steps=2")
    one = sdxl.train("one", *extra, "evaluation.enabled=false")
    two = sdxl.train("two", *extra, "evaluation.enabled=false", TWO, SHARDED)
    for (_, row), (_, other) in zip(history(one), history(two), strict=True):
        assert math.isclose(row["train/loss"], other["train/loss"], rel_tol=SAME_LOSS)
        assert math.isclose(row["train/grad_norm"], other["train/grad_norm"], rel_tol=SAME_LOSS)


@pytest.mark.slow
def test_a_sharded_run_goes_on_unsharded_and_back(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = (
        "method=full",
        "optim.lr=0.0001",
        "trainer.ema_decay=0.9",
        "trainer.max_steps=6",
        "evaluation.enabled=false",
    )
    straight = lab.train("parts-straight", *extra)
    for name, first, second in (("parts-to", (TWO, SHARDED), ()), ("parts-from", (), (TWO, SHARDED))):
        with stopped_after(4, monkeypatch):
            stopped = lab.train(name, *extra, *first, code=130)
        assert lab.train(name, *extra, *second) == stopped
        file = Path("unet") / "diffusion_pytorch_model.safetensors"
        ours, theirs = load_file(stopped / file), load_file(straight / file)
        assert ours.keys() == theirs.keys()
        assert all(torch.allclose(ours[key], theirs[key], rtol=0, atol=1e-4) for key in ours)
        for (_, row), (_, expected) in zip(history(stopped), history(straight), strict=True):
            assert math.isclose(row["train/loss"], expected["train/loss"], rel_tol=SAME_LOSS)


@pytest.mark.slow
def test_a_rerun_on_as_many_devices_is_the_same(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    run = lab.train("to-rerun", TWO)
    assert main(["rerun", str(run), "--out", str(lab.folder / "rerun" / run.name)]) == 0
    capsys.readouterr()
    assert main(["rerun", str(run), "--check", "trainer.devices=1"]) in (0, 1)
    assert "2 → 1" in capsys.readouterr().out


@pytest.mark.slow
def test_several_runs_of_one_command(lab: Lab) -> None:
    folder = lab.folder / "multirun"
    overrides = [word for word in lab.overrides("multirun", TWO, "trainer.max_steps=2") if "seed=" not in word]
    assert main(["train", "-m", *overrides, "seed=0,1"]) == 0
    runs = sorted(path.parent for path in folder.rglob("summary.json"))
    assert [summary(run)["status"] for run in runs] == ["finished", "finished"]
    assert not _children()


@pytest.mark.slow
def test_jobs_of_a_launcher(lab: Lab) -> None:
    """The workers of joblib start processes in their own way, which their children do not know."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    overrides = [word for word in lab.overrides("joblib", TWO, "trainer.max_steps=2") if "seed=" not in word]
    launcher = ("hydra/launcher=boothlab_joblib", "hydra.launcher.n_jobs=1")
    assert main(["train", "-m", *launcher, *overrides, "seed=0,1"]) == 0
    runs = sorted(path.parent for path in (lab.folder / "joblib").rglob("summary.json"))
    assert [summary(run)["status"] for run in runs] == ["finished", "finished"]


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_all(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    run = lab.train("not-finite", TWO, "optim.lr=1e30", "optim.grad_clip=null", code=1)
    assert "the loss became" in capsys.readouterr().err
    assert summary(run)["status"] == "failed"
    assert not _children()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_others_end_with_the_leader(lab: Lab, tmp_path: Path, how: signal.Signals) -> None:
    """Nothing hangs and nobody is left; the same command goes on. Signals are the leader's to answer."""
    run, leader, follower, family = _started(lab, f"ended-{how.name}", tmp_path / "err")
    for number in (signal.SIGTERM, signal.SIGINT):
        follower.send_signal(number)
    time.sleep(1)
    assert follower.is_running()
    leader.send_signal(how)
    assert leader.wait(60) == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[how]
    _wait(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family))
    assert newest_checkpoint(run) is not None


@pytest.mark.slow
def test_a_device_that_is_killed_fails_the_run(lab: Lab, tmp_path: Path) -> None:
    """Also while the leader does something that takes longer than others are waited for: it notices by itself."""
    run, leader, follower, family = _started(lab, "killed", tmp_path / "err", _SLOW)
    _wait((run / "writing").exists)
    follower.kill()
    assert leader.wait(60) == 1
    assert "boothlab: error: device 1: its process was killed by signal 9 (out of memory?)\n" in (
        (tmp_path / "err").read_text(encoding="utf-8")
    )
    assert "Traceback" not in (tmp_path / "err").read_text(encoding="utf-8")
    assert summary(run)["status"] == "failed"
    _wait(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family))


_PLAIN = "import sys; from boothlab.cli import main; sys.exit(main(sys.argv[1:]))"
_SLOW = """
import sys, time
from boothlab.cli import main
from boothlab.commands import devices
from boothlab.dreambooth import callbacks
devices.GRACE_S, save = 0.2, callbacks.save_checkpoint
def slowly(run_dir, *arguments):
    folder = save(run_dir, *arguments)
    if arguments[3] == 40:
        (run_dir / "writing").touch()
        time.sleep(3)
    return folder
callbacks.save_checkpoint = slowly
sys.exit(main(sys.argv[1:]))
"""


def _started(
    lab: Lab, name: str, output: Path, script: str = _PLAIN
) -> tuple[Path, psutil.Popen, psutil.Process, list[psutil.Process]]:
    """A run on two devices with a checkpoint: its folder, the leader, the follower, and everyone the leader started."""
    long = ("trainer.max_steps=4000", "trainer.checkpoint_every=20", "evaluation.enabled=false")
    words = lab.overrides(name, TWO, *long)
    with output.open("w") as errors:
        leader = psutil.Popen(
            [sys.executable, "-c", script, "train", *words],
            stderr=errors,
            stdout=errors,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
    _wait(lambda: any((lab.folder / name).glob("*/*/checkpoints/step_*")) or leader.poll() is not None)
    assert leader.poll() is None, output.read_text()
    family = leader.children(recursive=True)
    follower = next(one for one in family if "spawn_main" in " ".join(one.cmdline()))
    (run,) = (lab.folder / name).glob("*/[!.]*")
    return run, leader, follower, family


@pytest.mark.slow
@pytest.mark.parametrize("when", ["at once", "in between"])
def test_an_error_of_another_device_is_told(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], when: str
) -> None:
    """What only one process meets is what the user reads, and not that the others lost touch with it."""
    monkeypatch.setattr(devices, "_help", _fail_at_once if when == "at once" else _fail_in_between)
    name, threads = f"told-{when[:2]}", torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert main(["train", *lab.overrides(name, TWO, "trainer.threads=null")]) == 1
        assert torch.get_num_threads() == 2  # or a later job of this process would compute other bits than alone
    finally:
        torch.set_num_threads(threads)
    assert "boothlab: error: device 1: out of memory here" in capsys.readouterr().err
    assert not list((lab.folder / name).rglob("lora"))
    assert not _children()


def _fail_at_once(config: Any, rank: int, pipe: Any) -> None:
    pipe.send((False, "out of memory here"))
    sys.exit(1)


def _fail_in_between(config: Any, rank: int, pipe: Any) -> None:
    from boothlab.building import following

    def fail(*arguments: Any) -> None:
        raise RunFailedError("out of memory here")

    following.build_module = fail
    devices._help(config, rank, pipe)


def _wait(until: Any, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "in vain"
        time.sleep(0.1)


def _children() -> list[psutil.Process]:
    return [one for one in psutil.Process(os.getpid()).children(recursive=True) if "spawn_main" in str(one.cmdline())]

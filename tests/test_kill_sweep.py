"""A sweep that is killed again and again ends with the bits of one that nobody disturbed."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

import kill_sweep


@pytest.mark.slow
def test_a_sweep_survives_being_killed(pipelines: dict[str, Path], tmp_path: Path) -> None:
    outcome = kill_sweep.kill_sweep(tmp_path / "sweep", pipelines["sd15"], kills=4, seed=3)
    assert outcome.differences == []
    assert (outcome.kills, outcome.jobs) == (4, kill_sweep.JOBS)
    assert outcome.while_training >= 1


def test_the_comparison_sees_every_difference(tmp_path: Path) -> None:
    """A history, a score or an adapter that differs, and a run that is missing."""
    for name in ("one", "two"):
        run_dir = tmp_path / name / "study" / "run-s0"
        (run_dir / "lora").mkdir(parents=True)
        (run_dir / "manifest.json").write_text('{"config": {"seed": 0}, "seed": 0, "status": "finished"}')
        row = '{"step": 0, "time": %f, "eval/clip_i": 0.5, "eval/sampling_seconds": %f}\n'
        (run_dir / "metrics.jsonl").write_text(row % (random.random(), random.random()))
        summary = '{"status": "finished", "final": {}, "best": {}, "baselines": {}, "ceilings": {}}'
        (run_dir / "summary.json").write_text(summary)
        (run_dir / "lora" / "pytorch_lora_weights.safetensors").write_bytes(b"weights")
    one, two = tmp_path / "one", tmp_path / "two"
    assert kill_sweep.differences(one, two) == []
    history = two / "study" / "run-s0" / "metrics.jsonl"
    history.write_text(history.read_text().replace("0.5", "0.50000001"))
    assert kill_sweep.differences(one, two) == ["run-s0/metrics.jsonl", "runs.csv"]
    weights = one / "study" / "run-s0" / "lora" / "pytorch_lora_weights.safetensors"
    weights.write_bytes(b"weighty")
    assert kill_sweep.differences(one, two)[0] == "run-s0/lora/pytorch_lora_weights.safetensors"
    (one / "study" / "run-s0" / "summary.json").unlink()
    assert kill_sweep.differences(one, two)[0] == "run-s0 is in one of them only"


def test_a_kill_falls_where_it_was_drawn(tmp_path: Path) -> None:
    """By the clock or by rows; what ends by itself is not called killed."""
    history = tmp_path / "experiment" / "run" / "metrics.jsonl"
    history.parent.mkdir(parents=True)
    write = f"import time\nwhile True:\n open({str(history)!r}, 'a').write('row\\n')\n time.sleep(0.01)"
    log = tmp_path / "log"
    process = kill_sweep.start([sys.executable, "-c", write], log)
    assert kill_sweep.kill_at(process, tmp_path, random.Random(1), 60.0) == "training"
    assert process.returncode == -9
    sleeper = kill_sweep.start([sys.executable, "-c", "import time; time.sleep(60)"], log)
    seed = next(seed for seed in range(99) if random.Random(seed).random() < 0.05)
    chance = random.Random(seed)
    assert kill_sweep.kill_at(sleeper, tmp_path, chance, 60.0) == "start-up"
    done = subprocess.Popen([sys.executable, "-c", ""])
    assert kill_sweep.kill_at(done, tmp_path, random.Random(1), 60.0) == "finished"
    failed = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    assert kill_sweep.kill_at(failed, tmp_path, random.Random(1), 60.0) == "exit code 3"

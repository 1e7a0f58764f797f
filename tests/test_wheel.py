"""The built wheel is whole: away from the checkout it finds its conf and its dollhouse, and it trains."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's files in a folder of their own."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, cwd=folder)
    (wheel,) = folder.glob("boothlab-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def boothlab(site: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the unpacked package from `cwd`, blind to the checkout."""
    environment = {**os.environ, "PYTHONPATH": str(site), "WANDB_MODE": "offline"}
    return subprocess.run(
        [sys.executable, "-m", "boothlab", *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_it_finds_its_configs_and_weights(unpacked: Path, tmp_path: Path) -> None:
    where = "import boothlab, pathlib; print(pathlib.Path(boothlab.__file__).parent)"
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    found = subprocess.run([sys.executable, "-c", where], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert Path(found.stdout.strip()) == unpacked / "boothlab"  # or this would test the checkout
    shown = boothlab(unpacked, tmp_path, "train", "--cfg", "job")
    assert shown.returncode == 0, shown.stderr
    assert "source: dollhouse" in shown.stdout


@pytest.mark.slow
def test_it_trains_on_its_own_dollhouse(unpacked: Path, tmp_path: Path) -> None:
    steps = ("trainer.max_steps=2", "trainer.checkpoint_every=2", "evaluation.seeds=[0]", "tracking.wandb=disabled")
    trained = boothlab(unpacked, tmp_path, "train", *steps, f"paths.cache={tmp_path / 'cache'}")
    assert trained.returncode == 0, trained.stderr
    (adapter,) = (tmp_path / "outputs").glob("train/*/lora/pytorch_lora_weights.safetensors")
    assert adapter.stat().st_size > 0

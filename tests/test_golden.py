"""The golden runs come out as they did: to the bit where they were made, within the tolerances elsewhere."""

import getpass
import json
import math
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from boothlab.compose.run import compose
from boothlab.compose.schemas import SCHEMAS
from boothlab.compose.typed import from_resolved, leaves, load
from boothlab.config import NOT_HASHED, NoiseScheduler
from boothlab.tracking.manifest import read_manifest
from golden_runs import GOLDEN, KEPT, KEPT_OF_MACHINE, RUNS, Outcome, again, check, keep, moved_to, overrides, renew

FILES = {"manifest.json", "metrics.jsonl", "summary.json"}
FAST = ("default", "text-encoder-and-prior")
MOSTLY_SLOW = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in RUNS]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def remade(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """The default run again, with what was said of it. Not to be changed."""
    out = tmp_path_factory.mktemp("remade") / "default"
    return again(GOLDEN / "default", out), out


def altered(golden: Path, step: int, key: str, value: float) -> float:
    """Set a value in the metrics.jsonl of a copy of a golden folder; gives the one that stood there."""
    path = golden / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    (row,) = (row for row in rows if row["step"] == step and key in row)
    before, row[key] = row[key], value
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return float(before)


def value_at(golden: Path, step: int, key: str) -> float:
    """A value in a metrics.jsonl."""
    rows = [json.loads(line) for line in (golden / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return next(float(row[key]) for row in rows if row["step"] == step and key in row)


# --- what is kept


def test_there_is_a_folder_for_each_run_of_the_list_and_no_other() -> None:
    assert {path.parent.name for path in GOLDEN.glob("*/manifest.json")} == set(RUNS)
    for name in RUNS:
        assert {path.name for path in (GOLDEN / name).iterdir()} == FILES


def test_the_list_uses_every_sampler() -> None:
    used = {read_manifest(GOLDEN / name)["config"]["evaluation"]["sampler"]["scheduler"] for name in RUNS}
    assert used == {sampler.value for sampler in NoiseScheduler}


@pytest.mark.parametrize("name", MOSTLY_SLOW)
def test_a_golden_run_has_the_config_that_its_overrides_give_today(name: str) -> None:
    """A rerun takes the recorded config, so a change of conf/ or of a default would go unseen. New keys may join."""
    schema = SCHEMAS["train"]
    today = dict(leaves(load(compose("train", overrides(name)), schema)[1]))
    recorded = dict(leaves(from_resolved(read_manifest(GOLDEN / name)["config"], schema)[1]))
    hidden = tuple(f"{key}." for key in NOT_HASHED)
    moved = {
        key: (recorded.get(key), today.get(key))
        for key in recorded.keys() | today.keys()
        if recorded.get(key) != today.get(key) and not f"{key}.".startswith(hidden)
    }
    assert moved == {}, f"golden run {name}: if that is as it should be: make golden"


@pytest.mark.parametrize("name", RUNS)
def test_no_clock_place_or_person_is_kept(name: str) -> None:
    manifest = read_manifest(GOLDEN / name)
    assert set(manifest) == set(KEPT)
    assert set(manifest["machine"]) == set(KEPT_OF_MACHINE)
    text = "".join((GOLDEN / name / file).read_text(encoding="utf-8") for file in sorted(FILES))
    assert not re.search(r'"(/|~|[A-Za-z]:\\|\\\\|file:)', text)  # a path of a machine
    assert not re.search(r"\d\d:\d\d:\d\d|seconds\"", text)
    assert socket.gethostname() not in text
    assert f"/{getpass.getuser()}" not in text
    assert {row["time"] for row in map(json.loads, (GOLDEN / name / "metrics.jsonl").read_text().splitlines())} == {0.0}


def test_what_is_kept_leaves_out_what_a_run_says_of_its_machine(remade: tuple[Outcome, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(remade[1], run)
    manifest: dict[str, Any] = json.loads((run / "manifest.json").read_text())
    secrets = {"working_directory": "/home/someone/x", "command": ["/home/someone/bin/boothlab"], "host": "someone"}
    manifest = {
        **manifest,
        **secrets,
        "git": {"diff": "by someone"},
        "machine": {**manifest["machine"], "node": "someone"},
    }
    manifest["config"]["paths"]["cache"] = "/home/someone/cache"
    manifest["inputs"] = {f"/home/someone/{Path(path).name}": digest for path, digest in manifest["inputs"].items()}
    (run / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    keep(run, tmp_path / "default")
    assert "someone" not in "".join(path.read_text() for path in sorted((tmp_path / "default").iterdir()))
    assert sorted(read_manifest(tmp_path / "default")["inputs"])[0] == "dollhouse:robot/6/photo_00.png"


# --- made again


def test_the_default_run_comes_out_the_same(remade: tuple[Outcome, Path]) -> None:
    outcome, _ = remade
    assert outcome.moved == "", outcome.out + outcome.err
    assert outcome.out.splitlines()[-1].startswith("same: default can be made again (")


@pytest.mark.parametrize("name", MOSTLY_SLOW[1:])
def test_it_comes_out_the_same(name: str, tmp_path: Path) -> None:
    outcome = again(GOLDEN / name, tmp_path / name)
    assert outcome.moved == "", outcome.out + outcome.err


def test_a_checkpoint_is_no_larger_than_three_adapters_and_the_optimizer(remade: tuple[Outcome, Path]) -> None:
    for folder in sorted((remade[1] / "checkpoints").iterdir()):
        tensors = load_file(folder / "resume.safetensors")
        optimizer = sum(value.nbytes for name, value in tensors.items() if name.startswith("optimizer/"))
        adapter = (folder / "pytorch_lora_weights.safetensors").stat().st_size
        assert sum(file.stat().st_size for file in folder.iterdir()) <= 3 * adapter + optimizer


def test_a_value_that_moved_by_its_last_bit_is_named(remade: tuple[Outcome, Path], tmp_path: Path) -> None:
    golden, made = tmp_path / "default", remade[1]
    keep(made, golden)
    assert moved_to(golden, made) == "same bit for bit"
    loss = value_at(golden, 5, "train/loss")
    altered(golden, 5, "train/loss", math.nextafter(loss, 1))
    altered(golden, 8, "train/loss", 1.0)
    moved = moved_to(golden, made)
    assert moved.startswith(f"moved: metrics, step 5: train/loss {math.nextafter(loss, 1)!r} → {loss!r} (")
    assert moved.endswith("; the 5 steps before it pass")  # 0 to 4
    altered(golden, 8, "train/loss", value_at(made, 8, "train/loss"))
    assert moved_to(golden, made).startswith("moved within tolerance: metrics, step 5: train/loss ")


@pytest.mark.slow
@pytest.mark.parametrize("by", ["one part in a hundred", "the last bit"])
def test_the_check_fails_with_run_step_and_key(by: str, remade: tuple[Outcome, Path], tmp_path: Path) -> None:
    """What was kept here is held to the bit; the committed one, on another machine, to the tolerance."""
    golden, key = tmp_path / "golden" / "default", "eval/dino/dollhouse"
    if by == "the last bit":
        keep(remade[1], golden)
        value = math.nextafter(value_at(golden, 8, key), 1)
    else:
        shutil.copytree(GOLDEN / "default", golden)
        value = value_at(golden, 8, key) + 0.01
    altered(golden, 8, key, value)
    outcome = again(golden, tmp_path / "again")
    assert outcome.code == 1
    assert outcome.moved.startswith(f"golden run default: first difference: metrics, step 8: {key} {value!r} → ")
    assert outcome.moved.endswith("(if that is as it should be: make golden)")


@pytest.mark.slow
def test_another_number_of_threads_is_named_and_passes_within_the_tolerance(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        outcome = again(GOLDEN / "text-encoder-and-prior", tmp_path / "again", "trainer.threads=2")
    finally:
        torch.set_num_threads(before)
    assert outcome.code == 0, outcome.out + outcome.err
    assert "warning torch_threads: 1 → 2" in outcome.err
    assert outcome.out.splitlines()[-1] == "same: text-encoder-and-prior can be made again (within tolerance)"


def test_weights_that_are_others_are_named(tmp_path: Path) -> None:
    golden = tmp_path / "golden" / "default"
    shutil.copytree(GOLDEN / "default", golden)
    manifest = json.loads((golden / "manifest.json").read_text())
    manifest["weights"]["backbone"]["unet/config.json"] = "0" * 64
    (golden / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    outcome = again(golden, tmp_path / "again")
    assert outcome.code == 2
    assert outcome.moved.startswith("golden run default: boothlab: error: backbone: unet/config.json is ")


# --- renewed


@pytest.mark.slow
def test_renewing_twice_gives_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def content() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((tmp_path / "rank-and-dropout").iterdir())}

    renew(["rank-and-dropout"], tmp_path)
    first = content()
    renew(["rank-and-dropout"], tmp_path)
    assert [line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()] == ["new", "same bit for bit"]
    assert content() == first
    assert set(first) == FILES
    assert check(["rank-and-dropout"], tmp_path) == 0
    assert "same: rank-and-dropout can be made again (bit for bit)" in capsys.readouterr().out
    altered(tmp_path / "rank-and-dropout", 3, "train/grad_norm", 99.0)
    assert check(["rank-and-dropout"], tmp_path) == 1
    assert "golden run rank-and-dropout: first difference: metrics, step 3: train/grad_norm 99.0 → " in (
        capsys.readouterr().out
    )

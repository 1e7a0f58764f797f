"""`boothlab rerun`: the same run again from its manifest alone, refused where it cannot be the same, and compared."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from boothlab.cli import main
from boothlab.compose.naming import run_name
from boothlab.config import NOT_HASHED, BackboneConfig, EncodersConfig
from boothlab.errors import UserError
from boothlab.files import sha256_file
from boothlab.rerunning.circumstances import differing, expects_same_bits, here
from boothlab.rerunning.compare import BIT_FOR_BIT, WITHIN_TOLERANCE, Side, Standard, Verdict, compare_runs
from boothlab.rerunning.inputs import Item, recorded_photos, search
from boothlab.rerunning.materials import check_adapter, check_backbone, check_encoders, pinned_revisions
from boothlab.rerunning.origin import find_origin
from boothlab.rerunning.recipe import read_recipe
from boothlab.tracking.history import History
from boothlab.tracking.manifest import RunStatus, close_manifest, config_hash, read_manifest, write_manifest
from training_runs import ADAPTER, Lab, history, same_adapter

QUICK = ("trainer.max_steps=2", "trainer.checkpoint_every=1", "evaluation.enabled=false", "data.variants=1")


def photos(folder: Path) -> Path:
    """Three photos, the first two with captions."""
    folder.mkdir(parents=True)
    ys, xs = np.mgrid[:36, :40]
    for index in range(3):
        pixels = np.stack([xs * 6, ys * 7, xs * 0 + 40 * index], axis=2).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"photo_{index}.png")
    for index in range(2):
        (folder / f"photo_{index}.txt").write_text(f"a robot on a table, take {index}\n")
    return folder


def train(lab: Lab, name: str, *extra: str) -> Path:
    """Train, and give the run folder."""
    assert main(["train", *lab.overrides(name, *extra)]) == 0
    (manifest,) = (lab.folder / name).glob("*/*/manifest.json")
    return manifest.parent


@pytest.fixture(scope="module")
def lab(pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp("lab")
    pipeline = folder / "pipeline"
    shutil.copytree(pipelines["sd15"], pipeline)
    return Lab(folder, pipeline)


@pytest.fixture(scope="module")
def quick(lab: Lab) -> Path:
    """A run of two steps on photos of one's own, without evaluation. Not to be changed."""
    folder = photos(lab.folder / "photos")
    return train(lab, "quick", f"subject.images={folder}", "subject.captions=true", *QUICK)


@pytest.fixture(scope="module")
def whole(lab: Lab) -> Path:
    """A run with evaluation, drawn class images and prior preservation, on toys. Not to be changed."""
    return train(lab, "whole", "prior.enabled=true")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Reruns go to outputs/ of a fresh working directory, and to W&B nothing goes."""
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb"))
    return tmp_path


def copied(run: Path, to: Path, change: Callable[[dict[str, Any]], object] | None = None) -> Path:
    """A copy of a run folder, with its manifest changed."""
    shutil.copytree(run, to)
    if change is not None:
        manifest = json.loads((to / "manifest.json").read_text(encoding="utf-8"))
        change(manifest)
        (to / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return to


def moved_photos(manifest: dict[str, Any], to: Path) -> None:
    """As if the run had been made with photos in `to`."""
    manifest["config"]["subject"]["images"] = str(to)
    for section in ("inputs", "captions"):
        manifest[section] = {str(to / Path(name).name): digest for name, digest in manifest[section].items()}
    manifest["config_hash"] = config_hash(manifest["config"], NOT_HASHED)


def rerun(*words: object) -> int:
    return main(["rerun", *map(str, words)])


# --- a run again


def test_a_rerun_is_the_same_bit_for_bit(quick: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rerun(quick) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].split(maxsplit=5) == ["metrics", "same", "bit", "for", "bit", "10 values at 2 steps"]
    assert lines[1].split(maxsplit=5) == ["adapter", "same", "bit", "for", "bit", "3 files"]
    assert lines[2:] == [f"same: {quick.name} can be made again (bit for bit)"]
    made = Path("outputs") / "reruns" / quick.name
    assert same_adapter(quick, made) and history(quick) == history(made)
    before, after = read_manifest(quick), read_manifest(made)
    parent = {"run": quick.name, "config_hash": before["config_hash"], "fork": False, "changes": {}}
    assert after["parent"] == parent and before["parent"] is None
    for key in ("config", "config_hash", "inputs", "captions", "weights", "stream_seeds", "adapter_tensors"):
        assert after[key] == before[key], key
    assert after["outputs"][str(ADAPTER)] == before["outputs"][str(ADAPTER)]
    assert not list(Path("outputs", "reruns").glob(".cache-*"))


def test_a_second_rerun_is_put_elsewhere_under_the_same_name(quick: Path) -> None:
    (Path("outputs") / "reruns" / quick.name).mkdir(parents=True)
    assert rerun(quick) == 0
    assert (Path("outputs") / "reruns" / "again-2" / quick.name / ADAPTER).is_file()


@pytest.mark.slow
def test_everything_is_made_again_and_compared(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rerun(whole) == 0
    printed = capsys.readouterr().out
    assert [line.split("  ")[0] for line in printed.splitlines()[:-1]] == [
        "class images",
        "metrics",
        "adapter",
        "samples",
    ]
    assert printed.count("same bit for bit") == 4


@pytest.mark.slow
def test_another_number_of_threads_is_said_and_held_to_the_tolerance(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.get_num_threads()
    try:
        code = rerun(whole, "trainer.threads=2")
    finally:
        torch.set_num_threads(before)
    printed = capsys.readouterr()
    assert "warning torch_threads: 1 → 2" in printed.err
    assert "changed  trainer.threads: 1 → 2" in printed.err
    assert code == 0
    assert f"same: {whole.name} can be made again (within tolerance)" in printed.out


def test_the_recorded_number_of_threads_is_used(quick: Path, tmp_path: Path) -> None:
    def open_threads(manifest: dict[str, Any]) -> None:
        manifest["config"]["trainer"]["threads"] = None

    run = copied(quick, tmp_path / "run", open_threads)
    torch.set_num_threads(2)
    try:
        assert rerun(run) == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)
    made = read_manifest(Path("outputs") / "reruns" / quick.name)
    assert made["config"]["trainer"]["threads"] is None and made["numerics"]["torch_threads"] == 1


def test_the_first_difference_is_named(quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copied(quick, tmp_path / "run", lambda manifest: manifest["stream_seeds"].update(noise=1))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    loss, rows[1]["train/loss"] = rows[1]["train/loss"], 0.25
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert rerun(run) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[2].startswith(f"first difference: metrics, step 2: train/loss 0.25 → {loss!r} (")
    assert out[2].endswith("; the 1 steps before it pass")
    assert out[3] == "hint: these streams have other seeds: noise"


@pytest.mark.slow
def test_an_unfinished_rerun_is_continued(quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "again" / quick.name
    assert rerun(quick, "--out", out) == 0
    shutil.rmtree(out / "checkpoints" / "step_000002")
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, "status": "interrupted"}))
    (out / "summary.json").unlink()
    capsys.readouterr()
    assert rerun(quick, "--out", out) == 0
    assert "resuming after step 1" in capsys.readouterr().err
    assert rerun(quick, "--out", out) == 2
    assert "holds something else; give a new folder" in capsys.readouterr().err


def test_an_interrupted_run_is_compared_as_far_as_it_went(
    quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(quick, tmp_path / "run", lambda manifest: manifest.update(status="interrupted", outputs={}))
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text().splitlines(keepends=True)[0])
    shutil.rmtree(run / "lora")
    shutil.rmtree(run / "checkpoints" / "step_000002")
    assert rerun(run) == 0
    printed = capsys.readouterr()
    assert "the run is interrupted, not finished; what it left so far is compared" in printed.err
    assert "5 values at 1 steps" in printed.out and "1 files" in printed.out


# --- forks


def test_a_fork_names_its_parent_and_is_not_compared(quick: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rerun(quick, "optim.lr=0.01", "trainer.log_every=2") == 0
    printed = capsys.readouterr()
    (folder,) = (Path("outputs") / "reruns").glob("tiny-*")
    assert printed.out == f"{folder.name}: a fork of {quick.name} (optim.lr 0.02 → 0.01); not compared\n"
    assert "changed  optim.lr: 0.02 → 0.01" in printed.err
    before, after = read_manifest(quick), read_manifest(folder)
    assert after["config_hash"] != before["config_hash"] and after["config"]["optim"]["lr"] == 0.01
    assert folder.name == run_name(after["config"]) != quick.name
    changes = {"optim.lr": {"from": 0.02, "to": 0.01}, "trainer.log_every": {"from": 1, "to": 2}}
    parent = {"run": quick.name, "config_hash": before["config_hash"], "fork": True, "changes": changes}
    assert after["parent"] == parent


@pytest.mark.slow
def test_a_fork_may_have_more_toys(lab: Lab) -> None:
    run = train(lab, "three", *QUICK)
    assert rerun(run, "subject.count=4") == 0
    (fork,) = (Path("outputs") / "reruns").glob("tiny-*")
    assert (len(read_manifest(run)["inputs"]), len(read_manifest(fork)["inputs"])) == (3, 4)


def test_a_fork_may_have_other_photos_and_says_so(
    quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = photos(tmp_path / "others")
    Image.new("RGB", (40, 36), "red").save(folder / "photo_1.png")
    assert rerun(quick, f"subject.images={folder}") == 2  # only another place was asked for
    assert rerun(quick, f"subject.images={folder}", "seed=1") == 0
    assert "warning photos: not those of the parent" in capsys.readouterr().err
    (run,) = (Path("outputs") / "reruns").glob("tiny-*-s1")
    assert sha256_file(folder / "photo_1.png") in read_manifest(run)["inputs"].values()


# --- data and weights


@pytest.fixture
def own(quick: Path, tmp_path: Path) -> Path:
    """A copy of the quick run whose photos lie in tmp_path/photos and may be changed."""
    shutil.copytree(quick.parents[2] / "photos", tmp_path / "photos")
    return copied(quick, tmp_path / "run", lambda manifest: moved_photos(manifest, tmp_path / "photos"))


def test_a_changed_photo_is_refused_by_name_and_hash(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "photos" / "photo_1.png"
    Image.new("RGB", (40, 36), "red").save(photo)
    assert rerun(own) == 2
    digest = read_manifest(own)["inputs"][str(photo)]
    assert capsys.readouterr().err == (
        f"boothlab: error: photo photo_1.png (SHA-256 {digest}) cannot be found; name the folder that has it with "
        "subject.images=…, or put it into inputs/ in the run folder (--allow data runs it with what is there)\n"
    )
    assert not (Path("outputs") / "reruns" / own.name).exists()


def test_a_changed_photo_runs_when_it_is_allowed_and_the_difference_is_named(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (40, 36), "red").save(tmp_path / "photos" / "photo_1.png")
    assert rerun(own, "--allow", "data") == 1
    printed = capsys.readouterr()
    assert "warning photo photo_1.png (SHA-256" in printed.err
    assert "first difference: metrics, step 1: train/loss " in printed.out
    assert "hint: the first step logged: look at the photos" in printed.out
    assert "known to differ: photo photo_1.png" in printed.out


def test_a_changed_caption_is_refused(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos" / "photo_0.txt").write_text("a robot in the rain\n")
    assert rerun(own) == 2
    assert "error: caption photo_0.txt (SHA-256 " in capsys.readouterr().err


def test_photos_that_came_later_or_were_renamed_do_not_matter(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    Image.new("RGB", (40, 36), "red").save(folder / "a_new_one.png")
    (folder / "photo_0.png").rename(folder / "z.png")
    (folder / "photo_0.txt").rename(folder / "notes.txt")
    assert rerun(own) == 0
    assert "photos: 3 photos, 2 captions, gathered by content" in capsys.readouterr().err
    staged = Path("outputs") / "reruns" / read_manifest(own)["run"] / "inputs" / "photos"
    assert sorted(path.name for path in staged.iterdir()) == [
        *("photo_0.png", "photo_0.txt", "photo_1.png", "photo_1.txt", "photo_2.png"),
    ]


@pytest.mark.parametrize("how", ["override", "beside", "working directory"])
def test_photos_are_found_again_on_another_machine(how: str, own: Path, tmp_path: Path) -> None:
    if how == "beside":
        (tmp_path / "photos").rename(own / "inputs")
        assert rerun(own) == 0
        return
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    if how == "override":
        assert rerun(own) == 2
        assert rerun(own, f"subject.images={tmp_path / 'elsewhere'}") == 0
        changes = read_manifest(Path("outputs") / "reruns" / read_manifest(own)["run"])["parent"]["changes"]
        assert changes == {"subject.images": {"from": str(tmp_path / "photos"), "to": str(tmp_path / "elsewhere")}}
        return
    manifest = json.loads((own / "manifest.json").read_text())
    moved_photos(manifest, Path("elsewhere"))
    manifest["working_directory"] = str(tmp_path)
    (own / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "sub").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "sub")
        assert rerun(own) == 0


@pytest.mark.slow
def test_toys_are_drawn_again_without_the_cache(lab: Lab, tmp_path: Path) -> None:
    run = train(lab, "toys", f"paths.cache={tmp_path / 'cache'}", *QUICK)
    shutil.rmtree(tmp_path / "cache")
    moved = tmp_path / "another place" / "run"
    moved.parent.mkdir()
    shutil.copytree(run, moved)
    assert rerun(moved) == 0
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_ones_own_class_images_are_checked_too(lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = photos(tmp_path / "class")
    run = train(lab, "own", "prior.enabled=true", f"prior.class_images={folder}", *QUICK)
    (folder / "photo_0.png").rename(folder / "x.png")  # the two that are taken would now be others
    assert rerun(run) == 0
    assert "class images: 2 class images, gathered by content" in capsys.readouterr().err
    (folder / "x.png").unlink()
    assert rerun(run) == 2
    assert "error: class image 0000 (SHA-256 " in (err := capsys.readouterr().err) and "prior.class_images=…" in err


def test_changed_weights_are_refused(lab: Lab, quick: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = lab.pipeline / "scheduler" / "scheduler_config.json"
    before = path.read_bytes()
    path.write_bytes(before + b"\n")
    try:
        assert rerun(quick) == 2
        err = capsys.readouterr().err
        assert "error: backbone: scheduler/scheduler_config.json is " in err and "--allow weights" in err
        assert rerun(quick, "--allow", "weights") == 0  # no number hangs on a blank line
    finally:
        path.write_bytes(before)


def test_weights_may_lie_elsewhere(lab: Lab, quick: Path, tmp_path: Path) -> None:
    run = copied(quick, tmp_path / "run", lambda m: m["config"]["backbone"].update(source=str(tmp_path / "gone")))
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["config_hash"] = config_hash(manifest["config"], NOT_HASHED)
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert rerun(run) == 2
    assert rerun(run, f"backbone.source={lab.pipeline}") == 0


COMMIT = "0123456789abcdef" * 2 + "01234567"


def test_models_of_the_hub_are_held_to_their_recorded_commits() -> None:
    weights = {
        "backbone": {"hub": "org/sd", "revision": COMMIT},
        "clip": {"hub": "org/clip", "revision": COMMIT},
        "dino": {"hub": "org/dino", "revision": "main"},
    }
    config = {"backbone": {"revision": None}, "encoders": {"clip_revision": "v1", "dino_revision": None}}
    assert pinned_revisions({"weights": weights}, config) == {"backbone.revision": COMMIT}
    assert pinned_revisions({"weights": weights}, config, ["backbone.source"]) == {}
    backbone = BackboneConfig(name="sd", source="org/sd", revision=COMMIT, resolution=64)
    assert check_backbone(backbone, {"weights": weights}).same is True
    other = check_backbone(replace(backbone, revision="f" * 40), {"weights": weights})
    assert other.same is False
    assert other.problem == f"backbone: revision is {'f' * 12}, and was {COMMIT[:12]}"
    assert check_backbone(backbone, {}).same is None


def test_encoders_of_format_1_are_told_by_the_hash_in_their_name(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "model.safetensors").write_bytes(b"weights")
    # as the name of a loaded encoder is made: seven digits of the hash over the hashes of its weight files
    digits = hashlib.sha256(hashlib.sha256(b"weights").digest()).hexdigest()[:7]
    config = EncodersConfig(clip=str(tmp_path / "clip"), dino="org/dino")
    found = check_encoders(config, {"weights": {"clip": f"clip@{digits}", "dino": "org/dino@0123456"}})
    assert [material.same for material in found] == [True, None]
    (tmp_path / "clip" / "model.safetensors").write_bytes(b"other")
    changed, _ = check_encoders(config, {"weights": {"clip": f"clip@{digits}", "dino": "org/dino@0123456"}})
    assert changed.same is False and f"were clip@{digits}" in changed.problem


def test_an_encoder_that_is_gone_is_named_with_its_key(tmp_path: Path) -> None:
    config = EncodersConfig(clip=str(tmp_path / "gone"), dino="org/dino")
    (material,) = check_encoders(config, {"weights": {"clip": {"model.safetensors": "0" * 64}}})
    assert material.problem.endswith("name the folder that holds the same files with encoders.clip=…")


@pytest.mark.parametrize("section", ["weights", "inputs"])
def test_the_adapter_of_a_scoring_is_found_by_content(section: str, tmp_path: Path) -> None:
    run = tmp_path / "run" / "lora"
    run.mkdir(parents=True)
    save_file({"a": torch.ones(1)}, run / ADAPTER.name)
    digest, recorded = sha256_file(run / ADAPTER.name), "outputs/run/lora/pytorch_lora_weights.safetensors"
    files = {recorded: digest}
    manifest = {"weights": {"adapter": files}} if section == "weights" else {"inputs": {"p/a.png": "1", **files}}
    assert check_adapter(None, manifest, tmp_path).same is False
    assert check_adapter(str(tmp_path / "run"), manifest, tmp_path).found == run / ADAPTER.name
    save_file({"a": torch.zeros(1)}, run / ADAPTER.name)
    other = check_adapter(str(tmp_path / "run"), manifest, tmp_path)
    assert other.same is False and other.problem.endswith("is another file")
    with pytest.raises(UserError, match="does not say which adapter"):
        check_adapter(None, {"inputs": {}}, tmp_path)


# --- --check


def table(printed: str) -> dict[str, str]:
    """The states of a --check by what they are of."""
    rows = [line.split(maxsplit=2) for line in printed.splitlines()[:-1]]
    return {row[0]: row[1] for row in rows}


def test_check_says_that_all_is_well_and_runs_nothing(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rerun(whole, "--check", "--allow", "code") == 0
    printed = capsys.readouterr().out
    states = table(printed)
    same = ["run", "config", "photos", "backbone", "clip", "dino", "versions", "device", "threads", "numerics"]
    same += ["lora", "metrics.jsonl", "samples", "summary.json", "checkpoints"]
    assert {states[name] for name in same} == {"same"}
    assert printed.splitlines()[-1] == f"{whole.name}: all is as its manifest says"
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda run: (run / ADAPTER).write_bytes(b"x"), "lora"),
        (lambda run: next(run.glob("samples/*/prompt*.png")).unlink(), "samples"),
        (lambda run: (run / "metrics.jsonl").write_text(""), "metrics.jsonl"),
        (lambda run: (run / "checkpoints/step_000002/resume.safetensors").write_bytes(b""), "checkpoints"),
    ],
    ids=["adapter", "sample", "metrics", "checkpoint"],
)
def test_check_finds_outputs_that_are_not_what_they_were(
    spoil: Callable[[Path], object], what: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(whole, tmp_path / "run")
    spoil(run)
    assert rerun(run, "--check", "--allow", "code") == 1
    assert [
        name for name, state in table(capsys.readouterr().out).items() if state == "differs" and name != "code"
    ] == [what]
    assert rerun(run, "--check", "--allow", "code,outputs") == 0


def test_check_finds_other_versions_photos_and_devices(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((own / "manifest.json").read_text())
    manifest["versions"]["torch"] = "1.0"
    manifest["machine"]["cpu"] = "Z80"
    (own / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "photos" / "photo_2.png").unlink()
    assert rerun(own, "--check", "--allow", "code") == 1
    printed = capsys.readouterr().out
    differing = [name for name, state in table(printed).items() if state == "differs" and name != "code"]
    assert differing == ["photos", "versions", "device"]
    assert f"torch: 1.0 → {torch.__version__}" in printed and "cpu: Z80 → " in printed
    assert rerun(own, "--check", "--allow", "code,versions,data", "--allow", "device") == 0


@pytest.mark.parametrize("words", [["optim.lr=1"], ["--out", "x"]])
def test_check_takes_nothing_that_only_a_run_takes(
    words: list[str], quick: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rerun(quick, "--check", *words) == 2
    assert f"leave out {words[0].partition('=')[0]}" in capsys.readouterr().err


# --- the manifest


def test_an_altered_config_is_refused(quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copied(quick, tmp_path / "run", lambda manifest: manifest["config"]["optim"].update(lr=0.5))
    assert rerun(run) == 2
    assert "the config in the manifest was changed after it was written" in (err := capsys.readouterr().err)
    assert "--allow config" in err
    assert rerun(run, "--allow", "config") == 1
    printed = capsys.readouterr()
    assert "warning the config in the manifest was changed" in printed.err
    assert "first difference: metrics, step 1: train/lr_unet 0.02 → 0.5" in printed.out


@pytest.mark.parametrize("place", ["config", "scored", "override"])
def test_no_config_can_name_code_to_run(
    place: str, quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = {"_target_": "os.system", "command": f"touch {tmp_path / 'ran'}"}
    if place == "override":
        assert rerun(quick, "optim._target_=os.system") == 2
        assert rerun(quick, "+optim._target_=os.system") == 2
    else:

        def plant(manifest: dict[str, Any]) -> None:
            if place == "scored":
                manifest["config"] = {"unet_scale": 1.0, "seed": 0, "name": "x", "run": None}
                manifest["scored"] = {"optim": code}
            else:
                manifest["config"]["optim"] = code
            manifest["config_hash"] = config_hash(manifest["config"], NOT_HASHED)

        assert rerun(copied(quick, tmp_path / "run", plant), "--allow", "config") == 2
        assert "a config cannot name code to run" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_a_manifest_of_another_version_is_run_with_a_warning(
    quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def age(manifest: dict[str, Any]) -> None:
        manifest["versions"].update(boothlab="0.0.1", torch="1.0", gone="3")
        for key in ("run", "not_hashed", "captions", "outputs", "parent", "adapter_tensors", "working_directory"):
            del manifest[key]
        manifest["format"] = 1
        del manifest["config"]["sweep"]  # a section that did not exist then

    assert rerun(copied(quick, tmp_path / quick.name, age)) == 0
    printed = capsys.readouterr()
    for line in ("boothlab: 0.0.1 → ", "torch: 1.0 → ", "gone: 3 → not installed"):
        assert f"warning {line}" in printed.err
    assert f"{quick.name} can be made again (within tolerance)" in printed.out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.update(format=99), "has format 99"),
        (lambda m: m.update(config={"images": []}), "no training, editing run or scoring"),
        (lambda m: m["config"]["optim"].update(momentum=0.9), "whose config does not fit this one: there is no key"),
    ],
)
def test_a_manifest_that_cannot_be_run_is_refused(
    change: Callable[[dict[str, Any]], object],
    said: str,
    quick: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert rerun(copied(quick, tmp_path / "run", change), "--allow", "config") == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the following arguments are required: RUN"),
        (["nowhere"], "there is no such folder"),
        (["outputs/train/typo"], "the W&B run"),
        (["{run}", "--allow", "everything"], "--allow everything: must be one of data, weights, config"),
        (["{run}", "optim.lrr=1"], "there is no key optim.lrr; did you mean optim.lr?"),
        (["{run}", "optim=adam"], "optim is a section; a rerun takes single values, as in optim.KEY=VALUE"),
        (["{run}", "lora.rank=0"], "lora.rank=0: must be at least 1"),
        (["{run}", "lora.rank=x"], "lora.rank=x: expected whole number"),
        (["{run}", "lora.rank=2,4"], "a rerun takes single values"),
        (["{run}", "+lora.x=1"], "a rerun takes single values"),
        (["{run}", "--chekc"], "unrecognized arguments: --chekc"),
        (["{run}", "--out", "{run}"], "holds something else"),
    ],
)
def test_bad_arguments_are_one_line(
    words: list[str],
    said: str,
    quick: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("boothlab.tracking.wandb.has_key", lambda: False)
    if words == ["outputs/train/typo"]:
        said = "W&B has no key here"
    assert rerun(*(word.format(run=quick) for word in words)) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_a_mistyped_folder_is_not_taken_for_a_wandb_run(tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    with pytest.raises(UserError, match="outputs/train/typo: there is no such folder"):
        find_origin("outputs/train/typo")


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert rerun("--help") == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("--check", "--allow WHAT", "--out DIR", "entity/project/run_id"))


def test_what_was_redacted_has_to_be_given(quick: Path) -> None:
    manifest = read_manifest(quick)
    whole_hash = manifest["config_hash"]
    manifest["config"]["lora"]["unet_targets"] = ["to_k", "[redacted]", "to_v", "to_out.0"]
    with pytest.raises(UserError, match=r"lora\.unet_targets held a key or token"):
        read_recipe(manifest, [])
    with pytest.raises(UserError, match="was changed after it was written"):
        read_recipe(manifest, ["lora.unet_targets=[to_k,to_q]"])
    recipe = read_recipe(manifest, ["lora.unet_targets=[to_k,to_q,to_v,to_out.0]"])
    assert not recipe.changes and config_hash(recipe.resolved, NOT_HASHED) == whole_hash


# --- scorings


@pytest.mark.slow
def test_a_scoring_is_made_again_without_the_folder_of_its_run(
    lab: Lab, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = copied(whole, tmp_path / "trained")
    words = [
        f"run={trained}",
        "unet_scale=0.5",
        "threads=1",
        "tracking.wandb=disabled",
        f"paths.cache={lab.folder}/cache",
    ]
    assert main(["score", *words, f"hydra.run.dir={tmp_path / 'scored'}"]) == 0
    scored = tmp_path / "scored"
    manifest = read_manifest(scored)
    assert manifest["scored"]["subject"] == read_manifest(whole)["config"]["subject"]
    assert rerun(scored) == 0
    (scored / "inputs").mkdir()
    (trained / ADAPTER).rename(scored / "inputs" / "adapter.safetensors")
    shutil.rmtree(trained)
    capsys.readouterr()
    assert rerun(scored) == 0
    assert "adapter" not in capsys.readouterr().out.split("same:")[0]  # a scoring makes none
    assert rerun(scored, "--check", "--allow", "code") == 0
    (scored / "inputs" / "adapter.safetensors").unlink()
    assert rerun(scored) == 2
    assert "cannot be found; name its run with run=DIR" in capsys.readouterr().err
    assert rerun(scored, f"run={whole}") == 0
    assert rerun(scored, "train=[optim.lr=1]") == 2
    assert rerun(scored, f"run={whole}", "unet_scale=0.25") == 0
    assert "a fork of scored (unet_scale 0.5 → 0.25)" in capsys.readouterr().out


def scoring(**config: Any) -> dict[str, Any]:
    """The manifest of a scoring, as far as a recipe needs it."""
    whole = {"seed": 0, "name": "x", "run": None, "unet_scale": 1.0, "train": [], **config}
    return {"config": whole, "config_hash": config_hash(whole, NOT_HASHED)}


def test_a_scoring_that_trained_its_adapter_takes_it_from_elsewhere() -> None:
    manifest = scoring(train=["lora.rank=8"])
    recipe = read_recipe(manifest, ["run=copied"])
    assert recipe.changes == {"run": (None, "copied")} and not recipe.forks
    assert recipe.resolved == manifest["config"]
    fork = read_recipe(manifest, ["run=copied", "unet_scale=0.5"])
    assert (fork.resolved["run"], fork.resolved["train"], fork.resolved["unet_scale"]) == ("copied", [], 0.5)
    assert fork.forks == {"unet_scale": (1.0, 0.5)}


def test_where_the_photos_of_a_scoring_lie_can_be_said_when_the_manifest_knows_its_run(quick: Path) -> None:
    scored = read_manifest(quick)["config"]
    recipe = read_recipe({**scoring(run="r"), "scored": scored}, ["subject.images=there"])
    assert recipe.trained is not None and recipe.trained["subject"]["images"] == "there"
    assert recipe.changes == {"subject.images": (scored["subject"]["images"], "there")} and not recipe.forks
    with pytest.raises(UserError, match=r"subject\.images: this manifest does not hold the config of the scored run"):
        read_recipe(scoring(run="r"), ["subject.images=there"])


# --- W&B


class File:
    def __init__(self, source: Path):
        self.source, self.name = source, source.name

    def download(self, root: str, replace: bool) -> Any:
        assert replace
        shutil.copy(self.source, Path(root) / self.name)
        return (Path(root) / self.name).open()


class Api:
    """What `wandb.Api` is asked for: `api.run(path).files(names)`."""

    def __init__(self, folder: Path | Exception):
        self.folder, self.asked = folder, ""

    def run(self, path: str) -> "Api":
        self.asked = path
        if isinstance(self.folder, Exception):
            raise self.folder
        return self

    def files(self, names: list[str]) -> list[File]:
        assert isinstance(self.folder, Path)
        return [File(self.folder / name) for name in names if (self.folder / name).is_file()]


def test_a_wandb_run_is_made_again_from_its_files(
    quick: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("boothlab.rerunning.origin._api", lambda: Api(quick))
    assert rerun("lab/boothlab/ab12cd34") == 0
    out = capsys.readouterr().out
    assert "metrics  same bit for bit" in out and "adapter  same bit for bit       1 files; 2 more are not" in out
    assert (Path("outputs") / "wandb" / "lab" / "boothlab" / "ab12cd34" / "manifest.json").is_file()


@pytest.mark.parametrize("text", ["wandb:lab/p/id1", "lab/p/id1", "https://wandb.ai/lab/p/runs/id1?nw=x"])
def test_the_ways_to_name_a_wandb_run(text: str, quick: Path, tmp_path: Path) -> None:
    api = Api(quick)
    origin = find_origin(text, tmp_path, lambda: api)
    assert (api.asked, origin.folder, origin.name) == ("lab/p/id1", tmp_path / "lab" / "p" / "id1", quick.name)
    assert not origin.complete


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        (OSError("no route\nto host"), "W&B run a/b/c: cannot be read (no route to host); check the path, the network"),
        (Path("empty"), "W&B run a/b/c: holds no manifest.json; give the run folder itself"),
    ],
)
def test_a_wandb_run_that_cannot_be_had(folder: Path | Exception, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        find_origin("a/b/c", tmp_path, lambda: Api(folder))
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("text", ["wandb:../../etc", "wandb:a/b", "wandb:a/../c", "wandb:a/b/.."])
def test_a_wandb_path_never_leads_out_of_its_folder(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be entity/project/run_id"):
        find_origin(text, tmp_path, lambda: Api(tmp_path))


# --- comparing folders


def side(folder: Path, loss: float = 0.1, weight: float = 1.0, shade: int = 0, status: str = "finished") -> Side:
    """A small finished run folder, made by hand."""
    folder.mkdir(parents=True)
    write_manifest(
        folder,
        resolved_config={"seed": 0},
        config_hash="0" * 64,
        seed=0,
        inputs={"class_images/0000": "a" * 64},
        weights={},
        command=[],
        device="cpu",
    )
    rows = History(folder / "metrics.jsonl")
    rows.log(1, {"train/loss": loss})
    rows.close()
    (folder / "lora").mkdir()
    save_file({"a": torch.tensor([weight, 2.0])}, folder / ADAPTER, {"boothlab": folder.name})
    pixels = np.full((4, 4, 3), 100, np.uint8)
    pixels[0, 0, 0] += shade
    samples = folder / "samples" / "step_000001"
    samples.mkdir(parents=True)
    Image.fromarray(pixels).save(samples / "prompt00_seed0.png")
    close_manifest(folder, RunStatus(status))
    return Side(folder, read_manifest(folder))


def verdicts(before: Side, after: Side, standard: Standard = BIT_FOR_BIT) -> dict[str, Verdict]:
    return {one.what: one.verdict for one in compare_runs(before, after, standard).findings}


def test_equal_folders_are_the_same_whatever_the_files_say_of_themselves(tmp_path: Path) -> None:
    one, other = side(tmp_path / "a"), side(tmp_path / "b")
    assert one.digest(ADAPTER.as_posix()) != other.digest(ADAPTER.as_posix())
    assert set(verdicts(one, other).values()) == {Verdict.SAME}


@pytest.mark.parametrize(
    ("change", "what", "close"),
    [
        ({"loss": 0.10009}, "metrics", True),
        ({"loss": 0.1002}, "metrics", False),
        ({"weight": 1.0000001}, "adapter", True),
        ({"weight": 1.01}, "adapter", False),
        ({"weight": float("nan")}, "adapter", False),
        ({"shade": 20}, "samples", True),
        ({"shade": 30}, "samples", False),
    ],
)
def test_each_kind_of_result_has_its_tolerance(change: dict[str, Any], what: str, close: bool, tmp_path: Path) -> None:
    one, other = side(tmp_path / "a"), side(tmp_path / "b", **change)
    exact = verdicts(one, other)
    assert exact[what] is Verdict.DIFFERS
    assert {verdict for name, verdict in exact.items() if name != what} == {Verdict.SAME}
    assert verdicts(one, other, WITHIN_TOLERANCE)[what] is (Verdict.CLOSE if close else Verdict.DIFFERS)


def test_zero_and_minus_zero_are_not_the_same_bits(tmp_path: Path) -> None:
    one, other = side(tmp_path / "a", weight=0.0), side(tmp_path / "b", weight=-0.0)
    assert verdicts(one, other)["adapter"] is Verdict.DIFFERS
    assert verdicts(one, other, WITHIN_TOLERANCE)["adapter"] is Verdict.CLOSE


def test_class_images_come_before_any_step(tmp_path: Path) -> None:
    one, other = side(tmp_path / "a"), side(tmp_path / "b", loss=0.2)
    drawn = Side(other.folder, {**other.manifest, "inputs": {"class_images/0000": "b" * 64}})
    found = compare_runs(one, drawn, BIT_FOR_BIT)
    assert found.first is not None and found.first.what == "class images"
    assert verdicts(one, drawn, WITHIN_TOLERANCE)["class images"] is Verdict.UNKNOWN


def test_of_what_is_gone_the_recorded_hash_is_compared(tmp_path: Path) -> None:
    one, other = side(tmp_path / "a"), side(tmp_path / "b")
    shutil.rmtree(one.folder / "lora")
    shutil.rmtree(one.folder / "samples")
    assert set(verdicts(one, other).values()) == {Verdict.SAME}
    changed = side(tmp_path / "c", weight=2.0, shade=1)
    assert verdicts(one, changed) | {"class images": Verdict.SAME} == {
        "class images": Verdict.SAME,
        "metrics": Verdict.SAME,
        "adapter": Verdict.DIFFERS,
        "samples": Verdict.DIFFERS,
    }


def test_another_hash_says_nothing_where_numbers_round_differently(tmp_path: Path) -> None:
    """What W&B or a golden run keeps: metrics are held to the tolerance, of files there are only hashes."""
    one, changed = side(tmp_path / "a"), side(tmp_path / "b", weight=1.0000001, shade=1)
    shutil.rmtree(one.folder / "lora")
    shutil.rmtree(one.folder / "samples")
    found = compare_runs(one, changed, WITHIN_TOLERANCE)
    assert found.same
    assert {line.what: line.verdict for line in found.findings} == {
        "class images": Verdict.SAME,
        "metrics": Verdict.SAME,
        "adapter": Verdict.UNKNOWN,
        "samples": Verdict.UNKNOWN,
    }
    assert found.findings[3].detail == (
        "1 files; 1 with another hash, first samples/step_000001/prompt00_seed0.png: "
        "only hashes were kept, which do not say by how much"
    )
    assert not compare_runs(one, side(tmp_path / "c", loss=0.2), WITHIN_TOLERANCE).same
    unchanged = side(tmp_path / "d")
    assert set(verdicts(one, unchanged, WITHIN_TOLERANCE).values()) == {Verdict.SAME}


def test_a_missing_or_additional_sample_is_a_difference(tmp_path: Path) -> None:
    one, other = side(tmp_path / "a"), side(tmp_path / "b")
    shutil.copy(
        other.folder / "samples/step_000001/prompt00_seed0.png", other.folder / "samples/step_000001/prompt00_seed1.png"
    )
    found = compare_runs(one, other, BIT_FOR_BIT).first
    assert found is not None and found.detail == "samples/step_000001/prompt00_seed1.png is only in the rerun"
    found = compare_runs(other, one, BIT_FOR_BIT).first
    assert found is not None and found.detail == "samples/step_000001/prompt00_seed1.png is not in the rerun"


def test_nothing_is_not_the_same_as_nothing(tmp_path: Path) -> None:
    empty = Side(tmp_path, {"status": "finished"})
    found = compare_runs(empty, empty, BIT_FOR_BIT)
    assert not found.same and found.first is None


# --- circumstances


def test_what_differs_in_the_circumstances_is_named() -> None:
    now = here("cpu")
    assert differing(now, now) == []
    then = json.loads(json.dumps(now))
    then["versions"]["wandb"] = "0"
    assert expects_same_bits(differing(then, now), then, True)  # it makes no number
    then["git"] = {"of": "boothlab", "commit": "f" * 40, "dirty": True, "diff_sha256": "e" * 64}
    assert expects_same_bits(differing(then, now), then, True)  # whether it changed one is the question
    then["versions"]["torch"] = "0"
    then["numerics"]["torch_threads"] = 64
    then["machine"].update(device="cuda", gpu="H100")
    found = {one.name: (one.area, one.before) for one in differing(then, now)}
    assert found == {
        "wandb": ("versions", "0"),
        "torch": ("versions", "0"),
        "boothlab's code": ("code", "commit ffffffffffff with uncommitted changes (eeeeeeee)"),
        "device": ("device", "cuda"),
        "gpu": ("device", "H100"),
        "torch_threads": ("threads", "64"),
    }
    assert not expects_same_bits(differing(then, now), then, True)


def test_a_run_that_was_not_deterministic_is_held_to_the_bit_on_the_cpu_alone() -> None:
    assert expects_same_bits([], {"machine": {"device": "cpu"}}, False)
    assert not expects_same_bits([], {"machine": {"device": "cuda"}}, False)
    assert expects_same_bits([], {"machine": {"device": "cuda"}}, True)


# --- looking for photos


def test_photos_of_a_manifest_are_in_the_order_of_their_names() -> None:
    manifest = {
        "inputs": {"p/b.png": "2", "p/a.jpg": "1", "class_images/0000": "9", "run/lora/x.safetensors": "8"},
        "captions": {"p/b.txt": "3"},
    }
    assert recorded_photos(manifest) == [Item("a.jpg", "1"), Item("b.png", "2", "b.txt", "3")]


def test_a_folder_counts_by_content_and_order_not_by_names(tmp_path: Path) -> None:
    wanted = [Item("a.png", "1"), Item("b.png", "2", "b.txt", "3")]
    folders = [
        ("swapped", [Item("a.png", "2", "a.txt", "3"), Item("b.png", "1")]),
        ("without caption", [Item("a.png", "1"), Item("b.png", "2")]),
        ("renamed", [Item("x.png", "1"), Item("y.png", "2", "y.txt", "3")]),
    ]
    assert search("photos", wanted, folders, [], "subject.images").folder == "renamed"
    found = search("photos", wanted, folders[:2], [tmp_path], "subject.images")
    assert found.folder is None
    assert found.missing == ["photo a.png (SHA-256 1)", "photo b.png (SHA-256 2)", "caption b.txt (SHA-256 3)"]

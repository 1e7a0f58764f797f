"""`boothlab inspect` from the command line: what it leaves, what it leaves alone, what it refuses; and best_of."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from boothlab.cli import main
from boothlab.config_inspect import InspectPart
from boothlab.diffusion.lora import load_adapter
from boothlab.diffusion.sampling import Request, Sampler, SamplerSettings
from boothlab.files import sha256_file
from boothlab.images.load import load_image, to_tensor
from boothlab.inspecting.anatomy import dissect
from boothlab.inspecting.bench import bare
from boothlab.tracking.history import read_history
from tiny_pipelines import load
from training_runs import ADAPTER, Lab

#: what a part leaves beside the page
FILES = {
    InspectPart.noising: {"noising.png", "noising.csv"},
    InspectPart.trajectory: {"trajectory.png", "trajectory.csv"},
    InspectPart.vae: {"vae.png", "vae.csv"},
    InspectPart.attention: {"attention.png", "attention.csv"},
    InspectPart.similarity: {"similarity.png", "similarity.csv", "classes.csv"},
    InspectPart.best_of: {"best_of.png", "best_of.csv"},
    InspectPart.anatomy: {"anatomy.csv", "anatomy_blocks.csv"},
    InspectPart.memorisation: {"memorisation.png", "memorisation.csv"},
    InspectPart.drift: {"drift.png", "drift.csv"},
}
OWN = {"inspect.html", "inspect.json", "metrics.jsonl", "summary.json"}
FAST = ("steps=2", "best_of.n=2", "drift.seeds=[0,1]", "noising.columns=2", "tracking.wandb=disabled", "threads=1")


@pytest.fixture(scope="module", params=["sd15", pytest.param("sdxl", marks=pytest.mark.slow)])
def lab(request: pytest.FixtureRequest, pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp(f"inspect-{request.param}"), pipelines[request.param])


@pytest.fixture(scope="module")
def trained(lab: Lab) -> Path:
    """A run with adapters on the text encoder too, and an evaluation to read images from."""
    extra = ("lora.train_text_encoder=true", "lora.alpha=3", "optim.lr=0.1", "trainer.max_steps=2")
    return lab.train("trained", *extra, "evaluation.seeds=[0,1]", "prior.num_class_images=1")


def inspect(lab: Lab, run_dir: Path, *arguments: str, code: int = 0) -> Path:
    words = ["inspect", f"run={run_dir}", f"paths.cache={lab.folder / 'cache'}", *FAST, *arguments]
    assert main(words) == code
    made = sorted((run_dir / "inspect").glob("inspect-*"))
    return made[0] if made else run_dir


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "inspect.json").read_text(encoding="utf-8"))
    return found


def snapshot(run_dir: Path) -> dict[str, str]:
    files = sorted(path for path in run_dir.rglob("*") if path.is_file() and "inspect" not in path.parts)
    return {path.relative_to(run_dir).as_posix(): sha256_file(path) for path in files}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_everything_is_left_and_the_run_is_left_alone(
    lab: Lab, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(trained)
    folder = inspect(lab, trained)
    assert {path.name for path in folder.iterdir()} == OWN.union(*FILES.values())
    assert snapshot(trained) == before
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["status"] == "finished"
    keys = {key for row in read_history(folder / "metrics.jsonl").rows for key in row.scalars}
    assert {"inspect/vae_psnr", "inspect/drift_pres/dollhouse", "inspect/update_relative"} <= keys
    assert all(key.startswith("inspect/") for key in keys)
    assert record(folder)["adapter"] == sha256_file(trained / ADAPTER)
    # Looked at once: the next call says so, whatever folder it is called from, and touches nothing.
    page, stamp = (folder / "inspect.html").read_bytes(), (folder / "inspect.html").stat().st_mtime_ns
    capsys.readouterr()
    inspect(lab, trained)
    assert "finished already" in capsys.readouterr().err
    assert (folder / "inspect.html").stat().st_mtime_ns == stamp
    inspect(lab, trained, "paths.overwrite=true", "tracking.project=other")
    assert (folder / "inspect.html").read_bytes() == page  # the same, to the byte
    assert (folder / "inspect.html").stat().st_mtime_ns != stamp


@pytest.mark.slow
def test_parts_are_chosen_and_left_out(lab: Lab, trained: Path) -> None:
    out = lab.folder / "chosen"
    inspect(lab, trained, "parts=[anatomy,vae,drift]", "without=[drift]", f"out={out}")
    assert {path.name for path in out.iterdir()} == OWN | FILES[InspectPart.anatomy] | FILES[InspectPart.vae]
    page = (out / "inspect.html").read_text(encoding="utf-8")
    assert [f'<section id="{part}"' in page for part in ("vae", "anatomy", "drift", "noising")] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.slow
def test_the_anatomy_is_that_of_the_file(lab: Lab, trained: Path) -> None:
    """Each layer's update against the dense product of the file's own matrices, alpha / rank included."""
    backbone = load(lab.pipeline)
    load_adapter(backbone, trained / ADAPTER)
    held = load_file(trained / ADAPTER)
    layers = {f"{one.network}.{one.name}": one.update for one in dissect(backbone)}
    assert len(layers) * 2 == len(held)
    down = next(key for key in held if key.startswith("unet.") and key.endswith("lora_A.weight"))
    name = down.removesuffix(".lora_A.weight")
    dense = (3 / 2) * held[f"{name}.lora_B.weight"].double() @ held[down].double()
    assert layers[name].norm == pytest.approx(float(dense.norm()), rel=1e-5)
    weight = dict(load(lab.pipeline).unet.named_parameters())[f"{name.removeprefix('unet.')}.weight"]
    assert layers[name].relative == pytest.approx(float(dense.norm() / weight.double().norm()), rel=1e-5)
    encoders = {one.network for one in dissect(backbone)}
    assert encoders == {"unet", *backbone.text_encoders}


@pytest.mark.slow
def test_the_adapter_lifts_off_without_a_trace(lab: Lab, trained: Path) -> None:
    request, settings = [Request("a photo of a sks robot", 3)], SamplerSettings("ddim", 2, 4.0)
    backbone = load(lab.pipeline)
    base = Sampler(backbone, settings).draw(request)
    load_adapter(backbone, trained / ADAPTER)
    tuned = Sampler(backbone, settings).draw(request)
    with bare(backbone):
        lifted = Sampler(backbone, settings).draw(request)
    assert torch.equal(base, lifted)
    assert not torch.equal(base, tuned)
    assert torch.equal(Sampler(backbone, settings).draw(request), tuned)
    assert not any(value.requires_grad for value in backbone.unet.parameters())


@pytest.mark.slow
def test_another_adapter_in_the_same_folder_is_looked_at_anew(lab: Lab, trained: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(trained, copied, ignore=shutil.ignore_patterns("inspect", "checkpoints"))
    folder = inspect(lab, copied, "parts=[anatomy]")
    first = record(folder)["adapter"]
    path = copied / ADAPTER
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({key: value * 2 for key, value in load_file(path).items()}, path, metadata=metadata)
    assert inspect(lab, copied, "parts=[anatomy]") == folder
    assert record(folder)["adapter"] == sha256_file(path) != first
    out = tmp_path / "mine"
    inspect(lab, copied, "parts=[vae]", f"out={out}")
    inspect(lab, copied, "parts=[vae]", "seed=1", f"out={out}", code=2)
    (out / "mine.png").write_bytes(b"not of boothlab")
    inspect(lab, copied, "parts=[anatomy]", f"out={out}", "paths.overwrite=true")
    assert {path.name for path in out.iterdir()} == OWN | FILES[InspectPart.anatomy] | {"mine.png"}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "run has no value; give it, as in run="),
        (["run=no/such/folder"], "run=no/such/folder: there is no such folder; give the folder of a finished training"),
        (["run=x", "parts=[anatomie]"], "parts[0]=anatomie"),
        (
            ["run=x", "parts=[vae]", "without=[vae]"],
            "nothing is left to look at; parts are noising, trajectory, vae, at",
        ),
        (["run=x", "similarity.class_names=[dog]"], "similarity.class_names=['dog']: must be two nouns or more"),
        (["run=x", "similarity.template=a photo"], "similarity.template=a photo: must have {} once"),
        (["run=x", "noising.columns=1"], "noising.columns=1: must be 2 to 24"),
        (["run=x", "best_of.n=1"], "best_of.n=1: must be 2 to 256"),
        (["run=x", "drift.seeds=[1,1]"], "drift.seeds=[1, 1]: must name a seed, and none twice"),
        (["run=x", "steps=0"], "steps=0: must be at least 1, or null"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", *arguments]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("boothlab: error: ")
    assert line in said[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("noising.photo=9", "noising.photo=9: there are 3 photos"),
        ("prompt=" + "robot " * 99, "the text encoder reads"),
        ("drift.prompt=" + "robot " * 99, "drift.prompt="),
    ],
)
def test_what_does_not_fit_the_run_is_one_line(
    lab: Lab, trained: Path, tmp_path: Path, argument: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    inspect(lab, trained, f"out={tmp_path / 'out'}", argument, code=2)
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("boothlab: error: ")
    assert line in said
    assert not (tmp_path / "out" / "inspect.html").exists()


@pytest.mark.slow
def test_other_folders_are_refused(lab: Lab, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(run_dir: Path, line: str) -> None:
        assert main(["inspect", f"run={run_dir}", *FAST]) == 2
        assert line in capsys.readouterr().err

    refused(tmp_path / "none", "there is no such folder")
    assert not (tmp_path / "none").exists()
    refused(tmp_path, "is not a run folder: it has no manifest.json")
    copied = tmp_path / "copied"
    shutil.copytree(trained, copied, ignore=shutil.ignore_patterns("inspect"))
    (copied / "summary.json").unlink()
    refused(copied, "is not finished (finished)")
    manifest = json.loads((copied / "manifest.json").read_text(encoding="utf-8"))
    manifest["config"]["method"] = "full"
    (copied / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    refused(copied, "trained by method=full")
    del manifest["config"]["lora"]
    (copied / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    refused(copied, "is not a training run")


@pytest.mark.slow
def test_texts_on_the_page_are_escaped(lab: Lab, trained: Path, tmp_path: Path) -> None:
    nasty = "<script>alert(1)</script> & 'x'"
    inspect(lab, trained, f"out={tmp_path}", "parts=[similarity,trajectory]", f"prompt={nasty}",
            "similarity.class_names=['<b>one</b>',robot]")  # fmt: skip
    page = (tmp_path / "inspect.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "<b>one</b>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &#39;x&#39;" in page
    assert "default-src &#39;none&#39;" in page


# boothlab sample best_of


def sample(lab: Lab, out: Path, *arguments: str, code: int = 0) -> Path:
    words = ["sample", f"out={out}", "sampler.steps=2", "sampler.scheduler=ddim", "threads=1", *arguments]
    assert main(words) == code
    return out


@pytest.mark.slow
def test_the_best_of_n_is_kept(lab: Lab, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("prompt=['a {token} {class}','a {class} at night']", "seeds=[0,4]")
    out = sample(lab, tmp_path / "best", f"run={trained}", *asked, "best_of=3", "best_by=balanced", "best_weight=0.25")
    assert "must not be compared" in capsys.readouterr().err
    scores = rows(out / "best_of.csv")
    assert [(row["image_seed"], row["seed"]) for row in scores[:6]] == [
        *(("0", str(seed)) for seed in (0, 1, 2)), *(("4", str(seed)) for seed in (12, 13, 14))
    ]  # fmt: skip
    for start in range(0, 12, 3):
        group = scores[start : start + 3]
        values = [float(row["by_balanced"]) for row in group]
        assert [row["chosen"] for row in group] == [str(int(value == max(values))) for value in values]
        for row in group:
            mixed = 0.25 * float(row["clip_i"]) + 0.75 * float(row["clip_t"])
            assert float(row["by_balanced"]) == pytest.approx(mixed, abs=1e-6)
    kept = {f"prompt{place // 6:02d}_seed{row['seed']}.png" for place, row in enumerate(scores) if row["chosen"] == "1"}
    assert {path.name for path in out.iterdir()} == kept | {"grid.png", "sample.json", "best_of.csv"}
    said = json.loads((out / "sample.json").read_text(encoding="utf-8"))
    assert {image["seed"] for image in said["images"]} == {int(row["seed"]) for row in scores if row["chosen"] == "1"}
    assert said["best_of"]["mean_of_chosen"] >= said["best_of"]["mean_of_all"]
    # A kept image is the one that its seed draws alone, but for the last bit of another batch.
    one = next(row for row in scores if row["chosen"] == "1")
    again = sample(lab, tmp_path / "again", f"run={trained}", "prompt=a {token} {class}", f"seeds=[{one['seed']}]")
    name = f"prompt00_seed{one['seed']}.png"
    drawn, kept = (to_tensor(load_image(folder / name)).int() for folder in (again, out))
    assert int((drawn - kept).abs().max()) <= 1
    assert not (again / "best_of.csv").exists()


@pytest.mark.slow
def test_likeness_needs_the_photos_of_a_run(lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare_words = ("backbone=dollhouse", "prompt=a robot", "best_of=2", "seeds=[0]")
    sample(lab, tmp_path / "x", *bare_words, "best_by=clip_i", code=2)
    assert "best_by=clip_i: compares with the subject's photos" in capsys.readouterr().err
    out = sample(lab, tmp_path / "y", *bare_words)
    assert rows(out / "best_of.csv")[0]["clip_i"] == ""
    sample(lab, tmp_path / "z", *bare_words, "best_of=0", code=2)
    sample(lab, tmp_path / "z", *bare_words, "best_weight=2", code=2)

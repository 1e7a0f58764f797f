"""What was trained is what is drawn later: by `boothlab sample`, and by plain diffusers with the saved file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from boothlab.building.photos import training_prompt
from boothlab.cli import main
from boothlab.config import SubjectConfig
from boothlab.images.load import load_image, to_tensor
from boothlab.tracking import metrics
from tiny_pipelines import most_levels_apart, plain_image, plain_pipeline
from training_runs import ADAPTER, Lab, adapter, history, summary

SAMPLER = ("sampler.scheduler=dpmpp_2m", "sampler.steps=2", "sampler.guidance_scale=4.0", "threads=1")
PROMPT = "a photo of a sks robot"


@pytest.fixture(scope="module", params=["sd15", pytest.param("sd21", marks=pytest.mark.slow), "sdxl"])
def lab(request: pytest.FixtureRequest, pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp(request.param), pipelines[request.param])


@pytest.fixture(scope="module")
def trained(lab: Lab) -> Path:
    """A run that changes the images clearly: text encoders too, and prior preservation."""
    extra = ("lora.train_text_encoder=true", "prior.enabled=true", "optim.lr=0.29", "evaluation.seeds=[3]")
    return lab.train("trained", *extra)


def picture(path: Path) -> Tensor:
    return to_tensor(load_image(path))


def sample(lab: Lab, name: str, *arguments: str, code: int = 0) -> Path:
    out = lab.folder / name
    assert main(["sample", f"out={out}", "seeds=[3]", *SAMPLER, *arguments]) == code
    return out


def bare(lab: Lab) -> tuple[str, ...]:
    return "backbone=dollhouse", "backbone.name=tiny", f"backbone.source={lab.pipeline}"


def test_every_part_is_trained(lab: Lab, trained: Path) -> None:
    counts = summary(trained)["counts"]
    encoders = ["text_encoder", "text_encoder_2"] if lab.pipeline.name == "sdxl" else ["text_encoder"]
    parts = ["unet", *encoders]
    assert {key for key in counts if key.startswith("trainable")} == {f"trainable_parameters/{p}" for p in parts}
    values = adapter(trained)
    for part in parts:
        mine = {name: value for name, value in values.items() if name.split(".")[0] == part}
        assert sum(value.numel() for value in mine.values()) == counts[f"trainable_parameters/{part}"] > 0
        idle = {name for name, value in mine.items() if not value.any()}  # the up matrices began as zeros
        # SDXL reads its first text encoder before the last layer, which so learns nothing; the second is also pooled.
        assert all(lab.pipeline.name == "sdxl" and part == "text_encoder" and ".layers.1." in name for name in idle)
    rows = [row for _, row in history(trained) if metrics.TRAIN_LOSS in row]
    assert [row[metrics.TRAIN_LR_TEXT_ENCODER] for row in rows] == [0.29] * 4
    assert all(0 < row[metrics.TRAIN_LOSS] < 10 for row in rows)


def test_plain_diffusers_draws_what_the_run_drew(lab: Lab, trained: Path) -> None:
    """SimpleTuner #578: sampled in training, and another picture later."""
    pipeline = plain_pipeline(lab.pipeline, "DPMSolverMultistepScheduler", algorithm_type="dpmsolver++")
    base = plain_image(pipeline, PROMPT, seed=3, steps=2, guidance=4.0)
    assert most_levels_apart(base, picture(trained / "samples" / "step_000000" / "prompt00_seed3.png")) <= 1
    pipeline.load_lora_weights(trained / "lora")
    image = plain_image(pipeline, PROMPT, seed=3, steps=2, guidance=4.0)
    assert most_levels_apart(image, picture(trained / "samples" / "step_000004" / "prompt00_seed3.png")) <= 1
    assert most_levels_apart(image, base) > 10


def test_plain_diffusers_draws_with_adapted_convolutions(lab: Lab) -> None:
    """The dollhouse's recipe also trains feed-forward layers and convolutions."""
    targets = "lora.unet_targets=[to_q,ff.net.0.proj,ff.net.2,proj_in,proj_out,conv1,conv2]"
    run_dir = lab.train("convolutions", targets, "optim.lr=0.05", "trainer.max_steps=2", "lora.alpha=4")
    pipeline = plain_pipeline(lab.pipeline, "DPMSolverMultistepScheduler", algorithm_type="dpmsolver++")
    pipeline.load_lora_weights(run_dir / "lora")
    image = plain_image(pipeline, PROMPT, seed=0, steps=2, guidance=4.0)
    before, after = (picture(run_dir / "samples" / f"step_00000{k}" / "prompt00_seed0.png") for k in (0, 2))
    assert most_levels_apart(image, after) <= 1
    assert most_levels_apart(before, after) > 10


def test_boothlab_sample_draws_what_the_run_drew(lab: Lab, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", f"run={trained}", "prompt=a photo of a {token} {class}", "seeds=[3,4]", *SAMPLER]) == 0
    out = trained / "samples" / "drawn"
    names = {"prompt00_seed3.png", "prompt00_seed4.png", "grid.png", "sample.json"}
    assert {path.name for path in out.iterdir()} == names
    drawn = picture(out / "prompt00_seed3.png")
    assert most_levels_apart(drawn, picture(trained / "samples" / "step_000004" / "prompt00_seed3.png")) <= 1
    record = json.loads((out / "sample.json").read_text())
    assert record["images"] == [{"prompt": PROMPT, "seed": 3}, {"prompt": PROMPT, "seed": 4}]
    assert f"2 images and {out / 'grid.png'}" in capsys.readouterr().err


def test_an_adapter_at_scale_zero_is_the_bare_backbone(lab: Lab, trained: Path) -> None:
    without = sample(lab, "bare", *bare(lab), f"prompt={PROMPT}")
    zero = sample(lab, "zero", f"run={trained}", f"prompt={PROMPT}", "unet_scale=0", "text_encoder_scale=0")
    half = sample(lab, "half", f"run={trained}", f"prompt={PROMPT}", "unet_scale=0.5", "text_encoder_scale=0")
    file = "prompt00_seed3.png"
    assert torch.equal(picture(zero / file), picture(without / file))
    assert most_levels_apart(picture(half / file), picture(without / file)) > 1


def test_a_file_of_another_tool_needs_a_backbone(lab: Lab, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign = lab.folder / "foreign.safetensors"
    save_file(load_file(trained / ADAPTER), foreign)
    sample(lab, "foreign", f"run={foreign}", f"prompt={PROMPT}", code=2)
    assert "does not say what it was trained on; add backbone=sd15" in capsys.readouterr().err
    sample(lab, "foreign", f"run={foreign}", "prompt=a {token} dog", *bare(lab), code=2)
    assert "{token} is only known from a run of boothlab" in capsys.readouterr().err
    out = sample(lab, "foreign", f"run={foreign}", f"prompt={PROMPT}", *bare(lab))
    mine = picture(trained / "samples" / "step_000004" / "prompt00_seed3.png")
    assert most_levels_apart(picture(out / "prompt00_seed3.png"), mine) <= 1  # alpha = rank, which others assume


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["prompt=a dog"], "without run= there is no adapter to read it from; add backbone=dollhouse"),
        (["run=no/such/folder", "prompt=a dog"], "run=no/such/folder: no LoRA file there"),
        (["prompt=[]", "backbone=dollhouse"], "prompt=[]: must name at least one prompt"),
        (["seeds=[1,1]", "prompt=a dog", "backbone=dollhouse"], "seeds=[1, 1]: must not name a seed twice"),
    ],
)
def test_bad_input_to_sample(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", *arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("boothlab: error: ")
    assert line in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("caption", "prompt"),
    [
        (None, "a photo of a sks dog"),
        ("a sks dog asleep", "a sks dog asleep"),
        ("a dog asleep by a dog house", "a sks dog asleep by a dog house"),
        ("asleep in a basket", "a sks dog, asleep in a basket"),
        ("a hotdog", "a sks dog, a hotdog"),
    ],
)
def test_a_caption_always_names_the_token(caption: str | None, prompt: str) -> None:
    settings: dict[str, Any] = {"images": "x", "class_noun": "dog", "instance_prompt": "a photo of a sks dog"}
    assert training_prompt(SubjectConfig(**settings), caption) == prompt
    assert training_prompt(SubjectConfig(**settings, captions=False), caption) == "a photo of a sks dog"

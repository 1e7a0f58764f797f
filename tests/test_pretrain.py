"""Making the miniatures: batches are functions of seed and step, a killed training goes on exactly, exports load."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPModel, CLIPTokenizer, ViTModel

from boothlab.dollhouse import pretrain, score
from boothlab.dollhouse.architectures import Judge, build_tokenizer
from boothlab.dollhouse.grammar import scene_is_held_out
from boothlab.dollhouse.parts import Losses, Part, normalise, training_scene
from boothlab.dollhouse.pretrain import PART_NAMES, Ema, FitState, build_part, fit, learning_rate
from boothlab.dollhouse.reader_parts import Clip
from boothlab.dollhouse.scenes import rng_for
from boothlab.seeding import generator

ON_THEIR_OWN = ("vae", "clip", "dino", "judge")  # `diffusion` needs a finished VAE


class Clock:
    """Stands in for the `time` module: it moves only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Line(Part):
    """A part of two weights whose every step takes `step_s` of the clock; killed at step `killed_at`."""

    name, batch_size = "line", 4

    def __init__(self, clock: Clock, step_s: float = 1.0, killed_at: int | None = None):
        super().__init__(0, "cpu")
        self.clock, self.step_s, self.killed_at = clock, step_s, killed_at
        self.steps: list[int] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.modules = nn.ModuleDict({"line": nn.Linear(1, 1)})

    def batch(self, step: int) -> torch.Tensor:
        return torch.randn(self.batch_size, 1, generator=generator(self.seed, "line", step))

    def loss(self, batch: torch.Tensor, step: int) -> Losses:
        if step == self.killed_at:
            raise KeyboardInterrupt
        self.clock.now += self.step_s
        self.steps.append(step)
        return {"loss": (self.modules["line"](batch) - 3 * batch).square().mean()}

    def start_from(self, out: Path) -> None:
        raise AssertionError("a line has no finished weights")

    def export(self, out: Path) -> None:
        raise NotImplementedError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(pretrain, "time", fake)
    return fake


def small(name: str, out: Path, seed: int = 0) -> Part:
    """A freshly initialised part with batches of four."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        part = build_part(name, seed, out, "cpu", compiled=False)
    part.batch_size = 4
    return part


@pytest.fixture(scope="module")
def with_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights' folder with an untrained VAE in it."""
    out = tmp_path_factory.mktemp("weights")
    small("vae", out).export(out)
    return out


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other, strict=True))


def weights_of(part: Part) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in part.modules.state_dict().items()}


@pytest.mark.parametrize("name", ON_THEIR_OWN)
def test_a_batch_is_a_function_of_seed_and_step(name: str, tmp_path: Path) -> None:
    part = small(name, tmp_path)
    third = part.batch(3)
    part.batch(4)
    assert equal(part.batch(3), third)
    torch.manual_seed(99)  # the global generator has no say
    assert equal(small(name, tmp_path).batch(3), third)
    assert not equal(part.batch(4), third)
    assert not equal(small(name, tmp_path, seed=1).batch(3), third)


def test_diffusion_batches_repeat_from_a_fresh_start(with_vae: Path) -> None:
    # Not one by one: a step also draws on the pool of the steps before it, which a resumed training starts anew.
    one, other = small("diffusion", with_vae), small("diffusion", with_vae)
    one.fresh = other.fresh = 2  # type: ignore[attr-defined]
    for step in range(3):
        first = one.batch(step)
        assert equal(first, other.batch(step))
        assert [len(value) for value in first] == [4, 4]
    assert len(one.latents) == 4 + 2 + 2  # type: ignore[attr-defined]


def test_the_pool_of_latents_stays_bounded(with_vae: Path) -> None:
    part = small("diffusion", with_vae)
    part.fresh, part.pool_size = 2, 5  # type: ignore[attr-defined]
    for step in range(4):
        part.batch(step)
    assert len(part.latents) == len(part.prompts) == 5  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", PART_NAMES)
def test_losses_are_finite_and_reach_every_module(name: str, with_vae: Path) -> None:
    part = small(name, with_vae)
    losses = part.loss(part.batch(1), 1)
    losses["loss"].backward()
    assert all(math.isfinite(float(value.detach())) for value in losses.values())
    for module in part.modules.values():
        assert sum(float(p.grad.abs().sum()) for p in module.parameters() if p.grad is not None) > 0


def test_training_never_sees_what_is_held_out() -> None:
    rng = rng_for(0, "test", "training")
    assert not any(scene_is_held_out(training_scene(rng)) for _ in range(500))


def test_every_other_dino_batch_holds_one_class(tmp_path: Path) -> None:
    assert small("dino", tmp_path).batch(1).shape == small("dino", tmp_path).batch(2).shape == (8, 3, 32, 32)


def test_fit_spends_its_budget_and_learns(clock: Clock, tmp_path: Path) -> None:
    part = Line(clock)
    part.peak_lr, part.ema_decay = 3.0, 0.5
    before = abs(float(weights_of(part)["line.weight"]) - 3)
    lines: list[str] = []
    state = fit(part, tmp_path, 250.0, "cpu", report=lines.append)
    assert (state.step, state.seconds) == (250, 250.0)
    assert part.steps == list(range(250))
    assert [line.split("  ")[:2] for line in lines] == [
        ["line: step 100", "100/250 s"],
        ["line: step 200", "200/250 s"],
    ]
    assert abs(float(weights_of(part)["line.weight"]) - 3) < before / 4
    assert not part.modules.training
    assert [path.name for path in tmp_path.iterdir()] == ["line.resume"]


def test_a_killed_training_goes_on_exactly(clock: Clock, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    budget = 8 * 61.0  # a step of 61 s leaves a resume file each
    whole = Line(clock, 61.0)
    fit(whole, tmp_path / "whole", budget, "cpu")
    with pytest.raises(KeyboardInterrupt):
        fit(Line(clock, 61.0, killed_at=5), tmp_path / "killed", budget, "cpu")
    clock.now += 1e6  # the night between two sittings is not on the budget
    resumed = Line(clock, 61.0)
    state = fit(resumed, tmp_path / "killed", budget, "cpu")
    assert (state.step, state.seconds, resumed.steps) == (8, budget, [5, 6, 7])
    assert equal(weights_of(resumed), weights_of(whole))
    blobs = [torch.load(tmp_path / run / "line.resume", weights_only=True) for run in ("whole", "killed")]
    assert equal(blobs[0]["modules"], blobs[1]["modules"])
    assert equal(blobs[0]["ema"], blobs[1]["ema"])


def test_a_spent_budget_trains_no_more(clock: Clock, tmp_path: Path) -> None:
    first, second = Line(clock), Line(clock)
    fit(first, tmp_path, 3.0, "cpu")
    assert fit(second, tmp_path, 3.0, "cpu") == FitState(3, 3.0)
    assert second.steps == []
    assert equal(weights_of(first), weights_of(second))


def test_what_is_kept_is_the_average_and_what_resumes_is_not(clock: Clock, tmp_path: Path) -> None:
    part = Line(clock)
    fit(part, tmp_path, 5.0, "cpu")
    blob = torch.load(tmp_path / "line.resume", weights_only=True)
    assert equal(blob["ema"], weights_of(part))
    assert not equal(blob["modules"], weights_of(part))


def test_the_learning_rate_warms_up_and_falls() -> None:
    assert learning_rate(1.0, 0.0, 0) == pytest.approx(1 / 200)
    assert learning_rate(1.0, 0.0, 199) == 1.0
    assert learning_rate(1.0, 0.5, 1000) == pytest.approx(0.02 + 0.98 / 2)
    assert learning_rate(1.0, 1.0, 1000) == learning_rate(1.0, 1.7, 1000) == pytest.approx(0.02)


def test_the_average_follows_faster_at_first() -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    ema = Ema(module, 0.9)
    nn.init.ones_(module.weight)
    ema.update(module, 0)  # decay 1/10
    assert float(ema.shadow["weight"]) == pytest.approx(0.9)
    nn.init.zeros_(module.weight)
    ema.update(module, 10**6)  # decay 0.9
    assert float(ema.shadow["weight"]) == pytest.approx(0.81)


def test_normalise_is_clip_s_own() -> None:
    white = normalise(torch.ones(1, 3, 2, 2), (0.5, 0.25, 0.0), (0.5, 0.5, 2.0))
    assert white[0, :, 0, 0].tolist() == [1.0, 1.5, 0.5]


@pytest.mark.slow
def test_exports_load_with_plain_libraries(with_vae: Path) -> None:
    parts = {name: small(name, with_vae) for name in PART_NAMES if name != "vae"}
    for part in parts.values():
        part.modules.eval()
        part.export(with_vae)
    pipeline = StableDiffusionPipeline.from_pretrained(with_vae / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.vae_scale_factor == 4
    assert AutoencoderKL.from_pretrained(with_vae / "pipeline" / "vae").config.scaling_factor != 0.18215
    assert len(pipeline.tokenizer) == pipeline.text_encoder.config.vocab_size == len(build_tokenizer())
    images = pipeline.to(torch.float32)("a photo of a bear", num_inference_steps=1, output_type="np").images
    assert images.shape == (1, 32, 32, 3)
    clip, trained = CLIPModel.from_pretrained(with_vae / "clip"), parts["clip"]
    assert isinstance(trained, Clip)
    assert equal(clip.visual_projection.weight.float(), trained.clip.visual_projection.weight.float())
    assert len(CLIPTokenizer.from_pretrained(with_vae / "clip")) == len(build_tokenizer())
    assert ViTModel.from_pretrained(with_vae / "dino", add_pooling_layer=False).config.patch_size == 4
    Judge().load_state_dict(load_file(with_vae / "judge" / "model.safetensors"))
    assert not [path for path in with_vae.rglob("*") if path.suffix in {".bin", ".pt", ".ckpt", ".pkl"}]


def test_the_command_trains_exports_and_notes_the_cost(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "pretraining.json").write_text('{"clip": {"steps": 7}}', encoding="utf-8")
    arguments = ["--parts", "judge", "--minutes", "0", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    pretrain.main(arguments)
    costs = json.loads((tmp_path / "out" / "pretraining.json").read_text(encoding="utf-8"))
    assert costs == {"clip": {"steps": 7}, "judge": {"steps": 0, "seconds": 0, "device": "cpu"}}
    assert (tmp_path / "out" / "judge" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["vae", "diffusion", "clip", "dino", "judge"])
def test_a_warm_start_begins_with_the_exported_weights(name: str, with_vae: Path) -> None:
    finished, fresh = small(name, with_vae), small(name, with_vae)
    finished.modules.eval()
    with torch.no_grad():
        for value in finished.modules.parameters():
            value.add_(0.25)
    finished.export(with_vae)  # in half precision
    fresh.start_from(with_vae)
    for key, value in weights_of(fresh).items():
        if not key.startswith("class_head."):  # CLIP's is thrown away
            assert torch.allclose(value, weights_of(finished)[key].float(), atol=2e-3), key


def test_gradients_are_the_mean_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    line = nn.Linear(2, 1)
    line.weight.grad, line.bias.grad = torch.tensor([[1.0, 2.0]]), torch.tensor([3.0])

    def with_another(flat: torch.Tensor) -> None:
        flat += torch.tensor([3.0, 2.0, 1.0, 30.0])  # the other process: its gradients, and 30 seconds

    monkeypatch.setattr(pretrain.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(pretrain.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(pretrain.distributed, "all_reduce", with_another)
    assert pretrain.average_over_processes(line, 10.0) == 20.0
    assert line.weight.grad.tolist() == [[2.0, 2.0]]
    assert line.bias.grad.tolist() == [2.0]


def test_configs_forget_where_the_weights_once_lay(tmp_path: Path) -> None:
    for folder, config in (("vae", {"_name_or_path": "/home/me/vae", "sample_size": 32}), ("unet", {"layers": 2})):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    pretrain.forget_paths(tmp_path)
    assert json.loads((tmp_path / "vae" / "config.json").read_text(encoding="utf-8")) == {"sample_size": 32}
    assert (tmp_path / "unet" / "config.json").read_text(encoding="utf-8") == '{"layers": 2}'


def test_the_shipped_configs_name_no_folder() -> None:
    configs = sorted((Path(pretrain.__file__).parent / "weights").rglob("*config.json"))
    assert len(configs) >= 6
    for path in configs:
        assert "_name_or_path" not in path.read_text(encoding="utf-8"), path


def test_the_command_scores(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(score, "score_weights", lambda weights, device: f"| {weights} on {device} |")
    pretrain.main(["--score", "--out", str(tmp_path)])
    assert capsys.readouterr().out == f"| {tmp_path} on cpu |\n"

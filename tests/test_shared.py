"""What the jobs of one process share: loaded once, and never a bit of one job left for the next."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from boothlab.building import shared
from boothlab.building.parts import attach_adapters
from boothlab.building.shared import Kept, shared_backbone, shared_clip, shared_dino, shared_identity
from boothlab.cache import Cache
from boothlab.cli import main
from boothlab.config import BackboneConfig, LoraConfig, Precision
from boothlab.diffusion.backbone import DOLLHOUSE, Backbone
from boothlab.diffusion.lora import lora_layers
from boothlab.diffusion.sampling import Request, Sampler
from boothlab.dreambooth.evaluate import BaseSamples, Evaluator
from boothlab.files import write_bytes
from boothlab.images.load import load_image, to_tensor
from boothlab.sweeping.estimate import past_costs
from tiny_pipelines import RESOLUTION, load
from training_runs import Lab, build, history, same_adapter

CPU = torch.device("cpu")
TARGETS = ["to_k", "to_q", "to_v", "to_out.0", "conv1"]
TEXT_TARGETS = ["q_proj", "v_proj"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.fixture(autouse=True)
def empty_shelves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test begins as a fresh process does."""
    clear(monkeypatch)


def clear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what was loaded."""
    for name, size in {"_backbones": 1, "_clips": 1, "_dinos": 1, "_identities": 8}.items():
        monkeypatch.setattr(shared, name, Kept(size))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often each loader ran."""
    counts: dict[str, int] = {}
    for name in ("load_backbone", "load_clip", "load_dino", "weights_identity"):
        counts[name] = 0
        monkeypatch.setattr(shared, name, counting(counts, name, getattr(shared, name)))
    return counts


def counting(counts: dict[str, int], name: str, make: Callable[..., Any]) -> Callable[..., Any]:
    """The function, counted."""

    def counted(*words: Any, **named: Any) -> Any:
        counts[name] += 1
        return make(*words, **named)

    return counted


def config_of(folder: Path, **changes: Any) -> BackboneConfig:
    return BackboneConfig(**{"name": folder.name, "source": str(folder), "resolution": RESOLUTION, **changes})


def lora(**changes: Any) -> LoraConfig:
    settings: dict[str, Any] = {"rank": 2, "unet_targets": TARGETS, "text_encoder_targets": TEXT_TARGETS}
    return LoraConfig(**settings, **changes)


# --- the shelf ----------------------------------------------------------------------------------------------------


def test_a_shelf_keeps_what_was_used_last() -> None:
    shelf: Kept[str] = Kept(2)
    made: list[str] = []

    def maker(key: str) -> Callable[[], str]:
        def make() -> str:
            made.append(key)
            return key.upper()

        return make

    assert [shelf.get(key, maker(key)) for key in "abaca"] == ["A", "B", "A", "C", "A"]
    assert made == ["a", "b", "c"]
    shelf.get("b", maker("b"))  # it had to go for c, since a was used after it
    assert made == ["a", "b", "c", "b"]


def test_an_old_value_goes_before_the_new_one_is_made() -> None:
    """Two big models at once would not fit into memory."""
    shelf: Kept[str] = Kept(1)
    shelf.get("old", lambda: "old")

    def make() -> str:
        assert shelf._values == {}
        return "new"

    assert shelf.get("new", make) == "new"


def test_a_value_that_could_not_be_made_is_not_kept() -> None:
    shelf: Kept[str] = Kept(1)
    with pytest.raises(OSError):
        shelf.get("key", lambda: (_ for _ in ()).throw(OSError()))
    assert shelf.get("key", lambda: "made") == "made"


# --- loading once -------------------------------------------------------------------------------------------------


def test_a_backbone_is_loaded_once_for_each_way_of_loading_it(
    pipelines: dict[str, Path], calls: dict[str, int]
) -> None:
    config = config_of(pipelines["sd15"])
    first = shared_backbone(config, CPU)
    assert shared_backbone(config_of(pipelines["sd15"]), CPU) is first
    assert calls["load_backbone"] == 1
    half = shared_backbone(config_of(pipelines["sd15"], precision=Precision.bf16), CPU)
    assert half is not first
    assert half.dtype == torch.bfloat16
    other = shared_backbone(config_of(pipelines["sd15"], resolution=64), CPU)
    assert other.resolution == 64
    assert calls["load_backbone"] == 3
    assert shared_backbone(config, CPU) is not first  # one at a time is kept
    assert calls["load_backbone"] == 4


def test_weights_that_were_replaced_are_loaded_and_hashed_anew(
    pipelines: dict[str, Path], calls: dict[str, int], tmp_path: Path
) -> None:
    folder = tmp_path / "sd15"
    shutil.copytree(pipelines["sd15"], folder)
    config = config_of(folder)
    first, identity = shared_backbone(config, CPU), shared_identity(config)
    assert (shared_backbone(config, CPU), shared_identity(config)) == (first, identity)
    assert (calls["load_backbone"], calls["weights_identity"]) == (1, 1)
    (weights,) = (folder / "unet").glob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-4:] = torch.tensor([7.5]).numpy().tobytes()
    write_bytes(weights, bytes(content))  # of the same size; in another file, since a loaded one is mapped, not read
    second = shared_backbone(config, CPU)
    assert second is not first
    changed = shared_identity(config)
    assert {name for name in identity if identity[name] != changed[name]} == {f"unet/{weights.name}"}
    assert (calls["load_backbone"], calls["weights_identity"]) == (2, 2)
    mine, theirs = (list(one.unet.state_dict().values()) for one in (first, second))
    assert not all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_an_identity_cannot_be_spoilt_by_who_gets_it(pipelines: dict[str, Path], calls: dict[str, int]) -> None:
    config = config_of(pipelines["sd15"])
    shared_identity(config).clear()
    assert len(shared_identity(config)) > 5
    assert calls["weights_identity"] == 1


def test_encoders_are_loaded_once_and_anew_when_their_files_changed(calls: dict[str, int], tmp_path: Path) -> None:
    for name, get in {"clip": shared_clip, "dino": shared_dino}.items():
        folder = tmp_path / name
        shutil.copytree(DOLLHOUSE / name, folder)
        first: Any = get(str(folder), None, CPU)
        assert get(str(folder), None, CPU) is first
        os.utime(folder / "model.safetensors", (1, 1))
        assert get(str(folder), None, CPU) is not first
        assert calls[f"load_{name}"] == 2


# --- as it was loaded ---------------------------------------------------------------------------------------------


def state_of(backbone: Backbone) -> dict[str, Any]:
    """Every fact about the networks that a job could change."""
    facts: dict[str, Any] = {}
    networks: dict[str, nn.Module] = {"unet": backbone.unet, "vae": backbone.vae, **backbone.text_encoders}
    for part, network in networks.items():
        for name, module in network.named_modules():
            facts[f"{part}.{name}"] = (type(module).__name__, module.training, len(module._forward_hooks))
            facts[f"{part}.{name} checkpoints"] = getattr(module, "gradient_checkpointing", None)
        for name, value in network.named_parameters():
            facts[f"{part}.{name} value"] = (value.dtype, value.device, value.requires_grad, value.grad is None)
    facts["peft"] = [hasattr(network, "peft_config") and bool(network.peft_config) for network in networks.values()]
    facts["scheduler"] = type(backbone.pipeline.scheduler).__name__
    return facts


def assert_untouched(backbone: Backbone, fresh: Backbone) -> None:
    assert state_of(backbone) == state_of(fresh)
    parts: list[tuple[nn.Module, nn.Module]] = [(backbone.unet, fresh.unet), (backbone.vae, fresh.vae)]
    parts += [(backbone.text_encoders[name], fresh.text_encoders[name]) for name in backbone.text_encoders]
    for mine, theirs in parts:
        ours, others = mine.state_dict(), theirs.state_dict()
        assert ours.keys() == others.keys()
        assert all(torch.equal(ours[name], others[name]) for name in ours)


@pytest.mark.parametrize("dtype", [Precision.fp32, Precision.bf16])
@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl"])
def test_what_a_job_did_to_a_backbone_is_undone(name: str, dtype: Precision, pipelines: dict[str, Path]) -> None:
    config = config_of(pipelines[name], precision=dtype)
    fresh = load(pipelines[name], DTYPES[dtype.value])
    backbone = shared_backbone(config, CPU)
    assert_untouched(backbone, fresh)
    attach_adapters(backbone, lora(train_text_encoder=True, dropout=0.3), seed=1)
    backbone.unet.enable_gradient_checkpointing()
    for network in (backbone.unet, *backbone.text_encoders.values()):
        network.train().requires_grad_(True)
        for layer in lora_layers(network).values():
            nn.init.ones_(layer.lora_B["boothlab"].weight)
    assert state_of(backbone) != state_of(fresh)
    assert shared_backbone(config, CPU) is backbone
    assert_untouched(backbone, fresh)
    counts = attach_adapters(backbone, lora(), seed=1)  # and the next job can attach its own
    assert counts["unet"] > 0 == counts["text_encoder"]


FIRST = (
    *("lora.train_text_encoder=true", "lora.dropout=0.3"),
    *("trainer.gradient_checkpointing=true", "trainer.ema_decay=0.9", "prior.enabled=true"),
)
SECOND = {
    "plain": (),
    "text encoder": ("lora.train_text_encoder=true", "lora.rank=4"),
    "gradient checkpointing": ("trainer.gradient_checkpointing=true",),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SECOND)
def test_a_later_job_gives_the_bits_of_a_fresh_process(
    name: str, pipelines: dict[str, Path], tmp_path: Path, calls: dict[str, int]
) -> None:
    lab, extra = Lab(tmp_path, pipelines["sd15"]), SECOND[name]
    first = lab.train("first", *FIRST)
    second = lab.train("second", *extra)
    assert calls["load_backbone"] == calls["load_clip"] == calls["load_dino"] == 1
    assert not same_adapter(first, second)
    words = lab.overrides("fresh", *extra, f"paths.cache={tmp_path / 'another cache'}")
    command = [sys.executable, "-m", "boothlab", "train", *words]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    (fresh,) = (tmp_path / "fresh").glob("*/tiny-*")
    assert same_adapter(second, fresh)
    assert history(second) == history(fresh)
    for png in sorted(path.relative_to(fresh) for path in fresh.rglob("*.png")):
        assert (second / png).read_bytes() == (fresh / png).read_bytes()


@pytest.mark.slow
def test_the_jobs_of_a_multirun_share_and_are_each_what_they_are_alone(
    pipelines: dict[str, Path], tmp_path: Path, calls: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(tmp_path, pipelines["sd15"])
    words = lab.overrides("many")
    assert main(["train", "-m", *words, "lora.train_text_encoder=true,false", "seed=0,1"]) == 0
    assert calls == {"load_backbone": 1, "load_clip": 1, "load_dino": 1, "weights_identity": 1}
    many = {path.name: path for path in (tmp_path / "many").glob("*/tiny-*")}
    assert len(many) == 4
    clear(monkeypatch)
    for index, choice in enumerate(("true", "false")):
        alone = lab.train(f"alone-{index}", "seed=1", f"lora.train_text_encoder={choice}")
        assert same_adapter(many[alone.name], alone)
        assert history(many[alone.name]) == history(alone)
    ((_, costs),) = [(kind, costs) for kind, costs in past_costs(tmp_path / "many").items() if kind[4]]
    assert len(costs) == 2  # what a run writes of its times is what the plan of the next sweep reads


# --- the base model's images --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"), pipelines["sd15"])


def evaluator_of(lab: Lab, name: str, *extra: str) -> Evaluator:
    """As a training has it, with a fresh adapter attached."""
    evaluator = build(lab, name, *extra).evaluator
    assert evaluator is not None
    return evaluator


def pngs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("prompt*.png"))}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_first_samples_are_the_same_drawn_kept_or_with_a_new_adapter(precision: str, lab: Lab) -> None:
    extra = ("lora.train_text_encoder=true", "lora.dropout=0.3", "evaluation.seeds=[0,5]")
    extra = (*extra, f"backbone.precision={precision}")
    cache = f"paths.cache={lab.folder / f'base-{precision}'}"
    with_adapter = evaluator_of(lab, f"drawn-{precision}", *extra, cache)
    with_adapter.base = None
    drawn = with_adapter.evaluate(0)
    kept = evaluator_of(lab, f"made-{precision}", *extra, cache)
    made = kept.evaluate(0)
    again = evaluator_of(lab, f"kept-{precision}", *extra, cache)
    taken = again.evaluate(0)
    assert len(pngs(drawn.folder)) == 2
    assert pngs(drawn.folder) == pngs(made.folder) == pngs(taken.folder)
    numbers = [[row.value for row in one.result.rows] for one in (drawn, made, taken)]
    assert numbers[0] == numbers[1] == numbers[2]
    sampler = Sampler(load(lab.pipeline, DTYPES[precision]), kept.sampler.settings)
    base = BaseSamples(Cache(lab.folder / f"bare-{precision}"), {"weights": "of this test"})
    class_request = Request(kept.plan.class_prompt, 0)  # in one batch with the others, as it was drawn
    requests = [*(Request(kept.plan.prompts[0], seed) for seed in kept.plan.seeds), class_request]
    for image, request in zip(base.draw(sampler, requests, None), requests[:-1], strict=False):
        assert torch.equal(image, picture(drawn.folder / f"prompt00_seed{request.seed}.png"))


def picture(path: Path) -> torch.Tensor:
    """An image file, uint8 [3, H, W]."""
    return to_tensor(load_image(path))


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each drawing drew."""
    counts: list[int] = []
    original = Sampler.draw

    def draw(self: Sampler, requests: Any, progress: Any = None) -> Any:
        counts.append(len(requests))
        return original(self, requests, progress)

    monkeypatch.setattr(Sampler, "draw", draw)
    return counts


def test_the_first_samples_are_drawn_once_for_all_runs(lab: Lab, draws: list[int]) -> None:
    cache = f"paths.cache={lab.folder / 'once'}"
    evaluator_of(lab, "once-0", cache).evaluate(0)
    assert draws == [2]  # an image of the subject's prompt, and one of the class's
    other = evaluator_of(lab, "once-1", cache, "lora.rank=4", "optim.lr=0.5", "trainer.max_steps=3")
    other.evaluate(0)
    assert draws == [2]
    other.evaluate(3)  # what is trained is drawn
    assert draws == [2, 2]
    other.evaluate(3)
    assert draws == [2, 2, 2]


CHANGES = {
    "image seeds": ("evaluation.seeds=[1]",),
    "prompts": ("evaluation.prompts=['a {token} {class} on the moon']",),
    "class images": ("evaluation.pres_images=2",),
    "sampler": ("evaluation.sampler.scheduler=ddim",),
    "sampler steps": ("evaluation.sampler.steps=3",),
    "guidance": ("evaluation.sampler.guidance_scale=2.0",),
    "negative prompt": ("evaluation.sampler.negative_prompt=a dog",),
    "batch size": ("evaluation.sampler.batch_size=1",),
    "precision": ("backbone.precision=bf16",),
    "resolution": ("backbone.resolution=64",),
    "threads": ("trainer.threads=2",),
    "token": ("subject.token=xyz",),
}


@pytest.mark.slow
def test_what_could_change_the_first_samples_draws_them_anew(lab: Lab, draws: list[int]) -> None:
    cache = f"paths.cache={lab.folder / 'changes'}"
    for index, (name, extra) in enumerate({"nothing": (), **CHANGES}.items()):
        draws.clear()
        evaluator_of(lab, f"change-{index}", cache, *extra).evaluate(0)
        assert len(draws) == 1, name
        draws.clear()
        evaluator_of(lab, f"again-{index}", cache, *extra).evaluate(0)
        assert draws == [], name
    torch.set_num_threads(1)


def test_other_weights_never_meet_the_first_samples_of_these(lab: Lab, tmp_path: Path, draws: list[int]) -> None:
    copied = tmp_path / "sd15"
    shutil.copytree(lab.pipeline, copied)
    cache = f"paths.cache={tmp_path / 'cache'}"
    evaluator_of(lab, "weights-0", cache, f"backbone.source={copied}").evaluate(0)
    assert len(draws) == 1
    evaluator_of(lab, "weights-1", cache).evaluate(0)  # the same weights elsewhere are the same
    assert len(draws) == 1
    (weights,) = (copied / "unet").glob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-4:] = torch.tensor([0.123]).numpy().tobytes()
    write_bytes(weights, bytes(content))
    evaluator_of(lab, "weights-2", cache, f"backbone.source={copied}").evaluate(0)
    assert len(draws) == 2

"""Adapters: how they start, and that a saved one means the same in boothlab and in plain diffusers."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from boothlab.config import LoraInit
from boothlab.diffusion.backbone import Backbone
from boothlab.diffusion.lora import (
    ADAPTER,
    FILE_NAME,
    adapter_state,
    attach,
    find_adapter,
    load_adapter,
    lora_layers,
    read_metadata,
    save_adapter,
    trainable,
)
from boothlab.diffusion.sampling import Request, Sampler, SamplerSettings
from boothlab.errors import UserError
from tiny_pipelines import load, most_levels_apart, plain_image, plain_pipeline

UNET_TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]
EVERY_KIND = ["to_k", "to_out.0", "conv1", "ff.net.0.proj", "ff.net.2", "proj_in", "conv_in", "time_emb_proj"]
RANK, ALPHA = 4, 6.0
REQUESTS = [Request("a red car", 0), Request("a photo of a blue cat at night", 5)]
SETTINGS = {"steps": 20, "lr": 1e-4, "instance_prompt": "a photo of a sks toy – ünïcode"}


def start(module: nn.Module, component: str = "unet", seed: int = 7, **changes: Any) -> int:
    settings: dict[str, Any] = {
        "rank": RANK,
        "alpha": ALPHA,
        "dropout": 0.0,
        "init": "gaussian",
        "targets": UNET_TARGETS,
    }
    if component != "unet":
        settings["targets"] = TEXT_TARGETS
    return attach(module, component, **(settings | changes), seed=seed)


def pretend_trained(module: nn.Module, size: float = 0.3) -> None:
    stream = torch.Generator().manual_seed(1)
    for layer in lora_layers(module).values():
        layer.lora_B[ADAPTER].weight.data.normal_(0.0, size, generator=stream)


def components_of(backbone: Backbone) -> dict[str, nn.Module]:
    return {"unet": backbone.unet, **backbone.text_encoders}


def trained(folder: Path, targets: Sequence[str] = UNET_TARGETS, text: bool = True, **changes: Any) -> Backbone:
    """A backbone whose adapters on the UNet and, unless told otherwise, on its text encoders have learned something."""
    backbone = load(folder, changes.pop("dtype", torch.float32))
    start(backbone.unet, targets=list(targets), **changes)
    for name, encoder in backbone.text_encoders.items():
        if text:
            start(encoder, name, **changes)
    for module in components_of(backbone).values():
        pretend_trained(module)
    return backbone


def images(backbone: Backbone) -> Tensor:
    return Sampler(backbone, SamplerSettings("ddim", 2, 5.0)).draw(REQUESTS)


def plain_images(folder: Path, adapter: Path | None, scheduler: str = "DDIMScheduler", **changes: Any) -> Tensor:
    pipeline = plain_pipeline(folder, scheduler, **changes)
    if adapter is not None:
        pipeline.load_lora_weights(adapter)
    return torch.stack([plain_image(pipeline, request.prompt, request.seed, steps=2) for request in REQUESTS])


def refusal(backbone: Backbone, path: Path) -> str:
    """The message of a file that cannot be loaded; the backbone must come out of it untouched."""
    text = backbone.embed(backbone.tokenize(["a red car"]))
    noisy = torch.ones(1, *backbone.latent_shape)
    before = backbone.predict(noisy, torch.tensor([500]), text)
    with pytest.raises(UserError) as caught:
        load_adapter(backbone, path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 600
    assert not any(lora_layers(module) for module in components_of(backbone).values())
    again = backbone.embed(backbone.tokenize(["a red car"]))
    assert torch.equal(again.states_BTD, text.states_BTD)
    assert torch.equal(backbone.predict(noisy, torch.tensor([500]), again), before)
    return message


def rewritten(path: Path, change: Callable[[str], str | None], extra: Mapping[str, Tensor] | None = None) -> Path:
    """The same file with its keys renamed, or dropped where `change` says None."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = {new: value for key, value in load_file(path).items() if (new := change(key)) is not None}
    save_file(tensors | dict(extra or {}), path, metadata=metadata)
    return path


# Attaching


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl"])
def test_attach_counts_its_layers_and_makes_them_alone_trainable(pipelines: dict[str, Path], name: str) -> None:
    backbone = load(pipelines[name])
    attentions = sum(
        type(module).__name__ == "Attention" and "attn" in n for n, module in backbone.unet.named_modules()
    )
    assert start(backbone.unet) == 4 * attentions == len(lora_layers(backbone.unet))
    for component, encoder in backbone.text_encoders.items():
        assert start(encoder, component) == 4 * 2  # two layers of attention
    for module in components_of(backbone).values():
        parameters = trainable(module)
        assert len(parameters) == 2 * len(lora_layers(module))
        assert list(parameters) == sorted(parameters)
        assert all("lora_" in name for name in parameters)
    assert not trainable(backbone.vae)


def test_attached_layers_get_gradients_and_the_base_gets_none(pipelines: dict[str, Path]) -> None:
    backbone = trained(pipelines["sdxl"])
    text = backbone.embed(backbone.tokenize(["a red car"]))
    noisy = torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    backbone.predict(noisy, torch.tensor([500]), text).square().mean().backward()
    for component, module in components_of(backbone).items():
        for name, parameter in module.named_parameters():
            assert (parameter.grad is not None) == ("lora_" in name) or not used(component, name), (component, name)


def used(component: str, name: str) -> bool:
    """SDXL reads the last layer but one of its text encoders, so the first one's last layer teaches nothing."""
    return not (component == "text_encoder" and "layers.1." in name)


def test_a_fresh_adapter_changes_nothing(pipelines: dict[str, Path]) -> None:
    backbone = load(pipelines["sd15"])
    before = images(backbone)
    start(backbone.unet)
    start(backbone.text_encoders["text_encoder"], "text_encoder")
    assert torch.equal(images(backbone), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_are_float32_on_any_base(pipelines: dict[str, Path], dtype: torch.dtype) -> None:
    backbone = load(pipelines["sd15"], dtype)
    start(backbone.unet, targets=EVERY_KIND)
    assert {value.dtype for value in trainable(backbone.unet).values()} == {torch.float32}
    assert {p.dtype for p in backbone.unet.parameters() if not p.requires_grad} == {dtype}
    exact = load(pipelines["sd15"])
    start(exact.unet, targets=EVERY_KIND)
    ours, theirs = adapter_state({"unet": backbone.unet}), adapter_state({"unet": exact.unet})
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("rank", [2, 8])
def test_gaussian_is_normal_with_deviation_one_over_rank(pipelines: dict[str, Path], rank: int) -> None:
    backbone = load(pipelines["sd15"])
    start(backbone.unet, rank=rank)
    layers = lora_layers(backbone.unet).values()
    down = torch.cat([layer.lora_A[ADAPTER].weight.flatten() for layer in layers])
    assert float(down.detach().std()) * rank == pytest.approx(1.0, abs=0.06)
    assert abs(float(down.detach().mean())) * rank < 0.06
    assert not any(bool(layer.lora_B[ADAPTER].weight.any()) for layer in layers)


def test_kaiming_is_uniform_within_its_bound(pipelines: dict[str, Path]) -> None:
    backbone = load(pipelines["sd15"])
    start(backbone.unet, init="kaiming")
    for layer in lora_layers(backbone.unet).values():
        down = layer.lora_A[ADAPTER].weight
        bound = down.shape[1] ** -0.5  # gain √(2/(1+5)), times √3, over √fan_in
        assert 0.8 * bound < float(down.detach().abs().max()) <= bound


def test_every_init_of_the_config_is_known_and_no_other(pipelines: dict[str, Path]) -> None:
    for init in LoraInit:
        start(load(pipelines["sd15"]).unet, init=init.value)
    with pytest.raises(ValueError, match="gaussian or kaiming"):
        start(load(pipelines["sd15"]).unet, init="zeros")


def test_the_start_depends_on_the_seed_alone(
    pipelines: dict[str, Path], global_rng_untouched: AbstractContextManager[Any]
) -> None:
    first, second, other = (load(pipelines["sdxl"]) for _ in range(3))
    with global_rng_untouched:
        for name, module in components_of(first).items():
            start(module, name)
    torch.rand(5)
    for name, module in reversed(components_of(second).items()):
        start(module, name, targets=(TEXT_TARGETS if name != "unet" else UNET_TARGETS)[::-1])
    for name, module in components_of(other).items():
        start(module, name, seed=8)
    a, b, c = (adapter_state(components_of(backbone)) for backbone in (first, second, other))
    assert list(a) == list(b) == list(c)
    assert all(torch.equal(a[key], b[key]) for key in a)
    down = [key for key in a if "lora_A" in key or "down.weight" in key]
    assert not any(torch.equal(a[key], c[key]) for key in down)
    by_shape = [a[key] for key in down if a[key].shape == a[down[0]].shape]
    assert len({value.numpy().tobytes() for value in by_shape}) == len(by_shape)  # no two layers start alike


def test_more_targets_leave_the_start_of_the_others_alone(pipelines: dict[str, Path]) -> None:
    few, many = load(pipelines["sd15"]).unet, load(pipelines["sd15"]).unet
    assert start(few, targets=["to_q"]) < start(many, targets=[*EVERY_KIND, "to_q"])
    a, b = adapter_state({"unet": few}), adapter_state({"unet": many})
    assert all(torch.equal(a[key], b[key]) for key in a)


COLD_START = """
import hashlib, random, sys
import torch
from boothlab.diffusion.backbone import load_backbone
from boothlab.diffusion.lora import adapter_state, attach
torch.manual_seed(int(sys.argv[2])); torch.rand(int(sys.argv[2]))
backbone = load_backbone(sys.argv[1], name="x", resolution=32, device=torch.device("cpu"))
parts = {"unet": backbone.unet, **backbone.text_encoders}
for name, module in parts.items():
    targets = ["to_q", "conv1"] if name == "unet" else ["q_proj", "fc1"]
    attach(module, name, rank=4, alpha=4.0, dropout=0.0, init="gaussian", targets=targets, seed=0)
digest = hashlib.sha256()
for key, value in adapter_state(parts).items():
    digest.update(key.encode() + value.numpy().tobytes())
print(digest.hexdigest())
"""


@pytest.mark.slow
def test_two_cold_starts_are_bit_identical_and_silent(pipelines: dict[str, Path]) -> None:
    command = [sys.executable, "-c", COLD_START, str(pipelines["sdxl"])]
    started = [
        subprocess.Popen([*command, salt], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for salt in ("1", "2")
    ]
    (first, first_errors), (second, second_errors) = (process.communicate(timeout=120) for process in started)
    assert first_errors == second_errors == ""
    assert first == second
    assert len(first.strip()) == 64


@pytest.mark.parametrize(
    ("component", "key", "endings"),
    [
        ("unet", "lora.unet_targets", ["to_q", "to_out.0", "conv1", "net.0.proj", "net.2", "proj_in"]),
        ("text_encoder", "lora.text_encoder_targets", ["q_proj", "out_proj", "fc1", "fc2"]),
    ],
)
def test_an_unknown_target_is_refused_with_the_endings_that_work(
    pipelines: dict[str, Path], component: str, key: str, endings: list[str]
) -> None:
    module = components_of(load(pipelines["sd15"]))[component]
    with pytest.raises(UserError) as caught:
        start(module, component, targets=[*endings, "to_w"])
    message = str(caught.value)
    assert message.startswith(key)
    assert "'to_w'" in message
    offered = message.split("its layers end in ")[1].split(", ")
    assert set(endings) <= set(offered)
    assert not lora_layers(module)
    assert start(module, component, targets=offered) > 0  # all that is offered can be used


@pytest.mark.parametrize("target", ["attn1", "o_q", "norm1"])
def test_a_target_that_is_no_layer_is_refused(pipelines: dict[str, Path], target: str) -> None:
    with pytest.raises(UserError, match="no layer of the unet ends in"):
        start(load(pipelines["sd15"]).unet, targets=[target])


# Saving, and what others make of it


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl"])
@pytest.mark.parametrize("targets", [UNET_TARGETS, EVERY_KIND], ids=["attention", "every_kind"])
def test_plain_diffusers_draws_the_same_images(
    pipelines: dict[str, Path], tmp_path: Path, name: str, targets: list[str]
) -> None:
    live = trained(pipelines[name], targets)
    path = save_adapter(tmp_path, components_of(live), SETTINGS)
    pipeline = plain_pipeline(pipelines[name])
    pipeline.load_lora_weights(tmp_path)
    for component, module in components_of(live).items():
        theirs = [layer for layer in getattr(pipeline, component).modules() if isinstance(layer, LoraLayer)]
        assert len(theirs) == len(lora_layers(module)) > 0
        assert {scale for layer in theirs for scale in layer.scaling.values()} == {ALPHA / RANK}
    ours, bare = images(live), images(load(pipelines[name]))
    assert most_levels_apart(ours, plain_images(pipelines[name], tmp_path)) <= 1
    assert most_levels_apart(bare, plain_images(pipelines[name], None)) <= 1
    assert most_levels_apart(ours, bare) > 10
    fresh = load(pipelines[name])
    load_adapter(fresh, path)
    assert torch.equal(images(fresh), ours)


@pytest.mark.parametrize("text_targets", [["fc1"], ["fc1", "q_proj"], ["fc2", "k_proj", "out_proj"]])
def test_any_choice_of_text_encoder_layers_loads_in_plain_diffusers(
    pipelines: dict[str, Path], tmp_path: Path, text_targets: list[str]
) -> None:
    live = load(pipelines["sd15"])
    start(live.text_encoders["text_encoder"], "text_encoder", targets=text_targets)
    pretend_trained(live.text_encoders["text_encoder"])
    save_adapter(tmp_path, components_of(live), {})
    assert most_levels_apart(images(live), plain_images(pipelines["sd15"], tmp_path)) <= 1
    fresh = load(pipelines["sd15"])
    load_adapter(fresh, tmp_path / FILE_NAME)
    assert torch.equal(images(fresh), images(live))
    assert not torch.equal(images(fresh), images(load(pipelines["sd15"])))


@pytest.mark.parametrize(
    ("ours", "theirs", "changes"),
    [
        ("dpmpp_2m", "DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
        ("euler_a", "EulerAncestralDiscreteScheduler", {}),
    ],
)
def test_plain_diffusers_agrees_with_other_samplers(
    pipelines: dict[str, Path], tmp_path: Path, ours: str, theirs: str, changes: dict[str, Any]
) -> None:
    live = trained(pipelines["sd15"])
    save_adapter(tmp_path, components_of(live), SETTINGS)
    drawn = Sampler(live, SamplerSettings(ours, 2, 5.0)).draw(REQUESTS)
    assert most_levels_apart(drawn, plain_images(pipelines["sd15"], tmp_path, theirs, **changes)) <= 1


def test_dropout_is_for_training_alone(pipelines: dict[str, Path], tmp_path: Path) -> None:
    live = trained(pipelines["sd15"], dropout=0.5)
    path = save_adapter(tmp_path, components_of(live), {})
    ours = images(live)
    assert most_levels_apart(ours, plain_images(pipelines["sd15"], tmp_path)) <= 1
    fresh = load(pipelines["sd15"])
    load_adapter(fresh, path)
    assert torch.equal(images(fresh), ours)


def test_keys_are_those_that_every_loader_knows(pipelines: dict[str, Path], tmp_path: Path) -> None:
    live = trained(pipelines["sdxl"], EVERY_KIND)
    state = load_file(save_adapter(tmp_path, components_of(live), SETTINGS))
    assert list(state) == list(adapter_state(components_of(live)))
    assert {value.dtype for value in state.values()} == {torch.float32}
    unet = [key for key in state if key.startswith("unet.")]
    text = [key for key in state if not key.startswith("unet.")]
    assert all(key.endswith((".lora_A.weight", ".lora_B.weight")) for key in unet)
    assert all(key.endswith((".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight")) for key in text)
    # transformers 4 has `text_model.` in both encoders, transformers 5 in the second alone; loaders of both accept it
    assert all(key.split(".")[1] == "text_model" for key in text)
    assert {key.split(".")[0] for key in text} == {"text_encoder", "text_encoder_2"}


def test_the_state_is_a_copy(pipelines: dict[str, Path]) -> None:
    live = trained(pipelines["sd15"], text=False)
    state = adapter_state({"unet": live.unet, "text_encoder": live.text_encoders["text_encoder"]})
    before = {key: value.clone() for key, value in state.items()}
    for parameter in trainable(live.unet).values():
        parameter.data.add_(1.0)
    assert all(torch.equal(state[key], before[key]) for key in before)
    assert all(key.startswith("unet.") for key in state)


def test_metadata_has_the_settings_and_nothing_of_this_machine(pipelines: dict[str, Path], tmp_path: Path) -> None:
    live = trained(pipelines["sd15"])
    path = save_adapter(tmp_path, components_of(live), SETTINGS)
    assert path == tmp_path / FILE_NAME
    assert read_metadata(path) == SETTINGS
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    theirs = json.loads(metadata[LORA_ADAPTER_METADATA_KEY])
    assert (theirs["unet.r"], theirs["unet.lora_alpha"]) == (RANK, ALPHA)
    assert (theirs["text_encoder.r"], theirs["text_encoder.lora_alpha"]) == (RANK, ALPHA)
    assert sorted(theirs["unet.target_modules"]) == sorted(UNET_TARGETS)
    assert str(pipelines["sd15"]) not in str(metadata)
    assert set(metadata) == {"format", "boothlab", LORA_ADAPTER_METADATA_KEY}
    again = save_adapter(tmp_path / "again", components_of(live), SETTINGS)
    assert again.read_bytes() == path.read_bytes()


def test_saving_without_an_adapter_is_a_mistake(pipelines: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to save"):
        save_adapter(tmp_path, components_of(load(pipelines["sd15"])), {})
    assert not list(tmp_path.iterdir())


def test_find_adapter_takes_a_run_a_folder_or_a_file(pipelines: dict[str, Path], tmp_path: Path) -> None:
    path = save_adapter(tmp_path / "run" / "lora", components_of(trained(pipelines["sd15"])), {})
    assert find_adapter(tmp_path / "run") == find_adapter(path.parent) == find_adapter(path) == path
    other = path.rename(path.with_name("other.safetensors"))
    assert find_adapter(path.parent) == other
    with pytest.raises(UserError, match="no LoRA file there"):
        find_adapter(tmp_path)
    pickled = tmp_path / "pytorch_lora_weights.bin"
    pickled.write_bytes(b"pickle")
    with pytest.raises(UserError, match="pickled weights can run code") as caught:
        find_adapter(pickled)
    assert str(pickled) in str(caught.value)


# Loading


def test_a_bf16_backbone_keeps_the_adapter_of_the_file_in_float32(pipelines: dict[str, Path], tmp_path: Path) -> None:
    live = trained(pipelines["sd15"], dtype=torch.bfloat16)
    path = save_adapter(tmp_path, components_of(live), {})
    fresh = load(pipelines["sd15"], torch.bfloat16)
    load_adapter(fresh, path)
    state, file = adapter_state(components_of(fresh)), load_file(path)
    assert list(state) == list(file)
    assert all(torch.equal(state[key], file[key]) for key in file)
    assert torch.equal(images(fresh), images(live))


def test_a_loaded_adapter_is_frozen_and_draws_nothing_from_the_global_generator(
    pipelines: dict[str, Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    global_rng_untouched: AbstractContextManager[Any],
) -> None:
    path = save_adapter(tmp_path, components_of(trained(pipelines["sdxl"], text=False, dropout=0.5)), {})
    fresh = load(pipelines["sdxl"])
    with global_rng_untouched:
        load_adapter(fresh, path)
    assert capfd.readouterr() == ("", "")
    for module in components_of(fresh).values():
        assert not trainable(module)
        assert not any(part.training for part in module.modules())


def test_unet_and_text_encoder_have_their_own_scales(pipelines: dict[str, Path], tmp_path: Path) -> None:
    path = save_adapter(tmp_path, components_of(trained(pipelines["sd15"])), {})
    drawn = {}
    for scales in [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 1.0)]:
        backbone = load(pipelines["sd15"])
        load_adapter(backbone, path, *scales)
        drawn[scales] = images(backbone)
        for component, module in components_of(backbone).items():
            expected = scales[component != "unet"] * ALPHA / RANK
            assert {layer.scaling[ADAPTER] for layer in lora_layers(module).values()} == {expected}
    assert torch.equal(drawn[0.0, 0.0], images(load(pipelines["sd15"])))
    assert len({image.numpy().tobytes() for image in drawn.values()}) == len(drawn)


def to_kohya(key: str) -> str:
    component, rest = key.split(".", 1)
    name, kind = rest.removesuffix(".weight").rsplit(".lora_", 1)
    prefix = {"unet": "lora_unet", "text_encoder": "lora_te"}[component]
    down = kind in ("A", "linear_layer.down")
    return f"{prefix}_{name.replace('.', '_')}.lora_{'down' if down else 'up'}.weight"


def test_a_kohya_file_loads_with_its_own_alpha(pipelines: dict[str, Path], tmp_path: Path) -> None:
    live = trained(pipelines["sd15"])
    state = {to_kohya(key): value for key, value in adapter_state(components_of(live)).items()}
    alphas = {key.replace("lora_down.weight", "alpha"): torch.tensor(ALPHA) for key in state if "lora_down" in key}
    path = tmp_path / "kohya.safetensors"
    save_file(state | alphas, path, metadata={"ss_network_dim": "4"})
    fresh = load(pipelines["sd15"])
    load_adapter(fresh, path)
    assert torch.equal(images(fresh), images(live))
    assert read_metadata(path) == {}


def test_a_half_precision_file_loads(pipelines: dict[str, Path], tmp_path: Path) -> None:
    live = trained(pipelines["sd15"])
    path = save_adapter(tmp_path, components_of(live), {})
    half = tmp_path / "half.safetensors"
    with safe_open(path, framework="pt") as file:
        save_file({key: value.half() for key, value in load_file(path).items()}, half, metadata=file.metadata())
    fresh = load(pipelines["sd15"])
    load_adapter(fresh, half)
    assert most_levels_apart(images(fresh), images(live)) <= 3


@pytest.fixture
def saved(pipelines: dict[str, Path], tmp_path: Path) -> Path:
    return save_adapter(tmp_path, components_of(trained(pipelines["sd15"])), {})


def test_a_renamed_key_is_refused(pipelines: dict[str, Path], saved: Path) -> None:
    rewritten(saved, lambda key: key.replace("down_blocks.0", "down_blocks.9"))
    refusal(load(pipelines["sd15"]), saved)


def test_an_extra_matrix_is_refused(pipelines: dict[str, Path], saved: Path) -> None:
    extra = {"unet.mid_block.nowhere.lora_A.weight": torch.ones(4, 8)}
    message = refusal(load(pipelines["sd15"]), rewritten(saved, lambda key: key, extra))
    assert "found a layer" in message


def test_a_kind_of_key_that_diffusers_drops_is_refused(pipelines: dict[str, Path], saved: Path) -> None:
    extra = {"unet.mid_block.attentions.0.proj_in.dora_scale": torch.ones(8)}
    refusal(load(pipelines["sd15"]), rewritten(saved, lambda key: key, extra))


def test_half_an_adapter_is_refused(pipelines: dict[str, Path], saved: Path) -> None:
    rewritten(saved, lambda key: None if key.startswith("unet.mid_block") and "lora_B" in key else key)
    refusal(load(pipelines["sd15"]), saved)


@pytest.mark.parametrize("prefix", ["unet.", "pipe.", "base_model.model."])
def test_a_prefix_too_many_is_refused(pipelines: dict[str, Path], saved: Path, prefix: str) -> None:
    refusal(load(pipelines["sd15"]), rewritten(saved, lambda key: prefix + key))


def test_keys_of_cloneofsimos_tool_are_refused(pipelines: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    save_file({"unet:0:down": torch.ones(4, 16), "unet:0:up": torch.ones(16, 4)}, path)
    refusal(load(pipelines["sd15"]), path)


@pytest.mark.parametrize(("made_for", "loaded_into"), [("sdxl", "sd15"), ("sd15", "sdxl"), ("sd21", "sd15")])
def test_a_file_for_another_architecture_is_refused(
    pipelines: dict[str, Path], tmp_path: Path, made_for: str, loaded_into: str
) -> None:
    path = save_adapter(tmp_path, components_of(trained(pipelines[made_for])), {})
    refusal(load(pipelines[loaded_into]), path)


def test_a_second_adapter_is_refused(pipelines: dict[str, Path], saved: Path) -> None:
    backbone = load(pipelines["sd15"])
    load_adapter(backbone, saved)
    before = images(backbone)
    with pytest.raises(UserError, match="carries an adapter already") as caught:
        load_adapter(backbone, saved)
    assert str(saved) in str(caught.value)
    assert torch.equal(images(backbone), before)


@pytest.mark.parametrize("length", [-10, 50, 0])
def test_a_truncated_file_is_refused(pipelines: dict[str, Path], saved: Path, length: int) -> None:
    saved.write_bytes(saved.read_bytes()[:length])
    assert "cut short" in refusal(load(pipelines["sd15"]), saved)
    with pytest.raises(UserError, match="cut short"):
        read_metadata(saved)


def test_a_missing_file_is_refused(pipelines: dict[str, Path], tmp_path: Path) -> None:
    refusal(load(pipelines["sd15"]), tmp_path / "absent.safetensors")


@pytest.mark.parametrize("name", ["pytorch_lora_weights.bin", "disguised.safetensors"])
def test_a_pickled_file_is_never_opened(pipelines: dict[str, Path], tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    torch.save({"unet.x.lora_A.weight": torch.ones(2, 2)}, path)
    refusal(load(pipelines["sd15"]), path)


@pytest.mark.parametrize("text", ["{", "3", '["a"]'])
def test_odd_metadata_does_not_stop_a_reader(tmp_path: Path, text: str) -> None:
    path = tmp_path / "odd.safetensors"
    save_file({"x": torch.ones(1)}, path, metadata={"boothlab": text})
    if text == "{":
        with pytest.raises(UserError, match="not JSON"):
            read_metadata(path)
    else:
        assert read_metadata(path) == {}


def test_a_zero_update_warns(pipelines: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    backbone = load(pipelines["sd15"])
    start(backbone.unet)
    path = save_adapter(tmp_path, components_of(backbone), {})
    load_adapter(load(pipelines["sd15"]), path)
    assert "update is zero" in caplog.text
    assert str(path) in caplog.text
    caplog.clear()
    pretend_trained(backbone.unet)
    load_adapter(load(pipelines["sd15"]), save_adapter(tmp_path, components_of(backbone), {}))
    assert caplog.text == ""

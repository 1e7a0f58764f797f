"""DoRA, LoHa and LoKr in every format that has a place for them: the same layers everywhere, exact round trips."""

import dataclasses
import functools
import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from boothlab.cli import main
from boothlab.diffusion.backbone import Backbone
from boothlab.diffusion.formats.adapter import Adapter, Layer, LayerWeights, same_update
from boothlab.diffusion.formats.architecture import Architecture, architecture_of, canonical_layers, text_path
from boothlab.diffusion.formats.convert import convert
from boothlab.diffusion.formats.kohya import original_name
from boothlab.diffusion.formats.products import HADAMARD, KRONECKER, KroneckerWeights
from boothlab.diffusion.formats.read import read_adapter
from boothlab.diffusion.lora import attach, find_adapter, load_adapter, save_adapter, shed_adapters, trainable
from boothlab.errors import UserError
from random_adapters import ATTENTION, random_adapter, random_variant, random_variant_layer
from tiny_pipelines import load, plain_pipeline

FORMATS = {"dora": ("diffusers", "peft", "kohya"), "loha": ("peft", "kohya"), "lokr": ("peft", "kohya")}
EVERY_KIND = ("attn2.to_k", "to_out.0", "conv1", "conv_shortcut", "proj_in", "conv_in", "out_proj", "fc1")
STEM = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("sd21", "sdxl")]


ARCHITECTURES = functools.cache(architecture_of)


def arch(pipelines: Mapping[str, Path], name: str = "sd15") -> Architecture:
    return ARCHITECTURES(str(pipelines[name]))


def written(adapter: Adapter, to: str, folder: Path, architecture: Architecture) -> Path:
    """The adapter in a format: its file, or PEFT's folder."""
    out = folder / (to if to == "peft" else f"{to}.safetensors")
    convert(adapter, to, out, architecture)
    return out


def plain_unet(pipelines: Mapping[str, Path]) -> Any:
    return UNet2DConditionModel.from_pretrained(pipelines["sd15"] / "unet")


def read(path: Path, architecture: Architecture | None = None) -> Adapter:
    return read_adapter(path, architecture, products=True)


# The same layers everywhere


def networks_of(pipeline: Any) -> dict[str, nn.Module]:
    names = ("unet", "text_encoder", "text_encoder_2")
    return {name: getattr(pipeline, name) for name in names if getattr(pipeline, name, None) is not None}


def outputs(networks: Mapping[str, nn.Module]) -> dict[tuple[str, str], Tensor]:
    """What each adapted layer makes of one random input, in float64."""
    found = {}
    for component, network in networks.items():
        inner = network.double()
        for name, layer in inner.named_modules():
            if isinstance(layer, BaseTunerLayer):
                path = name.removeprefix("base_model.model.")
                path = path if component == "unet" else text_path(path)
                base: Any = layer.get_base_layer()
                with torch.no_grad():
                    found[component, path] = layer(probe(base.weight))  # type: ignore[operator]
    return found


def probe(weight: Tensor) -> Tensor:
    stream = torch.Generator().manual_seed(0)
    size = (2, weight.shape[1]) if weight.ndim == 2 else (1, weight.shape[1], 8, 8)
    return torch.randn(size, generator=stream, dtype=torch.float64)


def by_lycoris(file: Path, pipeline: Any, architecture: Architecture) -> dict[tuple[str, str], Tensor]:
    """The same by the formulas of LyCORIS' own modules, from a kohya file and the bare weights alone."""
    state = {key: value.double() for key, value in load_file(file).items()}
    is_sdxl = any(key.startswith("lora_te1_") for key in state)
    prefix = {"unet": "lora_unet_", "text_encoder": f"lora_te{'1' if is_sdxl else ''}_", "text_encoder_2": "lora_te2_"}
    found = {}
    for component, network in networks_of(pipeline).items():
        for path, layer in canonical_layers(component, network.double()).items():
            flat = original_name(path, architecture) if is_sdxl and component == "unet" else path.replace(".", "_")
            stem = prefix[component] + flat
            own = {key.removeprefix(f"{stem}."): value for key, value in state.items() if key.startswith(f"{stem}.")}
            if own:
                found[component, path] = through(layer, lycoris_weight(own, layer.weight.detach()))  # type: ignore[arg-type]
    return found


def lycoris_weight(own: Mapping[str, Tensor], weight: Tensor) -> Tensor:
    """LyCORIS' `get_merged_weight`: locon, loha, lokr; DoRA's dora_scale over the norm of each row of the result."""
    alpha = float(own["alpha"])
    if "lora_down.weight" in own:
        up, down = own["lora_up.weight"].flatten(1), own["lora_down.weight"].flatten(1)
        delta = up @ down * (alpha / len(down))
    elif "hada_w1_a" in own:
        first, second = (own[f"hada_{side}_a"] @ own[f"hada_{side}_b"] for side in ("w1", "w2"))
        delta = first * second * (alpha / own["hada_w1_b"].shape[0])
    else:
        ranks = [value.shape[0] for kind, value in own.items() if kind.endswith("_b")]
        left, right = (
            own[f"lokr_{side}"].flatten(1) if f"lokr_{side}" in own else own[f"lokr_{side}_a"] @ own[f"lokr_{side}_b"]
            for side in ("w1", "w2")
        )
        delta = torch.kron(left, right) * (alpha / ranks[0] if ranks else 1.0)
    merged = weight + delta.reshape(weight.shape)
    if "dora_scale" in own:
        assert own["dora_scale"].shape == (len(weight), *[1] * (weight.ndim - 1))
        norm = merged.flatten(1).norm(dim=1).reshape(own["dora_scale"].shape)
        merged = merged * (own["dora_scale"] / norm)
    return merged


def through(layer: Any, weight: Tensor) -> Tensor:
    x = probe(weight)
    if weight.ndim == 2:
        return functional.linear(x, weight, layer.bias).detach()
    return functional.conv2d(x, weight, layer.bias, layer.stride, layer.padding).detach()


def by_plain_tools(to: str, path: Path, folder: Path) -> dict[str, nn.Module]:
    """The networks as a user of diffusers, or of PEFT, alone loads the file."""
    pipeline = plain_pipeline(folder)
    if to == "diffusers":
        pipeline.load_lora_weights(path.parent, weight_name=path.name)
        return networks_of(pipeline)
    places = {name: path / name for name in networks_of(pipeline)}
    return {name: PeftModel.from_pretrained(networks_of(pipeline)[name], place) for name, place in places.items()}


@pytest.mark.parametrize("name", ["sd15", *SLOW])
@pytest.mark.parametrize("variant", FORMATS)
def test_every_layer_is_the_same_in_every_format_and_tool(
    pipelines: dict[str, Path], tmp_path: Path, name: str, variant: str
) -> None:
    architecture = arch(pipelines, name)
    adapter = random_variant(architecture, variant, endings=EVERY_KIND, ranks=(2, 3), alphas=(3.0, 1.5, 2.0))
    files = {to: written(adapter, to, tmp_path, architecture) for to in FORMATS[variant]}
    expected = by_lycoris(files["kohya"], plain_pipeline(pipelines[name]), architecture)
    assert len(expected) == sum(len(layers) for layers in adapter.components.values())
    backbone = load(pipelines[name])
    bare = through_all(backbone, expected)
    for to, path in files.items():
        fresh = load(pipelines[name])
        load_adapter(fresh, find_adapter(path))
        found = [outputs({"unet": fresh.unet, **fresh.text_encoders})]
        if to != "kohya":
            found.append(outputs(by_plain_tools(to, path, pipelines[name])))
        for one in found:
            assert one.keys() == expected.keys()
            for place, value in one.items():
                torch.testing.assert_close(value, expected[place], atol=1e-6, rtol=1e-6)
    assert all(not torch.allclose(bare[place], value, atol=1e-3) for place, value in expected.items())


def through_all(backbone: Backbone, places: Mapping[tuple[str, str], Tensor]) -> dict[tuple[str, str], Tensor]:
    parts = {"unet": backbone.unet, **backbone.text_encoders}
    layers = {name: canonical_layers(name, part.double()) for name, part in parts.items()}
    return {(c, path): through(layers[c][path], layers[c][path].weight) for c, path in places}  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", FORMATS)
def test_what_boothlab_trained_is_loaded_from_other_tools_files(
    pipelines: dict[str, Path], tmp_path: Path, variant: str
) -> None:
    """Its own file, the other formats made of it, and a file made back from those: one adapter."""
    backbone = load(pipelines["sd15"])
    parts = {"unet": backbone.unet, **backbone.text_encoders}
    rank = 1 if variant == "lokr" else 2  # with 2 a LoKr of these small layers is whole, and its alpha folded
    common: dict[str, Any] = {"rank": rank, "alpha": 0.1, "dropout": 0.0, "init": "gaussian", "seed": 0}
    for component, part in parts.items():
        targets = ["to_k", "conv1"] if component == "unet" else ["q_proj", "out_proj"]
        attach(part, component, targets=targets, variant=variant, **common)
        for index, value in enumerate(trainable(part).values()):
            value.data += 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(index))
    own = save_adapter(tmp_path, parts, {"token": "sks"})
    expected = outputs(parts)
    original = read(own, arch(pipelines))
    assert set(original.alphas) == {0.1}  # not rounded to float32, as its tensor is
    for to in FORMATS[variant]:
        adapter = read(written(original, to, tmp_path / "first", arch(pipelines)), arch(pipelines))
        path = written(adapter, FORMATS[variant][0], tmp_path / f"back from {to}", arch(pipelines))
        assert same_update(read(path, arch(pipelines)), original)
        fresh = load(pipelines["sd15"])
        load_adapter(fresh, find_adapter(tmp_path / "first" / (to if to == "peft" else f"{to}.safetensors")))
        found = outputs({"unet": fresh.unet, **fresh.text_encoders})
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[place], value) for place, value in expected.items())


# Round trips


NUMBERS = st.floats(min_value=1e-3, max_value=1e3, allow_nan=False) | st.integers(1, 64).map(float)


@given(data=st.data())
@settings(max_examples=20)
def test_round_trips_are_exact(data: st.DataObject, pipelines: dict[str, Path], tmp_path_factory: Any) -> None:
    name = data.draw(st.sampled_from(["sd15", "sd21", "sdxl"]))
    architecture = arch(pipelines, name)
    variant = data.draw(st.sampled_from(sorted(FORMATS)))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    factor, both = data.draw(st.sampled_from([-1, 2, 4])), data.draw(st.booleans())
    places = [(component, path) for component, shapes in architecture.shapes.items() for path in shapes]
    chosen = data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=6, unique=True))
    stream = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))
    components: dict[str, dict[str, Layer]] = {}
    for component, path in chosen:
        rank, alpha = data.draw(st.integers(1, 5)), data.draw(NUMBERS)
        shape = architecture.shapes[component][path]
        components.setdefault(component, {})[path] = random_variant_layer(
            variant, shape, rank, alpha, stream, dtype, factor=factor, decompose_both=both
        )
    adapter = Adapter(components, {}, {}, "kohya")
    folder = tmp_path_factory.mktemp("round")
    for number, to in enumerate(data.draw(st.lists(st.sampled_from(FORMATS[variant]), min_size=1, max_size=3))):
        again = read(written(adapter, to, folder / str(number), architecture), architecture)
        assert again.format == to
        assert same_update(again, adapter)
        adapter = again


@pytest.mark.parametrize("variant", FORMATS)
def test_the_same_adapter_gives_the_same_bytes(pipelines: dict[str, Path], tmp_path: Path, variant: str) -> None:
    first, second = (
        written(random_variant(arch(pipelines), variant), "kohya", tmp_path / name, arch(pipelines)).read_bytes()
        for name in "ab"
    )
    assert first == second


# Names, shapes and metadata, as other tools have them


def test_a_doras_names_and_shapes_in_each_format(pipelines: dict[str, Path], tmp_path: Path) -> None:
    architecture = arch(pipelines)
    adapter = random_variant(architecture, "dora", endings=("attn1.to_q", "conv_in", "q_proj"))
    shapes = {
        to: {key: tuple(value.shape) for key, value in load_file(path).items()}
        for to in ("diffusers", "kohya")
        for path in [written(adapter, to, tmp_path, architecture)]
    }
    assert shapes["kohya"][f"{STEM}.dora_scale"] == (16, 1)  # LyCORIS: wd_on_output
    assert shapes["kohya"]["lora_unet_conv_in.dora_scale"] == (16, 1, 1, 1)
    layer = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    assert shapes["diffusers"][f"{layer}.lora_magnitude_vector.weight"] == (32,)
    assert shapes["diffusers"]["unet.conv_in.lora_magnitude_vector"] == (1, 16, 1, 1)
    folder = written(adapter, "peft", tmp_path, architecture)
    config = json.loads((folder / "unet" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["peft_type"], config["use_dora"], config["r"], config["lora_alpha"]) == ("LORA", True, 2, 3)
    held = load_file(folder / "unet" / "adapter_model.safetensors")
    assert held["base_model.model.conv_in.lora_magnitude_vector"].shape == (1, 16, 1, 1)
    with safe_open(tmp_path / "kohya.safetensors", framework="pt") as file:
        said = file.metadata()
    assert (said["ss_network_module"], said["ss_network_dim"], said["ss_network_alpha"]) == ("lycoris.kohya", "2", "3")
    assert json.loads(said["ss_network_args"]) == {"algo": "locon", "dora_wd": "True", "wd_on_output": "True"}


@pytest.mark.parametrize(("variant", "factor"), [("loha", "hada_w1_a"), ("lokr", "lokr_w2_b")])
def test_lycoris_names_of_an_sdxl(pipelines: dict[str, Path], tmp_path: Path, variant: str, factor: str) -> None:
    architecture = arch(pipelines, "sdxl")
    adapter = random_variant(architecture, variant, endings=(*ATTENTION, "conv1"), ranks=(1,))
    path = written(adapter, "kohya", tmp_path, architecture)
    held = load_file(path)
    layers = "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q", "lora_unet_middle_block_0_in_layers_2"
    texts = (f"lora_{te}_text_model_encoder_layers_0_self_attn_q_proj" for te in ("te1", "te2"))
    for stem in (*layers, *texts):
        assert f"{stem}.{factor}" in held
        assert held[f"{stem}.alpha"].item() in (3.0, 1.0)
    with safe_open(path, framework="pt") as file:
        said = file.metadata()
    assert said["ss_network_module"] == "lycoris.kohya"
    assert json.loads(said["ss_network_args"]) == {"algo": variant}


def test_metadata_of_the_source_is_kept_but_not_what_only_its_format_means(
    pipelines: dict[str, Path], tmp_path: Path
) -> None:
    metadata = {"boothlab_variant": "{}", "ss_network_args": '{"algo": "loha", "preset": "full"}', "ss_seed": "3"}
    adapter = random_variant(arch(pipelines), "loha", metadata=metadata)
    with safe_open(written(adapter, "kohya", tmp_path, arch(pipelines)), framework="pt") as file:
        said = file.metadata()
    assert said["ss_network_args"] == metadata["ss_network_args"]
    assert said["ss_seed"] == "3"
    assert "boothlab_variant" not in said


# Files of the other tools themselves


def test_a_dora_that_diffusers_saved_is_read(pipelines: dict[str, Path], tmp_path: Path) -> None:
    pipeline = plain_pipeline(pipelines["sd15"])
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["to_q", "conv_in"], use_dora=True)
    pipeline.unet.add_adapter(config)
    for value in pipeline.unet.parameters():
        if value.requires_grad:
            value.data += 0.1 * torch.rand(value.shape, generator=torch.Generator().manual_seed(1))
    said = {"r": 2, "lora_alpha": 3, "target_modules": ["to_q", "conv_in"], "use_dora": True}
    state = get_peft_model_state_dict(pipeline.unet)
    pipeline.save_lora_weights(tmp_path, unet_lora_layers=state, unet_lora_adapter_metadata=said)
    adapter = read(tmp_path / "pytorch_lora_weights.safetensors", arch(pipelines))
    assert (set(adapter.variants), set(adapter.alphas)) == ({"dora"}, {3.0})
    layer = adapter.components["unet"]["conv_in"]
    assert isinstance(layer, LayerWeights) and layer.magnitude is not None
    assert torch.equal(layer.magnitude, state["conv_in.lora_magnitude_vector"].flatten())


@pytest.mark.parametrize(
    "config",
    [
        LoHaConfig(r=4, alpha=6, target_modules=["to_q", "conv1"], init_weights=False),
        LoKrConfig(r=1, alpha=3, target_modules=["to_q", "conv1"], init_weights=False),
        LoKrConfig(r=8, alpha=8, target_modules=["to_q", "conv1"], init_weights=False),
        LoKrConfig(r=1, alpha=2, target_modules=["to_q"], init_weights=False, decompose_both=True, decompose_factor=4),
        LoraConfig(r=2, lora_alpha=3, target_modules=["to_q", "conv1"], init_lora_weights=False, use_dora=True),
    ],
    ids=["loha", "lokr", "whole lokr", "lokr of a factor", "dora"],
)
def test_what_peft_saved_is_read_and_made_again(pipelines: dict[str, Path], tmp_path: Path, config: Any) -> None:
    torch.manual_seed(0)
    model = get_peft_model(plain_unet(pipelines), config)
    model.save_pretrained(tmp_path / "theirs")
    expected = outputs({"unet": model})
    adapter = read(tmp_path / "theirs", arch(pipelines))
    again = read(written(adapter, "kohya", tmp_path, arch(pipelines)), arch(pipelines))
    folder = written(again, "peft", tmp_path / "ours", arch(pipelines))
    theirs, ours = (load_file(one / "adapter_model.safetensors") for one in (tmp_path / "theirs", folder))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[key], ours[key]) for key in theirs)
    found = outputs({"unet": PeftModel.from_pretrained(plain_unet(pipelines), folder)})
    assert all(torch.equal(found[place], value) for place, value in expected.items())


def test_a_whole_lokrs_alpha_is_its_rank_in_lycoris(pipelines: dict[str, Path], tmp_path: Path) -> None:
    """LyCORIS scales it by 1, and writes its rank for alpha; other tools write anything there."""
    shape = (16, 16)
    layer = random_variant_layer("lokr", shape, 2, 1.0, torch.Generator().manual_seed(0))
    assert isinstance(layer, KroneckerWeights) and layer.is_whole and layer.least_rank == 2
    for alpha, rank in ((10000.0, 10000), (2.0, 2), (1.0, 2), (0.5, 2)):
        state = {f"{STEM}.{kind}": value for kind, value in layer.factors.items()}
        save_file(state | {f"{STEM}.alpha": torch.tensor(alpha)}, tmp_path / "whole.safetensors")
        adapter = read(tmp_path / "whole.safetensors", arch(pipelines))
        assert (set(adapter.ranks), set(adapter.alphas)) == ({rank}, {float(rank)})
        assert bool(adapter.notes) == (alpha != rank)
        folder = written(adapter, "peft", tmp_path / f"{alpha}", arch(pipelines))
        model = PeftModel.from_pretrained(plain_unet(pipelines), folder)
        (wrapped,) = [one for one in model.modules() if isinstance(one, BaseTunerLayer)]
        delta: Tensor = wrapped.get_delta_weight("default")  # type: ignore[operator]
        torch.testing.assert_close(delta.detach(), torch.kron(layer.factors["lokr_w1"], layer.factors["lokr_w2"]))


def test_a_whole_lokrs_scale_is_folded_for_lycoris_and_said(pipelines: dict[str, Path], tmp_path: Path) -> None:
    architecture = arch(pipelines)
    adapter = random_variant(architecture, "lokr", ranks=(4,))  # large enough for every layer here to be whole
    held = adapter.components["unet"].items()
    uneven = {path: dataclasses.replace(layer, alpha=6.0) for path, layer in held}
    adapter = Adapter({"unet": uneven}, {}, {}, "peft")  # type: ignore[arg-type]
    folder = written(adapter, "peft", tmp_path, architecture)
    assert same_update(read(folder, architecture), adapter)
    done = convert(adapter, "kohya", tmp_path / "k.safetensors", architecture)
    assert any("takes no notice of alpha" in note and f"of {len(uneven)} layers" in note for note in done.notes)
    for path, layer in read(tmp_path / "k.safetensors", architecture).components["unet"].items():
        source = uneven[path]
        assert layer.alpha == layer.rank == 4
        assert torch.equal(layer.tensors["lokr_w1"], (source.tensors["lokr_w1"].double() * 1.5).float())
        assert torch.equal(layer.tensors["lokr_w2"], source.tensors["lokr_w2"])


def test_networks_of_two_kinds_go_together_where_a_loader_has_them(pipelines: dict[str, Path], tmp_path: Path) -> None:
    """DoRA in the UNet and LoRA in the text encoder: two configs of PEFT's."""
    architecture = arch(pipelines)
    text = random_adapter(architecture, components=["text_encoder"]).components
    adapter = dataclasses.replace(
        random_variant(architecture, "dora"),
        components={"unet": random_variant(architecture, "dora").components["unet"], **text},
    )
    for to in FORMATS["dora"]:
        path = written(adapter, to, tmp_path, architecture)
        assert same_update(read(path, architecture), adapter)
        load_adapter(load(pipelines["sd15"]), find_adapter(path))


# The command, and what it refuses


@pytest.fixture
def saved(pipelines: dict[str, Path], tmp_path: Path) -> Callable[[str, str], Path]:
    """A file of a kind in a format, for the tiny SD 1.5."""
    architecture = arch(pipelines)
    small = {"endings": ("attn1.to_q", "q_proj")}
    return lambda variant, to: written(random_variant(architecture, variant, **small), to, tmp_path, architecture)  # type: ignore[arg-type]


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line with which a command line is refused."""
    assert main(["convert", *argv]) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("boothlab: error: ")
    assert "Traceback" not in out + err
    return line.removeprefix("boothlab: error: ")


@pytest.mark.parametrize(("variant", "name"), [("dora", "DoRA"), ("loha", "LoHa"), ("lokr", "LoKr")])
def test_the_command_shows_and_converts(
    pipelines: dict[str, Path],
    saved: Callable[[str, str], Path],
    capsys: pytest.CaptureFixture[str],
    variant: str,
    name: str,
) -> None:
    file, base = saved(variant, "kohya"), f"base={pipelines['sd15']}"
    assert main(["convert", str(file), base]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (shown["format"], shown["kind"], shown["rank"]) == ("kohya", name, "2")
    assert shown["layers"] == "unet 4, text_encoder 2"
    assert shown["model"] == "sd15 (every layer found, shapes fit)"
    for to in FORMATS[variant]:
        out = file.with_name(f"again_{to}" + ("" if to == "peft" else ".safetensors"))
        assert main(["convert", str(file), f"to={to}", f"out={out}", base]) == 0
        assert same_update(read(out, arch(pipelines)), read(file, arch(pipelines)))
    noted = capsys.readouterr().err
    assert ("leaves dora_scale out" in noted) == (variant == "dora")


@pytest.mark.parametrize(
    ("variant", "to", "others"),
    [
        ("dora", "cloneofsimo", "DoRA; take to=peft or to=diffusers or to=kohya"),
        ("loha", "diffusers", "LoHa; take to=peft or to=kohya"),
        ("lokr", "cloneofsimo", "LoKr; take to=peft or to=kohya"),
    ],
)
def test_a_format_without_a_place_says_which_have_one(
    pipelines: dict[str, Path],
    saved: Callable[[str, str], Path],
    capsys: pytest.CaptureFixture[str],
    variant: str,
    to: str,
    others: str,
) -> None:
    file = saved(variant, "kohya")
    out = file.with_name("out.safetensors")
    line = said(capsys, str(file), f"to={to}", f"out={out}", f"base={pipelines['sd15']}")
    assert line == f"to={to}: this format has no place for a {others}"
    assert not out.exists()


@pytest.fixture(scope="module")
def bare(pipelines: dict[str, Path]) -> Backbone:
    """The tiny SD 1.5, which no refused file changes."""
    return load(pipelines["sd15"])


State = dict[str, Tensor]


def without(key: str) -> Callable[[State], State]:
    return lambda state: {name: value for name, value in state.items() if name != key}


def scaled(*parts: str) -> Callable[[State], State]:
    return lambda state: {key: value * (0 if key.endswith(parts) else 1) for key, value in state.items()}


PLAIN = {"lora_unet_conv_in.lora_down.weight": torch.ones(1, 4, 3, 3)}
PLAIN |= {"lora_unet_conv_in.lora_up.weight": torch.ones(16, 1, 1, 1)}
BROKEN: dict[str, tuple[str, Callable[[State], State], str]] = {
    "columns": ("dora", lambda s: s | {f"{STEM}.dora_scale": torch.ones(1, 16)}, "a number for each column"),
    "other shape": ("dora", lambda s: s | {f"{STEM}.dora_scale": torch.ones(16, 2)}, "magnitudes are [out, 1]"),
    "other rows": ("dora", lambda s: s | {f"{STEM}.dora_scale": torch.ones(8, 1)}, "is [8], where unet."),
    "some without": ("dora", without(f"{STEM}.dora_scale"), "mixes DoRA (unet."),
    "magnitude alone": (
        "dora",
        lambda s: {k: v for k, v in s.items() if not k.startswith(STEM) or k.endswith(".dora_scale")},
        ".dora_scale has no down matrix beside it",
    ),
    "untrained": ("dora", scaled("lora_up.weight"), "its update is zero (all up matrices are)"),
    "zero": ("lokr", scaled("lokr_w1"), "its update is zero (a factor of each layer is)"),
    "half": ("loha", without(f"{STEM}.hada_w2_b"), f"{STEM}.hada_w1_a has no hada_w2_b beside it"),
    "half a side": ("lokr", without(f"{STEM}.lokr_w1"), "has no lokr_w1 beside it"),
    "two ranks": ("loha", lambda s: s | {f"{STEM}.hada_w2_a": torch.ones(16, 3)}, "twice the same"),
    "side twice": (
        "lokr",
        lambda s: s | {f"{STEM}.lokr_w1_a": torch.ones(4, 2), f"{STEM}.lokr_w1_b": torch.ones(2, 4)},
        "each side of a LoKr is one matrix",
    ),
    "another model": (
        "loha",
        lambda s: s | {f"{STEM}.hada_{side}_b": torch.ones(2, 24) for side in ("w1", "w2")},
        "make [16, 24], where unet.",
    ),
    "unmatched": ("lokr", lambda s: {k.replace("mid_block", "mid_blok"): v for k, v in s.items()}, "found a layer of"),
    "two kinds": (
        "loha",
        lambda s: s | {f"{STEM}.lokr_w1": torch.ones(2, 2)},
        "stands beside the factors of a LoHa",
    ),
    "magnitudes too": ("lokr", lambda s: s | {f"{STEM}.dora_scale": torch.ones(16, 1)}, "a layer of two kinds at once"),
    "mixed": ("loha", lambda s: s | PLAIN, "mixes LoHa (unet.down_blocks"),
    "tucker": ("loha", lambda s: s | {f"{STEM}.hada_t1": torch.ones(2, 2, 3, 3)}, "third matrices (Tucker"),
    "tucker lokr": ("lokr", lambda s: s | {f"{STEM}.lokr_t2": torch.ones(2, 2, 3, 3)}, "a third matrix (Tucker"),
    "nan": ("lokr", lambda s: s | {f"{STEM}.lokr_w1": torch.full((4, 4), torch.nan)}, "is not finite"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_malformed_file_is_one_line(
    pipelines: dict[str, Path],
    bare: Backbone,
    saved: Callable[[str, str], Path],
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    variant, change, expected = BROKEN[kind]
    file = saved(variant, "kohya")
    save_file(change(load_file(file)), file)
    line = said(capsys, str(file), f"base={pipelines['sd15']}")
    assert expected in line
    assert str(file) in line
    with pytest.raises(UserError):  # wherever adapters are read, not only here
        load_adapter(bare, file)
    assert not any(isinstance(layer, BaseTunerLayer) for layer in bare.unet.modules())


@pytest.mark.parametrize(("variant", "to"), [("dora", "diffusers"), ("loha", "kohya"), ("lokr", "kohya")])
def test_a_prefix_is_mended_on_request(
    pipelines: dict[str, Path], saved: Callable[[str, str], Path], variant: str, to: str
) -> None:
    path, architecture = saved(variant, to), arch(pipelines)
    original = read(path, architecture)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({f"module.{key}": value for key, value in load_file(path).items()}, path, metadata=metadata)
    with pytest.raises(UserError, match=r"begin with 'module\.', which no loader knows"):
        read(path, architecture)
    assert same_update(read_adapter(path, architecture, repair=True, products=True), original)


def test_a_peft_folder_without_its_config_has_no_alpha(
    pipelines: dict[str, Path], saved: Callable[[str, str], Path]
) -> None:
    folder = saved("loha", "peft")
    (folder / "unet" / "adapter_config.json").unlink()
    with pytest.raises(UserError, match=r"no adapter_config\.json beside it, which holds alpha"):
        read(folder, arch(pipelines))


def test_two_names_of_one_layer_are_refused(pipelines: dict[str, Path], tmp_path: Path) -> None:
    architecture = arch(pipelines, "sdxl")
    path = written(random_variant(architecture, "loha"), "kohya", tmp_path, architecture)
    state = load_file(path)
    key = next(key for key in sorted(state) if "middle_block_1" in key and "hada_w1_a" in key)
    save_file(state | {key.replace("middle_block_1", "mid_block_attentions_0"): state[key].clone()}, path)
    with pytest.raises(UserError, match=r"are both the hada_w1_a matrix of unet\.mid_block"):
        read(path, architecture)


@pytest.mark.parametrize(
    ("variant", "change", "expected"),
    [
        ("dora", {"use_dora": False}, "its settings say that it is no DoRA, and unet."),
        ("loha", {"peft_type": "LOKR"}, "is a LOKR's and its matrices are a LOHA's"),
        ("loha", {"peft_type": "OFT"}, "is PEFT's OFT; LORA, LOHA and LOKR are read"),
        ("loha", {"r": 7}, "rank 7, its matrices have rank 2"),
        ("loha", {"alpha": None}, "alpha is not a number"),
        ("lokr", {"r": -1, "rank_pattern": {}}, "rank -1"),
    ],
)
def test_a_config_of_another_file_is_refused(
    pipelines: dict[str, Path],
    saved: Callable[[str, str], Path],
    variant: str,
    change: dict[str, Any],
    expected: str,
) -> None:
    config = saved(variant, "peft") / "unet" / "adapter_config.json"
    held = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**held, **change}), encoding="utf-8")
    with pytest.raises(UserError, match="(?s)" + expected.replace(".", r"\.")):
        read(config.parent.parent, arch(pipelines))


def test_a_lokr_of_shapes_that_peft_never_makes_stays_with_kohya(pipelines: dict[str, Path], tmp_path: Path) -> None:
    """As LyCORIS' unbalanced_factorization makes them; boothlab loads it all the same."""
    state = {f"{STEM}.lokr_w1": torch.ones(8, 2), f"{STEM}.lokr_w2": torch.rand(2, 8)}
    save_file(state | {f"{STEM}.alpha": torch.tensor(4.0)}, tmp_path / "odd.safetensors")
    adapter = read(tmp_path / "odd.safetensors", arch(pipelines))
    with pytest.raises(UserError, match=r"no decompose_factor of PEFT's LoKr .* take to=kohya"):
        convert(adapter, "peft", tmp_path / "peft", arch(pipelines))
    with pytest.raises(UserError, match="name it with base="):
        convert(adapter, "peft", tmp_path / "peft", None)
    backbone = load(pipelines["sd15"])
    load_adapter(backbone, tmp_path / "odd.safetensors")
    (layer,) = [one for one in backbone.unet.modules() if isinstance(one, BaseTunerLayer)]
    delta: Tensor = layer.get_delta_weight("boothlab")  # type: ignore[operator]
    assert torch.equal(delta, torch.kron(state[f"{STEM}.lokr_w1"], state[f"{STEM}.lokr_w2"]))


def test_callers_that_need_down_and_up_get_neither_loha_nor_lokr(saved: Callable[[str, str], Path]) -> None:
    with pytest.raises(UserError, match="belongs to a LoHa of LyCORIS; only LoRA and DoRA are read here"):
        read_adapter(saved("loha", "kohya"))


def test_a_variant_comes_off_again_and_goes_alone(
    pipelines: dict[str, Path], saved: Callable[[str, str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    backbone = load(pipelines["sd15"])
    bare = {name: value.clone() for name, value in backbone.unet.state_dict().items()}
    path = saved("lokr", "peft")
    load_adapter(backbone, path, 0.0, 0.0)
    with pytest.raises(UserError, match="carries an adapter already"):
        load_adapter(backbone, path)
    shed_adapters(backbone)
    assert backbone.unet.state_dict().keys() == bare.keys()
    assert all(torch.equal(value, bare[name]) for name, value in backbone.unet.state_dict().items())
    with caplog.at_level(logging.WARNING), pytest.raises(UserError, match="goes with no other adapter"):
        load_adapter(backbone, path, beside=["other"])


# Any keys


NAMES = ["lora_unet_conv_in", STEM, "base_model.model.conv_in", "unet.conv_in", "lora_te_text_model"]
ENDS = ["lora_down.weight", "lora_up.weight", "lora_A.weight", "lora_B.weight", "alpha", "dora_scale"]
ENDS += ["lora_magnitude_vector", *HADAMARD, *KRONECKER, "hada_t1", "é"]
SHAPES = [(), (0,), (1,), (16,), (2, 2), (1, 2), (2, 1), (2, 0), (2, 2, 1), (16, 1, 1, 1), (1, 4, 3, 3)]
KEYS = st.tuples(st.sampled_from(NAMES), st.sampled_from(ENDS)).map(".".join)
STATES = st.dictionaries(KEYS, st.sampled_from(SHAPES), min_size=1, max_size=8)


@given(state=STATES, config=st.sampled_from(["LORA", "LOHA", "LOKR", None]))
@settings(max_examples=80)
def test_any_keys_and_shapes_are_read_or_refused(
    state: dict[str, tuple[int, ...]], config: str | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nothing but an adapter that is whole, or one line, comes of them."""
    folder = tmp_path_factory.getbasetemp() / "keys"
    folder.mkdir(exist_ok=True)
    path = folder / "adapter_model.safetensors"
    save_file({key: torch.ones(shape) for key, shape in state.items()}, path)
    named = folder / "adapter_config.json"
    named.unlink(missing_ok=True)
    if config is not None:
        named.write_text(json.dumps({"peft_type": config, "r": 2, "lora_alpha": 2, "alpha": 2}), encoding="utf-8")
    try:
        adapter = read(path)
    except UserError as error:
        assert "\n" not in str(error)
        return
    for _, _, layer in adapter.layers():
        assert math.isfinite(layer.alpha) and layer.rank >= 1
        if not isinstance(layer, LayerWeights):
            assert layer.is_consistent
        same_update(adapter, adapter)

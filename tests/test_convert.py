"""Adapter files of every tool: read, written, the same in plain diffusers, and refused in one line where broken."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from boothlab.cli import main
from boothlab.diffusion.backbone import Backbone
from boothlab.diffusion.formats import cloneofsimo, kohya
from boothlab.diffusion.formats.adapter import Adapter, LayerWeights, same_update
from boothlab.diffusion.formats.architecture import Architecture, architecture_of, known_architecture, recognise
from boothlab.diffusion.formats.container import RawFile, adapter_digest, safetensors_bytes
from boothlab.diffusion.formats.convert import convert
from boothlab.diffusion.formats.read import read_adapter
from boothlab.diffusion.lora import find_adapter, load_adapter, shed_adapters
from boothlab.diffusion.sampling import Request, Sampler, SamplerSettings
from boothlab.errors import UserError
from random_adapters import ATTENTION, random_adapter, random_layer
from tiny_pipelines import load, most_levels_apart, plain_image, plain_pipeline

REQUESTS = [Request("a red car", 0), Request("a photo of a blue cat at night", 5)]
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "proj_in", "time_emb_proj", "conv_in", "downsamplers.0.conv")
EVERY_KIND = (*ATTENTION, *CONVOLUTIONS, "ff.net.0.proj", "ff.net.2", "upsamplers.0.conv", "fc1", "fc2")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("sd21", "sdxl")]


def arch(pipelines: Mapping[str, Path], name: str = "sd15") -> Architecture:
    return architecture_of(str(pipelines[name]))


def written(adapter: Adapter, to: str, folder: Path, architecture: Architecture) -> Path:
    """The adapter in a format: its file, or PEFT's folder."""
    out = folder / (f"{to}" if to == "peft" else f"{to}.safetensors")
    convert(adapter, to, out, architecture)
    return out


def images(backbone: Backbone) -> Tensor:
    return Sampler(backbone, SamplerSettings("ddim", 2, 5.0)).draw(REQUESTS)


def plain(pipeline: Any) -> Tensor:
    return torch.stack([plain_image(pipeline, request.prompt, request.seed, steps=2) for request in REQUESTS])


def peft_into(pipeline: Any, folder: Path) -> None:
    """As a user of PEFT alone loads its folders."""
    for component in ("unet", "text_encoder", "text_encoder_2"):
        if (folder / component).is_dir():
            network = PeftModel.from_pretrained(getattr(pipeline, component), folder / component)
            setattr(pipeline, component, network.merge_and_unload())


# The same images everywhere


@pytest.mark.parametrize("name", ["sd15", *SLOW])
@pytest.mark.parametrize("to", ["diffusers", "kohya", "peft"])
def test_plain_loaders_draw_what_ours_draws(pipelines: dict[str, Path], tmp_path: Path, name: str, to: str) -> None:
    architecture = arch(pipelines, name)
    uneven = {"ranks": (4, 2, 3), "alphas": (6.0, 1.0, 3.0, 0.5)} if to != "kohya" else {}
    adapter = random_adapter(architecture, endings=EVERY_KIND, **uneven)  # type: ignore[arg-type]
    path = written(adapter, to, tmp_path, architecture)
    backbone = load(pipelines[name])
    bare = images(backbone)
    load_adapter(backbone, find_adapter(path))
    ours = images(backbone)
    pipeline = plain_pipeline(pipelines[name])
    if to == "peft":
        peft_into(pipeline, path)
    else:
        pipeline.load_lora_weights(tmp_path, weight_name=path.name)
    assert most_levels_apart(ours, plain(pipeline)) <= 1
    assert most_levels_apart(ours, bare) > 10


def test_diffusers_reads_a_unet_of_pefts_with_its_alpha(pipelines: dict[str, Path], tmp_path: Path) -> None:
    architecture = arch(pipelines)
    adapter = random_adapter(architecture, components=["unet"], ranks=(4, 2), alphas=(6.0, 1.0, 3.0))
    folder = written(adapter, "peft", tmp_path, architecture)
    pipeline = plain_pipeline(pipelines["sd15"])
    pipeline.unet.load_lora_adapter(folder, weight_name="adapter_model.safetensors", prefix="base_model.model")
    backbone = load(pipelines["sd15"])
    load_adapter(backbone, find_adapter(folder))
    assert most_levels_apart(images(backbone), plain(pipeline)) <= 1


@pytest.mark.parametrize("name", ["sd15", *SLOW])
def test_a_merged_adapter_predicts_what_an_unmerged_one_does(
    pipelines: dict[str, Path], tmp_path: Path, name: str
) -> None:
    architecture = arch(pipelines, name)
    adapter = random_adapter(architecture, endings=EVERY_KIND, ranks=(4, 2), alphas=(2.0, 3.0))
    backbone = load(pipelines[name])
    load_adapter(backbone, written(adapter, "kohya", tmp_path, architecture))
    pipeline = backbone.pipeline

    def drawn() -> np.ndarray[Any, Any]:
        seeded = torch.Generator().manual_seed(0)
        found = pipeline(
            "a red car", height=32, width=32, num_inference_steps=2, generator=seeded, output_type="np"
        ).images
        return np.asarray(found)

    apart = drawn()
    pipeline.fuse_lora(components=["unet", *backbone.text_encoders])
    assert float(np.abs(drawn() - apart).max()) < 1e-5


def test_every_format_draws_the_same_image_and_comes_off_again(pipelines: dict[str, Path], tmp_path: Path) -> None:
    architecture = arch(pipelines)
    endings = (*ATTENTION, "ff.net.0.proj")
    adapter = random_adapter(architecture, endings=endings, ranks=(4, 2), alphas=(2.0, 1.0, 8.0))
    backbone = load(pipelines["sd15"])
    bare = images(backbone)
    drawn = []
    for to in ("diffusers", "kohya", "peft", "cloneofsimo"):
        load_adapter(backbone, find_adapter(written(adapter, to, tmp_path, architecture)))
        drawn.append(images(backbone))
        shed_adapters(backbone)
    assert all(torch.equal(one, drawn[0]) for one in drawn[:3])
    assert most_levels_apart(drawn[3], drawn[0]) <= 1  # the scale is multiplied into its matrices
    assert torch.equal(images(backbone), bare)


# Round trips


NUMBERS = st.floats(min_value=1e-3, max_value=1e3, allow_nan=False) | st.integers(1, 64).map(float)


@given(data=st.data())
@settings(max_examples=25)
def test_round_trips_are_exact(data: st.DataObject, pipelines: dict[str, Path], tmp_path_factory: Any) -> None:
    name = data.draw(st.sampled_from(["sd15", "sd21", "sdxl"]))
    architecture = CACHE.setdefault(name, arch(pipelines, name))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    places = [(component, path) for component, shapes in architecture.shapes.items() for path in shapes]
    chosen = data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=8, unique=True))
    stream = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))
    components: dict[str, dict[str, LayerWeights]] = {}
    for component, path in chosen:
        rank, alpha = data.draw(st.integers(1, 5)), data.draw(NUMBERS)
        layer = random_layer(architecture.shapes[component][path], rank, alpha, stream, dtype)
        components.setdefault(component, {})[path] = layer
    adapter = Adapter(components, {}, {}, "diffusers")
    folder = tmp_path_factory.mktemp("round")
    for number, to in enumerate(
        data.draw(st.lists(st.sampled_from(["diffusers", "kohya", "peft"]), min_size=1, max_size=3))
    ):
        path = written(adapter, to, folder / str(number), architecture)
        again = read_adapter(path, architecture)
        assert again.format == to
        assert same_update(again, adapter)
        adapter = again


CACHE: dict[str, Architecture] = {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_cloneofsimos_round_trip_is_exact_where_alpha_is_the_rank(
    pipelines: dict[str, Path], tmp_path: Path, dtype: torch.dtype
) -> None:
    architecture = arch(pipelines)
    adapter = random_adapter(architecture, endings=(*ATTENTION, "ff.net.0.proj"), alphas=(4.0,), dtype=dtype)
    adapter = dataclasses.replace(adapter, embeddings={"<s1>": torch.ones(32), "<s2>": torch.zeros(32)})
    path = written(adapter, "cloneofsimo", tmp_path, architecture)
    again = read_adapter(path, architecture)
    assert same_update(again, adapter)
    assert again.embeddings.keys() == {"<s1>", "<s2>"}
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["unet"]) == ["Attention", "CrossAttention", "GEGLU"]
        assert file.metadata()["unet:0:rank"] == "4"
        assert file.metadata()["<s1>"] == "<embed>"


def test_a_format_without_alpha_gets_it_folded_and_says_so(pipelines: dict[str, Path], tmp_path: Path) -> None:
    architecture = arch(pipelines)
    adapter = random_adapter(architecture, components=["unet"], ranks=(4,), alphas=(6.0,))
    done = convert(adapter, "cloneofsimo", tmp_path / "a.safetensors", architecture)
    assert done.notes == ["this format has no alpha: alpha / rank (6 / 4) is multiplied into the up matrices"]
    again = read_adapter(tmp_path / "a.safetensors", architecture)
    for (_, _, ours), (_, _, theirs) in zip(adapter.layers(), again.layers(), strict=True):
        assert theirs.alpha == theirs.rank == 4
        assert torch.equal(theirs.up, (ours.up.double() * 1.5).float())


@pytest.mark.parametrize("to", ["diffusers", "kohya", "peft"])
def test_no_alpha_is_rounded(pipelines: dict[str, Path], tmp_path: Path, to: str) -> None:
    architecture = arch(pipelines)
    adapter = random_adapter(architecture, alphas=(0.1, 1 / 3, 1e-5, 7.0), dtype=torch.float16)
    again = read_adapter(written(adapter, to, tmp_path, architecture), architecture)
    assert set(again.alphas) == {0.1, 1 / 3, 1e-5, 7.0}
    assert same_update(again, adapter)


def test_the_same_adapter_gives_the_same_bytes(pipelines: dict[str, Path], tmp_path: Path) -> None:
    architecture = arch(pipelines)
    first, second = (
        written(random_adapter(architecture), "kohya", tmp_path / name, architecture).read_bytes() for name in "ab"
    )
    assert first == second


# Names


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl"])
def test_kohyas_names_are_those_that_diffusers_reads(name: str) -> None:
    architecture = known_architecture(name)
    raw = RawFile(Path("x"), {}, {})
    for path in architecture.shapes["unet"]:
        flat = "lora_unet_" + path.replace(".", "_")
        original = "lora_unet_" + kohya.original_name(path, architecture)
        if path.startswith("add_embedding"):  # diffusers drops its number; we find it by our own table
            continue
        if name == "sdxl":  # the only one whose files have the original numbering
            assert kohya._by_diffusers(raw, original, architecture) == ("unet", path)
        assert kohya._by_diffusers(raw, flat, architecture) == ("unet", path)
    assert set(kohya._table(architecture).values()) == {
        (component, path) for component, shapes in architecture.shapes.items() for path in shapes
    }


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("conv_in", "input_blocks_0_0"),
        ("down_blocks.0.resnets.0.conv1", "input_blocks_1_0_in_layers_2"),
        ("down_blocks.0.downsamplers.0.conv", "input_blocks_3_0_op"),
        (
            "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k",
            "input_blocks_4_1_transformer_blocks_1_attn2_to_k",
        ),
        ("mid_block.attentions.0.proj_in", "middle_block_1_proj_in"),
        ("mid_block.resnets.1.conv2", "middle_block_2_out_layers_3"),
        ("up_blocks.0.upsamplers.0.conv", "output_blocks_2_2_conv"),
        ("up_blocks.2.resnets.2.conv_shortcut", "output_blocks_8_0_skip_connection"),
        ("time_embedding.linear_2", "time_embed_2"),
        ("add_embedding.linear_1", "label_emb_0_0"),
    ],
)
def test_sdxls_layers_in_the_original_numbering(path: str, expected: str) -> None:
    assert kohya.original_name(path, known_architecture("sdxl")) == expected


def test_the_numbers_of_cloneofsimos_files_are_those_of_the_real_ones() -> None:
    """Positions and shapes as in the two public SD 1.x files: attn1, GEGLU, attn2; the middle block last."""
    sd15 = known_architecture("sd15")
    paths = cloneofsimo.numbering(sd15, "unet", {"Attention", "GEGLU"})
    block = "down_blocks.0.attentions.0.transformer_blocks.0"
    names = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "attn2.to_q", "attn2.to_k")
    assert paths[:7] == [f"{block}.{name}" for name in names]
    assert len(paths) == 144
    assert sd15.shapes["unet"][paths[4]] == (2560, 320)
    assert sd15.shapes["unet"][paths[6]] == (320, 768)
    assert paths[134].startswith("up_blocks.3.attentions.2")
    assert paths[135].startswith("mid_block")
    text = cloneofsimo.numbering(sd15, "text_encoder", {"CLIPAttention"})
    assert [path.rsplit(".", 1)[1] for path in text[:4]] == ["k_proj", "v_proj", "q_proj", "out_proj"]
    assert len(text) == 48


def test_a_file_of_the_real_schema_is_recognised_without_a_base(tmp_path: Path) -> None:
    sd15 = known_architecture("sd15")
    state: dict[str, Tensor] = {"<s1>": torch.ones(768)}
    metadata = {"<s1>": "<embed>"}
    classes = {"unet": {"Attention", "GEGLU"}, "text_encoder": {"CLIPAttention"}}
    for component, named in classes.items():
        for number, path in enumerate(cloneofsimo.numbering(sd15, component, named)):
            shape = sd15.shapes[component][path]
            state[f"{component}:{number}:down"] = torch.zeros(1, shape[1], dtype=torch.float16)
            state[f"{component}:{number}:up"] = torch.ones(shape[0], 1, dtype=torch.float16)
        metadata[component] = json.dumps(sorted(named))
    save_file(state, tmp_path / "old.safetensors", metadata=metadata)
    adapter = read_adapter(tmp_path / "old.safetensors")
    assert adapter.format == "cloneofsimo"
    assert [one.name for one in recognise(adapter.layers())] == ["sd15"]
    assert {component: len(layers) for component, layers in adapter.components.items()} == {
        "unet": 144,
        "text_encoder": 48,
    }
    assert list(adapter.embeddings) == ["<s1>"]


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight", "attn1.to_q"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.down.weight", "attn1.to_out.0"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_k.lora.down.weight", "attn1.to_k"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_k.lora_A.weight", "attn1.to_k"),
        ("unet.mid_block.resnets.0.conv1.lora.down.weight", "conv1"),
        ("text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.down.weight", "self_attn.q_proj"),
        ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight", "self_attn.q_proj"),
        ("text_encoder.encoder.layers.0.mlp.fc1.lora_A.weight", "mlp.fc1"),
        ("text_encoder_2.text_model.encoder.layers.0.mlp.fc2.lora_linear_layer.down.weight", "mlp.fc2"),
    ],
)
def test_keys_of_every_age_of_diffusers(key: str, place: str) -> None:
    from boothlab.diffusion.formats.diffusers_format import place_of

    found = place_of(key)
    assert found is not None
    assert (found[0], found[2]) == (key.split(".")[0], "down")
    assert found[1].endswith(place)
    assert ("text_model." in found[1]) == (found[0] != "unet")
    up = key.replace("down", "up") if "lora_A" not in key else key.replace("lora_A", "lora_B")
    assert place_of(up.replace("up_blocks", "down_blocks")) == (*found[:2], "up")


def test_attention_processors_of_before_draw_the_same(pipelines: dict[str, Path], tmp_path: Path) -> None:
    architecture = arch(pipelines)
    adapter = random_adapter(architecture, alphas=(4.0,))
    state = {}
    for component, path, layer in adapter.layers():
        text = {"q_proj": "to_q_lora", "k_proj": "to_k_lora", "v_proj": "to_v_lora", "out_proj": "to_out_lora"}
        unet = {"to_q": "processor.to_q_lora", "to_k": "processor.to_k_lora", "to_v": "processor.to_v_lora"}
        stem, _, last = path.replace("to_out.0", "to_out").rpartition(".")
        name = ({**unet, "to_out": "processor.to_out_lora"} if component == "unet" else text)[last]
        state[f"{component}.{stem}.{name}.down.weight"] = layer.down
        state[f"{component}.{stem}.{name}.up.weight"] = layer.up
    save_file(state, tmp_path / "old.safetensors")
    assert same_update(read_adapter(tmp_path / "old.safetensors", architecture), adapter)


# What a file holds is kept, and told


def test_metadata_is_kohyas_and_boothlabs(pipelines: dict[str, Path], tmp_path: Path) -> None:
    said = {
        "rank": 4,
        "lr": 1e-4,
        "step": 200,
        "run": "toy",
        "backbone": {"name": "sd15", "source": "hub/sd15", "resolution": 512},
    }
    metadata = {"boothlab": json.dumps(said), "ss_tag_frequency": "{}", "unet:0:rank": "4"}
    adapter = random_adapter(arch(pipelines), metadata=metadata)
    path = written(adapter, "kohya", tmp_path, arch(pipelines))
    with safe_open(path, framework="pt") as file:
        found = file.metadata()
    assert json.loads(found["boothlab"]) == said
    expected = {
        "ss_network_dim": "4",
        "ss_network_alpha": "6",
        "ss_network_module": "networks.lora",
        "ss_learning_rate": "0.0001",
        "ss_steps": "200",
        "ss_output_name": "toy",
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_tag_frequency": "{}",
        "boothlab_converted_from": "diffusers",
    }
    assert {key: found[key] for key in expected} == expected
    assert "unet:0:rank" not in found
    assert "lora_adapter_metadata" not in found  # diffusers refuses a file that gives alpha twice
    uneven = random_adapter(arch(pipelines), ranks=(4, 2), alphas=(1.0, 2.0, 3.0))
    path = written(uneven, "kohya", tmp_path / "uneven", arch(pipelines))
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["ss_network_dim"] == file.metadata()["ss_network_alpha"] == "Dynamic"


@pytest.mark.slow
@pytest.mark.parametrize("components", [["unet"], ["text_encoder"]])
@pytest.mark.parametrize("to", ["diffusers", "kohya", "peft"])
def test_one_network_alone(pipelines: dict[str, Path], tmp_path: Path, components: list[str], to: str) -> None:
    architecture = arch(pipelines)
    adapter = random_adapter(architecture, components=components)
    path = written(adapter, to, tmp_path, architecture)
    assert same_update(read_adapter(path, architecture), adapter)
    backbone = load(pipelines["sd15"])
    load_adapter(backbone, find_adapter(path))
    assert not torch.equal(images(backbone), images(load(pipelines["sd15"])))


def test_new_words_can_be_used_and_are_gone_afterwards(pipelines: dict[str, Path], tmp_path: Path) -> None:
    architecture = arch(pipelines)
    adapter = random_adapter(architecture, endings=(*ATTENTION, "ff.net.0.proj"), alphas=(4.0,))
    words = {"<s1>": torch.randn(32, generator=torch.Generator().manual_seed(3)) * 9}
    adapter = dataclasses.replace(adapter, embeddings=words)
    path = written(adapter, "cloneofsimo", tmp_path, architecture)
    backbone = load(pipelines["sd15"])
    tokens = len(backbone.pipeline.tokenizer)
    ids = backbone.tokenize(["a <s1> car"])["text_encoder"]
    load_adapter(backbone, path)
    assert len(backbone.pipeline.tokenizer) == tokens + 1
    new = backbone.tokenize(["a <s1> car"])["text_encoder"]
    assert tokens in new and tokens not in ids
    assert torch.equal(backbone.pipeline.text_encoder.get_input_embeddings().weight[tokens], words["<s1>"])
    shed_adapters(backbone)
    assert torch.equal(backbone.tokenize(["a <s1> car"])["text_encoder"], ids)
    assert len(backbone.pipeline.tokenizer) == tokens
    done = convert(adapter, "kohya", tmp_path / "disney.safetensors", architecture)
    assert [file.name for file in done.files] == ["disney.safetensors", "disney_s1.safetensors"]
    pipeline = plain_pipeline(pipelines["sd15"])
    pipeline.load_textual_inversion(tmp_path / "disney_s1.safetensors", token="<s1>")
    assert torch.equal(pipeline.text_encoder.get_input_embeddings().weight[tokens], words["<s1>"])


def test_words_of_another_width_are_refused(pipelines: dict[str, Path], tmp_path: Path) -> None:
    architecture = arch(pipelines)
    adapter = random_adapter(architecture, endings=(*ATTENTION, "ff.net.0.proj"))
    adapter = dataclasses.replace(adapter, embeddings={"<s1>": torch.ones(768)})
    path = written(adapter, "cloneofsimo", tmp_path, architecture)
    with pytest.raises(
        UserError, match=r"the embedding of <s1> is \[768\], where the text encoder of sd15 has words of 32"
    ):
        load_adapter(load(pipelines["sd15"]), path)


def test_a_peft_folder_is_known_by_all_its_files(pipelines: dict[str, Path], tmp_path: Path) -> None:
    architecture = arch(pipelines)
    folder = written(random_adapter(architecture), "peft", tmp_path, architecture)
    assert find_adapter(folder) == folder
    before = adapter_digest(folder)
    assert len(before) == 64
    config = folder / "text_encoder" / "adapter_config.json"
    config.write_text(
        config.read_text(encoding="utf-8").replace('"lora_alpha": 6', '"lora_alpha": 7'), encoding="utf-8"
    )
    assert adapter_digest(folder) != before
    assert set(read_adapter(folder, architecture).alphas) == {6.0, 7.0}


def test_rank_stabilised_peft_keeps_its_scale(pipelines: dict[str, Path], tmp_path: Path) -> None:
    architecture = arch(pipelines)
    folder = written(random_adapter(architecture, components=["unet"]), "peft", tmp_path, architecture)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    (folder / "adapter_config.json").write_text(json.dumps({**config, "use_rslora": True}), encoding="utf-8")
    assert set(read_adapter(folder, architecture).alphas) == {12.0}  # 6 / √4 = 12 / 4


# The command


@pytest.fixture
def saved(pipelines: dict[str, Path], tmp_path: Path) -> Path:
    """A diffusers file for the tiny SD 1.5."""
    return written(random_adapter(arch(pipelines)), "diffusers", tmp_path, arch(pipelines))


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line with which a command line is refused."""
    assert main(["convert", *argv]) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("boothlab: error: ")
    assert "Traceback" not in out + err
    return line.removeprefix("boothlab: error: ")


def test_the_command_shows_and_converts(
    pipelines: dict[str, Path], saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = f"base={pipelines['sd15']}"
    assert main(["convert", str(saved), base]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["format"] == "diffusers"
    assert (shown["rank"], shown["alpha"], shown["dtype"]) == ("4", "6", "float32")
    assert shown["model"] == "sd15 (every layer found, shapes fit)"
    assert shown["layers"] == "unet 32, text_encoder 8"
    assert sorted(saved.parent.iterdir()) == [saved]
    for to in ("kohya", "peft", "diffusers"):
        assert main(["convert", str(saved), f"to={to}", base]) == 0
    capsys.readouterr()
    original = read_adapter(saved, arch(pipelines))
    for name in ("diffusers_kohya.safetensors", "diffusers_peft", "diffusers_diffusers.safetensors"):
        assert same_update(read_adapter(saved.parent / name, arch(pipelines)), original)
    assert "is there already" in said(capsys, str(saved), "to=kohya", base)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ((), "which file?"),
        (("absent.safetensors",), "no such file or folder"),
        (("FILE", "to=civitai"), "to=civitai: is none of the formats peft, diffusers, kohya, cloneofsimo"),
        (("FILE", "too=kohya"), "did you mean to=?"),
        (("FILE", "to=kohya", "to=peft"), "is given twice"),
        (("FILE", "out=x.safetensors"), "say in which format with to="),
        (("FILE", "to=kohya", "out=x.ckpt"), "a name that ends in .safetensors"),
        (("FILE", "repair=maybe"), "is neither true nor false"),
        (("FILE", "base=nowhere/model"), "no pipeline folder is there"),
        (("FILE", "base=sd15"), "it was made for another architecture"),
        (("FILE", "FILE"), "one too many"),
        (("FILE", "prefix=lycoris_"), "no key begins with prefix=lycoris_"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    saved: Path, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], expected: str
) -> None:
    assert expected in said(capsys, *(str(saved) if word == "FILE" else word for word in argv))


State = dict[str, Tensor]


def drop(part: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if part not in key}


def rename(old: str, new: str) -> Callable[[State], State]:
    return lambda state: {key.replace(old, new): value for key, value in state.items()}


def first_down(state: State) -> str:
    return next(key for key in sorted(state) if "lora_A" in key)


BROKEN: dict[str, tuple[Callable[[State], State], str]] = {
    "half": (lambda s: {k: v for k, v in s.items() if k != first_down(s)}, "has no down matrix beside it"),
    "zero": (lambda s: {k: v * (0 if "lora_B" in k or ".up." in k else 1) for k, v in s.items()}, "its update is zero"),
    "shape": (lambda s: s | {first_down(s): torch.ones(4, 5)}, "is [4, 5], where unet."),
    "rank": (lambda s: s | {first_down(s): torch.ones(3, 16)}, "rank"),
    "nan": (lambda s: s | {first_down(s): torch.full((4, 16), torch.nan)}, "is not finite"),
    "integers": (lambda s: s | {first_down(s): torch.ones(4, 16, dtype=torch.int64)}, "holds int64"),
    "nothing": (lambda s: {"x": torch.ones(1)}, "1 of 1 keys are of no format that is read"),
    "strange": (lambda s: s | {"unet.mid_block.gamma": torch.ones(1)}, "unet.mid_block.gamma is no key of a LoRA"),
    "unmatched": (rename("mid_block", "mid_blok"), "(without one: unet.mid_blok."),
    "doubled": (
        lambda s: s | {first_down(s).replace("lora_A", "lora.down"): s[first_down(s)].clone()},
        "are both the down matrix of unet.",
    ),
    "mixed": (lambda s: s | {"lora_unet_conv_in.alpha": torch.ones(())}, "mixes keys of diffusers"),
    "loha": (lambda s: {"lora_unet_conv_in.hada_w1_a": torch.ones(2, 2)}, "has no hada_w1_b beside it"),
    "lokr": (lambda s: {"lora_unet_conv_in.lokr_w1": torch.ones(2, 2)}, "has no lokr_w2 beside it"),
    "dora": (lambda s: s | {"unet.conv_in.lora_magnitude_vector": torch.ones(16)}, "has no down matrix beside it"),
    "tucker": (lambda s: {"lora_unet_conv_in.lora_mid.weight": torch.ones(2, 2)}, "with a third matrix"),
    "module": (rename("unet.", "module.unet."), "begin with 'module.', which no loader knows"),
    "model": (rename("unet.", "model.unet."), "repair=true` takes it off"),
    "wrapped": (rename("unet.", "base_model.model.unet."), "begin with 'base_model.model.'"),
    "transformer": (rename("unet.", "transformer.unet."), "repair=true` takes it off"),
    "bare": (rename("unet.", ""), "lack 'unet.' in front"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_malformed_file_is_one_line(
    pipelines: dict[str, Path], saved: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    change, expected = BROKEN[kind]
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    save_file(change(load_file(saved)), saved, metadata=metadata)
    line = said(capsys, str(saved), f"base={pipelines['sd15']}")
    assert expected in line
    assert str(saved) in line
    with pytest.raises(UserError):  # wherever adapters are read, not only here
        load_adapter(load(pipelines["sd15"]), saved)


@pytest.mark.parametrize("kind", ["module", "model", "wrapped", "transformer", "bare"])
def test_a_prefix_is_mended_on_request(
    pipelines: dict[str, Path], saved: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    original = read_adapter(saved, arch(pipelines))
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    save_file(BROKEN[kind][0](load_file(saved)), saved, metadata=metadata)
    out = saved.with_name("mended.safetensors")
    arguments = ["convert", str(saved), "to=diffusers", f"out={out}", f"base={pipelines['sd15']}", "repair=true"]
    assert main(arguments) == 0
    assert "keys" in capsys.readouterr().err
    assert same_update(read_adapter(out, arch(pipelines)), original)


def test_a_named_prefix_is_taken_off(pipelines: dict[str, Path], saved: Path) -> None:
    original = read_adapter(saved, arch(pipelines))
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    save_file({f"my_lora/{key}": value for key, value in load_file(saved).items()}, saved, metadata=metadata)
    with pytest.raises(UserError, match="name a prefix to take off"):
        read_adapter(saved, arch(pipelines))
    assert same_update(read_adapter(saved, arch(pipelines), prefix="my_lora/"), original)


def test_pefts_keys_without_its_config_are_refused_unless_alpha_is_said(
    pipelines: dict[str, Path], tmp_path: Path
) -> None:
    architecture = arch(pipelines)
    adapter = random_adapter(architecture, components=["unet"])
    folder = written(adapter, "peft", tmp_path, architecture)
    (folder / "adapter_config.json").unlink()
    assert same_update(read_adapter(folder, architecture), adapter)  # our own metadata has it too
    weights = folder / "adapter_model.safetensors"
    save_file(load_file(weights), weights)
    with pytest.raises(UserError, match=r"no adapter_config\.json beside it, which holds alpha"):
        read_adapter(folder, architecture)
    mended = read_adapter(folder, architecture, repair=True)
    assert set(mended.alphas) == {4.0}
    assert "no adapter_config.json: alpha is taken to be the rank" in mended.notes


def test_a_header_that_names_a_key_twice_is_refused(tmp_path: Path) -> None:
    data = safetensors_bytes({"unet.a": torch.ones(1), "unet.b": torch.ones(1)}, {"format": "pt"})
    path = tmp_path / "twice.safetensors"
    path.write_bytes(data.replace(b'"unet.b"', b'"unet.a"'))
    with pytest.raises(UserError, match=r"unet\.a is there twice"):
        read_adapter(path)


def test_two_names_of_one_kohya_layer_are_refused(pipelines: dict[str, Path], tmp_path: Path) -> None:
    architecture = arch(pipelines, "sdxl")
    path = written(random_adapter(architecture, components=["unet"]), "kohya", tmp_path, architecture)
    state = load_file(path)
    key = next(key for key in sorted(state) if "middle_block_1" in key and "lora_down" in key)
    double = key.replace("middle_block_1", "mid_block_attentions_0")
    save_file(state | {double: state[key].clone()}, path)
    with pytest.raises(UserError, match=r"are both the down matrix of unet\.mid_block"):
        read_adapter(path, architecture)


def test_layers_that_cloneofsimos_format_cannot_number_are_refused(pipelines: dict[str, Path], tmp_path: Path) -> None:
    architecture = arch(pipelines)
    for endings in (("to_q",), (*ATTENTION, "conv_in")):
        with pytest.raises(UserError, match="numbers all attention layers of a network or none"):
            convert(
                random_adapter(architecture, endings=endings), "cloneofsimo", tmp_path / "x.safetensors", architecture
            )
    with pytest.raises(UserError, match="no place for a second text encoder"):
        xl = arch(pipelines, "sdxl")
        convert(random_adapter(xl), "cloneofsimo", tmp_path / "x.safetensors", xl)
    assert not list(tmp_path.iterdir())


@given(data=st.binary(max_size=200))
@settings(max_examples=60)
def test_any_bytes_are_read_or_refused(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_adapter(path)
    assert "\n" not in str(caught.value)


NAMES = st.sampled_from(
    ["unet", "text_encoder", "lora_unet", "base_model.model", "0", "down", "lora_A", "weight", ".", "_", ":", "é"]
)


@given(keys=st.lists(st.lists(NAMES, min_size=1, max_size=6).map("".join), min_size=1, max_size=4, unique=True))
@settings(max_examples=60)
def test_any_keys_are_read_or_refused(keys: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "keys.safetensors"
    save_file({key: torch.ones(2, 2) for key in keys}, path)
    with pytest.raises(UserError) as caught:
        read_adapter(path)
    assert "\n" not in str(caught.value)

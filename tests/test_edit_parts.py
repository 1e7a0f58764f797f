"""The extra models of editing: lazily loaded, refused in one line when wrong, and wearing the backbone's LoRA."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, T2IAdapter, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny_pipelines
from boothlab.diffusion.lora import adapter_state, attach, load_adapter, lora_layers, save_adapter, shed_adapters
from boothlab.editing.checks import check
from boothlab.editing.methods import EditInput, EditMethod, EditParts, EditSettings, edit_batch, load_edit_adapters
from boothlab.errors import UserError
from boothlab.files import sha256_file
from boothlab.quiet import quiet_libraries

SETTINGS = EditSettings(steps=2, strength=1.0, guidance_scale=4.0)
SEED = 3


def picture() -> Image.Image:
    small = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((32, 32), Image.Resampling.BICUBIC)


def asked() -> EditInput:
    mask = Image.new("L", (32, 32))
    mask.paste(255, (8, 8, 24, 24))
    maps = {"canny": picture().convert("L"), "depth": picture().convert("L")}
    texts = {"instruction": "make it night", "source_caption": "a red cat", "target_caption": "a blue cat"}
    return EditInput(picture(), **texts, mask=mask, controls=maps, seed=SEED)


def drawn(method: str, parts: EditParts) -> np.ndarray:
    return np.asarray(edit_batch(EditMethod(method), parts, [asked()], SETTINGS)[0].image)


@pytest.fixture(scope="module")
def sources(pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny_pipelines.build_editors(pipelines["sd15"], tmp_path_factory.mktemp("editors"))


@pytest.fixture
def parts(pipelines: dict[str, Path], sources: dict[str, str]) -> EditParts:
    return EditParts(tiny_pipelines.load(pipelines["sd15"]), sources)


def write_lora(folder: Path, pipeline: Path, seed: int, targets: list[str], text: bool = True) -> Path:
    """An adapter of boothlab that has learned something."""
    backbone = tiny_pipelines.load(pipeline)
    common: dict[str, Any] = {"rank": 2, "alpha": 3.0, "dropout": 0.0, "init": "gaussian", "seed": seed}
    attach(backbone.unet, "unet", targets=targets, **common)
    if text:
        attach(
            backbone.pipeline.text_encoder, "text_encoder", targets=["q_proj", "k_proj", "v_proj", "out_proj"], **common
        )
    networks = {"unet": backbone.unet, **backbone.text_encoders}
    stream = torch.Generator().manual_seed(seed)
    for network in networks.values():
        for layer in lora_layers(network).values():
            layer.lora_B["boothlab"].weight.data.normal_(0.0, 0.3, generator=stream)
    return save_adapter(folder, networks, {"token": "sks"})


def as_kohya(path: Path, target: Path) -> Path:
    """The same adapter as the community's trainers write it."""
    state: dict[str, Tensor] = {}
    for key, value in load_file(path).items():
        component, rest = key.split(".", 1)
        name, kind = rest.removesuffix(".weight").rsplit(".lora_", 1)
        base = f"{ {'unet': 'lora_unet', 'text_encoder': 'lora_te'}[component] }_{name.replace('.', '_')}"
        down = kind in ("A", "linear_layer.down")
        state[f"{base}.lora_{'down' if down else 'up'}.weight"] = value
        state[f"{base}.alpha"] = torch.tensor(3.0)
    save_file(state, target)
    return target


@pytest.fixture(scope="module")
def loras(pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run's adapter, a community file on other layers, and one that reaches the first convolution."""
    root = tmp_path_factory.mktemp("loras")
    other = write_lora(root / "other", pipelines["sd15"], 2, ["to_out.0", "ff.net.2", "conv1"])
    return {
        "run": write_lora(root / "run" / "lora", pipelines["sd15"], 1, ["to_q", "to_v"]),
        "kohya": as_kohya(other, root / "community.safetensors"),
        "first": write_lora(root / "first", pipelines["sd15"], 3, ["conv_in", "to_k"], text=False),
    }


def direct(kind: str, folder: Path, loras: list[tuple[Path, float, float]], **arguments: Any) -> np.ndarray:
    """The picture of diffusers alone, with the adapters loaded by itself."""
    models = {key: arguments.pop(key) for key in ("controlnet", "adapter", "unet") if key in arguments}
    with quiet_libraries():
        pipeline_class = getattr(diffusers, f"StableDiffusion{kind}Pipeline")
        pipeline = pipeline_class.from_pretrained(folder, safety_checker=None, **models)
        for index, (path, _, _) in enumerate(loras):
            pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=f"a{index}")
        weights = [{"unet": unet, "text_encoder": text} for _, unet, text in loras]
        pipeline.set_adapters([f"a{index}" for index in range(len(loras))], weights)
        pipeline.set_progress_bar_config(disable=True)
        settings = {"num_inference_steps": 2, "guidance_scale": 4.0}
        (image,) = pipeline(generator=torch.Generator().manual_seed(SEED), **settings, **arguments).images
    return np.asarray(image)


def levels_apart(first: np.ndarray, second: np.ndarray) -> int:
    return int(np.abs(first.astype(int) - second.astype(int)).max())


def test_several_lora_files_at_their_own_scales_are_diffusers_set_adapters(
    parts: EditParts, pipelines: dict[str, Path], loras: dict[str, Path], sources: Mapping[str, str]
) -> None:
    scales = [(loras["run"], 0.7, 1.2), (loras["kohya"], 0.5, 0.0)]
    bare = {method: drawn(method, parts) for method in ("sdedit", "controlnet_canny", "instruct_pix2pix")}
    names = load_edit_adapters(parts, [(loras["run"].parent.parent, 0.7, 1.2), scales[1]])
    assert names == ["boothlab", "boothlab_1"]
    one, folder = asked(), pipelines["sd15"]
    expected = {
        "sdedit": direct("Img2Img", folder, scales, prompt=one.target_caption, image=one.image, strength=1.0),
        "controlnet_canny": direct(
            "ControlNet", folder, scales, prompt=one.target_caption, image=one.controls["canny"],
            controlnet=ControlNetModel.from_pretrained(sources["controlnet_canny"]), height=32, width=32,
        ),
        "instruct_pix2pix": direct(
            "InstructPix2Pix", folder, scales, prompt=one.instruction, image=one.image,
            unet=UNet2DConditionModel.from_pretrained(sources["instruct_pix2pix"], subfolder="unet"),
        ),
    }  # fmt: skip
    for method, image in expected.items():
        assert levels_apart(drawn(method, parts), image) <= 1, method
        assert levels_apart(bare[method], image) > 20, method


@pytest.mark.slow
def test_scales_of_zero_leave_the_pictures_alone(parts: EditParts, loras: dict[str, Path]) -> None:
    bare = drawn("instruct_pix2pix", parts)
    load_edit_adapters(parts, [(loras["run"], 0.0, 0.0), (loras["kohya"], 0.0, 0.0)])
    assert levels_apart(bare, drawn("instruct_pix2pix", parts)) <= 1
    with_text = load_edit_adapters(parts, [(loras["run"], 0.0, 1.0)])
    assert with_text == ["boothlab"] and levels_apart(bare, drawn("instruct_pix2pix", parts)) > 5


@pytest.mark.slow
def test_other_adapters_take_the_place_of_the_first_everywhere(parts: EditParts, loras: dict[str, Path]) -> None:
    fresh = drawn("instruct_pix2pix", parts), drawn("inpaint", parts)
    load_edit_adapters(parts, [(loras["run"], 1.0, 1.0)])
    first = drawn("instruct_pix2pix", parts), drawn("inpaint", parts)
    load_edit_adapters(parts, [(loras["kohya"], 1.0, 1.0)])
    second = drawn("instruct_pix2pix", parts), drawn("inpaint", parts)
    load_edit_adapters(parts, [])
    assert all(map(np.array_equal, fresh, (drawn("instruct_pix2pix", parts), drawn("inpaint", parts))))
    assert not lora_layers(parts.instruct_unet())
    load_adapter(parts.backbone, loras["run"])  # by the loader of the other commands
    assert all(map(np.array_equal, first, (drawn("instruct_pix2pix", parts), drawn("inpaint", parts))))
    assert all(levels_apart(*pair) > 5 for pair in zip(first, second, strict=True))


def test_what_cannot_be_worn_is_said(
    parts: EditParts, loras: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """InstructPix2Pix's first convolution takes more channels; the rest of the file is worn all the same."""
    load_edit_adapters(parts, [(loras["first"], 1.0, 1.0)])
    note = "instruct_pix2pix: the LoRA on conv_in does not fit and is left out"
    (made,) = edit_batch(EditMethod.instruct_pix2pix, parts, [asked()], SETTINGS)
    assert made.notes == (note,) and [record.message for record in caplog.records] == [note]
    worn = lora_layers(parts.instruct_unet())
    assert set(worn) == set(lora_layers(parts.backbone.unet)) - {"conv_in"}
    (plain,) = edit_batch(EditMethod.sdedit, parts, [asked()], SETTINGS)
    assert plain.notes == ()


def test_the_mirrored_matrices_are_those_of_the_file(parts: EditParts, loras: dict[str, Path]) -> None:
    load_edit_adapters(parts, [(loras["run"], 0.5, 1.0)])
    ours, theirs = adapter_state({"unet": parts.instruct_unet()}), adapter_state({"unet": parts.backbone.unet})
    assert list(ours) == list(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert {layer.scaling["boothlab"] for layer in lora_layers(parts.instruct_unet()).values()} == {0.5 * 3.0 / 2}
    assert not any(value.requires_grad for value in parts.instruct_unet().parameters())


def test_a_file_that_does_not_match_is_named_and_leaves_nothing(
    parts: EditParts, loras: dict[str, Path], tmp_path: Path
) -> None:
    state = load_file(loras["run"])
    key = next(iter(sorted(state)))
    renamed = {("unet.nowhere.lora_A.weight" if name == key else name): value for name, value in state.items()}
    save_file(renamed, tmp_path / "renamed.safetensors")
    extra = {**state, "unet.nowhere.lora_A.weight": torch.ones(2, 3), "unet.nowhere.lora_B.weight": torch.ones(3, 2)}
    save_file(extra, tmp_path / "extra.safetensors")
    for name in ("renamed", "extra"):
        with pytest.raises(UserError) as caught:
            load_edit_adapters(parts, [(loras["kohya"], 1.0, 1.0), (tmp_path / f"{name}.safetensors", 1.0, 1.0)])
        assert f"{name}.safetensors" in str(caught.value) and "\n" not in str(caught.value)
        assert not lora_layers(parts.backbone.unet) and not lora_layers(parts.backbone.pipeline.text_encoder)
    assert "(without one: unet.nowhere.lora_A.weight, unet.nowhere.lora_B.weight)" in str(caught.value)


def test_an_adapter_beside_one_that_was_not_named_is_refused(parts: EditParts, loras: dict[str, Path]) -> None:
    load_adapter(parts.backbone, loras["run"])
    with pytest.raises(UserError, match="carries an adapter already"):
        load_adapter(parts.backbone, loras["kohya"], beside=["another"])
    shed_adapters(parts.backbone)


# Loading


def test_models_are_loaded_when_first_asked_for_and_kept(parts: EditParts, tmp_path: Path) -> None:
    lazy = EditParts(parts.backbone, {**parts.sources, "controlnet_canny": str(tmp_path / "nowhere"), "inpaint": None})
    drawn("controlnet_depth", lazy)
    assert lazy.controlnet("depth") is lazy.controlnet("depth")
    assert not any(value.requires_grad for value in lazy.controlnet("depth").parameters())
    assert not lazy.controlnet("depth").training
    assert lazy.inpainting_unet() is None
    with pytest.raises(UserError, match="no such folder"):
        lazy.controlnet("canny")


@pytest.mark.slow
def test_models_take_the_backbone_s_precision(pipelines: dict[str, Path], sources: dict[str, str]) -> None:
    half = EditParts(tiny_pipelines.load(pipelines["sd15"], torch.bfloat16), sources)
    assert half.controlnet("canny").dtype == half.t2i_adapter("canny").dtype == half.instruct_unet().dtype
    assert half.instruct_unet().dtype == torch.bfloat16
    assert next(half.depth_estimator().model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("method", ["controlnet_canny", "t2i_adapter", "instruct_pix2pix"])
def test_a_model_that_is_not_named_is_asked_for(method: str, parts: EditParts) -> None:
    with pytest.raises(UserError) as caught:
        check(EditMethod(method), [asked()], SETTINGS, EditParts(parts.backbone))
    name = f"{method}_canny" if method == "t2i_adapter" else method
    expected = f"method={method}: needs editors.{name}, which is not given; name a local folder or a hub id"
    assert str(caught.value) == expected


def test_a_missing_depth_estimator_and_too_many_steps_are_seen_before_anything_runs(parts: EditParts) -> None:
    bare = EditParts(parts.backbone, {"controlnet_depth": parts.sources["controlnet_depth"]})
    check(EditMethod.controlnet_depth, [asked()], SETTINGS, bare)
    with pytest.raises(UserError, match=r"no depth map is given: needs editors\.depth_estimator"):
        check(EditMethod.controlnet_depth, [EditInput(picture(), target_caption="a cat")], SETTINGS, bare)
    with pytest.raises(UserError, match="steps=1001: the backbone sd15 was trained with 1000; use fewer"):
        check(EditMethod.sdedit, [asked()], EditSettings(steps=1001), bare)


def test_a_mask_too_thin_for_the_latents_is_refused(parts: EditParts) -> None:
    mask = Image.new("L", (32, 32))
    mask.paste(255, (1, 1, 4, 32))  # between the columns that diffusers looks at
    with pytest.raises(
        UserError, match="the mask is too thin: nothing of it is left in the latents, a 4th of the size"
    ):
        check(EditMethod.inpaint, [EditInput(picture(), target_caption="a cat", mask=mask)], SETTINGS, parts)


def spoiled(source: str, folder: Path, how: str) -> Path:
    shutil.copytree(source, folder)
    weights = next(folder.glob("*.safetensors"))
    if how == "pickled":
        weights.rename(folder / "diffusion_pytorch_model.bin")
    elif how == "cut":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif how == "bare":
        weights.unlink()
    elif how == "no config":
        (folder / "config.json").unlink()
    elif how == "missing":
        state = load_file(weights)
        save_file(dict(sorted(state.items())[1:]), weights)
    elif how == "kind":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"_class_name": "UNet2DConditionModel"}))
    return folder


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("pickled", "only has pickled weights, which can run code; save it again with save_pretrained"),
        ("cut", "is not a whole safetensors file"),
        ("bare", "has no weights; save it again"),
        ("no config", "no config.json there"),
        ("missing", "1 weights are missing or misshapen, first "),
        ("kind", "is a UNet2DConditionModel, not a "),
    ],
)
@pytest.mark.parametrize("name", ["controlnet_canny", "t2i_adapter_depth"])
def test_a_spoiled_folder_is_refused_in_one_line(
    name: str, how: str, why: str, parts: EditParts, tmp_path: Path
) -> None:
    folder = spoiled(parts.sources[name], tmp_path / "model", how)
    family, kind = name.rsplit("_", 1)
    with pytest.raises(UserError) as caught:
        getattr(EditParts(parts.backbone, {name: str(folder)}), family)(kind)
    assert str(caught.value).startswith(f"editors.{name}={folder}: ") and why in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["controlnet_canny", "t2i_adapter_canny", "instruct_pix2pix"])
def test_a_model_for_another_architecture_is_refused(
    name: str, pipelines: dict[str, Path], sources: dict[str, str]
) -> None:
    other = EditParts(tiny_pipelines.load(pipelines["sdxl"]), sources)
    get = {"instruct_pix2pix": other.instruct_unet}.get(name, lambda: getattr(other, name[:-6])("canny"))
    with pytest.raises(UserError, match="was made for another architecture"):
        get()


def test_an_inpainting_unet_is_no_instruct_pix2pix(parts: EditParts) -> None:
    wrong = EditParts(parts.backbone, {"instruct_pix2pix": parts.sources["inpaint"]})
    with pytest.raises(UserError, match="in_channels 9, where the backbone sd15 needs 8"):
        wrong.instruct_unet()


def test_adapters_that_shrink_differently_cannot_be_combined(parts: EditParts, tmp_path: Path) -> None:
    T2IAdapter(in_channels=3, channels=[16, 32], num_res_blocks=1, downscale_factor=8).save_pretrained(tmp_path)
    mixed = EditParts(parts.backbone, {**parts.sources, "t2i_adapter_depth": str(tmp_path)})
    with pytest.raises(UserError, match=r"shrink their maps by different factors \(canny 4, depth 8\)"):
        drawn("t2i_adapter", mixed)


def test_a_hub_id_that_cannot_be_reached_is_refused_in_one_line(parts: EditParts) -> None:
    far = EditParts(parts.backbone, {"controlnet_canny": "nobody/nothing", "instruct_pix2pix": "nobody/no"})
    for get in (lambda: far.controlnet("canny"), far.instruct_unet):
        with pytest.raises(UserError, match="cannot be loaded") as caught:
            get()
        assert "\n" not in str(caught.value)


def test_a_model_s_identity_is_the_hash_of_its_files(parts: EditParts) -> None:
    folder = Path(parts.sources["instruct_pix2pix"]) / "unet"
    assert parts.identity("instruct_pix2pix") == {
        name: sha256_file(folder / name) for name in ("config.json", "diffusion_pytorch_model.safetensors")
    }
    assert "preprocessor_config.json" in parts.identity("depth_estimator")


def test_names_of_models_are_checked(parts: EditParts) -> None:
    with pytest.raises(ValueError, match="controlnets"):
        EditParts(parts.backbone, {"controlnets": "x"})
    with pytest.raises(UserError, match="the dollhouse has no such model"):
        EditParts(parts.backbone, {"depth_estimator": "dollhouse"}).depth_estimator()

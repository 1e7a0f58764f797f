"""The training methods: what each changes, saves and loads back; all of them resumed and repeated to the bit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn

from boothlab.building import shared
from boothlab.building.shared import Kept
from boothlab.cli import main
from boothlab.compose.run import compose
from boothlab.compose.schemas import SCHEMAS
from boothlab.compose.typed import load as load_config
from boothlab.diffusion.backbone import Backbone
from boothlab.diffusion.learned_words import (
    FILE_NAME,
    add_words,
    is_words_file,
    learned,
    load_words,
    placeholders_of,
    save_words,
    shed_words,
    without_words,
)
from boothlab.diffusion.lora import attach, load_adapter, save_adapter, shed_adapters, trainable
from boothlab.diffusion.trained import find_trained, load_trained
from boothlab.errors import UserError
from boothlab.images.load import load_image, to_tensor
from boothlab.tracking.manifest import ADAPTER, EMBEDDINGS
from tiny_pipelines import load, most_levels_apart, plain_image, plain_pipeline
from training_runs import Lab, history, same_adapter, stopped_after

VARIANTS = ("rslora", "dora", "loha", "lokr")
TARGETS = ["to_k", "to_q", "to_v", "to_out.0", "conv1"]
TEXT_TARGETS = ["q_proj", "v_proj"]
PROMPT = "a photo of a sks robot"

METHODS: dict[str, tuple[str, ...]] = {
    **{variant: (f"lora.variant={variant}",) for variant in VARIANTS},
    "dora on both": ("lora.variant=dora", "lora.train_text_encoder=true"),
    "loha with checkpointing": ("lora.variant=loha", "trainer.gradient_checkpointing=true"),
    "full": ("method=full", "optim.lr=0.001"),
    "full with text": ("method=full", "optim.lr=0.001", "full.train_text_encoder=true", "optim.text_encoder_lr=0.0005"),
    "full average": ("method=full", "optim.lr=0.001", "trainer.ema_decay=0.9"),
    "words": ("method=textual_inversion",),
    "three words": ("method=textual_inversion", "inversion.vectors=3", "inversion.init_word=toy"),
    "words average": ("method=textual_inversion", "trainer.ema_decay=0.9", "trainer.accumulate=2"),
    "pivotal": ("method=pivotal", "inversion.steps=1"),
    "pivotal with text": ("method=pivotal", "lora.train_text_encoder=true", "optim.text_encoder_lr=0.001"),
    "pivotal going on": ("method=pivotal", "inversion.late_lr=0.001", "optim.schedule=cosine"),
}
UNSCORED = "evaluation.enabled=false"


@pytest.fixture(scope="module")
def lab(pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"), pipelines["sd15"])


@pytest.fixture
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is loaded yet, and nothing of this test stays."""
    monkeypatch.setattr(shared, "_backbones", Kept(1))


def components(backbone: Backbone) -> dict[str, nn.Module]:
    return {"unet": backbone.unet, **backbone.text_encoders}


def adapted(folder: Path, variant: str, rank: int = 2, alpha: float = 3.0) -> Backbone:
    """A backbone with a variant on all networks, moved away from its start."""
    backbone = load(folder)
    for component, module in components(backbone).items():
        targets = TARGETS if component == "unet" else TEXT_TARGETS
        settings: dict[str, Any] = {"rank": rank, "alpha": alpha, "dropout": 0.0, "init": "gaussian", "seed": 0}
        assert attach(module, component, targets=targets, variant=variant, **settings) > 0
        for index, value in enumerate(trainable(module).values()):
            value.data += 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(index))
    return backbone


def drawn(backbone: Backbone, prompt: str = PROMPT) -> Tensor:
    from boothlab.diffusion.sampling import Request, Sampler, SamplerSettings

    return Sampler(backbone, SamplerSettings("ddim", 3, 5.0)).draw([Request(prompt, 0)])[0]


def products(run_dir: Path) -> dict[str, Tensor]:
    """Everything a run left for users, by file and tensor."""
    return {
        f"{file.relative_to(run_dir)}:{key}": value
        for file in find_trained(run_dir).files
        for key, value in load_file(file).items()
    }


def same(first: Path, second: Path) -> bool:
    one, two = products(first), products(second)
    return one.keys() == two.keys() and all(one[key].equal(two[key]) for key in one)


# --- adapters beyond plain LoRA


@pytest.mark.parametrize("name", ["sd15", pytest.param("sdxl", marks=pytest.mark.slow)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_saved_and_loaded_back_to_the_bit(
    name: str, variant: str, pipelines: dict[str, Path], tmp_path: Path
) -> None:
    backbone = adapted(pipelines[name], variant)
    path = save_adapter(tmp_path, components(backbone), {"token": "sks"})
    image, fresh = drawn(backbone), load(pipelines[name])
    base = drawn(fresh)
    assert not image.equal(base)
    load_adapter(fresh, path)
    assert drawn(fresh).equal(image)
    assert not any(trainable(module) for module in components(fresh).values())
    if variant != "rslora":  # which is a plain LoRA in the file
        with pytest.raises(UserError, match=r"goes with no other adapter|carries an adapter already"):
            load_adapter(fresh, path, beside=["other"])
    shed_adapters(fresh)
    assert drawn(fresh).equal(base)
    load_adapter(fresh, path, 0.0, 0.0)
    distance = most_levels_apart(drawn(fresh), base)
    assert distance <= (0 if variant != "dora" else 200)  # DoRA's magnitudes act at any scale


@pytest.mark.parametrize("name", ["sd15", pytest.param("sdxl", marks=pytest.mark.slow)])
@pytest.mark.parametrize("variant", ["rslora", "dora"])
def test_diffusers_alone_draws_the_same_with_it(
    name: str, variant: str, pipelines: dict[str, Path], tmp_path: Path
) -> None:
    backbone = adapted(pipelines[name], variant)
    save_adapter(tmp_path, components(backbone), {})
    pipeline = plain_pipeline(pipelines[name])
    pipeline.load_lora_weights(str(tmp_path))
    assert most_levels_apart(plain_image(pipeline, PROMPT, 0), drawn(backbone)) <= 1


def test_rslora_scales_by_the_root_of_the_rank(pipelines: dict[str, Path]) -> None:
    from boothlab.diffusion.lora import lora_layers

    scales = {
        layer.scaling["boothlab"] for layer in lora_layers(adapted(pipelines["sd15"], "rslora", 4, 3.0).unet).values()
    }
    assert scales == {3.0 / 4**0.5}


def test_lycoris_files_have_the_names_and_numbers_that_other_tools_expect(
    pipelines: dict[str, Path], tmp_path: Path
) -> None:
    """LyCORIS' own formula for LoHa, ΔW = alpha / rank · (w1a·w1b) ∘ (w2a·w2b), from the file alone."""
    backbone = adapted(pipelines["sd15"], "loha")
    held = load_file(save_adapter(tmp_path, components(backbone), {}))
    stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    first, second = (held[f"{stem}.hada_{one}_a"] @ held[f"{stem}.hada_{one}_b"] for one in ("w1", "w2"))
    delta = float(held[f"{stem}.alpha"]) / len(held[f"{stem}.hada_w1_b"]) * first * second
    layer: Any = backbone.unet.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q")
    torch.testing.assert_close(delta, layer.get_delta_weight("boothlab").detach())
    assert any(key.startswith("lora_te_text_model_encoder_layers_0_self_attn_q_proj.") for key in held)


def test_a_variant_of_another_architecture_is_refused(pipelines: dict[str, Path], tmp_path: Path) -> None:
    path = save_adapter(tmp_path, components(adapted(pipelines["sdxl"], "lokr")), {})
    fresh = load(pipelines["sd15"])
    base = drawn(fresh)
    with pytest.raises(UserError, match="found a layer of the backbone sd15"):
        load_adapter(fresh, path)
    assert drawn(fresh).equal(base)


@pytest.mark.parametrize("variant", ["loha", "lokr"])
def test_a_new_update_is_zero_and_its_seed_decides_it(variant: str, pipelines: dict[str, Path]) -> None:
    starts = []
    for seed in (0, 0, 1):
        backbone = load(pipelines["sd15"])
        base = drawn(backbone)
        settings: dict[str, Any] = {"rank": 2, "alpha": 2.0, "dropout": 0.0, "init": "gaussian", "variant": variant}
        torch.manual_seed(seed + 7)
        attach(backbone.unet, "unet", targets=TARGETS, seed=seed, **settings)
        assert drawn(backbone).equal(base)
        starts.append(torch.cat([value.detach().flatten() for value in trainable(backbone.unet).values()]))
    assert starts[0].equal(starts[1])
    assert not starts[0].equal(starts[2])


# --- learned words


def taught(folder: Path, vectors: int) -> Backbone:
    backbone = load(folder)
    add_words(backbone, "sks", vectors, "robot")
    for one in learned(backbone).values():
        one.learned.data += 0.3 * torch.randn(one.learned.shape, generator=torch.Generator().manual_seed(1))
    return backbone


@pytest.mark.parametrize("vectors", [1, 3])
@pytest.mark.parametrize("name", ["sd15", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_words_are_saved_as_diffusers_reads_them(
    name: str, vectors: int, pipelines: dict[str, Path], tmp_path: Path
) -> None:
    base = drawn(load(pipelines[name]))
    backbone = taught(pipelines[name], vectors)
    image = drawn(backbone)
    path = save_words(tmp_path, backbone, {"token": "sks"})
    assert path.name == FILE_NAME
    assert is_words_file(path)
    assert not image.equal(base)
    with without_words(backbone):
        assert drawn(backbone).equal(base)
    shed_words(backbone)
    assert drawn(backbone).equal(base)
    assert load_words(backbone, path) == "sks"
    assert drawn(backbone).equal(image)
    assert not any(trainable(module) for module in components(backbone).values())
    pipeline, held = plain_pipeline(pipelines[name]), load_file(path)
    if name == "sdxl":  # as diffusers' own documentation loads an embedding with two halves
        parts = {"clip_l": (pipeline.text_encoder, pipeline.tokenizer)}
        parts["clip_g"] = (pipeline.text_encoder_2, pipeline.tokenizer_2)
        for key, (encoder, tokenizer) in parts.items():
            pipeline.load_textual_inversion(held[key], token="<sks>", text_encoder=encoder, tokenizer=tokenizer)
    else:
        assert {key: value.shape for key, value in held.items()} == {"<sks>": (vectors, 32)}  # what A1111 takes too
        pipeline.load_textual_inversion(str(path))
    # The pipeline itself puts <sks>_1 and on behind <sks>.
    assert most_levels_apart(plain_image(pipeline, PROMPT.replace("sks", "<sks>"), 0), image) <= 1


def test_an_embedding_of_another_tool_is_called_by_its_key(pipelines: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"<cat-toy>": torch.randn(32, generator=torch.Generator().manual_seed(0))}, tmp_path / "cat.safetensors")
    backbone = load(pipelines["sd15"])
    load_trained(backbone, find_trained(tmp_path / "cat.safetensors"))
    assert backbone.spell("a <cat-toy>, and a cat-toy") == "a <cat-toy>, and a cat-toy"
    assert not drawn(backbone, "a <cat-toy>").equal(drawn(backbone, "a toy"))
    save_file({"<cat-toy>": torch.zeros(7)}, tmp_path / "cat.safetensors")
    with pytest.raises(UserError, match="they were made for another model"):
        load_trained(load(pipelines["sd15"]), find_trained(tmp_path / "cat.safetensors"))


def test_a_prompt_is_read_with_the_placeholders_where_the_token_is_a_word(pipelines: dict[str, Path]) -> None:
    backbone = taught(pipelines["sd15"], 2)
    assert placeholders_of("sks", 2) == ["<sks>", "<sks>_1"] == placeholders_of("<sks>", 2)
    assert backbone.spell("sks, a sks's sksy <sks> sks") == "<sks> <sks>_1, a <sks> <sks>_1's sksy <sks> <sks> <sks>_1"
    ids = backbone.tokenize(["a sks robot"])["text_encoder"][0].tolist()
    first = backbone.pipeline.tokenizer.convert_tokens_to_ids("<sks>")
    assert ids.count(first) == ids.count(first + 1) == 1
    assert backbone.truncated([" ".join(["sks"] * 200)])[0][1] > 400


def test_a_word_starts_as_the_class_noun(pipelines: dict[str, Path]) -> None:
    backbone = load(pipelines["sd15"])
    expected = drawn(backbone, "a photo of a robot robot")
    add_words(backbone, "sks", 1, "robot")
    assert drawn(backbone).equal(expected)
    with pytest.raises(UserError, match="carries learned words already"):
        add_words(backbone, "sks", 1, "robot")


# --- trainings


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.usefixtures("fresh_process")
def test_stopped_and_resumed_is_straight(name: str, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = lab.train(f"straight {name}", UNSCORED, *METHODS[name])
    with stopped_after(3, monkeypatch):
        lab.train(f"stopped {name}", UNSCORED, *METHODS[name], code=130)
    stopped = lab.train(f"stopped {name}", UNSCORED, *METHODS[name])
    assert same(straight, stopped)
    assert history(straight) == history(stopped)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_process")
def test_a_lora_after_a_full_training_in_one_process_is_as_if_alone(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = lab.train("alone", UNSCORED)
    for name in ("full with text", "words", "lokr"):
        lab.train(f"before {name}", UNSCORED, *METHODS[name])
    after = lab.train("after", UNSCORED)
    assert same_adapter(alone, after)
    assert history(alone) == history(after)


@pytest.mark.usefixtures("fresh_process")
def test_pivotal_tuning_learns_the_words_first_and_then_the_adapter_alone(lab: Lab) -> None:
    run_dir = lab.train("phases", UNSCORED, "method=pivotal", "inversion.steps=2", "optim.weight_decay=0.1")
    early, late = (run_dir / "checkpoints" / step for step in ("step_000002", "step_000004"))
    up = [value for key, value in load_file(early / Path(ADAPTER).name).items() if "lora_B" in key]
    assert not any(bool(value.any()) for value in up)
    assert any(bool(v.any()) for k, v in load_file(late / Path(ADAPTER).name).items() if "lora_B" in k)
    words = [load_file(folder / FILE_NAME)["<sks>"] for folder in (early, late)]
    assert words[0].equal(words[1])
    rows = [row for _, row in history(run_dir)]
    assert [row["train/lr_embeddings"] for row in rows] == [0.005, 0.005, 0.0, 0.0]
    assert [row["train/lr_unet"] for row in rows] == [0.0, 0.0, 0.02, 0.02]
    state = load_file(early / "resume.safetensors")
    assert {key.rpartition(".")[2] for key in state if key.startswith("optimizer/")} == {"learned"}


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_process")
def test_textual_inversion_changes_nothing_but_the_words(lab: Lab) -> None:
    run_dir = lab.train("words alone", UNSCORED, "method=textual_inversion", "inversion.vectors=2")
    state = load_file(run_dir / "checkpoints" / "step_000004" / "resume.safetensors")
    (name,) = (key for key in state if key.startswith("parameter/"))
    assert name.startswith("parameter/text_encoder.")
    assert name.endswith(".learned")
    assert state[name].shape == (2, 32)
    assert sum(value.numel() for value in state.values()) < 3 * 2 * 32 + 2


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_process")
def test_a_full_training_leaves_a_unet_that_diffusers_loads(lab: Lab, pipelines: dict[str, Path]) -> None:
    run_dir = lab.train("whole", UNSCORED, *METHODS["full"], "full.save_precision=fp16")
    unet = UNet2DConditionModel.from_pretrained(run_dir / "unet")
    base = UNet2DConditionModel.from_pretrained(pipelines["sd15"] / "unet")
    assert all(not value.equal(base.state_dict()[key]) for key, value in unet.state_dict().items() if "conv1" in key)
    held = load_file(run_dir / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in held.values()} == {torch.float16}
    assert str(pipelines["sd15"]) not in (run_dir / "unet" / "config.json").read_text(encoding="utf-8")
    assert [path.name for path in sorted((run_dir / "checkpoints").iterdir())] == ["step_000004"]
    half = load(pipelines["sd15"])
    load_trained(half, find_trained(run_dir), 0.5)
    for key, value in half.unet.state_dict().items():
        torch.testing.assert_close(value, torch.lerp(base.state_dict()[key], held[key].float(), 0.5), msg=key)


SAMPLED = ("dora", "full with text", "full average", "three words", "pivotal with text")


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_process")
@pytest.mark.parametrize("name", SAMPLED)
def test_sample_and_score_draw_what_the_last_evaluation_drew(name: str, lab: Lab, tmp_path: Path) -> None:
    run_dir = lab.train(f"sampled {name}", *METHODS[name])
    wanted = run_dir / "samples" / "step_000004" / "prompt00_seed0.png"
    common = ["sampler.steps=2", "threads=1", "accelerator=cpu", f"out={tmp_path}", "seeds=[0]"]
    config = load_config(compose("train", lab.overrides("x")), SCHEMAS["train"])[0]
    common += [f"sampler.guidance_scale={config.evaluation.sampler.guidance_scale}"]
    assert main(["sample", f"run={run_dir}", "prompt=a photo of a {token} {class}", *common]) == 0
    drawn_now = to_tensor(load_image(tmp_path / "prompt00_seed0.png"))
    assert most_levels_apart(drawn_now, to_tensor(load_image(wanted))) <= 1  # alone in its batch, which may round
    arguments = [
        f"paths.outputs={tmp_path}",
        f"paths.cache={tmp_path / 'cache'}",
        "tracking.wandb=disabled",
        "threads=1",
    ]
    assert main(["score", f"run={run_dir}", "accelerator=cpu", *arguments]) == 0
    (scored,) = tmp_path.glob("score/*/samples/step_000004/prompt00_seed0.png")
    assert to_tensor(load_image(scored)).equal(to_tensor(load_image(wanted)))


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_process")
@pytest.mark.parametrize("name", ["lokr", "full with text", "words", "pivotal"])
def test_it_can_be_made_again(name: str, lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = lab.train(f"again {name}", *METHODS[name])
    capsys.readouterr()
    assert main(["rerun", str(run_dir), "--out", str(tmp_path / "again")]) == 0
    assert "bit for bit" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_process")
@pytest.mark.parametrize("name", ["full", "words", "pivotal", "loha"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_method_trains_an_sdxl(name: str, precision: str, pipelines: dict[str, Path], tmp_path: Path) -> None:
    lab = Lab(tmp_path, pipelines["sdxl"])
    run_dir = lab.train("run", *METHODS[name], f"backbone.precision={precision}")
    assert all(bool(value.isfinite().all()) for value in products(run_dir).values())
    scored = [row for _, row in history(run_dir) if "eval/clip_i/dollhouse" in row]
    assert len(scored) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_process")
def test_the_base_model_is_the_floor_of_every_method(lab: Lab) -> None:
    floors = [(lab.train(f"floor {name}", *METHODS.get(name, ())) / "samples/step_000000/prompt00_seed0.png")
              for name in ("plain", "words", "pivotal", "full")]  # fmt: skip
    first, *others = (to_tensor(load_image(path)) for path in floors)
    assert all(first.equal(other) for other in others)


# --- what is refused


REFUSED: Sequence[tuple[str, str]] = (
    ("inversion.steps=2", "inversion.steps=2: is of method=pivotal alone"),
    ("method=pivotal inversion.steps=4", "leaves the adapter none of trainer.max_steps=4"),
    (
        "method=textual_inversion subject.token='two words' subject.instance_prompt='a two words robot'",
        "must be one word",
    ),
    ("lora.variant=loha lora.dropout=0.1", "lora.dropout=0.1: has no place in lora.variant=loha"),
    ("method=full optim.text_encoder_lr=0.1", "has no effect without full.train_text_encoder=true"),
)


@pytest.mark.parametrize(("words", "said"), REFUSED)
def test_what_makes_no_sense_is_refused(words: str, said: str, lab: Lab) -> None:
    import shlex

    overrides = [part.replace("'", '"') for part in shlex.split(words)]
    quoted = [
        f"{key}='{value}'" if " " in value else f"{key}={value}" for key, value in (o.split("=", 1) for o in overrides)
    ]
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        load_config(compose("train", lab.overrides("refused", *quoted)), SCHEMAS["train"])


@pytest.mark.usefixtures("fresh_process")
def test_words_have_no_scale(lab: Lab, pipelines: dict[str, Path]) -> None:
    run_dir = lab.train("scale", UNSCORED, "method=textual_inversion")
    assert find_trained(run_dir).main == run_dir / EMBEDDINGS
    with pytest.raises(UserError, match="learned words have no scale"):
        load_trained(load(pipelines["sd15"]), find_trained(run_dir), 0.5)

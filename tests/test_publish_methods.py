"""Publishing every kind of run: the files, the code on the card run as it stands, the step that is published."""

import ast
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from boothlab.cli import main
from boothlab.diffusion.backbone import Backbone
from boothlab.diffusion.learned_words import add_words, learned, save_words
from boothlab.diffusion.lora import attach, save_adapter, trainable
from boothlab.diffusion.sampling import Request, Sampler, SamplerSettings
from boothlab.diffusion.trained import find_trained, load_trained
from boothlab.diffusion.whole import free, save_networks
from boothlab.errors import UserError
from boothlab.files import sha256_file, write_json
from boothlab.progress import Reporter
from boothlab.publishing.choice import check_choice, choose
from boothlab.publishing.folder import build_folder
from boothlab.publishing.privacy import told_by
from boothlab.publishing.products import plain_name
from boothlab.publishing.weights import copy_weights, header_text, public_metadata, size_text
from boothlab.quiet import quiet_libraries
from boothlab.reporting.runs import read_run
from report_runs import Made, make_runs
from tiny_pipelines import load, most_levels_apart, plain_image

LORA, WORDS, UNET = (
    "pytorch_lora_weights.safetensors",
    "learned_embeds.safetensors",
    "diffusion_pytorch_model.safetensors",
)
PROMPTS = ("a photo of a {token} {class}, her's", "a {token} {class} at night")
SCORES = {50: {"clip_i": 0.7, "dino": 0.5, "clip_t": 0.6}, 100: {"clip_i": 0.6, "dino": 0.6, "clip_t": 0.3}}
"""CLIP-I, CLIP-T and the balanced score are best at step 50, DINO at step 100."""


def shift(value: Tensor, seed: int, size: float = 0.1) -> None:
    value.data += size * torch.randn(value.shape, generator=torch.Generator().manual_seed(seed)).to(value.dtype)


def leave(run: Path, folder: Path, method: str, source: Path, step: int, **given: Any) -> None:
    """Write into `folder` what a training of this method leaves there, moved by the step."""
    backbone = load(source)
    networks = {"unet": backbone.unet, **backbone.text_encoders}
    settings: dict[str, Any] = {"run": run.name, "step": step, "token": "sks", "class_noun": "robot"}
    settings["backbone"] = {"name": source.name, "source": str(source), "resolution": 32}
    last = folder == run
    if method == "full":
        trained = free(backbone, bool(given.get("text")))
        for network in trained.values():
            for index, value in enumerate(network.parameters()):
                shift(value, step + index, 0.02)
        save_networks(run, trained, given.get("dtype", torch.float32), settings)
    if method in ("lora", "pivotal"):
        for component, module in networks.items():
            if component != "unet" and not given.get("text"):
                continue
            targets = ["to_k", "to_v"] if component == "unet" else ["q_proj"]
            attach(
                module, component, rank=2, alpha=3.0, dropout=0.0, init="gaussian", targets=targets, seed=0,
                variant=given.get("variant", "lora"),
            )  # fmt: skip
            for index, value in enumerate(trainable(module).values()):
                shift(value, step + index, 0.2)
        save_adapter(folder / "lora" if last else folder, networks, settings)
    if method in ("textual_inversion", "pivotal"):
        add_words(backbone, given.get("token", "sks"), given.get("vectors", 1), "robot")
        for one in learned(backbone).values():
            shift(one.learned, step, 0.5)
        save_words(folder / "embedding" if last else folder, backbone, settings)


Make = Callable[..., Path]


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory, pipelines: dict[str, Path]) -> Make:
    """Runs that are made once and not to be changed."""
    made: dict[str, Path] = {}

    def template(method: str, name: str, kept: bool, given: dict[str, Any]) -> Path:
        key = repr((method, name, kept, given))
        if key not in made:
            made[key] = write_run(tmp_path_factory.mktemp("runs"), pipelines[name], method, kept, given)
        return made[key]

    return template


def write_run(root: Path, source: Path, method: str, kept: bool, given: dict[str, Any]) -> Path:
    setting: dict[str, Any] = {"method": method, "backbone.name": source.name, "backbone.source": str(source)}
    setting |= {"inversion.vectors": given.get("vectors", 1), "full.train_text_encoder": bool(given.get("text"))}
    setting |= {"lora.variant": given.get("variant", "lora"), "subject.token": given.get("token", "sks")}
    make_runs(
        root, [setting], made=Made(prompts=PROMPTS),
        scores=lambda config, seed, step: dict(SCORES.get(step, {"clip_i": 0.1, "dino": 0.1, "clip_t": 0.1})),
    )  # fmt: skip
    (run,) = (path.parent for path in root.rglob("manifest.json"))
    for step in (50, 100) if kept else ():
        folder = run / "checkpoints" / f"step_{step:06d}"
        leave(run, folder, method, source, step, **given)
        files = {path.name: sha256_file(path) for path in sorted(folder.glob("*.safetensors"))}
        write_json(folder / "state.json", {"step": step, "files": files})
    leave(run, run, method, source, 100, **given)
    return run


@pytest.fixture
def make(tmp_path: Path, templates: Make) -> Make:
    """A finished run of a method on a tiny pipeline, scored at steps 50 and 100; `kept` leaves checkpoints there."""

    def made(method: str, name: str = "sd15", kept: bool = False, **given: Any) -> Path:
        template = templates(method, name, kept, given)
        return Path(shutil.copytree(template, tmp_path / "outputs" / template.name))

    return made


def card(run: Path) -> str:
    return (run / "publish" / "README.md").read_text(encoding="utf-8")


def code_of(text: str) -> str:
    found = re.search(r"```python\n(.*?)\n```", text, re.DOTALL)
    assert found is not None
    return found[1]


def run_code(run: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, str]:
    """Run the card's code in the published folder, with one step for its image; gives the pipeline and the prompt."""
    monkeypatch.chdir(run / "publish")
    text = code_of(card(run))
    last = text.splitlines()[-1]
    names: dict[str, Any] = {}
    with quiet_libraries():
        exec(text.replace("'FOLDER'", repr(str(source))).replace("height=", "num_inference_steps=1, height="), names)
        assert names["image"].size == (32, 32)
        pipeline = names["pipeline"]
        pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    call = ast.parse(last).body[0].value.value.value  # type: ignore[attr-defined]
    return pipeline, str(ast.literal_eval(call.args[0]))


def drawn(backbone: Backbone, prompt: str) -> Tensor:
    return Sampler(backbone, SamplerSettings("ddim", 3, 5.0)).draw([Request(prompt, 0)])[0]


def names_in(run: Path) -> list[str]:
    folder = run / "publish"
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if path.parent.name != "images")


# What a card says to do


@pytest.mark.parametrize(
    ("method", "given", "name"),
    [
        pytest.param("lora", {"text": True}, "sd15", marks=pytest.mark.slow),
        ("textual_inversion", {"vectors": 3}, "sd15"),
        ("pivotal", {"vectors": 2, "text": True}, "sd15"),
        ("full", {}, "sd15"),
        pytest.param("lora", {"variant": "dora"}, "sd15", marks=pytest.mark.slow),
        pytest.param("textual_inversion", {"vectors": 2}, "sdxl", marks=pytest.mark.slow),
        pytest.param("pivotal", {"vectors": 2, "text": True}, "sdxl", marks=pytest.mark.slow),
        pytest.param("full", {"text": True, "dtype": torch.float16}, "sdxl", marks=pytest.mark.slow),
        pytest.param("full", {"text": True, "dtype": torch.bfloat16}, "sd15", marks=pytest.mark.slow),
    ],
)
def test_the_code_on_the_card_draws_what_the_run_drew(
    method: str,
    given: dict[str, Any],
    name: str,
    make: Make,
    pipelines: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = make(method, name, **given)
    build_folder(run, run / "publish")
    pipeline, prompt = run_code(run, pipelines[name], monkeypatch)
    assert prompt == f"a photo of a {'<sks>' if method in ('textual_inversion', 'pivotal') else 'sks'} robot, her's"
    backbone = load(pipelines[name])
    base = drawn(backbone, PROMPTS[0].format(**{"token": "sks", "class": "robot"}))
    load_trained(backbone, find_trained(run))
    expected = drawn(backbone, PROMPTS[0].format(**{"token": "sks", "class": "robot"}))
    assert most_levels_apart(plain_image(pipeline, prompt, 0), expected) <= 1
    assert most_levels_apart(expected, base) > 3
    again = load(pipelines[name])
    load_trained(again, find_trained(run / "publish"))
    assert drawn(again, PROMPTS[0].format(**{"token": "sks", "class": "robot"})).equal(expected)


def test_a_learned_word_is_published_under_the_names_that_tools_go_by(make: Make) -> None:
    run = make("textual_inversion", vectors=2)
    build_folder(run, run / "publish", base_model="stable-diffusion-v1-5/stable-diffusion-v1-5", repo="ann/robot")
    assert names_in(run) == ["README.md", WORDS, "sks.safetensors"]
    for name in (WORDS, "sks.safetensors"):
        held = load_file(run / "publish" / name)
        assert held.keys() == {"<sks>"}
        assert held["<sks>"].equal(load_file(run / "embedding" / WORDS)["<sks>"])
    data = ModelCard.load(run / "publish" / "README.md").data
    assert {"textual_inversion", "diffusers", "text-to-image", "stable-diffusion"} <= set(data.tags)
    assert not {"lora", "dreambooth"} & set(data.tags)
    assert data.instance_prompt == "a photo of a <sks> robot"
    assert data.base_model_relation == "adapter"
    assert data.widget[0]["text"] == "a photo of a <sks> robot, her's"
    text = card(run)
    for said in (
        "a new word of 2 vectors",
        "REPO = 'ann/robot'",
        "pipeline.load_textual_inversion(REPO)",
        "put `sks.safetensors` into `embeddings` and write `sks`, as in `a photo of a sks robot, her's`",
        "write `embedding:sks`",
        "| vectors of the word | 2 |",
        "The embedding is a derivative of its base model",
        "the base model without the embedding",
        "| `learned_embeds.safetensors` | diffusers (load_textual_inversion) and boothlab | ",
    ):
        assert said in text, said
    assert "| rank |" not in text
    assert "load_lora_weights" not in text


def test_the_halves_of_an_sdxl_word_are_loaded_apart(make: Make) -> None:
    run = make("textual_inversion", "sdxl")
    build_folder(run, run / "publish", base_model="stabilityai/stable-diffusion-xl-base-1.0", repo="ann/robot")
    code = code_of(card(run))
    ast.parse(code)
    assert "words = load_file(hf_hub_download(REPO, 'learned_embeds.safetensors'))" in code
    assert "words['clip_l'], token='<sks>', text_encoder=pipeline.text_encoder, tokenizer=pipeline.tokenizer\n" in code
    assert (
        "words['clip_g'], token='<sks>', text_encoder=pipeline.text_encoder_2, tokenizer=pipeline.tokenizer_2" in code
    )
    assert "a half for each of the two text encoders" in card(run)
    assert "stable-diffusion-xl" in ModelCard.load(run / "publish" / "README.md").data.tags


def test_pivotal_tuning_is_published_with_both(make: Make) -> None:
    run = make("pivotal")
    build_folder(run, run / "publish")
    assert names_in(run) == ["README.md", f"{run.name}_kohya.safetensors", WORDS, LORA, "sks.safetensors"]
    assert {"lora", "textual_inversion", "dreambooth"} <= set(ModelCard.load(run / "publish" / "README.md").data.tags)
    text = card(run)
    assert f"<lora:{run.name}_kohya:1>" in text
    assert "embedding:sks" in text
    assert "| the word alone learns for | 50 steps; while the adapter learns it stays as it is |" in text


def test_a_whole_network_is_published_with_its_size(make: Make, pipelines: dict[str, Path]) -> None:
    run = make("full", text=True)
    config = run / "text_encoder" / "config.json"
    write_json(config, {**json.loads(config.read_text(encoding="utf-8")), "_name_or_path": str(pipelines["sd15"])})
    build_folder(run, run / "publish", base_model="stable-diffusion-v1-5/stable-diffusion-v1-5")
    assert names_in(run) == [
        "README.md", "text_encoder/config.json", "text_encoder/model.safetensors", "unet/config.json", f"unet/{UNET}",
    ]  # fmt: skip
    for name in (f"unet/{UNET}", "text_encoder/model.safetensors"):
        one, two = load_file(run / name), load_file(run / "publish" / name)
        assert one.keys() == two.keys()
        assert all(one[key].equal(two[key]) for key in one)
    with safe_open(run / "publish" / "unet" / UNET, framework="pt") as file:
        assert json.loads(file.metadata()["boothlab"])["backbone"]["source"] == "PATH"
    assert "_name_or_path" not in json.loads(
        (run / "publish" / "text_encoder" / "config.json").read_text(encoding="utf-8")
    )
    data = ModelCard.load(run / "publish" / "README.md").data
    assert "lora" not in data.tags
    assert data.base_model_relation == "finetune"
    said = card(run)
    size = size_text((run / "publish" / "unet" / UNET).stat().st_size)
    assert f"| `unet/{UNET}` | diffusers and boothlab (UNet2DConditionModel, with its config.json) | {size} |" in said
    assert "unet = UNet2DConditionModel.from_pretrained(REPO, subfolder='unet', torch_dtype=DTYPE)" in said
    assert "| trained | every weight of the UNet and of the text encoder |" in said
    assert "Load Diffusion Model" in said


@pytest.mark.parametrize("variant", ["loha", "lokr"])
def test_an_adapter_that_diffusers_does_not_read_is_not_shown_to_it(variant: str, make: Make) -> None:
    run = make("lora", variant=variant)
    build_folder(run, run / "publish")
    assert names_in(run) == ["README.md", LORA]
    assert load_file(run / "publish" / LORA).keys() == load_file(run / "lora" / LORA).keys()
    text = card(run)
    assert "```python" not in text
    assert "diffusers does not read it" in text
    assert "boothlab sample run=FOLDER backbone=sd15 backbone.source=BASE_MODEL" in text
    assert f"A {'LoHa' if variant == 'loha' else 'LoKr'} adapter for" in text


# Which step


def first_pixel(path: Path) -> Any:
    with Image.open(path) as image:
        return image.convert("RGB").getpixel((0, 31))


def test_the_best_checkpoint_comes_with_its_own_files_scores_and_samples(make: Make) -> None:
    run = make("textual_inversion", kept=True)
    build_folder(run, run / "publish", checkpoint="best")
    early = run / "checkpoints" / "step_000050"
    assert load_file(run / "publish" / WORDS)["<sks>"].equal(load_file(early / WORDS)["<sks>"])
    assert not load_file(run / "publish" / WORDS)["<sks>"].equal(load_file(run / "embedding" / WORDS)["<sks>"])
    shown = run / "publish" / "images" / "prompt00_seed0.png"
    assert first_pixel(shown) == first_pixel(run / "samples" / "step_000050" / "prompt00_seed0.png")
    assert first_pixel(shown) != first_pixel(run / "samples" / "step_000100" / "prompt00_seed0.png")
    text = card(run)
    assert (
        "from step 50 of 100: the best of the 2 scored steps by balanced, 0.6000 (step 100, the last, has 0.5000)."
        in text
    )
    assert "| score | step 50 | last (step 100) | best | floor | ceiling |" in text
    assert "| CLIP-I ↑ | 0.7000 | 0.6000 | 0.7000 (step 50) | 0.1000 | 0.6900 |" in text
    assert "picked by balanced on these very prompts" in text
    assert "this is the one of step 50" in text
    results = ModelCard.load(run / "publish" / "README.md").data.eval_results
    assert {one.metric_type: one.metric_value for one in results}["dino"] == 0.5
    with safe_open(run / "publish" / WORDS, framework="pt") as file:
        assert json.loads(file.metadata()["boothlab"])["step"] == 50


@pytest.mark.parametrize(
    ("checkpoint", "best_by", "step", "why"),
    [
        ("last", None, 100, "last"), ("best", None, 50, "best"), ("best", "dino", 100, "best"),
        ("best", "clip_t", 50, "best"), ("50", None, 50, "named"), ("100", None, 100, "named"),
        ("0050", None, 50, "named"),
    ],
)  # fmt: skip
def test_the_step_that_is_asked_for(checkpoint: str, best_by: str | None, step: int, why: str, make: Make) -> None:
    run = make("textual_inversion", kept=True)
    choice = choose(read_run(run), checkpoint, best_by)
    assert (choice.step, choice.why, choice.last) == (step, why, 100)
    assert choice.words is not None
    assert choice.words.parent.name == ("embedding" if step == 100 else "step_000050")


def test_a_step_of_pivotal_tuning_before_the_adapter_learns_is_the_word_alone(make: Make) -> None:
    run = make("pivotal", kept=True)
    facts, _ = build_folder(run, run / "publish", checkpoint="50")
    assert facts.choice.words_alone
    assert names_in(run) == ["README.md", WORDS, "sks.safetensors"]
    assert "begins to learn after step 50, so that at this one there is the word alone" in card(run)
    assert "load_lora_weights" not in card(run)


@pytest.mark.parametrize(
    ("method", "argv", "expected"),
    [
        ("textual_inversion", ["checkpoint=70"], "has no checkpoint of this step; those with one are 50, 100"),
        ("textual_inversion", ["checkpoint=0"], "those with one are 50, 100"),
        ("textual_inversion", ["best_by=dino"], "is for checkpoint=best"),
        ("full", ["checkpoint=50"], "a run of method=full keeps only its last step, 100: leave checkpoint=last"),
        ("full", ["checkpoint=best"], "the best by balanced is step 50, which has no checkpoint; a run of method=full"),
    ],
)
def test_a_step_that_is_not_there_is_one_line(
    method: str, argv: list[str], expected: str, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make(method, kept=method != "full")
    capsys.readouterr()
    assert main(["publish", f"run={run}", *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
    assert not (run / "publish").exists()


def test_the_last_step_of_a_full_run_may_be_the_best(make: Make) -> None:
    run = make("full")
    assert choose(read_run(run), "best", "dino").networks.keys() == {"unet"}
    assert choose(read_run(run), "100").step == 100


def test_a_checkpoint_that_was_altered_or_a_product_that_is_gone_is_one_line(make: Make) -> None:
    run = make("textual_inversion", kept=True)
    path = run / "checkpoints" / "step_000050" / WORDS
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(UserError, match="was altered or cut short"):
        choose(read_run(run), "50")
    (run / "embedding" / WORDS).unlink()
    with pytest.raises(UserError, match=r"its embedding/learned_embeds\.safetensors is gone"):
        choose(read_run(run))


def test_a_step_that_was_not_scored_says_so(make: Make) -> None:
    run = make("textual_inversion", kept=True)
    (run / "checkpoints" / "step_000050").rename(run / "checkpoints" / "step_000070")
    build_folder(run, run / "publish", checkpoint="70")
    text = card(run)
    assert "Step 70 was not evaluated; the scored ones are 50, 100." in text
    assert not (run / "publish" / "images").exists()
    assert "pipeline('a photo of a <sks> robot'" in text


@pytest.mark.parametrize(
    ("checkpoint", "best_by", "expected"),
    [
        ("first", None, "is neither last nor best nor the number of a step"),
        ("", None, "is neither last nor best nor the number of a step"),
        ("-1", None, "is neither last nor best nor the number of a step"),
        ("²", None, "is neither last nor best nor the number of a step"),
        ("last", "dino", "is for checkpoint=best"),
        ("best", "pres", "is none of balanced, clip_i, dino, clip_t"),
    ],
)
def test_a_choice_that_means_nothing_is_refused(checkpoint: str, best_by: str | None, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        check_choice(checkpoint, best_by)
    for right in (("last", None), ("best", None), ("0", None), ("200", None), ("best", "clip_i")):
        check_choice(*right)


# What must not get out


@pytest.mark.parametrize("method", ["textual_inversion", "pivotal", "full"])
def test_no_file_of_any_kind_tells_where_on_whose_machine(method: str, make: Make, pipelines: dict[str, Path]) -> None:
    run = make(method, text=True)
    build_folder(run, run / "publish")
    for path in (run / "publish").rglob("*.*"):
        data = path.read_bytes()
        for secret in (str(pipelines["sd15"]), str(run.parent), str(Path.home())):
            assert secret.encode() not in data, (path, secret)


def test_a_word_that_is_a_key_is_not_published(make: Make) -> None:
    token = "hf_" + "a1B2c3D4" * 4
    run = make("textual_inversion", token=token)
    with pytest.raises(UserError, match=r"-redacted-\.safetensors would tell a key or token"):
        build_folder(run, run / "publish")
    assert not (run / "publish").exists()


def test_markup_in_a_word_and_its_start_is_text(make: Make) -> None:
    run = make("textual_inversion")
    path = run / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    evil = "a | <script>alert(1)</script> `x`"
    manifest["config"]["inversion"]["init_word"] = evil
    manifest["config"]["subject"] |= {"token": '`s"k|', "instance_prompt": 'a `s"k| toy'}
    write_json(path, manifest)
    build_folder(run, run / "publish")
    text = card(run)
    assert "| started as | a \\| \\<script\\>alert(1)\\</script\\> \\`x\\` |" in text
    assert "-s-k-.safetensors" in names_in(run)
    assert 'The word is ``<`s"k|>`` in diffusers' in text
    ast.parse(code_of(text))


def test_a_place_in_a_file_is_found_whatever_its_letters(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "a.safetensors"
    save_file({"x": torch.ones(1)}, path, {"words": json.dumps({"from": '/home/jürgen/"x"'})})
    assert told_by(header_text(path), Path("/home/jürgen/run")) == ["the run's place"]


def test_publishing_a_network_again_gives_the_same_bytes(make: Make) -> None:
    run = make("full")

    def digests() -> Mapping[str, str]:
        build_folder(run, run / "publish")
        return {name: sha256_file(run / "publish" / name) for name in names_in(run)}

    assert digests() == digests()


def test_weights_are_copied_bit_for_bit_and_only_whole(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    tensors = {"x": torch.arange(7).to(torch.bfloat16), "ä": torch.ones(3, 2), "none": torch.zeros(0)}
    save_file(tensors, source, {"boothlab": '{"backbone": {"source": "/home/ann/x"}}', "words": "kept"})
    copy_weights(source, target, Reporter(quiet=True))
    held = load_file(target)
    assert held.keys() == tensors.keys()
    assert all(held[key].equal(value) and held[key].dtype == value.dtype for key, value in tensors.items())
    assert json.loads(header_text(target))["__metadata__"] == {
        "boothlab": {"backbone": {"source": "PATH"}}, "words": "kept",
    }  # fmt: skip
    source.write_bytes(source.read_bytes()[:-1])
    with pytest.raises(UserError, match="is not a readable safetensors file"):
        copy_weights(source, tmp_path / "c.safetensors", Reporter(quiet=True))
    assert not (tmp_path / "c.safetensors").exists()
    assert public_metadata({"boothlab": "not JSON"}) == {"boothlab": "{}"}


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0.0 kB"), (1_240, "1.2 kB"), (100_000, "0.1 MB"), (25_160_896, "25.2 MB"), (3_438_000_000, "3.44 GB")],
)
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(("text", "name"), [("sks", "sks"), ("a b/../c", "a-b----c"), ("x" * 90, "x" * 80), ("", "")])
def test_names_of_files_that_stand_in_prompts(text: str, name: str) -> None:
    assert plain_name(text) == name


def test_the_command_names_step_and_size_before_anything_is_uploaded(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make("textual_inversion", kept=True)
    capsys.readouterr()
    assert main(["publish", f"run={run}", "checkpoint=best", "repo=ann/robot"]) == 0
    said = capsys.readouterr().err
    size = size_text(sum(path.stat().st_size for path in (run / "publish").rglob("*") if path.is_file()))
    assert "50 of 100, the best by balanced" in said
    assert f"nothing was uploaded; this uploads {size} in 6 files: boothlab publish run=" in said
    assert "checkpoint=best repo=ann/robot upload=true" in said


def test_the_size_is_named_before_the_upload(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make("textual_inversion", kept=True)
    said: list[str] = []

    def upload(folder: Path, repo: str, *, private: bool) -> str:
        said.append(capsys.readouterr().err)
        return f"https://huggingface.co/{repo}"

    monkeypatch.setattr("boothlab.publishing.upload.upload", upload)
    assert main(["publish", f"run={run}", "checkpoint=50", "repo=ann/robot", "upload=true"]) == 0
    size = size_text(sum(path.stat().st_size for path in (run / "publish").rglob("*") if path.is_file()))
    assert f"upload  {size} in 6 files to a private ann/robot" in said[0]
    assert "https://huggingface.co/ann/robot" in capsys.readouterr().err
    assert "REPO = 'ann/robot'" in card(run)
    assert "from step 50 of 100: as its publisher chose." in card(run)

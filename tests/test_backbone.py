"""Loading the three real architectures, with tiny random weights, and what training asks of them."""

import json
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from boothlab.diffusion.backbone import Backbone, TextEmbedding, load_backbone, resolve_source, weights_identity
from boothlab.errors import UserError
from tiny_pipelines import RESOLUTION, load

NAMES = ["sd15", "sd21", "sdxl"]
PROMPTS = ["a photo of a red car", "night", ""]
CPU = torch.device("cpu")


@pytest.fixture(params=NAMES)
def folder(request: pytest.FixtureRequest, pipelines: dict[str, Path]) -> Path:
    return pipelines[request.param]


@pytest.fixture
def copied(pipelines: dict[str, Path], tmp_path: Path) -> Path:
    """An SD 1.5 folder that a test may break."""
    return Path(shutil.copytree(pipelines["sd15"], tmp_path / "model"))


def refusal(source: Path | str, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_backbone(str(source), name="x", resolution=RESOLUTION, device=CPU, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("backbone.source=")
    assert len(message) < 600
    return message


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_everything_is_frozen_and_the_vae_stays_in_float32(folder: Path, dtype: torch.dtype) -> None:
    backbone = load(folder, dtype)
    networks = [backbone.unet, *backbone.text_encoders.values()]
    assert {p.dtype for network in networks for p in network.parameters()} == {dtype}
    assert {p.dtype for p in backbone.vae.parameters()} == {torch.float32}
    for network in (*networks, backbone.vae):
        assert not any(p.requires_grad for p in network.parameters())
        assert not any(module.training for module in network.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_latents_and_images_are_finite_float32_of_the_promised_shape(folder: Path, dtype: torch.dtype) -> None:
    backbone = load(folder, dtype)
    pixels = torch.rand(2, 3, RESOLUTION, RESOLUTION, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16):  # a trainer's autocast must not reach the VAE
        mean, std = backbone.encode_images(pixels)
        images = backbone.decode_latents(mean)
    assert mean.shape == std.shape == (2, *backbone.latent_shape)
    assert images.shape == pixels.shape
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    for value in (mean, std, images):
        assert value.dtype == torch.float32
        assert bool(value.isfinite().all())
    expected = backbone.vae.encode(pixels).latent_dist
    assert torch.equal(mean, expected.mean * backbone.vae.config.scaling_factor)
    assert torch.equal(std, expected.std * backbone.vae.config.scaling_factor)
    assert bool((std > 0).all())


def test_bf16_has_the_vae_of_the_file_not_a_rounded_one(folder: Path) -> None:
    exact, half = load(folder).vae.state_dict(), load(folder, torch.bfloat16).vae.state_dict()
    assert all(torch.equal(exact[key], half[key]) for key in exact)


def test_embed_is_what_the_pipeline_itself_encodes(folder: Path) -> None:
    backbone = load(folder)
    embedding = backbone.embed(backbone.tokenize(PROMPTS))
    expected = backbone.pipeline.encode_prompt(
        PROMPTS, device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    assert torch.equal(embedding.states_BTD, expected[0])
    if backbone.is_sdxl:
        assert embedding.pooled_BP is not None
        assert torch.equal(embedding.pooled_BP, expected[2])
    else:
        assert embedding.pooled_BP is None


def test_embeddings_are_sliced_and_stacked_with_their_pooled_text(folder: Path) -> None:
    backbone = load(folder)
    whole = backbone.embed(backbone.tokenize(PROMPTS))
    again = TextEmbedding.cat([whole[0:1], whole[1:3]])
    assert torch.equal(again.states_BTD, whole.states_BTD)
    assert (again.pooled_BP is None) == (whole.pooled_BP is None)
    if again.pooled_BP is not None and whole.pooled_BP is not None:
        assert torch.equal(again.pooled_BP, whole.pooled_BP)


def unet_inputs(backbone: Backbone) -> tuple[torch.Tensor, torch.Tensor, TextEmbedding]:
    noisy = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    return noisy, torch.tensor([10, 900]), backbone.embed(backbone.tokenize(PROMPTS[:2]))


def test_predict_is_a_direct_call_of_the_unet(folder: Path) -> None:
    backbone = load(folder)
    noisy, timesteps, text = unet_inputs(backbone)
    added = None
    if backbone.is_sdxl:
        sizes = torch.tensor([[RESOLUTION, RESOLUTION, 0, 0, RESOLUTION, RESOLUTION]] * 2)
        added = {"text_embeds": text.pooled_BP, "time_ids": sizes}
    expected = backbone.unet(noisy, timesteps, text.states_BTD, added_cond_kwargs=added).sample
    prediction = backbone.predict(noisy, timesteps, text)
    assert torch.equal(prediction, expected)
    assert float(prediction.std()) > 0


def test_predict_answers_in_float32_from_a_bf16_unet(folder: Path) -> None:
    backbone = load(folder, torch.bfloat16)
    prediction = backbone.predict(*unet_inputs(backbone))
    assert prediction.dtype == torch.float32
    assert torch.allclose(prediction, load(folder).predict(*unet_inputs(load(folder))), atol=0.1)


def test_sdxl_without_its_pooled_text_is_refused(pipelines: dict[str, Path]) -> None:
    backbone = load(pipelines["sdxl"])
    noisy, timesteps, text = unet_inputs(backbone)
    with pytest.raises(ValueError, match="pooled"):
        backbone.predict(noisy, timesteps, TextEmbedding(text.states_BTD))


def test_prediction_type_is_the_models(pipelines: dict[str, Path]) -> None:
    found = {name: load(folder).prediction_type for name, folder in pipelines.items()}
    assert found == {"sd15": "epsilon", "sd21": "v_prediction", "sdxl": "epsilon"}


def test_noise_schedule_is_the_models(folder: Path) -> None:
    backbone = load(folder)
    expected = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    assert torch.allclose(backbone.noise_scheduler.betas, expected)


def test_truncated_reports_prompts_beyond_the_context(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    backbone = load(folder)
    limit = backbone.pipeline.tokenizer.model_max_length
    fits, long = " ".join(["a"] * (limit - 2)), " ".join(["a"] * (limit - 1))
    assert backbone.truncated(["a car", fits, long, ""]) == [(long, limit + 1, limit)]
    assert all(ids.shape == (1, limit) for ids in backbone.tokenize([long]).values())
    assert capfd.readouterr() == ("", "")


def test_loading_prints_nothing_and_leaves_the_libraries_as_they_were(
    folder: Path, capfd: pytest.CaptureFixture[str], global_rng_untouched: AbstractContextManager[Any]
) -> None:
    levels = [library.get_verbosity() for library in (diffusers_logging, transformers_logging)]
    with global_rng_untouched:
        load(folder)
    assert capfd.readouterr() == ("", "")
    assert [library.get_verbosity() for library in (diffusers_logging, transformers_logging)] == levels
    assert diffusers_logging.is_progress_bar_enabled()
    assert transformers_logging.is_progress_bar_enabled()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path}/absent: no such folder" in refusal(tmp_path / "absent")


def test_a_folder_without_an_index_is_named(tmp_path: Path) -> None:
    assert "no model_index.json there" in refusal(tmp_path)


def test_an_index_that_is_not_json_is_named(copied: Path) -> None:
    (copied / "model_index.json").write_text("{", encoding="utf-8")
    assert "cannot be loaded" in refusal(copied)


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_pickled_weights_are_refused_with_the_way_out(copied: Path, component: str) -> None:
    for file in (copied / component).glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    message = refusal(copied)
    assert f"{component}/ only has pickled weights" in message
    assert "safe_serialization=True" in message


def test_missing_weights_of_sdxls_second_encoder_are_named(pipelines: dict[str, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pipelines["sdxl"], tmp_path / "model"))
    for file in (copy / "text_encoder_2").glob("*.safetensors"):
        file.unlink()
    assert "text_encoder_2/ has no weights" in refusal(copy)


def test_a_truncated_weight_file_is_named(copied: Path) -> None:
    file = next((copied / "unet").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    assert f"unet/{file.name} is not a whole safetensors file" in refusal(copied)


def test_weights_that_do_not_fit_their_config_are_refused(copied: Path) -> None:
    config = json.loads((copied / "unet" / "config.json").read_text(encoding="utf-8"))
    (copied / "unet" / "config.json").write_text(
        json.dumps(config | {"block_out_channels": [16, 64]}), encoding="utf-8"
    )
    assert "cannot be loaded" in refusal(copied)


def test_a_missing_variant_is_refused(copied: Path) -> None:
    assert "cannot be loaded" in refusal(copied, variant="fp16")


def test_another_kind_of_pipeline_is_refused(copied: Path) -> None:
    index = json.loads((copied / "model_index.json").read_text(encoding="utf-8"))
    index["_class_name"] = "StableDiffusionInpaintPipeline"
    (copied / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    assert "is a StableDiffusionInpaintPipeline; known are StableDiffusionPipeline" in refusal(copied)


def test_a_hub_id_out_of_reach_is_refused_quickly() -> None:
    started = time.monotonic()
    assert "nobody/nothing: cannot be loaded" in refusal("nobody/nothing")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("source", ["not a hub id", "a/b/c", "bad\nname"])
def test_a_source_that_is_neither_folder_nor_hub_id_is_refused(source: str) -> None:
    assert "cannot be loaded" in refusal(source)


def test_dollhouse_is_the_folder_that_ships() -> None:
    assert Path(resolve_source("dollhouse")).parts[-3:] == ("dollhouse", "weights", "pipeline")
    assert resolve_source("runwayml/x") == "runwayml/x"


def flip_a_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def add_a_space(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b" ")


@pytest.mark.parametrize(
    ("pattern", "change"),
    [("vae/*.safetensors", flip_a_byte), ("scheduler/*.json", add_a_space), ("tokenizer/tokenizer.json", add_a_space)],
)
def test_identity_is_stable_and_changes_with_a_byte(copied: Path, pattern: str, change: Callable[[Path], None]) -> None:
    before = weights_identity(str(copied))
    assert weights_identity(str(copied)) == before
    assert list(before) == sorted(before)
    (copied / "README.md").write_text("words", encoding="utf-8")
    assert weights_identity(str(copied)) == before
    file = next(copied.glob(pattern))
    change(file)
    after = weights_identity(str(copied))
    assert {key for key in before if before[key] != after[key]} == {file.relative_to(copied).as_posix()}


def test_identity_of_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        weights_identity(str(tmp_path / "absent"))


def test_identity_of_a_hub_model_is_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert weights_identity("nobody/nothing") == {"hub": "nobody/nothing", "revision": "unknown"}
    assert weights_identity("nobody/nothing", "abc") == {"hub": "nobody/nothing", "revision": "abc"}

    def cached(repo_id: str, filename: str, revision: str | None = None) -> str:
        return f"/cache/{repo_id}/snapshots/0123abc/{filename}"

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    assert weights_identity("nobody/nothing", "main") == {"hub": "nobody/nothing", "revision": "0123abc"}

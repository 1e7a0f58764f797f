"""Drawing images: each from its own seed, as plain diffusers draws it, leaving everything else as it was."""

import logging
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from boothlab.config import NoiseScheduler
from boothlab.diffusion.backbone import Backbone, TextEmbedding
from boothlab.diffusion.lora import attach, trainable
from boothlab.diffusion.sampling import SAMPLERS, Request, Sampler, SamplerSettings, build_sampler, image_generator
from boothlab.errors import UserError
from tiny_pipelines import RESOLUTION, load, most_levels_apart, plain_image, plain_pipeline

REQUESTS = [
    Request("a red car", 0),
    Request("a photo of a blue cat at night", 5),
    Request("a red car", 5),
    Request("", 2**40),
    Request("a red car", 0),
]
NAMES = [scheduler.value for scheduler in NoiseScheduler]
DPMPP = {"algorithm_type": "dpmsolver++"}
PLAIN: list[tuple[str, str, dict[str, Any]]] = [
    ("ddim", "DDIMScheduler", {}),
    ("ddpm", "DDPMScheduler", {}),
    ("dpmpp_2m_karras", "DPMSolverMultistepScheduler", DPMPP | {"use_karras_sigmas": True}),
    ("euler", "EulerDiscreteScheduler", {}),
    ("euler_a", "EulerAncestralDiscreteScheduler", {}),
    ("heun", "HeunDiscreteScheduler", {}),
    ("pndm", "PNDMScheduler", {"skip_prk_steps": True}),
    ("unipc", "UniPCMultistepScheduler", {}),
]


@pytest.fixture(scope="module")
def sd15(pipelines: dict[str, Path]) -> Backbone:
    return load(pipelines["sd15"])


def draw(backbone: Backbone, requests: list[Request], scheduler: str = "ddim", **changes: Any) -> Tensor:
    settings: dict[str, Any] = {"steps": 2, "guidance_scale": 5.0, "batch_size": 8}
    return Sampler(backbone, SamplerSettings(scheduler, **(settings | changes))).draw(requests)


def test_the_config_and_the_samplers_name_the_same() -> None:
    assert {scheduler.value for scheduler in NoiseScheduler} == set(SAMPLERS)


@pytest.mark.parametrize("name", NAMES)
def test_every_sampler_draws(sd15: Backbone, name: str, caplog: pytest.LogCaptureFixture) -> None:
    images = draw(sd15, REQUESTS[:2], name, steps=3)
    assert images.shape == (2, 3, RESOLUTION, RESOLUTION)
    assert images.dtype == torch.uint8
    assert float(images.float().std()) > 5  # neither black nor grey
    assert most_levels_apart(images[0], images[1]) > 5
    assert caplog.text == ""


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "euler_a", "ddpm"])
def test_an_image_of_a_batch_is_the_image_drawn_alone(sd15: Backbone, name: str) -> None:
    together = draw(sd15, REQUESTS, name)
    in_twos = draw(sd15, REQUESTS, name, batch_size=2)
    backwards = draw(sd15, REQUESTS[::-1], name).flip(0)
    alone = torch.cat([draw(sd15, [request], name) for request in REQUESTS])
    assert most_levels_apart(together, alone) <= 1
    assert most_levels_apart(in_twos, alone) <= 1
    assert most_levels_apart(backwards, alone) <= 1
    assert most_levels_apart(together[0], together[4]) <= 1  # the same request twice
    assert most_levels_apart(together[0], together[2]) > 5  # another seed
    assert most_levels_apart(together[1], together[2]) > 5  # another prompt


@pytest.mark.parametrize(("ours", "theirs", "changes"), PLAIN, ids=[name for name, *_ in PLAIN])
def test_plain_diffusers_draws_the_same(
    sd15: Backbone, pipelines: dict[str, Path], ours: str, theirs: str, changes: dict[str, Any]
) -> None:
    pipeline = plain_pipeline(pipelines["sd15"], theirs, **changes)
    expected = torch.stack([plain_image(pipeline, request.prompt, request.seed) for request in REQUESTS[:2]])
    assert most_levels_apart(draw(sd15, REQUESTS[:2], ours, steps=3), expected) <= 1


@pytest.mark.parametrize("name", ["sd21", "sdxl"])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("negative", ["", "blue cat"])
def test_v_prediction_and_sdxl_are_drawn_as_plain_diffusers_draws_them(
    pipelines: dict[str, Path], name: str, guidance: float, negative: str
) -> None:
    pipeline = plain_pipeline(pipelines[name], "DPMSolverMultistepScheduler", **DPMPP)
    extra: dict[str, Any] = {"negative_prompt": negative} if negative else {}
    expected = [plain_image(pipeline, r.prompt, r.seed, guidance=guidance, **extra) for r in REQUESTS[:2]]
    drawn = draw(
        load(pipelines[name]), REQUESTS[:2], "dpmpp_2m", steps=3, guidance_scale=guidance, negative_prompt=negative
    )
    assert most_levels_apart(drawn, torch.stack(expected)) <= 1


def test_guidance_and_negative_prompt_change_the_image(sd15: Backbone) -> None:
    plain, none = draw(sd15, REQUESTS[:1]), draw(sd15, REQUESTS[:1], guidance_scale=1.0)
    assert most_levels_apart(plain, none) > 1
    assert most_levels_apart(plain, draw(sd15, REQUESTS[:1], negative_prompt="blue cat at night")) > 1
    assert most_levels_apart(none, draw(sd15, REQUESTS[:1], guidance_scale=1.0, negative_prompt="blue cat")) == 0


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_draws_with_the_float32_vae(pipelines: dict[str, Path], name: str, dtype: torch.dtype) -> None:
    backbone = load(pipelines[name], dtype)
    images = draw(backbone, REQUESTS[:2])
    exact = draw(load(pipelines[name]), REQUESTS[:2])
    assert float((images.float() - exact.float()).abs().mean()) < 8
    assert {p.dtype for p in backbone.unet.parameters()} == {dtype}
    assert {p.dtype for p in backbone.vae.parameters()} == {torch.float32}


def test_the_global_generators_are_not_touched(
    sd15: Backbone, global_rng_untouched: AbstractContextManager[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    first = draw(sd15, REQUESTS[:1], "euler_a")
    torch.manual_seed(1)
    with global_rng_untouched:
        second = draw(sd15, REQUESTS[:1], "euler_a")
    assert torch.equal(first, second)
    assert capfd.readouterr() == ("", "")


def state_of(backbone: Backbone) -> tuple[Any, ...]:
    networks = [backbone.unet, backbone.vae, *backbone.text_encoders.values()]
    modes = [module.training for network in networks for module in network.modules()]
    kinds = [(p.dtype, p.requires_grad, p.grad is None) for network in networks for p in network.parameters()]
    return modes, kinds, id(backbone.pipeline.scheduler), backbone.pipeline.scheduler.config


def training_backbone(folder: Path) -> Backbone:
    """As in training: a bf16 base, float32 adapters with dropout, train mode but for one module that is frozen."""
    backbone = load(folder, torch.bfloat16)
    targets = ["to_q", "to_v"]
    attach(backbone.unet, "unet", rank=2, alpha=2, dropout=0.9, init="gaussian", targets=targets, seed=0)
    for value in trainable(backbone.unet).values():
        value.data.fill_(0.1)
    backbone.unet.train()
    backbone.unet.mid_block.eval()
    return backbone


def test_modes_and_dtypes_are_as_before(pipelines: dict[str, Path]) -> None:
    backbone = training_backbone(pipelines["sd15"])
    before = state_of(backbone)
    first, second = draw(backbone, REQUESTS[:1]), draw(backbone, REQUESTS[:1])
    assert torch.equal(first, second)  # no dropout while drawing
    assert state_of(backbone) == before
    assert not first.requires_grad


def test_modes_are_as_before_when_drawing_fails(pipelines: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = training_backbone(pipelines["sd15"])
    before = state_of(backbone)

    def fail(*_: Any, **__: Any) -> None:
        assert not backbone.unet.training
        raise KeyboardInterrupt

    monkeypatch.setattr(backbone.unet, "forward", fail)
    with pytest.raises(KeyboardInterrupt):
        draw(backbone, REQUESTS[:1])
    assert state_of(backbone) == before


def test_nothing_is_left_changed_between_batches(pipelines: dict[str, Path]) -> None:
    backbone = training_backbone(pipelines["sd15"])
    before = state_of(backbone)
    batches = Sampler(backbone, SamplerSettings("ddim", 1, 1.0, batch_size=2)).batches(REQUESTS)
    assert len(next(batches)) == 2
    assert state_of(backbone) == before  # while the caller does something else, or never comes back
    assert [len(batch) for batch in batches] == [2, 1]


def test_progress_tells_each_batch(sd15: Backbone) -> None:
    told: list[int] = []
    Sampler(sd15, SamplerSettings("ddim", 1, 1.0, batch_size=2)).draw(REQUESTS, told.append)
    assert told == [2, 2, 1]


def test_no_requests_make_no_images(sd15: Backbone) -> None:
    images = draw(sd15, [])
    assert images.shape == (0, 3, RESOLUTION, RESOLUTION)
    assert images.dtype == torch.uint8


def test_prompts_are_remembered_until_forgotten(pipelines: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load(pipelines["sd15"])
    asked: list[int] = []
    embed = backbone.embed

    def counted(ids: dict[str, Tensor]) -> TextEmbedding:
        asked.append(1)
        return embed(ids)

    monkeypatch.setattr(backbone, "embed", counted)
    sampler = Sampler(backbone, SamplerSettings("ddim", 2, 5.0))
    before = sampler.draw(REQUESTS[:3])
    assert len(asked) == 3  # two prompts and the negative one
    sampler.draw(REQUESTS[:3])
    assert len(asked) == 3
    encoder = backbone.text_encoders["text_encoder"]
    next(p for name, p in encoder.named_parameters() if "fc1.weight" in name).data.mul_(-1)
    assert torch.equal(sampler.draw(REQUESTS[:3]), before)  # what the docstring warns of
    sampler.forget_prompts()
    after = sampler.draw(REQUESTS[:3])
    assert len(asked) == 6
    assert most_levels_apart(after, before) > 1


def test_images_that_are_not_finite_are_told_of(pipelines: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    backbone = load(pipelines["sd15"])
    backbone.unet.conv_out.bias.data.fill_(float("nan"))
    with caplog.at_level(logging.WARNING):
        images = draw(backbone, REQUESTS[:2])
    assert not bool(images.any())
    assert "2 of 2 images are not finite" in caplog.text


def test_an_unknown_sampler_fails_before_anything_is_drawn(sd15: Backbone) -> None:
    with pytest.raises(UserError, match="scheduler=dpm: is not known; choose one of ddim, ddpm, "):
        Sampler(sd15, SamplerSettings("dpm", 2, 5.0))


def test_a_sampler_keeps_the_models_own_noise_schedule(pipelines: dict[str, Path]) -> None:
    backbone = load(pipelines["sd21"])
    for name in sorted(SAMPLERS):
        config = build_sampler(name, backbone.pipeline.scheduler.config).config
        assert config.prediction_type == "v_prediction"
        assert (config.beta_start, config.beta_end, config.beta_schedule) == (0.00085, 0.012, "scaled_linear")
        assert not config.get("clip_sample", False)


def test_latents_are_not_clipped_where_the_model_does_not_say(sd15: Backbone) -> None:
    config = {key: value for key, value in sd15.pipeline.scheduler.config.items() if key != "clip_sample"}
    assert not build_sampler("ddim", config).config.clip_sample
    assert not build_sampler("ddpm", config).config.clip_sample


def test_an_images_generator_is_the_plain_one() -> None:
    expected = torch.randn(3, generator=torch.Generator().manual_seed(7))
    assert torch.equal(torch.randn(3, generator=image_generator(7)), expected)

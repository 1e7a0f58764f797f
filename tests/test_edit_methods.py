"""Every editing method against diffusers called directly, and what batches, padding, precision and LoRA do to them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMInverseScheduler,
    DDIMScheduler,
    MultiAdapter,
    T2IAdapter,
    UNet2DConditionModel,
)
from PIL import Image

import tiny_pipelines
from boothlab.dollhouse.architectures import to_images
from boothlab.dollhouse.control_parts import build_adapter, build_controlnet
from boothlab.dollhouse.edits import held_out_room
from boothlab.dollhouse.grammar import full_prompt
from boothlab.dollhouse.scenes import render
from boothlab.editing.inversion import psnr
from boothlab.editing.methods import EditInput, EditMethod, EditOutput, EditParts, EditSettings, edit_batch
from boothlab.editing.pipelines import four_channels, pipeline_vae
from boothlab.errors import UserError
from boothlab.quiet import quiet_libraries

SETTINGS = EditSettings(
    steps=3,
    strength=0.7,
    guidance_scale=5.0,
    image_guidance_scale=1.3,
    control_scales={"canny": 0.8, "depth": 0.6},
    negative_prompt="a dark room",
)
SEED = 11
WORDS = {"instruction": "make it night", "source_caption": "a red cat", "target_caption": "a blue dog in a kitchen"}


def picture(width: int = 32, height: int = 32, seed: int = 0, channels: int = 3) -> Image.Image:
    """Smooth noise: something with edges, unlike any other."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 6, channels), dtype=np.uint8).squeeze()
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def asked(seed: int = SEED, **changes: Any) -> EditInput:
    """One input with everything any method asks for."""
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 4:20] = 255
    everything: dict[str, Any] = {
        "image": picture(),
        "mask": Image.fromarray(mask),
        "controls": {
            "canny": picture(seed=1, channels=1).point(lambda v: 255 * (v > 128)),
            "depth": picture(seed=2, channels=1),
        },
        **WORDS,
    }
    return EditInput(**(everything | {"seed": seed} | changes))


@pytest.fixture(scope="session")
def editors(pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, str]]:
    """Sources of the tiny extra models of an architecture, written when first asked for."""
    root, made = tmp_path_factory.mktemp("editors"), {}

    def sources(name: str) -> dict[str, str]:
        if name not in made:
            made[name] = tiny_pipelines.build_editors(pipelines[name], root / name)
        return dict(made[name])

    return sources


@pytest.fixture(scope="session")
def parts_of(pipelines: dict[str, Path], editors: Callable[[str], dict[str, str]]) -> Callable[[str], EditParts]:
    """Backbone and extra models of an architecture, loaded once; not to be changed."""
    made: dict[str, EditParts] = {}

    def parts(name: str) -> EditParts:
        if name not in made:
            made[name] = EditParts(tiny_pipelines.load(pipelines[name]), editors(name))
        return made[name]

    return parts


@cache
def loaded_pipeline(folder: Path) -> Any:
    return tiny_pipelines.plain_pipeline(folder, json.loads((folder / "model_index.json").read_text())["scheduler"][1])


def direct(
    name: str, folder: Path, sources: Mapping[str, str], method: EditMethod, one: EditInput, s: EditSettings
) -> Any:
    """The picture that a user of diffusers alone makes: pipelines loaded from disk, prompts as text, PIL in and out."""
    family = "StableDiffusionXL" if name == "sdxl" else "StableDiffusion"
    target = one.target_caption

    def run(kind: str, prompt: str | None, *, scheduler: Any = None, **arguments: Any) -> Any:
        models = {key: arguments.pop(key) for key in ("controlnet", "adapter", "unet") if key in arguments}
        with quiet_libraries():
            loaded = loaded_pipeline(folder)
            pipeline = getattr(diffusers, f"{family}{kind}Pipeline").from_pipe(loaded, **models)
            pipeline.scheduler = (scheduler or type(loaded.scheduler).from_config)(loaded.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
        settings = {"num_inference_steps": s.steps, "guidance_scale": s.guidance_scale}
        settings |= {"negative_prompt": s.negative_prompt, "generator": torch.Generator().manual_seed(one.seed)}
        with quiet_libraries():
            made = pipeline(prompt, **(settings | arguments)).images
        return made if isinstance(made, torch.Tensor) else made[0]

    size = {"height": one.image.height, "width": one.image.width}
    if method is EditMethod.regenerate:
        return run("", target, **size)
    if method is EditMethod.fixed_noise:
        return run("", target, **size), run("", one.source_caption, **size)
    if method is EditMethod.sdedit:
        return run("Img2Img", target, image=one.image, strength=s.strength)
    if method is EditMethod.instruct_pix2pix:
        unet = UNet2DConditionModel.from_pretrained(sources["instruct_pix2pix"], subfolder="unet")
        arguments = size if name == "sdxl" else {}
        arguments |= {"image": one.image, "image_guidance_scale": s.image_guidance_scale}
        return run("InstructPix2Pix", one.instruction, unet=unet, **arguments)
    if method is EditMethod.inpaint:
        models = {"unet": UNet2DConditionModel.from_pretrained(sources["inpaint"])} if "inpaint" in sources else {}
        return run("Inpaint", target, image=one.image, mask_image=one.mask, strength=s.strength, **size, **models)
    if method is EditMethod.ddim_inversion:
        return direct_inversion(run, folder, one, size)
    kinds = [kind for kind in ("canny", "depth") if method.endswith(kind)] or ["canny", "depth"]
    maps = [one.controls[kind] for kind in kinds]
    scales = [s.control_scales[kind] for kind in kinds]
    if method.startswith("controlnet"):
        nets = [ControlNetModel.from_pretrained(sources[f"controlnet_{kind}"]) for kind in kinds]
        single = len(kinds) == 1
        return run(
            "ControlNet", target, controlnet=nets[0] if single else nets, image=maps[0] if single else maps,
            controlnet_conditioning_scale=scales[0] if single else scales, **size,
        )  # fmt: skip
    adapters = [T2IAdapter.from_pretrained(sources[f"t2i_adapter_{kind}"]) for kind in kinds]
    maps = [one if kind == "canny" else one.convert("RGB") for kind, one in zip(kinds, maps, strict=True)]
    if len(kinds) == 1:
        return run("Adapter", target, adapter=adapters[0], image=maps[0], adapter_conditioning_scale=scales[0], **size)
    return run("Adapter", target, adapter=MultiAdapter(adapters), image=maps, adapter_conditioning_scale=scales, **size)


def direct_inversion(run: Any, folder: Path, one: EditInput, size: dict[str, int]) -> Any:
    """All the way to noise and back, with diffusers' two DDIM schedulers."""
    vae = diffusers.AutoencoderKL.from_pretrained(folder / "vae")
    pixels = diffusers.image_processor.VaeImageProcessor(vae_scale_factor=4).preprocess(one.image)
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor

    def ddim(scheduler: Any) -> Any:
        return lambda config: scheduler.from_config(config, clip_sample=False)

    back = {"guidance_scale": 1.0, "output_type": "latent", **size}
    noise = run("", one.source_caption, scheduler=ddim(DDIMInverseScheduler), latents=latents, **back)
    edited = run("", one.target_caption, scheduler=ddim(DDIMScheduler), latents=noise, **size)
    return edited, run("", one.source_caption, scheduler=ddim(DDIMScheduler), latents=noise, guidance_scale=1.0, **size)


def equal(first: Image.Image, second: Image.Image) -> bool:
    return np.array_equal(np.asarray(first), np.asarray(second))


def some_slow(*fast: str, slow: Sequence[str]) -> list[Any]:
    return [*fast, *(pytest.param(method, marks=pytest.mark.slow) for method in slow)]


OTHERS = ("sdedit", "instruct_pix2pix", "ddim_inversion", "t2i_adapter")
FAST = {("sd15", method) for method in EditMethod if method != "copy"}
ALL = [(name, method) for name in ("sd15", "sd21", "sdxl") for method in EditMethod if method != "copy"]


@pytest.mark.parametrize(
    ("name", "method"),
    [pytest.param(*case, marks=() if case in FAST else pytest.mark.slow, id=f"{case[0]}-{case[1]}") for case in ALL],
)
def test_a_method_is_what_diffusers_makes(
    name: str, method: EditMethod, pipelines: dict[str, Path], parts_of: Any, editors: Any, global_rng_untouched: Any
) -> None:
    settings = replace(SETTINGS, strength=1.0) if method is EditMethod.ddim_inversion else SETTINGS
    expected = direct(name, pipelines[name], editors(name), method, asked(), settings)
    parts_of(name)
    with global_rng_untouched:
        (made,) = edit_batch(method, parts_of(name), [asked()], settings)
    edited, source = expected if isinstance(expected, tuple) else (expected, None)
    assert equal(made.image, edited)
    assert (made.source is None) == (source is None)
    assert made.source is None or equal(made.source, source)
    assert made.steps_run == (2 if method in (EditMethod.sdedit, EditMethod.inpaint) else 3)
    assert not equal(made.image, asked().image)


@pytest.mark.parametrize("name", ["sd15", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_inpainting_without_a_model_of_its_own_is_diffusers_masked_denoising(
    name: str, pipelines: dict[str, Path], parts_of: Any
) -> None:
    parts = EditParts(parts_of(name).backbone)
    (made,) = edit_batch(EditMethod.inpaint, parts, [asked()], SETTINGS)
    assert equal(made.image, direct(name, pipelines[name], {}, EditMethod.inpaint, asked(), SETTINGS))


def test_copy_is_the_source_and_runs_nothing() -> None:
    (made,) = edit_batch(EditMethod.copy, None, [asked(image=picture(30, 45))], SETTINGS)  # type: ignore[arg-type]
    assert equal(made.image, picture(30, 45)) and made.steps_run == 0 and made.notes == ()


def close(first: EditOutput, second: EditOutput) -> bool:
    """Equal but for the rounding of floats in batches of other sizes."""
    apart = np.abs(np.asarray(first.image, dtype=int) - np.asarray(second.image, dtype=int))
    return bool(apart.max() <= 1)


def test_a_full_mask_is_noted(parts_of: Callable[[str], EditParts]) -> None:
    whole, part = asked(mask=Image.new("L", (32, 32), 255)), asked()
    made = edit_batch(EditMethod.inpaint, parts_of("sd15"), [whole, part], EditSettings(steps=2))
    assert [any("mask is full" in note for note in one.notes) for one in made] == [True, False]


@pytest.mark.parametrize("method", some_slow("controlnet", "inpaint", slow=OTHERS))
def test_an_image_does_not_depend_on_its_batch(method: str, parts_of: Any) -> None:
    """Also not where the sizes of a batch differ; the outputs come in the order of the inputs."""
    small = {"controls": {kind: picture(16, 24, seed=4, channels=1) for kind in ("canny", "depth")}}
    mask = Image.new("L", (16, 24))
    mask.paste(255, (4, 4, 12, 12))
    inputs = [asked(), asked(5, image=picture(16, 24, seed=3), mask=mask, **small), asked(6, image=picture(seed=9))]
    settings = replace(SETTINGS, steps=2)
    together = edit_batch(EditMethod(method), parts_of("sd15"), inputs, settings)
    alone = [edit_batch(EditMethod(method), parts_of("sd15"), [one], settings)[0] for one in inputs]
    assert [one.image.size for one in together] == [(32, 32), (16, 24), (32, 32)]
    assert all(close(*pair) for pair in zip(together, alone, strict=True))
    assert not close(together[0], together[2])


@pytest.mark.parametrize("method", some_slow("t2i_adapter", "inpaint", slow=(*OTHERS[:3], "controlnet_canny")))
@pytest.mark.parametrize("name", ["sd15", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_odd_sizes_are_mirrored_to_fit_and_cropped_back(name: str, method: str, parts_of: Any) -> None:
    mask = Image.new("L", (30, 45))
    mask.paste(255, (20, 30, 30, 45))
    controls = {kind: picture(30, 45, seed=4, channels=1) for kind in ("canny", "depth")}
    odd = asked(image=picture(30, 45), mask=mask, controls=controls)
    (made,) = edit_batch(EditMethod(method), parts_of(name), [odd], replace(SETTINGS, steps=2))
    assert made.image.size == (30, 45)
    assert made.notes[0] == "padded from 30×45 to 32×48 and cropped back"

    def mirrored(image: Image.Image) -> Image.Image:
        pixels = np.asarray(image)
        pixels = np.concatenate([pixels, pixels[:, -2:-4:-1]], axis=1)
        return Image.fromarray(np.concatenate([pixels, pixels[-2:-5:-1]], axis=0))

    even = asked(
        image=mirrored(odd.image), mask=mirrored(mask), controls={kind: mirrored(one) for kind, one in controls.items()}
    )
    (whole,) = edit_batch(EditMethod(method), parts_of(name), [even], replace(SETTINGS, steps=2))
    assert equal(made.image, whole.image.crop((0, 0, 30, 45)))
    assert {kind: one.size for kind, one in made.conditions.items()} == dict.fromkeys(made.conditions, (30, 45))


def test_pictures_too_small_to_mirror_are_edged(parts_of: Any) -> None:
    (made,) = edit_batch(EditMethod.sdedit, parts_of("sd15"), [asked(image=picture(1, 3))], SETTINGS)
    assert made.image.size == (1, 3) and made.notes == ("padded from 1×3 to 8×8 and cropped back",)


def test_nothing_shared_is_changed(pipelines: dict[str, Path], editors: Any) -> None:
    parts = EditParts(tiny_pipelines.load(pipelines["sd15"]), editors("sd15"))
    backbone = parts.backbone
    scheduler, config = backbone.pipeline.scheduler, dict(backbone.pipeline.scheduler.config)
    weights = {key: value.clone() for key, value in backbone.unet.state_dict().items()}
    for method in EditMethod:
        edit_batch(method, parts, [asked()], replace(SETTINGS, steps=2, scheduler="ddim"))
    assert backbone.pipeline.scheduler is scheduler and dict(scheduler.config) == config
    assert backbone.pipeline.scheduler.num_inference_steps is None
    assert all(torch.equal(value, weights[key]) for key, value in backbone.unet.state_dict().items())
    assert backbone.unet.config.in_channels == 4 and backbone.pipeline.unet is backbone.unet
    assert type(backbone.vae) is diffusers.AutoencoderKL


def test_the_fixed_noise_is_one_noise(parts_of: Any) -> None:
    one = asked(source_caption=WORDS["target_caption"])
    (made,) = edit_batch(EditMethod.fixed_noise, parts_of("sd15"), [one], SETTINGS)
    assert made.source is not None and equal(made.image, made.source)
    (other,) = edit_batch(EditMethod.fixed_noise, parts_of("sd15"), [replace(one, seed=12)], SETTINGS)
    assert not equal(made.image, other.image)


@pytest.mark.slow
def test_inversion_comes_back_to_the_source(dollhouse: EditParts) -> None:
    """The more steps, the closer, up to the VAE's own loss. By the source's caption, the edit is the source."""
    backbone, scene = dollhouse.backbone, held_out_room(0)
    room = render(scene)
    limit = backbone.decode_latents(backbone.encode_images(to_images([room]))[0])[0].mul(255).round().byte()
    ideal = Image.fromarray(limit.permute(1, 2, 0).numpy())
    one = asked(image=Image.fromarray(room), source_caption=full_prompt(scene), target_caption=full_prompt(scene))

    def made(steps: int, strength: float) -> EditOutput:
        settings = EditSettings(steps=steps, strength=strength, guidance_scale=1.0)
        return edit_batch(EditMethod.ddim_inversion, dollhouse, [one], settings)[0]

    part, far, fine = made(10, 0.3), made(4, 1.0), made(50, 1.0)
    assert fine.source is not None and far.source is not None and part.source is not None
    assert equal(fine.image, fine.source)
    assert psnr(fine.source, ideal) > 36 > psnr(far.source, ideal)
    assert (part.steps_run, fine.steps_run) == (3, 50)
    assert part.notes == (f"the inversion reconstructs the source at {psnr(part.source, one.image):.1f} dB PSNR",)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "sdxl"])
@pytest.mark.parametrize("method", list(EditMethod))
def test_half_precision_keeps_the_vae_whole(
    name: str, method: EditMethod, pipelines: dict[str, Path], editors: Any, parts_of: Any
) -> None:
    half = EditParts(tiny_pipelines.load(pipelines[name], torch.bfloat16), editors(name))
    (rough,) = edit_batch(method, half, [asked()], SETTINGS)
    (exact,) = edit_batch(method, parts_of(name), [asked()], SETTINGS)
    assert half.backbone.vae.dtype == torch.float32
    assert {value.dtype for value in half.backbone.vae.state_dict().values()} == {torch.float32}
    assert rough.image.size == exact.image.size
    # noise in bfloat16 is drawn otherwise, so that only methods that stay near the source are near each other
    assert method is EditMethod.copy or not equal(rough.image, exact.image)


def test_the_half_precision_view_of_the_vae_shares_its_weights(pipelines: dict[str, Path]) -> None:
    backbone = tiny_pipelines.load(pipelines["sd15"], torch.bfloat16)
    view = pipeline_vae(backbone)
    assert view.dtype == torch.bfloat16 and view.encoder is backbone.vae.encoder
    assert view.to(torch.float16) is view and backbone.vae.dtype == torch.float32
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    posterior = view.encode(pixels).latent_dist
    assert posterior.mean.dtype == torch.bfloat16
    assert torch.equal(posterior.mean, backbone.vae.encode(pixels.float()).latent_dist.mean.bfloat16())


@pytest.mark.slow
@pytest.mark.parametrize(
    "scheduler", ["ddim", "ddpm", "dpmpp_2m", "dpmpp_2m_karras", "euler", "euler_a", "heun", "pndm", "unipc"]
)
@pytest.mark.parametrize("steps", [1, 4])
def test_every_sampler_runs_every_kind_of_method(scheduler: str, steps: int, parts_of: Any) -> None:
    for method in ("regenerate", "sdedit", "controlnet", "t2i_adapter", "instruct_pix2pix", "inpaint"):
        settings = replace(SETTINGS, scheduler=scheduler, steps=steps, strength=1.0 if steps == 1 else 0.3)
        (made,) = edit_batch(EditMethod(method), parts_of("sd15"), [asked()], settings)
        assert made.steps_run == (1 if method in ("sdedit", "inpaint") else steps)
        assert np.asarray(made.image).std() > 0


@pytest.fixture(scope="session")
def dollhouse(tmp_path_factory: pytest.TempPathFactory) -> EditParts:
    """The dollhouse with untrained editors of its own shapes: VAE factor 4, eight latent channels."""
    from boothlab.diffusion.backbone import load_backbone

    backbone = load_backbone("dollhouse", name="dollhouse", resolution=32, device=torch.device("cpu"))
    root = tmp_path_factory.mktemp("dollhouse_editors")
    with torch.random.fork_rng(devices=[]), quiet_libraries():
        torch.manual_seed(0)
        for kind in ("canny", "depth"):
            net = build_controlnet(backbone.unet)
            torch.nn.init.normal_(net.controlnet_mid_block.weight)
            net.save_pretrained(root / f"controlnet_{kind}")
            build_adapter(kind).save_pretrained(root / f"t2i_adapter_{kind}")
        tiny_pipelines.build_wider_unet(backbone.unet, 8).save_pretrained(root / "instruct_pix2pix" / "unet")
    return EditParts(backbone, {path.name: str(path) for path in sorted(root.iterdir())})


@pytest.mark.slow
@pytest.mark.parametrize("method", list(EditMethod))
def test_every_method_runs_on_the_dollhouse(method: EditMethod, dollhouse: EditParts) -> None:
    (made,) = edit_batch(method, dollhouse, [asked()], replace(SETTINGS, steps=4))
    assert made.image.size == (32, 32)
    (again,) = edit_batch(method, dollhouse, [asked()], replace(SETTINGS, steps=4))
    assert equal(made.image, again.image)


def test_the_dollhouse_s_masked_denoising_keeps_what_is_outside(dollhouse: EditParts) -> None:
    """Eight latent channels, where diffusers' pipeline asks for four: the mask must be at work all the same."""
    (made,) = edit_batch(EditMethod.inpaint, dollhouse, [asked()], replace(SETTINGS, steps=4, strength=1.0))
    (kept,) = edit_batch(EditMethod.sdedit, dollhouse, [asked()], replace(SETTINGS, steps=100, strength=0.01))
    apart = np.abs(np.asarray(made.image, dtype=float) - np.asarray(kept.image, dtype=float)).mean(axis=-1)
    inside = np.asarray(asked().mask) > 0
    assert apart[:, 28:].mean() < 25 < apart[inside].mean()
    assert four_channels(dollhouse.backbone).config.in_channels == 4
    assert dollhouse.backbone.unet.config.in_channels == 8


def test_maps_of_other_kinds_may_be_given(pipelines: dict[str, Path], editors: Any) -> None:
    sources = editors("sd15")
    parts = EditParts(tiny_pipelines.load(pipelines["sd15"]), {"controlnet_pose": sources["controlnet_canny"]})
    settings = replace(SETTINGS, controls=("pose",), control_scales={"pose": 0.8})
    one = asked(controls={"pose": asked().controls["canny"]})
    (made,) = edit_batch(EditMethod.controlnet, parts, [one], settings)
    (same,) = edit_batch(EditMethod.controlnet_canny, EditParts(parts.backbone, sources), [asked()], SETTINGS)
    assert equal(made.image, same.image) and list(made.conditions) == ["pose"]
    with pytest.raises(UserError, match="no pose map is given"):
        edit_batch(EditMethod.controlnet, parts, [asked(controls={})], settings)

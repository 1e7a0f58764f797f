"""Bad input to editing methods: one line each, before any model runs."""

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from boothlab.editing.checks import check, smallest_strength
from boothlab.editing.methods import EditInput, EditMethod, EditSettings, Needs, needs
from boothlab.editing.requests import steps_run
from boothlab.errors import UserError

SETTINGS = EditSettings(steps=10, strength=0.5)


def mask(box: tuple[int, int, int, int] = (4, 4, 12, 12), size: tuple[int, int] = (16, 24)) -> Image.Image:
    made = Image.new("L", size)
    made.paste(255, box)
    return made


def asked(**changes: Any) -> EditInput:
    everything: dict[str, Any] = {
        "image": Image.new("RGB", (16, 24)),
        "instruction": "make it night",
        "source_caption": "a room",
        "target_caption": "a room at night",
        "mask": mask(),
        "controls": {"canny": Image.new("L", (16, 24)), "depth": Image.new("L", (16, 24))},
        "name": "room_01 at_night",
    }
    return EditInput(**(everything | changes))


def refusal(method: str, one: EditInput | None = None, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        check(EditMethod(method), [one or asked()], replace(SETTINGS, **changes))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("method", list(EditMethod))
def test_good_input_passes(method: EditMethod) -> None:
    check(method, [asked()], SETTINGS)
    check(method, [], SETTINGS)


@pytest.mark.parametrize(
    ("method", "models", "given"),
    [
        ("copy", (), ()),
        ("regenerate", (), ("target_caption",)),
        ("sdedit", (), ("target_caption",)),
        ("controlnet_canny", ("controlnet_canny",), ("target_caption", "canny")),
        ("controlnet_depth", ("controlnet_depth",), ("target_caption", "depth")),
        ("controlnet", ("controlnet_depth", "controlnet_pose"), ("target_caption", "depth", "pose")),
        ("t2i_adapter_canny", ("t2i_adapter_canny",), ("target_caption", "canny")),
        ("t2i_adapter_depth", ("t2i_adapter_depth",), ("target_caption", "depth")),
        ("t2i_adapter", ("t2i_adapter_depth", "t2i_adapter_pose"), ("target_caption", "depth", "pose")),
        ("instruct_pix2pix", ("instruct_pix2pix",), ("instruction",)),
        ("inpaint", (), ("target_caption", "mask")),
        ("ddim_inversion", (), ("source_caption", "target_caption")),
        ("fixed_noise", (), ("source_caption", "target_caption")),
    ],
)
def test_what_a_method_needs(method: str, models: tuple[str, ...], given: tuple[str, ...]) -> None:
    found = needs(EditMethod(method), replace(SETTINGS, controls=("depth", "pose")))
    assert found == Needs(models, given)
    assert found.controls == tuple(name for name in given if name in ("canny", "depth", "pose"))


@pytest.mark.parametrize("method", [method for method in EditMethod if method != "copy"])
def test_missing_texts_are_named(method: EditMethod) -> None:
    for name in set(needs(method, SETTINGS).given) & {"instruction", "source_caption", "target_caption"}:
        for nothing in (None, "", "  "):
            message = refusal(method, asked(**{name: nothing}))
            assert message.startswith(f"room_01 at_night: method={method} needs ") and message.endswith(f"give {name}")


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("sdedit", {"steps": 0}, "steps=0: must be at least 1"),
        ("sdedit", {"strength": 1.5}, "strength=1.5: must be above 0 and at most 1"),
        ("inpaint", {"strength": float("nan")}, "strength=nan: must be above 0 and at most 1"),
        (
            "sdedit",
            {"strength": 0.0},
            "strength=0.0: runs none of the 10 steps; the smallest that does is 0.1, or raise steps",
        ),
        (
            "ddim_inversion",
            {"strength": 0.09},
            "strength=0.09: runs none of the 10 steps; the smallest that does is 0.1, or raise steps",
        ),
        (
            "ddim_inversion",
            {"scheduler": "euler"},
            "scheduler=euler: ddim_inversion runs DDIM backwards and forwards; use ddim or null",
        ),
        ("instruct_pix2pix", {"image_guidance_scale": 0.9}, "image_guidance_scale=0.9: must be at least 1"),
        (
            "regenerate",
            {"guidance_scale": -1.0},
            "guidance_scale=-1.0: must be a number from 0 up; 1 and below mean none",
        ),
        ("controlnet", {"controls": ()}, "controls: controlnet needs at least one, such as canny"),
        ("t2i_adapter", {"controls": ("canny", "canny")}, "controls=canny,canny: canny is there twice"),
        (
            "controlnet_canny",
            {"control_scales": {"canny": float("inf")}},
            "control_scales.canny=inf: must be a number from 0 up",
        ),
        (
            "controlnet_canny",
            {"canny_thresholds": (200, 100)},
            "canny_thresholds=200,100: must be two rising numbers from 0 to 255",
        ),
    ],
)
def test_bad_settings(method: str, changes: dict[str, Any], message: str) -> None:
    assert refusal(method, **changes) == message


def test_an_unknown_scheduler_is_refused_with_the_known_ones() -> None:
    assert refusal("sdedit", scheduler="magic").startswith("scheduler=magic: is not known; choose one of ddim, ddpm, ")


@pytest.mark.parametrize("method", ["regenerate", "controlnet_canny", "instruct_pix2pix", "fixed_noise"])
def test_strength_is_nobody_else_s_business(method: str) -> None:
    check(EditMethod(method), [asked()], replace(SETTINGS, strength=0.0))
    check(EditMethod.copy, [asked()], replace(SETTINGS, steps=0, strength=7.0))


def test_the_smallest_strength_runs_a_step_and_less_runs_none() -> None:
    for steps in (*range(1, 301), 999, 1000, 4999):
        value = smallest_strength(steps)
        settings = replace(SETTINGS, steps=steps, strength=value)
        assert steps_run(EditMethod.sdedit, settings) == 1, steps
        assert steps_run(EditMethod.sdedit, replace(settings, strength=value - 2e-4)) == 0, steps
        assert 0 < value <= 1


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("copy", {"image": Image.new("RGB", (0, 5))}, "the image has no pixels (0×5)"),
        ("regenerate", {"image": Image.new("L", (16, 24))}, "the image is L, not RGB; convert it"),
        (
            "inpaint",
            {"mask": None},
            "method=inpaint needs a mask; give a picture that is white where it may change",
        ),
        ("inpaint", {"mask": mask().convert("RGB")}, "the mask is RGB, not 8-bit grey (L); convert it"),
        (
            "inpaint",
            {"mask": mask(size=(24, 16))},
            "the mask is 24×16 and the image 16×24; they must be of one size",
        ),
        (
            "inpaint",
            {"mask": mask().point(lambda value: value // 2)},
            "the mask is empty (nothing is white), so nothing may change; draw it, or copy",
        ),
        (
            "controlnet",
            {"controls": {"canny": Image.new("L", (16, 24)), "depth": Image.new("L", (32, 32))}},
            "the depth map is 32×32 and the image 16×24; they must be of one size",
        ),
    ],
)
def test_bad_pictures(method: str, changes: dict[str, Any], message: str) -> None:
    assert refusal(method, asked(**changes)) == f"room_01 at_night: {message}"


def test_a_full_mask_passes_since_light_falls_on_everything() -> None:
    check(EditMethod.inpaint, [asked(mask=mask((0, 0, 16, 24)))], SETTINGS)


def test_an_input_without_a_name_is_counted() -> None:
    with pytest.raises(UserError, match=r"^input 1: the image is L"):
        check(EditMethod.copy, [asked(name=""), asked(name="", image=Image.new("L", (3, 3)))], SETTINGS)


def test_masks_and_maps_that_a_method_does_not_read_may_be_anything() -> None:
    odd = asked(mask=mask(size=(3, 3), box=(0, 0, 1, 1)), controls={"canny": Image.new("L", (5, 5))})
    for method in ("copy", "regenerate", "sdedit", "instruct_pix2pix", "ddim_inversion", "controlnet_depth"):
        one = odd if method != "controlnet_depth" else replace(odd, controls=asked().controls)
        check(EditMethod(method), [one], SETTINGS)


def test_a_map_that_cannot_be_made_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no pose map is given, and only canny, depth are computed; give one"):
        check(EditMethod.controlnet, [asked()], replace(SETTINGS, controls=("pose",)))
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match=r"pip install 'boothlab\[edit\]'"):
        check(EditMethod.controlnet_canny, [asked(controls={})], SETTINGS)
    check(EditMethod.controlnet_canny, [asked()], SETTINGS)  # a given map needs no OpenCV


def test_the_mask_is_read_as_diffusers_reads_it() -> None:
    """From 128 up it may change."""
    levels = np.full((24, 16), 127, np.uint8)
    assert "is empty" in refusal("inpaint", asked(mask=Image.fromarray(levels)))
    levels[0, 0] = 128
    check(EditMethod.inpaint, [asked(mask=Image.fromarray(levels))], SETTINGS)

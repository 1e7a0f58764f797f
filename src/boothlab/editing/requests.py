"""What is asked of an editing method and what it hands back: plain data, without a model."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from PIL import Image

from boothlab.config_edit import Method

EditMethod = Method
"""The methods, as the config names them."""

COMPUTED_CONTROLS = ("canny", "depth")
"""The condition maps that are computed where none is given; maps of any other kind must be given."""

PARTIAL = frozenset({EditMethod.sdedit, EditMethod.inpaint, EditMethod.ddim_inversion})
"""The methods that `strength` speaks to: they run the last `int(steps * strength)` of their steps."""


@dataclass(frozen=True)
class EditSettings:
    """One set of parameters, the same for all images of a batch; a method ignores those that are not its own.

    `steps` at least 1; `strength` above 0 and at most 1 (sdedit, inpaint, ddim_inversion); `guidance_scale` at or below
    1 means none; `image_guidance_scale` at least 1 (instruct_pix2pix); `control_scales` by kind, 1.0 where a kind is
    missing; `scheduler` a name of SAMPLERS, None for the model's own; `controls` the kinds that `controlnet` and
    `t2i_adapter` combine; `canny_thresholds` lower and upper, 0 to 255.
    """

    steps: int = 30
    strength: float = 0.6
    guidance_scale: float = 7.5
    image_guidance_scale: float = 1.5
    control_scales: Mapping[str, float] = field(default_factory=dict)
    scheduler: str | None = None
    negative_prompt: str = ""
    controls: tuple[str, ...] = COMPUTED_CONTROLS
    canny_thresholds: tuple[int, int] = (100, 200)


@dataclass(frozen=True)
class EditInput:
    """One image to make: an RGB `image`, texts, an "L" `mask` (128 and above may change) and condition maps by kind.

    `name` says in messages which one it is.
    """

    image: Image.Image
    instruction: str | None = None
    source_caption: str | None = None
    target_caption: str | None = None
    mask: Image.Image | None = None
    controls: Mapping[str, Image.Image] = field(default_factory=dict)
    seed: int = 0
    name: str = ""


@dataclass(frozen=True)
class EditOutput:
    """One edited image, of the source's size.

    `source` is what the method itself makes of the source, where it does so: drawn from the source caption
    (fixed_noise), reconstructed (ddim_inversion). `conditions` are the maps that were used, `steps_run` the denoising
    steps of the edit, `notes` what was done that nobody asked for.
    """

    image: Image.Image
    source: Image.Image | None = None
    conditions: Mapping[str, Image.Image] = field(default_factory=dict)
    steps_run: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Needs:
    """What a method needs: `models` by the names of EDITORS, `given` of the input's texts, mask and maps."""

    models: tuple[str, ...] = ()
    given: tuple[str, ...] = ()

    @property
    def controls(self) -> tuple[str, ...]:
        """The kinds of condition maps among `given`."""
        return tuple(name for name in self.given if name not in ("instruction", *CAPTIONS, "mask"))


CAPTIONS = ("source_caption", "target_caption")


def control_kinds(method: EditMethod, settings: EditSettings) -> tuple[str, ...]:
    """The kinds of condition maps that a method follows, in order."""
    for family in ("controlnet", "t2i_adapter"):
        if method == family:
            return tuple(settings.controls)
        if method.startswith(f"{family}_"):
            return (method.removeprefix(f"{family}_"),)
    return ()


def needs(method: EditMethod, settings: EditSettings) -> Needs:
    """The extra models and the inputs that a method cannot do without.

    `inpaint` also takes an inpainting model if there is one, and depth maps that are not given need `depth_estimator`.
    """
    if kinds := control_kinds(method, settings):
        family = "controlnet" if method.startswith("controlnet") else "t2i_adapter"
        return Needs(tuple(f"{family}_{kind}" for kind in kinds), ("target_caption", *kinds))
    return {
        EditMethod.copy: Needs(),
        EditMethod.instruct_pix2pix: Needs(("instruct_pix2pix",), ("instruction",)),
        EditMethod.inpaint: Needs((), ("target_caption", "mask")),
        EditMethod.ddim_inversion: Needs((), CAPTIONS),
        EditMethod.fixed_noise: Needs((), CAPTIONS),
    }.get(method, Needs((), ("target_caption",)))


def steps_run(method: EditMethod, settings: EditSettings) -> int:
    """How many denoising steps an image takes, as diffusers counts them."""
    if method is EditMethod.copy:
        return 0
    return min(int(settings.steps * settings.strength), settings.steps) if method in PARTIAL else settings.steps

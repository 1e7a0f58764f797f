"""The config of `boothlab edit`: every setting of an editing run, with its one-line doc and its checks."""

from dataclasses import dataclass, field
from enum import StrEnum

from omegaconf import MISSING

from boothlab.config import (
    Accelerator,
    BackboneConfig,
    Checked,
    EncodersConfig,
    NoiseScheduler,
    PathsConfig,
    SweepConfig,
    TrackingConfig,
    need,
    need_seeds,
    need_threads,
)

CONTROLS = ("canny", "depth")


class Method(StrEnum):
    """How an image is edited. `copy` and `regenerate` are the two ends that every method lies between."""

    #: the source as it is
    copy = "copy"
    #: a new image from the target caption alone
    regenerate = "regenerate"
    #: image-to-image: noise of `strength`, then denoising by the target caption
    sdedit = "sdedit"
    controlnet_canny = "controlnet_canny"
    controlnet_depth = "controlnet_depth"
    #: several ControlNets at once, those of `controls`
    controlnet = "controlnet"
    t2i_adapter_canny = "t2i_adapter_canny"
    t2i_adapter_depth = "t2i_adapter_depth"
    #: several T2I-Adapters at once, those of `controls`
    t2i_adapter = "t2i_adapter"
    instruct_pix2pix = "instruct_pix2pix"
    #: only what the mask shows
    inpaint = "inpaint"
    #: the source inverted to noise by its caption, then denoised by the target's
    ddim_inversion = "ddim_inversion"
    #: source and target caption drawn from one frozen noise
    fixed_noise = "fixed_noise"


class Captions(StrEnum):
    """How much the captions of the dollhouse's scenes say."""

    #: the scene and the one fact that changes, as people write them
    short = "short"
    #: everything there is to say, so that whoever reads the target caption is told the whole answer
    full = "full"


@dataclass
class EditorsConfig(Checked):
    """Models that methods need beside the backbone: `dollhouse`, a local diffusers folder or a hub id; null: none."""

    #: ControlNet for Canny edges
    controlnet_canny: str | None = None
    #: ControlNet for depth
    controlnet_depth: str | None = None
    #: T2I-Adapter for Canny edges
    t2i_adapter_canny: str | None = None
    #: T2I-Adapter for depth
    t2i_adapter_depth: str | None = None
    #: InstructPix2Pix: a UNet that takes the image in further channels, or a pipeline with one
    instruct_pix2pix: str | None = None
    #: an inpainting UNet, or a pipeline with one; null inpaints with the backbone's own
    inpaint: str | None = None
    #: depth estimator of transformers, for images that come without a depth map
    depth_estimator: str | None = None
    #: hub revision of each, by the names above; what is not named takes the newest and records which one it was
    revisions: dict[str, str] = field(default_factory=dict)

    def check(self) -> None:
        known = [name for name in vars(self) if name != "revisions"]
        unknown = sorted(set(self.revisions) - set(known))
        need(not unknown, "editors.revisions", ", ".join(unknown), f"must be among {', '.join(known)}")


@dataclass
class AdapterConfig(Checked):
    """A LoRA file that the backbone wears while it edits."""

    #: run folder, LoRA folder or LoRA file
    path: str = MISSING
    #: scale of its UNet part
    unet_scale: float = 1.0
    #: scale of its text-encoder part
    text_encoder_scale: float = 1.0


@dataclass
class EditDataConfig(Checked):
    """The images and what is to become of them."""

    #: `dollhouse`, a folder of images, or `piebench:DIR`, `magicbrush:DIR`, `tedbench:DIR`
    images: str = "dollhouse"
    #: edits of a folder of images: a YAML or JSONL file
    file: str | None = None
    #: BLIP that writes a folder's missing source captions: `dollhouse`, a local folder or a hub id; null: the
    #: miniature's, for the miniature backbone alone; `none` leaves them missing
    captioner: str | None = None
    #: names of the edits to make; null makes all
    edits: list[str] | None = None
    #: at most so many images; null takes all
    limit: int | None = None
    #: hotel rooms of the dollhouse
    rooms: int = 8
    #: toys of the dollhouse
    toys: int = 0
    #: how much the captions of the dollhouse's scenes say
    captions: Captions = Captions.short
    #: refuse a set of edits that changes more than one thing
    one_change: bool = False

    def check(self) -> None:
        need(self.images.strip() != "", "data.images", repr(self.images), "must name a folder, or dollhouse")
        need(self.limit is None or self.limit >= 1, "data.limit", self.limit, "must be at least 1, or null")
        need(self.rooms >= 0, "data.rooms", self.rooms, "must not be negative")
        need(self.toys >= 0, "data.toys", self.toys, "must not be negative")
        dollhouse = self.images == "dollhouse"
        need(not dollhouse or self.rooms + self.toys > 0, "data.rooms", self.rooms, "without rooms or toys is nothing")
        need(
            self.file is None or (":" not in self.images and not dollhouse),
            "data.file",
            self.file,
            f"is for a folder of images; data.images={self.images} brings its own edits",
        )


@dataclass
class EditConfig(Checked):
    """One editing run: a method and its settings over images and edits."""

    #: the seed of the run; images have the seeds of `seeds`
    seed: int = 0
    #: folder of related runs under paths.outputs
    experiment: str = "edit"
    #: first part of the run folder's name
    name: str = MISSING
    #: how the images are edited
    method: Method = MISSING
    #: noise that is put on the source, 0 to 1 (sdedit, inpaint, ddim_inversion); the later of `steps` are run
    strength: float = 0.7
    #: sampler steps
    steps: int = 30
    #: classifier-free guidance by the text
    guidance_scale: float = 7.5
    #: guidance by the image (instruct_pix2pix); at least 1
    image_guidance_scale: float = 1.5
    #: weight of each control (controlnet, t2i_adapter)
    control_scale: float = 1.0
    #: the controls of `controlnet` and `t2i_adapter`: canny, depth
    controls: list[str] = field(default_factory=lambda: list(CONTROLS))
    #: lower and upper threshold of Canny's edges, 0 to 255
    canny_thresholds: list[int] = field(default_factory=lambda: [100, 200])
    #: sampler; null takes the model's own
    scheduler: NoiseScheduler | None = None
    #: what the images should not show
    negative_prompt: str = ""
    #: one image for each edit and seed
    seeds: list[int] = field(default_factory=lambda: [0])
    #: images at once
    batch_size: int = 8
    #: LoRA files worn meanwhile
    adapters: list[AdapterConfig] = field(default_factory=list)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    editors: EditorsConfig = field(default_factory=EditorsConfig)
    encoders: EncodersConfig = field(default_factory=EncodersConfig)
    data: EditDataConfig = field(default_factory=EditDataConfig)
    #: where to compute
    accelerator: Accelerator = Accelerator.auto
    #: devices to share the images among
    devices: int = 1
    #: CPU threads; null leaves torch's choice
    threads: int | None = None
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)

    def check(self) -> None:
        need(0 <= self.seed < 2**63, "seed", self.seed, "must not be negative, nor above 2^63-1")
        need(0 < self.strength <= 1, "strength", self.strength, "must be above 0 and at most 1")
        need(self.steps >= 1, "steps", self.steps, "must be at least 1")
        need(self.guidance_scale >= 0, "guidance_scale", self.guidance_scale, "must not be negative")
        need(self.image_guidance_scale >= 1, "image_guidance_scale", self.image_guidance_scale, "must be at least 1")
        need(self.control_scale >= 0, "control_scale", self.control_scale, "must not be negative")
        need(self.batch_size >= 1, "batch_size", self.batch_size, "must be at least 1")
        need(self.devices >= 1, "devices", self.devices, "must be at least 1")
        good = 0 < len(set(self.controls)) == len(self.controls) and set(self.controls) <= set(CONTROLS)
        need(good, "controls", self.controls, f"must be some of {', '.join(CONTROLS)}, none twice")
        low_high = len(self.canny_thresholds) == 2 and 0 <= self.canny_thresholds[0] < self.canny_thresholds[1] <= 255
        need(low_high, "canny_thresholds", self.canny_thresholds, "must be two numbers, as in [100,200]")
        need(0 < len(set(self.seeds)) == len(self.seeds), "seeds", self.seeds, "must name a seed, and none twice")
        need_seeds(self.seeds, "seeds")
        features = self.encoders.features
        need(features is None, "encoders.features", features, "measures likeness to a subject; an edit has none")
        need_threads(self.threads, "threads")

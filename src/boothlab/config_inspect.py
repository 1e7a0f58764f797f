"""The config of `boothlab inspect`: what is looked at in a finished training run, with one-line docs and checks."""

from dataclasses import dataclass, field
from enum import StrEnum

from omegaconf import MISSING

from boothlab.config import (
    Accelerator,
    BestBy,
    Checked,
    NoiseScheduler,
    PathsConfig,
    TrackingConfig,
    need,
    need_seeds,
    need_threads,
)


class InspectPart(StrEnum):
    """What there is to see, in the order of the page."""

    #: the forward process: a photo at growing noise
    noising = "noising"
    #: the predicted clean image at each denoising step, base beside adapter
    trajectory = "trajectory"
    #: photos through the VAE and back
    vae = "vae"
    #: where each token of the prompt is attended to
    attention = "attention"
    #: images × prompts in CLIP space, and zero-shot classes
    similarity = "similarity"
    #: the best of several seeds by CLIP
    best_of = "best_of"
    #: norm and rank of the adapter's update, layer by layer
    anatomy = "anatomy"
    #: the nearest photo of each generated image
    memorisation = "memorisation"
    #: what the adapter did to the bare class prompt
    drift = "drift"


@dataclass
class NoisingConfig(Checked):
    """The forward process on one of the subject's photos."""

    #: which photo, 0 is the first
    photo: int = 0
    #: noise levels that are shown, from t = 0 to the last
    columns: int = 8

    def check(self) -> None:
        need(self.photo >= 0, "noising.photo", self.photo, "must not be negative")
        need(2 <= self.columns <= 24, "noising.columns", self.columns, "must be 2 to 24")


@dataclass
class TrajectoryConfig(Checked):
    """The denoising of one image, of the base model and with the adapter."""

    #: steps that are shown, spread over all; every step is measured
    columns: int = 8

    def check(self) -> None:
        need(2 <= self.columns <= 24, "trajectory.columns", self.columns, "must be 2 to 24")


@dataclass
class SimilarityConfig(Checked):
    """CLIP's view of images and prompts."""

    #: class nouns to choose from; null takes the dollhouse's, or the run's own noun among everyday ones
    class_names: list[str] | None = None
    #: the sentence for a class, with {} for the noun
    template: str = "a photo of a {}"

    def check(self) -> None:
        names = self.class_names
        good = names is None or (len(set(names)) == len(names) >= 2 and all(name.strip() for name in names))
        need(good, "similarity.class_names", names, "must be two nouns or more, none twice or empty, or null")
        need(self.template.count("{}") == 1, "similarity.template", self.template, "must have {} once, for the noun")


@dataclass
class BestOfConfig(Checked):
    """Several seeds for one prompt, and the one that CLIP likes best."""

    #: seeds to choose from
    n: int = 8
    #: what decides
    by: BestBy = BestBy.balanced
    #: weight of CLIP-I in `balanced`, 0 to 1; CLIP-T has the rest
    weight: float = 0.5

    def check(self) -> None:
        need(2 <= self.n <= 256, "best_of.n", self.n, "must be 2 to 256")
        need(0 <= self.weight <= 1, "best_of.weight", self.weight, "must be from 0 to 1")


@dataclass
class DriftConfig(Checked):
    """The bare class prompt, with and without the adapter."""

    #: the prompt; null takes the run's prior.class_prompt
    prompt: str | None = None
    #: seeds, the same for both
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4, 5, 6, 7])

    def check(self) -> None:
        need(self.prompt is None or self.prompt.strip() != "", "drift.prompt", repr(self.prompt), "must not be empty")
        need(0 < len(set(self.seeds)) == len(self.seeds), "drift.seeds", self.seeds, "must name a seed, and none twice")
        need_seeds(self.seeds, "drift.seeds")


@dataclass
class InspectConfig(Checked):
    """A look inside a finished training run."""

    #: the run folder
    run: str = MISSING
    #: what to look at
    parts: list[InspectPart] = field(default_factory=lambda: list(InspectPart))
    #: what to leave out of `parts`
    without: list[InspectPart] = field(default_factory=list)
    #: prompt of trajectory, attention and best_of, with {token} and {class}; null takes the run's first
    prompt: str | None = None
    #: image seed of noising, trajectory and attention, and the first of best_of
    seed: int = 0
    #: scale of the UNet adapter
    unet_scale: float = 1.0
    #: scale of the text-encoder adapter
    text_encoder_scale: float = 1.0
    #: sampler; null as in the run
    scheduler: NoiseScheduler | None = None
    #: sampler steps; null as in the run
    steps: int | None = None
    #: classifier-free guidance; null as in the run
    guidance_scale: float | None = None
    noising: NoisingConfig = field(default_factory=NoisingConfig)
    trajectory: TrajectoryConfig = field(default_factory=TrajectoryConfig)
    similarity: SimilarityConfig = field(default_factory=SimilarityConfig)
    best_of: BestOfConfig = field(default_factory=BestOfConfig)
    drift: DriftConfig = field(default_factory=DriftConfig)
    #: where it goes; null means inspect/ in the run folder
    out: str | None = None
    #: where to compute
    accelerator: Accelerator = Accelerator.auto
    #: CPU threads; null leaves torch's choice
    threads: int | None = None
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)

    def check(self) -> None:
        known = ", ".join(InspectPart)
        need(len(self.chosen) > 0, "parts", self.parts, f"nothing is left to look at; parts are {known}")
        need(self.prompt is None or self.prompt.strip() != "", "prompt", repr(self.prompt), "must not be empty")
        need(0 <= self.seed < 2**63, "seed", self.seed, "must not be negative, nor above 2^63-1")
        need(self.steps is None or self.steps >= 1, "steps", self.steps, "must be at least 1, or null")
        good = self.guidance_scale is None or self.guidance_scale >= 0
        need(good, "guidance_scale", self.guidance_scale, "must not be negative, or null")
        need_threads(self.threads, "threads")

    @property
    def chosen(self) -> list[InspectPart]:
        """The parts that are made, in the order of the page."""
        return [part for part in InspectPart if part in self.parts and part not in self.without]

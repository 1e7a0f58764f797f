"""The parts that more than one command needs: device, backbone, sampler, adapters, encoders, tracker."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from boothlab.building.shared import encoder_identity, shared_backbone, shared_clip, shared_dino, shared_features
from boothlab.cache import Cache
from boothlab.config import (
    Accelerator,
    BackboneConfig,
    EncodersConfig,
    LoraConfig,
    Precision,
    SamplerConfig,
    SubjectConfig,
    TrackingConfig,
)
from boothlab.diffusion.backbone import DOLLHOUSE, Backbone
from boothlab.diffusion.lora import attach, trainable
from boothlab.diffusion.sampling import Sampler, SamplerSettings
from boothlab.diffusion.shared_sampling import SharedSampler
from boothlab.errors import UserError
from boothlab.evaluation import efficientnet
from boothlab.evaluation.loading import CLIP_ID, DINO_ID
from boothlab.evaluation.scoring import Scorer
from boothlab.file_hashes import remembered_sha256
from boothlab.files import sha256_file
from boothlab.images.load import to_tensor
from boothlab.progress import Reporter
from boothlab.ranks import ALONE, Ranks
from boothlab.tracking.run import Tracker
from boothlab.tracking.wandb import WandbOptions


def build_device(accelerator: Accelerator, ranks: Ranks = ALONE) -> torch.device:
    """The torch device of this process. Raises UserError when the one asked for, or one for each rank, is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = accelerator.value
    if accelerator is Accelerator.auto:
        name = next(name for name, found in there.items() if found)
    if not there[name]:
        raise UserError(f"accelerator={name}: this machine has none; use accelerator=auto or cpu")
    if name == "cuda":  # what deterministic cuBLAS needs, and needs before its first use
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if ranks.alone:
        return torch.device(name)
    count = {"cuda": torch.cuda.device_count(), "mps": 1}.get(name, ranks.size)
    if count < ranks.size:
        raise UserError(f"trainer.devices={ranks.size}: this machine has {count} of {name}; ask for no more than that")
    device = torch.device(name) if name == "cpu" else torch.device(name, ranks.rank)
    if name == "cuda":
        torch.cuda.set_device(device)
    return device


def set_threads(threads: int | None, ranks: Ranks = ALONE) -> None:
    """Pin torch's CPU threads, since another number can change the last bits. By default ranks share the cores."""
    if threads is not None:
        torch.set_num_threads(threads)
    elif not ranks.alone:
        torch.set_num_threads(max(1, torch.get_num_threads() // ranks.size))


def set_determinism(deterministic: bool) -> None:
    """Bit-exact algorithms or not, from the first image on: Lightning would set it only when training begins."""
    torch.use_deterministic_algorithms(deterministic)
    if deterministic:
        torch.backends.cudnn.benchmark = False


def build_backbone(config: BackboneConfig, device: torch.device) -> Backbone:
    """The frozen diffusion model on its device in its precision."""
    if config.precision is Precision.fp16 and device.type == "cpu":
        raise UserError("backbone.precision=fp16: CPUs have no float16 arithmetic worth using; use fp32 or bf16")
    return shared_backbone(config, device)


def build_sampler(backbone: Backbone, settings: SamplerSettings, ranks: Ranks) -> Sampler:
    """What draws with a backbone, on as many devices as there are."""
    return Sampler(backbone, settings) if ranks.alone else SharedSampler(backbone, settings, ranks)


def build_sampler_settings(config: SamplerConfig) -> SamplerSettings:
    """How images are drawn."""
    return SamplerSettings(
        config.scheduler.value, config.steps, config.guidance_scale, config.negative_prompt, config.batch_size
    )


def attach_adapters(backbone: Backbone, config: LoraConfig, seed: int) -> dict[str, int]:
    """Attach what the config asks for; returns the trainable parameters of each component."""
    common: dict[str, Any] = {"rank": config.rank, "alpha": config.effective_alpha, "dropout": config.dropout}
    common |= {"init": config.init.value, "seed": seed, "variant": config.variant.value}
    attach(backbone.unet, "unet", targets=config.unet_targets, **common)
    if config.train_text_encoder:
        for name, encoder in backbone.text_encoders.items():
            attach(encoder, name, targets=config.text_encoder_targets, **common)
    networks = {"unet": backbone.unet, **backbone.text_encoders}
    return {name: sum(value.numel() for value in trainable(network).values()) for name, network in networks.items()}


def scorer_suffix(config: EncodersConfig) -> str:
    """What tells scores of other encoders from the published ones; empty for CLIP ViT-B/32 with DINO ViT-S/16."""
    if (config.clip, config.dino) == (CLIP_ID, DINO_ID):
        return ""
    names = sorted({Path(source).name for source in (config.clip, config.dino)})
    return "+".join(names)


def encoder_sources(config: EncodersConfig) -> dict[str, str]:
    """Folder or hub id of each encoder; `dollhouse` is the folder that ships with the package."""
    return {
        name: str(DOLLHOUSE / name) if source == "dollhouse" else source
        for name, source in (("clip", config.clip), ("dino", config.dino))
    }


def remembering(cache: Cache) -> Callable[[Path], str]:
    """Hashes files for a run that begins. A rerun and its check have caches of their own, and look at every byte."""
    return partial(remembered_sha256, folder=cache.root / "file-hashes")


def encoder_identities(
    config: EncodersConfig, hash_file: Callable[[Path], str] = sha256_file
) -> dict[str, dict[str, str]]:
    """What each encoder is, for the manifest: hashes of its files, or hub id and commit. Call once they are loaded."""
    sources = encoder_sources(config)
    found = {
        "clip": encoder_identity(sources["clip"], config.clip_revision, hash_file),
        "dino": encoder_identity(sources["dino"], config.dino_revision, hash_file),
    }
    if config.features is not None:
        found["features"] = {config.features: efficientnet.SHA256}
    return found


def build_scorer(
    config: EncodersConfig, subject: SubjectConfig, images: Sequence[Image.Image], device: torch.device
) -> Scorer:
    """The frozen encoders with the subject's photos as references."""
    sources = encoder_sources(config)
    clip = shared_clip(sources["clip"], config.clip_revision, device)
    dino = shared_dino(sources["dino"], config.dino_revision, device)
    features = None if config.features is None else shared_features(device)
    references = [to_tensor(image) for image in images]
    return Scorer(clip, dino, references, subject.token, subject.class_noun, features)


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


def warn_of_long_prompts(backbone: Backbone, prompts: Sequence[str], reporter: Reporter) -> None:
    """Name each prompt whose end the text encoder will not read (SimpleTuner #283)."""
    for prompt, length, limit in backbone.truncated(sorted(set(prompts))):
        reporter.warn(f"the text encoder reads {limit} tokens and cuts the last {length - limit} of {prompt!r}")

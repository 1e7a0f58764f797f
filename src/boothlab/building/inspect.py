"""What `boothlab inspect` looks at: a finished run's backbone, adapter, photos, encoders and samples, as parts."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from boothlab.building.parts import (
    build_backbone,
    build_device,
    build_sampler_settings,
    build_scorer,
    build_tracker,
    encoder_identities,
    scorer_suffix,
    set_determinism,
    set_threads,
)
from boothlab.building.photos import build_subject, fill
from boothlab.building.shared import shared_identity
from boothlab.cache import Cache, cache_root
from boothlab.config import SamplerConfig, TrainConfig
from boothlab.config_inspect import InspectConfig, InspectPart
from boothlab.diffusion.backbone import Backbone
from boothlab.diffusion.lora import find_adapter, load_adapter, read_metadata
from boothlab.diffusion.sampling import Request
from boothlab.dollhouse.scenes import CLASSES
from boothlab.dreambooth.checkpoints import folder_name
from boothlab.errors import UserError
from boothlab.evaluation.results import GeneratedImage
from boothlab.files import sha256_file, shown
from boothlab.images.load import load_image, to_tensor
from boothlab.inspecting.anatomy import anatomy
from boothlab.inspecting.attention_maps import attention
from boothlab.inspecting.bench import Bench
from boothlab.inspecting.best_of import best_of
from boothlab.inspecting.denoising import trajectory
from boothlab.inspecting.drift import drift
from boothlab.inspecting.memorisation import memorisation
from boothlab.inspecting.noising import noising
from boothlab.inspecting.run import InspectRun
from boothlab.inspecting.sections import Section
from boothlab.inspecting.similarity import similarity
from boothlab.inspecting.vae import vae
from boothlab.progress import Reporter
from boothlab.tracking.manifest import config_hash
from boothlab.tracking.provenance import machine, package_versions
from boothlab.tracking.redaction import redact

#: what a subject may be taken for, where the world is not the dollhouse's
EVERYDAY = ("person", "dog", "cat", "toy", "car", "chair", "bottle", "bag", "shoe", "flower", "building", "landscape")


def build_inspect_run(
    config: InspectConfig,
    trained: TrainConfig,
    trained_dir: Path,
    resolved: Mapping[str, Any],
    folder: Path,
    reporter: Reporter,
) -> InspectRun:
    """Everything one inspection needs. `trained` is the config of the run in `trained_dir`; UserError for bad input."""
    set_threads(config.threads)
    set_determinism(trained.trainer.deterministic)
    device, cache = build_device(config.accelerator), Cache(cache_root(config.paths.cache))
    adapter = find_adapter(trained_dir)
    step = step_of(adapter)
    subject = build_subject(trained.subject, cache)
    if config.noising.photo >= len(subject.images) and InspectPart.noising in config.chosen:
        raise UserError(f"noising.photo={config.noising.photo}: there are {len(subject.images)} photos, the first is 0")
    backbone = build_backbone(trained.backbone, device)
    prompt = _prompt(config, trained)
    drift_prompt = fill(config.drift.prompt or trained.prior.class_prompt, trained.subject)
    _refuse_long({"prompt": prompt, "drift.prompt": drift_prompt}, backbone)
    load_adapter(backbone, adapter, config.unet_scale, config.text_encoder_scale)
    sampler = _changed(trained.evaluation.sampler, config)
    bench = Bench(
        backbone=backbone,
        settings=build_sampler_settings(sampler),
        scorer=build_scorer(trained.encoders, trained.subject, subject.images, device),
        photos=subject.images,
        prompt=prompt,
        instance_prompt=subject.items[0].prompt,
        class_prompt=drift_prompt,
        seed=config.seed,
        suffix=scorer_suffix(trained.encoders),
        load_samples=_sample_loader(trained, trained_dir, step, config),
    )
    makers = _makers(bench, config, trained)
    record = {
        "run": trained_dir.name,
        "adapter": sha256_file(adapter),
        "config": redact(dict(resolved)),
        "config_hash": identity(resolved),
        "weights": {"backbone": shared_identity(trained.backbone), **encoder_identities(trained.encoders)},
        "versions": package_versions(),
        "machine": machine(str(device)),
        "prompt": prompt,
    }
    name = f"{trained_dir.name}-{folder.name}"
    return InspectRun(
        parts={part.value: makers[part] for part in config.chosen},
        folder=folder,
        title=trained_dir.name,
        lead=_lead(trained, step, bench),
        settings=_settings(trained, config, sampler, prompt),
        record=record,
        step=step,
        tracker=build_tracker(config.tracking, name, "inspect", dict(resolved), folder, None),
        reporter=reporter,
    )


#: keys of an inspection that cannot change what it shows, or say only where the run lies
NOT_IDENTITY = ("run", "out", "tracking", "paths", "accelerator", "threads")


def identity(resolved: Mapping[str, Any]) -> str:
    """What makes an inspection of one run the same inspection: the hash of its config."""
    return config_hash(resolved, NOT_IDENTITY)


def step_of(adapter: Path) -> int:
    """The optimizer step at which a run's adapter was saved. UserError for a file that is not a run's."""
    step = read_metadata(adapter).get("step", 0)
    if not isinstance(step, int) or isinstance(step, bool) or step < 1:
        raise UserError(f"{shown(adapter)}: does not say after how many steps it was saved; it is not a run's adapter")
    return step


def _makers(bench: Bench, config: InspectConfig, trained: TrainConfig) -> dict[InspectPart, Callable[[], Section]]:
    nouns = class_names(config, trained)
    drift_config = dataclasses.replace(config.drift, prompt=bench.class_prompt)
    return {
        InspectPart.noising: lambda: noising(bench, config.noising),
        InspectPart.trajectory: lambda: trajectory(bench, config.trajectory),
        InspectPart.vae: lambda: vae(bench),
        InspectPart.attention: lambda: attention(bench),
        InspectPart.similarity: lambda: similarity(bench, config.similarity, nouns),
        InspectPart.best_of: lambda: best_of(bench, config.best_of),
        InspectPart.anatomy: lambda: anatomy(bench),
        InspectPart.memorisation: lambda: memorisation(bench),
        InspectPart.drift: lambda: drift(bench, drift_config),
    }


def class_names(config: InspectConfig, trained: TrainConfig) -> list[str]:
    """The classes of the zero-shot table: those asked for, the dollhouse's, or the run's noun among everyday ones."""
    if config.similarity.class_names is not None:
        return list(config.similarity.class_names)
    others = CLASSES if trained.backbone.source == "dollhouse" else EVERYDAY
    return list(dict.fromkeys([trained.subject.class_noun, *others]))


def _prompt(config: InspectConfig, trained: TrainConfig) -> str:
    prompts = trained.evaluation.prompts
    asked = config.prompt or (prompts[0] if prompts else trained.subject.instance_prompt)
    return fill(asked, trained.subject)


def _refuse_long(prompts: Mapping[str, str], backbone: Backbone) -> None:
    for key, prompt in prompts.items():
        for _, length, limit in backbone.truncated([prompt]):
            raise UserError(
                f"{key}={shown(prompt)!r}: has {length} tokens and the text encoder reads {limit}; shorten it"
            )


def _changed(sampler: SamplerConfig, config: InspectConfig) -> SamplerConfig:
    """The run's sampler with what the command line says otherwise."""
    asked: dict[str, Any] = {
        "scheduler": config.scheduler,
        "steps": config.steps,
        "guidance_scale": config.guidance_scale,
    }
    return dataclasses.replace(sampler, **{key: value for key, value in asked.items() if value is not None})


def _sample_loader(
    trained: TrainConfig, trained_dir: Path, step: int, config: InspectConfig
) -> Callable[[Bench], list[GeneratedImage]]:
    """The run's images of its last evaluation, if they are what the adapter draws now; else they are drawn."""
    prompts = [fill(prompt, trained.subject) for prompt in trained.evaluation.prompts]
    wanted = [(index, prompt, seed) for index, prompt in enumerate(prompts) for seed in trained.evaluation.seeds]
    folder = trained_dir / "samples" / folder_name(step)
    paths = [folder / f"prompt{index:02d}_seed{seed}.png" for index, _, seed in wanted]
    changed = (config.unet_scale, config.text_encoder_scale) != (1.0, 1.0)
    changed = changed or _changed(trained.evaluation.sampler, config) != trained.evaluation.sampler

    def samples(bench: Bench) -> list[GeneratedImage]:
        if not changed and all(path.is_file() for path in paths):
            pixels = [to_tensor(load_image(path)) for path in paths]
        else:
            pixels = list(bench.draw([Request(prompt, seed) for _, prompt, seed in wanted]))
        return [GeneratedImage(*which, image) for which, image in zip(wanted, pixels, strict=True)]

    return samples


def _lead(trained: TrainConfig, step: int, bench: Bench) -> str:
    lora = trained.lora
    line = f"{trained.subject.token} {trained.subject.class_noun}, {len(bench.photos)} photos, "
    line += f"on {trained.backbone.name}; rank {lora.rank}, alpha {lora.effective_alpha:g}, "
    line += f"learning rate {trained.optim.lr:g}, after {step} steps."
    if bench.suffix:
        line += f" Scored with the {bench.suffix} encoders: not the published CLIP and DINO."
    return line


def _settings(
    trained: TrainConfig, config: InspectConfig, sampler: SamplerConfig, prompt: str
) -> list[tuple[str, str]]:
    scales = f"{config.unet_scale:g} / {config.text_encoder_scale:g}"
    return [
        ("prompt", prompt),
        ("seed", str(config.seed)),
        ("sampler", f"{sampler.scheduler.value}, {sampler.steps} steps, guidance {sampler.guidance_scale:g}"),
        ("adapter scales", scales),
        ("encoders", f"{trained.encoders.clip}, {trained.encoders.dino}"),
    ]

"""A whole training run from its config, in the order that keeps its seed streams apart."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import boothlab
from boothlab.building.methods import check_optimizer, method_settings, put_on, words_plan
from boothlab.building.parts import (
    build_backbone,
    build_device,
    build_sampler,
    build_sampler_settings,
    build_scorer,
    build_tracker,
    encoder_identities,
    remembering,
    scorer_suffix,
    set_determinism,
    set_threads,
    warn_of_long_prompts,
)
from boothlab.building.photos import (
    Subject,
    build_data,
    build_prior,
    build_subject,
    caption_hashes,
    fill,
    say_what_is_captioned,
    say_what_the_audit_found,
)
from boothlab.building.shared import shared_identity
from boothlab.building.tag_captions import tagger_identity
from boothlab.cache import Cache, cache_root
from boothlab.config import NOT_HASHED, BackboneConfig, Compile, Precision, TrainConfig
from boothlab.diffusion.backbone import Backbone
from boothlab.diffusion.compiled import check_gradients, compile_unet
from boothlab.diffusion.shared_sampling import dismiss
from boothlab.dreambooth.checkpoints import newest_checkpoint
from boothlab.dreambooth.data import TrainingData, TrainingImage
from boothlab.dreambooth.devices import strategy_arguments
from boothlab.dreambooth.evaluate import BaseSamples, EvaluationPlan, Evaluator
from boothlab.dreambooth.module import DreamBoothModule, WholeNetworks
from boothlab.dreambooth.optimizers import EXTRAS
from boothlab.dreambooth.run import TrainingRun
from boothlab.errors import UserError
from boothlab.files import clear_run, shown
from boothlab.packing.pack import in_a_pack
from boothlab.progress import Reporter
from boothlab.ranks import ALONE, Ranks, Share
from boothlab.tracking.manifest import config_hash, read_manifest, write_manifest
from boothlab.tracking.redaction import redact
from boothlab.tracking.run import Tracker

LIGHTNING_PRECISION = {Precision.fp32: "32-true", Precision.bf16: "bf16-mixed", Precision.fp16: "16-mixed"}


def build_evaluator(
    config: TrainConfig, backbone: Backbone, subject: Subject, run_dir: Path, base: BaseSamples, ranks: Ranks = ALONE
) -> Evaluator | None:
    """What draws and scores, or None when evaluation is off."""
    if not config.evaluation.enabled:
        return None
    plan = EvaluationPlan(
        prompts=tuple(fill(prompt, config.subject) for prompt in config.evaluation.prompts),
        seeds=tuple(config.evaluation.seeds),
        class_prompt=fill(config.prior.class_prompt, config.subject),
        pres_images=config.evaluation.pres_images,
        metric_suffix=scorer_suffix(config.encoders),
    )
    scorer = build_scorer(config.encoders, config.subject, subject.images, backbone.device)
    sampler = build_sampler(backbone, build_sampler_settings(config.evaluation.sampler), ranks)
    return Evaluator(sampler, scorer, plan, subject.images, run_dir, base)


def adapter_settings(config: TrainConfig, full_hash: str, run_dir: Path, step: int) -> dict[str, Any]:
    """What the adapter file says about itself; `backbone` is what `boothlab sample` loads it on."""
    return {
        "boothlab_version": boothlab.__version__,
        "run": run_dir.name,
        "config_hash": full_hash,
        "step": step,
        "seed": config.seed,
        "backbone": _backbone_settings(config.backbone),
        "rank": config.lora.rank,
        "alpha": config.lora.effective_alpha,
        "train_text_encoder": config.lora.train_text_encoder,
        "token": config.subject.token,
        "class_noun": config.subject.class_noun,
        "instance_prompt": config.subject.instance_prompt,
        "prior_preservation": config.prior.enabled,
        "lr": config.optim.lr,
        **method_settings(config),
    }


def _backbone_settings(config: BackboneConfig) -> dict[str, Any]:
    # Redacted: the file goes around the world.
    return redact({**vars(config), "precision": config.precision.value})


def build_module(
    config: TrainConfig,
    backbone: Backbone,
    data: TrainingData,
    resume: tuple[Path, int] | None,
    whole: WholeNetworks | None,
    ranks: Ranks,
) -> DreamBoothModule:
    """What Lightning trains, of which this process computes its share."""
    if config.trainer.gradient_checkpointing:
        backbone.unet.enable_gradient_checkpointing()
    if config.trainer.compile is not Compile.none:
        compile_unet(backbone, config.trainer.compile.value)
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
        words=words_plan(config),
        whole=whole,
        share=Share.of(ranks, config.data.batch_size, config.trainer.sharded),
    )
    if config.trainer.compile is not Compile.none:
        samples = config.data.batch_size * (2 if data.prior else 1)
        check_gradients(backbone, samples // module.share.rows)
    return module


def lightning_arguments(config: TrainConfig, device: torch.device, module: DreamBoothModule) -> dict[str, Any]:
    """Devices and precision as Lightning wants them."""
    return {
        "accelerator": {"cuda": "gpu"}.get(device.type, device.type),
        "precision": LIGHTNING_PRECISION[config.backbone.precision],
        **strategy_arguments(module.share, module.trains_text),
    }


def _resume_point(
    run_dir: Path,
    inputs: Mapping[str, str],
    captions: Mapping[str, str],
    backbone: Mapping[str, str],
    reporter: Reporter,
) -> tuple[Path, int] | None:
    """The newest whole checkpoint with its step.

    Raises UserError if photos, captions or weights are not those it began with.
    """
    resume = newest_checkpoint(run_dir)
    if resume is None:
        return None
    begun = read_manifest(run_dir) if (run_dir / "manifest.json").exists() else {}
    noted = begun.get("captions", captions) or {}  # manifests of format 1 had none
    weights: Any = (begun.get("weights") or {}).get("backbone")
    before = {**_by_name({**(begun.get("inputs") or {}), **noted}), **(weights if isinstance(weights, dict) else {})}
    now = {**_by_name({**inputs, **captions}), **backbone}
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if before and changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise UserError(
            f"{shown(run_dir)} cannot be resumed: {shown(changed[0])}{more} changed since it was begun; "
            "paths.overwrite=true starts it anew"
        )
    reporter.say(f"resuming after step {resume[1]}")
    return resume


def _by_name(inputs: Mapping[str, str]) -> dict[str, str]:
    """Without the folder: photos that were moved, or lie in another cache, are the same photos."""
    return {Path(path).name: digest for path, digest in inputs.items()}


def build_training_run(
    config: TrainConfig,
    resolved: dict[str, Any],
    run_dir: Path,
    command: Sequence[str],
    reporter: Reporter,
    parent: Mapping[str, Any] | None = None,
    ranks: Ranks = ALONE,
) -> TrainingRun:
    """Everything one training run needs; writes the manifest. `parent` is what it says of the run that this repeats.

    Other ranks, if there are any, are in `build_follower` meanwhile.
    """
    set_threads(config.trainer.threads, ranks)
    set_determinism(config.trainer.deterministic)
    device, cache = build_device(config.trainer.accelerator, ranks), Cache(cache_root(config.paths.cache))
    check_optimizer(config, device.type)
    subject = build_subject(config.subject, cache)
    say_what_the_audit_found(subject.audit, reporter)
    say_what_is_captioned(config.subject, subject, reporter)
    backbone = build_backbone(config.backbone, device)
    identity = shared_identity(config.backbone, remembering(cache))
    evaluator = build_evaluator(config, backbone, subject, run_dir, BaseSamples(cache, identity), ranks)
    prior = build_prior(config, backbone, cache, identity, reporter, ranks)
    data = build_data(config, backbone, subject, prior, cache, identity)
    dismiss(ranks)
    warn_of_long_prompts(backbone, [*data.prompts, *(evaluator.plan.all_prompts if evaluator else ())], reporter)
    counts, whole = put_on(config, backbone)
    inputs, full_hash = _inputs(subject, prior), config_hash(resolved, NOT_HASHED)
    captions = caption_hashes(config.subject, subject.audit)
    if config.paths.overwrite:  # only now: whatever is wrong with the input is known, and nothing was lost by it
        clear_run(run_dir)
    resume = ranks.broadcast(_resume_point(run_dir, inputs, captions, identity, reporter))
    module = build_module(config, backbone, data, resume, whole, ranks)
    write_manifest(
        run_dir,
        resolved_config=resolved,
        config_hash=full_hash,
        seed=config.seed,
        inputs=inputs,
        captions=captions,
        weights={
            "backbone": identity,
            **(encoder_identities(config.encoders, remembering(cache)) if evaluator else {}),
            **tagger_identity(config.subject),
        },
        command=command,
        device=str(device),
        not_hashed=NOT_HASHED,
        parent=parent,
        packed=in_a_pack(),
        devices=ranks.size,
        libraries=[EXTRAS[config.optim.optimizer][0]] if config.optim.optimizer in EXTRAS else [],
    )
    resume_step = resume[1] if resume else None
    tracker = build_tracker(config.tracking, run_dir.name, config.experiment, resolved, run_dir, resume_step)
    _note_counts(tracker, counts, subject, prior)
    return TrainingRun(
        run_dir=run_dir,
        module=module,
        evaluator=evaluator,
        trainer_config=config.trainer,
        evaluate_every=config.evaluation.every or config.trainer.checkpoint_every,
        lightning=lightning_arguments(config, device, module),
        tracker=tracker,
        reporter=reporter,
        settings=lambda step: adapter_settings(config, full_hash, run_dir, step),
        resume_from=resume,
    )


def _note_counts(tracker: Tracker, trained: dict[str, int], subject: Subject, prior: Sequence[TrainingImage]) -> None:
    tracker.note("counts", {f"trainable_parameters/{name}": count for name, count in trained.items()})
    tracker.note(
        "counts",
        {"photos": len(subject.items), "class_images": len(prior), "rejected_files": len(subject.audit.rejected)},
    )


def _inputs(subject: Subject, prior: Sequence[TrainingImage]) -> dict[str, str]:
    photos = {str(photo.path): photo.sha256 for photo in subject.audit.accepted}
    return photos | {f"class_images/{index:04d}": item.sha256 for index, item in enumerate(prior)}

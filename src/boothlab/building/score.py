"""What `boothlab score` does: a trained run's evaluation again, with its adapter at other scales or another sampler."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boothlab.building.parts import (
    build_backbone,
    build_device,
    build_tracker,
    encoder_identities,
    set_determinism,
    set_threads,
)
from boothlab.building.photos import build_subject, caption_hashes
from boothlab.building.shared import shared_identity
from boothlab.building.training import build_evaluator
from boothlab.cache import Cache, cache_root
from boothlab.config import NOT_HASHED, EvaluationConfig, SamplerConfig, ScoreConfig, TrainConfig
from boothlab.diffusion.backbone import Backbone
from boothlab.diffusion.formats.container import adapter_digest
from boothlab.diffusion.lora import read_metadata
from boothlab.diffusion.trained import Trained, find_trained, load_trained
from boothlab.dreambooth.evaluate import BaseSamples, Evaluator, evaluate_into
from boothlab.errors import UserError, memory_explained
from boothlab.files import shown
from boothlab.progress import Reporter
from boothlab.tracking.manifest import config_hash, write_manifest
from boothlab.tracking.run import Tracker


@dataclass
class ScoreRun:
    """One adapter at one pair of scales under one sampler. `step` is the adapter's own."""

    backbone: Backbone
    evaluator: Evaluator
    tracker: Tracker
    reporter: Reporter
    trained: Trained
    step: int
    unet_scale: float
    text_encoder_scale: float

    def execute(self) -> None:
        """Score the bare backbone (step 0, the floor), then the adapter. Call inside the open tracker."""
        remedy = "free some, or score a run with fewer evaluation.sampler.batch_size images at a time"
        with memory_explained(lambda: "while scoring", remedy):
            self.evaluator.note_ceilings(self.tracker)
            evaluate_into(self.evaluator, 0, self.tracker, self.reporter)
            load_trained(self.backbone, self.trained, self.unet_scale, self.text_encoder_scale)
            evaluate_into(self.evaluator, self.step, self.tracker, self.reporter)


def _changed(evaluation: EvaluationConfig, config: ScoreConfig) -> EvaluationConfig:
    """The run's evaluation with what the command line says otherwise."""
    asked: dict[str, Any] = {
        "scheduler": config.scheduler,
        "steps": config.steps,
        "guidance_scale": config.guidance_scale,
        "negative_prompt": config.negative_prompt,
    }
    sampler: SamplerConfig = dataclasses.replace(
        evaluation.sampler, **{key: value for key, value in asked.items() if value is not None}
    )
    return dataclasses.replace(
        evaluation,
        enabled=True,
        sampler=sampler,
        prompts=config.prompts if config.prompts is not None else evaluation.prompts,
        seeds=config.image_seeds if config.image_seeds is not None else evaluation.seeds,
    )


def build_score_run(
    config: ScoreConfig,
    trained: TrainConfig,
    trained_dir: Path,
    resolved: Mapping[str, Any],
    run_dir: Path,
    command: Sequence[str],
    reporter: Reporter,
    parent: Mapping[str, Any] | None = None,
) -> ScoreRun:
    """Everything one scoring needs; writes the manifest. `trained` is the config of the run in `trained_dir`.

    `parent` is what the manifest says of the scoring that this one repeats.
    """
    set_threads(config.threads)
    set_determinism(trained.trainer.deterministic)
    device, cache = build_device(config.accelerator), Cache(cache_root(config.paths.cache))
    left = find_trained(trained_dir)
    adapter = left.main
    step = read_metadata(adapter).get("step", 0)
    if not isinstance(step, int) or isinstance(step, bool) or step < 1:
        raise UserError(f"{shown(adapter)}: does not say after how many steps it was saved; it is not a run's adapter")
    subject = build_subject(trained.subject, cache)
    backbone, identity = build_backbone(trained.backbone, device), shared_identity(trained.backbone)
    asked = dataclasses.replace(trained, evaluation=_changed(trained.evaluation, config))
    evaluator = build_evaluator(asked, backbone, subject, run_dir, BaseSamples(cache, identity))
    assert evaluator is not None
    write_manifest(
        run_dir,
        resolved_config=resolved,
        config_hash=config_hash(resolved, NOT_HASHED),
        seed=config.seed,
        inputs={str(photo.path): photo.sha256 for photo in subject.audit.accepted},
        captions=caption_hashes(trained.subject, subject.audit),
        weights={
            "backbone": identity,
            **encoder_identities(trained.encoders),
            "adapter": {str(path): adapter_digest(path) for path in left.files},
        },
        command=command,
        device=str(device),
        not_hashed=NOT_HASHED,
        scored=dataclasses.asdict(trained),
        parent=parent,
    )
    tracker = build_tracker(config.tracking, run_dir.name, config.experiment, dict(resolved), run_dir, None)
    return ScoreRun(backbone, evaluator, tracker, reporter, left, step, config.unet_scale, config.text_encoder_scale)

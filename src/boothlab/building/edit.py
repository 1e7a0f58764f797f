"""What `boothlab edit` does: images and edits, a method with its models, scorer and tracker, from an EditConfig."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from boothlab.building.caption import MadeCaptions, captioner_identity, missing_captions
from boothlab.building.parts import (
    build_backbone,
    build_device,
    build_tracker,
    encoder_identities,
    encoder_sources,
    scorer_suffix,
    set_determinism,
    set_threads,
)
from boothlab.building.shared import Kept, shared_clip, shared_dino, shared_identity
from boothlab.config import NOT_HASHED
from boothlab.config_edit import Captions, EditConfig, EditDataConfig
from boothlab.diffusion.backbone import DOLLHOUSE as WEIGHTS
from boothlab.diffusion.backbone import Backbone
from boothlab.diffusion.formats.container import adapter_digest
from boothlab.diffusion.lora import find_adapter
from boothlab.editing.dollhouse_tasks import dollhouse_tasks
from boothlab.editing.drawing import Canvas, items_of
from boothlab.editing.edits import Edit, EditTask
from boothlab.editing.folder_tasks import folder_tasks
from boothlab.editing.magicbrush import magicbrush_tasks
from boothlab.editing.methods import EditMethod, EditParts, EditSettings, load_edit_adapters, needs
from boothlab.editing.piebench import piebench_tasks
from boothlab.editing.run import EDITED_STEP, EditRun, Reader
from boothlab.editing.series import check_series
from boothlab.editing.tedbench import tedbench_tasks
from boothlab.errors import UserError
from boothlab.evaluation.edit_scores import EditScorer
from boothlab.files import clear_run, shown
from boothlab.progress import Reporter
from boothlab.tracking.manifest import config_hash, read_manifest, write_manifest

DOLLHOUSE = "dollhouse"
_parts: Kept[EditParts] = Kept(1)
#: `data.images=NAME:DIR` reads a published benchmark as it is handed out
BENCHMARKS: dict[str, Callable[[Path], Any]] = {
    "piebench": piebench_tasks,
    "magicbrush": magicbrush_tasks,
    "tedbench": tedbench_tasks,
}


def build_edit_run(
    config: EditConfig,
    resolved: Mapping[str, Any],
    run_dir: Path,
    command: Sequence[str],
    reporter: Reporter,
    parent: Mapping[str, Any] | None = None,
) -> EditRun:
    """Everything one editing run needs; writes the manifest. `parent` is the run that this one repeats."""
    set_threads(config.threads)
    set_determinism(True)
    device = build_device(config.accelerator)
    full_hash = config_hash(resolved, NOT_HASHED)
    if config.paths.overwrite or not _goes_on(run_dir, full_hash):
        clear_run(run_dir)
    captions = _source_captions(config, device)
    tasks = build_tasks(config.data, reporter, captions)
    parts = shared_edit_parts(config, build_backbone(config.backbone, device))
    adapters = _wear_adapters(config, parts)
    canvas, scorer = _canvas(config, parts, run_dir), _scorer(config, device)
    write_manifest(
        run_dir,
        resolved_config=resolved,
        config_hash=full_hash,
        seed=config.seed,
        inputs=inputs_of(tasks),
        weights=_weights(config, canvas, tasks, adapters) | captioner_identity(captions),
        command=command,
        device=str(device),
        not_hashed=NOT_HASHED,
        parent=parent,
    )
    return EditRun(
        canvas=canvas,
        tasks=tasks,
        items=items_of(tasks, config.seeds),
        scorer=scorer,
        reader=dollhouse_reader() if config.data.images == DOLLHOUSE else None,
        suffix=scorer_suffix(config.encoders),
        batch_size=config.batch_size,
        trainer_arguments={"accelerator": {"cuda": "gpu"}.get(device.type, device.type), "devices": config.devices},
        tracker=build_tracker(config.tracking, run_dir.name, config.experiment, dict(resolved), run_dir, None),
        reporter=reporter,
        seed=config.seed,
    )


def _wear_adapters(config: EditConfig, parts: EditParts) -> list[Path]:
    """Load the config's LoRA files onto the models; returns the files."""
    found = [(find_adapter(Path(one.path).expanduser()), one) for one in config.adapters]
    load_edit_adapters(parts, [(path, one.unet_scale, one.text_encoder_scale) for path, one in found])
    return [path for path, _ in found]


def _canvas(config: EditConfig, parts: EditParts, run_dir: Path) -> Canvas:
    folder = run_dir / "samples" / f"step_{EDITED_STEP:06d}"
    return Canvas(config.method, parts, build_edit_settings(config), folder)


def _scorer(config: EditConfig, device: torch.device) -> EditScorer:
    sources = encoder_sources(config.encoders)
    clip = shared_clip(sources["clip"], config.encoders.clip_revision, device)
    return EditScorer(clip, shared_dino(sources["dino"], config.encoders.dino_revision, device))


def _weights(
    config: EditConfig, canvas: Canvas, tasks: Sequence[EditTask], adapters: Sequence[Path]
) -> dict[str, dict[str, Any]]:
    """What the manifest says of every model whose weights can change a result."""
    used = models_used(canvas.method, canvas.settings, tasks)
    return {
        "backbone": shared_identity(config.backbone),
        **encoder_identities(config.encoders),
        **{name: canvas.parts.identity(name) for name in used if name in canvas.parts.sources},
        **({"adapter": {str(path): adapter_digest(path) for path in adapters}} if adapters else {}),
    }


def shared_edit_parts(config: EditConfig, backbone: Backbone) -> EditParts:
    """The models that the jobs of one process share: a sweep over methods or settings loads each once."""
    sources, revisions = _sources(config), config.editors.revisions
    key = (id(backbone), *sources.items(), *sorted(revisions.items()))
    return _parts.get(key, lambda: EditParts(backbone, sources, revisions))


def models_used(method: EditMethod, settings: EditSettings, tasks: Sequence[EditTask]) -> list[str]:
    """The models beside the backbone whose weights can change a result, by their names in `editors`."""
    found = needs(method, settings)
    inpaint = ["inpaint"] if method is EditMethod.inpaint else []
    estimated = "depth" in found.controls and any("depth" not in task.controls for task in tasks)
    return sorted({*found.models, *inpaint, *(["depth_estimator"] if estimated else [])})


def _goes_on(run_dir: Path, full_hash: str) -> bool:
    """Whether the folder holds images of this very config, from a sitting that was interrupted."""
    try:
        begun = read_manifest(run_dir)
    except UserError:
        return False
    return bool(begun.get("config_hash") == full_hash)


def build_edit_settings(config: EditConfig) -> EditSettings:
    """The parameters of the method."""
    return EditSettings(
        steps=config.steps,
        strength=config.strength,
        guidance_scale=config.guidance_scale,
        image_guidance_scale=config.image_guidance_scale,
        control_scales=dict.fromkeys(("canny", "depth"), config.control_scale),
        scheduler=None if config.scheduler is None else config.scheduler.value,
        negative_prompt=config.negative_prompt,
        controls=tuple(config.controls),
        canny_thresholds=(config.canny_thresholds[0], config.canny_thresholds[1]),
    )


def _sources(config: EditConfig) -> dict[str, str | None]:
    values = {field.name: getattr(config.editors, field.name) for field in dataclasses.fields(config.editors)}
    del values["revisions"]
    return values


def _source_captions(config: EditConfig, device: torch.device) -> MadeCaptions | None:
    """Captions for the images of a folder that have none; None without a captioner that suits the backbone."""
    images = config.data.images
    if images == DOLLHOUSE or images.partition(":")[0] in BENCHMARKS:
        return None
    miniature = config.backbone.source == DOLLHOUSE
    return missing_captions(Path(images).expanduser(), config.data.captioner, miniature, device)


def build_tasks(config: EditDataConfig, reporter: Reporter, captions: MadeCaptions | None = None) -> list[EditTask]:
    """What is to be edited and how; pictures are loaded later, one batch at a time. UserError if it is nothing.

    `captions` makes the source captions that a folder of images lacks.
    """
    kind, colon, folder = config.images.partition(":")
    if config.images == DOLLHOUSE:
        full = config.captions is Captions.full
        found = dollhouse_tasks(config.rooms, config.toys, config.edits or (), full_captions=full)
    elif colon and kind in BENCHMARKS:
        found = BENCHMARKS[kind](Path(folder).expanduser())
    else:
        if config.file is None:
            raise UserError(f"data.file: a folder of images needs its edits; write them into a file and name it, as in "
                            f"data.images={shown(config.images)} data.file=edits.yaml")  # fmt: skip
        images = Path(config.images).expanduser()
        edits = Path(config.file).expanduser()
        found = folder_tasks(images, edits, captions=captions, rejected=_reject(reporter), warn=reporter.warn)
    tasks = _limited(found, config)
    if captions is not None and captions.made:
        name, caption = next(iter(captions.made.items()))
        reporter.say(f"{len(captions.made)} source captions were missing and are {captions.name}'s, as {caption!r} "
                     f"for {shown(name)}; side-cars of your own come first")  # fmt: skip
    if config.one_change:
        _check_one_change(tasks)
    return tasks


def _reject(reporter: Reporter) -> Callable[[Path, str], None]:
    return lambda path, why: reporter.warn(f"{shown(path)} is left out: {why}")


def _limited(found: Iterable[EditTask], config: EditDataConfig) -> list[EditTask]:
    """The edits and the number of images that the config asks for. Images beyond it are not even opened."""
    kept: list[EditTask] = []
    names: set[str] = set()
    images: set[str] = set()
    for task in found:
        names.add(task.edit.name)
        if config.edits is not None and task.edit.name not in config.edits:
            continue
        images.add(task.image_name)
        if config.limit is not None and len(images) > config.limit:
            break
        kept.append(task)
    for name in config.edits or ():
        if name not in names:
            raise UserError(f"data.edits={name}: there is no such edit; there are {', '.join(sorted(names))}")
    if not kept:
        raise UserError(f"data.images={shown(config.images)}: there is nothing to edit; name images and edits")
    return kept


def _check_one_change(tasks: Sequence[EditTask]) -> None:
    """Over the whole set one and the same thing may vary. An edit alone varies it against the source."""
    axes: dict[str, str] = {}
    by_image: dict[str, list[Edit]] = {}
    for task in tasks:
        by_image.setdefault(task.image_name, []).append(task.edit)
    for image, edits in by_image.items():
        if len(edits) > 1:
            axes[check_series(edits).axis] = image
        else:
            axes |= dict.fromkeys(edits[0].changes, image)
    if len(axes) > 1:
        (one, first), (other, second) = list(axes.items())[:2]
        raise UserError(
            f"data.one_change=true: {one} varies for {first} and {other} for {second}; make it one run for each"
        )


def inputs_of(tasks: Sequence[EditTask]) -> dict[str, str]:
    """Each file behind the tasks, once."""
    return {name: digest for task in tasks for name, digest in task.sha256.items()}


def dollhouse_reader() -> Reader:
    """The judge of the dollhouse's edits."""
    from boothlab.dollhouse.edit_judge import read_facts

    return partial(read_facts, WEIGHTS)

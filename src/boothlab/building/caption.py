"""What `boothlab caption` does: audit, captioner, tagger, side-cars and tracker, from a CaptionConfig."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from boothlab.building.parts import build_device, build_tracker, set_determinism, set_threads
from boothlab.building.shared import Kept, _state_of, encoder_identity, shared_clip
from boothlab.captioning.blip import GENERATION, BlipCaptioner, load_blip
from boothlab.captioning.captions import Maker
from boothlab.captioning.groups import Groups, read_groups
from boothlab.captioning.journal import Journal
from boothlab.captioning.run import CaptionRun
from boothlab.captioning.sidecars import Sidecars
from boothlab.captioning.tags import LabelList, Tagger, read_labels
from boothlab.config import NOT_HASHED
from boothlab.config_caption import CaptionConfig, CaptionMethod
from boothlab.diffusion.backbone import DOLLHOUSE as WEIGHTS
from boothlab.errors import UserError
from boothlab.files import sha256_bytes, sha256_file
from boothlab.images.collection import AuditSettings, check_folder, walk
from boothlab.images.collection_store import CollectionStore
from boothlab.images.load import ImageError, read_image
from boothlab.images.perceptual import require_hashing
from boothlab.progress import Reporter
from boothlab.tracking.manifest import config_hash, write_manifest

DOLLHOUSE = "dollhouse"
DOLLHOUSE_SIDE = 128
"""Pixels: the house draws at 32 or 64, and its pictures are seldom shown at more than twice that."""
NO_CAPTIONER = "none"
STATE = ".state"
"""The folder in the run folder with what an interrupted run needs to go on."""
_captioners: Kept[BlipCaptioner] = Kept(1)


def build_caption_run(
    config: CaptionConfig, resolved: Mapping[str, Any], run_dir: Path, command: Sequence[str], reporter: Reporter
) -> CaptionRun:
    """Everything one captioning run needs; writes the manifest. Raises UserError for bad input before it does."""
    images, audit = Path(config.images).expanduser(), build_audit_settings(config)
    check_folder(images)
    if audit.near_distance is not None:
        require_hashing()
    sidecars = None
    if config.method is not CaptionMethod.audit:
        sidecars = Sidecars(images, None if config.captions_dir is None else Path(config.captions_dir).expanduser())
    groups = build_groups(config)
    labels = [read_labels(name) for name in config.labels] if config.uses_tags else []
    set_threads(config.threads)
    set_determinism(True)
    device = build_device(config.accelerator)
    maker = build_maker(config, labels, device, reporter)
    identities = caption_identities(config)
    lists = {f"labels/{one.name}": one.sha256 for one in labels}
    table = {} if config.groups is None else {f"groups/{Path(config.groups).name}": sha256_file(config.groups)}
    full_hash = config_hash(resolved, NOT_HASHED)
    write_manifest(
        run_dir,
        resolved_config=resolved,
        config_hash=full_hash,
        seed=config.seed,
        inputs={"listing": listing_digest(images, config.recursive), **lists, **table},
        weights=identities,
        command=command,
        device=str(device),
        not_hashed=NOT_HASHED,
    )
    settings = {"config": full_hash, "weights": identities, "inputs": {**lists, **table}, "generation": GENERATION}
    state = run_dir / STATE
    store = CollectionStore(state / "audit.sqlite", audit.digest(images))
    return CaptionRun(
        images=images,
        run_dir=run_dir,
        audit=audit,
        store=store,
        journal=Journal(state / "captions.sqlite", json.dumps(settings, sort_keys=True)),
        maker=maker,
        sidecars=sidecars,
        groups=groups,
        overwrite=config.overwrite,
        batch_size=config.batch_size,
        threads=config.threads,
        known_side=DOLLHOUSE_SIDE if uses_miniature(config) else None,
        tracker=build_tracker(config.tracking, run_dir.name, config.experiment, dict(resolved), run_dir, None),
        reporter=reporter,
    )


def uses_miniature(config: CaptionConfig) -> bool:
    """Whether a miniature model, which knows the dollhouse alone, looks at the images."""
    return (config.uses_blip and config.captioner == DOLLHOUSE) or (config.uses_tags and config.clip == DOLLHOUSE)


def build_audit_settings(config: CaptionConfig) -> AuditSettings:
    """What of a folder is used."""
    audit = config.audit
    return AuditSettings(
        recursive=config.recursive,
        min_side=audit.min_side,
        max_aspect=audit.max_aspect,
        max_pixels=round(audit.max_megapixels * 1e6),
        near_distance=audit.near_distance,
        reject_duplicates=audit.reject_duplicates,
    )


def build_groups(config: CaptionConfig) -> Groups:
    """Groups by subfolder or by a table."""
    if config.groups is None:
        return Groups(config.group_depth)
    return Groups(table=read_groups(Path(config.groups).expanduser(), config.groups_column))


def build_maker(
    config: CaptionConfig, labels: Sequence[LabelList], device: torch.device, reporter: Reporter
) -> Maker | None:
    """The way captions are made, with its models; None for an audit alone."""
    if config.method is CaptionMethod.audit:
        return None
    for one in labels:
        if one.repeated:
            reporter.say(f"labels={one.name}: {one.repeated} labels stand there more than once and count once")
    captioner = None
    if config.uses_blip:
        captioner = shared_captioner(config.captioner, config.captioner_revision, device, config.captioner_prompt)
    return Maker(
        config.method.value,
        build_tagger(config, labels, device, reporter) if config.uses_tags else None,
        captioner,
        template=config.template,
        class_noun=config.class_noun or "",
        most_tags=config.most_tags,
    )


def build_tagger(
    config: CaptionConfig, labels: Sequence[LabelList], device: torch.device, reporter: Reporter
) -> Tagger:
    """CLIP with the labels of all lists, each once."""
    clip = shared_clip(clip_source(config.clip), config.clip_revision, device)
    together = list(dict.fromkeys(label for one in labels for label in one.labels))
    tagger = Tagger(clip, together, template=config.tag_template, threshold=config.tag_threshold, shrink=clip.shrink)
    if cut := sum(clip.truncated(tagger.prompts)):
        reporter.warn(f"{clip.name} reads only the beginning of {cut} of {len(together)} labels; make them shorter")
    return tagger


def clip_source(source: str) -> str:
    """Folder or hub id; `dollhouse` is the folder that ships with the package."""
    return str(WEIGHTS / "clip") if source == DOLLHOUSE else source


def captioner_source(source: str) -> str:
    """Folder or hub id; `dollhouse` is the folder that ships with the package. Raises UserError if it does not."""
    if source != DOLLHOUSE:
        return source
    if not has_dollhouse_captioner():
        raise UserError(
            "captioner=dollhouse: this installation lacks the miniature captioner; choose method=clip_tags, "
            "or another captioner, as in captioner=Salesforce/blip-image-captioning-base"
        )
    return str(WEIGHTS / "captioner")


def has_dollhouse_captioner() -> bool:
    """Whether the miniature captioner is installed."""
    return (WEIGHTS / "captioner" / "config.json").is_file()


def shared_captioner(source: str, revision: str | None, device: torch.device, prompt: str = "") -> BlipCaptioner:
    """The BLIP that writes captions, loaded once."""
    location = captioner_source(source)
    key = (location, revision, str(device), prompt, _state_of(Path(location)))
    return _captioners.get(key, lambda: load_blip(location, revision, device, prompt))


class MadeCaptions(Mapping[str, str]):
    """Captions of the images in a folder by file name, each made when it is asked for; unreadable images have none."""

    def __init__(self, folder: Path, source: str, device: torch.device):
        """The captioner `source` is loaded when the first caption is asked for."""
        self.folder, self.source, self.name = folder, source, source
        self.made: dict[str, str] = {}
        self._device = device

    def __getitem__(self, name: str) -> str:
        if name not in self.made:
            try:
                image = read_image(self.folder / name).image
            except ImageError as error:
                raise KeyError(name) from error
            captioner = shared_captioner(self.source, None, self._device)
            self.name = captioner.name
            self.made[name] = captioner.captions([image])[0]
        return self.made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.made)

    def __len__(self) -> int:
        return len(self.made)


def missing_captions(folder: Path, captioner: str | None, miniature: bool, device: torch.device) -> MadeCaptions | None:
    """Captions for images that have none, by `captioner`; without one by the miniature if the backbone is one, too.

    None where there is no captioner, or it is `none`.
    """
    if captioner == NO_CAPTIONER:
        return None
    source = captioner or (DOLLHOUSE if miniature and has_dollhouse_captioner() else None)
    return None if source is None else MadeCaptions(folder, source, device)


def captioner_identity(captions: MadeCaptions | None) -> dict[str, dict[str, str]]:
    """What the captioner is whose captions are in use, for the manifest; nothing if none is."""
    if captions is None or not captions.made:
        return {}
    return {"captioner": encoder_identity(captioner_source(captions.source), None)}


def caption_identities(config: CaptionConfig) -> dict[str, dict[str, str]]:
    """What each model in use is, for the manifest. Call once they are loaded."""
    found = {}
    if config.uses_blip:
        found["captioner"] = encoder_identity(captioner_source(config.captioner), config.captioner_revision)
    if config.uses_tags:
        found["clip"] = encoder_identity(clip_source(config.clip), config.clip_revision)
    return found


def listing_digest(images: Path, recursive: bool) -> str:
    """SHA-256 of names and sizes of all files that may be images: whether a folder is the one that was captioned."""
    names = (f"{file}\t{stamp.split(' ')[0]}\n" for file, stamp, ignored in walk(images, recursive) if not ignored)
    return sha256_bytes("".join(names).encode("utf-8", "backslashreplace"))

"""The subject's photos, the class images and the latents of both."""

import re
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

import boothlab
from boothlab.building.parts import build_sampler
from boothlab.building.tag_captions import tag_captions
from boothlab.cache import Cache
from boothlab.config import CaptionSource, SubjectConfig, TrainConfig
from boothlab.diffusion.backbone import Backbone
from boothlab.diffusion.sampling import SamplerSettings
from boothlab.dollhouse.photos import parse_subject, write_photos
from boothlab.dreambooth.data import ENCODED_TOGETHER, LatentTable, TrainingData, TrainingImage, encode_images
from boothlab.dreambooth.prior import class_images
from boothlab.files import sha256_file, shown
from boothlab.images.audit import CAPTION, Audit, audit_folder, captioned_from
from boothlab.images.dreambench import subject_of
from boothlab.images.load import Crop, load_image
from boothlab.progress import Reporter
from boothlab.ranks import ALONE, Ranks


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
    """The photo's caption if there is one, with the token before the class noun if it does not name it yet."""
    if caption is None or config.captions_from is None:
        return config.instance_prompt
    if _word(config.token).search(caption):
        return caption
    named, found = _word(config.class_noun).subn(lambda noun: f"{config.token} {noun[0]}", caption, count=1)
    return named if found else f"a {config.token} {config.class_noun}, {caption}"


def _word(text: str) -> re.Pattern[str]:
    """The words by themselves, or before a comma or the like, as tags are."""
    return re.compile(rf"(?<!\S){re.escape(text)}(?=[\s,.;:!?]|$)")


def build_subject(config: SubjectConfig, cache: Cache, *, captioned: bool = True) -> Subject:
    """Find, audit and load the photos; a dollhouse subject is rendered into the cache first. See SubjectConfig.images.

    Their captions are read, or made into the cache; who needs the photos alone can do without (`captioned`).
    """
    toy = parse_subject(config.images)
    bench = subject_of(config.images)
    folder = bench.folder if bench is not None else Path(config.images).expanduser()
    if toy is not None:
        class_noun, index = toy
        key = {"class": class_noun, "index": index, "count": config.count, "version": boothlab.__version__}
        key["captions"] = "place and time"
        folder = cache.get_or_make_files(
            "dollhouse-photos", key, lambda out: write_photos(out, class_noun, index, config.count)
        )
    audit = audit_folder(folder)
    audit = _captioned(config, audit, cache) if captioned else audit
    items = [
        TrainingImage(load_image(photo.path), training_prompt(config, photo.caption), photo.sha256)
        for photo in audit.accepted
    ]
    return Subject(audit, items)


def _captioned(config: SubjectConfig, audit: Audit, cache: Cache) -> Audit:
    """The photos with the captions that the config asks for."""
    if config.captions_from is CaptionSource.tags:
        return captioned_from(audit, tag_captions(config, audit.accepted, cache))
    if config.captions_dir is None:
        return audit
    if config.captions_from is None:
        unused = f"subject.captions_dir={shown(config.captions_dir)} is not used: subject.captions=true uses it"
        return replace(audit, warnings=[*audit.warnings, unused])
    return captioned_from(audit, Path(config.captions_dir).expanduser())


def caption_hashes(config: SubjectConfig, audit: Audit) -> dict[str, str]:
    """SHA-256 of the caption's file of each photo that has one, by path; empty where captions are not used."""
    if config.captions_from is None:
        return {}
    captioned = {unicodedata.normalize("NFC", photo.path.stem) for photo in audit.accepted if photo.caption is not None}
    sidecars = [path for path, kind in audit.ignored if kind == CAPTION]
    return {str(path): sha256_file(path) for path in sidecars if unicodedata.normalize("NFC", path.stem) in captioned}


def fill(prompt: str, config: SubjectConfig) -> str:
    """A prompt with {token} and {class} filled in."""
    return prompt.replace("{token}", config.token).replace("{class}", config.class_noun)


def say_what_the_audit_found(audit: Audit, reporter: Reporter) -> None:
    """Name every file that is left out, and why."""
    for path, reason in audit.rejected:
        reporter.say(f"{shown(path)}: {reason}", tag="left out")
    for warning in audit.warnings:
        reporter.warn(warning)


def say_what_is_captioned(config: SubjectConfig, subject: Subject, reporter: Reporter) -> None:
    """One caption as an example, where they are not simply what lies beside the photos."""
    captioned = [
        item for photo, item in zip(subject.audit.accepted, subject.items, strict=True) if photo.caption is not None
    ]
    if config.captions_from is None or (config.caption_source is None and config.captions_dir is None):
        return
    made_by = "CLIP's tags" if config.captions_from is CaptionSource.tags else "side-cars"
    example = f", as {shown(captioned[0].prompt)}" if captioned else ""
    reporter.say(f"{len(captioned)} of {len(subject.items)} photos, by {made_by}{example}", tag="captions")


def build_prior(
    config: TrainConfig,
    backbone: Backbone,
    cache: Cache,
    identity: dict[str, str],
    reporter: Reporter,
    ranks: Ranks = ALONE,
) -> list[TrainingImage]:
    """The class images, drawn by the bare backbone or the user's own; none without prior preservation."""
    prior, prompt = config.prior, fill(config.prior.class_prompt, config.subject)
    if not prior.enabled:
        return []
    if prior.class_images is not None:
        audit = audit_folder(Path(prior.class_images).expanduser())
        say_what_the_audit_found(audit, reporter)
        if len(audit.accepted) < prior.num_class_images:
            wanted = f"prior.num_class_images={prior.num_class_images}"
            reporter.warn(f"{shown(audit.folder)} has {len(audit.accepted)} class images, fewer than {wanted}")
    else:
        settings = SamplerSettings(
            config.evaluation.sampler.scheduler.value,
            prior.steps,
            prior.guidance_scale,
            batch_size=config.evaluation.sampler.batch_size,
        )
        sampler = build_sampler(backbone, settings, ranks)
        with reporter.bar("drawing class images", prior.num_class_images) as bar:
            audit = audit_folder(
                class_images(sampler, prompt, prior.num_class_images, config.seed, cache, identity, bar.advance)
            )
    photos = audit.accepted[: prior.num_class_images]
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
            batch_size=1 if config.trainer.offload else ENCODED_TOGETHER,
        )

    instance = table(subject.items, Crop(config.data.crop.value), config.data.flip)
    class_table = table(prior, Crop.CENTER, False) if prior else None
    return TrainingData(instance, class_table, config.data.batch_size, config.seed)

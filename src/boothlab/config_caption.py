"""The config of `boothlab caption`: every setting of an audit and its captions, with one-line docs and checks."""

import string
from dataclasses import dataclass, field
from enum import StrEnum

from omegaconf import MISSING

from boothlab.config import Accelerator, Checked, PathsConfig, TrackingConfig, need, need_threads

PLACEHOLDERS = ("class", "folder", "name", "tags")


class CaptionMethod(StrEnum):
    """How a caption is made."""

    #: none is: the audit alone
    audit = "audit"
    #: a text of your own with {class}, {folder}, {name} and {tags} filled in
    template = "template"
    #: the labels that CLIP finds, best first
    clip_tags = "clip_tags"
    #: a sentence by BLIP
    blip = "blip"
    #: BLIP's sentence, then the labels that bring the text nearer to the image
    blip_clip_tags = "blip_clip_tags"


@dataclass
class AuditConfig(Checked):
    """Which files are used. What is not is listed with its reason."""

    #: smallest side in pixels; images below it are rejected
    min_side: int = 32
    #: longer side divided by shorter side; images beyond it are rejected
    max_aspect: float = 4.0
    #: million pixels; larger images are rejected before they are decoded
    max_megapixels: float = 100.0
    #: bits, of 64, in which the perceptual hashes of near duplicates may differ; null does not look for them
    near_distance: int | None = 4
    #: reject all but the first of files with the same bytes; else they are only named
    reject_duplicates: bool = False

    def check(self) -> None:
        need(self.min_side >= 1, "audit.min_side", self.min_side, "must be at least 1 pixel")
        need(self.max_aspect >= 1, "audit.max_aspect", self.max_aspect, "must be at least 1")
        need(
            0 < self.max_megapixels <= 1000, "audit.max_megapixels", self.max_megapixels, "must be above 0, up to 1000"
        )
        near = self.near_distance
        need(near is None or 0 <= near <= 16, "audit.near_distance", near, "must be 0 to 16 bits, or null")


@dataclass
class CaptionConfig(Checked):
    """One audit of a folder of images, and captions for what it accepts."""

    #: part of the run folder's name; nothing here is drawn by chance
    seed: int = 0
    #: folder of related runs under paths.outputs
    experiment: str = "caption"
    #: first part of the run folder's name
    name: str = MISSING
    #: the folder of images
    images: str = MISSING
    #: search its subfolders too
    recursive: bool = False
    #: how captions are made; audit makes none
    method: CaptionMethod = CaptionMethod.blip
    #: where captions go; null puts each beside its image, as dog.txt beside dog.jpg
    captions_dir: str | None = None
    #: replace captions that are there already; else they are kept
    overwrite: bool = False
    #: the text of method=template, with {class}, {folder}, {name} and {tags}
    template: str = "a photo of a {class}"
    #: what stands for {class}
    class_noun: str | None = None
    #: label lists: names of lists that ship with the package, or text files with one label a line
    labels: list[str] = MISSING
    #: what CLIP compares an image with; {label} stands for the label
    tag_template: str = "a photo of a {label}"
    #: cosine above which a label is a tag; where none is above it, the best one is
    tag_threshold: float = 0.25
    #: most tags that blip_clip_tags puts after a caption
    most_tags: int = 8
    #: the BLIP that writes captions: `dollhouse`, a local folder or a hub id
    captioner: str = MISSING
    #: hub revision of captioner; null takes the newest and records which one it was
    captioner_revision: str | None = None
    #: words that BLIP's captions go on from, such as "a photo of"; empty lets it begin by itself
    captioner_prompt: str = ""
    #: the CLIP that finds tags: `dollhouse`, a local folder or a hub id
    clip: str = MISSING
    #: hub revision of clip
    clip_revision: str | None = None
    #: levels of subfolders that make an image's group
    group_depth: int = 1
    #: CSV file with a column `file` (path in the folder, or name) and one of groups; null groups by subfolder
    groups: str | None = None
    #: the column of groups
    groups_column: str = "group"
    #: images at once
    batch_size: int = 16
    audit: AuditConfig = field(default_factory=AuditConfig)
    #: where to compute
    accelerator: Accelerator = Accelerator.auto
    #: CPU threads, also those that read images; null leaves torch's choice, and one a core for reading
    threads: int | None = None
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)

    @property
    def uses_tags(self) -> bool:
        """Whether captions need CLIP's tags."""
        in_template = self.method is CaptionMethod.template and "{tags}" in self.template
        return in_template or self.method in (CaptionMethod.clip_tags, CaptionMethod.blip_clip_tags)

    @property
    def uses_blip(self) -> bool:
        """Whether captions need BLIP."""
        return self.method in (CaptionMethod.blip, CaptionMethod.blip_clip_tags)

    def check(self) -> None:
        need(0 <= self.seed < 2**63, "seed", self.seed, "must not be negative, nor above 2^63-1")
        need(self.images.strip() != "", "images", repr(self.images), "must name a folder")
        need(self.captions_dir != "", "captions_dir", repr(self.captions_dir), "must name a folder, or null")
        need("{label}" in self.tag_template, "tag_template", repr(self.tag_template), "must hold {label}")
        need(-1 <= self.tag_threshold <= 1, "tag_threshold", self.tag_threshold, "is a cosine: must be from -1 to 1")
        need(self.most_tags >= 1, "most_tags", self.most_tags, "must be at least 1")
        need(not self.uses_tags or len(self.labels) > 0, "labels", self.labels, "must name at least one label list")
        need(self.group_depth >= 1, "group_depth", self.group_depth, "must be at least 1")
        need(self.batch_size >= 1, "batch_size", self.batch_size, "must be at least 1")
        need_threads(self.threads, "threads")
        if self.method is CaptionMethod.template:
            self._check_template()

    def _check_template(self) -> None:
        names = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
        try:
            parsed = list(string.Formatter().parse(self.template))
        except ValueError:
            parsed = [("", "?", None, None)]
        odd = [name for _, name, form, conversion in parsed if name is not None
               and (name not in PLACEHOLDERS or form or conversion)]  # fmt: skip
        need(not odd, "template", repr(self.template), f"takes {names}, and other braces as {{{{ and }}}}")
        need(self.template.strip() != "", "template", repr(self.template), "must not be empty")
        classless = "{class}" in self.template and not (self.class_noun or "").strip()
        need(not classless, "class_noun", self.class_noun, "must say what {class} in the template stands for")

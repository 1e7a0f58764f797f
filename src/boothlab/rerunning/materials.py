"""What goes into a run, checked against its manifest: photos, captions, class images, weights, a scored adapter."""

import hashlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from boothlab.building.parts import encoder_sources
from boothlab.building.photos import build_subject, caption_hashes
from boothlab.building.shared import encoder_identity, shared_identity
from boothlab.cache import Cache
from boothlab.config import BackboneConfig, CaptionSource, EncodersConfig, PriorConfig, SubjectConfig
from boothlab.diffusion.formats.container import adapter_digest
from boothlab.diffusion.trained import find_trained
from boothlab.errors import UserError
from boothlab.files import sha256_file, shown
from boothlab.images.audit import audit_folder
from boothlab.rerunning.inputs import (
    BESIDE,
    Item,
    audited,
    knows_captions,
    places_to_look,
    recorded_class_images,
    recorded_photos,
    search,
)

DATA, WEIGHTS = "data", "weights"
PLACE_OF = {
    "photos": "subject.images",
    "class images": "prior.class_images",
    "backbone": "backbone.source",
    "clip": "encoders.clip",
    "dino": "encoders.dino",
    "adapter": "run",
}
"""The config key that says where a material lies."""
ASKED_BY = {
    "photos": (
        *("subject.images", "subject.count", "subject.captions", "subject.caption_source", "subject.captions_dir"),
        *("subject.tag_labels", "subject.tag_clip", "subject.tag_threshold"),
    ),
    "class images": ("prior.class_images", "prior.num_class_images", "prior.enabled"),
    "backbone": ("backbone.source", "backbone.revision"),
    "clip": ("encoders.clip", "encoders.clip_revision"),
    "dino": ("encoders.dino", "encoders.dino_revision"),
    "adapter": ("run",),
}
"""The keys by which a fork asks for another material than its parent's."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Material:
    """One thing that goes into a run. `same` is None where the manifest does not say enough to tell.

    `kind` is data or weights. `problem` says in one line what is wrong. `pins` are config values by dotted key that
    make the run use what was found; `gathered` are files that have to be put into a folder for `gathered_for`, the key
    that will name it. `found` is the adapter of a scoring.
    """

    what: str
    kind: str
    same: bool | None
    detail: str
    problem: str = ""
    pins: dict[str, Any] = field(default_factory=dict)
    gathered: dict[str, Path] = field(default_factory=dict)
    gathered_for: str = ""
    found: Path | None = None


class Where(Enum):
    """How far to look for a set of files: everywhere; in the folder that the user named; or just its whole content,
    for a fork that was asked to use other files.
    """

    ANYWHERE = "anywhere"
    NAMED = "named"
    AS_IT_IS = "as it is"


def check_photos(
    subject: SubjectConfig, manifest: Mapping[str, Any], run_dir: Path, cache: Cache, where: Where
) -> Material:
    """The subject's photos and captions, looked for by content."""
    wanted = recorded_photos(manifest)
    if not knows_captions(manifest):
        subject = replace(subject, captions=False)  # there is nothing to compare them with
    places = _places(subject.images, manifest, run_dir, where)
    captions_dir = _captions_dir(subject, manifest)
    counted = f"{len(wanted)} photos, {sum(1 for item in wanted if item.caption_name)} captions"
    folders = _subjects(replace(subject, captions_dir=captions_dir), places, cache)
    if captions_dir is not None and where is Where.ANYWHERE:
        places = [*places, Path(captions_dir)]
    found = _found_or_not("photos", counted, wanted, folders, None if where is Where.AS_IT_IS else places)
    if found.gathered and subject.captions_from is not None:  # then captions lie beside the photos, in one folder
        found.pins.update({"subject.caption_source": "sidecar", "subject.captions_dir": None})
    elif captions_dir != subject.captions_dir:
        found.pins["subject.captions_dir"] = captions_dir
    found = _captions_named(found, subject)
    if not knows_captions(manifest):  # then those that lie beside the photos now have to do
        for name, path in list(found.gathered.items()):
            if path.with_suffix(".txt").is_file():
                found.gathered[str(Path(name).with_suffix(".txt"))] = path.with_suffix(".txt")
    return found


def _captions_named(found: Material, subject: SubjectConfig) -> Material:
    """With the right key in its problem, where that is a caption which does not lie beside its photo."""
    if not found.problem.startswith("caption "):
        return found
    if subject.captions_from is CaptionSource.tags:
        others = "captions: CLIP's tags are others now, as its weights or a label list have changed"
        return replace(found, problem=others)
    key = PLACE_OF["photos"] if subject.captions_dir is None else "subject.captions_dir"
    return replace(found, problem=found.problem.replace(f"{PLACE_OF['photos']}=…", f"{key}=…"))


def _captions_dir(subject: SubjectConfig, manifest: Mapping[str, Any]) -> str | None:
    """The captions' folder as the config names it, else from the one in which the run was started, if there."""
    if subject.captions_dir is None:
        return None
    there = [Path(subject.captions_dir).expanduser()]
    if isinstance(started_in := manifest.get("working_directory"), str):
        there.append(Path(started_in) / there[0])
    return str(next((folder for folder in there if folder.is_dir()), subject.captions_dir))


def _subjects(subject: SubjectConfig, places: list[Path], cache: Cache) -> Iterator[tuple[str, list[Item]]]:
    """The photos where the config says, then in each of the places, as far as there are any."""
    for images in dict.fromkeys([subject.images, *(str(place) for place in places)]):
        try:
            audit = build_subject(replace(subject, images=images), cache).audit
        except UserError:
            continue
        yield images, audited(audit, caption_hashes(subject, audit))


def _places(given: str, manifest: Mapping[str, Any], run_dir: Path, where: Where) -> list[Path]:
    everywhere = places_to_look(given, manifest, run_dir)
    return everywhere if where is Where.ANYWHERE else [Path(given).expanduser()]


def check_class_images(prior: PriorConfig, manifest: Mapping[str, Any], run_dir: Path, where: Where) -> Material | None:
    """The user's own class images; None without them. Drawn ones are made again and compared after the run."""
    if not prior.enabled or prior.class_images is None:
        return None
    wanted = recorded_class_images(manifest)
    places = _places(prior.class_images, {**manifest, "inputs": {}, "captions": {}}, run_dir, where)

    def folders() -> Iterator[tuple[str, list[Item]]]:
        for place in places:
            try:
                accepted = audit_folder(place).accepted[: prior.num_class_images]
            except UserError:
                continue
            yield str(place), [Item(photo.path.name, photo.sha256) for photo in accepted]

    counted = f"{len(wanted)} class images"
    return _found_or_not("class images", counted, wanted, folders(), None if where is Where.AS_IT_IS else places)


def _found_or_not(
    what: str,
    counted: str,
    wanted: list[Item],
    found: Iterator[tuple[str, list[Item]]],
    places: list[Path] | None,
) -> Material:
    """`places` is None where a folder is to be used as it is."""
    key = PLACE_OF[what]
    if not wanted:
        return Material(what, DATA, None, f"the manifest lists no {what}")
    result = search(what, wanted, found, places or [], key)
    if places is None and result.folder is None:
        return Material(what, DATA, False, "others", f"{what}: not those of the parent")
    if result.folder is not None:
        return Material(what, DATA, True, f"{counted} in {shown(result.folder)}", pins={key: result.folder})
    if result.missing:
        more = f" and {len(result.missing) - 1} more" if len(result.missing) > 1 else ""
        problem = f"{result.missing[0]}{more} cannot be found; {result.note}"
        return Material(what, DATA, False, f"{len(result.missing)} of {counted} not found", problem)
    return Material(what, DATA, True, f"{counted}, {result.note}", gathered=result.gathered, gathered_for=key)


def pinned_revisions(
    manifest: Mapping[str, Any], config: Mapping[str, Any], changed: Collection[str] = ()
) -> dict[str, Any]:
    """The commits of hub models, where the config leaves them open and the manifest knows them.

    `changed` are the keys that the user gave: another model has another commit.
    """
    weights, pins = _weights(manifest), {}
    for name, section, key in (
        ("backbone", "backbone", "revision"),
        ("clip", "encoders", "clip_revision"),
        ("dino", "encoders", "dino_revision"),
    ):
        if any(asked in changed for asked in ASKED_BY[name]):
            continue
        known = weights.get(name)
        commit = known.get("revision") if isinstance(known, Mapping) else None
        if isinstance(commit, str) and _COMMIT.fullmatch(commit) and (config.get(section) or {}).get(key) is None:
            pins[f"{section}.{key}"] = commit
    return pins


def check_backbone(backbone: BackboneConfig, manifest: Mapping[str, Any]) -> Material:
    """The files of the frozen model, or its commit on the hub."""
    recorded = _weights(manifest).get("backbone")
    return _compared("backbone", recorded, lambda: shared_identity(backbone))


def check_encoders(encoders: EncodersConfig, manifest: Mapping[str, Any]) -> list[Material]:
    """The files of CLIP and DINO, or their commits on the hub; none where nothing was evaluated."""
    recorded, sources = _weights(manifest), encoder_sources(encoders)
    revisions = {"clip": encoders.clip_revision, "dino": encoders.dino_revision}
    found = []
    for name, source in sources.items():
        before = recorded.get(name)
        if isinstance(before, str):  # format 1 kept no more than the name
            found.append(_by_name(name, before, Path(source).expanduser()))
        elif before is not None:
            found.append(_encoder(name, before, source, revisions[name]))
    return found


def _encoder(name: str, recorded: Mapping[str, str], source: str, revision: str | None) -> Material:
    key = PLACE_OF[name]
    if "hub" not in recorded and not Path(source).expanduser().is_dir():
        problem = f"{name}: {shown(source)} is not there; name the folder that holds the same files with {key}=…"
        return Material(name, WEIGHTS, False, "not there", problem)
    return _compared(name, recorded, lambda: encoder_identity(source, revision))


def _weights(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    found = manifest.get("weights")
    return found if isinstance(found, Mapping) else {}


def _compared(what: str, recorded: Any, identify: Callable[[], dict[str, str]]) -> Material:
    if not isinstance(recorded, Mapping):
        return Material(what, WEIGHTS, None, "the manifest has no hashes of it")
    try:
        now = identify()
    except UserError as error:
        problem = f"{error}, or name the folder that holds it with {PLACE_OF[what]}=…"
        return Material(what, WEIGHTS, False, "not there", problem)
    wrong = sorted(name for name in recorded.keys() | now.keys() if recorded.get(name) != now.get(name))
    counted = f"{now['hub']} at {now['revision'][:12]}" if "hub" in now else f"{len(now)} files"
    if not wrong:
        return Material(what, WEIGHTS, True, counted)
    name = wrong[0]
    if name in recorded and name in now:
        how = f"{name} is {str(now[name])[:12]}, and was {str(recorded[name])[:12]}"
    else:
        how = f"{name} is {'new' if name in now else 'gone'}"
    more = f" and {len(wrong) - 1} more differ" if len(wrong) > 1 else ""
    return Material(what, WEIGHTS, False, f"{len(wrong)} of {counted} differ", f"{what}: {how}{more}")


def _by_name(what: str, recorded: str, folder: Path) -> Material:
    """An encoder of which only `folder@hash` is known: seven digits of a hash over its weight files."""
    if not folder.is_dir():
        return Material(what, WEIGHTS, None, f"{recorded}: only its name was recorded")
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(bytes.fromhex(sha256_file(path)))
    now = digest.hexdigest()[:7]
    if recorded.rpartition("@")[2] == now:
        return Material(what, WEIGHTS, True, recorded)
    problem = f"{what}: its weights are @{now}, and were {recorded}"
    return Material(what, WEIGHTS, False, f"@{now}, was {recorded}", problem)


def check_adapter(run: str | None, manifest: Mapping[str, Any], run_dir: Path) -> Material:
    """The adapter that a scoring scored, looked for where the user or the config says, where it was, beside the run."""
    path, digest = _recorded_adapter(manifest)
    started_in = Path(str(manifest.get("working_directory") or "."))
    named = [Path(run).expanduser(), started_in / run] if run else []
    beside = sorted((run_dir / BESIDE).glob("*.safetensors"))
    first: Path | None = None
    for place in [*named, path, started_in / path, *beside]:
        try:
            adapter = find_trained(place).main
        except UserError:
            continue
        if adapter_digest(adapter) == digest:
            return Material("adapter", WEIGHTS, True, shown(adapter), found=adapter)
        first = first or adapter
    what = f"the adapter {shown(path)} (SHA-256 {digest})"
    if first is None:
        problem = f"{what} cannot be found; name its run with run=DIR, or put it into {BESIDE}/ in the run folder"
        return Material("adapter", WEIGHTS, False, "not found", problem)
    return Material("adapter", WEIGHTS, False, "another file", f"{what}: {shown(first)} is another file", found=first)


def _recorded_adapter(manifest: Mapping[str, Any]) -> tuple[Path, str]:
    """In format 1 it was among the inputs. Raises UserError if the manifest does not name one."""
    adapters = _weights(manifest).get("adapter")
    files = adapters if isinstance(adapters, Mapping) else manifest.get("inputs") or {}
    for path, digest in files.items():
        if str(path).endswith(".safetensors"):
            return Path(str(path)), str(digest)
    raise UserError("the manifest does not say which adapter was scored; score it again with `boothlab score run=DIR`")

"""What `boothlab evaluate` measures: encoders and references, and images with their prompts, from its config."""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from boothlab.building.parts import build_device, encoder_sources, set_threads
from boothlab.building.photos import say_what_the_audit_found
from boothlab.building.shared import shared_clip, shared_dino, shared_features
from boothlab.config_evaluate import EvaluateConfig
from boothlab.errors import UserError
from boothlab.evaluation.scoring import GeneratedImage, Scorer
from boothlab.files import shown
from boothlab.images.audit import Audit, audit_folder
from boothlab.images.dreambench import subject_of
from boothlab.images.load import load_image, to_tensor
from boothlab.progress import Reporter

_SAMPLE = re.compile(r"prompt(\d{1,6})_seed(\d{1,20})")
_LARGEST = 16 << 20


@dataclass
class FolderEvaluation:
    """A scorer, the images, and the file name of each by (prompt index, seed). `with_text` is off without prompts."""

    scorer: Scorer
    images: list[GeneratedImage]
    names: dict[tuple[int, int], str]
    with_text: bool


def build_evaluation(config: EvaluateConfig, reporter: Reporter) -> FolderEvaluation:
    """Audit both folders, read the prompts, load the encoders. Raises UserError in one line for what is wrong."""
    set_threads(config.threads)
    device = build_device(config.accelerator)
    audit = audit_folder(Path(config.images).expanduser())
    bench = subject_of(config.references)
    references = audit_folder(bench.folder if bench else Path(config.references).expanduser())
    for found in (audit, references):
        say_what_the_audit_found(found, reporter)
    _warn_of_copies(audit, references, reporter)
    names = [photo.path.name for photo in audit.accepted]
    placed = place(names, Path(config.prompts).expanduser() if config.prompts else None)
    sources, encoders = encoder_sources(config.encoders), config.encoders
    scorer = Scorer(
        shared_clip(sources["clip"], encoders.clip_revision, device),
        shared_dino(sources["dino"], encoders.dino_revision, device),
        [to_tensor(load_image(photo.path)) for photo in references.accepted],
        config.token,
        "",
        None if encoders.features is None else shared_features(device),
    )
    images = [GeneratedImage(*placed[photo.path.name], to_tensor(load_image(photo.path))) for photo in audit.accepted]
    by_key = {(index, seed): name for name, (index, _, seed) in placed.items()}
    return FolderEvaluation(scorer, images, by_key, config.prompts is not None)


def place(names: list[str], prompts: Path | None) -> dict[str, tuple[int, str, int]]:
    """File name → (prompt index, prompt, seed). UserError for an image without a prompt, or a prompt without an image.

    A .csv has a row for each file; the seed is then the place among the files of one prompt. A .txt has a prompt a
    line, and files named as boothlab names its samples: prompt00_seed0.png is of the first line. None gives all one
    text.
    """
    if prompts is None:
        return {name: (0, "an image", number) for number, name in enumerate(names)}  # a text that nobody scores by
    if prompts.suffix.lower() == ".csv":
        return _from_table(names, prompts)
    return _from_lines(names, prompts)


def _from_table(names: list[str], path: Path) -> dict[str, tuple[int, str, int]]:
    found: dict[str, str] = {}
    for number, name, prompt in _rows(path):
        where = f"prompts={shown(path)} line {number}"
        if not prompt:
            raise UserError(f"{where}: has no prompt")
        if name not in names:
            raise UserError(f"{where}: there is no image {shown(name)!r} among those that can be used")
        if found.setdefault(name, prompt) != prompt:
            raise UserError(f"{where}: {shown(name)} is there twice, with two prompts")
    if missing := [name for name in names if name not in found]:
        raise UserError(f"prompts={shown(path)}: has no row for {shown(missing[0])}; each image needs its prompt")
    texts = list(dict.fromkeys(found[name] for name in names))
    counts = dict.fromkeys(texts, 0)
    placed = {}
    for name in names:
        placed[name] = (texts.index(found[name]), found[name], counts[found[name]])
        counts[found[name]] += 1
    return placed


def _rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """Number of the line, file and prompt of each row."""
    reader = csv.DictReader(io.StringIO(_text(path), newline=None))
    try:
        if not {"file", "prompt"} <= set(reader.fieldnames or ()):
            raise UserError(f"prompts={shown(path)}: line 1 must name the columns file and prompt")
        for row in reader:
            yield reader.line_num, (row["file"] or "").strip(), (row["prompt"] or "").strip()
    except csv.Error as error:
        raise UserError(f"prompts={shown(path)} line {reader.line_num}: is no CSV ({shown(str(error))})") from error


def _from_lines(names: list[str], path: Path) -> dict[str, tuple[int, str, int]]:
    lines = [line.strip() for line in _text(path).splitlines() if line.strip()]
    placed: dict[str, tuple[int, str, int]] = {}
    for name in names:
        match = _SAMPLE.fullmatch(Path(name).stem)
        if match is None:
            raise UserError(
                f"images: {shown(name)} is not named as prompt00_seed0.png; name each file's prompt in a .csv"
            )
        index, seed = int(match[1]), int(match[2])
        if index >= len(lines):
            raise UserError(f"prompts={shown(path)}: has {len(lines)} prompts, none for {shown(name)}")
        placed[name] = (index, lines[index], seed)
    return placed


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST:
            raise UserError(f"prompts={shown(path)}: is larger than {_LARGEST >> 20} MiB; it is no list of prompts")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"prompts={shown(path)}: is not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"prompts={shown(path)}: cannot be read ({error.strerror or error})") from error


def _warn_of_copies(images: Audit, references: Audit, reporter: Reporter) -> None:
    known = {photo.sha256: photo.path.name for photo in references.accepted}
    for photo in images.accepted:
        if photo.sha256 in known:
            same = known[photo.sha256]
            reporter.warn(f"{shown(photo.path.name)} is the reference {shown(same)} itself: its likeness says nothing")

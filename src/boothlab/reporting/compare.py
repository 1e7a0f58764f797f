"""A human study of two trainings: what both drew, the questions about it, and the photos of their subject.

After the user study of DreamBooth (Ruiz et al. 2023, arXiv 2208.12242, §4): two images side by side, "which is more
like the subject" with its photos shown, "which follows the prompt" with the text shown, and a way not to decide.
"""

import re
from itertools import pairwise
from pathlib import Path

from PIL import Image

from boothlab.errors import UserError
from boothlab.evaluation.fidelity import strip_token
from boothlab.files import shown
from boothlab.images.grid import GAP, MIN_CELL, PAPER
from boothlab.images.load import load_image, read_image
from boothlab.reporting.comparison import SIDES, TRAINING, Comparison, Pair, key_path, write_page
from boothlab.reporting.runs import Checkpoint, RunRecord

__all__ = ["QUESTIONS", "key_path", "write_comparison"]

QUESTIONS: dict[str, str] = {name: one.text for name, one in TRAINING.items()}
"""The questions asked of each pair: name in the files → text on the page."""

# How a manifest names the class images among its inputs; everything else is a photo of the subject.
_CLASS_IMAGE = re.compile(r"class_images/\d{4}")
_PHOTOS_SHOWN = 8


def write_comparison(run_a: RunRecord, run_b: RunRecord, path: Path, *, seed: int = 0) -> None:
    """Write the page to `path` and its key beside it (`key_path`). The same runs and seed give the same two files.

    Each run takes part with its last scored checkpoint. Every prompt (compared without the unique token) and image
    seed of which both have an image gives two questions; their order and which run is left are drawn from `seed`.
    The page names no run; its ids are hashes salted with the runs' identity, which only the key tells. The subject's
    photos are those of either manifest that are still there unchanged, or else what the sample grid shows of them.

    Raises:
        UserError: a run against itself, runs of different photos, no image of a common prompt and image seed, no
            photo of the subject to be found, a damaged image, or a place that cannot be written.
    """
    if run_a.folder.resolve() == run_b.folder.resolve():
        raise UserError(f"{shown(run_a.folder)}: is compared with itself; give two different runs")
    points = _last_scored(run_a), _last_scored(run_b)
    references = _references(run_a, run_b)
    pairs = _common_pairs(run_a, run_b, points)
    runs = {
        side: {"name": run.name, "setting": run.setting, "seed": run.seed, "step": point.step}
        for side, run, point in zip(SIDES, (run_a, run_b), points, strict=True)
    }
    steps = sorted({point.step for point in points})
    told = f"step{'s' if len(steps) > 1 else ''} {' and '.join(map(str, steps))}"
    noun = str((run_a.config.get("subject") or {}).get("class_noun", "subject"))
    write_page(
        Comparison(
            runs=runs,
            pairs=pairs,
            questions=TRAINING,
            caption=f"The subject: photos of this {noun}",
            origin=f"The images are of the last scored checkpoint of each run ({told}).",
            references=references,
        ),
        path,
        seed,
    )


# What both runs have


def _last_scored(run: RunRecord) -> Checkpoint:
    if run.last is None:
        raise UserError(f"{shown(run.name)}: has no scored checkpoint; let it train on, or give another run")
    if run.last.folder is None or not any(run.last.folder.glob("prompt*_seed*.png")):
        where = f"samples/step_{run.last.step:06d}"
        raise UserError(f"{shown(run.name)}: has no sample images in {where}; put them back, or give another run")
    return run.last


def _texts(run: RunRecord) -> dict[str, int]:
    """The prompts as raters read them → their index in the run. Without the token; a class noun takes its place
    where the prompt has none."""
    subject, evaluation = run.config.get("subject") or {}, run.config.get("evaluation") or {}
    token, noun = str(subject.get("token", "")), str(subject.get("class_noun", ""))
    found: dict[str, int] = {}
    for index, template in enumerate(evaluation.get("prompts") or []):
        text = strip_token(template.replace("{token}", token).replace("{class}", noun), token)
        if not re.search(rf"(?<!\w){re.escape(noun)}(?!\w)", text):
            text = strip_token(template.replace("{token}", noun), token)
        found.setdefault(text, index)  # the same prompt and seed twice is the same image twice
    return found


def _common_pairs(run_a: RunRecord, run_b: RunRecord, points: tuple[Checkpoint, Checkpoint]) -> list[Pair]:
    names = f"{shown(run_a.name)} and {shown(run_b.name)}"
    texts_a, texts_b = _texts(run_a), _texts(run_b)
    prompts = [text for text in texts_a if text in texts_b]
    if not prompts:
        raise UserError(f"{names} have no evaluation prompt in common; compare runs with the same evaluation.prompts")
    seeds = [seed for seed in run_a.image_seeds if seed in set(run_b.image_seeds)]
    if not seeds:
        raise UserError(f"{names} have no image seed in common; compare runs with the same evaluation.seeds")
    pairs = []
    for text in prompts:
        for seed in seeds:
            one, other = points[0].image(texts_a[text], seed), points[1].image(texts_b[text], seed)
            if one and other:
                pairs.append(Pair((text, str(seed)), {"prompt": text, "seed": seed}, (one, other), text))
    if not pairs:
        raise UserError(f"{names} have no sample image of the same prompt and seed; put the missing images back")
    return pairs


# The subject's photos


def _photos(run: RunRecord) -> dict[str, str]:
    """The photos of a run: SHA-256 → path, in the order of the paths."""
    inputs = run.manifest.get("inputs") or {}
    return {digest: name for name, digest in sorted(inputs.items()) if not _CLASS_IMAGE.fullmatch(name)}


def _references(run_a: RunRecord, run_b: RunRecord) -> list[Image.Image]:
    """Up to eight photos of the subject. The manifests' hashes say whether a file is still the photo that it was."""
    photos_a, photos_b = _photos(run_a), _photos(run_b)
    if photos_a.keys() != photos_b.keys() or not photos_a:
        what = "are not of the same subject photos" if photos_a or photos_b else "do not say which photos they are of"
        raise UserError(f"{shown(run_a.name)} and {shown(run_b.name)} {what}; compare two runs of one subject")
    found = []
    for digest in photos_a:
        for name in (photos_a[digest], photos_b[digest]):
            photo = _unchanged(Path(name), digest)
            if photo is not None:
                found.append(photo)
                break
    found = found or _grid_photos(run_a, len(photos_a)) or _grid_photos(run_b, len(photos_b))
    if not found:
        raise UserError(
            f"{shown(run_a.name)}: no photo of the subject is readable any more, neither at the paths in manifest.json "
            f"nor in a sample grid; put {shown(next(iter(photos_a.values())))} back"
        )
    return found[:_PHOTOS_SHOWN]


def _unchanged(path: Path, digest: str) -> Image.Image | None:
    try:
        loaded = read_image(path)
    except UserError:
        return None
    return loaded.image if loaded.sha256 == digest else None


def _grid_photos(run: RunRecord, count: int) -> list[Image.Image]:
    """The photos cut from the first row of the sample grid (see `images.grid.build_grid`); none if it is not there."""
    point = run.last
    sample = next(iter(sorted(point.folder.glob("prompt*_seed*.png"))), None) if point and point.folder else None
    if point is None or point.grid is None or sample is None:
        return []
    native, sheet = load_image(sample).width, load_image(point.grid)
    cell = min(native if native >= MIN_CELL else native * -(-MIN_CELL // native), 256)
    left, top = round(cell * 1.55), max(12, cell // 9) + 14
    edges = [left + index * (cell + GAP) for index in range(min(count, max(len(run.image_seeds), 1)) + 1)]
    gutters = [sheet.crop((right - GAP, top, right, top + cell)) for right in edges]
    # A grid laid out otherwise has something else where the gaps between the photos should be.
    if edges[-1] > sheet.width or any(gutter.getcolors() != [(GAP * cell, PAPER)] for gutter in gutters[1:]):
        return []
    return [sheet.crop((edge, top, right - GAP, top + cell)) for edge, right in pairwise(edges)]

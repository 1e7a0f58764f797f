"""The page of a human study: blind questions on pairs of two runs' images, and the key that says which was which.

After the user study of DreamBooth (Ruiz et al. 2023, arXiv 2208.12242, §4): two images side by side, "which is more
like the subject" with its photos shown, "which follows the prompt" with the text shown, and a way not to decide.
"""

import base64
import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from boothlab.errors import UserError
from boothlab.evaluation.fidelity import strip_token
from boothlab.files import sha256_bytes, sha256_file, shown, write_json, write_text
from boothlab.images.grid import GAP, MIN_CELL, PAPER, png_bytes
from boothlab.images.load import load_image, read_image
from boothlab.reporting.runs import Checkpoint, RunRecord
from boothlab.seeding import derive_seed

FORMAT = 1
KEY_KIND, VOTES_KIND = "boothlab comparison key", "boothlab votes"
KEY_SUFFIX = ".key.json"
SIDES = ("a", "b")
ANSWERS = ("left", "right", "undecided")
QUESTIONS: dict[str, str] = {
    "subject": "Which is more like the subject?",
    "prompt": "Which follows the prompt better?",
}
"""The questions asked of each pair: name in the files → text on the page."""

_HINTS = {
    "subject": ("likeness", "The kind of thing and its details count; never mind the surroundings."),
    "prompt": ("prompt", "All that the text asks for counts: what it is, where it is, what it wears or does."),
}
# How a manifest names the class images among its inputs; everything else is a photo of the subject.
_CLASS_IMAGE = re.compile(r"class_images/\d{4}")
_PHOTOS_SHOWN = 8
# Longest sides in pixels: of a photo on the page; of what is enlarged in whole pixels; of what is embedded as PNG.
_PHOTO_SIDE, _SMALL, _LOSSLESS = 512, 128, 256


@dataclass(frozen=True)
class _Pair:
    """What both runs drew for one prompt (without the token) and image seed: the files of run A and of run B."""

    prompt: str
    seed: int
    drawn: tuple[Path, Path]


@dataclass(frozen=True)
class _Item:
    """One question on the page: a pair by its opaque id, the question's name, and the run (a, b) that is left."""

    pair: str
    question: str
    left: str

    @property
    def right(self) -> str:
        return SIDES[1 - SIDES.index(self.left)]


def key_path(page: Path) -> Path:
    """Where the key of a page is written: `compare.html` → `compare.key.json`, in the same folder."""
    return page.with_name(page.stem + KEY_SUFFIX)


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
    digests = [sha256_file(file) for pair in pairs for file in pair.drawn]
    salt = _opaque("", str(seed), *(str(value) for side in SIDES for value in runs[side].values()), *digests, size=64)
    by_id = {_opaque(salt, "pair", pair.prompt, str(pair.seed)): pair for pair in pairs}
    items = _shuffled_items(list(by_id), seed, salt)
    study = {"study": _opaque(salt, "study"), "format": FORMAT}
    page = study | _page_data(items, by_id, salt, references)
    noun = str((run_a.config.get("subject") or {}).get("class_noun", "subject"))
    html = _render(page, sorted({point.step for point in points}), noun)
    # The key first: a page whose key could not be written would gather votes that nobody can read.
    write_json(key_path(path), study | {"kind": KEY_KIND, "seed": seed, "runs": runs, "pairs": _key(items, by_id)})
    write_text(path, html)


def _opaque(salt: str, *parts: str, size: int = 12) -> str:
    """An id that tells nothing without the salt."""
    return sha256_bytes("\x1f".join([salt, *parts]).encode("utf-8", "surrogatepass"))[:size]


def _shuffled_items(pairs: Sequence[str], seed: int, salt: str) -> list[_Item]:
    """Both questions of every pair, in the order and with the sides that the seed draws."""
    items = [
        _Item(pair, question, SIDES[derive_seed(seed, "compare/left", salt, pair, question) % 2])
        for pair in pairs
        for question in QUESTIONS
    ]
    return sorted(items, key=lambda item: derive_seed(seed, "compare/order", salt, item.pair, item.question))


def _key(items: Sequence[_Item], by_id: dict[str, _Pair]) -> dict[str, Any]:
    left = {(item.pair, item.question): item.left for item in items}
    return {
        pair: {"prompt": found.prompt, "seed": found.seed, "left": {name: left[pair, name] for name in QUESTIONS}}
        for pair, found in by_id.items()
    }


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


def _common_pairs(run_a: RunRecord, run_b: RunRecord, points: tuple[Checkpoint, Checkpoint]) -> list[_Pair]:
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
                pairs.append(_Pair(text, seed, (one, other)))
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


# The page


def _embedded(image: Image.Image, longest: int | None = None) -> dict[str, Any]:
    """The picture inside the page: its pixels alone, so that no metadata of the file can name its run."""
    if longest is not None and max(image.size) > longest:
        image = image.copy()
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    if max(image.size) <= _LOSSLESS:
        kind, data = "png", png_bytes(image)
    else:
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=95, subsampling=0)
        kind, data = "jpeg", buffer.getvalue()
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
    return {"src": source, "small": max(image.size) <= _SMALL}


def _page_data(
    items: Sequence[_Item], by_id: dict[str, _Pair], salt: str, references: Sequence[Image.Image]
) -> dict[str, Any]:
    """All that the page's script works with."""
    images = {
        _opaque(salt, "image", pair, side): _embedded(load_image(file))
        for pair, found in by_id.items()
        for side, file in zip(SIDES, found.drawn, strict=True)
    }
    questions = []
    for item in items:
        sides = {
            "left": _opaque(salt, "image", item.pair, item.left),
            "right": _opaque(salt, "image", item.pair, item.right),
        }
        text = {"prompt": by_id[item.pair].prompt} if item.question == "prompt" else {}
        questions.append({"pair": item.pair, "question": item.question, **sides, **text})
    return {
        "votes": VOTES_KIND,
        "kinds": {
            name: {"name": name, "text": text, "chip": _HINTS[name][0], "hint": _HINTS[name][1]}
            for name, text in QUESTIONS.items()
        },
        "questions": questions,
        "images": images,  # written in the order of their opaque ids, so that it does not tell the runs either
        "references": [_embedded(photo, _PHOTO_SIDE) for photo in references],
    }


def _render(study: dict[str, Any], steps: Sequence[int], class_noun: str) -> str:
    folder = files("boothlab.reporting") / "templates"
    css, js = ((folder / f"compare.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    # Only this very script and style may run, and nothing may be fetched: a slip in escaping would still be harmless.
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii") for text in (js, css)]
    policy = (
        f"default-src 'none'; img-src data:; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("boothlab.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template("compare.html.j2").render(
        study=study,
        kinds=list(study["kinds"].values()),
        steps=steps,
        class_noun=class_noun,
        policy=policy,
        css=Markup(css),
        js=Markup(js),
    )

"""A blind comparison of two runs' images as a page for people: its questions, its key, and nothing that names a run.

Two images side by side, questions about them, and a way not to decide. What is compared and asked about is the
caller's: `compare.py` for trainings, `edit_compare.py` for edits.
"""

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jinja2
from markupsafe import Markup
from PIL import Image

from boothlab.files import sha256_bytes, sha256_file, write_json, write_text
from boothlab.images.grid import png_bytes
from boothlab.images.load import load_image
from boothlab.seeding import derive_seed

FORMAT = 1
KEY_KIND, VOTES_KIND = "boothlab comparison key", "boothlab votes"
KEY_SUFFIX = ".key.json"
SIDES = ("a", "b")
ANSWERS = ("left", "right", "undecided")


class Question(NamedTuple):
    """A question of a page: its text, a word for it, a hint, and what is shown with it."""

    text: str
    chip: str
    hint: str
    shows: Literal["photos", "text", "both"]


TRAINING: dict[str, Question] = {
    "subject": Question(
        "Which is more like the subject?",
        "likeness",
        "The kind of thing and its details count; never mind the surroundings.",
        "photos",
    ),
    "prompt": Question(
        "Which follows the prompt better?",
        "prompt",
        "All that the text asks for counts: what it is, where it is, what it wears or does.",
        "text",
    ),
}
EDITING: dict[str, Question] = {
    "instruction": Question(
        "Which follows the instruction better?",
        "instruction",
        "Only what the text asks for counts; never mind what else has changed.",
        "both",
    ),
    "rest": Question(
        "Which keeps the rest better?",
        "the rest",
        "All that the text does not ask to change should stay as it is in the source.",
        "both",
    ),
}
ALL_QUESTIONS: dict[str, str] = {name: one.text for name, one in (TRAINING | EDITING).items()}
"""The questions asked of a pair, of trainings and of edits: name in the files → text on the page."""

# Longest sides in pixels: of a photo on the page; of what is enlarged in whole pixels; of what is embedded as PNG.
_PHOTO_SIDE, _SMALL, _LOSSLESS = 512, 128, 256


@dataclass(frozen=True)
class Pair:
    """What both runs drew for one question: the files of run A and of run B.

    `identity` tells it from the other pairs, `told` is what the key says of it, `text` and `source` are shown.
    """

    identity: tuple[str, ...]
    told: Mapping[str, Any]
    drawn: tuple[Path, Path]
    text: str
    source: Path | None = None


@dataclass(frozen=True)
class Comparison:
    """Two runs (name, setting, seed and step by side), what they drew, and the questions about it.

    `references` are photos shown with every pair, `caption` stands under these or the pair's own source, `origin` says
    on the first screen where the images come from.
    """

    runs: Mapping[str, Mapping[str, Any]]
    pairs: Sequence[Pair]
    questions: Mapping[str, Question]
    caption: str
    origin: str
    references: Sequence[Image.Image] = field(default=(), repr=False)


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


def write_page(compared: Comparison, path: Path, seed: int) -> None:
    """Write the page to `path` and its key beside it. The same images, runs and seed give the same two files.

    The order of the questions and which run is left are drawn from `seed`. The page's ids are hashes salted with the
    runs' identity, which only the key tells. UserError for a damaged image or a place that cannot be written.
    """
    runs = compared.runs
    digests = [sha256_file(file) for pair in compared.pairs for file in pair.drawn]
    salt = _opaque("", str(seed), *(str(value) for side in SIDES for value in runs[side].values()), *digests, size=64)
    by_id = {_opaque(salt, "pair", *pair.identity): pair for pair in compared.pairs}
    items = _shuffled_items(list(by_id), list(compared.questions), seed, salt)
    study = {"study": _opaque(salt, "study"), "format": FORMAT}
    html = _render(study | _page_data(items, by_id, salt, compared), compared)
    key = {"kind": KEY_KIND, "seed": seed, "runs": dict(runs), "pairs": _key(items, by_id)}
    # The key first: a page whose key could not be written would gather votes that nobody can read.
    write_json(key_path(path), study | key | {"questions": list(compared.questions)})
    write_text(path, html)


def _opaque(salt: str, *parts: str, size: int = 12) -> str:
    """An id that tells nothing without the salt."""
    return sha256_bytes("\x1f".join([salt, *parts]).encode("utf-8", "surrogatepass"))[:size]


def _shuffled_items(pairs: Sequence[str], questions: Sequence[str], seed: int, salt: str) -> list[_Item]:
    """All questions of every pair, in the order and with the sides that the seed draws."""
    items = [
        _Item(pair, question, SIDES[derive_seed(seed, "compare/left", salt, pair, question) % 2])
        for pair in pairs
        for question in questions
    ]
    return sorted(items, key=lambda item: derive_seed(seed, "compare/order", salt, item.pair, item.question))


def _key(items: Sequence[_Item], by_id: Mapping[str, Pair]) -> dict[str, Any]:
    left: dict[str, dict[str, str]] = {}
    for item in items:
        left.setdefault(item.pair, {})[item.question] = item.left
    return {pair: {**found.told, "left": left[pair]} for pair, found in by_id.items()}


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


def _page_data(items: Sequence[_Item], by_id: Mapping[str, Pair], salt: str, compared: Comparison) -> dict[str, Any]:
    """All that the page's script works with. A source that several pairs share is in it once."""
    images = {
        _opaque(salt, "image", pair, side): _embedded(load_image(file))
        for pair, found in by_id.items()
        for side, file in zip(SIDES, found.drawn, strict=True)
    }
    files_shown = dict.fromkeys(found.source for found in by_id.values() if found.source)
    sources = {file: _opaque(salt, "source", str(index)) for index, file in enumerate(files_shown)}
    images |= {name: _embedded(load_image(file), _PHOTO_SIDE) for file, name in sources.items()}
    questions = []
    for item in items:
        shows, pair = compared.questions[item.question].shows, by_id[item.pair]
        asked = {"pair": item.pair, "question": item.question}
        asked |= {side: _opaque(salt, "image", item.pair, getattr(item, side)) for side in ("left", "right")}
        asked |= {"prompt": pair.text} if shows != "photos" else {}
        asked |= {"source": sources[pair.source]} if pair.source and shows != "text" else {}
        questions.append(asked)
    return {
        "votes": VOTES_KIND,
        "kinds": {
            name: {"name": name, "text": one.text, "chip": one.chip, "hint": one.hint, "shows": one.shows}
            for name, one in compared.questions.items()
        },
        "questions": questions,
        "images": images,  # written in the order of their opaque ids, so that it does not tell the runs either
        "references": [_embedded(photo, _PHOTO_SIDE) for photo in compared.references],
    }


def _render(study: dict[str, Any], compared: Comparison) -> str:
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
        origin=compared.origin,
        caption=compared.caption,
        policy=policy,
        css=Markup(css),
        js=Markup(js),
    )

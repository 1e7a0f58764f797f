"""Runs over the subjects of the DreamBooth data set, in the paper's protocol and beside the published figures.

The unit is the subject: a setting's headline is the mean of its per-subject means, with a t interval over subjects.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from boothlab.config import NOT_HASHED
from boothlab.images.dreambench import LIVE_CLASSES, PREFIX
from boothlab.reporting.rows import cell_of
from boothlab.reporting.runs import SCORES, RunRecord
from boothlab.reporting.settings import label_of
from boothlab.reporting.tables import Cell, MetricGroup
from boothlab.tracking.manifest import config_hash

SUBJECTS, PROMPTS, IMAGES = 30, 25, 3000
"""The full protocol: 30 subjects × 25 prompts × 4 images."""
SHOWN = ("dino", "clip_i", "clip_t", "div", "pres", "feature_similarity")
"""The columns, the paper's first."""
PUBLISHED: tuple[tuple[str, str, dict[str, float]], ...] = (
    ("real images", "DreamBooth paper", {"dino": 0.774, "clip_i": 0.885}),
    ("DreamBooth, Imagen", "DreamBooth paper", {"dino": 0.696, "clip_i": 0.812, "clip_t": 0.306}),
    ("DreamBooth, Stable Diffusion", "DreamBooth paper", {"dino": 0.668, "clip_i": 0.803, "clip_t": 0.305}),
    (
        "Textual Inversion, Stable Diffusion",
        "DreamBooth paper",
        {"dino": 0.569, "clip_i": 0.780, "clip_t": 0.255},
    ),
    (
        "DreamBooth, Imagen, prior preservation, 15 subjects",
        "DreamBooth paper",
        {"pres": 0.493, "div": 0.391, "dino": 0.684, "clip_i": 0.815, "clip_t": 0.308},
    ),
    (
        "the same without prior preservation",
        "DreamBooth paper",
        {"pres": 0.664, "div": 0.371, "dino": 0.712, "clip_i": 0.828, "clip_t": 0.306},
    ),
    ("BLIP-Diffusion, fine-tuned", "its paper", {"dino": 0.670, "clip_i": 0.805, "clip_t": 0.302}),
    ("BLIP-Diffusion, zero-shot", "its paper", {"dino": 0.594, "clip_i": 0.779, "clip_t": 0.300}),
    ("SuTI", "its paper", {"dino": 0.741, "clip_i": 0.819, "clip_t": 0.304}),
    ("Kosmos-G", "its paper", {"dino": 0.694, "clip_i": 0.847, "clip_t": 0.287}),
)
"""Name, source, scores. DreamBooth 2208.12242, BLIP-Diffusion 2305.14720, SuTI 2304.00186, Kosmos-G 2310.02992."""
_WEIGHTS = {"clip_t": "images", "div": "prompts"}
"""What a pooled mean counts each score by; the others by pairs."""
_FOLLOWS = ("subject.images", "subject.class_noun", "subject.instance_prompt", "prior.class_prompt")
_FOLLOWS_TOO = ("evaluation.prompts", "seed")


@dataclass(frozen=True)
class SubjectRow:
    """One subject: means over its training seeds, of the last checkpoints. `seeds` counts them."""

    name: str
    class_noun: str
    live: bool
    seeds: int
    images: int
    scores: dict[str, float]


@dataclass(frozen=True)
class Benchmark:
    """One setting over the subjects.

    `headline` are means of per-subject means, with a 95% t interval over subjects; `pooled` are means in which every
    pair or image counts once, None where the samples' folders are gone; `real` is the real photos' own likeness.
    """

    labels: dict[str, str]
    scores: tuple[str, ...]
    rows: tuple[SubjectRow, ...]
    headline: dict[str, Cell]
    pooled: dict[str, float | None]
    real: dict[str, float]
    coverage: str
    notes: tuple[str, ...]


def benchmarks_of(runs: Sequence[RunRecord], group: MetricGroup, varied: Sequence[str]) -> list[Benchmark]:
    """A benchmark for each setting that the runs of a group have besides the subject; none without the data set.

    `varied` are the config keys in which the study's runs differ.
    """
    members = [run for run in runs if run.name in group.runs and subject_name(run) and run.last]
    settings: dict[str, list[RunRecord]] = {}
    for run in members:
        settings.setdefault(_setting(run), []).append(run)
    keys = [key for key in varied if key not in (*_FOLLOWS, *_FOLLOWS_TOO)]
    return [_benchmark(found, group.encoders, keys) for found in settings.values()]


def as_published(value: float | None) -> str:
    """A published figure with the three digits that were published; a dash where there is none."""
    return "–" if value is None else f"{value:.3f}"


def subject_name(run: RunRecord) -> str | None:
    """The subject's name in the data set; None for photos from anywhere else, and for scorings."""
    images = (run.config.get("subject") or {}).get("images")
    if not isinstance(images, str) or not images.startswith(PREFIX):
        return None
    return images.removeprefix(PREFIX).replace("\\", "/").rpartition("/")[2] or None


def _setting(run: RunRecord) -> str:
    """A hash of everything but the subject, and what follows from it, and the seed."""
    noun = str(run.config["subject"].get("class_noun"))
    worded = [str(run.settings.get(key)).replace(noun, "{class}") for key in _FOLLOWS[2:]]
    return str([config_hash(run.config, (*NOT_HASHED, *_FOLLOWS, *_FOLLOWS_TOO)), worded, len(run.prompts)])


def _benchmark(runs: Sequence[RunRecord], encoders: str, keys: Sequence[str]) -> Benchmark:
    by_subject: dict[str, list[RunRecord]] = {}
    for run in runs:
        by_subject.setdefault(subject_name(run) or "", []).append(run)
    measured = {score for run in runs if run.last for score in run.last.scores}
    scores = tuple(score for score in SHOWN if score in measured)
    rows = tuple(_row(name, found, scores) for name, found in sorted(by_subject.items()))
    cells = {score: cell_of(row.scores.get(score) for row in rows) for score in scores}
    return Benchmark(
        labels={key: label_of(runs[0].settings.get(key)) for key in keys},
        scores=scores,
        rows=rows,
        headline={score: cell for score, cell in cells.items() if cell is not None},
        pooled={score: _pooled(runs, score) for score in scores},
        real=_real(by_subject, scores),
        coverage=_coverage(rows, runs),
        notes=tuple(_notes(rows, runs, encoders)),
    )


def _row(name: str, runs: Sequence[RunRecord], scores: Sequence[str]) -> SubjectRow:
    noun = str(runs[0].config["subject"].get("class_noun"))
    values = {
        score: [run.last.scores[score] for run in runs if run.last and score in run.last.scores] for score in scores
    }
    means = {score: math.fsum(found) / len(found) for score, found in values.items() if found}
    images = sum(point.images for point in (runs[0].last.per_prompt if runs[0].last else []))
    return SubjectRow(name, noun, noun in LIVE_CLASSES, len(runs), images, means)


def _pooled(runs: Sequence[RunRecord], score: str) -> float | None:
    """The mean in which every pair (CLIP-T: image, DIV: prompt) counts once."""
    total = weight = 0.0
    for run in runs:
        details: list[dict[str, Any]] = run.last.details.get("metrics", []) if run.last else []
        counts = next((row.get("counts") or {} for row in details if row["name"] == score), {})
        count = counts.get(_WEIGHTS.get(score, "pairs"))
        if not isinstance(count, int) or run.last is None or score not in run.last.scores:
            return None
        total, weight = total + count * run.last.scores[score], weight + count
    return total / weight if weight else None


def _real(by_subject: dict[str, list[RunRecord]], scores: Sequence[str]) -> dict[str, float]:
    """The real photos among themselves, self-pairs excluded: the mean over subjects."""
    found = {}
    for score in scores:
        values = [runs[0].ceilings[score] for runs in by_subject.values() if score in runs[0].ceilings]
        if values:
            found[score] = math.fsum(values) / len(values)
    return found


def _coverage(rows: Sequence[SubjectRow], runs: Sequence[RunRecord]) -> str:
    images, prompts = sum(row.images for row in rows), sorted({len(run.prompts) for run in runs})
    seeds = sorted({row.seeds for row in rows})
    each = " or ".join(map(str, seeds))
    drawn = f"{' or '.join(map(str, prompts))} of {PROMPTS} prompts, {images} of {IMAGES} images"
    trained = f"{each} training {'seed' if seeds == [1] else 'seeds'} a subject"
    return f"{len(rows)} of {SUBJECTS} subjects, {drawn}; {trained}"


def _notes(rows: Sequence[SubjectRow], runs: Sequence[RunRecord], encoders: str) -> list[str]:
    """What stands between these figures and the published ones, a line each."""
    lines = []
    if encoders:
        lines.append(
            f"ours are scored with the {encoders} encoders, the published ones with CLIP and DINO ViT-S/16: "
            "the two do not compare, not even roughly"
        )
    else:
        lines.append(
            "the paper says neither which CLIP it used nor how images were resized; ours is stated under how the "
            "scores were measured"
        )
    if len(rows) < SUBJECTS or sum(row.images for row in rows) != IMAGES:
        lines.append("not the full protocol: fewer subjects, prompts or images give another mean")
    if any(row.scores.get("feature_similarity") is not None for row in rows):
        label = SCORES["feature_similarity"][0]
        lines.append(f"{label} is neither CLIP-I nor DINO and has no published figure")
    if "div" in rows[0].scores:
        lines.append("the paper measured DIV by LPIPS; ours is by the encoder that the definitions name")
    if len({run.config.get("backbone", {}).get("name") for run in runs}) > 1:
        lines.append("the subjects were not all trained on one backbone")
    return lines

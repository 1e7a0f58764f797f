"""Run folders as a report sees them: what was set, what was scored at each checkpoint, and how it was measured."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from boothlab.config import NOT_HASHED
from boothlab.errors import UserError
from boothlab.files import shown
from boothlab.reporting.shapes import check_config, read_details, read_object, scalar
from boothlab.tracking import metrics
from boothlab.tracking.history import FILE_NAME as HISTORY
from boothlab.tracking.history import Row, read_history
from boothlab.tracking.manifest import FILE_NAME as MANIFEST
from boothlab.tracking.manifest import config_hash, read_manifest

SCORES: dict[str, tuple[str, str]] = {
    "clip_i": ("CLIP-I", metrics.CLIP_I),
    "dino": ("DINO", metrics.DINO),
    "clip_t": ("CLIP-T", metrics.CLIP_T),
    "balanced": ("balanced", metrics.BALANCED),
    "div": ("DIV", metrics.DIV),
    "pres": ("PRES", metrics.PRES),
    "feature_similarity": ("feature similarity", metrics.FEATURE_SIMILARITY),
}
"""The scores a report shows: short name → label and metric key. All but PRES are better when higher."""
OPTIONAL_SCORES = frozenset({"feature_similarity"})
"""Those that most runs lack: without them a file of numbers has no column for it."""


def higher_is_better(score: str) -> bool:
    """The direction of a score by its short name."""
    return bool(metrics.REGISTRY[SCORES[score][1]].higher_is_better)


@dataclass(frozen=True)
class PromptScores:
    """One prompt at one checkpoint: the means over its images by short name; None where not measured."""

    prompt: str
    images: int
    scores: dict[str, float | None]


@dataclass(frozen=True)
class Checkpoint:
    """One evaluation of a run. `folder` is its samples folder (grid.png, one PNG an image), None if it is gone.

    `constant_images` counts the samples of a single colour, such as all black.
    """

    step: int
    scores: dict[str, float]
    folder: Path | None
    constant_images: int = 0

    @property
    def grid(self) -> Path | None:
        """The grid of all samples."""
        return self.folder / "grid.png" if self.folder and (self.folder / "grid.png").is_file() else None

    def image(self, prompt_index: int, seed: int) -> Path | None:
        """One sample, by prompt index and image seed."""
        path = self.folder / f"prompt{prompt_index:02d}_seed{seed}.png" if self.folder else None
        return path if path and path.is_file() else None

    @cached_property
    def details(self) -> dict[str, Any]:
        """metrics.json of the checkpoint: `metrics` (values with their definitions) and `per_prompt`.

        Raises UserError if it is not what boothlab writes.
        """
        return read_details(self.folder / "metrics.json") if self.folder else {}

    @property
    def per_prompt(self) -> list[PromptScores]:
        """The scores of each prompt, in the order of the prompts; empty if they were not kept."""
        return [
            PromptScores(row["prompt"], row["images"], {name: scalar(row[name]) for name in SCORES if name in row})
            for row in self.details.get("per_prompt", [])
        ]


@dataclass(frozen=True)
class RunRecord:
    """One run folder. `config` is the resolved config; `checkpoints` are the scored ones after step 0, by step."""

    folder: Path
    status: str
    error: str | None
    config: dict[str, Any]
    seed: int
    setting: str
    floor: Checkpoint | None
    checkpoints: list[Checkpoint]
    ceilings: dict[str, float]
    suffix: str
    manifest: dict[str, Any] = field(repr=False)
    summary: dict[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        """The folder's name: `<name>-<hash8>-s<seed>`."""
        return self.folder.name

    @property
    def last(self) -> Checkpoint | None:
        """The last scored checkpoint."""
        return self.checkpoints[-1] if self.checkpoints else None

    @property
    def prompts(self) -> list[str]:
        """The evaluation prompts with token and class filled in."""
        checkpoint = self.last or self.floor
        return [row.prompt for row in checkpoint.per_prompt] if checkpoint else []

    @property
    def image_seeds(self) -> list[int]:
        """The image seeds of an evaluation."""
        evaluation = self.config.get("evaluation")
        if evaluation:
            return [int(seed) for seed in evaluation.get("seeds", [])]
        # A scoring takes them from the run that it scores; its images carry them in their names.
        folder = self.last.folder if self.last else None
        names = [path.stem for path in folder.glob("prompt00_seed*.png")] if folder else []
        return sorted(int(name.removeprefix("prompt00_seed")) for name in names)

    @property
    def is_scoring(self) -> bool:
        """Whether it scored the adapter of another run (`boothlab score`) and trained nothing."""
        return "lora" not in self.config

    @property
    def is_rerun(self) -> bool:
        """Whether it repeats another run to see that it comes out the same (`boothlab rerun` without a fork)."""
        return (self.manifest.get("parent") or {}).get("fork") is False

    def best(self, score: str) -> Checkpoint | None:
        """The checkpoint after step 0 with the best finite value of a score; the earliest of equals."""
        return self._best.get(score)

    @cached_property
    def _best(self) -> dict[str, Checkpoint]:
        found = {}
        for score in SCORES:
            scored = [point for point in self.checkpoints if math.isfinite(point.scores.get(score, math.nan))]
            sign = 1 if higher_is_better(score) else -1
            if scored:
                found[score] = max(scored, key=lambda point: (sign * point.scores[score], -point.step))
        return found

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Every dotted key of the config that can change a result, but the seed."""
        hidden = tuple(f"{key}." for key in NOT_HASHED)
        return {
            key: value
            for key, value in _flat(self.config)
            if key != "seed" and key not in NOT_HASHED and not key.startswith(hidden)
        }

    @property
    def copying(self) -> list[int]:
        """The steps at which DINO is above the ceiling of the real photos: the model may be copying them."""
        limit = self.ceilings.get("dino", math.inf)
        return [point.step for point in self.checkpoints if point.scores.get("dino", -math.inf) > limit]

    @property
    def definition(self) -> dict[str, str]:
        """How each score was measured: encoder, preprocessing, token policy and version, one line a score."""
        checkpoint = self.last or self.floor
        rows = checkpoint.details.get("metrics", []) if checkpoint else []
        # Not the pairing: PRES names the class in it, and a sweep over subjects is measured alike all the same.
        parts = ("encoder", "preprocessing", "token_policy", "definition_version")
        return {row["name"]: " · ".join(str(row.get(part, "")) for part in parts) for row in rows}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def settings_of(run: RunRecord) -> dict[str, Any]:
    """Every dotted key of a run's config that can change a result, but the seed."""
    return run.settings


def varied_keys(runs: Sequence[RunRecord]) -> list[str]:
    """The config keys, the seed apart, that are not the same in all runs, in the order of the config.

    Trainings and scorings have other keys altogether; each are compared among themselves.
    """
    found: dict[str, None] = {}
    for kind in (False, True):
        settings = [settings_of(run) for run in runs if run.is_scoring is kind]
        keys = dict.fromkeys(key for values in settings for key in values)
        found |= {key: None for key in keys if len({repr(values.get(key)) for values in settings}) > 1}
    return list(found)


def shown_value(value: Any) -> str:
    """A config value as a person writes it: 1e-4, on, off, –, text."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        text = f"{value:g}"
        if "e" not in text and (abs(value) < 0.01 and value != 0):
            text = f"{value:e}"
            mantissa, _, exponent = text.partition("e")
            return f"{float(mantissa):g}e{int(exponent)}"
        mantissa, e, exponent = text.partition("e")
        return f"{mantissa}e{int(exponent)}" if e else text
    return str(value)


def is_run_folder(folder: Path) -> bool:
    """Whether a folder holds a run."""
    return (folder / MANIFEST).is_file()


def is_editing(folder: Path) -> bool:
    """Whether a run folder is one of `boothlab edit`; not if its manifest cannot be read, which others complain of."""
    config = _config_of(folder)
    return "method" in config and "editors" in config


def is_captioning(folder: Path) -> bool:
    """Whether a run folder is one of `boothlab caption`, which has a page of its own and no scores."""
    return "tag_template" in _config_of(folder)


def _config_of(folder: Path) -> dict[str, Any]:
    try:
        config = read_object(folder / MANIFEST).get("config")
    except UserError:
        return {}
    return config if isinstance(config, dict) else {}


def find_trainings(folders: Sequence[Path]) -> list[Path]:
    """The run folders that `find_runs` finds but for those of `boothlab edit` and `caption`, which have other figures.

    Raises UserError if there are none.
    """
    found = [path for path in find_runs(folders) if not is_editing(path) and not is_captioning(path)]
    if not found:
        where = ", ".join(shown(folder) for folder in folders)
        raise UserError(f"{where}: holds runs of boothlab edit or caption only; this is about training runs")
    return found


def find_runs(folders: Iterable[Path]) -> list[Path]:
    """The run folders among and below the given ones, sorted, each once. Raises UserError for a folder without any."""
    found: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{shown(folder)}: there is no such folder; give a run, or a folder of runs")
        inside = sorted(_runs_below(folder))
        if not inside:
            raise UserError(f"{shown(folder)}: holds no run (a run has a {MANIFEST})")
        found.update(dict.fromkeys(path.resolve() for path in inside))
    return list(found)


def _runs_below(folder: Path) -> Iterable[Path]:
    """The folder itself if it is a run, else those below it. Runs are not searched: they hold thousands of images."""
    for path, folders, files in os.walk(folder):
        if MANIFEST in files:
            folders.clear()
            yield Path(path)


def read_run(folder: Path) -> RunRecord:
    """One run folder, finished or not. Raises UserError if it is none, or one that cannot be read."""
    manifest = read_manifest(folder)
    summary = read_object(folder / "summary.json")
    config = manifest["config"]
    if not isinstance(manifest.get("seed"), int):
        raise UserError(f"{shown(folder / MANIFEST)}: has no config or no seed; run it again, or move it elsewhere")
    check_config(config, folder / MANIFEST)
    rows = read_history(folder / HISTORY).rows if (folder / HISTORY).is_file() else []
    points = _checkpoints(folder, rows)
    return RunRecord(
        folder=folder,
        status=str(summary.get("status") or manifest.get("status")),
        error=None if summary.get("error") is None else str(summary["error"]),
        config=config,
        seed=manifest["seed"],
        setting=config_hash(config, (*NOT_HASHED, "seed")),
        floor=next((point for point in points if point.step == 0), None),
        checkpoints=[point for point in points if point.step > 0],
        ceilings=_ceilings(rows),
        suffix=_suffix(rows),
        manifest=manifest,
        summary=summary,
    )


def _named(scalars: Mapping[str, Any], key: str) -> float | None:
    """A score under its plain key, or under its key with an encoder's name."""
    found = [value for name, value in sorted(scalars.items()) if name == key or name.startswith(key + "/")]
    return float(found[0]) if found else None


def _count(value: float | None) -> int:
    return int(value) if value is not None and math.isfinite(value) else 0


def _checkpoints(folder: Path, rows: Sequence[Row]) -> list[Checkpoint]:
    points: dict[int, Checkpoint] = {}
    for row in rows:
        scores = {name: value for name, (_, key) in SCORES.items() if (value := _named(row.scalars, key)) is not None}
        if "clip_i" in scores:
            samples = folder / "samples" / f"step_{row.step:06d}"
            constant = _count(_named(row.scalars, metrics.CONSTANT_IMAGES))
            points[row.step] = Checkpoint(row.step, scores, samples if samples.is_dir() else None, constant)
    return [points[step] for step in sorted(points)]


def _ceilings(rows: Sequence[Row]) -> dict[str, float]:
    keys = {"clip_i": metrics.CLIP_I_CEILING, "dino": metrics.DINO_CEILING}
    keys["feature_similarity"] = metrics.FEATURE_SIMILARITY_CEILING
    return {
        name: value for row in rows for name, key in keys.items() if (value := _named(row.scalars, key)) is not None
    }


def _suffix(rows: Sequence[Row]) -> str:
    """The encoders' name behind the metric keys; empty for the published encoders."""
    names = {name for row in rows for name in row.scalars if name.startswith(metrics.CLIP_I + "/")}
    return min(names).removeprefix(metrics.CLIP_I + "/") if names else ""

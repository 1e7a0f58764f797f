"""What the plots and viewers of a report's page work with, as plain data fit for JSON: settings, runs, scores, prompts.

Everything is told by index: a run names its setting, its group, its prompts and its subject by their places in lists.
"""

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boothlab.reporting.pictures import Plan, Sheet, shown_points, subject_of, subject_photos
from boothlab.reporting.runs import SCORES, Checkpoint, RunRecord, higher_is_better
from boothlab.reporting.settings import label_of, natural_order
from boothlab.reporting.study import Study
from boothlab.tracking import metrics

DIGITS = 5
VAGUE = {"enabled", "weight", "steps", "images", "count", "name", "source", "clip", "dino"}
"""Last parts of keys that say nothing without the part before."""
LONGEST_LABEL = 90
ADAPTER = Path("lora") / "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class Pictures:
    """The sheets of the study's runs by (index of the run, step), and the plan that they follow."""

    plan: Plan
    sheets: dict[tuple[int, int], Sheet]


def page_data(study: Study, pictures: Pictures, folder: Path) -> dict[str, Any]:
    """Everything the page's scripts need but the pictures. Paths are relative to `folder`, where the page will lie."""
    keys = told_apart_by(study.runs, study.varied)
    settings = _settings(study)
    index_of = {run: index for index, setting in enumerate(settings) for run in setting["runs"]}
    prompts = Prompts(study.runs)
    subjects = _subjects(study.runs)
    runs = []
    for index, run in enumerate(study.runs):
        row = _run(run, folder) | {"setting": index_of[index], "prompts": prompts.of(run)}
        row |= {"subject": subjects[1].get(subject_of(run), -1), "sheets": _sheets(index, run, pictures)}
        runs.append(row)
    measured = {score for run in study.runs for point in run.checkpoints for score in point.scores}
    return {
        "title": study.title,
        "scores": [score_info(score) for score in SCORES if score in measured],
        "axes": list(dict.fromkeys(table.axis for table in study.tables if table.axis)),
        "keys": [_key(study.runs, key, keys) for key in study.varied],
        "groups": [
            {"name": group.name, "encoders": group.encoders, "floor": _rounded(group.floor)}
            | {"ceiling": _rounded(group.ceiling)}
            for group in study.groups
        ],
        "settings": settings,
        "runs": runs,
        "prompts": [{"text": text, "short": short} for text, short in zip(prompts.texts, prompts.short, strict=True)],
        "subjects": subjects[0],
    }


def score_info(score: str) -> dict[str, Any]:
    """A score's name, label, direction and one-line meaning."""
    label, key = SCORES[score]
    about = metrics.REGISTRY[key].description
    for name, other in SCORES.values():
        about = re.sub(rf"{re.escape(other)}\b", name, about)
    return {"id": score, "label": label, "higher": higher_is_better(score), "about": about}


def number(value: Any) -> float | None:
    """A score for JSON: five digits; None where there is none, or none that is finite (written as "nan" in files)."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return round(found, DIGITS) if math.isfinite(found) else None


def _rounded(scores: Mapping[str, Any]) -> dict[str, float | None]:
    return {score: number(value) for score, value in scores.items()}


# Settings


def told_apart_by(runs: Sequence[RunRecord], varied: Sequence[str]) -> list[str]:
    """The varied keys without those that say nothing new: of keys that divide the runs alike, the one shortest to say.

    A sweep over subjects changes the photos, the class noun and two prompts at once; the noun is enough for a label.
    """
    alike: dict[tuple[int, ...], list[str]] = {}
    for key in varied:
        values = [label_of(run.settings.get(key)) for run in runs]
        places = {value: index for index, value in enumerate(dict.fromkeys(values))}
        alike.setdefault(tuple(places[value] for value in values), []).append(key)
    several = [keys for places, keys in alike.items() if any(places)]
    kept = {min(keys, key=lambda key: _telling(runs, key)) for keys in several}
    return [key for key in varied if key in kept]


def _telling(runs: Sequence[RunRecord], key: str) -> tuple[int, str]:
    return max((len(label_of(run.settings.get(key))) for run in runs), default=0), key


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Dotted keys by as many of their last parts as it takes: lora.rank → rank, but prior.enabled stays."""
    found = {}
    for key in keys:
        parts = key.split(".")
        fewest = 2 if parts[-1] in VAGUE else 1
        names = [".".join(parts[-count:]) for count in range(fewest, len(parts) + 1)]
        others = [other for other in keys if other != key]
        found[key] = next((name for name in names if not any(_ends(other, name) for other in others)), key)
    return found


def _ends(key: str, name: str) -> bool:
    return key == name or key.endswith("." + name)


def setting_label(labels: Mapping[str, str], names: Mapping[str, str]) -> str:
    """One line for a setting: rank 16 · lr 1e-4."""
    text = " · ".join(f"{name} {labels[key]}" for key, name in names.items() if key in labels)
    return text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 1].rstrip() + "…"


def _settings(study: Study) -> list[dict[str, Any]]:
    group_of = {name: index for index, group in enumerate(study.groups) for name in group.runs}
    members = [[run for run in study.runs if run.name in set(group.runs)] for group in study.groups]
    names = [short_names(told_apart_by(runs, study.varied)) for runs in members]
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for index, run in enumerate(study.runs):
        group = group_of.get(run.name, 0)
        labels = {key: label_of(run.settings.get(key)) for key in study.varied}
        label = setting_label(labels, names[group]) or "the only setting"
        fresh = {"label": label, "group": group, "values": list(labels.values()), "runs": []}
        found.setdefault((group, run.setting), fresh)["runs"].append(index)
    settings = list(found.values())
    # Labels that were cut, or that leave out a key, may be equal: a number keeps such settings apart in plots.
    seen: dict[tuple[int, str], int] = {}
    for setting in settings:
        count = seen[setting["group"], setting["label"]] = seen.get((setting["group"], setting["label"]), 0) + 1
        setting["label"] += f" ({count})" if count > 1 else ""
    return settings


def _key(runs: Sequence[RunRecord], key: str, telling: Sequence[str]) -> dict[str, Any]:
    values = sorted((run.settings.get(key) for run in runs), key=natural_order)
    labels = list(dict.fromkeys(map(label_of, values)))
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    name = short_names([*telling, key] if key not in telling else telling)[key]
    return {"id": key, "name": name, "values": labels, "numeric": numeric, "telling": key in telling}


# Runs


def _run(run: RunRecord, folder: Path) -> dict[str, Any]:
    scores = [score for score in SCORES if any(score in point.scores for point in run.checkpoints)]
    best = run.best("balanced") or run.last
    adapter = run.folder / ADAPTER
    return {
        "name": run.name,
        "seed": run.seed,
        "steps": [point.step for point in run.checkpoints],
        "scores": {score: [number(point.scores.get(score)) for point in run.checkpoints] for score in scores},
        "floor": _rounded(run.floor.scores) if run.floor else {},
        "ceiling": _rounded(run.ceilings),
        "best": run.checkpoints.index(best) if best else -1,
        "copying": run.copying,
        "flat": [point.step for point in run.checkpoints if point.constant_images],
        "folder": relative(run.folder, folder),
        "adapter": relative(adapter, folder) if adapter.is_file() else "",
        "scoring": run.is_scoring,
        "by_prompt": {
            "floor": _by_prompt(run.floor),
            "best": _by_prompt(best),
            "last": _by_prompt(run.last) if run.last is not best else None,
        },
    }


def _by_prompt(point: Checkpoint | None) -> dict[str, list[float | None]] | None:
    """Short name → the score of each prompt; None without a checkpoint or without scores that were kept."""
    rows = point.per_prompt if point else []
    names = dict.fromkeys(name for row in rows for name in row.scores)
    return {name: [number(row.scores.get(name)) for row in rows] for name in names} or None


def relative(path: Path, folder: Path) -> str:
    """The path as seen from the page's folder, with forward slashes; its last two parts if there is no such way."""
    try:
        return Path(os.path.relpath(path, folder.resolve())).as_posix()
    except ValueError:  # another drive
        return Path(*path.parts[-2:]).as_posix()


def _sheets(index: int, run: RunRecord, pictures: Pictures) -> dict[str, dict[str, Any]]:
    found = {}
    for point in shown_points(run, pictures.plan.checkpoints):
        sheet = pictures.sheets.get((index, point.step))
        if sheet:
            shape = {"id": sheet.id, "cell": sheet.cell, "prompts": sheet.prompts, "seeds": sheet.seeds}
            found[str(point.step)] = shape | ({"gaps": sheet.gaps} if sheet.gaps else {})
    return found


def _subjects(runs: Iterable[RunRecord]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The subjects with their photos, and the index of each."""
    of_subject: dict[str, list[RunRecord]] = {}
    for run in runs:
        of_subject.setdefault(subject_of(run), []).append(run)
    of_subject.pop("", None)
    found = [{"photos": subject_photos(members)} for members in of_subject.values()]
    return found, {subject: index for index, subject in enumerate(of_subject)}


class Prompts:
    """The evaluation prompts of all runs, each once. Runs of several subjects share a prompt if its template is one."""

    def __init__(self, runs: Sequence[RunRecord]) -> None:
        self._key_of: dict[str, str] = {}
        filled: dict[str, dict[str, None]] = {}
        for run in sorted(runs, key=lambda run: run.is_scoring):  # a scoring has no templates of its own
            templates = (run.config.get("evaluation") or {}).get("prompts") or []
            keys = templates if len(templates) == len(run.prompts) else run.prompts
            for key, text in zip(keys, run.prompts, strict=True):
                filled.setdefault(self._key_of.setdefault(text, str(key)), {})[text] = None
        self._places = {key: index for index, key in enumerate(filled)}
        self.texts = [next(iter(texts)) if len(texts) == 1 else key for key, texts in filled.items()]
        self.short = without_shared_beginning(self.texts)

    def of(self, run: RunRecord) -> list[int]:
        """The places of a run's prompts, in the run's order."""
        return [self._places[self._key_of[text]] for text in run.prompts]


def without_shared_beginning(texts: Sequence[str]) -> list[str]:
    """Texts less the words that all begin with: a photo of a sks robot on the beach → … on the beach."""
    words = [text.split() for text in texts]
    if len(texts) < 2:
        return list(texts)
    shared = 0
    while all(len(line) > shared + 1 for line in words) and len({line[shared] for line in words}) == 1:
        shared += 1
    return ["… " + " ".join(line[shared:]) for line in words] if shared > 1 else list(texts)

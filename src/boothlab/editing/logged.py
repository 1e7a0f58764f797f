"""What an editing run sends to W&B beside its means: grid, a table of pictures, settings, and a curve if it has one.

A sweep's curve of preservation against strength is one over its runs: every run logs its method's parameters under the
step of its scores, so that both are in its summary and a panel over the group draws the one against the other.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from boothlab.editing.drawing import Canvas, Item, settings_for
from boothlab.editing.methods import EditSettings
from boothlab.editing.record import PairRow, condition_maps, files_of
from boothlab.editing.requests import PARTIAL, EditMethod, control_kinds
from boothlab.evaluation.edit_metrics import EDIT_SCORES
from boothlab.evaluation.edit_summary import unit_values
from boothlab.evaluation.statistics import unit_means
from boothlab.tracking import metrics
from boothlab.tracking.run import Tracker

MOST_TABLE_ROWS = 200
"""Of more images the first ones: a row has three pictures or more, and W&B copies each of them."""
TABLE, SETTINGS, CURVE = "samples/edits", "samples/settings", "samples/preservation_against_strength"
STRENGTH, PRESERVATION = "clip_directional", "clip_image"


def parameters(method: EditMethod, settings: EditSettings) -> dict[str, float]:
    """The parameters that a method reads, by metric key. Control scales are those of the kinds that it follows."""
    if method is EditMethod.copy:
        return {}
    found = {metrics.EDIT_STEPS: settings.steps, metrics.EDIT_GUIDANCE: settings.guidance_scale}
    if method in PARTIAL:
        found[metrics.EDIT_STRENGTH] = settings.strength
    if method is EditMethod.instruct_pix2pix:
        found[metrics.EDIT_IMAGE_GUIDANCE] = settings.image_guidance_scale
    scales = {settings.control_scales.get(kind, 1.0) for kind in control_kinds(method, settings)}
    if len(scales) == 1:
        found[metrics.EDIT_CONTROL_SCALE] = scales.pop()
    return {key: float(value) for key, value in found.items()}


def shared_parameters(canvas: Canvas, items: Sequence[Item]) -> dict[str, float]:
    """The parameters that are the same for every image of a run: edits may bring their own."""
    found: dict[str, set[float]] = {}
    for item in items:
        for key, value in parameters(canvas.method, settings_for(item.task, canvas.settings)).items():
            found.setdefault(key, set()).add(value)
    return {key: values.pop() for key, values in found.items() if len(values) == 1}


def log_pictures(tracker: Tracker, canvas: Canvas, rows: Sequence[PairRow], grid: Path, step: int) -> int:
    """The grid and the table of pictures; returns how many rows the table has."""
    caption = f"{canvas.method.value}: source, conditions, edits, truth"
    tracker.log_images(step, "samples/grid", [(grid, caption)])
    shown = rows[:MOST_TABLE_ROWS]
    columns, data = picture_table(canvas, shown)
    tracker.log_table(step, TABLE, columns, data)
    return len(shown)


def picture_table(canvas: Canvas, rows: Sequence[PairRow]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows: who it is, source, condition maps, the edit and the known answer as files, every score.

    What there is not, a map, an answer or a score, is None: never 0 and never another image's.
    """
    maps = condition_maps(canvas.folder)
    kinds = sorted({kind for row in rows for kind in maps.get(row.item.task.image_name, {})})
    truth = any(row.item.task.truth for row in rows)
    scores = [name for name in EDIT_SCORES if any(name in row.score.values for row in rows)]
    data = []
    for row in rows:
        files, mine = files_of(canvas.folder, row), maps.get(row.item.task.image_name, {})
        facts = row.facts()
        told = {key: facts[key] for key in ("image", "edit", "seed")} | {"method": canvas.method.value} | facts
        pictures = [files["source"], *(mine.get(kind) for kind in kinds), files["file"]]
        pictures += [files["truth"]] if truth else []
        data.append([*told.values(), *pictures, *(row.score.values.get(name) for name in scores)])
        columns = [*told, "source", *kinds, "edited", *(["truth"] if truth else []), *scores]
    return columns, data


def log_settings(tracker: Tracker, canvas: Canvas, rows: Sequence[PairRow], step: int) -> None:
    """If edits bring settings of their own: a table of these with their means, and preservation against strength."""
    groups = by_setting(canvas, rows)
    if len(groups) < 2:
        return
    told = [dict(key) for key in groups]
    keys = [key for key in dict.fromkeys(name for one in told for name in one) if len({o.get(key) for o in told}) > 1]
    scores = [name for name in EDIT_SCORES if any(name in row.score.values for row in rows)]
    data: list[list[Any]] = [
        [*(one.get(key) for key in keys), len(group), *means_of(group, scores)]
        for one, group in zip(told, groups.values(), strict=True)
    ]
    columns = [*(key.removeprefix("edit/") for key in keys), "images", *scores]
    tracker.log_table(step, SETTINGS, columns, data)
    if {STRENGTH, PRESERVATION} <= set(scores):
        x, y = columns.index(STRENGTH), columns.index(PRESERVATION)
        points = sorted((row[x], row[y]) for row in data if row[x] is not None and row[y] is not None)
        tracker.log_curve(step, CURVE, [EDIT_SCORES[name].label for name in (STRENGTH, PRESERVATION)], points)


def by_setting(canvas: Canvas, rows: Sequence[PairRow]) -> Mapping[tuple[tuple[str, float], ...], list[PairRow]]:
    """The rows by the parameters they were drawn with, in the order of these."""
    found: dict[tuple[tuple[str, float], ...], list[PairRow]] = {}
    for row in rows:
        key = parameters(canvas.method, settings_for(row.item.task, canvas.settings))
        found.setdefault(tuple(sorted(key.items())), []).append(row)
    return dict(sorted(found.items()))


def means_of(rows: Sequence[PairRow], scores: Sequence[str]) -> list[float | None]:
    """Each score's mean as the summary takes it: seeds, then edits, then images. None where nothing has it."""
    found: list[float | None] = []
    for name in scores:
        units = unit_values([row.row for row in rows], name)
        means = list(unit_means(units).values()) if units else []
        found.append(sum(means) / len(means) if means else None)
    return found

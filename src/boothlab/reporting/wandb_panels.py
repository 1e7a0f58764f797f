"""What W&B shows of a study's runs: the filters that pick exactly those runs, and the panels over them."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from boothlab.reporting.runs import SCORES, RunRecord, settings_of
from boothlab.tracking import metrics

GRIDS = "samples/grid"
"""The media key under which a run logs the grid of its samples at each evaluation."""
_TRAINING = (metrics.TRAIN_LOSS, metrics.TRAIN_LOSS_INSTANCE, metrics.TRAIN_LOSS_PRIOR, metrics.TRAIN_GRAD_NORM)
_LIKENESS = ("clip_i", "dino")
_LOG_RATIO = 20.0
"""Values that lie further apart than this are put on a logarithmic axis."""
_WANDB_FOLDER = re.compile(r"(?:offline-)?run-(?P<started>\d{8}_\d{6})-(?P<id>.+)")
_ROW, _COLUMNS = 6, 24  # the height of a panel and the width of a page, in W&B's grid units


def group_of(run: RunRecord) -> str:
    """The W&B group of a run: `tracking.group`, which a sweep sets to its name, or else the experiment."""
    tracking: Mapping[str, Any] = run.config.get("tracking") or {}
    return str(tracking.get("group") or run.config.get("experiment") or "")


def wandb_folder(run: RunRecord) -> Path | None:
    """What the last attempt of a run recorded for W&B, as `wandb sync` takes it; None if there is nothing."""
    found = [(_started(path), path) for path in (run.folder / "wandb").glob("*run-*") if _started(path)]
    return max(found)[1] if found else None


def _started(folder: Path) -> str:
    match = _WANDB_FOLDER.fullmatch(folder.name)
    return match["started"] if match else ""


def wandb_id(run: RunRecord) -> str | None:
    """The id of a run in W&B; None if its folder holds no recording."""
    folder = wandb_folder(run)
    match = _WANDB_FOLDER.fullmatch(folder.name) if folder else None
    return match["id"] if match else None


def only(runs: Sequence[RunRecord], group: str | None = None) -> str:
    """A filter for exactly these runs: by their W&B ids, or where one has none, by name, within a group if given."""
    ids = [wandb_id(run) for run in runs]
    if all(ids):
        return f'Metric("ID") in [{", ".join(_quoted(str(one)) for one in ids)}]'
    named = f'Metric("Name") in [{", ".join(_quoted(run.name) for run in runs)}]'
    return named if group is None else f'Metric("Group") == {_quoted(group)} and {named}'


def _quoted(text: str) -> str:
    """The text in quotes for a filter. wandb-workspaces rewrites `=`, `<` and `>` wherever they stand in a filter and
    reads the rest as Python, so everything that is not plainly harmless becomes an escape.
    """
    safe = (char if re.match(r"[A-Za-z0-9_.-]", char) else f"\\U{ord(char):08x}" for char in text)
    return f'"{"".join(safe)}"'


def score_key(score: str, suffix: str) -> str:
    """The key a score is logged under: `eval/clip_i`, or with an encoder's name `eval/clip_i/dollhouse`."""
    key = SCORES[score][1]
    return metrics.variant(key, suffix) if suffix else key


def scores_of(runs: Iterable[RunRecord]) -> list[str]:
    """The scores that any checkpoint of the runs has, by short name, in the usual order."""
    measured = {score for run in runs for checkpoint in run.checkpoints for score in checkpoint.scores}
    return [score for score in SCORES if score in measured]


def suffix_of(runs: Sequence[RunRecord]) -> str:
    """The encoders' name behind the metric keys of runs that were measured alike."""
    return runs[0].suffix if runs else ""


def axes(runs: Sequence[RunRecord], varied: Iterable[str]) -> list[str]:
    """Those of the varied keys that W&B can put on an axis: keys of the config whose values are no lists."""
    settings = [settings_of(run) for run in runs]
    return [key for key in varied if all(not isinstance(one.get(key, []), list) for one in settings)]


def columns(runs: Sequence[RunRecord], varied: Sequence[str]) -> list[str]:
    """The columns of the runs table that say what a study is about: what was varied, the seed, the best scores."""
    suffix, keys = suffix_of(runs), [*axes(runs, varied), "seed"]
    config = [f"config:{head}.value{dot}{rest}" for head, dot, rest in (key.partition(".") for key in keys)]
    return ["run:displayName", *config, *(f"summary:best/{score_key(score, suffix)}" for score in scores_of(runs))]


def curves(wr: ModuleType, runs: Sequence[RunRecord], y: int = 0) -> list[Any]:
    """A line plot of each score over the optimizer step, three in a row."""
    suffix, width = suffix_of(runs), _COLUMNS // 3
    return [
        wr.LinePlot(
            title=f"{SCORES[score][0]}{' ↓' if score == 'pres' else ''}",
            x=metrics.STEP_KEY,
            y=[score_key(score, suffix)],
            title_x="optimizer step",
            max_runs_to_show=max(10, len(runs)),  # W&B would show ten
            layout=wr.Layout(x=width * (index % 3), y=y + _ROW * (index // 3), w=width, h=_ROW),
        )
        for index, score in enumerate(scores_of(runs))
    ]


def trade_offs(wr: ModuleType, runs: Sequence[RunRecord], varied: Sequence[str], y: int = 0) -> list[Any]:
    """Likeness against prompt-following at the last checkpoint, both of one adapter, and what led to which score."""
    suffix, scores, half = suffix_of(runs), scores_of(runs), _COLUMNS // 2
    likeness = [score for score in _LIKENESS if score in scores and "clip_t" in scores]
    scatters = [
        wr.ScatterPlot(
            title=f"{SCORES[score][0]} against CLIP-T, last checkpoint",
            x=wr.SummaryMetric(score_key("clip_t", suffix)),
            y=wr.SummaryMetric(score_key(score, suffix)),
            layout=wr.Layout(x=half * index, y=y, w=half, h=8),
        )
        for index, score in enumerate(likeness)
    ]
    parallel = wr.ParallelCoordinatesPlot(
        title="settings and best scores",
        columns=[*_setting_columns(wr, runs, varied), *_best_columns(wr, scores, suffix)],
        layout=wr.Layout(x=0, y=y + 8 * bool(scatters), w=_COLUMNS, h=9),
    )
    return [*scatters, parallel]


def _setting_columns(wr: ModuleType, runs: Sequence[RunRecord], varied: Sequence[str]) -> list[Any]:
    return [
        # A plain "config:lr" would be taken for the name of a summary metric.
        wr.ParallelCoordinatesPlotColumn(wr.Config(key), display_name=key, log=True if _spread(runs, key) else None)
        for key in axes(runs, varied)
    ]


def _best_columns(wr: ModuleType, scores: Sequence[str], suffix: str) -> list[Any]:
    return [
        wr.ParallelCoordinatesPlotColumn(
            wr.SummaryMetric(f"best/{score_key(score, suffix)}"), display_name=f"best {SCORES[score][0]}"
        )
        for score in scores
    ]


def _spread(runs: Sequence[RunRecord], key: str) -> bool:
    """Whether the values of a key are positive numbers of different magnitudes, as learning rates are."""
    values = [settings_of(run).get(key) for run in runs]
    numbers = [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(values) or min(numbers, default=0.0) <= 0 or not all(map(math.isfinite, numbers)):
        return False
    return max(numbers) / min(numbers) > _LOG_RATIO


def grids(wr: ModuleType) -> list[Any]:
    """The sample grids, a row a run and a column an evaluation."""
    full = wr.Layout(x=0, y=0, w=_COLUMNS, h=14)
    return [wr.MediaBrowser(media_keys=[GRIDS], grid_x_axis="step", grid_y_axis="run", layout=full)]


def training(wr: ModuleType, runs: Sequence[RunRecord]) -> list[Any]:
    """Losses and the gradient norm over the optimizer step."""
    limit = max(10, len(runs))
    return [wr.LinePlot(title=key, x=metrics.STEP_KEY, y=[key], max_runs_to_show=limit) for key in _TRAINING]

"""summary.json: what a run came to, in one small file: final and best values, baselines, timings and status."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from boothlab.files import write_json
from boothlab.tracking import history
from boothlab.tracking.history import HistoryFile, Row, read_history
from boothlab.tracking.manifest import RunStatus, plain
from boothlab.tracking.metrics import BALANCED, SAMPLING_SECONDS, SCORING_SECONDS, TRAIN_STEP_SECONDS, metric_for
from boothlab.tracking.redaction import redact_text

FILE_NAME = "summary.json"


def final_values(rows: Iterable[Row]) -> dict[str, dict[str, int | float]]:
    """The last value of every metric and its step, whatever that value is."""
    return {key: {"value": value, "step": row.step} for row in rows for key, value in row.scalars.items()}


def best_values(rows: Iterable[Row]) -> dict[str, dict[str, int | float]]:
    """The best finite value of every metric that has a direction, and the first step that reached it.

    Step 0 is the untrained model and so the baseline: it counts only for a metric that was never measured later.
    """
    best: dict[str, dict[str, int | float]] = {}
    for row in rows:
        for key, value in row.scalars.items():
            metric = metric_for(key)
            if metric is None or metric.higher_is_better is None or not math.isfinite(value):
                continue
            sign = 1 if metric.higher_is_better else -1
            rank = (row.step > 0, sign * value)
            if key not in best or rank > (best[key]["step"] > 0, sign * best[key]["value"]):
                best[key] = {"value": value, "step": row.step}
    return best


def headline(summary: Mapping[str, Any]) -> float:
    """The best balanced score of a run by its summary, whatever the encoders; NaN without one."""
    best = summary.get("best") or {}
    values = [entry["value"] for key, entry in best.items() if (m := metric_for(key)) and m.key == BALANCED]
    return float(max(values, default=math.nan))


def baseline_values(rows: Iterable[Row]) -> dict[str, int | float]:
    """The scores of the evaluation at step 0, before any training: the floor of every comparison."""
    return {
        key: value
        for row in rows
        if row.step == 0
        for key, value in row.scalars.items()
        if key.startswith("eval/") and _is_score(key)
    }


def _is_score(key: str) -> bool:
    metric = metric_for(key)
    return metric is None or metric.higher_is_better is not None


def _is_ceiling(key: str) -> bool:
    metric = metric_for(key)
    return metric is not None and metric.key.endswith("_ceiling")


def ceiling_values(rows: Iterable[Row]) -> dict[str, int | float]:
    """The last value of every ceiling: what the subject's own photos score against each other."""
    return {key: value for row in rows for key, value in row.scalars.items() if _is_ceiling(key)}


def timing_values(rows: list[Row]) -> dict[str, float]:
    """Seconds: the whole run, all sampling, all scoring, and the median training step."""

    def column(key: str) -> list[float]:
        return [row.scalars[key] for row in rows if math.isfinite(row.scalars.get(key, math.nan))]

    timings = {"total_seconds": max((row.time for row in rows), default=0.0)}
    for name, key in (("sampling_seconds", SAMPLING_SECONDS), ("scoring_seconds", SCORING_SECONDS)):
        timings[name] = math.fsum(column(key))
    # The median: the first step compiles and warms up, and would spoil a mean.
    if steps := sorted(column(TRAIN_STEP_SECONDS)):
        timings["median_step_seconds"] = steps[len(steps) // 2]
    return timings


def make_summary(
    run_dir: Path,
    status: RunStatus,
    *,
    error: str | None = None,
    baselines: Mapping[str, Any] | None = None,
    ceilings: Mapping[str, Any] | None = None,
    timings: Mapping[str, Any] | None = None,
    counts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What summary.json is to say, from metrics.jsonl.

    What is passed in is added to what the history shows and wins over it. Timings are in seconds. In the file
    NaN and infinities are the strings "nan", "inf" and "-inf". A run without a metrics.jsonl gets a summary too.
    """
    path = run_dir / history.FILE_NAME
    content = read_history(path) if path.exists() else HistoryFile([], 0)
    rows = content.rows
    summary = {
        "status": RunStatus(status).value,
        "error": None if error is None else redact_text(error),
        "final": final_values(rows),
        "best": best_values(rows),
        "baselines": {**baseline_values(rows), **(baselines or {})},
        "ceilings": {**ceiling_values(rows), **(ceilings or {})},
        "timings": {**timing_values(rows), **(timings or {})},
        "counts": {
            "rows": len(rows),
            "dropped_lines": content.dropped,
            "last_step": max((row.step for row in rows), default=None),
            **(counts or {}),
        },
    }
    made: dict[str, Any] = plain(summary)
    return made


def write_summary(run_dir: Path, status: RunStatus, **notes: Any) -> dict[str, Any]:
    """Write summary.json as `make_summary` makes it; returns what was written."""
    summary = make_summary(run_dir, status, **notes)
    write_json(run_dir / FILE_NAME, summary)
    return summary

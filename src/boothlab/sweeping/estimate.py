"""How long jobs will take, judged by finished runs of the same backbone on this machine."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boothlab.errors import UserError
from boothlab.files import read_json


@dataclass(frozen=True)
class Cost:
    """Seconds of one optimizer step, of one image drawn and scored, and of everything else in a run."""

    step: float
    image: float
    rest: float


def _config(resolved: Mapping[str, Any], *keys: str) -> Any:
    value: Any = resolved
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def work_of(resolved: Mapping[str, Any]) -> tuple[int, int]:
    """Optimizer steps, and images drawn after step 0, that a training config asks for."""
    steps = int(_config(resolved, "trainer", "max_steps") or 0)
    evaluation = _config(resolved, "evaluation") or {}
    if not evaluation.get("enabled", True) or not steps:
        return steps, 0
    every = evaluation.get("every") or _config(resolved, "trainer", "checkpoint_every") or steps
    times = steps // every + (steps % every > 0)
    images = len(evaluation.get("prompts") or []) * len(evaluation.get("seeds") or [])
    return steps, times * (images + int(evaluation.get("pres_images") or 0))


def _kind(resolved: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes a run dear or cheap; runs that agree in all of it are the best guide. Edits and scorings only draw."""
    if not work_of(resolved)[0]:
        command = "edit" if "editors" in resolved else "score"
        keys = ("method", "steps", "data", "seeds") if command == "edit" else ("steps", "prompts", "image_seeds")
        return (f"{command} {_config(resolved, 'backbone', 'name')}", *(repr(resolved.get(key)) for key in keys))
    return (
        _config(resolved, "backbone", "name"),
        _config(resolved, "backbone", "resolution"),
        _config(resolved, "data", "batch_size"),
        _config(resolved, "prior", "enabled"),
        _config(resolved, "lora", "train_text_encoder"),
        _config(resolved, "evaluation", "sampler", "steps"),
        *(method for method in [_config(resolved, "method")] if method not in (None, "lora")),  # the first
    )


def past_costs(outputs: Path) -> dict[tuple[Any, ...], list[Cost]]:
    """The costs of the finished runs below a folder, by kind of run."""
    found: dict[tuple[Any, ...], list[Cost]] = {}
    for path in sorted(outputs.glob("*/*/summary.json")):
        try:
            summary: Any = read_json(path)
            manifest: Any = read_json(path.with_name("manifest.json"))
            config, timings = manifest["config"], summary["timings"]
            steps, images = work_of(config)
            if summary["status"] != "finished" or manifest["earlier_attempts"]:
                continue  # the times of a resumed run are those of its last attempt
            if not steps:
                whole = Cost(0.0, 0.0, float(timings["total_seconds"]))
                found.setdefault(_kind(config), []).append(whole)
                continue
            sampled = float(timings["sampling_seconds"]) + float(timings["scoring_seconds"])
            step = float(timings["median_step_seconds"])
            rest = max(0.0, float(timings["training_seconds"]) - sampled - steps * step)
        except (UserError, OSError, KeyError, TypeError, ValueError):
            continue
        found.setdefault(_kind(config), []).append(Cost(step, sampled / max(1, images), rest))
    return found


def estimate_seconds(
    jobs: Iterable[tuple[Mapping[str, Any], int]], past: Mapping[tuple[Any, ...], list[Cost]]
) -> float | None:
    """Seconds for the jobs (config and optimizer steps done already) one after another; None without a past."""
    total = 0.0
    for resolved, done in jobs:
        kind = _kind(resolved)
        alike = past.get(kind) or [cost for other, costs in past.items() if other[0] == kind[0] for cost in costs]
        if not alike:
            return None
        steps, images = work_of(resolved)
        share = max(0.0, 1 - done / steps) if steps else 1.0
        step, image = (statistics.median(getattr(cost, name) for cost in alike) for name in ("step", "image"))
        total += share * (steps * step + images * image) + statistics.median(cost.rest for cost in alike)
    return total


def shown_seconds(seconds: float) -> str:
    """45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"

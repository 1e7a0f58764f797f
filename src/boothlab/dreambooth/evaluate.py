"""One evaluation of a run: draw prompts × seeds, score them, lay out the grid, write samples/step_NNNNNN/."""

import csv
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import diffusers
import torch
from PIL import Image
from torch import Tensor

from boothlab.cache import Cache
from boothlab.diffusion.learned_words import without_words
from boothlab.diffusion.sampling import Request, Sampler
from boothlab.dreambooth.checkpoints import folder_name
from boothlab.evaluation.scoring import FEATURES, EvaluationResult, GeneratedImage, Scorer
from boothlab.files import csv_cell, write_json, write_text
from boothlab.images.grid import build_grid, save_png, to_pil
from boothlab.progress import Reporter
from boothlab.tracking import metrics
from boothlab.tracking.run import Tracker

HEADLINE = (("CLIP-I", "clip_i"), ("DINO", "dino"), ("CLIP-T", "clip_t"))
"""The scores of a one-line report: label and name in a result."""


OnScores = Callable[[int, dict[str, float]], None]
"""Told of each evaluation after step 0: the optimizer step, and the scores by short name (clip_i, …, balanced)."""


@dataclass(frozen=True)
class EvaluationPlan:
    """What is drawn each time: full prompts, image seeds, and images of the class prompt for PRES."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    class_prompt: str
    pres_images: int
    metric_suffix: str

    @property
    def all_prompts(self) -> tuple[str, ...]:
        """Every prompt that is drawn."""
        return (*self.prompts, self.class_prompt) if self.pres_images else self.prompts

    @property
    def total(self) -> int:
        """Images an evaluation draws."""
        return len(self.prompts) * len(self.seeds) + self.pres_images


@dataclass
class Evaluated:
    """What came out: numbers for the history, the scores behind them, the grid and its captions."""

    scalars: dict[str, float]
    result: EvaluationResult
    grid: Path
    folder: Path

    @property
    def scores(self) -> dict[str, float]:
        """The overall scores by short name, whatever encoders made them."""
        measured = {name: value for name, value in self.result.overall.items() if value is not None}
        return measured | {"balanced": balanced(self.result)}


def balanced(result: EvaluationResult) -> float:
    """The mean of CLIP-I, DINO and CLIP-T, as the published study averages them."""
    return sum(float(result.overall[name] or 0.0) for name in ("clip_i", "dino", "clip_t")) / 3


@dataclass(frozen=True)
class BaseSamples:
    """The bare backbone's images, kept in the cache: every run of the same backbone, prompts and seeds starts there.

    A new adapter's update is zero, so at step 0 the backbone with it draws what the backbone without it draws. New
    words are left unread for it.
    """

    cache: Cache
    identity: Mapping[str, str]

    def draw(self, sampler: Sampler, requests: Sequence[Request], progress: Callable[[int], None] | None) -> Tensor:
        """The images [N, 3, H, W] uint8, drawn now or taken from the cache."""
        backbone = sampler.backbone
        upcast = {} if backbone.unet.dtype == backbone.dtype else {"unet": str(backbone.unet.dtype)}
        upcast |= {"compiled": backbone.compiled} if backbone.compiled else {}
        key = {
            "weights": dict(self.identity),
            "sampler": asdict(sampler.settings),
            "requests": [[request.prompt, request.seed] for request in requests],
            "resolution": backbone.resolution,
            "precision": str(backbone.dtype),
            # Another device, thread count or library changes the last bits, and a rerun must be exact.
            "numerics": {"device": backbone.device.type, "threads": torch.get_num_threads()},
            "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
            **upcast,
        }
        with without_words(backbone):
            drawn = self.cache.get_or_make("base-samples", key, lambda: {"images": sampler.draw(requests, progress)})
        sampler.forget_prompts()
        return drawn["images"]


class Evaluator:
    """Draws and scores with the networks as they are."""

    def __init__(
        self,
        sampler: Sampler,
        scorer: Scorer,
        plan: EvaluationPlan,
        references: Sequence[Image.Image],
        run_dir: Path,
        base: BaseSamples | None = None,
    ):
        self.sampler, self.scorer, self.plan = sampler, scorer, plan
        self.references, self.run_dir, self.base = references, run_dir, base

    def _key(self, key: str) -> str:
        """Scores of miniature or unusual encoders carry the encoder's name."""
        return metrics.variant(key, self.plan.metric_suffix) if self.plan.metric_suffix else key

    def _feature_key(self, key: str) -> str:
        """What a further encoder measures always carries that encoder's name, without its revision."""
        encoder = self.scorer.features
        return metrics.variant(key, encoder.name.partition("@")[0]) if encoder is not None else key

    def evaluate(self, step: int, progress: Callable[[int], None] | None = None) -> Evaluated:
        """Draw, score and write. The training's streams are not touched."""
        self.sampler.forget_prompts()
        plan = self.plan
        wanted = [(index, seed) for index in range(len(plan.prompts)) for seed in plan.seeds]
        requests = [Request(plan.prompts[index], seed) for index, seed in wanted]
        class_requests = [Request(plan.class_prompt, seed) for seed in range(plan.pres_images)]
        started = time.perf_counter()
        everything = [*requests, *class_requests]
        if step == 0 and self.base is not None:
            drawn = self.base.draw(self.sampler, everything, progress)
        else:
            drawn = self.sampler.draw(everything, progress)
        sampling = time.perf_counter() - started
        images = [
            GeneratedImage(index, plan.prompts[index], seed, pixels)
            for (index, seed), pixels in zip(wanted, drawn, strict=False)
        ]
        started = time.perf_counter()
        result = self.scorer.score(images, expected=set(wanted), class_images=list(drawn[len(wanted) :]) or None)
        scoring = time.perf_counter() - started
        folder = self.run_dir / "samples" / folder_name(step)
        grid = self._write(folder, images, result, step)
        return Evaluated(self._scalars(result, sampling, scoring), result, grid, folder)

    def _scalars(self, result: EvaluationResult, sampling: float, scoring: float) -> dict[str, float]:
        names = {
            "clip_i": metrics.CLIP_I,
            "dino": metrics.DINO,
            "clip_t": metrics.CLIP_T,
            "clip_t_with_token": metrics.CLIP_T_WITH_TOKEN,
            "div": metrics.DIV,
            "pres": metrics.PRES,
        }
        values = {self._key(key): result.overall.get(name) for name, key in names.items()}
        values |= {self._feature_key(metrics.FEATURE_SIMILARITY): result.overall.get(FEATURES)}
        scalars = {key: float(value) for key, value in values.items() if value is not None}
        scalars[self._key(metrics.BALANCED)] = balanced(result)
        scalars[metrics.CONSTANT_IMAGES] = float(result.constant_images)
        return scalars | {metrics.SAMPLING_SECONDS: sampling, metrics.SCORING_SECONDS: scoring}

    def ceilings(self) -> dict[str, float]:
        """Real against real, self-pairs excluded; left out for a single photo."""
        keys = {"clip_i": metrics.CLIP_I_CEILING, "dino": metrics.DINO_CEILING}
        values = self.scorer.ceiling()
        found = {self._key(keys[name]): values[name] for name in keys}
        found[self._feature_key(metrics.FEATURE_SIMILARITY_CEILING)] = values.get(FEATURES)
        return {key: value for key, value in found.items() if value is not None}

    def note_ceilings(self, tracker: Tracker) -> None:
        """Log the ceilings, if there are any, before the first evaluation."""
        if ceilings := self.ceilings():
            tracker.log(0, ceilings)

    def _write(self, folder: Path, images: Sequence[GeneratedImage], result: EvaluationResult, step: int) -> Path:
        for image in images:
            save_png(folder / f"prompt{image.prompt_index:02d}_seed{image.seed}.png", to_pil(image.pixels_CHW))
        rows = [{**score.to_dict(), "prompt": csv_cell(score.prompt)} for score in result.per_image]
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(folder / "scores.csv", text.getvalue())
        table = [row.to_dict() for row in result.rows]
        write_json(
            folder / "metrics.json",
            {"step": step, "metrics": table, "per_prompt": [p.to_dict() for p in result.per_prompt]},
        )
        by_prompt = [
            (prompt, [to_pil(image.pixels_CHW) for image in images if image.prompt_index == index])
            for index, prompt in enumerate(self.plan.prompts)
        ]
        numbers = "   ".join(f"{label} {result.overall[name]:.3f}" for label, name in HEADLINE)
        title = f"step {step}   {numbers}" + (
            f"   ({self.plan.metric_suffix} encoders)" if self.plan.metric_suffix else ""
        )
        grid = build_grid(by_prompt, [f"seed {seed}" for seed in self.plan.seeds], self.references, title)
        save_png(folder / "grid.png", grid)
        return folder / "grid.png"


def evaluate_into(evaluator: Evaluator, step: int, tracker: Tracker, reporter: Reporter) -> Evaluated:
    """Evaluate and tell everyone: history, mirrors, and a line for the user."""
    with reporter.bar(f"step {step}: drawing", evaluator.plan.total) as bar:
        found = evaluator.evaluate(step, bar.advance)
    tracker.log(step, found.scalars)
    caption = f"step {step}; rows: {', '.join(evaluator.plan.prompts)}"
    tracker.log_images(step, "samples/grid", [(found.grid, caption)])
    rows = [score.to_dict() for score in found.result.per_image]
    tracker.log_table(step, "samples/scores", list(rows[0]), [list(row.values()) for row in rows])
    headline = [*HEADLINE, *([("features", FEATURES)] if evaluator.scorer.features is not None else [])]
    scores = "  ".join(f"{label} {found.result.overall[name]:.3f}" for label, name in headline)
    reporter.say(f"step {step:>5}  {scores}  ({found.scalars[metrics.SAMPLING_SECONDS]:.1f} s drawing)")
    for warning in found.result.warnings if step > 0 else ():
        reporter.warn(warning)
    return found

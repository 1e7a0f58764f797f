"""The quality bars of the miniature weights: what each must reach, what it reached, and what it cost to train."""

import io
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from boothlab.dollhouse.architectures import JUDGE_HEADS, to_images
from boothlab.dollhouse.grammar import Facts, facts_of, is_held_out, toy_prompt
from boothlab.dollhouse.readers import MiniatureClip, batches, dino_features, judged
from boothlab.dollhouse.scenes import (
    ACCESSORIES,
    CLASSES,
    COLORS,
    PATTERNS,
    PLACES,
    Lamp,
    Time,
    held_out_subject,
    render,
    rng_for,
    sample_scene,
    sample_toy_scene,
)
from boothlab.errors import UserError
from boothlab.files import read_json, shown, write_bytes, write_json
from boothlab.seeding import Stream, generator

GUIDANCE, STEPS, BATCH = 5.0, 20, 50
VAE_SCENES, RENDERS, SUBJECTS, VIEWS = 512, 800, 100, 4
GRID_SIDE, GRID_ZOOM = 8, 4
WORN = ACCESSORIES[1:]
FILES = {
    "diffusion": "pipeline/model_index.json",
    "clip": "clip/config.json",
    "dino": "dino/config.json",
    "judge": "judge/model.safetensors",
}
PROMPT_BARS = {"class_noun": 90.0, "color": 85.0, "place": 90.0, "time": 90.0, "lamp": None, "pattern": None}
ZERO_SHOT_BARS = {"class_noun": 95.0, "color": 95.0, "place": 95.0, "accessory": None}
NAMES = {"class_noun": "class", "color": "colour", "time": "lighting"}


@dataclass(frozen=True)
class Row:
    """One line of the table. `required` is None for a figure without a bar; `count` is how many trials it rests on."""

    bar: str
    required: float | None
    measured: float
    unit: str
    count: int

    @property
    def passed(self) -> bool | None:
        """Whether the bar is reached; None where there is none."""
        return None if self.required is None else self.measured >= self.required


def psnr(images_BCHW: Tensor, references_BCHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image, over [0, 1]; equal images give 100."""
    mse_B = (images_BCHW.double() - references_BCHW.double()).square().flatten(1).mean(1)
    return -10 * mse_B.clamp_min(1e-10).log10()


def nearest_neighbour_accuracy(features_ND: Tensor, labels_N: Tensor) -> float:
    """The share of rows whose nearest other row, by cosine, has the same label."""
    unit_ND = F.normalize(features_ND.float(), dim=-1)
    similarity_NN = (unit_ND @ unit_ND.T).fill_diagonal_(float("-inf"))
    return float((labels_N[similarity_NN.argmax(1)] == labels_N).double().mean())


def held_out_prompts(count: int, seed: int) -> list[Facts]:
    """What `count` prompts ask for: combinations pre-training never showed, each in turn before one comes again.

    Pattern, accessory and lamp are asked for now and then, about as often as pre-training's prompts named them.
    """
    combinations = [
        (class_noun, color, place, time)
        for class_noun in CLASSES
        for color in COLORS
        for place in PLACES
        for time in Time
        if is_held_out(class_noun, color, place, time)
    ]
    rng = rng_for(seed, "score", "prompts")
    order: list[int] = []
    facts = []
    for _ in range(count):
        order = order or [int(i) for i in rng.permutation(len(combinations))]
        class_noun, color, place, time = combinations[order.pop()]
        pattern = PATTERNS[1 + int(rng.integers(len(PATTERNS) - 1))] if rng.random() < 0.35 else None
        accessory = WORN[int(rng.integers(len(WORN)))] if rng.random() < 0.3 else None
        lamp = (Lamp.ON, Lamp.OFF)[int(rng.integers(2))] if rng.random() < 0.3 else None
        facts.append(Facts(class_noun, color, pattern, accessory, place, time, lamp))
    return facts


def accuracy_row(bar: str, required: float | None, guesses: Iterable[object], asked: Iterable[object]) -> Row:
    """Per cent of guesses that are what was asked for, over the cases that ask for something (not None)."""
    hits = [guess == truth for guess, truth in zip(guesses, asked, strict=True) if truth is not None]
    return Row(bar, required, 100.0 * sum(hits) / len(hits) if hits else float("nan"), "%", len(hits))


@torch.inference_mode()
def vae_rows(weights: Path, device: str, seed: int) -> list[Row]:
    """Reconstruction of scenes from a stream of their own. The bar is on the mean of the images' own PSNRs."""
    rng = rng_for(seed, "score", "vae")
    images = to_images([render(sample_scene(rng)) for _ in range(VAE_SCENES)])
    vae = AutoencoderKL.from_pretrained(weights / "pipeline" / "vae").float().to(device).eval()
    decoded = torch.cat([vae.decode(vae.encode(x).latent_dist.mode()).sample.cpu() for x in batches(images, device)])
    pixels, truth = (decoded.clamp(-1, 1) + 1) / 2, (images + 1) / 2
    pooled = psnr(pixels.flatten(0, 1)[None], truth.flatten(0, 1)[None])
    return [
        Row("VAE: PSNR, mean over images", 28.0, float(psnr(pixels, truth).mean()), "dB", len(images)),
        Row("VAE: PSNR of the mean squared error", None, float(pooled), "dB", len(images)),
    ]


@torch.inference_mode()
def generate(weights: Path, prompts: Sequence[str], device: str, seed: int) -> list[np.ndarray]:
    """One H×W×3 uint8 picture a prompt, each from a generator of its own, so that no batch can change it."""
    pipeline = StableDiffusionPipeline.from_pretrained(weights / "pipeline")
    for network in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        network.float()  # stored in half precision; `.to(float32)` would do, with a warning for each network
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, algorithm_type="dpmsolver++", solver_order=2
    )
    pictures: list[np.ndarray] = []
    for start in range(0, len(prompts), BATCH):
        batch = list(prompts[start : start + BATCH])
        generators = [generator(seed, Stream.EVALUATION, "score", start + i) for i in range(len(batch))]
        images = pipeline(
            batch, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generators, output_type="np"
        ).images
        pictures += list((images * 255).round().astype(np.uint8))  # what a file would hold is what is judged
    return pictures


def _asked(facts: Sequence[Facts], name: str) -> list[str | None]:
    """One fact of each. No accessory counts as not asked for: no prompt says so, and no reader has a word for it."""
    values = [getattr(fact, name) for fact in facts]
    return [None if name == "accessory" and value == "none" else value for value in values]


def prompt_rows(
    weights: Path, clip: MiniatureClip, images: int, device: str, seed: int
) -> tuple[list[Row], list[np.ndarray]]:
    """How well generated images show what held-out prompts ask for, and the images.

    The judge has no head for accessories: those are read by the miniature CLIP, which the row's name says.
    """
    facts = held_out_prompts(images, seed)
    pictures = generate(weights, [toy_prompt(fact) for fact in facts], device, seed)
    readings = judged(weights, pictures, device)
    rows = [
        accuracy_row(f"prompt: {NAMES.get(name, name)}", required, readings[name], _asked(facts, name))
        for name, required in PROMPT_BARS.items()
    ]
    worn = clip.read(clip.image_features(pictures), "accessory")
    rows.append(accuracy_row("prompt: accessory (read by the miniature CLIP)", None, worn, _asked(facts, "accessory")))
    return rows, pictures


def reader_rows(weights: Path, clip: MiniatureClip, device: str, seed: int) -> list[Row]:
    """The miniature CLIP's zero-shot bars, and the judge's own accuracy, on the same fresh renders."""
    rng = rng_for(seed, "score", "renders")
    scenes = [sample_toy_scene(rng) for _ in range(RENDERS)]
    facts, pictures = [facts_of(scene) for scene in scenes], [render(scene) for scene in scenes]
    features, readings = clip.image_features(pictures), judged(weights, pictures, device)
    zero_shots = [
        accuracy_row(
            f"CLIP: zero-shot {NAMES.get(name, name)}", required, clip.read(features, name), _asked(facts, name)
        )
        for name, required in ZERO_SHOT_BARS.items()
    ]
    judge = [
        accuracy_row(f"judge on renders: {NAMES.get(name, name)}", None, readings[name], _asked(facts, name))
        for name in JUDGE_HEADS
    ]
    return zero_shots + judge


def dino_row(weights: Path, device: str, seed: int) -> Row:
    """Whether a picture's nearest neighbour shows the same individual, among held-out subjects of all classes."""
    rng = rng_for(seed, "score", "dino")
    subjects = [held_out_subject(CLASSES[i % len(CLASSES)], i // len(CLASSES)) for i in range(SUBJECTS)]
    pictures = [render(sample_toy_scene(rng, subject)) for subject in subjects for _ in range(VIEWS)]
    labels = torch.arange(SUBJECTS).repeat_interleave(VIEWS)
    features = dino_features(weights, pictures, device)
    measured = 100 * nearest_neighbour_accuracy(features, labels)
    return Row("DINO: nearest neighbour is the same subject", 90.0, measured, "%", len(labels))


def write_grid(path: Path, pictures: Sequence[np.ndarray]) -> None:
    """The first 64 pictures as one PNG, 8 × 8, each pixel four wide."""
    side, kept = pictures[0].shape[0], pictures[: GRID_SIDE**2]
    rows = -(-len(kept) // GRID_SIDE)
    canvas = np.zeros((rows * side, GRID_SIDE * side, 3), dtype=np.uint8)
    for i, picture in enumerate(kept):
        top, left = (i // GRID_SIDE) * side, (i % GRID_SIDE) * side
        canvas[top : top + side, left : left + side] = picture
    png = io.BytesIO()
    Image.fromarray(canvas.repeat(GRID_ZOOM, 0).repeat(GRID_ZOOM, 1)).save(png, format="PNG")
    write_bytes(path, png.getvalue())


def machine(device: str) -> str:
    """What the figures were measured on."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device} ({platform.processor() or platform.machine()}, {os.cpu_count()} cores)"


def measure(
    weights: Path, device: str = "cpu", images: int = 400, seed: int = 0, grid: Path | None = None
) -> dict[str, Any]:
    """Measure every bar: device, threads, sampling settings, `rows`, and `pretraining` (what each part cost).

    With `grid`, the first 64 generated images are written there. Raises UserError if a part's weights are missing.
    """
    missing = [part for part, file in FILES.items() if not (weights / file).is_file()]
    if missing:
        remedy = f"python -m boothlab.dollhouse.pretrain --parts {' '.join(missing)} --out {shown(weights)}"
        raise UserError(f"{shown(weights)} has no weights of: {', '.join(missing)}; make them with {remedy}")
    clip = MiniatureClip(weights, device)
    prompt, pictures = prompt_rows(weights, clip, images, device, seed)
    rows = [*vae_rows(weights, device, seed), *prompt, *reader_rows(weights, clip, device, seed)]
    rows.append(dino_row(weights, device, seed))
    if grid is not None:
        write_grid(grid, pictures)
    costs = weights / "pretraining.json"
    return {
        "device": machine(device),
        "threads": torch.get_num_threads(),
        "sampling": {
            "sampler": "DPM-Solver++ 2M",
            "steps": STEPS,
            "guidance": GUIDANCE,
            "images": images,
            "seed": seed,
        },
        "rows": [{**asdict(row), "passed": row.passed} for row in rows],
        "pretraining": read_json(costs) if costs.is_file() else {},
    }


def row_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Rows (as `measure` gives them) as the lines of a Markdown table."""
    lines = ["| bar | required | measured | trials | passed |", "|---|---|---|---|---|"]
    for row in rows:
        required = "–" if row["required"] is None else f"≥ {row['required']:g} {row['unit']}"
        passed = {None: "–", True: "yes", False: "NO"}[row["passed"]]
        lines.append(f"| {row['bar']} | {required} | {row['measured']:.1f} {row['unit']} | {row['count']} | {passed} |")
    return lines


def as_table(scores: dict[str, Any]) -> str:
    """The scores as Markdown: the settings, the bars, the costs."""
    how = scores["sampling"]
    lines = [
        f"Scored on {scores['device']}, {scores['threads']} torch threads. Generated images: {how['images']}, "
        f"{how['sampler']}, {how['steps']} steps, guidance {how['guidance']:g}, seed {how['seed']}.",
        "",
        *row_lines(scores["rows"]),
    ]
    lines += ["", "| part | steps | minutes | device |", "|---|---|---|---|"]
    for part, cost in scores["pretraining"].items():
        lines.append(f"| {part} | {cost['steps']} | {cost['seconds'] / 60:.1f} | {cost['device']} |")
    return "\n".join(lines)


def score_weights(
    weights: Path, device: str = "cpu", images: int = 400, seed: int = 0, grid: Path | None = None
) -> str:
    """Measure, write scores.json into the weights' folder and the grid of samples beside it, and give the table."""
    sheet = grid or weights.resolve().parent / f"{weights.resolve().name}_samples.png"
    scores = measure(weights, device, images, seed, sheet)
    write_json(weights / "scores.json", scores)
    return as_table(scores)

"""How good the miniature captioner is: `python -m boothlab.dollhouse.caption_score`, on scenes it never saw."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertTokenizer, BlipForConditionalGeneration

from boothlab.dollhouse.captioner_parts import FOLDER, to_pixels
from boothlab.dollhouse.captions import ROOM_FACTS, TOY_FACTS, caption_of, read_caption, scene_facts
from boothlab.dollhouse.edits import held_out_from_editors
from boothlab.dollhouse.scenes import (
    CLASSES,
    Scene,
    held_out_subject,
    render,
    rng_for,
    sample_room_scene,
    sample_toy_scene,
)
from boothlab.dollhouse.score import NAMES, Row, accuracy_row, machine, row_lines
from boothlab.errors import UserError
from boothlab.files import read_json, shown, write_json

BEAMS, NEW_TOKENS, BATCH = 3, 30, 50
BAR = 90.0
BARRED = {
    "toys": ("class_noun", "color", "place", "time"),
    "rooms": ("time", "lamp", "bed", "curtains", "curtains_closed", "carpet"),
}
FACT_NAMES = NAMES | {"curtains": "curtains' colour", "curtains_closed": "curtains open or closed"}
SIZES = (32, 64, 256)
"""Pixels a side. Every fact is scored at the first, which is the house's own; whole captions at all of them."""
FIRST_SUBJECT = 10**6  # of each class; far from the individuals that photos and editing tasks show


def held_out_scenes(kind: str, count: int, seed: int) -> list[Scene]:
    """`count` scenes that no captioner saw: "toys" in held-out combinations, or "rooms" with held-out furniture.

    Every toy is another individual from the held-out stream. Scene i is the same however many follow it.
    """
    rng = rng_for(seed, "score", "captioner", kind)
    scenes: list[Scene] = []
    drawn = 0
    while len(scenes) < count:
        drawn += 1
        if kind == "rooms":
            scene: Scene = sample_room_scene(rng)
        else:
            subject = held_out_subject(CLASSES[int(rng.integers(len(CLASSES)))], FIRST_SUBJECT + drawn)
            scene = sample_toy_scene(rng, subject)
        if held_out_from_editors(scene):
            scenes.append(scene)
    return scenes


@torch.inference_mode()
def captions(weights: Path, pictures: Sequence[np.ndarray], device: str = "cpu", prompt: str = "") -> list[str]:
    """What the captioner says of each H×W×3 uint8 picture, by beam search; with a prompt it goes on from there."""
    blip = BlipForConditionalGeneration.from_pretrained(weights / FOLDER, dtype=torch.float32).to(device).eval()
    tokenizer = BertTokenizer.from_pretrained(weights / FOLDER)
    said: list[str] = []
    for start in range(0, len(pictures), BATCH):
        pixels = to_pixels(list(pictures[start : start + BATCH])).to(device)
        begun = tokenizer([prompt] * len(pixels), return_tensors="pt").input_ids.to(device)
        ids = blip.generate(pixels, input_ids=begun, num_beams=BEAMS, max_new_tokens=NEW_TOKENS, do_sample=False)
        said += [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    return said


def fact_rows(kind: str, said: Sequence[str], scenes: Sequence[Scene]) -> list[Row]:
    """One row a fact: how often the caption states it as the renderer drew it; a fact not stated counts as wrong."""
    read, truth = [read_caption(caption) for caption in said], [scene_facts(scene) for scene in scenes]
    return [
        accuracy_row(
            f"captions of {kind}: {FACT_NAMES.get(name, name)}",
            BAR if name in BARRED[kind] else None,
            [facts.get(name) for facts in read],
            [facts[name] for facts in truth],
        )
        for name in (TOY_FACTS if kind == "toys" else ROOM_FACTS)
    ]


def caption_rows(weights: Path, device: str, count: int, seed: int) -> list[Row]:
    """Every fact of `count` held-out toys and `count` held-out rooms, and how many captions are right to the word."""
    rows: list[Row] = []
    for kind in BARRED:
        scenes = held_out_scenes(kind, count, seed)
        right = [caption_of(scene) for scene in scenes]
        for size in SIZES:
            said = captions(weights, [render(scene, size) for scene in scenes], device)
            if size == SIZES[0]:
                rows += fact_rows(kind, said, scenes)
            rows.append(accuracy_row(f"captions of {kind}: every word, {size} pixels a side", None, said, right))
    return rows


def measure(weights: Path, device: str = "cpu", count: int = 400, seed: int = 0) -> dict[str, Any]:
    """Everything about the captioner: device, threads, decoding, rows, and what its training cost.

    Raises UserError if its weights are missing.
    """
    if not (weights / FOLDER / "config.json").is_file():
        remedy = f"python -m boothlab.dollhouse.pretrain --parts {FOLDER} --out {shown(weights)}"
        raise UserError(f"{shown(weights)} has no weights of the captioner; make them with {remedy}")
    path = weights / "pretraining.json"
    costs: Any = read_json(path) if path.is_file() else {}
    return {
        "device": machine(device),
        "threads": torch.get_num_threads(),
        "decoding": {"beams": BEAMS, "max_new_tokens": NEW_TOKENS, "scenes": count, "seed": seed},
        "rows": [{**asdict(row), "passed": row.passed} for row in caption_rows(weights, device, count, seed)],
        "pretraining": costs.get(FOLDER, {}),
    }


def as_table(scores: dict[str, Any]) -> str:
    """The scores as Markdown."""
    how, cost = scores["decoding"], scores["pretraining"]
    lines = [
        f"Captions scored on {scores['device']}, {scores['threads']} torch threads: {how['beams']} beams, seed "
        f"{how['seed']}, {how['scenes']} toys and {how['scenes']} hotel rooms, all held out.",
        "",
        *row_lines(scores["rows"]),
    ]
    if cost:
        lines += ["", f"Trained for {cost['steps']} steps, {cost['seconds'] / 60:.1f} minutes on {cost['device']}."]
    return "\n".join(lines)


def score_captioner(weights: Path, device: str = "cpu", count: int = 400, seed: int = 0) -> str:
    """Measure, write caption_scores.json into the weights' folder, and give the table."""
    scores = measure(weights, device, count, seed)
    write_json(weights / "caption_scores.json", scores)
    return as_table(scores)


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m boothlab.dollhouse.caption_score", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "weights", help="the weights' folder")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scenes", type=int, default=400, help="held-out scenes of each kind")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    print(score_captioner(args.out, args.device, args.scenes, args.seed))


if __name__ == "__main__":
    main()

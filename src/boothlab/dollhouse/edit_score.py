"""How good the miniature editors are: `python -m boothlab.dollhouse.edit_score`, on scenes no editor was trained on."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL

from boothlab.dollhouse.architectures import to_images
from boothlab.dollhouse.controls import canny_map, edit_mask
from boothlab.dollhouse.edit_judge import EDIT_HEADS, did_it_happen, facts_kept, read_facts
from boothlab.dollhouse.editors import STEPS, edit_pictures
from boothlab.dollhouse.edits import EDITS, EditPair, apply_edit, fact_of, held_out_pairs, held_out_room, held_out_toy
from boothlab.dollhouse.readers import batches
from boothlab.dollhouse.scenes import Scene, render, rng_for, sample_scene
from boothlab.dollhouse.score import machine, psnr
from boothlab.files import write_json

STRENGTHS = (0.3, 0.5, 0.7, 0.9)
MAPPED = ("controlnet_canny", "controlnet_depth", "t2i_adapter_canny", "t2i_adapter_depth")
HAPPENED_BAR = 80.0
Pictures = Sequence[np.ndarray]


@dataclass(frozen=True)
class EditRow:
    """One method on one edit (or on all of a kind of scene), means over `count` pictures.

    `happened` and `kept` are per cent by the edit judge; `truth_db` is the PSNR to the exact target, `background_db`
    the PSNR to the source outside the edit's mask, over the edits that have an outside (None where none has).
    """

    method: str
    edit: str
    happened: float
    kept: float
    truth_db: float
    background_db: float | None
    count: int


@dataclass(frozen=True)
class StructureRow:
    """How well samples follow a map: PSNR to the scene it came from, and the F1 of their Canny edges with its own."""

    method: str
    scene_db: float
    edge_f1: float
    count: int


def image_psnr(pictures: Pictures, references: Pictures) -> list[float]:
    """Each picture's PSNR in dB against its reference, both uint8; equal pictures give 100."""
    pixels, truth = (torch.from_numpy(np.stack(arrays)) / 255.0 for arrays in (pictures, references))
    return psnr(pixels, truth).tolist()


def background_psnr(picture: np.ndarray, source: np.ndarray, mask: np.ndarray) -> float | None:
    """PSNR in dB over the pixels outside the mask, at most 100; None where there are none."""
    if mask.all():
        return None
    error = (picture.astype(np.float64) - source.astype(np.float64))[~mask] / 255.0
    return float(min(100.0, -10 * math.log10(max(1e-10, float(np.mean(error**2))))))


def _dilated(edges: np.ndarray) -> np.ndarray:
    """The edges and their eight neighbours."""
    padded = np.pad(edges, 1)
    side = len(edges)
    return np.any([padded[y : y + side, x : x + side] for y in range(3) for x in range(3)], axis=0)


def edge_f1(edges: np.ndarray, reference: np.ndarray) -> float:
    """The F1 of two boolean edge maps, an edge counting as met within one pixel; 1 where neither has any."""
    if not edges.any() and not reference.any():
        return 1.0
    precision = float((edges & _dilated(reference)).sum()) / max(1, int(edges.sum()))
    recall = float((reference & _dilated(edges)).sum()) / max(1, int(reference.sum()))
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def edit_rows(
    method: str, pairs: Sequence[EditPair], pictures: Pictures, readings: dict[str, list[str]]
) -> list[EditRow]:
    """One row an edit, in the pairs' order, and one of all of them."""
    happened, kept = did_it_happen(readings, pairs), facts_kept(readings, pairs)
    truth = image_psnr(pictures, [pair.pictures()[1] for pair in pairs])
    outside = [
        background_psnr(picture, pair.pictures()[0], edit_mask(pair))
        for picture, pair in zip(pictures, pairs, strict=True)
    ]
    names = list(dict.fromkeys(pair.edit.name for pair in pairs))
    rows = []
    for name in [*names, "all"]:
        chosen = [i for i, pair in enumerate(pairs) if name in ("all", pair.edit.name)]
        backgrounds = [value for i in chosen if (value := outside[i]) is not None]
        rows.append(
            EditRow(
                method,
                name,
                100 * _mean([float(happened[i]) for i in chosen]),
                100 * _mean([kept[i] for i in chosen]),
                _mean([truth[i] for i in chosen]),
                _mean(backgrounds) if backgrounds else None,
                len(chosen),
            )
        )
    return rows


@torch.inference_mode()
def reconstructed(weights: Path, pictures: Pictures, device: str) -> list[np.ndarray]:
    """The pictures through the VAE and back: no method that works on latents comes nearer to them."""
    vae = AutoencoderKL.from_pretrained(weights / "pipeline" / "vae").float().to(device).eval()
    decoded = [
        vae.decode(vae.encode(x).latent_dist.mode()).sample.cpu() for x in batches(to_images(list(pictures)), device)
    ]
    pixels = ((torch.cat(decoded).clamp(-1, 1) + 1) * 127.5).round().byte()
    return list(pixels.permute(0, 2, 3, 1).numpy())


def edit_scores(weights: Path, pairs: Sequence[EditPair], device: str, seed: int) -> list[EditRow]:
    """Every method on the pairs: the ceiling (the truth through the VAE), the untouched source, and each editor."""
    sources, targets = (list(pictures) for pictures in zip(*(pair.pictures() for pair in pairs), strict=True))
    results: dict[str, Pictures] = {"truth through the VAE": reconstructed(weights, targets, device), "copy": sources}
    results["generate"] = edit_pictures(weights, "generate", pairs, device, seed)
    for strength in STRENGTHS:
        results[f"sdedit {strength:g}"] = edit_pictures(weights, "sdedit", pairs, device, seed, strength=strength)
    for method in ("inpaint", "instruct_pix2pix", *MAPPED):
        results[method] = edit_pictures(weights, method, pairs, device, seed)
    rows = []
    for method, pictures in results.items():
        rows += edit_rows(method, pairs, pictures, read_facts(weights, pictures, device))
    return rows


def _unchanged(scene: Scene) -> EditPair:
    """The scene as its own target, so that a method's caption and map are both the scene's."""
    edit = EDITS[f"at_{scene.time}"]
    return EditPair(edit, scene, apply_edit(scene, edit), edit.instruction)


def structure_scores(weights: Path, scenes: Sequence[Scene], device: str, seed: int) -> list[StructureRow]:
    """How well each method that follows a map does so, beside the base model, which is given the caption alone."""
    pairs, truth = [_unchanged(scene) for scene in scenes], [render(scene) for scene in scenes]
    rows = []
    for method in ("generate", *MAPPED):
        pictures = edit_pictures(weights, method, pairs, device, seed)
        met = [edge_f1(canny_map(a) > 0, canny_map(b) > 0) for a, b in zip(pictures, truth, strict=True)]
        rows.append(StructureRow(method, _mean(image_psnr(pictures, truth)), _mean(met), len(scenes)))
    return rows


def judge_scores(weights: Path, device: str, count: int, seed: int) -> dict[str, tuple[float, int]]:
    """The edit judge's own accuracy on fresh renders: fact to per cent and how many scenes have it."""
    rng = rng_for(seed, "score", "edit_judge")
    scenes = [sample_scene(rng, room_share=0.5) for _ in range(count)]
    readings = read_facts(weights, [render(scene) for scene in scenes], device)
    found = {}
    for name in EDIT_HEADS:
        known = [readings[name][i] == value for i, s in enumerate(scenes) if (value := fact_of(s, name)) is not None]
        found[name] = (100 * _mean([float(hit) for hit in known]), len(known))
    return found


def measure(weights: Path, device: str = "cpu", rooms: int = 16, toys: int = 8, seed: int = 0) -> dict[str, Any]:
    """Everything: rows of the rooms' and the toys' edits, of structure, and of the judge, with what they rest on."""
    scenes: list[Scene] = [held_out_room(i) for i in range(rooms)] + [held_out_toy(i) for i in range(toys)]
    return {
        "device": machine(device),
        "threads": torch.get_num_threads(),
        "sampling": {"sampler": "DPM-Solver++ 2M", "steps": STEPS, "rooms": rooms, "toys": toys, "seed": seed},
        "rooms": [asdict(row) for row in edit_scores(weights, held_out_pairs(rooms, 0), device, seed)],
        "toys": [asdict(row) for row in edit_scores(weights, held_out_pairs(0, toys), device, seed)] if toys else [],
        "structure": [asdict(row) for row in structure_scores(weights, scenes, device, seed)],
        "judge": {
            name: {"accuracy": accuracy, "count": count}
            for name, (accuracy, count) in judge_scores(weights, device, 800, seed).items()
        },
    }


def _edit_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| method | edit | happened | others kept | PSNR to truth | PSNR of background | pictures |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        outside = "–" if row["background_db"] is None else f"{row['background_db']:.1f} dB"
        lines.append(
            f"| {row['method']} | {row['edit']} | {row['happened']:.0f} % | {row['kept']:.0f} % | "
            f"{row['truth_db']:.1f} dB | {outside} | {row['count']} |"
        )
    return lines


def as_table(scores: dict[str, Any]) -> str:
    """The scores as Markdown."""
    how = scores["sampling"]
    lines = [
        f"Scored on {scores['device']}, {scores['threads']} torch threads: {how['sampler']}, {how['steps']} steps, "
        f"seed {how['seed']}, {how['rooms']} hotel rooms and {how['toys']} toy scenes, all held out."
    ]
    for kind in ("rooms", "toys"):
        lines += ["", f"### {kind.capitalize()}", "", *_edit_table(scores[kind])]
    lines += ["", "| method | PSNR to the map's scene | edge F1 | scenes |", "|---|---|---|---|"]
    for row in scores["structure"]:
        lines.append(f"| {row['method']} | {row['scene_db']:.1f} dB | {row['edge_f1']:.2f} | {row['count']} |")
    lines += ["", "| edit judge on renders | read right | scenes |", "|---|---|---|"]
    lines += [f"| {name} | {row['accuracy']:.1f} % | {row['count']} |" for name, row in scores["judge"].items()]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Measure, write edit_scores.json into the weights' folder, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m boothlab.dollhouse.edit_score", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "weights", help="the weights' folder")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rooms", type=int, default=16, help="held-out hotel rooms")
    parser.add_argument("--toys", type=int, default=8, help="held-out toy scenes")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    scores = measure(args.out, args.device, args.rooms, args.toys, args.seed)
    write_json(args.out / "edit_scores.json", scores)
    print(as_table(scores))


if __name__ == "__main__":
    main()

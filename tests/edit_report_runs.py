"""Run folders as `boothlab edit` leaves them, made in milliseconds without torch: for the tests of editing reports."""

import io
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from boothlab.compose.naming import run_name
from boothlab.config import BackboneConfig, EncodersConfig
from boothlab.config_edit import EditConfig, EditDataConfig, Method
from boothlab.evaluation.edit_metrics import EDIT_DEFINITION_VERSION, EDIT_SCORES, ENCODER_SCORES, metric_key
from boothlab.reporting.sweeps import SweepJob, write_sweep
from boothlab.tracking.history import encode_number
from boothlab.tracking.manifest import plain
from report_runs import _manifest, _sweep_file, _write, _write_json, fraction, typed

IMAGES = tuple(f"room_{index:02d}" for index in range(8))
EDITS = ("at_night", "lamp_on", "carpet_red")
WANTED = {"at_night": "night", "lamp_on": "on", "carpet_red": "red"}
STILL = "the picture did not change"

Scores = Callable[[Mapping[str, Any], str, str, int], dict[str, float]]
"""(resolved config, image, edit, seed) → scores of the edited picture by short name."""


@dataclass(frozen=True)
class MadeEdits:
    """What the runs of `make_edit_runs` edit, how they were measured, and what they leave."""

    images: Sequence[str] = IMAGES
    edits: Sequence[str] = EDITS
    suffix: str = "dollhouse"
    clip: str = "clip@3391974"
    dino: str = "dino@98c2317"
    truths: bool = True
    masks: bool = True
    #: off writes metrics.json but no PNG
    pictures: bool = True
    side: int = 32
    #: told in every instruction and caption
    words: str = ""
    #: index of the setting → `failed`, `interrupted` or `running`
    statuses: Mapping[int, str] = field(default_factory=dict)


def make_edit_runs(
    root: Path,
    settings: Sequence[Mapping[str, Any]],
    *,
    sweep: Mapping[str, Any] | None = None,
    experiment: str = "edits",
    scores: Scores | None = None,
    made: MadeEdits | None = None,
) -> Path:
    """Write a run folder for each setting (dotted config keys, `method` among them); returns the experiment folder."""
    made = made or MadeEdits()
    folder = root / experiment
    jobs = []
    for index, setting in enumerate(settings):
        config = make_edit_config({**setting, "experiment": experiment})
        name = run_name(config)
        write_edit_run(folder / name, config, scores or edit_scores, made, made.statuses.get(index, "finished"))
        jobs.append(SweepJob([f"{key}={typed(value)}" for key, value in setting.items()], name))
    if sweep is not None:
        write_sweep(folder, _sweep_file(sweep, jobs))
    return folder


def make_edit_config(setting: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved config with the schema's keys."""
    method = Method(setting["method"])
    config: dict[str, Any] = plain(
        EditConfig(
            name=method.value,
            method=method,
            steps=20,
            backbone=BackboneConfig("dollhouse", "dollhouse", resolution=32),
            encoders=EncodersConfig(clip="dollhouse", dino="dollhouse"),
            data=EditDataConfig(),
        )
    )
    for dotted, value in setting.items():
        *path, last = dotted.split(".")
        section = config
        for part in path:
            section = section[part]
        assert last in section, f"no such key: {dotted}"
        section[last] = value
    return config


def reach_of(config: Mapping[str, Any]) -> float:
    """How far a setting goes from the source, 0 to 1."""
    method = config["method"]
    if method in ("copy", "regenerate"):
        return float(method == "regenerate")
    return {
        "sdedit": config["strength"],
        "instruct_pix2pix": 0.9 - 0.35 * (config["image_guidance_scale"] - 1),
    }.get(method, 1 - 0.4 * min(config["control_scale"], 2))


def skill_of(method: str) -> float:
    """How near to the truth a method comes at its best, 0 to 1."""
    return {"copy": 0.0, "regenerate": 0.15, "sdedit": 0.4, "instruct_pix2pix": 0.9}.get(method, 0.55)


def edit_scores(config: Mapping[str, Any], image: str, edit: str, seed: int) -> dict[str, float]:
    """Scores with a trade-off: the farther a setting goes, the more it edits and the less it keeps."""
    reach, skill = reach_of(config), skill_of(config["method"])
    wobble = fraction("wobble", image, edit, seed, config["method"], reach) - 0.5
    best = 0.45 + 0.3 * fraction("best", image, edit)
    truth = 14 + 12 * skill * (1 - abs(reach - best)) + wobble
    found = {
        "clip_image": 1 - 0.35 * reach + 0.02 * wobble * (reach > 0),
        "clip_t": 0.2 + 0.05 * reach + 0.01 * wobble,
        "clip_t_edited": 0.19 + 0.06 * reach + 0.01 * wobble,
        "structure": 0.08 * reach + 0.002 * (wobble + 0.5) * (reach > 0),
        "psnr_outside": 100.0 if reach == 0 else 34 - 18 * reach + wobble,
        "ssim_outside": 1 - 0.5 * reach,
        "lpips_outside": 0.4 * reach,
        "psnr_truth": truth,
        "l2_truth": 10 ** (-truth / 10),
        "dino_truth": 0.5 + 0.4 * skill * (1 - abs(reach - best)) + 0.02 * wobble,
        "happened": float(reach * (0.4 + skill) > 0.35 + 0.2 * wobble),
        "effective_steps": float(round(20 * reach)),
    }
    if reach:
        found["clip_directional"] = 0.28 * reach * (0.6 + 0.4 * skill) + 0.05 * wobble
    return {name: found[name] for name in EDIT_SCORES if name in found}


def write_edit_run(
    folder: Path, config: dict[str, Any], scores: Scores, made: MadeEdits, status: str = "finished"
) -> None:
    """One run folder. A run that did not finish has no scores."""
    manifest = _manifest(config, config["seed"], status) | {"command": ["boothlab", "edit"]}
    _write_json(folder / "manifest.json", manifest)
    if status != "running":
        _write_json(folder / "summary.json", {"status": status, "error": None if status == "finished" else "no more"})
    if status != "finished":
        return
    edited = [
        _pair(folder, config, image, edit, seed, scores, made)
        for image in made.images
        for edit in made.edits
        for seed in config["seeds"]
    ]
    copied = [_copied(pair, config, scores) for pair in edited]
    lines = []
    for step, pairs in enumerate((copied, edited)):
        metrics = [_metric(name, pairs, made) for name in EDIT_SCORES if any(name in one["scores"] for one in pairs)]
        parts = {"metrics": metrics, "pairs": pairs, **{f"per_{part}": _per(part, pairs) for part in ("edit", "image")}}
        _write_json(folder / "samples" / f"step_{step:06d}" / "metrics.json", {"step": step, **parts})
        scalars = {metric_key(row["name"], made.suffix): encode_number(row["value"]) for row in metrics}
        lines.append(json.dumps({"step": step, "time": 1.0 + step, **scalars}))
    _write(folder / "metrics.jsonl", "\n".join(lines) + "\n")
    if made.pictures:
        _write_pictures(folder, config, edited, made)


def _pair(
    folder: Path, config: Mapping[str, Any], image: str, edit: str, seed: int, scores: Scores, made: MadeEdits
) -> dict[str, Any]:
    values = scores(config, image, edit, seed)
    if not made.truths:
        values = {name: value for name, value in values.items() if not name.endswith("_truth") and name != "happened"}
    kinds = [kind for kind in ("canny", "depth") if config["method"].endswith(kind)]
    wanted = WANTED.get(edit, edit)
    read = wanted if values.get("happened") == 1 else "as it was"
    return {
        "image": image,
        "edit": edit,
        "seed": seed,
        "instruction": f"make it {edit.replace('_', ' ')}{made.words}",
        "source_caption": f"a hotel room{made.words}",
        "target_caption": f"a hotel room, {edit.replace('_', ' ')}{made.words}",
        "file": f"samples/step_000001/{image}__{edit}__s{seed}.png",
        "source": f"samples/sources/{image}.png",
        "truth": f"samples/truths/{image}__{edit}.png" if made.truths else None,
        "mask": f"samples/masks/{image}__{edit}.png" if made.masks else None,
        "conditions": {kind: f"samples/step_000001/conditions/{image}__{kind}.png" for kind in kinds},
        "steps": int(values.get("effective_steps", 20)),
        "notes": [],
        "scores": values,
        "absent": {} if "clip_directional" in values else {"clip_directional": STILL},
        "fact": ["fact", wanted, read] if made.truths else None,
    }


def _copied(pair: Mapping[str, Any], config: Mapping[str, Any], scores: Scores) -> dict[str, Any]:
    """The same pair with the source in the edit's place."""
    values = scores({**config, "method": "copy"}, pair["image"], pair["edit"], pair["seed"])
    kept = {name: value for name, value in values.items() if name in {*pair["scores"], "psnr_outside"}}
    kept.pop("clip_directional", None)
    return {**pair, "file": pair["source"], "scores": kept, "absent": {"clip_directional": STILL}, "steps": 0}


def _metric(name: str, pairs: Sequence[Mapping[str, Any]], made: MadeEdits) -> dict[str, Any]:
    values = [pair["scores"][name] for pair in pairs if name in pair["scores"]]
    encoder = "none"
    if name in ENCODER_SCORES:
        encoder = made.clip if name.startswith("clip") else made.dino
    return {
        "name": name,
        "value": statistics.fmean(values),
        "higher_is_better": EDIT_SCORES[name].higher_is_better,
        "encoder": encoder,
        "preprocessing": "bicubic32-crop32" if encoder != "none" else "8-bit RGB",
        "token_policy": "target caption" if name.startswith("clip_t") else "no text",
        "pairing": "edited and source",
        "counts": {"rows": len(values), "images": len(made.images), "absent": len(pairs) - len(values)},
        "definition_version": EDIT_DEFINITION_VERSION,
        "note": "",
    }


def _per(part: str, pairs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for value in dict.fromkeys(pair[part] for pair in pairs):
        mine = [pair for pair in pairs if pair[part] == value]
        names = [name for name in EDIT_SCORES if any(name in pair["scores"] for pair in mine)]
        means = {
            name: statistics.fmean(pair["scores"][name] for pair in mine if name in pair["scores"]) for name in names
        }
        rows.append({part: value, "images": len(mine), "scores": means, "absent": {}})
    return rows


def _write_pictures(
    folder: Path, config: Mapping[str, Any], pairs: Sequence[Mapping[str, Any]], made: MadeEdits
) -> None:
    reach = round(reach_of(config), 3)
    for pair in pairs:
        image, edit, side = pair["image"], pair["edit"], made.side
        _write_picture(folder / pair["source"], (image, "", 0.0, side))
        _write_picture(folder / pair["file"], (image, edit, reach, side))
        for kind, name in pair["conditions"].items():
            _write_picture(folder / name, (image, kind, 0.0, side))
        if pair["truth"]:
            _write_picture(folder / pair["truth"], (image, edit, 1.0, side))
        if pair["mask"]:
            _write_picture(folder / pair["mask"], ("mask", edit, 0.0, side))
    _write_picture(folder / "samples" / "step_000001" / "grid.png", ("grid", "", 0.5, 64))


def _write_picture(path: Path, what: tuple[str, str, float, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_room(*what))


@lru_cache(maxsize=8192)
def _room(image: str, edit: str, reach: float, side: int) -> bytes:
    """A wall, a floor and a bed, in colours of the image's own, as far changed as the edit reaches."""
    hue = [int(90 + 120 * fraction(image, channel)) for channel in "rgb"]
    if edit in ("canny", "depth"):
        hue = [230, 230, 230] if edit == "depth" else [12, 12, 12]
    toward = {"at_night": (20, 24, 60), "lamp_on": (250, 220, 140), "carpet_red": (190, 30, 30)}.get(edit, (9, 99, 9))
    wall = tuple(round(one + (other - one) * 0.8 * reach) for one, other in zip(hue, toward, strict=True))
    picture = Image.new("RGB", (side, side), wall)
    draw = ImageDraw.Draw(picture)
    floor = tuple(value // 2 for value in wall)
    left = int(side * (0.1 + 0.3 * fraction(image, "bed")))
    draw.rectangle((0, side * 2 // 3, side, side), fill=floor)
    draw.rectangle((left, side // 2, left + side // 3, side * 4 // 5), fill=(240, 240, 235))
    draw.rectangle((side - side // 4, side // 8, side - side // 12, side // 3), outline=(250, 250, 250))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()

"""Run folders as `boothlab train` leaves them, made in milliseconds: for the tests of reports, which only read them."""

import hashlib
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from boothlab.compose.naming import identity, run_name
from boothlab.config import BackboneConfig, EncodersConfig, EvaluationConfig, SubjectConfig, TrainConfig, TrainerConfig
from boothlab.reporting.sweeps import SweepFile, SweepJob, write_sweep
from boothlab.tracking import metrics
from boothlab.tracking.history import Row, encode_number
from boothlab.tracking.manifest import plain
from boothlab.tracking.summary import baseline_values, best_values, ceiling_values, final_values, timing_values

PROMPTS = ("a photo of a {token} {class} on the beach", "a photo of a {token} {class} in the snow")
KEYS = {
    "clip_i": metrics.CLIP_I,
    "dino": metrics.DINO,
    "clip_t": metrics.CLIP_T,
    "clip_t_with_token": metrics.CLIP_T_WITH_TOKEN,
    "div": metrics.DIV,
    "pres": metrics.PRES,
    "balanced": metrics.BALANCED,
}
FLOOR = {"clip_i": 0.52, "dino": 0.24, "clip_t": 0.67, "clip_t_with_token": 0.67, "div": 0.3, "pres": 0.24}
REACH = {"clip_i": 0.2, "dino": 0.6, "clip_t": -0.05, "clip_t_with_token": -0.04, "div": -0.2, "pres": 0.6}
"""How far a score moves from the floor when training does all it can."""

Scores = Callable[[Mapping[str, Any], int, int], dict[str, float]]
"""(resolved config, seed, step) → overall scores by short name; `balanced` is worked out where it is not given."""


@dataclass(frozen=True)
class Made:
    """How the runs of `make_runs` were measured and what they leave; the default is the miniature's."""

    suffix: str = "dollhouse"
    clip: str = "clip@3391974"
    dino: str = "dino@98c2317"
    definition_version: int = 1
    ceilings: Mapping[str, float] = field(default_factory=lambda: {"clip_i": 0.69, "dino": 0.91})
    constant_images: int = 0
    #: off leaves no samples folders, as when a user deleted them to save space
    samples: bool = True
    #: off writes metrics.json but no PNG
    images: bool = True
    prompts: Sequence[str] = PROMPTS
    image_seeds: Sequence[int] = (0, 1)
    #: (index of the setting, seed) → `failed`, `interrupted` or `running` for runs that did not finish
    statuses: Mapping[tuple[int, int], str] = field(default_factory=dict)


def make_runs(
    root: Path,
    settings: list[dict[str, Any]],
    seeds: Sequence[int] = (0,),
    checkpoints: Sequence[int] = (50, 100),
    *,
    sweep: Mapping[str, Any] | None = None,
    experiment: str = "study",
    scores: Scores | None = None,
    made: Made | None = None,
) -> Path:
    """Write a run folder for each setting and seed under `root/experiment`, and return that experiment folder.

    A setting maps dotted config keys to values. `sweep` holds fields of SweepFile (`name`, `axis`, `params`, …): the
    sweep file then names these runs as its jobs. Everything is a function of the arguments alone.
    """
    made = made or Made()
    folder = root / experiment
    jobs = []
    for index, setting in enumerate(settings):
        for seed in seeds:
            config = make_config({**setting, "experiment": experiment, "seed": seed}, checkpoints, made)
            name = run_name(config)
            status = made.statuses.get((index, seed), "finished")
            write_run(folder / name, config, seed, checkpoints, scores or model_scores, made, status)
            jobs.append(SweepJob([f"{key}={typed(value)}" for key, value in {**setting, "seed": seed}.items()], name))
    if sweep is not None:
        write_sweep(folder, _sweep_file(sweep, jobs))
    return folder


def _sweep_file(given: Mapping[str, Any], jobs: list[SweepJob]) -> SweepFile:
    params: dict[str, list[str]] = {}
    for job in jobs:
        for key, _, value in (override.partition("=") for override in job.overrides):
            params.setdefault(key, [])
            params[key] += [value] if value not in params[key] else []
    given = {"name": "study", "about": "", "axis": None, "expect": {}, "published": [], "params": params, **given}
    return SweepFile(
        **{"title": str(given["name"]), "command": ["boothlab", "sweep", given["name"]], **given}, jobs=jobs
    )


def typed(value: Any) -> str:
    """A config value as it is typed on a command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return "[" + ",".join(map(typed, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def make_config(setting: Mapping[str, Any], checkpoints: Sequence[int], made: Made) -> dict[str, Any]:
    """A resolved config with the schema's keys."""
    config: dict[str, Any] = plain(
        TrainConfig(
            seed=0,
            name="dollhouse-robot",
            backbone=BackboneConfig("dollhouse", "dollhouse", resolution=32),
            subject=SubjectConfig("dollhouse:robot/6", class_noun="robot", instance_prompt="a photo of a sks robot"),
            encoders=EncodersConfig(clip="dollhouse", dino="dollhouse"),
            trainer=TrainerConfig(max_steps=max(checkpoints), checkpoint_every=min(checkpoints)),
            evaluation=EvaluationConfig(prompts=list(made.prompts), seeds=list(made.image_seeds)),
        )
    )
    config["prior"]["class_prompt"] = "a photo of a robot"
    for dotted, value in setting.items():
        *path, last = dotted.split(".")
        section = config
        for part in path:
            section = section[part]
        assert last in section, f"no such key: {dotted}"
        section[last] = value
    return config


def model_scores(config: Mapping[str, Any], seed: int, step: int) -> dict[str, float]:
    """Scores that move as the published study found: rate, rank and text encoder raise likeness, a prior lowers it."""
    lora, prior = config["lora"], config["prior"]
    push = math.log10(config["optim"]["lr"] / 1e-4) + 0.4 * math.log2(lora["rank"] / 16)
    push += 0.8 * lora["train_text_encoder"] - 0.8 * prior["enabled"] + 0.2 * (len(prior["class_prompt"]) > 20)
    strength = step / (step + 100) / (1 + math.exp(-push)) if step else 0.0
    setting = json.dumps({key: value for key, value in config.items() if key != "experiment"}, sort_keys=True)
    noise = {name: 0.004 * (fraction(setting, name, seed, step) - 0.5) if step else 0.0 for name in FLOOR}
    return {name: FLOOR[name] + REACH[name] * strength + noise[name] for name in FLOOR}


def fraction(*parts: object) -> float:
    """A number in [0, 1) from anything, the same everywhere."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def write_run(
    folder: Path,
    config: dict[str, Any],
    seed: int,
    checkpoints: Sequence[int],
    scores: Scores,
    made: Made,
    status: str = "finished",
) -> None:
    """One run folder. A run that did not finish has no evaluation after its first checkpoint."""
    steps = [0, *checkpoints] if status == "finished" else [0, *checkpoints[:1]]
    rows = [Row(0, 1.0, {_key(f"{name}_ceiling", made): value for name, value in made.ceilings.items()})]
    for step in steps:
        overall = dict(scores(config, seed, step))
        overall.setdefault("balanced", sum(overall[name] for name in ("clip_i", "dino", "clip_t")) / 3)
        scalars = {_key(name, made): value for name, value in overall.items()}
        if step:
            rows.append(Row(step, step + 1.0, _training(config, seed, step)))
        extra = {metrics.CONSTANT_IMAGES: float(made.constant_images), metrics.SAMPLING_SECONDS: 4.0}
        rows.append(Row(step, step + 2.0, {**scalars, **extra, metrics.SCORING_SECONDS: 0.1}))
        if made.samples:
            _write_samples(folder / "samples" / f"step_{step:06d}", config, seed, step, overall, made)
    lines = [
        {"step": row.step, "time": row.time, **{k: encode_number(v) for k, v in row.scalars.items()}} for row in rows
    ]
    _write(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    _write_json(folder / "manifest.json", _manifest(config, seed, status))
    if status != "running":
        _write_json(folder / "summary.json", _summary(rows, status))


def _key(name: str, made: Made) -> str:
    key = KEYS.get(name) or {"clip_i_ceiling": metrics.CLIP_I_CEILING, "dino_ceiling": metrics.DINO_CEILING}[name]
    return metrics.variant(key, made.suffix) if made.suffix else key


def _training(config: Mapping[str, Any], seed: int, step: int) -> dict[str, int | float]:
    loss = 0.1 / (1 + step / 50) + 0.01 * fraction("loss", seed, step)
    rate = {metrics.TRAIN_LR_UNET: float(config["optim"]["lr"]), metrics.TRAIN_GRAD_NORM: 0.2}
    return {metrics.TRAIN_LOSS: loss, metrics.TRAIN_LOSS_INSTANCE: loss, **rate, metrics.TRAIN_STEP_SECONDS: 0.13}


def _manifest(config: dict[str, Any], seed: int, status: str) -> dict[str, Any]:
    return {
        "format": 1,
        "status": status,
        "started": "2026-01-02T03:04:05+00:00",
        "finished": None if status == "running" else "2026-01-02T03:05:15+00:00",
        "config": config,
        "config_hash": identity(config)[0],
        "seed": seed,
        "stream_seeds": {"noise": 1, "lora_init": 2},
        "inputs": {"photos/photo_00.png": "d8aa29d5" * 8},
        "weights": {"backbone": {"unet/config.json": "f2edce33" * 8}, "clip": "clip@3391974", "dino": "dino@98c2317"},
        "command": ["boothlab", "train", f"seed={seed}"],
        "versions": {"boothlab": "0.1.0", "diffusers": "0.42.1", "torch": "2.13.0+cpu", "transformers": "5.23.0"},
        "machine": {"architecture": "x86_64", "cpu_count": 2, "device": "cpu", "python": "3.11.7"},
        "numerics": {"deterministic_algorithms": True, "torch_threads": 2},
        "git": {"commit": "8750b17e" * 5, "diff": "", "dirty": False},
        "earlier_attempts": [],
    }


def _summary(rows: list[Row], status: str) -> dict[str, Any]:
    return {
        "status": status,
        "error": None if status == "finished" else "the loss became nan at step 60",
        "final": final_values(rows),
        "best": best_values(rows),
        "baselines": baseline_values(rows),
        "ceilings": ceiling_values(rows),
        "timings": timing_values(rows),
        "counts": {"rows": len(rows), "dropped_lines": 0, "last_step": rows[-1].step, "photos": 5},
    }


def _write_samples(
    folder: Path, config: Mapping[str, Any], seed: int, step: int, overall: dict[str, float], made: Made
) -> None:
    evaluation, subject = config["evaluation"], config["subject"]
    names = {"token": subject["token"], "class": subject["class_noun"]}
    prompts = [prompt.format(**names) for prompt in evaluation["prompts"]]
    per_prompt = []
    for index, prompt in enumerate(prompts):
        # Evenly spaced about the overall value, so that prompts differ and their mean is the run's.
        offset = 0.02 * (index - (len(prompts) - 1) / 2)
        kept = {name: value + offset for name, value in overall.items() if name not in ("pres", "balanced")}
        row = {"prompt_index": index, "prompt": prompt, "images": len(evaluation["seeds"]), **kept}
        per_prompt.append(row)
    table = [_metric_row(name, overall[name], config, made) for name in KEYS if name in overall and name != "balanced"]
    table += [_metric_row(f"{name}_ceiling", value, config, made) for name, value in made.ceilings.items()]
    _write_json(folder / "metrics.json", {"step": step, "metrics": table, "per_prompt": per_prompt})
    _write(folder / "scores.csv", "prompt_index,prompt,seed,clip_i,dino,clip_t,clip_t_with_token\n")
    if made.images:
        for index in range(len(prompts)):
            for image_seed in evaluation["seeds"]:
                colour = _colour(fraction("colour", config["optim"]["lr"], seed, step, index, image_seed))
                (folder / f"prompt{index:02d}_seed{image_seed}.png").write_bytes(_png(32, 32, *colour))
        (folder / "grid.png").write_bytes(_png(120, 90, *_colour(fraction("grid", seed, step))))


def _metric_row(name: str, value: float, config: Mapping[str, Any], made: Made) -> dict[str, Any]:
    dino = name.startswith(("dino", "div", "pres"))
    encoder = made.dino if dino else made.clip
    policy = {"clip_t": "unique token removed", "clip_t_with_token": "unique token kept"}.get(name, "no text")
    pairing = "all generated × all reference pairs"
    if name == "pres":
        noun = config["subject"]["class_noun"]
        pairing = f"all pairs of images of the bare class prompt ({noun}) and references"
    prompts, images = len(config["evaluation"]["prompts"]), len(config["evaluation"]["seeds"])
    return {
        "name": name,
        "value": encode_number(value),
        "higher_is_better": name != "pres",
        "encoder": f"lpips-uniform/{encoder}" if name == "div" else encoder,
        "preprocessing": "dino-bicubic32-crop32" if dino else "clip-bicubic32-crop32",
        "token_policy": policy,
        "pairing": pairing,
        "counts": {"images": prompts * images, "prompts": prompts, "references": config["subject"]["count"]},
        "definition_version": made.definition_version,
        "note": "",
    }


def _colour(value: float) -> tuple[int, int, int]:
    return int(255 * value), int(255 * (1 - value)), int(997 * value) % 256


@lru_cache(maxsize=4096)
def _png(width: int, height: int, red: int, green: int, blue: int) -> bytes:
    """A picture with a stripe, so that it is not one flat colour."""
    image = Image.new("RGB", (width, height), (red, green, blue))
    image.paste((255 - red, 255 - green, 255 - blue), (0, 0, width, height // 4))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _write(path: Path, text: str) -> None:
    # Not through boothlab.files: hundreds of folders would each wait for the disk.
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8"))


def _write_json(path: Path, value: Any) -> None:
    _write(path, json.dumps(_safe(value), sort_keys=True, indent=2, ensure_ascii=False) + "\n")


def _safe(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _safe(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_safe(item) for item in value]
    return encode_number(value) if isinstance(value, float) else value

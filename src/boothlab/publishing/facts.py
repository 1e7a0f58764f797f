"""What a card says of a run, read from its folder: settings, scores with their definitions, samples, versions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boothlab.errors import UserError
from boothlab.files import read_json, shown
from boothlab.publishing.licences import licence_of
from boothlab.publishing.privacy import public_command, public_source
from boothlab.reporting.runs import SCORES, Checkpoint, RunRecord, higher_is_better, is_editing, is_run_folder, read_run
from boothlab.tracking.metrics import REGISTRY
from boothlab.tracking.redaction import redact_text


@dataclass(frozen=True)
class Score:
    """One score of a run: its values, and how it was measured. None where it was not."""

    name: str
    label: str
    last: float | None
    best: float | None
    best_step: int | None
    floor: float | None
    ceiling: float | None
    higher_is_better: bool
    what: str
    how: dict[str, str]
    counts: str


@dataclass(frozen=True)
class Facts:
    """Everything a card says; texts are as the run has them, without places, not yet escaped."""

    name: str
    base: str
    base_name: str
    licence: str | None
    licence_link: str | None
    instance_prompt: str
    class_noun: str
    token: str
    photos: int
    step: int
    scores: list[Score]
    settings: dict[str, str]
    versions: dict[str, str]
    rerun: list[str]
    suffix: str
    samples: list[tuple[str, Path]]
    resolution: int
    git_commit: str
    is_sdxl: bool
    notes: list[str] = field(default_factory=list)


def read_facts(folder: Path, base_model: str | None = None, licence: str | None = None) -> tuple[RunRecord, Facts]:
    """A finished training run's facts. Raises UserError for a folder that is none, with one line."""
    if not is_run_folder(folder):
        raise UserError(f"run={shown(folder)}: is no run folder (no manifest.json there); name one that `train` left")
    if is_editing(folder):
        raise UserError(f"run={shown(folder)}: is an editing run, which trains nothing; name a run of `boothlab train`")
    run = read_run(folder)
    if run.is_scoring:
        raise UserError(f"run={shown(folder)}: is a scoring of another run; name the run that it scored")
    if run.status != "finished":
        raise UserError(f"run={shown(folder)}: is not finished (its status is {shown(run.status)}); let it end first")
    config = run.config
    subject, backbone = config["subject"], config["backbone"]
    source = public_source(str(base_model or backbone["source"]))
    known = licence_of(source)
    last = run.last
    facts = Facts(
        name=redact_text(run.name),
        base=source,
        base_name=str(backbone["name"]),
        licence=licence or (known[0] if known else None),
        licence_link=known[1] if known and licence in (None, known[0]) else None,
        instance_prompt=redact_text(" ".join(str(subject.get("instance_prompt") or "").split())),
        class_noun=redact_text(str(subject.get("class_noun") or "")),
        token=redact_text(str(subject.get("token") or "")),
        photos=int((run.summary.get("counts") or {}).get("photos") or 0),
        step=int((run.summary.get("counts") or {}).get("last_step") or (last.step if last else 0)),
        scores=_scores(run, last) if last else [],
        settings=_settings(config, run.seed),
        versions={name: str(value) for name, value in sorted((run.manifest.get("versions") or {}).items())},
        rerun=["boothlab", "train", *public_command([str(word) for word in run.manifest.get("command") or []][2:])],
        suffix=run.suffix,
        samples=_samples(run, last),
        resolution=int(backbone["resolution"]),
        git_commit=str((run.manifest.get("git") or {}).get("commit") or "")[:12],
        is_sdxl=str(backbone["name"]) == "sdxl",
    )
    return run, facts


def _scores(run: RunRecord, last: Checkpoint) -> list[Score]:
    details = {str(row["name"]): row for row in _details(last)}
    found = []
    for name, (label, key) in SCORES.items():
        if name not in last.scores:
            continue
        best, row = run.best(name), details.get(name, {})
        counts = row.get("counts") or {}
        found.append(
            Score(
                name=name,
                label=label,
                last=last.scores[name],
                best=best.scores[name] if best else None,
                best_step=best.step if best else None,
                floor=run.floor.scores.get(name) if run.floor else None,
                ceiling=run.ceilings.get(name),
                higher_is_better=higher_is_better(name),
                what=REGISTRY[key].description,
                how={
                    part: str(row[part])
                    for part in ("encoder", "preprocessing", "pairing", "token_policy")
                    if part in row
                },
                counts=", ".join(f"{count} {what.replace('_', ' ')}" for what, count in sorted(counts.items())),
            )
        )
    return found


def _details(point: Checkpoint) -> list[Mapping[str, Any]]:
    path = point.folder / "metrics.json" if point.folder else None
    if path is None or not path.is_file():
        return []
    found = read_json(path)
    rows = found.get("metrics") if isinstance(found, dict) else None
    return [row for row in rows if isinstance(row, dict) and "name" in row] if isinstance(rows, list) else []


def _settings(config: Mapping[str, Any], seed: int) -> dict[str, str]:
    """The settings a reader asks for first, in words."""
    lora, optim, trainer = config["lora"], config["optim"], config["trainer"]
    alpha = lora["rank"] if lora.get("alpha") is None else lora["alpha"]
    text = optim.get("text_encoder_lr")
    prior = config["prior"]
    named: dict[str, Any] = {
        "rank": lora["rank"],
        "alpha": f"{alpha:g}",
        "UNet layers": ", ".join(map(str, lora["unet_targets"])),
        "text encoder": "trained" if lora.get("train_text_encoder") else "not trained",
        "learning rate": f"{optim['lr']:g}" + (f", text encoder {text:g}" if text else ""),
        "schedule": f"{optim['schedule']}, {optim['warmup_steps']} warm-up steps",
        "steps": trainer["max_steps"],
        "batch size": f"{config['data']['batch_size']} × {trainer['accumulate']}",
        "resolution": config["backbone"]["resolution"],
        "precision": config["backbone"]["precision"],
        "prior preservation": f"{prior['num_class_images']} class images, weight {prior['weight']:g}"
        if prior.get("enabled")
        else "none",
        "seed": seed,
    }
    return {name: redact_text(str(value)) for name, value in named.items()}


def _samples(run: RunRecord, last: Checkpoint | None) -> list[tuple[str, Path]]:
    """(prompt, image) for the first seed of each evaluation prompt, then the next seeds."""
    if last is None or last.folder is None:
        return []
    found = []
    for seed in run.image_seeds:
        for index, prompt in enumerate(run.prompts):
            path = last.folder / f"prompt{index:02d}_seed{seed}.png"
            if path.is_file():
                found.append((redact_text(" ".join(prompt.split())), path))
    return found

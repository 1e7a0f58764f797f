"""What a card says of a run, read from its folder: settings, scores with their definitions, samples, versions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boothlab.diffusion.learned_words import Words, placeholders_of
from boothlab.errors import UserError
from boothlab.files import shown
from boothlab.publishing.choice import Choice, choose
from boothlab.publishing.licences import licence_of
from boothlab.publishing.privacy import public_command, public_source
from boothlab.publishing.settings import settings_of
from boothlab.publishing.weights import shapes_of
from boothlab.reporting.runs import SCORES, Checkpoint, RunRecord, higher_is_better, is_editing, is_run_folder, read_run
from boothlab.tracking.metrics import REGISTRY
from boothlab.tracking.redaction import redact_text

SDXL_HALVES = {"clip_l", "clip_g"}
"""The keys of an SDXL embedding; any other has its placeholder for the only one."""


@dataclass(frozen=True)
class Score:
    """One score at the published step, with the run's last and best; how it was measured. None where it was not."""

    name: str
    label: str
    value: float | None
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
class LearnedWord:
    """A learned word: what diffusers reads for it, how many vectors it has, whether a file holds SDXL's two halves."""

    placeholder: str
    vectors: int
    has_halves: bool


@dataclass(frozen=True)
class Facts:
    """Everything a card says; texts are as the run has them, without places, not yet escaped.

    Prompts have the placeholder of a learned word where the run's have the subject's token. `variant` is the form of
    the adapter, None without one; `networks` are those trained whole.
    """

    name: str
    base: str
    base_name: str
    licence: str | None
    licence_link: str | None
    instance_prompt: str
    class_noun: str
    token: str
    photos: int
    choice: Choice
    last_scored: int | None
    scored_steps: list[int]
    scores: list[Score]
    settings: dict[str, str]
    versions: dict[str, str]
    rerun: list[str]
    suffix: str
    samples: list[tuple[str, Path]]
    resolution: int
    git_commit: str
    is_sdxl: bool
    variant: str | None
    word: LearnedWord | None
    networks: list[str]
    notes: list[str] = field(default_factory=list)

    @property
    def step(self) -> int:
        """The published step."""
        return self.choice.step

    @property
    def noun(self) -> str:
        """What a card calls the thing that was trained."""
        return "adapter" if self.variant else "model" if self.networks else "embedding"


def read_facts(
    folder: Path,
    base_model: str | None = None,
    licence: str | None = None,
    checkpoint: str = "last",
    best_by: str | None = None,
) -> tuple[RunRecord, Facts]:
    """The facts of one step of a finished training run. Raises UserError for a folder that is none, with one line."""
    run = _training(folder)
    config = run.config
    subject, backbone = config["subject"], config["backbone"]
    source = public_source(str(base_model or backbone["source"]))
    known = licence_of(source)
    choice = choose(run, checkpoint, best_by)
    point = next((one for one in run.checkpoints if one.step == choice.step), None)
    token = redact_text(str(subject.get("token") or ""))
    word = _word(choice, token)
    facts = Facts(
        name=redact_text(run.name),
        base=source,
        base_name=str(backbone["name"]),
        licence=licence or (known[0] if known else None),
        licence_link=known[1] if known and licence in (None, known[0]) else None,
        instance_prompt=_as_read(str(subject.get("instance_prompt") or ""), token, word),
        class_noun=redact_text(str(subject.get("class_noun") or "")),
        token=token,
        photos=int((run.summary.get("counts") or {}).get("photos") or 0),
        choice=choice,
        last_scored=run.last.step if run.last else None,
        scored_steps=[one.step for one in run.checkpoints],
        scores=_scores(run, point) if point else [],
        settings=settings_of(config, run.seed),
        versions={name: str(value) for name, value in sorted((run.manifest.get("versions") or {}).items())},
        rerun=["boothlab", "train", *public_command([str(part) for part in run.manifest.get("command") or []][2:])],
        suffix=run.suffix,
        samples=[(_as_read(prompt, token, word), path) for prompt, path in _samples(run, point)],
        resolution=int(backbone["resolution"]),
        git_commit=str((run.manifest.get("git") or {}).get("commit") or "")[:12],
        is_sdxl=str(backbone["name"]) == "sdxl" or (word is not None and word.has_halves),
        variant=str(config["lora"].get("variant") or "lora") if choice.adapter else None,
        word=word,
        networks=list(choice.networks),
    )
    return run, facts


def _training(folder: Path) -> RunRecord:
    if not is_run_folder(folder):
        raise UserError(f"run={shown(folder)}: is no run folder (no manifest.json there); name one that `train` left")
    if is_editing(folder):
        raise UserError(f"run={shown(folder)}: is an editing run, which trains nothing; name a run of `boothlab train`")
    run = read_run(folder)
    if run.is_scoring:
        raise UserError(f"run={shown(folder)}: is a scoring of another run; name the run that it scored")
    if run.status != "finished":
        raise UserError(f"run={shown(folder)}: is not finished (its status is {shown(run.status)}); let it end first")
    return run


def _word(choice: Choice, token: str) -> LearnedWord | None:
    """The learned word of a file. Raises UserError for one that cannot be read."""
    if choice.words is None:
        return None
    shapes = shapes_of(choice.words)
    rows = next(iter(shapes.values()), [])
    return LearnedWord(placeholders_of(token, 1)[0], rows[0] if len(rows) > 1 else 1, set(shapes) == SDXL_HALVES)


def _as_read(prompt: str, token: str, word: LearnedWord | None) -> str:
    """A prompt on one line, as diffusers reads it: it puts `<sks>_1` and on behind `<sks>` by itself."""
    line = redact_text(" ".join(prompt.split()))
    return Words(token, [word.placeholder]).spell(line) if word else line


def _scores(run: RunRecord, point: Checkpoint) -> list[Score]:
    details: dict[str, Mapping[str, Any]] = {row["name"]: row for row in point.details.get("metrics", [])}
    found = []
    for name, (label, key) in SCORES.items():
        if name not in point.scores:
            continue
        best, row = run.best(name), details.get(name, {})
        counts = row.get("counts") or {}
        found.append(
            Score(
                name=name,
                label=label,
                value=point.scores[name],
                last=run.last.scores.get(name) if run.last else None,
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


def _samples(run: RunRecord, point: Checkpoint | None) -> list[tuple[str, Path]]:
    """(prompt, image) for the first seed of each evaluation prompt, then the next seeds; of this step alone."""
    if point is None:
        return []
    prompts = [row.prompt for row in point.per_prompt] or run.prompts
    found = [(prompt, point.image(index, seed)) for seed in run.image_seeds for index, prompt in enumerate(prompts)]
    return [(prompt, path) for prompt, path in found if path is not None]

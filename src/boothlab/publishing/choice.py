"""Which step of a run is published, why, and where its files lie."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boothlab.diffusion.formats.diffusers_format import FILE_NAME
from boothlab.diffusion.learned_words import FILE_NAME as WORDS_FILE
from boothlab.diffusion.learned_words import FOLDER as WORDS_FOLDER
from boothlab.diffusion.whole import find_networks
from boothlab.errors import UserError
from boothlab.files import read_json, sha256_file, shown
from boothlab.publishing.settings import word_steps
from boothlab.reporting.runs import SCORES, RunRecord

LAST, BEST, BALANCED = "last", "best", "balanced"
BEST_BY = (BALANCED, "clip_i", "dino", "clip_t")
"""The scores by which the best step can be chosen."""
NEEDED = {
    "lora": (FILE_NAME,),
    "textual_inversion": (WORDS_FILE,),
    "pivotal": (FILE_NAME, WORDS_FILE),
    "full": (),
}
"""The files in a checkpoint that users load, by method: whole networks are left at the end of the run alone."""
_PLACES = {FILE_NAME: "lora", WORDS_FILE: WORDS_FOLDER}
_MOST_NAMED = 20


@dataclass(frozen=True)
class Choice:
    """One step of a run and the files that users load of it.

    `why` is `last`, `best` (by the score `best_by`) or `named`. `words_alone` is for a step of pivotal tuning at which
    the adapter had not begun to learn; `starts_after` is then the step after which it does.
    """

    step: int
    last: int
    why: str
    best_by: str | None = None
    adapter: Path | None = None
    words: Path | None = None
    networks: Mapping[str, Path] = field(default_factory=dict)
    starts_after: int | None = None

    @property
    def is_last(self) -> bool:
        """Whether it is the run's last step, however it was asked for."""
        return self.step == self.last

    @property
    def told(self) -> str:
        """The step and why, for the one who publishes."""
        why = f"the best by {SCORES[self.best_by][0]}" if self.best_by else "the last" if self.is_last else "as asked"
        alone = "; the adapter had not begun to learn, so the word goes alone" if self.words_alone else ""
        return f"{self.step} of {self.last}, {why}{alone}"

    @property
    def words_alone(self) -> bool:
        """Whether an adapter was left out that had not begun to learn."""
        return self.starts_after is not None


def check_choice(checkpoint: str, best_by: str | None) -> None:
    """Raise UserError unless `checkpoint` is last, best or a whole number, and `best_by` a score that goes with it."""
    if checkpoint not in (LAST, BEST) and not (checkpoint.isascii() and checkpoint.isdigit()):
        raise UserError(f"checkpoint={shown(checkpoint)}: is neither last nor best nor the number of a step")
    if best_by is not None and best_by not in BEST_BY:
        raise UserError(f"best_by={shown(best_by)}: is none of {', '.join(BEST_BY)}")
    if best_by is not None and checkpoint != BEST:
        raise UserError(f"best_by={best_by}: is for checkpoint=best; add that, or leave best_by out")


def choose(run: RunRecord, checkpoint: str = LAST, best_by: str | None = None) -> Choice:
    """The step of a finished run that is meant, with its files.

    Raises UserError when there is no such step, when its files are gone or altered, or when none can be the best.
    """
    check_choice(checkpoint, best_by)
    method = str(run.config.get("method") or "lora")
    if method not in NEEDED:
        raise UserError(f"run={shown(run.folder)}: its method={shown(method)} is not known; update boothlab")
    last = _last_step(run)
    kept = {step: folder for step, folder in _kept(run.folder, NEEDED[method]).items() if step != last}
    if checkpoint == BEST:
        best_by = best_by or BALANCED
        step = _best(run, best_by, method, {*kept, last})
    else:
        step = last if checkpoint == LAST else int(checkpoint)
    if step != last and step not in kept:
        raise UserError(
            f"checkpoint={step}: the run has no checkpoint of this step; {_there_are({*kept, last}, method)}"
        )
    found = _of_checkpoint(kept[step], NEEDED[method]) if step != last else _of_run(run.folder, method)
    why = checkpoint if checkpoint in (LAST, BEST) else "named"
    starts = word_steps(run.config) if method == "pivotal" else 0
    if step <= starts:  # an adapter of zeros, which no loader has a use for
        found = {**found, "adapter": None, "starts_after": starts}
    return Choice(step, last, why, best_by, **found)


def _last_step(run: RunRecord) -> int:
    counted = (run.summary.get("counts") or {}).get("last_step")
    return int(counted or (run.last.step if run.last else (run.config.get("trainer") or {}).get("max_steps") or 0))


def _kept(run_dir: Path, needed: Iterable[str]) -> dict[int, Path]:
    """The checkpoints that hold what users load, by step; none for a method that needs nothing of them."""
    needed = tuple(needed)
    found = {}
    for folder in (run_dir / "checkpoints").glob("step_*"):
        digits = folder.name.removeprefix("step_")
        if needed and digits.isascii() and digits.isdigit() and all((folder / name).is_file() for name in needed):
            found[int(digits)] = folder
    return dict(sorted(found.items()))


def _best(run: RunRecord, score: str, method: str, there: set[int]) -> int:
    best = run.best(score)
    label = SCORES[score][0]
    if best is None:
        raise UserError(f"checkpoint=best: no step of the run was scored by {label}; {_there_are(there, method)}")
    if best.step not in there:
        raise UserError(
            f"checkpoint=best: the best by {label} is step {best.step}, which has no checkpoint; "
            f"{_there_are(there, method)}"
        )
    return best.step


def _there_are(steps: set[int], method: str) -> str:
    """What can be asked for instead."""
    if method == "full":
        return f"a run of method=full keeps only its last step, {max(steps)}: leave checkpoint=last"
    named = ", ".join(str(step) for step in sorted(steps)[-_MOST_NAMED:])
    return f"those with one are {'…, ' if len(steps) > _MOST_NAMED else ''}{named}"


def _of_run(run_dir: Path, method: str) -> dict[str, Any]:
    """What the run left at its end."""
    if method == "full":
        networks = find_networks(run_dir)
        if not networks:
            raise UserError(f"run={shown(run_dir)}: its unet/ is gone; train it again")
        return {"networks": networks}
    paths = {name: run_dir / _PLACES[name] / name for name in NEEDED[method]}
    for path in paths.values():
        if not path.is_file():
            raise UserError(f"run={shown(run_dir)}: its {path.parent.name}/{path.name} is gone; train it again")
    return {"adapter": paths.get(FILE_NAME), "words": paths.get(WORDS_FILE)}


def _of_checkpoint(folder: Path, needed: Iterable[str]) -> dict[str, Any]:
    """What users load of a checkpoint, if it is as it was written."""
    state = read_json(folder / "state.json") if (folder / "state.json").is_file() else {}
    digests = state.get("files") if isinstance(state, dict) else None
    paths = {name: folder / name for name in needed}
    for name, path in paths.items():
        if isinstance(digests, dict) and digests.get(name) not in (None, sha256_file(path)):
            raise UserError(f"{shown(path)}: was altered or cut short since it was written; choose another checkpoint=")
    return {"adapter": paths.get(FILE_NAME), "words": paths.get(WORDS_FILE)}

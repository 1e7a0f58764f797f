"""Two run folders against each other: metrics, adapters, class images and samples, bit for bit or within tolerances."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from boothlab.errors import UserError
from boothlab.files import sha256_file, shown
from boothlab.images.load import load_image
from boothlab.rerunning.differences import (
    Steps,
    Tolerance,
    Tolerances,
    by_step,
    compare_histories,
    differing_streams,
    likely_cause,
)
from boothlab.tracking.history import FILE_NAME as HISTORY
from boothlab.tracking.history import read_history
from boothlab.tracking.manifest import ADAPTER, EMBEDDINGS, NETWORKS, tensors_digest

ADAPTERS = (
    "checkpoints/step_*/pytorch_lora_weights.safetensors",
    "checkpoints/step_*/learned_embeds.safetensors",
    *(ADAPTER, EMBEDDINGS, *NETWORKS),
)
"""What was trained, whatever the method; files of a run of another method are simply not there."""
SAMPLES = ("samples/step_*/prompt*_seed*.png", "samples/step_*/*__*__s*.png")
CLASS_IMAGE = "class_images/"


@dataclass(frozen=True)
class Standard:
    """What counts as the same. `adapter` is |difference| / |recorded|, in the Euclidean norm over all its numbers;
    `image` is the mean difference of an image's pixels, in levels of 0..255.
    """

    exact: bool
    metrics: Tolerances = field(default_factory=Tolerances)
    adapter: float = 0.0
    image: float = 0.0


def _within(unit: float, adapter: float) -> Standard:
    """Scores may be off by `unit`, losses by `unit` of themselves, gradients by ten times as much."""
    never = Tolerance(relative=1e-9)
    by_prefix = (
        ("train/loss", Tolerance(relative=unit)),
        ("train/grad_norm", Tolerance(relative=10 * unit)),
        ("train/lr", never),
        ("train/epoch", never),
        ("eval/constant_images", never),
        ("edit/psnr", Tolerance(absolute=100 * unit)),  # in dB
    )
    return Standard(False, Tolerances(Tolerance(absolute=unit), by_prefix), adapter=adapter, image=500 * unit)


BIT_FOR_BIT = Standard(exact=True)
"""For the same device, number of threads and libraries."""
WITHIN_TOLERANCE = _within(0.001, adapter=0.001)
"""For any other, in float32: a score may differ by one in the third decimal, the last that a table shows."""
WITHIN_TOLERANCE_IN_HALF = _within(0.01, adapter=0.05)
"""The same for backbones in bfloat16 or float16, whose rounding is coarser."""


class Verdict(StrEnum):
    """How one thing compares."""

    SAME = "same bit for bit"
    CLOSE = "same within tolerance"
    DIFFERS = "differs"
    UNKNOWN = "not compared"


@dataclass(frozen=True)
class Finding:
    """One line of the comparison. `step` is that of the first difference, in optimizer steps; -1 is before any."""

    what: str
    verdict: Verdict
    detail: str
    step: int | None = None
    hint: str = ""


@dataclass(frozen=True)
class Comparison:
    """All findings; `first` is the one whose difference showed earliest in the run."""

    findings: tuple[Finding, ...]

    @property
    def same(self) -> bool:
        """Whether something was compared and nothing differs."""
        compared = [one for one in self.findings if one.verdict is not Verdict.UNKNOWN]
        return bool(compared) and all(one.verdict is not Verdict.DIFFERS for one in compared)

    @property
    def first(self) -> Finding | None:
        """The earliest difference; of two at the same step, the one that is listed first."""
        differing = [one for one in self.findings if one.verdict is Verdict.DIFFERS]
        return min(differing, key=lambda one: one.step if one.step is not None else 1 << 62, default=None)


@dataclass(frozen=True)
class Side:
    """A run: its folder, which may lack files, and its manifest, which may know the hashes of those."""

    folder: Path
    manifest: Mapping[str, Any]

    def files(self, *patterns: str) -> list[str]:
        """Files that match, there or only known by their hashes, by path in the folder, in order of name."""
        there = {path.relative_to(self.folder) for pattern in patterns for path in self.folder.glob(pattern)}
        known = {Path(name) for name in self.recorded if any(Path(name).match(pattern) for pattern in patterns)}
        return sorted(path.as_posix() for path in there | known)

    @property
    def recorded(self) -> dict[str, str]:
        """The hashes of outputs in the manifest."""
        outputs = self.manifest.get("outputs")
        return dict(outputs) if isinstance(outputs, Mapping) else {}

    def digest(self, name: str) -> str | None:
        """SHA-256 of a file that is there, else the recorded one."""
        path = self.folder / name
        return sha256_file(path) if path.is_file() else self.recorded.get(name)

    @property
    def finished(self) -> bool:
        """Whether the run came to its end; what came after the end of another cannot be compared."""
        return self.manifest.get("status") == "finished"


def compare_runs(before: Side, after: Side, standard: Standard, skipped: Iterable[str] = ()) -> Comparison:
    """Everything the two runs left. `skipped` are prefixes of metric keys that say nothing here."""
    findings = [
        *_class_images(before, after, standard),
        _metrics(before, after, standard, tuple(skipped)),
        *_files(before, after, "adapter", ADAPTERS, _compare_adapters(standard), standard.exact),
        *_files(before, after, "samples", SAMPLES, _compare_images(standard), standard.exact),
    ]
    return Comparison(tuple(findings))


def _class_images(before: Side, after: Side, standard: Standard) -> list[Finding]:
    """By the hashes of both manifests. Drawn ones change with the device, which is no more than said then."""
    old, new = (_hashes(side.manifest.get("inputs"), CLASS_IMAGE) for side in (before, after))
    if not old and not new:
        return []
    wrong = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    if not wrong:
        return [Finding("class images", Verdict.SAME, f"{len(old)} images")]
    detail = f"{len(wrong)} of {len(old)} are other files, first {wrong[0]}"
    if not standard.exact and len(old) == len(new):
        return [Finding("class images", Verdict.UNKNOWN, f"{detail}: drawn elsewhere, and only their hashes are kept")]
    return [Finding("class images", Verdict.DIFFERS, detail, -1, "look at the backbone and the sampler")]


def _hashes(recorded: Any, prefix: str) -> dict[str, str]:
    found = recorded if isinstance(recorded, Mapping) else {}
    return {name: digest for name, digest in found.items() if name.startswith(prefix)}


def _metrics(before: Side, after: Side, standard: Standard, skipped: tuple[str, ...]) -> Finding:
    if not (before.folder / HISTORY).is_file():
        return Finding("metrics", Verdict.UNKNOWN, f"the run has no {HISTORY}")
    old, new = (by_step(read_history(side.folder / HISTORY).rows, skipped) for side in (before, after))
    if not before.finished:
        new = _until(new, old)
    found = compare_histories(old, new, standard.metrics)
    counted = f"{found.compared} values at {len(old)} steps"
    if found.first is not None:
        streams = differing_streams(*(side.manifest.get("stream_seeds") or {} for side in (before, after)))
        trained = min((step for step in old if step > 0), default=None)
        earlier = f"; the {found.equal_steps} steps before it pass" if found.equal_steps else ""
        hint = likely_cause(found.first, trained, streams)
        return Finding("metrics", Verdict.DIFFERS, f"{found.first}{earlier}", found.first.step, hint)
    if found.farthest is None:
        return Finding("metrics", Verdict.SAME, counted)
    detail = f"{counted}, {found.identical} of them to the bit; the furthest off is {found.farthest}"
    return Finding("metrics", Verdict.CLOSE, detail)


def _until(steps: Steps, end: Steps) -> Steps:
    """The part of a history that another, which was broken off, can have."""
    last = max(end, default=-1)
    return {
        step: {key: value for key, value in values.items() if step < last or key in end[step]}
        for step, values in steps.items()
        if step <= last
    }


#: a gap between two files and whether it passes; 0.0 is identical content
Gap = tuple[float, bool, str]


def _files(
    before: Side, after: Side, what: str, patterns: tuple[str, ...], compare: Callable[[Path, Path], Gap], exact: bool
) -> list[Finding]:
    """One finding for all files of a kind; none if neither run has any.

    Of a file that is gone only the hash is known: whether another hash is within a tolerance cannot be said.
    """
    names, others = before.files(*patterns), after.files(*patterns)
    if before.finished:
        names = sorted({*names, *others})
    if not names:
        return [Finding(what, Verdict.UNKNOWN, "the run folder has none any more")] if others else []
    unseen, by_hash, worst = 0, list[str](), (0.0, "")
    for name in sorted(names, key=lambda name: (_step_of(name), name)):
        old, new = before.digest(name), after.digest(name)
        if old is None or new is None:
            if old is None and not (before.folder / name).parent.is_dir():
                unseen += 1  # the folder was thinned out, and the manifest did not know the file
                continue
            detail = f"{name} is {'only in the rerun' if old is None else 'not in the rerun'}"
            return [Finding(what, Verdict.DIFFERS, detail, _step_of(name))]
        if old == new:
            continue
        if not (before.folder / name).is_file():
            if name == ADAPTER and before.manifest.get("adapter_tensors") == tensors_digest(after.folder / name):
                continue
            if not exact:
                by_hash.append(name)
                continue
            detail = f"{name} has another hash, and the recorded file is not there to say by how much"
            return [Finding(what, Verdict.DIFFERS, detail, _step_of(name))]
        gap, passes, words = compare(before.folder / name, after.folder / name)
        if not passes:
            return [Finding(what, Verdict.DIFFERS, f"{name}: {words}", _step_of(name))]
        worst = max(worst, (gap, f"{name}: {words}"))
    counted = f"{len(names) - unseen} files" + (f"; {unseen} more are not in the recorded folder" if unseen else "")
    if unseen == len(names):
        return [Finding(what, Verdict.UNKNOWN, "the run folder has none any more")]
    return [_passing(what, counted, by_hash, worst)]


def _passing(what: str, counted: str, by_hash: list[str], worst: tuple[float, str]) -> Finding:
    if by_hash:
        others = f"{counted}; {len(by_hash)} with another hash, first {by_hash[0]}"
        return Finding(what, Verdict.UNKNOWN, f"{others}: only hashes were kept, which do not say by how much")
    if worst[0] == 0:
        return Finding(what, Verdict.SAME, counted)
    return Finding(what, Verdict.CLOSE, f"{counted}; the furthest off is {worst[1]}")


def _step_of(name: str) -> int:
    """The step in `…/step_000200/…`; the final adapter comes after all."""
    numbers = [part.removeprefix("step_") for part in Path(name).parts if part.startswith("step_")]
    return int(numbers[0]) if numbers and numbers[0].isdigit() else 1 << 61


def _compare_adapters(standard: Standard) -> Callable[[Path, Path], Gap]:
    def compare(before: Path, after: Path) -> Gap:
        old, new = _tensors(before), _tensors(after)
        if {name: value.shape for name, value in old.items()} != {name: value.shape for name, value in new.items()}:
            return float("inf"), False, "has other tensors"
        wrong = [name for name, value in old.items() if not _same_bits(value, new[name])]
        if not wrong:
            return 0.0, True, "same numbers"  # only what the file says of itself differs
        gap = relative_gap(old, new)
        words = f"{len(wrong)} of {len(old)} tensors differ, by {gap:.2g} of their norm"
        return max(gap, 1e-300), not standard.exact and gap <= standard.adapter, words

    return compare


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{shown(path)}: cannot be compared ({error}); put a whole file there") from error


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Bit for bit: NaNs are equal, and 0.0 is not -0.0."""
    if one.dtype != other.dtype:
        return False
    return torch.equal(one.contiguous().flatten().view(torch.uint8), other.contiguous().flatten().view(torch.uint8))


def relative_gap(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """|after - before| / |before|, Euclidean over all tensors of `before`; infinite where a NaN is in the way."""
    squares = sum(float((after[name].double() - value.double()).square().sum()) for name, value in before.items())
    norm = sum(float(value.double().square().sum()) for value in before.values())
    gap = (squares / norm) ** 0.5 if norm > 0 else (0.0 if squares == 0 else float("inf"))
    return gap if gap == gap else float("inf")


def _compare_images(standard: Standard) -> Callable[[Path, Path], Gap]:
    def compare(before: Path, after: Path) -> Gap:
        old, new = _pixels(before), _pixels(after)
        if old.shape != new.shape:
            return float("inf"), False, f"is {new.shape[1]}x{new.shape[0]} pixels, not {old.shape[1]}x{old.shape[0]}"
        off = np.abs(new.astype(np.int16) - old.astype(np.int16))
        if not off.any():
            return 0.0, True, "same pixels"  # written by another version of the PNG writer
        mean, pixels = float(off.mean()), off.any(axis=-1)
        words = f"{int(pixels.sum())} of {pixels.size} pixels differ, by {mean:.3g} of 255 on average"
        return mean, not standard.exact and mean <= standard.image, words

    return compare


def _pixels(path: Path) -> np.ndarray[Any, Any]:
    return np.asarray(load_image(path))

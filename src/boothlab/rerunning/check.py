"""`boothlab rerun --check`: what a run was made of and what it left, against its manifest, without running anything."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from boothlab.errors import UserError
from boothlab.files import read_json, sha256_file
from boothlab.rerunning.circumstances import Circumstance
from boothlab.rerunning.origin import Origin
from boothlab.rerunning.plan import Plan

OUTPUTS, STATUS = "outputs", "status"
#: the section of a manifest that speaks of an area
_SECTIONS = {"versions": "versions", "code": "git", "device": "machine", "threads": "numerics", "numerics": "numerics"}


class State(StrEnum):
    """How one line of the table stands."""

    SAME = "same"
    DIFFERS = "differs"
    UNKNOWN = "not recorded"


@dataclass(frozen=True)
class Line:
    """One line of the table; `area` is what --allow would name."""

    area: str
    what: str
    state: State
    detail: str


def check_lines(plan: Plan) -> list[Line]:
    """Config, materials, circumstances and outputs, each against the manifest."""
    status = str(plan.origin.manifest.get("status"))
    lines = [Line(STATUS, "run", State.SAME if status == "finished" else State.DIFFERS, status)]
    altered = plan.recipe.warnings
    lines.append(Line("config", "config", State.DIFFERS if altered else State.SAME, "; ".join(altered) or _hash(plan)))
    for material in plan.materials:
        state = State.UNKNOWN if material.same is None else State.SAME if material.same else State.DIFFERS
        lines.append(Line(material.kind, material.what, state, material.problem or material.detail))
    lines += _circumstances(plan.circumstances, plan.origin.manifest)
    if plan.origin.complete:
        lines += [*_outputs(plan.origin), *_checkpoints(plan.origin.folder)]
    return lines


def _hash(plan: Plan) -> str:
    return str(plan.origin.manifest.get("config_hash"))[:8]


def _circumstances(found: Sequence[Circumstance], manifest: Mapping[str, Any]) -> Iterator[Line]:
    """A line for each thing that differs, and one for each area where nothing does."""
    for area, section in _SECTIONS.items():
        wrong = [one for one in found if one.area == area]
        for one in wrong:
            yield Line(area, area, State.DIFFERS, str(one))
        if not wrong:
            known = bool(manifest.get(section))
            yield Line(area, area, State.SAME if known else State.UNKNOWN, "")
    for one in found:
        if one.area == "system":
            yield Line("system", "system", State.DIFFERS, str(one))


def _outputs(origin: Origin) -> Iterator[Line]:
    """The files of a finished run against the hashes that its manifest was closed with, a line for each folder."""
    recorded = origin.manifest.get(OUTPUTS)
    if not isinstance(recorded, Mapping) or not recorded:
        yield Line(OUTPUTS, OUTPUTS, State.UNKNOWN, "the manifest has no hashes of them")
        return
    groups: dict[str, list[str]] = {}
    for name in sorted(recorded):
        groups.setdefault(name.partition("/")[0], []).append(name)
    for group, names in groups.items():
        files = {name: origin.folder / name for name in names}
        gone = [name for name, path in files.items() if not path.is_file()]
        changed = [name for name, path in files.items() if path.is_file() and sha256_file(path) != recorded[name]]
        words = [f"{len(wrong)} of {len(names)} {how}, first {wrong[0]}" for wrong, how in _named(gone, changed)]
        state = State.DIFFERS if words else State.SAME
        yield Line(OUTPUTS, group, state, "; ".join(words) or f"{len(names)} file{'s' if len(names) > 1 else ''}")


def _named(gone: list[str], changed: list[str]) -> list[tuple[list[str], str]]:
    return [(wrong, how) for wrong, how in ((changed, "changed"), (gone, "gone")) if wrong]


def _checkpoints(run_dir: Path) -> Iterator[Line]:
    """Each checkpoint against its own state.json. Deleted ones are not missed: they only save time."""
    folders = sorted((run_dir / "checkpoints").glob("step_*"))
    damaged = [folder.name for folder in folders if not _is_whole(folder)]
    if folders:
        detail = f"{len(damaged)} damaged, first {damaged[0]}" if damaged else f"{len(folders)} whole"
        yield Line(OUTPUTS, "checkpoints", State.DIFFERS if damaged else State.SAME, detail)


def _is_whole(folder: Path) -> bool:
    try:
        state: Any = read_json(folder / "state.json")
        return all(sha256_file(folder / name) == digest for name, digest in state["files"].items())
    except (UserError, OSError, KeyError, TypeError, AttributeError):
        return False

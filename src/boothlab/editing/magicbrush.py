"""MagicBrush (Zhang et al., NeurIPS 2023) from the folder a split is published as: edits in sessions."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boothlab.editing.benchmark_records import annotations, file_of, must_be, record, text_of
from boothlab.editing.edits import Edit, EditTask, caption_notes
from boothlab.editing.names import unique_names
from boothlab.editing.task_files import answer_of, erased_mask_of, picture_of
from boothlab.errors import UserError
from boothlab.files import read_json, sha256_file, shown

SESSIONS, TURNS, IMAGES = "edit_sessions.json", "edit_turns.json", "images"
DESCRIPTIONS = ("global_descriptions.json", "global_description.json")
_KEYS = ("input", "mask", "output", "instruction")
_Turn = tuple[str, str, int, Any]  # place, session, number from 1, record


@dataclass(frozen=True)
class _Sample:
    image: str
    files: tuple[Path, Path, Path]
    edit: Edit


def magicbrush_tasks(folder: Path) -> Iterator[EditTask]:
    """The tasks of a MagicBrush split: edit_sessions.json (or edit_turns.json) and images/SESSION/*.png, in order.

    Each turn is a task of its own, from the published input of that turn (the benchmark's "single-turn" setting), and
    its edit is called turn_1, turn_2, … The published output is the truth; the mask is where its file is erased.
    Captions are the global descriptions, if the folder has them; train has none.

    Raises:
        UserError: an annotation file is missing or of another shape than the published one, or an image is missing.
    """
    folder = Path(folder)
    path, content = annotations(folder, (SESSIONS, TURNS), "MagicBrush")
    shared = {f"annotations/{path.name}": sha256_file(path)}
    described, descriptions = _descriptions(folder)
    if described is not None:
        shared[f"annotations/{described.name}"] = sha256_file(described)
    turns = _of_sessions(content) if path.name == SESSIONS else _of_turns(content)
    return _tasks(folder, [_sample(folder, turn, descriptions) for turn in turns], shared)


def _tasks(folder: Path, samples: Sequence[_Sample], shared: dict[str, str]) -> Iterator[EditTask]:
    inputs = list(dict.fromkeys(sample.image for sample in samples))
    names = dict(zip(inputs, unique_names(inputs), strict=True))
    for sample in samples:
        source, mask, output = sample.files
        roles = zip(("source", "mask", "truth"), sample.files, strict=True)
        yield EditTask(
            image_name=names[sample.image],
            edit=sample.edit,
            source=picture_of(source),
            mask=erased_mask_of(mask, source),
            truth=answer_of(output, source),
            sha256={**{f"{r}/{p.relative_to(folder).as_posix()}": sha256_file(p) for r, p in roles}, **shared},
            caption_origin="file" if sample.edit.source_caption else "none",
            notes=caption_notes(sample.edit),
        )


def _of_sessions(content: Any) -> list[_Turn]:
    sessions = must_be(content, dict, SESSIONS, "a mapping from sessions to their turns")
    turns: list[_Turn] = []
    for session, items in sessions.items():
        place = f"{SESSIONS}, session {shown(session)}"
        must_be(items, list, place, "a list of turns")
        turns += [(f"{place}, turn {i}", session, i, item) for i, item in enumerate(items, start=1)]
    return turns


def _of_turns(content: Any) -> list[_Turn]:
    counted: Counter[str] = Counter()
    turns: list[_Turn] = []
    for row, item in enumerate(must_be(content, list, TURNS, "a list of turns"), start=1):
        place = f"{TURNS}, row {row}"
        session = text_of(record(item, place, _KEYS), "input", place).partition("-")[0]
        counted[session] += 1
        turns.append((place, session, counted[session], item))
    return turns


def _sample(folder: Path, turn: _Turn, descriptions: dict[str, dict[str, str]]) -> _Sample:
    place, session, number, value = turn
    item = record(value, place, _KEYS)
    names = [text_of(item, key, place) for key in ("input", "mask", "output")]
    source, mask, output = (
        file_of(folder / IMAGES, f"{session}/{name}", place, what)
        for name, what in zip(names, ("input", "mask", "output"), strict=True)
    )
    known = descriptions.get(session, {})
    edit = Edit(
        name=f"turn_{number}",
        instruction=text_of(item, "instruction", place),
        source_caption=known.get(names[0]),
        target_caption=known.get(names[2]),
    )
    return _Sample(f"{session}/{names[0]}", (source, mask, output), edit)


def _descriptions(folder: Path) -> tuple[Path | None, dict[str, dict[str, str]]]:
    """The global descriptions: session to file name to text."""
    path = next((folder / name for name in DESCRIPTIONS if (folder / name).is_file()), None)
    if path is None:
        return None, {}
    content = must_be(read_json(path), dict, path.name, "a mapping from sessions to descriptions")
    found: dict[str, dict[str, str]] = {}
    for session, texts in content.items():
        place = f"{path.name}, session {shown(session)}"
        if not isinstance(texts, dict):
            raise UserError(f"{place}: expected a mapping from file names to texts; is this the benchmark's own file?")
        described = {name: text_of(texts, name, place, empty=True) for name in texts}
        found[session] = {name: text for name, text in described.items() if text}
    return path, found

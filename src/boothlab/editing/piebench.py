"""PIE-Bench (Ju et al., "PnP Inversion", ICLR 2024) as it is published: 700 images, ten kinds of edit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boothlab.editing.benchmark_records import annotations, file_of, must_be, record, text_of
from boothlab.editing.edits import Edit, EditTask, caption_notes
from boothlab.editing.names import unique_names
from boothlab.editing.task_files import picture_of, runs_mask_of
from boothlab.errors import UserError
from boothlab.files import sha256_file, shown

MAPPING, IMAGES = "mapping_file.json", "annotation_images"
SIDE = 512
"""Pixels a side of every image, and of the picture the masks' runs count in."""
KINDS = (
    "0_random",
    "1_change_object",
    "2_add_object",
    "3_delete_object",
    "4_change_attribute_content",
    "5_change_attribute_pose",
    "6_change_attribute_color",
    "7_change_attribute_material",
    "8_change_background",
    "9_change_style",
)
"""The kinds by their number, `editing_type_id`; the name of a task's edit is its kind."""
_KEYS = ("image_path", "original_prompt", "editing_prompt", "editing_instruction", "editing_type_id", "mask")


@dataclass(frozen=True)
class _Sample:
    name: str
    path: Path
    edit: Edit
    runs: tuple[int, ...]


def piebench_tasks(folder: Path, *, side: int = SIDE) -> Iterator[EditTask]:
    """The tasks of a PIE-Bench folder (mapping_file.json and annotation_images/), in the file's order.

    The brackets that mark words in its prompts are taken off, as its own evaluation does; the outermost pixels of each
    mask may change, as there. `side` is the images' height and width in pixels.

    Raises:
        UserError: the mapping is missing, has another shape than the published one, or names an image that is missing.
    """
    folder = Path(folder)
    path, content = annotations(folder, (MAPPING,), "PIE-Bench")
    items = must_be(content, dict, shown(path), "a mapping from keys to edits")
    names = unique_names(list(items))
    samples = [_sample(folder, key, value, name) for (key, value), name in zip(items.items(), names, strict=True)]
    return _tasks(folder, samples, {f"annotations/{MAPPING}": sha256_file(path)}, side)


def _tasks(folder: Path, samples: Sequence[_Sample], shared: dict[str, str], side: int) -> Iterator[EditTask]:
    for sample in samples:
        yield EditTask(
            image_name=sample.name,
            edit=sample.edit,
            source=picture_of(sample.path),
            mask=runs_mask_of(sample.runs, side, sample.path),
            sha256={f"source/{sample.path.relative_to(folder).as_posix()}": sha256_file(sample.path), **shared},
            caption_origin="file" if sample.edit.source_caption else "none",
            notes=caption_notes(sample.edit),
        )


def _sample(folder: Path, key: str, value: Any, name: str) -> _Sample:
    place = f"{MAPPING}, {shown(key)!r}"
    item = record(value, place, _KEYS)
    target = _unmarked(text_of(item, "editing_prompt", place))
    edit = Edit(
        name=_kind(item["editing_type_id"], place),
        instruction=text_of(item, "editing_instruction", place, empty=True) or target,
        source_caption=_unmarked(text_of(item, "original_prompt", place, empty=True)) or None,
        target_caption=target,
    )
    path = file_of(folder / IMAGES, text_of(item, "image_path", place), place, "image")
    return _Sample(name, path, edit, _runs(item["mask"], place))


def _unmarked(prompt: str) -> str:
    return " ".join(prompt.replace("[", "").replace("]", "").split())


def _kind(number: object, place: str) -> str:
    known = {str(index): kind for index, kind in enumerate(KINDS)}
    if isinstance(number, bool) or str(number) not in known:
        raise UserError(f"{place}: 'editing_type_id' must be 0 to {len(KINDS) - 1}, got {shown(repr(number)[:40])}")
    return known[str(number)]


def _runs(value: Any, place: str) -> tuple[int, ...]:
    whole = isinstance(value, list) and all(isinstance(item, int) and not isinstance(item, bool) for item in value)
    if not whole or len(value) % 2 or any(item < 0 for item in value):
        raise UserError(f"{place}: 'mask' must be pairs of a start and a length (start, length, start, length, …)")
    return tuple(value)

"""TEdBench (Kawar et al., "Imagic", CVPR 2023) from the folder it is published as: 100 images with target texts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boothlab.editing.benchmark_records import annotations, file_of, must_be, record, text_of
from boothlab.editing.edits import Edit, EditTask
from boothlab.editing.names import safe_name, unique_names
from boothlab.editing.task_files import picture_of
from boothlab.errors import UserError
from boothlab.files import sha256_file

LIST, IMAGES = "input_list.json", "originals"
_IMAGE_KEYS = ("img_name", "image")
"""The published list has the first; copies of it have the second."""


@dataclass(frozen=True)
class _Sample:
    image: str
    path: Path
    edit: Edit


def tedbench_tasks(folder: Path) -> Iterator[EditTask]:
    """The tasks of a TEdBench folder: input_list.json (img_name, target_text) and originals/, in the list's order.

    It has no instructions, no source captions and no masks: the target text is the instruction and the target caption.

    Raises:
        UserError: the list is missing, has another shape than the published one, names a missing image, or says the
            same of one image twice.
    """
    folder = Path(folder)
    path, content = annotations(folder, (LIST,), "TEdBench")
    samples: list[_Sample] = []
    places: dict[tuple[str, str], str] = {}
    for number, value in enumerate(must_be(content, list, LIST, "a list of images with target texts"), start=1):
        place = f"{LIST}, row {number}"
        sample = _sample(folder, value, place)
        first = places.setdefault((sample.image, sample.edit.name.casefold()), place)
        if first != place:
            raise UserError(f"{place}: its image has this target_text already, in {first}; delete one of them")
        samples.append(sample)
    return _tasks(samples, {f"annotations/{LIST}": sha256_file(path)})


def _tasks(samples: Sequence[_Sample], shared: dict[str, str]) -> Iterator[EditTask]:
    images = list(dict.fromkeys(sample.image for sample in samples))
    names = dict(zip(images, unique_names(images), strict=True))
    for sample in samples:
        yield EditTask(
            image_name=names[sample.image],
            edit=sample.edit,
            source=picture_of(sample.path),
            sha256={f"source/{IMAGES}/{sample.image}": sha256_file(sample.path), **shared},
        )


def _sample(folder: Path, value: Any, place: str) -> _Sample:
    key = next((key for key in _IMAGE_KEYS if isinstance(value, dict) and key in value), _IMAGE_KEYS[0])
    item = record(value, place, (key, "target_text"))
    image, text = text_of(item, key, place), text_of(item, "target_text", place)
    path = file_of(folder / IMAGES, image, place, "image")
    return _Sample(image, path, Edit(name=safe_name(text), instruction=text, target_caption=text))

"""Tasks from the dollhouse: scenes that no editor saw, with exact masks, exact answers and the fact to be read."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import numpy as np
from PIL import Image

from boothlab.dollhouse.controls import CONTROL_KINDS, control_map, edit_mask
from boothlab.dollhouse.edits import EditPair, held_out_pairs, held_out_room, held_out_toy
from boothlab.dollhouse.scenes import Scene, render
from boothlab.editing.edits import Edit, EditTask, caption_notes
from boothlab.errors import UserError

SIZE = 32
"""Pixels a side: what the dollhouse's models see."""


def dollhouse_tasks(
    rooms: int = 8, toys: int = 0, edits: Sequence[str] = (), *, size: int = SIZE, full_captions: bool = False
) -> Iterator[EditTask]:
    """The dollhouse's evaluation pairs as tasks: room_00, room_01, …, then toy_00, …; each with its edits.

    `edits` names some of dollhouse.edits.EDITS; none are the standard ones. Everything is drawn when it is asked for:
    `source` and `truth` as size×size RGB, `mask` and the `controls` (canny, depth; of the source) as "L". Captions
    name the scene and the fact that changes; with `full_captions` everything that the grammar can say.

    Raises:
        UserError: an unknown edit, or no task at all (edits that fit no scene, or no scenes).
    """
    if rooms < 0 or toys < 0:
        raise UserError(f"the dollhouse's numbers of rooms and toys must be 0 or more, got {rooms} and {toys}")
    pairs = held_out_pairs(rooms, toys, tuple(edits))
    if not pairs:
        asked = f"{rooms} room(s), {toys} toy(s), edits {', '.join(edits) or 'as usual'}"
        raise UserError(f"the dollhouse has no task for {asked}; ask for more scenes, or for edits that fit them")
    return _tasks(pairs, _scenes(rooms, toys), size, full_captions)


def _tasks(
    pairs: Sequence[EditPair], scenes: Iterable[tuple[str, Scene]], size: int, full_captions: bool
) -> Iterator[EditTask]:
    left = list(reversed(pairs))
    for name, scene in scenes:
        seen: set[str] = set()  # two rooms can be furnished alike: the second begins where an edit comes again
        while left and left[-1].source == scene and left[-1].edit.name not in seen:
            pair = left.pop()
            seen.add(pair.edit.name)
            yield task_of(pair, name, size, full_captions)


def _scenes(rooms: int, toys: int) -> Iterator[tuple[str, Scene]]:
    for index in range(rooms):
        yield f"room_{index:02d}", held_out_room(index)
    for index in range(toys):
        yield f"toy_{index:02d}", held_out_toy(index)


def task_of(pair: EditPair, image_name: str, size: int = SIZE, full_captions: bool = False) -> EditTask:
    """One pair as a task, under the name of its scene."""
    before, after = (pair.source_caption, pair.target_caption) if full_captions else pair.short_captions
    fact = (pair.edit.fact, pair.edit.value)
    edit = Edit(
        name=pair.edit.name,
        instruction=pair.instruction,
        source_caption=before,
        target_caption=after,
        changes=dict([fact]),
    )
    return EditTask(
        image_name=image_name,
        edit=edit,
        source=partial(_rendered, pair.source, size),
        mask=partial(_mask, pair, size),
        truth=partial(_rendered, pair.target, size),
        controls={kind: partial(_control, pair.source, kind, size) for kind in CONTROL_KINDS},
        fact=fact,
        caption_origin="file",
        notes=caption_notes(edit),
    )


def _rendered(scene: Scene, size: int) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(render(scene, size)))


def _mask(pair: EditPair, size: int) -> Image.Image:
    return Image.fromarray(edit_mask(pair, size).astype(np.uint8) * 255)


def _control(scene: Scene, kind: str, size: int) -> Image.Image:
    return Image.fromarray(control_map(scene, kind, size))

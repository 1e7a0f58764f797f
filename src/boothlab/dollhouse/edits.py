"""Edits with an exact answer: a scene, an instruction, and the picture of the scene with one fact changed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from boothlab.dollhouse.grammar import PLACE_PHRASES, full_prompt, is_held_out, scene_is_held_out, short_prompt
from boothlab.dollhouse.painter import RGB
from boothlab.dollhouse.scenes import (
    CLASSES,
    COLORS,
    Lamp,
    RoomScene,
    Scene,
    Time,
    ToyScene,
    held_out_subject,
    render,
    rng_for,
    sample_room_scene,
    sample_toy_scene,
)
from boothlab.errors import UserError
from boothlab.seeding import derive_seed

HELD_OUT_SHARE = 0.1
ROOM_SHARE = 0.6
CHANGED = 1  # 8-bit levels: the renderer is exact, so any difference is the edit's doing

_TIME_TEXTS = {
    Time.DAY: ("make it day", "in daylight", "make it daylight", "turn it into day"),
    Time.DUSK: ("make it dusk", "at dusk", "make it at dusk", "turn it into dusk"),
    Time.NIGHT: ("make it night", "at night", "make it at night", "turn it into night"),
}
_LAMP_TEXTS = {
    Lamp.ON: ("turn on the lamp", "with the lamp on", "lamp on", "turn the lamp on", "make the lamp on"),
    Lamp.OFF: ("turn off the lamp", "with the lamp off", "lamp off", "turn the lamp off", "make the lamp off"),
}
_CURTAIN_TEXTS = {
    "closed": ("close the curtains", "curtains closed", "with closed curtains", "with the curtains closed"),
    "open": ("open the curtains", "curtains open", "with open curtains", "with the curtains open"),
}
_THINGS = ("bed", "curtains", "carpet")
_WORN = {"hat": "a hat", "crown": "a crown", "scarf": "a scarf", "sunglasses": "sunglasses"}


@dataclass(frozen=True)
class Edit:
    """One fact set to one value. `name` is what commands call it; the first instruction is the canonical one.

    `fact` names a field of the scene (`curtains_closed` holds "closed" or "open"), and `color` a toy's colour.
    """

    name: str
    fact: str
    value: str
    instructions: tuple[str, ...]
    rooms: bool
    toys: bool

    @property
    def instruction(self) -> str:
        """The canonical instruction."""
        return self.instructions[0]


def _color_texts(thing: str, color: str) -> tuple[str, ...]:
    article = "" if thing == "curtains" else "an " if color == "orange" else "a "
    return (
        f"make the {thing} {color}",
        f"{thing} {color}",
        f"with {article}{color} {thing}",
        f"turn the {thing} {color}",
        f"{article}{color} {thing}",
    )


def _worn_texts(accessory: str) -> tuple[str, ...]:
    what = _WORN[accessory]
    return f"add {what}", f"wearing {what}", f"give it {what}", f"make it wear {what}", f"with {what}"


def _place_texts(phrase: str) -> tuple[str, ...]:
    return f"put it {phrase}", phrase, f"make it {phrase}", f"move it {phrase}"


def _toy_color_texts(color: str) -> tuple[str, ...]:
    return f"make the toy {color}", f"make it {color}", f"turn it {color}", f"turn the toy {color}"


def _catalogue() -> dict[str, Edit]:
    edits = [Edit(f"at_{t}", "time", t, texts, True, True) for t, texts in _TIME_TEXTS.items()]
    edits += [Edit(f"lamp_{v}", "lamp", v, texts, True, True) for v, texts in _LAMP_TEXTS.items()]
    edits += [Edit(f"curtains_{v}", "curtains_closed", v, texts, True, False) for v, texts in _CURTAIN_TEXTS.items()]
    edits += [Edit(f"{t}_{c}", t, c, _color_texts(t, c), True, False) for t in _THINGS for c in COLORS]
    edits += [Edit(f"add_{a}", "accessory", a, _worn_texts(a), False, True) for a in _WORN]
    edits += [Edit(f"in_{p}", "place", p, _place_texts(text), False, True) for p, text in PLACE_PHRASES.items()]
    edits += [Edit(f"toy_{c}", "color", c, _toy_color_texts(c), False, True) for c in COLORS]
    return {edit.name: edit for edit in edits}


EDITS: dict[str, Edit] = _catalogue()
"""Every edit by its name: at_night, lamp_on, curtains_closed, carpet_red, bed_blue, add_hat, in_snow, toy_green, …"""
ROOM_EDITS = ("at_night", "at_dusk", "lamp_on", "curtains_closed", "carpet_red", "bed_blue", "curtains_green")
"""What the held-out hotel rooms are edited by."""
TOY_EDITS = ("at_night", "add_hat", "add_sunglasses", "in_snow", "in_kitchen", "lamp_on", "toy_green")
"""What the held-out toys are edited by."""


@dataclass(frozen=True)
class EditPair:
    """A scene and the same scene after an edit: both pictures, captions and the mask follow from these facts."""

    edit: Edit
    source: Scene
    target: Scene
    instruction: str

    @property
    def source_caption(self) -> str:
        """Everything the grammar can say about the scene before."""
        return full_prompt(self.source)

    @property
    def target_caption(self) -> str:
        """Everything the grammar can say about the scene after."""
        return full_prompt(self.target)

    @property
    def short_captions(self) -> tuple[str, str]:
        """Captions as people write them: the scene and the one fact that changes, before and after."""
        return short_prompt(self.source, self.edit.fact), short_prompt(self.target, self.edit.fact)

    def pictures(self, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
        """The scene before and after, each size×size×3 uint8."""
        return render(self.source, size), render(self.target, size)


def edit_named(name: str) -> Edit:
    """The edit of that name. Raises UserError for any other name."""
    if name not in EDITS:
        raise UserError(f"the dollhouse knows no edit {name!r}; its edits are {', '.join(EDITS)}")
    return EDITS[name]


def fact_of(scene: Scene, fact: str) -> str | None:
    """The value of one fact of a scene, as the edit judge would say it; None where the scene has no such fact."""
    if fact == "curtains_closed":
        return ("closed" if scene.curtains_closed else "open") if isinstance(scene, RoomScene) else None
    if fact == "color":
        return scene.subject.color_name if isinstance(scene, ToyScene) else None
    value = getattr(scene, fact, None)
    return None if value is None else str(value)


def _recolored(color: RGB, before: str, after: str) -> RGB:
    """The new colour as this individual wears it: as far from the palette's as the old one was."""
    moved = (new + own - old for new, own, old in zip(COLORS[after], color, COLORS[before], strict=True))
    return tuple(min(255, max(0, value)) for value in moved)  # type: ignore[return-value]


def apply_edit(scene: Scene, edit: Edit) -> Scene:
    """The scene with the edit's fact changed and nothing else. Raises UserError if the scene has no such fact."""
    if isinstance(scene, RoomScene) and not edit.rooms:
        raise UserError(f"{edit.name} edits a toy, and this scene is a hotel room")
    if isinstance(scene, ToyScene) and not edit.toys:
        raise UserError(f"{edit.name} edits a hotel room, and this scene is a toy's")
    if isinstance(scene, ToyScene) and edit.fact == "color":
        subject = scene.subject
        color = _recolored(subject.color, subject.color_name, edit.value)
        return replace(scene, subject=replace(subject, color_name=edit.value, color=color))
    values: dict[str, Any] = {"time": Time, "lamp": Lamp, "curtains_closed": lambda value: value == "closed"}
    return replace(scene, **{edit.fact: values.get(edit.fact, str)(edit.value)})


def can_edit(scene: Scene, edit: Edit) -> bool:
    """Whether the edit fits the scene and would change it; something is only put on a toy that wears nothing."""
    if not (edit.rooms if isinstance(scene, RoomScene) else edit.toys):
        return False
    if edit.fact == "accessory":
        return fact_of(scene, "accessory") == "none"
    if edit.name == "lamp_off":
        return fact_of(scene, "lamp") == Lamp.ON  # to add a dark lamp is no "turn it off"
    return fact_of(scene, edit.fact) != edit.value


def room_is_held_out(bed: str, curtains: str, carpet: str) -> bool:
    """Whether no editor's training sees a room furnished like this: a tenth of all, chosen by hash.

    The base pipeline's own pre-training drew rooms of every kind.
    """
    return derive_seed(0, "held_out_room", bed, curtains, carpet) % 1000 < HELD_OUT_SHARE * 1000


def held_out_from_editors(scene: Scene) -> bool:
    """Whether editors never see this scene in training, neither before nor after an edit."""
    if isinstance(scene, RoomScene):
        return room_is_held_out(scene.bed, scene.curtains, scene.carpet)
    return scene_is_held_out(scene)


def training_pair(rng: np.random.Generator) -> EditPair:
    """A random scene with a random edit that fits it, in a random wording; nothing held out before or after.

    The fact is drawn first and its value second, so that eight colours do not crowd out one lamp.
    """
    while True:
        scene: Scene = sample_room_scene(rng) if rng.random() < ROOM_SHARE else sample_toy_scene(rng)
        fitting = [edit for edit in EDITS.values() if can_edit(scene, edit)]
        facts = list(dict.fromkeys(edit.fact for edit in fitting))
        fact = facts[int(rng.integers(len(facts)))]
        options = [edit for edit in fitting if edit.fact == fact]
        edit = options[int(rng.integers(len(options)))]
        target = apply_edit(scene, edit)
        instruction = edit.instructions[int(rng.integers(len(edit.instructions)))]
        if not held_out_from_editors(scene) and not held_out_from_editors(target):
            return EditPair(edit, scene, target, instruction)


def held_out_room(index: int) -> RoomScene:
    """Hotel room `index` for evaluation: furnished as no editor saw, and open to every edit of ROOM_EDITS."""
    rng = rng_for(0, "held_out_room", index)
    while True:
        scene = replace(sample_room_scene(rng), lamp=Lamp.OFF, time=Time.DAY, curtains_closed=False)
        if held_out_from_editors(scene) and all(can_edit(scene, EDITS[name]) for name in ROOM_EDITS):
            return scene


def held_out_toy(index: int) -> ToyScene:
    """Toy scene `index` for evaluation: a held-out subject and combination, open to every edit of TOY_EDITS."""
    class_noun = CLASSES[index % len(CLASSES)]
    rng = rng_for(0, "held_out_edit", index)
    subject = held_out_subject(class_noun, 1000 + index)
    while True:
        scene = replace(sample_toy_scene(rng, subject), accessory="none", lamp=Lamp.NONE)
        fits = all(can_edit(scene, EDITS[name]) for name in TOY_EDITS)
        if fits and is_held_out(class_noun, subject.color_name, scene.place, scene.time):
            return scene
        # some individuals have no held-out combination that every edit fits: another of the same class then
        subject = held_out_subject(class_noun, 1000 + int(rng.integers(10**6)))


def held_out_pairs(rooms: int = 8, toys: int = 0, edits: Sequence[str] = ()) -> list[EditPair]:
    """Evaluation pairs in a fixed order: room by room, then toy by toy, each with its edits (all, or those named).

    Pair i is the same however many follow it within its kind. Raises UserError for an unknown edit.
    """
    named = [edit_named(name).name for name in edits]
    pairs = []
    scenes: list[Scene] = [held_out_room(i) for i in range(rooms)] + [held_out_toy(i) for i in range(toys)]
    for scene in scenes:
        standard = ROOM_EDITS if isinstance(scene, RoomScene) else TOY_EDITS
        for edit in (EDITS[name] for name in (named or standard)):
            if can_edit(scene, edit):
                pairs.append(EditPair(edit, scene, apply_edit(scene, edit), edit.instruction))
    return pairs

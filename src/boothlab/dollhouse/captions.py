"""Captions of scenes: what the captioner is taught to say, and the facts that a caption states, read back from it."""

import re

import numpy as np

from boothlab.dollhouse.edits import fact_of, held_out_from_editors
from boothlab.dollhouse.grammar import OPENINGS, full_prompt, read_prompt
from boothlab.dollhouse.scenes import COLORS, RoomScene, Scene, sample_scene

TOY_FACTS = ("class_noun", "color", "place", "time", "lamp", "pattern", "accessory")
ROOM_FACTS = ("time", "lamp", "bed", "curtains", "curtains_closed", "carpet", "pictures")
ROOM_SHARE = 0.4
PROMPTS = tuple(opening for opening in OPENINGS if opening)
"""What a caption may be asked to begin with: "a photo of", "a picture of", "a drawing of"."""

_COLOR = "|".join(COLORS)


def caption_of(scene: Scene) -> str:
    """Everything the grammar can say about a scene, without an opening: "a red robot on the beach at night".

    After "a photo of " it is the caption that the editing tasks give the scene with `full_captions`.
    """
    return full_prompt(scene, opening="")


def scene_facts(scene: Scene) -> dict[str, str]:
    """Each fact that a scene's caption states, by the name that dollhouse.edits gives it; `pictures` is "0" to "2"."""
    if isinstance(scene, RoomScene):
        return {name: str(fact_of(scene, name)) for name in ROOM_FACTS}
    subject = scene.subject
    own = {"class_noun": subject.class_noun, "color": subject.color_name, "pattern": subject.pattern}
    return {name: own[name] if name in own else str(fact_of(scene, name)) for name in TOY_FACTS}


def read_caption(caption: str) -> dict[str, str]:
    """The facts that a caption states, by name: those of a hotel room if it speaks of one, else those of a toy.

    What a caption tells by its silence is read as the grammar means it: no pattern is "plain", no accessory and no
    lamp of a toy "none", curtains not called closed "open", no pictures "0". Any other fact it does not state is
    missing, and words that the grammar does not know are passed over.
    """
    words = f" {' '.join(re.findall('[a-z]+', caption.lower()))} "
    asked = read_prompt(words)
    facts: dict[str, str | None] = {"time": asked.time, "lamp": asked.lamp}
    if " hotel room " in words:
        for thing in ("bed", "curtains", "carpet"):
            found = re.search(rf" ({_COLOR}) {thing} ", words)
            facts[thing] = found[1] if found else None
        facts["curtains_closed"] = "closed" if re.search(r" closed (\w+ )?curtains ", words) else "open"
        facts["pictures"] = (
            "2" if " two pictures " in words else "1" if re.search(" (with|and) a picture ", words) else "0"
        )
    else:
        facts |= {"class_noun": asked.class_noun, "color": asked.color, "place": asked.place}
        facts |= {"pattern": asked.pattern or "plain", "accessory": asked.accessory or "none"}
        facts["lamp"] = asked.lamp or "none"
    return {name: str(value) for name, value in facts.items() if value is not None}


def captioned_scene(rng: np.random.Generator) -> Scene:
    """A scene to learn from; what is held out (a toy's combination, a room's furniture) never comes."""
    while held_out_from_editors(scene := sample_scene(rng, ROOM_SHARE)):
        pass
    return scene

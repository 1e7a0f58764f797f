"""How the dollhouse speaks: facts to prompts, prompts to facts, and the words its tokenizer knows whole."""

import re
from dataclasses import dataclass

import numpy as np

from boothlab.dollhouse.scenes import (
    ACCESSORIES,
    CLASSES,
    COLORS,
    PATTERNS,
    PLACES,
    Lamp,
    RoomScene,
    Scene,
    Time,
    ToyScene,
)
from boothlab.seeding import derive_seed

PLACE_PHRASES = {
    "beach": "on the beach",
    "forest": "in the forest",
    "snow": "in the snow",
    "desert": "in the desert",
    "city": "in the city",
    "meadow": "in a meadow",
    "moon": "on the moon",
    "sea": "under the sea",
    "kitchen": "in the kitchen",
    "library": "in the library",
}
TIME_PHRASES = {Time.DAY: "in daylight", Time.DUSK: "at dusk", Time.NIGHT: "at night"}
LAMP_PHRASES = {Lamp.ON: "with the lamp on", Lamp.OFF: "with the lamp off"}
WEAR_PHRASES = {
    "hat": "wearing a hat",
    "crown": "wearing a crown",
    "scarf": "wearing a scarf",
    "sunglasses": "wearing sunglasses",
}
OPENINGS = ("a photo of", "a picture of", "a drawing of", "")
RARE_WORDS = ("sks", "zwx", "ohwx", "olis", "hta", "pll", "ucd", "kxv", "phol", "mth")
"""Identifiers that are one token each and never named anything in pre-training."""

_EXTRA_TEXT = """
toy hotel room bed carpet curtains picture pictures window closed open two one no lamp the a an of and with in on at
under is , . photo drawing small big make it this day good quality from film old new top front behind near
"""
EXTRA_WORDS = tuple(_EXTRA_TEXT.split())
HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class Facts:
    """What a toy prompt asks for; None where it does not say."""

    class_noun: str | None = None
    color: str | None = None
    pattern: str | None = None
    accessory: str | None = None
    place: str | None = None
    time: Time | None = None
    lamp: Lamp | None = None


def is_held_out(class_noun: str, color: str, place: str, time: str) -> bool:
    """Whether pre-training never sees this combination: a tenth of all, chosen by hash, kept for scoring prompts."""
    return derive_seed(0, "held_out_prompt", class_noun, color, place, time) % 1000 < HELD_OUT_SHARE * 1000


def scene_is_held_out(scene: Scene) -> bool:
    """Whether a toy scene shows a held-out combination."""
    if isinstance(scene, RoomScene):
        return False
    subject = scene.subject
    return is_held_out(subject.class_noun, subject.color_name, scene.place, scene.time)


def _with_article(text: str) -> str:
    """English wants "an orange bear"."""
    return re.sub(r"\ba orange\b", "an orange", text)


def toy_prompt(facts: Facts, opening: str = "a photo of", token: str = "") -> str:
    """The prompt for what is known: "a photo of a red striped bear wearing a hat on the beach at night"."""
    pattern = "" if facts.pattern in (None, "plain") else facts.pattern
    words = [
        opening,
        "a",
        token,
        facts.color,
        pattern,
        facts.class_noun or "toy",
        WEAR_PHRASES.get(facts.accessory or ""),
        PLACE_PHRASES.get(facts.place or ""),
        TIME_PHRASES[facts.time] if facts.time else None,
        LAMP_PHRASES.get(facts.lamp) if facts.lamp else None,
    ]
    text = " ".join(word for word in words if word)
    return _with_article(text)


def facts_of(scene: ToyScene) -> Facts:
    """Everything a prompt could say about a toy scene."""
    subject = scene.subject
    return Facts(
        subject.class_noun, subject.color_name, subject.pattern, scene.accessory, scene.place, scene.time, scene.lamp
    )


def read_prompt(prompt: str) -> Facts:
    """The facts a toy prompt asks for, read back from its words; a word the grammar does not know is passed over."""
    words = f" {prompt.lower()} ".replace(",", " ").replace(".", " ")

    def find(table: dict[str, str]) -> str | None:
        return next((name for name, phrase in table.items() if f" {phrase} " in words), None)

    time = find({str(t): phrase for t, phrase in TIME_PHRASES.items()})
    lamp = find({str(value): phrase for value, phrase in LAMP_PHRASES.items()})
    return Facts(
        class_noun=find({name: name for name in CLASSES}),
        color=find({name: name for name in COLORS}),
        pattern=find({name: name for name in PATTERNS}),
        accessory=find(WEAR_PHRASES),
        place=find(PLACE_PHRASES),
        time=Time(time) if time else None,
        lamp=Lamp(lamp) if lamp else None,
    )


def _room_prompt(scene: RoomScene, rng: np.random.Generator, keep: float) -> str:
    parts = [f"a {scene.bed} bed", f"{scene.curtains} curtains", f"a {scene.carpet} carpet"]
    if scene.curtains_closed:
        parts[1] = f"closed {parts[1]}"
    if scene.pictures:
        parts.append("a picture" if scene.pictures == 1 else "two pictures")
    said = [part for part in parts if rng.random() < keep]
    text = "a hotel room" + (" with " + " and ".join(said) if said else "")
    if rng.random() < keep:
        text += " " + TIME_PHRASES[scene.time]
    if rng.random() < keep:
        text += " " + LAMP_PHRASES[scene.lamp]
    return _with_article(text)


def full_prompt(scene: Scene, opening: str = "a photo of") -> str:
    """The prompt that says everything the grammar can say about a scene: a caption."""
    if isinstance(scene, ToyScene):
        return toy_prompt(facts_of(scene), opening)
    text = _room_prompt(scene, np.random.default_rng(0), keep=1.0)  # at keep=1 the generator decides nothing
    return f"{opening} {text}" if opening else text


def short_prompt(scene: Scene, fact: str, opening: str = "a photo of") -> str:
    """The prompt that names the scene and one fact of it: "a photo of a hotel room with a red carpet".

    `fact` is called as in dollhouse.edits. A toy keeps its colour, without which it is any toy of its class.
    """
    if isinstance(scene, ToyScene):
        known = facts_of(scene)
        said = {name: getattr(known, name) for name in {"class_noun", "color", fact}}
        return toy_prompt(Facts(**said), opening)
    texts = {
        "time": TIME_PHRASES[scene.time],
        "lamp": LAMP_PHRASES[scene.lamp],
        "bed": f"with a {scene.bed} bed",
        "carpet": f"with a {scene.carpet} carpet",
        "curtains": f"with {scene.curtains} curtains",
        "curtains_closed": f"with {'closed ' if scene.curtains_closed else ''}{scene.curtains} curtains",
    }
    return _with_article(f"{opening} a hotel room {texts[fact]}".strip())


def random_prompt(
    scene: Scene, rng: np.random.Generator, keep: float = 0.75, rare: float = 0.04, noun: float = 0.97
) -> str:
    """A prompt that says each fact of a scene with probability `keep`, and a toy's class with probability `noun`.

    Now and then (`rare`) a rare word stands before the noun, as a subject's identifier will in DreamBooth: the
    miniature must have seen that such a word says nothing about the picture.
    """
    opening = OPENINGS[int(rng.integers(len(OPENINGS)))]
    if isinstance(scene, RoomScene):
        text = _room_prompt(scene, rng, keep)
        return f"{opening} {text}" if opening else text
    known = facts_of(scene)
    said = {
        name: value
        for name in ("color", "pattern", "accessory", "place", "time", "lamp")
        if (value := getattr(known, name)) and rng.random() < keep
    }
    class_noun = known.class_noun if rng.random() < noun else None
    token = RARE_WORDS[int(rng.integers(len(RARE_WORDS)))] if rng.random() < rare else ""
    return toy_prompt(Facts(class_noun=class_noun, **said), opening, token)


def vocabulary() -> list[str]:
    """Every word that is one token, in a fixed order: the grammar's, a few around it, and the rare words."""
    phrases = [
        *PLACE_PHRASES.values(),
        *TIME_PHRASES.values(),
        *LAMP_PHRASES.values(),
        *WEAR_PHRASES.values(),
        *OPENINGS,
    ]
    words = [word for phrase in phrases for word in phrase.split()]
    words += [*CLASSES, *COLORS, *PATTERNS, *ACCESSORIES, *PLACES, *EXTRA_WORDS, *RARE_WORDS]
    return sorted(set(words))

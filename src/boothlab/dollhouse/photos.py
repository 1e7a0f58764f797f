"""Photos of a dollhouse subject, as a user would bring them: one toy, here and there, by day and by night."""

import io
import re
from pathlib import Path

from PIL import Image

from boothlab.dollhouse.grammar import Facts, toy_prompt
from boothlab.dollhouse.scenes import CLASSES, PLACES, Time, ToyScene, held_out_subject, render, rng_for
from boothlab.errors import UserError
from boothlab.files import shown, write_bytes, write_text

PREFIX = "dollhouse:"
# Three of five by day, as photos are; one at dusk and one at night, so that the toy's colours are not tied to daylight.
_HOURS = (Time.DAY, Time.DUSK, Time.DAY, Time.NIGHT, Time.DAY)


def parse_subject(text: str) -> tuple[str, int] | None:
    """Class and index of "dollhouse:robot/1"; None for any other text (a folder). Raises UserError for a bad one."""
    if not text.startswith(PREFIX):
        return None
    class_noun, _, index = text.removeprefix(PREFIX).partition("/")
    if class_noun not in CLASSES or not re.fullmatch(r"[0-9]{1,9}", index):
        raise UserError(
            f"{shown(text)} names no toy of the dollhouse; write {PREFIX}CLASS/INDEX, with CLASS one of "
            f"{', '.join(CLASSES)} and INDEX a whole number from 0"
        )
    return class_noun, int(index)


def photo_scenes(class_noun: str, index: int, count: int) -> list[ToyScene]:
    """The scenes of the subject's first `count` photos; photo i is the same however many follow it.

    Ten photos have ten places; only after that do places come again, in another order.
    """
    rng = rng_for(0, "photos", class_noun, index)
    subject, places = held_out_subject(class_noun, index), list[str]()
    scenes = []
    for i in range(count):
        places = places or [str(place) for place in rng.permutation(PLACES)]
        scenes.append(
            ToyScene(
                subject=subject,
                place=places.pop(),
                time=_HOURS[i % len(_HOURS)],
                shift=float(rng.uniform(-0.08, 0.08)),
                scale=float(rng.uniform(0.68, 0.78)),
                flip=bool(rng.random() < 0.5),
                variant=int(rng.integers(4)),
            )
        )
    return scenes


def write_photos(folder: Path, class_noun: str, index: int, count: int) -> None:
    """Write photo_00.png, photo_01.png, … of a held-out subject, each with a caption photo_00.txt, …; always the same.

    No lamp and no accessory is in them, so that prompts have something left to ask for. A caption says what is not the
    subject: where and when. Raises UserError for a count
    under 1 or a folder that cannot be written, ValueError for an unknown class.
    """
    if count < 1:
        raise UserError(f"a dollhouse subject needs at least 1 photo, got count={count}")
    for i, scene in enumerate(photo_scenes(class_noun, index, count)):
        png = io.BytesIO()
        Image.fromarray(render(scene)).save(png, format="PNG")
        write_bytes(folder / f"photo_{i:02d}.png", png.getvalue())
        facts = Facts(class_noun=class_noun, place=scene.place, time=scene.time)
        write_text(folder / f"photo_{i:02d}.txt", toy_prompt(facts) + "\n")

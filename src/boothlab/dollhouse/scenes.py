"""What is in a dollhouse scene, and the picture of it: facts in, exact pixels out."""

import colorsys
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from boothlab.dollhouse.painter import RGB, Painter
from boothlab.seeding import derive_seed

COLORS: dict[str, RGB] = {
    "red": (214, 40, 40),
    "orange": (244, 138, 28),
    "yellow": (248, 222, 60),
    "green": (48, 164, 72),
    "blue": (44, 96, 222),
    "purple": (136, 58, 190),
    "pink": (248, 146, 188),
    "white": (240, 240, 240),
}
CLASSES = ("bear", "cat", "rabbit", "duck", "robot", "car", "teapot", "rocket")
PATTERNS = ("plain", "striped", "spotted", "checked")
ACCESSORIES = ("none", "hat", "crown", "scarf", "sunglasses")
PLACES = ("beach", "forest", "snow", "desert", "city", "meadow", "moon", "sea", "kitchen", "library")
MARKINGS = ("none", "patch", "band", "dot", "bar")


class Time(StrEnum):
    """The hour, which tints everything."""

    DAY = "day"
    DUSK = "dusk"
    NIGHT = "night"


class Lamp(StrEnum):
    """A lamp in the scene: absent, there but dark, or shining."""

    NONE = "none"
    OFF = "off"
    ON = "on"


@dataclass(frozen=True)
class Subject:
    """One individual toy. Its class, colour and pattern have names; the rest of its looks has none.

    `proportions` are five numbers in 0..1 (head, ears, width, limbs, face). `second` is the colour of its other
    half (ears, limbs, wheels, belly); `marking` and `marking_color` a blaze that only this individual wears.
    """

    class_noun: str
    color_name: str
    color: RGB
    pattern: str
    second: RGB
    marking: str
    marking_color: RGB
    proportions: tuple[float, float, float, float, float]


@dataclass(frozen=True)
class ToyScene:
    """A toy somewhere. `shift`, `scale` and `flip` place it; `variant` picks among ways to draw the place."""

    subject: Subject
    place: str
    time: Time = Time.DAY
    lamp: Lamp = Lamp.NONE
    accessory: str = "none"
    shift: float = 0.0
    scale: float = 0.73
    flip: bool = False
    variant: int = 0


@dataclass(frozen=True)
class RoomScene:
    """A hotel room: colours by name, a window with its curtains, up to two pictures, a lamp."""

    bed: str
    curtains: str
    carpet: str
    curtains_closed: bool = False
    pictures: int = 1
    time: Time = Time.DAY
    lamp: Lamp = Lamp.OFF
    flip: bool = False
    variant: int = 0


Scene = ToyScene | RoomScene


@dataclass
class Light:
    """How an hour multiplies the colours of the background and of the thing in front of it."""

    background: tuple[float, float, float]
    front: tuple[float, float, float]


LIGHTS = {
    Time.DAY: Light((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
    Time.DUSK: Light((1.0, 0.68, 0.52), (1.0, 0.88, 0.80)),
    Time.NIGHT: Light((0.26, 0.31, 0.55), (0.66, 0.69, 0.86)),
}
LAMP_GLOW = np.array([255.0, 214.0, 120.0], dtype=np.float32)


def rng_for(seed: int, *names: int | str) -> np.random.Generator:
    """A NumPy generator for one named place in the dollhouse."""
    return np.random.default_rng(derive_seed(seed, "dollhouse", *names))


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _any_color(rng: np.random.Generator) -> RGB:
    """A colour off the named palette's grid: any hue, clear enough to be seen at 32 pixels."""
    r, g, b = colorsys.hsv_to_rgb(rng.random(), 0.25 + 0.7 * rng.random(), 0.35 + 0.6 * rng.random())
    return round(r * 255), round(g * 255), round(b * 255)


def _jitter(rng: np.random.Generator, color: RGB) -> RGB:
    """The named colour as this individual wears it: a little lighter, darker or off."""
    return tuple(int(np.clip(c + rng.integers(-14, 15), 0, 255)) for c in color)  # type: ignore[return-value]


def sample_subject(rng: np.random.Generator, class_noun: str | None = None) -> Subject:
    """A new individual, of the given class or of any."""
    color_name = _pick(rng, tuple(COLORS))
    a, b, c, d, e = (float(v) for v in rng.random(5))
    return Subject(
        class_noun=class_noun or _pick(rng, CLASSES),
        color_name=color_name,
        color=_jitter(rng, COLORS[color_name]),
        pattern=_pick(rng, PATTERNS) if rng.random() < 0.6 else "plain",
        second=_any_color(rng),
        marking=_pick(rng, MARKINGS),
        marking_color=_any_color(rng),
        proportions=(a, b, c, d, e),
    )


def held_out_subject(class_noun: str, index: int) -> Subject:
    """Subject `index` of a class, from a stream that pre-training never draws from. There is no last one."""
    if class_noun not in CLASSES:
        raise ValueError(f"the dollhouse has no {class_noun!r}; its classes are {', '.join(CLASSES)}")
    return sample_subject(rng_for(0, "held_out", class_noun, index), class_noun)


def sample_toy_scene(rng: np.random.Generator, subject: Subject | None = None) -> ToyScene:
    """A toy (the given one or any) at a random place, hour and pose."""
    lamp = Lamp(_pick(rng, ("on", "off"))) if rng.random() < 0.3 else Lamp.NONE
    return ToyScene(
        subject=subject or sample_subject(rng),
        place=_pick(rng, PLACES),
        time=Time(_pick(rng, tuple(Time))),
        lamp=lamp,
        accessory=_pick(rng, ACCESSORIES[1:]) if rng.random() < 0.4 else "none",
        shift=float(rng.uniform(-0.08, 0.08)),
        scale=float(rng.uniform(0.68, 0.78)),
        flip=bool(rng.random() < 0.5),
        variant=int(rng.integers(4)),
    )


def sample_room_scene(rng: np.random.Generator) -> RoomScene:
    """A hotel room furnished at random."""
    names = tuple(COLORS)
    return RoomScene(
        bed=_pick(rng, names),
        curtains=_pick(rng, names),
        carpet=_pick(rng, names),
        curtains_closed=bool(rng.random() < 0.3),
        pictures=int(rng.integers(3)),
        time=Time(_pick(rng, tuple(Time))),
        lamp=Lamp(_pick(rng, ("on", "off"))),
        flip=bool(rng.random() < 0.5),
        variant=int(rng.integers(4)),
    )


def sample_scene(rng: np.random.Generator, room_share: float = 0.15) -> Scene:
    """Any scene of the world; `room_share` of them are hotel rooms."""
    return sample_room_scene(rng) if rng.random() < room_share else sample_toy_scene(rng)


def _shine(size: int, x: float, y: float, radius: float) -> np.ndarray:
    """A soft round light, H×W×1 in 0..1, around (x, y) of the unit square."""
    rows, cols = (np.mgrid[0:size, 0:size] + 0.5) / size
    return np.exp(-((cols - x) ** 2 + (rows - y) ** 2) / (2 * radius**2))[..., None].astype(np.float32)


def _over(background: np.ndarray, layer: np.ndarray, light: tuple[float, float, float]) -> np.ndarray:
    """A premultiplied layer, lit, over an opaque background."""
    alpha = layer[..., 3:] / 255.0
    return background * (1.0 - alpha) + layer[..., :3] * np.asarray(light, dtype=np.float32)


def lamp_position(scene: ToyScene) -> tuple[float, float]:
    """Where the lamp's shade is: the side the toy does not lean to."""
    return (0.12, 0.42) if scene.shift >= 0 else (0.88, 0.42)


def paint_lamp(painter: Painter, on: bool) -> None:
    """A standard lamp (pole, foot and shade) around the painter's own origin."""
    painter.layer = "lamp"
    painter.line([(0, 0), (0, 0.48)], 0.03, (90, 80, 70))
    painter.rect(-0.06, 0.46, 0.06, 0.5, (90, 80, 70))
    shade = (255, 238, 150) if on else (120, 116, 120)
    painter.polygon([(-0.05, -0.07), (0.05, -0.07), (0.1, 0.08), (-0.1, 0.08)], shade)


def _lit_by_lamp(picture: np.ndarray, size: int, x: float, y: float) -> np.ndarray:
    """Warm light around a burning lamp."""
    glow = _shine(size, x, y, 0.2)
    return picture + glow * 0.55 * (LAMP_GLOW - picture * 0.5)


def _render_toy(scene: ToyScene, size: int) -> np.ndarray:
    from boothlab.dollhouse.places import paint_place, sky_lights

    light = LIGHTS[scene.time]
    background = Painter(size)
    paint_place(background, scene.place, scene.variant)
    picture = background.array()[..., :3] * np.asarray(light.background, dtype=np.float32)
    lights = Painter(size)
    sky_lights(lights, scene.place, scene.time, scene.variant)
    picture = _over(picture, lights.array(), (1.0, 1.0, 1.0))
    if scene.lamp is not Lamp.NONE:
        x, y = lamp_position(scene)
        on = scene.lamp is Lamp.ON
        lamp = Painter(size, center=x, ground=y)
        paint_lamp(lamp, on)
        picture = _over(picture, lamp.array(), (1.0, 1.0, 1.0) if on else light.background)
        picture = _lit_by_lamp(picture, size, x, y) if on else picture
    shadow = _shine(size, 0.5 + scene.shift, 0.93, 0.12)
    shadow[: int(0.86 * size)] *= 0.3
    picture = picture * (1.0 - 0.35 * shadow)
    return _over(picture, toy_layer(scene, size), light.front)


def toy_layer(scene: ToyScene, size: int) -> np.ndarray:
    """The toy alone: size×size×4, colours premultiplied by alpha. Its alpha is the exact mask of the toy."""
    from boothlab.dollhouse.toys import paint_toy

    painter = Painter(size, 0.5 + scene.shift, 0.94, scene.scale, scene.flip)
    paint_toy(painter, scene.subject, scene.accessory)
    return painter.array()


def _render_room(scene: RoomScene, size: int) -> np.ndarray:
    from boothlab.dollhouse.rooms import LAMP_AT, paint_room, paint_window

    light = LIGHTS[scene.time]
    room = Painter(size)
    paint_room(room, scene)
    dark = light.background if scene.lamp is Lamp.OFF else tuple(0.45 + 0.55 * v for v in light.background)
    picture = room.array()[..., :3] * np.asarray(dark, dtype=np.float32)
    if not scene.curtains_closed:
        window = Painter(size)
        paint_window(window, scene)
        picture = _over(picture, window.array(), (1.0, 1.0, 1.0))
    if scene.lamp is Lamp.ON:
        x, y = LAMP_AT
        picture = _lit_by_lamp(picture, size, x, y)
    return picture[:, ::-1] if scene.flip else picture


def render(scene: Scene, size: int = 32) -> np.ndarray:
    """The picture of a scene: size×size×3 uint8 RGB. The same scene gives the same pixels, always."""
    picture = _render_toy(scene, size) if isinstance(scene, ToyScene) else _render_room(scene, size)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)

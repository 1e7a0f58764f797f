"""Which thing each pixel of a scene shows, and how near it is: read off the painters themselves, layer by layer."""

from collections.abc import Iterable, Sequence

import numpy as np

from boothlab.dollhouse.painter import RGB, SUPERSAMPLING, Painter
from boothlab.dollhouse.places import paint_place, sky_lights
from boothlab.dollhouse.rooms import paint_room, paint_window
from boothlab.dollhouse.scenes import Lamp, RoomScene, Scene, lamp_position, paint_lamp
from boothlab.dollhouse.toys import paint_toy

NEARNESS: dict[str, float] = {
    "nothing": 0.0,
    "sky": 0.0,
    "window": 0.05,
    "wall": 0.25,
    "picture": 0.27,
    "curtains": 0.3,
    "standing": 0.35,
    "lamp": 0.5,
    "bed": 0.6,
    "toy": 0.9,
    "accessory": 0.95,
    "floor": float("nan"),
    "carpet": float("nan"),
}
"""How near each layer is: 0 far, 1 near, as MiDaS's inverse depth is shown. Floor and carpet lie on one plane."""
LAYERS = tuple(NEARNESS)
HORIZON, FLOOR_FAR, FLOOR_NEAR = 0.4, 0.15, 0.85


class LayerPainter(Painter):
    """A painter that leaves the number of each shape's layer (its place in LAYERS) where the shape is."""

    def _number(self) -> RGB:
        return (LAYERS.index(self.layer), 0, 0)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: RGB, body: bool = False) -> None:
        """An ellipse of the present layer."""
        super().ellipse(x, y, rx, ry, self._number())

    def polygon(self, points: Sequence[tuple[float, float]], fill: RGB, body: bool = False) -> None:
        """A polygon of the present layer."""
        super().polygon(points, self._number())

    def line(self, points: Sequence[tuple[float, float]], width: float, fill: RGB) -> None:
        """A line of the present layer."""
        super().line(points, width, self._number())

    def lay_pattern(self, kind: str, color: RGB, period: float = 0.18) -> None:
        """A pattern is no thing of its own."""

    def numbers(self) -> np.ndarray:
        """The layer's number at each of the canvas's (4·size)² pixels; 0 where nothing was drawn."""
        return np.asarray(self.canvas)[..., 0].copy()


def _painted(scene: Scene, size: int) -> Iterable[LayerPainter]:
    """The scene's painters from back to front, as `render` has them."""
    background = LayerPainter(size)
    if isinstance(scene, RoomScene):
        paint_room(background, scene)
        yield background
        if not scene.curtains_closed:
            window = LayerPainter(size)
            paint_window(window, scene)
            yield window
        return
    paint_place(background, scene.place, scene.variant)
    yield background
    lights = LayerPainter(size)
    sky_lights(lights, scene.place, scene.time, scene.variant)
    yield lights
    if scene.lamp is not Lamp.NONE:
        x, y = lamp_position(scene)
        lamp = LayerPainter(size, center=x, ground=y)
        paint_lamp(lamp, scene.lamp is Lamp.ON)
        yield lamp
    toy = LayerPainter(size, 0.5 + scene.shift, 0.94, scene.scale, scene.flip)
    paint_toy(toy, scene.subject, scene.accessory)
    yield toy


def layer_numbers(scene: Scene, size: int = 32) -> np.ndarray:
    """The foremost layer's number at each pixel of the supersampled picture: (4·size)×(4·size) uint8."""
    numbers = np.zeros((size * SUPERSAMPLING,) * 2, dtype=np.uint8)
    for painter in _painted(scene, size):
        drawn = painter.numbers()
        numbers = np.where(drawn > 0, drawn, numbers)
    return numbers[:, ::-1] if isinstance(scene, RoomScene) and scene.flip else numbers


def _pooled(values: np.ndarray) -> np.ndarray:
    """The values of each picture's pixel side by side: size×size×16."""
    side = len(values) // SUPERSAMPLING
    blocks = values.reshape(side, SUPERSAMPLING, side, SUPERSAMPLING)
    return blocks.transpose(0, 2, 1, 3).reshape(side, side, -1)


def layer_mask(scene: Scene, names: Iterable[str], size: int = 32) -> np.ndarray:
    """Where any part of a pixel shows one of the layers: size×size bool. Raises ValueError for an unknown layer."""
    wanted = list(names)
    if unknown := sorted(set(wanted) - set(LAYERS)):
        raise ValueError(f"no layer is called {', '.join(unknown)}; there are {', '.join(LAYERS)}")
    return np.asarray(
        _pooled(np.isin(layer_numbers(scene, size), [LAYERS.index(name) for name in wanted])).any(axis=-1)
    )


def depth_map(scene: Scene, size: int = 32) -> np.ndarray:
    """How near each pixel is: size×size uint8, 0 far and 255 near, edges averaged as the picture's are.

    Every layer stands upright at a distance of its own (NEARNESS); the floor runs from far at the horizon to near at
    the lower edge, linear in the row, as the inverse depth of a plane is. Light has no say: an hour changes no depth
    but where the sun, the moon or stars are, and those are as far as the sky.
    """
    numbers = layer_numbers(scene, size)
    rows = (np.arange(len(numbers)) + 0.5) / len(numbers)
    plane = FLOOR_FAR + (FLOOR_NEAR - FLOOR_FAR) * np.clip((rows - HORIZON) / (1 - HORIZON), 0, 1)
    near = np.array([NEARNESS[name] for name in LAYERS])[numbers]
    near = np.where(np.isnan(near), plane[:, None], near)
    return np.rint(255 * _pooled(near).mean(axis=-1)).astype(np.uint8)

"""A painter with unit coordinates on a supersampled Pillow canvas: the one place that knows about pixels."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw

RGB = tuple[int, int, int]
SUPERSAMPLING = 4


def mix(a: RGB, b: RGB, amount: float) -> RGB:
    """The colour `amount` of the way from a to b (0 gives a, 1 gives b)."""
    return tuple(round(x + (y - x) * amount) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


@lru_cache(maxsize=64)
def _pattern_mask(kind: str, side: int, cell: int) -> Image.Image:
    """An L mask of 2·side pixels with stripes, spots or checks whose period is two cells."""
    rows, cols = np.mgrid[0 : 2 * side, 0 : 2 * side]
    if kind == "striped":
        on = (rows // cell) % 2 == 0
    elif kind == "checked":
        on = ((rows // cell) + (cols // cell)) % 2 == 0
    elif kind == "spotted":
        period = 2 * cell
        shift = (rows // period % 2) * cell
        y, x = rows % period - cell + 0.5, (cols + shift) % period - cell + 0.5
        on = y * y + x * x < (0.72 * cell) ** 2
    else:
        raise ValueError(f"no pattern is called {kind!r}")
    return Image.fromarray(on.astype(np.uint8) * 255)


class Painter:
    """Draws ellipses, polygons and lines in local units on an RGBA canvas of `size`·4 pixels.

    A local point (x, y) lands at (center + x·scale, ground + y·scale) of the unit square, y pointing down. Shapes
    drawn with `body=True` are also kept in a mask, so that a pattern can be laid over the body alone. `layer` names
    what the next shapes belong to; this painter does not ask, one that paints layers does.
    """

    layer = "nothing"

    def __init__(self, size: int, center: float = 0.0, ground: float = 0.0, scale: float = 1.0, flip: bool = False):
        self.side = size * SUPERSAMPLING
        self.canvas = Image.new("RGBA", (self.side, self.side), (0, 0, 0, 0))
        self._draw = ImageDraw.Draw(self.canvas)
        self.body_mask = Image.new("L", (self.side, self.side), 0)
        self._mask_draw = ImageDraw.Draw(self.body_mask)
        self.center, self.ground, self.scale = center, ground, scale
        self.sign = -1.0 if flip else 1.0

    def _point(self, x: float, y: float) -> tuple[float, float]:
        return (
            (self.center + self.sign * x * self.scale) * self.side,
            (self.ground + y * self.scale) * self.side,
        )

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: RGB, body: bool = False) -> None:
        """An ellipse around (x, y) with radii rx and ry."""
        (px, py), dx, dy = self._point(x, y), rx * self.scale * self.side, ry * self.scale * self.side
        box = (px - dx, py - dy, px + dx, py + dy)
        self._draw.ellipse(box, fill=(*fill, 255))
        if body:
            self._mask_draw.ellipse(box, fill=255)

    def polygon(self, points: Sequence[tuple[float, float]], fill: RGB, body: bool = False) -> None:
        """A filled polygon."""
        pixels = [self._point(x, y) for x, y in points]
        self._draw.polygon(pixels, fill=(*fill, 255))
        if body:
            self._mask_draw.polygon(pixels, fill=255)

    def rect(self, x0: float, y0: float, x1: float, y1: float, fill: RGB, body: bool = False) -> None:
        """A filled axis-aligned rectangle between two corners."""
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill, body)

    def line(self, points: Sequence[tuple[float, float]], width: float, fill: RGB) -> None:
        """A line through the points, `width` in local units."""
        pixels = [self._point(x, y) for x, y in points]
        self._draw.line(pixels, fill=(*fill, 255), width=max(1, round(width * self.scale * self.side)), joint="curve")

    def lay_pattern(self, kind: str, color: RGB, period: float = 0.18) -> None:
        """Lay a pattern over everything drawn so far with `body=True`; `plain` lays nothing."""
        if kind == "plain":
            return
        cell = max(2, round(period * self.scale * self.side / 2))
        left, top = (round(v) % (2 * cell) for v in self._point(0.0, 0.0))
        # The tile is cut so that the pattern moves with the toy, not with the picture.
        x, y = -left % (2 * cell), -top % (2 * cell)
        tile = _pattern_mask(kind, self.side, cell).crop((x, y, x + self.side, y + self.side))
        self.canvas.paste((*color, 255), (0, 0), ImageChops.multiply(self.body_mask, tile))

    def array(self) -> np.ndarray:
        """The canvas averaged down to size × size × 4 float32 in 0..255; colours come out premultiplied by alpha."""
        pixels = np.asarray(self.canvas.reduce(SUPERSAMPLING), dtype=np.float32).copy()
        pixels[..., :3] *= pixels[..., 3:] / 255.0  # Pillow averages with alpha in mind and divides it out again
        return pixels

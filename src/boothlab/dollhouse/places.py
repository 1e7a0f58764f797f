"""The ten places a toy can be: one function each, drawn by day; the hour's tint comes later."""

from collections.abc import Callable

from boothlab.dollhouse.painter import RGB, Painter, mix

SKY: RGB = (150, 205, 245)
NIGHT_SKY: RGB = (14, 18, 52)
WHITE: RGB = (255, 255, 255)
OUTDOORS = ("beach", "forest", "snow", "desert", "city", "meadow")


def _ground(painter: Painter, sky: RGB, ground: RGB, horizon: float) -> None:
    """Sky and ground; what a place draws after them stands there, unless it says otherwise."""
    painter.layer = "sky"
    painter.rect(0, 0, 1, 1, sky)
    painter.layer = "floor"
    painter.rect(0, horizon, 1, 1, ground)
    painter.layer = "standing"


def _beach(painter: Painter, variant: int) -> None:
    _ground(painter, SKY, (238, 214, 150), 0.66)
    painter.layer = "floor"
    painter.rect(0, 0.44, 1, 0.68, (40, 140, 200))
    painter.layer = "standing"
    x = 0.12 if variant % 2 else 0.86
    painter.line([(x, 0.8), (x + 0.02, 0.35)], 0.05, (140, 95, 55))
    for dx, dy in ((-0.16, 0.02), (0.16, 0.02), (-0.1, -0.1), (0.1, -0.1)):
        painter.line([(x + 0.02, 0.34), (x + dx, 0.34 + dy)], 0.06, (50, 150, 70))


def _forest(painter: Painter, variant: int) -> None:
    _ground(painter, (176, 216, 190), (74, 104, 48), 0.7)
    for i in range(6):
        x = (i + 0.5 * (variant % 2)) / 5
        painter.rect(x - 0.03, 0.4, x + 0.03, 0.78, (96, 66, 40))
        painter.polygon([(x - 0.16, 0.56), (x, 0.02 + 0.08 * ((i + variant) % 3)), (x + 0.16, 0.56)], (28, 98, 46))


def _snow(painter: Painter, variant: int) -> None:
    _ground(painter, (196, 214, 232), (248, 250, 255), 0.6)
    for i, x in enumerate((0.1, 0.36, 0.66, 0.92)):
        top = 0.24 + 0.07 * ((i + variant) % 3)
        painter.polygon([(x - 0.13, 0.64), (x, top), (x + 0.13, 0.64)], (90, 130, 120))
        painter.polygon([(x - 0.07, top + 0.16), (x, top), (x + 0.07, top + 0.16)], WHITE)
    for i in range(14):
        painter.ellipse((i * 0.37 + variant * 0.11) % 1, (i * 0.23 + variant * 0.07) % 0.95, 0.018, 0.018, WHITE)


def _desert(painter: Painter, variant: int) -> None:
    _ground(painter, (250, 226, 170), (226, 164, 84), 0.62)
    painter.layer = "floor"
    painter.ellipse(0.25 + 0.2 * (variant % 2), 0.72, 0.45, 0.16, (236, 178, 98))
    painter.ellipse(0.85, 0.7, 0.4, 0.14, (214, 150, 74))
    painter.layer = "standing"
    x = 0.12 if variant < 2 else 0.88
    painter.line([(x, 0.8), (x, 0.34)], 0.08, (60, 130, 70))
    painter.line([(x - 0.1, 0.44), (x - 0.1, 0.56), (x, 0.56)], 0.05, (60, 130, 70))
    painter.line([(x + 0.1, 0.38), (x + 0.1, 0.5), (x, 0.5)], 0.05, (60, 130, 70))


def _city(painter: Painter, variant: int) -> None:
    _ground(painter, (186, 206, 224), (96, 96, 102), 0.76)
    for i in range(5):
        x, top = i * 0.2, 0.1 + 0.12 * ((i * 2 + variant) % 4)
        painter.rect(x, top, x + 0.19, 0.78, ((120, 110, 120), (150, 132, 120), (104, 116, 134))[(i + variant) % 3])
        for row in range(5):
            for column in range(2):
                painter.rect(
                    x + 0.035 + 0.08 * column,
                    top + 0.05 + 0.12 * row,
                    x + 0.075 + 0.08 * column,
                    top + 0.1 + 0.12 * row,
                    (222, 226, 200),
                )
    painter.layer = "floor"
    painter.rect(0, 0.76, 1, 0.8, (170, 170, 170))


def _meadow(painter: Painter, variant: int) -> None:
    _ground(painter, SKY, (112, 190, 70), 0.52)
    painter.layer = "sky"
    painter.ellipse(0.2 + 0.1 * variant, 0.16, 0.14, 0.06, WHITE)
    painter.ellipse(0.75 - 0.1 * variant, 0.28, 0.12, 0.05, WHITE)
    painter.layer = "floor"
    petals = ((250, 240, 90), (250, 120, 150), WHITE)
    for i in range(16):
        x, y = (i * 0.29 + variant * 0.13) % 1, 0.58 + (i * 0.17) % 0.4
        painter.ellipse(x, y, 0.03, 0.03, petals[i % 3])


def _moon(painter: Painter, variant: int) -> None:
    _ground(painter, (10, 10, 24), (168, 168, 176), 0.68)
    painter.layer = "sky"
    for i in range(12):
        painter.ellipse((i * 0.31 + variant * 0.17) % 1, (i * 0.19) % 0.6, 0.014, 0.014, WHITE)
    painter.ellipse(0.82 if variant % 2 else 0.18, 0.2, 0.12, 0.12, (70, 130, 210))
    painter.layer = "floor"
    for x, y in ((0.15, 0.78), (0.8, 0.76), (0.45, 0.9), (0.9, 0.92)):
        painter.ellipse(x, y, 0.1, 0.04, (132, 132, 142))


def _sea(painter: Painter, variant: int) -> None:
    painter.layer = "sky"
    for i in range(8):
        painter.rect(0, i / 8, 1, (i + 1) / 8, mix((70, 190, 215), (10, 70, 130), i / 7))
    painter.layer = "floor"
    painter.rect(0, 0.88, 1, 1, (206, 186, 130))
    painter.layer = "standing"
    for i, x in enumerate((0.08, 0.2, 0.85, 0.95)):
        sway = 0.04 if (i + variant) % 2 else -0.04
        painter.line([(x, 0.95), (x + sway, 0.75), (x - sway, 0.55)], 0.04, (40, 140, 80))
    for i in range(7):
        painter.ellipse((i * 0.43 + variant * 0.2) % 1, (i * 0.27) % 0.8, 0.025, 0.025, (190, 235, 245))


def _kitchen(painter: Painter, variant: int) -> None:
    painter.layer = "wall"
    painter.rect(0, 0, 1, 1, (232, 226, 206))
    for i in range(1, 7):
        painter.line([(0, i * 0.11), (1, i * 0.11)], 0.015, (176, 190, 196))
        painter.line([(i * 0.16, 0), (i * 0.16, 0.72)], 0.015, (176, 190, 196))
    painter.layer = "floor"
    painter.rect(0, 0.7, 1, 1, (158, 106, 66))
    painter.rect(0, 0.7, 1, 0.76, (206, 160, 110))
    painter.layer = "wall"
    x = 0.04 if variant % 2 else 0.66
    painter.rect(x, 0.05, x + 0.3, 0.26, (120, 150, 170))


def _library(painter: Painter, variant: int) -> None:
    painter.layer = "wall"
    painter.rect(0, 0, 1, 1, (84, 54, 34))
    spines = ((170, 50, 50), (60, 100, 140), (200, 170, 90), (70, 120, 80), (130, 80, 140))
    for row in range(3):
        for i in range(12):
            top = 0.03 + row * 0.25 + 0.03 * ((i * 3 + row + variant) % 3)
            painter.rect(i / 12, top, (i + 0.8) / 12, 0.23 + row * 0.25, spines[(i * 2 + row * 3 + variant) % 5])
    painter.layer = "floor"
    painter.rect(0, 0.78, 1, 1, (122, 44, 40))


_PLACES: dict[str, Callable[[Painter, int], None]] = {
    "beach": _beach,
    "forest": _forest,
    "snow": _snow,
    "desert": _desert,
    "city": _city,
    "meadow": _meadow,
    "moon": _moon,
    "sea": _sea,
    "kitchen": _kitchen,
    "library": _library,
}


def paint_place(painter: Painter, place: str, variant: int) -> None:
    """Fill the canvas with a place, by day."""
    _PLACES[place](painter, variant)


def sky_lights(painter: Painter, place: str, time: str, variant: int) -> None:
    """What shines by itself and takes no tint: the sun, the moon and stars, lit windows."""
    painter.layer = "sky"
    if place in OUTDOORS and time == "day" and place != "snow":
        painter.ellipse(0.14 + 0.2 * variant, 0.1, 0.07, 0.07, (255, 238, 120))
    elif place in OUTDOORS and time == "dusk":
        painter.ellipse(0.2 + 0.18 * variant, 0.34, 0.09, 0.09, (255, 150, 60))
    elif place in OUTDOORS and time == "night":
        x = 0.16 + 0.2 * variant
        painter.ellipse(x, 0.13, 0.075, 0.075, (240, 240, 214))
        for i in range(7):
            painter.ellipse((i * 0.29 + x) % 1, (i * 0.11) % 0.36, 0.014, 0.014, WHITE)

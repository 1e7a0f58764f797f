"""The hotel room: bed, lamp, window, curtains, pictures and carpet."""

from typing import TYPE_CHECKING

from boothlab.dollhouse.painter import Painter, mix

if TYPE_CHECKING:
    from boothlab.dollhouse.scenes import RoomScene

LAMP_AT = (0.9, 0.42)
SKIES = {"day": (160, 212, 248), "dusk": (246, 150, 90), "night": (16, 20, 60)}
WALLS = ((226, 216, 200), (214, 220, 214), (222, 208, 214), (206, 212, 224))


def paint_room(painter: Painter, scene: "RoomScene") -> None:
    """Walls, carpet, pictures, bed, lamp and curtains; the view from the window is `paint_window`."""
    from boothlab.dollhouse.scenes import COLORS

    black = (0, 0, 0)
    painter.layer = "wall"
    painter.rect(0, 0, 1, 1, WALLS[scene.variant % len(WALLS)])
    carpet = COLORS[scene.carpet]
    painter.layer = "floor"
    painter.rect(0, 0.72, 1, 1, (146, 116, 90))
    painter.layer = "carpet"
    painter.polygon([(0.06, 0.98), (0.16, 0.78), (0.96, 0.78), (0.98, 0.98)], carpet)
    painter.layer = "picture"
    for i in range(scene.pictures):
        x = 0.52 + 0.2 * i
        painter.rect(x, 0.1, x + 0.15, 0.28, (110, 80, 50))
        painter.rect(x + 0.025, 0.13, x + 0.125, 0.25, ((120, 170, 140), (190, 150, 110))[(i + scene.variant) % 2])
    painter.layer = "bed"
    bed = COLORS[scene.bed]
    painter.rect(0.4, 0.42, 0.46, 0.9, (104, 70, 44))
    painter.rect(0.42, 0.62, 0.86, 0.84, bed)
    painter.rect(0.42, 0.76, 0.86, 0.84, mix(bed, black, 0.3))
    painter.rect(0.45, 0.55, 0.6, 0.64, (250, 250, 250))
    painter.layer = "lamp"
    x, y = LAMP_AT
    painter.line([(x, y), (x, 0.8)], 0.025, (90, 80, 70))
    shade = (255, 240, 160) if scene.lamp == "on" else (128, 122, 122)
    painter.polygon([(x - 0.05, y - 0.07), (x + 0.05, y - 0.07), (x + 0.09, y + 0.07), (x - 0.09, y + 0.07)], shade)
    curtains = COLORS[scene.curtains]
    painter.layer = "window"
    painter.rect(0.05, 0.08, 0.38, 0.6, (120, 116, 112))
    painter.layer = "curtains"
    width = 0.17 if scene.curtains_closed else 0.07
    for left in (0.03, 0.4 - width):
        painter.rect(left, 0.06, left + width, 0.66, curtains)
        painter.line([(left + width / 2, 0.06), (left + width / 2, 0.66)], 0.015, mix(curtains, black, 0.25))


def paint_window(painter: Painter, scene: "RoomScene") -> None:
    """The view between open curtains; it takes no tint from the room."""
    painter.layer = "window"
    painter.rect(0.1, 0.1, 0.33, 0.58, SKIES[scene.time])
    if scene.time == "night":
        painter.ellipse(0.26, 0.2, 0.04, 0.04, (240, 240, 214))
    elif scene.time == "day":
        painter.ellipse(0.17, 0.2, 0.04, 0.04, (255, 240, 140))
    else:
        painter.ellipse(0.215, 0.5, 0.06, 0.06, (255, 220, 120))
    painter.line([(0.215, 0.1), (0.215, 0.58)], 0.02, (244, 244, 244))
    painter.line([(0.1, 0.34), (0.33, 0.34)], 0.02, (244, 244, 244))

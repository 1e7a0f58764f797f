"""The eight toys: one function a class, each drawn from an individual's colours and proportions.

Local units: the toy stands on y = 0 and reaches to about y = -1; x runs from -0.5 to 0.5.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from boothlab.dollhouse.painter import RGB, Painter, mix

if TYPE_CHECKING:
    from boothlab.dollhouse.scenes import Subject

BLACK: RGB = (20, 20, 24)
WHITE: RGB = (250, 250, 250)


@dataclass(frozen=True)
class Anchors:
    """Where accessories go: top of the head, the eyes, the neck; widths are half widths."""

    top: tuple[float, float]
    top_width: float
    eyes: tuple[float, float]
    eye_gap: float
    neck: tuple[float, float]
    neck_width: float
    chest: tuple[float, float]


def _pattern_color(color: RGB) -> RGB:
    """A lighter or darker shade of the toy's own colour, so that a pattern never changes the colour's name."""
    return mix(color, (40, 40, 50), 0.5) if sum(color) > 480 else mix(color, WHITE, 0.6)


def _marking(painter: Painter, subject: "Subject", x: float, y: float, size: float) -> None:
    color = subject.marking_color
    if subject.marking == "patch":
        painter.ellipse(x + 0.08, y, size, size * 0.8, color)
    elif subject.marking == "band":
        painter.rect(x - 2.0 * size, y + 0.02, x + 2.0 * size, y + 0.1, color)
    elif subject.marking == "dot":
        painter.ellipse(x, y, size * 0.7, size * 0.7, color)
    elif subject.marking == "bar":
        painter.rect(x - 0.05, y - 1.3 * size, x + 0.05, y + 1.3 * size, color)


def _eyes(painter: Painter, x: float, y: float, gap: float, radius: float) -> None:
    for side in (-1, 1):
        painter.ellipse(x + side * gap, y, radius, radius * 1.15, BLACK)
        painter.ellipse(x + side * gap + radius * 0.3, y - radius * 0.4, radius * 0.4, radius * 0.4, WHITE)


def _sitting_body(painter: Painter, subject: "Subject") -> tuple[float, float, float]:
    """The trunk, legs, arms and belly that bear, cat and rabbit share; gives the head's x, y and radius."""
    head, _, width, limb, _ = subject.proportions
    w = 0.24 + 0.11 * width
    for side in (-1, 1):
        painter.ellipse(side * w * 0.7, -0.08, 0.11 + 0.05 * limb, 0.08, subject.second)
    painter.ellipse(0, -0.28, w, 0.25, subject.color, body=True)
    painter.lay_pattern(subject.pattern, _pattern_color(subject.color))
    painter.ellipse(0, -0.25, w * 0.5, 0.15, subject.second)
    _marking(painter, subject, 0, -0.27, 0.08)
    for side in (-1, 1):
        painter.ellipse(side * w * 0.98, -0.36 + 0.04 * limb, 0.07, 0.11 + 0.07 * limb, subject.color)
    radius = 0.2 + 0.08 * head
    return 0.0, -0.45 - radius * 0.75, radius


def _face(painter: Painter, subject: "Subject", x: float, y: float, r: float, muzzle: RGB) -> Anchors:
    face = subject.proportions[4]
    painter.ellipse(x, y, r * 1.08, r, subject.color)
    painter.ellipse(x, y + r * 0.42, r * (0.36 + 0.2 * face), r * 0.34, muzzle)
    painter.ellipse(x, y + r * 0.3, r * 0.16, r * 0.12, BLACK)
    _eyes(painter, x, y - r * 0.12, r * 0.46, r * 0.15)
    return Anchors((x, y - r), r, (x, y - r * 0.12), r * 0.46, (x, y + r * 0.95), r * 0.9, (0.0, -0.27))


def _bear(painter: Painter, subject: "Subject") -> Anchors:
    x, y, r = _sitting_body(painter, subject)
    ear = r * (0.3 + 0.28 * subject.proportions[1])
    for side in (-1, 1):
        painter.ellipse(x + side * r * 0.85, y - r * 0.75, ear, ear, subject.color)
        painter.ellipse(x + side * r * 0.85, y - r * 0.75, ear * 0.6, ear * 0.6, subject.second)
    return _face(painter, subject, x, y, r, subject.second)


def _cat(painter: Painter, subject: "Subject") -> Anchors:
    tail = 0.1 + 0.1 * subject.proportions[3]
    painter.line([(0.2, -0.1), (0.42, -0.16), (0.44, -0.3 - tail)], 0.09, subject.second)
    x, y, r = _sitting_body(painter, subject)
    height = r * (0.55 + 0.5 * subject.proportions[1])
    for side in (-1, 1):
        base = (x + side * r * 1.05, y - r * 0.2)
        tip = (x + side * r * 0.95, y - r * 0.75 - height)
        painter.polygon([base, tip, (x + side * r * 0.15, y - r * 0.85)], subject.color)
        inner = [(x + side * r * 0.85, y - r * 0.6), (tip[0] * 0.95, tip[1] + height * 0.35)]
        painter.polygon([*inner, (x + side * r * 0.4, y - r * 0.85)], subject.second)
    anchors = _face(painter, subject, x, y, r, WHITE)
    for side in (-1, 1):
        painter.line([(x + side * r * 0.4, y + r * 0.35), (x + side * r * 1.3, y + r * 0.25)], 0.02, BLACK)
    return anchors


def _rabbit(painter: Painter, subject: "Subject") -> Anchors:
    x, y, r = _sitting_body(painter, subject)
    length = 0.16 + 0.1 * subject.proportions[1]
    for side in (-1, 1):
        center = (x + side * r * 0.5, y - r * 0.7 - length * 0.75)
        painter.ellipse(*center, 0.075, length, subject.color)
        painter.ellipse(*center, 0.035, length * 0.75, subject.second)
    return _face(painter, subject, x, y, r, WHITE)


def _duck(painter: Painter, subject: "Subject") -> Anchors:
    head, ear, width, limb, face = subject.proportions
    for x in (-0.08, 0.08):
        painter.line([(x, -0.18), (x, -0.02)], 0.05, (240, 150, 30))
        painter.ellipse(x + 0.04, -0.02, 0.08, 0.03, (240, 150, 30))
    w, h = 0.34 + 0.08 * width, 0.2 + 0.05 * limb
    painter.polygon([(-w * 0.6, -0.4), (-w - 0.12, -0.5 - 0.1 * ear), (-w * 0.8, -0.2)], subject.second)
    painter.ellipse(0, -0.32, w, h, subject.color, body=True)
    painter.lay_pattern(subject.pattern, _pattern_color(subject.color))
    painter.ellipse(-0.06, -0.33, w * 0.5, h * 0.5, subject.second)
    _marking(painter, subject, 0.17, -0.3, 0.06)
    r = 0.15 + 0.06 * head
    x, y = 0.2, -0.58 - r * 0.5
    painter.rect(x - r * 0.6, y, x + r * 0.6, -0.4, subject.color)
    painter.ellipse(x, y, r, r, subject.color)
    beak = 0.12 + 0.1 * face
    painter.polygon([(x + r * 0.8, y - 0.05), (x + r + beak, y + 0.05), (x + r * 0.8, y + 0.1)], (245, 140, 20))
    painter.ellipse(x + r * 0.35, y - r * 0.2, 0.035, 0.04, BLACK)
    return Anchors((x, y - r), r, (x + r * 0.3, y - r * 0.15), r * 0.4, (x, y + r * 0.95), r * 0.8, (0.17, -0.3))


def _robot(painter: Painter, subject: "Subject") -> Anchors:
    head, ear, width, limb, face = subject.proportions
    w = 0.22 + 0.09 * width
    for side in (-1, 1):
        painter.rect(side * w * 0.55 - 0.06, -0.2, side * w * 0.55 + 0.06, 0, subject.second)
        painter.rect(side * w * 0.55 - 0.09, -0.05, side * w * 0.55 + 0.09, 0, (70, 70, 80))
        painter.line([(side * w, -0.45), (side * (w + 0.12), -0.42 + 0.22 * limb)], 0.08, subject.second)
        painter.ellipse(side * (w + 0.12), -0.4 + 0.22 * limb, 0.06, 0.06, (70, 70, 80))
    painter.rect(-w, -0.54, w, -0.16, subject.color, body=True)
    painter.lay_pattern(subject.pattern, _pattern_color(subject.color))
    painter.rect(-w * 0.5, -0.46, w * 0.5, -0.26, subject.second)
    _marking(painter, subject, 0, -0.36, 0.06)
    hw, hh = 0.16 + 0.1 * head, 0.26 + 0.06 * head
    top = -0.57 - hh
    painter.line([(0, top), (0, top - 0.07 - 0.07 * ear)], 0.035, (80, 80, 90))
    painter.ellipse(0, top - 0.08 - 0.07 * ear, 0.05, 0.05, subject.second)
    painter.rect(-hw, top, hw, -0.57, subject.color)
    painter.rect(-hw * 0.85, top + hh * 0.22, hw * 0.85, top + hh * 0.6, (40, 46, 60))
    for side in (-1, 1):
        painter.ellipse(side * hw * 0.45, top + hh * 0.4, 0.035 + 0.02 * face, 0.035 + 0.02 * face, (150, 240, 250))
    painter.rect(-hw * 0.5, top + hh * 0.74, hw * 0.5, top + hh * 0.84, (40, 46, 60))
    return Anchors((0, top), hw, (0, top + hh * 0.4), hw * 0.45, (0, -0.55), w * 0.9, (0, -0.36))


def _car(painter: Painter, subject: "Subject") -> Anchors:
    head, ear, width, limb, face = subject.proportions
    w, roof = 0.42 + 0.07 * width, 0.2 + 0.12 * head
    painter.polygon(
        [(-w * 0.65, -0.38), (-w * 0.42, -0.4 - roof), (w * 0.3, -0.4 - roof), (w * 0.6, -0.38)], subject.second
    )
    painter.polygon(
        [(-w * 0.5, -0.4), (-w * 0.35, -0.36 - roof), (-0.05, -0.36 - roof), (-0.05, -0.4)], (190, 225, 240)
    )
    painter.polygon([(0.0, -0.4), (0.0, -0.36 - roof), (w * 0.24, -0.36 - roof), (w * 0.46, -0.4)], (190, 225, 240))
    painter.rect(-w, -0.4, w, -0.14, subject.color, body=True)
    painter.lay_pattern(subject.pattern, _pattern_color(subject.color))
    _marking(painter, subject, 0, -0.28, 0.07)
    painter.ellipse(w * 0.95, -0.3, 0.05 + 0.03 * face, 0.05, (255, 240, 150))
    wheel = 0.12 + 0.05 * limb
    for x in (-w * 0.58, w * 0.58):
        painter.ellipse(x, -wheel, wheel, wheel, BLACK)
        painter.ellipse(x, -wheel, wheel * (0.35 + 0.3 * ear), wheel * (0.35 + 0.3 * ear), subject.second)
    return Anchors((-w * 0.06, -0.4 - roof), 0.2, (-0.02, -0.4 - roof * 0.5), 0.14, (0, -0.42), w * 0.55, (0, -0.28))


def _teapot(painter: Painter, subject: "Subject") -> Anchors:
    head, ear, width, limb, face = subject.proportions
    w, h = 0.27 + 0.07 * width, 0.26 + 0.05 * head
    y = -0.06 - h
    painter.line(
        [(-w * 0.8, y - 0.12), (-w - 0.14 - 0.05 * ear, y - 0.1), (-w - 0.12, y + 0.1), (-w * 0.7, y + 0.14)],
        0.07,
        subject.second,
    )
    painter.line([(w * 0.7, y + 0.1), (w + 0.1, y - 0.02), (w + 0.15, y - 0.2 - 0.1 * limb)], 0.1, subject.second)
    painter.rect(-w * 0.6, -0.08, w * 0.6, 0, subject.second)
    painter.ellipse(0, y, w, h, subject.color, body=True)
    painter.lay_pattern(subject.pattern, _pattern_color(subject.color))
    _marking(painter, subject, 0, y + 0.04, 0.09)
    lid = y - h
    painter.ellipse(0, lid + 0.05, w * 0.6, 0.09, subject.second)
    painter.ellipse(0, lid - 0.05 - 0.03 * face, 0.05 + 0.03 * face, 0.06, subject.color)
    top = lid - 0.09 - 0.05 * face
    return Anchors((0, top + 0.04), 0.2, (0, y - h * 0.35), 0.12, (0, lid + 0.14), w * 0.75, (0, y))


def _rocket(painter: Painter, subject: "Subject") -> Anchors:
    head, ear, width, limb, face = subject.proportions
    w, nose = 0.15 + 0.07 * width, 0.22 + 0.14 * head
    painter.polygon([(-0.08, -0.12), (0, 0.03), (0.08, -0.12)], (255, 170, 40))
    fin = 0.12 + 0.1 * limb
    for side in (-1, 1):
        painter.polygon([(side * w * 0.8, -0.36), (side * (w + fin), -0.06), (side * w * 0.8, -0.12)], subject.second)
    painter.rect(-w, -0.72, w, -0.12, subject.color, body=True)
    painter.lay_pattern(subject.pattern, _pattern_color(subject.color))
    painter.polygon([(-w, -0.7), (0, -0.72 - nose), (w, -0.7)], subject.second)
    radius = 0.07 + 0.04 * face
    painter.ellipse(0, -0.56, radius + 0.03, radius + 0.03, WHITE)
    painter.ellipse(0, -0.56, radius, radius, (90, 170, 220))
    _marking(painter, subject, 0, -0.28, 0.06 + 0.02 * ear)
    return Anchors((0, -0.66 - nose), 0.14, (0, -0.57), 0.09, (0, -0.42), w, (0, -0.28))


_TOYS: dict[str, Callable[[Painter, "Subject"], Anchors]] = {
    "bear": _bear,
    "cat": _cat,
    "rabbit": _rabbit,
    "duck": _duck,
    "robot": _robot,
    "car": _car,
    "teapot": _teapot,
    "rocket": _rocket,
}


def _wear(painter: Painter, accessory: str, at: Anchors) -> None:
    if accessory == "hat":
        (x, y), w = at.top, max(at.top_width, 0.16)
        painter.rect(x - w * 1.1, y - 0.02, x + w * 1.1, y + 0.05, BLACK)
        painter.rect(x - w * 0.65, y - 0.24, x + w * 0.65, y + 0.02, BLACK)
        painter.rect(x - w * 0.65, y - 0.07, x + w * 0.65, y - 0.02, (200, 40, 50))
    elif accessory == "crown":
        (x, y), w, gold = at.top, max(at.top_width * 0.85, 0.15), (255, 205, 40)
        peaks = [(x - w, y - 0.2), (x - w * 0.5, y - 0.08), (x, y - 0.22), (x + w * 0.5, y - 0.08), (x + w, y - 0.2)]
        painter.polygon([(x - w, y + 0.05), *peaks, (x + w, y + 0.05)], gold)
    elif accessory == "scarf":
        (x, y), w = at.neck, max(at.neck_width, 0.14)
        painter.ellipse(x, y, w * 1.1, 0.065, (30, 170, 170))
        painter.rect(x + w * 0.25, y, x + w * 0.25 + 0.13, y + 0.26, (30, 170, 170))
        painter.rect(x + w * 0.25, y + 0.18, x + w * 0.25 + 0.13, y + 0.22, WHITE)
    elif accessory == "sunglasses":
        (x, y), gap = at.eyes, max(at.eye_gap, 0.1)
        painter.line([(x - gap * 1.6, y - 0.02), (x + gap * 1.6, y - 0.02)], 0.04, BLACK)
        for side in (-1, 1):
            painter.ellipse(x + side * gap, y + 0.01, gap * 0.8, 0.085, BLACK)


def paint_toy(painter: Painter, subject: "Subject", accessory: str) -> None:
    """Draw an individual and what it wears."""
    painter.layer = "toy"
    anchors = _TOYS[subject.class_noun](painter, subject)
    painter.layer = "accessory"
    _wear(painter, accessory, anchors)

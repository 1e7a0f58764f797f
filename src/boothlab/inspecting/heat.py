"""Numbers as colours: a colour scale, a map laid over a picture, a labelled matrix."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from boothlab.images.grid import INK, PAPER

#: plotly's Inferno, dark to light
INFERNO = ("#000004", "#1b0c41", "#4a0c6b", "#781c6d", "#a52c60", "#cf4446", "#ed6925", "#fb9b06", "#f7d13d", "#fcffa4")
_ANCHORS = np.array([[int(one[place : place + 2], 16) for place in (1, 3, 5)] for one in INFERNO], dtype=np.float64)
_LABEL, _CELL, _SIZE = 330, 58, 13


def scale_for_plotly() -> list[list[float | str]]:
    """The colour scale in plotly's form: its scripts know no Inferno by name."""
    return [[place / (len(INFERNO) - 1), colour] for place, colour in enumerate(INFERNO)]


def colours(values_HW: NDArray[np.float64], low: float, high: float) -> NDArray[np.uint8]:
    """Numbers as uint8 [H, W, 3]; what lies outside `low` to `high` takes the colour of that end."""
    span = high - low
    places = np.clip((values_HW - low) / span if span > 0 else np.zeros_like(values_HW), 0, 1) * (len(_ANCHORS) - 1)
    lower = np.minimum(places.astype(np.int64), len(_ANCHORS) - 2)
    share = (places - lower)[..., None]
    return np.rint(_ANCHORS[lower] * (1 - share) + _ANCHORS[lower + 1] * share).astype(np.uint8)


def overlay(image: Image.Image, map_HW: Tensor, low: float, high: float, side: int = 128) -> Image.Image:
    """The picture in grey under a map in colours, both enlarged to at least `side` pixels."""
    side = max(side, *image.size)
    grey = image.convert("L").convert("RGB").resize((side, side), Image.Resampling.NEAREST)
    values = Image.fromarray(map_HW.detach().cpu().numpy().astype(np.float32))
    smooth = np.asarray(values.resize((side, side), Image.Resampling.BILINEAR), dtype=np.float64)
    return Image.blend(grey, Image.fromarray(colours(smooth, low, high)), 0.65)


def matrix_picture(
    values: NDArray[np.float64], rows: Sequence[str], columns: Sequence[str], title: str, boxed: Sequence[int] = ()
) -> Image.Image:
    """A matrix with its numbers in the cells; `boxed` names one column a row to frame. Long names are cut."""
    height, width = 64 + _CELL * len(rows) + 8, _LABEL + _CELL * len(columns) + 12
    font, small = ImageFont.load_default(_SIZE), ImageFont.load_default(_SIZE - 1)
    sheet = Image.new("RGB", (max(width, round(font.getlength(title)) + 24), height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((8, 8), title, fill=INK, font=font)
    painted = colours(values, float(values.min()), float(values.max()))
    for place, name in enumerate(columns):
        draw.text((_LABEL + _CELL * place + 6, 40), _cut(name, font, _CELL - 8), fill=INK, font=font)
    for row, name in enumerate(rows):
        top = 62 + _CELL * row
        draw.text((8, top + 20), _cut(name, font, _LABEL - 16), fill=INK, font=font)
        for column in range(len(columns)):
            left = _LABEL + _CELL * column
            shade = tuple(int(level) for level in painted[row, column])
            draw.rectangle((left, top, left + _CELL - 3, top + _CELL - 3), fill=shade)
            ink = (0, 0, 0) if sum(shade) > 380 else (255, 255, 255)
            draw.text((left + 10, top + 20), f"{values[row, column]:.2f}", fill=ink, font=small)
        if row < len(boxed):
            left = _LABEL + _CELL * boxed[row]
            draw.rectangle((left - 1, top - 1, left + _CELL - 2, top + _CELL - 2), outline=(0, 120, 255), width=3)
    return sheet


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "..") > width:
        text = text[:-1]
    return text.rstrip() + ".."  # the font of the pictures has no ellipsis

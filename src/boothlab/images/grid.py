"""Sample grids: prompts as rows, seeds as columns, labelled, the subject's own photos in the first row."""

import textwrap
from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from boothlab.files import write_bytes

INK, PAPER, FAINT = (28, 28, 32), (255, 255, 255), (120, 120, 128)
MIN_CELL, GAP = 112, 6


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def to_pil(pixels_CHW: Tensor) -> Image.Image:
    """A uint8 [3, H, W] tensor as a picture."""
    return Image.fromarray(pixels_CHW.permute(1, 2, 0).contiguous().numpy())


def png_bytes(image: Image.Image, info: PngInfo | None = None) -> bytes:
    """The picture as PNG, with text chunks if given; the same pixels and texts give the same bytes."""
    buffer = BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def save_png(path: Path, image: Image.Image) -> None:
    """Write a PNG atomically."""
    write_bytes(path, png_bytes(image))


def _fit_cell(image: Image.Image, cell: int) -> Image.Image:
    """Fill a square cell: small pictures are enlarged in whole pixels, large ones reduced smoothly."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    if side < cell:
        factor = cell // side
        square = square.resize((side * factor, side * factor), Image.Resampling.NEAREST)
    return square.resize((cell, cell), Image.Resampling.LANCZOS)


def _label(draw: ImageDraw.ImageDraw, text: str, x: int, y: int, height: int, width: int, size: int) -> None:
    lines = textwrap.wrap(text, max(8, int(width / (size * 0.52))))[: max(1, height // (size + 3))]
    top = y + max(0, (height - len(lines) * (size + 3)) // 2)
    for i, line in enumerate(lines):
        draw.text((x, top + i * (size + 3)), line, fill=INK, font=_font(size))


def build_grid(
    rows: Sequence[tuple[str, Sequence[Image.Image]]],
    columns: Sequence[str],
    references: Sequence[Image.Image],
    title: str,
) -> Image.Image:
    """The labelled grid: a title, the references, then one row a prompt with one picture a column.

    A column's name may have several lines.
    """
    native = rows[0][1][0].width if rows else MIN_CELL
    cell = native if native >= MIN_CELL else native * -(-MIN_CELL // native)
    cell = min(cell, 256)
    label, size = round(cell * 1.55), max(12, cell // 9)
    shown = list(references)[: max(len(columns), 1)]
    title_width = round(_font(size + 2).getlength(title)) + 2 * GAP
    width = max(label + (cell + GAP) * max(len(columns), len(shown)) + GAP, title_width)
    head = size + 14
    strip = (size + 3) * max((name.count("\n") + 1 for name in columns), default=1) + 5
    top = head + (cell + GAP if shown else 0)  # without references, no row is kept for them
    height = top + strip + len(rows) * (cell + GAP) + GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 6), title, fill=INK, font=_font(size + 2))
    if shown:
        _label(draw, "the subject's photos", GAP, head, cell, label - 2 * GAP, size)
    for i, image in enumerate(shown):
        sheet.paste(_fit_cell(image, cell), (label + i * (cell + GAP), head))
    y = top
    for i, column in enumerate(columns):
        for line, text in enumerate(column.split("\n")):
            draw.text((label + i * (cell + GAP), y + 2 + line * (size + 3)), text, fill=FAINT, font=_font(size))
    y += strip
    for text, images in rows:
        _label(draw, text, GAP, y, cell, label - 2 * GAP, size)
        for i, image in enumerate(images):
            sheet.paste(_fit_cell(image, cell), (label + i * (cell + GAP), y))
        y += cell + GAP
    return sheet

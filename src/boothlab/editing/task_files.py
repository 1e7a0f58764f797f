"""The pictures behind a task: sources, masks and exact answers, read when they are asked for, and of one size."""

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from boothlab.editing.edits import Loader
from boothlab.errors import UserError
from boothlab.files import shown
from boothlab.images.load import FORMATS, ImageError, load_image, read_image

Size = tuple[int, int]
"""Width and height in pixels."""
MASK_THRESHOLD = 128


def picture_of(path: Path) -> Loader:
    """A loader of an image file: upright RGB. It raises ImageError (UserError)."""
    return partial(load_image, path)


def answer_of(path: Path, source: Path) -> Loader:
    """A loader of the exact answer to an edit. It raises UserError if the answer's size is not its source's."""
    return partial(_answer, path, source)


def mask_of(path: Path, source: Path) -> Loader:
    """A loader of a mask drawn in black and white: "L", 255 where the mask is 128 or lighter, 0 elsewhere.

    It raises UserError for a mask of another size than its source, for one that is black throughout, and for one with
    transparent parts, which some tools mean as "may change" and others as "must stay".
    """
    return partial(_drawn_mask, path, source)


def erased_mask_of(path: Path, source: Path) -> Loader:
    """A loader of a mask that is a photo with a hole: what was erased (alpha below 128) may change.

    An opaque file is read as `mask_of` reads it. It raises UserError as that does.
    """
    return partial(_erased_mask, path, source)


def runs_mask_of(runs: tuple[int, ...], side: int, source: Path) -> Loader:
    """A loader of a mask given as runs (start, length, start, length, …) over a side×side picture, row by row.

    The outermost pixels always may change, as in PIE-Bench's own evaluation ("to avoid annotation errors in
    boundary"), and a run ends with the picture at the latest. It raises UserError for a source of another size.
    """
    return partial(_runs_mask, runs, side, source)


def _answer(path: Path, source: Path) -> Image.Image:
    image = load_image(path)
    _check_size("answer", path, image.size, source)
    return image


def _drawn_mask(path: Path, source: Path) -> Image.Image:
    grey = load_image(path).convert("L")
    if _alpha(path) is not None:
        raise ImageError(
            shown(path), "a mask with transparent parts can be meant either way; save it without: white may change"
        )
    return _checked(np.asarray(grey) >= MASK_THRESHOLD, path, source)


def _erased_mask(path: Path, source: Path) -> Image.Image:
    load_image(path)  # says in one line what is wrong with a file that cannot be read
    alpha = _alpha(path)
    return _drawn_mask(path, source) if alpha is None else _checked(alpha < MASK_THRESHOLD, path, source)


def _runs_mask(runs: tuple[int, ...], side: int, source: Path) -> Image.Image:
    size = load_image(source).size
    if size != (side, side):
        raise UserError(
            f"the mask of {shown(source)} is for {side}x{side} pixels, and the image has {size[0]}x{size[1]}; "
            "use the benchmark's own image"
        )
    changes = np.zeros(side * side, dtype=bool)
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        changes[start : start + length] = True
    square = changes.reshape(side, side)
    square[[0, -1], :] = square[:, [0, -1]] = True
    return _as_mask(square)


def _alpha(path: Path) -> np.ndarray | None:
    """The opacity of an image that has transparent parts, 0..255; None for one that has none."""
    with Image.open(path, formats=FORMATS) as image:
        if not image.has_transparency_data:
            return None
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    return alpha if int(alpha.min()) < 255 else None


def _checked(changes: np.ndarray, path: Path, source: Path) -> Image.Image:
    _check_size("mask", path, (changes.shape[1], changes.shape[0]), source)
    if not changes.any():
        raise UserError(f"the mask {shown(path)} is black throughout, so nothing may change; paint white what may")
    return _as_mask(changes)


def _check_size(what: str, path: Path, size: Size, source: Path) -> None:
    expected = read_image(source).image.size
    if size != expected:
        raise UserError(
            f"the {what} {shown(path)} has {size[0]}x{size[1]} pixels, and its image {shown(source)} has "
            f"{expected[0]}x{expected[1]}; they must be of one size"
        )


def _as_mask(changes: np.ndarray) -> Image.Image:
    return Image.fromarray(changes.astype(np.uint8) * 255)

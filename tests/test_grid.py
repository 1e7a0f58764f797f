"""Grids: where things are, that labels are legible, and that the same pixels give the same file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from boothlab.images.grid import GAP, MIN_CELL, PAPER, build_grid, png_bytes, save_png, to_pil

COLOURS = [(200, 30, 30), (30, 160, 60), (40, 60, 220), (240, 200, 20), (150, 40, 170), (20, 200, 200)]


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.new("RGB", size, colour)


def grid(columns: int = 2, references: int = 2, title: str = "step 4", side: int = 32) -> Image.Image:
    rows = [
        (f"a sks robot, number {row}, in a forest at night", [plain(COLOURS[row], (side, side))] * columns)
        for row in (0, 1)
    ]
    photos = [plain(COLOURS[4], (60, 40))] * references
    return build_grid(rows, [f"seed {seed}" for seed in range(columns)], photos, title)


def box_of(sheet: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of all pixels of a colour."""
    ys, xs = np.nonzero((np.asarray(sheet) == colour).all(axis=2))
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def has_ink(sheet: Image.Image, box: tuple[int, int, int, int]) -> bool:
    return bool((np.asarray(sheet.crop(box)) != PAPER).any())


def test_references_come_first_then_one_row_a_prompt() -> None:
    sheet = grid()
    cell = 128  # 32 pixels, enlarged by the smallest whole number that reaches 112
    photos, first, second = (box_of(sheet, COLOURS[i]) for i in (4, 0, 1))
    for left, top, right, bottom in (photos, first, second):
        assert (right - left, bottom - top) == (2 * cell + GAP, cell)
    assert photos[0] == first[0] == second[0]
    assert photos[3] <= first[1] < first[3] <= second[1]
    assert sheet.size == (first[2] + 2 * GAP, second[3] + 2 * GAP)


def test_every_label_is_there() -> None:
    sheet = grid()
    photos, first, second = (box_of(sheet, COLOURS[i]) for i in (4, 0, 1))
    for left, top, _, bottom in (photos, first, second):
        assert has_ink(sheet, (0, top, left - 1, bottom))  # the words beside a row
    assert has_ink(sheet, (0, 0, sheet.width, photos[1]))  # the title
    for column in range(2):
        left = first[0] + column * (128 + GAP)
        assert has_ink(sheet, (left, photos[3], left + 128, first[1]))  # the seed above its column


def test_without_references_no_room_is_kept_for_them() -> None:
    with_photos, without = grid(references=2), grid(references=0)
    assert with_photos.height - without.height == 128 + GAP
    left, top, _, _ = box_of(without, COLOURS[0])
    assert top < MIN_CELL
    assert not has_ink(without, (0, 30, left - 1, top))


def test_no_more_references_than_columns() -> None:
    assert grid(columns=2, references=9).size == grid(columns=2, references=2).size


def test_a_long_title_is_not_cut() -> None:
    title = "step 400   clip_i 0.912   dino 0.803   clip_t 0.287   (clip-vit-base-patch32+dollhouse encoders)"
    sheet = grid(columns=1, title=title)
    assert sheet.width > grid(columns=1).width
    assert not has_ink(sheet, (sheet.width - GAP, 0, sheet.width, 25))


def test_small_images_are_enlarged_in_whole_pixels() -> None:
    board = np.indices((16, 16)).sum(axis=0) % 2
    image = Image.fromarray(np.where(board[..., None], 255, 0).astype(np.uint8).repeat(3, axis=2))
    sheet = build_grid([("x", [image])], ["seed 0"], [], "t")
    left, top, right, bottom = box_of(sheet, (0, 0, 0))
    cell = np.asarray(sheet.crop((left, top, right, bottom)))
    assert cell.shape == (112, 112, 3)  # 16 × 7
    assert np.array_equal(cell, np.asarray(image).repeat(7, axis=0).repeat(7, axis=1))


def test_large_images_are_reduced_and_odd_shapes_cropped() -> None:
    sheet = grid(side=512)
    left, top, right, bottom = box_of(sheet, COLOURS[0])
    assert (right - left, bottom - top) == (2 * 256 + GAP, 256)
    wide = Image.new("RGB", (300, 100), COLOURS[2])
    wide.paste(COLOURS[3], (100, 0, 200, 100))
    sheet = build_grid([("x", [plain(COLOURS[0])])], ["seed 0"], [wide], "t")
    assert box_of(sheet, COLOURS[3])[2] - box_of(sheet, COLOURS[3])[0] == 128
    assert COLOURS[2] not in {colour for _, colour in sheet.getcolors(1 << 20)}


@pytest.mark.parametrize("prompt", ["", "x" * 300, "ein Bär — 狗 🐻 [token] {class}", "two\nlines"])
def test_any_prompt_can_be_a_label(prompt: str) -> None:
    assert build_grid([(prompt, [plain(COLOURS[0])])], ["seed 0"], [], prompt.replace("\n", " ")).width > 0


def test_the_same_pixels_give_the_same_bytes(tmp_path: Path) -> None:
    assert png_bytes(grid()) == png_bytes(grid())
    save_png(tmp_path / "new" / "a.png", grid())
    assert (tmp_path / "new" / "a.png").read_bytes() == png_bytes(grid())
    pixels = torch.randint(0, 256, (3, 8, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert np.array_equal(np.asarray(to_pil(pixels)), pixels.permute(1, 2, 0).numpy())

"""Distances over one area of the frame, against values worked out by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchmetrics.functional.image import structural_similarity_index_measure

from boothlab.evaluation import preservation
from boothlab.evaluation.perceptual import perceptual_distance

Picture = NDArray[np.uint8]


def noise(height: int = 12, width: int = 16, seed: int = 0) -> Picture:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def left_half(height: int = 12, width: int = 16) -> NDArray[np.bool_]:
    area = np.zeros((height, width), dtype=np.bool_)
    area[:, : width // 2] = True
    return area


def plain(level: int, height: int = 12, width: int = 16) -> Picture:
    return np.full((height, width, 3), level, dtype=np.uint8)


def test_errors_are_means_on_zero_to_one() -> None:
    one, other = plain(0, 1, 2), plain(0, 1, 2)
    other[0, 1] = (255, 51, 0)  # 1 and 0.2 among six values
    assert preservation.absolute_error(one, other) == pytest.approx(1.2 / 6, abs=1e-12)
    assert preservation.squared_error(one, other) == pytest.approx(1.04 / 6, abs=1e-12)
    second = np.array([[False, True]])
    assert preservation.squared_error(one, other, second) == pytest.approx(1.04 / 3, abs=1e-12)
    assert preservation.squared_error(one, other, ~second) == 0


def test_psnr_in_decibels_and_its_cap() -> None:
    assert preservation.psnr(1.0) == 0
    assert preservation.psnr(0.01) == pytest.approx(20, abs=1e-12)
    assert preservation.psnr(0.0) == 100
    assert preservation.psnr(1e-30) == 100


def test_scrambled_foreground_does_not_touch_an_identical_background() -> None:
    source, edited = noise(), noise(seed=1)
    background = left_half()
    edited[background] = source[background]
    assert preservation.squared_error(edited, source, background) == 0
    assert preservation.ssim(edited, source, background) == pytest.approx(1, abs=1e-12)
    assert preservation.squared_error(edited, source, ~background) > 0.1


def test_piebench_psnr_is_too_high_by_the_share_of_background() -> None:
    source, edited = noise(), noise(seed=1)
    background = np.zeros((12, 16), dtype=np.bool_)
    background[:3, :4] = True  # 1 of 16
    true = preservation.squared_error(edited, source, background)
    framed = preservation.squared_error(
        preservation.blackened(edited, background), preservation.blackened(source, background)
    )
    assert framed == pytest.approx(true / 16, rel=1e-12)
    assert preservation.psnr(framed) - preservation.psnr(true) == pytest.approx(-10 * math.log10(1 / 16), abs=1e-9)


def test_ssim_of_the_whole_frame_is_the_usual_one() -> None:
    one, other = noise(20, 17), noise(20, 17, seed=1)
    other = (0.7 * one + 0.3 * other).astype(np.uint8)
    tensors = [torch.from_numpy(image / 255.0).permute(2, 0, 1)[None] for image in (one, other)]
    usual = structural_similarity_index_measure(*tensors, data_range=1.0)
    assert isinstance(usual, torch.Tensor)
    assert preservation.ssim(one, other) == pytest.approx(float(usual), abs=1e-9)
    assert preservation.ssim(one, other, np.ones((20, 17), dtype=np.bool_)) == preservation.ssim(one, other)


def test_ssim_of_plain_areas_is_the_luminance_term() -> None:
    one, other = noise(), noise(seed=1)
    area = left_half()
    one[area], other[area] = 51, 102  # 0.2 and 0.4
    expected = (2 * 0.2 * 0.4 + 1e-4) / (0.2**2 + 0.4**2 + 1e-4)
    assert preservation.ssim(one, other, area) == pytest.approx(expected, abs=1e-9)


def test_ssim_needs_a_picture_it_can_mirror() -> None:
    assert preservation.ssim(plain(3, 5, 9), plain(4, 5, 9)) is None
    assert preservation.ssim(plain(3, 6, 6), plain(3, 6, 6)) == pytest.approx(1, abs=1e-12)


def test_an_area_without_pixels_is_refused() -> None:
    nothing = np.zeros((12, 16), dtype=np.bool_)
    for distance in (preservation.squared_error, preservation.ssim):
        with pytest.raises(ValueError, match="no pixel"):
            distance(noise(), noise(), nothing)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_nothing_outside_the_area_counts_and_order_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other, elsewhere = (noise(9, 8, seed=seed % 1000 + k) for k in range(3))
    area = rng.random((9, 8)) < 0.5
    area[0, 0] = True
    changed = preservation.composite(one, elsewhere, area)
    for distance in (preservation.squared_error, preservation.ssim):
        value = distance(one, other, area)
        assert distance(changed, other, area) == pytest.approx(value, abs=1e-12)
        assert distance(other, one, area) == pytest.approx(value, abs=1e-12)
        mirrored = (image[:, ::-1] for image in (one, other, area))
        assert distance(*mirrored) == pytest.approx(value, abs=1e-12)
    order = rng.permutation(72)
    shuffled = [image.reshape(72, *image.shape[2:])[order].reshape(image.shape) for image in (one, other, area)]
    assert preservation.squared_error(*shuffled) == pytest.approx(
        preservation.squared_error(one, other, area), abs=1e-12
    )


def test_perceptual_distance_weighs_positions_by_their_share() -> None:
    e1, e2 = [1.0, 0.0], [0.0, 1.0]
    one, other = torch.tensor([[e1, e1]]), torch.tensor([[e1, e2]])  # distance 0 and 2
    assert preservation.area_distance(one, other, torch.tensor([0.5, 0.25])) == pytest.approx(2 / 3, abs=1e-6)
    assert preservation.area_distance(one, other, torch.tensor([1.0, 0.0])) == 0
    assert preservation.area_distance(one, other, torch.zeros(2)) is None
    scaled = one * torch.tensor([[7.0], [0.1]])
    assert preservation.area_distance(scaled, other, torch.ones(2)) == pytest.approx(1, abs=1e-6)


def test_with_equal_shares_it_is_the_plain_perceptual_distance() -> None:
    one, other = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    found = preservation.area_distance(one, other, torch.full((5,), 0.3))
    assert found == pytest.approx(perceptual_distance(one, other), abs=1e-6)


def test_blackened_and_composite_cut_at_the_area() -> None:
    area = np.array([[True, False]])
    one, other = plain(9, 1, 2), plain(4, 1, 2)
    assert preservation.blackened(one, area)[0, :, 0].tolist() == [9, 0]
    assert preservation.composite(one, other, area)[0, :, 0].tolist() == [9, 4]
    assert preservation.blackened(one, area).dtype == preservation.composite(one, other, area).dtype == np.uint8

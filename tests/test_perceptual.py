"""Perceptual distance and DIV on features small enough to work out by hand."""

import pytest
import torch
from torch import Tensor

from boothlab.evaluation import perceptual
from boothlab.evaluation.preprocessing import Images, to_uint8


class StubPatches:
    """Two layers, one position, two features. Layer 0 is e1 for every image; layer 1 is e1 or e2 by the first pixel."""

    name = "stub@1234567"
    preprocessing = "stub-bicubic4-crop4"
    dim = 2

    def encode_images(self, images: Images) -> Tensor:
        raise AssertionError("DIV must not use the pooled features")

    def encode_patches(self, images: Images) -> Tensor:
        rows = [[[[1.0, 0.0]], [[1.0, 0.0] if int(image[0, 0, 0]) == 0 else [0.0, 1.0]]] for image in to_uint8(images)]
        return torch.tensor(rows)


def picture(value: int) -> Tensor:
    return torch.full((3, 4, 4), value, dtype=torch.uint8)


def test_distance_is_the_mean_over_layers_and_positions_of_the_sum_over_features() -> None:
    e1, e2 = [1.0, 0.0], [0.0, 1.0]
    one = torch.tensor([[e1, e1], [e1, e1]])
    other = torch.tensor([[e1, e2], [e1, e1]])  # 2 at one of four (layer, position) places.
    assert perceptual.perceptual_distance(one, other) == pytest.approx(0.5, abs=1e-7)
    assert perceptual.perceptual_distance(other, one) == pytest.approx(0.5, abs=1e-7)
    assert perceptual.perceptual_distance(one, -one) == pytest.approx(4.0, abs=1e-6)
    assert perceptual.perceptual_distance(one, one) == 0


def test_scale_of_any_position_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 3, 5, 8, generator=generator)
    scaled = one.clone()
    scaled[1, 2] *= 7
    assert perceptual.perceptual_distance(scaled, other) == pytest.approx(
        perceptual.perceptual_distance(one, other), abs=1e-6
    )


def test_dead_positions_are_zero_and_not_nan() -> None:
    assert perceptual.perceptual_distance(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)) == 0


def test_features_of_unlike_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        perceptual.perceptual_distance(torch.zeros(1, 2, 3), torch.zeros(1, 1, 3))


def test_four_images_make_six_pairs_without_self_pairs() -> None:
    features_BLND = StubPatches().encode_patches([picture(0), picture(0), picture(0), picture(9)])
    assert sorted(perceptual.pairwise_distances(features_BLND)) == pytest.approx([0, 0, 0, 1, 1, 1], abs=1e-7)


def test_diversity_is_the_mean_over_pairs() -> None:
    images = [picture(0), picture(0), picture(0), picture(9)]
    assert perceptual.diversity(StubPatches(), images) == pytest.approx(0.5, abs=1e-7)
    assert perceptual.diversity(StubPatches(), [picture(9), picture(9)]) == 0


@pytest.mark.parametrize("count", [0, 1])
def test_diversity_of_fewer_than_two_images_is_none(count: int) -> None:
    assert perceptual.diversity(StubPatches(), [picture(0)] * count) is None


def test_mean_diversity_leaves_out_prompts_without_one() -> None:
    assert perceptual.mean_diversity([0.2, None, 0.4]) == pytest.approx(0.3, abs=1e-12)
    assert perceptual.mean_diversity([None]) is None
    assert perceptual.mean_diversity([]) is None


def test_the_name_says_which_backbone() -> None:
    assert perceptual.distance_name(StubPatches()) == "lpips-uniform/stub@1234567"

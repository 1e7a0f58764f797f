"""Structure distance on keys small enough to work out by hand, and the keys of a real ViT."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import ViTConfig, ViTModel

from boothlab.errors import UserError
from boothlab.evaluation.encoders import DinoEncoder
from boothlab.evaluation.preprocessing import Preset, preset
from boothlab.evaluation.structure import SpatialEncoder, SpatialVit, structure_distance, structure_name

E1, E2 = [1.0, 0.0], [0.0, 1.0]


def noise(count: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def make_dino(batch_size: int = 64) -> DinoEncoder:
    config = ViTConfig(
        hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=8, image_size=32, patch_size=8
    )
    torch.manual_seed(0)
    model = ViTModel(config, add_pooling_layer=False)
    return DinoEncoder(model, "tiny@1234567", preset(Preset.DINO, 32), batch_size=batch_size)


@pytest.fixture(scope="module")
def vit() -> SpatialVit:
    return SpatialVit.of(make_dino())


def test_distance_is_the_mean_squared_difference_of_all_cosines() -> None:
    # All ones against the identity: two of four places differ by 1.
    assert structure_distance(torch.tensor([E1, E1]), torch.tensor([E1, E2])) == pytest.approx(0.5, abs=1e-7)
    # Cosine +1 against -1 at two of four places.
    opposite = torch.tensor([E1, [-1.0, 0.0]])
    assert structure_distance(torch.tensor([E1, E1]), opposite) == pytest.approx(2.0, abs=1e-6)
    with pytest.raises(ValueError, match="shape"):
        structure_distance(torch.tensor([E1]), torch.tensor([E1, E2]))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_neither_scale_nor_rotation_nor_order_of_tokens_matters(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.randn(2, 5, 4, generator=generator)
    value = structure_distance(one, other)
    assert structure_distance(other, one) == pytest.approx(value, abs=1e-6)
    assert structure_distance(one * torch.linspace(0.5, 7, 5)[:, None], other) == pytest.approx(value, abs=1e-5)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q
    assert structure_distance(one @ rotation, other) == pytest.approx(value, abs=1e-5)
    order = torch.randperm(5, generator=generator)
    assert structure_distance(one[order], other[order]) == pytest.approx(value, abs=1e-5)


def test_keys_are_those_of_the_last_block(vit: SpatialVit) -> None:
    images = noise(2, 32, 32)
    model = vit._model
    blocks = [module for name, module in model.named_modules() if name.endswith(("layers.0", "layers.1", "layer.1"))]
    pixels = vit._preprocess(images)
    with torch.no_grad():
        entering = model(pixel_values=pixels, output_hidden_states=True).hidden_states[1]
        block = blocks[-1]
        projection = next(module for name, module in block.named_modules() if name.endswith(("k_proj", "key")))
        expected = projection(block.layernorm_before(entering))
    keys_BTD = vit.encode_keys(images)
    torch.testing.assert_close(keys_BTD, expected, atol=1e-5, rtol=0)
    assert keys_BTD.shape == (2, 17, 12)  # CLS and 4 × 4 patches
    assert not keys_BTD.is_inference()
    assert vit.key_layer == "keys of layer 1 of 0-1"
    assert structure_name(vit) == "structure/tiny@1234567"


def test_keys_ignore_batches_autocast_and_earlier_calls(vit: SpatialVit) -> None:
    images = noise(3, 32, 32)
    alone = SpatialVit.of(make_dino(batch_size=1))
    torch.testing.assert_close(alone.encode_keys(images), vit.encode_keys(images), atol=1e-6, rtol=0)
    before = vit.encode_keys(images)
    vit.encode_images(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(vit.encode_keys(images), before)
    assert not vit._keys._forward_hooks
    assert vit.encode_keys([]).shape == (0, 0, 12)


def test_it_encodes_as_the_encoder_it_is_made_of(vit: SpatialVit) -> None:
    images = noise(2, 32, 32)
    assert isinstance(vit, SpatialEncoder)
    assert not isinstance(make_dino(), SpatialEncoder)
    assert torch.equal(vit.encode_images(images), make_dino().encode_images(images))
    assert (vit.name, vit.preprocessing, vit.dim) == ("tiny@1234567", "dino-bicubic32-crop32", 12)


def test_a_mask_takes_the_way_of_the_picture(vit: SpatialVit) -> None:
    half = np.zeros((32, 32), dtype=np.bool_)
    half[:, :12] = True  # One and a half of four columns of patches
    assert vit.patch_shares(half).view(4, 4)[0].tolist() == [1, 0.5, 0, 0]
    wide = np.zeros((32, 64), dtype=np.bool_)
    wide[:, :24] = True  # The crop drops 16 px on each side.
    assert vit.patch_shares(wide).view(4, 4)[2].tolist() == [1, 0, 0, 0]
    corner = np.zeros((64, 64), dtype=np.bool_)
    corner[:32, :16] = True
    shares = vit.patch_shares(corner).view(4, 4)
    assert shares[0, 0] > 0.95 and shares[0, 2] == 0 and shares[3, 0] == 0
    assert float(shares.sum()) == pytest.approx(2, abs=0.05)
    assert vit.patch_shares(~half).tolist() == pytest.approx((1 - vit.patch_shares(half)).tolist(), abs=1e-6)


def test_a_model_without_known_keys_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("boothlab.evaluation.structure.KEY_PROJECTIONS", (".elsewhere",))
    with pytest.raises(UserError, match="tiny@1234567: no attention keys"):
        SpatialVit.of(make_dino())

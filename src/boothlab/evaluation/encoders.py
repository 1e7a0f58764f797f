"""Image and text encoders for evaluation, all behind one contract: pixels in, unit-normalised fp32 features out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import CLIPModel, CLIPTextConfig, CLIPTokenizer, ViTModel

from boothlab.errors import UserError
from boothlab.evaluation.preprocessing import Images, Preprocessing


class ImageEncoder(Protocol):
    """What every metric asks of an image encoder."""

    @property
    def name(self) -> str:
        """Model id or folder name, with the short revision: goes into every result row."""

    @property
    def preprocessing(self) -> str:
        """The preprocessing's name, e.g. `clip-bicubic224-crop224`."""

    @property
    def dim(self) -> int:
        """D, the number of features."""

    def encode_images(self, images: Images) -> Tensor:
        """uint8 or [-1, 1] `images` → unit-normalised float32 [B, D] on the CPU."""


@runtime_checkable
class TextImageEncoder(ImageEncoder, Protocol):
    """An image encoder with texts in the same space (CLIP)."""

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts → unit-normalised float32 [B, D] on the CPU."""

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        """For each text, whether it is longer than the context and so encoded only in part."""


@runtime_checkable
class PatchEncoder(ImageEncoder, Protocol):
    """An image encoder that also gives its hidden layers, for perceptual distance."""

    def encode_patches(self, images: Images) -> Tensor:
        """`images` → float32 [B, L, N, D] on the CPU: L layers, N positions; not normalised."""


class ClipEncoder:
    """CLIP (Radford et al. 2021, arXiv 2103.00020): projected image and text embeddings in one space."""

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: CLIPTokenizer,
        name: str,
        preprocessing: Preprocessing,
        device: torch.device | str = "cpu",
        batch_size: int = 64,
    ) -> None:
        """Takes the model over: fp32, eval mode, frozen, on `device`. UserError when text pooling would go astray."""
        _check_text_pooling(model, tokenizer, name)
        self._model = model
        _freeze(model, device)
        self._tokenizer = tokenizer
        self._preprocess = preprocessing
        self._device = torch.device(device)
        self._batch_size = _positive(batch_size)
        self._context = _text_config(model).max_position_embeddings
        self.name = name
        self.preprocessing = preprocessing.name
        self.dim = int(model.config.projection_dim or 0)

    def shrink(self, image: Image.Image) -> Image.Image:
        """An RGB image resized and cropped as the encoder sees it; its features stay what they are, to the bit."""
        return self._preprocess.resize_and_crop(image)

    def encode_images(self, images: Images) -> Tensor:
        """uint8 or [-1, 1] `images` → unit-normalised float32 [B, D] on the CPU."""
        features = []
        for batch in _batches(images, self._batch_size):
            pixels_BCHW = self._preprocess(batch).to(self._device)
            with _exact(self._device):
                # transformers ≥ 5 returns an output object; its pooler_output is the projected embedding.
                features.append(self._model.get_image_features(pixel_values=pixels_BCHW).pooler_output.cpu())
        return _unit(features, self.dim)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts → unit-normalised float32 [B, D] on the CPU, pooled at end-of-text.

        A text longer than the context loses its last words but keeps its end-of-text token; see `truncated`.
        """
        features = []
        for start in range(0, len(texts), self._batch_size):
            batch = list(texts[start : start + self._batch_size])
            tokens = self._tokenizer(
                batch, padding=True, truncation=True, max_length=self._context, return_tensors="pt"
            ).to(self._device)
            with _exact(self._device):
                output = self._model.get_text_features(
                    input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
                )
                features.append(output.pooler_output.cpu())
        return _unit(features, self.dim)

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        """For each text, whether it is longer than the context and so encoded only in part."""
        return [
            len(self._tokenizer(text, truncation=False, verbose=False)["input_ids"]) > self._context for text in texts
        ]


class DinoEncoder:
    """DINO (Caron et al. 2021, arXiv 2104.14294): the CLS token of a ViT after the final LayerNorm."""

    def __init__(
        self,
        model: ViTModel,
        name: str,
        preprocessing: Preprocessing,
        device: torch.device | str = "cpu",
        batch_size: int = 64,
    ) -> None:
        """Takes the model over: fp32, eval mode, frozen, on `device`."""
        self._model = model
        _freeze(model, device)
        self._preprocess = preprocessing
        self._device = torch.device(device)
        self._batch_size = _positive(batch_size)
        self.name = name
        self.preprocessing = preprocessing.name
        self.dim = int(model.config.hidden_size)

    def encode_images(self, images: Images) -> Tensor:
        """uint8 or [-1, 1] `images` → unit-normalised float32 [B, D] on the CPU."""
        features = []
        for batch in _batches(images, self._batch_size):
            pixels_BCHW = self._preprocess(batch).to(self._device)
            with _exact(self._device):
                features.append(self._model(pixel_values=pixels_BCHW).last_hidden_state[:, 0].cpu())
        return _unit(features, self.dim)

    def encode_patches(self, images: Images) -> Tensor:
        """`images` → float32 [B, L, N, D] on the CPU: the patch tokens (no CLS) after each of the L blocks.

        Not normalised, and before the final LayerNorm. About 3.6 MB an image for ViT-S/16: pass a few at a time.
        """
        layers = int(self._model.config.num_hidden_layers)
        features = [torch.empty(0, layers, 0, self.dim)]
        for batch in _batches(images, self._batch_size):
            pixels_BCHW = self._preprocess(batch).to(self._device)
            with _exact(self._device):
                hidden = self._model(pixel_values=pixels_BCHW, output_hidden_states=True).hidden_states
                # hidden[0] is the embedding before the first block: raw patches, not perception.
                features.append(torch.stack([layer_BND[:, 1:] for layer_BND in hidden[1:]], dim=1).cpu())
        return torch.cat(features[1:] or features).clone()


def _freeze(model: CLIPModel | ViTModel, device: torch.device | str) -> None:
    """fp32, no dropout, no gradients: metrics must not depend on how the training module is run."""
    module: nn.Module = model
    module.to(device=torch.device(device), dtype=torch.float32).eval().requires_grad_(False)


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """No gradients, and no autocast even when the caller (a Lightning hook under precision=16-mixed) has it on."""
    with torch.inference_mode(), torch.autocast(device_type=device.type, enabled=False):
        yield


def _unit(features: list[Tensor], dim: int) -> Tensor:
    """Concatenates and normalises outside inference mode, so that the result is an ordinary tensor."""
    features_BD = torch.cat(features) if features else torch.empty(0, dim)
    return normalize(features_BD.to(torch.float32), dim=-1)


def _batches(images: Images, size: int) -> Iterator[Images]:
    for start in range(0, len(images), size):
        yield images[start : start + size]


def _positive(batch_size: int) -> int:
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, not {batch_size}")
    return batch_size


def _text_config(model: CLIPModel) -> CLIPTextConfig:
    config = model.config.text_config
    if not isinstance(config, CLIPTextConfig):
        raise TypeError(f"text_config is {type(config).__name__}, not CLIPTextConfig")
    return config


def _check_text_pooling(model: CLIPModel, tokenizer: CLIPTokenizer, name: str) -> None:
    """The place where the text is pooled must be the end-of-text token.

    transformers pools at the highest id when the config says eos_token_id=2 (as OpenAI's do), else at that id.
    """
    configured, actual = _text_config(model).eos_token_id, tokenizer.eos_token_id
    expected = len(tokenizer) - 1 if configured == 2 else configured
    if actual != expected:
        raise UserError(
            f"{name}: the tokenizer's end-of-text id is {actual} but the model pools at {expected}; "
            "give the folder of the tokenizer the model was trained with"
        )

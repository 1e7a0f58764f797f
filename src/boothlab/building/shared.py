"""What the jobs of one process share, so that a sweep loads it once: the backbone, the encoders, hashes of weights."""

from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Generic, TypeVar

import torch

from boothlab.config import BackboneConfig, Precision
from boothlab.diffusion.backbone import Backbone, load_backbone, local_folder, weights_identity
from boothlab.diffusion.lora import shed_adapters
from boothlab.evaluation.efficientnet import EfficientNetEncoder, load_efficientnet
from boothlab.evaluation.encoders import ClipEncoder, DinoEncoder
from boothlab.evaluation.loading import load_clip, load_dino
from boothlab.files import sha256_file
from boothlab.packing.pack import view_for_this_job

T = TypeVar("T")
DTYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}


class Kept(Generic[T]):
    """The values used last, at most `size` of them, by key."""

    def __init__(self, size: int):
        self.size = size
        self._values: dict[Hashable, T] = {}

    def forget(self, key: Hashable) -> None:
        """Drop the value under `key`, if there is one."""
        self._values.pop(key, None)

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value under `key`; on a miss an old one goes before the new one is made, so both never fill memory."""
        if key in self._values:
            self._values[key] = self._values.pop(key)  # now the newest
            return self._values[key]
        while len(self._values) >= self.size:
            del self._values[next(iter(self._values))]
        self._values[key] = make()
        return self._values[key]


_backbones: Kept[Backbone] = Kept(1)
_clips: Kept[ClipEncoder] = Kept(1)
_dinos: Kept[DinoEncoder] = Kept(1)
_features: Kept[EfficientNetEncoder] = Kept(1)
_identities: Kept[dict[str, str]] = Kept(8)
_encoder_identities: Kept[dict[str, str]] = Kept(8)


def _state_of(folder: Path | None) -> Hashable:
    """Sizes and times of a local folder's files: weights that were replaced are other weights. None for a hub id."""
    if folder is None or not folder.is_dir():
        return None
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)


def shared_backbone(config: BackboneConfig, device: torch.device) -> Backbone:
    """The frozen model as it was loaded: an adapter that an earlier job left on it is taken off.

    One whose own weights it changed is loaded anew. A job of a pack gets its own view of it.
    """
    key = (*vars(config).items(), str(device), _state_of(local_folder(config.source)))

    def load() -> Backbone:
        return load_backbone(
            config.source,
            name=config.name,
            resolution=config.resolution,
            device=device,
            dtype=DTYPES[config.precision],
            revision=config.revision,
            variant=config.variant,
        )

    if _backbones.get(key, load).altered:
        _backbones.forget(key)
    backbone = _backbones.get(key, load)
    shed_adapters(backbone)
    return view_for_this_job(backbone)


def shared_identity(config: BackboneConfig, hash_file: Callable[[Path], str] = sha256_file) -> dict[str, str]:
    """`weights_identity`, hashed once: the files of a real model are gigabytes."""
    key = (config.source, config.revision, _state_of(local_folder(config.source)))
    return dict(_identities.get(key, lambda: weights_identity(config.source, config.revision, hash_file)))


def shared_clip(source: str, revision: str | None, device: torch.device) -> ClipEncoder:
    """The CLIP that scores."""
    key = (source, revision, str(device), _state_of(Path(source)))
    return _clips.get(key, lambda: load_clip(source, revision, str(device)))


def shared_dino(source: str, revision: str | None, device: torch.device) -> DinoEncoder:
    """The DINO that scores."""
    key = (source, revision, str(device), _state_of(Path(source)))
    return _dinos.get(key, lambda: load_dino(source, revision, str(device)))


def shared_features(device: torch.device) -> EfficientNetEncoder:
    """EfficientNet-Lite0."""
    return _features.get(str(device), lambda: load_efficientnet(device))


def encoder_identity(
    source: str, revision: str | None, hash_file: Callable[[Path], str] = sha256_file
) -> dict[str, str]:
    """What an encoder is: the SHA-256 of each file of a local folder, or the hub id with the commit in use."""
    folder = Path(source).expanduser()
    key = (source, revision, _state_of(folder))
    return dict(_encoder_identities.get(key, lambda: _encoder_files(folder, source, revision, hash_file)))


def _encoder_files(folder: Path, source: str, revision: str | None, hash_file: Callable[[Path], str]) -> dict[str, str]:
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(source, "config.json", revision=revision)
        commit = Path(found).parent.name if isinstance(found, str) else None
        return {"hub": source, "revision": commit or revision or "unknown"}
    kept = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".json", ".txt") and path.is_file()]
    return {path.name: hash_file(path) for path in sorted(kept)}

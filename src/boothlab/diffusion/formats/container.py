"""The files themselves: safetensors with their metadata, PEFT's folders with their config, read carefully, written the
same each time."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from boothlab.diffusion.backbone import first_line
from boothlab.diffusion.formats.adapter import COMPONENTS
from boothlab.errors import UserError
from boothlab.files import read_json, sha256_bytes, sha256_file, shown

PEFT_WEIGHTS = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
_LONGEST_HEADER = 100_000_000  # bytes; safetensors' own limit


@dataclass(frozen=True)
class RawFile:
    """One safetensors file as it lies there; `config` is PEFT's, and `component` what its folder says it is for."""

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    config: Mapping[str, Any] | None = None
    component: str | None = None


@dataclass
class Found:
    """What the keys of a file say, before it is checked whether they belong together.

    `matrices` maps (component, module, kind) to the key and its tensor; kinds are `down`, `up`, `magnitude` [out] and
    the factors of `products`. `alphas` maps (component, module) to a number; a layer without an alpha has its rank for
    one. `ranks` are those that no matrix shows.
    """

    matrices: dict[tuple[str, str, str], tuple[str, Tensor]] = field(default_factory=dict)
    alphas: dict[tuple[str, str], float] = field(default_factory=dict)
    ranks: dict[tuple[str, str], int] = field(default_factory=dict)
    embeddings: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, source: Path, place: tuple[str, str, str], key: str, value: Tensor) -> None:
        """Note a matrix. Raises UserError when another key was for the same place."""
        if place in self.matrices:
            other = self.matrices[place][0]
            raise UserError(
                f"{shown(source)}: {shown(other)} and {shown(key)} are both the {place[2]} matrix of "
                f"{shown(f'{place[0]}.{place[1]}')}; take one of them out"
            )
        self.matrices[place] = (key, value)

    def layers(self) -> dict[tuple[str, str], dict[str, tuple[str, Tensor]]]:
        """Key and tensor of each kind, by (component, module)."""
        grouped: dict[tuple[str, str], dict[str, tuple[str, Tensor]]] = {}
        for (component, module, kind), held in self.matrices.items():
            grouped.setdefault((component, module), {})[kind] = held
        return grouped


def peft_files(folder: Path) -> list[Path]:
    """The weight files of a folder that PEFT wrote: its own, or those in `unet`, `text_encoder`, `text_encoder_2`."""
    places = [folder, *(folder / component for component in COMPONENTS)]
    return [place / PEFT_WEIGHTS for place in places if (place / PEFT_WEIGHTS).is_file()]


def read_raw(path: Path) -> list[RawFile]:
    """The file, or the files of PEFT's folder. Raises UserError when one cannot be read."""
    return [_read_one(file) for file in (peft_files(path) if path.is_dir() else [path])]


def adapter_digest(path: Path) -> str:
    """What an adapter is: the SHA-256 of its file, or of the digests of all files of a PEFT folder."""
    if not path.is_dir():
        return sha256_file(path)
    files = [file for weights in peft_files(path) for file in (weights, weights.with_name(PEFT_CONFIG))]
    lines = [f"{file.relative_to(path).as_posix()} {sha256_file(file)}" for file in files if file.is_file()]
    return sha256_bytes("\n".join(lines).encode("utf-8"))


def _read_one(path: Path) -> RawFile:
    try:
        _refuse_doubled(path)
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in sorted(file.keys())}
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{shown(path)}: is not a readable safetensors file ({first_line(error)}); is it cut short?"
        ) from error
    for key, value in tensors.items():
        if not value.is_floating_point():
            kind = str(value.dtype).removeprefix("torch.")
            raise UserError(f"{shown(path)}: {shown(key)} holds {kind}; matrices are of floating-point numbers")
        if value.dtype.itemsize >= 2 and not bool(torch.isfinite(value).all()):
            raise UserError(f"{shown(path)}: {shown(key)} is not finite; images would be black: train or copy it again")
    config = None
    if path.name == PEFT_WEIGHTS and (named := path.with_name(PEFT_CONFIG)).is_file():
        found = read_json(named)
        if not isinstance(found, dict):
            raise UserError(f"{shown(named)}: is not a JSON object; copy it again")
        config = found
    component = path.parent.name if path.name == PEFT_WEIGHTS and path.parent.name in COMPONENTS else None
    return RawFile(path, tensors, metadata, config, component)


def _refuse_doubled(path: Path) -> None:
    """Refuse a header that names a key twice: readers take one of the two without a word."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = file.read(size) if size <= _LONGEST_HEADER else b""

    def no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise UserError(f"{shown(path)}: {shown(key)} is there twice; write the file again")
            seen.add(key)
        return dict(pairs)

    try:
        json.loads(header, object_pairs_hook=no_doubles)
    except (ValueError, RecursionError):
        return  # the reader that follows says what is wrong with it


def safetensors_bytes(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file, the same bytes for the same content: the library shuffles metadata each time."""
    tensors = {key: value.detach().to("cpu").contiguous() for key, value in sorted(state.items())}
    data = to_safetensors(tensors, metadata=dict(metadata))
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode("ascii")
    header += b" " * (-len(header) % 8)  # tensors start at a multiple of eight bytes
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def number(value: Any, path: Path, what: str) -> float:
    """A rank or alpha out of JSON or of a tensor. Raises UserError when it is none, or not finite."""
    if isinstance(value, Tensor):
        value = value.item() if value.numel() == 1 else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{shown(path)}: {shown(what)} is not a number; the scale of its update is unknown without it")
    return float(value)

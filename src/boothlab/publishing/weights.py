"""Files of weights, copied with metadata that names no places: tensors are passed on as they are, piece by piece."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from boothlab.diffusion.backbone import first_line
from boothlab.errors import UserError
from boothlab.files import read_json, shown, write_chunks, write_json
from boothlab.progress import Bar, Reporter
from boothlab.publishing.privacy import public_settings

PIECE = 8 * 2**20
"""Bytes that are copied at once."""


def size_text(size: int) -> str:
    """A number of bytes as people read it, in decimal units: 1.2 kB, 25.2 MB, 3.44 GB."""
    if size >= 1e9:
        return f"{size / 1e9:.2f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def header_text(path: Path) -> str:
    """What stands in words in a safetensors file: the names of its tensors and its metadata, without JSON's escapes."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    metadata = {key: _plain(value) for key, value in header.get("__metadata__", {}).items()}
    return json.dumps({**header, "__metadata__": metadata}, ensure_ascii=False)


def _plain(value: str) -> object:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def shapes_of(path: Path) -> dict[str, list[int]]:
    """The shape of each tensor of a file. Raises UserError when it is no whole safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: list(file.get_slice(key).get_shape()) for key in sorted(file.keys())}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{shown(path)}: is not a readable safetensors file ({first_line(error)}); is it cut short?"
        ) from error


def public_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """A file's metadata, the settings that boothlab wrote into it without places; what loaders need stays as it is."""
    found = dict(sorted(metadata.items()))
    if "boothlab" in found:
        settings = _plain(found["boothlab"])
        found["boothlab"] = json.dumps(public_settings(settings if isinstance(settings, dict) else {}), sort_keys=True)
    return found


def copy_weights(source: Path, target: Path, reporter: Reporter) -> None:
    """Copy a safetensors file of any size with its metadata made public; the same file gives the same bytes.

    Raises UserError when the file is not whole, or cannot be written.
    """
    shapes_of(source)  # reads the header alone, and compares it with the file's length
    size = source.stat().st_size
    with reporter.bar(f"copying {size_text(size)}", -(-size // PIECE)) as bar:
        write_chunks(target, _pieces(source, bar))
    shapes_of(target)


def _pieces(source: Path, bar: Bar) -> Iterator[bytes]:
    with source.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        metadata = public_metadata(header.pop("__metadata__", {}))
        text = json.dumps({"__metadata__": metadata, **header}, separators=(",", ":")).encode("ascii")
        text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
        yield len(text).to_bytes(8, "little") + text
        while piece := file.read(PIECE):
            bar.advance()
            yield piece


def copy_config(source: Path, target: Path) -> None:
    """Copy a network's config.json without the place that it was loaded from. Raises UserError if it is none."""
    config = read_json(source)
    if not isinstance(config, dict):
        raise UserError(f"{shown(source)}: is not a JSON object; train it again")
    config.pop("_name_or_path", None)
    write_json(target, public_settings(config))

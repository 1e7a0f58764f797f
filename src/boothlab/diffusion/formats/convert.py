"""An adapter written in another tool's format, read back and compared before it is put in its place."""

import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from boothlab.diffusion.formats import cloneofsimo, kohya, peft_format
from boothlab.diffusion.formats.adapter import Adapter, as_text, same_update
from boothlab.diffusion.formats.architecture import Architecture
from boothlab.diffusion.formats.container import safetensors_bytes
from boothlab.diffusion.formats.metadata import metadata_for
from boothlab.diffusion.formats.read import FORMATS, read_adapter
from boothlab.errors import RunFailedError, UserError
from boothlab.files import shown, write_bytes


@dataclass(frozen=True)
class Written:
    """What a conversion left: its files in order, and what a user should know of them."""

    files: list[Path]
    notes: list[str]


def convert(adapter: Adapter, to: str, out: Path, architecture: Architecture | None) -> Written:
    """Write an adapter in a format: to the file `out`, or for PEFT into the folder `out`.

    Matrices and alphas are the same, bit for bit, but for cloneofsimo's format, which has no place for alpha: it is
    multiplied into up. Embeddings of new words lie beside, a file each, where the format has no place for them.
    Raises UserError for what the format cannot hold, and for files that are there already.
    """
    if to not in FORMATS:
        raise UserError(f"to={shown(to)}: is none of the formats {', '.join(FORMATS)}")
    carried = _folded(adapter) if to == cloneofsimo.NAME else adapter
    made: dict[str, bytes] = FORMATS[to].write(carried, metadata_for(carried, architecture), architecture)
    places = _places(made, to, out)
    if to != cloneofsimo.NAME:
        for word, vector in adapter.embeddings.items():
            places[_beside(out, word)] = safetensors_bytes({word: vector}, {"format": "pt"})
    for place in places:
        if place.exists():
            raise UserError(f"out={shown(place)}: is there already; name another place, or take it away first")
    _check(made, carried, architecture)
    for place, data in places.items():
        write_bytes(place, data)
    return Written(list(places), _notes(adapter, to, out))


def _folded(adapter: Adapter) -> Adapter:
    components = {
        component: {path: layer.folded() for path, layer in layers.items()}
        for component, layers in adapter.components.items()
    }
    return replace(adapter, components=components)


def _places(made: dict[str, bytes], to: str, out: Path) -> dict[Path, bytes]:
    if to == peft_format.NAME:
        return {out / name: data for name, data in made.items()}
    (data,) = made.values()
    return {out: data}


def _beside(out: Path, word: str) -> Path:
    """Where the embedding of a word goes when a format has no place for it: `disney_s1.safetensors`."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "", word) or "word"
    return out.with_name(f"{out.name.removesuffix('.safetensors')}_{plain}.safetensors")


def _check(made: dict[str, bytes], expected: Adapter, architecture: Architecture | None) -> None:
    """Read what is about to be written. Raises RunFailedError when it is not what it should be."""
    with tempfile.TemporaryDirectory() as folder:
        for name, data in made.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        names = list(made)
        again = read_adapter(Path(folder) / names[0] if len(names) == 1 else Path(folder), architecture)
    if not same_update(again, expected):
        raise RunFailedError("the converted file does not read back as it should; nothing was written")


def _notes(adapter: Adapter, to: str, out: Path) -> list[str]:
    notes = []
    uneven = {(layer.alpha, layer.rank) for _, _, layer in adapter.layers() if layer.alpha != layer.rank}
    if to == cloneofsimo.NAME and uneven:
        first = min(uneven)
        notes.append(
            f"this format has no alpha: alpha / rank ({as_text(first[0])} / {first[1]}"
            f"{', …' if len(uneven) > 1 else ''}) is multiplied into the up matrices"
        )
    texts = [path for component, path, _ in adapter.layers() if component != "unet"]
    if to == kohya.NAME and len(adapter.alphas) > 1:
        notes.append(
            f"{len(adapter.alphas)} different alphas: A1111, ComfyUI and boothlab scale each layer by its own; "
            "diffusers' load_lora_weights does not for attention layers of such a file: take to=diffusers for it"
        )
    if to == kohya.NAME and any("self_attn" in path for path in texts) and not any(
        path.endswith("out_proj") for path in texts
    ):  # fmt: skip
        notes.append("diffusers' load_lora_weights knows kohya's text encoders by their out_proj, which this one lacks")
    if to != cloneofsimo.NAME:
        notes += [
            f"the embedding of {shown(word)} lies beside it, for load_textual_inversion" for word in adapter.embeddings
        ]
    return notes

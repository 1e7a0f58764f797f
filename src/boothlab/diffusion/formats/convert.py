"""An adapter written in another tool's format, read back and compared before it is put in its place."""

import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from boothlab.diffusion.formats import cloneofsimo, kohya, peft_format
from boothlab.diffusion.formats.adapter import Adapter, Layer, LayerWeights, as_text, same_update
from boothlab.diffusion.formats.architecture import Architecture
from boothlab.diffusion.formats.container import safetensors_bytes
from boothlab.diffusion.formats.layers import NAMES
from boothlab.diffusion.formats.metadata import metadata_for
from boothlab.diffusion.formats.products import KroneckerWeights
from boothlab.diffusion.formats.read import FORMATS, read_adapter
from boothlab.errors import RunFailedError, UserError
from boothlab.files import shown, write_bytes

HOLDS = {
    "peft": {"lora", "dora", "loha", "lokr"},
    "diffusers": {"lora", "dora"},
    "kohya": {"lora", "dora", "loha", "lokr"},
    "cloneofsimo": {"lora"},
}
"""The kinds of adapters that each format has a place for."""


@dataclass(frozen=True)
class Written:
    """What a conversion left: its files in order, and what a user should know of them."""

    files: list[Path]
    notes: list[str]


def convert(adapter: Adapter, to: str, out: Path, architecture: Architecture | None) -> Written:
    """Write an adapter in a format: to the file `out`, or for PEFT into the folder `out`.

    Matrices and alphas are the same, bit for bit, but for cloneofsimo's format, which has no place for alpha: it is
    multiplied into up; and for kohya's of a LoKr layer of two whole matrices, where LyCORIS takes no notice of alpha:
    it is multiplied into the first. Embeddings of new words lie beside, a file each, where the format has no place for
    them. Raises UserError for what the format cannot hold, and for files that are there already.
    """
    if to not in FORMATS:
        raise UserError(f"to={shown(to)}: is none of the formats {', '.join(FORMATS)}")
    for variant in sorted(adapter.variants.keys() - HOLDS[to]):
        others = [name for name, held in HOLDS.items() if variant in held]
        raise UserError(f"to={to}: this format has no place for a {NAMES[variant]}; take to={' or to='.join(others)}")
    carried = _folded(adapter, to)
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


def _fold(layer: Layer, to: str) -> Layer:
    """The layer with its scale in its numbers, where the format or its readers know no other."""
    if isinstance(layer, LayerWeights):
        return layer.folded() if to == cloneofsimo.NAME else layer
    return layer.folded() if to == kohya.NAME and isinstance(layer, KroneckerWeights) else layer


def _folded(adapter: Adapter, to: str) -> Adapter:
    components = {
        component: {path: _fold(layer, to) for path, layer in layers.items()}
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
        source = Path(folder) / names[0] if len(names) == 1 else Path(folder)
        again = read_adapter(source, architecture, products=True)
    if not same_update(again, expected):
        raise RunFailedError("the converted file does not read back as it should; nothing was written")


def _notes(adapter: Adapter, to: str, out: Path) -> list[str]:
    notes = _kohya_notes(adapter) if to == kohya.NAME else []
    uneven = {(layer.alpha, layer.rank) for _, _, layer in adapter.layers() if layer.alpha != layer.rank}
    if to == cloneofsimo.NAME and uneven:
        first = min(uneven)
        notes.append(
            f"this format has no alpha: alpha / rank ({as_text(first[0])} / {first[1]}"
            f"{', …' if len(uneven) > 1 else ''}) is multiplied into the up matrices"
        )
    if to != cloneofsimo.NAME:
        notes += [
            f"the embedding of {shown(word)} lies beside it, for load_textual_inversion" for word in adapter.embeddings
        ]
    return notes


def _kohya_notes(adapter: Adapter) -> list[str]:
    """What readers of kohya's files make of an adapter otherwise than one would think."""
    notes = []
    layers = [layer for _, _, layer in adapter.layers()]
    folded = sum(isinstance(layer, KroneckerWeights) and layer.folded() is not layer for layer in layers)
    if folded:
        notes.append(
            f"LyCORIS takes no notice of alpha where both sides of a LoKr are whole: alpha / rank is multiplied into "
            f"lokr_w1 of {folded} layers"
        )
    if "dora" in adapter.variants:
        notes.append(
            "diffusers' load_lora_weights leaves dora_scale out of kohya's files, and draws something else: take "
            "to=diffusers for it"
        )
    if not adapter.variants.keys() <= {"lora", "dora"}:
        return notes
    if len(adapter.alphas) > 1:
        notes.append(
            f"{len(adapter.alphas)} different alphas: A1111, ComfyUI and boothlab scale each layer by its own; "
            "diffusers' load_lora_weights does not for attention layers of such a file: take to=diffusers for it"
        )
    texts = [path for component, path, _ in adapter.layers() if component != "unet"]
    if any("self_attn" in path for path in texts) and not any(path.endswith("out_proj") for path in texts):
        notes.append("diffusers' load_lora_weights knows kohya's text encoders by their out_proj, which this one lacks")
    return notes

"""The files of cloneofsimo's `lora_diffusion`: `unet:7:down`, layers by number, with embeddings of new words.

The number counts the layers inside modules of some classes, named in the metadata, in the order in which diffusers 0.9
to 0.14 registered them: down blocks, up blocks, middle; in a transformer block attn1, ff, attn2. The scale is always 1,
so alpha is the rank. Source: `_find_modules_v2` and `save_safeloras_with_embeds` in its lora.py.
"""

import itertools
import json
import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from boothlab.diffusion.formats.adapter import Adapter, Layer, low_rank
from boothlab.diffusion.formats.architecture import Architecture, known_architecture
from boothlab.diffusion.formats.container import Found, RawFile, safetensors_bytes
from boothlab.errors import UserError
from boothlab.files import shown

NAME = "cloneofsimo"
FILE_NAME = "lora.safetensors"
EMBED = "<embed>"
_KEY = re.compile(r"(unet|text_encoder):(\d{1,5}):(up|down)")
_BLOCK = re.compile(r"(.*transformer_blocks\.\d+)\.")
_OLD_ORDER = ("attn1", "ff", "attn2")
_CLASSES = {"CrossAttention": "Attention"}  # what diffusers renamed


def claims(key: str) -> bool:
    """Whether a key may be one of this format."""
    return _KEY.fullmatch(key) is not None


def find(raws: Sequence[RawFile], architecture: Architecture | None) -> Found:
    """Where each key of the file belongs. Raises UserError for a key that belongs nowhere."""
    (raw,) = raws
    found = Found()
    numbered: dict[str, dict[int, dict[str, tuple[str, Tensor]]]] = {}
    for key, value in raw.tensors.items():
        match = _KEY.fullmatch(key)
        if match is not None:
            numbered.setdefault(match[1], {}).setdefault(int(match[2]), {})[match[3]] = (key, value)
        elif raw.metadata.get(key) == EMBED:
            found.embeddings[key] = value
        else:
            raise UserError(
                f"{shown(raw.path)}: {shown(key)} is neither a numbered matrix nor an embedding; take it out"
            )
    for component, layers in numbered.items():
        paths = _paths(raw, component, layers, architecture)
        for index, parts in sorted(layers.items()):
            for kind, (key, value) in parts.items():
                found.add(raw.path, (component, paths[index], kind), key, value)
    return found


def _paths(
    raw: RawFile,
    component: str,
    layers: Mapping[int, Mapping[str, tuple[str, Tensor]]],
    architecture: Architecture | None,
) -> list[str]:
    """The module of each number: of the first architecture and order of registration that all shapes fit."""
    classes = _named_classes(raw, component)
    candidates = [architecture] if architecture else [known_architecture("sd15"), known_architecture("sd21")]
    wrong = ""
    for candidate, old in itertools.product(candidates, (True, False)):
        paths = numbering(candidate, component, classes, old=old)
        if len(paths) != len(layers) or set(layers) != set(range(len(paths))):
            wrong = (
                wrong or f"numbers {len(layers)} layers of the {component}, where {_name(candidate)} has {len(paths)}"
            )
            continue
        misfit = _first_misfit(candidate, component, paths, layers)
        if misfit is None:
            return paths
        wrong = wrong or f"{misfit} of {_name(candidate)}"
    raise UserError(f"{shown(raw.path)}: {wrong}; name the model that it was made for with base=")


def _name(architecture: Architecture) -> str:
    return architecture.version or architecture.name


def _first_misfit(
    architecture: Architecture,
    component: str,
    paths: Sequence[str],
    layers: Mapping[int, Mapping[str, tuple[str, Tensor]]],
) -> str | None:
    for index, parts in sorted(layers.items()):
        for kind, (key, value) in parts.items():
            expected = architecture.misfit(component, paths[index], kind, tuple(value.shape))
            if expected is not None:
                return f"{shown(key)} is {list(value.shape)}, not {list(expected)} as for {paths[index]}"
    return None


def _named_classes(raw: RawFile, component: str) -> set[str]:
    try:
        named = json.loads(raw.metadata.get(component, ""))
    except (ValueError, RecursionError):
        named = None
    if not isinstance(named, list) or not all(isinstance(one, str) for one in named):
        raise UserError(
            f"{shown(raw.path)}: its metadata does not say which modules of the {component} its numbers count; "
            "the file is not whole: take it from where it was published"
        )
    return {_CLASSES.get(one, one) for one in map(str, named)}


def numbering(architecture: Architecture, component: str, classes: set[str], *, old: bool = True) -> list[str]:
    """The modules in the order of their numbers, with the old or the present order inside a transformer block."""
    paths = [path for name, path in architecture.ancestors.get(component, []) if name in classes]
    if not old or component != "unet":
        return paths
    result: list[str] = []
    for block, group in itertools.groupby(paths, key=_block):
        inner = list(group)
        if block:
            inner.sort(key=_old_place)
        result += inner
    return result


def write(adapter: Adapter, metadata: Mapping[str, str], architecture: Architecture | None) -> dict[str, bytes]:
    """The one file of this format, with the scale folded into up. Raises UserError for layers that it cannot number."""
    if architecture is None:
        raise UserError("to=cloneofsimo: numbers the layers of a model, and this one is not known; name it with base=")
    if adapter.components.get("text_encoder_2"):
        raise UserError("to=cloneofsimo: has no place for a second text encoder; take to=kohya or to=diffusers")
    state: dict[str, Tensor] = {}
    said: dict[str, str] = {}
    for component, layers in adapter.components.items():
        if not layers:
            continue
        classes, held = _classes_for(architecture, component, layers), low_rank(layers)
        for index, path in enumerate(numbering(architecture, component, classes)):
            layer = held[path].folded()
            state[f"{component}:{index}:down"], state[f"{component}:{index}:up"] = layer.down, layer.up
            said[f"{component}:{index}:rank"] = str(layer.rank)
        old_name = {"CrossAttention"} if "Attention" in classes else set()
        said[component] = json.dumps(sorted(classes | old_name))
    for word, vector in adapter.embeddings.items():
        state[word], said[word] = vector, EMBED
    return {FILE_NAME: safetensors_bytes(state, {**metadata, **said})}


def _block(path: str) -> str:
    """The transformer block that a layer is in, or nothing."""
    match = _BLOCK.match(path)
    return match[1] if match else ""


def _old_place(path: str) -> int:
    """Where a layer stood in its transformer block."""
    return _OLD_ORDER.index(_BLOCK.sub("", path).split(".")[0])


def _classes_for(architecture: Architecture, component: str, layers: Mapping[str, Layer]) -> set[str]:
    """The classes whose layers are just these: the format has no way to leave one of them out."""
    held: dict[str, set[str]] = {}
    for name, path in architecture.ancestors.get(component, []):
        held.setdefault(name, set()).add(path)
    classes = {name for name, paths in held.items() if paths & layers.keys()}
    counted = set().union(*(held[name] for name in classes))
    if wrong := sorted(counted ^ layers.keys()):
        how = "leaves out" if wrong[0] in counted else "cannot number"
        first = f"{component}.{wrong[0]}"
        raise UserError(
            f"to=cloneofsimo: numbers all attention layers of a network or none, and {len(wrong)} do not fit that "
            f"(first {shown(first)}, which {'the adapter ' if how == 'leaves out' else 'it '}{how}); take to=kohya or "
            "to=diffusers"
        )
    return classes

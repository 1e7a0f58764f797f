"""Any tool's adapter file into one form: which format it is, whether its keys belong together, what they fit."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from boothlab.diffusion.formats import cloneofsimo, diffusers_format, kohya, peft_format, prefixes
from boothlab.diffusion.formats.adapter import Adapter, Layer, LayerWeights
from boothlab.diffusion.formats.architecture import Architecture, recognise
from boothlab.diffusion.formats.container import Found, RawFile, read_raw
from boothlab.diffusion.formats.layers import build_layers
from boothlab.errors import UserError
from boothlab.files import shown

FORMATS: dict[str, ModuleType] = {one.NAME: one for one in (peft_format, diffusers_format, kohya, cloneofsimo)}
_PRODUCTS = {".hada_": "a LoHa of LyCORIS", ".lokr_": "a LoKr of LyCORIS"}
_OTHER_METHODS = {
    ".hada_t": "a LoHa with third matrices (Tucker decomposition)",
    ".lokr_t": "a LoKr with a third matrix (Tucker decomposition)",
    ".oft_": "an OFT adapter",
    ".lora_mid.": "a LoCon with a third matrix (Tucker decomposition)",
    ".on_input": "an IA³ adapter",
    "lora_embedding_": "a LoRA of an embedding table",
    ".lora_B.bias": "a LoRA with biases",
}
"""What a part of a key gives away; LoRA of convolutions (LoCon) is read like any other."""


def read_adapter(
    path: Path,
    architecture: Architecture | None = None,
    *,
    repair: bool = False,
    prefix: str | None = None,
    products: bool = False,
) -> Adapter:
    """Read an adapter of any known format, from a file or a folder of PEFT's.

    Every key must find a layer of `architecture`, or of the known one that is nearest where none is given; without
    either, only the keys among themselves are checked. `repair` mends names with a wrapper's prefix, `prefix` takes a
    named one off. `products` lets LoHa and LoKr in, for callers that can do without down and up matrices. Raises
    UserError, one line that names a key, for all that cannot be used as it is.
    """
    raws = read_raw(path)
    if not raws or not any(raw.tensors for raw in raws):
        raise UserError(f"{shown(path)}: holds no matrices; it is no adapter")
    _refuse_other_methods(raws, products=products)
    if prefix:
        raws = prefixes.without_prefix(raws, prefix)
    raws, notes = prefixes.mend(raws, repair=repair)
    module = _format_of(raws)
    found: Found = module.find(raws, architecture)
    source = raws[0].path if len(raws) == 1 else path
    if architecture is not None:
        check_fit(found, architecture, source)
    components = build_layers(found, source)
    if architecture is not None:
        _check_products(components, found, architecture, source)
    adapter = Adapter(
        components,
        found.embeddings,
        {key: value for raw in raws for key, value in raw.metadata.items()},
        module.NAME,
        (*notes, *found.notes),
    )
    if architecture is None and len(nearest := recognise(adapter.layers())) == 1:
        check_fit(found, nearest[0], source)
        _check_products(components, found, nearest[0], source)
    return adapter


def refuse_zero(adapter: Adapter, path: Path) -> None:
    """Raise UserError when the adapter changes nothing: it was never trained, or lost its numbers on the way."""
    if adapter.is_zero and not adapter.embeddings:
        plain = adapter.variants.keys() <= {"lora", "dora"}
        what = "all up matrices are" if plain else "a factor of each layer is"
        raise UserError(f"{shown(path)}: its update is zero ({what}); it was not trained, or not converted well")


def _refuse_other_methods(raws: Sequence[RawFile], *, products: bool) -> None:
    refused = _OTHER_METHODS | ({} if products else _PRODUCTS)
    read = "LoRA, DoRA, LoHa and LoKr are read" if products else "only LoRA and DoRA are read here"
    for raw in raws:
        for key in raw.tensors:
            what = next((what for part, what in refused.items() if part in key), None)
            if key.endswith((".diff", ".diff_b")):
                what = "whole weight differences"
            if what is not None:
                raise UserError(f"{shown(raw.path)}: {shown(key)} belongs to {what}; {read}")


def _format_of(raws: Sequence[RawFile]) -> ModuleType:
    """The format that claims all keys. Raises UserError when none does, or two share them."""
    claimed: dict[str, str] = {}
    for raw in raws:
        strange = []
        for key in raw.tensors:
            if raw.metadata.get(key) == cloneofsimo.EMBED:
                claimed.setdefault(cloneofsimo.NAME, key)
                continue
            name = next((name for name, module in FORMATS.items() if module.claims(key)), None)
            if name is None:
                strange.append(key)
            else:
                claimed.setdefault(name, key)
        if strange:
            raise UserError(
                f"{shown(raw.path)}: {len(strange)} of {len(raw.tensors)} keys are of no format that is read "
                f"({', '.join(FORMATS)}), first {shown(strange[0])}; take them out, or name a prefix to take off with "
                "prefix= of `boothlab convert`"
            )
    if len(claimed) > 1:
        mixed = " and ".join(f"{name} ({shown(key)})" for name, key in sorted(claimed.items()))
        raise UserError(f"{shown(raws[0].path)}: mixes keys of {mixed}; write it again with one tool")
    return FORMATS[next(iter(claimed))]


def check_fit(found: Found, architecture: Architecture, path: Path) -> None:
    """Raise UserError unless every matrix has a layer of the architecture, of its shape."""
    keys = {place: key for place, (key, _) in found.matrices.items()}
    lost = sorted(key for (c, module, _), key in keys.items() if module not in architecture.shapes.get(c, {}))
    matched = len(keys) - len(lost)
    lost += sorted(f"{c}.{module}.alpha" for c, module in found.alphas if module not in architecture.shapes.get(c, {}))
    name = architecture.version or f"the backbone {architecture.name}"
    if lost:
        raise UserError(
            f"{shown(path)}: has {len(keys)} matrices, of which {matched} found a layer of {name} "
            f"(without one: {', '.join(map(shown, lost[:3]))}{', …' if len(lost) > 3 else ''}); it was made for "
            "another architecture, or its keys carry another tool's prefix"
        )
    for (component, module, kind), (key, value) in sorted(found.matrices.items()):
        if kind not in ("down", "up", "magnitude"):
            continue  # factors are checked together
        expected = architecture.misfit(component, module, kind, tuple(value.shape))
        if expected is not None:
            raise UserError(
                f"{shown(path)}: {shown(key)} is {list(value.shape)}, where {component}.{module} of {name} takes "
                f"{list(expected)}; it was made for another architecture"
            )


def _check_products(
    components: Mapping[str, Mapping[str, Layer]], found: Found, architecture: Architecture, path: Path
) -> None:
    """Raise UserError unless every LoHa or LoKr makes an update of its layer's shape."""
    name = architecture.version or f"the backbone {architecture.name}"
    for component, layers in components.items():
        for module, layer in layers.items():
            if isinstance(layer, LayerWeights) or architecture.takes(component, module, layer):
                continue
            key = found.matrices[component, module, min(layer.tensors)][0]
            raise UserError(
                f"{shown(path)}: {shown(key)} and its factors make {list(layer.update_shape)}, where "
                f"{component}.{module} of {name} takes {list(architecture.flat_shape(component, module))}; "
                "it was made for another architecture"
            )

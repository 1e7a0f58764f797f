"""The layers that a file's keys make: each whole, its matrices of one rank, and all of kinds that go together."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from boothlab.diffusion.formats.adapter import COMPONENTS, Layer, LayerWeights, plain_shape
from boothlab.diffusion.formats.container import Found
from boothlab.diffusion.formats.products import HADAMARD, KRONECKER, HadamardWeights, KroneckerWeights, rank_of
from boothlab.errors import UserError
from boothlab.files import shown

NAMES = {"lora": "LoRA", "dora": "DoRA", "loha": "LoHa", "lokr": "LoKr"}
"""The kinds of adapters as people write them."""
_NOT_WHOLE = "the file is not whole: copy or convert it again"
Parts = Mapping[str, tuple[str, Tensor]]


def build_layers(found: Found, path: Path) -> dict[str, dict[str, Layer]]:
    """The layers by component and module. Raises UserError for half a layer, and for kinds that no loader mixes."""
    components: dict[str, dict[str, Layer]] = {name: {} for name in COMPONENTS}
    grouped = found.layers()
    for component, module in sorted(grouped.keys() | found.alphas.keys()):
        parts = grouped.get((component, module), {})
        where = f"{component}.{module}"
        alpha, rank = found.alphas.get((component, module)), found.ranks.get((component, module))
        components[component][module] = _layer(parts, where, alpha, rank, path, found.notes)
    held = {name: layers for name, layers in components.items() if layers}
    _refuse_mixtures(held, path)
    return held


def _layer(parts: Parts, where: str, alpha: float | None, rank: int | None, path: Path, notes: list[str]) -> Layer:
    if not parts:
        raise UserError(f"{shown(path)}: {shown(where)} has an alpha and no matrices; {_NOT_WHOLE}")
    families = [(HADAMARD, "hada_"), (KRONECKER, "lokr_")]
    family = next((names for names, start in families if any(kind.startswith(start) for kind in parts)), None)
    if family is None:
        return _low_rank(parts, alpha, path)
    if strange := sorted(parts.keys() - set(family)):
        key = parts[strange[0]][0]
        raise UserError(
            f"{shown(path)}: {shown(key)} stands beside the factors of a {'LoHa' if family is HADAMARD else 'LoKr'}; "
            "a layer of two kinds at once is not read"
        )
    if family is HADAMARD:
        return _hadamard(parts, alpha, path)
    return _kronecker(parts, alpha, rank, path, notes)


def _low_rank(parts: Parts, alpha: float | None, path: Path) -> LayerWeights:
    for kind in ("down", "up"):
        if kind not in parts:
            there = next(iter(parts.values()))[0]
            raise UserError(f"{shown(path)}: {shown(there)} has no {kind} matrix beside it; {_NOT_WHOLE}")
    (down_key, down), (up_key, up) = parts["down"], parts["up"]
    shapes = [plain_shape(tuple(value.shape)) for value in (down, up)]
    if len(shapes[0]) not in (2, 4) or len(shapes[1]) != 2 or shapes[0][0] != shapes[1][1] or 0 in shapes[0]:
        raise UserError(
            f"{shown(path)}: {shown(down_key)} is {list(down.shape)} and {shown(up_key)} {list(up.shape)}; "
            "they are to be [rank, in] and [out, rank]"
        )
    key, magnitude = parts.get("magnitude", ("", None))
    if magnitude is not None and magnitude.shape[0] != up.shape[0]:
        raise UserError(
            f"{shown(path)}: {shown(key)} has {len(magnitude)} numbers, one for each row of a weight, where "
            f"{shown(up_key)} has {up.shape[0]} rows"
        )
    return LayerWeights(down, up, float(down.shape[0] if alpha is None else alpha), magnitude)


def _hadamard(parts: Parts, alpha: float | None, path: Path) -> HadamardWeights:
    first = next(iter(parts.values()))[0]
    for kind in HADAMARD:
        if kind not in parts:
            raise UserError(f"{shown(path)}: {shown(first)} has no {kind} beside it; {_NOT_WHOLE}")
    factors = {kind: value for kind, (_, value) in parts.items()}
    rank = rank_of(factors) or 1
    layer = HadamardWeights(factors, float(rank if alpha is None else alpha), rank)
    if not layer.is_consistent:
        raise UserError(
            f"{shown(path)}: {shown(first)} and its factors are {_shapes(factors)}; a LoHa's are [out, rank] and "
            "[rank, in], twice the same"
        )
    return layer


def _kronecker(
    parts: Parts, alpha: float | None, said_rank: int | None, path: Path, notes: list[str]
) -> KroneckerWeights:
    first = next(iter(parts.values()))[0]
    factors = {kind: value for kind, (_, value) in parts.items()}
    for side in ("lokr_w1", "lokr_w2"):
        if side not in factors and (lacking := {f"{side}_a", f"{side}_b"} - factors.keys()):
            name = side if len(lacking) == 2 else min(lacking)
            raise UserError(f"{shown(path)}: {shown(first)} has no {name} beside it; {_NOT_WHOLE}")
    rank = rank_of(factors) or said_rank or 1
    layer = KroneckerWeights(factors, float(rank if alpha is None else alpha), rank)
    if not layer.is_consistent:
        raise UserError(
            f"{shown(path)}: {shown(first)} and its factors are {_shapes(factors)}; each side of a LoKr is one matrix, "
            "or two of one rank"
        )
    return layer if said_rank or not layer.is_whole else _ranked(layer, alpha, notes)


def _ranked(layer: KroneckerWeights, alpha: float | None, notes: list[str]) -> KroneckerWeights:
    """A LoKr of two whole sides with the rank that LyCORIS had: it writes it as alpha, which it does not scale by.

    Where that cannot have been the rank, it is the least with which PEFT leaves w2 whole.
    """
    least = layer.least_rank
    rank = int(alpha) if alpha is not None and float(alpha).is_integer() and alpha >= least else least
    if alpha is not None and alpha != rank:
        note = "LoKr layers of two whole matrices are scaled by 1, whatever their alpha, as in LyCORIS: it is the rank"
        if note not in notes:
            notes.append(note)
    return KroneckerWeights(layer.factors, float(rank), rank)


def _shapes(factors: Mapping[str, Tensor]) -> str:
    return ", ".join(str(list(value.shape)) for _, value in sorted(factors.items()))


def _refuse_mixtures(components: Mapping[str, Mapping[str, Layer]], path: Path) -> None:
    """Refuse what no loader puts into one adapter: LoRA beside LoHa, and DoRA beside LoRA in one network."""
    firsts: dict[str, str] = {}
    for component, layers in components.items():
        here: dict[str, str] = {}
        for module, layer in layers.items():
            here.setdefault(layer.variant, f"{component}.{module}")
        if len(here) > 1:
            _refuse_two(here, path)
        firsts = {**here, **firsts}
    if not firsts.keys() <= {"lora", "dora"} and len(firsts) > 1:
        _refuse_two(firsts, path)


def _refuse_two(firsts: Mapping[str, str], path: Path) -> None:
    (one, first), (other, second) = sorted(firsts.items())[:2]
    raise UserError(
        f"{shown(path)}: mixes {NAMES[one]} ({shown(first)}) and {NAMES[other]} ({shown(second)}), which no loader has "
        "in one adapter; train or save them apart"
    )

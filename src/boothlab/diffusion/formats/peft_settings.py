"""Rank and alpha as PEFT's configs say them, in `adapter_config.json` and in the metadata of diffusers' files."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft.tuners.lokr.layer import factorization
from peft.utils.other import get_pattern_key

from boothlab.diffusion.formats.adapter import LayerWeights
from boothlab.diffusion.formats.container import number
from boothlab.diffusion.formats.products import KroneckerWeights, ProductWeights
from boothlab.errors import UserError
from boothlab.files import shown


def settings_alpha(
    settings: Mapping[str, Any], path: Path, component: str, module: str, rank: int, *, is_dora: bool
) -> float:
    """The alpha of one layer by PEFT's settings; of rank-stabilised LoRA, alpha √rank, which scales the same by rank.

    Raises UserError when the settings name another rank, or are not a DoRA's when the layer has magnitudes.
    """
    where = shown(f"{component}.{module}")
    if bool(settings.get("use_dora")) != is_dora:
        what = ("no DoRA", "has") if is_dora else ("a DoRA", "lacks")
        raise UserError(
            f"{shown(path)}: its settings say that it is {what[0]}, and {where} {what[1]} magnitudes; "
            "the settings are another file's"
        )
    said = settings_rank(settings, path, component, module, rank)
    alpha = number(_of_layer(settings, "lora_alpha", "alpha_pattern", component, module, rank), path, "lora_alpha")
    return alpha * math.sqrt(said) if settings.get("use_rslora") else alpha


def product_alpha(settings: Mapping[str, Any], path: Path, component: str, module: str) -> float:
    """The alpha of one layer of a LoHa or LoKr by PEFT's settings. Raises UserError when they have none."""
    return number(_of_layer(settings, "alpha", "alpha_pattern", component, module, None), path, "alpha")


def settings_rank(settings: Mapping[str, Any], path: Path, component: str, module: str, rank: int | None) -> int:
    """The rank of one layer. Raises UserError when it is not that of its matrices, or not a whole number."""
    said = number(_of_layer(settings, "r", "rank_pattern", component, module, rank), path, "r")
    if said != rank and (rank is not None or said < 1 or not said.is_integer()):
        theirs = "that is no rank" if rank is None else f"its matrices have rank {rank}"
        raise UserError(
            f"{shown(path)}: its settings give {shown(f'{component}.{module}')} rank {said:g}, {theirs}; "
            "the settings are another file's"
        )
    return int(said)


def _of_layer(
    settings: Mapping[str, Any], name: str, pattern_name: str, component: str, module: str, default: int | None
) -> Any:
    """The value for a layer: its pattern's, or the common one, found as PEFT finds it."""
    patterns = settings.get(pattern_name) or {}
    names = [module] if component == "unet" else [module, module.removeprefix("text_model.")]
    for one in names if isinstance(patterns, Mapping) else ():
        try:
            key = get_pattern_key(list(patterns), one)
        except Exception:  # a pattern is a regular expression, and may be a broken one
            continue
        if key in patterns:
            return patterns[key]
    return settings.get(name, default)


def lora_settings(layers: Mapping[str, LayerWeights], component: str) -> dict[str, Any]:
    """`r`, `lora_alpha` and `target_modules` for PEFT, with patterns where layers differ, and `use_dora` of a DoRA.

    No more fields than these: older versions of PEFT refuse those they do not know.
    """
    is_dora = any(layer.magnitude is not None for layer in layers.values())
    return _scales(layers, component, "lora_alpha") | ({"use_dora": True} if is_dora else {})


def product_settings(
    layers: Mapping[str, ProductWeights], component: str, shapes: Mapping[str, tuple[int, ...]] | None
) -> dict[str, Any]:
    """The same of a LoHa or LoKr; PEFT makes a LoKr's factors from settings, which must give them the shapes they have.

    `shapes` are those of the weights. Raises UserError for a LoKr without them, or that no settings can give.
    """
    settings = _scales(layers, component, "alpha")
    held = {path: layer for path, layer in layers.items() if isinstance(layer, KroneckerWeights)}
    if not held:
        return settings
    if shapes is None:
        raise UserError("to=peft: a LoKr needs the shapes of its model, and this one is not known; name it with base=")
    return settings | _kronecker_settings(held, component, shapes)


def _scales(
    layers: Mapping[str, LayerWeights] | Mapping[str, ProductWeights], component: str, alpha_name: str
) -> dict[str, Any]:
    """Ranks, alphas and targets. A text encoder's modules are named without `text_model.`: that matches both ways."""
    names = {path: path if component == "unet" else path.removeprefix("text_model.") for path in sorted(layers)}
    ranks = {path: layer.rank for path, layer in layers.items()}
    alphas = {path: layer.alpha for path, layer in layers.items()}
    rank, alpha = _commonest(list(ranks.values())), _commonest(list(alphas.values()))
    anchor = "^" if component == "unet" else ""  # `conv_in` is no pattern for every name that ends so
    settings: dict[str, Any] = {
        "r": int(rank),
        alpha_name: int(alpha) if float(alpha).is_integer() else alpha,
        "target_modules": list(names.values()),
    }
    if len(set(ranks.values())) > 1:
        settings["rank_pattern"] = {anchor + names[p]: ranks[p] for p in names if ranks[p] != rank}
    if len(set(alphas.values())) > 1:
        settings["alpha_pattern"] = {anchor + names[p]: alphas[p] for p in names if alphas[p] != alpha}
    return settings


def _commonest(values: list[Any]) -> Any:
    """The value that most layers have, the smallest of several such."""
    return min(set(values), key=lambda value: (-values.count(value), value))


def _kronecker_settings(
    layers: Mapping[str, KroneckerWeights], component: str, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """`decompose_both` and `decompose_factor` with which PEFT makes all layers as they are."""
    both = any("lokr_w1_a" in layer.factors for layer in layers.values())
    sides = sorted({size for layer in layers.values() for size in layer.side("lokr_w1")})
    wrong = ""
    for factor in (-1, *sides):
        unlike = next((path for path in sorted(layers) if not _gives(layers[path], shapes[path], factor, both)), None)
        if unlike is None:
            return {"decompose_both": both, "decompose_factor": factor}
        wrong = wrong or unlike
    raise UserError(
        f"to=peft: no decompose_factor of PEFT's LoKr gives the factors their shapes (first "
        f"{shown(f'{component}.{wrong}')}); LyCORIS' own names hold it: take to=kohya"
    )


def _gives(layer: KroneckerWeights, shape: tuple[int, ...], factor: int, both: bool) -> bool:
    """Whether PEFT, with these settings, makes the factors as the layer has them: its `LoKrLayer.update_layer`."""
    (left_out, right_out), (left_in, right_in) = factorization(shape[0], factor), factorization(shape[1], factor)
    kernel, rank = shape[2:], layer.rank
    made: dict[str, tuple[int, ...]] = {}
    if both and rank < max(left_out, left_in) / 2:
        made |= {"lokr_w1_a": (left_out, rank), "lokr_w1_b": (rank, left_in)}
    else:
        made["lokr_w1"] = (left_out, left_in)
    if rank >= max(right_out, right_in) / 2:
        made["lokr_w2"] = (right_out, right_in, *kernel)
    else:
        made |= {"lokr_w2_a": (right_out, rank), "lokr_w2_b": (rank, right_in * math.prod(kernel))}
    return made == {kind: tuple(value.shape) for kind, value in layer.factors.items()}

"""Rank and alpha as PEFT's configs say them, in `adapter_config.json` and in the metadata of diffusers' files."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft.utils.other import get_pattern_key

from boothlab.diffusion.formats.adapter import LayerWeights
from boothlab.diffusion.formats.container import number
from boothlab.errors import UserError
from boothlab.files import shown


def settings_alpha(settings: Mapping[str, Any], path: Path, component: str, module: str, rank: int) -> float:
    """The alpha of one layer by PEFT's settings; of rank-stabilised LoRA, alpha √rank, which scales the same by rank.

    Raises UserError when the settings name another rank, or something that is more than down, up and alpha.
    """
    if settings.get("use_dora"):
        raise UserError(f"{shown(path)}: is a DoRA, which scales whole rows of a weight; only LoRA is read")
    said = number(_of_layer(settings, "r", "rank_pattern", component, module, rank), path, "r")
    if said != rank:
        raise UserError(
            f"{shown(path)}: its settings give {shown(f'{component}.{module}')} rank {said:g}, its matrices have rank "
            f"{rank}; the settings are another file's"
        )
    alpha = number(_of_layer(settings, "lora_alpha", "alpha_pattern", component, module, rank), path, "lora_alpha")
    return alpha * math.sqrt(rank) if settings.get("use_rslora") else alpha


def _of_layer(
    settings: Mapping[str, Any], name: str, pattern_name: str, component: str, module: str, default: int
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


def settings_of(layers: Mapping[str, LayerWeights], component: str) -> dict[str, Any]:
    """`r`, `lora_alpha` and `target_modules` for PEFT, with patterns where layers differ.

    No more fields than these: older versions of PEFT refuse those they do not know. A text encoder's modules are named
    without `text_model.`, which matches them with and without.
    """
    names = {path: path if component == "unet" else path.removeprefix("text_model.") for path in sorted(layers)}
    ranks = {path: layer.rank for path, layer in layers.items()}
    alphas = {path: layer.alpha for path, layer in layers.items()}
    rank, alpha = _commonest(list(ranks.values())), _commonest(list(alphas.values()))
    anchor = "^" if component == "unet" else ""  # `conv_in` is no pattern for every name that ends so
    settings: dict[str, Any] = {
        "r": int(rank),
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
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

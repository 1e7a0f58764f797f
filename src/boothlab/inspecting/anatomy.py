"""The adapter's anatomy: how much of which layer it changes, and in how many directions."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from boothlab.diffusion.backbone import Backbone
from boothlab.diffusion.lora import ADAPTER
from boothlab.inspecting.bench import Bench
from boothlab.inspecting.heat import scale_for_plotly
from boothlab.inspecting.low_rank import UpdateNumbers, measure_dense, measure_update
from boothlab.inspecting.sections import Cell, Chart, Fact, Section, Table
from boothlab.tracking import metrics

ABOUT = (
    "The update of a layer is ΔW = scale · alpha/rank · B·A. Its Frobenius norm beside that of the weight it "
    "changes says how hard the layer was turned; a block's is the root of the sum of squares over its layers. "
    "Effective rank is exp(H(σ/Σσ)) (Roy & Vetterli 2007), stable rank Σσ²/σ²_max: an effective rank near the "
    "adapter's own rank uses all of it, one far below says that a smaller rank would have done. All from the QR "
    "factors of A and B, never from ΔW."
)
_KINDS = (
    ("self-attention", r"\.attn1\.|self_attn"),
    ("cross-attention", r"\.attn2\."),
    ("feed-forward", r"\.ff\.|\.mlp\."),
    ("convolution", r"\.conv\d?|conv_|\.resnets\."),
    ("projection", r"proj_in|proj_out"),
)
_BLOCK = re.compile(r"(down_blocks\.\d+|mid_block|up_blocks\.\d+|(?:text_model\.)?encoder\.layers\.\d+)")


@dataclass(frozen=True)
class AdaptedLayer:
    """One adapted layer: its network (unet, text_encoder, …), its name, block and kind, and its update's numbers."""

    network: str
    name: str
    block: str
    kind: str
    update: UpdateNumbers


def kind_of(name: str) -> str:
    """What a layer is, by its name."""
    return next((kind for kind, pattern in _KINDS if re.search(pattern, f".{name}")), "other")


def block_of(name: str) -> str:
    """The block a layer belongs to: down_blocks.1, mid_block, layers.3, …"""
    found = _BLOCK.search(name)
    return found[1].removeprefix("text_model.").removeprefix("encoder.") if found else "other"


def dissect(backbone: Backbone) -> list[AdaptedLayer]:
    """Every adapted layer of a backbone, from the first block to the last, and within a block in its own order.

    Updates that are no product of two matrices (LoHa, LoKr) are measured densely; DoRA's as its low-rank part.
    """
    networks: dict[str, nn.Module] = {"unet": backbone.unet, **backbone.text_encoders}
    found = []
    for network, module in networks.items():
        layers = [(name, one) for name, one in module.named_modules() if isinstance(one, BaseTunerLayer)]
        for name, layer in sorted(layers, key=lambda one: _order(block_of(one[0]))):  # stable: the rest as it was
            found.append(AdaptedLayer(network, name, block_of(name), kind_of(name), _measure(layer)))
    return found


def _measure(layer: Any) -> UpdateNumbers:
    base = layer.get_base_layer().weight
    if not isinstance(layer, LoraLayer):
        return measure_dense(layer.get_delta_weight(ADAPTER), base, int(layer.r[ADAPTER]))
    up, down = layer.lora_B[ADAPTER].weight, layer.lora_A[ADAPTER].weight
    return measure_update(up, down, float(layer.scaling[ADAPTER]), base)


def relative_norm(layers: Sequence[AdaptedLayer]) -> float:
    """‖ΔW‖/‖W‖ of several layers as one: roots of sums of squares."""
    base = math.sqrt(math.fsum(one.update.base_norm**2 for one in layers))
    return _norm(layers) / base if base > 0 else 0.0


def _norm(layers: Sequence[AdaptedLayer]) -> float:
    return math.sqrt(math.fsum(one.update.norm**2 for one in layers))


def grouped(layers: Sequence[AdaptedLayer]) -> dict[tuple[str, str], list[AdaptedLayer]]:
    """The layers by network and block, in their own order."""
    found: dict[tuple[str, str], list[AdaptedLayer]] = {}
    for one in layers:
        found.setdefault((one.network, one.block), []).append(one)
    return dict(sorted(found.items(), key=lambda item: (item[0][0] != "unet", item[0][0], _order(item[0][1]))))


def _order(block: str) -> tuple[int, str]:
    """The way through a UNet: down, middle, up."""
    stages = ("down_blocks", "mid_block", "up_blocks", "layers")
    place = next((index for index, stage in enumerate(stages) if block.startswith(stage)), len(stages))
    number = re.search(r"\d+$", block)
    return place * 1000 + (int(number[0]) if number else 0), block


def anatomy(bench: Bench) -> Section:
    """Norms and ranks by layer and by block."""
    layers = dissect(bench.backbone)
    section = Section("anatomy", "Adapter anatomy", ABOUT)
    by_network = {network: [one for one in layers if one.network == network] for network in _networks(layers)}
    for network, mine in by_network.items():
        section.facts.append(
            Fact(f"{network}: relative update", f"{relative_norm(mine):.2%}", f"‖ΔW‖/‖W‖ over {len(mine)} layers")
        )
        rank = _mean_rank(mine)
        section.facts.append(
            Fact(f"{network}: effective rank", f"{rank:.1f}", f"of {max(o.update.rank for o in mine)}")
        )
    section.charts += [_bars(layers), _ranks(layers), _heat(layers)]
    section.tables += [_blocks(layers), _layers(layers)]
    if idle := [one for one in layers if one.update.norm == 0]:
        section.warnings.append(f"{len(idle)} of {len(layers)} layers have an update of zero, first {idle[0].name}.")
    if unet := by_network.get("unet"):
        section.numbers[metrics.INSPECT_UPDATE_RELATIVE] = relative_norm(unet)
        section.numbers[metrics.INSPECT_EFFECTIVE_RANK] = _mean_rank(unet)
    return section


def _networks(layers: Sequence[AdaptedLayer]) -> list[str]:
    return list(dict.fromkeys(one.network for one in layers))


def _mean_rank(layers: Sequence[AdaptedLayer]) -> float:
    return math.fsum(one.update.effective_rank for one in layers) / len(layers)


def _mean_stable(layers: Sequence[AdaptedLayer]) -> float:
    return math.fsum(one.update.stable_rank for one in layers) / len(layers)


def _by_kind(layers: Sequence[AdaptedLayer]) -> Iterator[tuple[str, list[int]]]:
    """The places of the layers of each kind that occurs."""
    for kind in (*(name for name, _ in _KINDS), "other"):
        if places := [place for place, one in enumerate(layers) if one.kind == kind]:
            yield kind, places


def _bars(layers: Sequence[AdaptedLayer]) -> Chart:
    traces: list[dict[str, Any]] = []
    for kind, places in _by_kind(layers):
        mine = [layers[place] for place in places]
        hover = "%{customdata}<br>‖ΔW‖/‖W‖ %{y:.4f}<extra></extra>"
        traces.append(
            {"type": "bar", "name": kind, "x": places, "y": [_short(one.update.relative) for one in mine], "width": 1}
            | {"customdata": [f"{one.network} {one.name}" for one in mine], "hovertemplate": hover}
        )
    return Chart("anatomy-norms", "How hard each layer is turned", traces, _axes(layers, "‖ΔW‖ / ‖W‖"), 400)


def _ranks(layers: Sequence[AdaptedLayer]) -> Chart:
    places = list(range(len(layers)))
    names = [f"{one.network} {one.name}" for one in layers]
    hover = "%{customdata}<br>%{y:.2f}<extra></extra>"
    traces = [
        {"type": "scatter", "mode": "markers", "name": label, "x": places, "y": values}
        | {"customdata": names, "hovertemplate": hover}
        for label, values in (
            ("effective rank", [_short(one.update.effective_rank) for one in layers]),
            ("stable rank", [_short(one.update.stable_rank) for one in layers]),
        )
    ]
    rank: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines",
        "name": "adapter's rank",
        "x": places,
        "line": {"dash": "dot"},
    }
    traces.append(rank | {"y": [one.update.rank for one in layers]})
    return Chart("anatomy-ranks", "In how many directions", traces, _axes(layers, "rank"), 360)


def _heat(layers: Sequence[AdaptedLayer]) -> Chart:
    groups = grouped(layers)
    kinds = [kind for kind, _ in _by_kind(layers)]
    cells = [[_cell(mine, kind) for kind in kinds] for mine in groups.values()]
    trace: dict[str, Any] = {
        "type": "heatmap",
        "z": cells,
        "x": kinds,
        "y": [f"{network} {block}" for network, block in groups],
    }
    trace |= {"colorscale": scale_for_plotly(), "hoverongaps": False, "colorbar": {"title": {"text": "‖ΔW‖/‖W‖"}}}
    trace["hovertemplate"] = "%{y}, %{x}<br>‖ΔW‖/‖W‖ %{z:.4f}<extra></extra>"
    return Chart(
        "anatomy-blocks", "By block and kind", [trace], {"yaxis": {"autorange": "reversed"}}, 140 + 34 * len(groups)
    )


def _cell(layers: Sequence[AdaptedLayer], kind: str) -> float | None:
    mine = [one for one in layers if one.kind == kind]
    return _short(relative_norm(mine)) if mine else None


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _axes(layers: Sequence[AdaptedLayer], what: str) -> dict[str, Mapping[str, object]]:
    """Layers in their order, each block named in its middle; text encoders say that they are one."""
    places: dict[str, list[int]] = {}
    for place, one in enumerate(layers):
        name = one.block if one.network == "unet" else f"{one.network} {one.block}"
        places.setdefault(name, []).append(place)
    ticks = {"tickvals": [(mine[0] + mine[-1]) / 2 for mine in places.values()], "ticktext": list(places)}
    return {"xaxis": {**ticks, "showgrid": False}, "yaxis": {"title": {"text": what}, "rangemode": "tozero"}}


def _blocks(layers: Sequence[AdaptedLayer]) -> Table:
    rows: list[list[Cell]] = [
        [network, block, len(mine), _norm(mine), relative_norm(mine), _mean_rank(mine), _mean_stable(mine)]
        for (network, block), mine in grouped(layers).items()
    ]
    columns = ["network", "block", "layers", "‖ΔW‖", "‖ΔW‖/‖W‖", "effective rank, mean", "stable rank, mean"]
    return Table("anatomy_blocks", "Blocks", columns, rows)


def _layers(layers: Sequence[AdaptedLayer]) -> Table:
    rows: list[list[Cell]] = []
    for one in layers:
        update = one.update
        numbers = [update.norm, update.base_norm, update.relative, update.spectral]
        rows.append([one.network, one.name, one.kind, *numbers, update.effective_rank, update.stable_rank, update.rank])
    columns = [
        "network",
        "layer",
        "kind",
        "‖ΔW‖",
        "‖W‖",
        "‖ΔW‖/‖W‖",
        "largest σ",
        "effective rank",
        "stable rank",
        "rank",
    ]
    return Table("anatomy", f"All {len(layers)} layers", columns, rows, folded=True)

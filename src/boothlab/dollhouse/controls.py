"""What an edit may touch, and the structure it must keep: exact masks, Canny maps and depth maps."""

from typing import Any

import numpy as np

from boothlab.dollhouse.edits import EditPair
from boothlab.dollhouse.layers import depth_map, layer_mask
from boothlab.dollhouse.scenes import Scene, render
from boothlab.errors import UserError

CANNY_LOW, CANNY_HIGH = 100, 200
"""The thresholds that the public ControlNets and T2I-Adapters for Canny were trained with."""
CONTROL_KINDS = ("canny", "depth")

_REGIONS: dict[str, tuple[str, ...]] = {
    "bed": ("bed",),
    "carpet": ("carpet",),
    "curtains": ("curtains",),
    "curtains_closed": ("curtains", "window"),
    "accessory": ("accessory",),
    "color": ("toy",),
}
"""The layers an edit's fact owns; light (time, lamp) falls on everything, and a place is all that is not the toy."""


def changed_mask(pair: EditPair, size: int = 32) -> np.ndarray:
    """Where the pictures before and after differ at all: size×size bool."""
    before, after = pair.pictures(size)
    return np.asarray((before != after).any(axis=-1))


def edit_region(pair: EditPair, size: int = 32) -> np.ndarray:
    """What belongs to the edited thing, before or after: size×size bool. Whatever the edit changes lies inside."""
    fact = pair.edit.fact
    if fact in _REGIONS:
        names = _REGIONS[fact]
        return layer_mask(pair.source, names, size) | layer_mask(pair.target, names, size)
    if fact == "place":
        inside = _solid(pair.source, size) & _solid(pair.target, size)
        return ~inside
    return np.ones((size, size), dtype=bool)


def _solid(scene: Scene, size: int) -> np.ndarray:
    """Where nothing but the toy and what it wears shows."""
    from boothlab.dollhouse.layers import LAYERS

    others = [name for name in LAYERS if name not in ("toy", "accessory")]
    return ~layer_mask(scene, others, size)


def edit_mask(pair: EditPair, size: int = 32) -> np.ndarray:
    """The pixels that may change: the edited thing's region and whatever differs: size×size bool.

    All of them for edits of the light, so that those have no background whose preservation could be measured.
    """
    return edit_region(pair, size) | changed_mask(pair, size)


def canny_map(picture: np.ndarray) -> np.ndarray:
    """OpenCV's Canny edges of an H×W×3 uint8 RGB picture: H×W uint8, 0 or 255. Raises UserError without OpenCV."""
    try:
        import cv2
    except ImportError as error:
        raise UserError("Canny maps need OpenCV; install it with: pip install 'boothlab[edit]'") from error
    edges: Any = cv2.Canny(np.ascontiguousarray(picture), CANNY_LOW, CANNY_HIGH)
    return np.asarray(edges, dtype=np.uint8)


def control_map(scene: Scene, kind: str, size: int = 32) -> np.ndarray:
    """The map of a scene for a ControlNet or a T2I-Adapter: size×size uint8; `kind` is "canny" or "depth".

    Both come from the facts: depth from the painters' layers, Canny from the exact render.
    """
    if kind == "depth":
        return depth_map(scene, size)
    if kind == "canny":
        return canny_map(render(scene, size))
    raise ValueError(f"no control map is called {kind!r}; there are {', '.join(CONTROL_KINDS)}")

"""What an edit is scored by: every score's short name, label, metric key and direction, and the scores of one edit.

No torch here, so that a report can name the scores without loading it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from boothlab.errors import UserError
from boothlab.tracking import metrics

EDIT_DEFINITION_VERSION = 1
"""Raise it whenever a change in the edit scores or in the preprocessing can change a value."""

PSNR_CAP = 100.0
"""dB. Equal pixels have an infinite PSNR, which no mean survives and JSON cannot hold, so all PSNR end here.

Leaving such values out instead would punish a method for keeping pixels exactly.
"""


class ScoreName(NamedTuple):
    """How one score is shown and logged. `higher_is_better` is None where neither direction is an improvement."""

    label: str
    key: str
    higher_is_better: bool | None


def _name(label: str, key: str) -> ScoreName:
    return ScoreName(label, key, metrics.REGISTRY[key].higher_is_better)


EDIT_SCORES: dict[str, ScoreName] = {
    "clip_directional": _name("CLIP directional", metrics.EDIT_CLIP_DIRECTIONAL),
    "clip_image": _name("CLIP image", metrics.EDIT_CLIP_IMAGE),
    "clip_t": _name("CLIP-T", metrics.EDIT_CLIP_T),
    "clip_t_edited": _name("CLIP-T edited area", metrics.EDIT_CLIP_T_EDITED),
    "structure": _name("structure distance", metrics.EDIT_STRUCTURE),
    "psnr_outside": _name("PSNR outside", metrics.EDIT_PSNR_OUTSIDE),
    "ssim_outside": _name("SSIM outside", metrics.EDIT_SSIM_OUTSIDE),
    "lpips_outside": _name("LPIPS-uniform outside", metrics.EDIT_LPIPS_OUTSIDE),
    "mse_outside": _name("MSE outside", metrics.EDIT_MSE_OUTSIDE),
    "psnr_outside_piebench": _name("PSNR outside (PIE-Bench)", metrics.EDIT_PSNR_OUTSIDE_PIEBENCH),
    "ssim_outside_piebench": _name("SSIM outside (PIE-Bench)", metrics.EDIT_SSIM_OUTSIDE_PIEBENCH),
    "lpips_outside_piebench": _name("LPIPS-uniform outside (PIE-Bench)", metrics.EDIT_LPIPS_OUTSIDE_PIEBENCH),
    "mse_outside_piebench": _name("MSE outside (PIE-Bench)", metrics.EDIT_MSE_OUTSIDE_PIEBENCH),
    "psnr_inside": _name("PSNR inside", metrics.EDIT_PSNR_INSIDE),
    "ssim_inside": _name("SSIM inside", metrics.EDIT_SSIM_INSIDE),
    "lpips_inside": _name("LPIPS-uniform inside", metrics.EDIT_LPIPS_INSIDE),
    "mse_inside": _name("MSE inside", metrics.EDIT_MSE_INSIDE),
    "l1_truth": _name("L1 to target", metrics.EDIT_L1_TRUTH),
    "l2_truth": _name("L2 to target", metrics.EDIT_L2_TRUTH),
    "psnr_truth": _name("PSNR to target", metrics.EDIT_PSNR_TRUTH),
    "clip_i_truth": _name("CLIP-I to target", metrics.EDIT_CLIP_I_TRUTH),
    "dino_truth": _name("DINO to target", metrics.EDIT_DINO_TRUTH),
    "happened": _name("edit happened", metrics.EDIT_HAPPENED),
    "effective_steps": _name("effective steps", metrics.EDIT_EFFECTIVE_STEPS),
}
"""Short name → label, metric key, direction; in the order in which tables show them."""

CLIP_SCORES = ("clip_directional", "clip_image", "clip_t", "clip_t_edited")
TRUTH_SCORES = ("l1_truth", "l2_truth", "dino_truth", "happened")
"""What the CLIP scores are held against. Not CLIP-I to the target, which shares their encoder and its mistakes."""
PSNR_SCORES = frozenset(name for name in EDIT_SCORES if name.startswith("psnr_"))
LPIPS_SCORES = frozenset(name for name in EDIT_SCORES if name.startswith("lpips_"))
DINO_SCORES = frozenset({"structure", "dino_truth"}) | LPIPS_SCORES
ENCODER_SCORES = frozenset({*CLIP_SCORES, "clip_i_truth"}) | DINO_SCORES
"""Scores that depend on an encoder; those of other than the default encoders are logged under `metrics.variant`."""
RECORDED = frozenset({"happened", "effective_steps"})
"""What `EditScorer` does not measure itself: others add it with `EditScore.plus`."""


def metric_key(name: str, encoders: str = "") -> str:
    """The key a score is logged under; with a name of unusual encoders, `edit/clip_t/dollhouse`. KeyError if unknown.

    Scores of pixels alone keep their plain key.
    """
    key = EDIT_SCORES[name].key
    return metrics.variant(key, encoders) if encoders and name in ENCODER_SCORES else key


@dataclass(frozen=True)
class EditScore:
    """The scores of one edited picture by short name. What could not be measured is in `absent` with the reason."""

    values: dict[str, float]
    absent: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in (*self.values, *self.absent):
            if name not in EDIT_SCORES:
                raise ValueError(f"{name!r} is no edit score")
        if both := self.values.keys() & self.absent.keys():
            raise ValueError(f"both measured and absent: {', '.join(sorted(both))}")
        for name, value in self.values.items():
            if not math.isfinite(value):
                raise UserError(f"{name} is {value}; check the edited picture and the encoders")

    def plus(self, values: Mapping[str, float], absent: Mapping[str, str] | None = None) -> "EditScore":
        """With what was measured elsewhere: `happened` (0 or 1), `effective_steps`. ValueError for a name it has."""
        new = {*values, *(absent or {})}
        if known := new & {*self.values, *self.absent}:
            raise ValueError(f"measured already: {', '.join(sorted(known))}")
        return EditScore({**self.values, **values}, {**self.absent, **(absent or {})}, self.warnings)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values; the scores in the order of EDIT_SCORES."""
        return {
            "values": {name: self.values[name] for name in EDIT_SCORES if name in self.values},
            "absent": {name: self.absent[name] for name in EDIT_SCORES if name in self.absent},
            "warnings": list(self.warnings),
        }

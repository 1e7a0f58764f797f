"""What each edit score is, exactly: encoder with revision, preprocessing, text, area and version of the definition."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from boothlab.evaluation.edit_metrics import EDIT_DEFINITION_VERSION, EDIT_SCORES, PSNR_CAP
from boothlab.evaluation.edit_scores import EditScorer
from boothlab.evaluation.edit_summary import EditSummary
from boothlab.evaluation.perceptual import distance_name
from boothlab.evaluation.structure import structure_name

CAPTIONS, TARGET, NO_TEXT = "source and target captions, never the instruction", "target caption", "no text"
NO_ENCODER, PIXELS = "none", "8-bit RGB at its own size, divided by 255"
OUTSIDE = "edited and source, pixels outside the mask alone"
INSIDE = "edited and source, pixels inside the mask alone"
PIEBENCH = "edited and source, inside of the mask zero-filled, mean over the full frame (PIE-Bench)"
TRUTH = "edited and known target, full frame"
WINDOW = "; Gaussian 11 × 11 windows, σ 1.5"
CAPPED = f"; at most {PSNR_CAP:g} dB, which equal pixels have"


@dataclass(frozen=True)
class EditMetric:
    """One score's value with everything needed to know what it is: the columns of a fidelity MetricRow.

    Only `higher_is_better` differs: it is None where neither direction is an improvement.
    """

    name: str
    value: float | None
    higher_is_better: bool | None
    encoder: str
    preprocessing: str
    token_policy: str
    pairing: str
    counts: dict[str, int] = field(default_factory=dict)
    definition_version: int = EDIT_DEFINITION_VERSION
    note: str = ""

    @property
    def label(self) -> str:
        """For tables and plots. Names the encoder, so that no miniature passes for plain CLIP."""
        label = EDIT_SCORES[self.name].label
        return label if self.encoder == NO_ENCODER else f"{label} [{self.encoder}]"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values, in the order of the fields."""
        return asdict(self)


def definitions(scorer: EditScorer) -> list[EditMetric]:
    """What every score is when this scorer makes it, in the order of EDIT_SCORES; values are None."""
    clip, dino = scorer.clip, scorer.dino
    by_clip = (clip.name, clip.preprocessing)
    structure = (f"{structure_name(dino)}, {dino.key_layer}", dino.preprocessing)
    by_pixels, perceptual = (NO_ENCODER, PIXELS), (distance_name(dino), dino.preprocessing)
    told: dict[str, tuple[tuple[str, str], str, str]] = {
        "clip_directional": (by_clip, CAPTIONS, "edited - source with target - source caption, unit-normalised before"),
        "clip_image": (by_clip, NO_TEXT, "edited and source"),
        "clip_t": (by_clip, TARGET, "whole edited picture and its target caption"),
        "clip_t_edited": (by_clip, TARGET, "edited picture, outside of the mask zero-filled, and its target caption"),
        "structure": (structure, NO_TEXT, "edited and source, cosines between the keys of all tokens"),
        "l1_truth": (by_pixels, NO_TEXT, TRUTH),
        "l2_truth": (by_pixels, NO_TEXT, TRUTH),
        "psnr_truth": (by_pixels, NO_TEXT, TRUTH + CAPPED),
        "clip_i_truth": (by_clip, NO_TEXT, "edited and known target"),
        "dino_truth": ((dino.name, dino.preprocessing), NO_TEXT, "edited and known target"),
        "happened": (("reader", "the reader's own"), NO_TEXT, "value read in the edited picture and value asked for"),
        "effective_steps": ((NO_ENCODER, "none"), NO_TEXT, "as the method reports it"),
    }
    for where, pairing in (("outside", OUTSIDE), ("outside_piebench", PIEBENCH), ("inside", INSIDE)):
        told[f"mse_{where}"] = (by_pixels, NO_TEXT, pairing)
        told[f"psnr_{where}"] = (by_pixels, NO_TEXT, pairing + CAPPED)
        told[f"ssim_{where}"] = (by_pixels, NO_TEXT, pairing + WINDOW)
        told[f"lpips_{where}"] = (perceptual, NO_TEXT, pairing)
    for where, other in (("outside", "inside"), ("inside", "outside")):
        told[f"lpips_{where}"] = (perceptual, NO_TEXT, _perceptual_pairing(where, other))
    return [
        EditMetric(name, None, EDIT_SCORES[name].higher_is_better, *how, text, pairing)
        for name, (how, text, pairing) in ((name, told[name]) for name in EDIT_SCORES)
    ]


def with_values(defined: Sequence[EditMetric], summary: EditSummary) -> list[EditMetric]:
    """The definitions of the scores that a summary has, with its headline values, counts, and why rows lack them."""
    filled = []
    for metric in defined:
        if (found := summary.overall.get(metric.name)) is None:
            continue
        counts = {"rows": found.rows, "images": found.images, "absent": sum(found.absent.values())}
        if found.at_cap:
            counts["at_cap"] = found.at_cap
        note = "; ".join(f"{count} × {reason}" for reason, count in found.absent.items())
        filled.append(replace(metric, value=found.value, counts=counts, note=note))
    return filled


def _perceptual_pairing(where: str, other: str) -> str:
    return (
        f"source, and edited with the {other} of the mask taken from the source; "
        f"patches weighted by how much of them is {where}"
    )

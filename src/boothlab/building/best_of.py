"""`boothlab sample best_of=n`: the encoder, the photos and the choice among n seeds for each wanted image."""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from boothlab.building.parts import encoder_sources
from boothlab.building.photos import build_subject
from boothlab.building.shared import shared_clip
from boothlab.cache import Cache, cache_root
from boothlab.config import BestBy, EncodersConfig, SampleConfig, SubjectConfig
from boothlab.diffusion.sampling import Request
from boothlab.errors import UserError
from boothlab.evaluation.encoders import TextImageEncoder
from boothlab.evaluation.fidelity import strip_token
from boothlab.evaluation.loading import CLIP_ID, DINO_ID
from boothlab.evaluation.selection import BIAS, Candidate, candidate_seeds, choose, flattery, score_candidates
from boothlab.files import csv_cell, shown
from boothlab.images.load import to_tensor
from boothlab.tracking.manifest import FILE_NAME, read_manifest

SCORES_FILE = "best_of.csv"


@dataclass
class BestOf:
    """What chooses. `wanted` are prompt and image seed of each image to keep, in order."""

    n: int
    by: str
    weight: float
    clip: TextImageEncoder
    references_RD: Tensor | None
    token: str
    wanted: list[Request]
    candidates: list[Candidate] = field(default_factory=list)

    @property
    def requests(self) -> list[Request]:
        """Every image that is drawn, n for each wanted one."""
        return [Request(one.prompt, seed) for one in self.wanted for seed in candidate_seeds(one.seed, self.n)]

    def choose(self, images: Sequence[Tensor]) -> list[int]:
        """Score uint8 [3, H, W] images, in the order of `requests`; the place of the best for each wanted one."""
        requests = self.requests
        texts = [strip_token(one.prompt, self.token) or one.prompt for one in requests]
        wanted = [place for place in range(len(self.wanted)) for _ in range(self.n)]
        seeds = [one.seed for one in requests]
        self.candidates = score_candidates(
            self.clip, images, seeds, wanted, texts, self.references_RD, self.by, self.weight
        )
        return choose(self.candidates)

    @property
    def record(self) -> dict[str, Any]:
        """For sample.json: how it was chosen and what that did to the scores."""
        mean, chosen = flattery(self.candidates)
        return {
            "n": self.n,
            "by": self.by,
            "weight_of_clip_i": self.weight if self.by == BestBy.balanced.value else None,
            "encoder": self.clip.name,
            "mean_of_all": mean,
            "mean_of_chosen": chosen,
            "note": BIAS,
        }

    def csv(self) -> str:
        """Every candidate with its scores; `chosen` marks the one that was kept."""
        kept = set(choose(self.candidates))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["prompt", "image_seed", "seed", "clip_t", "clip_i", self._column, "chosen"])
        for place, one in enumerate(self.candidates):
            asked = self.wanted[one.wanted]
            scores = [one.clip_t, one.clip_i, one.value]
            writer.writerow([csv_cell(asked.prompt), asked.seed, one.seed, *scores, int(place in kept)])
        return text.getvalue()

    @property
    def _column(self) -> str:
        return f"by_{self.by}"


def build_best_of(
    config: SampleConfig, run: Path | None, token: str, source: str, wanted: list[Request], device: torch.device
) -> BestOf | None:
    """What chooses, or None for best_of=1. `source` is the backbone's, `run` the folder or file that was given.

    The encoder and the photos are those of the run. Without a run folder the encoder is the dollhouse's for its
    backbone and the published one for others, and there are no photos: UserError unless best_by=clip_t.
    """
    if config.best_of == 1:
        return None
    settings = _run_settings(run)
    by = config.best_by.value
    if settings is None and config.best_by is not BestBy.clip_t:
        raise UserError(
            f"best_by={by}: compares with the subject's photos; give run=DIR of a training, or best_by=clip_t"
        )
    default = (
        {"clip": "dollhouse", "dino": "dollhouse"} if source == "dollhouse" else {"clip": CLIP_ID, "dino": DINO_ID}
    )
    encoders = _section(EncodersConfig, settings["encoders"] if settings else default)
    clip = shared_clip(encoder_sources(encoders)["clip"], encoders.clip_revision, device)
    references_RD = None
    if settings is not None and config.best_by is not BestBy.clip_t:
        subject = build_subject(_section(SubjectConfig, settings["subject"]), Cache(cache_root()), captioned=False)
        references_RD = clip.encode_images([to_tensor(image) for image in subject.images])
    return BestOf(config.best_of, by, config.best_weight, clip, references_RD, token, wanted)


def _run_settings(run: Path | None) -> dict[str, Any] | None:
    """The config of a training run's folder; None for anything else. Raises UserError for a broken manifest."""
    if run is None or not (run / FILE_NAME).is_file():
        return None
    settings: dict[str, Any] = read_manifest(run)["config"]
    if not all(isinstance(settings.get(key), Mapping) for key in ("encoders", "subject")):
        raise UserError(f"run={shown(run)}: its manifest says nothing of encoders and subject; give a training run")
    return settings


def _section(kind: Any, values: Mapping[str, Any]) -> Any:
    """A section of a saved config; keys of later versions are passed over. Raises UserError for what is missing."""
    known = {one.name for one in dataclasses.fields(kind)}
    try:
        return kind(**{key: value for key, value in values.items() if key in known})
    except (TypeError, ValueError) as error:
        raise UserError(f"the run's manifest has no usable {kind.__name__} ({error}); put the original back") from error

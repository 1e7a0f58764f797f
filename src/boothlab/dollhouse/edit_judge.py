"""The judge of edits: a small reader of every fact that an edit can change, in hotel rooms and on toys."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from boothlab.dollhouse.architectures import to_images
from boothlab.dollhouse.edits import EditPair, fact_of
from boothlab.dollhouse.parts import Losses, Part
from boothlab.dollhouse.readers import batches
from boothlab.dollhouse.scenes import ACCESSORIES, COLORS, PLACES, Lamp, Scene, Time, render, sample_scene

EDIT_HEADS: dict[str, tuple[str, ...]] = {
    "time": tuple(Time),
    "lamp": tuple(Lamp),
    "curtains_closed": ("open", "closed"),
    "bed": tuple(COLORS),
    "curtains": tuple(COLORS),
    "carpet": tuple(COLORS),
    "accessory": ACCESSORIES,
    "place": PLACES,
    "color": tuple(COLORS),
}
"""Each fact with the values it can be read as; `accessory`, `place` and `color` of toys only."""
ABSENT = -100  # what cross_entropy passes over: the scene has no such fact
FILE = "model.safetensors"


class EditJudge(nn.Module):
    """A small convolutional reader, trained on renders alone; it never sees an edited image in training."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 96, 96)
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(widths)):
            layers += [nn.Conv2d(a, b, 3, stride=1 if i == 0 else 2, padding=1), nn.GroupNorm(8, b), nn.SiLU()]
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * 16, 128), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(128, len(values)) for name, values in EDIT_HEADS.items()})

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """[-1, 1] images in, one table of logits a fact out."""
        features_BD = self.trunk(images_BCHW)
        return {name: head(features_BD) for name, head in self.heads.items()}


def labels_of(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """For each head the index of every scene's value, ABSENT where it has none."""
    found = {name: [fact_of(scene, name) for scene in scenes] for name in EDIT_HEADS}
    return {
        name: torch.tensor([ABSENT if value is None else EDIT_HEADS[name].index(value) for value in values])
        for name, values in found.items()
    }


class EditJudgePart(Part):
    """The edit judge's training: half hotel rooms, half toys, blurred and noised a little as the judge's are."""

    name, batch_size, peak_lr = "edit_judge", 96, 1.5e-3

    def __init__(self, seed: int, device: str):
        super().__init__(seed, device)
        self.judge = EditJudge()
        self.modules = nn.ModuleDict({"judge": self.judge})

    def batch(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        rng = self._rng(step)
        scenes = [sample_scene(rng, room_share=0.5) for _ in range(self.batch_size)]
        images = to_images([render(scene) for scene in scenes])
        noise = torch.from_numpy(rng.standard_normal(images.shape).astype(np.float32))
        images = images + noise * float(rng.uniform(0, 0.1))
        if rng.random() < 0.4:
            images = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
        return images, labels_of(scenes)

    def loss(self, batch: tuple[Tensor, dict[str, Tensor]], step: int) -> Losses:
        images, labels = batch
        with self._autocast():
            logits = self.judge(images.to(self.device))
        losses = {
            name: F.cross_entropy(logits[name].float(), labels[name].to(self.device), ignore_index=ABSENT)
            for name in logits
        }
        return {"loss": torch.stack(list(losses.values())).sum(), **{k: v.detach() for k, v in losses.items()}}

    def export(self, out: Path) -> None:
        folder = out / self.name
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.half().contiguous() for k, v in self.judge.state_dict().items()}, folder / FILE)

    def start_from(self, out: Path) -> None:
        self.judge.load_state_dict(_weights(out))


def _weights(out: Path) -> dict[str, Tensor]:
    return {name: value.float() for name, value in load_file(out / "edit_judge" / FILE).items()}


@torch.inference_mode()
def read_facts(weights: Path, pictures: Sequence[np.ndarray], device: str = "cpu") -> dict[str, list[str]]:
    """What the edit judge reads in each 32×32×3 uint8 picture: fact name to one value a picture.

    Every head answers for every picture; what it says of a fact the scene does not have means nothing.
    """
    judge = EditJudge()
    judge.load_state_dict(_weights(weights))
    judge.to(device).eval()
    readings: dict[str, list[str]] = {name: [] for name in EDIT_HEADS}
    for images in batches(to_images(list(pictures)), device):
        for name, logits in judge(images).items():
            readings[name] += [EDIT_HEADS[name][i] for i in logits.argmax(1).tolist()]
    return readings


def did_it_happen(readings: dict[str, list[str]], pairs: Sequence[EditPair]) -> list[bool]:
    """For each edited picture whether the edit's fact is read as the value asked for."""
    return [readings[pair.edit.fact][i] == pair.edit.value for i, pair in enumerate(pairs)]


def facts_kept(readings: dict[str, list[str]], pairs: Sequence[EditPair]) -> list[float]:
    """For each edited picture the share (0..1) of the scene's other facts that are still read as they were."""
    shares = []
    for i, pair in enumerate(pairs):
        others = {name: fact_of(pair.source, name) for name in EDIT_HEADS if name != pair.edit.fact}
        known = [readings[name][i] == value for name, value in others.items() if value is not None]
        shares.append(sum(known) / len(known))
    return shares

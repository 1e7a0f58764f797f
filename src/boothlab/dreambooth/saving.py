"""What a training leaves for users: an adapter, embeddings of learned words, or whole networks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boothlab.diffusion.learned_words import FOLDER, save_words
from boothlab.diffusion.lora import lora_layers, save_adapter
from boothlab.diffusion.variants import lycoris_layers
from boothlab.diffusion.whole import save_networks
from boothlab.dreambooth.module import DreamBoothModule


def save_small(folder: Path, words_folder: Path, module: DreamBoothModule, settings: Mapping[str, Any]) -> list[Path]:
    """The adapter into one folder and learned words into another, as users load them; whole networks are left out."""
    networks = dict(module.networks.items())
    written = []
    if any(lora_layers(network) or lycoris_layers(network) for network in networks.values()):
        written.append(save_adapter(folder, networks, settings))
    if module.backbone.learned is not None:
        written.append(save_words(words_folder, module.backbone, settings))
    return written


def save_all(run_dir: Path, module: DreamBoothModule, settings: Mapping[str, Any]) -> list[Path]:
    """Everything a finished run is for: `lora/`, `embedding/`, or `unet/` (and `text_encoder/`)."""
    written = save_small(run_dir / "lora", run_dir / FOLDER, module, settings)
    if module.whole is not None:
        written += save_networks(run_dir, module.whole.networks, module.whole.dtype, settings)
    return written

"""What a training left, whatever its method: found in a run folder, and put on a backbone."""

from dataclasses import dataclass, field
from pathlib import Path

from boothlab.diffusion.backbone import Backbone
from boothlab.diffusion.formats.diffusers_format import FILE_NAME
from boothlab.diffusion.learned_words import FILE_NAME as WORDS_FILE
from boothlab.diffusion.learned_words import FOLDER as WORDS_FOLDER
from boothlab.diffusion.learned_words import is_words_file, load_words
from boothlab.diffusion.lora import find_adapter, load_adapter
from boothlab.diffusion.whole import find_networks, load_networks
from boothlab.errors import UserError
from boothlab.files import shown


@dataclass(frozen=True)
class Trained:
    """The files of one training: an adapter, embeddings of new words, whole networks by name, or the first two."""

    adapter: Path | None = None
    words: Path | None = None
    networks: dict[str, Path] = field(default_factory=dict)

    @property
    def main(self) -> Path:
        """The file that says what the training was, and stands for it in records."""
        found = self.adapter or self.words or self.networks.get("unet")
        assert found is not None
        return found

    @property
    def files(self) -> list[Path]:
        """All of them; the main one first."""
        return [path for path in (self.adapter, self.words, *self.networks.values()) if path is not None]


def find_trained(path: Path) -> Trained:
    """What a run folder, a folder or a file holds. Raises UserError when there is nothing to load."""
    if path.is_file() and path.suffix == ".safetensors" and is_words_file(path):
        return Trained(words=path)
    if networks := find_networks(path):
        return Trained(networks=networks)
    words = next((one for one in (path / WORDS_FOLDER / WORDS_FILE, path / WORDS_FILE) if one.is_file()), None)
    if words is not None and not any((path / where / FILE_NAME).is_file() for where in ("lora", ".")):
        return Trained(words=words)
    return Trained(adapter=find_adapter(path), words=words)


def load_trained(
    backbone: Backbone, trained: Trained, unet_scale: float = 1.0, text_encoder_scale: float = 1.0
) -> None:
    """Put it on a bare backbone, at one scale for the UNet and one for the text encoders.

    Raises UserError when it does not fit, or for a scale of learned words, which have none.
    """
    if trained.words is not None and trained.adapter is None and (unet_scale, text_encoder_scale) != (1, 1):
        raise UserError(
            f"{shown(trained.words)}: learned words have no scale; leave unet_scale and text_encoder_scale 1"
        )
    if trained.networks:
        load_networks(backbone, trained.networks, unet_scale, text_encoder_scale)
    if trained.adapter is not None:  # before the words: an error takes every adapter off
        load_adapter(backbone, trained.adapter, unet_scale, text_encoder_scale)
    if trained.words is not None:
        load_words(backbone, trained.words)

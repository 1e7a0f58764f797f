"""Whole networks as what is trained: made trainable, saved as folders that diffusers loads, and loaded back."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from boothlab.diffusion.backbone import Backbone, first_line
from boothlab.diffusion.sharding import whole
from boothlab.errors import UserError
from boothlab.files import atomic_directory, shown
from boothlab.quiet import quiet_libraries

UNET_FILE = "diffusion_pytorch_model.safetensors"
TEXT_FILE = "model.safetensors"


def free(backbone: Backbone, train_text_encoder: bool) -> dict[str, nn.Module]:
    """Make the UNet, and the text encoders if asked, trainable in float32; returns them by name.

    The backbone is marked as altered: whoever shares it loads it anew.
    """
    backbone.altered = True
    networks: dict[str, nn.Module] = {"unet": backbone.unet}
    if train_text_encoder:
        networks |= backbone.text_encoders
    with quiet_libraries():  # diffusers warns of any cast
        for network in networks.values():
            network.to(torch.float32).requires_grad_(True)
    return networks


def save_networks(
    run_dir: Path, networks: Mapping[str, Any], dtype: torch.dtype, settings: Mapping[str, Any]
) -> list[Path]:
    """Write `unet/` (and `text_encoder/`) with their configs, in one file each, whole or not at all.

    `UNet2DConditionModel.from_pretrained(run_dir / "unet")` of diffusers reads it. The file's metadata is one entry,
    so that the same weights and settings give the same bytes.
    """
    written = []
    for name, network in networks.items():
        file = UNET_FILE if name == "unet" else TEXT_FILE
        with atomic_directory(run_dir / name, replace=True) as building:
            if name == "unet":
                _write_config(building, network)
                save_file(
                    _cast(network, dtype), building / file, {"boothlab": json.dumps(dict(settings), sort_keys=True)}
                )
            else:  # transformers gives some tensors other names in files than in memory
                with quiet_libraries():
                    network.save_pretrained(building, state_dict=_cast(network, dtype))
        written.append(run_dir / name / file)
    return written


def whole_state(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a network by name, one after the other. Where it is parted, all ranks go through them."""
    for key, value in network.state_dict().items():
        yield key, whole(value.detach())


def _cast(network: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        key: value.to("cpu", dtype if value.is_floating_point() else None).contiguous()
        for key, value in whole_state(network)
    }


def _write_config(folder: Path, unet: Any) -> None:
    """The UNet's config without the place it was loaded from."""
    unet.save_config(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def find_networks(folder: Path) -> dict[str, Path]:
    """The networks that a run of `method=full` left, by name; none for any other folder."""
    files = {"unet": UNET_FILE, "text_encoder": TEXT_FILE, "text_encoder_2": TEXT_FILE}
    found = {name: folder / name / file for name, file in files.items() if (folder / name / file).is_file()}
    return found if "unet" in found and not (folder / "model_index.json").exists() else {}


def load_networks(
    backbone: Backbone, files: Mapping[str, Path], unet_scale: float = 1.0, text_encoder_scale: float = 1.0
) -> None:
    """Put trained weights in place of the backbone's, in its precision; a scale s gives base + s · (trained − base).

    Raises UserError if they are of another architecture or cannot be read; the backbone is then not to be used.
    """
    backbone.altered = True
    networks: dict[str, Any] = {"unet": backbone.unet, **backbone.text_encoders}
    for name, path in files.items():
        scale = unet_scale if name == "unet" else text_encoder_scale
        try:
            network = networks[name]
            state = load_file(path) if name == "unet" else type(network).from_pretrained(path.parent).state_dict()
            if scale != 1:
                base = network.state_dict()
                state = {key: torch.lerp(base[key].float().cpu(), value.float(), scale) for key, value in state.items()}
            network.load_state_dict(state)
        except (SafetensorError, OSError, RuntimeError, KeyError, ValueError) as error:
            raise UserError(
                f"{shown(path)}: does not fit the backbone {backbone.name} ({first_line(error)}); was it trained on "
                "another?"
            ) from error
        network.requires_grad_(False).eval()

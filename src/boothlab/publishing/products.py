"""The published files of what was trained: an adapter for each tool, a learned word, whole networks."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from boothlab.diffusion.formats.adapter import Adapter
from boothlab.diffusion.formats.architecture import Architecture, architecture_of, recognise
from boothlab.diffusion.formats.convert import convert
from boothlab.diffusion.formats.diffusers_format import FILE_NAME
from boothlab.diffusion.formats.read import read_adapter, refuse_zero
from boothlab.diffusion.learned_words import FILE_NAME as WORDS_FILE
from boothlab.diffusion.lora import read_metadata
from boothlab.errors import UserError
from boothlab.files import shown
from boothlab.progress import Reporter
from boothlab.publishing.facts import Facts
from boothlab.publishing.privacy import public_settings
from boothlab.publishing.usage import KOHYA, UNREAD, Published
from boothlab.publishing.weights import copy_config, copy_weights

_NETWORKS = {"unet": "UNet2DConditionModel", "text_encoder": "CLIPTextModel"}


def write_products(facts: Facts, folder: Path, reporter: Reporter) -> list[Published]:
    """Write them into the folder with settings that name no places; returns what each is for, the main one first.

    Raises UserError for a file that is not whole, and for an adapter whose update is zero.
    """
    choice = facts.choice
    named: list[tuple[str, str]] = []
    if choice.words is not None:
        named += _word_files(facts, choice.words, folder, reporter)
    if choice.adapter is not None:
        named += _adapter_files(facts, choice.adapter, folder, reporter)
    named += _network_files(choice.networks, folder, reporter)
    return [Published(name, what, (folder / name).stat().st_size) for name, what in named]


def _adapter_files(facts: Facts, path: Path, folder: Path, reporter: Reporter) -> list[tuple[str, str]]:
    if facts.variant in UNREAD:  # its names are LyCORIS's already, which is what other tools go by
        copy_weights(path, folder / FILE_NAME, reporter)
        return [(FILE_NAME, "boothlab, and tools that know LyCORIS")]
    adapter = _read(facts, path)
    named = [(FILE_NAME, "diffusers (load_lora_weights) and boothlab")]
    if facts.variant == "dora" or adapter is None:
        copy_weights(path, folder / FILE_NAME, reporter)
    else:
        convert(adapter, "diffusers", folder / FILE_NAME, _architecture(facts, adapter))
    if adapter is not None:
        kohya = f"{plain_name(facts.name) or 'adapter'}{KOHYA}"
        convert(adapter, "kohya", folder / kohya, _architecture(facts, adapter))
        named.append((kohya, "A1111, ComfyUI, kohya's scripts"))
    return named


def _read(facts: Facts, path: Path) -> Adapter | None:
    """The adapter with settings that name no places; None for a DoRA that other formats cannot hold.

    Raises UserError when it cannot be read, or when its update is zero.
    """
    metadata = {"boothlab": json.dumps(public_settings(read_metadata(path)), sort_keys=True)}
    try:
        adapter = dataclasses.replace(read_adapter(path), metadata=metadata)
    except UserError:
        if facts.variant != "dora":
            raise
        return None
    refuse_zero(adapter, path)
    return adapter


def _word_files(facts: Facts, path: Path, folder: Path, reporter: Reporter) -> list[tuple[str, str]]:
    """The file under the name that diffusers looks for, and under the word, which is what A1111 and ComfyUI go by."""
    copy_weights(path, folder / WORDS_FILE, reporter)
    name = f"{plain_name(facts.token.strip('<>')) or 'word'}.safetensors"
    if name in (WORDS_FILE, FILE_NAME):
        return [(WORDS_FILE, "diffusers (load_textual_inversion), boothlab, A1111, ComfyUI")]
    copy_weights(path, folder / name, reporter)
    return [
        (WORDS_FILE, "diffusers (load_textual_inversion) and boothlab"),
        (name, "A1111, ComfyUI: the same, its name is the word"),
    ]


def _network_files(networks: Mapping[str, Path], folder: Path, reporter: Reporter) -> list[tuple[str, str]]:
    named = []
    for name, path in networks.items():
        copy_weights(path, folder / name / path.name, reporter)
        config = path.with_name("config.json")
        if not config.is_file():
            raise UserError(f"{shown(config)}: is gone, and without it nothing loads {name}/; train it again")
        copy_config(config, folder / name / "config.json")
        loader = _NETWORKS.get(name, "CLIPTextModelWithProjection")
        named.append((f"{name}/{path.name}", f"diffusers and boothlab ({loader}, with its config.json)"))
    return named


def plain_name(text: str) -> str:
    """Text as a file's name that can stand in a prompt, as in <lora:NAME:1>; empty for an empty text."""
    return "".join(char if char.isalnum() or char in "-_" else "-" for char in text)[:80]


def _architecture(facts: Facts, adapter: Adapter) -> Architecture | None:
    """The run's, where it can be known without the network: the miniature's, or a known one that the layers fit."""
    if facts.base == "dollhouse":
        return architecture_of("dollhouse")
    near = recognise(adapter.layers())
    named = next((one for one in near if one.name == facts.base_name), None)
    return named or (near[0] if len(near) == 1 else None)

"""The folder that is published: adapter files for each tool, the card, sample images, and nothing of this machine."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from boothlab.diffusion.formats.adapter import Adapter
from boothlab.diffusion.formats.architecture import Architecture, architecture_of, recognise
from boothlab.diffusion.formats.container import safetensors_bytes
from boothlab.diffusion.formats.convert import convert
from boothlab.diffusion.formats.diffusers_format import FILE_NAME
from boothlab.diffusion.formats.read import read_adapter, refuse_zero
from boothlab.diffusion.lora import find_adapter, read_metadata
from boothlab.errors import UserError
from boothlab.files import atomic_directory, sha256_file, shown, write_bytes, write_text
from boothlab.images.grid import build_grid, save_png
from boothlab.images.load import load_image
from boothlab.publishing.card import MARK, card_text
from boothlab.publishing.facts import Facts, read_facts
from boothlab.publishing.privacy import public_settings, told_by

GALLERY = 8
"""Images in the hub's gallery: as many prompts, one each."""


def build_folder(
    run_dir: Path,
    out: Path,
    *,
    base_model: str | None = None,
    licence: str | None = None,
    photos: bool = False,
) -> tuple[Facts, list[Path]]:
    """Write the folder for a finished run, replacing one that this wrote before; returns its facts and files.

    Raises UserError for a run that cannot be published, and when a text would give this machine away.
    """
    run, facts = read_facts(run_dir, base_model, licence)
    if out.exists() and not _is_ours(out):
        raise UserError(f"out={shown(out)}: is there and was not written by this command; name another folder")
    with atomic_directory(out, replace=True) as folder:
        files = _adapter_files(run_dir, facts, folder)
        if photos:
            _copy_photos(run.manifest, folder)
            facts.notes.append("photos/")
        gallery = _gallery(facts, folder)
        grid = _grid(facts, folder)
        text = card_text(facts, files, gallery, grid)
        if told := told_by(text, run_dir):
            raise UserError(f"run={shown(run_dir)}: the card would tell {' and '.join(told)}; rename what says it")
        write_text(folder / "README.md", text)
    return facts, sorted(path for path in out.rglob("*") if path.is_file())


def _is_ours(out: Path) -> bool:
    """Whether a folder may be replaced: an empty one, or one with a card of ours."""
    card = out / "README.md"
    if not out.is_dir():
        return False
    return not any(out.iterdir()) or (card.is_file() and MARK in card.read_text(encoding="utf-8", errors="replace"))


def _adapter_files(run_dir: Path, facts: Facts, folder: Path) -> list[tuple[str, str]]:
    """(name, what it is) of the adapter's files, written with settings that name no places."""
    path = find_adapter(run_dir)
    metadata = {"boothlab": json.dumps(public_settings(read_metadata(path)), sort_keys=True)}
    try:
        adapter = read_adapter(path)
    except UserError:  # DoRA and the like: no other tool's format holds them
        write_bytes(folder / path.name, safetensors_bytes(load_file(path), {"format": "pt", **_own(path), **metadata}))
        return [(path.name, "boothlab, and tools that know this kind of adapter")]
    adapter = dataclasses.replace(adapter, metadata=metadata)
    refuse_zero(adapter, path)
    architecture = _architecture(facts, adapter)
    kohya = f"{_plain_name(facts)}_kohya.safetensors"
    convert(adapter, "diffusers", folder / FILE_NAME, architecture)
    convert(adapter, "kohya", folder / kohya, architecture)
    return [(FILE_NAME, "diffusers (load_lora_weights) and boothlab"), (kohya, "A1111, ComfyUI, kohya's scripts")]


def _own(path: Path) -> dict[str, str]:
    """What a loader needs of a file's metadata to know its kind."""
    with safe_open(path, framework="pt") as file:
        found: dict[str, str] = file.metadata() or {}
    return {key: value for key, value in found.items() if key != "boothlab"}


def _plain_name(facts: Facts) -> str:
    """A file's name of the run's, fit for a prompt's <lora:NAME:1>."""
    return "".join(char if char.isalnum() or char in "-_" else "-" for char in facts.name)[:80] or "adapter"


def _architecture(facts: Facts, adapter: Adapter) -> Architecture | None:
    """The run's, where it can be known without the network: the miniature's, or a known one that the layers fit."""
    if facts.base == "dollhouse":
        return architecture_of("dollhouse")
    near = recognise(adapter.layers())
    named = next((one for one in near if one.name == facts.base_name), None)
    return named or (near[0] if len(near) == 1 else None)


def _gallery(facts: Facts, folder: Path) -> list[tuple[str, str]]:
    """(prompt, path) of the first image of the first prompts, copied."""
    chosen: dict[str, Path] = {}
    for prompt, path in facts.samples:
        chosen.setdefault(prompt, path)
    made = []
    for prompt, path in list(chosen.items())[:GALLERY]:
        name = f"images/{path.name}"
        save_png(folder / name, _picture(path))
        made.append((prompt, name))
    return made


def _grid(facts: Facts, folder: Path) -> str | None:
    """All samples by prompt and seed. Drawn anew: the run's own grid shows the subject's photos."""
    rows: dict[str, list[Path]] = {}
    for prompt, path in facts.samples:
        rows.setdefault(prompt, []).append(path)
    most = max(map(len, rows.values()), default=0)
    whole = [(prompt, [_picture(path) for path in paths]) for prompt, paths in rows.items() if len(paths) == most]
    if not whole:
        return None
    seeds = [path.stem.split("_")[-1].replace("seed", "seed ") for path in next(iter(rows.values()))]
    save_png(folder / "images" / "grid.png", build_grid(whole, seeds, [], f"step {facts.step}"))
    return "images/grid.png"


def _picture(path: Path) -> Image.Image:
    """A sample's pixels alone: what else is in the file stays behind."""
    with Image.open(path) as image:
        return image.convert("RGB")


def _copy_photos(manifest: dict[str, Any], folder: Path) -> None:
    """The photos that were trained on, without what cameras write into them. Raises UserError when one has changed."""
    for number, (name, digest) in enumerate(sorted((manifest.get("inputs") or {}).items())):
        path = Path(name)
        if not path.is_file() or sha256_file(path) != digest:
            raise UserError(f"photos=true: {shown(path)} is gone or another file than was trained on; leave photos out")
        save_png(folder / "photos" / f"photo_{number:02d}.png", load_image(path))

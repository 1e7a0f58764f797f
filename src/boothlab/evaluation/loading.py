"""Loads encoders from a local folder or the hub: safetensors only, our preprocessing, no silently random weights."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import CLIPModel, CLIPTokenizer, PreTrainedModel, ViTConfig, ViTModel

from boothlab.errors import UserError
from boothlab.evaluation.encoders import ClipEncoder, DinoEncoder
from boothlab.evaluation.preprocessing import Preset, preset
from boothlab.files import PICKLED, check_shards, shown
from boothlab.quiet import quiet_libraries

CLIP_ID = "openai/clip-vit-base-patch32"
DINO_ID = "facebook/dino-vits16"
DINO_LAYER_NORM_EPS = 1e-6
"""What DINO was trained with; the hub's config says 1e-12."""

LOAD_ERRORS = (OSError, ValueError, SafetensorError, RuntimeError)


def load_clip(
    source: str | Path = CLIP_ID,
    revision: str | None = None,
    device: torch.device | str = "cpu",
    *,
    preprocessing: Preset | str = Preset.CLIP,
    batch_size: int = 64,
) -> ClipEncoder:
    """A CLIP from a folder or hub id. UserError when it is missing, unreachable, pickled, or incomplete."""
    location, options = _locate(source, revision)
    try:
        with quiet_libraries():
            loaded: Any = CLIPModel.from_pretrained(location, dtype=torch.float32, output_loading_info=True, **options)
        tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(location, revision=options["revision"])
    except LOAD_ERRORS as error:
        raise _cannot_load(location, error) from error
    model, report = loaded
    _check_complete(location, report)
    chosen = preset(_preset(preprocessing), _square(location, model.config.vision_config.image_size))
    return ClipEncoder(model, tokenizer, _name(location, model), chosen, device, batch_size)


def load_dino(
    source: str | Path = DINO_ID,
    revision: str | None = None,
    device: torch.device | str = "cpu",
    *,
    preprocessing: Preset | str = Preset.DINO,
    batch_size: int = 64,
) -> DinoEncoder:
    """A DINO ViT from a folder or hub id, LayerNorm eps 1e-6 whatever its config says. UserError as `load_clip`."""
    location, options = _locate(source, revision)
    try:
        config = ViTConfig.from_pretrained(location, revision=options["revision"])
        config.layer_norm_eps = DINO_LAYER_NORM_EPS
        with quiet_libraries():
            loaded: Any = ViTModel.from_pretrained(
                location,
                config=config,
                add_pooling_layer=False,
                dtype=torch.float32,
                output_loading_info=True,
                **options,
            )
    except LOAD_ERRORS as error:
        raise _cannot_load(location, error) from error
    model, report = loaded
    _check_complete(location, report)
    chosen = preset(_preset(preprocessing), _square(location, config.image_size))
    return DinoEncoder(model, _name(location, model), chosen, device, batch_size)


def _preset(value: Preset | str) -> Preset:
    try:
        return Preset(value)
    except ValueError as error:
        raise UserError(f"preprocessing {str(value)!r} is not one of {', '.join(Preset)}") from error


def _square(location: str, image_size: Any) -> int:
    if not isinstance(image_size, int):
        raise UserError(f"{location}: image_size is {image_size}; only encoders of square images are supported")
    return image_size


def _locate(source: str | Path, revision: str | None) -> tuple[str, dict[str, Any]]:
    """The folder or hub id, checked, with the options for `from_pretrained`."""
    folder = Path(source).expanduser()
    # use_safetensors=True refuses pickles; on the hub it also finds the converter bot's pull request, but only on main.
    options: dict[str, Any] = {"use_safetensors": True, "revision": revision or "main"}
    if folder.is_dir():
        _check_folder(folder)
        return str(folder), options
    text = str(source)
    if isinstance(source, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise UserError(f"{source}: no such folder; give an existing folder or a hub id such as {CLIP_ID}")
    return text, options


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json here; give the folder that `save_pretrained` wrote")
    check_shards(folder, f"{shown(folder)}: ")
    if list(folder.glob("*.safetensors")):
        return
    pickled = sorted(path.name for path in folder.glob("*") if path.suffix.lower() in PICKLED)
    if not pickled:
        raise UserError(f"{folder}: no weights here; model.safetensors is expected")
    raise UserError(
        f"{folder}: {pickled[0]} is pickled, which can run code; only safetensors are read. If you trust it, convert: "
        f"python -c \"from transformers import AutoModel as M; d='{folder}'; M.from_pretrained(d).save_pretrained(d)\""
    )


def _cannot_load(location: str, error: Exception) -> UserError:
    reason = str(error).strip().split("\n", 1)[0]
    advice = (
        "save it again with `save_pretrained`"
        if Path(location).is_dir()
        else "check the id and the network, or give a local folder with model.safetensors and the tokenizer"
    )
    return UserError(f"{location}: cannot be loaded ({reason}); {advice}")


def _check_complete(location: str, report: dict[str, Any]) -> None:
    """transformers fills missing weights with random ones and only warns; a metric on those means nothing."""
    wrong = sorted(str(key) for key in (*report["missing_keys"], *report.get("mismatched_keys", ())))
    if wrong:
        raise UserError(
            f"{location}: {len(wrong)} weights are missing or misshapen, first {wrong[0]}; wrong kind of model?"
        )


def _name(location: str, model: PreTrainedModel) -> str:
    """`id@revision`; for a folder, `folder@hash of its weights`: a folder's name does not say what is in it."""
    folder = Path(location)
    if not folder.is_dir():
        commit = getattr(model.config, "_commit_hash", None)
        return f"{location}@{commit[:7]}" if commit else location
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"{folder.resolve().name}@{digest.hexdigest()[:7]}"

"""The metadata of a written file: kohya's `ss_…` keys, which other tools show, and boothlab's own."""

import json
from collections.abc import Mapping
from typing import Any

import boothlab
from boothlab.diffusion.formats.adapter import Adapter, as_text
from boothlab.diffusion.formats.architecture import KNOWN, Architecture
from boothlab.diffusion.formats.cloneofsimo import EMBED
from boothlab.diffusion.formats.diffusers_format import METADATA_KEY
from boothlab.diffusion.variants import VARIANT_KEY

_VERSIONS = {"SD 1.x": "sd_v1", "SD 2.x": "sd_v2", "SDXL": "sdxl_base_v1-0"}
_SPEC = {
    "SD 1.x": "stable-diffusion-v1/lora",
    "SD 2.x": "stable-diffusion-v2/lora",
    "SDXL": "stable-diffusion-xl-v1-base/lora",
}


def metadata_for(adapter: Adapter, architecture: Architecture | None) -> dict[str, str]:
    """What a converted file says: what its source said, kohya's keys where it had none, rank and alpha anew."""
    kept = {key: value for key, value in adapter.metadata.items() if not _is_of_its_format(key, value)}
    settings = _settings(adapter.metadata)
    ranks, alphas, algorithm = adapter.ranks, adapter.alphas, _algorithm(adapter)
    always = {
        "format": "pt",
        "ss_network_module": "lycoris.kohya" if algorithm else "networks.lora",
        "ss_network_dim": str(next(iter(ranks))) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": as_text(next(iter(alphas))) if len(alphas) == 1 else "Dynamic",
        "boothlab_converted_from": adapter.format,
        "boothlab_converted_by": boothlab.__version__,
    }
    own = {"ss_network_args": json.dumps(algorithm, sort_keys=True)} if algorithm else {}
    return {**_from_settings(settings), **_of_architecture(architecture, settings), **own, **kept, **always}


def _algorithm(adapter: Adapter) -> dict[str, str]:
    """What LyCORIS' readers look for in `ss_network_args`; empty for a plain LoRA, which is none of LyCORIS'."""
    variants = adapter.variants
    if "dora" in variants:
        return {"algo": "locon", "dora_wd": "True", "wd_on_output": "True"}
    product = next((variant for variant in ("loha", "lokr") if variant in variants), None)
    return {"algo": product} if product else {}


def _is_of_its_format(key: str, value: str) -> bool:
    """What only makes sense in the file that it came from."""
    return key in (METADATA_KEY, VARIANT_KEY, "unet", "text_encoder") or ":" in key or value == EMBED


def _settings(metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        settings = json.loads(metadata.get("boothlab", "{}"))
    except (ValueError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _from_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """kohya's keys for what a run of boothlab wrote into its file."""
    backbone = settings.get("backbone")
    backbone = backbone if isinstance(backbone, dict) else {}
    side = backbone.get("resolution")
    named = {
        "ss_learning_rate": settings.get("lr"),
        "ss_unet_lr": settings.get("lr"),
        "ss_steps": settings.get("step"),
        "ss_seed": settings.get("seed"),
        "ss_output_name": settings.get("run"),
        "ss_sd_model_name": backbone.get("source"),
        "ss_resolution": f"({side}, {side})" if side else None,
    }
    return {key: str(value) for key, value in named.items() if isinstance(value, int | float | str) and value != ""}


def _of_architecture(architecture: Architecture | None, settings: Mapping[str, Any]) -> dict[str, str]:
    version = architecture.version if architecture else ""
    if not version and isinstance(backbone := settings.get("backbone"), dict):
        version = KNOWN.get(str(backbone.get("name")), "")
    if not version:
        return {}
    return {
        "ss_base_model_version": _VERSIONS[version],
        "ss_v2": str(version == "SD 2.x"),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": _SPEC[version],
        "modelspec.implementation": "diffusers",
    }

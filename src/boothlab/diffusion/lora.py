"""The adapter: attach it, initialise it from its own seed stream, save it for any tool, load any tool's."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from boothlab.diffusion.backbone import Backbone, first_line
from boothlab.diffusion.formats.adapter import low_rank
from boothlab.diffusion.formats.architecture import of_backbone
from boothlab.diffusion.formats.container import peft_files, safetensors_bytes
from boothlab.diffusion.formats.diffusers_format import FILE_NAME, METADATA_KEY
from boothlab.diffusion.formats.inject import add_words, inject, inject_products
from boothlab.diffusion.formats.products import ProductWeights
from boothlab.diffusion.formats.read import read_adapter, refuse_zero
from boothlab.diffusion.learned_words import shed_words
from boothlab.diffusion.variants import (
    lycoris_layers,
    lycoris_state,
    magnitudes,
    peft_config,
    shed_variants,
    start_lycoris,
    variant_metadata,
    variant_of,
)
from boothlab.errors import UserError
from boothlab.files import PICKLED, shown, write_bytes
from boothlab.quiet import quiet_libraries
from boothlab.seeding import Stream, generator

log = logging.getLogger(__name__)
ADAPTER = "boothlab"


def lora_layers(module: nn.Module) -> dict[str, LoraLayer]:
    """The adapted layers of a module, by name, in a fixed order."""
    found = {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}
    return dict(sorted(found.items()))


def _matrices_of(layer: LoraLayer, adapter: str = ADAPTER) -> tuple[nn.Parameter, nn.Parameter]:
    """Down and up."""
    return layer.lora_A[adapter].weight, layer.lora_B[adapter].weight


def _check_targets(module: nn.Module, component: str, targets: Sequence[str]) -> None:
    names = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    for target in targets:
        if not any(name == target or name.endswith("." + target) for name in names):
            endings = sorted({_ending(name) for name in names})
            key = "unet_targets" if component == "unet" else "text_encoder_targets"
            raise UserError(
                f"lora.{key}: no layer of the {component} ends in {target!r}; its layers end in {', '.join(endings)}"
            )


def _ending(name: str) -> str:
    """The end of a layer's name that says what it is, as targets name it: `to_q`, `to_out.0`, `ff.net.0.proj`."""
    parts = name.split(".")
    start = len(parts) - 1
    while start > 0 and (parts[start].isdigit() or (parts[start - 1].isdigit() and parts[start] == "proj")):
        start -= 1
    return ".".join(parts[start:])


def attach(
    module: nn.Module,
    component: str,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    init: str,
    targets: Sequence[str],
    seed: int,
    variant: str = "lora",
) -> int:
    """Add a trainable float32 adapter to the layers whose names end in one of `targets`; returns how many layers.

    Each layer's down matrix is drawn from its own generator, so that neither the order of layers nor anything drawn
    before can change it: N(0, 1/rank) for `gaussian` as in diffusers, Kaiming-uniform for `kaiming` as in the LoRA
    paper's code. The up matrix is zero. LoHa and LoKr start as in peft, whatever `init` says. Raises UserError when a
    target matches no layer.
    """
    if init not in ("gaussian", "kaiming"):
        raise ValueError(f"init={init}: gaussian or kaiming")
    _check_targets(module, component, targets)
    settings = peft_config(variant, rank, alpha, dropout, targets)
    with torch.random.fork_rng(devices=[]):  # peft draws its own start from the global generator; it is replaced below
        module.add_adapter(settings, adapter_name=ADAPTER)  # type: ignore[operator]
    if variant in ("loha", "lokr"):
        return start_lycoris(module, component, seed)
    layers = lora_layers(module)
    for name, layer in layers.items():
        down, up = _matrices_of(layer)
        values = torch.empty(down.shape, dtype=torch.float32)
        stream = generator(seed, Stream.LORA_INIT, component, name)
        if init == "gaussian":
            values.normal_(0.0, 1.0 / rank, generator=stream)
        else:
            nn.init.kaiming_uniform_(values, a=5**0.5, generator=stream)
        down.data = values.to(down.device)
        up.data = torch.zeros_like(up, dtype=torch.float32)
    return len(layers)


def shed_adapters(backbone: Backbone) -> None:
    """Take every adapter off and leave the networks as they were loaded: frozen, in eval mode, on their device."""
    shed_words(backbone)
    for module in (backbone.unet, *backbone.text_encoders.values()):
        if lycoris_layers(module):
            shed_variants(module)
    if backbone.words:
        with quiet_libraries(), torch.random.fork_rng(devices=[]):
            backbone.pipeline.unload_textual_inversion(list(backbone.words))
        backbone.words.clear()
    if any(lora_layers(module) for module in (backbone.unet, *backbone.text_encoders.values())):
        backbone.pipeline.unload_lora_weights()
    backbone.vae.to(backbone.device)  # a training may have parked it
    if backbone.unet.is_gradient_checkpointing:
        backbone.unet.disable_gradient_checkpointing()
    for module in (backbone.unet, *backbone.text_encoders.values()):
        module.requires_grad_(False).eval().to(backbone.device)


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name, in a fixed order."""
    return dict(sorted((name, value) for name, value in module.named_parameters() if value.requires_grad))


def adapter_state(components: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The adapters under the names of a diffusers file, float32 on the CPU; components without one are left out.

    UNet keys are all of peft's kind (`lora_A`) and text-encoder keys all of diffusers' (`lora_linear_layer.down`):
    diffusers looks at one key to tell which kind a file is, and silently drops the others of a mixture. The names of
    SD 1.x's and 2.x's text encoder keep the `text_model.` that transformers 5 dropped: old and new loaders and other
    tools find their layers by it.
    """
    state: dict[str, Tensor] = {}
    for component, module in components.items():
        kinds = ("lora_A", "lora_B") if component == "unet" else ("lora_linear_layer.down", "lora_linear_layer.up")
        prefix = component if component == "unet" or hasattr(module, "text_model") else f"{component}.text_model"
        for name, layer in lora_layers(module).items():
            for kind, matrix in zip(kinds, _matrices_of(layer), strict=True):
                # A copy, so that a later optimizer step cannot change it.
                state[f"{prefix}.{name}.{kind}.weight"] = (
                    matrix.detach().to("cpu", torch.float32, copy=True).contiguous()
                )
    return dict(sorted(state.items()))


def save_adapter(folder: Path, components: Mapping[str, nn.Module], settings: Mapping[str, Any]) -> Path:
    """Write `pytorch_lora_weights.safetensors` with rank and alpha for diffusers and the run's settings as metadata.

    The same adapters and settings give the same bytes.
    """
    peft_settings: dict[str, Any] = {}
    for component, module in components.items():
        if lora_layers(module):
            config: Any = module.peft_config[ADAPTER]  # type: ignore[index]
            # No more than these three: older versions of peft refuse fields they do not know, and a pipeline that is
            # told of dropout would sample with it.
            peft_settings[f"{component}.r"] = config.r
            peft_settings[f"{component}.lora_alpha"] = config.lora_alpha
            peft_settings[f"{component}.target_modules"] = sorted(config.target_modules)
            if variant_of(module) == "dora":
                peft_settings[f"{component}.use_dora"] = True
    state = adapter_state(components) | magnitudes(components) | lycoris_state(components)
    if not state:
        raise ValueError("no component carries an adapter: nothing to save")
    metadata = {"format": "pt", "boothlab": json.dumps(dict(settings), sort_keys=True), **variant_metadata(components)}
    if peft_settings:
        metadata[METADATA_KEY] = json.dumps(peft_settings, sort_keys=True)
    path = folder / FILE_NAME
    write_bytes(path, safetensors_bytes(state, metadata))
    return path


def find_adapter(path: Path) -> Path:
    """The adapter meant by a run folder, a LoRA folder or a file: its file, or the folder for one that PEFT wrote.

    Raises UserError when there is none.
    """
    if path.is_dir() and peft_files(path) and not (path / FILE_NAME).is_file():
        return path
    if path.is_file():
        candidates = [path]
    else:
        candidates = [path / "lora" / FILE_NAME, path / FILE_NAME, *sorted(path.glob("*.safetensors"))]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None and path.is_dir() and (pickled := [file for file in path.glob("*") if file.suffix in PICKLED]):
        _refuse_pickle(min(pickled))
    if found is None:
        raise UserError(
            f"run={shown(path)}: no LoRA file there; give a run folder, a LoRA folder or a .safetensors file"
        )
    _refuse_pickle(found)
    return found


def _refuse_pickle(path: Path) -> None:
    if path.suffix != ".safetensors":
        raise UserError(
            f"{shown(path)}: is not a .safetensors file; pickled weights can run code and are refused: "
            "convert it with safetensors.torch.save_file(torch.load(FILE, weights_only=True), NEW_FILE)"
        )


def read_metadata(path: Path) -> dict[str, Any]:
    """The settings boothlab wrote into an adapter file, whatever its format; empty for a file of another tool.

    Raises UserError when the file cannot be read.
    """
    if path.is_dir() and (files := peft_files(path)):
        path = files[0]
    _refuse_pickle(path)
    try:
        with safe_open(path, framework="pt") as file:
            settings = json.loads((file.metadata() or {}).get("boothlab", "{}"))
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{shown(path)}: is not a readable safetensors file ({first_line(error)}); is it cut short?"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{shown(path)}: its boothlab metadata is not JSON ({first_line(error)}); make the file again"
        ) from error
    return settings if isinstance(settings, dict) else {}


def load_adapter(
    backbone: Backbone,
    path: Path,
    unet_scale: float = 1.0,
    text_encoder_scale: float = 1.0,
    *,
    beside: Sequence[str] = (),
) -> str:
    """Load an adapter of any known format, at one scale for the UNet and one for the text encoders.

    diffusers puts the layers in; each then gets the numbers of the file in float32, its own rank and its own alpha,
    frozen. Embeddings of new words that came with it can be used in prompts. `beside` names the adapters that are
    loaded already and go on acting; the name of the new one is returned. Raises UserError when the file is unreadable,
    when any of its keys found no layer, or when the backbone carries another adapter; the backbone is then as it was,
    or bare of all `beside`.
    """
    read_metadata(path)
    components = {"unet": backbone.unet, **backbone.text_encoders}
    adapter = f"{ADAPTER}_{len(beside)}" if beside else ADAPTER
    layers = [layer for module in components.values() for layer in lora_layers(module).values()]
    foreign = any(set(layer.lora_A) - set(beside) for layer in layers)
    if foreign or any(lycoris_layers(module) for module in components.values()):
        raise UserError(
            f"{shown(path)}: the backbone {backbone.name} carries an adapter already; load a fresh backbone"
        )
    try:
        weights = read_adapter(path, of_backbone(backbone), products=True)
        if beside and weights.variants.keys() - {"lora"}:
            raise UserError(f"{shown(path)}: a DoRA, LoHa or LoKr goes with no other adapter; load it alone")
        if weights.is_zero and "boothlab" in weights.metadata:
            log.warning("%s: the adapter's update is zero; images will be the bare backbone's", shown(path))
        else:
            refuse_zero(weights, path)
        with quiet_libraries(), torch.random.fork_rng(devices=[]):  # peft and new words draw their starts from it
            for component, held in weights.components.items():
                products = {name: layer for name, layer in held.items() if isinstance(layer, ProductWeights)}
                if products:
                    inject_products(backbone, component, products)
                else:
                    inject(backbone, component, low_rank(held), adapter)
            add_words(backbone, weights.embeddings, path)
    except Exception as error:
        shed_adapters(backbone)
        if isinstance(error, UserError):
            raise
        raise UserError(f"{shown(path)}: does not fit the backbone {backbone.name} ({first_line(error)})") from error
    for component, module in components.items():
        scale = unet_scale if component == "unet" else text_encoder_scale
        for layer in lora_layers(module).values():
            layer.set_adapter([name for name in (*beside, adapter) if name in layer.lora_A])
            layer.set_scale(adapter, scale)
        for product in lycoris_layers(module).values():
            product.set_scale(adapter, scale)
        module.requires_grad_(False).eval()  # layers that were just added come in train mode
    return adapter

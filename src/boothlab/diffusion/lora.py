"""The adapter: attach it, initialise it from its own seed stream, save it so that any tool loads it, load it back."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from boothlab.diffusion.backbone import Backbone, first_line
from boothlab.errors import UserError
from boothlab.files import PICKLED, shown, write_bytes
from boothlab.quiet import quiet_libraries
from boothlab.seeding import Stream, generator

log = logging.getLogger(__name__)
FILE_NAME = "pytorch_lora_weights.safetensors"
ADAPTER = "boothlab"
METADATA_KEY = "lora_adapter_metadata"  # diffusers' own key: it carries rank and alpha to load_lora_weights


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
) -> int:
    """Add a trainable float32 adapter to the layers whose names end in one of `targets`; returns how many layers.

    Each layer's down matrix is drawn from its own generator, so that neither the order of layers nor anything drawn
    before can change it: N(0, 1/rank) for `gaussian` as in diffusers, Kaiming-uniform for `kaiming` as in the LoRA
    paper's code. The up matrix is zero. Raises UserError when a target matches no layer.
    """
    if init not in ("gaussian", "kaiming"):
        raise ValueError(f"init={init}: gaussian or kaiming")
    _check_targets(module, component, targets)
    settings = PeftLoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(targets))
    with torch.random.fork_rng(devices=[]):  # peft draws its own start from the global generator; it is replaced below
        module.add_adapter(settings, adapter_name=ADAPTER)  # type: ignore[operator]
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
    if any(lora_layers(module) for module in (backbone.unet, *backbone.text_encoders.values())):
        backbone.pipeline.unload_lora_weights()
    if backbone.unet.is_gradient_checkpointing:
        backbone.unet.disable_gradient_checkpointing()
    for module in (backbone.unet, *backbone.text_encoders.values()):
        module.requires_grad_(False).eval().to(backbone.device)


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's parameters by name, in a fixed order."""
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
    if not peft_settings:
        raise ValueError("no component carries an adapter: nothing to save")
    metadata = {
        "format": "pt",
        METADATA_KEY: json.dumps(peft_settings, sort_keys=True),
        "boothlab": json.dumps(dict(settings), sort_keys=True),
    }
    path = folder / FILE_NAME
    write_bytes(path, _in_order(to_safetensors(adapter_state(components), metadata=metadata)))
    return path


def _in_order(data: bytes) -> bytes:
    """A safetensors file with its header sorted: the library writes metadata in another order every time."""
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode("ascii")
    header += b" " * (-len(header) % 8)  # tensors start at a multiple of eight bytes
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def find_adapter(path: Path) -> Path:
    """The adapter file meant by a run folder, a LoRA folder or a file. Raises UserError when there is none."""
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
    """The settings boothlab wrote into an adapter file; empty for a file of another tool.

    Raises UserError when the file cannot be read.
    """
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
    """Load an adapter file through diffusers' own loader, at one scale for the UNet and one for the text encoders.

    The matrices stay in float32 and are frozen. `beside` names the adapters that are loaded already and go on acting;
    the name of the new one is returned. Raises UserError when the file is unreadable, when any of its keys found no
    layer, or when the backbone carries another adapter; the backbone is then as it was, or bare of all `beside`.
    """
    read_metadata(path)
    components = {"unet": backbone.unet, **backbone.text_encoders}
    adapter = f"{ADAPTER}_{len(beside)}" if beside else ADAPTER
    layers = [layer for module in components.values() for layer in lora_layers(module).values()]
    if any(set(layer.lora_A) - set(beside) for layer in layers):
        raise UserError(
            f"{shown(path)}: the backbone {backbone.name} carries an adapter already; load a fresh backbone"
        )
    try:
        with quiet_libraries(), torch.random.fork_rng(devices=[]):
            backbone.pipeline.load_lora_weights(
                str(path.parent),
                weight_name=path.name,
                adapter_name=adapter,
                use_safetensors=True,
                local_files_only=True,
            )
        _match(path, backbone, components, adapter)
    except Exception as error:
        backbone.pipeline.unload_lora_weights()
        if isinstance(error, UserError):
            raise
        raise UserError(f"{shown(path)}: does not fit the backbone {backbone.name} ({first_line(error)})") from error
    for component, module in components.items():
        scale = unet_scale if component == "unet" else text_encoder_scale
        for layer in lora_layers(module).values():
            layer.set_adapter([name for name in (*beside, adapter) if name in layer.lora_A])
            layer.set_scale(adapter, scale)
        module.requires_grad_(False).eval()  # layers that were just added come in train mode
    return adapter


def _match(path: Path, backbone: Backbone, components: Mapping[str, nn.Module], adapter: str) -> None:
    """Find every matrix of the file in the backbone, and give it back the precision it has in the file.

    Loaders pass over keys they do not know (diffusers #6399), and round to the backbone's precision. Matrices are
    compared by content, since every tool has its own names for them.
    """
    held = {key: value for key, value in load_file(path).items() if not key.endswith(".alpha")}
    contents = {key: _content(value, backbone.dtype) for key, value in held.items()}
    by_content = {contents[key]: value for key, value in held.items()}
    layers = [layer for module in components.values() for layer in lora_layers(module).values()]
    layers = [layer for layer in layers if adapter in layer.lora_A]
    found, met = 0, set()
    for layer in layers:
        for matrix in _matrices_of(layer, adapter):
            content = _content(matrix.detach(), backbone.dtype)
            value = by_content.get(content)
            if value is not None:
                found += 1
                met.add(content)
                matrix.data = value.to(matrix.device, torch.float32).reshape(matrix.shape)
    if found != len(held) or found != 2 * len(layers):
        lost = [shown(key) for key in sorted(held) if contents[key] not in met]
        without = f" (without one: {', '.join(lost[:3])}{', …' if len(lost) > 3 else ''})" if lost else ""
        raise UserError(
            f"{shown(path)}: has {len(held)} matrices, of which {found} found a layer of the backbone {backbone.name}"
            f"{without}; it was made for another architecture, or its keys carry another tool's prefix"
        )
    if not any(bool(_matrices_of(layer, adapter)[1].any()) for layer in layers):
        log.warning("%s: the adapter's update is zero; images will be the bare backbone's", shown(path))


def _content(value: Tensor, dtype: torch.dtype) -> bytes:
    """A digest of a matrix's numbers at a precision."""
    numbers = value.to("cpu", dtype).to(torch.float32).contiguous()
    return hashlib.sha256(numbers.numpy().tobytes()).digest()

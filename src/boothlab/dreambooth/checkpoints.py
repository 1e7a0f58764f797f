"""Resume checkpoints: the adapter, the optimizer and the counters, as safetensors and JSON, never the base model."""

import logging
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor

from boothlab.diffusion.lora import save_adapter, trainable
from boothlab.dreambooth.ema import AdapterEma
from boothlab.dreambooth.module import DreamBoothModule
from boothlab.errors import UserError
from boothlab.files import atomic_directory, read_json, sha256_file, write_bytes, write_json

log = logging.getLogger(__name__)
STATE, TENSORS = "state.json", "resume.safetensors"


def folder_name(step: int) -> str:
    """`step_000200`: sorts as text."""
    return f"step_{step:06d}"


def adapter_parameters(module: DreamBoothModule) -> dict[str, Tensor]:
    """All trained parameters by component and name, in the optimizer's order."""
    return {
        f"{component}.{name}": value
        for component, network in module.networks.items()
        for name, value in trainable(network).items()
    }


def save_checkpoint(
    run_dir: Path,
    module: DreamBoothModule,
    optimizer: Any,
    schedule: Any,
    step: int,
    settings: dict[str, Any],
    ema: AdapterEma | None = None,
    log_window: dict[str, float] | None = None,
) -> Path:
    """Write `checkpoints/step_NNNNNN/` whole or not at all: the adapter as users load it, and what resuming needs.

    With an average, the adapter file holds the average, which is what was evaluated; resuming needs the weights too.
    `log_window` is what the next row of metrics.jsonl has summed up so far.
    """
    folder = run_dir / "checkpoints" / folder_name(step)
    tensors: dict[str, Tensor] = {}
    for name, value in adapter_parameters(module).items():
        tensors[f"parameter/{name}"] = value.detach()
        for key, moment in optimizer.state.get(value, {}).items():
            tensors[f"optimizer/{key}/{name}"] = moment
    tensors |= {f"ema/{name}": value for name, value in (ema.shadow if ema else {}).items()}
    with atomic_directory(folder, replace=True) as building:
        write_bytes(building / TENSORS, to_safetensors({k: v.cpu().contiguous() for k, v in tensors.items()}))
        with ema.lent() if ema else nullcontext():
            save_adapter(building, dict(module.networks.items()), settings)
        hashes = {path.name: sha256_file(path) for path in sorted(building.iterdir())}
        state = {"step": step, "schedule": _plain_schedule(schedule), "log_window": log_window or {}, "files": hashes}
        write_json(building / STATE, state)
    return folder


def _plain_schedule(schedule: Any) -> dict[str, Any]:
    """The schedule's counters; its functions are made again from the config."""
    return {
        key: value
        for key, value in schedule.state_dict().items()
        if isinstance(value, int | float | list) and key != "lr_lambdas"
    }


def newest_checkpoint(run_dir: Path) -> tuple[Path, int] | None:
    """The newest checkpoint that is whole, with its step; a damaged one is named in a warning and passed over."""
    for folder in sorted((run_dir / "checkpoints").glob("step_*"), reverse=True):
        try:
            state: Any = read_json(folder / STATE)
            damaged = [name for name, digest in state["files"].items() if sha256_file(folder / name) != digest]
            step = int(state["step"])
        except (UserError, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
            log.warning("%s is not whole (%s) and is passed over", folder, error)
            continue
        if not damaged:
            return folder, step
        log.warning("%s is damaged (%s) and is passed over", folder, ", ".join(damaged))
    return None


@dataclass
class Restored:
    """What a checkpoint says beyond the module, the optimizer and the schedule: the average and the log's sums."""

    average: dict[str, Tensor]
    log_window: dict[str, float]


def restore_checkpoint(folder: Path, module: DreamBoothModule, optimizer: Any, schedule: Any) -> Restored:
    """Put a checkpoint's adapter, optimizer and schedule back."""
    try:
        tensors = from_safetensors((folder / TENSORS).read_bytes())
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{folder}: cannot be resumed from ({error}); delete it to resume from the one before"
        ) from error
    with torch.no_grad():
        for name, value in adapter_parameters(module).items():
            value.copy_(tensors[f"parameter/{name}"])
            prefix = "optimizer/"
            moments = {
                key[len(prefix) : -len(name) - 1]: tensor.clone()
                for key, tensor in tensors.items()
                if key.startswith(prefix) and key.endswith("/" + name)
            }
            if moments:
                optimizer.state[value] = {
                    key: moment if key == "step" else moment.to(value.device) for key, moment in moments.items()
                }
    state: Any = read_json(folder / STATE)
    schedule.load_state_dict({**schedule.state_dict(), **state["schedule"]})
    for group, lr in zip(optimizer.param_groups, state["schedule"]["_last_lr"], strict=True):
        group["lr"] = lr
    average = {key.removeprefix("ema/"): value for key, value in tensors.items() if key.startswith("ema/")}
    return Restored(average, state["log_window"])

"""Resume checkpoints: what is trained, the optimizer and the counters, as safetensors and JSON; nothing frozen."""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from boothlab.diffusion.backbone import first_line
from boothlab.diffusion.lora import trainable
from boothlab.diffusion.sharding import parted_like, whole
from boothlab.dreambooth.ema import AdapterEma
from boothlab.dreambooth.module import DreamBoothModule
from boothlab.dreambooth.optimizers import EvalWeights, numbers_of, restore_numbers
from boothlab.dreambooth.saving import save_small
from boothlab.errors import UserError, is_out_of_memory
from boothlab.files import atomic_directory, read_json, sha256_bytes, sha256_file, shown, write_bytes, write_json

log = logging.getLogger(__name__)
STATE, TENSORS = "state.json", "resume.safetensors"


def folder_name(step: int) -> str:
    """`step_000200`: sorts as text."""
    return f"step_{step:06d}"


def adapter_parameters(module: DreamBoothModule) -> dict[str, nn.Parameter]:
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
    ema: AdapterEma | EvalWeights | None = None,
    log_window: dict[str, float] | None = None,
) -> Path:
    """Write `checkpoints/step_NNNNNN/` whole or not at all: what users load, and what resuming needs.

    Whole networks are written for users at the end of the run alone, and of their checkpoints only the newest is kept.
    With an average, the adapter file holds the average, which is what was evaluated; resuming needs the weights too.
    `log_window` is what the next row of metrics.jsonl has summed up so far.
    """
    folder = run_dir / "checkpoints" / folder_name(step)
    tensors = {key: value.cpu().contiguous() for key, value in resume_tensors(module, optimizer, ema)}
    with atomic_directory(folder, replace=True) as building:
        write_bytes(building / TENSORS, to_safetensors(tensors))
        with ema.lent() if ema else nullcontext():
            save_small(building, building, module, settings)
        hashes = {path.name: sha256_file(path) for path in sorted(building.iterdir())}
        state = {"step": step, "schedule": _plain_schedule(schedule), "log_window": log_window or {}, "files": hashes}
        if numbers := numbers_of(optimizer, adapter_parameters(module)):
            state["optimizer"] = numbers
        write_json(building / STATE, {**state, "sha256": _digest(state)})
    if module.whole is not None:
        for older in sorted(folder.parent.glob("step_*")):
            if older.name < folder.name:
                shutil.rmtree(older)
    return folder


def resume_tensors(
    module: DreamBoothModule, optimizer: Any, ema: AdapterEma | EvalWeights | None
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a checkpoint by name, one by one. Where networks are parted, all ranks go through them."""
    for name, value in adapter_parameters(module).items():
        yield f"parameter/{name}", whole(value.detach())
        for key, moment in optimizer.state.get(value, {}).items():
            if isinstance(moment, Tensor):
                yield f"optimizer/{key}/{name}", whole(moment)
    for name, average in (ema.shadow if ema else {}).items():
        yield f"ema/{name}", whole(average)


def _digest(state: dict[str, Any]) -> str:
    """SHA-256 of a state without its own hash: a flipped digit in it would be a wrong step or learning rate."""
    return sha256_bytes(json.dumps({k: v for k, v in state.items() if k != "sha256"}, sort_keys=True).encode())


def _plain_schedule(schedule: Any) -> dict[str, Any]:
    """The schedule's counters; its functions are made again from the config."""
    return {
        key: value
        for key, value in schedule.state_dict().items()
        if isinstance(value, int | float | list) and key != "lr_lambdas"
    }


def newest_checkpoint(run_dir: Path) -> tuple[Path, int] | None:
    """The newest checkpoint that is whole, with its step; a damaged one is named in a warning and passed over."""
    folders = sorted((run_dir / "checkpoints").glob("step_*"), key=lambda folder: (len(folder.name), folder.name))
    for folder in reversed(folders):
        try:
            return folder, _whole(folder)
        except (UserError, OSError, AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            log.warning("%s is damaged (%s) and is passed over", folder, error)
    return None


def _whole(folder: Path) -> int:
    """The step of a checkpoint, all of whose files are what they were when it was written. Raises if they are not."""
    state: Any = read_json(folder / STATE)
    if state.get("sha256", _digest(state)) != _digest(state):  # older ones have none
        raise ValueError(f"{STATE} was altered")
    if TENSORS not in state["files"]:
        raise ValueError(f"{STATE} does not name {TENSORS}")
    if altered := [name for name, digest in state["files"].items() if sha256_file(folder / name) != digest]:
        raise ValueError(f"{', '.join(altered)} was altered")
    step = int(state["step"])
    if folder.name != folder_name(step):
        raise ValueError(f"{STATE} is of step {step}")
    return step


@dataclass
class Restored:
    """What a checkpoint says beyond the module, the optimizer and the schedule: the average and the log's sums."""

    average: dict[str, Tensor]
    log_window: dict[str, float]


def restore_checkpoint(folder: Path, module: DreamBoothModule, optimizer: Any, schedule: Any) -> Restored:
    """Put a checkpoint's adapter, optimizer and schedule back. Raises UserError if it does not hold all of them."""
    try:
        return _restore(folder, module, optimizer, schedule)
    except (
        SafetensorError,
        OSError,
        RuntimeError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
    ) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"{shown(folder)}: cannot be resumed from ({first_line(error)}); delete it to resume from the one before"
        ) from error


def _restore(folder: Path, module: DreamBoothModule, optimizer: Any, schedule: Any) -> Restored:
    tensors = from_safetensors((folder / TENSORS).read_bytes())
    with torch.no_grad():
        for name, value in adapter_parameters(module).items():
            value.copy_(parted_like(tensors[f"parameter/{name}"], value))
            prefix = "optimizer/"
            moments = {
                key[len(prefix) : -len(name) - 1]: tensor.clone()
                for key, tensor in tensors.items()
                if key.startswith(prefix) and key.endswith("/" + name)
            }
            if moments:
                # AdamW counts its steps on the CPU, unless it is fused.
                here = {key for key in moments if key != "step" or optimizer.defaults.get("fused")}
                optimizer.state[value] = {
                    key: parted_like(moment.to(value.device), value) if key in here else moment
                    for key, moment in moments.items()
                }
    state: Any = read_json(folder / STATE)
    restore_numbers(optimizer, adapter_parameters(module), state.get("optimizer", {}))
    # Only the counters that were saved: a scheduler takes whatever it is given for its own attributes.
    counters = {key: state["schedule"][key] for key in _plain_schedule(schedule)}
    schedule.load_state_dict({**schedule.state_dict(), **counters})
    for group, lr in zip(optimizer.param_groups, state["schedule"]["_last_lr"], strict=True):
        group["lr"] = lr
    average = {key.removeprefix("ema/"): value for key, value in tensors.items() if key.startswith("ema/")}
    return Restored(average, {str(key): float(value) for key, value in state["log_window"].items()})

"""How many runs of a kind fit into the memory that is free, for a launcher that trains them in one model."""

import psutil
import torch

from boothlab.building.forecast import forecast
from boothlab.building.parts import build_device
from boothlab.config import TrainConfig

USED = 0.8
"""Of the free memory: the forecast leaves out what kernels and allocators take for themselves."""


def jobs_that_fit(config: TrainConfig) -> int:
    """How many runs like this one can train at once beside one copy of the frozen networks; at least 1."""
    parts = forecast(config).training
    shared = sum(part.size for part in parts if part.what.endswith("frozen") or part.what.startswith("CUDA"))
    each = sum(part.size for part in parts) - shared
    return max(1, int((USED * _free(config) - shared) // max(1, each)))


def _free(config: TrainConfig) -> int:
    """Bytes that nobody uses on the run's device."""
    device = build_device(config.trainer.accelerator)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)

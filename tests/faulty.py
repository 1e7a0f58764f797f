"""Runs boothlab with one fault put into its process: what a bad bit, a full memory or a wrong clock does there.

    python tests/faulty.py FAULT STEP train seed=0 …

The faults are context managers too, so that a test can put them into its own process.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

import torch

from boothlab.cli import main
from boothlab.dreambooth.checkpoints import adapter_parameters
from boothlab.dreambooth.module import DreamBoothModule

TOO_MUCH = 1 << 60
"""Bytes that no machine has."""


@contextmanager
def _before(step: int, act: Callable[[DreamBoothModule], object], method: str = "training_step") -> Iterator[None]:
    """`act` just before the method is called for optimizer step `step`, counted from 1."""
    original: Any = getattr(DreamBoothModule, method)

    def wrapped(self: DreamBoothModule, *arguments: Any, **named: Any) -> Any:
        done = self.micro_step if method == "training_step" else self.micro_step - 1
        if done == step - 1:
            act(self)
        return original(self, *arguments, **named)

    with patch.object(DreamBoothModule, method, wrapped):
        yield


def nan_in_weights(step: int) -> AbstractContextManager[None]:
    """One weight of the adapter is NaN when the step begins."""

    def spoil(module: DreamBoothModule) -> None:
        with torch.no_grad():
            next(iter(adapter_parameters(module).values())).view(-1)[0] = float("nan")

    return _before(step, spoil)


def nan_in_gradients(step: int) -> AbstractContextManager[None]:
    """One number of the step's gradient is NaN, though its loss is a number."""

    def spoil(module: DreamBoothModule) -> None:
        gradient = next(iter(adapter_parameters(module).values())).grad
        assert gradient is not None
        gradient.view(-1)[0] = float("nan")

    return _before(step, spoil, "configure_gradient_clipping")


def no_memory(step: int) -> AbstractContextManager[None]:
    """The step asks PyTorch's allocator for more than there is."""
    return _before(step, lambda _: torch.empty(TOO_MUCH, dtype=torch.uint8))


@contextmanager
def clock_goes_back(step: int) -> Iterator[None]:
    """Every reading of the system's clock is an hour before the last one."""
    real, readings = time.time, 0

    def earlier() -> float:
        nonlocal readings
        readings += 1
        return real() - 3600.0 * readings

    with patch.object(time, "time", earlier):
        yield


FAULTS: dict[str, Callable[[int], AbstractContextManager[None]]] = {
    "nan in weights": nan_in_weights,
    "nan in gradients": nan_in_gradients,
    "no memory": no_memory,
    "clock": clock_goes_back,
}

if __name__ == "__main__":
    with FAULTS[sys.argv[1]](int(sys.argv[2])):
        sys.exit(main(sys.argv[3:]))

"""Runs a command in this process and notes when each optimizer step ended; `runs.py` starts it, for both sides alike.

    python launcher.py NOTES [--stand-in FOLDER] (-m MODULE | SCRIPT) [argument …]

NOTES becomes a JSON file: `first` and `steps` are seconds of the monotonic clock, `processor` seconds of this process.
"""

import atexit
import json
import runpy
import sys
import time
from pathlib import Path
from typing import Any


def note_steps(notes: Path) -> None:
    """Have torch tell of each optimizer step, whoever takes it, and write what was noted when the process ends."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    steps: list[float] = []
    processor: list[float] = []

    def after_step(*_: Any) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        steps.append(time.monotonic())
        processor.append(time.process_time())

    def write() -> None:
        peak = torch.cuda.max_memory_reserved() if torch.cuda.is_initialized() else None
        notes.write_text(json.dumps({"steps": steps, "processor": processor, "cuda_peak": peak}), encoding="utf-8")

    register_optimizer_step_post_hook(after_step)
    atexit.register(write)


def use_stand_in(folder: str) -> None:
    """Let `from torchvision import transforms` find the stand-in, after the libraries have seen that it is not there.

    With the real one installed nothing is done.
    """
    import importlib.util

    if importlib.util.find_spec("torchvision") is not None:
        return
    import accelerate  # noqa: F401
    import diffusers.utils.import_utils  # noqa: F401
    from transformers.utils import is_torchvision_available

    is_torchvision_available()  # remembers its answer
    sys.path.append(folder)


def main() -> None:
    """As the module says."""
    notes, arguments = Path(sys.argv[1]), sys.argv[2:]
    if arguments[0] == "--stand-in":
        use_stand_in(arguments[1])
        arguments = arguments[2:]
    note_steps(notes)
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return
    sys.argv = arguments
    sys.path[0] = str(Path(arguments[0]).parent)
    runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main()

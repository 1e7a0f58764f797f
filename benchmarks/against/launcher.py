"""Runs a command in this process and notes when each optimizer step ended; `runs.py` starts it, for both sides alike.

    python launcher.py NOTES [--stand-in FOLDER] (-m MODULE | SCRIPT) [argument …]

NOTES becomes a JSON file: `steps` are seconds of the monotonic clock, `processor` seconds of this process.
"""

import atexit
import importlib.util
import json
import runpy
import sys
import time
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any


class OnImport(MetaPathFinder):
    """Calls a function with a module as soon as somebody has imported it: what is measured imports when it likes to."""

    def __init__(self, name: str, then: Callable[[Any], None]) -> None:
        self.name, self.then = name, then

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Nothing for other modules; for this one what Python finds, with a loader that calls the function."""
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            self.then(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def note_steps(notes: Path) -> None:
    """Have torch tell of each optimizer step, whoever takes it, and write what was noted when the process ends."""
    steps: list[float] = []
    processor: list[float] = []

    def after_step(*_: Any) -> None:
        torch = sys.modules["torch"]
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        steps.append(time.monotonic())
        processor.append(time.process_time())

    def write() -> None:
        torch = sys.modules.get("torch")
        peak = torch.cuda.max_memory_reserved() if torch is not None and torch.cuda.is_initialized() else None
        notes.write_text(json.dumps({"steps": steps, "processor": processor, "cuda_peak": peak}), encoding="utf-8")

    sys.meta_path.insert(
        0, OnImport("torch.optim.optimizer", lambda module: module.register_optimizer_step_post_hook(after_step))
    )
    atexit.register(write)


def use_stand_in(folder: str) -> None:
    """Let `from torchvision import transforms` find the stand-in, after the libraries have seen that it is not there.

    With the real one installed nothing is done.
    """
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
    note_steps(notes)
    if arguments[0] == "--stand-in":
        use_stand_in(arguments[1])
        arguments = arguments[2:]
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return
    sys.argv = arguments
    sys.path[0] = str(Path(arguments[0]).parent)
    runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main()

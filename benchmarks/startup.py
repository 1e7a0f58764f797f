"""Where the processor time of a start goes, from the shell to the first optimizer step: python benchmarks/startup.py.

`boothlab train` runs to its first step in processes of its own, on the tiny model and with the settings of peers.py.
Half of them are only timed; in the others, in turns with them, each import is charged to the library that a module is
of, and the rest to the stages of the start, always without what is charged elsewhere. Printed are medians, as Markdown.
"""

import argparse
import functools
import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

REST, TO_FIRST_STEP, WATCHED = "everything else", "--to-first-step", "--watched"
#: module: a function that it calls, and the stage of the start that this is
STAGES = {
    "hydra._internal.hydra": {"Hydra.compose_config": "composing the config"},
    "boothlab.compose.run": {"load": "checking the config"},
    "boothlab.compose.job": {"load": "checking the config"},
    "boothlab.building.training": {
        "build_backbone": "loading the pipeline",
        "build_data": "latents and embeddings",
        "put_on": "attaching the adapter",
        "write_manifest": "manifest: git, versions, machine",
    },
    "boothlab.dreambooth.run": {"fit": "Lightning's Trainer, and the first step"},
}
#: libraries with a row of their own
LIBRARIES = (
    *("torch", "numpy", "sympy", "scipy", "transformers", "diffusers", "peft", "accelerate", "huggingface_hub", "PIL"),
    *("pytorch_lightning", "lightning_fabric", "torchmetrics", "hydra", "omegaconf", "rich", "boothlab"),
)


class Clock:
    """Processor time of this process by label: what happens is charged to the label that was opened last."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.modules: Counter[str] = Counter()
        self._open, self._since = [REST], 0.0

    @contextmanager
    def charged_to(self, label: str) -> Iterator[None]:
        """Charge what happens inside to `label`, but for what is charged to another in there."""
        self.turn()
        self._open.append(label)
        try:
            yield
        finally:
            self.turn()
            self._open.pop()

    def turn(self) -> None:
        """Charge the time since the last turn."""
        now = time.process_time()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now


@dataclass
class WatchedImports:
    """Finds modules as Python does, and charges finding and executing each to its library."""

    clock: Clock

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """What Python finds, with a loader that looks at the clock and then wraps the module's stages."""
        library = name.partition(".")[0]
        with self.clock.charged_to(f"import {library}"):
            spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            self.clock.modules[library] += 1
            with self.clock.charged_to(f"import {library}"):
                execute(module)
            for place, stage in STAGES.get(name, {}).items():
                wrap(module, place, stage, self.clock)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def wrap(module: ModuleType, place: str, stage: str, clock: Clock) -> None:
    """Put a function in a function's place, `name` or `Class.name` of a module, that charges its time to a stage."""
    *outer, last = place.split(".")
    owner: Any = functools.reduce(getattr, outer, module)
    function: Callable[..., Any] = getattr(owner, last)

    @functools.wraps(function)
    def charged(*arguments: Any, **named: Any) -> Any:
        with clock.charged_to(stage):
            return function(*arguments, **named)

    setattr(owner, last, charged)


def to_first_step(notes: Path, watched: bool, arguments: Sequence[str]) -> None:
    """Run a command in this process and end it with its first optimizer step; what was measured goes to `notes`."""
    clock = Clock()

    def stop(*_: Any) -> NoReturn:
        clock.turn()
        found = {"total": time.process_time(), "seconds": clock.seconds, "modules": clock.modules}
        notes.write_text(json.dumps(found), encoding="utf-8")
        os._exit(0)

    sys.path.insert(0, str(Path(__file__).parent))
    from against.launcher import OnImport

    if watched:
        sys.meta_path.insert(0, WatchedImports(clock))
    sys.meta_path.insert(
        0, OnImport("torch.optim.optimizer", lambda torch: torch.register_optimizer_step_post_hook(stop))
    )
    sys.argv = list(arguments)
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


def measure(command: Sequence[str], out: Path, watched: bool) -> dict[str, Any]:
    """One start in a process of its own. Raises RuntimeError if it did not come to a step."""
    notes = out / "notes.json"
    own = [sys.executable, __file__, TO_FIRST_STEP, str(notes), *([WATCHED] if watched else [])]
    changes = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "CUDA_VISIBLE_DEVICES": ""}
    changes["PYTHONDONTWRITEBYTECODE"] = ""  # a checkout then has byte code, as an installed package has
    done = subprocess.run([*own, *command], env={**os.environ, **changes}, capture_output=True, text=True, check=False)
    if not notes.is_file():
        raise RuntimeError((done.stdout + done.stderr)[-2000:])
    return dict(json.loads(notes.read_text(encoding="utf-8")))


def rounds(count: int, work: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """`count` starts that are timed and as many that are watched, in turns, after one that counts for nothing."""
    from against.cases import Case, boothlab_command
    from against.models import model_folder, picture_folder

    model, side = model_folder("tiny", work)
    photos = picture_folder(work / "photos", "robot", 6, 5, side)
    case = Case("tiny", model, photos, photos, side, 100, 1, 4, 1e-4, "fp32", "cpu")
    found: list[dict[str, Any]] = []
    for number in range(2 * count + 1):
        with tempfile.TemporaryDirectory(prefix="start-", dir=work) as folder:
            command = boothlab_command(case, Path(folder))[1:]
            found.append(measure(command, Path(folder), watched=number > 0 and number % 2 == 0))
    return found[1::2], found[2::2]


def table(timed: Sequence[dict[str, Any]], watched: Sequence[dict[str, Any]]) -> str:
    """Medians over the rounds, as Markdown: imports by library, then the stages, then the whole."""

    def median(kind: str, label: str) -> float:
        return float(statistics.median(one[kind].get(label, 0) for one in watched))

    libraries = sorted({name for one in watched for name in one["modules"]})
    lines = ["| | processor seconds | modules |", "|---|---|---|"]
    for name in sorted(set(libraries) & set(LIBRARIES), key=lambda name: -median("seconds", f"import {name}")):
        lines.append(
            f"| importing {name} | {median('seconds', f'import {name}'):.2f} | {median('modules', name):.0f} |"
        )
    few = [name for name in libraries if name not in LIBRARIES]
    seconds = sum(median("seconds", f"import {name}") for name in few)
    modules = sum(median("modules", name) for name in few)
    lines.append(f"| importing other libraries and Python's own | {seconds:.2f} | {modules:.0f} |")
    stages = dict.fromkeys(stage for places in STAGES.values() for stage in places.values())
    lines += [f"| {stage} | {median('seconds', stage):.2f} | |" for stage in [*stages, REST]]
    totals = sorted(one["total"] for one in timed)
    whole = f"**{statistics.median(totals):.2f}** ({totals[0]:.2f}–{totals[-1]:.2f})"
    return "\n".join([*lines, f"| **to the first step** | {whole} | |"])


def main() -> None:
    """As the module says."""
    if sys.argv[1:2] == [TO_FIRST_STEP]:
        words = [word for word in sys.argv[2:] if word != WATCHED]
        return to_first_step(Path(words[0]), WATCHED in sys.argv, words[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    with tempfile.TemporaryDirectory(prefix="boothlab-startup-") as name:
        print(table(*rounds(parser.parse_args().rounds, Path(name))))


if __name__ == "__main__":
    main()

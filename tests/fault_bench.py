"""Where faults are tried: small runs in processes of their own or in this one, and what each of them must have kept."""

import contextlib
import io
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boothlab
import faulty
from boothlab.cli import main
from boothlab.dreambooth.checkpoints import newest_checkpoint
from boothlab.files import sha256_file
from boothlab.tracking.history import read_history
from kill_sweep import TEMPORARY, facts, unsound, without_clocks
from training_runs import Lab

TESTS = Path(__file__).parent
PATIENCE_S = 600.0


class LostError(AssertionError):
    """A fault took something, or the rule was broken; the message says what."""


class CannotInjectError(Exception):
    """This machine cannot have the fault; the message says why."""


def expect(condition: object, what: str) -> None:
    """Raise LostError unless the condition holds."""
    if not condition:
        raise LostError(what)


@dataclass(frozen=True)
class Ended:
    """How a command ended: the exit code as a shell shows it (128 + signal), and all that it printed."""

    code: int
    printed: str

    def said(self, code: int, pattern: str) -> None:
        """Expect an exit code, and one clear last line of the command that matches."""
        expect(self.code == code, f"exit code {self.code}, not {code}: {self.printed[-1500:]}")
        expect("Traceback" not in self.printed, f"a traceback: {self.printed[-1500:]}")
        lines = [line for line in self.printed.splitlines() if line.strip()]
        own = [line for line in lines if line.startswith("boothlab: ")]
        expect(len(own) == 1 and lines[-1] == own[0], f"not one last line: {lines[-8:]}")
        expect(re.search(pattern, own[0]), f"the line does not say {pattern!r}: {own[0]}")


@dataclass(frozen=True)
class Written:
    """What a run folder held: rows, whole checkpoints, samples and the adapter, with their hashes."""

    rows: list[Any]
    files: dict[str, str]

    @classmethod
    def below(cls, run_dir: Path) -> "Written":
        """Whatever is whole in the folder now."""
        path = run_dir / "metrics.jsonl"
        rows = read_history(path).rows if path.exists() else []
        patterns = ("checkpoints/step_*/*", "samples/step_*/*", "lora/*")
        found = sorted({file for pattern in patterns for file in run_dir.glob(pattern) if file.is_file()})
        whole = [file for file in found if not TEMPORARY.search(file.relative_to(run_dir).as_posix())]
        hashes = {file.relative_to(run_dir).as_posix(): sha256_file(file) for file in whole}
        return cls([[row.step, without_clocks(row.scalars)] for row in rows], hashes)

    def kept_in(self, later: "Written") -> None:
        """Expect that nothing of this is gone or altered in what the folder holds later."""
        expect(later.rows[: len(self.rows)] == self.rows, f"of {len(self.rows)} rows some are gone")
        wrong = [name for name, digest in self.files.items() if later.files.get(name) != digest]
        expect(not wrong, f"gone or altered: {wrong[:3]}")


@dataclass
class Bench:
    """Small runs, each with its outputs in a folder of its own; `inside` runs them in this process and takes fewer."""

    folder: Path
    pipeline: Path
    inside: bool = False
    _straight: dict[tuple[str, ...], Path] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job, whose children ignore Ctrl-C
            signal.signal(signal.SIGINT, signal.default_int_handler)

    @property
    def every(self) -> int:
        """Optimizer steps between two checkpoints; a run has four, and is evaluated at every second."""
        return 2 if self.inside else 5

    def words(self, name: str, *extra: str) -> list[str]:
        """The overrides of a run with its outputs in `name`; the cache is the bench's."""
        steps = {"trainer.max_steps": 4 * self.every, "trainer.checkpoint_every": self.every}
        steps["evaluation.every"] = 2 * self.every
        given = [f"{key}={value}" for key, value in steps.items()]
        evaluated = ["evaluation.enabled=false"] if self.inside else []
        return Lab(self.folder, self.pipeline).overrides(name, *given, *evaluated, *extra)

    def run_dir(self, name: str) -> Path:
        """The one run below `name`."""
        found = sorted((self.folder / name).glob("*/[!.]*/"))
        expect(len(found) == 1, f"{len(found)} run folders in {name}")
        return found[0]

    @property
    def environment(self) -> dict[str, str]:
        """The package that is tested, one thread, and no folder or key of the user's."""
        home = self.folder / "wandb_home"
        kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
        own = {f"WANDB_{name}": str(home / name.lower()) for name in ("DIR", "DATA_DIR", "CACHE_DIR", "CONFIG_DIR")}
        for path in own.values():
            Path(path).mkdir(parents=True, exist_ok=True)
        package = os.pathsep.join([str(Path(boothlab.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        own |= {"NETRC": str(home / "netrc"), "PYTHONPATH": package, "OMP_NUM_THREADS": "1", "COLUMNS": "400"}
        return kept | own | {"HF_HUB_OFFLINE": "1"}

    def start(
        self, words: Sequence[str], fault: tuple[str, int] | None = None, environment: Mapping[str, str] | None = None
    ) -> "subprocess.Popen[str]":
        """`boothlab …` in a process of its own, with a fault of faulty.py in it if one is given."""
        program = ["-m", "boothlab"] if fault is None else [str(TESTS / "faulty.py"), fault[0], str(fault[1])]
        return subprocess.Popen(
            [sys.executable, *program, *words],
            env={**self.environment, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def train(
        self,
        name: str,
        *extra: str,
        fault: tuple[str, int] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Ended:
        """`boothlab train` to its end."""
        words = ["train", *self.words(name, *extra)]
        if self.inside:
            return _here(words, faulty.FAULTS[fault[0]](fault[1]) if fault else nullcontext())
        return wait(self.start(words, fault, environment))

    def straight(self, *extra: str) -> Path:
        """The run that nothing disturbed."""
        with self._lock:
            if extra not in self._straight:
                name = f"undisturbed-{len(self._straight)}"
                ended = self.train(name, *extra)
                expect(ended.code == 0, f"the undisturbed run failed: {ended.printed[-1500:]}")
                self._straight[extra] = self.run_dir(name)
            return self._straight[extra]

    def goes_on(self, name: str, *extra: str, cause: str = "", environment: Mapping[str, str] | None = None) -> Ended:
        """Expect that the same command, its cause mended, goes on and ends as the run that nothing disturbed."""
        found = sorted((self.folder / name).glob("*/[!.]*/"))
        before = Written.below(found[0]) if found else Written([], {})
        newest = newest_checkpoint(found[0]) if found else None
        ended = self.train(name, *extra, environment=environment)
        expect(ended.code == 0, f"it does not go on: {ended.printed[-1500:]}")
        if newest is not None:
            expect(f"resuming after step {newest[1]}" in ended.printed, "it did not go on after the newest checkpoint")
        run_dir = self.run_dir(name)
        kept = {file: digest for file, digest in before.files.items() if file.startswith(("checkpoints/", "samples/"))}
        Written([], {} if cause == "damage" else kept).kept_in(Written.below(run_dir))
        self.is_whole(run_dir, *extra)
        return ended

    def is_whole(self, run_dir: Path, *extra: str) -> None:
        """Expect a finished run with the bits of the undisturbed one, and nothing half-written beside them."""
        mine, theirs = facts(run_dir), facts(self.straight(*extra))
        wrong = [name for name in sorted(mine.keys() | theirs.keys()) if mine.get(name) != theirs.get(name)]
        expect(not wrong, f"not as in the undisturbed run: {wrong[:3]}")
        expect(json.loads((run_dir / "summary.json").read_text())["status"] == "finished", "the summary is not closed")
        expect(not unsound(run_dir), f"{unsound(run_dir)[:3]}")


def _here(words: list[str], fault: AbstractContextManager[object]) -> Ended:
    """The command in this process."""
    said, root = io.StringIO(), logging.getLogger()
    handlers = root.handlers[:], root.level
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), fault:
            code = main(words)
    finally:
        root.handlers[:], root.level = handlers
    return Ended(code, said.getvalue())


def wait(process: "subprocess.Popen[str]") -> Ended:
    """Wait for its end."""
    try:
        printed, _ = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise LostError(f"it did not end within {PATIENCE_S:.0f} s") from None
    code = process.returncode
    return Ended(code if code >= 0 else 128 - code, printed)


def wait_until(process: "subprocess.Popen[str]", ready: Callable[[], object]) -> None:
    """Wait until something is there; it must come while the process lives."""
    deadline = time.monotonic() + PATIENCE_S
    while not ready():
        if process.poll() is not None:
            raise LostError(f"it ended before the fault: {process.communicate()[0][-1500:]}")
        if time.monotonic() > deadline:
            process.kill()
            raise LostError("it never came to the place of the fault")
        time.sleep(0.0005)


@contextmanager
def small_disk(folder: Path, size: int, options: str = "") -> Iterator[Callable[[str], None]]:
    """A file system of `size` bytes at `folder`; gives a function that mounts it anew with other options."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0 or shutil.which("mount") is None:
        raise CannotInjectError("mounting a small disk takes the superuser of a Linux machine")
    folder.mkdir(parents=True)

    def mount(asked: str) -> None:
        done = subprocess.run(["mount", *asked.split(), str(folder)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotInjectError(f"this machine lets no disk be mounted ({done.stderr.strip()})")

    mount(f"-t tmpfs -o size={size}{options} tmpfs")
    try:
        yield lambda changed: mount(f"-o remount,{changed}")
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)

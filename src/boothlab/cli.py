"""The front door: `boothlab COMMAND …` finds the command, runs it, and turns errors into one line and an exit code."""

import difflib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from boothlab import __version__
from boothlab.errors import TERMINATED, RunFailedError, UserError, is_out_of_memory, one_line
from boothlab.starting import imports_uncollected

#: each command is boothlab/commands/<name>.py with `run(argv: list[str]) -> int`
COMMANDS = {
    "train": "one DreamBooth-LoRA run, evaluated at every checkpoint",
    "edit": "images edited by a method, scored against the source, the text and the truth",
    "caption": "a folder of images: audit, captions and tags",
    "sweep": "a study: many runs, planned, continued, reported",
    "report": "tables, plots and grids of finished runs",
    "sample": "images from a trained adapter, each with its own seed",
    "evaluate": "the metrics on any folder of images, from any tool",
    "score": "a trained adapter scored again at other scales or sampler settings",
    "inspect": "a look inside a finished run: noise, trajectory, attention, adapter, memorisation, drift",
    "clusters": "tagged images in groups, held against known classes",
    "hotels": "a choice of hotels from Hotels-50K, their numbers and their images",
    "convert": "an adapter in another tool's format: peft, diffusers, kohya, cloneofsimo",
    "publish": "what a run trained with its model card, as a folder or on the hub",
    "rerun": "a run again from its manifest, and whether it came out the same",
}


#: the exit code of a process that was interrupted, as a shell shows it: 128 + SIGINT
INTERRUPTED = 130


def help_text() -> str:
    """What `boothlab --help` prints."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())
    return f"""boothlab {__version__}: a research harness for subject-driven diffusion

usage: boothlab COMMAND [key=value …]

commands:
{commands}

  boothlab train                                   the built-in miniature, a minute and a half on two CPU cores
  boothlab train backbone=sd15 subject=folder subject.images=photos subject.class_noun=dog
  boothlab train -m lora.rank=4,16 seed=0,1        a run for each combination
  boothlab sweep lora_rank                         one of the built-in studies
  boothlab COMMAND --help                          every setting of a command

exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted, 143 terminated"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a character the terminal lacks is no reason to stop
    told: list[int] = []
    try:
        with _signals_noted(told):
            code = _answer(arguments)
    except Exception:
        if not told:
            raise
        code = 1
    # An import cut in two by a signal can end in any error; what the user wanted is what is said.
    return _interrupted(told[0]) if told and code in (1, 2) else code


def _answer(arguments: list[str]) -> int:
    """The command's exit code, with what a user can do something about in one line."""
    try:
        return _dispatch(arguments)
    except UserError as error:
        return _say(error, 2)
    except RunFailedError as error:
        return _say(error, 1)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _say(f"out of memory ({error or type(error).__name__}); free some, or ask for less at a time", 1)
    except KeyboardInterrupt:
        return _interrupted(signal.SIGINT)
    except SystemExit as stop:
        if stop.code == TERMINATED:
            _interrupted(signal.SIGTERM)
        raise
    except BrokenPipeError:  # the reader of our output has gone, as in `boothlab train --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _interrupted(number: int) -> int:
    """Say how a signal ended the command; its exit code."""
    print(f"boothlab: {'terminated' if number == signal.SIGTERM else 'interrupted'}", file=sys.stderr)
    return TERMINATED if number == signal.SIGTERM else INTERRUPTED


@contextmanager
def _signals_noted(told: list[int]) -> Iterator[None]:
    """Note Ctrl-C and SIGTERM in `told` and end by KeyboardInterrupt and SystemExit, so that what must be closed is."""
    main_thread = threading.current_thread() is threading.main_thread()
    usual: dict[int, Any] = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    mine = [number for number, handler in usual.items() if main_thread and signal.getsignal(number) is handler]

    def end(number: int, frame: FrameType | None) -> None:
        # During training Lightning's handler calls this one, and then stops between two steps: leave it to that one.
        if number == signal.SIGTERM and signal.getsignal(number) is not end:
            return
        told.append(number)
        if number == signal.SIGTERM:
            raise SystemExit(TERMINATED)
        raise KeyboardInterrupt

    for number in mine:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, usual[number])


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"boothlab {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        closest = difflib.get_close_matches(name, COMMANDS, n=1)
        meant = f"did you mean `boothlab {closest[0]}`?" if closest else f"the commands are {', '.join(COMMANDS)}"
        raise UserError(f"there is no command {name!r}; {meant}")
    with imports_uncollected():
        command = importlib.import_module(f"boothlab.commands.{name}")
    code: int = command.run(rest)
    return code


def _say(error: Exception | str, code: int) -> int:
    print("boothlab: error: " + one_line(error), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

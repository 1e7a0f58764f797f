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

from boothlab import __version__
from boothlab.errors import RunFailedError, UserError, is_out_of_memory, one_line

#: each command is boothlab/commands/<name>.py with `run(argv: list[str]) -> int`
COMMANDS = {
    "train": "one DreamBooth-LoRA run, evaluated at every checkpoint",
    "edit": "images edited by a method, scored against the source, the text and the truth",
    "sweep": "a study: many runs, planned, continued, reported",
    "report": "tables, plots and grids of finished runs",
    "sample": "images from a trained adapter, each with its own seed",
    "score": "a trained adapter scored again at other scales or sampler settings",
    "rerun": "a run again from its manifest, and whether it came out the same",
}


#: the exit code of a process that was told to end, as a shell shows it: 128 + SIGTERM
TERMINATED = 143


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
    try:
        with _told_to_end():
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
        print("boothlab: interrupted", file=sys.stderr)
        return 130
    except SystemExit as stop:
        if stop.code == TERMINATED:
            print("boothlab: terminated", file=sys.stderr)
        raise
    except BrokenPipeError:  # the reader of our output has gone, as in `boothlab train --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


@contextmanager
def _told_to_end() -> Iterator[None]:
    """End by SystemExit on SIGTERM in this block, so that what must be closed is, unless the caller handles it."""
    mine = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    def end(number: int, frame: FrameType | None) -> None:
        # During training Lightning's handler calls this one, and then stops between two steps: leave it to that one.
        if signal.getsignal(signal.SIGTERM) is end:
            raise SystemExit(TERMINATED)

    if mine:
        signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        if mine:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


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
    command = importlib.import_module(f"boothlab.commands.{name}")
    code: int = command.run(rest)
    return code


def _say(error: Exception | str, code: int) -> int:
    print("boothlab: error: " + one_line(error), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

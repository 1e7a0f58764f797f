"""Errors that speak to the user: one line that says what is wrong, where, and how to mend it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

TERMINATED = 143
"""The exit code of a process that was told to end, as a shell shows it: 128 + SIGTERM."""


class UserError(Exception):
    """Bad input. The command line prints the message alone, without a traceback, and exits with code 2."""


class RunFailedError(Exception):
    """A run that began well and failed. The command line prints the message alone and exits with code 1."""


class NonFiniteLossError(RunFailedError):
    """The loss became NaN or infinite; the message names the step and the batch. The run's status is `failed`."""


class OutOfMemoryError(RunFailedError):
    """The machine or the GPU has no more memory; the message says where, and what to lower."""


def one_line(message: object) -> str:
    """A message as a terminal may have it: on one line, control characters (a file name may hold any) as escapes."""
    text = " ".join(str(message).splitlines())
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: Python's own, NumPy's, or PyTorch's on any device."""
    # PyTorch has a type for GPUs only; on a CPU it is a RuntimeError that says so.
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)
    )


@contextmanager
def memory_explained(where: Callable[[], str], remedy: str) -> Iterator[None]:
    """Turn running out of memory in this block into an OutOfMemoryError: `where` it was, and what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        said = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
        raise OutOfMemoryError(f"out of memory {where()} ({said}); {remedy}") from error

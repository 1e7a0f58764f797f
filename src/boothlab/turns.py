"""Whose turn it is: jobs that share a process wait for one another, but not within what must not be divided."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_here = threading.local()


@contextmanager
def undivided() -> Iterator[None]:
    """Inside, this thread computes what it needs by itself. For whoever holds a lock that the others may wait for."""
    _here.depth = getattr(_here, "depth", 0) + 1
    try:
        yield
    finally:
        _here.depth -= 1


def is_undivided() -> bool:
    """Whether this thread is inside `undivided`."""
    return getattr(_here, "depth", 0) > 0

"""Importing torch, diffusers and Lightning without Python's garbage collector looking through them again and again."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def imports_uncollected() -> Iterator[None]:
    """No garbage collection inside this block, and what was imported in it is never looked through again.

    Thousands of modules make hundreds of thousands of objects that live as long as the process. Passing over them for
    garbage takes a fifth of the time of importing them, and then some in every later collection. Only blocks before
    torch is there do anything: what a later one froze could be a run's garbage, and hold its tensors.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()

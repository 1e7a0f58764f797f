"""W&B's own process, which sends what a run logs: a bound on how long it may hold up ours."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

GRACE_S = 15.0
"""Seconds beyond W&B's own finish timeout before its process is ended."""


@contextmanager
def bounded(finish_timeout_s: float) -> Iterator[None]:
    """End W&B's process if this block, which closes a run, takes longer; the block then raises what W&B makes of that.

    W&B's own timeout does not hold for an artifact whose manifest was on its way when the server went away: that it
    tries for ever. What its process has written to disk stays.
    """
    guard = threading.Timer(finish_timeout_s + GRACE_S, _end)
    guard.daemon = True
    guard.start()
    try:
        yield
    finally:
        ended = not guard.is_alive()
        guard.cancel()
        if ended:
            _forget()


def _end() -> None:
    import wandb

    with suppress(AttributeError):  # no public name leads to it
        wandb.setup()._connection._proc._process.kill()


def _forget() -> None:
    """Or W&B would talk to the ended process once more at exit."""
    import wandb

    with suppress(Exception):
        wandb.teardown()

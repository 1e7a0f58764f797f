"""One daemon thread that does slow things in order, so that the training does not wait for them."""

import queue
import threading
import time
from collections.abc import Callable

Action = Callable[[], None]


class Background:
    """Runs actions one after another. They must not raise; what is left when the process ends is lost."""

    def __init__(self, name: str) -> None:
        self._queue: queue.SimpleQueue[Action | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, action: Action) -> None:
        """Run the action after those submitted before it; returns at once."""
        self._queue.put(action)

    def close(self, timeout: Callable[[], float]) -> bool:
        """Wait until everything is done, but no longer than `timeout()` seconds; False if something is left.

        The timeout is asked again while waiting, because it may turn out on the way that waiting is hopeless.
        """
        self._queue.put(None)
        start = time.monotonic()
        while self._thread.is_alive() and time.monotonic() - start < timeout():
            self._thread.join(0.1)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (action := self._queue.get()) is not None:
            action()

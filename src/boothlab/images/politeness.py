"""Who may be asked next: a queue over hosts that keeps to a number of requests at once and a pace for each of them."""

import heapq
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")
_LONGEST_NAP_S = 0.25


@dataclass
class _Host(Generic[T]):
    waiting: list[tuple[float, int, T]] = field(default_factory=list)
    active: int = 0
    free_at: float = 0.0

    def ready_at(self, per_host: int) -> float | None:
        """When the next task may start; None while none may."""
        if not self.waiting or self.active >= per_host:
            return None
        return max(self.free_at, self.waiting[0][0])


class HostQueue(Generic[T]):
    """Tasks by host, safe for threads. No host gets more than `per_host` at once, nor two within `interval_s` seconds.

    The host that has been free for longest comes first, so that a slow one does not hold up the others.
    """

    def __init__(self, per_host: int, interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_host, self._interval_s, self._clock = per_host, interval_s, clock
        self._hosts: dict[str, _Host[T]] = {}
        self._unfinished = 0
        self._order = 0
        self._changed = threading.Condition()

    def put(self, task: T, host: str, delay_s: float = 0.0) -> None:
        """Add a task that may not start before `delay_s` seconds from now."""
        with self._changed:
            self._order += 1
            self._unfinished += 1
            entry = (self._clock() + delay_s if delay_s > 0 else 0.0, self._order, task)
            heapq.heappush(self._hosts.setdefault(host, _Host()).waiting, entry)
            self._changed.notify_all()

    def take(self, stopped: threading.Event) -> T | None:
        """The next task once it may start; None when none is left, nor can come back, or after `stopped`."""
        with self._changed:
            while self._unfinished and not stopped.is_set():
                ready = [
                    (at, name)
                    for name, host in self._hosts.items()
                    if (at := host.ready_at(self._per_host)) is not None
                ]
                at, name = min(ready, default=(float("inf"), ""))
                now = self._clock()
                if at <= now:
                    host = self._hosts[name]
                    host.active += 1
                    host.free_at = now + self._interval_s
                    return heapq.heappop(host.waiting)[2]
                self._changed.wait(min(at - now, _LONGEST_NAP_S))
            return None

    def done(self, host: str) -> None:
        """A task of the host has ended. One that will be tried again is put back before this."""
        with self._changed:
            self._hosts[host].active -= 1
            self._unfinished -= 1
            self._changed.notify_all()

    def pause(self, host: str, seconds: float) -> None:
        """Ask the host for nothing during so many seconds."""
        with self._changed:
            entry = self._hosts.setdefault(host, _Host())
            entry.free_at = max(entry.free_at, self._clock() + seconds)

    def drop(self, host: str) -> list[T]:
        """Take out and return all waiting tasks of a host."""
        with self._changed:
            entry = self._hosts.setdefault(host, _Host())
            dropped = [task for _, _, task in sorted(entry.waiting, key=lambda one: one[:2])]
            entry.waiting.clear()
            self._unfinished -= len(dropped)
            self._changed.notify_all()
            return dropped

    def reserve(self, host: str) -> float:
        """Take the host's next turn, for a redirect that leads there; returns the seconds to wait for it."""
        with self._changed:
            entry = self._hosts.setdefault(host, _Host())
            now = self._clock()
            at = max(entry.free_at, now)
            entry.free_at = at + self._interval_s
            return at - now

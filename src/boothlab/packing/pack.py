"""A pack: jobs as threads of which one runs at a time, until all wait for the networks; then those compute for all."""

import threading
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

from torch import nn

from boothlab.diffusion.backbone import Backbone
from boothlab.packing.computing import Computer
from boothlab.packing.requests import Backward, Forward
from boothlab.packing.views import PackedBackbone

T = TypeVar("T")
_here = threading.local()


class Member(Generic[T]):
    """One job of a pack, in a thread of its own: it runs while it has the turn and gives it back with a request."""

    def __init__(self, job: int, work: Callable[[], T], pack: "Pack[T]"):
        self.job: Hashable = job
        self.number, self.work, self.pack = job, work, pack
        self.request: Forward | Backward | None = None
        self.failure: BaseException | None = None
        self.value: T | None = None
        self.error: BaseException | None = None
        self.done = False
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._live, name=f"pack-{job}", daemon=True)
        self._thread.start()

    def _live(self) -> None:
        self._go.acquire()
        _here.member = self
        try:
            if self.failure is not None:
                raise self.failure
            self.value = self.work()
        except BaseException as error:  # told to whoever runs the pack
            self.error = error
        finally:
            self.done = True
            self._back.release()

    def turn(self) -> None:
        """Let it run until its next request or its end."""
        self._go.release()
        self._back.acquire()
        if self.done:
            self._thread.join()

    def ask(self, request: Forward | Backward) -> None:
        """Hand in a request and wait; raises what went wrong with it, or what ends the pack."""
        self.request = request
        self._back.release()
        self._go.acquire()
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure

    def enter(self, network: str, tree: nn.Module) -> None:
        """Use the adapter of this tree for this job's rows."""
        self.pack.computer.enter(self.job, network, tree)

    def view(self, shared: Backbone) -> Backbone:
        """The job's own view of the shared backbone."""
        self.pack.share(shared)
        return PackedBackbone(shared, self)


class Pack(Generic[T]):
    """Runs jobs together, at most `size` at a time; who ends makes room for the next.

    The jobs are independent of each other: one that raises ends alone. Which requests meet is decided by the jobs
    themselves and not by time, so that a pack computes the same when it is run again.
    """

    def __init__(self, size: int, most_rows: int):
        self.size, self.most_rows = size, most_rows
        self._computer: Computer | None = None
        self._shared: Backbone | None = None

    @property
    def computer(self) -> Computer:
        assert self._computer is not None, "no job has asked for its backbone yet"
        return self._computer

    def share(self, backbone: Backbone) -> None:
        """Note the backbone of the pack. Raises ValueError for a second one."""
        if self._shared is None:
            self._shared, self._computer = backbone, Computer(backbone, self.most_rows)
        elif self._shared is not backbone:
            raise ValueError("the jobs of a pack share one backbone")

    def run(self, jobs: Iterable[Callable[[], T]]) -> list[T | BaseException]:
        """What each job returned or raised, in their order.

        KeyboardInterrupt and SystemExit that reach the caller's thread are raised in every job at its next request,
        and then here, once all have ended.
        """
        waiting = iter(enumerate(jobs))
        ended: dict[int, Member[T]] = {}
        active: list[Member[T]] = []
        try:
            while True:
                while len(active) < self.size and (following := next(waiting, None)) is not None:
                    active.append(Member(*following, self))
                if not active:
                    break
                for member in active:
                    if member.request is None:
                        member.turn()
                left = self._without_the_ended(active, ended)
                full = len(left) == len(active)
                active = left
                if full:  # else the next job comes in first
                    self._compute(active)
        except (KeyboardInterrupt, SystemExit) as stop:
            self._end(active, stop)
            raise
        found = [ended[number] for number in sorted(ended)]
        return [one.error if one.error is not None else one.value for one in found]  # type: ignore[misc]

    def _without_the_ended(self, active: list[Member[T]], ended: dict[int, Member[T]]) -> list[Member[T]]:
        for member in active:
            if member.done:
                ended[member.number] = member
                if self._computer is not None:
                    self._computer.leave(member.job)
                if isinstance(member.error, KeyboardInterrupt | SystemExit):
                    raise member.error  # as when it runs alone: being told to end ends them all
        return [member for member in active if not member.done]

    def _compute(self, active: list[Member[T]]) -> None:
        requests = [member.request for member in active if member.request is not None]
        for position, error in self.computer.answer(requests).items():
            active[position].failure = error
        for member in active:
            member.request = None

    @staticmethod
    def _end(active: list[Member[T]], stop: BaseException) -> None:
        """Every job closes what it has open, as if the signal had reached it."""
        code = stop.code if isinstance(stop, SystemExit) else 130
        for member in active:
            while not member.done:
                # Not KeyboardInterrupt: Lightning answers that with calls that only a main thread may make.
                member.failure, member.request = SystemExit(code), None
                member.turn()


def view_for_this_job(shared: Backbone) -> Backbone:
    """The backbone as the job of this thread is to see it: its own view inside a pack, else the shared one itself."""
    member: Member[object] | None = getattr(_here, "member", None)
    return shared if member is None else member.view(shared)


def in_a_pack() -> bool:
    """Whether this thread is a job of a pack."""
    return getattr(_here, "member", None) is not None

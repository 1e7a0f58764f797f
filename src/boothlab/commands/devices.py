"""The further processes of a run on several devices: started with it, watched, and ended with it."""

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing import connection, get_context, get_start_method, parent_process, set_start_method
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from boothlab.config import TrainConfig
from boothlab.errors import RunFailedError, UserError
from boothlab.ranks import Ranks

log = logging.getLogger(__name__)
#: nobody waits in vain: a process that ends takes the others with it, and an evaluation may keep them for hours
PATIENCE = timedelta(days=7)
#: seconds in which the leader may notice by itself that another process has ended
GRACE_S = 20.0

READY = "ready"


@dataclass
class Company:
    """The processes beside this one."""

    size: int
    processes: list[SpawnProcess] = field(default_factory=list)
    pipes: list[Connection] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    reasons: list[tuple[int, bool, str]] = field(default_factory=list)
    #: torch's CPU threads as they were before the ranks shared the cores
    threads: int | None = None
    #: whether this process meets the loss of another at their next exchange, as with gloo; NCCL waits for ever
    notices: bool = False

    @property
    def ranks(self) -> Ranks:
        """This process: it leads."""
        return Ranks(0, self.size)

    def start(self, config: TrainConfig) -> None:
        """Start the others. They import what they need while this process does the same."""
        # DDP would warn, in every process, of what it was told to look for and did not find.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        context = get_context("spawn")  # a forked process has no use of CUDA
        with _spawning_usual():
            for rank in range(1, self.size):
                ours, theirs = context.Pipe()
                process = context.Process(target=_help, args=(config, rank, theirs), daemon=True)
                process.start()
                theirs.close()
                self.processes.append(process)
                self.pipes.append(ours)
        threading.Thread(target=self._watch, daemon=True).start()

    def meet(self) -> None:
        """Open torch.distributed's default group with all of them, if there are any."""
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        self.threads = torch.get_num_threads()
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            connection.wait([pipe, process.sentinel])
            if process.exitcode is not None or not self._is_ready(pipe):
                process.join(GRACE_S)
                raise RunFailedError(self.told() or f"a process for another device ended with code {process.exitcode}")
        store = dist.TCPStore("127.0.0.1", 0, self.size, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
        for pipe in self.pipes:
            pipe.send((store.port, self.threads))
        _join(store, self.ranks)
        self.notices = not torch.cuda.is_available()

    def _is_ready(self, pipe: Connection) -> bool:
        """Whether a process has said that it is ready, and nothing worse."""
        try:
            said = pipe.recv()
        except (EOFError, OSError):
            return False
        if said != READY:
            self.reasons.append((self.pipes.index(pipe) + 1, *said))
        return bool(said == READY)

    def end(self) -> None:
        """End whoever is still there: they write nothing."""
        self.over.set()
        for process in self.processes:
            process.kill()
            process.join()
        if self.size > 1 and "torch.distributed" in sys.modules:
            import torch.distributed as dist

            if dist.is_initialized():
                dist.destroy_process_group()
        if self.threads is not None:  # a later job of this process shares its cores with nobody
            import torch

            torch.set_num_threads(self.threads)

    def told(self) -> str | None:
        """Why another process has ended, if one has. Who lost touch with one that ended is no reason."""
        for rank, pipe in enumerate(self.pipes, 1):
            try:
                if pipe.poll():
                    self.reasons.append((rank, *pipe.recv()))
            except (EOFError, OSError):
                continue
        spoke = {rank for rank, _, _ in self.reasons}
        silent = [
            (rank, False, _how_it_ended(process.exitcode))
            for rank, process in enumerate(self.processes, 1)
            if process.exitcode and rank not in spoke
        ]
        for rank, unforeseen, text in sorted([*self.reasons, *silent], key=lambda reason: reason[1]):
            if unforeseen:
                log.error("device %d:\n%s", rank, text)
            return f"device {rank}: {text.strip().splitlines()[-1]}"
        return None

    @contextmanager
    def explained(self) -> Iterator[None]:
        """An error of torch.distributed in this block is told as what another process ended with."""
        try:
            yield
        except RuntimeError as error:
            connection.wait([process.sentinel for process in self.processes], timeout=2.0)
            if reason := self.told():
                raise RunFailedError(reason) from error
            raise

    def _watch(self) -> None:
        """End this process if another one has failed and left it waiting, as NCCL does and whoever is to be joined."""
        running = list(self.processes)
        while running:
            ended = connection.wait([process.sentinel for process in running])
            for process in [one for one in running if one.sentinel in ended]:
                running.remove(process)
                process.join()
                if process.exitcode == 0:
                    continue
                if not self.over.wait(GRACE_S) and not self.notices:
                    reason = self.told() or f"another process of this run ended with code {process.exitcode}"
                    print(f"boothlab: {reason}", file=sys.stderr, flush=True)
                    os._exit(1)
                return


@contextmanager
def _spawning_usual() -> Iterator[None]:
    """A child is told how its parent starts processes by default, and would not know joblib's own way, loky."""
    usual = get_start_method(allow_none=True)
    set_start_method("spawn", force=True)
    try:
        yield
    finally:
        set_start_method(usual, force=True)


def _how_it_ended(code: int) -> str:
    """What an exit code of multiprocessing says, of a process that did not."""
    return (
        f"its process was killed by signal {-code} (out of memory?)" if code < 0 else f"its process ended with {code}"
    )


@contextmanager
def company(config: TrainConfig) -> Iterator[Company]:
    """The other processes of a run with trainer.devices above 1, for the time of this block; none of them otherwise."""
    found = Company(config.trainer.devices)
    try:
        if found.size > 1:
            found.start(config)
        with found.explained():
            yield found
    finally:
        found.end()


def _join(store: Any, ranks: Ranks) -> None:
    import torch
    import torch.distributed as dist

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.size, timeout=PATIENCE)


def _help(config: TrainConfig, rank: int, pipe: Connection) -> None:
    """The life of a process that does not lead. Signals are the leader's to answer: it ends this one."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_leader, daemon=True).start()
    try:
        _train(config, Ranks(rank, config.trainer.devices), pipe)
    except (UserError, RunFailedError) as error:
        pipe.send((False, str(error)))
        sys.exit(1)
    except BaseException:
        pipe.send((True, traceback.format_exc()))
        sys.exit(1)


def _end_with_the_leader() -> None:
    leader = parent_process()
    if leader is not None:
        leader.join()
        os._exit(1)


def _train(config: TrainConfig, ranks: Ranks, pipe: Connection) -> None:
    import warnings

    from boothlab.starting import imports_uncollected

    with imports_uncollected():
        import torch
        import torch.distributed as dist

        from boothlab.building.following import build_follower
        from boothlab.dreambooth.devices import follow

    logging.disable(logging.WARNING)  # the leader says the same
    warnings.simplefilter("ignore")
    pipe.send(READY)
    port, threads = pipe.recv()
    torch.set_num_threads(threads)  # the leader's, of which each takes its share
    store = dist.TCPStore("127.0.0.1", port, ranks.size, is_master=False)  # type: ignore[attr-defined]
    _join(store, ranks)
    follow(build_follower(config, ranks))
    dist.destroy_process_group()

"""The processes that train one run together, one a device: which of them this one is, and how they talk."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:  # a command that trains on one device has no use for it yet
    from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among `size` of them. Rank 0 leads: it alone writes, and the others help it compute.

    What is told needs torch.distributed's default group, which whoever starts the processes opens. A single one needs
    none, and every method is then free.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that evaluates, writes and talks to the user."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there are no others."""
        return self.size == 1

    def mean(self, values: "Tensor") -> "Tensor":
        """The mean over all ranks of a tensor of any shape; all must call it."""
        if self.alone:
            return values
        import torch.distributed as dist

        total = values.clone()
        dist.all_reduce(total)
        return total / self.size

    def broadcast(self, value: T) -> T:
        """What the leader gave, to everyone; all must call it, the others with anything."""
        if self.alone:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """What everyone gave, by rank, to the leader; an empty list to the others. All must call it."""
        if self.alone:
            return [value]
        import torch.distributed as dist

        found: list[T] | None = [value] * self.size if self.leads else None
        dist.gather_object(value, found, dst=0)
        return found or []


ALONE = Ranks()


@dataclass(frozen=True)
class Share:
    """Which samples of every optimizer step one rank computes, so that the ranks together compute each of them once.

    A step has `accumulate` batches of `batch_size` samples, on however many devices. The rows of a batch are shared
    as far as they divide evenly, then the batches of a step: 2 devices halve a batch of 4, or take turns at batches of
    1. `rows` ranks share a batch, and `batches` of them are computed at once. With `sharded` they also share what is
    trained.
    """

    ranks: Ranks = ALONE
    rows: int = 1
    sharded: bool = False

    @classmethod
    def of(cls, ranks: Ranks, batch_size: int, sharded: bool = False) -> "Share":
        """The share of a rank in batches of `batch_size` samples."""
        return cls(ranks, rows_shared(ranks.size, batch_size), sharded)

    @property
    def batches(self) -> int:
        """Batches that the ranks compute at once."""
        return self.ranks.size // self.rows

    @property
    def turn(self) -> int:
        """Which of these batches is this rank's, from 0."""
        return self.ranks.rank // self.rows

    def own(self, num_instance: int, size: int) -> list[int]:
        """This rank's rows of a batch: its part of the first `num_instance`, then of the class images that follow."""
        place = self.ranks.rank % self.rows
        parts = ((0, num_instance), (num_instance, size - num_instance))
        return [
            start + row
            for start, count in parts
            for row in range(place * count // self.rows, (place + 1) * count // self.rows)
        ]


def rows_shared(devices: int, batch_size: int) -> int:
    """Among how many devices the rows of one batch are shared."""
    return math.gcd(devices, batch_size)


def can_share(devices: int, batch_size: int, accumulate: int) -> bool:
    """Whether the samples of a step can be shared evenly, so that their mean is the mean of the ranks' means."""
    return accumulate % (devices // rows_shared(devices, batch_size)) == 0

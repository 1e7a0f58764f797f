"""The adapter bank: one network whose layers add to each job's rows that job's own low-rank update."""

import copy
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F

from boothlab.diffusion.lora import ADAPTER, lora_layers


def share(module: nn.Module) -> nn.Module:
    """A second tree of the same network: layers of its own, whose weights and buffers are those of `module`."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


@dataclass
class Rows:
    """One job's part of a merged batch: whose it is, how many rows, and the stream its adapter dropout draws from."""

    job: Hashable
    count: int
    dropout: torch.Generator | None = None


@dataclass
class Leaf:
    """The matrices of neighbouring jobs in one call of a layer, as autograd sees them: [K, …], a row for each job."""

    value: Tensor
    jobs: Sequence[Hashable]
    parameters: Sequence[nn.Parameter]


@dataclass
class Routing:
    """Which rows of the batch that the network is computing belong to whom; the bank's layers read it.

    They note in `leaves` the matrices that they used, for whoever wants their gradients.
    """

    rows: Sequence[Rows] = ()
    leaves: list[Leaf] = field(default_factory=list)


class Shelf:
    """The matrices of all jobs whose adapters have one shape, side by side: [slots, …] for each layer.

    A job's own parameters become views of its slot, so that its optimizer moves what the bank computes with.
    """

    def __init__(self) -> None:
        self.jobs: list[Hashable | None] = []
        self.held: dict[Hashable, dict[str, tuple[nn.Parameter, nn.Parameter]]] = {}
        self.down: dict[str, Tensor] = {}
        self.up: dict[str, Tensor] = {}

    def put(self, job: Hashable, layers: Mapping[str, LoraLayer]) -> int:
        """Take a job's matrices in; returns its slot."""
        pairs = {name: (layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight) for name, layer in layers.items()}
        if None not in self.jobs:
            self._grow(pairs)
        slot = self.jobs.index(None)
        self.jobs[slot], self.held[job] = job, pairs
        for name, (down, up) in pairs.items():
            self.down[name][slot], self.up[name][slot] = down.data, up.data
        self._point(job, slot)
        return slot

    def _grow(self, like: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        slots = max(4, 2 * len(self.jobs))
        for name, matrices in like.items():
            for shelf, matrix in zip((self.down, self.up), matrices, strict=True):
                wider = matrix.data.new_zeros((slots, *matrix.shape))
                if name in shelf:
                    wider[: len(self.jobs)] = shelf[name]
                shelf[name] = wider
        self.jobs += [None] * (slots - len(self.jobs))
        for slot, job in enumerate(self.jobs):
            if job is not None:
                self._point(job, slot)

    def _point(self, job: Hashable, slot: int) -> None:
        for name, (down, up) in self.held[job].items():
            down.data, up.data = self.down[name][slot], self.up[name][slot]

    def take_out(self, job: Hashable) -> None:
        """A job leaves, with matrices of its own again."""
        if job in self.held:
            for pair in self.held.pop(job).values():
                for parameter in pair:
                    parameter.data = parameter.data.clone()
            self.jobs[self.jobs.index(job)] = None


@dataclass
class Update:
    """One job's update of one layer, ΔW = scale · up · down: where its matrices stand."""

    shelf: Shelf
    slot: int
    scale: float
    dropout: float
    parameters: tuple[nn.Parameter, nn.Parameter]


@dataclass
class Segment:
    """Neighbouring jobs whose updates have one shape: they are computed as one batched product."""

    updates: list[Update]
    rows: list[Rows]
    start: int
    stop: int = field(init=False)

    def __post_init__(self) -> None:
        self.stop = self.start + sum(one.count for one in self.rows)

    def take(self, x_BX: Tensor) -> Tensor:
        """The segment's rows as [K, B/K, …], after each job's dropout."""
        grouped = x_BX[self.start : self.stop].unflatten(0, (len(self.rows), -1))
        if not any(update.dropout for update in self.updates):
            return grouped
        parts = zip(grouped.unbind(0), self.updates, self.rows, strict=True)
        return torch.stack([dropped(x, update.dropout, rows.dropout) for x, update, rows in parts])

    def matrices(self, name: str) -> tuple[Leaf, Leaf]:
        """The jobs' down and up matrices of a layer, each as one tensor: a slice of the shelf where slots follow."""
        shelf, slots = self.updates[0].shelf, [update.slot for update in self.updates]
        first, count = slots[0], len(slots)
        rows: Any = slice(first, first + count) if slots == list(range(first, first + count)) else slots
        jobs = [one.job for one in self.rows]
        # `.data`: a job that moves in meanwhile changes another slot, which autograd would take for a change of these.
        leaves = [
            Leaf(tensor.data[rows], jobs, [update.parameters[i] for update in self.updates])
            for i, tensor in enumerate((shelf.down[name], shelf.up[name]))
        ]
        return leaves[0], leaves[1]


def dropped(x: Tensor, chance: float, stream: torch.Generator | None) -> Tensor:
    """Inverted dropout from a stream of its own; unchanged without one. On a CPU the very mask of `F.dropout`."""
    if not chance or stream is None:
        return x
    kept = torch.empty(x.shape, dtype=x.dtype, device=stream.device).bernoulli_(1 - chance, generator=stream)
    return x * kept.div_(1 - chance).to(x.device)


class BankLayer(nn.Module):
    """A frozen layer with the updates of several jobs, each for its own rows (LoRA, arXiv 2106.09685, eq. 3)."""

    def __init__(self, base: nn.Linear | nn.Conv2d, name: str, routing: Routing):
        super().__init__()
        self.base, self.name, self.routing = base, name, routing
        self.updates: dict[Hashable, Update] = {}

    def forward(self, x_BX: Tensor) -> Tensor:
        result = self.base(x_BX)
        if sum(one.count for one in self.routing.rows) != len(x_BX):
            raise ValueError(f"{len(x_BX)} rows reached a layer of the bank, and its jobs have another number")
        pieces: list[Tensor | None] = []
        sizes: list[int] = []
        for segment in self._segments():
            if isinstance(segment, int):
                pieces.append(None)
                sizes.append(segment)
            else:
                pieces.append(self._added(segment, x_BX))
                sizes.append(segment.stop - segment.start)
        if all(piece is None for piece in pieces):
            return result
        if len(pieces) == 1 and pieces[0] is not None:
            return (result + pieces[0]).to(result.dtype)
        whole = [
            part if piece is None else (part + piece).to(part.dtype)
            for part, piece in zip(result.split(sizes), pieces, strict=True)
        ]
        return torch.cat(whole)

    def _segments(self) -> Iterator["Segment | int"]:
        """Neighbours with one shape together; a number is that many rows which no job updates here."""

        def shape(one: Rows) -> tuple[int, int] | None:
            update = self.updates.get(one.job)
            return None if update is None else (id(update.shelf), one.count)

        start = 0
        for kind, group in groupby(self.routing.rows, key=shape):
            rows = list(group)
            if kind is None:
                size = sum(one.count for one in rows)
                yield size
                start += size
                continue
            segment = Segment([self.updates[one.job] for one in rows], rows, start)
            start = segment.stop
            yield segment

    def _added(self, segment: Segment, x_BX: Tensor) -> Tensor:
        down, up = segment.matrices(self.name)
        if torch.is_grad_enabled():
            for leaf in (down, up):
                leaf.value.requires_grad_(True)
                self.routing.leaves.append(leaf)
        x, scaled = segment.take(x_BX).to(down.value.dtype), up.value
        if any(update.scale != 1 for update in segment.updates):  # on the matrix: it is smaller than the features
            scales = torch.tensor([update.scale for update in segment.updates], dtype=scaled.dtype, device=x.device)
            scaled = scaled * scales.view(-1, *(1,) * (scaled.dim() - 1))
        if isinstance(self.base, nn.Conv2d):
            return _convolved(x, down.value, scaled, self.base).flatten(0, 1)
        return _multiplied(x, down.value, scaled).flatten(0, 1)


def _multiplied(x_KBX: Tensor, down_KRI: Tensor, up_KOR: Tensor) -> Tensor:
    """x · downᵀ · upᵀ for every job at once: [K, B, …, I] → [K, B, …, O]."""
    flat = x_KBX.flatten(1, -2)
    product = torch.bmm(torch.bmm(flat, down_KRI.transpose(1, 2)), up_KOR.transpose(1, 2))
    return product.unflatten(1, x_KBX.shape[1:-1])


def _convolved(x_KBCHW: Tensor, down_KRIhw: Tensor, up_KOR11: Tensor, base: nn.Conv2d) -> Tensor:
    """The layer's own kind of convolution to the rank, then a 1x1 one: the jobs are groups of one convolution."""
    jobs, rank = len(x_KBCHW), down_KRIhw.shape[1]
    side_by_side = x_KBCHW.transpose(0, 1).flatten(1, 2)
    inner = F.conv2d(
        side_by_side, down_KRIhw.flatten(0, 1), None, base.stride, base.padding, base.dilation, groups=jobs
    )
    inner_KBRs = inner.unflatten(1, (jobs, rank)).transpose(0, 1)
    return torch.einsum("kor,kbrhw->kbohw", up_KOR11.flatten(2), inner_KBRs)


class Bank:
    """A network shared by several jobs. `host` computes a batch of the rows of several of them.

    Each job keeps a tree of its own (`share`), to which its adapter is attached as ever; `enter` makes the host use
    that adapter's parameters for the job's rows.
    """

    def __init__(self, module: nn.Module):
        self.host = share(module).eval()
        self.routing = Routing()
        self._layers: dict[str, BankLayer] = {}
        self._shelves: dict[tuple[tuple[str, int], ...], Shelf] = {}
        self._places: dict[Hashable, tuple[tuple[tuple[str, int], ...], int]] = {}

    def enter(self, job: Hashable, tree: nn.Module) -> None:
        """Compute this job's rows with the adapter that its tree carries now; without one, as the bare network."""
        self.leave(job)
        layers = lora_layers(tree)
        kind = tuple((name, int(layer.r[ADAPTER])) for name, layer in layers.items())
        if not kind:
            return
        shelf = self._shelves.setdefault(kind, Shelf())
        slot = shelf.put(job, layers)
        self._places[job] = (kind, slot)
        for name, layer in layers.items():
            drop = layer.lora_dropout[ADAPTER]
            self._layer(name).updates[job] = Update(
                shelf,
                slot,
                float(layer.scaling[ADAPTER]),
                drop.p if isinstance(drop, nn.Dropout) else 0.0,
                shelf.held[job][name],
            )

    def _layer(self, name: str) -> BankLayer:
        if name not in self._layers:
            parent, _, last = name.rpartition(".")
            base: Any = self.host.get_submodule(name)
            self._layers[name] = BankLayer(base, name, self.routing)
            setattr(self.host.get_submodule(parent), last, self._layers[name])
        return self._layers[name]

    def leave(self, job: Hashable) -> None:
        """Forget a job."""
        kind, _ = self._places.pop(job, ((), 0))
        if kind:
            self._shelves[kind].take_out(job)
        for layer in self._layers.values():
            layer.updates.pop(job, None)

    def order(self, jobs: Mapping[Hashable, int]) -> list[Hashable]:
        """The jobs of a batch, by the rows they bring, so that those of one shape are neighbours."""
        nowhere: tuple[tuple[tuple[str, int], ...], int] = ((), 0)

        def shape(job: Hashable) -> tuple[Any, int, int]:
            kind, slot = self._places.get(job, nowhere)
            return kind, jobs[job], slot

        return sorted(jobs, key=shape)

    @contextmanager
    def routed(self, rows: Sequence[Rows]) -> Iterator[list[Leaf]]:
        """Inside, the batch's rows belong to these jobs, in this order; also for what is computed again in backward.

        Gives the matrices that the layers use meanwhile, for their gradients.
        """
        before = self.routing.rows, self.routing.leaves
        self.routing.rows, self.routing.leaves = rows, []
        try:
            yield self.routing.leaves
        finally:
            self.routing.rows, self.routing.leaves = before

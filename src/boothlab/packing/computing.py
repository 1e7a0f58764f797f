"""Computes the requests of a pack: as few calls of the shared networks as they can be put into, forth and back."""

import logging
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from boothlab.diffusion.backbone import Backbone
from boothlab.errors import is_out_of_memory
from boothlab.packing.bank import Bank, Leaf, Rows
from boothlab.packing.requests import Backward, Forward, Graph, leaves, merged, rebuilt
from boothlab.packing.views import call

log = logging.getLogger(__name__)


class Computer:
    """The shared networks of one backbone, and whose adapters act on whose rows.

    `most_rows` bounds one call; it is halved when memory runs out, and what did not fit is computed again in parts.
    """

    def __init__(self, backbone: Backbone, most_rows: int):
        self.device_type, self.most_rows = backbone.device.type, most_rows
        self.networks: dict[str, nn.Module] = {"unet": backbone.unet, **backbone.text_encoders}
        self.banks = {name: Bank(network) for name, network in self.networks.items()}

    def enter(self, job: Hashable, network: str, tree: nn.Module) -> None:
        """Compute a job's rows of a network with the adapter of its tree."""
        bank = self.banks[network]
        bank.enter(job, tree)
        if network == "unet" and tree.is_gradient_checkpointing:
            bank.host.enable_gradient_checkpointing()  # type: ignore[operator]

    def leave(self, job: Hashable) -> None:
        """Forget a job."""
        for bank in self.banks.values():
            bank.leave(job)

    def answer(self, requests: Sequence[Forward | Backward]) -> dict[int, Exception]:
        """Compute all of them; returns what went wrong, by the position of the request."""
        groups: dict[Hashable, list[int]] = defaultdict(list)
        for position, request in enumerate(requests):
            groups[request.kind].append(position)
        failures: dict[int, Exception] = {}
        for positions in groups.values():
            failures |= self._answer_group(requests, positions)
        return failures

    def _answer_group(self, requests: Sequence[Forward | Backward], positions: list[int]) -> dict[int, Exception]:
        """One kind of requests: together, in parts if they are too many or too large, or if one of them fails."""
        failures: dict[int, Exception] = {}
        for part in self._parts(requests, positions):
            chosen = [requests[position] for position in part]
            try:
                self._compute(chosen)
            except Exception as error:
                if len(part) == 1:
                    failures[part[0]] = error
                    continue
                if is_out_of_memory(error):
                    self._lower(chosen)
                half = len(part) // 2
                for piece in (part[:half], part[half:]):
                    failures |= self._answer_group(requests, piece)
        return failures

    def _lower(self, chosen: Sequence[Forward | Backward]) -> None:
        rows = sum(one.rows for one in chosen if isinstance(one, Forward))
        if 1 < rows // 2 < self.most_rows:
            self.most_rows = rows // 2
            log.warning("out of memory with %d rows at once; going on with %d", rows, self.most_rows)

    def _parts(self, requests: Sequence[Forward | Backward], positions: list[int]) -> Iterator[list[int]]:
        """Neighbours that fit into one call. The rows of one request are never divided, and a graph never is."""
        if isinstance(requests[positions[0]], Backward):
            yield positions
            return
        part: list[int] = []
        rows = 0
        for position in self._ordered(requests, positions):
            request = requests[position]
            assert isinstance(request, Forward)
            if part and rows + request.rows > self.most_rows:
                yield part
                part, rows = [], 0
            part.append(position)
            rows += request.rows
        yield part

    def _ordered(self, requests: Sequence[Forward | Backward], positions: list[int]) -> list[int]:
        """Jobs of one rank and size are neighbours, so that their updates are one product."""
        by_job = {one.job: position for position in positions if isinstance(one := requests[position], Forward)}
        first = requests[positions[0]]
        assert isinstance(first, Forward)
        sizes = {job: requests[position].rows for job, position in by_job.items()}  # type: ignore[union-attr]
        return [by_job[job] for job in self.banks[first.network].order(sizes)]

    def _compute(self, requests: Sequence[Forward | Backward]) -> None:
        first = requests[0]
        if isinstance(first, Forward):
            self._forth([one for one in requests if isinstance(one, Forward)])
        else:
            self._back([one for one in requests if isinstance(one, Backward)])

    def _forth(self, forwards: Sequence[Forward]) -> None:
        first, tensors = forwards[0], merged(forwards)
        arithmetic = first.arithmetic
        wanted = {name for one in forwards for name, tensor in one.tensors.items() if tensor.requires_grad}
        if arithmetic.grad:
            for name in wanted:
                tensors[name].requires_grad_(True)
        rows = [Rows(one.job, one.rows, _again(one.dropout)) for one in forwards]
        bank, precision = self.banks[first.network], arithmetic.autocast
        with (
            torch.set_grad_enabled(arithmetic.grad),
            torch.autocast(self.device_type, dtype=precision, enabled=precision is not None),
            bank.routed(rows) as leaves_used,
        ):
            output = call(bank.host, tensors, first.fixed)
        spans: dict[int, slice] = {}
        start = 0
        for one in forwards:
            spans[id(one)] = slice(start, start + one.rows)
            start += one.rows
        outputs = leaves(output)
        graph = None
        if arithmetic.grad and any(value.requires_grad for value in outputs):
            graph = Graph(outputs, {name: tensors[name] for name in wanted}, spans, leaves_used, rows)
        for one in forwards:
            one.graph = graph
            one.result = rebuilt(output, partial(_rows_of, span=spans[id(one)]))

    def _back(self, backwards: Sequence[Backward]) -> None:
        """The gradients of some jobs through one graph; rows of jobs that do not ask (they failed) get none."""
        graph = backwards[0].forward.graph
        assert graph is not None
        if graph.spent:  # this one came late: the others' way back has used the graph up
            for one in backwards:
                self._forth([one.forward])
                self._back([one])
            return
        used = [i for i in range(len(graph.outputs)) if any(one.gradients[i] is not None for one in backwards)]
        given = [self._whole(graph, i, backwards) for i in used]
        targets = [leaf.value for leaf in graph.leaves]
        with self.banks[backwards[0].forward.network].routed(graph.rows):
            found = torch.autograd.grad(
                [graph.outputs[i] for i in used], [*targets, *graph.inputs.values()], given, allow_unused=True
            )
        present = {one.forward.job for one in backwards}
        for leaf, gradient in zip(graph.leaves, found, strict=False):
            if gradient is not None:
                _give(leaf, gradient, present)
        for name, gradient in zip(graph.inputs, found[len(targets) :], strict=True):
            for one in backwards:
                if gradient is not None and one.forward.tensors[name].requires_grad:
                    one.result[name] = gradient[graph.spans[id(one.forward)]]
        graph.spent, graph.outputs, graph.leaves = True, [], []

    @staticmethod
    def _whole(graph: Graph, index: int, backwards: Sequence[Backward]) -> Tensor:
        """The gradient of one output of the merged call, put together from those of the jobs."""
        whole = torch.zeros_like(graph.outputs[index])
        for one in backwards:
            gradient = one.gradients[index]
            if gradient is not None:
                whole[graph.spans[id(one.forward)]] = gradient.to(whole.dtype)
        return whole


def _rows_of(value: Tensor, span: slice) -> Tensor:
    return value.detach()[span]


def _give(leaf: Leaf, gradient: Tensor, present: set[Hashable]) -> None:
    """Add each job's part to what its parameter has already; a job that did not ask gets nothing."""
    parts = gradient.contiguous().unbind(0)  # fused optimizers read a gradient as if it lay as its parameter does
    for job, parameter, part in zip(leaf.jobs, leaf.parameters, parts, strict=True):
        if job in present:
            parameter.grad = part if parameter.grad is None else parameter.grad + part


def _again(stream: torch.Generator | None) -> torch.Generator | None:
    """The stream from where the job left it, so that computing a request again draws the same."""
    if stream is None:
        return None
    fresh = torch.Generator(stream.device)
    fresh.set_state(stream.get_state())
    return fresh

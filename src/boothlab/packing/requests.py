"""What a job asks of a shared network, and how the requests of several jobs become one batch and part again."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from boothlab.packing.bank import Leaf, Rows

#: a nested structure of tuples, lists, dicts and tensors whose first dimension is the batch
Tree = Any


@dataclass(frozen=True)
class Arithmetic:
    """What a thread has set for its own computations: gradients, and autocast with its precision."""

    grad: bool
    autocast: torch.dtype | None

    @staticmethod
    def of_this_thread(device_type: str) -> "Arithmetic":
        on = torch.is_autocast_enabled(device_type)
        return Arithmetic(torch.is_grad_enabled(), torch.get_autocast_dtype(device_type) if on else None)


@dataclass
class Forward:
    """One call of a network: `tensors` by argument have the batch first, `fixed` are the other arguments.

    `result` is set by whoever computes it: the output with the same structure as the network's own.
    """

    job: Hashable
    network: str
    tensors: dict[str, Tensor]
    fixed: dict[str, Any]
    arithmetic: Arithmetic
    dropout: torch.Generator | None = None
    result: Tree = None
    graph: "Graph | None" = None

    @property
    def rows(self) -> int:
        return len(next(iter(self.tensors.values())))

    @property
    def kind(self) -> Hashable:
        """Requests of one kind can be computed together."""
        shapes = tuple((name, tensor.shape[1:], tensor.dtype) for name, tensor in sorted(self.tensors.items()))
        return ("forward", self.network, shapes, _frozen(self.fixed), self.arithmetic)


@dataclass
class Backward:
    """The way back through an earlier `Forward`: the gradient of each of its output tensors, None where it has none.

    `result` are the gradients of those input tensors that wanted one, by argument.
    """

    forward: Forward
    gradients: list[Tensor | None]
    result: dict[str, Tensor] = field(default_factory=dict)

    @property
    def kind(self) -> Hashable:
        return ("backward", id(self.forward.graph))


@dataclass
class Graph:
    """What autograd remembers of a merged call: outputs, inputs that want gradients, the rows of each request,
    and the adapters' matrices."""

    outputs: list[Tensor]
    inputs: dict[str, Tensor]
    spans: dict[int, slice]
    leaves: list[Leaf]
    rows: list[Rows]
    spent: bool = False


def _frozen(value: Any) -> Hashable:
    """Something to compare and hash; objects that cannot be are only like themselves."""
    if isinstance(value, Mapping):
        return tuple((key, _frozen(item)) for key, item in sorted(value.items()))
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    if value is None or isinstance(value, bool | int | float | str | torch.dtype):
        return value
    return ("object", id(value))


def leaves(tree: Tree) -> list[Tensor]:
    """The tensors of a structure, in order."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    rebuilt(tree, note)
    return found


def rebuilt(tree: Tree, change: Callable[[Tensor], Tensor]) -> Tree:
    """The same structure with every tensor changed; transformers' output objects stay what they are."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, Mapping):
        changed = {key: rebuilt(value, change) for key, value in tree.items()}
        return changed if type(tree) is dict else type(tree)(**changed)
    if isinstance(tree, list | tuple):
        return type(tree)(rebuilt(value, change) for value in tree)
    return tree


def merged(forwards: Sequence[Forward]) -> dict[str, Tensor]:
    """The arguments of one call that answers all."""
    if len(forwards) == 1:
        return {name: tensor.detach() for name, tensor in forwards[0].tensors.items()}
    names = forwards[0].tensors
    return {name: torch.cat([one.tensors[name].detach() for one in forwards]) for name in names}

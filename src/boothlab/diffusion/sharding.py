"""Networks of which every device holds a part (FSDP): parted, and put together where a whole one is needed.

A parameter of a parted network is a DTensor. What is written and read back is always the whole tensor, so that files
do not know on how many devices a run was trained. Few runs part anything: the others do not wait for its imports.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def shard(network: nn.Module, mesh: Any) -> None:
    """Part a network's parameters over a device mesh, block by block: one block at a time is whole on a device.

    What is parted is given another class. transformers finds a text encoder's layers by theirs, to hand out hidden
    states: of a text encoder the modules inside the layers are parted, each for itself.
    """
    from torch.distributed.fsdp import fully_shard

    if hasattr(network, "mid_block"):
        parts = [*blocks(network), network]
    else:
        layers = blocks(network)
        inside = {module for layer in layers for module in layer.modules()}
        outside = [module for module in network.modules() if module not in inside]
        others = [module for module in outside if next(module.parameters(recurse=False), None) is not None]
        parts = [*(child for layer in layers for child in layer.children()), *others]
    for part in parts:
        fully_shard(part, mesh=mesh)


def blocks(network: nn.Module) -> list[nn.Module]:
    """The repeated parts of a UNet or of a CLIP text encoder, in which nearly all of its parameters are.

    Small ones: a down or up block of SDXL's has 0.7 billion parameters, of which a device would hold all at once.
    """
    return [module for module in network.modules() if type(module).__name__ in _REPEATED]


_REPEATED = {"BasicTransformerBlock", "ResnetBlock2D", "CLIPEncoderLayer"}


@contextmanager
def put_together(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Parted networks are whole on every device inside, so that each can compute without the others; else nothing.

    All ranks enter it together. What is changed inside is lost.
    """
    parts: list[Any] = [
        module for network in networks for module in network.modules() if hasattr(module, "set_reshard_after_forward")
    ]
    for part in parts:
        part.set_reshard_after_forward(False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True)
            part.reshard()


def whole(value: Tensor) -> Tensor:
    """The whole of a tensor that may be parted; all ranks must ask for it."""
    gather: Callable[[], Tensor] | None = getattr(value, "full_tensor", None)
    return gather() if gather else value


def parted_like(value: Tensor, like: Tensor) -> Tensor:
    """This device's part of a whole tensor, which every rank has, where `like` of the same shape is parted."""
    if not hasattr(like, "full_tensor") or value.shape != like.shape:
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)

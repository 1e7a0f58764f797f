"""What a job of a pack sees: a backbone of its own whose networks hand every call to the pack."""

import copy
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from boothlab.diffusion.backbone import Backbone
from boothlab.packing.bank import share
from boothlab.packing.requests import Arithmetic, Backward, Forward, leaves, rebuilt
from boothlab.turns import is_undivided


class Desk(Protocol):
    """Where a job hands in its requests."""

    job: Hashable

    def ask(self, request: Forward | Backward) -> None:
        """Returns once the request is answered."""

    def enter(self, network: str, tree: nn.Module) -> None:
        """From now on compute the job's rows of a network with the adapter of this tree."""


class PackedBackbone(Backbone):
    """A job's own view of a shared backbone: trees of its own over the shared weights, to attach its adapter to.

    Everything else asks it what it asks any backbone. Calls of the networks are computed together with those of the
    other jobs, unless they are undivided; `backward` goes the same way back.
    """

    def __init__(self, shared: Backbone, desk: Desk):
        self.__dict__.update(vars(shared))
        self.desk = desk
        self._dropouts: dict[str, list[nn.Dropout]] = {}
        #: the calls whose way back is still to come, in their order, with the outputs that the job was given
        self.open: list[tuple[Forward, list[Tensor]]] = []
        self.pipeline = copy.copy(shared.pipeline)
        networks: dict[str, nn.Module] = {"unet": shared.unet, **shared.text_encoders}
        for name, network in networks.items():
            setattr(self.pipeline, name, self._view(name, network))
        self.unet = self.pipeline.unet

    def _view(self, name: str, network: nn.Module) -> nn.Module:
        tree = share(network)
        alone = tree.forward
        arguments = _unet_arguments if name == "unet" else _text_arguments

        def forward(*args: Any, **kwargs: Any) -> Any:
            if is_undivided():
                return alone(*args, **kwargs)
            return self._ask(name, tree, *arguments(*args, **kwargs))

        tree.forward = forward
        # Lightning moves a module to the CPU when its training ends: these weights are everyone's.
        tree._apply = lambda change, recurse=True: tree  # type: ignore[method-assign]
        return tree

    def _ask(self, name: str, tree: nn.Module, tensors: dict[str, Tensor], fixed: dict[str, Any]) -> Any:
        if name not in self._dropouts and getattr(tree, "peft_config", None):
            self._dropouts[name] = [module for module in tree.modules() if isinstance(module, nn.Dropout)]
            self.desk.enter(name, tree)
        stream = _dropout_stream(self._dropouts.get(name, ()))
        request = Forward(self.desk.job, name, tensors, fixed, Arithmetic.of_this_thread(self.device.type), stream)
        self.desk.ask(request)
        if not request.arithmetic.grad or request.graph is None:
            return request.result
        given = rebuilt(request.result, lambda out: out.detach().requires_grad_(out.is_floating_point()))
        self.open.append((request, leaves(given)))
        return given

    def backward(self, loss: Tensor) -> None:
        """Gradients of the loss with respect to the adapter, added to `.grad` as `Tensor.backward` does it."""
        opened, self.open = self.open, []
        loss.backward()  # ends at what the networks gave
        for forward, given in reversed(opened):
            gradients = [output.grad for output in given]
            if all(gradient is None for gradient in gradients):
                continue
            request = Backward(forward, gradients)
            self.desk.ask(request)
            for name, gradient in request.result.items():
                forward.tensors[name].backward(gradient)  # on to the network before


def _unet_arguments(
    sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, added_cond_kwargs: Any = None, **fixed: Any
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What has a row for each sample, and what has not. A sampler's one timestep is everyone's."""
    times = timestep if isinstance(timestep, Tensor) else torch.tensor(timestep)
    times = times.to(sample.device).reshape(-1).expand(len(sample)) if times.numel() == 1 else times
    tensors = {"sample": sample, "timestep": times, "encoder_hidden_states": encoder_hidden_states}
    for name, value in (added_cond_kwargs or {}).items():
        tensors[f"added_cond_kwargs.{name}"] = value
    return tensors, fixed


def _text_arguments(input_ids: Tensor, **fixed: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return {"input_ids": input_ids}, fixed


def call(network: Callable[..., Any], tensors: dict[str, Tensor], fixed: dict[str, Any]) -> Any:
    """Call a network with what `_unet_arguments` or `_text_arguments` took apart."""
    plain = {name: value for name, value in tensors.items() if "." not in name}
    nested: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if "." in name:
            outer, inner = name.split(".")
            nested.setdefault(outer, {})[inner] = value
    return network(**plain, **nested, **fixed)


def _dropout_stream(dropouts: Sequence[nn.Dropout]) -> torch.Generator | None:
    """The global CPU generator as the job has set it for this call, if its adapter drops anything."""
    if not any(module.training and module.p > 0 for module in dropouts):
        return None
    stream = torch.Generator()
    stream.set_state(torch.get_rng_state())
    return stream

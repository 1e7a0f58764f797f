"""Optimizers and learning rates: which parameters share a rate, who moves them, and who rests at a step."""

import importlib
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch import Tensor, nn

from boothlab.config import OptimConfig, OptimizerName
from boothlab.diffusion.backbone import Backbone
from boothlab.diffusion.learned_words import is_word
from boothlab.diffusion.lora import trainable
from boothlab.errors import UserError

WORDS = "embeddings"
"""The parameter group of learned words."""
#: module and what pip installs for each optimizer that is not torch's
EXTRAS = {
    OptimizerName.adamw8bit: ("bitsandbytes", "bitsandbytes"),
    OptimizerName.prodigy: ("prodigyopt", "prodigy"),
    OptimizerName.schedule_free: ("schedulefree", "schedulefree"),
}


@dataclass(frozen=True)
class WordsPlan:
    """How learned words are trained: their rate, the steps that are theirs alone, and their rate after those.

    Pivotal tuning has such steps; textual inversion has nothing else to train and needs none.
    """

    lr: float
    alone: int = 0
    late_lr: float = 0.0

    def rests(self, group: str, step: int) -> bool:
        """Whether a parameter group rests at the step (counted from 0): it gets no gradient, and no moment changes."""
        if not self.alone:
            return False
        return (group != WORDS) if step < self.alone else (group == WORDS and self.late_lr == 0)


def parameter_groups(backbone: Backbone, optim: OptimConfig, words: WordsPlan | None) -> list[dict[str, Any]]:
    """What is trained, by rate: the UNet, the text encoders, learned words; groups without parameters are left out."""
    encoders = [trainable(encoder) for encoder in backbone.text_encoders.values()]
    text = [value for found in encoders for name, value in found.items() if not is_word(name)]
    learned = [value for found in encoders for name, value in found.items() if is_word(name)]
    text_lr = optim.lr if optim.text_encoder_lr is None else optim.text_encoder_lr
    groups = [
        {"params": list(trainable(backbone.unet).values()), "lr": optim.lr, "name": "unet"},
        {"params": text, "lr": text_lr, "name": "text_encoder"},
        {"params": learned, "lr": words.lr if words else optim.lr, "name": WORDS},
    ]
    return [group for group in groups if group["params"]]


def need_library(name: OptimizerName) -> Any:
    """The library of an optimizer. Raises UserError with the line that installs it."""
    module, extra = EXTRAS[name]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"optim.optimizer={name.value} needs {module}: pip install 'boothlab[{extra}]'") from error


def build_optimizer(optim: OptimConfig, groups: list[dict[str, Any]], *, fused: bool = False) -> torch.optim.Optimizer:
    """The optimizer of the config over parameter groups. Raises UserError when its library is not there.

    `fused` lets AdamW do all tensors in one kernel: on a CPU a step of 312 small ones takes 2 ms instead of 13.
    """
    betas, common = (optim.betas[0], optim.betas[1]), {"eps": optim.eps, "weight_decay": optim.weight_decay}
    if optim.optimizer is OptimizerName.adamw:
        return torch.optim.AdamW(groups, betas=betas, fused=fused, eps=optim.eps, weight_decay=optim.weight_decay)
    library = need_library(optim.optimizer)
    if optim.optimizer is OptimizerName.adamw8bit:
        made: torch.optim.Optimizer = library.optim.AdamW8bit(groups, betas=betas, **common)
        return made
    if optim.optimizer is OptimizerName.prodigy:
        with redirect_stdout(io.StringIO()):  # it says in a print what weight decay it has
            # As its authors advise for diffusion: bias correction and safeguarded warm-up on.
            made = library.Prodigy(groups, betas=betas, use_bias_correction=True, safeguard_warmup=True, **common)
        return made
    made = library.AdamWScheduleFree(groups, betas=betas, **common)
    made.train()  # type: ignore[attr-defined]
    return made


def build_schedule(
    optim: OptimConfig, optimizer: torch.optim.Optimizer, max_steps: int, words: WordsPlan | None
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rates by optimizer step. In pivotal tuning the schedule begins when the adapter does."""

    def schedule(steps: int) -> Any:
        return get_scheduler(
            optim.schedule.value,
            optimizer,
            num_warmup_steps=optim.warmup_steps,
            num_training_steps=steps,
            num_cycles=optim.restarts,
            power=optim.power,
        )

    if words is None or not words.alone:
        return schedule(max_steps)
    curve = schedule(max_steps - words.alone).lr_lambdas[0]

    def of_words(step: int) -> float:
        return 1.0 if step < words.alone else words.late_lr / words.lr

    def of_others(step: int) -> float:
        return 0.0 if step < words.alone else float(curve(step - words.alone))

    curves: list[Callable[[int], float]] = [
        of_words if group["name"] == WORDS else of_others for group in optimizer.param_groups
    ]
    return torch.optim.lr_scheduler.LambdaLR(optimizer, curves)


@dataclass
class EvalWeights:
    """Lends what schedule-free's average stands for (x, where training moves y) to evaluation and saving."""

    parameters: Mapping[str, Tensor]
    optimizer: Any
    shadow: Mapping[str, Tensor]

    @contextmanager
    def lent(self) -> Iterator[None]:
        """The networks carry the averaged weights in this block; after it those of training, to the bit.

        Its own way back, `optimizer.train()`, rounds: evaluating more often would change the run.
        """
        own = {name: value.detach().clone() for name, value in self.parameters.items()}
        modes = [group["train_mode"] for group in self.optimizer.param_groups]
        self.optimizer.eval()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in self.parameters.items():
                    value.copy_(own[name])
            for group, mode in zip(self.optimizer.param_groups, modes, strict=True):
                group["train_mode"] = mode


def numbers_of(optimizer: torch.optim.Optimizer, names: Mapping[str, nn.Parameter]) -> dict[str, Any]:
    """What an optimizer remembers beyond tensors: numbers of groups and parameters. Empty for torch's AdamW."""
    if type(optimizer) is torch.optim.AdamW:
        return {}
    groups = [{key: value for key, value in group.items() if _plain(value)} for group in optimizer.param_groups]
    states = {
        name: {key: value for key, value in optimizer.state.get(parameter, {}).items() if _plain(value)}
        for name, parameter in names.items()
    }
    return {"groups": groups, "states": {name: held for name, held in states.items() if held}}


def _plain(value: Any) -> bool:
    """A finite number; the settings, which the config makes again, are numbers too and do no harm."""
    return isinstance(value, bool | int) or (isinstance(value, float) and abs(value) < float("inf"))


def restore_numbers(
    optimizer: torch.optim.Optimizer, names: Mapping[str, nn.Parameter], numbers: Mapping[str, Any]
) -> None:
    """Put back what `numbers_of` gave. Raises ValueError for another number of groups."""
    for group, held in zip(optimizer.param_groups, numbers.get("groups", []), strict=bool(numbers)):
        group.update(held)
    for name, held in numbers.get("states", {}).items():
        optimizer.state[names[name]].update(held)

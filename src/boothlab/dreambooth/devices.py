"""Training on several devices: Lightning's DDP among processes that run already, and what those do that do not lead."""

from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy

from boothlab.config import TrainerConfig
from boothlab.diffusion.whole import whole_state
from boothlab.dreambooth.callbacks import (
    GatherCallback,
    HelpCallback,
    OwnSignalCallback,
    ParkCallback,
    ResumeCallback,
)
from boothlab.dreambooth.module import DreamBoothModule
from boothlab.dreambooth.offload import Parking
from boothlab.dreambooth.run import LESS_MEMORY, ema_callback, fit
from boothlab.errors import memory_explained
from boothlab.loops import quiet_lightning
from boothlab.ranks import Ranks, Share


class StartedAlready(LightningEnvironment):
    """Tells Lightning which of the running processes this is, so that it starts none itself.

    Lightning would run the command line again for each device: a whole sweep, where the run is a job of one.
    """

    def __init__(self, ranks: Ranks):
        super().__init__()
        self.ranks = ranks

    @property
    def creates_processes_externally(self) -> bool:
        """They are there."""
        return True

    def local_rank(self) -> int:
        """One machine: the rank itself."""
        return self.ranks.rank

    def node_rank(self) -> int:
        """The only machine."""
        return 0


def strategy_arguments(share: Share, trains_text: bool) -> dict[str, Any]:
    """What Lightning's Trainer has to know of the devices.

    With one it is told that this process is a plain one, whatever has started it (SLURM, a launcher). With several it
    averages gradients by DDP, which has to look for parameters that a loss does not reach where text encoders are
    trained: Stable Diffusion leaves their last layers unread. Sharded networks are parted by the module (FSDP).
    """
    ranks = share.ranks
    if ranks.alone:
        return {"devices": 1, "plugins": [LightningEnvironment()]}
    if share.sharded:
        parted = ModelParallelStrategy(
            data_parallel_size=ranks.size, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
        return {"devices": ranks.size, "strategy": parted, "plugins": [StartedAlready(ranks)]}
    strategy = DDPStrategy(
        cluster_environment=StartedAlready(ranks), find_unused_parameters=trains_text, broadcast_buffers=False
    )
    return {"devices": ranks.size, "strategy": strategy}


@dataclass
class Follower:
    """A rank that does not lead: it computes its share of every step and of every evaluation, and writes nothing."""

    module: DreamBoothModule
    trainer_config: TrainerConfig
    evaluate_every: int | None
    lightning: dict[str, Any]
    resume_from: Path | None


def follow(follower: Follower) -> None:
    """Train beside the leader until the last step."""
    module, config = follower.module, follower.trainer_config
    if module.resumed_at >= config.max_steps:
        return
    quiet_lightning()
    ema = ema_callback(module, config)
    parking = Parking(module.backbone) if config.offload else None
    callbacks: list[pl.Callback] = [OwnSignalCallback()]
    callbacks += [ResumeCallback(follower.resume_from, None, ema)] if follower.resume_from else []
    callbacks += [ema] if ema else []
    if follower.evaluate_every is not None:
        callbacks.append(HelpCallback(module.share.ranks, follower.evaluate_every, ema, parking))
    elif parking is not None:
        callbacks.append(ParkCallback(parking))
    if module.share.sharded:
        callbacks.append(GatherCallback(config.checkpoint_every, ema))

    def where() -> str:
        return f"on device {module.share.ranks.rank} near step {module.micro_step // config.accumulate}"

    with memory_explained(where, LESS_MEMORY):
        fit(module, config, follower.lightning, callbacks)
    if module.share.sharded and module.whole is not None:
        with ema.lent() if ema else nullcontext():
            for network in module.whole.networks.values():
                deque(whole_state(network), maxlen=0)

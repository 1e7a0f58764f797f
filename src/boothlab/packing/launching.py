"""Puts the jobs of a multirun into packs: which can share a model, how many at once, and where each one's log goes."""

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, run_job, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from boothlab.compose.job import Job, Outcome
from boothlab.compose.schemas import SCHEMAS
from boothlab.compose.typed import from_resolved
from boothlab.errors import UserError
from boothlab.packing.pack import Pack

log = logging.getLogger(__name__)
MOST_JOBS = 16


@dataclass(frozen=True)
class PackSettings:
    """Jobs at once (None: at most MOST_JOBS), rows a call of a network takes, and CPU threads (None: as they are)."""

    jobs: int | None
    rows: int
    threads: int | None
    fit: Callable[[Any], int] | None = None
    """How many jobs like this one fit into memory; None: as many as there are."""

    def __post_init__(self) -> None:
        for name, value in (("jobs", self.jobs), ("rows", self.rows), ("threads", self.threads)):
            if value is not None and value < 1:
                raise UserError(f"hydra.launcher.{name}={value}: must be at least 1")

    def size(self, resolved: Sequence[Mapping[str, Any]]) -> int:
        """How many of these jobs to train at once: what was asked for, or what the largest of them allows."""
        if self.jobs is not None:
            return self.jobs
        fitting = [MOST_JOBS]
        if self.fit is not None:
            kinds = {repr({**one, "seed": 0}): one for one in resolved}  # a seed takes no memory
            fitting += [self.fit(from_resolved(one, SCHEMAS["train"])[0]) for one in kinds.values()]
        return max(1, min(fitting))


def pack_key(resolved: Mapping[str, Any], schema: type) -> Hashable | None:
    """Jobs with one key can share a model; None for a job that has to run alone.

    Alone runs whatever is no training of a LoRA, what shares its batches among devices or compiles the networks, and
    dropout with gradient checkpointing, whose masks would be drawn twice.
    """
    if schema is not SCHEMAS["train"]:
        return None
    trainer, lora = resolved["trainer"], resolved["lora"]
    plain = resolved.get("method", "lora") == "lora" and lora.get("variant", "lora") == "lora"
    doubled = trainer["gradient_checkpointing"] and lora["dropout"] > 0
    own = trainer.get("devices", 1) > 1 or trainer.get("compile", "none") != "none"
    if not plain or doubled or own or trainer.get("offload"):  # the offloaded networks are everyone's
        return None
    shared = {name: trainer[name] for name in ("accelerator", "deterministic", "gradient_checkpointing")}
    return repr((sorted(resolved["backbone"].items()), sorted(shared.items())))


def launch_packed(
    context: HydraContext,
    task: Job[Any],
    config: DictConfig,
    job_overrides: Sequence[Sequence[str]],
    first: int,
    settings: PackSettings,
) -> list[JobReturn]:
    """Run all jobs, pack by pack; what each returned, in their order."""
    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    Path(str(config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
    opening = [_Opening(context, task, config, words, first + i) for i, words in enumerate(job_overrides)]
    packs: dict[Hashable, list[_Opening]] = defaultdict(list)
    for number, one in enumerate(opening):
        key = pack_key(one.resolved(), task.schema)
        packs[("alone", number) if key is None else key].append(one)
    before, threads = torch.get_num_threads(), settings.threads
    try:
        torch.set_num_threads(before if threads is None else threads)
        for key, members in packs.items():
            if isinstance(key, tuple):
                members[0].finish(members[0].open()())
            else:
                _run_pack(members, settings)
    finally:
        torch.set_num_threads(before)
        configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    return [one.returned for one in opening]


def _run_pack(members: Sequence["_Opening"], settings: PackSettings) -> None:
    logs = _LogRouter()
    pack: Pack[Outcome] = Pack(settings.size([one.resolved() for one in members]), settings.rows)
    try:
        for one, found in zip(members, pack.run(_works(members, logs)), strict=True):
            one.finish(found)
    finally:
        logs.close()


def _works(members: Sequence["_Opening"], logs: "_LogRouter") -> Iterator[Callable[[], Outcome]]:
    """Each job, opened when its turn has come and not before."""
    for one in members:
        work = one.open()
        yield partial(_logged, work, logs, logs.take_files())


def _logged(work: Callable[[], Outcome], logs: "_LogRouter", files: list[logging.Handler]) -> Outcome:
    logs.mine(files)
    return work()


class _Opening:
    """One job of the multirun: Hydra makes its folder and its config, and its work is done later in a pack."""

    def __init__(
        self, context: HydraContext, task: Job[Any], config: DictConfig, overrides: Sequence[str], number: int
    ):
        self.context, self.task = context, task
        self.config = context.config_loader.load_sweep_config(config, list(overrides))
        with open_dict(self.config):
            self.config.hydra.job.id = self.config.hydra.job.num = number
        log.info("\t#%d : %s", number, " ".join(filter_overrides(overrides)))

    def resolved(self) -> dict[str, Any]:
        """The job's own part of the config, plain."""
        part = OmegaConf.masked_copy(self.config, [str(key) for key in self.config if key != "hydra"])
        found: Any = OmegaConf.to_container(part, resolve=True, enum_to_str=True)
        return dict(found)

    def open(self) -> Callable[[], Outcome]:
        """Let Hydra prepare the job as it would before running it; returns what is to be run."""
        self.returned = run_job(
            hydra_context=self.context,
            task_function=self.task.begin,
            config=self.config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        work: Callable[[], Outcome] = self.returned.return_value  # raises what went wrong
        return work

    def finish(self, found: Outcome | BaseException) -> None:
        """Note how it ended."""
        if isinstance(found, BaseException):
            found = Outcome(code=1, error=f"{type(found).__name__}: {found}")
        self.returned.status, self.returned.return_value = JobStatus.COMPLETED, found


class _LogRouter(logging.Handler):
    """Each job's lines into its own log file, though all log at once: by the thread they come from."""

    def __init__(self) -> None:
        super().__init__()
        self._files: dict[int, list[logging.Handler]] = {}

    def take_files(self) -> list[logging.Handler]:
        """The log files that Hydra has just opened for a job; taken from the root logger, which now asks the router."""
        root = logging.getLogger()
        files = [handler for handler in root.handlers if isinstance(handler, logging.FileHandler)]
        for handler in files:
            root.removeHandler(handler)
        if self not in root.handlers:
            root.addHandler(self)
        return list(files)

    def mine(self, files: list[logging.Handler]) -> None:
        """The lines of this thread go there."""
        self._files[threading.get_ident()] = files

    def emit(self, record: logging.LogRecord) -> None:
        for handler in self._files.get(record.thread or 0, ()):
            handler.handle(record)

    def close(self) -> None:
        logging.getLogger().removeHandler(self)
        for files in self._files.values():
            for handler in files:
                handler.close()
        super().close()

"""Hydra finds its launchers here: `hydra/launcher=packed`, which trains the jobs of a multirun in one model.

Any other launcher can hand out packs too, as `sweep.pack` asks: it is then given a pack where it expects a job.
"""

from collections.abc import Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class PackedLauncher(Launcher):
    """Trains many jobs at once in one process; what cannot share a model runs by itself.

    `jobs` is how many at once (None: as many as memory allows, at most 16), `rows` how many samples one call of a
    network takes, `threads` how many CPU threads the shared networks use (None: torch's choice).
    """

    def __init__(self, jobs: int | None = None, rows: int = 64, threads: int | None = None) -> None:
        self.jobs, self.rows, self.threads = jobs, rows, threads

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """What Hydra gives a launcher before it launches."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; what each returned, in their order."""
        from boothlab.building.packs import jobs_that_fit  # torch: only once there is something to do
        from boothlab.packing.launching import PackSettings, launch_packed

        task: Any = self.task_function
        settings = PackSettings(self.jobs, self.rows, self.threads, jobs_that_fit)
        return launch_packed(self.hydra_context, task, self.config, job_overrides, initial_job_idx, settings)


class PackTask:
    """What a launcher runs in the place of one job: a whole pack, told from others by its first job's words."""

    def __init__(
        self, hydra_context: HydraContext, task_function: Any, config: DictConfig, packs: Sequence[Sequence[Any]]
    ) -> None:
        self.hydra_context, self.task_function, self.config, self.packs = hydra_context, task_function, config, packs

    def __call__(self, node: DictConfig) -> list[Any]:
        """Run the pack in which this job is the first; what each of its jobs returned."""
        from boothlab.packing.launching import PackSettings, launch_packed

        first = list(HydraConfig.get().overrides.task)
        number, words = next((i, pack) for i, pack in enumerate(self.packs) if list(pack[0]) == first)
        start = sum(len(pack) for pack in self.packs[:number])
        settings = PackSettings(jobs=len(words), rows=64, threads=None)
        returned = launch_packed(self.hydra_context, self.task_function, self.config, words, start, settings)
        return [one.return_value for one in returned]

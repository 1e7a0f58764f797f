"""`search=optuna`: a sweep whose next jobs are chosen from the scores of those before."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from boothlab.compose.jobs import Explorer, PlannedJob, check_jobs
from boothlab.compose.mistakes import explain
from boothlab.compose.typed import load
from boothlab.config import NOT_HASHED, SearchConfig, SearchEngine
from boothlab.errors import NonFiniteLossError, UserError
from boothlab.progress import Reporter
from boothlab.search import JobResult, OnCheckpoint, Pruned, parse_space
from boothlab.tracking.manifest import config_hash

#: `train` as a search calls it: typed config, resolved config, run folder, one of many, told of each checkpoint
Trainer = Callable[[Any, dict[str, Any], Path, bool, OnCheckpoint], object]


def take_search(argv: Sequence[str]) -> tuple[SearchConfig, list[str]]:
    """The settings of a search (`search=optuna search.trials=20`), and the arguments that are left for Hydra."""
    mine = [word for word in argv if word.startswith(("search=", "search."))]
    dotted = [f"engine={word[7:]}" if word.startswith("search=") else word[7:] for word in mine]
    try:
        merged = OmegaConf.merge(OmegaConf.structured(SearchConfig), OmegaConf.from_dotlist(dotted))
        options = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        said = " ".join(str(explain(error, SearchConfig)).split())
        raise UserError(f"{' '.join(mine)}: {said}") from error
    assert isinstance(options, SearchConfig)
    if mine and options.engine is SearchEngine.none:
        raise UserError(f"{mine[0]}: has no effect without search=optuna")
    return options, [word for word in argv if word not in mine]


def run_adaptive(
    explorer: Explorer,
    schema: type,
    train: Trainer,
    options: SearchConfig,
    name: str,
    worker_command: Sequence[str],
    reporter: Reporter,
) -> tuple[int, list[PlannedJob]]:
    """Search until enough settings were tried; returns the exit code and the jobs of all trials, best first."""
    from boothlab.search.optuna_search import run_search  # Optuna is an extra

    space = parse_space(list(explorer.overrides))

    def planned(overrides: Sequence[str]) -> PlannedJob:
        (job,) = check_jobs([explorer.plan(overrides)], schema)
        if job.mistake is not None:
            raise UserError(job.mistake)
        return job

    def run_job(overrides: list[str], on_checkpoint: OnCheckpoint) -> JobResult:
        job = planned(overrides)
        config: Any
        config, resolved = load(OmegaConf.create(job.resolved), schema)
        try:
            train(config, resolved, job.run_dir, True, on_checkpoint)
        except (Pruned, UserError, NonFiniteLossError):
            raise
        except Exception as error:  # running out of memory, say: that setting failed, the search goes on
            return JobResult("failed", job.run_dir, f"{type(error).__name__}: {error}")
        return JobResult("finished", job.run_dir)

    storage = Path(options.storage) if options.storage else explorer.folder / "search" / f"{name}.log"
    common = planned([*space.fixed, *(space.replicates[0] if space.replicates else ())])
    result = run_search(
        options,
        space,
        space.replicates,
        run_job,
        study_name=name,
        storage=storage,
        reporter=reporter,
        folder_of=lambda overrides: planned(overrides).run_dir,
        identity=config_hash(common.resolved, (*NOT_HASHED, "seed")),
        worker_command=worker_command,
    )
    reporter.console.print(result.table())
    jobs = [
        planned([*space.fixed, *trial.overrides, *replicate])
        for trial in result.trials
        if trial.state == "finished"
        for replicate in (space.replicates or ((),))
    ]
    return (0 if result.best and not result.count("failed") else 1), jobs

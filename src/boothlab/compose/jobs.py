"""The jobs of a multirun, composed before any of them starts: overrides, config, run folder, and how to launch them."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from boothlab.compose.job import Job, Outcome
from boothlab.compose.mistakes import BAD_INPUT, explain
from boothlab.compose.naming import run_name
from boothlab.compose.typed import load
from boothlab.errors import UserError
from hydra_plugins.boothlab_packed import PackTask

BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


@dataclass(frozen=True)
class PlannedJob:
    """One job: what was overridden, its resolved config, its run folder; `mistake` says why it cannot start."""

    overrides: tuple[str, ...]
    resolved: dict[str, Any]
    run_dir: Path
    mistake: str | None = None

    @property
    def overwrites(self) -> bool:
        """Whether it is to be run again even if it is finished, as `paths.overwrite=true` says."""
        return bool((self.resolved.get("paths") or {}).get("overwrite"))


@dataclass(frozen=True)
class Multirun:
    """A multirun, composed. `launch` runs some of its jobs in their order, by the launcher that the config names."""

    config_name: str
    jobs: tuple[PlannedJob, ...]
    folder: Path
    params: dict[str, list[str]]
    settings: dict[str, Any]
    launcher: str
    launch: Callable[[Sequence[PlannedJob]], list[Outcome]]


@dataclass(frozen=True)
class Explorer:
    """A multirun whose jobs are not known before: what may vary, and how to compose a job of chosen values.

    `overrides` are those of the sweep's file and of the command line; `plan` composes a job from some of its own.
    """

    overrides: tuple[str, ...]
    folder: Path
    settings: dict[str, Any]
    plan: Callable[[Sequence[str]], PlannedJob]


def expand(params: Mapping[str, str], overrides: Sequence[str]) -> tuple[list[Override], dict[str, list[str]]]:
    """All overrides, and the values of each varied key.

    Those of `hydra.sweeper.params` count where the command line does not set the same key. Raises HydraException for
    what Hydra cannot read.
    """
    parser = OverridesParser.create()
    typed = parser.parse_overrides([override for override in overrides if not override.startswith("hydra.mode=")])
    given = {override.get_key_element() for override in typed}
    from_file = parser.parse_overrides([f"{key}={value}" for key, value in params.items()])
    chosen = [override for override in from_file if override.get_key_element() not in given] + typed
    values = {
        override.get_key_element(): [str(value) for value in override.sweep_string_iterator()]
        for override in chosen
        if override.is_sweep_override() and override.is_discrete_sweep()
    }
    return chosen, values


class _Composer:
    """Composes many configs that differ in values: Hydra once for each choice of groups, then value by value.

    `common` are overrides of every config, before its own.
    """

    def __init__(self, hydra: Hydra, name: str, common: Sequence[str] = ()):
        self.hydra, self.name, self.common = hydra, name, common
        self.parser = OverridesParser.create()
        self.bases: dict[tuple[str, ...], DictConfig] = {}
        self.groups: dict[str, bool] = {}

    def __call__(self, overrides: Sequence[str]) -> tuple[DictConfig, Path]:
        """The job's own part of the config, and the folder of all jobs."""
        parsed = self.parser.parse_overrides([*self.common, *overrides])
        plain = [one for one in parsed if self._is_value(one)]
        choices = tuple(one.input_line or "" for one in parsed if not self._is_value(one))
        if choices not in self.bases:
            self.bases[choices] = self.hydra.compose_config(
                self.name, [*choices, "hydra.mode=MULTIRUN"], RunMode.MULTIRUN, validate_sweep_overrides=False
            )
        cfg = copy.deepcopy(self.bases[choices])
        # The very function that Hydra applies values with once the groups are merged.
        ConfigLoaderImpl._apply_overrides_to_config(plain, cfg)
        folder = Path(str(cfg.hydra.sweep.dir))
        return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"]), folder

    def _is_value(self, override: Override) -> bool:
        """Whether it sets a value; the rest chooses a group, or adds or deletes a key."""
        simple = not (override.is_add() or override.is_force_add() or override.is_delete())
        return simple and not self._is_group(override.key_or_group)

    def _is_group(self, key: str) -> bool:
        if key not in self.groups:  # Hydra searches all folders each time
            options = "." not in key and self.hydra.config_loader.get_group_options(key)
            self.groups[key] = "/" in key or bool(options)
        return self.groups[key]


def plan_multirun(hydra: Hydra, name: str, overrides: Sequence[str], job: Job[Any]) -> Multirun | None:
    """Every job of the multirun; None if another sweeper than Hydra's basic one chooses the jobs as it goes.

    A job whose config has a mistake is planned too, with the mistake, so that it does not stop the others. Raises what
    Hydra raises for a command line that cannot be read at all.
    """
    cfg = hydra.compose_config(
        name, [*overrides, "hydra.mode=MULTIRUN"], RunMode.MULTIRUN, validate_sweep_overrides=False
    )
    if OmegaConf.select(cfg, "hydra.sweeper._target_") != BASIC_SWEEPER:
        return None
    params = OmegaConf.to_container(cfg.hydra.sweeper.params, resolve=True) if cfg.hydra.sweeper.params else {}
    assert isinstance(params, dict)
    chosen, values = expand({str(key): str(value) for key, value in params.items()}, overrides)
    fixed = [one.input_line or "" for one in chosen if not one.is_sweep_override()]
    # Those of Hydra itself are the launcher's, which gives them to every job: a `+hydra.…` given twice is refused.
    compose = _Composer(hydra, name, [one.input_line or "" for one in chosen if one.is_hydra_override()])
    found: dict[Path, PlannedJob] = {}
    for batch in BasicSweeper.split_arguments([one for one in chosen if not one.is_hydra_override()], None):
        for words in batch:
            planned = _plan_job(compose, words, job.schema)
            found.setdefault(planned.run_dir, planned)  # two settings that come to the same run are one job

    def launch(jobs: Sequence[PlannedJob]) -> list[Outcome]:
        return _launch(hydra, name, fixed, jobs, job)

    section = OmegaConf.to_container(cfg.sweep, resolve=True) if "sweep" in cfg else {}
    assert isinstance(section, dict)
    return Multirun(
        config_name=name,
        jobs=tuple(found.values()),
        folder=Path(str(cfg.hydra.sweep.dir)),
        params=values,
        settings={str(key): value for key, value in section.items()},
        launcher=str(cfg.hydra.launcher._target_).rpartition(".")[2],
        launch=launch,
    )


def explorer_of(hydra: Hydra, name: str, overrides: Sequence[str], schema: type) -> Explorer:
    """The multirun for someone who chooses its jobs. Raises what Hydra raises for what it cannot read."""
    cfg = hydra.compose_config(
        name, [*overrides, "hydra.mode=MULTIRUN"], RunMode.MULTIRUN, validate_sweep_overrides=False
    )
    params = OmegaConf.to_container(cfg.hydra.sweeper.params, resolve=True) if cfg.hydra.sweeper.params else {}
    section = OmegaConf.to_container(cfg.sweep, resolve=True) if "sweep" in cfg else {}
    assert isinstance(params, dict) and isinstance(section, dict)
    chosen, _ = expand({str(key): str(value) for key, value in params.items()}, overrides)
    compose = _Composer(hydra, name, [one.input_line or "" for one in chosen if one.is_hydra_override()])
    return Explorer(
        overrides=tuple(one.input_line or "" for one in chosen if not one.is_hydra_override()),
        folder=Path(str(cfg.hydra.sweep.dir)),
        settings={str(key): value for key, value in section.items()},
        plan=lambda words: _plan_job(compose, words, schema),
    )


def _plan_job(compose: _Composer, words: Sequence[str], schema: type) -> PlannedJob:
    try:
        node, folder = compose(words)
        resolved = OmegaConf.to_container(node, resolve=True, throw_on_missing=True, enum_to_str=True)
        assert isinstance(resolved, dict)
        plain = {str(key): value for key, value in resolved.items()}
        return PlannedJob(tuple(words), plain, folder / run_name(plain))
    except (*BAD_INPUT, UserError) as error:
        return PlannedJob(tuple(words), {}, Path("invalid", *words), str(explain(error, schema)))


def check_jobs(jobs: Iterable[PlannedJob], schema: type) -> list[PlannedJob]:
    """The same jobs, with the mistake of each whose config does not pass its checks."""
    checked = []
    for job in jobs:
        mistake = job.mistake
        if mistake is None:
            try:
                load(OmegaConf.create(job.resolved), schema)
            except (*BAD_INPUT, UserError) as error:
                mistake = str(explain(error, schema))
        checked.append(PlannedJob(job.overrides, job.resolved, job.run_dir, mistake))
    return checked


def _launch(hydra: Hydra, name: str, fixed: Sequence[str], jobs: Sequence[PlannedJob], job: Job[Any]) -> list[Outcome]:
    """Hand the jobs to Hydra's launcher, as a sweeper would."""
    cfg = hydra.compose_config(name, [*fixed, "hydra.mode=MULTIRUN"], RunMode.MULTIRUN, with_log_configuration=True)
    callbacks = Callbacks(cfg)
    callbacks.on_multirun_start(config=cfg, config_name=name)
    context = HydraContext(config_loader=hydra.config_loader, callbacks=callbacks)
    words = [list(one.overrides) for one in jobs]
    size = int(OmegaConf.select(cfg, "sweep.pack", default=1))
    packs = [words[start : start + size] for start in range(0, len(words), size)] if size > 1 else []
    task = PackTask(context, job, cfg, packs) if packs else job
    launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=cfg)
    returned = launcher.launch([pack[0] for pack in packs] or words, initial_job_idx=0)
    callbacks.on_multirun_end(config=cfg, config_name=name)
    return [outcome for one in returned for outcome in (one.return_value if packs else [one.return_value])]

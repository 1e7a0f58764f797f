"""Runs a command through Hydra's own machinery, so `-m`, `--cfg`, `--info` and `hydra.*` work as ever."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from hydra import version as hydra_version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import configure_log
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from boothlab.compose.job import Body, Job, code_of_multirun, code_of_run
from boothlab.compose.jobs import Explorer, Multirun, explorer_of, plan_multirun
from boothlab.compose.mistakes import BAD_INPUT, explain
from boothlab.compose.overrides import quote_text
from boothlab.compose.schemas import SCHEMAS, conf_dir, register
from boothlab.compose.typed import load, refuse_targets
from boothlab.errors import UserError

T = TypeVar("T")
#: the override of a single run
SINGLE = "hydra.mode=RUN"
#: read by Ray when a launcher imports it: all lines of all jobs as they are, and no statistics sent
_RAY = {"RAY_DEDUP_LOGS": "0", "RAY_USAGE_STATS_ENABLED": "0"}


def run(
    config_name: str,
    body: Body[Any],
    argv: Sequence[str],
    multirun: Callable[[Multirun], int] | None = None,
    search_in: Path | None = None,
    explore: Callable[[Explorer], int] | None = None,
) -> int:
    """Compose conf/<config_name>.yaml with the arguments, call `body` once or for each job, return the exit code.

    A single run lets the exceptions of `body` through. A multirun reports them and goes on with the next job;
    `multirun` takes it over once its jobs are composed, unless a sweeper plugin chooses them as it goes; `explore`
    takes it over before, and chooses the jobs itself. Config files are looked for in `search_in` too. Raises UserError
    for whatever is wrong with the arguments or the config files, before any folder is made.
    """
    schema = SCHEMAS[config_name]
    register(config_name)
    arguments = _parse(argv, config_name)
    overrides: list[str] = quote_text(arguments.overrides, schema, multirun=arguments.multirun)
    with _hydra(arguments, search_in) as hydra:
        name = arguments.config_name or config_name
        if _answer_question(hydra, arguments, name, overrides, schema):
            return 0
        with mistakes_explained(schema):
            mode = _mode(hydra, name, overrides, arguments.multirun)
            os.environ.update({key: value for key, value in _RAY.items() if key not in os.environ})
            if mode is RunMode.RUN:
                load(_job_part(hydra.ready()), schema)
        if mode is RunMode.MULTIRUN and explore is not None:
            with mistakes_explained(schema):
                explorer = explorer_of(hydra, name, overrides, schema)
            return explore(explorer)
        if mode is RunMode.MULTIRUN and multirun is not None:
            with mistakes_explained(schema):
                planned = plan_multirun(hydra, name, overrides, Job(schema, body))
            if planned is not None:
                return multirun(planned)
        if mode is RunMode.MULTIRUN:
            with mistakes_explained(schema):  # the exceptions of the jobs themselves stay in their outcomes
                return code_of_multirun(hydra.multirun(name, Job(schema, body), [*overrides, "hydra.mode=MULTIRUN"]))
        with mistakes_explained(schema):
            finished = hydra.run(name, Job(schema, body), [*overrides, SINGLE])
        return code_of_run(finished)


def compose(config_name: str, argv: Sequence[str] = ()) -> DictConfig:
    """The job's config as Hydra composes it, unresolved and unchecked; for help pages and tests. Raises UserError."""
    schema = SCHEMAS[config_name]
    register(config_name)
    arguments = _parse(argv, config_name)
    overrides = quote_text(arguments.overrides, schema, multirun=False)
    with _hydra(arguments) as hydra, mistakes_explained(schema):
        name = arguments.config_name or config_name
        return _job_part(hydra.compose_config(name, overrides, RunMode.RUN))


def group_options(config_name: str) -> dict[str, list[str]]:
    """The config groups that the primary config chooses from, each with its options."""
    register(config_name)
    with _hydra(_parse((), config_name)) as hydra:
        chosen = hydra.compose_config(config_name, [], RunMode.RUN).hydra.runtime.choices
        groups = [str(group) for group in chosen if not str(group).startswith("hydra/")]
        return {group: sorted(hydra.config_loader.get_group_options(group)) for group in groups}


@contextmanager
def mistakes_explained(schema: type) -> Iterator[None]:
    """Turns what composing raises for bad input into a UserError of one line."""
    try:
        yield
    except (UserError, BrokenPipeError):
        raise
    except BAD_INPUT as error:
        raise explain(error, schema) from error
    except TypeError as error:
        if not _raised_in_hydra(error):
            raise
        # A list where a group's option belongs, as in backbone=[false].
        raise UserError("a config group takes the name of an option, as in backbone=dollhouse") from error


def _raised_in_hydra(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and "hydra" in Path(trace.tb_frame.f_code.co_filename).parts


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; overrides are written key=value, and `boothlab {self.prog} --help` lists them")


def _parse(argv: Sequence[str], command: str) -> argparse.Namespace:
    parser = _Parser(prog=command, parents=[get_args_parser()], add_help=False, allow_abbrev=False)
    arguments = parser.parse_intermixed_args(list(argv))
    if arguments.experimental_rerun:
        raise UserError("--experimental-rerun would load a pickle, which can run code; use the manifest instead")
    return arguments


@contextmanager
def _hydra(arguments: argparse.Namespace, search_in: Path | None = None) -> Iterator["_Ahead"]:
    """Hydra with conf/ (or --config-path) as its main folder; `search_in` and --config-dir are searched as well."""
    hydra_version.setbase("1.3")
    main = conf_dir() if arguments.config_path is None else os.path.abspath(arguments.config_path)
    search_path = create_config_search_path(f"file://{main}")
    if search_in is not None:
        search_path.prepend(
            provider="sweeps", path=f"file://{search_in.resolve()}", anchor=SearchPathQuery(provider="schema")
        )
    if arguments.config_dir is not None:
        extra = os.path.abspath(arguments.config_dir)
        if not os.path.isdir(extra):
            raise UserError(f"--config-dir {arguments.config_dir}: there is no such folder")
        search_path.prepend(provider="command-line", path=f"file://{extra}", anchor=SearchPathQuery(provider="schema"))
    outer = GlobalHydra.instance().hydra  # a job may compose another config
    GlobalHydra.instance().clear()
    try:
        hydra = _Ahead.create_main_hydra2(task_name=arguments.config_name or "boothlab", config_search_path=search_path)
        assert isinstance(hydra, _Ahead)
        yield hydra
    finally:
        GlobalHydra.instance().hydra = outer


def _answer_question(
    hydra: Hydra, arguments: argparse.Namespace, name: str, overrides: list[str], schema: type
) -> bool:
    """Answer --cfg, --info, --hydra-help and --shell-completion; False if none was asked."""
    with mistakes_explained(schema):
        if arguments.cfg:
            hydra.show_cfg(name, overrides, arguments.cfg, arguments.package, arguments.resolve)
        elif arguments.info:
            logging.raiseExceptions = False  # it is all log lines, and `| head` closes the pipe early
            hydra.show_info(arguments.info, config_name=name, overrides=overrides)
        elif arguments.hydra_help:
            hydra.hydra_help(name, get_args_parser(), arguments)
        elif arguments.shell_completion:
            hydra.shell_completion(name, overrides)
        else:
            return False
    sys.stdout.flush()
    return True


def _mode(hydra: "_Ahead", name: str, overrides: list[str], multirun: bool) -> RunMode:
    """RUN or MULTIRUN, from -m or `hydra.mode`; a config that names code to run is refused before any of it could.

    Of a single run this composes the config, and `hydra.run` need not. Raises what composing raises.
    """
    found, failure = None, None
    if not multirun:
        try:
            found = hydra.compose_single(name, overrides)
        except Exception as error:  # it may have the words of a multirun, and only say so in its config file
            failure = error
    if found is None:
        found = hydra.compose_config(name, overrides, RunMode.MULTIRUN, validate_sweep_overrides=False)
    refuse_targets(OmegaConf.to_container(found, resolve=False))
    if multirun or found.hydra.mode == RunMode.MULTIRUN:
        return RunMode.MULTIRUN
    if failure is not None:
        raise failure
    return RunMode.RUN


class _Ahead(Hydra):
    """Hydra that hands a single run the config that was composed to learn its mode, rather than the same once more."""

    _ready: tuple[str | None, list[str], DictConfig] | None = None

    def compose_single(self, config_name: str | None, overrides: list[str]) -> DictConfig:
        """The config as it is for a single run, and kept for `run` if it does not say that it is none.

        It then has what SINGLE, which Hydra's own front door adds to the overrides, would have set.
        """
        config = super().compose_config(config_name, overrides, RunMode.RUN)
        if config.hydra.mode != RunMode.MULTIRUN:
            config.hydra.mode = RunMode.RUN
            config.hydra.overrides.hydra.append(SINGLE)
            self._ready = (config_name, [*overrides, SINGLE], config)
        return config

    def ready(self) -> DictConfig:
        """The config that `run` is going to take, once there is one. Not to be changed."""
        assert self._ready is not None
        return self._ready[2]

    def compose_config(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        with_log_configuration: bool = False,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """As Hydra's own. What was composed before is handed out once."""
        ready, self._ready = self._ready, None
        if run_mode is RunMode.RUN and ready is not None and ready[:2] == (config_name, overrides):
            if with_log_configuration:
                configure_log(ready[2].hydra.hydra_logging, ready[2].hydra.verbose)
            return ready[2]
        return super().compose_config(
            config_name, overrides, run_mode, with_log_configuration, from_shell, validate_sweep_overrides
        )


def _job_part(cfg: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])

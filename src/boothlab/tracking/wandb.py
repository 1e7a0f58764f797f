"""The Weights & Biases mirror: training never fails and hardly waits because of it, with or without a server."""

import logging
import os
import shlex
import shutil
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boothlab.errors import UserError
from boothlab.tracking.background import Background
from boothlab.tracking.history import FILE_NAME as HISTORY
from boothlab.tracking.history import read_history
from boothlab.tracking.manifest import FILE_NAME as MANIFEST
from boothlab.tracking.manifest import plain
from boothlab.tracking.metrics import REGISTRY, STEP_KEY
from boothlab.tracking.provenance import code_state
from boothlab.tracking.redaction import redact, redact_command, redact_text
from boothlab.tracking.wandb_service import bounded

if TYPE_CHECKING:
    import wandb  # at run time only inside functions: the import takes a second

log = logging.getLogger(__name__)

INIT_TIMEOUT_S = 15.0
FINISH_TIMEOUT_S = 60.0
FAILED_FINISH_TIMEOUT_S = 5.0
_MAX_TAG_LENGTH = 64
KEPT_FILES = (MANIFEST, HISTORY, "summary.json")
"""Files of the run folder that W&B keeps as they are: enough for `boothlab rerun`."""
_IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})


class WandbMode(StrEnum):
    """auto: online when a key is set, else offline; an explicit WANDB_MODE decides for auto."""

    AUTO = "auto"
    OFFLINE = "offline"
    ONLINE = "online"
    DISABLED = "disabled"


@dataclass(frozen=True)
class WandbOptions:
    """Where a run goes in W&B; `name` defaults to the name of the run folder."""

    project: str = "boothlab"
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    name: str | None = None
    mode: str = "auto"


def has_key() -> bool:
    """Whether W&B can log in without asking: a key or identity token in the environment, its settings or netrc."""
    import wandb
    from wandb.sdk.lib import wbauth

    settings = wandb.setup(wandb.Settings(silent=_silent())).settings
    if os.environ.get("WANDB_API_KEY") or settings.api_key or settings.identity_token_file:
        return True
    return wbauth.read_netrc_auth(host=settings.base_url) is not None


def _silent() -> bool:
    """W&B writes to the terminal only if there is one: not into log files and not among a test's output."""
    return not sys.stderr.isatty()


def check_mode(mode: str) -> WandbMode:
    """The mode of that name. Raises UserError for an unknown one."""
    try:
        return WandbMode(mode)
    except ValueError as error:
        raise UserError(f"the W&B mode must be one of {', '.join(WandbMode)}, not {mode!r}") from error


def resolve_mode(mode: WandbMode) -> WandbMode:
    """Turns auto into one of the other three."""
    if mode is not WandbMode.AUTO:
        return mode
    asked = os.environ.get("WANDB_MODE", "")
    if asked in ("offline", "dryrun"):
        return WandbMode.OFFLINE
    if asked == "disabled":
        return WandbMode.DISABLED
    if asked == "online":
        return WandbMode.ONLINE
    return WandbMode.ONLINE if has_key() else WandbMode.OFFLINE


class WandbMirror:
    """One W&B run for one boothlab run. After `start`, no method raises: the first failure is logged, once.

    `init_timeout` and `finish_timeout` are in seconds and bound the waits at the two ends of a run. Between them
    nothing waits: a thread of its own talks to W&B, because logging a table or an artifact asks the server first, and
    takes 20 seconds when it does not answer. Files that are logged must therefore stay as they are until the run ends.
    """

    def __init__(self, init_timeout: float = INIT_TIMEOUT_S, finish_timeout: float = FINISH_TIMEOUT_S) -> None:
        self._init_timeout = init_timeout
        self._finish_timeout = finish_timeout
        self._run: wandb.Run | None = None
        self._warned = False
        self._failed = False
        self._background: Background | None = None
        self._run_dir = Path()
        self.mode = WandbMode.DISABLED

    @property
    def sync_dir(self) -> Path | None:
        """The folder that `wandb sync` takes; None when nothing is recorded."""
        return None if self._run is None else Path(self._run.settings.sync_dir)

    def start(
        self,
        run_dir: Path,
        project: str,
        group: str | None,
        tags: Sequence[str],
        name: str | None,
        mode: str,
        config: Mapping[str, Any],
    ) -> None:
        """Open a fresh W&B run that writes to `run_dir`/wandb. Raises UserError only, for an unknown mode.

        Rows that metrics.jsonl already holds, of a run that goes on after a checkpoint, are sent first: W&B cannot
        continue an offline run, and the new one shall be whole. If the server cannot be reached or refuses the key,
        the run is recorded offline and the log says how to send it later.
        """
        wanted = check_mode(mode)
        self._run_dir = run_dir
        try:
            arguments = {
                "dir": str(run_dir),
                "project": project,
                "group": group and redact_text(group),
                "tags": [redact_text(tag)[:_MAX_TAG_LENGTH] for tag in tags if tag],
                "name": redact_text(name or run_dir.name),
                "config": redact(plain(config)),
            }
            self._start(resolve_mode(wanted), arguments)
            if self._run is not None and (run_dir / HISTORY).is_file():
                for row in read_history(run_dir / HISTORY).rows:
                    self.log(row.step, row.scalars)
        except Exception as error:  # whatever W&B throws, training goes on
            self._warn(f"W&B could not start and is off for this run: {error}")

    def _start(self, mode: WandbMode, arguments: dict[str, Any]) -> None:
        fallback = False
        if mode is WandbMode.ONLINE:
            try:
                if not has_key():
                    raise UserError("no key is set; `wandb login` sets one")  # or W&B would wait at a prompt
                self._run = self._init(mode, arguments, self._finish_timeout)
            except Exception as error:
                reason = " ".join(str(error).split())[:300]
                log.warning("W&B is not available, recording this run offline: %s", reason)
                mode = WandbMode.OFFLINE
                fallback = True
        if mode is WandbMode.OFFLINE:
            self._run = self._init(mode, arguments, FAILED_FINISH_TIMEOUT_S)
        self.mode = mode
        if fallback:
            log.warning("Send it later with: %s", self.sync_command())
        if self._run is not None:
            _define_metrics(self._run)
            self._background = Background("boothlab-wandb")
            if mode is WandbMode.ONLINE:
                log.info("W&B run: %s", self._run.url)

    def _init(self, mode: WandbMode, arguments: dict[str, Any], finish_timeout: float) -> "wandb.Run":
        import wandb

        code = code_state() or {}
        settings = wandb.Settings(
            # Its own look at the work tree would send the uncommitted changes as they are; the manifest has them.
            disable_git=True,
            git_commit=code.get("commit"),
            save_code=False,
            init_timeout=self._init_timeout,
            finish_timeout=finish_timeout,
            finish_timeout_raises=True,
            # Jobs of a pack have their runs open side by side, each in a thread of its own.
            reinit="finish_previous" if threading.current_thread() is threading.main_thread() else "create_new",
            silent=_silent(),
            x_graphql_retry_max=1,  # the default retries outlast init_timeout: 100 s for a refused connection
            x_transaction_log_flush_interval=0.5,  # seconds; the default of 15 loses them when the run is killed
        )
        # A run id left over in the environment would merge the jobs of a multirun; only a sweep agent means it.
        run_id = None if os.environ.get("WANDB_SWEEP_ID") else uuid.uuid4().hex[:8]
        online = mode is WandbMode.ONLINE
        with _redacted_words():
            return wandb.init(**arguments, mode="online" if online else "offline", id=run_id, settings=settings)

    def sync_command(self) -> str:
        """The command line that sends what was recorded."""
        online = self.mode is WandbMode.ONLINE
        return f"wandb sync {'--include-online ' if online else ''}{shlex.quote(str(self.sync_dir))}"

    def log(self, step: int, scalars: Mapping[str, int | float]) -> None:
        """Scalars at one optimizer step. The step is a metric of its own, so that W&B never drops a late row."""
        row = {**scalars, STEP_KEY: step}
        self._send("scalars", lambda run: run.log(row))

    def log_images(self, step: int, key: str, images: Sequence[tuple[Path, str]]) -> None:
        """Image files with their captions, as one panel."""
        pairs = list(images)  # the caller may go on using its lists while the thread works

        def send(run: "wandb.Run") -> None:
            import wandb

            run.log({key: [wandb.Image(str(path), caption=caption) for path, caption in pairs], STEP_KEY: step})

        self._send(f"images {key}", send)

    def log_table(self, step: int, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table; a cell that is the Path of an image shows the image, any other Path its text."""
        names: list[str | int] = list(columns)
        cells = [list(row) for row in rows]

        def send(run: "wandb.Run") -> None:
            import wandb

            table = wandb.Table(columns=names, data=[[_cell(value) for value in row] for row in cells])
            run.log({key: table, STEP_KEY: step})

        self._send(f"the table {key}", send)

    def log_curve(self, step: int, key: str, labels: Sequence[str], points: Sequence[Sequence[float]]) -> None:
        """One of W&B's own line plots: x, y and their labels."""
        (x, y), data = labels, [list(point) for point in points]

        def send(run: "wandb.Run") -> None:
            import wandb

            run.log({key: wandb.plot.line(wandb.Table(columns=[x, y], data=data), x, y, title=key), STEP_KEY: step})

        self._send(f"the curve {key}", send)

    def log_artifact(self, name: str, type_: str, paths: Sequence[Path], metadata: Mapping[str, Any]) -> None:
        """Files and folders, copied by W&B, as a version of the artifact `name`."""
        sources, facts = list(paths), dict(metadata)

        def send(run: "wandb.Run") -> None:
            import wandb

            artifact = wandb.Artifact(name, type=type_, metadata=redact(plain(facts)))
            for path in sources:
                if path.is_dir():
                    artifact.add_dir(str(path), name=path.name)
                else:
                    artifact.add_file(str(path), name=path.name)
            run.log_artifact(artifact)

        self._send(f"the artifact {name}", send)

    def summarize(self, values: Mapping[str, Any]) -> None:
        """Values for the run's summary, beside the last value of each metric that W&B puts there."""
        facts = dict(values)
        self._send("the summary", lambda run: run.summary.update(facts))

    def finish(self, exit_code: int) -> None:
        """Close the run, 0 for success. Waits at most `finish_timeout` seconds for what is still to be handed over, 5
        if W&B has failed before, and as long again for the server to take it.
        """
        run, command, background = self._run, self.sync_command(), self._background
        if run is None or background is None:
            return
        self._send("the manifest", self._keep_files)
        self._run = self._background = None
        if not background.close(lambda: FAILED_FINISH_TIMEOUT_S if self._failed else self._finish_timeout):
            self._warn("W&B did not take everything in time; the run folder has it")
        try:
            with bounded(self._finish_timeout):
                run.finish(exit_code=exit_code)
        except Exception as error:  # TimeoutError when the server went away
            log.warning("W&B did not receive the whole run: %s. Send it with: %s", error, command)
        else:
            if self.mode is WandbMode.OFFLINE:
                log.info("W&B recorded this run offline. Send it with: %s", command)

    def _keep_files(self, run: "wandb.Run") -> None:
        for name in KEPT_FILES:
            if (self._run_dir / name).is_file():  # copied: W&B would leave a link, and the folder may be moved
                shutil.copyfile(self._run_dir / name, Path(run.dir) / name)
                run.save(str(Path(run.dir) / name), base_path=run.dir, policy="now")

    def _send(self, what: str, action: Callable[["wandb.Run"], None]) -> None:
        run, background = self._run, self._background
        if run is None or background is None:
            return

        def attempt() -> None:
            try:
                action(run)
            except Exception as error:  # a mirror must not stop the training
                self._failed = True
                self._warn(f"W&B did not take {what} ({error}); further failures are not reported")

        background.submit(attempt)

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning("%s", message)


@contextmanager
def _redacted_words() -> Iterator[None]:
    """W&B copies the command line from `sys.argv` when a run starts: let it find no key there."""
    words = sys.argv
    sys.argv = [*words[:1], *redact_command(words[1:])]
    try:
        yield
    finally:
        sys.argv = words


def _define_metrics(run: "wandb.Run") -> None:
    """Every metric on the step axis. W&B's own min and max are not asked for: one NaN would stay in them for good, and
    they would count the untrained model; `summarize` sends ours.
    """
    run.define_metric(STEP_KEY, hidden=True)
    # Globs first: they catch variants, images and tables, and the exact names below take precedence over them.
    for prefix in sorted({key.split("/")[0] for key in REGISTRY} | {"samples"}):
        run.define_metric(f"{prefix}/*", step_metric=STEP_KEY)
    for metric in REGISTRY.values():
        run.define_metric(metric.key, step_metric=metric.step_key)


def _cell(value: Any) -> Any:
    import wandb

    if isinstance(value, Path):
        return wandb.Image(str(value)) if value.suffix.lower() in _IMAGE_SUFFIXES else value.as_posix()
    return value

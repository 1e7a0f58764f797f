"""Images from the web into a folder: politely, in parallel, checked, made small, and continued where it was stopped."""

import io
import queue
import re
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath

from PIL import Image

from boothlab.errors import UserError
from boothlab.files import shown, write_bytes
from boothlab.images.download_record import Job, Lines, Result, read_record
from boothlab.images.fetching import Fetcher, FetchError, FetchLimits, host_of
from boothlab.images.load import ImageError, decode_image
from boothlab.images.politeness import HostQueue
from boothlab.progress import Bar, Reporter
from boothlab.seeding import derive_seed

_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
_PATIENCE_S = 2.0
"""How long threads that were told to stop are waited for, in all; they write no half files when they end later."""
_MARKUP = (b"<!doctype", b"<html", b"<?xml", b"<svg", b"<head")


@dataclass(frozen=True)
class DownloadSettings:
    """How to download. `rate` is requests a second to one host; seconds elsewhere; `quality` is JPEG's, 1 to 95.

    Before attempt n + 1 (n = 1, 2, …) a job waits min(backoff_s · 2^(n-1), backoff_max_s) · (1 + u) / 2, u uniform in
    [0, 1) from (seed, key, n); longer if the server asks for it, but never longer than `longest_wait_s`: then the host
    is left alone until the next call.
    """

    limits: FetchLimits = field(default_factory=FetchLimits)
    long_side: int = 640
    quality: int = 90
    workers: int = 8
    per_host: int = 2
    rate: float = 4.0
    attempts: int = 4
    backoff_s: float = 1.0
    backoff_max_s: float = 30.0
    longest_wait_s: float = 120.0
    seed: int = 0
    retry_failed: bool = False

    @property
    def form(self) -> str:
        """What the written files depend on: a file of another form is fetched again."""
        return f"jpeg {self.long_side} q{self.quality}"


@dataclass
class _Task:
    job: Job
    host: str
    attempt: int = 1


def download(
    jobs: Sequence[Job], root: Path, record: Path, settings: DownloadSettings, reporter: Reporter
) -> list[Result]:
    """Fetch every job that is not finished, and return the results of all of them in their order.

    Files are written whole or not at all. Each result is a line of `record` as soon as it is there, so a call that was
    interrupted is continued by the next one: finished files are skipped, and so are failures that are final, unless
    `settings.retry_failed`. Only one process at a time may work in `root`. Raises UserError for a target outside of
    `root` or a place that cannot be written; an interruption passes on once the threads have stopped.
    """
    for job in jobs:
        check_target(root, job.target)
    if len({job.target for job in jobs}) < len(jobs):
        raise ValueError("two jobs have one target")
    known = read_record(record)
    finished = {job.target: old for job in jobs if (old := _finished(known.get(job.target), job, root, settings))}
    todo = [job for job in jobs if job.target not in finished]
    if finished:
        reporter.say(f"{len(finished)} of {len(jobs)} images are dealt with already")
    with reporter.bar("downloading", len(jobs)) as bar:
        bar.advance(len(finished))
        results = _Download(root, record, settings, bar).run(todo)
    return [finished.get(job.target) or results[job.target] for job in jobs]


def check_target(root: Path, target: str) -> Path:
    """The file of a target. Raises UserError if it would lie outside of the folder, links included."""
    parts = target.split("/")
    path = root.joinpath(*parts)
    good = all(_PART.fullmatch(part) for part in parts) and not PurePosixPath(target).is_absolute()
    if not good or not path.parent.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{shown(target)}: is no file name inside {shown(root)}; use letters, digits, dots and dashes")
    return path


def _finished(old: Result | None, job: Job, root: Path, settings: DownloadSettings) -> Result | None:
    """The earlier result of a job, if there is nothing left to do."""
    if old is None or old.key != job.key or old.url != job.url:
        return None
    if not old.ok:
        return old if old.final and not settings.retry_failed else None
    path = root / job.target
    whole = path.is_file() and not path.is_symlink() and path.stat().st_size == old.bytes
    return old if whole and old.form == settings.form else None


class _Download:
    """One call of `download`: threads that fetch, and the calling thread, which writes the record."""

    def __init__(self, root: Path, record: Path, settings: DownloadSettings, bar: Bar) -> None:
        self.root, self.record, self.settings, self.bar = root, record, settings, bar
        self.fetcher = Fetcher(settings.limits, settings.per_host)
        self.tasks: HostQueue[_Task] = HostQueue(settings.per_host, 1 / settings.rate)
        self.results: queue.Queue[Result | BaseException] = queue.Queue()
        self.stopped = threading.Event()

    def run(self, jobs: Sequence[Job]) -> dict[str, Result]:
        found: dict[str, Result] = {}
        count = len(jobs)
        for job in jobs:
            try:
                self.tasks.put(_Task(job, host_of(job.url)), host_of(job.url))
            except FetchError as error:
                self.results.put(_failed(job, error.reason, attempts=0, final=True))
        workers = [threading.Thread(target=self._work, daemon=True) for _ in range(min(self.settings.workers, count))]
        with Lines(self.record) as lines:
            try:
                for worker in workers:
                    worker.start()
                while len(found) < count:
                    with suppress(queue.Empty):
                        self._note(self.results.get(timeout=0.5), found, lines)  # short, so that Ctrl-C is heard
            finally:
                self.stopped.set()
                patience = time.monotonic() + _PATIENCE_S
                for worker in workers:
                    if worker.ident is not None:
                        worker.join(max(0.0, patience - time.monotonic()))
                while not self.results.empty():  # what was finished meanwhile need not be fetched again
                    with suppress(queue.Empty):
                        self._note(self.results.get_nowait(), found, lines, forgiving=True)
        return found

    def _note(
        self, result: Result | BaseException, found: dict[str, Result], lines: Lines, forgiving: bool = False
    ) -> None:
        if isinstance(result, BaseException):
            if forgiving:
                return
            raise result
        lines.append(result)
        found[result.target] = result
        self.bar.advance()

    def _work(self) -> None:
        while (task := self.tasks.take(self.stopped)) is not None:
            try:
                self._attempt(task)
            except BaseException as error:  # a full disk, or a mistake of ours: the caller's thread raises it
                self.results.put(error)
                self.stopped.set()
            finally:
                self.tasks.done(task.host)

    def _attempt(self, task: _Task) -> None:
        """Fetch once: the result, or another attempt later."""
        try:
            data = self.fetcher.fetch(task.job.url, self._pace, self.stopped)
            result = self._keep(task.job, data)
        except FetchError as error:
            self._failed(task, error)
        else:
            self.results.put(replace(result, attempts=task.attempt))

    def _failed(self, task: _Task, error: FetchError) -> None:
        settings = self.settings
        if self.stopped.is_set():
            return
        if (error.wait_s or 0) > settings.longest_wait_s:
            reason = f"{error.reason}; the server asks to wait {error.wait_s:.0f} seconds, so run it again later"
            for other in [task, *self.tasks.drop(task.host)]:
                self.results.put(_failed(other.job, reason, other.attempt - (other is not task), final=False))
        elif error.retry and task.attempt < settings.attempts:
            if error.wait_s:
                self.tasks.pause(task.host, error.wait_s)
            delay_s = max(backoff(settings, task.job.key, task.attempt), error.wait_s or 0.0)
            self.tasks.put(replace(task, attempt=task.attempt + 1), task.host, delay_s)
        else:
            self.results.put(_failed(task.job, error.reason, task.attempt, final=error.final))

    def _pace(self, host: str) -> None:
        self.stopped.wait(self.tasks.reserve(host))

    def _keep(self, job: Job, data: bytes) -> Result:
        """Check, reduce and write an image. Raises FetchError if it is none."""
        if data[:256].lstrip().lower().startswith(_MARKUP):
            raise FetchError("a web page, not an image")
        try:
            loaded = decode_image(data, job.key)
        except ImageError as error:
            # It may have been damaged on its way: an answer without a length can end early.
            raise FetchError(error.reason.partition(";")[0], retry="cut short" in error.reason) from error
        small = shrink(loaded.image, self.settings.long_side)
        encoded = jpeg_bytes(small, self.settings.quality)
        write_bytes(check_target(self.root, job.target), encoded)
        return Result(
            **asdict(job),
            ok=True,
            format=loaded.format,
            original_width=loaded.image.width,
            original_height=loaded.image.height,
            original_bytes=len(data),
            width=small.width,
            height=small.height,
            bytes=len(encoded),
            form=self.settings.form,
        )


def _failed(job: Job, reason: str, attempts: int, *, final: bool) -> Result:
    return Result(**asdict(job), ok=False, reason=reason, final=final, attempts=attempts)


def backoff(settings: DownloadSettings, key: str, attempt: int) -> float:
    """Seconds to wait after a failed attempt (1, 2, …), as DownloadSettings says."""
    u = derive_seed(settings.seed, "backoff", key, attempt) / 2**63
    longest: float = min(settings.backoff_s * 2.0 ** min(attempt - 1, 60), settings.backoff_max_s)
    return longest * (1 + u) / 2


def shrink(image: Image.Image, long_side: int) -> Image.Image:
    """The image with its longer side at most `long_side` pixels (Lanczos); a smaller one is not enlarged."""
    longest = max(image.size)
    if longest <= long_side:
        return image
    width, height = (max(1, (2 * side * long_side + longest) // (2 * longest)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def jpeg_bytes(image: Image.Image, quality: int) -> bytes:
    """An RGB image as JPEG without any metadata."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()

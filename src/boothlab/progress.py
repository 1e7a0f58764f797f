"""What a long job says while it runs: a bar with an ETA on a terminal, single lines of results anywhere else."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

log = logging.getLogger(__name__)


class Reporter:
    """Prints lines and shows bars. Bars are only drawn on a terminal; lines always are, unless `quiet`.

    A quiet one is for a job of many, whose warnings must still be seen: they go to the log.
    """

    def __init__(self, quiet: bool = False, console: Console | None = None):
        # Lines are for people, results for pipes: everything here goes to standard error.
        self.console = console or Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self.quiet = quiet
        self._progress: Progress | None = None

    def say(self, line: str, tag: str = "", style: str = "yellow") -> None:
        """One line, as it is: brackets in a file name or a prompt are no markup. A `tag` before it is coloured."""
        if not self.quiet:
            self.console.print(Text.assemble((tag, style), " " if tag else "", line))

    def warn(self, line: str) -> None:
        """A line that needs the user's eye."""
        if self.quiet:
            log.warning(line)
        self.say(line, tag="warning")

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator["Bar"]:
        """A bar with count, time spent and time left; bars within bars stack."""
        if self.quiet or not self.console.is_terminal:
            yield Bar(None, None)
            return
        outermost = self._progress is None
        if self._progress is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._progress = Progress(
                *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console, transient=True
            )
            self._progress.start()
        task = self._progress.add_task(what, total=total)
        try:
            yield Bar(self._progress, task)
        finally:
            self._progress.remove_task(task)
            if outermost:
                self._progress.stop()
                self._progress = None


class Bar:
    """One bar; does nothing where no bar is drawn."""

    def __init__(self, progress: Progress | None, task: TaskID | None):
        self._progress, self._task = progress, task

    def advance(self, amount: int = 1) -> None:
        """So many more are done."""
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, amount)

    def describe(self, what: str) -> None:
        """Change the text in front of the bar."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=what)

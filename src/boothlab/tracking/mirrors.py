"""Copies of metrics.jsonl in other formats; a mirror may fail without harm, because it is never the only copy."""

import csv
import io
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from boothlab.files import csv_cell, write_text
from boothlab.tracking.history import encode_number, read_history


class MirrorKind(StrEnum):
    """The optional local mirrors."""

    CSV = "csv"
    TENSORBOARD = "tensorboard"


class Mirror(Protocol):
    """What the tracker calls. Steps are optimizer steps; any method may raise, which ends the mirror, not the run."""

    def log(self, step: int, scalars: Mapping[str, int | float]) -> None:
        """Some scalars of one step."""

    def log_images(self, step: int, key: str, images: Sequence[tuple[Path, str]]) -> None:
        """Images that lie on disk already, each with its caption."""

    def log_table(self, step: int, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table; a cell that is a Path to an image is shown as the image where the mirror can."""

    def log_curve(self, step: int, key: str, labels: Sequence[str], points: Sequence[Sequence[float]]) -> None:
        """A line through points (x, y); `labels` name the two axes."""

    def log_artifact(self, name: str, type_: str, paths: Sequence[Path], metadata: Mapping[str, Any]) -> None:
        """Files or folders worth keeping, such as an adapter."""

    def summarize(self, values: Mapping[str, Any]) -> None:
        """Facts about the whole run, just before it ends."""

    def finish(self, exit_code: int) -> None:
        """The run is over; 0 is success."""


class CsvMirror:
    """metrics.csv beside metrics.jsonl, written whole when the run ends.

    Columns are only all known at the end, and a resumed run may have dropped rows, so the one honest time to write a
    rectangular table is then. Empty cells are metrics that the row does not have.
    """

    def __init__(self, history_path: Path) -> None:
        self._history_path = history_path
        self.path = history_path.with_suffix(".csv")

    def log(self, step: int, scalars: Mapping[str, int | float]) -> None:
        """Nothing to do before the end."""

    def log_images(self, step: int, key: str, images: Sequence[tuple[Path, str]]) -> None:
        """Not a scalar."""

    def log_table(self, step: int, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Not a scalar."""

    def log_curve(self, step: int, key: str, labels: Sequence[str], points: Sequence[Sequence[float]]) -> None:
        """Not a scalar."""

    def log_artifact(self, name: str, type_: str, paths: Sequence[Path], metadata: Mapping[str, Any]) -> None:
        """Not a scalar."""

    def summarize(self, values: Mapping[str, Any]) -> None:
        """summary.json has them."""

    def finish(self, exit_code: int) -> None:
        """Write the table: step, time, then the metrics in the order in which they first appeared."""
        rows = read_history(self._history_path).rows
        keys = list(dict.fromkeys(key for row in rows for key in row.scalars))
        buffer = io.StringIO(newline="")
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["step", "time", *map(csv_cell, keys)])
        for row in rows:
            cells = [encode_number(row.scalars[key]) if key in row.scalars else "" for key in keys]
            writer.writerow([row.step, row.time, *cells])
        write_text(self.path, buffer.getvalue())


class TensorBoardMirror:
    """TensorBoard event files in `tensorboard/` of the run folder.

    `resume_step` hides what an earlier attempt wrote after that step. Raises ImportError without tensorboard.
    """

    def __init__(self, run_dir: Path, resume_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # heavy: only when asked for

        purge_step = None if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(log_dir=str(run_dir / "tensorboard"), purge_step=purge_step)

    def log(self, step: int, scalars: Mapping[str, int | float]) -> None:
        """One point a scalar."""
        for key, value in scalars.items():
            self._writer.add_scalar(key, value, step)

    def log_images(self, step: int, key: str, images: Sequence[tuple[Path, str]]) -> None:
        """One image tag a position, so that the slider follows the same prompt through the steps."""
        import numpy as np
        from PIL import Image

        for index, (path, _) in enumerate(images):
            with Image.open(path) as image:
                pixels_HWC = np.asarray(image.convert("RGB"))
            self._writer.add_image(f"{key}/{index}", pixels_HWC, step, dataformats="HWC")

    def log_table(self, step: int, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """TensorBoard has no tables."""

    def log_curve(self, step: int, key: str, labels: Sequence[str], points: Sequence[Sequence[float]]) -> None:
        """TensorBoard has no plots of one number against another."""

    def log_artifact(self, name: str, type_: str, paths: Sequence[Path], metadata: Mapping[str, Any]) -> None:
        """TensorBoard has no artifacts."""

    def summarize(self, values: Mapping[str, Any]) -> None:
        """summary.json has them."""

    def finish(self, exit_code: int) -> None:
        """Flush and close."""
        self._writer.close()

"""A run's numbers on the terminal: one row a scored checkpoint, the floor above, the ceiling below."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from boothlab.errors import UserError
from boothlab.files import read_json
from boothlab.tracking import metrics
from boothlab.tracking.history import FILE_NAME, Row, read_history
from boothlab.tracking.manifest import ADAPTER, EMBEDDINGS, NETWORKS

COLUMNS = (
    ("CLIP-I", metrics.CLIP_I, metrics.CLIP_I_CEILING),
    ("DINO", metrics.DINO, metrics.DINO_CEILING),
    ("CLIP-T", metrics.CLIP_T, None),
    ("DIV", metrics.DIV, None),
    ("PRES ↓", metrics.PRES, None),
    ("balanced", metrics.BALANCED, None),
)
FEATURES = ("features", metrics.FEATURE_SIMILARITY, metrics.FEATURE_SIMILARITY_CEILING)
"""A column of its own where a further encoder measured likeness."""


def finished_summary(run_dir: Path) -> dict[str, Any] | None:
    """summary.json of a run that finished; None for any other folder."""
    try:
        summary = read_json(run_dir / "summary.json")
    except (UserError, OSError):
        return None
    return summary if isinstance(summary, dict) and summary.get("status") == "finished" else None


def value_of(row: Row, key: str) -> float | None:
    """A score under its plain key or under its key with an encoder's name."""
    found = [value for name, value in sorted(row.scalars.items()) if name == key or name.startswith(key + "/")]
    return float(found[0]) if found else None


def _encoders(rows: list[Row]) -> str:
    names = {
        name.removeprefix(metrics.CLIP_I + "/")
        for row in rows
        for name in row.scalars
        if name.startswith(metrics.CLIP_I + "/")
    }
    return f" ({', '.join(sorted(names))} encoders)" if names else ""


def _cells(values: list[float | None]) -> list[str]:
    return ["" if value is None else f"{value:.3f}" for value in values]


def score_table(rows: list[Row]) -> Table:
    """The scored checkpoints of a history as a table; the best balanced row is marked."""
    scored = [row for row in rows if value_of(row, metrics.CLIP_I) is not None]
    measured = any(value_of(row, metrics.FEATURE_SIMILARITY) is not None for row in scored)
    columns = (*COLUMNS, FEATURES) if measured else COLUMNS
    table = Table(title=Text(f"scores{_encoders(scored)}"), title_justify="left")
    table.add_column("step", justify="right")
    for label, _, _ in columns:
        table.add_column(label, justify="right")
    trained = [row for row in scored if row.step > 0]
    best = max(trained, key=lambda row: value_of(row, metrics.BALANCED) or 0.0, default=None)
    for row in scored:
        label = "0 (base model)" if row.step == 0 else str(row.step)
        cells = _cells([value_of(row, key) for _, key, _ in columns])
        table.add_row(label, *cells, style="bold green" if row is best else None)
    ceilings = [
        next((v for row in rows if (v := value_of(row, key)) is not None), None) if key else None
        for _, _, key in columns
    ]
    if any(value is not None for value in ceilings):
        table.add_section()
        table.add_row("real photos", *_cells(ceilings), style="dim")
    return table


def show_run(run_dir: Path, console: Console) -> None:
    """Print the table and where the outputs are."""
    rows = read_history(run_dir / FILE_NAME).rows
    if any(value_of(row, metrics.CLIP_I) is not None for row in rows):
        console.print(score_table(rows))
    grids = sorted((run_dir / "samples").glob("step_*/grid.png"))
    if grids:
        console.print(Text(f"grid      {grids[-1]}"))
    labels = {ADAPTER: "adapter  ", EMBEDDINGS: "words    ", **dict.fromkeys(NETWORKS, "network  ")}
    left = [(label, path) for pattern, label in labels.items() for path in sorted(run_dir.glob(pattern))]
    for label, path in left or [("adapter  ", run_dir / ADAPTER)]:
        console.print(Text(f"{label} {path}"))
    console.print(Text(f"numbers   {run_dir / 'summary.json'}"))

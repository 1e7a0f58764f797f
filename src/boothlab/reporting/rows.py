"""Rows of a table: runs of a setting gathered over their seeds, averages over other settings, the best of a column."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from boothlab.evaluation.statistics import t_interval
from boothlab.reporting.runs import RunRecord, higher_is_better
from boothlab.reporting.settings import Entry
from boothlab.reporting.tables import BEST, LAST, Cell, TableRow


def value_of(run: RunRecord, score: str, reading: str) -> float | None:
    """A run's value of a score: of its best checkpoint, or of its last one; None where it was not measured."""
    point = {BEST: run.best(score), LAST: run.last}[reading]
    return point.scores.get(score) if point else None


def cell_of(values: Iterable[float | None]) -> Cell | None:
    """The mean over seeds with its 95% t interval; None if nothing was measured. One NaN makes the mean NaN."""
    measured = tuple(value for value in values if value is not None)
    if not measured:
        return None
    if not all(map(math.isfinite, measured)):
        return Cell(math.nan, None, measured)
    interval = t_interval(measured)
    return Cell(interval.mean, None if interval.high is None else interval.high - interval.mean, measured)


def rows_of(entries: Sequence[Entry], scores: Sequence[str], reading: str) -> list[TableRow]:
    """One row a setting, in the order of the entries, with the best cell of every column marked."""
    settings: dict[str, list[Entry]] = {}
    for entry in entries:
        settings.setdefault(entry.run.setting, []).append(entry)
    rows = []
    for group in settings.values():
        cells = {score: cell_of(value_of(entry.run, score, reading) for entry in group) for score in scores}
        rows.append(TableRow(group[0].labels, cells, tuple(entry.run.name for entry in group)))
    return mark_best(rows, scores)


def mark_best(rows: Sequence[TableRow], scores: Sequence[str]) -> list[TableRow]:
    """The rows with the best cell of every score marked, all of them if several are equal; none in a single row."""
    marked = list(rows)
    if len(rows) < 2:
        return marked
    for score in scores:
        sign = 1 if higher_is_better(score) else -1
        means = [sign * cell.mean if (cell := row.cells[score]) else math.nan for row in rows]
        top = max((mean for mean in means if math.isfinite(mean)), default=None)
        for index, mean in enumerate(means):
            cell = marked[index].cells[score]
            if cell and mean == top:
                cells = {**marked[index].cells, score: replace(cell, best=True)}
                marked[index] = replace(marked[index], cells=cells)
    return marked


@dataclass(frozen=True)
class Grid:
    """The settings of a table as a grid: the values of the axis by what else is varied, complete columns only.

    `values` are the axis's values that have runs, in order. `others` are the settings of the other keys that have runs
    at every one of those values, and `partial` counts those that have not: averages leave them out, since a mean over
    other settings says nothing about the axis.
    """

    axis: str
    values: tuple[str, ...]
    others: tuple[tuple[str, ...], ...]
    partial: int
    runs: Mapping[tuple[str, tuple[str, ...]], list[RunRecord]]


def grid_of(entries: Sequence[Entry], axis: str) -> Grid:
    """The grid of a table's entries."""
    runs: dict[tuple[str, tuple[str, ...]], list[RunRecord]] = {}
    for entry in entries:
        runs.setdefault((entry.labels[axis], entry.other_labels(axis)), []).append(entry.run)
    # Sorted by the axis first: the entries are ordered by the other keys, and some of those may lack a value.
    place = list(entries[0].labels).index(axis)
    by_axis = sorted(entries, key=lambda entry: entry.order[place])
    values = tuple(dict.fromkeys(entry.labels[axis] for entry in by_axis))
    others = tuple(dict.fromkeys(other for _, other in runs))
    complete = tuple(other for other in others if all((value, other) in runs for value in values))
    return Grid(axis, values, complete, len(others) - len(complete), runs)


def axis_cells(grid: Grid, score: str, reading: str) -> list[Cell | None]:
    """The mean of a score at each value of the axis over the other settings.

    Where every setting has the same seeds, the values are one a seed, each a mean over the settings, and the interval
    is over seeds. Otherwise they are one a setting, each a mean over its seeds, and there is no interval.
    """
    cells: list[Cell | None] = []
    for value in grid.values:
        by_setting = [
            {run.seed: found for run in grid.runs[value, other] if (found := value_of(run, score, reading)) is not None}
            for other in grid.others
        ]
        if not by_setting or not all(by_setting):
            cells.append(None)
        elif all(found.keys() == by_setting[0].keys() for found in by_setting):
            cells.append(cell_of(_mean([found[seed] for found in by_setting]) for seed in sorted(by_setting[0])))
        else:
            means = tuple(_mean(list(found.values())) for found in by_setting)
            cells.append(Cell(_mean(means), None, means))
    return cells


def average_rows(grid: Grid, others: Sequence[str], scores: Sequence[str], reading: str) -> list[TableRow]:
    """One row for each value of the axis, over the settings of the other keys; none if there is one such setting."""
    if len(grid.others) < 2:
        return []
    columns = {score: axis_cells(grid, score, reading) for score in scores}
    over = f"average over {len(grid.others)} settings of {', '.join(others)}"
    if grid.partial:
        over += f" ({grid.partial} left out: not every value of {grid.axis} has finished runs there)"
    rows = []
    for index, value in enumerate(grid.values):
        names = tuple(run.name for other in grid.others for run in grid.runs[value, other])
        cells = {score: column[index] for score, column in columns.items()}
        rows.append(TableRow({grid.axis: value}, cells, names, over))
    return rows


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan

"""A study as GitHub-flavoured Markdown: report.md."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from boothlab.files import shown
from boothlab.reporting.dreambench import PUBLISHED, Benchmark, as_published, benchmarks_of
from boothlab.reporting.runs import SCORES, higher_is_better
from boothlab.reporting.study import Study
from boothlab.reporting.tables import BEST, Best, Cell, Comparison, MetricGroup, StudyTable, TableRow, Verdict

DIGITS = 4
MOST_WARNINGS = 20
"""Lines of warnings; a study of hundreds of runs may have as many, and the CSV files have them all."""
_SPECIAL = re.compile(r"[\\`*\[\]<>|~$&]|(?<![^\W_])_|_(?![^\W_])")
"""What GitHub takes for markup. An underscore within a word, as in lora.train_text_encoder, is none."""
_LEADING = re.compile(r"^(?:[-+](?=[\s-]|$)|[=#]|\d+[.)](?=\s|$))")
"""What begins a list or a heading at the start of a line."""


def to_markdown(study: Study) -> str:
    """The whole report. Text from configs, prompts and folders is escaped: it shows as it is and is never markup."""
    blocks = [f"# {escape(study.title)}", _headline(study), *_warnings(study.warnings)]
    for group in study.groups:
        if group.name:
            blocks.append(f"# Measured with {escape(group.name)}")
        blocks += _best(group)
        for table in (table for table in study.tables if table.group == group.name):
            blocks += _table_section(table, group)
        for benchmark in benchmarks_of(study.runs, group, study.varied):
            blocks += _benchmark(benchmark, group)
        blocks += _footer("How the scores were measured", group.definitions)
    blocks += _human(study.human)
    blocks += _footer("Runs left out", [f"{name}: {why}" for name, why in study.left_out])
    blocks += _footer("Versions", [f"{package} {version}" for package, version in study.versions.items()])
    return "\n\n".join(blocks) + "\n"


def escape(text: str) -> str:
    """Text that GitHub shows as it is, on one line, in a table too."""
    line = _SPECIAL.sub(r"\\\g<0>", shown(" ".join(text.split())))
    return _LEADING.sub(lambda found: f"{found[0][:-1]}\\{found[0][-1]}", line)


def number(value: float | None) -> str:
    """A score with four digits; a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:.{DIGITS}f}" if math.isfinite(value) else str(value)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _label(score: str) -> str:
    return SCORES[score][0] + ("" if higher_is_better(score) else " ↓")


def _encoders(name: str) -> str:
    return f" ({escape(name)} encoders)" if name else ""


def _grid(header: Sequence[str], rows: Iterable[Sequence[str]], texts: int) -> str:
    """A Markdown table; the first `texts` columns are texts, the others numbers."""
    rule = [":--" if index < texts else "--:" for index, _ in enumerate(header)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def _headline(study: Study) -> str:
    seeds = sorted({run.seed for run in study.runs})
    runs, settings = (
        _count(len(study.runs), "finished run"),
        _count(len({run.setting for run in study.runs}), "setting"),
    )
    line = f"{runs} of {settings}, {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}."
    if named := list(dict.fromkeys(group.encoders for group in study.groups if group.encoders)):
        line += f" Scored with the {escape(' and the '.join(named))} encoders: these are not the published CLIP-I, DINO"
        line += " and CLIP-T, and compare with nothing but scores of the same encoders."
    return line


def _warnings(lines: Sequence[str]) -> list[str]:
    if not lines:
        return []
    listed = [f"> - {escape(line)}" for line in lines[:MOST_WARNINGS]]
    if len(lines) > MOST_WARNINGS:
        listed.append(f"> - … and {len(lines) - MOST_WARNINGS} more; see runs.csv and checkpoints.csv")
    return ["> [!WARNING]\n" + "\n".join(listed)]


def _best(group: MetricGroup) -> list[str]:
    if not group.best:
        return []
    header = (
        "score",
        "best run",
        "its setting",
        "best setting by the mean over seeds",
        "step",
        "value",
        "mean",
        "seeds",
    )
    title = "## Best settings" + _encoders(group.encoders)
    note = "Values are the best over the checkpoints after step 0, every score on its own."
    return [title, _grid(header, [_best_row(best) for best in group.best], 4), note]


def _best_row(best: Best) -> list[str]:
    texts = [_label(best.score), escape(best.run), _setting(best.labels), _setting(best.setting)]
    return [*texts, str(best.step), number(best.value), _mean(best.mean), str(len(best.mean.values))]


def _setting(labels: dict[str, str]) -> str:
    return ", ".join(f"{escape(key)} {escape(value)}" for key, value in labels.items()) or "the only one"


def _table_section(table: StudyTable, group: MetricGroup) -> list[str]:
    seeds = max(len(row.runs) for row in table.rows if not row.average)
    interval = "± is the 95% t interval over seeds" if seeds > 1 else "one seed a setting, so no intervals"
    first = table.reading == BEST
    blocks = [
        f"## {escape(table.title)}: {table.reading} checkpoints{_encoders(table.encoders)}",
        *([escape(table.about)] if table.about and first else []),
        f"Values are of {table.reading_in_words}; means over the seeds of a setting; {interval}. The best of each"
        " column is **bold** (↓: lower is better).",
        _rows(table, group),
        *(_verdicts(table) if table.verdicts else []),
        *(_comparisons(table) if table.comparisons else []),
    ]
    if table.published and first:
        blocks.append("The published study found:\n\n" + "\n".join(f"- {escape(line)}" for line in table.published))
    if table.missing and first:
        names = ", ".join(map(escape, table.missing))
        blocks.append(f"Missing, since not finished: {_count(len(table.missing), 'run')} of this sweep: {names}.")
    return blocks


def _rows(table: StudyTable, group: MetricGroup) -> str:
    keys = table.keys or ("setting",)
    header = [*map(escape, keys), "seeds", *map(_label, table.scores)]
    rows = [_row(row, table) for row in table.rows]
    for what, values, spreads in (
        ("floor: the base model, step 0", group.floor, group.floor_spread),
        ("ceiling: the real photos among themselves", group.ceiling, group.ceiling_spread),
    ):
        if values:
            cells = [_end(values.get(score), spreads.get(score)) for score in table.scores]
            rows.append([f"*{what}*", *[""] * len(keys), *cells])
    return _grid(header, rows, len(keys))


def _row(row: TableRow, table: StudyTable) -> list[str]:
    cells = [_cell(row.cells[score]) for score in table.scores]
    if row.average is None:
        labels = [escape(row.labels[key]) for key in table.keys] or ["all runs"]
        return [*labels, str(len(row.runs)), *cells]
    between = [""] * (len(table.keys) - 2)
    return [f"*{escape(row.average)}*", *between, escape(row.labels[table.keys[-1]]), "", *cells]


def _cell(cell: Cell | None) -> str:
    text = _mean(cell)
    return f"**{text}**" if cell and cell.best else text


def _mean(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    return number(cell.mean) + (f" ± {number(cell.half_width)}" if cell.half_width is not None else "")


def _end(value: float | None, spread: tuple[float, float] | None) -> str:
    """A floor or ceiling, with its range where the runs do not share it, as for several subjects."""
    if value is None or spread is None:
        return ""
    low, high = number(spread[0]), number(spread[1])
    return number(value) if low == high else f"{number(value)} ({low} to {high})"


def _benchmark(benchmark: Benchmark, group: MetricGroup) -> list[str]:
    """Runs over subjects of the DreamBooth data set: a row a subject, then the means beside the published figures."""
    labels = ["subject", "class", "seeds", *map(_label, benchmark.scores)]
    rows = [
        [escape(row.name), escape(row.class_noun + (" (live)" if row.live else "")), str(row.seeds)]
        + [number(row.scores.get(score)) for score in benchmark.scores]
        for row in benchmark.rows
    ]
    ours: list[tuple[str, list[str]]] = [
        ("mean of per-subject means", [_mean(benchmark.headline.get(score)) for score in benchmark.scores]),
        ("pooled mean", [number(benchmark.pooled[score]) for score in benchmark.scores]),
        ("the real photos among themselves", [number(benchmark.real.get(score)) for score in benchmark.scores]),
    ]
    theirs = [(name, source, [as_published(values.get(score)) for score in benchmark.scores])
              for name, source, values in PUBLISHED]  # fmt: skip
    beside = [[f"**{what}**", "this report", *cells] for what, cells in ours]
    beside += [[escape(name), escape(source), *cells] for name, source, cells in theirs]
    return [
        f"## Beside the DreamBooth paper{_encoders(group.encoders)}",
        *([f"Setting: {_setting(benchmark.labels)}."] if benchmark.labels else []),
        f"{escape(benchmark.coverage)}. Values are of the last checkpoint of each run; ± is the 95% t interval over"
        " subjects.",
        _grid(labels, rows, 2),
        "> [!WARNING]\n" + "\n".join(f"> - {escape(line)}" for line in benchmark.notes),
        _grid(["", "from", *map(_label, benchmark.scores)], beside, 2),
    ]


def _verdicts(table: StudyTable) -> list[str]:
    header = ("score", "expected", "means along the axis", "outcome")
    return [
        f"What was expected along {escape(table.axis or '')}:",
        _grid(header, [_verdict_row(verdict) for verdict in table.verdicts], 4),
    ]


def _verdict_row(verdict: Verdict) -> list[str]:
    label = _label(verdict.score) if verdict.score in SCORES else escape(verdict.score)
    means = " → ".join(map(number, verdict.means)) or "–"
    return [label, escape(verdict.expected), means, f"**{verdict.outcome}**"]


def _comparisons(table: StudyTable) -> list[str]:
    header = ("score", "from", "to", "difference", "pairs", "p", "p (Holm)", "least possible p")
    tested = sum(one.p_value is not None for one in table.comparisons)
    note = (
        "p is of a two-sided sign-flip test over the pairs, exact up to 14 of them; Holm's correction is over the"
        f" {tested} tested comparisons of this table. A test of n pairs cannot give less than 2/2ⁿ: 3 pairs never less"
        " than 0.25."
        if tested
        else "Not tested: that takes pairs of at least 3 seeds."
    )
    return [
        f"Each value of {escape(table.axis or '')} against the first, in pairs of one seed and otherwise one setting:",
        _grid(header, [_comparison_row(one) for one in table.comparisons], 3),
        note,
    ]


def _comparison_row(one: Comparison) -> list[str]:
    difference = f"{one.difference:+.{DIGITS}f}" if math.isfinite(one.difference) else str(one.difference)
    p_values = map(_p, (one.p_value, one.holm_p, one.smallest_p))
    return [_label(one.score), escape(one.before), escape(one.after), difference, str(one.pairs), *p_values]


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return "< 0.0001" if value < 0.0001 else f"{value:.{DIGITS}f}"


def _human(human: object | None) -> list[str]:
    """What people voted, if the report has it: any object with the `summary_rows` of reporting.votes.HumanStudy."""
    rows: list[dict[str, Any]] = getattr(human, "summary_rows", list)()
    if not rows:
        return []
    cells = [[escape(_plain(value)) for value in row.values()] for row in rows]
    return ["## Human votes", _grid([escape(key.replace("_", " ")) for key in rows[0]], cells, 1)]


def _plain(value: Any) -> str:
    return number(value) if value is None or isinstance(value, float) else str(value)


def _footer(title: str, lines: Sequence[str]) -> list[str]:
    return [f"### {title}", "\n".join(f"- {escape(line)}" for line in lines)] if lines else []

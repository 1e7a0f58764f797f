"""`boothlab evaluate`: likeness, prompt-following and diversity of a folder of images, whatever tool made them."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boothlab.commands.help import HelpPage, asks_for_help, print_help
from boothlab.compose.jobs import Explorer
from boothlab.compose.run import run as run_composed
from boothlab.config_evaluate import EvaluateConfig
from boothlab.errors import UserError
from boothlab.files import csv_cell, shown, write_json, write_text
from boothlab.progress import Reporter
from boothlab.starting import imports_uncollected

if TYPE_CHECKING:
    from boothlab.building.evaluate import FolderEvaluation
    from boothlab.evaluation.results import EvaluationResult

HELP = HelpPage(
    config_name="evaluate",
    usage="boothlab evaluate images=DIR references=DIR [prompts=FILE] [key=value …]",
    about="The metrics on any folder of images, from any tool, each with its full definition.",
    examples=(
        ("boothlab evaluate images=out references=photos prompts=prompts.csv token=sks", "CLIP-I, DINO, CLIP-T, DIV"),
        ("boothlab evaluate images=out references=photos encoders=efficientnet", "likeness with nothing but pip"),
        ("boothlab evaluate images=out references=dreambench:dog", "against a subject that ships"),
    ),
)
#: what is not measured without prompts
OF_PROMPTS = ("clip_t", "clip_t_with_token", "div")


def run(argv: list[str]) -> int:
    """Run the command and return its exit code."""
    if asks_for_help(argv):
        return print_help(HELP, argv)
    return run_composed(HELP.config_name, evaluate, argv, explore=_refuse_multirun)


def _refuse_multirun(jobs: Explorer) -> int:
    raise UserError("boothlab evaluate measures one folder; run it once for each, with an out=DIR of its own")


def evaluate(config: EvaluateConfig, resolved: dict[str, Any], run_dir: Path, one_of_many: bool) -> dict[str, Any]:
    """Measure and write scores.csv and metrics.json; returns what is in metrics.json."""
    with imports_uncollected():
        from boothlab.building.evaluate import build_evaluation

    reporter = Reporter(quiet=one_of_many)
    found = build_evaluation(config, reporter)
    result = found.scorer.score(found.images)
    settings = {key: value for key, value in resolved.items() if key not in ("out", "accelerator", "threads")}
    rows = _metrics(found, result)
    record: dict[str, Any] = {"settings": settings, "metrics": rows}
    if found.with_text:
        record["per_prompt"] = [prompt.to_dict() for prompt in result.per_prompt]
    out = Path(config.out).expanduser()
    write_json(out / "metrics.json", record)
    write_text(out / "scores.csv", _table(found, result))
    for warning in result.warnings:
        reporter.warn(warning)
    _show(rows, reporter)
    reporter.say(f"{shown(out / 'scores.csv')}, metrics.json", tag="scores", style="green")
    return record


def _metrics(found: "FolderEvaluation", result: "EvaluationResult") -> list[dict[str, Any]]:
    return [row.to_dict() for row in result.rows if found.with_text or row.name not in OF_PROMPTS]


def _table(found: "FolderEvaluation", result: "EvaluationResult") -> str:
    """scores.csv: a row an image, its file first."""
    rows = []
    for score in result.per_image:
        row = score.to_dict()
        name = found.names[score.prompt_index, score.seed]
        if not found.with_text:
            row = {
                key: value for key, value in row.items() if key not in (*OF_PROMPTS, "prompt", "prompt_index", "seed")
            }
        else:
            row["prompt"] = csv_cell(score.prompt)
        rows.append({"file": csv_cell(name), **row})
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _show(rows: list[dict[str, Any]], reporter: Reporter) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in ("metric", "value", "encoder", "preprocessing", "counts"):
        table.add_column(column, justify="right" if column == "value" else "left", overflow="fold")
    for row in rows:
        value = "–" if row["value"] is None else f"{row['value']:.4f}"
        counts = ", ".join(f"{number} {what.replace('_', ' ')}" for what, number in row["counts"].items())
        cells = (row["name"], value, row["encoder"], row["preprocessing"], counts)
        table.add_row(*(Text(cell) for cell in cells))
    reporter.console.print(table)

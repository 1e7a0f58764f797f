"""A study as one page that works from a file, without any network: report.html."""

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from boothlab import __version__
from boothlab.files import write_text
from boothlab.reporting.dreambench import PUBLISHED, as_published, benchmarks_of
from boothlab.reporting.markdown import number
from boothlab.reporting.pictures import LARGEST_CELL, Plan, plan_of, shapes_of, sheets_of, whole_plan
from boothlab.reporting.plots import Pictures, page_data, score_info, short_names, told_apart_by
from boothlab.reporting.rows import cell_of
from boothlab.reporting.runs import SCORES, RunRecord
from boothlab.reporting.settings import label_of
from boothlab.reporting.study import Study
from boothlab.reporting.tables import BEST, Best, MetricGroup, StudyTable

HEADLINE = ("clip_i", "dino", "clip_t", "balanced")
SCRIPTS = ("report.js", "report.plots.js", "report.compared.js", "report.samples.js")


def write_page(study: Study, path: Path) -> None:
    """Write the page to `path`, whole or not at all: tables, plots, and pictures as far as a page can hold them.

    The page asks for nothing over the network and its policy forbids it. The same study gives the same bytes. How many
    pictures it holds is a matter of `pictures.plan_of`; what is left out is said on the page. Pictures that are missing
    or damaged are left out too. Raises UserError if the place cannot be written.
    """
    shapes = shapes_of(study.runs)
    plan = plan_of(shapes)
    pictures = Pictures(plan, sheets_of(study.runs, plan))
    data = page_data(study, pictures, path.parent)
    sources = sorted({sheet.id: sheet.source for sheet in pictures.sheets.values() if sheet.source}.items())
    names = short_names(told_apart_by(study.runs, study.varied))
    write_text(path, _render(study, plan, pictures_note(whole_plan(shapes), plan), data, sources, names))


def script_json(value: Any) -> str:
    """JSON fit for a <script> block: plain ASCII, and nothing that could end the block or open a comment."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _render(
    study: Study,
    plan: Plan,
    note: str,
    data: dict[str, Any],
    sources: Sequence[tuple[str, str]],
    names: dict[str, str],
) -> str:
    from plotly.offline import get_plotlyjs  # here: a third of a second

    js = _script("\n".join(_template(name) for name in SCRIPTS))
    plotly = _script(get_plotlyjs())
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            study=study,
            version=__version__,
            lead=lead(study),
            policy=_policy(js, plotly),
            css=Markup(_template("report.css")),
            js=Markup(js),
            plotly=Markup(plotly),
            data=Markup(script_json(data)),
            sources=sources,
            names=names,
            place={run.name: index for index, run in enumerate(study.runs)},
            headlines=[_headline(study, group) for group in study.groups],
            settings_count=len(data["settings"]),
            pairs=_pairs(study.tables),
            group_of={group.name: group for group in study.groups},
            benchmarks=[benchmarks_of(study.runs, group, study.varied) for group in study.groups],
            published=PUBLISHED,
            human=_human(study.human),
            shared=_shared(study),
            pictures_note=note,
            pictures_about=pictures_about(plan),
        )
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("boothlab.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["as_published"] = as_published
    environment.filters |= {
        "number": number,
        "label": lambda score: SCORES[score][0] if score in SCORES else score,
        "higher": lambda score: score_info(score)["higher"],
        "about": lambda score: score_info(score)["about"],
        "signed": lambda value: f"{value:+.4f}" if math.isfinite(value) else str(value),
        "p_value": _p_value,
    }
    return environment


def _template(name: str) -> str:
    return (files("boothlab.reporting") / "templates" / name).read_text(encoding="utf-8")


def _script(text: str) -> str:
    """A script as it may stand in HTML: both replacements mean the same in strings and in regular expressions."""
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--").replace("\r\n", "\n").replace("\r", "\n")


def _policy(*scripts: str) -> str:
    """Only these very scripts may run, and nothing may be fetched: a slip in escaping would still be harmless."""
    hashes = " ".join(f"'sha256-{_digest(text)}'" for text in scripts)
    # Plotly styles its plots by style attributes, and exports them through blobs.
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _p_value(value: float | None) -> str:
    return "–" if value is None else "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def _count(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def lead(study: Study) -> str:
    """The study in one line: how many runs and settings, which seeds, which encoders."""
    seeds = sorted({run.seed for run in study.runs})
    settings = len({run.setting for run in study.runs})
    listed = ", ".join(map(str, seeds)) if len(seeds) <= 8 else f"{len(seeds)} from {seeds[0]} to {seeds[-1]}"
    line = f"{_count(len(study.runs), 'finished run')} of {_count(settings, 'setting')}, "
    line += f"{'seed' if len(seeds) == 1 else 'seeds'} {listed}."
    if named := list(dict.fromkeys(group.encoders for group in study.groups if group.encoders)):
        line += f" Scored with the {' and the '.join(named)} encoders, so these are not the published CLIP-I, DINO"
        line += " and CLIP-T: they compare with scores of the same encoders only."
    return line


def _headline(study: Study, group: MetricGroup) -> dict[str, Any] | None:
    """The best balanced setting with its scores, all taken at each run's best balanced checkpoint."""
    best = next((one for one in group.best if one.score == "balanced"), None)
    if best is None:
        return None
    members = _runs_of(study, group, best)
    points = [(run, point) for run in members if (point := run.best("balanced"))]
    tiles = []
    for score in HEADLINE:
        cell = cell_of(point.scores.get(score) for _, point in points)
        if cell:
            ends = {"floor": group.floor.get(score), "ceiling": group.ceiling.get(score)}
            about = score_info(score)["about"]
            tiles.append({"score": score, "mean": cell.mean, "half_width": cell.half_width, "about": about, **ends})
    run, point = max(points, key=lambda pair: pair[1].scores["balanced"])
    seeds = f"the mean of {_count(len(points), 'seed')}" if len(points) > 1 else "one seed"
    how = f"At the best balanced checkpoint of each run, {seeds}."
    index = study.runs.index(run)
    return {"labels": best.setting, "tiles": tiles, "how": how, "run": index, "step": point.step}


def _runs_of(study: Study, group: MetricGroup, best: Best) -> list[RunRecord]:
    members = [run for run in study.runs if run.name in group.runs and study.labels(run) == best.setting]
    scored = [run for run in members if run.best("balanced")]
    return scored or [run for run in study.runs if run.name == best.run]


def _pairs(tables: Iterable[StudyTable]) -> list[list[StudyTable]]:
    """The two readings of each table, the best over checkpoints first."""
    found: dict[tuple[str, str], list[StudyTable]] = {}
    for table in tables:
        found.setdefault((table.group, table.name), []).append(table)
    return [sorted(pair, key=lambda table: table.reading != BEST) for pair in found.values()]


def _shared(study: Study) -> list[tuple[str, str]]:
    """The settings that do not vary, as shown; those of the first training, if there is one."""
    first = next((run for run in study.runs if not run.is_scoring), study.runs[0])
    return [(key, label_of(value)) for key, value in first.settings.items() if key not in study.varied]


def _human(human: object | None) -> dict[str, Any] | None:
    """What people voted, if the report has it: any object with the `summary_rows` of reporting.votes.HumanStudy."""
    rows: list[dict[str, Any]] = getattr(human, "summary_rows", list)()
    if not rows:
        return None
    asked = {one.question: one.label for one in getattr(human, "questions", ())}
    return {
        "sides": [(side.upper(), rows[0][f"run_{side}"], rows[0][f"step_{side}"]) for side in "ab"],
        "raters": _count(rows[0]["raters"], "rater"),
        "rows": [_votes(row) | {"question": asked.get(row["question"], row["question"])} for row in rows],
    }


def _votes(row: dict[str, Any]) -> dict[str, Any]:
    """The votes on a question, as texts."""
    shares = (row["share_a"], row["share_b"], row["share_undecided"])
    wins = (row["wins_a"], row["wins_b"], row["undecided"])
    counted = [
        f"{won} ({share:.0%})" if share is not None else str(won) for won, share in zip(wins, shares, strict=True)
    ]
    kappa = "–" if row["kappa"] is None else f"{row['kappa']:.2f}"
    open_items = row["incomplete"] + row["unanswered"]
    return {"items": row["items"], "wins": counted, "kappa": kappa, "p": _p_value(row["p_value"]), "open": open_items}


def pictures_note(whole: Plan, plan: Plan) -> str:
    """What a page does not show of the samples, in a sentence; empty if it shows all."""
    parts = [
        f"{kept} of {all_of_them} {what}"
        for kept, all_of_them, what in (
            (plan.prompts, whole.prompts, "prompts"),
            (plan.seeds, whole.seeds, "image seeds"),
            (plan.checkpoints, whole.checkpoints, "checkpoints of each run, the best balanced and the last among them"),
        )
        if kept < all_of_them
    ]
    if not parts:
        return ""
    return f"So that this page stays usable, it holds {', '.join(parts)}; the run folders have all."


def pictures_about(plan: Plan) -> str:
    """How the pictures were made small."""
    kind = "kept exactly" if plan.lossless else "slightly compressed"
    return f"Images of up to 64 pixels are {kind}; larger ones are reduced to {LARGEST_CELL} pixels at most."

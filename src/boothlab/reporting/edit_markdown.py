"""An editing study as GitHub-flavoured Markdown: report.md."""

from collections.abc import Iterable, Sequence

from boothlab.evaluation.edit_metrics import EDIT_SCORES
from boothlab.evaluation.rank_correlation import RankCorrelation
from boothlab.evaluation.statistics import Interval
from boothlab.reporting.edit_agreement import Agreement, Ranking
from boothlab.reporting.edit_cells import EditCell, EditTableRow
from boothlab.reporting.edit_choice import FORMULA, OPTIMISM, MethodChoice
from boothlab.reporting.edit_study import EditGroup, EditStudy, EditTable
from boothlab.reporting.markdown import escape
from boothlab.reporting.votes import to_markdown

MAIN = ("clip_directional", "clip_image", "clip_t", "structure", "psnr_outside", "psnr_truth", "happened")
"""The scores of a first table; the others follow in a second one."""
ENDS = {"copy": "copy: the source as it is", "regenerate": "regenerate: from the caption alone"}
MOST_CHOICES = 60
TABLE_NOTE = (
    "Means are over the seeds of an edit, then over the edits of an image, then over images; with each its 95% interval"
    " over images (bootstrap). The best setting of a column is bold; ≈ marks those whose paired difference from it has"
    " an interval that holds 0, without correction for the number of comparisons. The two ends, copy and regenerate, do"
    " not compete. Nor does a setting that lacks a score for pictures of which others have it: −n counts these, and"
    " they are not 0."
)
AGREEMENT_NOTE = (
    "Spearman's ρ with its 95% interval; distances have their sign turned, so +1 means that the score always agrees"
    " with the truth and 0 that it knows nothing of it. Over pictures: those of all settings, whole images resampled."
    " Over settings: their means, settings resampled. The copy is left out."
)


def edit_markdown(study: EditStudy) -> str:
    """The whole report. Text from configs, captions and files is escaped: it shows as it is and is never markup."""
    blocks = [f"# {escape(study.title)}", headline(study)]
    if study.warnings:
        blocks.append("> [!WARNING]\n" + "\n".join(f"> - {escape(line)}" for line in study.warnings))
    blocks.append(TABLE_NOTE)
    for group in study.groups:
        blocks.append(f"# {escape(group.name)}" if group.name else f"Edited: {escape(group.title)}.")
        for table in group.tables:
            blocks += _table(table, group)
        blocks += _agreement(group)
        for choice in group.choices:
            blocks += _choice(choice)
        blocks += _list("How the scores were measured", group.definitions)
    if study.human:
        blocks.append(to_markdown(study.human).rstrip())
    blocks += _list("Runs left out", [f"{name}: {why}" for name, why in study.left_out])
    blocks += _list("Versions", [f"{package} {version}" for package, version in study.versions.items()])
    return "\n\n".join(blocks) + "\n"


def headline(study: EditStudy) -> str:
    """The study in one line: how many runs and methods, of which images, by which encoders."""
    methods = list(dict.fromkeys(run.method for run in study.runs))
    pictures = sum(len(run.pairs) for run in study.runs)
    line = f"{len(study.runs)} finished editing run{'' if len(study.runs) == 1 else 's'} of {len(methods)} "
    line += f"method{'' if len(methods) == 1 else 's'}, {pictures} pictures."
    if named := list(dict.fromkeys(group.encoders for group in study.groups if group.encoders)):
        line += f" Scored with the {escape(' and the '.join(named))} encoders: these are not the published scores, and"
        line += " compare with nothing but scores of the same encoders."
    return line


def figure(value: float | None, score: str | None = None) -> str:
    """A score with as many digits as it deserves: two for decibels, steps and shares, else four."""
    return "–" if value is None else f"{value + 0.0:.{digits_of(score)}f}"


def digits_of(score: str | None) -> int:
    """The digits that a score is shown with."""
    return 2 if score and (score.startswith("psnr") or score in ("effective_steps", "happened")) else 4


def label(score: str) -> str:
    """A score's label with an arrow if lower is better."""
    name = EDIT_SCORES[score]
    return name.label + (" ↓" if name.higher_is_better is False else "")


def rho(found: RankCorrelation) -> str:
    """A correlation with its interval, or a dash."""
    if found.value is None:
        return "–"
    ends = "" if found.low is None or found.high is None else f" [{_signed(found.low)}, {_signed(found.high)}]"
    return _signed(found.value) + ends


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"  # the sum turns -0.0 into 0.0


def interval(found: Interval | None, digits: int = 2) -> str:
    """A mean with its interval, or a dash."""
    if found is None:
        return "–"
    ends = "" if found.low is None or found.high is None else f" [{found.low:.{digits}f}, {found.high:.{digits}f}]"
    return f"{found.mean:.{digits}f}{ends}"


def scores_of(rows: Iterable[EditTableRow]) -> list[str]:
    """The scores that any of the rows has, in their order."""
    found = {score for row in rows for score in row.cells}
    return [score for score in EDIT_SCORES if score in found]


def _grid(header: Sequence[str], rows: Iterable[Sequence[str]], texts: int) -> str:
    rule = [":--" if index < texts else "--:" for index, _ in enumerate(header)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def _table(table: EditTable, group: EditGroup) -> list[str]:
    encoders = f" ({escape(group.encoders)} encoders)" if group.encoders else ""
    scores = scores_of(table.rows)
    first = [score for score in MAIN if score in scores]
    others = [score for score in scores if score not in first]
    blocks = [f"## {escape(table.title)}{encoders}", *([escape(table.about)] if table.about else [])]
    blocks.append(_rows(table, first))
    if others:
        summary = f"<details><summary>The other {len(others)} scores</summary>"
        blocks += [summary, _rows(table, others), "</details>"]
    if table.ranking:
        blocks += ["Places by each score, 1 for the best:", _ranking(table.ranking, table)]
    if table.missing:
        names = ", ".join(map(escape, table.missing))
        blocks.append(f"Missing, since not finished: {len(table.missing)} of this sweep's runs: {names}.")
    return blocks


def _rows(table: EditTable, scores: Sequence[str]) -> str:
    keys = table.keys or ("setting",)
    header = [*map(escape, keys), *(label(score) for score in scores)]
    rows = [[*_labels(row.labels, row.end, keys), *(_cell(row, score) for score in scores)] for row in table.rows]
    return _grid(header, rows, len(keys))


def _labels(labels: dict[str, str], end: str, keys: Sequence[str]) -> list[str]:
    if end:
        return [f"*{ENDS[end]}*", *[""] * (len(keys) - 1)]
    return [escape(labels.get(key, "the only one")) for key in keys]


def _cell(row: EditTableRow, score: str) -> str:
    cell: EditCell | None = row.cells.get(score)
    if cell is None:
        return f"absent −{row.absent[score]}" if score in row.absent else "–"
    text = figure(cell.mean, score)
    text = f"**{text}**" if cell.best else text
    ends = "" if cell.low is None else f" [{figure(cell.low, score)}, {figure(cell.high, score)}]"
    absent = f" −{sum(cell.absent.values())}" if cell.absent else ""
    return text + (" ≈" if cell.near else "") + ends + absent


def _ranking(ranking: Ranking, table: EditTable) -> str:
    keys = table.keys or ("setting",)
    header = [*map(escape, keys), *(label(score) for score in ranking.scores)]
    rows = []
    for row in ranking.rows:
        places = [row.places.get(score) for score in ranking.scores]
        shown = [
            f"{place.rank} ({figure(place.mean, score)})" if place else "–"
            for place, score in zip(places, ranking.scores, strict=True)
        ]
        rows.append([*_labels(row.labels, row.end, keys), *shown])
    return _grid(header, rows, len(keys))


def _agreement(group: EditGroup) -> list[str]:
    if not group.agreements:
        return []
    rows = [[label(one.score), label(one.truth), *_correlations(one)] for one in group.agreements]
    header = ("score", "truth", "ρ over pictures", "pictures", "ρ over settings", "settings")
    title = "## How well the scores predict the truth"
    return [title, _grid(header, rows, 2), AGREEMENT_NOTE]


def _correlations(one: Agreement) -> list[str]:
    over, settings = one.over_pairs, one.over_settings
    return [rho(over), str(over.pairs), rho(settings), str(settings.pairs)]


def _choice(choice: MethodChoice) -> list[str]:
    blocks = [f"## The best trade-off for each image: {escape(choice.method)}", escape(FORMULA) + "."]
    blocks += [*_objective(choice), _shares(choice)]
    if choice.hits is not None:
        header = ("setting chosen by", "mean regret in dB of PSNR to the target")
        fixed = (escape(choice.fixed_clip_setting), escape(choice.fixed_truth_setting or ""))
        rows = [
            ["CLIP, for each image and edit", interval(choice.by_clip)],
            [f"CLIP, one for all: {fixed[0]}", interval(choice.fixed_clip)],
            [f"the truth, one for all: {fixed[1]}", interval(choice.fixed_truth)],
            ["chance", interval(choice.by_chance)],
        ]
        blocks += [
            _grid(header, rows, 1),
            f"CLIP's choice is the truly best in {choice.hits} of {len(choice.choices)}.",
        ]
    if choice.skipped:
        blocks.append(f"Left out, since a setting lacks a score there: {choice.skipped} images and edits.")
    known = choice.hits is not None
    header = ("image", "edit", "chosen", "balanced", *(("truly best", "regret in dB") if known else ()))
    rows = [
        [escape(one.image), escape(one.edit), escape(one.chosen), figure(one.balanced)]
        + ([escape(one.best or "–"), f"{one.regret:.2f}" if one.regret is not None else "–"] if known else [])
        for one in choice.choices[:MOST_CHOICES]
    ]
    blocks.append(_grid(header, rows, 3))
    if len(choice.choices) > MOST_CHOICES:
        blocks.append(f"… and {len(choice.choices) - MOST_CHOICES} more, in edits.csv.")
    return blocks


def _objective(choice: MethodChoice) -> list[str]:
    """What the objective itself says, without the truth, and why not to believe all of it."""
    fixed = f"one for all: {escape(choice.fixed_clip_setting)}"
    rows = [
        ["the best for each image and edit", interval(choice.balanced_chosen, 3)],
        [fixed, interval(choice.balanced_fixed, 3)],
        ["what one for all loses", interval(choice.lost, 3)],
    ]
    return [_grid(("setting", "mean balanced"), rows, 1), OPTIMISM + "."]


def _shares(choice: MethodChoice) -> str:
    """How often each setting is chosen: a choice that is the same everywhere needs no search."""
    known = choice.hits is not None
    header = ("setting", "chosen by CLIP", "mean balanced", *(("truly best", "PSNR to target (dB)") if known else ()))
    rows = [
        [escape(one.setting), str(one.chosen), figure(one.balanced)]
        + ([str(one.best), figure(one.psnr, "psnr_truth")] if known else [])
        for one in choice.per_setting
    ]
    return _grid(header, rows, 1)


def _list(title: str, lines: Sequence[str]) -> list[str]:
    return [f"### {title}", "\n".join(f"- {escape(line)}" for line in lines)] if lines else []

"""An editing study as one page that works from a file, without any network: report.html."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from boothlab import __version__
from boothlab.evaluation.edit_metrics import EDIT_SCORES
from boothlab.files import write_text
from boothlab.reporting.edit_agreement import TRUTHS, Agreement
from boothlab.reporting.edit_cells import EditCell
from boothlab.reporting.edit_choice import FORMULA, OPTIMISM
from boothlab.reporting.edit_markdown import (
    AGREEMENT_NOTE,
    ENDS,
    MAIN,
    TABLE_NOTE,
    digits_of,
    figure,
    headline,
    interval,
    rho,
    scores_of,
)
from boothlab.reporting.edit_pictures import Album, PicturePlan, files_of, plan_pictures
from boothlab.reporting.edit_runs import EditRun, Key, Pair
from boothlab.reporting.edit_settings import EditSetting, lines_of
from boothlab.reporting.edit_study import EditGroup, EditStudy
from boothlab.reporting.page import _environment, _human, _policy, _script, _template, script_json
from boothlab.reporting.plots import number, relative, short_names
from boothlab.tracking import metrics

SCRIPTS = ("report.js", "edit.js", "edit.pictures.js")
MOST_CHOICES = 300
"""Rows of the table of choices; edits.csv has all."""
STYLES = ("report.css", "edit.css")


def write_edit_page(study: EditStudy, path: Path) -> None:
    """Write the page to `path`, whole or not at all: tables, the curve, and pictures as far as a page can hold them.

    The page asks for nothing over the network and its policy forbids it. The same study gives the same bytes. Pictures
    that are missing or damaged are left out. Raises UserError if the place cannot be written.
    """
    plan = plan_pictures([group.alike for group in study.groups])
    album = Album(plan.side)
    for group, keys in zip(study.groups, plan.keys, strict=True):
        wanted = set(keys)
        pairs = [pair for run in group.alike.runs for pair in run.pairs if pair.key in wanted]
        album.add([file for pair in pairs for file in files_of(pair)])
    write_text(path, _render(study, page_data(study, plan, album, path.parent), album, plan))


def _render(study: EditStudy, data: dict[str, Any], album: Album, plan: PicturePlan) -> str:
    from plotly.offline import get_plotlyjs  # here: a third of a second

    js = _script("\n".join(_template(name) for name in SCRIPTS))
    plotly = _script(get_plotlyjs())
    environment = _environment()
    environment.filters |= {
        "figure": figure,
        "label": lambda score: EDIT_SCORES[score].label,
        "way": lambda score: {True: "higher", False: "lower", None: ""}[EDIT_SCORES[score].higher_is_better],
        "about": lambda score: metrics.REGISTRY[EDIT_SCORES[score].key].description,
        "rho": rho,
        "interval": interval,
        "near": _near,
        "ends": _ends,
    }
    return environment.get_template("edit.html.j2").render(
        study=study,
        version=__version__,
        lead=headline(study).replace("\\", ""),
        policy=_policy(js, plotly),
        css=Markup("\n".join(map(_template, STYLES))),
        js=Markup(js),
        plotly=Markup(plotly),
        data=Markup(script_json(data)),
        album=Markup(script_json(dict(sorted(album.sources.items())))),
        names=short_names(study.varied),
        place={run["name"]: index for index, run in enumerate(data["runs"])},
        main=MAIN,
        truths=TRUTHS,
        ends_named=ENDS,
        scores_of=scores_of,
        nearest=[_nearest(group) for group in study.groups],
        formula=FORMULA,
        optimism=OPTIMISM,
        most_choices=MOST_CHOICES,
        table_note=TABLE_NOTE,
        agreement_note=AGREEMENT_NOTE,
        agreements=[_by_score(group.agreements) for group in study.groups],
        pictures_note=pictures_note(study, plan),
        human=_human(study.human),
    )


def pictures_note(study: EditStudy, plan: PicturePlan) -> str:
    """What a page does not show of the pictures, in a sentence; empty if it shows all."""
    if plan.whole:
        return ""
    kept, whole = sum(map(len, plan.keys)), sum(len(group.alike.seeds) for group in study.groups)
    return f"So that this page stays usable, it shows {kept} of {whole} pictures of each run; the run folders have all."


def _by_score(agreements: Sequence[Agreement]) -> dict[str, dict[str, Agreement]]:
    """Score → truth → how well the one predicts the other."""
    found: dict[str, dict[str, Agreement]] = {}
    for one in agreements:
        found.setdefault(one.score, {})[one.truth] = one
    return found


def _near(cell: EditCell) -> str:
    found = cell.difference
    if found is None or found.low is None or found.high is None:
        return ""
    return f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}] from the best, paired over {found.units} images"


def _ends(cell: EditCell, score: str) -> str:
    """The interval of cosines with a digit less than the mean."""
    if cell.low is None or cell.high is None:
        return ""
    digits = min(digits_of(score), 3)
    return f"{cell.low + 0.0:.{digits}f} to {cell.high + 0.0:.{digits}f}"


def _nearest(group: EditGroup) -> dict[str, Any] | None:
    """The setting nearest to the known targets, and the one that CLIP's directional similarity puts first."""
    competing = [
        (setting, row)
        for setting, row in zip(group.settings, group.rows, strict=True)
        if setting.method not in ENDS and "psnr_truth" in row.cells
    ]
    if not competing:
        return None
    setting, row = max(competing, key=lambda one: one[1].cells["psnr_truth"].mean)
    by_clip = [one for one in competing if "clip_directional" in one[1].cells]
    other = max(by_clip, key=lambda one: one[1].cells["clip_directional"].mean)[0] if by_clip else None
    scores = [score for score in ("psnr_truth", "happened", "clip_directional", "clip_image") if score in row.cells]
    copied = group.copied.cells if group.copied else {}
    return {"setting": setting, "row": row, "scores": scores, "copied": copied, "clip": other}


# The data of the scripts


def page_data(study: EditStudy, plan: PicturePlan, album: Album, folder: Path) -> dict[str, Any]:
    """Everything the page's scripts need but the pictures, which they know by name. Paths are relative to `folder`."""
    data: dict[str, Any] = {"title": study.title, "axes": [], "keys": [], "prompts": [], "subjects": []}
    data |= {"scores": [_score(score) for score in EDIT_SCORES], "groups": [], "settings": [], "runs": []}
    for index, (group, keys) in enumerate(zip(study.groups, plan.keys, strict=True)):
        first = len(data["settings"])
        for setting, row in zip(group.settings, group.rows, strict=True):
            runs = [len(data["runs"]) + place for place in range(len(setting.runs))]
            data["runs"] += [_run(run, keys, len(data["settings"]), album, folder) for run in setting.runs]
            means = {score: _mean(cell) for score, cell in row.cells.items()}
            data["settings"].append(_setting(setting) | {"group": index, "runs": runs, "means": means})
        lines = [
            {"method": line.method, "label": line.label, "key": line.key, "ticks": line.ticks}
            | {"settings": [first + place for place in line.settings]}
            for line in lines_of(group.settings)
        ]
        copied = {score: _mean(cell) for score, cell in group.copied.cells.items()} if group.copied else {}
        told = {"name": group.name, "title": group.title, "encoders": group.encoders, "floor": {}, "ceiling": {}}
        data["groups"].append(told | {"tasks": _tasks(group, keys, album), "lines": lines, "copied": copied})
    return data


def _score(score: str) -> dict[str, Any]:
    name = EDIT_SCORES[score]
    about = metrics.REGISTRY[name.key].description
    return {
        "id": score,
        "label": name.label,
        "higher": name.higher_is_better,
        "about": about,
        "digits": digits_of(score),
    }


def _mean(cell: EditCell) -> list[float | int | None]:
    return [number(cell.mean), number(cell.low), number(cell.high), cell.images, sum(cell.absent.values())]


def _setting(setting: EditSetting) -> dict[str, Any]:
    return {"label": setting.label, "short": setting.short, "method": setting.method, "values": []}


def _tasks(group: EditGroup, keys: Sequence[Key], album: Album) -> list[dict[str, Any]]:
    """What there was to do: an image, an edit and a seed; with the source that all methods share."""
    runs = sorted(group.alike.runs, key=lambda run: run.own_sources)
    pairs = runs[0].by_key
    return [
        {"image": pairs[key].image, "edit": pairs[key].edit, "seed": pairs[key].seed}
        | {"instruction": pairs[key].instruction, "captions": [pairs[key].source_caption, pairs[key].target_caption]}
        | {"source": album.name(pairs[key].source), "truth": album.name(pairs[key].truth)}
        for key in keys
    ]


def _run(run: EditRun, keys: Sequence[Key], setting: int, album: Album, folder: Path) -> dict[str, Any]:
    pairs: Mapping[Key, Pair] = run.by_key
    told = {"name": run.name, "seed": run.record.seed, "setting": setting, "folder": relative(run.folder, folder)}
    return told | {"own": run.own_sources, "made": [_made(pairs[key], album) for key in keys]}


def _made(pair: Pair, album: Album) -> dict[str, Any]:
    conditions = [(kind, name) for kind, path in pair.conditions.items() if (name := album.name(path))]
    scores = {score: number(value) for score, value in pair.score.values.items()}
    made: dict[str, Any] = {"pic": album.name(pair.file), "source": album.name(pair.source), "scores": scores}
    optional = {"conditions": conditions, "absent": pair.score.absent, "fact": pair.fact, "notes": pair.notes}
    return made | {"steps": pair.steps} | {key: value for key, value in optional.items() if value}

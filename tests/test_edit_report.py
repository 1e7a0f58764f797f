"""The report of editing runs: tables, choices and agreement as numbers, the page, the files, and the guards."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from boothlab.commands import report
from boothlab.errors import UserError
from boothlab.evaluation.edit_metrics import EDIT_SCORES, EditScore
from boothlab.reporting import edit_pictures
from boothlab.reporting.edit_cells import mark_best, means_of, row_of
from boothlab.reporting.edit_choice import choice_of, place
from boothlab.reporting.edit_markdown import edit_markdown, figure
from boothlab.reporting.edit_page import write_edit_page
from boothlab.reporting.edit_pictures import Album, plan_pictures
from boothlab.reporting.edit_runs import Pair, read_edit_run
from boothlab.reporting.edit_settings import lines_of
from boothlab.reporting.edit_study import EditStudy, build_edit_study
from boothlab.reporting.runs import find_trainings, is_editing
from boothlab.reporting.study import build_study
from edit_report_runs import EDITS, IMAGES, MadeEdits, make_edit_config, make_edit_runs
from report_runs import make_runs
from test_report_page import EVIL, Blocks, Reader, browser  # noqa: F401

METHODS = [{"method": method} for method in ("copy", "regenerate", "sdedit", "controlnet_canny", "instruct_pix2pix")]
STRENGTHS = [{"method": "sdedit", "strength": strength} for strength in (0.2, 0.5, 0.9)]
BY_METHOD = {"name": "edit_methods", "title": "Editing methods", "axis": "method"}
BY_STRENGTH = {"name": "sdedit_strength", "title": "SDEdit strength", "axis": "strength"}
FEW = MadeEdits(images=IMAGES[:3], edits=EDITS[:2])
BARE = MadeEdits(images=IMAGES[:3], edits=EDITS[:2], pictures=False)


def pair(
    image: str, edit: str = "at_night", seed: int = 0, absent: Mapping[str, str] | None = None, **scores: float
) -> Pair:
    score = EditScore(scores, dict(absent or {}))
    return Pair(image, edit, seed, "", "", "", None, None, None, None, {}, 20, (), score, None)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five methods, and three strengths of one of them; not to be changed."""
    root = tmp_path_factory.mktemp("lab")
    make_edit_runs(root, METHODS, sweep=BY_METHOD, made=FEW)
    return make_edit_runs(root, STRENGTHS, sweep=BY_STRENGTH, made=FEW)


@pytest.fixture(scope="module")
def study(lab: Path) -> EditStudy:
    return build_edit_study([lab])


# Numbers


def test_a_mean_is_over_seeds_then_edits_then_images() -> None:
    pairs = [
        pair("a", "x", 0, clip_t=0.1),
        pair("a", "x", 1, clip_t=0.3),
        pair("a", "y", 0, clip_t=0.6),
        pair("b", "x", clip_t=0.8),
    ]
    cell = row_of({}, pairs, ["run"]).cells["clip_t"]
    assert cell.mean == pytest.approx(((0.2 + 0.6) / 2 + 0.8) / 2)
    assert (cell.images, cell.pairs, cell.absent) == (2, 4, {})
    assert cell.low is not None and cell.high is not None and cell.low <= cell.mean <= cell.high
    assert means_of(pairs, "clip_t") == {("a", "x"): 0.2, ("a", "y"): 0.6, ("b", "x"): 0.8}


def test_absent_is_counted_and_never_zero() -> None:
    still = {"clip_directional": "did not change"}
    row = row_of({}, [pair("a", clip_directional=0.4), pair("b", absent=still)], ["run"])
    assert (row.cells["clip_directional"].mean, row.cells["clip_directional"].absent) == (0.4, {"did not change": 1})
    assert "clip_t" not in row.cells and row.absent == {}
    nothing = row_of({}, [pair("a", absent=still), pair("b", absent=still)], ["run"])
    assert nothing.cells == {} and nothing.absent == {"clip_directional": 2}


def test_the_best_is_among_those_measured_on_all_and_no_end() -> None:
    rows = [
        row_of({}, [pair("a", clip_image=1.0, structure=0.0), pair("b", clip_image=1.0, structure=0.0)], [], "copy"),
        row_of({}, [pair("a", clip_image=0.8, structure=0.2), pair("b", clip_image=0.6, structure=0.4)], ["one"]),
        row_of({}, [pair("a", clip_image=0.7, structure=0.1), pair("b", clip_image=0.5, structure=0.1)], ["two"]),
        row_of({}, [pair("a", clip_image=0.9), pair("b", absent={"clip_image": "no"})], ["partly"]),
    ]
    marked = mark_best(rows)
    assert [row.cells["clip_image"].best for row in marked] == [False, True, False, False]
    assert [row.cells["structure"].best for row in marked if "structure" in row.cells] == [False, False, True]
    assert not any(row.cells["effective_steps"].best for row in marked if "effective_steps" in row.cells)


def test_near_the_best_is_told_by_pairs_and_not_by_the_intervals() -> None:
    """The images differ far more than the settings, which overlap; in pairs one is always better by the same."""
    spread = [0.1, 0.3, 0.5, 0.7, 0.9]
    best = row_of({}, [pair(f"i{index}", clip_t=value) for index, value in enumerate(spread)], ["best"])
    worse = row_of({}, [pair(f"i{index}", clip_t=value - 0.01) for index, value in enumerate(spread)], ["worse"])
    mixed = [value - 0.01 + 0.02 * (index % 2) - 0.001 for index, value in enumerate(spread)]
    near = row_of({}, [pair(f"i{index}", clip_t=value) for index, value in enumerate(mixed)], ["near"])
    _, one, other = mark_best([best, worse, near])
    assert one.cells["clip_t"].high > best.cells["clip_t"].mean  # type: ignore[operator]
    assert (one.cells["clip_t"].near, other.cells["clip_t"].near) == (False, True)
    assert one.cells["clip_t"].difference.mean == pytest.approx(-0.01)  # type: ignore[union-attr]


def test_a_place_is_the_share_below_and_half_of_the_equals() -> None:
    assert [place(value, [1, 2, 2, 4]) for value in (1, 2, 4)] == [0.125, 0.5, 0.875]


def made_of(*values: tuple[float, float, float]) -> list[Pair]:
    """A picture of one image each: CLIP image, CLIP directional, PSNR to the target."""
    return [
        pair(f"i{index}", clip_image=kept, clip_directional=edited, psnr_truth=truth)
        for index, (kept, edited, truth) in enumerate(values)
    ]


def test_the_choice_is_the_harmonic_mean_of_places_and_regret_is_against_the_truth() -> None:
    choice = choice_of(
        "sdedit",
        {
            "low": made_of((0.99, 0.01, 20.0), (0.98, 0.02, 25.0)),
            "middle": made_of((0.9, 0.2, 22.0), (0.88, 0.22, 24.0)),
            "high": made_of((0.6, 0.3, 18.0), (0.62, 0.31, 18.0)),
        },
    )
    assert choice is not None
    # Of six values each: 0.9 is the fourth (3.5/6) and 0.2 the third (2.5/6); low has 5.5/6 and 0.5/6.
    first = choice.choices[0]
    assert (first.chosen, first.balanced) == ("middle", pytest.approx(2 * (3.5 * 2.5 / 36) / (6 / 6)))
    assert [one.chosen for one in choice.choices] == ["middle", "middle"]
    assert [(one.best, one.regret) for one in choice.choices] == [("middle", 0.0), ("low", 1.0)]
    assert [(one.setting, one.chosen, one.best, one.psnr) for one in choice.per_setting] == [
        ("low", 0, 1, 22.5),
        ("middle", 2, 1, 23.0),
        ("high", 0, 0, 18.0),
    ]
    assert choice.lost.mean == 0  # one setting is the best of both images
    assert choice.hits == 1 and choice.skipped == 0
    assert (choice.fixed_clip_setting, choice.fixed_truth_setting) == ("middle", "middle")
    regrets = (choice.by_clip, choice.fixed_clip, choice.fixed_truth, choice.by_chance)
    assert [found.mean if found else None for found in regrets] == pytest.approx([0.5, 0.5, 0.5, (2 + 8 / 3) / 2])


def test_what_one_setting_for_all_loses_is_the_mean_over_images() -> None:
    choice = choice_of(
        "sdedit",
        {"one": made_of((0.9, 0.2, 20.0), (0.7, 0.3, 20.0)), "other": made_of((0.6, 0.1, 20.0), (0.8, 0.4, 20.0))},
    )
    assert choice is not None and [one.chosen for one in choice.choices] == ["one", "other"]
    # Of four values each, places 1/8, 3/8, 5/8, 7/8: one has (7, 3) and (3, 5), other (1, 1) and (5, 7).
    chosen = [2 * 7 * 3 / 10 / 8, 2 * 5 * 7 / 12 / 8]
    fixed = {"one": [chosen[0], 2 * 3 * 5 / 8 / 8], "other": [1 / 8, chosen[1]]}
    assert choice.fixed_clip_setting == "one"
    assert choice.balanced_chosen.mean == pytest.approx(sum(chosen) / 2)
    assert choice.balanced_fixed.mean == pytest.approx(sum(fixed["one"]) / 2)
    assert choice.lost.mean == pytest.approx((sum(chosen) - sum(fixed["one"])) / 2) and choice.lost.mean > 0


def test_a_grid_of_two_axes_has_a_row_and_a_line_each(tmp_path: Path) -> None:
    grid = [{"method": "sdedit", "strength": s, "steps": n} for s in (0.3, 0.6) for n in (10, 20, 40)]
    sweep = {"name": "edit_search", "title": "Search", "axis": "strength"}
    folder = make_edit_runs(tmp_path, grid, sweep=sweep, made=BARE)
    (group,) = build_edit_study([folder]).groups
    rows = [row for row in group.tables[0].rows if not row.end]
    assert group.tables[0].keys == ("steps", "strength") and len(rows) == 6
    assert rows[0].labels == {"strength": "0.3", "steps": "10"}
    assert {(line.label, line.key, line.ticks) for line in lines_of(group.settings)} == {
        (f"sdedit · steps {steps}", "strength", ("0.3", "0.6")) for steps in (10, 20, 40)
    }
    (choice,) = group.choices
    assert choice.settings[0] == "steps 10 · strength 0.3" and len(choice.per_setting) == 6
    assert sum(one.chosen for one in choice.per_setting) == len(choice.choices) == 6
    text = edit_markdown(build_edit_study([folder]))
    assert "what one for all loses" in text and "take what one setting for all loses as an upper end" in text


def test_a_choice_needs_two_settings_and_both_scores_everywhere() -> None:
    assert choice_of("sdedit", {"only": made_of((0.9, 0.1, 20.0))}) is None
    lacking = [pair("i0", clip_image=1.0, absent={"clip_directional": "did not change"})]
    assert choice_of("sdedit", {"still": lacking, "moved": made_of((0.9, 0.1, 20.0))}) is None
    no_truth = {name: [pair("a", clip_image=kept, clip_directional=0.1)] for name, kept in (("x", 0.9), ("y", 0.8))}
    choice = choice_of("sdedit", no_truth)
    assert choice is not None and choice.choices[0].chosen == "x"
    assert (choice.hits, choice.by_clip, choice.choices[0].best, choice.choices[0].regret) == (None, None, None, None)


# Tables


def test_each_sweep_has_a_table_between_its_two_ends(study: EditStudy) -> None:
    (group,) = study.groups
    assert [table.title for table in group.tables] == ["Editing methods", "SDEdit strength"]
    methods, strengths = group.tables
    assert [row.labels.get("method", row.end) for row in methods.rows] == [
        *("copy", "sdedit", "controlnet_canny", "instruct_pix2pix", "regenerate"),
    ]
    assert [row.labels.get("strength", row.end) for row in strengths.rows] == [
        "copy",
        "0.2",
        "0.5",
        "0.9",
        "regenerate",
    ]
    best = {row.labels.get("method"): row.cells["psnr_truth"].best for row in methods.rows}
    assert best["instruct_pix2pix"] and sum(best.values()) == 1
    assert strengths.rows[0].absent["clip_directional"] == 6  # copy has no direction
    assert group.encoders == "dollhouse" and group.title == "3 images, 2 edits (at_night, lamp_on)"


def test_copy_is_there_without_a_run_of_its_own(tmp_path: Path) -> None:
    folder = make_edit_runs(tmp_path, STRENGTHS, made=BARE)
    (table,) = build_edit_study([folder]).groups[0].tables
    assert [row.end for row in table.rows] == ["copy", "", "", ""]
    assert table.rows[0].cells["clip_image"].mean == 1.0
    assert table.title == "All editing runs" and table.keys == ("strength",)


def test_rankings_put_the_truth_beside_clip(study: EditStudy) -> None:
    ranking = study.groups[0].tables[0].ranking
    assert ranking is not None and ranking.scores[:3] == ("psnr_truth", "happened", "clip_directional")
    first = ranking.rows[0]
    assert (first.labels["method"], first.places["psnr_truth"].rank) == ("instruct_pix2pix", 1)
    copied = next(row for row in ranking.rows if row.end == "copy")
    assert copied.places["clip_image"].rank == copied.places["structure"].rank == 1  # lower is better there
    assert "clip_directional" not in copied.places


def test_agreement_leaves_the_copy_out_and_turns_distances(study: EditStudy) -> None:
    found = {(one.score, one.truth): one for one in study.groups[0].agreements}
    assert found["clip_image", "psnr_truth"].over_pairs.pairs == 7 * 6  # eight runs less copy
    assert found["clip_image", "psnr_truth"].over_settings.pairs == 7
    kept, structure = (found[score, "psnr_truth"].over_settings.value for score in ("clip_image", "structure"))
    assert kept is not None and structure is not None and kept * structure > 0
    assert ("clip_i_truth", "psnr_truth") not in found


def test_lines_follow_the_swept_key(study: EditStudy) -> None:
    lines = {line.label: (line.key, line.ticks) for line in lines_of(study.groups[0].settings)}
    assert lines["sdedit"] == ("strength", ("0.2", "0.5", "0.7", "0.9"))  # 0.7 is the default
    assert lines["copy"] == (None, ("",)) and lines["instruct_pix2pix"] == (None, ("",))


# Guards


def test_other_images_or_edits_have_tables_of_their_own(tmp_path: Path) -> None:
    sweep = {"name": "series", "title": "Series", "axis": "data.edits"}
    config = [{"method": "sdedit", "data.edits": [name]} for name in EDITS[:2]]
    folder = tmp_path / "edits"
    for index, setting in enumerate(config):
        made = MadeEdits(images=IMAGES[:2], edits=EDITS[index : index + 1], pictures=False)
        make_edit_runs(tmp_path, [setting], made=made, sweep={**sweep, "name": f"series{index}"})
    found = build_edit_study([folder])
    titles = [group.title for group in found.groups]  # in the order of the run folders, which hashes name
    assert sorted(titles) == ["2 images, 1 edit (at_night)", "2 images, 1 edit (lamp_on)"]
    assert [len(group.tables[0].rows) for group in found.groups] == [2, 2]  # copy and the run
    assert [group.name for group in found.groups] == [f"{index}: {title}" for index, title in enumerate(titles, 1)]


def test_images_of_one_name_and_other_content_are_not_mixed(tmp_path: Path) -> None:
    make_edit_runs(tmp_path, STRENGTHS[:1], experiment="one", made=FEW)
    other = make_edit_runs(tmp_path, STRENGTHS[1:2], experiment="two", made=FEW)
    for path in other.glob("*/samples/sources/*.png"):
        Image.new("RGB", (32, 32), (1, 2, 3)).save(path)
    assert [len(group.alike.runs) for group in build_edit_study([tmp_path]).groups] == [1, 1]


def test_other_encoders_are_refused_unless_split(tmp_path: Path) -> None:
    make_edit_runs(tmp_path, STRENGTHS[:1], made=BARE)
    other = MadeEdits(images=BARE.images, edits=BARE.edits, pictures=False, clip="clip@other")
    make_edit_runs(tmp_path, STRENGTHS[1:2], made=other)
    with pytest.raises(UserError, match=r"CLIP directional of .* such scores share no table: give --split") as caught:
        build_edit_study([tmp_path])
    assert "\n" not in str(caught.value)
    assert len(build_edit_study([tmp_path], split=True).groups) == 2


def test_only_pictures_that_all_runs_have_are_compared(tmp_path: Path) -> None:
    make_edit_runs(tmp_path, [{"method": "sdedit", "seeds": [0, 1]}, {"method": "instruct_pix2pix"}], made=BARE)
    found = build_edit_study([tmp_path])
    (group,) = found.groups
    assert {row.cells["clip_t"].pairs for row in group.tables[0].rows} == {6}
    assert any("6 pictures are in no table" in line for line in found.warnings)


def test_what_did_not_finish_is_left_out_with_the_reason(tmp_path: Path) -> None:
    made = MadeEdits(images=IMAGES[:2], edits=EDITS[:1], pictures=False, statuses={1: "failed", 2: "running"})
    folder = make_edit_runs(tmp_path, STRENGTHS, sweep=BY_STRENGTH, made=made)
    found = build_edit_study([folder])
    assert {why for _, why in found.left_out} == {"failed: no more", "is still running, or was killed"}
    assert len(found.groups[0].tables[0].missing) == 2
    broken = next(iter(folder.glob("sdedit*/samples/step_000001/metrics.json")))
    broken.write_text(json.dumps({"pairs": [{"image": "a"}]}), encoding="utf-8")
    with pytest.raises(UserError, match="none of 3 editing runs is finished and scored"):
        build_edit_study([folder])
    with pytest.raises(UserError, match="is not what an editing run writes"):
        read_edit_run(broken.parents[2])


@pytest.mark.parametrize("name", ["../../../secret.png", "/etc/passwd", 7, "", None])
def test_files_outside_of_the_run_are_not_shown(tmp_path: Path, name: Any) -> None:
    folder = make_edit_runs(tmp_path, STRENGTHS[:1], made=BARE)
    path = next(iter(folder.glob("*/samples/step_000001/metrics.json")))
    found = json.loads(path.read_text(encoding="utf-8"))
    found["pairs"][0] |= {"file": name, "fact": ["night", "day"]}
    path.write_text(json.dumps(found), encoding="utf-8")
    first = read_edit_run(path.parents[2]).pairs[0]
    assert first.file is None and first.fact == ("night", "day")


@pytest.mark.parametrize(
    "change",
    [
        {"pairs": 5},
        {"pairs": ["a"]},
        {"pairs": [{"image": "a", "edit": "b", "seed": "x"}]},
        {"pairs": [{"image": "a", "edit": "b", "seed": 0, "scores": [1]}]},
        {"pairs": [{"image": "a", "edit": "b", "seed": 0, "scores": {"clip_t": "high"}}]},
        {"pairs": [{"image": "a", "edit": "b", "seed": 0, "fact": ["one"]}]},
        {"pairs": [{"image": "a", "edit": "b", "seed": 0, "conditions": ["canny"]}]},
    ],
)
def test_files_of_other_shapes_are_refused_in_one_line(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = make_edit_runs(tmp_path, STRENGTHS[:1], made=MadeEdits(IMAGES[:1], EDITS[:1], pictures=False))
    path = next(iter(folder.glob("*/samples/step_000001/metrics.json")))
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    with pytest.raises(UserError, match=r"is not what an editing run writes \(.*\); run it again") as caught:
        read_edit_run(path.parents[2])
    assert "\n" not in str(caught.value)


def test_scores_that_are_no_numbers_or_not_known_do_not_count(tmp_path: Path) -> None:
    folder = make_edit_runs(tmp_path, STRENGTHS[:1], made=MadeEdits(IMAGES[:1], EDITS[:1], pictures=False))
    path = next(iter(folder.glob("*/samples/step_000001/metrics.json")))
    found = json.loads(path.read_text(encoding="utf-8"))
    found["pairs"][0]["scores"] = {"clip_t": "nan", "clip_image": 0.5, "of_tomorrow": 1.0, "structure": None}
    path.write_text(json.dumps({**found, "metrics": 7}), encoding="utf-8")
    run = read_edit_run(path.parents[2])
    assert run.pairs[0].score.values == {"clip_image": 0.5}
    assert run.pairs[0].score.absent == {"clip_t": "not a finite number"} and run.measured == {}


# Files


def test_the_files_have_a_row_a_run_and_a_row_a_picture(lab: Path, tmp_path: Path) -> None:
    assert report.run([str(lab), "--out", str(tmp_path), "--no-html"]) == 0
    written = {path.name for path in tmp_path.iterdir() if path.suffix != ".parquet"}
    assert written == {"report.md", "runs.csv", "edits.csv"}
    with (tmp_path / "runs.csv").open(encoding="utf-8", newline="") as file:
        runs = list(csv.DictReader(file))
    with (tmp_path / "edits.csv").open(encoding="utf-8", newline="") as file:
        edits = list(csv.DictReader(file))
    assert (len(runs), len(edits)) == (8, 8 * 6)
    copied = next(row for row in runs if row["method"] == "copy")
    assert (copied["clip_directional"], copied["clip_directional_absent"], copied["clip_image"]) == ("", "6", "1.0")
    assert {row["pictures"] for row in runs} == {"6"} and {row["encoders"] for row in runs} == {"dollhouse"}
    chosen = [row for row in edits if row["chosen"] == "true"]
    assert len(chosen) == 6 and {row["method"] for row in chosen} == {"sdedit"}
    assert {row["chosen"] for row in edits if row["method"] == "copy"} == {""}
    assert json.loads(next(row["absent"] for row in edits if row["method"] == "copy")) == {
        "clip_directional": "the picture did not change"
    }


def test_markdown_marks_the_ends_the_best_and_the_absent(study: EditStudy) -> None:
    text = edit_markdown(study)
    assert "| *copy: the source as it is* | absent −6 | 1.0000 [1.0000, 1.0000] |" in text
    mean = study.groups[0].tables[0].rows[3].cells["psnr_truth"].mean
    assert f"**{mean:.2f}** [" in text
    for line in (
        "Places by each score",
        "How well the scores predict the truth",
        "CLIP, one for all: strength 0.",
        "dollhouse encoders",
    ):
        assert line in text
    assert figure(None) == "–" and figure(-0.0) == "0.0000" and figure(31.456, "psnr_truth") == "31.46"


def test_without_a_known_target_nothing_speaks_of_truth(tmp_path: Path) -> None:
    made = MadeEdits(images=IMAGES[:2], edits=EDITS[:1], truths=False)
    folder = make_edit_runs(tmp_path, STRENGTHS, made=made)
    found = build_edit_study([folder])
    assert found.groups[0].agreements == () and found.groups[0].choices[0].hits is None
    assert "predict the truth" not in edit_markdown(found) and "regret" not in edit_markdown(found)
    write_edit_page(found, tmp_path / "report.html")
    text = Blocks((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "No target is known" in text and "Mean regret" not in text and "chance" not in text


def test_what_users_write_is_text_and_nothing_else(tmp_path: Path) -> None:
    made = MadeEdits(images=["a room"], edits=["at_night"], words=EVIL)
    folder = make_edit_runs(tmp_path, [{"method": "sdedit", "negative_prompt": text} for text in ("", EVIL)], made=made)
    found = build_edit_study([folder], title=EVIL)
    found.left_out.append((EVIL, EVIL))
    found.warnings.append(EVIL)
    write_edit_page(found, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    blocks = Blocks(html)
    assert list(blocks.scripts) == ["data", "album", "plotly", ""]
    assert "img" not in blocks.tags and blocks.text.count(EVIL) >= 5
    assert EVIL not in html.replace(blocks.scripts["plotly"], "").replace(blocks.scripts[""], "")
    assert blocks.data["groups"][0]["tasks"][0]["instruction"] == f"make it at night{EVIL}"
    assert blocks.policy.startswith("default-src 'none'; script-src 'sha256-") and "connect-src" not in blocks.policy
    assert EVIL not in edit_markdown(found) and str(tmp_path) not in html


def test_the_same_study_has_the_same_bytes(lab: Path, tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        write_edit_page(build_edit_study([lab]), tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


# Pictures


def test_equal_pictures_are_stored_once_and_damaged_ones_left_out(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.png" for name in ("one", "same", "broken", "gone", "link", "large")]
    for path in paths[:2]:
        Image.new("RGB", (32, 32), (200, 10, 10)).save(path)
    paths[2].write_bytes(b"\x89PNG\r\n\x1a\n, and then nothing that is one")
    paths[4].symlink_to(paths[0])
    Image.new("RGB", (900, 600), (10, 200, 10)).save(paths[5])
    album = Album(256)
    album.add(paths)
    assert album.name(paths[0]) == album.name(paths[1]) is not None
    assert [album.name(path) for path in (*paths[2:5], None)] == [None] * 4
    assert len(album.sources) == 2 and all(
        source.startswith("data:image/webp;base64,") for source in album.sources.values()
    )


def test_a_page_that_would_be_too_large_keeps_every_image_first(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (alike,) = (group.alike for group in build_edit_study([lab]).groups)
    assert plan_pictures([alike]).whole and len(plan_pictures([alike]).keys[0]) == 6
    monkeypatch.setattr(edit_pictures, "MOST_BYTES", 60_000.0)
    plan = plan_pictures([alike])
    assert not plan.whole and 0 < len(plan.keys[0]) < 6


# The command


def test_a_folder_of_both_kinds_has_two_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_runs(tmp_path, [{"lora.rank": 4}], experiment="mixed")
    folder = make_edit_runs(tmp_path, STRENGTHS[:2], experiment="mixed", made=BARE)
    assert [is_editing(path.parent) for path in sorted(folder.glob("*/manifest.json"))] == [False, True, True]
    assert len(build_study([folder]).runs) == 1 and build_study([folder]).left_out == []
    assert report.run([str(folder), "--no-html"]) == 0
    written = {path.name for path in folder.iterdir() if path.is_file() and path.suffix != ".parquet"}
    assert written == {"report.md", "runs.csv", "checkpoints.csv", "edit_report.md", "edit_runs.csv", "edits.csv"}
    assert "1 finished run, 1 table" in (said := capsys.readouterr().err) and "2 finished editing runs, 1 table" in said


def test_the_same_numbers_are_in_parquet(lab: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert report.run([str(lab), "--out", str(tmp_path), "--no-html", "--parquet"]) == 0
    for name, rows in (("runs", 8), ("edits", 8 * 6)):
        table = parquet.read_table(tmp_path / f"{name}.parquet")
        with (tmp_path / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            written = list(csv.DictReader(file))
        assert (table.num_rows, table.column_names) == (rows, list(written[0]))
        for column in ("clip_image", "clip_directional"):
            read = ["" if value is None else repr(value) for value in table[column].to_pylist()]
            assert read == [row[column] for row in written]


def test_what_is_for_trainings_only_is_said(lab: Path) -> None:
    with pytest.raises(UserError, match="--wandb is for training runs"):
        report.run([str(lab), "--wandb", "lab/edits"])
    with pytest.raises(UserError, match="holds runs of boothlab edit or caption only"):
        find_trainings([lab])


def test_the_makers_configs_are_those_of_the_schema() -> None:
    config = make_edit_config({"method": "sdedit", "strength": 0.4})
    assert (config["method"], config["strength"], config["data"]["images"]) == ("sdedit", 0.4, "dollhouse")
    assert set(EDIT_SCORES) >= {"clip_directional", "clip_image", "psnr_truth", "happened"}


# In a browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Names, captions and a setting that are markup; methods with and without conditions; two seeds."""
    root = tmp_path_factory.mktemp("page")
    made = MadeEdits(images=[*IMAGES[:2], "a & b"], edits=EDITS[:2], words=EVIL)
    chosen: list[dict[str, Any]] = [{**one, "seeds": [0, 1]} for one in (*METHODS[1:], *STRENGTHS)]
    chosen.append({"method": "sdedit", "negative_prompt": EVIL, "seeds": [0, 1]})
    folder = make_edit_runs(root, chosen, made=made, sweep={**BY_METHOD, "title": EVIL})
    write_edit_page(build_edit_study([folder], title=f"Edits {EVIL}"), folder / "report.html")
    return folder / "report.html"


def stage(reader: Reader) -> list[str]:
    """What the two pictures under the slider are, right and left."""
    reader.tab.wait_for_selector("#stage img[data-drawn] + img[data-drawn]")
    return reader.tab.locator("#stage img").evaluate_all("(all) => all.map((one) => one.src)")


@pytest.mark.slow
def test_the_page_draws_shows_names_as_they_are_and_stays_silent(browser: Any, page: Path) -> None:  # noqa: F811
    reader = Reader(browser, page)
    reader.draw("curve")
    assert reader.tab.locator("h1").inner_text() == f"Edits {EVIL}"
    assert reader.tab.locator("img[src='x'], h1 script").count() == 0
    assert reader.tab.locator("#plot-curve .points path").count() == 8  # copy has no direction
    assert EVIL in reader.tab.locator("#compare-facts").inner_text()
    legend = reader.tab.locator("#plot-curve .legendtext").all_text_contents()
    assert any("<script>" in text for text in legend) and any("along strength" in text for text in legend)
    assert reader.tab.evaluate("document.documentElement.scrollWidth") == 1280
    assert reader.complaints == []


@pytest.mark.slow
def test_the_slider_moves_by_keyboard_and_by_dragging(browser: Any, page: Path) -> None:  # noqa: F811
    reader = Reader(browser, page)
    cut = "document.getElementById('stage').style.getPropertyValue('--cut')"
    assert reader.tab.evaluate(cut) == "50%"
    slider = reader.tab.locator("#stage input")
    slider.focus()
    for _ in range(3):
        reader.tab.keyboard.press("ArrowRight")
    assert reader.tab.evaluate(cut) == "53%" and slider.get_attribute("aria-valuetext") == "53 percent of source"
    reader.tab.keyboard.press("Home")
    assert reader.tab.evaluate(cut) == "0%"
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    reader.tab.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] / 2)
    reader.tab.mouse.down()
    reader.tab.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] / 2, steps=5)
    reader.tab.mouse.up()
    assert 78 <= int(reader.tab.evaluate(cut).removesuffix("%")) <= 82
    clip = reader.tab.locator("#stage .left").evaluate("(one) => getComputedStyle(one).clipPath")
    assert clip.startswith("inset(0px ")
    assert reader.complaints == []


@pytest.mark.slow
def test_image_edit_seed_and_sides_change_the_pictures(browser: Any, page: Path) -> None:  # noqa: F811
    reader = Reader(browser, page)
    seen = [stage(reader)]
    select = reader.tab.locator("#compare-controls select")
    assert select.nth(0).locator("option").all_inner_texts() == ["a & b", "room_00", "room_01"]
    for which, value in ((0, "room_01"), (1, "lamp_on"), (3, "truth")):
        select.nth(which).select_option(value)
        seen.append(stage(reader))
    assert len({tuple(pictures) for pictures in seen}) == 4
    select.nth(2).select_option("1")
    assert "room_01, lamp_on, seed 1" in reader.tab.locator("#grid-controls").inner_text()
    before = stage(reader)
    reader.tab.click("#swap")
    assert stage(reader) == before[::-1]
    reader.tab.click("#next")
    assert reader.complaints == []


@pytest.mark.slow
def test_pointing_at_a_setting_shows_and_clicking_opens_it(browser: Any, page: Path) -> None:  # noqa: F811
    reader = Reader(browser, page)
    reader.hover_point(0, "curve")
    reader.tab.wait_for_selector("#card:visible .triple img[data-drawn]")
    assert reader.tab.locator("#card .triple").count() == 3 and reader.tab.locator("#card .triple img").count() == 9
    label = reader.tab.locator("#card strong").inner_text()
    reader.tab.mouse.down()
    reader.tab.mouse.up()
    reader.tab.locator("#sides").filter(
        has_text=label
    ).wait_for()  # wait_for_function needs eval, which the page forbids
    assert reader.complaints == []


@pytest.mark.slow
def test_the_grid_has_a_row_a_setting_or_a_row_an_image(browser: Any, page: Path) -> None:  # noqa: F811
    reader = Reader(browser, page)
    rows = reader.tab.locator("#grid-table tbody tr")
    assert rows.count() == 8
    heads = reader.tab.locator("#grid-table thead th").all_inner_texts()
    assert heads[:5] == ["setting", "source", "condition", "edit", "target"]
    reader.tab.locator("#grid-controls select").select_option("controlnet_canny")
    assert rows.count() == 1 and rows.locator("img").count() == 4
    reader.tab.get_by_text("all images by one setting", exact=True).click()
    assert rows.count() == 3
    assert reader.complaints == []


@pytest.mark.slow
def test_all_scores_show_on_request_and_columns_sort(browser: Any, page: Path) -> None:  # noqa: F811
    reader = Reader(browser, page)
    article = reader.tab.locator("#tables article").first
    shown = article.locator("table.results thead th:visible").count()
    article.locator("[data-everything]").check()
    assert article.locator("table.results thead th:visible").count() > shown
    article.locator("table.results thead button", has_text="PSNR to target").click()
    column = article.locator("table.results tbody td[data-score=psnr_truth]")
    values = [float(text) for text in column.evaluate_all("(all) => all.map((one) => one.dataset.sort)")]
    assert values == sorted(values, reverse=True) and len(values) == 7
    assert reader.complaints == []


@pytest.mark.slow
def test_groups_are_shown_one_at_a_time_and_narrow_screens_hold_the_page(browser: Any, tmp_path: Path) -> None:  # noqa: F811
    make_edit_runs(tmp_path, METHODS, experiment="one", made=FEW)
    other = MadeEdits(images=IMAGES[3:5], edits=EDITS[1:], truths=False, side=96)
    make_edit_runs(tmp_path, STRENGTHS, experiment="two", made=other)
    write_edit_page(build_edit_study([tmp_path]), tmp_path / "report.html")
    reader = Reader(browser, tmp_path / "report.html", width=700, color_scheme="dark")
    reader.draw("curve")
    counts = [reader.tab.locator("#grid-table tbody tr").count()]
    reader.tab.select_option("#group", "1")
    counts.append(reader.tab.locator("#grid-table tbody tr").count())
    assert counts == [5, 3]
    assert reader.tab.locator("#compare-controls select").first.locator("option").all_inner_texts() == [
        "room_03",
        "room_04",
    ]
    assert "No target is known" in reader.tab.locator("#agreement").inner_text()
    assert reader.tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 20, 23)"
    assert reader.tab.evaluate("document.documentElement.scrollWidth") == 700
    assert reader.complaints == []

"""Reports and dashboards for W&B: the JSON that W&B is sent, what is saved on a server, and the ways it can fail.

The JSON is private to wandb-workspaces and pinned here on purpose: a new version that reads `config:lr` as the name of
a metric, or `<` as `<=`, shows nothing wrong but an empty panel.
"""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boothlab.errors import UserError
from boothlab.reporting import wandb_panels as panels
from boothlab.reporting.markdown import to_markdown
from boothlab.reporting.runs import RunRecord, find_runs, read_run
from boothlab.reporting.study import Study, build_study
from boothlab.reporting.wandb_report import build_report, build_workspace, publish
from report_runs import Made, make_runs
from wandb_double import Server, ServerRun, isolated_wandb, logged_in

pytest.importorskip("wandb_workspaces", reason="the extra wandb-reports is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style")  # wandb-workspaces's own

SETTINGS = [{"optim.lr": 1e-3, "lora.rank": 4}, {"optim.lr": 1e-5, "lora.rank": 4}]
NAMES = [f"dollhouse-robot-{hash8}-s{seed}" for hash8 in ("f1c6cc95", "a5850863") for seed in (0, 1)]
SCORES = ["clip_i", "dino", "clip_t", "balanced", "div", "pres"]


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with isolated_wandb(tmp_path / "wandb_home", monkeypatch):
        yield


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with logged_in(monkeypatch) as double:
        double.runs["other"] = ServerRun("id", "other", {"project": "toys"})  # the project exists
        yield double


def study_of(folder: Path, *, recorded: bool = True) -> Study:
    """Two settings with two seeds each; `recorded` gives every run folder the W&B run `w0`, `w1`, …"""
    experiment = make_runs(folder, SETTINGS, seeds=(0, 1), experiment="rates")
    study = build_study([experiment], title="lr × rank")
    for index, run in enumerate(study.runs if recorded else []):
        record(run, f"offline-run-20260102_03040{index}-w{index}")
    return study


def record(run: RunRecord, *names: str) -> None:
    for name in names:
        (run.folder / "wandb" / name).mkdir(parents=True)


def spec_of(report: Any) -> dict[str, Any]:
    """What `save` sends."""
    found: dict[str, Any] = json.loads(report._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))
    return found


def grids_of(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [block["metadata"] for block in spec["blocks"] if block["type"] == "panel-grid"]


def panels_of(grid: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = grid["panelBankSectionConfig"]["panels"]
    return found


def leaf(name: str, op: str, value: Any) -> dict[str, Any]:
    return {"key": {"section": "run", "name": name}, "op": op, "value": value, "disabled": False}


def filters_of(run_set: dict[str, Any]) -> list[dict[str, Any]]:
    assert run_set["filters"]["filterFormat"] == "filterV2"
    return [{key: value for key, value in one.items() if key != "connector"} for one in run_set["filters"]["filters"]]


def test_the_panels_show_the_scores_of_exactly_the_studys_runs(tmp_path: Path, server: Server) -> None:
    charts, samples = grids_of(spec_of(build_report(study_of(tmp_path), "tester", "toys")))
    (run_set,) = charts["runSets"]
    assert run_set["name"] == "rates"  # the experiment is the W&B group
    assert run_set["project"] == {"name": "toys", "entityName": "tester", "id": "1"}
    assert filters_of(run_set) == [leaf("name", "IN", ["w0", "w1", "w2", "w3"])]
    assert run_set["grouping"] == [{"section": "config", "name": "optim.value.lr"}]  # seeds become a mean
    assert samples["runSets"][0]["grouping"] == []
    assert filters_of(samples["runSets"][0]) == filters_of(run_set)

    lines = [panel["config"] for panel in panels_of(charts) if panel["viewType"] == "Run History Line Plot"]
    assert [line["metrics"] for line in lines] == [[f"eval/{score}/dollhouse"] for score in SCORES]
    assert {line["xAxis"] for line in lines} == {"trainer/global_step"}
    scatters = [panel["config"] for panel in panels_of(charts) if panel["viewType"] == "Scatter Plot"]
    assert [(one["xAxis"], one["yAxis"]) for one in scatters] == [
        ("summary:eval/clip_t/dollhouse", "summary:eval/clip_i/dollhouse"),
        ("summary:eval/clip_t/dollhouse", "summary:eval/dino/dollhouse"),
    ]
    (parallel,) = [panel["config"] for panel in panels_of(charts) if panel["viewType"] == "Parallel Coordinates Plot"]
    assert parallel["columns"][0] == {"accessor": "config:optim.value.lr", "displayName": "optim.lr", "log": True}
    assert [column["accessor"] for column in parallel["columns"][1:]] == [
        f"summary:best/eval/{score}/dollhouse" for score in SCORES
    ]
    (media,) = panels_of(samples)
    assert media["viewType"] == "Media Browser"
    assert media["config"]["mediaKeys"] == ["samples/grid"]
    assert media["config"]["gridSettings"] == {"xAxis": "step", "yAxis": "run"}


def test_panels_of_a_grid_do_not_overlap(tmp_path: Path, server: Server) -> None:
    charts, _ = grids_of(spec_of(build_report(study_of(tmp_path), "tester", "toys")))
    taken: set[tuple[int, int]] = set()
    for layout in (panel["layout"] for panel in panels_of(charts)):
        across, down = range(layout["x"], layout["x"] + layout["w"]), range(layout["y"], layout["y"] + layout["h"])
        cells = {(x, y) for x in across for y in down}
        assert not cells & taken and max(across) < 24
        taken |= cells


def test_the_text_is_that_of_the_local_report(tmp_path: Path, server: Server) -> None:
    study = study_of(tmp_path)
    study.warnings = ["a warning"]
    spec = spec_of(build_report(study, "tester", "toys", links=["http://127.0.0.1/board"]))
    types = [block["type"] for block in spec["blocks"]]
    head = ["paragraph", "markdown-block", "table-of-contents", "heading", "panel-grid", "heading", "panel-grid"]
    assert types[:8] == [*head, "heading"]
    headline, *texts = [block["content"] for block in spec["blocks"] if block["type"] == "markdown-block"]
    assert headline.startswith("4 finished runs of 2 settings, seeds 0, 1.")
    assert headline.endswith("> ⚠\n> - a warning\n\nDashboard: http://127.0.0.1/board")
    local = to_markdown(study).partition("\n\n## ")[2]
    assert "\n\n".join(texts[:-1]) == f"## {local}"
    assert "| optim.lr | seeds | CLIP-I |" in "".join(texts)
    assert "metrics.jsonl" in texts[-1]


def test_runs_of_several_wandb_groups_are_several_run_sets(tmp_path: Path, server: Server) -> None:
    study = study_of(tmp_path)
    for run in study.runs[:2]:
        run.config["tracking"]["group"] = "a <group> = 'β'"
    charts, _ = grids_of(spec_of(build_report(study, "tester", "toys")))
    assert [run_set["name"] for run_set in charts["runSets"]] == ["a <group> = 'β'", "rates"]
    values = [filters_of(run_set)[0]["value"] for run_set in charts["runSets"]]
    assert values == [["w0", "w1"], ["w2", "w3"]]


def test_runs_without_a_recording_are_found_by_group_and_name(tmp_path: Path, server: Server) -> None:
    study = study_of(tmp_path, recorded=False)
    record(study.runs[0], "run-20260102_030405-w0")  # one is not enough
    charts, _ = grids_of(spec_of(build_report(study, "tester", "toys")))
    named = [run.name for run in study.runs]
    assert filters_of(charts["runSets"][0]) == [leaf("group", "=", "rates"), leaf("displayName", "IN", named)]


@given(st.text(min_size=1))
def test_any_group_survives_the_filter_language(group: str) -> None:
    from wandb_workspaces.expr import expr_to_filters

    run = read_run_of("name")
    both = expr_to_filters(panels.only([run], group)).filters
    assert both is not None
    assert [(one.key.name, one.op, one.value) for one in both if one.key] == [
        ("group", "=", group),
        ("displayName", "IN", ["name"]),
    ]


def read_run_of(name: str) -> RunRecord:
    fields: dict[str, Any] = {
        "status": "finished",
        "error": None,
        "config": {},
        "seed": 0,
        "setting": "",
        "floor": None,
    }
    fields |= {"checkpoints": [], "ceilings": {}, "suffix": "", "manifest": {}, "summary": {}}
    return RunRecord(folder=Path("nowhere") / name, **fields)


def test_the_last_recording_counts_whether_online_or_not(tmp_path: Path) -> None:
    (run,) = (read_run(folder) for folder in find_runs([make_runs(tmp_path, SETTINGS[:1])]))
    assert panels.wandb_id(run) is None
    record(run, "run-20260102_030405-online", "offline-run-20260103_000000-later", "latest-run")
    assert panels.wandb_id(run) == "later"
    record(run, "run-20260104_000000-with-dash")
    assert panels.wandb_id(run) == "with-dash"


def test_published_encoders_have_plain_keys_and_unmeasured_scores_no_panel(tmp_path: Path, server: Server) -> None:
    experiment = make_runs(tmp_path, SETTINGS, made=Made(suffix=""))
    study = build_study([experiment])
    for run in study.runs:
        for checkpoint in run.checkpoints:
            checkpoint.scores.pop("pres")
    charts, _ = grids_of(spec_of(build_report(study, "tester", "toys")))
    lines = [panel["config"]["metrics"] for panel in panels_of(charts) if "metrics" in panel["config"]]
    assert lines == [[f"eval/{score}"] for score in SCORES[:-1]]


def test_axes_are_config_keys_with_single_values(tmp_path: Path) -> None:
    targets = [["to_k"], ["to_k", "to_q"]]
    settings = [{"lora.unet_targets": one, "lora.rank": rank} for one, rank in zip(targets, (4, 16), strict=True)]
    study = build_study([make_runs(tmp_path, settings)])
    assert set(study.varied) == {"lora.rank", "lora.unet_targets"}
    assert panels.axes(study.runs, [*study.varied, "subject"]) == ["lora.rank"]


def test_the_dashboard_has_the_same_panels_and_only_the_studys_runs(tmp_path: Path) -> None:
    workspace = build_workspace(study_of(tmp_path), "tester", "toys")
    section = json.loads(workspace._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))["section"]
    assert workspace.name == "lr x rank"  # W&B takes × for an emoji
    found = {
        one["name"]: [panel["viewType"] for panel in one["panels"]] for one in section["panelBankConfig"]["sections"]
    }
    assert found == {
        "Scores": ["Run History Line Plot"] * 6,
        "Trade-offs": ["Scatter Plot", "Scatter Plot", "Parallel Coordinates Plot"],
        "Samples": ["Media Browser"],
        "Training": ["Run History Line Plot"] * 4,
        "Tables (when this was made)": ["Markdown Panel"] * 3,
    }
    (run_set,) = section["runSets"]
    assert filters_of(run_set) == [leaf("name", "IN", ["w0", "w1", "w2", "w3"])]
    best = [f"summary:best/eval/{score}/dollhouse" for score in SCORES]
    pinned = ["run:displayName", "config:optim.value.lr", "config:seed.value", *best]
    assert run_set["runFeed"]["columnOrder"] == pinned
    settings = section["settings"]
    assert (settings["xAxis"], settings["shouldAutoGeneratePanels"]) == ("trainer/global_step", False)


def test_publishing_saves_the_report_and_a_dashboard_that_it_links_to(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    study = study_of(tmp_path)
    for index in range(4):
        server.runs[f"w{index}"] = ServerRun(f"id{index}", f"w{index}", {"project": "toys"})
    url = publish(replace(study, title="what? a / title"), "", "toys", dashboard=True)
    board, report = server.views
    assert [(view["type"], view["entityName"], view["projectName"]) for view in server.views] == [
        ("project-view", "tester", "toys"),
        ("runs", "tester", "toys"),
    ]
    assert (board["displayName"], report["displayName"]) == ("what? a / title", "what? a / title")
    name = board["name"].removeprefix("nw-").removesuffix("-v")
    assert f"Dashboard: {server.url}/tester/toys?nw={name}" in report["spec"]
    assert url == f"{server.url}/tester/toys/reports/what%3F-a-/-title--view2"
    said = [record for record in caplog.records if record.name.startswith("boothlab")]
    assert [record.levelname for record in said if record.levelno > logging.INFO] == []


def test_publishing_says_which_runs_are_still_to_be_sent(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    study = study_of(tmp_path)
    for index in (0, 1, 2):
        server.runs[f"w{index}"] = ServerRun(f"id{index}", f"w{index}", {"project": "toys"})
    publish(study, "tester", "toys", dashboard=False)
    assert [view["type"] for view in server.views] == ["runs"]
    (warning,) = [record.getMessage() for record in caplog.records if record.name.startswith("boothlab")]
    folder = study.runs[3].folder / "wandb" / "offline-run-20260102_030403-w3"
    assert warning == f"W&B lacks 1 of the study's 4 runs. Send them with: wandb sync {folder}"


def test_a_project_without_runs_is_a_user_error(tmp_path: Path, server: Server) -> None:
    with pytest.raises(UserError, match="no W&B project tester/nothing; send the runs first"):
        publish(study_of(tmp_path), "tester", "nothing", dashboard=True)
    assert server.views == []


def test_no_key_offline_or_a_refused_key_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of(tmp_path)
    with pytest.raises(UserError, match="`wandb login`"):
        publish(study, "tester", "toys", dashboard=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(UserError, match="WANDB_MODE=offline"):
        publish(study, "tester", "toys", dashboard=False)
    monkeypatch.delenv("WANDB_MODE")
    with logged_in(monkeypatch) as server:
        monkeypatch.setenv("WANDB_API_KEY", "b" * 40)
        with pytest.raises(UserError, match="not logged in") as caught:
            publish(study, "tester", "toys", dashboard=False)
    assert server.views == [] and "\n" not in str(caught.value)


def test_without_the_extra_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(UserError, match=r"pip install 'boothlab\[wandb-reports\]'"):
        publish(study_of(tmp_path), "tester", "toys", dashboard=False)


def test_importing_the_report_is_light() -> None:
    code = "import sys, boothlab.reporting.wandb_report; print({'wandb', 'wandb_workspaces'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr

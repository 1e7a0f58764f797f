"""report.html: what is in it, that nothing in a study can break out of it, and that it works in a real browser."""

import base64
import hashlib
import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from boothlab.errors import UserError
from boothlab.files import sha256_file
from boothlab.images.grid import build_grid
from boothlab.reporting import page as page_module
from boothlab.reporting.page import lead, pictures_note, script_json, write_page
from boothlab.reporting.pictures import (
    LARGEST_CELL,
    MOST_BYTES,
    MOST_WORK,
    Plan,
    cost_of,
    plan_of,
    shapes_of,
    sheets_of,
    shown_points,
    spread,
    subject_photos,
    whole_plan,
)
from boothlab.reporting.plots import number, relative, short_names, told_apart_by, without_shared_beginning
from boothlab.reporting.runs import RunRecord, read_run
from boothlab.reporting.study import Study, build_study
from report_runs import PROMPTS, Made, make_runs

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
RANK, LR = "lora.rank", "optim.lr"
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"
PLOTS = ("tradeoff", "curves", "parallel", "heat")
SETTINGS: list[dict[str, Any]] = [{RANK: rank, LR: lr} for lr in (1e-4, 1e-3) for rank in (4, 16)]
SWEEP = {"name": "rank", "title": "LoRA rank", "axis": RANK, "expect": {"clip_i": "rises", "clip_t": "falls"}}


def study_of(root: Path, chosen: list[dict[str, Any]] | None = None, **options: Any) -> Study:
    """Four settings of two seeds unless told otherwise."""
    options = {"seeds": (0, 1), "sweep": SWEEP, **options}
    folder = make_runs(root, SETTINGS if chosen is None else chosen, **options)
    return build_study([folder])


def written(study: Study, path: Path) -> str:
    write_page(study, path)
    return path.read_text(encoding="utf-8")


class Blocks(HTMLParser):
    """The script blocks of a page by id (the program has none), its policy, and the text outside of scripts."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.scripts: dict[str, str] = {}
        self.tags: list[str] = []
        self.policy = self.text = ""
        self._script: str | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        if tag == "script":
            self._script = values.get("id") or ""
            assert self._script not in self.scripts
            self.scripts[self._script] = ""
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"] or ""

    def handle_endtag(self, tag: str) -> None:
        self._script = None if tag == "script" else self._script

    def handle_data(self, data: str) -> None:
        if self._script is None:
            self.text += data
        else:
            self.scripts[self._script] += data

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.scripts["data"])


# Data


@settings(max_examples=40, deadline=None)
@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_json_in_a_script_reads_back_and_cannot_end_it(value: Any) -> None:
    text = script_json(value)
    assert json.loads(text) == value
    assert text.isascii() and not set("<>&") & set(text)


def test_json_in_a_script_is_escaped_as_it_must_be() -> None:
    assert script_json("</script><!--\u2028\u2029&") == '"\\u003c/script\\u003e\\u003c!--\\u2028\\u2029\\u0026"'


def test_scores_that_are_no_numbers_become_nothing() -> None:
    assert [number(value) for value in (0.123456789, "0.5", "nan", "inf", None, float("nan"))] == [
        *(0.12346, 0.5),
        *(None, None, None, None),
    ]


def test_short_names_are_as_long_as_they_must_be() -> None:
    keys = ["lora.rank", "unet.lr", "text.lr", "prior.enabled", "seed"]
    assert short_names(keys) == {
        "lora.rank": "rank",
        "unet.lr": "unet.lr",
        "text.lr": "text.lr",
        "prior.enabled": "prior.enabled",
        "seed": "seed",
    }


def test_prompts_lose_what_all_begin_with() -> None:
    texts = ["a photo of a sks robot on the beach", "a photo of a sks robot in the snow"]
    assert without_shared_beginning(texts) == ["… on the beach", "… in the snow"]
    assert without_shared_beginning(["a cat", "a dog"]) == ["a cat", "a dog"]
    assert without_shared_beginning(["the same", "the same"]) == ["the same", "the same"]
    assert without_shared_beginning(["only one"]) == ["only one"]


def test_of_keys_that_change_together_the_shortest_names_the_setting(tmp_path: Path) -> None:
    chosen = [
        {"subject.class_noun": noun, "subject.instance_prompt": f"a photo of a sks {noun}", RANK: rank}
        for noun in ("cat", "dog")
        for rank in (4, 16)
    ]
    study = study_of(tmp_path, chosen, sweep=None)
    assert told_apart_by(study.runs, study.varied) == [RANK, "subject.class_noun"]
    data = Blocks(written(study, tmp_path / "report.html")).data
    assert [setting["label"] for setting in data["settings"]] == [
        f"rank {rank} · class_noun {noun}" for rank in (4, 16) for noun in ("cat", "dog")
    ]
    # One prompt for both subjects, told by its template, since its words differ.
    assert [prompt["text"] for prompt in data["prompts"]] == list(PROMPTS)
    assert all(run["prompts"] == [0, 1] for run in data["runs"])


def test_the_data_are_those_of_the_runs(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    data = Blocks(written(study, tmp_path / "study" / "report.html")).data
    assert [run["name"] for run in data["runs"]] == [run.name for run in study.runs]
    for row, run in zip(data["runs"], study.runs, strict=True):
        assert row["steps"] == [50, 100]
        assert row["scores"]["clip_i"] == [round(point.scores["clip_i"], 5) for point in run.checkpoints]
        assert row["steps"][row["best"]] == run.best("balanced").step  # type: ignore[union-attr]
        assert (row["seed"], row["folder"], row["adapter"]) == (run.seed, run.name, "")
        assert set(row["sheets"]) == {"0", "50", "100"}
        assert row["by_prompt"]["best"]["clip_t"] == [
            round(scores.scores["clip_t"], 5) for scores in run.checkpoints[row["best"]].per_prompt
        ]
    assert data["axes"] == [RANK]
    assert [(key["name"], key["values"]) for key in data["keys"]] == [("rank", ["4", "16"]), ("lr", ["1e-4", "1e-3"])]
    assert data["groups"][0]["ceiling"] == {"clip_i": 0.69, "dino": 0.91}


def test_paths_are_relative_to_the_page(tmp_path: Path) -> None:
    assert relative(tmp_path / "a" / "run", tmp_path / "b") == "../a/run"
    study = study_of(tmp_path, [{RANK: 4}])
    run = study.runs[0]
    (run.folder / "lora").mkdir()
    (run.folder / "lora" / "pytorch_lora_weights.safetensors").touch()
    html = written(study, tmp_path / "out" / "report.html")
    assert Blocks(html).data["runs"][0]["adapter"] == f"../study/{run.name}/lora/pytorch_lora_weights.safetensors"
    assert str(tmp_path) not in html


# The page as text


def test_the_headline_is_the_best_balanced_setting_at_one_checkpoint(tmp_path: Path) -> None:
    study = study_of(tmp_path, seeds=(0, 1, 2))
    html = written(study, tmp_path / "report.html")
    best = next(one for one in study.best if one.score == "balanced")
    runs = [run for run in study.runs if study.labels(run) == best.setting]
    assert len(runs) == 3
    for score in ("clip_i", "dino", "clip_t"):
        mean = sum(run.best("balanced").scores[score] for run in runs) / 3  # type: ignore[union-attr]
        tile = html.split(f'<div class="tile" data-score="{score}">')[1]
        assert tile.split('<p class="value">')[1].startswith(f"{mean:.4f}<small> ± ")
    assert "rank</span> <b>16</b>" in html and "the mean of 3 seeds" in html


def test_tables_have_both_readings_in_words_and_the_rows_of_the_study(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    html = written(study, tmp_path / "report.html")
    for reading in ("best", "last"):
        assert html.count(f'data-reading="{reading}"') == 1
    text = Blocks(html).text
    assert "the best over each run's checkpoints after step 0, every score on its own" in text
    assert "the last checkpoint of each run" in text
    assert html.count('class="number best"') >= 12  # one a score, in both tables
    for line in ("average over 2 settings of optim.lr", "as expected", "floor: the base model", "dollhouse encoders"):
        assert line in text


def test_the_lead_counts_and_names_the_encoders(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    assert lead(study).startswith("8 finished runs of 4 settings, seeds 0, 1. Scored with the dollhouse encoders, so")
    many = study_of(tmp_path / "many", [{RANK: 4}], seeds=range(10), sweep=None, made=Made(suffix="", samples=False))
    assert lead(many) == "10 finished runs of 1 setting, seeds 10 from 0 to 9."


def test_the_same_study_has_the_same_bytes(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    first = written(study, tmp_path / "study" / "a.html")
    assert written(build_study([tmp_path / "study"]), tmp_path / "study" / "b.html") == first


def test_what_users_write_is_text_and_nothing_else(tmp_path: Path) -> None:
    made = Made(prompts=[f"a {{token}} {{class}} {EVIL}", "a {token} {class} \u2028 <!-- </script>"])
    study = study_of(tmp_path, [{RANK: 4, "subject.instance_prompt": EVIL}, {RANK: 16}], made=made, sweep=None)
    study.title = EVIL
    study.left_out.append((EVIL, EVIL))
    study.warnings.append(EVIL)
    html = written(study, tmp_path / "report.html")
    blocks = Blocks(html)
    assert [name for name in blocks.scripts if not name.startswith("sheet-")] == ["data", "", "plotly"]
    assert "img" not in blocks.tags
    assert EVIL not in html.replace(blocks.scripts["plotly"], "").replace(blocks.scripts[""], "")
    assert blocks.text.count(EVIL) >= 5  # the titles, the warning, the name and the reason left out
    assert f"a sks robot {EVIL}" in [prompt["text"] for prompt in blocks.data["prompts"]]


def test_the_policy_lets_these_very_scripts_run_and_nothing_be_fetched(tmp_path: Path) -> None:
    blocks = Blocks(written(study_of(tmp_path), tmp_path / "report.html"))
    hashes = re.findall(r"'sha256-([^']+)'", blocks.policy)
    scripts = (blocks.scripts[""], blocks.scripts["plotly"])
    assert hashes == [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    assert blocks.policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "connect-src" not in blocks.policy and "unsafe-eval" not in blocks.policy
    assert "script-src 'unsafe-inline'" not in blocks.policy


def test_votes_have_a_section_of_their_own(tmp_path: Path) -> None:
    class Votes:
        def summary_rows(self) -> list[dict[str, Any]]:
            runs = {"run_a": "one", "step_a": 100, "run_b": "two", "step_b": 50, "raters": 3, "items": 20}
            shares = {"share_a": 0.6, "share_b": 0.25, "share_undecided": 0.15}
            wins = {"wins_a": 12, "wins_b": 5, "undecided": 3, "kappa": 0.414, "p_value": 0.143}
            return [{"question": "subject", **runs, **shares, **wins, "incomplete": 1, "unanswered": 2}]

    study = study_of(tmp_path)
    assert 'id="human"' not in written(study, tmp_path / "report.html")
    study.human = Votes()
    text = " ".join(Blocks(written(study, tmp_path / "report.html")).text.split())
    assert "3 raters, who did not know which was which. A is one at step 100; B is two at step 50." in text
    assert "subject2012 (60%)5 (25%)3 (15%)0.410.14303 A pair" in text  # the cells of the only row


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        write_page(study_of(tmp_path, [{RANK: 4}]), tmp_path / "report.html")


# Pictures


def picture(source: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(source.partition("base64,")[2], validate=True))).convert("RGB")


def near(image: Image.Image, place: tuple[int, int], colour: tuple[int, int, int]) -> bool:
    """Whether a pixel has this colour, but for compression."""
    found = image.getpixel(place)
    assert isinstance(found, tuple)
    return all(abs(a - b) < 8 for a, b in zip(found, colour, strict=True))


def runs_in(root: Path, count: int = 1, **options: Any) -> list[RunRecord]:
    folder = make_runs(root, [{RANK: 4 + index} for index in range(count)], (0,), **options)
    return [read_run(path.parent) for path in sorted(folder.glob("*/manifest.json"))]


def test_spread_keeps_the_ends() -> None:
    assert spread(3, 5) == [0, 1, 2]
    assert spread(9, 3) == [0, 4, 8]
    assert spread(9, 1) == [0]
    assert spread(0, 4) == []


def test_the_best_balanced_and_the_last_checkpoint_are_shown_first(tmp_path: Path) -> None:
    def scores(config: Any, seed: int, step: int) -> dict[str, float]:
        return dict.fromkeys(("clip_i", "dino", "clip_t"), 0.9 if step == 20 else 0.5)

    (run,) = runs_in(tmp_path, checkpoints=(10, 20, 30, 40, 50), scores=scores)
    steps = {most: [point.step for point in shown_points(run, most)] for most in range(1, 7)}
    assert steps[6] == [0, 10, 20, 30, 40, 50]
    assert steps[1] == [20]
    assert steps[2] == [20, 50]
    assert steps[3] == [0, 20, 50]
    assert {0, 20, 50} < set(steps[4]) and len(steps[4]) == 4


def test_a_sheet_has_the_very_pixels_of_small_images(tmp_path: Path) -> None:
    (run,) = runs_in(tmp_path)
    sheet = sheets_of([run], plan_of(shapes_of([run])))[0, 100]
    assert (sheet.cell, sheet.prompts, sheet.seeds, sheet.gaps) == (32, (0, 1), (0, 1), ())
    drawn = picture(sheet.source)
    assert drawn.size == (64, 64)
    for prompt in (0, 1):
        for seed in (0, 1):
            cell = drawn.crop((seed * 32, prompt * 32, seed * 32 + 32, prompt * 32 + 32))
            original = Image.open(run.folder / f"samples/step_000100/prompt{prompt:02d}_seed{seed}.png").convert("RGB")
            assert cell.tobytes() == original.tobytes()


def test_missing_and_damaged_images_leave_gaps(tmp_path: Path) -> None:
    (run,) = runs_in(tmp_path)
    samples = run.folder / "samples" / "step_000100"
    (samples / "prompt00_seed1.png").unlink()
    (samples / "prompt01_seed0.png").write_bytes(b"\x89PNG\r\n\x1a\n, and then nothing that is one")
    sheets = sheets_of([run], plan_of(shapes_of([run])))
    assert sheets[0, 100].gaps == (1, 2)
    shutil.rmtree(run.folder / "samples" / "step_000050")
    assert set(sheets_of([read_run(run.folder)], plan_of(shapes_of([run])))) == {(0, 0), (0, 100)}


def test_equal_samples_are_stored_once(tmp_path: Path) -> None:
    one, two = runs_in(tmp_path, 2)
    for path in (one.folder / "samples/step_000100").glob("prompt*.png"):
        shutil.copy(path, two.folder / "samples/step_000100" / path.name)
    sheets = sheets_of([one, two], plan_of(shapes_of([one, two])))
    assert sheets[0, 100].id == sheets[1, 100].id
    assert sorted(bool(sheets[index, 100].source) for index in (0, 1)) == [False, True]
    assert len({sheet.id for sheet in sheets.values() if sheet.source}) == len({sheet.id for sheet in sheets.values()})


def test_large_images_become_small(tmp_path: Path) -> None:
    (run,) = runs_in(tmp_path)
    for path in run.folder.glob("samples/*/prompt*.png"):
        Image.new("RGB", (512, 512), (200, 30, 90)).save(path)
    shutil.rmtree(run.folder / "samples" / "step_000000")  # equal samples are stored once, and these are
    shutil.rmtree(run.folder / "samples" / "step_000050")
    run = read_run(run.folder)
    sheet = sheets_of([run], plan_of(shapes_of([run])))[0, 100]
    drawn = picture(sheet.source)
    assert (sheet.cell, drawn.size) == (LARGEST_CELL, (2 * LARGEST_CELL, 2 * LARGEST_CELL))
    assert near(drawn, (200, 100), (200, 30, 90))


def test_a_small_study_is_shown_whole(tmp_path: Path) -> None:
    runs = runs_in(tmp_path, 2)
    shapes = shapes_of(runs)
    assert shapes == {(2, 2, 3, 32): 2}
    assert plan_of(shapes) == whole_plan(shapes) == Plan(2, 2, 3, True)
    assert pictures_note(whole_plan(shapes), plan_of(shapes)) == ""
    assert plan_of(shapes_of([])) == Plan(0, 0, 0, True)


def test_a_large_study_is_cut_to_the_limits_and_says_so() -> None:
    shapes = Counter({(8, 4, 6, 32): 500})
    plan = plan_of(shapes)
    work, size = cost_of(shapes, plan)
    assert work <= MOST_WORK and size <= MOST_BYTES
    assert plan == Plan(8, 2, 5, False)
    assert pictures_note(whole_plan(shapes), plan) == (
        "So that this page stays usable, it holds 2 of 4 image seeds, 5 of 6 checkpoints of each run, the best balanced"
        " and the last among them; the run folders have all."
    )
    assert plan_of(Counter({(100, 20, 50, 512): 10**6})) == Plan(1, 1, 1, False)


def test_photos_are_those_of_the_manifest_if_they_are_unchanged(tmp_path: Path) -> None:
    (run,) = runs_in(tmp_path)
    inputs: dict[str, str] = {}
    for index, colour in enumerate(((250, 0, 0), (0, 250, 0))):
        path = tmp_path / f"photo_{index}.png"
        Image.new("RGB", (40, 40), colour).save(path)
        inputs[str(path)] = sha256_file(path)
    inputs["class_images/0001"] = "0" * 64
    run.manifest["inputs"] = inputs
    assert [picture(photo).getpixel((5, 5)) for photo in subject_photos([run])] == [(250, 0, 0), (0, 250, 0)]
    Image.new("RGB", (40, 40), (0, 0, 250)).save(tmp_path / "photo_0.png")
    assert [picture(photo).getpixel((5, 5)) for photo in subject_photos([run])] == [(0, 250, 0)]


def test_photos_that_are_gone_are_cut_from_the_grid(tmp_path: Path) -> None:
    (run,) = runs_in(tmp_path)
    photos = [Image.new("RGB", (32, 32), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    run.manifest["inputs"] = {"gone/a.png": "a" * 64, "gone/b.png": "b" * 64}
    samples = [Image.new("RGB", (32, 32), (9, 9, 9))] * 2
    build_grid([("a prompt", samples)], ["seed 0", "seed 1"], photos, "a title").save(run.last.grid)  # type: ignore[union-attr,arg-type]
    found = [picture(photo) for photo in subject_photos([run])]
    assert [photo.size for photo in found] == [(128, 128)] * 2
    for photo, colour in zip(found, ((250, 0, 0), (0, 250, 0)), strict=True):
        assert near(photo, (60, 60), colour)


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


class Reader:
    """A browser tab with the page, watched for everything that should not happen."""

    def __init__(self, browser: Any, page: Path, width: int = 1280, **context: Any):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, **context)
        self.context.set_default_timeout(30_000)
        self.tab = self.context.new_page()
        self.complaints: list[str] = []
        self.tab.on("console", lambda message: self.complaints.append(message.text))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.tab.on("request", lambda request: self._watch(request.url))
        self.url = page.resolve().as_uri()
        self.tab.goto(self.url)
        if context.get("java_script_enabled", True):
            self.tab.wait_for_selector("html[data-ready=pictures]", state="attached")

    def _watch(self, url: str) -> None:
        if url != self.url and not url.startswith(("data:", "blob:")):
            self.complaints.append(url)

    def draw(self, *names: str) -> None:
        """Scroll to plots and wait until they are drawn."""
        for name in names:
            self.tab.evaluate(f"document.getElementById('plot-{name}').scrollIntoView({{ behavior: 'instant' }})")
            self.tab.wait_for_selector(f"#plot-{name}.drawn")

    def column(self, index: int, table: str = "[data-reading]:not([hidden]) table.results") -> list[str]:
        cells = f"document.querySelectorAll({json.dumps(table + ' tbody:not(.averages) tr')})"
        return self.tab.evaluate(f"[...{cells}].map((row) => row.cells[{index}].textContent.trim())")

    def pixels(self, selector: str) -> list[str]:
        """The content of the canvases as data URLs, once all are drawn."""
        self.tab.wait_for_selector(f"{selector}[data-drawn]")
        self.tab.wait_for_selector(f"{selector}:not([data-drawn])", state="detached")
        return self.tab.locator(selector).evaluate_all("(all) => all.map((one) => one.toDataURL())")

    def hover_point(self, index: int, plot: str = "tradeoff") -> None:
        self.draw(plot)
        box = self.tab.locator(f"#plot-{plot} .points path").nth(index).bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.tab.mouse.move(x - 4, y)
        self.tab.mouse.move(x, y)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    made = Made(prompts=[*PROMPTS, f"a photo of a {{token}} {{class}} {EVIL}"], ceilings={"clip_i": 0.69, "dino": 0.45})
    chosen = [*SETTINGS, {RANK: 4, LR: 1e-3, "subject.token": EVIL}]
    study = study_of(root, chosen, made=made, sweep={**SWEEP, "title": EVIL})
    study.title = f"A study {EVIL}"
    write_page(study, root / "study" / "report.html")
    return root / "study" / "report.html"


def test_it_loads_draws_and_stays_silent(browser: Any, page: Path) -> None:
    reader = Reader(browser, page)
    reader.draw(*PLOTS)
    assert reader.tab.locator("#plot-tradeoff .points path").count() >= 10  # eight runs and more
    assert reader.tab.locator("h1").inner_text() == f"A study {EVIL}"
    assert reader.tab.locator("img[src='x'], h1 script").count() == 0
    # Plotly offers to send a chart to its makers' site unless told not to.
    titles = reader.tab.locator(".modebar-btn").evaluate_all("(all) => all.map((one) => one.dataset.title)")
    assert "Download plot" in titles and not [title for title in titles if "hare" in title or "loud" in title]
    assert reader.complaints == []


def test_names_and_prompts_from_configs_show_as_they_are(browser: Any, page: Path) -> None:
    reader = Reader(browser, page)
    reader.draw(*PLOTS)
    reader.tab.select_option("#tradeoff-controls select >> nth=1", label="token")
    reader.tab.wait_for_selector("#plot-tradeoff .legendtext:has-text('alert(1)')")
    legend = reader.tab.locator("#plot-tradeoff .legendtext").all_text_contents()
    assert any(text.startswith("<script>alert(1)</script>") for text in legend)
    assert any(EVIL[:12] in text for text in reader.tab.locator("#plot-heat .ytick").all_text_contents())
    options = reader.tab.locator("#samples-controls select >> nth=0").locator("option").all_inner_texts()
    assert any(EVIL in text for text in options)
    assert reader.complaints == []


def test_a_header_sorts_both_ways(browser: Any, page: Path) -> None:
    reader = Reader(browser, page)
    scores = [float(text.split()[0]) for text in reader.column(5)]
    assert scores != sorted(scores, reverse=True)
    head = reader.tab.locator("[data-reading=best] table.results thead button", has_text="CLIP-I")
    column = reader.column(reader.tab.evaluate("(head) => head.closest('th').cellIndex", head.element_handle()))
    head.click()
    index = reader.tab.evaluate("(head) => head.closest('th').cellIndex", head.element_handle())
    down = [float(text.split()[0]) for text in reader.column(index)]
    assert down == sorted((float(text.split()[0]) for text in column), reverse=True)
    assert reader.tab.locator("th[aria-sort=descending]").count() == 1
    head.press("Enter")  # a keyboard will do
    assert [float(text.split()[0]) for text in reader.column(index)] == down[::-1]
    reader.tab.locator("[data-reading=best] table.results thead button", has_text="rank").click()
    ranks = reader.column(reader.tab.evaluate("document.querySelector('th[aria-sort]').cellIndex"))
    assert ranks == sorted(ranks, key=int)  # 4 before 16
    assert reader.complaints == []


def test_the_toggle_shows_the_other_reading(browser: Any, page: Path) -> None:
    reader = Reader(browser, page)
    assert reader.tab.locator("[data-reading=best] table.results").is_visible()
    reader.tab.get_by_text("value at the last checkpoint", exact=True).click()
    assert not reader.tab.locator("[data-reading=best]").first.is_visible()
    assert reader.tab.locator("[data-reading=last] table.results").is_visible()
    assert "the last checkpoint of each run" in reader.tab.locator("[data-reading=last] .note").first.inner_text()


def test_tables_can_be_copied_for_a_paper(browser: Any, page: Path) -> None:
    reader = Reader(browser, page)
    table = "document.querySelector('[data-reading=best] table.results')"
    latex, csv = reader.tab.evaluate(f"[asLatex({table}), asCsv({table})]")
    lines = latex.splitlines()
    assert lines[0].startswith("\\begin{tabular}{") and lines[-1] == "\\end{tabular}"
    width = len(lines[2].split(" & "))
    assert all(len(line.split(" & ")) == width for line in lines if line.endswith("\\\\"))
    assert "\\textbf{" in latex and "$\\pm$" in latex and "samples" not in latex
    assert csv.splitlines()[0].startswith("lr,token,rank,seeds,CLIP-I,DINO,CLIP-T,balanced")


def test_pointing_at_a_run_shows_its_samples(browser: Any, page: Path) -> None:
    reader = Reader(browser, page)
    reader.draw("tradeoff")
    assert not reader.tab.locator("#card").is_visible()
    reader.hover_point(0)
    reader.tab.wait_for_selector("#card:visible canvas[data-drawn]")
    (drawn,) = reader.pixels("#card canvas")
    image = picture(drawn)
    assert len(image.getcolors(10**6) or []) > 4  # twelve samples of unlike colours
    text = reader.tab.locator("#card").inner_text()
    assert "CLIP-I 0." in text.replace("\n", " ") and "… on the beach" in text
    reader.tab.mouse.move(5, 5)
    reader.tab.wait_for_selector("#card", state="hidden")
    assert reader.complaints == []


def test_clicking_a_run_opens_it_and_its_slider_changes_the_samples(browser: Any, page: Path) -> None:
    reader = Reader(browser, page)
    reader.draw("tradeoff")
    reader.hover_point(0)
    reader.tab.mouse.down()
    reader.tab.mouse.up()
    reader.tab.wait_for_selector("dialog[open] canvas[data-drawn]")
    text = reader.tab.locator("dialog").inner_text()
    for part in ("Settings that vary", "lora.rank", "optim.lr", "dollhouse-robot-", "0, floor", "The adapter was not"):
        assert part in text
    slider = reader.tab.locator("dialog input[type=range]")
    shots = []
    for step in ("0", "1", "2"):
        slider.fill(step)
        shots += reader.pixels("dialog canvas")
    assert len(set(shots)) == 3
    assert reader.tab.locator("dialog output").inner_text() == "step 100"
    reader.tab.keyboard.press("Escape")
    assert not reader.tab.locator("dialog").is_visible()
    assert reader.complaints == []


def test_samples_side_by_side_follow_the_slider_the_prompt_and_the_seed(browser: Any, page: Path) -> None:
    reader = Reader(browser, page)
    reader.tab.evaluate("document.getElementById('samples').scrollIntoView({ behavior: 'instant' })")
    assert reader.tab.locator("#samples-grid .run").count() == 4
    assert reader.tab.locator("#samples-grid canvas").count() == 8  # two image seeds each
    select = reader.tab.locator("#samples-controls select")
    select.nth(1).select_option("1")
    assert reader.tab.locator("#samples-grid canvas").count() == 4
    seen = [tuple(reader.pixels("#samples-grid canvas"))]
    slider = reader.tab.locator("#samples-controls input[type=range]")
    for change in (lambda: slider.fill("0"), lambda: slider.fill("1"), lambda: select.nth(0).select_option(index=1)):
        change()
        seen.append(tuple(reader.pixels("#samples-grid canvas")))
    assert len(set(seen)) == 4
    assert "step 50" in reader.tab.locator("#samples-grid figcaption").first.inner_text()
    select.nth(2).select_option(index=1)
    assert reader.tab.locator("#samples-grid .run").count() == 5
    reader.tab.locator("#samples-grid .remove").first.click()
    assert reader.tab.locator("#samples-grid .run").count() == 4
    assert reader.complaints == []


def test_the_theme_restyles_page_and_plots(browser: Any, page: Path) -> None:
    reader = Reader(browser, page, color_scheme="light")
    reader.draw("tradeoff")

    def look() -> tuple[str, str]:
        paper = reader.tab.evaluate("getComputedStyle(document.body).backgroundColor")
        return paper, reader.tab.locator("#plot-tradeoff .xtitle").evaluate("(one) => getComputedStyle(one).fill")

    light = look()
    assert light == ("rgb(248, 247, 244)", "rgb(27, 28, 32)")
    reader.tab.click("#theme")
    reader.tab.wait_for_timeout(300)
    assert look() == ("rgb(19, 20, 23)", "rgb(233, 232, 228)")
    reader.tab.click("#theme")
    reader.tab.wait_for_timeout(300)
    assert look() == light
    dark = Reader(browser, page, color_scheme="dark")
    assert dark.tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 20, 23)"
    assert reader.complaints == dark.complaints == []


def test_dragging_along_an_axis_keeps_some_settings(browser: Any, page: Path) -> None:
    reader = Reader(browser, page)
    reader.draw("parallel")
    box = reader.tab.locator("#plot-parallel .nsewdrag").first.bounding_box()
    axes = reader.tab.evaluate("axes().map((axis) => axis.name)")
    assert axes[3:] == ["CLIP-I ↑", "DINO ↑", "CLIP-T ↑", "balanced ↑", "DIV ↑", "PRES ↓"]
    width = box["width"] / (len(axes) - 1 + 0.9)
    x, top, bottom = box["x"] + width * (0.45 + axes.index("rank")), box["y"], box["y"] + box["height"]
    reader.tab.mouse.move(x - 8, top + 0.05 * (bottom - top))
    reader.tab.mouse.down()
    reader.tab.mouse.move(x, top + 0.2 * (bottom - top), steps=4)
    reader.tab.mouse.move(x + 8, top + 0.4 * (bottom - top), steps=4)
    reader.tab.mouse.up()
    reader.tab.wait_for_selector("#parallel-kept:has-text('2 of 5 settings kept')")
    reader.tab.get_by_role("button", name="Keep all").click()
    reader.tab.wait_for_selector("#parallel-kept:has-text('5 settings.')")
    assert reader.complaints == []


def test_a_field_of_the_heat_map_leads_to_its_samples(browser: Any, page: Path) -> None:
    reader = Reader(browser, page)
    reader.draw("heat")
    box = reader.tab.locator("#plot-heat .nsewdrag").first.bounding_box()
    reader.tab.mouse.move(box["x"] + 20, box["y"] + box["height"] - 12)
    reader.tab.wait_for_selector("#card:visible canvas[data-drawn]")
    reader.tab.mouse.move(box["x"] + 22, box["y"] + box["height"] - 12)
    reader.tab.mouse.down()
    reader.tab.mouse.up()
    chosen = reader.tab.locator("#samples-controls select").first.evaluate("(one) => one.selectedOptions[0].text")
    assert EVIL in chosen  # the last prompt scores best, so it is at the bottom
    assert reader.complaints == []


def test_runs_can_be_found_by_their_settings(browser: Any, page: Path) -> None:
    reader = Reader(browser, page)
    reader.tab.fill("#runs-controls input", "rank 16, seed 1")
    assert reader.tab.locator("#runs-table tbody tr:visible").count() == 2
    assert reader.tab.locator("#runs-count").inner_text().startswith("2 of 10 runs")


@pytest.mark.parametrize("width", [1280, 800])
def test_nothing_hangs_over_the_edge(browser: Any, page: Path, width: int) -> None:
    reader = Reader(browser, page, width=width)
    reader.draw(*PLOTS)
    assert reader.tab.evaluate("document.documentElement.scrollWidth") == width
    assert reader.tab.locator("#theme").bounding_box()["x"] < width - 40


def test_the_tables_need_no_scripts(browser: Any, page: Path) -> None:
    reader = Reader(browser, page, java_script_enabled=False)
    assert reader.tab.locator("[data-reading=best] table.results").is_visible()
    assert "need no scripts" in reader.tab.locator("noscript").inner_text()


def test_runs_measured_differently_are_shown_one_group_at_a_time(browser: Any, tmp_path: Path) -> None:
    make_runs(tmp_path, [{RANK: 4}, {RANK: 16}], experiment="one")
    make_runs(tmp_path, [{RANK: 64}], experiment="two", made=Made(suffix=""))
    study = build_study([tmp_path], split=True)
    write_page(study, tmp_path / "report.html")
    reader = Reader(browser, tmp_path / "report.html")
    reader.draw("tradeoff", "curves")
    counts = []
    for group in ("0", "1"):
        reader.tab.select_option("#group", group)
        counts.append(reader.tab.locator("#runs-table tbody tr").count())
        assert reader.tab.locator(".study:visible").count() == 1
    assert counts == [2, 1]
    assert not reader.tab.locator("#parallel").is_visible()  # a single setting has nothing beside it
    assert reader.complaints == []


def test_a_run_without_samples_still_has_a_page(browser: Any, tmp_path: Path) -> None:
    study = study_of(tmp_path, [{RANK: 4}], seeds=(0,), sweep=None, made=Made(samples=False))
    write_page(study, tmp_path / "report.html")
    reader = Reader(browser, tmp_path / "report.html")
    reader.draw("tradeoff", "curves", "heat")
    assert "No samples were found" in reader.tab.locator("#samples-grid").inner_text()
    assert "No scores by prompt were kept" in reader.tab.locator("#plot-heat").text_content()
    reader.tab.locator("#runs-table button.link").first.click()
    assert "No samples of this run were found" in reader.tab.locator("dialog").inner_text()
    assert reader.complaints == []


@pytest.mark.slow
def test_five_hundred_runs_stay_usable(browser: Any, tmp_path: Path) -> None:
    chosen: list[dict[str, Any]] = [{RANK: 2 ** (index % 5), LR: 1e-5 * (1 + index // 5)} for index in range(100)]
    study = study_of(tmp_path, chosen, seeds=range(5))
    assert len(study.runs) == 500
    write_page(study, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 60e6
    reader = Reader(browser, tmp_path / "report.html")
    reader.draw(*PLOTS)
    assert reader.tab.locator("#runs-table tbody tr").count() == 500
    assert reader.tab.locator("#plot-tradeoff .points path").count() >= 500
    reader.tab.select_option("#tradeoff-controls select >> nth=0", "all")
    reader.tab.wait_for_selector("#plot-tradeoff .legendtext:has-text('run, by step')")
    assert reader.tab.locator("#plot-tradeoff .points path").count() >= 1000
    # So many lines would be a carpet: at first there is one for each rank.
    assert reader.tab.locator("#curves-controls select").nth(1).input_value() == "means"
    assert reader.tab.locator("#plot-curves .scatterlayer .js-line").count() <= 12
    reader.hover_point(40)
    reader.tab.wait_for_selector("#card:visible canvas[data-drawn]")
    assert reader.complaints == []


def test_what_is_left_out_is_said_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of(tmp_path, [{RANK: 4}])
    poor = Plan(1, 1, 2, False)
    monkeypatch.setattr(page_module, "plan_of", lambda shapes: poor)
    html = written(study, tmp_path / "report.html")
    assert "it holds 1 of 2 prompts, 1 of 2 image seeds, 2 of 3 checkpoints of each run" in Blocks(html).text
    sheets: Sequence[Any] = list(Blocks(html).data["runs"][0]["sheets"].values())
    assert [(sheet["prompts"], sheet["seeds"]) for sheet in sheets] == [([0], [0]), ([0], [0])]


def test_copying_is_marked_wherever_a_run_is_shown(browser: Any, tmp_path: Path) -> None:
    made = Made(ceilings={"clip_i": 0.69, "dino": 0.3})
    study = study_of(tmp_path, made=made)
    assert {run.copying[-1] for run in study.runs if run.copying} == {100}
    write_page(study, tmp_path / "report.html")
    reader = Reader(browser, tmp_path / "report.html")
    reader.draw("tradeoff", "curves")
    for plot in ("tradeoff", "curves"):
        assert "may be copying" in "".join(reader.tab.locator(f"#plot-{plot} .legendtext").all_text_contents())
    assert "the model may be copying its photos" in reader.tab.locator("#warnings").inner_text()
    copying = sum(bool(run.copying) for run in study.runs)
    assert reader.tab.locator("#runs-table .warned").count() == copying > 0
    reader.tab.locator("#runs-table tr:has(.warned) button.link").first.click()
    assert "copying?" in reader.tab.locator("dialog").inner_text()
    assert reader.complaints == []

"""The page of a human study: what is asked, that it is blind, and that it works in a browser without any network."""

import base64
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from boothlab.errors import UserError
from boothlab.files import sha256_file
from boothlab.images.grid import build_grid
from boothlab.reporting.compare import QUESTIONS, key_path, write_comparison
from boothlab.reporting.runs import RunRecord, read_run
from boothlab.reporting.votes import read_votes
from report_runs import PROMPTS, Made, make_runs

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def photos_in(folder: Path, count: int = 3) -> dict[str, str]:
    """Plain photos of unlike colours, as the inputs of a manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.new("RGB", (48, 40), (40 * index, 200 - 60 * index, 90)).save(folder / f"photo_{index}.png")
    return {str(path): sha256_file(path) for path in sorted(folder.iterdir())}


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    found = json.loads(path.read_text(encoding="utf-8"))
    change(found)
    path.write_text(json.dumps(found), encoding="utf-8")


def two_runs(
    tmp_path: Path, made: Made | None = None, second: dict[str, Any] | None = None, inputs: dict[str, str] | None = None
) -> tuple[RunRecord, RunRecord]:
    """Two runs of one subject; `second` holds settings of the second run besides its learning rate."""
    inputs = photos_in(tmp_path / "photos") if inputs is None else inputs
    experiment = make_runs(tmp_path, [{"optim.lr": 1e-4}, {"optim.lr": 1e-3, **(second or {})}], made=made)
    folders = [path.parent for path in experiment.glob("*/manifest.json")]
    for folder in folders:
        change_json(folder / "manifest.json", lambda manifest: manifest.update(inputs=inputs))
    a, b = sorted(map(read_run, folders), key=lambda run: run.config["optim"]["lr"])
    return a, b


def page_data(page: Path) -> dict[str, Any]:
    text = page.read_text(encoding="utf-8")
    found = re.findall(r'<script type="application/json" id="study">(.*?)</script>', text, flags=re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


def picture(image: dict[str, Any]) -> bytes:
    """The bytes of the image file inside the page."""
    return base64.b64decode(image["src"].partition("base64,")[2], validate=True)


def pixels(source: Path | dict[str, Any]) -> tuple[tuple[int, int], bytes]:
    image = Image.open(source if isinstance(source, Path) else io.BytesIO(picture(source))).convert("RGB")
    return image.size, image.tobytes()


def write(tmp_path: Path, runs: tuple[RunRecord, RunRecord], seed: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    """The page's data and the key."""
    page = tmp_path / "out" / "compare.html"
    write_comparison(*runs, page, seed=seed)
    return page_data(page), json.loads(key_path(page).read_text(encoding="utf-8"))


def fails(*runs: RunRecord, page: Path) -> str:
    with pytest.raises(UserError) as error:
        write_comparison(*runs, page)
    assert "\n" not in str(error.value)
    assert not page.exists() and not key_path(page).exists()
    return str(error.value)


# What is asked


def test_every_prompt_and_seed_is_asked_twice_and_the_key_tells_whose_image_is_where(tmp_path: Path) -> None:
    a, b = two_runs(tmp_path)
    data, key = write(tmp_path, (a, b))
    asked = [(item["pair"], item["question"]) for item in data["questions"]]
    assert len(asked) == len(set(asked)) == 2 * 2 * 2  # prompts x seeds x questions
    assert set(asked) == {(pair, question) for pair in key["pairs"] for question in QUESTIONS}
    texts = ["a photo of a robot on the beach", "a photo of a robot in the snow"]
    assert {(pair["prompt"], pair["seed"]) for pair in key["pairs"].values()} == {(t, s) for t in texts for s in (0, 1)}
    runs = {"a": a, "b": b}
    for item in data["questions"]:
        pair = key["pairs"][item["pair"]]
        left = pair["left"][item["question"]]
        for side, owner in (("left", left), ("right", {"a": "b", "b": "a"}[left])):
            file = (
                runs[owner].folder
                / f"samples/step_000100/prompt{texts.index(pair['prompt']):02d}_seed{pair['seed']}.png"
            )
            assert pixels(data["images"][item[side]]) == pixels(file)
        assert item.get("prompt") == (pair["prompt"] if item["question"] == "prompt" else None)
    assert key["study"] == data["study"]
    assert key["runs"] == {
        side: {"name": run.name, "setting": run.setting, "seed": 0, "step": 100} for side, run in runs.items()
    }


def test_the_page_says_which_checkpoint_it_shows(tmp_path: Path) -> None:
    a, b = two_runs(tmp_path)
    shutil.rmtree(b.folder / "samples" / "step_000100")
    lines = (b.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] < 100]
    (b.folder / "metrics.jsonl").write_text("".join(kept), encoding="utf-8")
    data, key = write(tmp_path, (a, read_run(b.folder)))
    assert (key["runs"]["a"]["step"], key["runs"]["b"]["step"]) == (100, 50)
    assert "(steps 50 and 100)" in (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")
    shown = {pixels(image) for image in data["images"].values()}
    assert pixels(b.folder / "samples/step_000050/prompt00_seed0.png") in shown


def test_only_what_both_runs_have_is_asked(tmp_path: Path) -> None:
    other = ["a photo of a {token} {class} in the snow", "a {token} {class} under the sea"]
    a, b = two_runs(tmp_path, second={"evaluation.prompts": other, "evaluation.seeds": [1, 2, 0]})
    (a.folder / "samples" / "step_000100" / "prompt01_seed1.png").unlink()
    data, key = write(tmp_path, (a, b))
    assert [(pair["prompt"], pair["seed"]) for pair in key["pairs"].values()] == [("a photo of a robot in the snow", 0)]
    drawn = a.folder / "samples/step_000100/prompt01_seed0.png", b.folder / "samples/step_000100/prompt00_seed0.png"
    assert {pixels(image) for image in data["images"].values()} == {pixels(file) for file in drawn}
    assert len(data["questions"]) == 2


def test_prompts_are_shown_without_the_token_and_compared_so(tmp_path: Path) -> None:
    made = Made(prompts=["a {token} {class}, at dusk", "a {token} on the moon", "a sks {class} in the rain"])
    other = {
        "subject.token": "zwx",
        "subject.instance_prompt": "a zwx robot",
        "evaluation.prompts": ["a {token} {class}, at dusk", "a {token} on the moon", "a zwx {class} in the rain"],
    }
    _, key = write(tmp_path, two_runs(tmp_path, made, second=other))
    assert {pair["prompt"] for pair in key["pairs"].values()} == {
        "a robot, at dusk",
        "a robot on the moon",
        "a robot in the rain",
    }


def test_the_same_prompt_twice_is_asked_once(tmp_path: Path) -> None:
    data, _ = write(tmp_path, two_runs(tmp_path, Made(prompts=[PROMPTS[0], PROMPTS[0]])))
    assert len(data["questions"]) == 2 * 2


# Blind, and the same again


def test_the_page_does_not_tell_the_runs(tmp_path: Path) -> None:
    runs = two_runs(tmp_path)
    for run in runs:  # a name in an image file's metadata must not travel with it
        file = run.folder / "samples" / "step_000100" / "prompt00_seed0.png"
        note = PngImagePlugin.PngInfo()
        note.add_text("run", run.name)
        Image.open(file).save(file, pnginfo=note)
        assert run.name.encode() in file.read_bytes()
    data, key = write(tmp_path, runs)
    text = (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")
    for secret in [part for run in runs for part in (run.name, run.setting, run.setting[:8], str(run.folder))]:
        assert secret not in text
        assert not any(secret.encode() in picture(image) for image in data["images"].values())
    # Nor does the order of the images, nor an id that both questions of a pair would share in a readable way.
    assert list(data["images"]) == sorted(data["images"])
    assert all(re.fullmatch("[0-9a-f]{12}", name) for name in (*data["images"], *key["pairs"], data["study"]))


def test_the_same_runs_and_seed_give_the_same_files(
    tmp_path: Path, global_rng_untouched: AbstractContextManager[None]
) -> None:
    runs = two_runs(tmp_path)
    with global_rng_untouched:
        for name in ("one", "two"):
            write_comparison(*runs, tmp_path / name / "compare.html", seed=3)
    for name in ("compare.html", "compare.key.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    write_comparison(*runs, tmp_path / "three" / "compare.html", seed=4)
    before, after = (page_data(tmp_path / name / "compare.html") for name in ("one", "three"))
    assert before["study"] != after["study"]


def test_other_images_are_another_study(tmp_path: Path) -> None:
    runs = two_runs(tmp_path)
    before, _ = write(tmp_path, runs)
    Image.new("RGB", (32, 32)).save(runs[0].folder / "samples" / "step_000100" / "prompt00_seed0.png")
    assert write(tmp_path, runs)[0]["study"] != before["study"]


def test_sides_and_order_are_drawn_evenly(tmp_path: Path) -> None:
    runs = two_runs(tmp_path)
    left, first, alike = 0, 0, 0
    for seed in range(20):
        data, key = write(tmp_path, runs, seed)
        for pair in key["pairs"].values():
            left += list(pair["left"].values()).count("a")
            alike += pair["left"]["subject"] == pair["left"]["prompt"]
        first += data["questions"][0]["question"] == "subject"
    assert 58 < left < 102  # of 160 questions: 80 ± 3.5 standard deviations
    assert 24 < alike < 56  # of 80 pairs: the two questions of a pair do not go together
    assert 2 < first < 18  # of 20 pages


# The subject's photos


def test_the_photos_are_those_of_the_manifest(tmp_path: Path) -> None:
    inputs = {**photos_in(tmp_path / "photos"), "class_images/0000": "0" * 64}
    data, _ = write(tmp_path, two_runs(tmp_path, inputs=inputs))
    wanted = [pixels(path) for path in sorted((tmp_path / "photos").iterdir())]
    assert [pixels(photo) for photo in data["references"]] == wanted


def test_runs_with_and_without_class_images_can_be_compared(tmp_path: Path) -> None:
    a, b = two_runs(tmp_path)
    change_json(b.folder / "manifest.json", lambda manifest: manifest["inputs"].update({"class_images/0000": "0" * 64}))
    data, _ = write(tmp_path, (a, read_run(b.folder)))
    assert len(data["references"]) == 3


def test_a_photo_that_was_changed_or_moved_is_taken_from_where_it_still_is(tmp_path: Path) -> None:
    a, b = two_runs(tmp_path)
    copies = {
        str(shutil.copy(path, tmp_path / Path(path).name)): digest
        for path, digest in photos_in(tmp_path / "photos").items()
    }
    change_json(b.folder / "manifest.json", lambda manifest: manifest.update(inputs=copies))
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "photo_0.png")
    (tmp_path / "photos" / "photo_1.png").unlink()
    data, _ = write(tmp_path, (a, read_run(b.folder)))
    assert [pixels(photo) for photo in data["references"]] == [pixels(tmp_path / f"photo_{i}.png") for i in range(3)]


@pytest.mark.parametrize("side", [32, 130, 300])
@pytest.mark.parametrize("columns", [1, 2, 5])
def test_the_last_resort_is_the_first_row_of_the_grid(tmp_path: Path, side: int, columns: int) -> None:
    runs = two_runs(tmp_path, Made(image_seeds=range(columns)))
    folder = runs[0].folder / "samples" / "step_000100"
    for file in folder.glob("prompt*.png"):
        Image.new("RGB", (side, side), (9, 90, 190)).save(file)
    photos = [Image.new("RGB", (64, 64), (40 * i, 200 - 60 * i, 90)) for i in range(3)]
    rows = [("a long prompt of many words " * 3, [Image.new("RGB", (side, side))] * columns)] * 2
    build_grid(rows, [f"seed {i}" for i in range(columns)], photos, "step 100   CLIP-I 0.7").save(folder / "grid.png")
    shutil.rmtree(tmp_path / "photos")
    data, _ = write(tmp_path, runs)
    cell = {32: 128, 130: 130, 300: 256}[side]
    assert len(data["references"]) == min(3, columns)
    for index, photo in enumerate(data["references"]):
        size, content = pixels(photo)
        assert size == (cell, cell)
        assert set(zip(content[::3], content[1::3], content[2::3], strict=True)) == {(40 * index, 200 - 60 * index, 90)}


def test_without_any_photo_there_is_no_page(tmp_path: Path) -> None:
    runs = two_runs(tmp_path)  # whose grid.png is not laid out as a grid
    shutil.rmtree(tmp_path / "photos")
    message = fails(*runs, page=tmp_path / "page.html")
    assert "no photo of the subject is readable" in message and "photo_0.png" in message


def test_at_most_eight_photos_are_shown(tmp_path: Path) -> None:
    inputs = {}
    for index in range(10):
        path = tmp_path / f"photo_{index}.png"
        Image.new("RGB", (8, 8), (index, 0, 0)).save(path)
        inputs[str(path)] = sha256_file(path)
    assert len(write(tmp_path, two_runs(tmp_path, inputs=inputs))[0]["references"]) == 8


def test_large_images_are_kept_small_enough_for_a_page(tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.effect_noise((1200, 900), 60).convert("RGB").save(photo)
    runs = two_runs(tmp_path, Made(prompts=PROMPTS[:1], image_seeds=[0]), inputs={str(photo): sha256_file(photo)})
    for run in runs:
        for file in (run.folder / "samples" / "step_000100").glob("prompt*.png"):
            Image.effect_noise((512, 512), 60).convert("RGB").save(file)
    data, _ = write(tmp_path, runs)
    assert pixels(data["references"][0])[0] == (512, 384)
    for image in data["images"].values():
        assert (
            pixels(image)[0] == (512, 512) and not image["small"] and image["src"].startswith("data:image/jpeg;base64,")
        )


def test_images_of_a_few_pixels_are_embedded_as_they_are(tmp_path: Path) -> None:
    data, _ = write(tmp_path, two_runs(tmp_path))
    for image in (*data["images"].values(), *data["references"]):
        assert image["small"] and image["src"].startswith("data:image/png;base64,")


# Bad input


def test_a_run_is_not_compared_with_itself(tmp_path: Path) -> None:
    a, _ = two_runs(tmp_path)
    assert "compared with itself" in fails(a, a, page=tmp_path / "page.html")


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"/photos/other.png": "0" * 64}, "are not of the same subject photos"),
        ({}, "are not of the same subject photos"),
    ],
)
def test_runs_of_other_photos_are_refused(tmp_path: Path, inputs: dict[str, str], said: str) -> None:
    a, b = two_runs(tmp_path)
    change_json(b.folder / "manifest.json", lambda manifest: manifest.update(inputs=inputs))
    assert said in fails(a, read_run(b.folder), page=tmp_path / "page.html")


def test_runs_that_record_no_photos_are_refused(tmp_path: Path) -> None:
    assert "do not say which photos" in fails(*two_runs(tmp_path, inputs={}), page=tmp_path / "page.html")


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({"evaluation.prompts": ["a {token} {class} under the sea"]}, "no evaluation prompt in common"),
        ({"subject.class_noun": "teapot"}, "no evaluation prompt in common"),
        ({"evaluation.seeds": [7, 8]}, "no image seed in common"),
    ],
)
def test_runs_without_a_common_prompt_and_seed_are_refused(tmp_path: Path, second: dict[str, Any], said: str) -> None:
    assert said in fails(*two_runs(tmp_path, second=second), page=tmp_path / "page.html")


def test_runs_whose_images_do_not_meet_are_refused(tmp_path: Path) -> None:
    a, b = two_runs(tmp_path)
    for run, index in ((a, 0), (b, 1)):
        for file in (run.folder / "samples" / "step_000100").glob(f"prompt0{index}*.png"):
            file.unlink()
    assert "no sample image of the same prompt and seed" in fails(a, b, page=tmp_path / "page.html")


@pytest.mark.parametrize("made", [Made(images=False), Made(samples=False)])
def test_runs_without_sample_images_are_refused(tmp_path: Path, made: Made) -> None:
    assert "has no sample images in samples/step_000100" in fails(
        *two_runs(tmp_path, made), page=tmp_path / "page.html"
    )


def test_a_run_that_was_never_scored_is_refused(tmp_path: Path) -> None:
    a, b = two_runs(tmp_path)
    (b.folder / "metrics.jsonl").unlink()
    assert "has no scored checkpoint" in fails(a, read_run(b.folder), page=tmp_path / "page.html")


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    a, b = two_runs(tmp_path)
    (b.folder / "samples" / "step_000100" / "prompt01_seed1.png").write_bytes(b"not a picture")
    assert "prompt01_seed1.png" in fails(a, b, page=tmp_path / "page.html")


def test_nothing_of_the_user_becomes_markup(tmp_path: Path) -> None:
    made = Made(
        prompts=['</script><script>window.hacked = 1</script> a {token} {class} & "more"', "<!-- a {token} {class}"]
    )
    runs = two_runs(tmp_path, made, second={})
    for run in runs:
        run.config["subject"]["class_noun"] = "<img src=x onerror=hacked()>"
    data, _ = write(tmp_path, runs)
    text = (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")
    assert text.count("<script") == 2 and text.count("</script>") == 2
    assert "<!-- a" not in text and "<img src=x" not in text
    assert "photos of this &lt;img src=x onerror=hacked()&gt;" in text
    wanted = '</script><script>window.hacked = 1</script> a <img src=x onerror=hacked()> & "more"'
    assert wanted in {item.get("prompt") for item in data["questions"]}


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


class Rater:
    """A browser tab with the page, watched for everything that should not happen."""

    def __init__(self, browser: Any, page: Path, **context: Any):
        self.context = browser.new_context(viewport={"width": 1280, "height": 800}, **context)
        self.context.set_default_timeout(10_000)
        self.tab = self.context.new_page()
        self.complaints: list[str] = []
        self.tab.on("console", lambda message: self.complaints.append(message.text))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("request", lambda request: self._watch(request.url))
        self.questions = page_data(page)["questions"]
        self.url = page.resolve().as_uri()
        self.tab.goto(self.url)

    def _watch(self, url: str) -> None:
        if url != self.url and not url.startswith(("data:", "blob:")):
            self.complaints.append(url)

    def begin(self, name: str = "Anna") -> None:
        self.tab.fill("#rater", name)
        self.tab.press("#rater", "Enter")
        self.at(0)

    def at(self, index: int) -> None:
        """Wait until the images of a question can be seen."""
        self.tab.wait_for_selector(f'#ask[data-ready="{index}"]')

    def answer(self, *keys: str, start: int = 0) -> None:
        for index, key in enumerate(keys, start):
            self.at(index)
            self.tab.keyboard.press(key)

    def export(self, folder: Path) -> Path:
        with self.tab.expect_download() as download:
            self.tab.click("#export")
        path = folder / download.value.suggested_filename
        download.value.save_as(path)
        return path


KEYS = ["ArrowLeft", "ArrowRight", "ArrowDown", "Space", "ArrowLeft", "ArrowRight", "ArrowLeft", "ArrowLeft"]
MEANT = {"ArrowLeft": "left", "ArrowRight": "right", "ArrowDown": "undecided", "Space": "undecided"}


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "out" / "compare.html"
    write_comparison(*two_runs(tmp_path), path)
    return path


def test_votes_cast_with_the_keyboard_are_read_back(browser: Any, page: Path) -> None:
    rater = Rater(browser, page)
    rater.begin("Ann  O'Hara / 1")
    rater.answer(*KEYS)
    rater.tab.wait_for_selector("#done:not([hidden])")
    assert "8 of 8" in rater.tab.inner_text("#tally")
    file = rater.export(page.parent)
    assert file.name == f"votes-{page_data(page)['study']}-Ann_O_Hara_1.json"
    exported = json.loads(file.read_text(encoding="utf-8"))
    cast = [(item["pair"], item["question"], MEANT[key]) for item, key in zip(rater.questions, KEYS, strict=True)]
    assert [(vote["pair"], vote["question"], vote["answer"]) for vote in exported["votes"]] == cast
    key = json.loads(key_path(page).read_text(encoding="utf-8"))
    human = read_votes([file])
    assert human.raters == ("Ann O'Hara / 1",)
    for result in human.questions:
        won = []
        for pair, question, answer in cast:
            if question == result.question:
                left = key["pairs"][pair]["left"][question]
                won.append({"left": left, "right": "ab".replace(left, "")}.get(answer, "neither"))
        assert (result.wins_a, result.wins_b, result.undecided) == tuple(map(won.count, ("a", "b", "neither")))
    assert rater.complaints == []


def test_backspace_goes_back_and_the_answer_can_be_changed(browser: Any, page: Path) -> None:
    rater = Rater(browser, page)
    rater.begin()
    rater.answer("ArrowLeft", "ArrowLeft", "ArrowRight")
    rater.at(3)
    rater.tab.keyboard.press("Backspace")
    rater.at(2)
    assert rater.tab.get_attribute("#right", "aria-pressed") == "true"
    assert rater.tab.get_attribute("#left", "aria-pressed") == "false"
    rater.tab.keyboard.press("Backspace")
    rater.at(1)
    rater.tab.keyboard.press("ArrowDown")
    rater.at(3)  # the question after it keeps its answer
    rater.answer(*KEYS[3:], start=3)
    rater.tab.wait_for_selector("#done:not([hidden])")
    rater.tab.keyboard.press("Backspace")
    rater.at(7)
    rater.tab.keyboard.press("ArrowRight")
    rater.tab.wait_for_selector("#done:not([hidden])")
    votes = json.loads(rater.export(page.parent).read_text(encoding="utf-8"))["votes"]
    wanted = ["left", "undecided", "right", *(MEANT[key] for key in KEYS[3:7]), "right"]
    assert [vote["answer"] for vote in votes] == wanted
    assert rater.complaints == []


def test_a_reload_goes_on_where_it_was_and_a_later_export_replaces_the_earlier(browser: Any, page: Path) -> None:
    rater = Rater(browser, page)
    rater.begin()
    rater.answer("ArrowLeft", "ArrowRight", "ArrowDown")
    rater.at(3)
    rater.tab.reload()
    rater.at(3)
    assert rater.tab.inner_text("#count") == "Question 4 of 8"
    rater.tab.click("#pause")
    early = rater.export(page.parent).rename(page.parent / "votes-early.json")
    rater.tab.click("#resume")
    rater.answer(*KEYS[3:], start=3)
    rater.tab.wait_for_selector("#done:not([hidden])")
    rater.tab.reload()
    rater.tab.wait_for_selector("#done:not([hidden])")
    late = rater.export(page.parent)
    human = read_votes([late, early])
    assert human.raters == ("Anna",) and human == read_votes([late])
    assert sum(result.items for result in human.questions) == 8
    assert sum(result.items for result in read_votes([early]).questions) == 3
    rater.tab.on("dialog", lambda dialog: dialog.accept())
    rater.tab.click("#another")
    rater.begin("Berta")
    rater.answer(*KEYS)
    rater.tab.wait_for_selector("#done:not([hidden])")
    assert read_votes([rater.export(page.parent), late]).raters == ("Anna", "Berta")
    assert rater.complaints == []


def test_another_study_does_not_meet_these_answers(browser: Any, page: Path, tmp_path: Path) -> None:
    rater = Rater(browser, page)
    rater.begin()
    rater.answer("ArrowLeft")
    other = tmp_path / "other.html"
    shutil.rmtree(tmp_path / "study")
    write_comparison(*two_runs(tmp_path), other, seed=1)
    rater.tab.goto(other.as_uri())
    rater.tab.wait_for_selector("#start:not([hidden])")
    rater.tab.goto(rater.url)
    rater.at(1)


def test_no_vote_is_cast_by_accident(browser: Any, page: Path) -> None:
    rater = Rater(browser, page)
    tab = rater.tab
    tab.focus("#rater")
    for key in ("x", "ArrowLeft", "Space", "y", "Backspace"):
        tab.keyboard.press(key)
    assert tab.input_value("#rater").replace(" ", "") == "x"  # typed, not voted: the arrow moved the cursor
    rater.begin()
    assert tab.inner_text("#count") == "Question 1 of 8"
    tab.keyboard.down("ArrowLeft")
    rater.at(1)
    tab.keyboard.down("ArrowLeft")  # the same key, still held
    tab.keyboard.up("ArrowLeft")
    tab.keyboard.press("Control+ArrowLeft")
    tab.keyboard.press("k")
    tab.click("#right")
    rater.at(2)
    tab.keyboard.press("Space")  # after a click on an image the space bar is still "cannot tell"
    rater.at(3)
    tab.focus("#right")
    tab.keyboard.press("Space")  # but who walks the buttons with Tab presses the one that has the focus
    rater.at(4)
    tab.click("#pause")
    votes = json.loads(rater.export(page.parent).read_text(encoding="utf-8"))["votes"]
    assert [vote["answer"] for vote in votes] == ["left", "right", "undecided", "right"]
    assert rater.complaints == []


def test_the_clipboard_gets_what_the_file_holds(browser: Any, page: Path) -> None:
    rater = Rater(browser, page, permissions=["clipboard-read", "clipboard-write"])
    rater.begin()
    rater.answer(*KEYS)
    rater.tab.wait_for_selector("#done:not([hidden])")
    rater.tab.click("#copy")
    rater.tab.wait_for_selector("#status:not(:empty)")  # wait_for_function needs eval, which the page forbids
    assert "Copied" in rater.tab.inner_text("#status")
    pasted = page.parent / "pasted.json"
    pasted.write_text(rater.tab.evaluate("navigator.clipboard.readText()"), encoding="utf-8")
    assert read_votes([pasted]) == read_votes([rater.export(page.parent)])


def test_without_storage_and_clipboard_the_rater_is_told_and_can_still_hand_in(browser: Any, page: Path) -> None:
    rater = Rater(browser, page)
    rater.tab.add_init_script("""
        for (const name of ["getItem", "setItem", "removeItem"])
            Storage.prototype[name] = () => { throw new DOMException("denied") };
        Object.defineProperty(navigator, "clipboard", { value: undefined });
    """)
    rater.tab.reload()
    rater.begin()
    assert "does not keep answers" in rater.tab.inner_text("#banner")
    rater.answer(*KEYS)
    rater.tab.click("#copy")
    rater.tab.wait_for_selector("#text:not([hidden])")
    by_hand = page.parent / "by_hand.json"
    by_hand.write_text(rater.tab.input_value("#text"), encoding="utf-8")
    assert sum(result.items for result in read_votes([by_hand]).questions) == 8
    assert rater.complaints == []


def test_a_script_in_a_prompt_is_only_shown(browser: Any, tmp_path: Path) -> None:
    prompt = "</script><script>window.hacked = 1</script><img src=x onerror='hacked = 1'> a {token} {class}"
    page = tmp_path / "compare.html"
    write_comparison(*two_runs(tmp_path, Made(prompts=[prompt], image_seeds=[0])), page)
    rater = Rater(browser, page)
    rater.begin("<b>Eve</b>")
    texts = []
    for index in range(2):
        rater.at(index)
        if rater.questions[index]["question"] == "prompt":
            assert not rater.tab.is_visible("#references")
            texts.append(rater.tab.inner_text("#prompt"))
        else:
            assert rater.tab.is_visible("#references") and not rater.tab.is_visible("#prompt")
        rater.tab.keyboard.press("ArrowLeft")
    assert texts == [prompt.replace("{token} {class}", "robot")]
    assert "<b>Eve</b>: 2 of 2" in rater.tab.inner_text("#tally")
    assert rater.tab.evaluate("typeof window.hacked") == "undefined"
    assert rater.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_legible_in_the_dark_and_in_the_light_and_fits_the_screen(
    browser: Any, page: Path, scheme: str
) -> None:
    rater = Rater(browser, page, color_scheme=scheme)
    rater.begin()
    style = "getComputedStyle(document.querySelector('{}'))"
    paper = rater.tab.evaluate(style.format("body") + ".backgroundColor")
    assert paper == {"light": "rgb(247, 246, 243)", "dark": "rgb(22, 23, 26)"}[scheme]
    for selector in ("#question", "#hint", "#chip", "#count", "#back", "figcaption"):
        ink = rater.tab.evaluate(style.format(selector) + ".color")
        assert contrast(ink, paper) >= 4.5, selector  # WCAG 2.2, level AA
    assert rater.tab.evaluate(style.format("#left-image") + ".imageRendering") == "pixelated"
    width, height = rater.tab.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
    assert (width, height) == (1280, 800)
    box = rater.tab.locator("#left-image").bounding_box()
    assert box["width"] == box["height"] >= 350


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours by WCAG 2.2, from 1 to 21."""

    def luminance(colour: str) -> float:
        channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)

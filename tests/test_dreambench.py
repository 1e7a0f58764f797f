"""The DreamBooth data set: what is read, what is refused and where, what ships, and its table in a report."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from boothlab.building.photos import build_subject
from boothlab.cache import Cache
from boothlab.compose.run import compose
from boothlab.compose.schemas import conf_dir
from boothlab.compose.typed import load
from boothlab.config import SubjectConfig, TrainConfig
from boothlab.errors import UserError
from boothlab.images.dreambench import (
    DATASET,
    PROMPTS,
    REFERENCES,
    images_of,
    parse_dreambench,
    read_dreambench,
    read_references,
    shipped_root,
    subject_of,
)
from boothlab.images.load import read_image
from boothlab.reporting.dreambench import Benchmark, benchmarks_of
from boothlab.reporting.markdown import to_markdown
from boothlab.reporting.page import write_page
from boothlab.reporting.study import build_study
from report_runs import Made, make_runs

TEXT = (shipped_root() / DATASET / PROMPTS).read_text(encoding="utf-8")
LINES = TEXT.splitlines()
SHIPPED = ("bear_plushie", "dog", "robot_toy")


def changed(number: int, *lines: str) -> str:
    """The published file with one line, counted from 1, replaced by others."""
    return "\n".join([*LINES[: number - 1], *lines, *LINES[number:]])


def checkout(root: Path, *subjects: str, text: str = TEXT) -> Path:
    """A data set of tiny pictures in the published layout."""
    (root / DATASET).mkdir(parents=True)
    (root / DATASET / PROMPTS).write_text(text, encoding="utf-8")
    picture = (shipped_root() / DATASET / "dog" / "00.jpg").read_bytes()
    for name in subjects:
        (root / DATASET / name).mkdir()
        (root / DATASET / name / "00.jpg").write_bytes(picture)
    return root


def test_what_ships_is_as_published() -> None:
    bench = read_dreambench(shipped_root())
    assert (len(bench.classes), sum(map(bench.is_live, bench.classes))) == (30, 9)
    assert (len(bench.object_prompts), len(bench.live_prompts)) == (25, 25)
    assert bench.object_prompts[0] == bench.live_prompts[0] == "a {token} {class} in the jungle"
    assert (bench.object_prompts[24], bench.live_prompts[19]) == (
        "a cube shaped {token} {class}",
        "a {token} {class} in a purple wizard outfit",
    )
    assert bench.classes["grey_sloth_plushie"] == "stuffed animal"
    assert tuple(bench.present) == SHIPPED
    assert len(set(bench.object_prompts) & set(bench.live_prompts)) == 15


def test_the_shipped_photos_are_small_credited_and_without_metadata() -> None:
    data = shipped_root()
    credits = read_references(data / DATASET / REFERENCES, read_dreambench(data).classes)
    written = (data / "CREDITS.md").read_text(encoding="utf-8")
    paths = [path for name in SHIPPED for path in sorted((data / DATASET / name).iterdir())]
    assert len(paths) == 15 and sum(path.stat().st_size for path in paths) < 1.5e6
    assert {max(read_image(path).image.size) for path in paths} == {512}
    assert not any(b"Exif" in path.read_bytes() for path in paths)
    assert credits["robot_toy"] == "Photos taken by Varun Jampani"
    assert "https://unsplash.com/photos/1N2N_MBXdk0" in credits["dog"] and "@alvannee" in credits["dog"]
    for words in ("1N2N_MBXdk0", "@alvannee", "Nataniel Ruiz", "Varun Jampani", "CC BY 4.0", "Unsplash licence"):
        assert words in written
    assert credits.keys() == read_dreambench(data).classes.keys()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_subject_composes_with_the_papers_prompts(name: str) -> None:
    bench = read_dreambench(shipped_root())
    backbone = "sd15" if name == "dog" else "dollhouse"
    config, _ = load(compose("train", [f"backbone={backbone}", f"subject={name}"]), TrainConfig)
    assert tuple(config.evaluation.prompts) == bench.prompts_of(name)
    assert (config.subject.images, config.subject.class_noun) == (f"dreambench:{name}", bench.classes[name])


def test_prompts_can_be_chosen_apart_from_the_subject() -> None:
    back, _ = load(compose("train", ["subject=dog", "prompt_set=recipe"]), TrainConfig)
    assert back.evaluation.prompts == load(compose("train"), TrainConfig)[0].evaluation.prompts
    other, _ = load(compose("train", ["prompt_set=dreambooth_live"]), TrainConfig)
    assert tuple(other.evaluation.prompts) == read_dreambench(shipped_root()).live_prompts


def test_the_prompt_lists_of_conf_are_those_of_the_data_set() -> None:
    bench = read_dreambench(shipped_root())
    for name, prompts in (("dreambooth_live", bench.live_prompts), ("dreambooth_objects", bench.object_prompts)):
        found = yaml.safe_load((conf_dir() / "prompt_set" / f"{name}.yaml").read_text(encoding="utf-8"))
        assert tuple(found["evaluation"]["prompts"]) == prompts
    recipe = yaml.safe_load((conf_dir() / "recipe" / "sd15.yaml").read_text(encoding="utf-8"))
    assert tuple(recipe["evaluation"]["prompts"]) == bench.object_prompts


@pytest.mark.parametrize("below", [(), (DATASET,)])
def test_a_checkout_is_read_from_its_top_and_from_its_dataset_folder(tmp_path: Path, below: tuple[str, ...]) -> None:
    root = checkout(tmp_path / "my data", "cat2", "vase").joinpath(*below)
    assert images_of(root) == [f"dreambench:{root.as_posix()}/cat2", f"dreambench:{root.as_posix()}/vase"]
    subject = subject_of(f"dreambench:{root}/cat2")
    assert subject is not None
    assert (subject.name, subject.class_noun, subject.live, len(subject.prompts)) == ("cat2", "cat", True, 25)
    assert subject.folder == tmp_path / "my data" / DATASET / "cat2"
    config = SubjectConfig(f"dreambench:{root}/cat2", class_noun="cat", instance_prompt="a sks cat")
    built = build_subject(config, Cache(tmp_path / "cache"))
    assert [item.image.size for item in built.items] == [(512, 512)]
    vase, _ = load(compose("train", ["subject=dreambench", f"subject.images='dreambench:{root}/vase'"]), TrainConfig)
    assert (vase.subject.class_noun, vase.evaluation.prompts[10]) == (
        "vase",
        "a {token} {class} with a wheat field in the background",
    )


def test_a_folder_is_no_subject_of_the_data_set() -> None:
    assert subject_of("photos") is None and subject_of("dollhouse:robot/1") is None


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    root = checkout(tmp_path / "data", "vase")
    assert read_dreambench(root).classes["vase"] == "vase"
    (root / DATASET / PROMPTS).write_text(TEXT.replace("vase,vase", "vase,flower vase"), encoding="utf-8")
    assert read_dreambench(root).classes["vase"] == "flower vase"


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("dreambench:nope", "there are no photos of such a subject; there are bear_plushie, dog, robot_toy, or write"),
        ("dreambench:vase", "there are no photos of such a subject"),
        ("dreambench:", "there are no photos of such a subject"),
        ("dreambench:{root}/cat2", "there are no photos of such a subject; there are vase"),
        ("dreambench:{root}/../dataset/..", "holds no prompts_and_classes.txt; give a checkout"),
        ("dreambench:/nowhere/dog", "/nowhere: holds no prompts_and_classes.txt; give a checkout"),
    ],
)
def test_a_subject_that_is_not_there_is_refused_in_one_line(tmp_path: Path, images: str, message: str) -> None:
    root = checkout(tmp_path / "data", "vase")
    with pytest.raises(UserError) as caught:
        subject_of(images.format(root=root))
    assert message in str(caught.value) and "\n" not in str(caught.value)


HEADER, FIRST_PROMPT = LINES.index("subject_name,class") + 1, LINES.index("prompt_list = [") + 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "file: no line says 'subject_name,class'"),
        (changed(HEADER + 3, "berry_bowl;bowl"), f"file line {HEADER + 3}: 'berry_bowl;bowl' is not `subject,class`"),
        (changed(HEADER + 3, "../dog,dog"), f"file line {HEADER + 3}: '../dog,dog' is not `subject,class`"),
        (changed(HEADER + 2, "backpack,bag"), f"file line {HEADER + 2}: the subject backpack is there twice"),
        (changed(HEADER, "subject_name,class", ""), f"file line {HEADER}: no subject follows"),
        (changed(FIRST_PROMPT, "'a {0} in the jungle'.format(unique_token, class_token),"), f"line {FIRST_PROMPT}: "),
        (changed(FIRST_PROMPT, "'a {0} {1} {2}'.format(unique_token, class_token),"), f"line {FIRST_PROMPT}: "),
        (
            changed(FIRST_PROMPT, "a {0} {1} in the jungle"),
            f"line {FIRST_PROMPT}: 'a {{0}} {{1}} in the jungle' is not",
        ),
        (changed(FIRST_PROMPT + 1, LINES[FIRST_PROMPT - 1]), f"line {FIRST_PROMPT + 1}: the prompt is there twice"),
        (changed(FIRST_PROMPT), f"line {FIRST_PROMPT + 24}: 'Object Prompts' has 24 prompts, not 25"),
        (changed(FIRST_PROMPT - 1, "prompts:"), f"line {FIRST_PROMPT - 1}: `prompt_list = [` is expected after"),
        (TEXT.rpartition("]")[0], "this list has no end"),
        (TEXT + "\nObject Prompts\n", "'Object Prompts' is there twice"),
    ],
)
def test_what_is_not_as_published_is_named_with_its_line(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_dreambench(text, Path("folder"), "file")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    root = checkout(tmp_path / "data")
    (root / DATASET / PROMPTS).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not UTF-8 text"):
        read_dreambench(root)
    with pytest.raises(UserError, match=r"REFS: cannot be read"):
        read_references(tmp_path / "REFS", ["dog"])


@given(st.lists(st.sampled_from([*LINES, "]", "prompt_list = [", "Licenses", "dog2,dog", "é{", ""]), max_size=90))
def test_any_order_of_its_lines_is_read_or_refused(lines: list[str]) -> None:
    try:
        bench = parse_dreambench("\n".join(lines), Path("folder"), "file")
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert len(bench.live_prompts) == 25


@given(st.text(max_size=300))
def test_any_text_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_dreambench(text, Path("folder"), "file")
    assert "\n" not in str(caught.value)


def test_credits_are_read_by_subject(tmp_path: Path) -> None:
    path = tmp_path / "references.txt"
    path.write_text(
        "Owners:\nA, B\n\ndog: \n(credit: x)\n00: y\n\nvase: Photos by C\nLicenses\ndog: no\n", encoding="utf-8"
    )
    assert read_references(path, ["dog", "vase"]) == {"dog": "(credit: x); 00: y", "vase": "Photos by C"}
    with pytest.raises(UserError, match="credits nobody for cat"):
        read_references(path, ["dog", "cat"])
    path.write_text("dog: a\ndog: b\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 2: the subject dog is there twice"):
        read_references(path, ["dog"])


# --- the report ---------------------------------------------------------------------------------------------------


def settings_of(*names: str, **more: Any) -> list[dict[str, Any]]:
    bench = read_dreambench(shipped_root())
    return [
        {
            "subject.images": f"dreambench:{name}",
            "subject.class_noun": bench.classes[name],
            "subject.instance_prompt": f"a photo of a sks {bench.classes[name]}",
            "prior.class_prompt": f"a photo of a {bench.classes[name]}",
            **more,
        }
        for name in names
    ]


def by_subject(config: Any, seed: int, step: int) -> dict[str, float]:
    """DINO .5 for the dog, .7 for the others, a tenth more with the second seed; everything else as it may be."""
    base = 0.5 if config["subject"]["class_noun"] == "dog" else 0.7
    dino = 0.1 if step == 0 else base + 0.1 * seed
    return {"clip_i": 0.6, "dino": dino, "clip_t": 0.3, "balanced": 0.5, "div": 0.4, "pres": 0.2}


def benchmarks(root: Path) -> list[Benchmark]:
    study = build_study([root])
    return [one for group in study.groups for one in benchmarks_of(study.runs, group, study.varied)]


def test_the_headline_is_the_mean_of_subject_means(tmp_path: Path) -> None:
    root = make_runs(tmp_path, settings_of("dog", "bear_plushie", "robot_toy"), seeds=(0, 1), scores=by_subject)
    (found,) = benchmarks(root)
    assert [(row.name, row.live, row.seeds) for row in found.rows] == [
        ("bear_plushie", False, 2),
        ("dog", True, 2),
        ("robot_toy", False, 2),
    ]
    assert [row.scores["dino"] for row in found.rows] == pytest.approx([0.75, 0.55, 0.75])
    assert found.headline["dino"].mean == pytest.approx((0.75 + 0.55 + 0.75) / 3)
    assert found.scores == ("dino", "clip_i", "clip_t", "div", "pres")
    assert found.real["dino"] == pytest.approx(0.91)
    assert found.coverage.startswith("3 of 30 subjects, ") and "2 training seeds a subject" in found.coverage
    assert any("do not compare, not even roughly" in note for note in found.notes)


def test_in_the_pooled_mean_every_pair_counts_once(tmp_path: Path) -> None:
    root = make_runs(tmp_path, settings_of("dog", "robot_toy"), seeds=(0,), scores=by_subject)
    assert benchmarks(root)[0].pooled["dino"] is None  # these runs do not say how many pairs there were
    for path in root.glob("*/samples/*/metrics.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        dog = json.loads((path.parents[2] / "manifest.json").read_text())["config"]["subject"]["class_noun"] == "dog"
        for row in content["metrics"]:
            row["counts"]["pairs"] = 100 if dog else 300
        path.write_text(json.dumps(content), encoding="utf-8")
    (found,) = benchmarks(root)
    assert found.pooled["dino"] == pytest.approx((0.5 * 100 + 0.7 * 300) / 400)
    assert found.headline["dino"].mean == pytest.approx(0.6)


def test_settings_stay_apart(tmp_path: Path) -> None:
    both = [*settings_of("dog", "robot_toy"), *settings_of("dog", "robot_toy", **{"lora.rank": 8})]
    root = make_runs(tmp_path, both, seeds=(0,), scores=by_subject, made=Made(suffix=""))
    first, second = benchmarks(root)
    assert {one.labels["lora.rank"] for one in (first, second)} == {"4", "8"}
    assert first.labels.keys() == {"lora.rank"}
    assert [len(one.rows) for one in (first, second)] == [2, 2]
    assert "says neither which CLIP" in first.notes[0]


def test_other_photos_have_no_such_table(tmp_path: Path) -> None:
    root = make_runs(tmp_path, [{}], seeds=(0,))
    assert benchmarks(root) == []
    assert "Beside the DreamBooth" not in to_markdown(build_study([root]))


def test_the_report_sets_it_beside_the_published_figures(tmp_path: Path) -> None:
    root = make_runs(tmp_path, settings_of(*SHIPPED), seeds=(0,), scores=by_subject)
    study = build_study([root])
    text = to_markdown(study)
    assert "## Beside the DreamBooth paper (dollhouse encoders)" in text
    assert "| DreamBooth, Stable Diffusion | DreamBooth paper | 0.668 | 0.803 | 0.305 | – | – |" in text
    assert "| **mean of per-subject means** | this report | 0.6333 ± 0.2868 |" in text
    assert "> - ours are scored with the dollhouse encoders" in text
    write_page(study, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<section id="dreambench"' in page and "Textual Inversion, Stable Diffusion" in page

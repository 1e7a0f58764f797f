"""Edits as data: files of edits, safe names, series, and the tasks of a folder of photos."""

import json
import math
import os
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from boothlab.editing import edit_file
from boothlab.editing.edits import SETTINGS, Edit, EditRow, EditTask, read_edits
from boothlab.editing.folder_tasks import folder_tasks
from boothlab.editing.names import inside, is_safe, safe_name, unique_names
from boothlab.editing.series import check_series
from boothlab.errors import UserError
from boothlab.files import sha256_file

EVERYTHING = """\
edits:
  - name: at_night
    instruction: make it night
    source_caption: a hotel room in daylight
    target_caption: "{caption}, at night"
    changes: {time: night, floor: 3}
    mask: masks/{image}.png
    images: ["a*.png", b.jpg]
    strength: 0.6
    steps: 30
    guidance_scale: 7
    image_guidance_scale: 1.5
    seed: 11
  - {name: lamp_on, instruction: turn on the lamp, image: a.png, changes: {lamp: on}}
"""


def file(folder: Path, text: str | bytes, name: str = "edits.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and message.isprintable()
    return message


def test_a_file_of_edits_says_everything(tmp_path: Path) -> None:
    night, lamp = read_edits(file(tmp_path, EVERYTHING))
    assert night == EditRow(
        Edit(
            name="at_night",
            instruction="make it night",
            source_caption="a hotel room in daylight",
            target_caption="{caption}, at night",
            changes={"time": "night", "floor": "3"},
            mask=Path("masks/{image}.png"),
            settings={"strength": 0.6, "steps": 30, "guidance_scale": 7.0, "image_guidance_scale": 1.5, "seed": 11},
        ),
        images=("a*.png", "b.jpg"),
        place="edits.yaml, row 1 (line 2)",
    )
    assert isinstance(night.edit.settings["steps"], int) and isinstance(night.edit.settings["guidance_scale"], float)
    assert lamp.images == ("a.png",) and lamp.place == "edits.yaml, row 2 (line 14)"
    assert lamp.edit.changes == {"lamp": "on"}  # to PyYAML alone that is {"lamp": True}


def test_all_kinds_of_file_say_the_same(tmp_path: Path) -> None:
    rows = [{"name": "a", "instruction": "make it red"}, {"name": "b", "instruction": "make it blue", "seed": 3}]
    lines = "".join(json.dumps(row) + "\n\n" for row in rows)
    files = [
        file(tmp_path, yaml.safe_dump(rows)),
        file(tmp_path, yaml.safe_dump({"edits": rows}).encode("utf-8-sig"), "bom.yml"),
        file(tmp_path, json.dumps(rows).encode("utf-16"), "utf16.json"),
        file(tmp_path, json.dumps({"edits": rows}), "mapped.JSON"),
        file(tmp_path, lines.replace("\n", "\r\n"), "lines.jsonl"),
        file(tmp_path, "\ufeff" + lines, "bom.ndjson"),
    ]
    assert [[row.values() for row in read_edits(path)] for path in files] == [rows] * len(files)


def test_left_out_are_a_name_and_an_instruction(tmp_path: Path) -> None:
    rows = read_edits(file(tmp_path, "- instruction: make it night!\n- target_caption: a bed |at dusk\n"))
    assert [(row.edit.name, row.edit.instruction) for row in rows] == [
        ("make_it_night", "make it night!"),
        ("a_bed_at_dusk", "a bed |at dusk"),
    ]


def test_white_space_and_control_characters_are_no_part_of_a_text(tmp_path: Path) -> None:
    rows = read_edits(
        file(tmp_path, '- name: a\n  instruction: |\n    make it\n    night\n  target_caption: "x\\e[31m"\n')
    )
    assert (rows[0].edit.instruction, rows[0].edit.target_caption) == ("make it night", "x[31m")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{name: a, instuction: x}", "row 1 (line 1): unknown key 'instuction'; did you mean 'instruction'?"),
        ("{name: a, instruction: x, foo: 1}", "unknown key 'foo'; the keys are name, instruction,"),
        ("{name: a}", "neither an instruction nor a target_caption"),
        ("{name: 12, instruction: x}", "name must be a text, got 12; put it in quotes"),
        ("{name: a, instruction: [x]}", "instruction must be a text, got a list"),
        ("{name: a, instruction: '  '}", "instruction is empty"),
        ("{name: a, instruction: x, steps: 2.5}", "steps must be a whole number from 1 to 1000, got 2.5"),
        ("{name: a, instruction: x, steps: 0}", "steps must be a whole number from 1 to 1000, got 0"),
        ("{name: a, instruction: x, steps: true}", "steps must be a whole number"),
        ("{name: a, instruction: x, strength: 0}", "strength must be a number above 0 and at most 1, got 0"),
        ("{name: a, instruction: x, strength: .nan}", "strength must be a number above 0 and at most 1, got nan"),
        ("{name: a, instruction: x, strength: '0.5'}", "strength must be a number above 0 and at most 1, got '0.5'"),
        ("{name: a, instruction: x, guidance_scale: .inf}", "guidance_scale must be a number from 0 to 1000, got inf"),
        ("{name: a, instruction: x, seed: -1}", "seed must be a whole number from 0 to"),
        (f"{{name: a, instruction: x, seed: {10**400}}}", "got a huge number"),
        ("{name: a, instruction: x, changes: night}", "changes must be a mapping such as {time: night}, got 'night'"),
        ("{name: a, instruction: x, changes: {time: [x]}}", "changes.time must be a text, got a list"),
        ("{name: a, instruction: x, image: a.png, images: [b.png]}", "has image and images"),
        ("{name: a, instruction: x, images: []}", "images is an empty list"),
        ("{name: a, instruction: x, image: ../a.png}", "names a path, ../a.png"),
        ("{name: a, instruction: x, mask: ../a.png}", "the mask ../a.png lies outside the folder"),
        ("{name: a, instruction: x, mask: /etc/passwd}", "the mask /etc/passwd lies outside"),
        ('{name: a, instruction: x, mask: "C:\\\\a.png"}', "lies outside"),
        ("{name: a, instruction: x, mask: '{name}.png'}", "unknown {name}; it may have {image}"),
        ("{name: a, instruction: x, target_caption: '{captoin}'}", "unknown {captoin}; it may have {caption}"),
        ("{name: a, instruction: 'x {caption}'}", "instruction has {caption}, which only target_caption may have"),
        ("just a text", "an edit is a mapping with a name and an instruction, got 'just a text'"),
        ("{name: a, name: b, instruction: x}", "line 1: the key 'name' is there twice"),
        ("!!python/object/apply:os.system [ls]", "the tag !!python/object/apply:os.system is not allowed"),
        ("{name: !secret a, instruction: x}", "the tag !secret is not allowed"),
        ("{name: !!int x, instruction: x}", "'x' cannot be read as a int"),
        ("{name: [a, instruction: x}", "edits.yaml is not valid YAML (line 1:"),
        ("{? [a] : b}", "a key must be a word"),
        ("{<<: {name: a}, instruction: x}", "unknown key '<<'"),
        ("[" * 20 + "]" * 20, "nested too deeply"),
        ("[" * 400, "nested too deeply"),
    ],
)
def test_a_bad_row_is_explained_in_one_line(row: str, said: str, tmp_path: Path) -> None:
    path = file(tmp_path, f"- {row}\n")
    assert said in refusal(lambda: read_edits(path))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("edits.yaml", "", "holds no edits"),
        ("edits.yaml", "# nothing yet\n", "holds no edits"),
        ("edits.jsonl", "\n \n", "holds no edits"),
        ("edits.json", "[]", "holds no edits"),
        ("edits.yaml", "edits:\n", "holds no edits"),
        ("edits.yaml", "edits: night\n", "expected a list of edits, got a text"),
        ("edits.yaml", "edits: []\nmethod: x\n", "the key 'method' beside it"),
        ("edits.yaml", "{}", "found nothing"),
        ("edits.yaml", "- a: 1\n---\n- b: 2\n", "is not valid YAML (line 2:"),
        ("edits.txt", "- name: a\n", "is no file of edits by its ending; use .yaml, .yml, .json or .jsonl"),
        ("edits.json", '[{"name": "a"', "edits.json is not valid JSON"),
        ("edits.jsonl", '{"name": "a", "instruction": "x"}\n{"name": "b", "instr', "edits.jsonl, line 2 is not valid"),
        ("edits.jsonl", '{"name": "a", "instruction": "x", "strength": NaN}', "NaN is no JSON number"),
        ("edits.jsonl", '{"name": "a", "name": "b"}', "line 1 is not valid JSON (the key 'name' is there twice)"),
        ("edits.jsonl", '{"name": "a", "instruction": "\\ud800"}', "holds half a character"),
        ("edits.jsonl", "[" * 100_000, "nested too deeply"),
        ("edits.yaml", b"- name: caf\xe9\n", "is not UTF-8 text; save it as UTF-8"),
        ("edits.yaml", "- name: a".encode("utf-16-le"), "holds null characters"),
        ("edits.yaml", b"\xff\xfe\x00", "is not UTF-8 text"),
    ],
)
def test_a_bad_file_is_explained_in_one_line(name: str, text: str | bytes, said: str, tmp_path: Path) -> None:
    path = file(tmp_path, text, name)
    assert said in refusal(lambda: read_edits(path))


def test_a_file_that_is_not_there_is_explained(tmp_path: Path) -> None:
    assert "does not exist" in refusal(lambda: read_edits(tmp_path / "none.yaml"))
    assert "is a folder" in refusal(lambda: read_edits(tmp_path))
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.yaml")  # reading it would never end
        assert "is no ordinary file" in refusal(lambda: read_edits(tmp_path / "pipe.yaml"))


def test_a_name_is_taken_once_whatever_its_case(tmp_path: Path) -> None:
    path = file(tmp_path, "- {name: Night, instruction: x}\n- {name: night, instruction: y}\n")
    said = refusal(lambda: read_edits(path))
    assert said == (
        "edits.yaml, row 2 (line 2): the name 'night' is taken by edits.yaml, row 1 (line 1); give it another name"
    )


def test_aliases_are_allowed_and_a_bomb_of_them_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edit_file, "MAX_VALUES", 2000)
    fair = file(
        tmp_path, "- {name: a, instruction: x, changes: &c {time: night}}\n- {name: b, instruction: y, changes: *c}\n"
    )
    assert [row.edit.changes for row in read_edits(fair)] == [{"time": "night"}] * 2
    laughs = "a: &l0 [x, x]\n" + "".join(f"k{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]\n" for i in range(1, 12))
    assert "(*name) stand for more than 2000 values" in refusal(lambda: read_edits(file(tmp_path, laughs)))
    wide = "- &r {name: a, instruction: x, images: [" + "x," * 100 + "]}\n" + "- *r\n" * 40
    assert "(*name) stand for more than 2000 values" in refusal(lambda: read_edits(file(tmp_path, wide)))
    assert "nested too deeply" in refusal(lambda: read_edits(file(tmp_path, "- &a [*a]\n")))


NAMES = st.text(string.ascii_letters + string.digits, min_size=1, max_size=12)
TEXTS = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Cn", "Co"], exclude_characters="{}"), min_size=1, max_size=30
)
TEXTS = TEXTS.map(lambda text: " ".join(text.split())).filter(bool)
FILES = st.text(string.ascii_letters + "é夜 *?.[]", min_size=1, max_size=8).filter(lambda text: bool(text.strip()))
SETTING_VALUES = {
    "strength": st.floats(0, 1, exclude_min=True),
    "steps": st.integers(1, 1000),
    "guidance_scale": st.floats(0, 1000),
    "image_guidance_scale": st.floats(0, 1000),
    "seed": st.integers(0, 2**63 - 1),
}
ROWS = st.lists(
    st.fixed_dictionaries(
        {"name": NAMES.filter(is_safe), "instruction": TEXTS},
        optional={
            "source_caption": TEXTS,
            "target_caption": TEXTS,
            "changes": st.dictionaries(TEXTS, TEXTS, min_size=1, max_size=3),
            "mask": st.just("masks/{image}.png"),
            "images": st.lists(FILES, min_size=1, max_size=3),
            **SETTING_VALUES,
        },
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda row: str(row["name"]).casefold(),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS)
def test_what_is_written_is_read_back(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    for name, text in {
        "edits.yaml": yaml.safe_dump(rows, allow_unicode=True),
        "edits.json": json.dumps({"edits": rows}),
        "edits.jsonl": "\n".join(json.dumps(row, ensure_ascii=False) for row in rows),
    }.items():
        assert [row.values() for row in read_edits(file(tmp_path, text, name))] == rows


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["name", "instruction", "target_caption", "mask", "image", "images", "changes", *SETTINGS, "x"])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    value=st.lists(st.dictionaries(KEYS, VALUES, max_size=6), max_size=3) | VALUES,
    name=st.sampled_from(["e.json", "e.yaml"]),
)
def test_any_values_are_edits_or_a_user_error(value: Any, name: str, tmp_path: Path) -> None:
    check_never_a_traceback(file(tmp_path, json.dumps(value), name))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=60)
    | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | st.text("-: {}[]&*!|>\n\"'#?,ab1.~", max_size=40).map(str.encode),
    name=st.sampled_from(["e.json", "e.yaml", "e.jsonl"]),
)
def test_any_bytes_are_edits_or_a_user_error(data: bytes, name: str, tmp_path: Path) -> None:
    check_never_a_traceback(file(tmp_path, data, name))


def check_never_a_traceback(path: Path) -> None:
    try:
        rows = read_edits(path)
    except UserError as error:
        assert "\n" not in str(error) and str(error).isprintable()
    else:
        assert rows and all(is_safe(row.edit.name) for row in rows)
        assert all(math.isfinite(value) for row in rows for value in row.edit.settings.values())


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("at_night", "at_night"),
        ("make it night", "make_it_night"),
        ("IMG__0001", "IMG_0001"),
        ("a/b\\c:d", "a_b_c_d"),
        ("夜にする", "edit-cfa41da2"),
        ("Ночь", "edit-d082fbec"),
        ("café at night", "cafe_at_night-1deced67"),
        ("cafe\u0301 at night", "cafe_at_night-1deced67"),  # the same text, its accent apart
        ("con", "con-1143da2b"),
        ("..", "edit-5ec1f7e7"),
        ("x" * 61, "x" * 51 + "-c508e75f"),
    ],
)
def test_any_text_has_a_safe_name(text: str, name: str) -> None:
    assert safe_name(text) == name


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(), max_size=90))
def test_safe_names_are_safe(text: str) -> None:
    name = safe_name(text)
    assert is_safe(name) and safe_name(name) == name
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,60}", name) and "__" not in name


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "A", "b", "a_png", "夜", "a.b", "b-1"]), unique=True).flatmap(
        lambda stems: st.lists(
            st.sampled_from([f"{s}{e}" for s in stems or ["a"] for e in (".png", ".jpg", ".PNG", "")]), unique=True
        )
    )
)
def test_names_of_a_set_are_unique_whatever_the_case_and_the_order(files: list[str]) -> None:
    names = unique_names(files)
    assert len({name.casefold() for name in names}) == len(files) and all(map(is_safe, names))
    backwards = unique_names(files[::-1])
    assert backwards[::-1] == names


def test_names_that_collide_are_told_apart() -> None:
    assert unique_names(["bird.jpeg", "bird.png", "cat.png"]) == ["bird_jpeg", "bird_png", "cat"]
    assert unique_names(["a.png", "A.png"]) == ["a-7f071235", "A-28e6ae4e"]


@pytest.mark.parametrize(
    "path", ["../x", "a/../../x", "/x", "C:x", "\\x", "..\\x", "", " ", "a\0b", "a\nb", "a" * 5000]
)
def test_a_path_outside_a_folder_is_refused(path: str, tmp_path: Path) -> None:
    if path == "a" * 5000:  # some systems resolve it, and then it is just not there
        return
    assert refusal(lambda: inside(tmp_path, path, "row 1", "mask")).startswith("row 1: the mask")


def test_a_link_out_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.png").write_bytes(b"x")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "in" / "loop.png").symlink_to(tmp_path / "in" / "loop.png")
    assert "a link that leads out of" in refusal(lambda: inside(tmp_path / "in", "link.png", "row 1", "mask"))
    (tmp_path / "in" / "real.png").write_bytes(b"x")
    assert inside(tmp_path / "in", "real.png", "row 1", "mask") == tmp_path / "in" / "real.png"


def edit(name: str, /, **values: Any) -> Edit:
    return Edit(**{"name": name, "instruction": "do it", **values})


def test_a_series_varies_one_thing() -> None:
    members = [edit(f"at_{t}", changes={"time": t, "lamp": "off"}, settings={"seed": 1}) for t in ("dusk", "night")]
    series = check_series(members)
    assert (series.axis, series.values, series.settings) == ("time", ("dusk", "night"), {"seed": 1})
    assert series.edits == tuple(members)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([], "a series needs at least 2 edits, got none"),
        ([edit("a", changes={"t": "1"})], "a series needs at least 2 edits, got a;"),
        ([edit("a"), edit("b")], "the series of a, b varies nothing"),
        (
            [edit("a", changes={"t": "1", "lamp": "on"}), edit("b", changes={"t": "2", "lamp": "off"})],
            "a series varies one thing, and that of a, b varies changes.lamp and changes.t; make it several",
        ),
        ([edit("a", changes={"t": "1"}), edit("b", changes={"lamp": "on"})], "varies changes.lamp and changes.t"),
        (
            [edit("a", changes={"t": "1"}, settings={"seed": 1}), edit("b", changes={"t": "2"}, settings={"seed": 2})],
            "that of a, b varies changes.t and the setting seed",
        ),
        (
            [edit("a", changes={"t": "1"}, settings={"steps": 9}), edit("b", changes={"t": "2"})],
            "varies changes.t and the setting steps",
        ),
        ([edit("a", settings={"strength": 0.5}), edit("b")], "varies the setting strength and no key of changes"),
        (
            [edit("a", changes={"t": "1"}, mask=Path("m.png"), source_caption="x"), edit("b", changes={"t": "2"})],
            "varies changes.t, the mask and the source caption",
        ),
        (
            [edit("a", changes={"t": "1"}), edit("b", changes={"t": "2"}), edit("c", changes={"t": "1"})],
            "the series over t has '1' twice, in a, c",
        ),
        (
            [EditRow(edit("a", changes={"t": "1"}), ("x.png",)), EditRow(edit("b", changes={"t": "2"}))],
            "varies changes.t and the images",
        ),
        ([edit(n) for n in "abcde"], "the series of a, b, c and 2 more varies nothing"),
    ],
)
def test_what_is_no_series_is_refused(members: list[Edit | EditRow], said: str) -> None:
    assert said in refusal(lambda: check_series(members))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, name in enumerate(["b.jpg", "a.png", "夜.png"]):
        Image.new("RGB", (20, 10), (index * 60, 90, 30)).save(folder / name)
    (folder / "a.txt").write_text("a bed\n", encoding="utf-8")
    return folder


def keys(tasks: list[EditTask]) -> list[tuple[str, str]]:
    return [(task.image_name, task.edit.name) for task in tasks]


def test_a_folder_goes_photo_by_photo(photos: Path) -> None:
    path = file(photos, "- {name: y, instruction: do y}\n- {name: x, instruction: do x, images: [b.jpg, 夜*]}\n")
    tasks = list(folder_tasks(photos, path))
    night = "image-a519542a"
    assert keys(tasks) == [("a", "y"), ("b", "y"), ("b", "x"), (night, "y"), (night, "x")]
    first = tasks[0]
    assert (first.edit.source_caption, first.caption_origin) == ("a bed", "side-car")
    assert dict(first.sha256) == {
        "source/a.png": sha256_file(photos / "a.png"),
        "caption/a.txt": sha256_file(photos / "a.txt"),
        "edits/edits.yaml": sha256_file(path),
    }
    assert (tasks[1].edit.source_caption, tasks[1].caption_origin, tasks[1].mask) == (None, "none", None)
    image = first.source()
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (20, 10), (60, 90, 30))


def test_captions_come_from_the_edit_then_the_side_car_then_the_command(photos: Path) -> None:
    path = file(
        photos.parent,
        "- {name: own, instruction: x, source_caption: a lamp, target_caption: '{caption} on'}\n"
        "- {name: found, instruction: x, target_caption: '{caption} on {caption}'}\n",
    )
    tasks = list(folder_tasks(photos, path, captions={"a.png": "unused", "b.jpg": "a chair", "夜.png": "night"}))
    found = [(t.edit.source_caption, t.edit.target_caption, t.caption_origin) for t in tasks[:4]]
    assert found == [
        ("a lamp", "a lamp on", "file"),
        ("a bed", "a bed on a bed", "side-car"),
        ("a lamp", "a lamp on", "file"),
        ("a chair", "a chair on a chair", "caption command"),
    ]


def test_a_caption_that_is_needed_and_missing_is_asked_for(photos: Path) -> None:
    path = file(photos.parent, "- {name: x, instruction: x, target_caption: '{caption} on', image: b.jpg}\n")
    said = refusal(lambda: list(folder_tasks(photos, path)))
    assert "row 1 (line 1): its target_caption has {caption}" in said and "write one in b.txt" in said


def test_equal_captions_are_allowed_and_noted(photos: Path) -> None:
    text = "- {name: x, instruction: x, source_caption: a bed, target_caption: a bed, image: a.png}\n"
    (task,) = folder_tasks(photos, file(photos.parent, text))
    assert task.notes == ("the source caption and the target caption are the same",)


def test_an_edit_for_an_image_that_is_not_there_is_refused_before_any_task(photos: Path) -> None:
    path = file(photos.parent, "- {name: x, instruction: x}\n- {name: y, instruction: x, images: [a.pgn]}\n")
    said = refusal(lambda: folder_tasks(photos, path))
    assert said == f"edits.yaml, row 2 (line 2): no image in {photos} is named a.pgn; did you mean a.png?"


def test_a_file_name_with_brackets_is_itself_before_it_is_a_glob(photos: Path) -> None:
    Image.new("RGB", (8, 8)).save(photos / "a[1].png")
    path = file(photos.parent, "- {name: x, instruction: x, image: 'a[1].png'}\n")
    assert keys(list(folder_tasks(photos, path))) == [("a_1", "x")]


def test_names_that_differ_in_case_or_ending_alone_are_told_apart(photos: Path) -> None:
    Image.new("RGB", (8, 8)).save(photos / "b.png")
    path = file(photos.parent, "- {name: x, instruction: x, image: 'b.*'}\n")
    assert keys(list(folder_tasks(photos, path))) == [("b_jpg", "x"), ("b_png", "x")]


def mask(path: Path, size: tuple[int, int], box: tuple[int, int, int, int] | None, mode: str = "L") -> None:
    path.parent.mkdir(exist_ok=True)
    image = Image.new(mode, size)
    if box:
        image.paste((255,) * len(image.getbands()) if mode != "L" else 255, box)
    image.save(path)


def test_masks_are_black_and_white_and_of_the_photos_size(photos: Path) -> None:
    for name in ("a", "b"):
        mask(photos.parent / "masks" / f"{name}.png", (20, 10), (2, 3, 8, 9))
    path = file(photos.parent, "- {name: x, instruction: x, images: [a.png, b.jpg], mask: 'masks/{image}.png'}\n")
    task, _ = folder_tasks(photos, path)
    assert task.mask is not None and task.edit.mask == photos.parent / "masks" / "a.png"
    image = task.mask()
    pixels = np.asarray(image)
    assert (image.mode, image.size, sorted(set(pixels.flat))) == ("L", (20, 10), [0, 255])
    assert int((pixels == 255).sum()) == 36 and pixels[3, 2] == 255 and pixels[2, 3] == 0
    assert task.sha256["mask/masks/a.png"] == sha256_file(photos.parent / "masks" / "a.png")


@pytest.mark.parametrize(
    ("size", "box", "mode", "said"),
    [
        ((10, 20), (0, 0, 5, 5), "L", "a.png has 20x10; they must be of one size"),
        ((20, 10), None, "L", "black throughout, so nothing may change"),
        ((20, 10), (5, 5, 5, 9), "L", "black throughout"),  # a box without area
        ((20, 10), (0, 0, 5, 5), "RGBA", "a mask with transparent parts can be meant either way"),
    ],
)
def test_a_mask_that_cannot_be_used_is_explained(
    size: tuple[int, int], box: tuple[int, int, int, int] | None, mode: str, said: str, photos: Path
) -> None:
    mask(photos.parent / "m.png", size, box, mode)
    path = file(photos.parent, "- {name: x, instruction: x, image: a.png, mask: m.png}\n")
    (task,) = folder_tasks(photos, path)
    assert task.mask is not None
    message = refusal(task.mask)
    assert said in message and "m.png" in message


def test_a_mask_that_is_not_there_or_elsewhere_is_refused_before_any_task(photos: Path) -> None:
    path = file(photos.parent, "- {name: x, instruction: x, image: a.png, mask: m.png}\n")
    assert "there is no mask" in refusal(lambda: folder_tasks(photos, path))
    (photos.parent / "inner").mkdir()
    inner = file(photos.parent / "inner", "- {name: x, instruction: x, image: a.png, mask: m.png}\n")
    (inner.parent / "m.png").symlink_to(photos / "a.png")
    assert "is a link that leads out of" in refusal(lambda: folder_tasks(photos, inner))


def test_a_damaged_photo_stops_the_run_or_is_reported_and_left_out(photos: Path) -> None:
    (photos / "b.jpg").write_bytes(b"not an image")
    path = file(photos.parent, "- {name: x, instruction: x}\n")
    tasks = folder_tasks(photos, path)
    assert next(tasks).image_name == "a"
    assert "cannot use the image" in refusal(lambda: next(tasks))
    told: list[tuple[str, str]] = []
    left = list(folder_tasks(photos, path, rejected=lambda bad, why: told.append((bad.name, why))))
    assert len(left) == 2 and [name for name, _ in told] == ["b.jpg"]


def test_what_is_no_photo_is_passed_over_unless_it_is_named(photos: Path) -> None:
    for name in ("notes.md", ".hidden.png", "Thumbs.db", "strange.bin"):
        (photos / name).write_bytes(b"x")
    (photos / "sub").mkdir()
    assert len(list(folder_tasks(photos, file(photos.parent, "- {name: x, instruction: x}\n")))) == 3
    named = folder_tasks(photos, file(photos.parent, "- {name: x, instruction: x, image: strange.bin}\n"))
    assert "strange.bin" in refusal(lambda: next(named))


def test_a_folder_that_cannot_be_used_is_explained(tmp_path: Path) -> None:
    path = file(tmp_path, "- {name: x, instruction: x}\n")
    assert "does not exist" in refusal(lambda: folder_tasks(tmp_path / "none", path))
    assert "is a file, not a folder" in refusal(lambda: folder_tasks(path, path))
    assert "holds no image" in refusal(lambda: folder_tasks(tmp_path, path))


def test_side_cars_that_cannot_be_read_are_warned_of(photos: Path) -> None:
    (photos / "a.txt").write_bytes(b"caf\xe9")
    told: list[str] = []
    path = file(photos.parent, "- {name: x, instruction: x, image: a.png}\n")
    (task,) = folder_tasks(photos, path, warn=told.append)
    assert task.caption_origin == "none" and len(told) == 1 and "is not UTF-8" in told[0]


def test_thousands_of_photos_are_opened_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from boothlab.editing import folder_tasks as module

    folder = tmp_path / "many"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "0000.png")
    data = (folder / "0000.png").read_bytes()
    for index in range(1, 400):
        (folder / f"{index:04d}.png").write_bytes(data)
    opened: list[Path] = []
    real = module.read_image
    monkeypatch.setattr(module, "read_image", lambda path: opened.append(path) or real(path))
    tasks = folder_tasks(folder, file(tmp_path, "- {name: x, instruction: x}\n- {name: y, instruction: y}\n"))
    assert not opened
    assert keys([next(tasks) for _ in range(4)]) == [("0000", "x"), ("0000", "y"), ("0001", "x"), ("0001", "y")]
    assert len(opened) == 2

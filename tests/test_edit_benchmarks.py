"""Tasks from the dollhouse and from the published benchmarks' folders; the small folders here have their schemas."""

import json
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from boothlab.dollhouse.edits import ROOM_EDITS, TOY_EDITS, apply_edit, edit_named, held_out_room, held_out_toy
from boothlab.dollhouse.scenes import render
from boothlab.editing.dollhouse_tasks import dollhouse_tasks
from boothlab.editing.edits import EditTask
from boothlab.editing.magicbrush import magicbrush_tasks
from boothlab.editing.names import is_safe
from boothlab.editing.piebench import KINDS, piebench_tasks
from boothlab.editing.series import check_series
from boothlab.editing.tedbench import tedbench_tasks
from boothlab.errors import UserError
from boothlab.files import sha256_file


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and message.isprintable()
    return message


def keys(tasks: list[EditTask]) -> list[tuple[str, str]]:
    found = [(task.image_name, task.edit.name) for task in tasks]
    assert len(set(found)) == len(found) and all(is_safe(name) for pair in found for name in pair)
    return found


def picture(path: Path, color: tuple[int, ...], size: int = 16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA" if len(color) == 4 else "RGB", (size, size), color).save(path)
    return path


def write(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


# --- the dollhouse


def test_the_dollhouse_goes_scene_by_scene() -> None:
    tasks = list(dollhouse_tasks(2, 1))
    rooms = [(f"room_{i:02d}", name) for i in range(2) for name in ROOM_EDITS]
    assert keys(tasks) == rooms + [("toy_00", name) for name in TOY_EDITS]
    assert keys(list(dollhouse_tasks(3, 1)))[: len(rooms)] == rooms


def test_a_dollhouse_task_knows_the_answer() -> None:
    (task,) = dollhouse_tasks(1, 0, ["carpet_red"])
    room = held_out_room(0)
    answer = apply_edit(room, edit_named("carpet_red"))
    assert task.mask is not None and task.truth is not None
    source, truth, mask = (np.asarray(load()) for load in (task.source, task.truth, task.mask))
    assert np.array_equal(source, render(room)) and np.array_equal(truth, render(answer))
    assert (mask.shape, sorted(set(mask.flat))) == ((32, 32), [0, 255])
    assert np.array_equal(source[mask == 0], truth[mask == 0]) and (source[mask == 255] != truth[mask == 255]).any()
    assert task.fact == ("carpet", "red") and task.edit.changes == {"carpet": "red"}
    assert task.edit.instruction == "make the carpet red" and "red carpet" in str(task.edit.target_caption)
    assert (task.caption_origin, task.sha256, task.notes) == ("file", {}, ())


@pytest.mark.parametrize(
    ("edit", "before", "after"),
    [
        ("at_night", "a photo of a hotel room in daylight", "a photo of a hotel room at night"),
        ("lamp_on", "a photo of a hotel room with the lamp off", "a photo of a hotel room with the lamp on"),
        (
            "curtains_closed",
            "a photo of a hotel room with {} curtains",
            "a photo of a hotel room with closed {} curtains",
        ),
        ("bed_orange", "a photo of a hotel room with a {} bed", "a photo of a hotel room with an orange bed"),
    ],
)
def test_short_captions_name_the_room_and_what_changes(edit: str, before: str, after: str) -> None:
    (task, *_) = dollhouse_tasks(8, 0, [edit])
    room = next(held_out_room(i) for i in range(8) if f"room_{i:02d}" == task.image_name)
    word = room.bed if edit == "bed_orange" else room.curtains
    texts = (task.edit.source_caption, task.edit.target_caption)
    if edit == "at_night":
        assert texts[1] == after and texts[0] != after
    else:
        assert texts == (before.format(word), after.format(word))
    (full, *_) = dollhouse_tasks(8, 0, [edit], full_captions=True)
    assert f"{room.carpet} carpet" in str(full.edit.source_caption) and "lamp" in str(full.edit.target_caption)


def test_short_captions_of_a_toy_keep_its_colour() -> None:
    (hat, snow) = dollhouse_tasks(0, 1, ["add_hat", "in_snow"])
    toy = held_out_toy(0).subject
    who = f"{toy.color_name} {toy.class_noun}"
    assert str(hat.edit.source_caption).endswith(who) and str(hat.edit.target_caption).endswith(f"{who} wearing a hat")
    assert str(snow.edit.target_caption).endswith(f"{who} in the snow")


def test_dollhouse_controls_are_of_the_source() -> None:
    (task,) = dollhouse_tasks(0, 1, ["at_night"])
    assert set(task.controls) == {"canny", "depth"}
    depth = task.controls["depth"]()
    assert (depth.mode, depth.size) == ("L", (32, 32)) and len(set(np.asarray(depth).flat)) > 1
    assert np.array_equal(np.asarray(task.source()), render(held_out_toy(0)))
    pytest.importorskip("cv2", reason="Canny maps need OpenCV, which is an extra")
    assert task.controls["canny"]().mode == "L"


def test_dollhouse_sizes_and_processes() -> None:
    (task,) = dollhouse_tasks(1, 0, ["at_night"], size=64)
    again = pickle.loads(pickle.dumps(task))  # what a worker process gets
    assert again.source().size == (64, 64) and again.mask().size == (64, 64)
    assert np.asarray(again.mask()).min() == 255  # light falls on everything


def test_dollhouse_edits_of_one_fact_are_a_series() -> None:
    edits = [task.edit for task in dollhouse_tasks(1, 0, ["at_dusk", "at_night"])]
    assert (check_series(edits).axis, check_series(edits).values) == ("time", ("dusk", "night"))
    mixed = [task.edit for task in dollhouse_tasks(1, 0, ["at_night", "carpet_red"])]
    assert "changes.carpet, changes.time and the source caption" in refusal(lambda: check_series(mixed))


def test_many_rooms_have_each_their_name() -> None:
    tasks = list(dollhouse_tasks(120, 0, ["at_night"]))  # some of them are furnished alike
    assert [task.image_name for task in tasks] == [f"room_{i:02d}" for i in range(120)]
    assert all(np.array_equal(np.asarray(tasks[i].source()), render(held_out_room(i))) for i in (0, 57, 119))
    keys(tasks)


def test_dollhouse_requests_that_cannot_be_met_are_explained() -> None:
    assert "knows no edit 'at_noon'" in refusal(lambda: dollhouse_tasks(1, 0, ["at_noon"]))
    assert "has no task for 2 room(s), 0 toy(s), edits add_hat" in refusal(lambda: dollhouse_tasks(2, 0, ["add_hat"]))
    assert "has no task for 0 room(s)" in refusal(lambda: dollhouse_tasks(0, 0))
    assert "must be 0 or more, got -1" in refusal(lambda: dollhouse_tasks(-1, 0))


# --- PIE-Bench


def pie_entry(**changes: Any) -> dict[str, Any]:
    entry = {
        "image_path": "0_random_140/000000000000.jpg",
        "original_prompt": "a [round] cake with orange frosting",
        "editing_prompt": "a [square] cake with orange frosting",
        "editing_instruction": "Change the shape of the cake to square",
        "editing_type_id": "0",
        "blended_word": "cake cake",
        "mask": [35, 3, 51, 2],
    }
    return {**entry, **changes}


@pytest.fixture
def pie(tmp_path: Path) -> Path:
    other = pie_entry(image_path="9_change_style_80/2_natural/x.jpg", editing_type_id=9, editing_instruction="")
    write(tmp_path / "mapping_file.json", {"000000000000": pie_entry(), "911000000001": {**other, "mask": []}})
    picture(tmp_path / "annotation_images" / "0_random_140" / "000000000000.jpg", (200, 10, 10))
    picture(tmp_path / "annotation_images" / "9_change_style_80" / "2_natural" / "x.jpg", (10, 200, 10))
    return tmp_path


def test_piebench_is_read_as_its_own_evaluation_reads_it(pie: Path) -> None:
    first, second = piebench_tasks(pie, side=16)
    assert keys([first, second]) == [("000000000000", "0_random"), ("911000000001", "9_change_style")]
    assert first.edit.source_caption == "a round cake with orange frosting"
    assert first.edit.target_caption == "a square cake with orange frosting"
    assert first.edit.instruction == "Change the shape of the cake to square"
    assert second.edit.instruction == second.edit.target_caption  # it has none of its own
    assert (first.caption_origin, first.truth) == ("file", None)
    assert dict(first.sha256) == {
        "source/annotation_images/0_random_140/000000000000.jpg": sha256_file(
            pie / "annotation_images/0_random_140/000000000000.jpg"
        ),
        "annotations/mapping_file.json": sha256_file(pie / "mapping_file.json"),
    }


def test_piebench_masks_are_runs_row_by_row_with_a_border(pie: Path) -> None:
    first, second = piebench_tasks(pie, side=16)
    assert first.mask is not None and second.mask is not None
    expected = np.zeros((16, 16), dtype=np.uint8)
    expected[0], expected[-1], expected[:, 0], expected[:, -1] = 255, 255, 255, 255
    assert np.array_equal(np.asarray(second.mask()), expected)
    expected[2, 3:6] = 255  # 35 = 2·16 + 3
    expected[3, 3:5] = 255
    assert np.array_equal(np.asarray(first.mask()), expected)
    assert "is for 512x512 pixels, and the image has 16x16" in refusal(next(piebench_tasks(pie)).mask)


def test_a_piebench_run_ends_with_the_picture(pie: Path) -> None:
    write(pie / "mapping_file.json", {"a": pie_entry(mask=[255, 99, 999, 2])})
    (task,) = piebench_tasks(pie, side=16)
    assert int((np.asarray(task.mask()) == 255).sum()) == 60


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mask": [1, 2, 3]}, "mapping_file.json, 'k': 'mask' must be pairs of a start and a length"),
        ({"mask": {"counts": []}}, "'mask' must be pairs"),
        ({"mask": [1, -2]}, "'mask' must be pairs"),
        ({"mask": [1.0, 2]}, "'mask' must be pairs"),
        ({"editing_type_id": "10"}, "'editing_type_id' must be 0 to 9, got '10'"),
        ({"editing_type_id": True}, "'editing_type_id' must be 0 to 9"),
        ({"editing_prompt": 3}, "'editing_prompt' must be a text"),
        ({"editing_prompt": ""}, "'editing_prompt' is empty"),
        ({"image_path": "0_random_140/none.jpg"}, "there is no image"),
        ({"image_path": "../mapping_file.json"}, "lies outside"),
        ({"image_path": "/etc/passwd"}, "lies outside"),
    ],
)
def test_a_bad_piebench_record_is_explained(changes: dict[str, Any], said: str, pie: Path) -> None:
    write(pie / "mapping_file.json", {"k": pie_entry(**changes)})
    assert said in refusal(lambda: piebench_tasks(pie, side=16))  # before the first task


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "expected a mapping from keys to edits"),
        ({}, "expected a mapping from keys to edits"),
        ({"k": [1]}, "'k': expected a mapping with image_path, original_prompt"),
        ({"k": {"image_path": "x"}}, "'original_prompt' is missing (it has image_path)"),
    ],
)
def test_a_bad_piebench_file_is_explained(content: object, said: str, pie: Path) -> None:
    write(pie / "mapping_file.json", content)
    assert said in refusal(lambda: piebench_tasks(pie))


def test_the_wrong_folder_is_explained(pie: Path, tmp_path: Path) -> None:
    write(tmp_path / "outer" / "data" / "mapping_file.json", {})
    said = refusal(lambda: piebench_tasks(tmp_path / "outer"))
    assert "holds no mapping_file.json" in said and f"did you mean {tmp_path / 'outer' / 'data'}?" in said
    assert "holds no input_list.json" in refusal(lambda: tedbench_tasks(tmp_path / "none"))
    assert "holds no edit_sessions.json or edit_turns.json" in refusal(lambda: magicbrush_tasks(pie))
    (pie / "mapping_file.json").write_text('{"a": ', encoding="utf-8")
    assert "is not valid JSON" in refusal(lambda: piebench_tasks(pie))


def test_piebench_kinds_are_its_folders() -> None:
    assert len(KINDS) == 10 and [int(kind.partition("_")[0]) for kind in KINDS] == list(range(10))


# --- MagicBrush


def brush_turn(number: int, session: str = "139306") -> dict[str, str]:
    before = "input" if number == 1 else f"output{number - 1}"
    return {
        "input": f"{session}-{before}.png",
        "mask": f"{session}-mask{number}.png",
        "output": f"{session}-output{number}.png",
        "instruction": f"put a cat on the fence, {number}",
    }


@pytest.fixture
def brush(tmp_path: Path) -> Path:
    for session, turns in {"139306": 2, "7": 1}.items():
        folder = tmp_path / "images" / session
        picture(folder / f"{session}-input.png", (10, 10, 10))
        for number in range(1, turns + 1):
            picture(folder / f"{session}-output{number}.png", (number * 60, 0, 0))
            with Image.open(picture(folder / f"{session}-mask{number}.png", (10, 10, 10, 255))) as image:
                image.paste((0, 0, 0, 0), (1, 2, 5, 6))
                image.save(folder / f"{session}-mask{number}.png")
    sessions = {"139306": [brush_turn(1), brush_turn(2)], "7": [brush_turn(1, "7")]}
    write(tmp_path / "edit_sessions.json", sessions)
    texts = {"139306-input.png": "a fence", "139306-output1.png": "a cat on a fence", "139306-output2.png": "two cats"}
    write(tmp_path / "global_descriptions.json", {"139306": texts})
    return tmp_path


def test_magicbrush_turns_are_tasks_of_their_own(brush: Path) -> None:
    tasks = list(magicbrush_tasks(brush))
    assert keys(tasks) == [("139306-input", "turn_1"), ("139306-output1", "turn_2"), ("7-input", "turn_1")]
    captions = [(t.edit.source_caption, t.edit.target_caption, t.caption_origin) for t in tasks]
    assert captions == [
        ("a fence", "a cat on a fence", "file"),
        ("a cat on a fence", "two cats", "file"),
        (None, None, "none"),
    ]
    second = tasks[1]
    assert second.truth is not None and second.edit.instruction == "put a cat on the fence, 2"
    assert second.source().getpixel((0, 0)) == (60, 0, 0) and second.truth().getpixel((0, 0)) == (120, 0, 0)
    assert set(second.sha256) == {
        "source/images/139306/139306-output1.png",
        "mask/images/139306/139306-mask2.png",
        "truth/images/139306/139306-output2.png",
        "annotations/edit_sessions.json",
        "annotations/global_descriptions.json",
    }
    assert second.sha256["mask/images/139306/139306-mask2.png"] == sha256_file(brush / "images/139306/139306-mask2.png")


def test_magicbrush_masks_are_what_was_erased(brush: Path) -> None:
    task = next(magicbrush_tasks(brush))
    assert task.mask is not None
    expected = np.zeros((16, 16), dtype=np.uint8)
    expected[2:6, 1:5] = 255
    assert np.array_equal(np.asarray(task.mask()), expected)
    flat = Image.new("L", (16, 16))
    flat.paste(255, (0, 0, 4, 4))
    flat.save(brush / "images" / "139306" / "139306-mask1.png")  # as copies of it have it: black and white
    assert int((np.asarray(task.mask()) == 255).sum()) == 16
    picture(brush / "images" / "139306" / "139306-mask1.png", (0, 0, 0, 255))
    assert "black throughout" in refusal(task.mask)
    picture(brush / "images" / "139306" / "139306-mask1.png", (0, 0, 0, 0), size=8)
    assert "has 8x8 pixels" in refusal(task.mask)
    picture(brush / "images" / "139306" / "139306-output1.png", (0, 0, 0), size=8)
    assert task.truth is not None and "the answer" in refusal(task.truth)


def test_magicbrush_turns_without_sessions_are_the_same(brush: Path) -> None:
    by_session = keys(list(magicbrush_tasks(brush)))
    (brush / "edit_sessions.json").unlink()
    write(brush / "edit_turns.json", [brush_turn(1), brush_turn(2), brush_turn(1, "7")])
    (brush / "global_descriptions.json").unlink()
    tasks = list(magicbrush_tasks(brush))
    assert keys(tasks) == by_session and {task.caption_origin for task in tasks} == {"none"}


@pytest.mark.parametrize(
    ("sessions", "said"),
    [
        ([], "expected a mapping from sessions to their turns"),
        ({"1": []}, "session 1: expected a list of turns"),
        ({"1": [{"input": "x"}]}, "session 1, turn 1: 'mask' is missing (it has input)"),
        ({"139306": [brush_turn(3)]}, "turn 1: there is no mask"),
        ({"139306": [{**brush_turn(1), "output": "../x.png"}]}, "the output 139306/../x.png lies outside"),
        ({"139306": [{**brush_turn(1), "instruction": " "}]}, "'instruction' is empty"),
    ],
)
def test_bad_magicbrush_sessions_are_explained(sessions: object, said: str, brush: Path) -> None:
    write(brush / "edit_sessions.json", sessions)
    assert said in refusal(lambda: magicbrush_tasks(brush))


def test_bad_magicbrush_descriptions_are_explained(brush: Path) -> None:
    write(brush / "global_descriptions.json", {"139306": ["a fence"]})
    assert "global_descriptions.json, session 139306: expected" in refusal(lambda: magicbrush_tasks(brush))


# --- TEdBench


@pytest.fixture
def ted(tmp_path: Path) -> Path:
    rows = [
        {"img_name": "bird.jpeg", "target_text": "A photo of a bird spreading wings."},
        {"img_name": "bird.png", "target_text": "A bird looking backwards."},  # both are in the published list
        {"img_name": "bird.jpeg", "target_text": "A bird eating a fish."},
        {"img_name": "tree_1.jpeg", "target_text": "A photo of a tree. Taken in autumn."},
    ]
    write(tmp_path / "input_list.json", rows)
    for name in ("bird.jpeg", "bird.png", "tree_1.jpeg"):
        picture(tmp_path / "originals" / name, (40, 90, 30))
    return tmp_path


def test_tedbench_has_target_texts_only(ted: Path) -> None:
    tasks = list(tedbench_tasks(ted))
    assert keys(tasks) == [
        ("bird_jpeg", "A_photo_of_a_bird_spreading_wings"),
        ("bird_png", "A_bird_looking_backwards"),
        ("bird_jpeg", "A_bird_eating_a_fish"),
        ("tree_1", "A_photo_of_a_tree._Taken_in_autumn"),
    ]
    first = tasks[0]
    assert first.edit.instruction == first.edit.target_caption == "A photo of a bird spreading wings."
    assert (first.edit.source_caption, first.caption_origin, first.mask, first.truth) == (None, "none", None, None)
    assert Counter(name.partition("/")[0] for name in first.sha256) == {"source": 1, "annotations": 1}
    assert first.source().size == (16, 16)


def test_tedbench_copies_that_say_image_are_read(ted: Path) -> None:
    write(ted / "input_list.json", [{"image": "bird.png", "target_text": "鳥が飛ぶ"}])
    (task,) = tedbench_tasks(ted)
    assert keys([task])[0][0] == "bird" and task.edit.instruction == "鳥が飛ぶ"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({}, "expected a list of images with target texts"),
        ([["bird.png", "x"]], "row 1: expected a mapping with img_name, target_text"),
        ([{"img_name": "bird.png"}], "row 1: 'target_text' is missing (it has img_name)"),
        ([{"img_name": "cow.png", "target_text": "x"}], "row 1: there is no image"),
        ([{"img_name": "../input_list.json", "target_text": "x"}], "lies outside"),
        ([{"img_name": "bird.png", "target_text": "x"}] * 2, "row 2: its image has this target_text already, in input"),
    ],
)
def test_a_bad_tedbench_list_is_explained(rows: object, said: str, ted: Path) -> None:
    write(ted / "input_list.json", rows)
    assert said in refusal(lambda: tedbench_tasks(ted))

"""Edits with exact answers: one fact changes, the mask holds all that differs, and the maps are the scene's own."""

import hashlib
from dataclasses import replace

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boothlab.dollhouse.controls import canny_map, changed_mask, control_map, edit_mask, edit_region
from boothlab.dollhouse.edits import (
    EDITS,
    ROOM_EDITS,
    TOY_EDITS,
    EditPair,
    apply_edit,
    can_edit,
    edit_named,
    fact_of,
    held_out_from_editors,
    held_out_pairs,
    held_out_room,
    held_out_toy,
    room_is_held_out,
    training_pair,
)
from boothlab.dollhouse.grammar import read_prompt
from boothlab.dollhouse.layers import LAYERS, NEARNESS, depth_map, layer_mask, layer_numbers
from boothlab.dollhouse.scenes import (
    COLORS,
    Lamp,
    RoomScene,
    Subject,
    Time,
    ToyScene,
    render,
    rng_for,
    sample_scene,
    toy_layer,
)
from boothlab.errors import UserError

ROOM = RoomScene("red", "blue", "green")
SUBJECT = Subject(
    "robot", "red", (220, 30, 250), "plain", (40, 190, 180), "dot", (250, 220, 60), (0.5, 0.4, 0.6, 0.3, 0.7)
)
TOY = ToyScene(SUBJECT, "meadow")
GOLDEN_PILLOW = "13.0.0"
FACTS = ("time", "lamp", "curtains_closed", "bed", "curtains", "carpet", "accessory", "place", "color")


def pair_of(scene: RoomScene | ToyScene, name: str) -> EditPair:
    edit = EDITS[name]
    return EditPair(edit, scene, apply_edit(scene, edit), edit.instruction)


def pairs_from(seed: int, count: int) -> list[EditPair]:
    rng = rng_for(seed, "test_edits")
    return [training_pair(rng) for _ in range(count)]


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def test_an_edit_changes_its_fact_and_nothing_else() -> None:
    assert apply_edit(ROOM, EDITS["at_night"]) == replace(ROOM, time=Time.NIGHT)
    assert apply_edit(ROOM, EDITS["lamp_on"]) == replace(ROOM, lamp=Lamp.ON)
    assert apply_edit(ROOM, EDITS["curtains_closed"]) == replace(ROOM, curtains_closed=True)
    assert apply_edit(ROOM, EDITS["carpet_red"]) == replace(ROOM, carpet="red")
    assert apply_edit(ROOM, EDITS["bed_blue"]) == replace(ROOM, bed="blue")
    assert apply_edit(TOY, EDITS["add_hat"]) == replace(TOY, accessory="hat")
    assert apply_edit(TOY, EDITS["in_snow"]) == replace(TOY, place="snow")


def test_a_recoloured_toy_stays_its_own_shade_within_bounds() -> None:
    # as far from blue (44, 96, 222) as it was from red (214, 40, 40): +6, −10, and +210 cut off at white
    changed = apply_edit(TOY, EDITS["toy_blue"])
    assert isinstance(changed, ToyScene)
    assert (changed.subject.color_name, changed.subject.color) == ("blue", (50, 86, 255))
    assert replace(changed.subject, color_name="red", color=SUBJECT.color) == SUBJECT


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_any_pair_differs_in_one_fact_and_inside_its_mask(seed: int) -> None:
    (pair,) = pairs_from(seed, 1)
    before, after = ({fact: fact_of(scene, fact) for fact in FACTS} for scene in (pair.source, pair.target))
    assert {fact for fact in FACTS if before[fact] != after[fact]} == {pair.edit.fact}
    assert after[pair.edit.fact] == pair.edit.value
    assert pair.instruction in pair.edit.instructions
    changed = changed_mask(pair)
    assert changed.any() or pair.edit.fact in {"curtains", "accessory"}  # those can be hidden or out of the picture
    assert not (changed & ~edit_region(pair)).any()
    assert np.array_equal(edit_mask(pair), edit_region(pair))


def test_masks_are_of_the_thing_edited() -> None:
    bed = edit_mask(pair_of(ROOM, "bed_blue"))
    assert np.array_equal(bed, layer_mask(ROOM, ["bed"])) and 40 < bed.sum() < 200
    assert not bed[:12].any() and not bed[:, :12].any()  # the upper wall and the window's side
    assert edit_mask(pair_of(ROOM, "at_night")).all()
    place = edit_mask(pair_of(TOY, "in_snow"))
    toy_alone = toy_layer(TOY, 32)[..., 3] == 255
    assert np.array_equal(~place, toy_alone)
    hat = edit_mask(pair_of(TOY, "add_hat"))
    assert hat.any() and not hat[16:].any()
    both = [layer_mask(room, ["curtains", "window"]) for room in (ROOM, replace(ROOM, curtains_closed=True))]
    assert np.array_equal(edit_mask(pair_of(ROOM, "curtains_closed")), both[0] | both[1])


def test_a_flipped_room_has_flipped_masks_and_maps() -> None:
    flipped = replace(ROOM, flip=True)
    assert np.array_equal(edit_mask(pair_of(flipped, "bed_blue")), edit_mask(pair_of(ROOM, "bed_blue"))[:, ::-1])
    assert np.array_equal(depth_map(flipped), depth_map(ROOM)[:, ::-1])


def test_captions_say_what_is_there_before_and_after() -> None:
    pair = pair_of(ROOM, "at_night")
    common = "a photo of a hotel room with a red bed and blue curtains and a green carpet and a picture"
    assert pair.source_caption == f"{common} in daylight with the lamp off"
    assert pair.target_caption == f"{common} at night with the lamp off"
    assert pair.instruction == "make it night"
    hat = pair_of(TOY, "add_hat")
    assert hat.target_caption == "a photo of a red robot wearing a hat in a meadow in daylight"
    assert read_prompt(hat.source_caption).accessory is None


def test_the_catalogue() -> None:
    assert len(EDITS) == 3 + 2 + 2 + 3 * 8 + 4 + 10 + 8
    assert len({text for edit in EDITS.values() for text in edit.instructions}) == sum(
        len(edit.instructions) for edit in EDITS.values()
    )
    assert EDITS["carpet_orange"].instructions == (
        "make the carpet orange",
        "carpet orange",
        "with an orange carpet",
        "turn the carpet orange",
        "an orange carpet",
    )
    assert EDITS["curtains_red"].instructions[2] == "with red curtains"
    for edit in EDITS.values():
        assert len(edit.instructions) >= 4


def test_an_edit_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="the dollhouse knows no edit 'at_noon'; its edits are at_day, at_dusk"):
        edit_named("at_noon")
    with pytest.raises(UserError, match="add_hat edits a toy, and this scene is a hotel room"):
        apply_edit(ROOM, EDITS["add_hat"])
    with pytest.raises(UserError, match="bed_blue edits a hotel room, and this scene is a toy's"):
        apply_edit(TOY, EDITS["bed_blue"])


def test_what_would_change_nothing_does_not_fit() -> None:
    assert not can_edit(ROOM, EDITS["at_day"]) and not can_edit(ROOM, EDITS["bed_red"])
    assert not can_edit(ROOM, EDITS["curtains_open"]) and not can_edit(ROOM, EDITS["lamp_off"])
    assert not can_edit(TOY, EDITS["lamp_off"]) and can_edit(TOY, EDITS["lamp_on"])  # no lamp to turn off
    assert not can_edit(replace(TOY, accessory="crown"), EDITS["add_hat"])
    assert not can_edit(TOY, EDITS["bed_blue"]) and not can_edit(ROOM, EDITS["in_snow"])


def test_training_never_sees_what_is_held_out() -> None:
    for pair in pairs_from(1, 200):
        assert not held_out_from_editors(pair.source) and not held_out_from_editors(pair.target)


def test_about_a_tenth_of_the_rooms_is_held_out() -> None:
    rooms = [room_is_held_out(a, b, c) for a in COLORS for b in COLORS for c in COLORS]
    assert (len(rooms), sum(rooms)) == (512, 58)


def test_every_fact_is_trained_about_as_often_as_it_fits() -> None:
    facts = [pair.edit.fact for pair in pairs_from(2, 400)]
    assert set(facts) == set(FACTS)
    assert min(facts.count(fact) for fact in FACTS) > 12


def test_held_out_pairs_are_all_held_out_and_always_the_same() -> None:
    pairs = held_out_pairs(8, 4)
    assert len(pairs) == 8 * len(ROOM_EDITS) + 4 * len(TOY_EDITS) and len(ROOM_EDITS) >= 6
    assert all(held_out_from_editors(pair.source) for pair in pairs)
    assert pairs == held_out_pairs(8, 4) and pairs[: 3 * len(ROOM_EDITS)] == held_out_pairs(3)
    assert len({pair.source for pair in pairs}) == 12
    named = held_out_pairs(2, 0, ["lamp_on", "bed_blue"])
    assert [pair.edit.name for pair in named] == ["lamp_on", "bed_blue"] * 2
    with pytest.raises(UserError, match="knows no edit 'lamp'"):
        held_out_pairs(2, 0, ["lamp"])


@pytest.mark.parametrize("index", [0, 5, 12])
def test_held_out_scenes_take_every_standard_edit(index: int) -> None:
    assert all(can_edit(held_out_room(index), EDITS[name]) for name in ROOM_EDITS)
    assert all(can_edit(held_out_toy(index), EDITS[name]) for name in TOY_EDITS)


def test_pairs_are_a_function_of_their_stream() -> None:
    assert pairs_from(3, 5) == pairs_from(3, 5) != pairs_from(4, 5)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_every_pixel_has_a_layer_and_light_moves_none(seed: int) -> None:
    scene = sample_scene(rng_for(seed, "test_layers"), room_share=0.5)
    assert (layer_numbers(scene) > 0).all()
    if isinstance(scene, RoomScene):  # in a toy's sky the sun, the moon and stars come and go, as far as the sky
        assert np.array_equal(depth_map(scene), depth_map(replace(scene, time=Time.NIGHT, lamp=Lamp.ON)))
        assert np.array_equal(depth_map(scene), depth_map(replace(scene, bed="white", carpet="pink")))


def test_depth_is_near_where_things_are_near() -> None:
    depth = depth_map(TOY)
    inside = toy_layer(TOY, 32)[..., 3] == 255
    assert set(depth[inside].tolist()) == {round(255 * NEARNESS["toy"])}
    assert depth[0, 0] == 0  # the sky
    ground = depth[20:, 0].astype(int)
    assert (np.diff(ground) > 0).all() and ground[-1] < 255 * NEARNESS["toy"]
    assert depth.dtype == np.uint8 and depth.shape == (32, 32)
    assert depth_map(TOY, 64).shape == (64, 64)


@pytest.mark.skipif(PIL.__version__ != GOLDEN_PILLOW, reason=f"drawn with Pillow {GOLDEN_PILLOW}")
def test_golden_depth_maps() -> None:
    assert digest(depth_map(ROOM)) == "fbfe106966a68e0e"
    assert digest(depth_map(TOY)) == "73214eecb6bc0d05"


def test_an_unknown_layer_or_map_is_refused() -> None:
    with pytest.raises(ValueError, match="no layer is called ceiling"):
        layer_mask(ROOM, ["ceiling"])
    with pytest.raises(ValueError, match="no control map is called 'pose'"):
        control_map(ROOM, "pose")
    assert LAYERS[0] == "nothing"


def test_canny_finds_the_outline_of_a_square() -> None:
    pytest.importorskip("cv2", reason="Canny maps need OpenCV (the extra `edit`)")
    picture = np.zeros((32, 32, 3), dtype=np.uint8)
    picture[8:24, 8:24] = (255, 0, 0)
    edges = canny_map(picture)
    assert set(np.unique(edges).tolist()) == {0, 255} and edges.shape == (32, 32)
    assert not edges[11:21, 11:21].any() and not edges[:6].any()
    assert edges[16, 7:10].any() and edges[16, 22:26].any() and edges[7:10, 16].any() and edges[22:26, 16].any()
    assert np.array_equal(control_map(ROOM, "canny"), canny_map(render(ROOM)))


def test_canny_without_opencv_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(UserError, match=r"pip install 'boothlab\[edit\]'"):
        canny_map(render(ROOM))

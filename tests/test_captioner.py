"""The miniature captioner: captions and facts round trip, its words are whole, it learns, and it says what is there."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    AutoTokenizer,
    BertTokenizerFast,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
    CLIPModel,
)

from boothlab.dollhouse import caption_score, pretrain
from boothlab.dollhouse.caption_score import BARRED, fact_rows, held_out_scenes
from boothlab.dollhouse.captioner_parts import (
    IGNORED,
    MAX_TOKENS,
    Captioner,
    build_captioner,
    build_word_tokenizer,
    start_from_clip,
    to_pixels,
)
from boothlab.dollhouse.captions import PROMPTS, caption_of, captioned_scene, read_caption, scene_facts
from boothlab.dollhouse.edits import EDITS, EditPair, held_out_from_editors, held_out_room
from boothlab.dollhouse.grammar import vocabulary
from boothlab.dollhouse.parts import CLIP_MEAN, CLIP_STD, normalise
from boothlab.dollhouse.pretrain import DEFAULT_MINUTES, EVERY_PART, build_part
from boothlab.dollhouse.scenes import (
    ACCESSORIES,
    CLASSES,
    COLORS,
    PATTERNS,
    PLACES,
    Lamp,
    RoomScene,
    Scene,
    Subject,
    Time,
    ToyScene,
    render,
    rng_for,
    sample_scene,
)
from boothlab.errors import UserError

WEIGHTS = Path(pretrain.__file__).parent / "weights"
GREY = (90, 90, 90)
TOKENIZER = build_word_tokenizer()

colors = st.sampled_from(tuple(COLORS))
times = st.sampled_from(tuple(Time))
rooms = st.builds(
    RoomScene,
    bed=colors,
    curtains=colors,
    carpet=colors,
    curtains_closed=st.booleans(),
    pictures=st.integers(0, 2),
    time=times,
    lamp=st.sampled_from((Lamp.ON, Lamp.OFF)),
)
subjects = st.builds(
    Subject,
    class_noun=st.sampled_from(CLASSES),
    color_name=colors,
    color=st.just(GREY),
    pattern=st.sampled_from(PATTERNS),
    second=st.just(GREY),
    marking=st.just("none"),
    marking_color=st.just(GREY),
    proportions=st.just((0.5, 0.5, 0.5, 0.5, 0.5)),
)
toys = st.builds(
    ToyScene,
    subject=subjects,
    place=st.sampled_from(PLACES),
    time=times,
    lamp=st.sampled_from(tuple(Lamp)),
    accessory=st.sampled_from(ACCESSORIES),
)


def part(out: Path = WEIGHTS, seed: int = 0, batch_size: int = 4) -> Captioner:
    """A captioner before its training, with small batches."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = build_part("captioner", seed, out, "cpu", compiled=False)
    assert isinstance(made, Captioner)
    made.batch_size = batch_size
    return made


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return part()


def test_captions_speak_as_the_field_does() -> None:
    robot = Subject("robot", "orange", GREY, "striped", GREY, "none", GREY, (0.5,) * 5)
    scene = ToyScene(robot, "beach", Time.NIGHT, Lamp.ON, "hat")
    assert caption_of(scene) == "an orange striped robot wearing a hat on the beach at night with the lamp on"
    room = RoomScene("red", "blue", "orange", curtains_closed=True, pictures=2, time=Time.DUSK)
    assert caption_of(room) == (
        "a hotel room with a red bed and closed blue curtains and an orange carpet and two pictures "
        "at dusk with the lamp off"
    )


def test_after_a_prompt_it_is_the_editing_tasks_own_caption() -> None:
    pair = EditPair(EDITS["at_night"], held_out_room(0), held_out_room(0), "make it night")
    assert f"a photo of {caption_of(pair.source)}" == pair.source_caption


@given(scene=st.one_of(toys, rooms), prompt=st.sampled_from(("", *PROMPTS)))
def test_a_caption_reads_back_as_the_scene_s_facts(scene: Scene, prompt: str) -> None:
    assert read_caption(f"{prompt} {caption_of(scene)}.".capitalize()) == scene_facts(scene)


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    facts = read_caption(text)
    assert facts.get("pattern", "plain") in PATTERNS and facts.get("pictures", "0") in "012"


@pytest.mark.parametrize(
    ("caption", "facts"),
    [
        ("a toy", {"pattern": "plain", "accessory": "none", "lamp": "none"}),
        ("a scarf on a blue car", {"class_noun": "car", "color": "blue"}),
        ("a hotel room with blue curtains", {"curtains": "blue", "curtains_closed": "open", "pictures": "0"}),
        ("a hotel room with closed curtains", {"curtains_closed": "closed"}),
        ("a photo of a hotel room with a picture", {"pictures": "1"}),
        ("a picture of a hotel room at dusk", {"pictures": "0", "time": "dusk"}),
    ],
)
def test_a_partial_caption_states_what_it_states(caption: str, facts: dict[str, str]) -> None:
    read = read_caption(caption)
    assert {name: read.get(name) for name in facts} == facts
    assert "bed" not in read and "place" not in read


def test_every_word_of_the_grammar_is_one_token_and_comes_back() -> None:
    tokenizer = TOKENIZER
    for word in vocabulary():
        assert tokenizer.tokenize(word) == [word]
        assert tokenizer.decode(tokenizer(word).input_ids, skip_special_tokens=True) == word
    assert tokenizer.tokenize("Red ferret") == ["red", "f", "##e", "##r", "##r", "##e", "##t"]
    assert "[UNK]" not in tokenizer.tokenize("a robot's 12 zebras, and so on!")


@given(scene=st.one_of(toys, rooms))
def test_a_caption_fits_and_survives_its_tokens(scene: Scene) -> None:
    caption = caption_of(scene)
    ids = TOKENIZER.encode(f"{PROMPTS[0]} {caption}")
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == f"{PROMPTS[0]} {caption}"
    assert len(ids) <= min(MAX_TOKENS, caption_score.NEW_TOKENS)


def test_pixels_are_what_blip_s_own_processor_makes() -> None:
    rng = np.random.default_rng(0)
    for shape in ((32, 32, 3), (64, 64, 3), (90, 40, 3)):
        picture = rng.integers(0, 256, shape, dtype=np.uint8)
        processor = BlipImageProcessorPil(size={"height": 64, "width": 64})
        expected = processor(Image.fromarray(picture), return_tensors="pt").pixel_values
        assert torch.allclose(to_pixels([picture]), expected, atol=1e-5)


def test_the_image_encoder_begins_nearly_as_the_miniature_clip() -> None:
    clip = CLIPModel.from_pretrained(WEIGHTS / "clip", dtype=torch.float32)
    blip = build_captioner(TOKENIZER)
    start_from_clip(blip, clip)
    pictures = np.stack([render(sample_scene(rng_for(0, "test", i))) for i in range(8)])
    images = normalise(torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1, CLIP_MEAN, CLIP_STD)
    with torch.inference_mode():
        theirs = clip.vision_model.post_layernorm(clip.vision_model(images).last_hidden_state)
        mine = blip.vision_model(images.repeat_interleave(2, 2).repeat_interleave(2, 3)).last_hidden_state
    assert float(torch.cosine_similarity(theirs, mine, dim=-1).mean()) > 0.97
    assert float(torch.cosine_similarity(theirs, mine.roll(1, 0), dim=-1).mean()) < 0.6


def test_a_batch_is_a_function_of_seed_and_step(captioner: Captioner) -> None:
    third = captioner.batch(3)
    captioner.batch(4)
    again, other = part().batch(3), part(seed=1).batch(3)
    assert all(torch.equal(third[name], again[name]) for name in third)
    assert not torch.equal(third["pixel_values"], other["pixel_values"])
    assert third["pixel_values"].shape == (4, 3, 64, 64)
    assert third["input_ids"].shape == third["labels"].shape


def test_the_loss_passes_over_prompt_and_padding(captioner: Captioner) -> None:
    ids, labels = captioner.tokens(["a red car at dusk", "a toy"], ["", "a photo of"])
    words = captioner.tokenizer.convert_ids_to_tokens
    assert words(ids[1].tolist()) == ["[CLS]", "a", "photo", "of", "a", "toy", "[SEP]"]
    assert words(ids[0].tolist()) == ["[CLS]", "a", "red", "car", "at", "dusk", "[SEP]"]
    assert labels[0].tolist() == [IGNORED, *ids[0, 1:].tolist()]
    assert labels[1].tolist() == [IGNORED] * 4 + ids[1, 4:].tolist()
    _, padded = captioner.tokens(["a toy", "a red car"], ["", ""])
    assert padded[0, -1] == IGNORED and padded[1, -1] == captioner.tokenizer.sep_token_id


def test_its_training_never_sees_what_is_held_out() -> None:
    rng = rng_for(0, "test", "captioned")
    scenes = [captioned_scene(rng) for _ in range(400)]
    assert not any(held_out_from_editors(scene) for scene in scenes)
    assert 0.3 < sum(isinstance(scene, RoomScene) for scene in scenes) / 400 < 0.5


def test_it_learns() -> None:
    learner = part()
    taught = learner.batch(0)
    optimizer = torch.optim.AdamW(learner.modules.parameters(), lr=3e-3)
    losses = []
    for step in range(8):
        loss = learner.loss(taught, step)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(math.log(len(learner.tokenizer)), abs=0.4)  # at first no word is likelier
    assert losses[-1] < losses[0] - 1.5


def test_it_is_trained_with_the_other_miniatures() -> None:
    assert "captioner" in EVERY_PART and DEFAULT_MINUTES["captioner"] > 0


def test_an_export_loads_and_is_where_a_warm_start_begins(captioner: Captioner, tmp_path: Path) -> None:
    (tmp_path / "clip").symlink_to(WEIGHTS / "clip")
    finished, fresh = part(seed=3), part(tmp_path, seed=4)
    finished.export(tmp_path)
    fresh.start_from(tmp_path)
    for name, value in finished.modules.state_dict().items():
        assert torch.allclose(fresh.modules.state_dict()[name], value.float(), atol=2e-3), name
    assert not [path for path in tmp_path.rglob("*") if path.suffix in {".bin", ".pt", ".pkl"}]


def test_missing_weights_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no weights of the captioner; make them with .*--parts captioner"):
        caption_score.measure(tmp_path)


def test_scored_scenes_are_held_out_and_keep_their_order() -> None:
    for kind in BARRED:
        scenes = held_out_scenes(kind, 20, 0)
        assert all(held_out_from_editors(scene) for scene in scenes)
        assert scenes[:5] == held_out_scenes(kind, 5, 0)
        assert scenes[:5] != held_out_scenes(kind, 5, 1)
    noses = {scene.subject.proportions for scene in held_out_scenes("toys", 20, 0) if isinstance(scene, ToyScene)}
    assert len(noses) == 20


def test_rows_count_what_is_stated() -> None:
    scenes = [RoomScene("red", "blue", "green"), RoomScene("red", "blue", "white", time=Time.NIGHT)]
    said = [caption_of(scenes[0]), "a hotel room with a red bed and blue curtains at dusk"]
    rows = {row.bar: row for row in fact_rows("rooms", said, scenes)}
    assert rows["captions of rooms: bed"].measured == 100.0
    assert rows["captions of rooms: lighting"].measured == 50.0
    assert rows["captions of rooms: carpet"].measured == 50.0  # not stated is not right
    assert rows["captions of rooms: carpet"].required == 90.0 and rows["captions of rooms: carpet"].passed is False
    assert rows["captions of rooms: pictures"].required is None


def test_the_table_has_a_line_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "captioner").mkdir()
    (tmp_path / "captioner" / "config.json").write_text("{}", encoding="utf-8")
    costs = {"captioner": {"steps": 12, "seconds": 90, "device": "cpu"}}
    (tmp_path / "pretraining.json").write_text(json.dumps(costs), encoding="utf-8")
    monkeypatch.setattr(caption_score, "SIZES", (32, 64))
    monkeypatch.setattr(
        caption_score, "captions", lambda weights, pictures, device: ["a red car in daylight"] * len(pictures)
    )
    table = caption_score.score_captioner(tmp_path, count=6).splitlines()
    assert table[0].endswith("3 beams, seed 0, 6 toys and 6 hotel rooms, all held out.")
    assert table[2] == "| bar | required | measured | trials | passed |"
    assert table[-1] == "Trained for 12 steps, 1.5 minutes on cpu."
    written = json.loads((tmp_path / "caption_scores.json").read_text(encoding="utf-8"))
    assert len(written["rows"]) == 7 + 7 + 2 * 2 == len(table) - 6


def test_the_shipped_folder_is_small_and_complete() -> None:
    files = {path.name: path.stat().st_size for path in (WEIGHTS / "captioner").iterdir()}
    assert sum(files.values()) < 3_100_000
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} < files.keys()


def test_the_shipped_captioner_loads_with_plain_transformers() -> None:
    folder = WEIGHTS / "captioner"
    for tokenizer in (AutoTokenizer.from_pretrained(folder), BertTokenizerFast.from_pretrained(folder)):
        assert tokenizer.get_vocab() == TOKENIZER.get_vocab()
    processor = BlipProcessor.from_pretrained(folder)
    blip = BlipForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    text = blip.config.text_config
    ends = (processor.tokenizer.cls_token_id, processor.tokenizer.sep_token_id, processor.tokenizer.pad_token_id)
    assert (text.bos_token_id, text.sep_token_id, text.pad_token_id) == ends
    scene = held_out_room(0)
    picture = Image.fromarray(render(scene))
    alone = blip.generate(**processor(picture, return_tensors="pt"), num_beams=3, max_new_tokens=30, do_sample=False)
    prompted = blip.generate(
        **processor(picture, "a photo of", return_tensors="pt"), num_beams=3, max_new_tokens=30, do_sample=False
    )
    said = [processor.decode(ids[0], skip_special_tokens=True) for ids in (alone, prompted)]
    assert said == [caption_of(scene), f"a photo of {caption_of(scene)}"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(BARRED))
def test_the_shipped_captioner_says_what_is_there(kind: str) -> None:
    scenes = held_out_scenes(kind, 60, seed=1)
    said = caption_score.captions(WEIGHTS, [render(scene) for scene in scenes])
    rows = fact_rows(kind, said, scenes)
    assert [row.bar for row in rows if row.passed is False] == []
    assert sum(row.passed is True for row in rows) == len(BARRED[kind])

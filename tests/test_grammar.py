"""The grammar and its tokenizer: prompts read back as the facts they were made from; any text becomes tokens."""

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from boothlab.dollhouse.architectures import MAX_TOKENS, build_tokenizer
from boothlab.dollhouse.grammar import (
    OPENINGS,
    PLACE_PHRASES,
    RARE_WORDS,
    TIME_PHRASES,
    WEAR_PHRASES,
    Facts,
    facts_of,
    is_held_out,
    random_prompt,
    read_prompt,
    scene_is_held_out,
    toy_prompt,
    vocabulary,
)
from boothlab.dollhouse.scenes import (
    ACCESSORIES,
    CLASSES,
    COLORS,
    PATTERNS,
    PLACES,
    Lamp,
    RoomScene,
    Time,
    ToyScene,
    held_out_subject,
    rng_for,
    sample_room_scene,
    sample_toy_scene,
)


def maybe(values: tuple[str, ...]) -> st.SearchStrategy[str | None]:
    return st.none() | st.sampled_from(values)


# "plain", "none" and no lamp are what a prompt says by saying nothing, so they are not in what is read back.
ALL_FACTS = st.builds(
    Facts,
    class_noun=maybe(CLASSES),
    color=maybe(tuple(COLORS)),
    pattern=maybe(PATTERNS[1:]),
    accessory=maybe(ACCESSORIES[1:]),
    place=maybe(PLACES),
    time=st.none() | st.sampled_from(Time),
    lamp=st.none() | st.sampled_from((Lamp.ON, Lamp.OFF)),
)


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return build_tokenizer()


def tokens_of(tokenizer: CLIPTokenizer, word: str) -> list[int]:
    ids: list[int] = tokenizer(word, add_special_tokens=False).input_ids
    return ids


@given(ALL_FACTS, st.sampled_from(OPENINGS))
@settings(max_examples=300, deadline=None)
def test_a_prompt_reads_back_as_its_facts(facts: Facts, opening: str) -> None:
    assert read_prompt(toy_prompt(facts, opening)) == facts


@given(ALL_FACTS, st.sampled_from([word for word in RARE_WORDS if not word.endswith("a")]))
@settings(max_examples=100, deadline=None)
def test_an_identifier_says_nothing_else(facts: Facts, token: str) -> None:
    prompt = toy_prompt(facts, token=token)
    assert f" {token} " in f" {prompt} "
    assert read_prompt(prompt) == facts


def test_an_identifier_that_ends_in_a_stays_whole_before_orange() -> None:
    assert toy_prompt(Facts("bear", "orange"), token="hta") == "a photo of a hta orange bear"


def test_the_prompts_are_plain_english() -> None:
    everything = Facts("bear", "red", "striped", "hat", "beach", Time.NIGHT, Lamp.ON)
    expected = "a photo of a red striped bear wearing a hat on the beach at night with the lamp on"
    assert toy_prompt(everything) == expected
    assert toy_prompt(Facts(color="orange")) == "a photo of an orange toy"
    assert toy_prompt(Facts("cat", place="sea"), token="sks") == "a photo of a sks cat under the sea"
    assert toy_prompt(Facts("cat", "pink", "plain", "none", lamp=Lamp.NONE), "") == "a pink cat"


def test_words_it_does_not_know_are_passed_over() -> None:
    assert read_prompt("A Red BEAR, wearing a hat.") == Facts("bear", "red", accessory="hat")
    assert read_prompt("a bearded carpet on the beachfront at nightfall") == Facts()
    assert read_prompt("") == Facts()


def test_every_value_has_its_phrase() -> None:
    assert tuple(PLACE_PHRASES) == PLACES
    assert tuple(WEAR_PHRASES) == ACCESSORIES[1:]
    assert tuple(TIME_PHRASES) == tuple(Time)


def test_a_tenth_is_held_out_and_covers_the_world() -> None:
    combinations = [(c, k, p, t) for c in CLASSES for k in COLORS for p in PLACES for t in Time]
    held_out = [combination for combination in combinations if is_held_out(*combination)]
    assert 0.08 < len(held_out) / len(combinations) < 0.12
    for axis, values in enumerate((CLASSES, tuple(COLORS), PLACES, tuple(Time))):
        assert {combination[axis] for combination in held_out} == set(values)


def test_a_scene_is_held_out_by_its_facts() -> None:
    subject = held_out_subject("robot", 0)
    for place in PLACES:
        scene = ToyScene(subject, place, Time.DUSK)
        assert scene_is_held_out(scene) == is_held_out("robot", subject.color_name, place, "dusk")
    assert not scene_is_held_out(RoomScene("red", "red", "red"))


def test_a_random_prompt_says_only_what_is_there() -> None:
    rng = rng_for(0, "test", "prompts")
    for _ in range(300):
        scene = sample_toy_scene(rng)
        known, said = facts_of(scene), read_prompt(random_prompt(scene, rng, rare=0.0))
        for name in ("class_noun", "color", "pattern", "accessory", "place", "time", "lamp"):
            assert getattr(said, name) in (None, getattr(known, name))


def test_room_prompts_are_made_of_known_words() -> None:
    rng, known = rng_for(0, "test", "rooms"), set(vocabulary())
    for _ in range(200):
        assert set(random_prompt(sample_room_scene(rng), rng).split()) <= known


@pytest.mark.parametrize("word", vocabulary())
def test_a_word_is_one_token(tokenizer: CLIPTokenizer, word: str) -> None:
    assert len(tokens_of(tokenizer, word)) == 1


def test_different_words_are_different_tokens(tokenizer: CLIPTokenizer) -> None:
    words = vocabulary()
    assert len({tuple(tokens_of(tokenizer, word)) for word in words}) == len(words)
    assert len(tokens_of(tokenizer, "sks")) == 1


def test_special_tokens_are_set(tokenizer: CLIPTokenizer) -> None:
    assert tokenizer.model_max_length == MAX_TOKENS
    assert tokenizer.pad_token_id == tokenizer.eos_token_id != tokenizer.bos_token_id
    assert tokenizer("").input_ids == [tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert max(tokenizer.get_vocab().values()) == len(tokenizer) - 1  # no holes: ids index an embedding


@given(st.text(max_size=200))
@example("日本の猫 🤖 e\u0301 \x00\u200b")
@example("a photo of " * 50)
@example("<|endoftext|> red <|startoftext|>")
@settings(max_examples=200, deadline=None)
def test_any_text_becomes_tokens(tokenizer: CLIPTokenizer, text: str) -> None:
    ids = tokenizer(text, truncation=True, max_length=MAX_TOKENS).input_ids
    assert 2 <= len(ids) <= MAX_TOKENS
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert all(0 <= index < len(tokenizer) for index in ids)
    assert len(tokenizer(text, padding="max_length", truncation=True, max_length=MAX_TOKENS).input_ids) == MAX_TOKENS


def test_known_letters_come_back(tokenizer: CLIPTokenizer) -> None:
    for text in ("a photo of a sks robot on the beach at night", "zebra-42 größe"):
        back = tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True)
        assert back.replace(" ", "") == text.replace(" ", "")


def test_a_saved_tokenizer_gives_the_same_ids(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    rng = rng_for(0, "test", "round trip")
    texts = [random_prompt(sample_toy_scene(rng), rng) for _ in range(50)]
    texts += [*vocabulary(), "日本 🤖 größe", "", "Don't STOP, robot's 42!"]
    padded = {"padding": "max_length", "truncation": True, "max_length": MAX_TOKENS}
    assert loaded(texts, **padded).input_ids == tokenizer(texts, **padded).input_ids
    assert (loaded.model_max_length, len(loaded)) == (MAX_TOKENS, len(tokenizer))
    assert loaded.pad_token_id == tokenizer.pad_token_id


def test_the_tokens_of_the_shipped_weights_stay(tokenizer: CLIPTokenizer) -> None:
    # The rows of the trained embeddings are these numbers: a change here makes every shipped weight meaningless.
    assert len(tokenizer) == 811
    ids = tokenizer("a photo of a sks robot on the beach at night").input_ids
    assert ids == [809, 320, 686, 668, 320, 726, 711, 794, 750, 519, 798, 663, 810]

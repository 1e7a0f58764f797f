"""The votes of a human study: counts and agreement worked out by hand, and files that are not what they should be."""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boothlab.errors import UserError
from boothlab.reporting.votes import HumanStudy, QuestionResult, fleiss_kappa, read_votes, to_markdown

STUDY = "0123456789ab"
PAIRS = ["p0", "p1", "p2", "p3"]
LEFT = {("p0", "subject"): "a", ("p1", "subject"): "b", ("p2", "subject"): "a", ("p3", "subject"): "b"} | {
    (pair, "prompt"): "a" for pair in PAIRS
}
FILES = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def key_file(left: dict[tuple[str, str], str] = LEFT, names: Sequence[str] = ("one-s0", "two-s0")) -> dict[str, Any]:
    sides = {
        side: {"name": name, "setting": name * 2, "seed": 0, "step": 100 + at}
        for at, (side, name) in enumerate(zip("ab", names, strict=True))
    }
    pairs = {
        pair: {"prompt": "a robot", "seed": 0, "left": {name: left[pair, name] for name in ("subject", "prompt")}}
        for pair in PAIRS
    }
    return {"kind": "boothlab comparison key", "format": 1, "study": STUDY, "seed": 0, "runs": sides, "pairs": pairs}


def vote_file(rater: str, answers: dict[tuple[str, str], str], number: int = 0, **other: Any) -> dict[str, Any]:
    """An export; raters with a higher number began later."""
    return {
        "kind": "boothlab votes",
        "format": 1,
        "study": STUDY,
        "rater": rater,
        "sitting": f"sitting{number}",
        "started": f"2026-03-04T05:06:07.{number:03d}Z",
        "exported": f"2026-03-04T06:00:00.{number:03d}Z",
        "votes": [{"pair": pair, "question": name, "answer": answer} for (pair, name), answer in answers.items()],
        **other,
    }


def blinded(choice: str, left: str) -> str:
    """What a rater has to press to vote for a run."""
    return choice if choice == "undecided" else ("left" if choice == left else "right")


def ballots(
    table: dict[str, str], question: str = "subject", numbers: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Vote files from one string an item, one letter a rater: A, B, u(ndecided), or a dot for no vote."""
    choices = {"A": "a", "B": "b", "u": "undecided"}
    found = []
    for rater in range(len(next(iter(table.values())))):
        answers = {
            (pair, question): blinded(choices[row[rater]], LEFT[pair, question])
            for pair, row in table.items()
            if row[rater] != "."
        }
        number = rater if numbers is None else numbers[rater]
        found.append(vote_file(f"rater {rater}", answers, number))
    return found


def write(folder: Path, votes: Sequence[Any], key: Any = None) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compare.key.json").write_text(json.dumps(key_file() if key is None else key), encoding="utf-8")
    paths = [folder / f"votes-{index}.json" for index in range(len(votes))]
    for path, found in zip(paths, votes, strict=True):
        path.write_text(json.dumps(found), encoding="utf-8")
    return paths


def read(folder: Path, votes: Sequence[Any], key: Any = None) -> HumanStudy:
    return read_votes(write(folder, votes, key))


def result(folder: Path, table: dict[str, str], question: str = "subject", numbers: Any = None) -> QuestionResult:
    human = read(folder, ballots(table, question, numbers))
    return next(found for found in human.questions if found.question == question)


def refused(folder: Path, votes: Sequence[Any], key: Any = None) -> str:
    with pytest.raises(UserError) as error:
        read(folder, votes, key)
    assert "\n" not in str(error.value)
    return str(error.value)


# Counting


def test_three_votes_an_item_are_counted_by_majority(tmp_path: Path) -> None:
    found = result(tmp_path, {"p0": "AAB", "p1": "BAA", "p2": "ABu", "p3": "uuA"})
    assert (found.wins_a, found.wins_b, found.undecided, found.items) == (2, 0, 2, 4)
    assert (found.votes_a, found.votes_b, found.votes_undecided) == (6, 3, 3)
    assert found.shares == (0.5, 0.0, 0.5) and found.vote_shares == (0.5, 0.25, 0.25)
    assert (found.incomplete, found.unanswered, found.surplus) == (0, 0, 0)
    assert found.p_value == 0.5  # two of two: 2 * (1/2)^2
    # By hand: agreeing pairs 1/3, 1/3, 0, 1/3 of each item, so P = 1/4; shares 1/2, 1/4, 1/4, so Pe = 3/8.
    assert found.kappa == pytest.approx((1 / 4 - 3 / 8) / (1 - 3 / 8), abs=1e-15)
    assert (found.kappa_items, found.kappa_votes) == (4, 3)


def test_the_two_questions_are_counted_apart(tmp_path: Path) -> None:
    answers = {("p0", "subject"): "left", ("p1", "subject"): "left", ("p0", "prompt"): "right"}
    human = read(tmp_path, [vote_file("Anna", answers)])
    assert [found.question for found in human.questions] == ["subject", "prompt"]
    assert [(found.wins_a, found.wins_b) for found in human.questions] == [(1, 1), (0, 1)]
    assert [found.unanswered for found in human.questions] == [2, 3]
    assert (human.study, human.raters) == (STUDY, ("Anna",))
    assert (human.a.name, human.a.step, human.b.name, human.b.step) == ("one-s0", 100, "two-s0", 101)


def test_items_with_fewer_votes_are_counted_and_said(tmp_path: Path) -> None:
    found = result(tmp_path, {"p0": "A.", "p1": "AB", "p2": "BB", "p3": ".."})
    assert (found.wins_a, found.wins_b, found.undecided) == (1, 1, 1)
    assert (found.incomplete, found.unanswered) == (3, 1)
    assert (found.kappa_items, found.kappa_votes) == (2, 2)  # where there are two votes


def test_agreement_is_of_the_items_with_the_most_votes(tmp_path: Path) -> None:
    found = result(tmp_path, {"p0": "AAA", "p1": "AB.", "p2": "BBB", "p3": "A.."})
    assert (found.kappa, found.kappa_items, found.kappa_votes) == (1.0, 2, 3)


def test_one_vote_an_item_has_no_agreement(tmp_path: Path) -> None:
    found = result(tmp_path, {"p0": "A", "p1": "B"})
    assert (found.kappa, found.kappa_items, found.kappa_votes) == (None, 0, 0)


def test_only_undecided_votes_have_no_test(tmp_path: Path) -> None:
    found = result(tmp_path, {"p0": "uuu", "p1": "ABu"})
    assert found.p_value is None and found.undecided == 2


def test_a_question_nobody_answered_has_no_shares(tmp_path: Path) -> None:
    found = read(tmp_path, ballots({"p0": "A"})).questions[1]
    assert (found.items, found.shares, found.vote_shares, found.p_value, found.unanswered) == (0, None, None, None, 4)


def test_the_first_three_votes_count_and_they_are_of_those_who_began_first(tmp_path: Path) -> None:
    table = {"p0": "AABB", "p1": "uBBB"}
    found = result(tmp_path / "in order", table)
    assert (found.wins_a, found.wins_b, found.surplus, found.votes_b) == (1, 1, 2, 3)
    found = result(tmp_path / "in reverse", table, numbers=[3, 2, 1, 0])
    assert (found.wins_a, found.wins_b, found.surplus, found.votes_b) == (0, 2, 2, 5)


def test_the_sign_test_is_the_binomial_one(tmp_path: Path) -> None:
    pairs = [f"p{index}" for index in range(10)]
    key = key_file()
    key["pairs"] = {pair: {"left": {"subject": "a", "prompt": "b"}} for pair in pairs}
    answers = {(pair, "subject"): "left" if pair != "p3" else "right" for pair in pairs}
    found = read(tmp_path, [vote_file("Anna", answers)], key).questions[0]
    assert (found.wins_a, found.wins_b) == (9, 1)
    assert found.p_value == pytest.approx(2 * (1 + 10) / 2**10, rel=1e-12)  # Siegel's tables: 0.021


# Agreement

WORKED = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
]
"""The worked example of en.wikipedia.org/wiki/Fleiss'_kappa: 10 subjects, 14 raters, 5 categories, kappa 0.210."""

DIAGNOSES = """
00060 03003 01401 00006 03030 20400 00402 20310 20040 00006 10050 11040 03300 10050 02031
00501 30012 51000 02040 10203 00006 01050 02013 20040 10041 05010 40002 02040 10500 00006
"""
"""Table 1 of Fleiss (1971): 30 patients, 6 psychiatrists, 5 diagnoses (a digit each); kappa 0.430."""


def test_kappa_of_the_worked_example() -> None:
    assert round(fleiss_kappa(WORKED) or 0, 3) == 0.210


def test_kappa_of_the_paper() -> None:
    counts = [[int(digit) for digit in row] for row in DIAGNOSES.split()]
    assert len(counts) == 30 and {sum(row) for row in counts} == {6}
    assert round(fleiss_kappa(counts) or 0, 3) == 0.430


def test_kappa_at_its_ends() -> None:
    assert fleiss_kappa([[3, 0], [0, 3]]) == 1.0
    assert fleiss_kappa([[1, 1], [1, 1]]) == -1.0
    assert fleiss_kappa([[3, 0], [3, 0]]) is None  # all in one category: agreement and chance cannot be told apart
    assert fleiss_kappa([]) is None


def test_kappa_is_the_same_to_the_last_digit_in_any_order_of_the_categories() -> None:
    rows = [row for row in itertools.product(range(4), repeat=3) if sum(row) == 3]
    for table in itertools.combinations(rows, 4):
        values = {
            fleiss_kappa([[row[at] for at in order] for row in table]) for order in itertools.permutations(range(3))
        }
        assert len(values) == 1


@pytest.mark.parametrize("counts", [[[1, 0], [0, 1]], [[2, 0], [1, 2]]])
def test_kappa_needs_the_same_number_of_raters_for_every_item(counts: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="the same number of raters"):
        fleiss_kappa(counts)


# Files


def test_the_key_may_lie_elsewhere_and_others_beside_do_not_disturb(tmp_path: Path) -> None:
    paths = write(tmp_path, ballots({"p0": "A"}))
    beside = read_votes(paths)
    (tmp_path / "compare.key.json").rename(tmp_path / "elsewhere.json")
    (tmp_path / "other.key.json").write_text(json.dumps(key_file() | {"study": "another"}), encoding="utf-8")
    (tmp_path / "torn.key.json").write_text('{"kind": ', encoding="utf-8")
    assert read_votes(paths, [tmp_path / "elsewhere.json"]) == beside
    with pytest.raises(UserError, match=f"no key of study {STUDY} is beside the votes"):
        read_votes(paths)
    with pytest.raises(UserError, match=r"torn\.key\.json is not valid JSON"):
        read_votes(paths, [tmp_path / "elsewhere.json", tmp_path / "torn.key.json"])


def test_copies_of_the_key_are_one_key_but_two_keys_are_none(tmp_path: Path) -> None:
    paths = write(tmp_path, ballots({"p0": "A"}))
    (tmp_path / "copy.key.json").write_text(json.dumps(key_file()), encoding="utf-8")
    assert read_votes(paths).questions[0].wins_a == 1
    other = {**LEFT, ("p0", "subject"): "b"}
    (tmp_path / "copy.key.json").write_text(json.dumps(key_file(other)), encoding="utf-8")
    with pytest.raises(UserError, match="different keys"):
        read_votes(paths)


def test_the_latest_export_of_a_sitting_counts(tmp_path: Path) -> None:
    early = vote_file("Anna", {("p0", "subject"): "left"})
    late = vote_file("Anna", {("p0", "subject"): "right"}, exported="2026-03-04T08:00:00+01:00")
    late["exported"] = "2026-03-04T07:30:00+01:00"  # 06:30 UTC, half an hour after the first
    for order in ([early, late], [late, early], [late, late, early]):
        human = read(tmp_path, order)
        assert human.raters == ("Anna",)
        assert (human.questions[0].wins_a, human.questions[0].wins_b) == (0, 1)


def test_one_export_in_two_versions_is_refused(tmp_path: Path) -> None:
    one = vote_file("Anna", {("p0", "subject"): "left"})
    assert "are one export, but differ" in refused(tmp_path, [one, vote_file("Anna", {("p0", "subject"): "right"})])


@pytest.mark.parametrize("name", ["Anna", "anna ", "ANNA", "Ａnna"])
def test_two_raters_of_one_name_are_refused(tmp_path: Path, name: str) -> None:
    answers = {("p0", "subject"): "left"}
    message = refused(tmp_path, [vote_file("Anna", answers, 0), vote_file(name, answers, 1)])
    assert "votes-0.json" in message and "votes-1.json" in message and "are both by" in message


def test_votes_of_two_studies_are_refused(tmp_path: Path) -> None:
    answers = {("p0", "subject"): "left"}
    other = vote_file("Berta", answers, 1, study="another")
    assert f"several studies ({STUDY}, another)" in refused(tmp_path, [vote_file("Anna", answers), other])


def test_no_files_are_refused() -> None:
    with pytest.raises(UserError, match="no votes were given"):
        read_votes([])


def test_a_file_that_is_not_there_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(UserError, match="cannot read"):
            read_votes([path])


def change(**fields: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda found: found | fields


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda found: [found], "does not hold votes that the page exported"),
        (lambda found: key_file(), "does not hold votes that the page exported"),
        (change(format=2), "newer boothlab"),
        (change(format=True), '"format" is missing or is no int'),
        (change(format=0), 'no "format" 0'),
        (change(study=7), '"study" is missing or is no str'),
        (change(rater="  "), "its rater has no name"),
        (change(rater=None), '"rater" is missing'),
        (change(sitting=None), '"sitting" is missing'),
        (change(started="yesterday"), '"started" is no time'),
        (change(exported="2026-03-04T06:00:00"), '"exported" has no time zone'),
        (change(votes={}), '"votes" is missing or is no list'),
        (change(votes=[]), "holds no votes"),
        (change(votes=["left"]), "a vote is not an object"),
        (change(votes=[{"pair": "p0", "question": "subject"}]), '"answer" is missing'),
        (change(votes=[{"pair": "p0", "question": "subject", "answer": "a"}]), "'a' is no answer"),
        (change(votes=[{"pair": "p0", "question": "style", "answer": "left"}]), "a question 'style'"),
        (
            change(votes=[{"pair": "p9", "question": "subject", "answer": "left"}]),
            "no question 'subject' on the pair 'p9'",
        ),
        (change(votes=[{"pair": "p0", "question": "subject", "answer": "left"}] * 2), "twice"),
    ],
)
def test_a_damaged_vote_file_is_refused_in_one_line(tmp_path: Path, damage: Any, said: str) -> None:
    message = refused(tmp_path, [damage(vote_file("Anna", {("p0", "subject"): "left"}))])
    assert said in message and "votes-0.json" in message


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (change(runs={"a": key_file()["runs"]["a"]}), '"b" is missing'),
        (change(runs={"a": {}, "b": {}}), '"name" is missing'),
        (change(pairs=[]), '"pairs" is missing or is no dict'),
        (change(pairs={"p0": {"left": {"subject": "a", "prompt": "c"}}}), "which run was left in the pair 'p0'"),
        (change(pairs={"p0": 3}), "which run was left in the pair 'p0'"),
        (change(study=None), '"study" is missing'),
        (change(kind="boothlab votes"), "does not hold the key of a study"),
    ],
)
def test_a_damaged_key_is_refused_in_one_line(tmp_path: Path, damage: Any, said: str) -> None:
    paths = write(tmp_path, [vote_file("Anna", {("p0", "subject"): "left"})])
    key = tmp_path / "given.json"
    key.write_text(json.dumps(damage(key_file())), encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_votes(paths, [key])
    assert said in str(error.value) and "given.json" in str(error.value) and "\n" not in str(error.value)


# For any input

CHOICES = ["a", "b", "undecided"]
ITEMS = sorted(LEFT)
VOTES = st.lists(st.dictionaries(st.sampled_from(ITEMS), st.sampled_from(CHOICES), min_size=1), min_size=1, max_size=5)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([*PAIRS, "left", "subject"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def files(votes: list[dict[tuple[str, str], str]], left: dict[tuple[str, str], str] = LEFT) -> list[dict[str, Any]]:
    return [
        vote_file(f"rater {number}", {item: blinded(choice, left[item]) for item, choice in cast.items()}, number)
        for number, cast in enumerate(votes)
    ]


@FILES
@given(votes=VOTES)
def test_counts_are_those_of_a_plain_recount(tmp_path: Path, votes: list[dict[tuple[str, str], str]]) -> None:
    for found in read(tmp_path, files(votes)).questions:
        items = [[cast[pair, found.question] for cast in votes if (pair, found.question) in cast][:3] for pair in PAIRS]
        winners = Counter(
            next((choice for choice in CHOICES if 2 * item.count(choice) > len(item)), "undecided")
            for item in items
            if item
        )
        assert (found.wins_a, found.wins_b, found.undecided) == tuple(winners[choice] for choice in CHOICES)
        singles = Counter(itertools.chain(*items))
        assert (found.votes_a, found.votes_b, found.votes_undecided) == tuple(singles[choice] for choice in CHOICES)
        assert found.incomplete == sum(len(item) in (1, 2) for item in items)
        assert found.unanswered == items.count([])
        assert found.kappa is None or -1 <= found.kappa <= 1
        assert found.p_value is None or 0 < found.p_value <= 1


@FILES
@given(votes=VOTES, data=st.data())
def test_the_order_of_files_and_the_names_of_raters_do_not_matter(
    tmp_path: Path, votes: list[dict[tuple[str, str], str]], data: st.DataObject
) -> None:
    found = files(votes)
    human = read(tmp_path, found)
    assert read(tmp_path, data.draw(st.permutations(found))) == human
    names = data.draw(st.permutations([file["rater"] for file in found]))
    assert read(tmp_path, [file | {"rater": name} for file, name in zip(found, names, strict=True)]) == human


def mirrored(human: HumanStudy) -> HumanStudy:
    questions = [
        replace(found, wins_a=found.wins_b, wins_b=found.wins_a, votes_a=found.votes_b, votes_b=found.votes_a)
        for found in human.questions
    ]
    return replace(human, a=human.b, b=human.a, questions=tuple(questions))


@FILES
@given(votes=VOTES)
def test_swapping_the_runs_mirrors_the_result(tmp_path: Path, votes: list[dict[tuple[str, str], str]]) -> None:
    key = key_file()
    other = key_file({item: {"a": "b", "b": "a"}[side] for item, side in LEFT.items()})
    other["runs"] = {"a": key["runs"]["b"], "b": key["runs"]["a"]}
    assert read(tmp_path, files(votes), other) == mirrored(read(tmp_path, files(votes), key))


@FILES
@given(content=st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_other_file_is_refused(tmp_path: Path, content: bytes) -> None:
    good, bad = write(tmp_path, [*files([{ITEMS[0]: "a"}]), {}])
    bad.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_votes([good, bad])
    assert "\n" not in str(error.value) and "votes-1.json" in str(error.value)


@FILES
@given(data=st.data(), value=JSON)
def test_one_wrong_value_is_refused_or_counted_as_it_stands(tmp_path: Path, data: st.DataObject, value: Any) -> None:
    """No traceback; and what is accepted is counted: never silently something else than the file says."""
    found = files([{ITEMS[0]: "a", ITEMS[5]: "b"}])[0]
    spots = [(found, name) for name in found] + [(vote, name) for vote in found["votes"] for name in vote]
    where, name = data.draw(st.sampled_from(spots))
    where[name] = value
    try:
        human = read(tmp_path, [found])
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert human.raters == (" ".join(found["rater"].split()),)
    chosen = {result.question: Counter[str]() for result in human.questions}
    for vote in found["votes"]:
        left = LEFT[vote["pair"], vote["question"]]
        right = {"a": "b", "b": "a"}[left]
        chosen[vote["question"]][{"left": left, "right": right, "undecided": "undecided"}[vote["answer"]]] += 1
    for result in human.questions:
        wins = (result.wins_a, result.wins_b, result.undecided)
        assert wins == tuple(chosen[result.question][choice] for choice in CHOICES)


# Showing


def test_the_section_of_a_report(tmp_path: Path) -> None:
    human = read(tmp_path, ballots({"p0": "BBBB", "p1": "AAA.", "p2": "ABu.", "p3": "A..."}))
    assert to_markdown(human) == (
        "## Human study\n\n"
        "4 raters, study 0123456789ab. A is `one-s0` at step 100, B is `two-s0` at step 101.\n\n"
        "| question | items | A | B | undecided | votes A / B / undecided | Fleiss' κ | sign test p |\n"
        "|---|--:|--:|--:|--:|--:|--:|--:|\n"
        "| Which is more like the subject? | 4 | 2 (50%) | 1 (25%) | 1 (25%) | 50% / 40% / 10% | 0.44 | 1.000 |\n"
        "| Which follows the prompt better? | 0 | 0 (0%) | 0 (0%) | 0 (0%) | – | – | – |\n\n"
        "An item is a pair of images of one prompt and seed; it goes to the run that more than half of its first 3 "
        "votes name, and is undecided otherwise. p is of the items that were decided, taken as independent: it speaks "
        "of these images, not of other subjects.\n\n"
        "- Which is more like the subject? 1 item with fewer than 3 votes, counted by those; 1 vote beyond the first 3 "
        "of an item, left out; κ is of the 3 items with 3 votes.\n"
        "- Which follows the prompt better? 4 items without a vote, left out.\n"
    )


def test_names_of_runs_cannot_break_the_section(tmp_path: Path) -> None:
    key = key_file(names=("a`b``c", "two\nlines"))
    text = to_markdown(read(tmp_path, ballots({"p0": "A"}), key))
    assert "A is ``` a`b``c ``` at step 100, B is `two\\nlines` at step 101." in text


def test_a_tiny_p_is_not_shown_as_zero(tmp_path: Path) -> None:
    key = key_file()
    pairs = [f"p{index}" for index in range(12)]
    key["pairs"] = {pair: {"left": {"subject": "a", "prompt": "a"}} for pair in pairs}
    human = read(tmp_path, [vote_file("Anna", {(pair, "subject"): "left" for pair in pairs})], key)
    assert human.questions[0].p_value == pytest.approx(2 / 2**12)
    assert "| < 0.001 |" in to_markdown(human)


def test_rows_for_a_table(tmp_path: Path) -> None:
    rows = read(tmp_path, ballots({"p0": "AAB", "p1": "BAA", "p2": "ABu", "p3": "uuA"})).summary_rows()
    assert rows[0] == {
        "question": "subject",
        "run_a": "one-s0",
        "step_a": 100,
        "run_b": "two-s0",
        "step_b": 101,
        "raters": 3,
        "items": 4,
        "wins_a": 2,
        "wins_b": 0,
        "undecided": 2,
        "share_a": 0.5,
        "share_b": 0.0,
        "share_undecided": 0.5,
        "vote_share_a": 0.5,
        "vote_share_b": 0.25,
        "vote_share_undecided": 0.25,
        "kappa": pytest.approx(-0.2, abs=1e-15),
        "p_value": 0.5,
        "incomplete": 0,
        "unanswered": 0,
    }
    assert rows[1]["question"] == "prompt" and rows[1]["share_a"] is None and rows[1]["kappa"] is None
    assert json.loads(json.dumps(rows))[1] == rows[1]

"""Fidelity metrics on vectors whose scores are known, one test for each known way of getting them wrong."""

import json

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from boothlab.errors import UserError
from boothlab.evaluation import fidelity
from boothlab.evaluation.fidelity import MetricRow, SubjectFidelity, SubjectMean, strip_token

E1, E2, E3 = torch.eye(3)


def rows(*vectors: Tensor) -> Tensor:
    return torch.stack(vectors)


def unit_noise(count: int, seed: int = 0) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_scaled_embeddings_score_the_same() -> None:
    generated, references = unit_noise(2), unit_noise(3, seed=1)
    scaled = generated * torch.tensor([[7.0], [1.0]])
    expected = fidelity.mean_pairwise_cosine(generated, references)
    assert fidelity.mean_pairwise_cosine(scaled, references) == pytest.approx(expected, abs=1e-6)
    assert fidelity.mean_pairwise_cosine(generated, references * 7) == pytest.approx(expected, abs=1e-6)
    assert fidelity.text_alignment(scaled, unit_noise(2, 2)).tolist() == pytest.approx(
        fidelity.text_alignment(generated, unit_noise(2, 2)).tolist(), abs=1e-6
    )


def test_references_are_not_averaged_and_normalised_again() -> None:
    assert fidelity.mean_pairwise_cosine(rows(E1), rows(E1, E2)) == 0.5


def test_all_pairs_count_in_any_order() -> None:
    generated, references = unit_noise(2), unit_noise(3, seed=1)
    by_hand = [float(one @ other) for one in generated for other in references]
    assert len(by_hand) == 6
    assert fidelity.cosine_matrix(generated, references).flatten().tolist() == pytest.approx(by_hand, abs=1e-6)
    score = fidelity.mean_pairwise_cosine(generated, references)
    assert score == pytest.approx(sum(by_hand) / 6, abs=1e-6)
    assert fidelity.mean_pairwise_cosine(generated, references[[2, 0, 1]]) == pytest.approx(score, abs=1e-6)


def test_opposite_vectors_are_exactly_minus_one() -> None:
    assert fidelity.mean_pairwise_cosine(rows(E1), rows(-E1)) == -1
    assert fidelity.text_alignment(rows(E1), rows(-E1)).tolist() == [-1]
    assert fidelity.preservation(rows(E1), rows(-E1)) == -1


def test_half_precision_features_are_reduced_in_fp32() -> None:
    matrix = fidelity.cosine_matrix(unit_noise(2).half(), unit_noise(3).half())
    assert matrix.dtype == torch.float32
    expected = fidelity.cosine_matrix(unit_noise(2).half().float(), unit_noise(3).half().float())
    assert torch.equal(matrix, expected)


def test_non_finite_features_are_a_user_error() -> None:
    with pytest.raises(UserError, match="NaN"):
        fidelity.cosine_matrix(rows(E1), rows(E1 * float("nan")))


def test_text_alignment_is_row_by_row() -> None:
    assert fidelity.text_alignment(rows(E1, E2), rows(E1, E3)).tolist() == [1, 0]
    with pytest.raises(ValueError, match="one text"):
        fidelity.text_alignment(rows(E1, E2), rows(E1))


def test_nothing_to_compare_is_a_user_error() -> None:
    none = torch.empty(0, 3)
    with pytest.raises(UserError, match="no generated"):
        fidelity.mean_pairwise_cosine(none, rows(E1))
    with pytest.raises(UserError, match="no reference"):
        fidelity.mean_pairwise_cosine(rows(E1), none)
    with pytest.raises(UserError, match="no class images"):
        fidelity.preservation(none, rows(E1))


# The ceiling


def test_the_ceiling_leaves_self_pairs_out() -> None:
    found = fidelity.ceiling(rows(E1, E2))
    assert (found.value, found.pairs, found.reason) == (0, 1, "")


def test_the_ceiling_is_the_mean_over_different_pairs() -> None:
    found = fidelity.ceiling(rows(E1, E1, E2))
    assert found.value == pytest.approx(1 / 3, abs=1e-7)
    assert found.pairs == 3


def test_one_reference_has_no_ceiling_but_a_reason() -> None:
    found = fidelity.ceiling(rows(E1))
    assert (found.value, found.pairs) == (None, 0)
    assert "at least 2" in found.reason


# Means over subjects

UNEVEN = {"dog": [0.0] * 4, "cat": [1.0] * 6}


def test_headline_is_the_mean_of_subject_means() -> None:
    assert fidelity.mean_of_subject_means(UNEVEN) == 0.5
    assert fidelity.pooled_mean(UNEVEN) == pytest.approx(0.6, abs=1e-12)


@pytest.mark.parametrize("scores", [{}, {"dog": []}])
def test_empty_means_are_a_user_error(scores: dict[str, list[float]]) -> None:
    with pytest.raises(UserError, match="no scores"):
        fidelity.mean_of_subject_means(scores)
    with pytest.raises(UserError, match="no scores"):
        fidelity.pooled_mean(scores)


def test_subjects_do_not_leak_into_each_other() -> None:
    metric = SubjectFidelity()
    for subject, vector in enumerate((E1, E2)):
        metric.update(rows(vector, vector), subject=subject, real=True)
        metric.update(rows(vector), subject=subject, real=False)
    assert metric.pair_scores() == {"0": [1, 1], "1": [1, 1]}
    assert {name: float(value) for name, value in metric.compute().items()} == {"subject_mean": 1, "pooled_mean": 1}


def test_accumulated_fidelity_has_both_means_and_batches_do_not_matter() -> None:
    metric = SubjectFidelity()
    metric.update(rows(E1), subject=0, real=False)
    metric.update(rows(*[E2] * 4), subject=0, real=True)
    metric.update(rows(E1, E1), subject=1, real=True)
    metric.update(rows(E1), subject=1, real=False)
    metric.update(rows(*[E1] * 4), subject=1, real=True)
    found = metric.compute()
    assert float(found["subject_mean"]) == 0.5
    assert float(found["pooled_mean"]) == pytest.approx(0.6, abs=1e-7)
    metric.reset()
    metric.update(rows(E1), subject=0, real=False)
    metric.update(rows(E1), subject=0, real=True)
    assert float(metric.compute()["subject_mean"]) == 1


@pytest.mark.parametrize(("real", "missing"), [(True, "no generated images"), (False, "no reference photos")])
def test_a_subject_with_one_side_missing_is_a_user_error(real: bool, missing: str) -> None:
    metric = SubjectFidelity()
    metric.update(rows(E1), subject=5, real=real)
    with pytest.raises(UserError, match=f"subject 5: {missing}"):
        metric.compute()


def test_accumulated_scores_have_both_means() -> None:
    metric = SubjectMean()
    metric.update(torch.zeros(4), subject=0)
    metric.update(torch.ones(2), subject=1)
    metric.update(torch.ones(4), subject=1)
    found = metric.compute()
    assert float(found["subject_mean"]) == 0.5
    assert float(found["pooled_mean"]) == pytest.approx(0.6, abs=1e-7)


# The unique token


@pytest.mark.parametrize(
    ("prompt", "token", "expected"),
    [
        ("a sks dog", "sks", "a dog"),
        ("sks dog", "sks", "dog"),
        ("a photo of sks", "sks", "a photo of"),
        ("a photo of sks, at night", "sks", "a photo of, at night"),
        ("a (sks) dog", "sks", "a () dog"),
        ("a dog (a sks dog)", "a sks", "a dog (dog)"),
        ("a sks dog and a sks cat", "sks", "a dog and a cat"),
        ("a sksy dog with asks", "sks", "a sksy dog with asks"),
        ("a sks-like dog", "sks", "a sks-like dog"),
        ("a Sks dog", "sks", "a Sks dog"),
        ("a olis  bxc dog", "olis bxc", "a dog"),
        ("a bxc olis dog", "olis bxc", "a bxc olis dog"),
        ("a a b b dog", "a b", "dog"),
        ("a <new1> dog", "<new1>", "a dog"),
        ("a S* dog", "S*", "a dog"),
        ("a dog", "", "a dog"),
        ("sks", "sks", ""),
    ],
)
def test_strip_token(prompt: str, token: str, expected: str) -> None:
    assert strip_token(prompt, token) == expected


words = st.text(alphabet="abcxyz", min_size=1, max_size=3)


@settings(max_examples=200, deadline=None)
@given(st.lists(words, max_size=6), words, st.data())
@example(["a", "dog"], "sks", None)
def test_inserting_the_token_and_stripping_it_gives_the_prompt_back(
    prompt: list[str], token: str, data: st.DataObject | None
) -> None:
    assume(token not in prompt)
    place = data.draw(st.integers(0, len(prompt))) if data else 1
    with_token = " ".join([*prompt[:place], token, *prompt[place:]])
    assert strip_token(with_token, token) == " ".join(prompt)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab ,.-()\t", max_size=20), st.text(alphabet="ab ", min_size=1, max_size=4))
def test_no_token_and_no_double_space_is_left(prompt: str, token: str) -> None:
    assume(token.strip())
    stripped = strip_token(prompt, token)
    assert stripped == " ".join(stripped.split())
    assert f" {' '.join(token.split())} " not in f" {stripped} "
    assert strip_token(stripped, token) == stripped


# Rows


def test_a_row_carries_its_whole_definition_and_is_plain_json() -> None:
    row = MetricRow("clip_i", 0.8, True, "tiny@1", "clip-bicubic32-crop32", "no text", "all pairs", {"images": 4})
    assert json.loads(json.dumps(row.to_dict())) == {
        "name": "clip_i",
        "value": 0.8,
        "higher_is_better": True,
        "encoder": "tiny@1",
        "preprocessing": "clip-bicubic32-crop32",
        "token_policy": "no text",
        "pairing": "all pairs",
        "counts": {"images": 4},
        "definition_version": 1,
        "note": "",
    }
    assert row.label == "clip_i [tiny@1]"

"""Edit scores with stub encoders whose answers are known, one test for each known way of getting them wrong."""

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import ViTConfig, ViTModel

from boothlab.errors import UserError
from boothlab.evaluation import edit_scores
from boothlab.evaluation.edit_definitions import definitions, with_values
from boothlab.evaluation.edit_metrics import (
    DINO_SCORES,
    EDIT_SCORES,
    ENCODER_SCORES,
    LPIPS_SCORES,
    RECORDED,
    EditScore,
    metric_key,
)
from boothlab.evaluation.edit_scores import EditedPair, EditScorer, did_it_happen, directional_similarity
from boothlab.evaluation.edit_summary import EditRow, summarise
from boothlab.evaluation.encoders import DinoEncoder
from boothlab.evaluation.preprocessing import Images, Preset, preset, to_uint8
from boothlab.tracking.metrics import EDIT_PARAMETERS, REGISTRY

Picture = NDArray[np.uint8]
RED, GREEN, BLUE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0)
TEXTS = {
    "red": [1.0, 0.0, 0.0],
    "green": [0.0, 1.0, 0.0],
    "blue": [0.0, 0.0, 1.0],
    "blue, as seen by all": [0.0, 0.0, 1.0],
}


class StubClip:
    """An image's features are its mean colour, times 7: not of unit length. A text's are looked up."""

    name, preprocessing, dim = "stub-clip@1", "clip-none", 3

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.largest = 0

    def encode_images(self, images: Images) -> Tensor:
        pixels = to_uint8(images)
        self.largest = max(self.largest, len(pixels))
        return torch.stack([7 * image.float().mean(dim=(1, 2)) for image in pixels])

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        self.asked += texts
        return torch.tensor([TEXTS[text] for text in texts])

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        return ["," in text for text in texts]


class StubDino:
    """Four patches, the quarters of the frame. Features and keys are their mean colours, with a grey of one level."""

    name, preprocessing, dim, key_layer = "stub-dino@2", "dino-none", 3, "keys of layer 0 of 0-0"

    def encode_images(self, images: Images) -> Tensor:
        return self.encode_keys(images).mean(dim=1)

    def encode_keys(self, images: Images) -> Tensor:
        halves = (slice(None, 8), slice(8, None))
        return torch.stack(
            [
                torch.stack(
                    [image[:, rows, columns].float().mean(dim=(1, 2)) + 1 for rows in halves for columns in halves]
                )
                for image in to_uint8(images)
            ]
        )

    def encode_patches(self, images: Images) -> Tensor:
        return self.encode_keys(images)[:, None]

    def patch_shares(self, mask: NDArray[np.bool_]) -> Tensor:
        return torch.from_numpy(mask.reshape(2, 8, 2, 8).mean(axis=(1, 3)).astype(np.float32)).flatten()


def plain(color: tuple[int, int, int]) -> Picture:
    return np.full((16, 16, 3), color, dtype=np.uint8)


def left(color: tuple[int, int, int], rest: tuple[int, int, int]) -> Picture:
    image = plain(rest)
    image[:, :8] = color
    return image


def left_mask() -> NDArray[np.bool_]:
    return left((1, 1, 1), BLACK)[..., 0].astype(np.bool_)


def score(pair: EditedPair) -> EditScore:
    return EditScorer(StubClip(), StubDino()).score([pair])[0]


# Direction


def test_direction_is_of_unit_embeddings() -> None:
    e1, e2, e3 = torch.eye(3)
    # Unit first: (e2 - e1)·(e3 - e1) / 2 = 1/2. Of the raw ones, 7e2 - e1 and e3 - e1, it would be 0.1.
    assert directional_similarity(e1, 7 * e2, e1, e3) == pytest.approx(0.5, abs=1e-12)
    assert directional_similarity(e1, e2, 3 * e1, 0.2 * e2) == pytest.approx(1, abs=1e-12)
    assert directional_similarity(e2, e1, e1, e2) == pytest.approx(-1, abs=1e-12)


def test_direction_of_half_precision_and_of_nan() -> None:
    e1, e2, e3 = torch.eye(3).half()
    assert directional_similarity(e1, e2, e1, e3) == pytest.approx(0.5, abs=1e-12)
    with pytest.raises(UserError, match="NaN"):
        directional_similarity(e1 * float("nan"), e2, e1, e3)


def test_no_movement_has_direction_zero_and_no_texts_none() -> None:
    e1, e2, e3 = torch.eye(3)
    assert directional_similarity(e1, 7 * e1, e1, e2) == 0
    assert directional_similarity(e1, e2, e3, 2 * e3) is None


def test_golden_pair() -> None:
    found = score(EditedPair(plain(RED), plain(GREEN), "red", "blue")).values
    assert found["clip_directional"] == pytest.approx(0.5, abs=1e-9)
    assert found["clip_image"] == pytest.approx(0, abs=1e-9)
    assert found["clip_t"] == pytest.approx(0, abs=1e-9)
    assert found["structure"] == pytest.approx(0, abs=1e-9)  # both are plain, so alike within themselves
    right = score(EditedPair(plain(RED), plain(BLUE), "red", "blue")).values
    assert (right["clip_directional"], right["clip_t"]) == (pytest.approx(1), pytest.approx(1))


def test_identity_edit_has_direction_zero_and_image_one() -> None:
    found = score(EditedPair(plain(RED), plain(RED), "red", "green"))
    assert found.values["clip_directional"] == 0
    assert found.values["clip_image"] == pytest.approx(1, abs=1e-9)
    assert found.values["structure"] == 0


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("red", "red", "identical captions"),
        ("blue", "blue, as seen by all", "captions that the encoder cannot tell apart"),
        (None, "red", "no source caption"),
        (" ", "red", "no source caption"),
        ("red", None, "no target caption"),
        (None, None, "no source caption"),
    ],
)
def test_direction_without_two_different_captions_is_absent_and_not_zero(
    before: str | None, after: str | None, reason: str
) -> None:
    for edited in (plain(GREEN), plain(RED)):
        found = score(EditedPair(plain(RED), edited, before, after))
        assert "clip_directional" not in found.values
        assert found.absent["clip_directional"] == reason
        assert ("clip_t" in found.values) == (after is not None)


def test_only_captions_reach_the_encoder_and_each_once() -> None:
    clip = StubClip()
    scorer = EditScorer(clip, StubDino())
    pair = EditedPair(plain(RED), plain(GREEN), "red", "blue")
    scorer.score([pair, pair])
    scorer.score([pair, EditedPair(plain(RED), plain(GREEN), "red", None)])
    assert clip.asked == ["red", "blue"]


def test_a_caption_beyond_the_context_is_warned_of() -> None:
    found = score(EditedPair(plain(RED), plain(GREEN), "red", "blue, as seen by all"))
    assert len(found.warnings) == 1 and "'blue, as seen by all'" in found.warnings[0]
    assert score(EditedPair(plain(RED), plain(GREEN), "red", "blue")).warnings == ()


# The edited area and its outside


def test_the_edited_area_is_scored_with_everything_else_black() -> None:
    found = score(EditedPair(plain(RED), left(GREEN, RED), "red", "green", left_mask())).values
    assert found["clip_t"] == pytest.approx(math.sqrt(0.5), abs=1e-6)
    assert found["clip_t_edited"] == pytest.approx(1, abs=1e-6)


def test_scrambled_foreground_with_identical_background() -> None:
    scrambled = plain(RED)
    scrambled[:, :8] = np.random.default_rng(0).integers(0, 256, (16, 8, 3))
    found = score(EditedPair(plain(RED), scrambled, mask=left_mask())).values
    assert (found["mse_outside"], found["psnr_outside"], found["lpips_outside"]) == (0, 100, 0)
    assert found["ssim_outside"] == pytest.approx(1, abs=1e-12)
    assert (found["mse_outside_piebench"], found["lpips_outside_piebench"]) == (0, 0)
    assert found["mse_inside"] > 0.1 and found["lpips_inside"] > 0.1 and found["ssim_inside"] < 0.9


def test_changed_background_with_identical_foreground() -> None:
    found = score(EditedPair(plain(RED), left(RED, GREEN), mask=left_mask())).values
    assert found["mse_outside"] == pytest.approx(2 / 3, abs=1e-12)
    assert found["mse_outside_piebench"] == pytest.approx(1 / 3, abs=1e-12)
    gain = found["psnr_outside_piebench"] - found["psnr_outside"]
    assert gain == pytest.approx(-10 * math.log10(0.5), abs=1e-9)
    # Right quarters: (256, 1, 1) against (1, 256, 1), so 2 - 2 · 513 / 65538; the left ones do not count.
    assert found["lpips_outside"] == pytest.approx(2 - 2 * 513 / 65538, abs=1e-5)
    assert found["lpips_outside_piebench"] == pytest.approx(1 - 513 / 65538, abs=1e-5)
    assert (found["mse_inside"], found["psnr_inside"], found["lpips_inside"]) == (0, 100, 0)
    # Cosine c within each picture before is 1; after, 8 of 16 pairs of quarters are red with green.
    assert found["structure"] == pytest.approx(0.5 * (1 - 513 / 65538) ** 2, abs=1e-5)


OUTSIDE = [f"{name}_outside{kind}" for name in ("mse", "psnr", "ssim", "lpips") for kind in ("", "_piebench")]
INSIDE = [f"{name}_inside" for name in ("mse", "psnr", "ssim", "lpips")]


@pytest.mark.parametrize(
    ("mask", "reasons"),
    [
        (None, dict.fromkeys([*OUTSIDE, *INSIDE, "clip_t_edited"], "no mask")),
        (np.zeros((16, 16), dtype=np.bool_), dict.fromkeys([*INSIDE, "clip_t_edited"], "mask is empty")),
        (np.ones((16, 16), dtype=np.bool_), dict.fromkeys(OUTSIDE, "mask is full")),
    ],
    ids=["none", "empty", "full"],
)
def test_an_area_that_there_is_not_is_absent_with_its_reason(
    mask: NDArray[np.bool_] | None, reasons: dict[str, str]
) -> None:
    found = score(EditedPair(plain(RED), plain(GREEN), "red", "green", mask, plain(GREEN)))
    assert found.absent == reasons
    assert {*found.values, *found.absent} == EDIT_SCORES.keys() - RECORDED


def test_with_an_empty_mask_the_outside_is_the_whole_frame() -> None:
    found = score(EditedPair(plain(RED), plain(GREEN), mask=np.zeros((16, 16), dtype=np.bool_))).values
    for name in ("mse", "psnr", "ssim", "lpips"):
        assert found[f"{name}_outside"] == pytest.approx(found[f"{name}_outside_piebench"], abs=1e-6)


class Blind(StubDino):
    """Sees no area."""

    def patch_shares(self, mask: NDArray[np.bool_]) -> Tensor:
        return torch.zeros(4)


def test_an_area_that_the_encoder_does_not_see_is_absent() -> None:
    found = EditScorer(StubClip(), Blind()).score([EditedPair(plain(RED), plain(GREEN), mask=left_mask())])[0]
    assert found.absent["lpips_outside"] == found.absent["lpips_inside"] == "area lies outside the encoder's crop"
    assert "ssim_outside" in found.values


def test_an_edited_area_beside_clip_s_middle_square_is_absent_and_not_a_black_picture() -> None:
    wide, mask = np.zeros((16, 48, 3), np.uint8), np.zeros((16, 48), np.bool_)
    mask[:, :8] = True
    scorer = EditScorer(StubClip(), Blind())
    (found,) = scorer.score([EditedPair(wide, wide + np.uint8(9), "red", "blue", mask)])
    assert found.absent["clip_t_edited"] == "area lies outside the encoder's crop"
    mask[:, :17] = True
    assert "clip_t_edited" in scorer.score([EditedPair(wide, wide + np.uint8(9), "red", "blue", mask)])[0].values


def test_captions_are_not_kept_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = StubClip()
    scorer = EditScorer(clip, StubDino())
    monkeypatch.setattr(edit_scores, "MOST_CAPTIONS", 2)
    before = [scorer.score([EditedPair(plain(RED), plain(GREEN), *texts)])[0] for texts in (("red", "blue"),) * 2]
    assert clip.asked == ["red", "blue"]
    scorer.score([EditedPair(plain(RED), plain(GREEN), "red", "green")])
    assert clip.asked == ["red", "blue", "red", "green"]
    again = scorer.score([EditedPair(plain(RED), plain(GREEN), "red", "blue")])[0]
    assert again.values == before[0].values == before[1].values


# A known target


def test_against_a_known_target() -> None:
    found = score(EditedPair(plain(RED), plain(RED), truth=left(GREEN, RED))).values
    assert found["l1_truth"] == pytest.approx(1 / 3, abs=1e-12)  # two of three colours in half of the frame
    assert found["l2_truth"] == pytest.approx(1 / 3, abs=1e-12)
    assert found["psnr_truth"] == pytest.approx(-10 * math.log10(1 / 3), abs=1e-9)
    assert found["clip_i_truth"] == pytest.approx(math.sqrt(0.5), abs=1e-6)
    red, mixed = np.array([256.0, 1, 1]), np.array([128.5, 128.5, 1])
    cosine = red @ mixed / np.linalg.norm(red) / np.linalg.norm(mixed)
    assert found["dino_truth"] == pytest.approx(cosine, abs=1e-6)
    exact = score(EditedPair(plain(RED), plain(GREEN), truth=plain(GREEN))).values
    assert (exact["l1_truth"], exact["l2_truth"], exact["psnr_truth"]) == (0, 0, 100)


def test_without_a_known_target_its_scores_are_absent() -> None:
    absent = score(EditedPair(plain(RED), plain(GREEN))).absent
    assert {absent[name] for name in EDIT_SCORES if name.endswith("_truth")} == {"no known target"}


# Batches, bad input, what others add


def test_batches_change_nothing_and_bound_the_memory() -> None:
    rng = np.random.default_rng(0)
    pairs = [
        EditedPair(
            rng.integers(0, 256, (16, 16, 3), dtype=np.uint8),
            rng.integers(0, 256, (16, 16, 3), dtype=np.uint8),
            ("red", "green")[k % 2],
            ("blue", None)[k % 3 == 0],
            left_mask() if k % 2 else None,
            plain(BLUE) if k % 3 else None,
        )
        for k in range(7)
    ]
    clip = StubClip()
    together = EditScorer(clip, StubDino(), batch_size=3).score(pairs)
    assert clip.largest <= 9
    alone = [EditScorer(StubClip(), StubDino(), batch_size=1).score([pair])[0] for pair in pairs]
    for one, other in zip(together, alone, strict=True):
        assert one.absent == other.absent
        assert one.values == pytest.approx(other.values, abs=1e-9)
    assert EditScorer(clip, StubDino()).score([]) == []
    with pytest.raises(UserError, match="batch_size"):
        EditScorer(clip, StubDino(), batch_size=0)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (lambda: EditedPair(plain(RED), plain(RED)[:8]), "edited picture is 16×8 px but the source 16×16"),
        (lambda: EditedPair(plain(RED), plain(RED), truth=plain(RED)[:, :8]), "known target is 8×16"),
        (lambda: EditedPair(plain(RED) / 255, plain(RED)), "source must be uint8"),
        (lambda: EditedPair(plain(RED)[..., 0], plain(RED)), r"source must be uint8 \[H, W, 3\]"),
        (lambda: EditedPair(plain(RED), plain(RED), mask=left_mask()[:8]), r"mask must be bool \[16, 16\]"),
        (lambda: EditedPair(plain(RED), plain(RED), mask=left_mask() * 255), "mask must be bool"),
    ],
)
def test_bad_pairs_are_one_line_user_errors(pair: object, message: str) -> None:
    assert callable(pair)
    with pytest.raises(UserError, match=message) as caught:
        pair()
    assert "\n" not in str(caught.value)


def test_did_it_happen_counts_what_the_reader_finds() -> None:
    def reader(image: Picture) -> str:
        return "red" if image[0, 0, 0] else "green"

    assert did_it_happen(reader, [plain(RED), plain(GREEN), plain(RED)], ["red", "red", "green"]) == [1, 0, 0]
    with pytest.raises(ValueError):
        did_it_happen(reader, [plain(RED)], [])


def test_what_others_measure_is_added_and_never_replaces() -> None:
    found = EditScore({"clip_image": 0.5}).plus({"happened": 1.0}, {"effective_steps": "not an sdedit method"})
    assert json.loads(json.dumps(found.to_dict())) == {
        "values": {"clip_image": 0.5, "happened": 1.0},
        "absent": {"effective_steps": "not an sdedit method"},
        "warnings": [],
    }
    with pytest.raises(ValueError, match="measured already: happened"):
        found.plus({"happened": 0.0})
    with pytest.raises(ValueError, match="no edit score"):
        found.plus({"clip": 0.0})
    with pytest.raises(ValueError, match="both"):
        EditScore({"clip_t": 0.1}, {"clip_t": "no target caption"})
    with pytest.raises(UserError, match="psnr_outside is inf"):
        EditScore({"psnr_outside": math.inf})


# Names, keys and definitions


def test_every_score_has_its_own_registered_key_and_direction() -> None:
    keys = [about.key for about in EDIT_SCORES.values()]
    assert sorted(keys) == sorted(key for key in REGISTRY if key.startswith("edit/") and key not in EDIT_PARAMETERS)
    for name, about in EDIT_SCORES.items():
        assert about.key == f"edit/{name}"
        assert about.higher_is_better is REGISTRY[about.key].higher_is_better
    assert len({about.label for about in EDIT_SCORES.values()}) == len(EDIT_SCORES)
    lower = {name for name, about in EDIT_SCORES.items() if about.higher_is_better is False}
    assert lower == {"structure", "l1_truth", "l2_truth"} | {
        f"{name}_outside{kind}" for name in ("mse", "lpips") for kind in ("", "_piebench")
    }
    assert {n for n, about in EDIT_SCORES.items() if about.higher_is_better is None} == {*INSIDE, "effective_steps"}


def test_scores_of_unusual_encoders_carry_their_name() -> None:
    assert metric_key("clip_t") == "edit/clip_t"
    assert metric_key("clip_t", "dollhouse") == "edit/clip_t/dollhouse"
    assert metric_key("psnr_outside", "dollhouse") == "edit/psnr_outside"


def test_definitions_name_encoders_preprocessing_and_area() -> None:
    defined = {metric.name: metric for metric in definitions(EditScorer(StubClip(), StubDino()))}
    assert list(defined) == list(EDIT_SCORES)
    for name, metric in defined.items():
        assert (metric.encoder not in {"none", "reader"}) == (name in ENCODER_SCORES)
        assert ("stub-dino@2" in metric.encoder) == (name in DINO_SCORES)
        assert metric.encoder.startswith("lpips-uniform/") == (name in LPIPS_SCORES)
    assert defined["structure"].encoder == "structure/stub-dino@2, keys of layer 0 of 0-0"
    assert defined["clip_directional"].token_policy == "source and target captions, never the instruction"
    assert "zero-filled" in defined["clip_t_edited"].pairing and "PIE-Bench" in defined["mse_outside_piebench"].pairing
    assert "100 dB" in defined["psnr_outside"].pairing
    assert defined["clip_t"].to_dict() == {
        "name": "clip_t",
        "value": None,
        "higher_is_better": True,
        "encoder": "stub-clip@1",
        "preprocessing": "clip-none",
        "token_policy": "target caption",
        "pairing": "whole edited picture and its target caption",
        "counts": {},
        "definition_version": 1,
        "note": "",
    }
    assert defined["clip_t"].label == "CLIP-T [stub-clip@1]"
    assert defined["mse_inside"].label == "MSE inside"


def test_definitions_with_the_values_of_a_summary() -> None:
    scorer = EditScorer(StubClip(), StubDino())
    pairs = [
        EditedPair(plain(RED), plain(RED), "red", "red", left_mask()),
        EditedPair(plain(RED), plain(GREEN), "red", "green"),
    ]
    rows = [EditRow(image, "green", found) for image, found in zip("ab", scorer.score(pairs), strict=True)]
    filled = {metric.name: metric for metric in with_values(definitions(scorer), summarise(rows, seed=0, resamples=9))}
    assert not RECORDED & filled.keys()
    direction = filled["clip_directional"]
    assert direction.value == pytest.approx(1, abs=1e-9)
    assert (direction.counts, direction.note) == ({"rows": 1, "images": 1, "absent": 1}, "1 × identical captions")
    assert filled["psnr_outside"].counts == {"rows": 1, "images": 1, "absent": 1, "at_cap": 1}
    assert (filled["l1_truth"].value, filled["l1_truth"].note) == (None, "2 × no known target")
    json.dumps([metric.to_dict() for metric in filled.values()], allow_nan=False)


def test_on_a_real_miniature_vit() -> None:
    config = ViTConfig(
        hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=8, image_size=32, patch_size=8
    )
    torch.manual_seed(0)
    model = ViTModel(config, add_pooling_layer=False)
    dino = DinoEncoder(model, "tiny@1234567", preset(Preset.DINO, 32))
    rng = np.random.default_rng(0)
    source = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    mask = np.zeros((40, 40), dtype=np.bool_)
    mask[10:25, 5:20] = True
    edited = source.copy()
    edited[mask] = rng.integers(0, 256, (int(mask.sum()), 3))
    first, copy = EditScorer(StubClip(), dino).score(
        [EditedPair(source, edited, "red", "green", mask, source), EditedPair(source, source, "red", "green", mask)]
    )
    # Every token of a ViT sees the foreground, and still the kept background is at distance 0.
    assert first.values["lpips_outside"] == pytest.approx(0, abs=1e-9)
    assert first.values["lpips_inside"] > 1e-3
    assert first.values["structure"] > 1e-6 and first.values["dino_truth"] < 1
    assert {copy.values[f"lpips_{where}"] for where in ("inside", "outside", "outside_piebench")} == {0}
    assert copy.values["structure"] == pytest.approx(0, abs=1e-9)


def test_the_module_says_what_it_offers() -> None:
    assert all(hasattr(edit_scores, name) for name in edit_scores.__all__)

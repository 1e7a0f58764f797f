"""The quality bars: the measures are right on what is known by hand, and untrained weights do not pass."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from boothlab.dollhouse import score
from boothlab.dollhouse.grammar import Facts, is_held_out, read_prompt, toy_prompt
from boothlab.dollhouse.pretrain import PART_NAMES, build_part
from boothlab.dollhouse.readers import zero_shot
from boothlab.dollhouse.scenes import CLASSES, COLORS, PLACES, Lamp, Time
from boothlab.dollhouse.score import Row, accuracy_row, nearest_neighbour_accuracy, psnr, write_grid
from boothlab.errors import UserError

REQUIRED = {
    "VAE: PSNR, mean over images": 28,
    "VAE: PSNR of the mean squared error": None,
    "prompt: class": 90,
    "prompt: colour": 85,
    "prompt: place": 90,
    "prompt: lighting": 90,
    "prompt: lamp": None,
    "prompt: pattern": None,
    "prompt: accessory (read by the miniature CLIP)": None,
    "CLIP: zero-shot class": 95,
    "CLIP: zero-shot colour": 95,
    "CLIP: zero-shot place": 95,
    "CLIP: zero-shot accessory": None,
    "judge on renders: class": None,
    "judge on renders: colour": None,
    "judge on renders: pattern": None,
    "judge on renders: place": None,
    "judge on renders: lighting": None,
    "judge on renders: lamp": None,
    "DINO: nearest neighbour is the same subject": 90,
}


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every part, freshly initialised and exported."""
    out = tmp_path_factory.mktemp("house") / "weights"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name in PART_NAMES:
            part = build_part(name, 0, out, "cpu", compiled=False)
            part.modules.eval()
            part.export(out)
    (out / "pretraining.json").write_text(
        json.dumps({"vae": {"steps": 12, "seconds": 90, "device": "cpu"}}), encoding="utf-8"
    )
    return out


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """As little of everything as shows that it works."""
    for name, value in {"VAE_SCENES": 8, "RENDERS": 24, "SUBJECTS": 9, "VIEWS": 2, "STEPS": 2, "BATCH": 4}.items():
        monkeypatch.setattr(score, name, value)


def test_psnr_is_ten_times_the_log_of_the_error() -> None:
    truth = torch.full((3, 3, 4, 4), 0.5)
    other = truth + torch.tensor([0.1, -0.01, 0.0]).view(3, 1, 1, 1)
    assert psnr(other, truth).tolist() == pytest.approx([20.0, 40.0, 100.0], abs=1e-4)
    assert float(psnr(torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 2, 2))) == 0.0


def test_the_nearest_neighbour_is_by_angle_and_never_oneself() -> None:
    features = torch.tensor([[1.0, 0.0], [9.0, 1.0], [0.0, 1.0], [0.1, 0.2]])
    assert nearest_neighbour_accuracy(features, torch.tensor([0, 0, 1, 1])) == 1.0
    assert nearest_neighbour_accuracy(features, torch.tensor([0, 1, 0, 1])) == 0.0
    assert nearest_neighbour_accuracy(features, torch.tensor([0, 0, 1, 2])) == 0.5


def test_zero_shot_picks_the_nearest_text_whatever_its_length() -> None:
    texts = torch.tensor([[1.0, 0.0], [0.0, 100.0]])
    assert zero_shot(torch.tensor([[5.0, 1.0], [0.1, 0.2]]), texts).tolist() == [0, 1]


def test_accuracy_counts_only_what_was_asked() -> None:
    row = accuracy_row("prompt: lamp", 50.0, ["on", "off", "none", "on"], [Lamp.ON, Lamp.ON, None, None])
    assert row == Row("prompt: lamp", 50.0, 50.0, "%", 2)
    assert row.passed is True
    nothing = accuracy_row("prompt: lamp", 50.0, ["on"], [None])
    assert math.isnan(nothing.measured)
    assert (nothing.count, nothing.passed) == (0, False)


def test_a_figure_without_a_bar_neither_passes_nor_fails() -> None:
    assert Row("context", None, 1.0, "%", 1).passed is None
    assert Row("bar", 90.0, 89.99, "%", 1).passed is False


def test_prompts_are_held_out_varied_and_the_same_every_time() -> None:
    facts = score.held_out_prompts(400, seed=0)
    assert facts == score.held_out_prompts(400, seed=0)
    assert facts[:50] == score.held_out_prompts(50, seed=0)
    assert facts != score.held_out_prompts(400, seed=1)
    asked = [(fact.class_noun, fact.color, fact.place, fact.time) for fact in facts]
    assert all(is_held_out(*(str(value) for value in one)) for one in asked)
    assert len(set(asked[:150])) == 150  # none comes again before all were there
    for values, axis in ((CLASSES, 0), (tuple(COLORS), 1), (PLACES, 2), (tuple(Time), 3)):
        assert {one[axis] for one in asked} == set(values)
    for name in ("pattern", "accessory", "lamp"):
        assert 80 < sum(getattr(fact, name) is not None for fact in facts) < 180
    assert all(read_prompt(toy_prompt(fact)) == fact for fact in facts)


def test_what_is_not_worn_is_not_asked() -> None:
    facts = [Facts(accessory="none"), Facts(accessory="hat", lamp=Lamp.NONE)]
    assert score._asked(facts, "accessory") == [None, "hat"]
    assert score._asked(facts, "lamp") == [None, "none"]


def test_the_grid_holds_sixty_four_pictures_enlarged(tmp_path: Path) -> None:
    pictures = [np.full((32, 32, 3), i, dtype=np.uint8) for i in range(70)]
    write_grid(tmp_path / "grid.png", pictures)
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (1024, 1024, 3)
    assert [int(grid[128 * (i // 8) + 127, 128 * (i % 8), 0]) for i in range(64)] == list(range(64))
    write_grid(tmp_path / "few.png", pictures[:9])
    assert Image.open(tmp_path / "few.png").size == (1024, 256)


def test_missing_weights_are_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").touch()
    with pytest.raises(UserError, match="no weights of: diffusion, dino, judge; make them with python -m boothlab"):
        score.measure(tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_untrained_weights_are_measured_and_fail_every_bar(untrained: Path, tmp_path: Path) -> None:
    scores = score.measure(untrained, images=6, grid=tmp_path / "grid.png")
    assert {row["bar"]: row["required"] for row in scores["rows"]} == REQUIRED
    for row in scores["rows"]:
        assert set(row) == {"bar", "required", "measured", "unit", "count", "passed"}
        assert row["passed"] is (None if row["required"] is None else False), row
        assert row["unit"] == ("dB" if "PSNR" in row["bar"] else "%")
    assert scores["threads"] == torch.get_num_threads()
    assert scores["device"].startswith("cpu")
    assert scores["pretraining"] == {"vae": {"steps": 12, "seconds": 90, "device": "cpu"}}
    assert Image.open(tmp_path / "grid.png").size == (1024, 128)
    assert score.measure(untrained, images=6)["rows"] == scores["rows"]


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_an_image_does_not_depend_on_its_batch(untrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [toy_prompt(fact) for fact in score.held_out_prompts(3, seed=0)]
    together = score.generate(untrained, prompts, "cpu", seed=0)
    monkeypatch.setattr(score, "BATCH", 1)
    alone = score.generate(untrained, prompts, "cpu", seed=0)
    for one, other in zip(together, alone, strict=True):
        assert one.shape == (32, 32, 3)
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 1  # kernels may round by batch size


def test_scores_are_written_and_shown(untrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(weights: Path, device: str, images: int, seed: int, grid: Path | None) -> dict[str, Any]:
        assert grid == weights.parent / "weights_samples.png"
        rows = [Row("a", 90.0, 91.26, "%", 4), Row("b", 28.0, 24.0, "dB", 5), Row("c", None, 1.0, "%", 6)]
        return {
            "device": f"{device} (x86_64, 2 cores)",
            "threads": 2,
            "sampling": {"sampler": "DPM-Solver++ 2M", "steps": 20, "guidance": 5.0, "images": images, "seed": seed},
            "rows": [{**vars(row), "passed": row.passed} for row in rows],
            "pretraining": {"vae": {"steps": 12, "seconds": 90, "device": "cpu"}},
        }

    monkeypatch.setattr(score, "measure", measured)
    table = score.score_weights(untrained, images=6)
    assert table.splitlines() == [
        "Scored on cpu (x86_64, 2 cores), 2 torch threads. Generated images: 6, DPM-Solver++ 2M, 20 steps, "
        "guidance 5, seed 0.",
        "",
        "| bar | required | measured | trials | passed |",
        "|---|---|---|---|---|",
        "| a | ≥ 90 % | 91.3 % | 4 | yes |",
        "| b | ≥ 28 dB | 24.0 dB | 5 | NO |",
        "| c | – | 1.0 % | 6 | – |",
        "",
        "| part | steps | minutes | device |",
        "|---|---|---|---|",
        "| vae | 12 | 1.5 | cpu |",
    ]
    written = json.loads((untrained / "scores.json").read_text(encoding="utf-8"))
    assert [row["passed"] for row in written["rows"]] == [True, False, None]

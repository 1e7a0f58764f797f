"""The exact parts of `boothlab inspect`: clean-image formula, ranks and norms, attention, nearest photos, best of n."""

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers.configuration_utils import FrozenDict
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from boothlab.diffusion.backbone import Backbone
from boothlab.diffusion.sampling import SAMPLERS, Request, Sampler, SamplerSettings, build_sampler
from boothlab.errors import UserError
from boothlab.evaluation.selection import Candidate, candidate_seeds, choose, flattery, score_candidates
from boothlab.inspecting.attention import AttentionMaps, recorded_attention
from boothlab.inspecting.low_rank import effective_rank, measure_update, singular_values, stable_rank
from boothlab.inspecting.neighbours import nearest_references
from boothlab.inspecting.schedule import NoiseLevel, level_at, level_of_alpha_bar, predicted_clean
from boothlab.inspecting.trajectory import RecordingSampler
from tiny_pipelines import load

PROMPT = "a photo of a red bear"


def at(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# The noise schedule


def test_levels_by_hand() -> None:
    level = level_of_alpha_bar(0.64)
    assert (level.signal, level.noise) == pytest.approx((0.8, 0.6))
    assert level.alpha_bar == pytest.approx(0.64)
    assert level.snr == pytest.approx(16 / 9)
    assert level.snr_db == pytest.approx(2.4987747)
    assert level_of_alpha_bar(1.0).snr == level_of_alpha_bar(1.0).snr_db == math.inf
    assert level_of_alpha_bar(0.0).snr_db == -math.inf
    assert NoiseLevel(1.0, 2.0).alpha_bar == pytest.approx(0.2)  # x0 + 2ε, as Euler's latents are


def test_the_clean_image_by_hand() -> None:
    level = level_of_alpha_bar(0.64)
    # x = 0.8·2 + 0.6·(-1) = 1.0; v = 0.8·ε - 0.6·x0 = -0.8 - 1.2 = -2.0
    assert predicted_clean(at(1.0), at(-1.0), level, "epsilon") == pytest.approx(at(2.0))
    assert predicted_clean(at(1.0), at(-2.0), level, "v_prediction") == pytest.approx(at(2.0))
    assert predicted_clean(at(1.0), at(2.0), level, "sample") == pytest.approx(at(2.0))
    # The same latent unscaled: x0 + (0.6/0.8)·ε = 2 - 0.75 = 1.25
    unscaled = NoiseLevel(1.0, 0.75)
    assert predicted_clean(at(1.25), at(-1.0), unscaled, "epsilon") == pytest.approx(at(2.0))
    assert predicted_clean(at(1.25), at(-2.0), unscaled, "v_prediction") == pytest.approx(at(2.0))
    with pytest.raises(ValueError, match="flow"):
        predicted_clean(at(1.0), at(1.0), level, "flow")


@given(st.floats(0.01, 0.999), st.floats(-3, 3), st.floats(-3, 3), st.floats(0.1, 10))
def test_the_clean_image_is_the_way_back_at_any_level_and_scale(ab: float, x0: float, noise: float, by: float) -> None:
    level = level_of_alpha_bar(ab)
    scaled = NoiseLevel(level.signal * by, level.noise * by)
    x = at(scaled.signal * x0 + scaled.noise * noise)
    v = at(level.signal * noise - level.noise * x0)
    assert predicted_clean(x, at(noise), scaled, "epsilon") == pytest.approx(at(x0), abs=1e-6)
    assert predicted_clean(x, v, scaled, "v_prediction") == pytest.approx(at(x0), abs=1e-6)


def test_levels_are_read_by_timestep_or_by_index() -> None:
    plain = SimpleNamespace(alphas_cumprod=torch.tensor([0.9, 0.64, 0.1]))
    assert level_at(plain, 0, 1).alpha_bar == pytest.approx(0.64)
    euler = type("EulerDiscreteScheduler", (), {"sigmas": [3.0, 0.75, 0.0]})()
    assert (level_at(euler, 1, 999).signal, level_at(euler, 1, 999).noise) == (1.0, 0.75)
    solver = type("DPMSolverMultistepScheduler", (), {"sigmas": [3.0, 0.75, 0.0]})()
    assert (level_at(solver, 1, 999).signal, level_at(solver, 1, 999).noise) == pytest.approx((0.8, 0.6))


# Ranks and norms


@pytest.mark.parametrize(
    ("values", "effective", "stable"),
    [((5.0,), 1, 1), ((5.0, 0.0, 0.0), 1, 1), ((2.0,) * 4, 4, 4), ((3.0, 3.0, 0.0), 2, 2), ((0.0, 0.0), 0, 0)],
)
def test_ranks_of_known_spectra(values: Sequence[float], effective: float, stable: float) -> None:
    assert effective_rank(at(*values)) == pytest.approx(effective)
    assert stable_rank(at(*values)) == pytest.approx(stable)


def test_effective_rank_by_hand() -> None:
    # shares 1/2, 1/4, 1/4: H = 1.5·ln 2, so 2^1.5; stable: (4 + 1 + 1)/4
    assert effective_rank(at(2.0, 1.0, 1.0)) == pytest.approx(2**1.5)
    assert stable_rank(at(2.0, 1.0, 1.0)) == pytest.approx(1.5)


def test_a_rank_one_update_has_rank_one_whatever_its_factors_hold() -> None:
    up, down = torch.zeros(6, 4), torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    up[:, 2] = torch.arange(6.0)
    found = measure_update(up, down, 0.5, torch.ones(6, 5))
    assert (found.effective_rank, found.stable_rank, found.rank) == pytest.approx((1, 1, 4), abs=1e-6)


@pytest.mark.parametrize(("out", "rank", "width"), [(20, 4, 12), (3, 8, 5), (16, 16, 16)])
@pytest.mark.parametrize("alpha", [8.0, 1.0])
def test_an_update_is_measured_as_its_dense_product(out: int, rank: int, width: int, alpha: float) -> None:
    stream = torch.Generator().manual_seed(out)
    up, down = torch.randn(out, rank, generator=stream), torch.randn(rank, width, generator=stream)
    base = torch.randn(out, width, generator=stream)
    dense = (alpha / rank) * up.double() @ down.double()
    found = measure_update(up, down, alpha / rank, base)
    values = torch.linalg.svdvals(dense)
    assert found.norm == pytest.approx(float(dense.norm()))
    assert found.relative == pytest.approx(float(dense.norm() / base.double().norm()))
    assert found.spectral == pytest.approx(float(values[0]))
    assert found.effective_rank == pytest.approx(effective_rank(values), rel=1e-5)
    assert found.stable_rank == pytest.approx(stable_rank(values))
    kept = min(rank, out, width)
    assert singular_values(up, down)[:kept] == pytest.approx(values[:kept] * rank / alpha)


def test_a_convolution_is_measured_as_the_kernel_it_adds() -> None:
    stream = torch.Generator().manual_seed(1)
    up, down = torch.randn(6, 2, 1, 1, generator=stream), torch.randn(2, 3, 3, 3, generator=stream)
    kernel = torch.einsum("or,rihw->oihw", up[:, :, 0, 0], down) * 2.0
    found = measure_update(up, down, 2.0, torch.ones(6, 3, 3, 3))
    assert found.norm == pytest.approx(float(kernel.norm()), rel=1e-5)
    assert found.base_norm == pytest.approx(math.sqrt(6 * 27))


# Attention


@pytest.fixture(scope="module", params=["sd15", pytest.param("sd21", marks=pytest.mark.slow), "sdxl"])
def backbone(request: pytest.FixtureRequest, pipelines: dict[str, Path]) -> Backbone:
    return load(pipelines[request.param])


def sampler(backbone: Backbone, name: str = "dpmpp_2m", guidance: float = 4.0) -> Sampler:
    return Sampler(backbone, SamplerSettings(name, 3, guidance))


@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_attention_sums_to_one_and_leaves_the_images_alone(backbone: Backbone, guidance: float) -> None:
    requests = [Request(PROMPT, 3), Request("a blue robot on the moon", 4)]
    plain = sampler(backbone, guidance=guidance).draw(requests)
    before = dict(backbone.unet.attn_processors)
    with recorded_attention(backbone.unet, 2, backbone.latent_shape[1]) as maps:
        recorded = sampler(backbone, guidance=guidance).draw(requests)
    assert torch.equal(plain, recorded)
    assert backbone.unet.attn_processors == before
    shares_NTHW = maps.mean()
    tokens = backbone.pipeline.tokenizer.model_max_length
    assert shares_NTHW.shape == (2, tokens, *backbone.latent_shape[1:])
    torch.testing.assert_close(shares_NTHW.sum(dim=1), torch.ones(2, *backbone.latent_shape[1:]))
    assert maps.layers == {name.removesuffix(".processor") for name in before if "attn2" in name}
    assert not torch.allclose(shares_NTHW[0], shares_NTHW[1])
    assert float(shares_NTHW.std(dim=(2, 3)).max()) > 0  # not the same everywhere


def test_the_prompts_rows_of_a_guided_batch_are_recorded(backbone: Backbone) -> None:
    """The unconditional half is the empty prompt's: its shares must not be mixed in."""
    maps = AttentionMaps(1, 2)
    empty, asked = torch.full((1, 1, 4, 2), 0.5), torch.tensor([0.9, 0.1]).expand(1, 1, 4, 2)
    maps.add("a", torch.cat([empty, asked]))
    maps.add("b", torch.cat([empty, asked])[:, :, :1])
    assert maps.mean()[0, :, 0, 0] == pytest.approx(torch.tensor([0.9, 0.1]))
    assert maps.layers == {"a", "b"}
    with pytest.raises(ValueError, match="no square"):
        maps.add("c", torch.ones(1, 1, 3, 2))


# The trajectory


@pytest.mark.parametrize(
    "name", ["dpmpp_2m", *(pytest.param(one, marks=pytest.mark.slow) for one in SAMPLERS if one != "dpmpp_2m")]
)
def test_the_trajectory_is_recorded_beside_the_very_same_image(backbone: Backbone, name: str) -> None:
    recorder = RecordingSampler(backbone, SamplerSettings(name, 6, 4.0))
    image = recorder.draw([Request(PROMPT, 3)])
    assert torch.equal(image, sampler_of(backbone, name).draw([Request(PROMPT, 3)]))
    clean = recorder.trajectory()
    assert clean.steps_KNCHW.isfinite().all()
    assert len(clean.levels) == len(clean.timesteps) == len(clean.steps_KNCHW) >= 6
    assert clean.levels[0].snr < clean.levels[-1].snr


def sampler_of(backbone: Backbone, name: str) -> Sampler:
    return Sampler(backbone, SamplerSettings(name, 6, 4.0))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", ["ddim", "euler", "euler_a"])
def test_the_clean_image_is_the_one_that_diffusers_goes_by(name: str, prediction_type: str) -> None:
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    scheduler = build_sampler(name, FrozenDict({**config, "prediction_type": prediction_type}))
    scheduler.set_timesteps(5)
    stream = torch.Generator().manual_seed(0)
    for index, timestep in enumerate(scheduler.timesteps):
        sample, prediction = (torch.randn(1, 4, 2, 2, generator=stream) for _ in range(2))
        scheduler.scale_model_input(sample, timestep)
        mine = predicted_clean(sample, prediction, level_at(scheduler, index, timestep), prediction_type)
        theirs = scheduler.step(prediction, timestep, sample, generator=stream).pred_original_sample
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


# Nearest photos


def test_the_nearest_photo_and_the_limits() -> None:
    photos = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    images = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])
    found = nearest_references(images, photos)
    assert found.nearest == [0, 1, 2]
    assert found.cosine == pytest.approx([1.0, 0.96, 0.0])
    assert found.ceiling == pytest.approx((0.8 + 0.0 + 0.6) / 3)
    assert found.closest == pytest.approx(0.8)
    assert found.above_ceiling == [True, True, False]
    assert found.above_closest == [True, True, False]
    alone = nearest_references(images, photos[:1])
    assert (alone.ceiling, alone.closest, any(alone.above_ceiling)) == (None, None, False)


# Best of n


class StubClip:
    """Images are their first two pixels, texts are directions."""

    name, preprocessing, dim = "stub", "none", 2

    def encode_images(self, images: Sequence[Tensor]) -> Tensor:
        return torch.stack([image[:2, 0, 0].float() for image in images])

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([[1.0, 0.0] if text == "right" else [0.0, 1.0] for text in texts])

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        return [False] * len(texts)


def picture(x: int, y: int) -> Tensor:
    image = torch.zeros(3, 1, 1, dtype=torch.uint8)
    image[0], image[1] = x, y
    return image


def chosen(by: str, references: Tensor | None, weight: float = 0.5) -> list[int]:
    images = [picture(3, 4), picture(4, 3), picture(0, 5), picture(5, 0)]
    found = score_candidates(
        StubClip(), images, [0, 1, 2, 3], [0, 0, 1, 1], ["right", "right", "up", "up"], references, by, weight
    )
    return [found[place].seed for place in choose(found)]


def test_the_known_best_is_chosen() -> None:
    photos = torch.tensor([[0.6, 0.8]])
    assert chosen("clip_t", None) == [1, 2]
    assert chosen("clip_t", photos) == [1, 2]
    assert chosen("clip_i", photos) == [0, 2]
    assert chosen("balanced", photos, weight=0.0) == [1, 2]
    assert chosen("balanced", photos, weight=1.0) == [0, 2]
    with pytest.raises(UserError, match="best_by=clip_i: compares with the subject's photos"):
        chosen("clip_i", None)


def test_what_choosing_does_to_the_scores() -> None:
    images = [picture(3, 4), picture(4, 3)]
    first, second = score_candidates(
        StubClip(), images, [0, 1], [0, 0], ["right"] * 2, torch.tensor([[0.6, 0.8]]), "balanced", 0.25
    )
    assert (first.clip_t, first.clip_i, first.value) == pytest.approx((0.6, 1.0, 0.25 + 0.45))
    assert (second.clip_t, second.clip_i, second.value) == pytest.approx((0.8, 0.96, 0.24 + 0.6))
    assert flattery([first, second]) == pytest.approx((0.77, 0.84))
    tied = [Candidate(0, 5, 0.0, None, 1.0), Candidate(0, 6, 0.0, None, 1.0)]
    assert choose(tied) == [0]


@given(st.lists(st.integers(-1000, 1000), unique=True, max_size=6), st.integers(1, 9))
def test_candidates_of_different_seeds_never_meet(seeds: list[int], n: int) -> None:
    drawn = [one for seed in seeds for one in candidate_seeds(seed, n)]
    assert len(set(drawn)) == len(drawn) == n * len(seeds)
    assert candidate_seeds(7, 1) == [7]

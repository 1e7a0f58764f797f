"""The training step against formulas written out by hand, on a UNet of one number."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from boothlab.config import LossConfig, LrSchedule, OptimConfig
from boothlab.diffusion.backbone import TextEmbedding
from boothlab.diffusion.lora import attach
from boothlab.dreambooth.data import LatentTable, TrainingData
from boothlab.dreambooth.module import DreamBoothModule
from boothlab.errors import NonFiniteLossError
from tiny_pipelines import load

SHAPE = (1, 2, 2)


class Number(nn.Module):
    """A network with one trained number in it."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))


class StubBackbone:
    """Predicts `value` times what it is shown; drops half of it when it is in train mode and `dropout` is set."""

    def __init__(self, prediction_type: str = "epsilon", dropout: bool = False) -> None:
        self.unet = Number(0.7)
        self.text_encoders: dict[str, nn.Module] = {}
        self.noise_scheduler = DDPMScheduler(prediction_type=prediction_type)
        self.prediction_type, self.dropout, self.dtype = prediction_type, dropout, torch.float32

    def tokenize(self, prompts: list[str]) -> dict[str, Tensor]:
        return {"text_encoder": torch.zeros(len(prompts), 3, dtype=torch.long)}

    def embed(self, ids: dict[str, Tensor]) -> TextEmbedding:
        return TextEmbedding(torch.zeros(len(ids["text_encoder"]), 3, 4))

    def predict(self, noisy_BCHW: Tensor, timesteps_B: Tensor, text: TextEmbedding) -> Tensor:
        dropped = torch.nn.functional.dropout(noisy_BCHW, 0.5) if self.dropout else noisy_BCHW
        return self.unet.value * dropped

    def backward(self, loss: Tensor) -> None:
        loss.backward()


def table(size: int, offset: float, std: float = 0.0) -> LatentTable:
    means = offset + torch.linspace(-1, 1, size * math.prod(SHAPE)).reshape(size, *SHAPE)
    return LatentTable(means, torch.full_like(means, std), [[i] for i in range(size)], ["p"] * size)


def module_of(
    backbone: Any = None,
    *,
    batch: int = 2,
    prior: bool = False,
    loss: LossConfig | None = None,
    optim: OptimConfig | None = None,
    **changes: Any,
) -> DreamBoothModule:
    data = TrainingData(table(4, 0.0, 0.1), table(6, 2.0, 0.1) if prior else None, batch, seed=0)
    settings: dict[str, Any] = {"prior_weight": 1.0, "dropout": 0.0, "accumulate": 1, "max_steps": 4, "seed": 0}
    backbone = backbone or StubBackbone()
    return DreamBoothModule(backbone, data, optim or OptimConfig(), loss or LossConfig(), **(settings | changes))


class Drawn:
    """What a step drew, recorded, so that a test can do the sum again."""

    def __init__(self, module: DreamBoothModule, monkeypatch: pytest.MonkeyPatch) -> None:
        self.values: dict[str, Tensor] = {}
        for name in ("sample_latents", "draw_noise", "draw_timesteps"):
            monkeypatch.setattr(module, name, self._recording(name, getattr(module, name)))

    def _recording(self, name: str, draw: Any) -> Any:
        def recorded(*arguments: Any) -> Tensor:
            value: Tensor = draw(*arguments)
            self.values[name] = value
            return value

        return recorded

    @property
    def alphas_B(self) -> Tensor:
        return DDPMScheduler().alphas_cumprod[self.values["draw_timesteps"]]

    def losses(self, prediction_type: str) -> Tensor:
        """Mean squared error of each sample, by the textbook."""
        x, n = self.values["sample_latents"], self.values["draw_noise"]
        a = self.alphas_B.reshape(-1, 1, 1, 1)
        noisy = a.sqrt() * x + (1 - a).sqrt() * n
        target = n if prediction_type == "epsilon" else a.sqrt() * n - (1 - a).sqrt() * x
        return ((0.7 * noisy - target) ** 2).mean(dim=(1, 2, 3))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_loss_is_the_textbooks(prediction_type: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = module_of(StubBackbone(prediction_type), batch=batch)
    drawn = Drawn(module, monkeypatch)
    loss = module.training_step(0, 0)
    assert loss.item() == pytest.approx(drawn.losses(prediction_type).mean().item(), rel=1e-5)
    assert set(module.latest) == {"loss", "instance"}


@pytest.mark.parametrize(("prediction_type", "expected"), [("epsilon", 2.89), ("v_prediction", 7.29)])
def test_the_loss_of_one_pixel_by_hand(prediction_type: str, expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """x = 2, n = -1, a = 0.64: noisy = 0.8 x + 0.6 n = 1, predicted 0.7; n = -1 and v = 0.8 n - 0.6 x = -2."""
    module = module_of(StubBackbone(prediction_type), batch=1)
    module.backbone.noise_scheduler.alphas_cumprod = torch.full((1000,), 0.64)
    monkeypatch.setattr(module, "sample_latents", lambda batch: torch.full((1, 1, 1, 1), 2.0))
    monkeypatch.setattr(module, "draw_noise", lambda latents, count: torch.full((1, 1, 1, 1), -1.0))
    assert module.training_step(0, 0).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_min_snr_weighs_each_sample_also_with_prior_preservation(
    prediction_type: str, batch: int, weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers #5791: there, the weights of subject and class samples were mixed up."""
    module = module_of(
        StubBackbone(prediction_type), batch=batch, prior=True, loss=LossConfig(min_snr_gamma=5.0), prior_weight=weight
    )
    for _ in range(5):
        drawn = Drawn(module, monkeypatch)
        loss = module.training_step(0, 0)
        a = drawn.alphas_B
        snr = a / (1 - a)
        divisor = snr if prediction_type == "epsilon" else snr + 1
        weighted = drawn.losses(prediction_type) * torch.minimum(snr, torch.tensor(5.0)) / divisor
        instance, prior = weighted[:batch].mean(), weighted[batch:].mean()
        assert module.latest["instance"].item() == pytest.approx(instance.item(), rel=1e-4)
        assert module.latest["prior"].item() == pytest.approx(prior.item(), rel=1e-4)
        assert loss.item() == pytest.approx((instance + weight * prior).item(), rel=1e-4)


def test_prior_preservation_leaves_the_subjects_draws_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    alone, both = module_of(loss=LossConfig(noise_offset=0.1)), module_of(prior=True, loss=LossConfig(noise_offset=0.1))
    for _ in range(4):
        mine, with_prior = Drawn(alone, monkeypatch), Drawn(both, monkeypatch)
        alone.training_step(0, 0)
        both.training_step(0, 0)
        for name, value in mine.values.items():
            assert torch.equal(with_prior.values[name][:2], value), name
            assert not torch.equal(with_prior.values[name][2:], value), name
        assert torch.equal(alone.latest["instance"], both.latest["instance"])


def test_noise_offset_adds_one_number_a_channel_and_sample() -> None:
    plain, shifted = module_of(), module_of(loss=LossConfig(noise_offset=0.5))
    latents = torch.zeros(4, 3, 8, 8)
    extra = shifted.draw_noise(latents, 2) - plain.draw_noise(latents, 2)
    assert torch.allclose(extra, extra[:, :, :1, :1].expand_as(extra), atol=1e-6)
    numbers = extra[:, :, 0, 0]
    assert len(set(numbers.flatten().round(decimals=4).tolist())) == 12
    assert 0.1 < numbers.std() < 1.0
    assert torch.allclose(plain.draw_noise(latents, 2), module_of().draw_noise(latents, 2))


def test_the_streams_are_normal_and_uniform() -> None:
    module = module_of()
    noise = module.draw_noise(torch.zeros(8, 4, 32, 32), 8)
    steps = module.draw_timesteps(4000, 4000)
    assert abs(noise.mean().item()) < 0.02
    assert noise.std().item() == pytest.approx(1.0, abs=0.02)
    assert 0 <= int(steps.min()) < 10 and 990 < int(steps.max()) < 1000
    assert steps.float().mean().item() == pytest.approx(499.5, abs=20)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_step_draws_from_no_global_generator(
    dropout: float, global_rng_untouched: AbstractContextManager[Any]
) -> None:
    module = module_of(StubBackbone(dropout=dropout > 0), dropout=dropout, prior=True)
    if dropout == 0:
        module.backbone.dropout = False
    with global_rng_untouched:
        module.training_step(0, 0).backward()


def test_dropout_is_seeded_by_step() -> None:
    def losses(skip: int) -> list[float]:
        module = module_of(StubBackbone(dropout=True), dropout=0.5, resumed_at=skip)
        torch.manual_seed(skip)
        return [module.training_step(0, 0).item() for _ in range(6 - skip)]

    straight = losses(0)
    assert losses(2) == straight[2:]
    module = module_of(StubBackbone(dropout=True), dropout=0.5)
    with module.dropout_stream():
        first = torch.rand(3)
    module.micro_step += 1
    with module.dropout_stream():
        assert not torch.equal(torch.rand(3), first)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_run_and_says_where(bad: float) -> None:
    module = module_of(accumulate=2, resumed_at=3)
    module.backbone.unet.value.data.fill_(bad)
    with pytest.raises(NonFiniteLossError, match=r"the loss became \w+ at step 4 \(batch 6, prompts \['p'\]\); lower"):
        module.training_step(0, 0)
    assert module.latest == {}
    assert module.micro_step == 6


def test_what_is_trained_is_the_adapter_alone(pipelines: dict[str, Path]) -> None:
    """cloneofsimo #31, sd-scripts #855: text-encoder adapters that were never trained."""
    for name, text in (("sd15", False), ("sd15", True), ("sdxl", True)):
        backbone = load(pipelines[name])
        adapter: dict[str, Any] = {"rank": 2, "alpha": 2.0, "dropout": 0.0, "init": "gaussian", "seed": 0}
        attach(backbone.unet, "unet", targets=["to_q"], **adapter)
        for component, encoder in backbone.text_encoders.items() if text else ():
            attach(encoder, component, targets=["q_proj"], **adapter)
        module = module_of(backbone, optim=OptimConfig(lr=0.1, text_encoder_lr=0.02 if text else None))
        groups = {group["name"]: group for group in module.configure_optimizers()["optimizer"].param_groups}
        assert module.trains_text is text
        assert list(groups) == (["unet", "text_encoder"] if text else ["unet"])
        trained = {id(value) for group in groups.values() for value in group["params"]}
        named = {n: value for n, value in module.named_parameters() if id(value) in trained}
        assert len(named) == len(trained) == sum(value.requires_grad for value in module.parameters())
        assert all(".lora_" in n and value.dtype == torch.float32 for n, value in named.items())
        assert {n.split(".")[1] for n in named} == {"unet", *(backbone.text_encoders if text else ())}
        assert [group["lr"] for group in groups.values()] == ([0.1, 0.02] if text else [0.1])


def lr_factor(schedule: LrSchedule, step: int, total: int, warmup: int) -> float:
    """What the rate of optimizer step `step` (from 0) is multiplied with, by the schedule's definition."""
    if step < warmup:
        return step / warmup
    done = (step - warmup) / (total - warmup)
    return {
        LrSchedule.constant_with_warmup: 1.0,
        LrSchedule.linear: 1 - done,
        LrSchedule.cosine: 0.5 * (1 + math.cos(math.pi * done)),
        LrSchedule.cosine_with_restarts: 0.5 * (1 + math.cos(math.pi * ((2 * done) % 1))) if done < 1 else 0.0,
    }[schedule]


class RateRecorder(pl.Callback):
    """The learning rate of each optimizer step, and the number of micro-steps."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.micro_steps = 0

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: Any, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *arguments: Any) -> None:
        self.micro_steps += 1


def fit(module: DreamBoothModule, *callbacks: pl.Callback) -> None:
    """Lightning's loop as `dreambooth/run.py` sets it up."""
    trainer = pl.Trainer(
        max_steps=module.max_steps, accumulate_grad_batches=module.accumulate, callbacks=list(callbacks), logger=False,
        accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    micro_steps: Any = range(module.max_steps * module.accumulate)
    trainer.fit(module, torch.utils.data.DataLoader(micro_steps, batch_size=None))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(
    "schedule",
    [LrSchedule.constant_with_warmup, LrSchedule.linear, LrSchedule.cosine, LrSchedule.cosine_with_restarts],
)
def test_the_schedule_counts_optimizer_steps(schedule: LrSchedule, accumulate: int) -> None:
    """diffusers #2632, #3954: with accumulation, the schedule ran too fast."""
    optim = OptimConfig(lr=0.1, schedule=schedule, warmup_steps=2, restarts=2)
    module, recorder = module_of(optim=optim, accumulate=accumulate, max_steps=8), RateRecorder()
    fit(module, recorder)
    expected = [0.1 * lr_factor(schedule, step, 8, 2) for step in range(8)]
    assert recorder.micro_steps == module.micro_step == 8 * accumulate
    assert recorder.rates == pytest.approx(expected, abs=1e-9)
    assert module.rates == {"unet": recorder.rates[-1]}


@pytest.mark.parametrize("limit", [None, 0.01, 1e6])
def test_gradients_are_clipped_and_the_norm_before_is_kept(limit: float | None) -> None:
    module = module_of(optim=OptimConfig(grad_clip=limit))
    optimizer = module.configure_optimizers()["optimizer"]
    module.training_step(0, 0).backward()
    value = module.backbone.unet.value
    before = value.grad.abs().item()
    module.configure_gradient_clipping(optimizer)
    assert module.latest["grad_norm"].item() == pytest.approx(before)
    assert value.grad.abs().item() == pytest.approx(min(before, limit or math.inf), rel=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_two_batches_of_two_are_one_batch_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same samples give the same step, however they are cut into batches.

    Photos come in the same order either way. Noise and timesteps belong to a micro-step, so a run with batch 2 × 2
    draws others than one with batch 4; here each sample is given its own.
    """

    def trained(batch: int, accumulate: int) -> float:
        module = module_of(batch=batch, accumulate=accumulate, max_steps=3, optim=OptimConfig(lr=0.05, grad_clip=None))

        def each(make: Any) -> Any:
            return lambda *arguments: torch.stack([make(module.micro_step * batch + i) for i in range(batch)])

        monkeypatch.setattr(module, "sample_latents", lambda drawn: drawn.means_BCHW)
        monkeypatch.setattr(module, "draw_noise", each(lambda k: torch.full(SHAPE, math.sin(k + 1.0))))
        monkeypatch.setattr(module, "draw_timesteps", each(lambda k: torch.tensor((37 * k) % 1000)))
        fit(module)
        return float(module.backbone.unet.value)

    assert trained(2, 2) == pytest.approx(trained(4, 1), rel=1e-5)
    assert trained(2, 2) != pytest.approx(trained(2, 1), rel=1e-5)


def test_the_module_saves_no_base_model() -> None:
    assert module_of().state_dict() == {}


@pytest.fixture(autouse=True)
def _keep_torch_settings() -> Iterator[None]:
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(deterministic)

"""DreamBooth training as a LightningModule, whatever is trained: noise, predict, loss, on one screen."""

from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from boothlab.config import LossConfig, OptimConfig
from boothlab.diffusion.backbone import Backbone, TextEmbedding
from boothlab.diffusion.lora import trainable
from boothlab.diffusion.sharding import shard, whole
from boothlab.dreambooth.data import Batch, TrainingData
from boothlab.dreambooth.optimizers import WordsPlan, build_optimizer, build_schedule, parameter_groups
from boothlab.errors import NonFiniteLossError
from boothlab.ranks import Share
from boothlab.seeding import Stream, derive_seed, generator


@dataclass(frozen=True)
class WholeNetworks:
    """The networks of which every weight is trained, and the precision they are saved in."""

    networks: dict[str, nn.Module]
    dtype: torch.dtype


class DreamBoothModule(pl.LightningModule):
    """Trains what `backbone` carries that is trainable: adapters, learned words or whole networks.

    `resumed_at` is the optimizer step a resumed run starts from.
    """

    def __init__(
        self,
        backbone: Backbone,
        data: TrainingData,
        optim: OptimConfig,
        loss: LossConfig,
        *,
        prior_weight: float,
        dropout: float,
        accumulate: int,
        max_steps: int,
        seed: int,
        gradient_checkpointing: bool = False,
        resumed_at: int = 0,
        words: WordsPlan | None = None,
        whole: WholeNetworks | None = None,
        share: Share | None = None,
    ):
        super().__init__()
        self.share = share or Share()
        self.networks = nn.ModuleDict({"unet": backbone.unet, **backbone.text_encoders})
        self.backbone, self.data, self.optim_config, self.loss_config = backbone, data, optim, loss
        self.words, self.whole = words, whole
        self.prior_weight, self.dropout, self.accumulate = prior_weight, dropout, accumulate
        self.max_steps, self.seed, self.resumed_at = max_steps, seed, resumed_at
        self.checkpointing = gradient_checkpointing
        self.micro_step = resumed_at * accumulate
        self.latest: dict[str, Tensor] = {}
        self.rates: dict[str, float] = {}
        self.trains_text = any(trainable(encoder) for encoder in backbone.text_encoders.values())
        self.tokens = {prompt: backbone.tokenize([prompt]) for prompt in data.prompts}
        with torch.no_grad():
            self.embeddings = {} if self.trains_text else {p: backbone.embed(ids) for p, ids in self.tokens.items()}
        alphas = backbone.noise_scheduler.alphas_cumprod.float()
        self.snr_T = alphas / (1 - alphas).clamp(min=1e-20)

    def training_step(self, index: int, batch_index: int) -> Tensor:
        batch = self.data.batch(self.batch_number)
        latents_BCHW = self.sample_latents(batch)
        noise_BCHW = self.draw_noise(latents_BCHW, batch.num_instance)
        timesteps_B = self.draw_timesteps(len(latents_BCHW), batch.num_instance)
        batch, latents_BCHW, noise_BCHW, timesteps_B = self.own_rows(batch, latents_BCHW, noise_BCHW, timesteps_B)
        noisy_BCHW = self.backbone.noise_scheduler.add_noise(latents_BCHW, noise_BCHW, timesteps_B)
        with self.dropout_stream():
            predicted_BCHW = self.backbone.predict(noisy_BCHW, timesteps_B, self.embed(batch.prompts))
        target_BCHW = self.target(latents_BCHW, noise_BCHW, timesteps_B)
        losses_B = (predicted_BCHW - target_BCHW).pow(2).mean(dim=(1, 2, 3)) * self.weights(timesteps_B)
        instance, prior = losses_B[: batch.num_instance].mean(), None
        loss = instance
        if batch.num_instance < len(losses_B):  # prior preservation: DreamBooth, eq. 2
            prior = losses_B[batch.num_instance :].mean()
            loss = instance + self.prior_weight * prior
        losses = self.over_devices(loss, instance, prior)
        self.check_finite(losses["loss"], batch)
        self.latest = losses
        self.micro_step += self.share.batches
        return loss

    @property
    def batch_number(self) -> int:
        """The number, in the whole run, of the batch that this process is at; `micro_step` counts those done by all."""
        return self.micro_step + self.share.turn

    @property
    def turns_a_step(self) -> int:
        """The batches that this process computes for an optimizer step."""
        return self.accumulate // self.share.batches

    def own_rows(self, batch: Batch, *drawn: Tensor) -> tuple[Any, ...]:
        """This process's rows of a batch and of what was drawn for it: every device draws alike, and takes its part."""
        if self.share.rows == 1:
            return batch, *drawn
        rows = self.share.own(batch.num_instance, len(batch.prompts))
        prompts = [batch.prompts[row] for row in rows]
        num_instance = batch.num_instance // self.share.rows
        own = Batch(batch.means_BCHW[rows], batch.stds_BCHW[rows], prompts, num_instance)
        return own, *(value[rows] for value in drawn)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        self.backbone.backward(loss)  # which knows whose networks it asked

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """What the UNet should say: the noise, or the velocity (Salimans & Ho 2022) for models trained on it."""
        if self.backbone.prediction_type == "v_prediction":
            return self.backbone.noise_scheduler.get_velocity(latents_BCHW, noise_BCHW, timesteps_B)
        return noise_BCHW

    def weights(self, timesteps_B: Tensor) -> Tensor:
        """min-SNR-γ weights (Hang et al. 2023, §3.4) for each sample; ones without it."""
        gamma = self.loss_config.min_snr_gamma
        if gamma is None:
            return torch.ones(len(timesteps_B), device=self.device)
        snr_B = self.snr_T.to(self.device)[timesteps_B]
        divisor_B = snr_B + 1 if self.backbone.prediction_type == "v_prediction" else snr_B
        return snr_B.clamp(max=gamma) / divisor_B.clamp(min=1e-20)

    def _two_streams(self, *names: str) -> tuple[torch.Generator, torch.Generator]:
        """Subject and class samples draw apart, so that prior preservation does not change what the subject sees."""
        ours, theirs = (
            generator(self.seed, names[0], self.batch_number, *names[1:], who) for who in ("instance", "prior")
        )
        return ours, theirs

    def _normal(self, shape: tuple[int, ...], num_instance: int, *names: str) -> Tensor:
        ours, theirs = self._two_streams(*names)
        subject = torch.randn((num_instance, *shape[1:]), generator=ours)
        return torch.cat([subject, torch.randn((shape[0] - num_instance, *shape[1:]), generator=theirs)]).to(
            self.device
        )

    def sample_latents(self, batch: Batch) -> Tensor:
        """Latents drawn from the cached posteriors, [B, C, h, w]."""
        noise_BCHW = self._normal(batch.means_BCHW.shape, batch.num_instance, Stream.VAE)
        return batch.means_BCHW.to(self.device) + batch.stds_BCHW.to(self.device) * noise_BCHW

    def draw_noise(self, latents_BCHW: Tensor, num_instance: int) -> Tensor:
        """Gaussian noise, plus a constant per channel when `noise_offset` is set."""
        noise_BCHW = self._normal(latents_BCHW.shape, num_instance, Stream.NOISE)
        if self.loss_config.noise_offset > 0:
            flat = (*latents_BCHW.shape[:2], 1, 1)
            offset_BC11 = self._normal(flat, num_instance, Stream.NOISE, "offset")
            noise_BCHW = noise_BCHW + self.loss_config.noise_offset * offset_BC11
        return noise_BCHW

    def draw_timesteps(self, size: int, num_instance: int) -> Tensor:
        """Uniform over the training timesteps, [B]."""
        steps = self.backbone.noise_scheduler.config.num_train_timesteps
        ours, theirs = self._two_streams(Stream.TIMESTEPS)
        drawn = [torch.randint(steps, (num_instance,), generator=ours)]
        drawn.append(torch.randint(steps, (size - num_instance,), generator=theirs))
        return torch.cat(drawn).to(self.device)

    def embed(self, prompts: list[str]) -> TextEmbedding:
        """From the cache when the text encoders are frozen, else by running them, each distinct prompt once."""
        if self.embeddings:
            return TextEmbedding.cat([self.embeddings[prompt] for prompt in prompts])
        distinct = sorted(set(prompts))
        ids = {name: torch.cat([self.tokens[p][name] for p in distinct]) for name in self.tokens[distinct[0]]}
        return self.backbone.embed(ids)[torch.tensor([distinct.index(prompt) for prompt in prompts])]

    def dropout_stream(self) -> Any:
        """Adapter dropout knows only the global generator: give it a seeded one and put the old one back."""
        if self.dropout == 0:
            return _SeededGlobal(None)
        # Rows of one batch on several devices must not drop the same values.
        part = [] if self.share.rows == 1 else [self.share.ranks.rank]
        return _SeededGlobal(derive_seed(self.seed, Stream.DROPOUT, self.batch_number, *part))

    def check_finite(self, loss: Tensor, batch: Batch) -> None:
        """Stop at the first NaN or infinity, before it reaches the weights. The loss is all devices', so all stop."""
        if not torch.isfinite(loss):
            step = self.micro_step // self.accumulate
            raise NonFiniteLossError(
                f"the loss became {loss.item()} at step {step + 1} "
                f"(batch {self.micro_step}, prompts {sorted(set(batch.prompts))}); "
                "lower optim.lr, set optim.grad_clip, or use backbone.precision=fp32"
            )

    def over_devices(self, loss: Tensor, instance: Tensor, prior: Tensor | None) -> dict[str, Tensor]:
        """The losses of this micro-step, means over the devices, for whoever logs them."""
        found = {"loss": loss.detach(), "instance": instance.detach()}
        if prior is not None:
            found["prior"] = prior.detach()
        if self.share.ranks.alone:
            return found
        return dict(zip(found, self.share.ranks.mean(torch.stack(list(found.values()))), strict=True))

    def on_train_epoch_start(self) -> None:
        # Lightning leaves modules as it finds them. Adapter dropout and gradient checkpointing only work in train mode;
        # the frozen networks have no dropout of their own, so otherwise the mode makes no difference.
        for network in self.networks.values():
            network.train(self.dropout > 0 or self.checkpointing)

    def configure_model(self) -> None:
        """Part what is trained among the devices, where the config says so and Lightning has a mesh of them."""
        if self.share.sharded and self.whole is not None:
            for network in self.whole.networks.values():
                shard(network, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> Any:
        groups = parameter_groups(self.backbone, self.optim_config, self.words)
        # In float16 the gradients are scaled, and a fused optimizer would scale them back after they were clipped.
        optimizer = build_optimizer(self.optim_config, groups, fused=self.backbone.dtype != torch.float16)
        schedule = build_schedule(self.optim_config, optimizer, self.max_steps, self.words)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        if self.words is not None:
            self.rest(optimizer, self.words)
        parameters = [value for group in optimizer.param_groups for value in group["params"]]
        limit = self.optim_config.grad_clip
        norm = nn.utils.clip_grad_norm_(parameters, limit if limit is not None else float("inf"))
        self.latest["grad_norm"] = norm = whole(norm.detach())
        # In half precision the scaler sees to it: it leaves such a step out and goes on with a smaller scale.
        if not torch.isfinite(norm) and self.trainer.precision != "16-mixed":
            raise NonFiniteLossError(
                f"the gradient norm became {norm.item()} at step {self.micro_step // self.accumulate}; "
                "lower optim.lr or use backbone.precision=fp32"
            )
        self.rates = {group["name"]: group["lr"] for group in optimizer.param_groups}  # before the schedule moves on

    def rest(self, optimizer: Any, words: WordsPlan) -> None:
        """Take the gradients of groups that rest at this step: an optimizer leaves alone what has none."""
        step = self.resumed_at + self.trainer.global_step
        for group in optimizer.param_groups:
            if words.rests(group["name"], step):
                for value in group["params"]:
                    value.grad = None

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Nothing: checkpoints are written by `dreambooth/checkpoints.py` and hold the adapter, not the base model."""
        return {}


class _SeededGlobal:
    """Runs a block with the global CPU and device generators seeded, and restores them; does nothing for None."""

    def __init__(self, seed: int | None):
        self.seed = seed

    def __enter__(self) -> None:
        if self.seed is not None:
            # Its own device alone: by default all GPUs of the machine would be started, with a warning.
            here = [torch.cuda.current_device()] if torch.cuda.is_available() else []
            self.fork = torch.random.fork_rng(here)
            self.fork.__enter__()
            torch.manual_seed(self.seed)

    def __exit__(self, *error: Any) -> None:
        if self.seed is not None:
            self.fork.__exit__(*error)

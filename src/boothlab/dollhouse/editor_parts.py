"""The trainings of the miniature editors: InstructPix2Pix, two ControlNets, two T2I-Adapters."""

from abc import abstractmethod
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from boothlab.dollhouse import architectures as shapes
from boothlab.dollhouse.edits import training_pair
from boothlab.dollhouse.parts import Losses, Part
from boothlab.dollhouse.scenes import render

Batch = dict[str, Tensor]
REUSE = 2  # steps in a row that share their scenes, with noise and times of their own: rendering and encoding are dear
DROPPED = 0.05  # InstructPix2Pix, section 3.2.1: no text, no picture, neither, each for 5% of the examples
SNR_CAP = 5.0


def noise_loss(predicted: Tensor, noise: Tensor, alphas_B: Tensor) -> Losses:
    """The pre-training's own loss: noise prediction under min-SNR weights (γ = 5)."""
    errors_B = (predicted.float() - noise).pow(2).mean(dim=(1, 2, 3))
    snr_B = alphas_B / (1 - alphas_B)
    return {"loss": (errors_B * snr_B.clamp(max=SNR_CAP) / snr_B).mean(), "mse": errors_B.mean().detach()}


class EditorPart(Part):
    """What they share: the frozen house (VAE, text encoder, schedule) and batches that two steps in a row share."""

    batch_size, ema_decay = 24, 0.999

    def __init__(self, seed: int, device: str, out: Path):
        super().__init__(seed, device)
        house = out / "pipeline"
        self.vae = AutoencoderKL.from_pretrained(house / "vae", torch_dtype=torch.float32)
        self.text_encoder = CLIPTextModel.from_pretrained(house / "text_encoder", dtype=torch.float32)
        for frozen in (self.vae, self.text_encoder):
            frozen.requires_grad_(False).eval().to(device)
        self.tokenizer, self.scheduler = shapes.build_tokenizer(), shapes.build_scheduler()
        self._drawn: tuple[int, int, Batch] | None = None

    def house_unet(self, out: Path) -> UNet2DConditionModel:
        """The house's own UNet in float32."""
        return UNet2DConditionModel.from_pretrained(out / "pipeline" / "unet", torch_dtype=torch.float32)

    def tokens(self, prompts: list[str]) -> Tensor:
        """Token ids [B, T] of the prompts."""
        return self.tokenizer(
            prompts, padding="max_length", max_length=shapes.MAX_TOKENS, truncation=True, return_tensors="pt"
        ).input_ids

    @torch.no_grad()
    def states(self, prompts: list[str]) -> Tensor:
        """What the frozen text encoder makes of the prompts: [B, T, D]."""
        return self.text_encoder(self.tokens(prompts).to(self.device)).last_hidden_state

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """The latents' means, not yet scaled."""
        with self._autocast():
            means = self.vae.encode(pictures.to(self.device)).latent_dist.mean
        return means.float()

    @abstractmethod
    def draw(self, index: int) -> Batch:
        """Fresh scenes number `index`, rendered and encoded."""

    def scenes_of(self, step: int) -> Batch:
        """The scenes of a step; two steps in a row have the same."""
        key = (step // REUSE, self.batch_size)
        if self._drawn is None or self._drawn[:2] != key:
            self._drawn = (*key, self.draw(key[0]))
        return self._drawn[2]

    def timesteps(self, count: int) -> Tensor:
        """Timesteps of one batch, uniform."""
        return torch.randint(0, 1000, (count,), device=self.device)

    def noised(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Noisy latents, the noise, its timesteps, and ᾱ at those."""
        noise, timesteps = torch.randn_like(latents), self.timesteps(len(latents))
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        return noisy, noise, timesteps, self.scheduler.alphas_cumprod.to(latents.device)[timesteps]


class Instruct(EditorPart):
    """InstructPix2Pix: the house's UNet with the source's latents beside the noise, on pairs with exact targets.

    The source's latents are not scaled, as `StableDiffusionInstructPix2PixPipeline` does not scale them.
    """

    name, peak_lr, folder = "instruct", 6e-4, "instruct_pix2pix"

    def __init__(self, seed: int, device: str, out: Path, compiled: bool = False):
        super().__init__(seed, device, out)
        base = self.house_unet(out)
        channels = shapes.LATENT_CHANNELS
        self.unet = UNet2DConditionModel.from_config(base.config, in_channels=2 * channels)
        weights = base.state_dict()
        widened = torch.zeros_like(self.unet.conv_in.weight)
        widened[:, :channels] = weights["conv_in.weight"]  # zeros for the source: at first it is the house's UNet
        self.unet.load_state_dict({**weights, "conv_in.weight": widened})
        self.modules = nn.ModuleDict({"unet": self.unet})
        self.predict = torch.compile(self.unet) if compiled else self.unet
        self.nothing_TD = self.states([""])[0]

    def draw(self, index: int) -> Batch:
        rng = self._rng(index)
        pairs = [training_pair(rng) for _ in range(self.batch_size)]
        pictures = shapes.to_images([render(scene) for pair in pairs for scene in (pair.source, pair.target)])
        sources, targets = self.encode(pictures).unflatten(0, (-1, 2)).unbind(1)
        return {
            "sources": sources,
            "targets": targets * self.vae.config.scaling_factor,
            "states": self.states([pair.instruction for pair in pairs]),
        }

    def batch(self, step: int) -> Batch:
        scenes = self.scenes_of(step)
        rng = self._rng(-1 - step)  # not a number of any scenes
        chance = torch.from_numpy(rng.random(len(scenes["sources"]))).to(self.device)
        no_text, no_source = chance < 2 * DROPPED, (chance >= DROPPED) & (chance < 3 * DROPPED)
        return {
            "sources": scenes["sources"] * ~no_source[:, None, None, None],
            "targets": scenes["targets"],
            "states": torch.where(no_text[:, None, None], self.nothing_TD, scenes["states"]),
        }

    def loss(self, batch: Batch, step: int) -> Losses:
        noisy, noise, timesteps, alphas = self.noised(batch["targets"])
        inputs = torch.cat([noisy, batch["sources"]], dim=1)
        predicted = self.predict(inputs, timesteps, batch["states"], return_dict=False)[0]
        return noise_loss(predicted, noise, alphas)

    def export(self, out: Path) -> None:
        self.unet.half().save_pretrained(out / self.folder / "unet")

    def start_from(self, out: Path) -> None:
        unet = UNet2DConditionModel.from_pretrained(out / self.folder / "unet")
        self.unet.load_state_dict(unet.float().state_dict())

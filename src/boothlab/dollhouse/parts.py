"""The trainings of the pipeline (VAE, its decoder, UNet with text encoder): what each sees, and its loss."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel

from boothlab.dollhouse import architectures as shapes
from boothlab.dollhouse.grammar import random_prompt, scene_is_held_out
from boothlab.dollhouse.scenes import Scene, render, rng_for, sample_scene

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Losses = dict[str, torch.Tensor]


def normalise(images_BCHW: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """[-1, 1] images to an encoder's own units."""
    m, s = (torch.tensor(v, device=images_BCHW.device).view(1, 3, 1, 1) for v in (mean, std))
    return ((images_BCHW + 1) / 2 - m) / s


def training_scene(rng: np.random.Generator) -> Scene:
    """A scene whose combination of facts is not held out."""
    while scene_is_held_out(scene := sample_scene(rng)):
        pass
    return scene


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    """The float32 weights of one component of a saved pipeline, by the names its own class gives them."""
    loaders: dict[str, Any] = {"vae": AutoencoderKL, "unet": UNet2DConditionModel, "text_encoder": CLIPTextModel}
    return dict(loaders[folder.name].from_pretrained(folder).float().state_dict())


class Part(ABC):
    """One training: its modules, its batches and its loss."""

    name: str
    peak_lr: float = 1e-3
    weight_decay: float = 1e-2
    ema_decay: float = 0.999
    batch_size: int = 64
    modules: nn.ModuleDict

    def __init__(self, seed: int, device: str):
        self.seed, self.device = seed, device

    def _rng(self, step: int) -> np.random.Generator:
        return rng_for(self.seed, "pretrain", self.name, step)

    @abstractmethod
    def batch(self, step: int) -> Any:
        """What step `step` learns from; a function of the seed and the step alone."""

    @abstractmethod
    def loss(self, batch: Any, step: int) -> Losses:
        """`loss`, and any figures worth printing."""

    @abstractmethod
    def export(self, out: Path) -> None:
        """Write the finished modules under the weights' folder."""

    @abstractmethod
    def start_from(self, out: Path) -> None:
        """Begin with the finished weights under `out` instead of random ones."""

    def _autocast(self) -> torch.autocast:
        return torch.autocast(torch.device(self.device).type, torch.bfloat16)


class Vae(Part):
    """Reconstruction with a whisper of KL, as Stable Diffusion's autoencoder has it (1e-6)."""

    name, peak_lr, batch_size = "vae", 1e-3, 16

    def __init__(self, seed: int, device: str):
        super().__init__(seed, device)
        self.vae = shapes.build_vae()  # not compiled: torch 2.13's inductor loses the encoder's gradients on the CPU
        self.modules = nn.ModuleDict({"vae": self.vae})

    def batch(self, step: int) -> torch.Tensor:
        rng = self._rng(step)
        return shapes.to_images([render(training_scene(rng)) for _ in range(self.batch_size)])

    def loss(self, batch: torch.Tensor, step: int) -> Losses:
        images = batch.to(self.device)
        noise = torch.randn(
            len(images), shapes.LATENT_CHANNELS, shapes.LATENT_SIZE, shapes.LATENT_SIZE, device=self.device
        )
        with self._autocast():
            posterior = self.vae.encode(images).latent_dist
            decoded = self.vae.decode(posterior.mean + posterior.std * noise).sample.float()
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        mse, l1 = F.mse_loss(decoded, images), F.l1_loss(decoded, images)
        return {"loss": mse + 0.1 * l1 + 1e-6 * kl, "psnr": (10 * torch.log10(4 / mse)).detach()}

    @torch.no_grad()
    def export(self, out: Path) -> None:
        rng = rng_for(self.seed, "pretrain", "vae", "scale")
        images = shapes.to_images([render(training_scene(rng)) for _ in range(512)]).to(self.device)
        latents = self.vae.encode(images).latent_dist.mean
        self.vae.register_to_config(scaling_factor=round(1.0 / float(latents.std()), 5))
        self.vae.to(torch.float16).save_pretrained(out / "pipeline" / "vae")

    def start_from(self, out: Path) -> None:
        self.vae.load_state_dict(_weights(out / "pipeline" / "vae"))


class Decoder(Part):
    """The VAE's decoder alone, on the frozen encoder's latents: sharper pictures, and the UNet stays valid."""

    name, peak_lr, batch_size = "decoder", 8e-4, 16

    def __init__(self, seed: int, device: str, out: Path):
        super().__init__(seed, device)
        self.vae = AutoencoderKL.from_pretrained(out / "pipeline" / "vae", torch_dtype=torch.float32).to(device)
        self.vae.encoder.requires_grad_(False)
        self.vae.quant_conv.requires_grad_(False)
        self.modules = nn.ModuleDict({"post_quant_conv": self.vae.post_quant_conv, "decoder": self.vae.decoder})

    def batch(self, step: int) -> torch.Tensor:
        rng = self._rng(step)
        return shapes.to_images([render(training_scene(rng)) for _ in range(self.batch_size)])

    def loss(self, batch: torch.Tensor, step: int) -> Losses:
        images = batch.to(self.device)
        with self._autocast():
            with torch.no_grad():
                latents = self.vae.encode(images).latent_dist.sample()
            decoded = self.vae.decode(latents).sample.float()
        mse, l1 = F.mse_loss(decoded, images), F.l1_loss(decoded, images)
        return {"loss": mse + 0.1 * l1, "psnr": (10 * torch.log10(4 / mse)).detach()}

    def export(self, out: Path) -> None:
        self.vae.half().save_pretrained(out / "pipeline" / "vae")

    def start_from(self, out: Path) -> None:
        """It always does."""


class Diffusion(Part):
    """The UNet with its text encoder, jointly, on the noise-prediction loss with min-SNR weights (γ = 5)."""

    name, peak_lr, ema_decay = "diffusion", 1.2e-3, 0.9995
    batch_size, fresh, pool_size = 48, 16, 32768

    def __init__(self, seed: int, device: str, out: Path, compiled: bool):
        super().__init__(seed, device)
        self.tokenizer = shapes.build_tokenizer()
        self.scheduler = shapes.build_scheduler()
        self.unet, self.text_encoder = shapes.build_unet(), shapes.build_text_encoder(self.tokenizer)
        self.modules = nn.ModuleDict({"unet": self.unet, "text_encoder": self.text_encoder})
        self.vae = AutoencoderKL.from_pretrained(out / "pipeline" / "vae", torch_dtype=torch.float32).to(device).eval()
        self.predict = torch.compile(self.unet) if compiled else self.unet
        self.latents: list[torch.Tensor] = []
        self.prompts: list[torch.Tensor] = []

    def _tokens(self, prompts: list[str]) -> torch.Tensor:
        return self.tokenizer(
            prompts, padding="max_length", max_length=shapes.MAX_TOKENS, truncation=True, return_tensors="pt"
        ).input_ids

    @torch.no_grad()
    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`fresh` new scenes and the rest from the pool of earlier ones: encoding is dear, new noise is cheap."""
        rng = self._rng(step)
        scenes = [training_scene(rng) for _ in range(self.fresh if self.latents else self.batch_size)]
        images = shapes.to_images([render(scene) for scene in scenes]).to(self.device)
        with self._autocast():
            latents = self.vae.encode(images).latent_dist.mean
        latents = latents.float() * self.vae.config.scaling_factor
        tokens = self._tokens([random_prompt(scene, rng) for scene in scenes])
        old = (
            [int(i) for i in rng.integers(len(self.latents), size=self.batch_size - len(scenes))]
            if self.latents
            else []
        )
        batch_latents = torch.stack([*latents, *(self.latents[i] for i in old)])
        batch_tokens = torch.stack([*tokens, *(self.prompts[i] for i in old)])
        for latent, token in zip(latents, tokens, strict=True):
            if len(self.latents) < self.pool_size:
                self.latents.append(latent)
                self.prompts.append(token)
            else:
                i = int(rng.integers(self.pool_size))
                self.latents[i], self.prompts[i] = latent, token
        empty = torch.from_numpy(rng.random(len(batch_tokens)) < 0.1)  # classifier-free dropout
        batch_tokens[empty] = self._tokens([""])[0]
        return batch_latents, batch_tokens

    def loss(self, batch: tuple[torch.Tensor, torch.Tensor], step: int) -> Losses:
        latents, tokens = (value.to(self.device) for value in batch)
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (len(latents),), device=self.device)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        states = self.text_encoder(tokens).last_hidden_state
        predicted = self.predict(noisy, timesteps, states, return_dict=False)[0]
        errors = (predicted.float() - noise).pow(2).mean(dim=(1, 2, 3))
        alphas = self.scheduler.alphas_cumprod.to(self.device)[timesteps]
        snr = alphas / (1 - alphas)
        return {"loss": (errors * snr.clamp(max=5.0) / snr).mean(), "mse": errors.mean().detach()}

    def export(self, out: Path) -> None:
        pipeline = StableDiffusionPipeline(
            vae=self.vae.half(),
            text_encoder=self.text_encoder.half(),
            tokenizer=self.tokenizer,
            unet=self.unet.half(),
            scheduler=self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(out / "pipeline", safe_serialization=True)

    def start_from(self, out: Path) -> None:
        for name in ("unet", "text_encoder"):
            self.modules[name].load_state_dict(_weights(out / "pipeline" / name))

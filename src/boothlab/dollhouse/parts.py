"""The five trainings of the miniatures: what each sees, and the loss it minimises."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import save_file
from torch import nn

from boothlab.dollhouse import architectures as shapes
from boothlab.dollhouse.grammar import facts_of, random_prompt, scene_is_held_out
from boothlab.dollhouse.scenes import Scene, ToyScene, render, rng_for, sample_scene, sample_subject, sample_toy_scene

PART_NAMES = ("vae", "diffusion", "clip", "dino", "judge")
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

    def _autocast(self) -> torch.autocast:
        return torch.autocast(torch.device(self.device).type, torch.bfloat16)


class _RoundTrip(nn.Module):
    """There and back as one graph, so that torch.compile can fuse it."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae

    def forward(self, images_BCHW: torch.Tensor, noise_BCHW: torch.Tensor) -> tuple[torch.Tensor, ...]:
        posterior = self.vae.encode(images_BCHW).latent_dist
        decoded = self.vae.decode(posterior.mean + posterior.std * noise_BCHW).sample
        return decoded.float(), posterior.mean.float(), posterior.logvar.float()


class Vae(Part):
    """Reconstruction with a whisper of KL, as Stable Diffusion's autoencoder has it (1e-6)."""

    name, peak_lr, batch_size = "vae", 1.2e-3, 16

    def __init__(self, seed: int, device: str, compiled: bool = False):
        super().__init__(seed, device)
        self.vae = shapes.build_vae()
        self.modules = nn.ModuleDict({"vae": self.vae})
        self.round_trip = torch.compile(_RoundTrip(self.vae)) if compiled else _RoundTrip(self.vae)

    def batch(self, step: int) -> torch.Tensor:
        rng = self._rng(step)
        return shapes.to_images([render(training_scene(rng)) for _ in range(self.batch_size)])

    def loss(self, batch: torch.Tensor, step: int) -> Losses:
        images = batch.to(self.device)
        noise = torch.randn(len(images), 4, shapes.LATENT_SIZE, shapes.LATENT_SIZE, device=self.device)
        with self._autocast():
            decoded, mean, logvar = self.round_trip(images, noise)
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


class Clip(Part):
    """The miniature CLIP: symmetric InfoNCE between pictures and prompts."""

    name, batch_size, peak_lr = "clip", 192, 1e-3

    def __init__(self, seed: int, device: str):
        super().__init__(seed, device)
        self.tokenizer = shapes.build_tokenizer()
        self.clip = shapes.build_clip(self.tokenizer)
        self.modules = nn.ModuleDict({"clip": self.clip})

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = self._rng(step)
        scenes = [training_scene(rng) for _ in range(self.batch_size)]
        prompts = [random_prompt(scene, rng, keep=0.8) for scene in scenes]
        tokens = self.tokenizer(
            prompts, padding="max_length", max_length=shapes.MAX_TOKENS, truncation=True, return_tensors="pt"
        )
        return shapes.to_images([render(scene) for scene in scenes]), tokens.input_ids

    def loss(self, batch: tuple[torch.Tensor, torch.Tensor], step: int) -> Losses:
        images, tokens = (value.to(self.device) for value in batch)
        with self._autocast():
            output = self.clip(input_ids=tokens, pixel_values=normalise(images, CLIP_MEAN, CLIP_STD))
        logits = output.logits_per_image.float()
        target = torch.arange(len(logits), device=self.device)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        self.clip.logit_scale.data.clamp_(max=4.6052)  # 100, as OpenAI's
        return {"loss": loss, "top1": (logits.argmax(1) == target).float().mean()}

    def export(self, out: Path) -> None:
        self.clip.half().save_pretrained(out / "clip")
        self.tokenizer.save_pretrained(out / "clip")


class Dino(Part):
    """The ViT in DINO's place: two pictures of one individual in different places belong together (NT-Xent)."""

    name, batch_size, peak_lr = "dino", 128, 1e-3
    temperature = 0.07

    def __init__(self, seed: int, device: str):
        super().__init__(seed, device)
        self.dino = shapes.build_dino()
        self.modules = nn.ModuleDict({"dino": self.dino})

    def batch(self, step: int) -> torch.Tensor:
        rng = self._rng(step)
        subjects = [sample_subject(rng) for _ in range(self.batch_size)]
        if step % 2:  # every other batch holds one class only, so that the class alone does not tell them apart
            noun = subjects[0].class_noun
            subjects = [sample_subject(rng, noun) for _ in range(self.batch_size)]
        views = [render(sample_toy_scene(rng, subject)) for _ in range(2) for subject in subjects]
        return shapes.to_images(views)

    def loss(self, batch: torch.Tensor, step: int) -> Losses:
        images = normalise(batch.to(self.device), IMAGENET_MEAN, IMAGENET_STD)
        with self._autocast():
            features = self.dino(pixel_values=images).last_hidden_state[:, 0]
        features = F.normalize(features.float(), dim=-1)
        logits = features @ features.T / self.temperature
        logits.fill_diagonal_(float("-inf"))
        half = len(images) // 2
        target = torch.arange(len(images), device=self.device).roll(half)
        return {"loss": F.cross_entropy(logits, target), "top1": (logits.argmax(1) == target).float().mean()}

    def export(self, out: Path) -> None:
        self.dino.half().save_pretrained(out / "dino")


class JudgePart(Part):
    """The independent judge of generated images, on renders alone, blurred and noised a little so that it is robust."""

    name, batch_size, peak_lr = "judge", 96, 1e-3

    def __init__(self, seed: int, device: str):
        super().__init__(seed, device)
        self.judge = shapes.Judge()
        self.modules = nn.ModuleDict({"judge": self.judge})

    def batch(self, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        rng = self._rng(step)
        scenes: list[ToyScene] = [sample_toy_scene(rng) for _ in range(self.batch_size)]
        images = shapes.to_images([render(scene) for scene in scenes])
        noise = torch.from_numpy(rng.standard_normal(images.shape).astype(np.float32))
        images = images + noise * float(rng.uniform(0, 0.12))
        if rng.random() < 0.4:
            images = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
        facts = [facts_of(scene) for scene in scenes]
        labels = {
            name: torch.tensor([values.index(getattr(fact, name)) for fact in facts])
            for name, values in shapes.JUDGE_HEADS.items()
        }
        return images, labels

    def loss(self, batch: tuple[torch.Tensor, dict[str, torch.Tensor]], step: int) -> Losses:
        images, labels = batch
        with self._autocast():
            logits = self.judge(images.to(self.device))
        losses = {name: F.cross_entropy(logits[name].float(), labels[name].to(self.device)) for name in logits}
        return {"loss": torch.stack(list(losses.values())).sum(), **{k: v.detach() for k, v in losses.items()}}

    def export(self, out: Path) -> None:
        (out / "judge").mkdir(parents=True, exist_ok=True)
        save_file(
            {k: v.half().contiguous() for k, v in self.judge.state_dict().items()}, out / "judge" / "model.safetensors"
        )


def build_part(name: str, seed: int, out: Path, device: str, compiled: bool) -> Part:
    """The part of that name, freshly initialised; `diffusion` needs the finished VAE under `out`."""
    if name == "diffusion":
        return Diffusion(seed, device, out, compiled)
    parts: dict[str, Callable[[int, str], Part]] = {"vae": Vae, "clip": Clip, "dino": Dino, "judge": JudgePart}
    return parts[name](seed, device)

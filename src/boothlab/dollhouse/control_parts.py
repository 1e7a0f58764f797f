"""The trainings of the miniatures that follow a map: ControlNets and T2I-Adapters for Canny edges and for depth."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel, T2IAdapter, UNet2DConditionModel
from torch import Tensor, nn

from boothlab.dollhouse import architectures as shapes
from boothlab.dollhouse.controls import control_map
from boothlab.dollhouse.editor_parts import Batch, EditorPart, noise_loss
from boothlab.dollhouse.edits import held_out_from_editors
from boothlab.dollhouse.grammar import random_prompt
from boothlab.dollhouse.parts import Losses
from boothlab.dollhouse.scenes import Scene, Time, render, sample_scene

ROOM_SHARE = 0.4
OTHER_HOUR = 0.5  # how often the map is taken at an hour of its own: an edit of the light brings the map from before
EMPTY_PROMPTS = {"control": 0.5, "adapter": 0.1}  # half of them for a ControlNet, as its authors do
ADAPTER_CHANNELS = {"canny": 1, "depth": 3}  # as the public T2I-Adapters for Stable Diffusion 1.5 have them


def build_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """A ControlNet with the UNet's own residual blocks, the first of its middle included, and no attention.

    The map is shrunk by 4, as the house's VAE shrinks pictures: two strides where Stable Diffusion has three. Leaving
    attention out makes it less than half as large as a copy of the encoder. Text still reaches the UNet itself.

    The map's embedding begins at full strength, not at diffusers' zero: the zero convolutions behind it silence the
    start well enough, and behind two zeros a Canny map steered nothing after 900 steps.
    """
    config = unet.config
    net = ControlNetModel(
        in_channels=config.in_channels,
        down_block_types=("DownBlock2D",) * len(config.block_out_channels),
        mid_block_type="UNetMidBlock2D",
        block_out_channels=tuple(config.block_out_channels),
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_num_groups,
        cross_attention_dim=config.cross_attention_dim,
        attention_head_dim=config.attention_head_dim,
        conditioning_embedding_out_channels=(16, 32, 64),
    )
    own = net.state_dict()
    net.load_state_dict({**own, **{name: value for name, value in unet.state_dict().items() if name in own}})
    for module in net.controlnet_cond_embedding.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return net


def build_adapter(kind: str) -> T2IAdapter:
    """A full T2I-Adapter for the house's two resolutions, for maps of one channel ("canny") or three ("depth")."""
    return T2IAdapter(
        in_channels=ADAPTER_CHANNELS[kind],
        channels=[64, 128],
        num_res_blocks=1,
        downscale_factor=shapes.IMAGE_SIZE // shapes.LATENT_SIZE,
    )


def at_another_hour(scene: Scene, rng: np.random.Generator) -> Scene:
    """The same scene at any hour: the same things in the same places."""
    return replace(scene, time=tuple(Time)[int(rng.integers(len(Time)))])


class MapPart(EditorPart):
    """Scenes with prompts and maps, and the frozen UNet that a small network learns to steer."""

    peak_lr = 1e-3

    def __init__(self, seed: int, device: str, out: Path, method: str, kind: str):
        super().__init__(seed, device, out)
        self.name, self.method, self.kind = f"{method}_{kind}", method, kind
        self.unet = self.house_unet(out).requires_grad_(False).eval().to(device)
        self.channels = ADAPTER_CHANNELS[kind] if method == "adapter" else 3
        self.folder = {"control": "controlnet", "adapter": "t2i_adapter"}[method] + f"_{kind}"

    def draw(self, index: int) -> Batch:
        rng = self._rng(index)
        scenes: list[Scene] = []
        while len(scenes) < self.batch_size:
            if not held_out_from_editors(scene := sample_scene(rng, ROOM_SHARE)):
                scenes.append(scene)
        prompts = ["" if rng.random() < EMPTY_PROMPTS[self.method] else random_prompt(scene, rng) for scene in scenes]
        mapped = [at_another_hour(scene, rng) if rng.random() < OTHER_HOUR else scene for scene in scenes]
        maps = np.stack([control_map(scene, self.kind) for scene in mapped])
        pictures = shapes.to_images([render(scene) for scene in scenes])
        return {
            "latents": self.encode(pictures) * self.vae.config.scaling_factor,
            "states": self.states(prompts),
            "maps": torch.from_numpy(maps).float().div(255)[:, None].expand(-1, self.channels, -1, -1).to(self.device),
        }

    def batch(self, step: int) -> Batch:
        return self.scenes_of(step)


class Control(MapPart):
    """A ControlNet, from the UNet's residual blocks and zero convolutions."""

    def __init__(self, seed: int, device: str, out: Path, kind: str):
        super().__init__(seed, device, out, "control", kind)
        self.peak_lr = 2e-3
        self.controlnet = build_controlnet(self.unet).requires_grad_(True)
        self.modules = nn.ModuleDict({"controlnet": self.controlnet})

    def loss(self, batch: Batch, step: int) -> Losses:
        noisy, noise, timesteps, alphas = self.noised(batch["latents"])
        down, middle = self.controlnet(
            noisy, timesteps, batch["states"], controlnet_cond=batch["maps"], return_dict=False
        )
        predicted = self.unet(
            noisy,
            timesteps,
            batch["states"],
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0]
        return noise_loss(predicted, noise, alphas)

    def export(self, out: Path) -> None:
        self.controlnet.half().save_pretrained(out / self.folder)

    def start_from(self, out: Path) -> None:
        self.controlnet.load_state_dict(ControlNetModel.from_pretrained(out / self.folder).float().state_dict())


class Adapter(MapPart):
    """A T2I-Adapter; its timesteps lean to the noisy end, where structure is decided (section 3.3 of its paper)."""

    def __init__(self, seed: int, device: str, out: Path, kind: str):
        super().__init__(seed, device, out, "adapter", kind)
        self.adapter = build_adapter(kind)
        self.modules = nn.ModuleDict({"adapter": self.adapter})

    def timesteps(self, count: int) -> Tensor:
        """t = (1 − u³)·1000 with u uniform."""
        return ((1 - torch.rand(count, device=self.device) ** 3) * 1000).long().clamp(0, 999)

    def loss(self, batch: Batch, step: int) -> Losses:
        noisy, noise, timesteps, alphas = self.noised(batch["latents"])
        features = self.adapter(batch["maps"])
        predicted = self.unet(
            noisy, timesteps, batch["states"], down_intrablock_additional_residuals=features, return_dict=False
        )[0]
        return noise_loss(predicted, noise, alphas)

    def export(self, out: Path) -> None:
        self.adapter.half().save_pretrained(out / self.folder)

    def start_from(self, out: Path) -> None:
        self.adapter.load_state_dict(T2IAdapter.from_pretrained(out / self.folder).float().state_dict())

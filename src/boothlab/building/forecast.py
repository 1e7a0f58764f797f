"""What a training will train, keep in memory and write, worked out from shapes before any weight is loaded."""

import time
from dataclasses import dataclass

import torch
from torch import nn

from boothlab.building.methods import put_on
from boothlab.building.parts import build_backbone, build_device, build_sampler_settings, set_threads
from boothlab.building.shared import DTYPES
from boothlab.config import Accelerator, Method, OptimizerName, TrainConfig
from boothlab.diffusion import sharding
from boothlab.diffusion.activations import activation_bytes, decoding_bytes
from boothlab.diffusion.architectures import Skeleton, build_skeleton
from boothlab.diffusion.backbone import local_folder
from boothlab.diffusion.lora import attach, shed_adapters, trainable
from boothlab.diffusion.sampling import Request, Sampler
from boothlab.quiet import quiet_libraries
from boothlab.ranks import rows_shared

GIB = 2**30
RUNTIME = int(0.8 * GIB)
"""Assumed for a GPU: the driver's context, the libraries' workspaces, and what the allocator cannot use."""
SMALL = 50_000_000
"""Parameters of a UNet up to which a step is timed rather than guessed."""
_EIGHT_BIT_FROM = 4096
"""bitsandbytes keeps the moments of smaller tensors in float32."""


@dataclass(frozen=True)
class Part:
    """One line of the sum: what it is, how it was worked out, and its bytes."""

    what: str
    how: str
    size: int


@dataclass(frozen=True)
class Forecast:
    """What `boothlab train … --dry-run` says. `evaluating` is empty where nothing is evaluated."""

    known_from: str
    trained: dict[str, int]
    whole: dict[str, int]
    file_bytes: int
    training: list[Part]
    evaluating: list[Part]

    @property
    def peak(self) -> int:
        """The larger of the two sums, in bytes."""
        return max(sum(part.size for part in parts) for parts in (self.training, self.evaluating))


def forecast(config: TrainConfig) -> Forecast:
    """Work it all out on the meta device. Raises UserError for a backbone whose shapes are not known."""
    skeleton = build_skeleton(config.backbone.source, config.backbone.name, config.backbone.revision)
    whole = {name: _count(network) for name, network in {**skeleton.networks, "vae": skeleton.vae}.items()}
    dtype = DTYPES[config.backbone.precision]
    with quiet_libraries():  # diffusers warns of any cast
        for network in skeleton.networks.values():
            network.to(dtype)
    words = _put_on(config, skeleton)
    values = [value for network in skeleton.networks.values() for value in trainable(network).values()]
    sizes = [value.numel() for value in values] + words
    trained = {name: sum(v.numel() for v in trainable(net).values()) for name, net in skeleton.networks.items()}
    if words:
        trained["learned words"] = sum(words)
    training = _training(config, skeleton, whole, trained, sizes)
    return Forecast(
        skeleton.known_from,
        trained,
        whole,
        _file_bytes(config, sizes),
        training,
        _evaluating(config, skeleton, whole, trained, sizes),
    )


def _rows(config: TrainConfig) -> int:
    """Samples that a device computes at once."""
    shared = rows_shared(config.trainer.devices, config.data.batch_size)
    return config.data.batch_size // shared * (2 if config.prior.enabled else 1)


def _count(network: nn.Module) -> int:
    return sum(value.numel() for value in network.parameters())


def _put_on(config: TrainConfig, skeleton: Skeleton) -> list[int]:
    """What `building.methods.put_on` does, without numbers; returns the sizes of learned words' embeddings."""
    lora = config.lora
    if config.method is Method.full:
        for name, network in skeleton.networks.items():
            network.requires_grad_(name == "unet" or config.full.train_text_encoder)
    if config.method in (Method.lora, Method.pivotal):
        for name, network in skeleton.networks.items():
            if name != "unet" and not lora.train_text_encoder:
                continue
            targets = lora.unet_targets if name == "unet" else lora.text_encoder_targets
            attach(
                network, name, rank=lora.rank, alpha=lora.effective_alpha, dropout=lora.dropout, init=lora.init.value,
                targets=targets, seed=config.seed, variant=lora.variant.value,
            )  # fmt: skip
            network.to("meta")
    if config.method not in (Method.textual_inversion, Method.pivotal):
        return []
    return [config.inversion.vectors * one.config.hidden_size for one in skeleton.text_encoders.values()]


def _training(
    config: TrainConfig, skeleton: Skeleton, whole: dict[str, int], trained: dict[str, int], sizes: list[int]
) -> list[Part]:
    """The sum while a step is computed."""
    parts = _weights(config, whole, trained, config.trainer.offload, parted=True) + _of_training(config, trained, sizes)
    rows = _rows(config)
    side, checkpointing = _side(config, skeleton), config.trainer.gradient_checkpointing
    # Weights that are trained whole are float32, and cast for each product, as autocast does: they count above.
    kept = activation_bytes(skeleton, rows, side, DTYPES[config.backbone.precision], checkpointing)
    saved = "blocks' inputs and one block" if checkpointing else "all that autograd saves"
    parts.append(Part("activations of the UNet", f"{saved}, {rows} × {side}² latents", kept))
    if config.trainer.sharded:
        blocks = [
            _count(block) for name, net in skeleton.networks.items() if trained[name] for block in sharding.blocks(net)
        ]
        most = max(blocks)
        parts.append(Part("the largest block, put together", f"{most:,} × 4 B, and its gradients", 8 * most))
    return [*parts, *_runtime(config)]


def _weights(
    config: TrainConfig, whole: dict[str, int], trained: dict[str, int], parked: bool, parted: bool
) -> list[Part]:
    """The networks on the device; parked ones wait in main memory, parted ones are whole again while drawing."""
    dtype, parts = DTYPES[config.backbone.precision], []
    for name, count in whole.items():
        is_trained = config.method is Method.full and trained.get(name, 0) > 0
        here = name == "unet" or not parked or trained.get(name, 0) > 0
        here = here or (name != "vae" and "learned words" in trained)
        width = 4 if name == "vae" or is_trained else dtype.itemsize
        how = f"{count:,} × {width} B" if here else "in main memory (trainer.offload)"
        size = count * width
        if is_trained and config.trainer.sharded:
            part, of_parts = _own_part(config, size, how)
            size, how = (part, of_parts) if parted else (size + part, f"{how}, put together, and this device's part")
        parts.append(Part(f"{name}, {'trained' if is_trained else 'frozen'}", how, size if here else 0))
    return parts


def _own_part(config: TrainConfig, size: int, how: str) -> tuple[int, str]:
    """What one device keeps of something that sharded training parts, and how that was worked out."""
    devices = config.trainer.devices if config.trainer.sharded else 1
    return -(-size // devices), how if devices == 1 else f"{how} / {devices} devices"


def _of_training(config: TrainConfig, trained: dict[str, int], sizes: list[int]) -> list[Part]:
    """What training adds to the networks, and keeps while it evaluates."""
    count, parts = sum(sizes), []
    if config.method is not Method.full:
        parts.append(Part("what is trained", f"{count:,} × 4 B", 4 * count))
    own, how = _own_part(config, 4 * count, f"{count:,} × 4 B")
    parts += [Part("gradients", how, own), _moments(config, sizes)]
    if config.trainer.devices > 1 and not config.trainer.sharded:
        parts.append(Part("DDP's copy of the gradients", how, own))
    if config.trainer.ema_decay is not None:
        parts.append(Part("average", how, own))
    return parts


def _moments(config: TrainConfig, sizes: list[int]) -> Part:
    """What the optimizer keeps of each trained value."""
    name, count = config.optim.optimizer, sum(sizes)
    if name is OptimizerName.adamw8bit:  # two moments of a byte, and two float32 scales for each block of 256
        size = sum(8 * one if one < _EIGHT_BIT_FROM else 2 * one + 8 * (-(-one // 256)) for one in sizes)
        return Part("optimizer adamw8bit", "2 B a value and 8 B for 256; 8 B in small tensors", size)
    width = 16 if name is OptimizerName.prodigy else 8
    own, how = _own_part(config, width * count, f"{count:,} × {width} B")
    return Part(f"optimizer {name.value}", how, own)


def _side(config: TrainConfig, skeleton: Skeleton) -> int:
    """Side of the latents."""
    return int(config.backbone.resolution // 2 ** (len(skeleton.vae.config.block_out_channels) - 1))


def _runtime(config: TrainConfig) -> list[Part]:
    """Of a GPU, also where this machine has none: it is real backbones that are asked about from elsewhere."""
    on_cpu = config.trainer.accelerator is Accelerator.cpu or config.backbone.source == "dollhouse"
    return [] if on_cpu else [Part("CUDA and its libraries", "assumed", RUNTIME)]


def _evaluating(
    config: TrainConfig, skeleton: Skeleton, whole: dict[str, int], trained: dict[str, int], sizes: list[int]
) -> list[Part]:
    """The sum while latents are decoded, the dearest moment of drawing; the scoring encoders are small beside it."""
    if not config.evaluation.enabled:
        return []
    parts = _weights(config, whole, trained, parked=False, parted=False) + _of_training(config, trained, sizes)
    images, count = config.evaluation.sampler.batch_size, sum(sizes)
    if config.trainer.ema_decay is not None or config.optim.optimizer is OptimizerName.schedule_free:
        own, how = _own_part(config, 4 * count, f"{count:,} × 4 B")
        parts.append(Part("training weights, put aside", how, own))
    decoded = decoding_bytes(skeleton, images, _side(config, skeleton))
    how = f"three of its largest tensors, {images} × {config.backbone.resolution}² pixels"
    return [*parts, Part("decoding", how, decoded), *_runtime(config)]


def _file_bytes(config: TrainConfig, sizes: list[int]) -> int:
    """Tensors in float32, or in full.save_precision, and about 120 bytes of header for each."""
    width = DTYPES[config.full.save_precision].itemsize if config.method is Method.full else 4
    return sum(size * width + 120 for size in sizes)


def measured_seconds(config: TrainConfig) -> tuple[float, float] | None:
    """Seconds of a training step and of a drawn image on this machine; None unless the weights are local and small.

    Two steps of predicting and differentiating on random latents, after one to warm up.
    """
    if local_folder(config.backbone.source) is None:
        return None
    skeleton = build_skeleton(config.backbone.source, config.backbone.name)
    if _count(skeleton.unet) > SMALL:
        return None
    set_threads(config.trainer.threads)
    backbone = build_backbone(config.backbone, build_device(config.trainer.accelerator))
    sampler, images = Sampler(backbone, build_sampler_settings(config.evaluation.sampler)), 0
    for images in (1, min(config.evaluation.sampler.batch_size, 8)):  # the first warms up
        started = time.perf_counter()
        sampler.draw([Request("a photo", seed) for seed in range(images)])
    image = (time.perf_counter() - started) / images
    put_on(config, backbone)
    rows = _rows(config)
    prompt = config.subject.instance_prompt
    step = 0.0
    for _ in range(3):
        started = time.perf_counter()
        text = backbone.embed(backbone.tokenize([prompt] * rows))
        noisy = torch.randn((rows, *backbone.latent_shape), generator=torch.Generator().manual_seed(0))
        predicted = backbone.predict(noisy, torch.full((rows,), 500), text)
        predicted.square().mean().backward()
        step = time.perf_counter() - started
    for network in (backbone.unet, *backbone.text_encoders.values()):
        network.zero_grad(set_to_none=True)
    shed_adapters(backbone)
    turns = config.trainer.devices // rows_shared(config.trainer.devices, config.data.batch_size)
    return step * config.trainer.accumulate / turns, image / config.trainer.devices

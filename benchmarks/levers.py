"""What each lever does for a training step: python benchmarks/levers.py [--size tiny] [--device cpu].

The bare step (forward, backward, clipping, AdamW on cached latents and embeddings) with one thing changed at a time, in
turns in one process: medians of wall and processor time, ratios to the first row, and the loss of the last step, which
tells what changes the numbers. A lever that does not work here is named with what it says.
"""

import argparse
import importlib
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from against.models import model_folder
from torch.nn.attention import SDPBackend, sdpa_kernel

from boothlab.diffusion.backbone import Backbone, load_backbone
from boothlab.diffusion.lora import attach, trainable

TARGETS = ("to_k", "to_q", "to_v", "to_out.0")
#: name: what is changed
LEVERS: dict[str, dict[str, object]] = {
    "cached, float32, AdamW as it comes": {},
    "latents not cached (VAE every step)": {"encode": True},
    "embeddings not cached (text encoder every step)": {"embed": True},
    "AdamW(fused=True)": {"adamw": {"fused": True}},
    "AdamW(foreach=True)": {"adamw": {"foreach": True}},
    "clipping, foreach=False": {"clip": False},
    "channels_last": {"channels_last": True},
    "bf16": {"dtype": torch.bfloat16},
    "gradient checkpointing": {"checkpointing": True},
    "attention: plain products (SDPA's math back-end)": {"attention": SDPBackend.MATH},
    "attention: SDPA's flash back-end": {"attention": SDPBackend.FLASH_ATTENTION},
    "attention: SDPA's memory-efficient back-end": {"attention": SDPBackend.EFFICIENT_ATTENTION},
    "8-bit AdamW (bitsandbytes)": {"eight_bit": True},
    "torch.compile of the UNet's repeated blocks": {"compiled": "blocks"},
    "torch.compile of the UNet": {"compiled": "default"},
    "torch.compile of the UNet with CUDA graphs": {"compiled": "reduce-overhead"},
}


@dataclass
class Lever:
    """A model of its own with one thing changed, and the times of its steps."""

    step: Callable[[], torch.Tensor]
    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    loss: float = float("nan")
    memory: float = float("nan")

    def run(self) -> None:
        """One step, timed."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        started, used = time.perf_counter(), time.process_time()
        self.loss = float(self.step())
        if torch.cuda.is_available():  # of all levers' models together; what differs is this step's own
            self.memory = torch.cuda.max_memory_allocated() / 2**20
        self.processor.append(time.process_time() - used)
        self.wall.append(time.perf_counter() - started)


def build(
    model: Path,
    resolution: int,
    device: torch.device,
    batch: int,
    *,
    encode: bool = False,
    embed: bool = False,
    adamw: dict[str, bool] | None = None,
    clip: bool | None = None,
    channels_last: bool = False,
    dtype: torch.dtype = torch.float32,
    checkpointing: bool = False,
    attention: SDPBackend | None = None,
    eight_bit: bool = False,
    compiled: str = "",
) -> Lever:
    """The step with what is asked for; noise and timesteps are the same for all."""
    backbone = load_backbone(str(model), name="levers", resolution=resolution, device=device, dtype=dtype)
    attach(backbone.unet, "unet", rank=4, alpha=4, dropout=0, init="gaussian", targets=TARGETS, seed=0)
    if channels_last:
        backbone.unet.to(memory_format=torch.channels_last)
    if checkpointing:
        backbone.unet.enable_gradient_checkpointing()
        backbone.unet.train()
    if compiled == "reduce-overhead" and device.type != "cuda":
        raise RuntimeError("CUDA graphs need CUDA")
    if compiled == "blocks":
        backbone.unet.compile_repeated_blocks()
    elif compiled:
        backbone.unet.compile(mode=compiled)
    parameters = list(trainable(backbone.unet).values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, **(adamw or {}))
    if eight_bit:
        optimizer = importlib.import_module("bitsandbytes").optim.AdamW8bit(parameters, lr=1e-4)
    stream = torch.Generator().manual_seed(0)
    pixels_BCHW = torch.rand((batch, 3, resolution, resolution), generator=stream) * 2 - 1
    latents_BCHW = backbone.encode_images(pixels_BCHW)[0].to(device)
    tokens = backbone.tokenize(["a photo of a sks robot"] * batch)
    with torch.no_grad():
        text = backbone.embed(tokens)

    def step() -> torch.Tensor:
        noise_BCHW = torch.randn(latents_BCHW.shape, generator=stream).to(device)
        times_B = torch.randint(1000, (batch,), generator=stream).to(device)
        clean_BCHW = backbone.encode_images(pixels_BCHW)[0].to(device) if encode else latents_BCHW
        said = text if not embed else _embedded(backbone, tokens)
        noisy_BCHW = backbone.noise_scheduler.add_noise(clean_BCHW, noise_BCHW, times_B)
        kernels = nullcontext() if attention is None else sdpa_kernel(attention)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not torch.float32), kernels:
            predicted_BCHW = backbone.predict(noisy_BCHW, times_B, said)
        loss = F.mse_loss(predicted_BCHW, noise_BCHW)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return Lever(step)


@torch.no_grad()
def _embedded(backbone: Backbone, tokens: dict[str, torch.Tensor]) -> object:
    return backbone.embed(tokens)


def main() -> None:
    """Measure in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("dollhouse", "tiny", "sd15"), default="dollhouse")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--resolution", type=int, help="default: the model's own")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--work", type=Path, help="folder for a model with random weights; default: a temporary one")
    args = parser.parse_args()
    levers: dict[str, Lever] = {}
    with tempfile.TemporaryDirectory(prefix="boothlab-levers-") as name:
        model, own = model_folder(args.size, (args.work or Path(name)).resolve())
        for label, changes in LEVERS.items():
            try:
                lever = build(model, args.resolution or own, torch.device(args.device), args.batch, **changes)
                lever.run()  # compiles, and fills the moments
            except Exception as error:
                print(f"{label}: does not work here: {type(error).__name__}: {str(error).splitlines()[0][:200]}")
                continue
            levers[label] = Lever(lever.step)
    for _ in range(args.steps):
        for lever in levers.values():
            lever.run()
    base = next(iter(levers.values()))
    print("\n| | step ms | ratio | processor ms | ratio | CUDA peak MiB | loss of the last step |\n" + "|---" * 7 + "|")
    for label, lever in levers.items():
        wall, used = statistics.median(lever.wall), statistics.median(lever.processor)
        slower, busier = wall / statistics.median(base.wall), used / statistics.median(base.processor)
        memory = f"{lever.memory:.0f}" if lever.memory == lever.memory else ""
        cells = [label, f"{1000 * wall:.1f}", f"{slower:.2f}", f"{1000 * used:.1f}", f"{busier:.2f}", memory]
        cells.append(f"{lever.loss!r}")
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()

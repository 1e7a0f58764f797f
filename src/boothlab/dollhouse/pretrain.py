"""Makes the miniatures: `python -m boothlab.dollhouse.pretrain`, seeded, resumable, on any device, to a time budget.

Each part is a `Part`: the modules it trains and the loss of batch i. One loop (`fit`) trains any of them and writes a
resume file every minute; a finished part writes its ordinary diffusers or transformers folder.
"""

import argparse
import json
import math
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as distributed
import torch.multiprocessing as multiprocessing
from torch import nn

from boothlab.dollhouse.captioner_parts import Captioner
from boothlab.dollhouse.control_parts import Adapter, Control
from boothlab.dollhouse.edit_judge import EditJudgePart
from boothlab.dollhouse.editor_parts import Instruct
from boothlab.dollhouse.parts import Decoder, Diffusion, Part, Vae
from boothlab.dollhouse.reader_parts import Clip, Dino, JudgePart
from boothlab.seeding import derive_seed

PART_NAMES = ("vae", "diffusion", "clip", "dino", "judge", "decoder")
EDITOR_NAMES = ("instruct", "control_canny", "control_depth", "adapter_canny", "adapter_depth", "edit_judge")
DEFAULT_MINUTES = {"vae": 15.0, "diffusion": 60.0, "clip": 12.0, "dino": 12.0, "judge": 5.0, "decoder": 10.0}
EVERY_PART = (*PART_NAMES, "captioner", *EDITOR_NAMES)
DEFAULT_MINUTES |= {"instruct": 35.0, "control_canny": 12.0, "control_depth": 12.0}
DEFAULT_MINUTES |= {"adapter_canny": 10.0, "adapter_depth": 10.0, "edit_judge": 3.0, "captioner": 35.0}


@dataclass
class FitState:
    """Where a training stands: optimizer steps done and seconds of the budget spent."""

    step: int = 0
    seconds: float = 0.0


class Ema:
    """An exponential moving average of a module's weights, warmed up so that early steps do not linger."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.shadow = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in module.state_dict().items():
            if value.dtype.is_floating_point:
                self.shadow[name].lerp_(value, 1.0 - decay)


def learning_rate(peak: float, progress: float, step: int) -> float:
    """200 steps of warm-up, then a cosine over the time budget down to 2% of the peak."""
    cosine = 0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return peak * min(1.0, (step + 1) / 200) * cosine


def save_state(path: Path, part: Part, optimizer: torch.optim.Optimizer, ema: Ema, state: FitState) -> None:
    """Write the resume file atomically."""
    blob = {
        "modules": part.modules.state_dict(),
        "optimizer": optimizer.state_dict(),
        "ema": ema.shadow,
        "step": state.step,
        "seconds": state.seconds,
    }
    temporary = path.with_suffix(".tmp")
    torch.save(blob, temporary)
    temporary.replace(path)


def load_state(path: Path, part: Part, optimizer: torch.optim.Optimizer, ema: Ema, device: str) -> FitState:
    """Read the resume file if there is one."""
    if not path.exists():
        return FitState()
    blob = torch.load(path, weights_only=True, map_location=device)
    part.modules.load_state_dict(blob["modules"])
    optimizer.load_state_dict(blob["optimizer"])
    ema.shadow = blob["ema"]
    return FitState(blob["step"], blob["seconds"])


def average_over_processes(modules: nn.Module, seconds: float) -> float:
    """Average the gradients over all processes in one message; returns the mean of their clocks, so that all agree."""
    if not distributed.is_initialized():
        return seconds
    gradients = [value.grad for value in modules.parameters() if value.grad is not None]
    flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), torch.tensor([seconds])])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()
    return float(flat[-1])


def fit(part: Part, work: Path, seconds: float, device: str, report: Callable[[str], None] = print) -> FitState:
    """Train a part until its budget of seconds, counted over all its sittings, is spent; leaves `<part>.resume`."""
    part.modules.to(device).train()
    optimizer = torch.optim.AdamW(part.modules.parameters(), lr=part.peak_lr, weight_decay=part.weight_decay)
    ema, path = Ema(part.modules, part.ema_decay), work / f"{part.name}.resume"
    state = load_state(path, part, optimizer, ema, device)
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    started, saved, spent = time.monotonic(), time.monotonic(), state.seconds
    running: dict[str, float] = {}
    while state.seconds < seconds:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(part.peak_lr, state.seconds / seconds, state.step)
        losses = part.loss(part.batch(state.step * world + rank), state.step)
        losses["loss"].backward()
        state.seconds = average_over_processes(part.modules, spent + time.monotonic() - started)
        nn.utils.clip_grad_norm_(part.modules.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update(part.modules, state.step)
        state.step += 1
        for name, value in losses.items():
            figure = float(value.detach())
            running[name] = running.get(name, figure) * 0.98 + figure * 0.02
        if state.step % 100 == 0 and rank == 0:
            numbers = "  ".join(f"{name} {value:.4f}" for name, value in running.items())
            report(f"{part.name}: step {state.step}  {state.seconds:.0f}/{seconds:.0f} s  {numbers}")
        if time.monotonic() - saved > 60 and rank == 0:
            save_state(path, part, optimizer, ema, state)
            saved = time.monotonic()
    if rank == 0:
        save_state(path, part, optimizer, ema, state)
    part.modules.load_state_dict(ema.shadow)
    part.modules.eval()
    return state


def _record_cost(out: Path, part: str, state: FitState, device: str) -> None:
    """Note what a part cost beside the weights, for the score table."""
    path = out / "pretraining.json"
    costs = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    costs[part] = {"steps": state.step, "seconds": round(state.seconds), "device": device}
    path.write_text(json.dumps(costs, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m boothlab.dollhouse.pretrain", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=EVERY_PART, default=list(EVERY_PART), help="what to train")
    parser.add_argument("--minutes", type=float, help="time budget of each part named (default: each part's own)")
    parser.add_argument("--work", type=Path, default=Path("outputs/pretrain"), help="resume files")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "weights", help="the weights' folder")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile the UNet (needs a C++ compiler)")
    parser.add_argument(
        "--processes", type=int, default=1, help="data-parallel processes; on a CPU one a core is fastest"
    )
    parser.add_argument(
        "--warm-start", action="store_true", help="begin with the weights in --out, not with random ones"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--score", action="store_true", help="only measure the quality bars of the weights in --out")
    return parser.parse_args(argv)


def build_part(name: str, seed: int, out: Path, device: str, compiled: bool) -> Part:
    """The part of that name, freshly initialised.

    `diffusion` and `decoder` need the finished VAE under `out`, the editors the finished pipeline, the captioner CLIP.
    """
    if name == "diffusion":
        return Diffusion(seed, device, out, compiled)
    if name == "decoder":
        return Decoder(seed, device, out)
    if name == "captioner":
        return Captioner(seed, device, out)
    if name == "instruct":
        return Instruct(seed, device, out, compiled)
    method, _, kind = name.partition("_")
    if method in ("control", "adapter"):
        return (Control if method == "control" else Adapter)(seed, device, out, kind)
    parts: dict[str, Callable[[int, str], Part]] = {"vae": Vae, "clip": Clip, "dino": Dino, "judge": JudgePart}
    parts["edit_judge"] = EditJudgePart
    return parts[name](seed, device)


def train_parts(rank: int, args: argparse.Namespace, port: int) -> None:
    """Train the parts asked for, one after another, and export each as soon as it is done: the work of one process."""
    if args.processes > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // args.processes))
        store = distributed.TCPStore(  # type: ignore[attr-defined]
            "127.0.0.1", port, args.processes, is_master=rank == 0
        )
        distributed.init_process_group("gloo", store=store, rank=rank, world_size=args.processes)
    for name in args.parts:
        torch.manual_seed(derive_seed(args.seed, "pretrain", name) % 2**31)  # the same start in every process
        part = build_part(name, args.seed, args.out, args.device, args.compile)
        if args.warm_start:
            part.start_from(args.out)
        torch.manual_seed(derive_seed(args.seed, "pretrain", name, rank) % 2**31)  # noise of its own
        minutes = args.minutes if args.minutes is not None else DEFAULT_MINUTES[name]
        state = fit(part, args.work, 60 * minutes, args.device, report=lambda line: print(line, flush=True))
        if rank == 0:
            part.export(args.out)
            forget_paths(args.out)
            _record_cost(args.out, name, state, args.device)
        if args.processes > 1:
            distributed.barrier()


def forget_paths(out: Path) -> None:
    """Take out of every config the folder its weights were once loaded from: it means nothing elsewhere."""
    for path in sorted(out.rglob("config.json")):
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(argv: list[str] | None = None) -> None:
    """Train, in one process or several; or score."""
    args = arguments(argv)
    if args.score:
        from boothlab.dollhouse.score import score_weights

        print(score_weights(args.out, device=args.device))
        if (args.out / "captioner").is_dir():
            from boothlab.dollhouse.caption_score import score_captioner

            print("\n" + score_captioner(args.out, args.device))
        return
    args.work.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.processes > 1:
        multiprocessing.spawn(train_parts, (args, _free_port()), nprocs=args.processes)  # type: ignore[attr-defined]
    else:
        train_parts(0, args, 0)


if __name__ == "__main__":
    main()

"""Drawing an evaluation's images against plain diffusers: python benchmarks/evaluation.py [--size tiny].

25 prompts × 4 seeds at 25 steps, three ways: boothlab's sampler, in batches across prompts; a loop that draws one
image at a time, as the training scripts' validation does; and a loop that draws the four images of a prompt together.
All have the same seeds, sampler and guidance, and the images are compared. In turns in one process; medians.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from against.models import model_folder

from boothlab.diffusion.backbone import Backbone, load_backbone
from boothlab.diffusion.sampling import Request, Sampler, SamplerSettings, build_sampler, image_generator

PLACES = ("on the beach", "in the snow", "in the forest", "in the city", "on the moon")
TIMES = ("", " at night", " at dusk", " wearing a hat", " with a lamp")
SAMPLER, GUIDANCE = "dpmpp_2m", 7.5


def drawn_one_at_a_time(backbone: Backbone, prompts: list[str], seeds: list[int], steps: int) -> np.ndarray:
    """As the scripts' validation: the pipeline is called for every image. uint8 [N, H, W, 3]."""
    return np.concatenate([_call(backbone, prompt, [seed], steps) for prompt in prompts for seed in seeds])


def drawn_by_prompt(backbone: Backbone, prompts: list[str], seeds: list[int], steps: int) -> np.ndarray:
    """The pipeline is called once a prompt, for all its seeds. uint8 [N, H, W, 3]."""
    return np.concatenate([_call(backbone, prompt, seeds, steps) for prompt in prompts])


def _call(backbone: Backbone, prompt: str, seeds: list[int], steps: int) -> np.ndarray:
    images = backbone.pipeline(
        prompt,
        height=backbone.resolution,
        width=backbone.resolution,
        num_images_per_prompt=len(seeds),
        num_inference_steps=steps,
        guidance_scale=GUIDANCE,
        generator=[image_generator(seed) for seed in seeds],
    ).images
    return np.stack([np.asarray(image) for image in images])


def drawn_by_boothlab(
    backbone: Backbone, prompts: list[str], seeds: list[int], steps: int, batch_size: int
) -> np.ndarray:
    """boothlab's sampler. uint8 [N, H, W, 3]."""
    sampler = Sampler(backbone, SamplerSettings(SAMPLER, steps, GUIDANCE, batch_size=batch_size))
    images_NCHW = sampler.draw([Request(prompt, seed) for prompt in prompts for seed in seeds])
    return images_NCHW.permute(0, 2, 3, 1).numpy()


def timed(draw: Callable[[], np.ndarray]) -> tuple[np.ndarray, float, float]:
    """The images, seconds by the clock and of processor time."""
    started, used = time.perf_counter(), time.process_time()
    images = draw()
    return images, time.perf_counter() - started, time.process_time() - used


def main() -> None:
    """Measure in turns and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("dollhouse", "tiny", "sd15"), default="dollhouse")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--prompts", type=int, default=25)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[8, 40], help="of boothlab's sampler")
    parser.add_argument("--work", type=Path, help="folder for a model with random weights; default: a temporary one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="boothlab-evaluation-") as name:
        model, resolution = model_folder(args.size, (args.work or Path(name)).resolve())
        dtype = torch.float32 if args.device == "cpu" else torch.float16
        backbone = load_backbone(
            str(model), name=args.size, resolution=resolution, device=torch.device(args.device), dtype=dtype
        )
    backbone.pipeline.scheduler = build_sampler(SAMPLER, backbone.pipeline.scheduler.config)
    prompts = [f"a photo of a sks robot {place}{when}" for place, when in itertools.product(PLACES, TIMES)]
    given = (backbone, prompts[: args.prompts], [0, 1, 2, 3], args.steps)
    ways: dict[str, Callable[[], np.ndarray]] = {
        f"boothlab, {size} at a time": lambda size=size: drawn_by_boothlab(*given, size) for size in args.batch_size
    }
    ways |= {
        "diffusers, one at a time": lambda: drawn_one_at_a_time(*given),
        "diffusers, four of a prompt": lambda: drawn_by_prompt(*given),
    }
    report(ways, args.rounds, len(given[1]) * 4)


def report(ways: dict[str, Callable[[], np.ndarray]], rounds: int, count: int) -> None:
    """Every way once a round; then seconds, ratios to the first way, and how far its images are from the others'."""
    found: dict[str, list[tuple[np.ndarray, float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, draw in ways.items():
            found[name].append(timed(draw))
    first = next(iter(found.values()))
    print(f"{count} images; wall and processor seconds: median (least-most); ratios to {next(iter(found))}\n")
    print("| | s | processor s | ratio | ratio of processor time | largest difference of a pixel | differing values |")
    print("|---|---|---|---|---|---|---|")
    for name, results in found.items():
        wall, used = ([result[k] for result in results] for k in (1, 2))
        base_wall, base_used = (statistics.median(result[k] for result in first) for k in (1, 2))
        off = np.abs(results[0][0].astype(int) - first[0][0].astype(int))
        cells = [f"{statistics.median(v):.1f} ({min(v):.1f}–{max(v):.1f})" for v in (wall, used)]
        cells += [f"{statistics.median(wall) / base_wall:.2f}", f"{statistics.median(used) / base_used:.2f}"]
        print(f"| {name} | " + " | ".join([*cells, str(off.max()), f"{100 * (off > 0).mean():.2f}%"]) + " |")


if __name__ == "__main__":
    main()

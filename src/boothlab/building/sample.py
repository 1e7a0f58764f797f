"""What `boothlab sample` draws: backbone, adapter and requests from its config and the adapter file."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

import boothlab
from boothlab.building.best_of import SCORES_FILE, BestOf, build_best_of
from boothlab.building.parts import (
    build_backbone,
    build_device,
    build_sampler_settings,
    set_threads,
    warn_of_long_prompts,
)
from boothlab.config import BackboneConfig, Precision, SampleConfig
from boothlab.diffusion.formats.container import adapter_digest
from boothlab.diffusion.lora import read_metadata
from boothlab.diffusion.sampling import Request, Sampler
from boothlab.diffusion.trained import find_trained, load_trained
from boothlab.errors import UserError
from boothlab.images.grid import build_grid, to_pil
from boothlab.progress import Reporter


@dataclass
class SampleRun:
    """What `boothlab sample` draws and where it puts it."""

    sampler: Sampler
    requests: list[Request]
    seeds: list[int]
    folder: Path
    adapter: Path | None
    best: BestOf | None = None

    @property
    def record(self) -> dict[str, Any]:
        """What was drawn with what, for sample.json beside the images."""
        return {
            "boothlab_version": boothlab.__version__,
            "adapter": adapter_digest(self.adapter) if self.adapter else None,
            "images": [{"prompt": request.prompt, "seed": request.seed} for request in self.requests],
            **({"best_of": self.best.record} if self.best else {}),
        }

    @property
    def total(self) -> int:
        """Images that are drawn, those that are not kept included."""
        return len(self.best.requests if self.best else self.requests)

    @property
    def tables(self) -> dict[str, str]:
        """Further files by name: the scores of all candidates where the best were chosen."""
        return {SCORES_FILE: self.best.csv()} if self.best else {}

    def draw(self, progress: Callable[[int], None]) -> list[tuple[str, Image.Image]]:
        """File names and pictures: one an image, named by prompt and seed, and the grid last.

        With best_of, `requests` are those of the chosen images from here on.
        """
        if self.best is None:
            drawn = [to_pil(pixels) for pixels in self.sampler.draw(self.requests, progress)]
        else:
            candidates = self.best.requests
            images = self.sampler.draw(candidates, progress)
            kept = self.best.choose(list(images))
            drawn, self.requests = [to_pil(images[place]) for place in kept], [candidates[place] for place in kept]
        columns = len(self.seeds)
        prompts = [request.prompt for request in self.requests[::columns]]
        names = [f"prompt{i // columns:02d}_seed{request.seed}.png" for i, request in enumerate(self.requests)]
        rows = [(prompt, drawn[i * columns : (i + 1) * columns]) for i, prompt in enumerate(prompts)]
        best = f", best of {self.best.n} by {self.best.by}" if self.best else ""
        heads = [f"image {seed}" if self.best else f"seed {seed}" for seed in self.seeds]
        grid = build_grid(rows, heads, [], self.sampler.backbone.name + best)
        return [*zip(names, drawn, strict=True), ("grid.png", grid)]


def build_sample_run(config: SampleConfig, reporter: Reporter) -> SampleRun:
    """Backbone, adapter and requests; what the command line does not say is read from the adapter file."""
    set_threads(config.threads)
    device = build_device(config.accelerator)
    run = Path(config.run).expanduser() if config.run else None
    trained = find_trained(run) if run else None
    adapter = trained.main if trained else None
    settings = read_metadata(adapter) if adapter else {}
    named = {"{token}": settings.get("token"), "{class}": settings.get("class_noun")}
    words = {key: word if isinstance(word, str) else None for key, word in named.items()}
    prompts = [_fill_from_run(prompt, words) for prompt in config.prompt]
    backbone = build_backbone(_sample_backbone(config, settings), device)
    if trained is not None:
        load_trained(backbone, trained, config.unet_scale, config.text_encoder_scale)
    warn_of_long_prompts(backbone, prompts, reporter)
    requests = [Request(prompt, seed) for prompt in prompts for seed in config.seeds]
    folder = Path(config.out).expanduser() if config.out else _default_folder(run)
    sampler = Sampler(backbone, build_sampler_settings(config.sampler))
    source = _sample_backbone(config, settings).source
    best = build_best_of(config, run, words["{token}"] or "", source, requests, device)
    return SampleRun(sampler, requests, list(config.seeds), folder, adapter, best)


def _default_folder(run: Path | None) -> Path:
    return run / "samples" / "drawn" if run is not None and run.is_dir() else Path("outputs") / "samples"


def _fill_from_run(prompt: str, words: dict[str, str | None]) -> str:
    for placeholder, word in words.items():
        if placeholder in prompt and word is None:
            raise UserError(
                f"prompt={prompt!r}: {placeholder} is only known from a run of boothlab; write the word itself"
            )
        prompt = prompt.replace(placeholder, word or "")
    return prompt


def _sample_backbone(config: SampleConfig, settings: dict[str, Any]) -> BackboneConfig:
    """The backbone asked for, or the one the adapter was trained on."""
    if config.backbone is not None:
        return config.backbone
    known = settings.get("backbone") if config.run else None
    if config.run is None:
        raise UserError("backbone: without run= there is no adapter to read it from; add backbone=dollhouse (or sd15)")
    try:
        return BackboneConfig(
            name=str(known["name"]),  # type: ignore[index]
            source=str(known["source"]),  # type: ignore[index]
            revision=known.get("revision"),  # type: ignore[union-attr]
            variant=known.get("variant"),  # type: ignore[union-attr]
            resolution=int(known["resolution"]),  # type: ignore[index]
            precision=Precision(known.get("precision", "fp32")),  # type: ignore[union-attr]
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            "backbone: this adapter does not say what it was trained on; add backbone=sd15 (or sd21, sdxl, dollhouse)"
        ) from error

"""The forward process: a photo at growing noise, and how much of it the model still sees from there."""

import torch
from torch import Tensor

from boothlab.config_inspect import NoisingConfig
from boothlab.diffusion.backbone import TextEmbedding
from boothlab.diffusion.sampling import image_generator
from boothlab.images.grid import build_grid
from boothlab.images.load import fit
from boothlab.inspecting.bench import Bench, as_bytes, bare, pil
from boothlab.inspecting.schedule import NoiseLevel, level_of_alpha_bar, predicted_clean
from boothlab.inspecting.sections import Chart, Picture, Section, Table
from boothlab.inspecting.trajectory import spread

ABOUT = (
    "Training adds noise ε to a photo's latents: x_t = √ᾱ·x₀ + √(1 − ᾱ)·ε. The upper row shows x_t decoded by the "
    "VAE. The rows below show the clean image that the model predicts from x_t in a single step, under the training "
    "prompt and without guidance: the noise at which adapter and base part is where the adapter works."
)


def noise_levels(alphas_cumprod: Tensor, timesteps: list[int]) -> list[NoiseLevel]:
    """The level at each timestep of the training schedule."""
    return [level_of_alpha_bar(float(alphas_cumprod[timestep])) for timestep in timesteps]


@torch.no_grad()
def noising(bench: Bench, config: NoisingConfig) -> Section:
    """The strip, the schedule as a curve, and its numbers."""
    backbone = bench.backbone
    schedule = backbone.noise_scheduler
    total = int(schedule.config.num_train_timesteps)
    timesteps = spread(total, config.columns)
    levels = noise_levels(schedule.alphas_cumprod, timesteps)
    latents_1CHW = _latents(bench, config.photo)
    noise_1CHW = torch.randn(latents_1CHW.shape, generator=image_generator(bench.seed))
    noisy = torch.cat([level.signal * latents_1CHW + level.noise * noise_1CHW for level in levels])
    with bare(backbone):
        base = _guess(bench, noisy, timesteps, levels)
    tuned = _guess(bench, noisy, timesteps, levels)
    rows = [
        (label, pil(as_bytes(backbone.decode_latents(latents))))
        for label, latents in (
            ("noisy latents x_t, decoded", noisy),
            ("clean image predicted from x_t: base model", base),
            ("clean image predicted from x_t: with the adapter", tuned),
        )
    ]
    names = [_name(timestep, level) for timestep, level in zip(timesteps, levels, strict=True)]
    sheet = build_grid(rows, names, [], f"forward noising of photo {config.photo}, {total} timesteps")
    last = level_of_alpha_bar(float(schedule.alphas_cumprod[-1]))
    section = Section("noising", "Forward noise", ABOUT)
    section.pictures.append(Picture("noising", sheet, f"photo {config.photo} at t from 0 to {total - 1}"))
    section.charts.append(_curve(schedule.alphas_cumprod, timesteps))
    section.tables.append(_table(timesteps, levels))
    if last.alpha_bar > 1e-4:
        section.warnings.append(
            f"The last timestep still holds {last.alpha_bar:.2%} of the signal (SNR {last.snr_db:.1f} dB), "
            "while sampling starts from pure noise: very dark and very bright images are hard for such a schedule "
            "(Lin et al. 2023)."
        )
    return section


def _latents(bench: Bench, photo: int) -> Tensor:
    pixels_CHW = fit(bench.photos[photo], bench.backbone.resolution).pixels_CHW
    return bench.backbone.encode_images(pixels_CHW[None])[0]


def _guess(bench: Bench, noisy: Tensor, timesteps: list[int], levels: list[NoiseLevel]) -> Tensor:
    """x̂0 in one step from each noisy latent [K, C, h, w]."""
    backbone = bench.backbone
    text: TextEmbedding = backbone.embed(backbone.tokenize([bench.instance_prompt]))
    guesses = []
    for latents, timestep, level in zip(noisy, timesteps, levels, strict=True):
        prediction = backbone.predict(latents[None], torch.tensor([timestep]), text).cpu()
        guesses.append(predicted_clean(latents[None], prediction, level, backbone.prediction_type))
    return torch.cat(guesses)


def _name(timestep: int, level: NoiseLevel) -> str:
    return f"t = {timestep}\nsignal {level.alpha_bar:.1%}\nSNR {level.snr_db:+.1f} dB"


def _table(timesteps: list[int], levels: list[NoiseLevel]) -> Table:
    rows = [
        [timestep, level.alpha_bar, level.signal, level.noise, level.snr, level.snr_db]
        for timestep, level in zip(timesteps, levels, strict=True)
    ]
    return Table("noising", "Noise levels", ["t", "ᾱ", "√ᾱ", "√(1−ᾱ)", "SNR", "SNR in dB"], rows)


def _curve(alphas_cumprod: Tensor, shown: list[int]) -> Chart:
    """ᾱ over t, with the levels of the strip as dots."""
    places = spread(len(alphas_cumprod), 200)
    traces = [
        {"type": "scatter", "mode": "lines", "name": "ᾱ", "x": places}
        | {"y": [round(float(alphas_cumprod[place]), 5) for place in places]},
        {"type": "scatter", "mode": "markers", "name": "in the strip", "x": shown}
        | {"y": [round(float(alphas_cumprod[place]), 5) for place in shown]},
    ]
    return Chart(
        "noising-schedule",
        "The schedule: share of the signal",
        traces,
        {"xaxis": {"title": {"text": "timestep t"}}, "yaxis": {"title": {"text": "ᾱ"}}},
        300,
    )

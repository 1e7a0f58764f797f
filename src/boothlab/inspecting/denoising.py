"""The denoising of one image step by step, base model beside adapter, from the same noise."""

import torch
from torch import Tensor

from boothlab.config_inspect import TrajectoryConfig
from boothlab.diffusion.sampling import Request
from boothlab.images.grid import build_grid
from boothlab.inspecting.bench import Bench, as_bytes, bare, pil
from boothlab.inspecting.sections import Chart, Fact, Picture, Section, Table
from boothlab.inspecting.trajectory import RecordingSampler, Trajectory, spread
from boothlab.tracking import metrics

ABOUT = (
    "Each picture is x̂₀, the clean image that the model goes by at that step: the guided prediction, solved for "
    "x₀. Both rows start from the same noise. The plot says how far base and adapter are apart at each step, and "
    "how much of each image is still to change: what is settled early, such as layout and large colours, is settled "
    "by the first steps alone."
)


def trajectory(bench: Bench, config: TrajectoryConfig) -> Section:
    """The two rows, and their distance at every step."""
    request = Request(bench.prompt, bench.seed)
    with bare(bench.backbone):
        base, base_image = _record(bench, request)
    tuned, tuned_image = _record(bench, request)
    places = spread(len(tuned.levels), config.columns)
    decoded = [_decode(bench, one) for one in (base, tuned)]
    names = [f"step {place + 1}\nt = {tuned.timesteps[place]:.0f}\n{_share(tuned, place)}" for place in places]
    rows = [
        (label, [*pil(images[places]), *pil(image)])
        for label, images, image in (
            ("base model", decoded[0], base_image),
            ("with the adapter", decoded[1], tuned_image),
        )
    ]
    title = f"{bench.prompt}   seed {bench.seed}   {bench.settings.scheduler}, {bench.settings.steps} steps"
    apart = _apart(decoded[0], decoded[1])
    section = Section("trajectory", "Trajectory", ABOUT)
    section.pictures.append(Picture("trajectory", build_grid(rows, [*names, "the image"], [], title), title))
    section.charts.append(_chart(tuned, apart, [_settled(images) for images in decoded]))
    section.tables.append(_table(tuned, apart))
    final = _apart(base_image, tuned_image)[0]
    section.facts.append(Fact("base and adapter end apart by", f"{final:.3f}", "RMS over pixels, of 1"))
    section.numbers[metrics.INSPECT_TRAJECTORY_DISTANCE] = final
    return section


def _record(bench: Bench, request: Request) -> tuple[Trajectory, Tensor]:
    sampler = RecordingSampler(bench.backbone, bench.settings)
    image = sampler.draw([request])
    return sampler.trajectory(), image


def _decode(bench: Bench, found: Trajectory) -> Tensor:
    """x̂0 of the only image at each step, uint8 [K, 3, H, W]; one at a time, since a real VAE fills the memory."""
    return torch.cat([as_bytes(bench.backbone.decode_latents(step)) for step in found.steps_KNCHW])


def _share(found: Trajectory, place: int) -> str:
    return f"signal {found.levels[place].alpha_bar:.0%}"


def _apart(one: Tensor, other: Tensor) -> list[float]:
    """Root mean square difference of uint8 images [K, …] on [0, 1], one a step."""
    return ((one.float() - other.float()) / 255).square().flatten(1).mean(dim=1).sqrt().tolist()


def _settled(images: Tensor) -> list[float]:
    """How far each step's x̂0 is from the last one's."""
    return _apart(images, images[-1:].expand_as(images))


def _chart(found: Trajectory, apart: list[float], settled: list[list[float]]) -> Chart:
    steps = list(range(1, len(apart) + 1))
    lines = (
        ("base and adapter apart", apart),
        ("base: still to change", settled[0]),
        ("adapter: still to change", settled[1]),
    )
    traces = [
        {"type": "scatter", "mode": "lines+markers", "name": name, "x": steps, "y": [round(v, 5) for v in values]}
        for name, values in lines
    ]
    axes = {
        "xaxis": {"title": {"text": "step"}},
        "yaxis": {"title": {"text": "RMS over pixels"}, "rangemode": "tozero"},
    }
    return Chart("trajectory-distance", "When the image is decided", traces, axes, 320)


def _table(found: Trajectory, apart: list[float]) -> Table:
    rows = [
        [place + 1, timestep, level.alpha_bar, level.snr_db, apart[place]]
        for place, (timestep, level) in enumerate(zip(found.timesteps, found.levels, strict=True))
    ]
    return Table("trajectory", "Every step", ["step", "t", "ᾱ", "SNR in dB", "RMS base to adapter"], rows, folded=True)

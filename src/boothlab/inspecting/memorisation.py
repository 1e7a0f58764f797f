"""Memorisation: each sample's nearest photo, and whether it is nearer than photos of one thing are to each other."""

from boothlab.evaluation.results import GeneratedImage
from boothlab.images.grid import build_grid, to_pil
from boothlab.inspecting.bench import Bench
from boothlab.inspecting.neighbours import Neighbours, nearest_references
from boothlab.inspecting.sections import Cell, Fact, Picture, Section, Table
from boothlab.tracking import metrics

ABOUT = (
    "For each of the run's last samples the photo that is nearest to it by DINO and by CLIP. The evaluation warns "
    "of copying when mean DINO is above the real-image ceiling, the mean cosine of different photos; here each "
    "image stands alone and only its nearest photo counts, which lies above a mean by itself. So there are two "
    "limits: above the ceiling (*), which asks for a look, and nearer to a photo than any two photos are to each "
    "other (**), which is what a copy looks like. CLIP goes by the scene: where a prompt names the place of a "
    "photo, being near to that photo is what was asked for. Look whether pose and background came along unasked."
)
SHOWN = 12


def memorisation(bench: Bench) -> Section:
    """The limits, the flags and the gallery of the nearest pairs."""
    clip_RD, dino_RD = bench.scorer.reference_features
    by_clip = nearest_references(bench.sample_features[0], clip_RD)
    by_dino = nearest_references(bench.sample_features[1], dino_RD)
    section = Section("memorisation", "Memorisation", ABOUT)
    for label, found in (("DINO", by_dino), ("CLIP", by_clip)):
        section.facts += _facts(label, found)
    if by_dino.ceiling is None:
        section.warnings.append("A single photo has no ceiling: nothing can be flagged.")
    else:
        count = len(bench.samples)
        section.numbers[bench.key(metrics.INSPECT_ABOVE_CEILING)] = sum(by_dino.above_ceiling) / count
        section.numbers[bench.key(metrics.INSPECT_CLOSER_THAN_PHOTOS)] = sum(by_dino.above_closest) / count
    section.pictures.append(_gallery(bench, by_dino, by_clip))
    section.tables.append(_table(bench.samples, by_dino, by_clip))
    return section


def _facts(label: str, found: Neighbours) -> list[Fact]:
    count = len(found.cosine)
    if found.ceiling is None or found.closest is None:
        return [Fact(f"{label}: nearest photo, the mean", f"{sum(found.cosine) / count:.3f}", "no ceiling")]
    return [
        Fact(f"{label}: above the ceiling", f"{sum(found.above_ceiling)} of {count}", f"ceiling {found.ceiling:.3f}"),
        Fact(
            f"{label}: nearer than any two photos",
            f"{sum(found.above_closest)} of {count}",
            f"limit {found.closest:.3f}",
        ),
    ]


def _flag(found: Neighbours, place: int) -> str:
    if found.above_closest[place]:
        return "nearer than any two photos"
    return "above the ceiling" if found.above_ceiling[place] else ""


def _marked(found: Neighbours, place: int) -> str:
    mark = "**" if found.above_closest[place] else "*" if found.above_ceiling[place] else ""
    return f"{found.cosine[place]:.3f}{mark}"


def _cells(found: Neighbours, place: int) -> tuple[int, float, str]:
    return found.nearest[place], found.cosine[place], _flag(found, place)


def _gallery(bench: Bench, by_dino: Neighbours, by_clip: Neighbours) -> Picture:
    order = sorted(range(len(bench.samples)), key=lambda place: -by_dino.cosine[place])[:SHOWN]
    rows = []
    for place in order:
        one = bench.samples[place]
        label = f"{one.prompt}, seed {one.seed}: DINO {_marked(by_dino, place)}, CLIP {_marked(by_clip, place)}"
        photos = [bench.photos[by_dino.nearest[place]], bench.photos[by_clip.nearest[place]]]
        rows.append((label, [to_pil(one.pixels_CHW), *photos]))
    columns = ["generated", "nearest by DINO", "nearest by CLIP"]
    title = f"the {len(rows)} samples nearest to a photo{bench.encoders}   * above ceiling  ** nearer than two photos"
    return Picture("memorisation", build_grid(rows, columns, [], title), title)


def _table(samples: list[GeneratedImage], by_dino: Neighbours, by_clip: Neighbours) -> Table:
    rows: list[list[Cell]] = [
        [one.prompt, one.seed, *_cells(by_dino, place), *_cells(by_clip, place)] for place, one in enumerate(samples)
    ]
    columns = ["prompt", "seed", "photo (DINO)", "DINO", "flag (DINO)", "photo (CLIP)", "CLIP", "flag (CLIP)"]
    return Table("memorisation", "All samples", columns, rows, folded=True)

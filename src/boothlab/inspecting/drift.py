"""Language drift: what the adapter did to the bare class prompt, seed by seed against the base model."""

import math

from torch import Tensor

from boothlab.config_inspect import DriftConfig
from boothlab.diffusion.sampling import Request
from boothlab.evaluation.fidelity import cosine_matrix, image_alignment
from boothlab.images.grid import build_grid
from boothlab.inspecting.bench import Bench, pil
from boothlab.inspecting.sections import Fact, Picture, Section, Table
from boothlab.tracking import metrics

ABOUT = (
    "The class prompt does not name the subject, so the adapter should leave it alone. Both rows start from the "
    "same noise. PRES (DreamBooth, section 4.3) is the mean DINO cosine of class images and the subject's photos: "
    "if it rises from base to adapter, the class is turning into the subject. Distances compare the two images of "
    "one seed."
)


def pixel_distance(one_BCHW: Tensor, other_BCHW: Tensor) -> list[float]:
    """Root mean square difference of uint8 images, on [0, 1], one a pair."""
    return ((one_BCHW.float() - other_BCHW.float()) / 255).square().flatten(1).mean(dim=1).sqrt().tolist()


def feature_distance(one_BD: Tensor, other_BD: Tensor) -> list[float]:
    """1 - cosine of each pair of rows, 0 to 2."""
    return (1 - cosine_matrix(one_BD, other_BD).diagonal()).clamp(min=0).tolist()


def drift(bench: Bench, config: DriftConfig) -> Section:
    """The two rows, PRES of each, and the distances by seed."""
    prompt = config.prompt or bench.class_prompt
    requests = [Request(prompt, seed) for seed in config.seeds]
    base, tuned = bench.draw(requests, adapter=False), bench.draw(requests)
    dino, photos_RD = bench.scorer.dino, bench.scorer.reference_features[1]
    base_BD, tuned_BD = dino.encode_images(list(base)), dino.encode_images(list(tuned))
    likeness = [image_alignment(features, photos_RD).tolist() for features in (base_BD, tuned_BD)]
    pixels, features = pixel_distance(base, tuned), feature_distance(base_BD, tuned_BD)
    before, after, apart = (math.fsum(values) / len(values) for values in (*likeness, features))
    section = Section("drift", "Language drift", ABOUT)
    names = [f"seed {seed}\nDINO {old:.2f} > {new:.2f}" for seed, old, new in zip(config.seeds, *likeness, strict=True)]
    rows = [("base model", pil(base)), ("with the adapter", pil(tuned))]
    title = f"{prompt}   DINO: likeness to the photos{bench.encoders}, base > adapter"
    section.pictures.append(Picture("drift", build_grid(rows, names, list(bench.photos), title), title))
    section.facts += [
        Fact("PRES of the base model", f"{before:.3f}", "likeness of the class to the photos"),
        Fact("PRES with the adapter", f"{after:.3f}", f"{after - before:+.3f}: {_reading(after - before)}"),
        Fact("moved, by DINO", f"{apart:.3f}", "1 − cosine, same seed"),
        Fact("moved, by pixels", f"{math.fsum(pixels) / len(pixels):.3f}", "RMS of 1, same seed"),
    ]
    columns = ["seed", "likeness of base", "likeness of adapter", "DINO distance", "RMS pixel distance"]
    table = [list(row) for row in zip(config.seeds, *likeness, features, pixels, strict=True)]
    section.tables.append(Table("drift", "Each seed", columns, table))
    section.numbers[bench.key(metrics.INSPECT_DRIFT_PRES_BASE)] = before
    section.numbers[bench.key(metrics.INSPECT_DRIFT_PRES)] = after
    section.numbers[bench.key(metrics.INSPECT_DRIFT_DISTANCE)] = apart
    if bench.scorer.token in prompt.split():
        section.warnings.append(f"The prompt names {bench.scorer.token}, so this is not about the bare class.")
    return section


def _reading(difference: float) -> str:
    return "towards the subject" if difference > 0 else "not towards the subject"

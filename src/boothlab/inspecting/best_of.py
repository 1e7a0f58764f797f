"""The best of n seeds for one prompt by CLIP, and how much the choice flatters the score that it was made by."""

from boothlab.config_inspect import BestOfConfig
from boothlab.diffusion.sampling import Request
from boothlab.evaluation.selection import BIAS, Candidate, choose, flattery, score_candidates
from boothlab.images.grid import build_grid
from boothlab.inspecting.bench import Bench, pil
from boothlab.inspecting.sections import Fact, Picture, Section, Table
from boothlab.tracking import metrics

ABOUT = (
    "One prompt, n seeds, the best first. CLIP-T says how well an image follows the prompt, CLIP-I how alike it is "
    "to the subject's photos; balanced is a weighted sum of the raw cosines, in which the one that varies more "
    "decides more. boothlab sample best_of=N draws this way and keeps the best."
)
COLUMNS = 8


def best_of(bench: Bench, config: BestOfConfig) -> Section:
    """The candidates in order, their scores, and the selection bias."""
    seeds = [bench.seed + place for place in range(config.n)]
    drawn = bench.draw([Request(bench.prompt, seed) for seed in seeds])
    by, text = config.by.value, bench.without_token(bench.prompt)
    photos_RD = bench.scorer.reference_features[0]
    found = score_candidates(
        bench.scorer.clip, list(drawn), seeds, [0] * config.n, [text] * config.n, photos_RD, by, config.weight
    )
    (best,) = choose(found)
    order = sorted(range(config.n), key=lambda place: (place != best, -found[place].value))
    images = pil(drawn)
    rows = []
    for start in range(0, config.n, COLUMNS):
        mine = order[start : start + COLUMNS]
        label = (
            "ranks "
            + f"{start + 1} to {start + len(mine)}, by {by}: "
            + ", ".join(_short(found[place]) for place in mine)
        )
        rows.append((label, [images[place] for place in mine]))
    title = f"best of {config.n} by {by}{bench.encoders}: {bench.prompt}"
    section = Section("best_of", f"Best of {config.n}", ABOUT)
    columns = [_name(found[place], place == best) for place in order[:COLUMNS]] if config.n <= COLUMNS else []
    section.pictures.append(Picture("best_of", build_grid(rows, columns, [], title), title))
    mean, chosen = flattery(found)
    section.facts.append(Fact(f"{by} of the chosen", f"{chosen:.3f}", f"{mean:.3f} is the mean of all {config.n}"))
    section.facts.append(Fact("selection bias", f"{chosen - mean:+.3f}", "the gain that choosing alone brings"))
    section.warnings.append(f"Selection bias: {BIAS}.")
    section.tables.append(_table(found, best, order, by))
    section.numbers[bench.key(metrics.INSPECT_BEST_OF_GAIN)] = chosen - mean
    return section


def _short(one: Candidate) -> str:
    return f"{one.value:.3f}"


def _name(one: Candidate, is_best: bool) -> str:
    likeness = "" if one.clip_i is None else f"\nCLIP-I {one.clip_i:.3f}"
    return f"seed {one.seed}{' CHOSEN' if is_best else ''}\nCLIP-T {one.clip_t:.3f}{likeness}"


def _table(found: list[Candidate], best: int, order: list[int], by: str) -> Table:
    rows = [
        [found[p].seed, found[p].clip_t, found[p].clip_i, found[p].value, "chosen" if p == best else ""] for p in order
    ]
    return Table("best_of", "All candidates", ["seed", "CLIP-T", "CLIP-I", f"chosen by ({by})", "choice"], rows)

"""Where each token of the prompt is attended to while an image is drawn, base model beside adapter."""

from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from boothlab.diffusion.sampling import Request, Sampler
from boothlab.images.grid import build_grid
from boothlab.inspecting.attention import recorded_attention
from boothlab.inspecting.bench import Bench, bare, pil
from boothlab.inspecting.heat import overlay
from boothlab.inspecting.sections import Cell, Fact, Picture, Section, Table
from boothlab.tracking import metrics

ABOUT = (
    "Cross-attention, after DAAM (Tang et al. 2022): at each place of the latents the probabilities over the "
    "prompt's tokens, the mean over heads, layers and steps, over the image in grey. The percentage is the token's "
    "share of all attention. Each token has one colour scale for both rows, black at its lowest and yellow at its "
    "highest, so compare base and adapter within a token, and shares between tokens. Most attention goes to the "
    "start and the padding; what is left for a word is little, and where it goes is what counts."
)
MOST_TOKENS = 16
"""Tokens in the picture; the table has all."""


@dataclass(frozen=True)
class TokenMaps:
    """The attention [T, h, w] of one image, and the image."""

    shares_THW: Tensor
    image: Image.Image


def tokens_of(bench: Bench) -> list[tuple[int, str]]:
    """Place and text of each token of the prompt, without start and padding; the end is the last one."""
    tokenizer = bench.backbone.pipeline.tokenizer
    ids = tokenizer(bench.prompt, truncation=True, max_length=tokenizer.model_max_length).input_ids
    names = tokenizer.convert_ids_to_tokens(ids)
    words = [(place, str(name).removesuffix("</w>")) for place, name in enumerate(names)][1:-1]
    return [*words, (len(ids) - 1, "(end)")]


def attention(bench: Bench) -> Section:
    """The maps as a grid, and every token's share."""
    with bare(bench.backbone):
        base = _record(bench)
    tuned = _record(bench)
    tokens = tokens_of(bench)
    shares = {place: (_share(base, place), _share(tuned, place)) for place, _ in tokens}
    shown = tokens[:MOST_TOKENS]
    names = ["the image", *(f"{word}\nadapter {shares[p][1]:.1%}\nbase {shares[p][0]:.1%}" for p, word in shown)]
    low_high = {place: _range(base, tuned, place) for place, _ in shown}
    rows = [
        (label, [one.image, *(overlay(one.image, one.shares_THW[p], *low_high[p]) for p, _ in shown)])
        for label, one in (("with the adapter", tuned), ("base model", base))
    ]
    title = f"{bench.prompt}   seed {bench.seed}   mean cross-attention"
    section = Section("attention", "Cross-attention", ABOUT)
    section.pictures.append(Picture("attention", build_grid(_same_size(rows), names, [], title), title))
    section.tables.append(_table(tokens, shares))
    if len(tokens) > MOST_TOKENS:
        section.warnings.append(f"The picture has the first {MOST_TOKENS} of {len(tokens)} tokens; the table has all.")
    _note_token(bench, section, tokens, shares)
    return section


def _record(bench: Bench) -> TokenMaps:
    sampler = Sampler(bench.backbone, bench.settings)
    with recorded_attention(bench.backbone.unet, 1, bench.backbone.latent_shape[1]) as maps:
        (image,) = pil(sampler.draw([Request(bench.prompt, bench.seed)]))
    return TokenMaps(maps.mean()[0], image)


def _share(maps: TokenMaps, place: int) -> float:
    return float(maps.shares_THW[place].mean())


def _range(one: TokenMaps, other: TokenMaps, place: int) -> tuple[float, float]:
    both = [one.shares_THW[place], other.shares_THW[place]]
    return min(float(values.min()) for values in both), max(float(values.max()) for values in both)


def _same_size(rows: list[tuple[str, list[Image.Image]]]) -> list[tuple[str, list[Image.Image]]]:
    """The grid takes its cell from the first picture: give the image the size of the maps."""
    return [
        (label, [images[0].resize(images[-1].size, Image.Resampling.NEAREST), *images[1:]]) for label, images in rows
    ]


def _table(tokens: list[tuple[int, str]], shares: dict[int, tuple[float, float]]) -> Table:
    rows: list[list[Cell]] = [
        [place, word, *shares[place], shares[place][1] - shares[place][0]] for place, word in tokens
    ]
    return Table("attention", "Share of the attention", ["place", "token", "base", "adapter", "difference"], rows)


def _note_token(
    bench: Bench, section: Section, tokens: list[tuple[int, str]], shares: dict[int, tuple[float, float]]
) -> None:
    """The unique token's share, summed over its pieces."""
    tokenizer = bench.backbone.pipeline.tokenizer
    pieces = {str(one).removesuffix("</w>") for one in tokenizer.tokenize(bench.scorer.token)}
    mine = [place for place, word in tokens if word in pieces]
    if not mine:
        return
    base, tuned = (sum(shares[place][side] for place in mine) for side in (0, 1))
    section.facts.append(Fact(f"attention to {bench.scorer.token}", f"{tuned:.1%}", f"{base:.1%} in the base model"))
    section.numbers[metrics.INSPECT_TOKEN_ATTENTION] = tuned

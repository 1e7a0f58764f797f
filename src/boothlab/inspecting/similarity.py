"""CLIP's view of the samples: every image against every prompt, and which class it would call each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boothlab.config_inspect import SimilarityConfig
from boothlab.evaluation.fidelity import cosine_matrix
from boothlab.inspecting.bench import Bench
from boothlab.inspecting.heat import matrix_picture, scale_for_plotly
from boothlab.inspecting.sections import Cell, Chart, Fact, Picture, Section, Table
from boothlab.tracking import metrics

ABOUT = (
    "Cosines of the run's last samples with all its prompts, the unique token removed as for CLIP-T; a row is the "
    "mean over the samples of one prompt. A model that follows its prompts has its highest value on the diagonal; a "
    "row that is alike everywhere says that the prompt hardly changes the image. Below, the samples classified "
    "zero-shot: what CLIP calls them among the class names, by the nearest of one sentence a class."
)


@dataclass(frozen=True)
class Matrix:
    """Mean cosines [P, P], rows by the prompt that was drawn, and how often an image's own prompt was the nearest."""

    values_PP: Tensor
    own_nearest: float


def prompt_matrix(images_BD: Tensor, own: Sequence[int], texts_PD: Tensor) -> Matrix:
    """`own` is the prompt of each image by place; every prompt must have an image."""
    cosines_BP = cosine_matrix(images_BD, texts_PD)
    places = torch.tensor(own)
    rows = [cosines_BP[places == prompt].mean(dim=0) for prompt in range(len(texts_PD))]
    hits = (cosines_BP.argmax(dim=1) == places).float().mean()
    return Matrix(torch.stack(rows), float(hits))


def classify(images_BD: Tensor, classes_KD: Tensor) -> list[int]:
    """The nearest class of each image by cosine; the first of equals."""
    return cosine_matrix(images_BD, classes_KD).argmax(dim=1).tolist()


def similarity(bench: Bench, config: SimilarityConfig, class_names: Sequence[str]) -> Section:
    """The matrix as a heat map, and the classes as a table."""
    clip, samples = bench.scorer.clip, bench.samples
    prompts = [next(one.prompt for one in samples if one.prompt_index == index) for index in _indices(bench)]
    own = [_indices(bench).index(one.prompt_index) for one in samples]
    images_BD = bench.sample_features[0]
    plain = [bench.without_token(prompt) for prompt in prompts]
    found = prompt_matrix(images_BD, own, clip.encode_texts(plain))
    section = Section("similarity", "CLIP matrix", ABOUT)
    section.pictures.append(_picture(bench, found, plain))
    section.charts.append(_heat(found, plain))
    section.facts.append(
        Fact(
            "own prompt is the nearest",
            f"{found.own_nearest:.0%}",
            f"of {len(samples)} images; chance {1 / len(plain):.0%}",
        )
    )
    section.tables.append(_matrix_table(found, plain))
    section.numbers[bench.key(metrics.INSPECT_OWN_PROMPT)] = found.own_nearest
    _add_classes(bench, section, config, class_names, prompts, own)
    if len(set(plain)) < len(plain):
        section.warnings.append("Prompts that differ by the unique token alone are the same to CLIP.")
    return section


def _indices(bench: Bench) -> list[int]:
    return list(dict.fromkeys(one.prompt_index for one in bench.samples))


def _add_classes(
    bench: Bench, section: Section, config: SimilarityConfig, names: Sequence[str], prompts: list[str], own: list[int]
) -> None:
    """A row a prompt: how many of its images CLIP puts into each class."""
    images_BD = bench.sample_features[0]
    called = classify(
        images_BD, bench.scorer.clip.encode_texts([config.template.replace("{}", name) for name in names])
    )
    rows: list[list[Cell]] = []
    for place, prompt in enumerate(prompts):
        mine = [names[one] for one, of in zip(called, own, strict=True) if of == place]
        rows.append([prompt, *(mine.count(name) for name in names)])
    section.tables.append(Table("classes", "Zero-shot classes: images of each prompt", ["prompt", *names], rows))
    noun = bench.scorer.class_noun
    if noun in names:
        right = sum(names[one] == noun for one in called) / len(called)
        section.facts.append(Fact(f"called a {noun}", f"{right:.0%}", f"among {len(names)} classes"))
        section.numbers[bench.key(metrics.INSPECT_CLASS_ACCURACY)] = right


def _picture(bench: Bench, found: Matrix, prompts: list[str]) -> Picture:
    rows = [f"{place + 1}  {prompt}" for place, prompt in enumerate(prompts)]
    columns = [str(place + 1) for place in range(len(prompts))]
    title = f"CLIP cosine{bench.encoders}: images drawn from a prompt (row) with every prompt (column); framed: its own"
    values = found.values_PP.double().numpy()
    picture = matrix_picture(values, rows, columns, title, boxed=list(range(len(prompts))))
    return Picture("similarity", picture, title, on_page=False)


def _heat(found: Matrix, prompts: list[str]) -> Chart:
    names = [f"{place + 1}  {prompt}" for place, prompt in enumerate(prompts)]
    values = [[round(value, 4) for value in row] for row in found.values_PP.tolist()]
    trace: dict[str, Any] = {
        "type": "heatmap",
        "z": values,
        "x": [str(place + 1) for place in range(len(prompts))],
        "y": names,
    }
    trace |= {
        "colorscale": scale_for_plotly(),
        "texttemplate": "%{z:.2f}",
        "customdata": [names] * len(names),
        "colorbar": {"title": {"text": "cosine"}},
    }
    trace["hovertemplate"] = "images of %{y}<br>prompt %{customdata}<br>cosine %{z:.3f}<extra></extra>"
    axes = {"xaxis": {"title": {"text": "compared with prompt"}}, "yaxis": {"autorange": "reversed"}}
    return Chart("similarity-heat", "Images by prompts", [trace], axes, 120 + 40 * len(prompts))


def _matrix_table(found: Matrix, prompts: list[str]) -> Table:
    rows: list[list[Cell]] = [[prompt, *row.tolist()] for prompt, row in zip(prompts, found.values_PP, strict=True)]
    columns = ["images of", *(str(place + 1) for place in range(len(prompts)))]
    return Table("similarity", "The matrix", columns, rows, folded=True)

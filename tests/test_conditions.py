"""Condition maps against OpenCV and against transformers' own depth pipeline."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DPTForDepthEstimation, DPTImageProcessorPil
from transformers.pipelines.depth_estimation import DepthEstimationPipeline

import tiny_pipelines
from boothlab.editing.conditions import DepthEstimator, canny_map, load_depth_estimator
from boothlab.editing.methods import EditInput, EditMethod, EditParts, EditSettings, edit_batch
from boothlab.errors import UserError
from boothlab.quiet import quiet_libraries

CPU = torch.device("cpu")


def picture(width: int = 40, height: int = 24, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def square() -> Image.Image:
    """A white square on black."""
    pixels = np.zeros((16, 20, 3), np.uint8)
    pixels[4:12, 5:15] = 255
    return Image.fromarray(pixels)


def test_canny_is_opencv_s() -> None:
    cv2 = pytest.importorskip("cv2")
    expected = cv2.Canny(np.asarray(picture()), 100, 200)
    edges = canny_map(picture())
    assert edges.mode == "L" and edges.size == (40, 24)
    assert np.array_equal(np.asarray(edges), expected)
    assert set(np.unique(expected)) == {0, 255}


def test_canny_finds_the_outline_of_a_square() -> None:
    pytest.importorskip("cv2")
    edges = np.asarray(canny_map(square())) > 0
    rows, columns = np.nonzero(edges)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (3, 11, 4, 14)
    assert not edges[6:10, 7:13].any()


def test_canny_s_thresholds_are_settings() -> None:
    pytest.importorskip("cv2")
    faint = Image.fromarray((np.asarray(square()) // 10).astype(np.uint8))
    assert not np.asarray(canny_map(faint)).any()
    assert np.asarray(canny_map(faint, 10, 20)).any()


def test_without_opencv_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError) as caught:
        canny_map(square())
    assert str(caught.value) == "Canny maps need OpenCV; install it with: pip install 'boothlab[edit]'"


@pytest.fixture(scope="module")
def estimator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("depth")
    with torch.random.fork_rng(devices=[]), quiet_libraries():
        torch.manual_seed(0)
        tiny_pipelines.build_depth_estimator(folder)
    return folder


@pytest.mark.parametrize("size", [(40, 24), (32, 32), (13, 57)])
def test_depth_is_transformers_own(estimator: Path, size: tuple[int, int]) -> None:
    with quiet_libraries():
        model = DPTForDepthEstimation.from_pretrained(estimator)
        processor = DPTImageProcessorPil.from_pretrained(estimator)
        expected = DepthEstimationPipeline(model=model, image_processor=processor, device=CPU)(picture(*size))["depth"]
    depth = load_depth_estimator(estimator, None, CPU)(picture(*size))
    assert depth.mode == "L" and depth.size == size
    assert np.array_equal(np.asarray(depth), np.asarray(expected))
    assert depth.getextrema() == (0, 255)


class Stub:
    """A model, its outputs and its processor in one: predicts what it is told."""

    def __init__(self, depth: list[list[float]], model_type: str = "dpt", **config: Any):
        self.depth = torch.tensor(depth)
        self.config = type("Config", (), {"model_type": model_type, **config})()

    def requires_grad_(self, _: bool) -> "Stub":
        return self

    def eval(self) -> "Stub":
        return self

    def to(self, _: torch.device) -> Any:
        return self

    def __call__(self, **_: Any) -> "Stub":
        return self

    def keys(self) -> tuple[str, ...]:
        return ()

    def post_process_depth_estimation(self, outputs: "Stub", sizes: list[tuple[int, int]]) -> list[dict[str, Any]]:
        assert sizes == [(1, 3)]
        return [{"predicted_depth": outputs.depth}]


class Processor(Stub):
    def __call__(self, images: Any = None, return_tensors: str = "", **_: Any) -> "Processor":
        return self


@pytest.mark.parametrize(
    ("stub", "levels"),
    [
        (Stub([[0.0, 5.0, 10.0]]), [0, 127, 255]),  # inverse depth: the nearest is the largest
        (Stub([[1.0, 2.0, 4.0]], "zoedepth"), [255, 85, 0]),  # metres: the nearest is the smallest
        (Stub([[1.0, 2.0, 4.0]], "depth_anything", depth_estimation_type="metric"), [255, 85, 0]),
        (Stub([[1.0, 2.0, 4.0]], "depth_anything", depth_estimation_type="relative"), [0, 85, 255]),
        (Stub([[3.0, 3.0, 3.0]]), [0, 0, 0]),  # a wall
        (Stub([[float("nan"), 1.0, 2.0]]), [0, 0, 0]),
    ],
)
def test_near_is_white(stub: Stub, levels: list[int]) -> None:
    made = DepthEstimator(stub, Processor([[0.0]]), CPU)(picture(3, 1))
    assert np.asarray(made)[0].tolist() == levels


def test_maps_are_computed_where_none_is_given(pipelines: dict[str, Path], estimator: Path, tmp_path: Path) -> None:
    """And a given map is taken as it is: with the computed ones given, the picture is the same."""
    pytest.importorskip("cv2")
    sources = tiny_pipelines.build_editors(pipelines["sd15"], tmp_path / "editors")
    parts = EditParts(tiny_pipelines.load(pipelines["sd15"]), {**sources, "depth_estimator": str(estimator)})
    settings = EditSettings(steps=1, canny_thresholds=(50, 150))
    one = EditInput(image=picture(32, 24), target_caption="a red cat")
    (made,) = edit_batch(EditMethod.controlnet, parts, [one], settings)
    assert list(made.conditions) == ["canny", "depth"]
    assert np.array_equal(np.asarray(made.conditions["canny"]), np.asarray(canny_map(one.image, 50, 150)))
    given = EditInput(image=one.image, target_caption="a red cat", controls=made.conditions)
    bare = EditParts(parts.backbone, sources | {"depth_estimator": ""})
    (same,) = edit_batch(EditMethod.controlnet, bare, [given], settings)
    assert np.array_equal(np.asarray(made.image), np.asarray(same.image))
    inverted = {kind: image.point(lambda value: 255 - value) for kind, image in made.conditions.items()}
    other = EditInput(image=one.image, target_caption="a red cat", controls=inverted)
    (differs,) = edit_batch(EditMethod.controlnet, bare, [other], settings)
    assert not np.array_equal(np.asarray(made.image), np.asarray(differs.image))

"""What an editing run sends to W&B: a table of pictures, its parameters beside its scores, a curve of its settings."""

import gc
import json
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from boothlab.editing import logged
from boothlab.editing.drawing import Drawn, Item
from boothlab.editing.edits import Edit, EditTask
from boothlab.editing.logged import parameters, picture_table, shared_parameters
from boothlab.editing.record import PairRow
from boothlab.editing.requests import EditMethod, EditSettings
from boothlab.evaluation.edit_metrics import EditScore
from test_edit_command import edit, logging_as_it_was, photos  # noqa: F401
from training_runs import history

SETTINGS = EditSettings(steps=20, strength=0.5, guidance_scale=3, image_guidance_scale=2, control_scales={"canny": 0.5})
THREE = """
- {name: a, instruction: night, source_caption: a room, target_caption: a room at night, strength: 0.5}
- {name: b, instruction: night, source_caption: a room, target_caption: a room at night, strength: 1.0}
"""


def blank() -> Image.Image:
    return Image.new("RGB", (8, 8))


def item(image: str = "hall", truth: bool = False, **settings: float) -> Item:
    task_edit = Edit("night", "make it night", "a room", "a room at night", settings=settings)
    return Item(EditTask(image, task_edit, blank, truth=blank if truth else None), 0)


def row(of: Item, **scores: float) -> PairRow:
    return PairRow(of, 10, (), EditScore(scores))


def test_a_method_has_the_parameters_that_it_reads() -> None:
    common = {"edit/steps": 20.0, "edit/guidance_scale": 3.0}
    assert parameters(EditMethod.copy, SETTINGS) == {}
    assert parameters(EditMethod.regenerate, SETTINGS) == common
    assert parameters(EditMethod.sdedit, SETTINGS) == common | {"edit/strength": 0.5}
    assert parameters(EditMethod.instruct_pix2pix, SETTINGS) == common | {"edit/image_guidance_scale": 2.0}
    assert parameters(EditMethod.controlnet_canny, SETTINGS) == common | {"edit/control_scale": 0.5}
    assert parameters(EditMethod.controlnet, SETTINGS) == common  # depth has 1.0: there is no one weight


def test_what_varies_within_a_run_is_no_parameter_of_it() -> None:
    canvas: Any = SimpleNamespace(method=EditMethod.sdedit, settings=SETTINGS)
    shared = shared_parameters(canvas, [item(), item(strength=0.5)])
    assert shared == {"edit/steps": 20.0, "edit/guidance_scale": 3.0, "edit/strength": 0.5}
    assert "edit/strength" not in shared_parameters(canvas, [item(), item(strength=0.6)])


def test_a_row_of_the_table_has_its_own_pictures_and_none_for_what_is_not_there(tmp_path: Path) -> None:
    folder = tmp_path / "samples" / "step_000001"
    (folder / "conditions").mkdir(parents=True)
    for name in ("hall__canny", "hall__b__depth"):
        blank().save(folder / "conditions" / f"{name}.png")
    canvas: Any = SimpleNamespace(method=EditMethod.controlnet_canny, settings=SETTINGS, folder=folder)
    columns, data = picture_table(canvas, [row(item(truth=True), clip_image=0.5), row(item("room"), clip_t=0.25)])
    first, second = (dict(zip(columns, one, strict=True)) for one in data)
    assert columns[:5] == ["image", "edit", "seed", "method", "instruction"]
    assert first["canny"] == folder / "conditions" / "hall__canny.png" and second["canny"] is None
    assert "depth" not in columns  # that map is of an image called hall__b
    assert first["edited"] == folder / "hall__night__s0.png" and first["truth"] is not None and second["truth"] is None
    assert (first["clip_image"], first["clip_t"], second["clip_image"], second["clip_t"]) == (0.5, None, None, 0.25)


def test_a_row_lets_its_pictures_go() -> None:
    drawn = Drawn(item(), blank(), blank(), 10, ())
    seen = [weakref.ref(drawn.image), weakref.ref(drawn.source)]
    kept = PairRow.of(drawn, EditScore({"clip_image": 1.0}))
    del drawn
    gc.collect()
    assert kept.steps == 10 and [one() for one in seen] == [None, None]


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import wandb

    for name in ("DIR", "DATA_DIR", "CACHE_DIR", "CONFIG_DIR"):
        (tmp_path / "wandb_home" / name).mkdir(parents=True)
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / "wandb_home" / name))
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.mark.slow
def test_an_offline_record_holds_table_curve_and_parameters(
    photos: Path,  # noqa: F811
    offline: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = photos.parent / "edits" / "three.yaml"
    file.write_text(THREE, encoding="utf-8")
    monkeypatch.setattr(logged, "MOST_TABLE_ROWS", 3)
    run_dir = edit(photos, "sent", f"data.file={file}", "tracking.wandb=offline")
    assert "W&B's table of pictures has the first 3 of 4" in capsys.readouterr().err
    (folder,) = (run_dir / "wandb").glob("offline-run-*")
    tables = {path.name.rsplit("_", 2)[0]: path for path in (folder / "files/media/table/samples").iterdir()}
    table = json.loads(tables["edits"].read_text(encoding="utf-8"))
    places = [table["columns"].index(name) for name in ("image", "edit", "source", "edited")]
    assert [[line[place] for place in places] for line in table["data"]] == [
        [image, name, "Image", "Image"] for image, name in (("hall", "a"), ("hall", "b"), ("room", "a"))
    ]
    settings = json.loads(tables["settings"].read_text(encoding="utf-8"))
    assert settings["columns"][:2] == ["strength", "images"]
    assert [line[:2] for line in settings["data"]] == [[0.5, 2], [1, 2]]
    curve = json.loads(tables["preservation_against_strength_table"].read_text(encoding="utf-8"))
    assert curve["columns"] == ["CLIP directional", "CLIP image"] and len(curve["data"]) == 2
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    summary: dict[str, Any] = {}
    for record in records:
        summary |= record["summary"]["update"] if record["type"] == "summary" else {}
    assert (summary["edit/steps"], summary["samples/edits.nrows"]) == (2, 3) and "edit/strength" not in summary
    assert summary["edit/clip_image/dollhouse"] == pytest.approx(history(run_dir)[1][1]["edit/clip_image/dollhouse"])

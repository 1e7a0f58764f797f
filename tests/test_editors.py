"""The miniature editors begin as the house's own UNet, learn from exact pairs, and run in diffusers' pipelines."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, T2IAdapter, UNet2DConditionModel
from safetensors import safe_open

from boothlab.dollhouse import pretrain
from boothlab.dollhouse.control_parts import Adapter, Control, at_another_hour
from boothlab.dollhouse.edit_judge import EDIT_HEADS, did_it_happen, facts_kept, labels_of, read_facts
from boothlab.dollhouse.edit_score import as_table, background_psnr, edge_f1, edit_rows, image_psnr, judge_scores
from boothlab.dollhouse.editor_parts import Instruct
from boothlab.dollhouse.editors import METHODS, edit_pictures, editing_pipeline
from boothlab.dollhouse.edits import EDITS, EditPair, apply_edit, fact_of, held_out_pairs
from boothlab.dollhouse.pretrain import DEFAULT_MINUTES, EDITOR_NAMES, EVERY_PART, build_part
from boothlab.dollhouse.scenes import RoomScene, Time, render, rng_for, sample_scene

WEIGHTS = Path(pretrain.__file__).parent / "weights"
FOLDERS = (
    "instruct_pix2pix",
    "controlnet_canny",
    "controlnet_depth",
    "t2i_adapter_canny",
    "t2i_adapter_depth",
    "edit_judge",
)
ROOM = RoomScene("red", "blue", "green")


def part(name: str, seed: int = 0, batch_size: int = 4) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = build_part(name, seed, WEIGHTS, "cpu", compiled=False)
    made.batch_size = batch_size
    return made


@pytest.fixture(scope="module")
def instruct() -> Instruct:
    return part("instruct")


@pytest.fixture(scope="module")
def control() -> Control:
    return part("control_depth")


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    return part("adapter_depth")


def pairs_of(*names: str) -> list[EditPair]:
    return [EditPair(EDITS[name], ROOM, apply_edit(ROOM, EDITS[name]), EDITS[name].instruction) for name in names]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_every_editor_is_a_part_with_a_budget() -> None:
    assert EVERY_PART[-6:] == EDITOR_NAMES and set(EVERY_PART) == set(DEFAULT_MINUTES)


def test_instruct_begins_as_the_house_s_unet_whatever_the_source(instruct: Instruct) -> None:
    house = instruct.house_unet(WEIGHTS).eval()
    noisy, source, states = torch.randn(2, 8, 8, 8), torch.randn(2, 8, 8, 8), torch.randn(2, 32, 128)
    with torch.inference_mode():
        asked = instruct.unet.eval()(torch.cat([noisy, source], 1), 500, states).sample
        assert torch.allclose(asked, house(noisy, 500, states).sample, atol=1e-5)
    assert instruct.unet.config.in_channels == 16


def test_two_steps_share_their_scenes_and_no_more(instruct: Instruct) -> None:
    first, second, third = (instruct.batch(step) for step in (0, 1, 2))
    assert torch.equal(first["targets"], second["targets"])
    assert not torch.equal(first["targets"], third["targets"])
    assert equal(instruct.batch(0), first)  # a function of the seed and the step
    torch.manual_seed(99)
    other = part("instruct")
    assert equal(other.batch(1), second)


def test_text_and_source_are_left_out_as_often_as_the_paper_does() -> None:
    made = part("instruct", batch_size=4000)
    rows = torch.ones(4000, 1, 1, 1)
    made._drawn = (0, 4000, {"sources": rows, "targets": rows, "states": torch.full((4000, 1, 1), 7.0)})
    made.nothing_TD = torch.zeros(1, 1)
    batch = made.batch(0)
    no_text, no_source = batch["states"].flatten() == 0, batch["sources"].flatten() == 0
    for found, share in ((no_text, 0.1), (no_source, 0.1), (no_text & no_source, 0.05)):
        assert float(found.float().mean()) == pytest.approx(share, abs=0.02)


def test_the_source_is_encoded_as_the_pipeline_encodes_it(instruct: Instruct) -> None:
    pair = pairs_of("at_night")[0]
    pipeline = editing_pipeline(WEIGHTS, "instruct_pix2pix")
    picture = torch.from_numpy(pair.pictures()[0]).permute(2, 0, 1)[None].float() / 127.5 - 1
    given = pipeline.prepare_image_latents(picture, 1, 1, torch.float32, "cpu", False)
    assert torch.allclose(instruct.encode(picture), given, atol=0.05)  # bf16 in training; no scaling factor in either


def test_a_new_controlnet_says_nothing_and_is_made_of_the_unet(control: Control) -> None:
    batch = control.batch(0)
    with torch.inference_mode():
        noisy = torch.randn_like(batch["latents"])
        down, middle = control.controlnet(noisy, 500, batch["states"], controlnet_cond=batch["maps"], return_dict=False)
    assert len(down) == 6 and all(not value.any() for value in (*down, middle))
    own, house = control.controlnet.state_dict(), control.unet.state_dict()
    shared = own.keys() & house.keys()
    assert all(torch.equal(own[name], house[name]) for name in shared)
    assert "down_blocks.1.resnets.1.conv2.weight" in shared and "mid_block.resnets.0.conv1.weight" in shared
    assert batch["maps"].shape == (4, 3, 32, 32) and 0 <= float(batch["maps"].min()) <= float(batch["maps"].max()) <= 1


@pytest.mark.parametrize("name", ["control", "adapter"])
def test_only_the_small_network_learns(name: str, request: pytest.FixtureRequest) -> None:
    made = request.getfixturevalue(name)
    made.loss(made.batch(0), 0)["loss"].backward()
    assert any(value.grad is not None and value.grad.any() for value in made.modules.parameters())
    assert all(value.grad is None for value in made.unet.parameters())
    made.modules.zero_grad()


def test_the_adapter_leans_to_the_noisy_end(adapter: Adapter) -> None:
    torch.manual_seed(0)
    times = adapter.timesteps(4000).float() / 1000
    assert float(times.mean()) == pytest.approx(0.75, abs=0.02)  # the mean of 1 − u³
    features = adapter.adapter(torch.rand(2, 3, 32, 32))
    assert [tuple(value.shape) for value in features] == [(2, 64, 8, 8), (2, 128, 4, 4)]


def test_another_hour_moves_nothing() -> None:
    rng = rng_for(0, "test_hour")
    hours = {at_another_hour(ROOM, rng) for _ in range(40)}
    assert hours == {RoomScene("red", "blue", "green", time=time) for time in Time}


def test_labels_pass_over_what_a_scene_does_not_have() -> None:
    labels = labels_of([ROOM])
    assert labels["bed"].item() == 0 and labels["time"].item() == 0 and labels["curtains_closed"].item() == 0
    assert {labels[name].item() for name in ("place", "color", "accessory")} == {-100}


def test_what_happened_and_what_was_kept() -> None:
    pairs = pairs_of("at_night", "bed_blue")
    read = {name: [str(fact_of(pair.target, name)) for pair in pairs] for name in EDIT_HEADS}
    assert did_it_happen(read, pairs) == [True, True] and facts_kept(read, pairs) == [1.0, 1.0]
    read["time"], read["carpet"] = ["day", "night"], ["green", "white"]
    assert did_it_happen(read, pairs) == [False, True]
    assert facts_kept(read, pairs) == [1.0, 3 / 5]  # of lamp, curtains (closed, colour), carpet and time: two are wrong


def test_psnr_outside_the_mask() -> None:
    black = np.zeros((4, 4, 3), dtype=np.uint8)
    picture, mask = black.copy(), np.zeros((4, 4), dtype=bool)
    picture[0], mask[0] = 255, True
    assert background_psnr(picture, black, mask) == 100.0
    picture[1, 0] = 255  # one of twelve pixels as wrong as can be
    assert background_psnr(picture, black, mask) == pytest.approx(10 * np.log10(12))
    assert background_psnr(picture, black, np.ones((4, 4), dtype=bool)) is None
    assert image_psnr([picture], [picture]) == [100.0]


def test_edges_meet_within_one_pixel() -> None:
    line, near, far = (np.zeros((8, 8), dtype=bool) for _ in range(3))
    line[:, 2] = near[:, 3] = far[:, 6] = True
    assert edge_f1(line, line) == edge_f1(near, line) == 1.0
    assert edge_f1(far, line) == 0.0
    assert edge_f1(line | far, line) == pytest.approx(2 / 3)  # precision 1/2, recall 1
    none = np.zeros((8, 8), dtype=bool)
    assert edge_f1(none, none) == 1.0 and edge_f1(none, line) == 0.0


def test_rows_for_each_edit_and_for_all() -> None:
    pairs = pairs_of("at_night", "bed_blue")
    read = {name: [str(fact_of(pair.source, name)) for pair in pairs] for name in EDIT_HEADS}
    sources = [render(pair.source) for pair in pairs]
    night, bed, both = edit_rows("copy", pairs, sources, read)
    assert (night.happened, night.kept, night.background_db, night.count) == (0.0, 100.0, None, 1)
    assert (bed.edit, bed.background_db, both.count) == ("bed_blue", 100.0, 2)
    assert night.truth_db < bed.truth_db  # a copy is further from the night than from another bed
    assert both.truth_db == pytest.approx((night.truth_db + bed.truth_db) / 2)
    rows = [vars(row) for row in (night, bed, both)]
    scores = {
        "device": "cpu", "threads": 1, "rooms": rows, "toys": [],
        "sampling": {"sampler": "DPM", "steps": 2, "seed": 0, "rooms": 1, "toys": 0},
        "structure": [{"method": "generate", "scene_db": 12.34, "edge_f1": 0.5, "count": 3}],
        "judge": {"bed": {"accuracy": 99.0, "count": 7}},
    }  # fmt: skip
    table = as_table(scores)
    assert "| copy | at_night | 0 % | 100 % |" in table and "| generate | 12.3 dB | 0.50 | 3 |" in table
    assert "| bed | 99.0 % | 7 |" in table


@pytest.mark.slow
@pytest.mark.parametrize("name", EDITOR_NAMES)
def test_exports_load_with_plain_libraries_and_start_again(name: str, tmp_path: Path) -> None:
    finished, fresh = part(name), part(name, seed=1)
    finished.modules.eval()
    with torch.no_grad():
        for value in finished.modules.parameters():
            value.add_(0.25)
    finished.export(tmp_path)
    fresh.start_from(tmp_path)
    for one, other in zip(finished.modules.parameters(), fresh.modules.parameters(), strict=True):
        assert torch.allclose(one.float(), other, atol=2e-3)


def test_the_shipped_editors_are_small_half_precision_safetensors() -> None:
    files = [path for folder in FOLDERS for path in sorted((WEIGHTS / folder).rglob("*")) if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 20e6
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    stored = [path for path in files if path.suffix == ".safetensors"]
    assert len(stored) == len(FOLDERS)
    for path in stored:
        with safe_open(path, "pt") as weights:
            assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.float16}, path  # noqa: SIM118


@pytest.mark.slow
def test_the_shipped_editors_load_as_what_they_are() -> None:
    assert UNet2DConditionModel.from_pretrained(WEIGHTS / "instruct_pix2pix" / "unet").config.in_channels == 16
    for kind, channels in (("canny", 1), ("depth", 3)):
        net = ControlNetModel.from_pretrained(WEIGHTS / f"controlnet_{kind}")
        assert tuple(net.config.conditioning_embedding_out_channels) == (16, 32, 64)
        adapter = T2IAdapter.from_pretrained(WEIGHTS / f"t2i_adapter_{kind}")
        assert (adapter.config.in_channels, adapter.downscale_factor) == (channels, 4)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_in_diffusers_own_pipeline(method: str) -> None:
    if method.endswith("canny"):
        pytest.importorskip("cv2", reason="Canny maps need OpenCV (the extra `edit`)")
    pairs = held_out_pairs(1, 1)[3:9]
    pictures = edit_pictures(WEIGHTS, method, pairs, steps=2)
    assert [picture.shape for picture in pictures] == [(32, 32, 3)] * 6
    assert len({picture.tobytes() for picture in pictures}) == 6
    (alone,) = edit_pictures(WEIGHTS, method, pairs[:1], steps=2)
    assert np.abs(alone.astype(int) - pictures[0].astype(int)).max() <= 1  # its own noise, whatever the batch


@pytest.mark.slow
def test_inpainting_keeps_what_lies_outside_the_mask() -> None:
    (pair,) = pairs_of("bed_blue")
    (picture,) = edit_pictures(WEIGHTS, "inpaint", [pair], steps=4)
    mask = np.zeros((32, 32), dtype=bool)
    mask[16:, 10:] = True  # the bed and what shares a latent with it
    outside = background_psnr(picture, render(ROOM), mask)
    assert outside is not None and outside > 22


@pytest.mark.slow
def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="no editing method is called 'magic'; there are generate, sdedit"):
        editing_pipeline(WEIGHTS, "magic")


@pytest.mark.slow
def test_the_edit_judge_reads_renders() -> None:
    accuracy = judge_scores(WEIGHTS, "cpu", 300, seed=1)
    assert set(accuracy) == set(EDIT_HEADS)
    assert all(percent >= 90 for percent, _ in accuracy.values()), accuracy
    rng = rng_for(0, "test_judge")
    pictures = [render(sample_scene(rng)) for _ in range(3)]
    assert {len(values) for values in read_facts(WEIGHTS, pictures).values()} == {3}

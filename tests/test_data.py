"""What training sees is a function of (seed, micro-step); latents are cached by content, and never stale."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from boothlab.cache import Cache
from boothlab.diffusion.backbone import Backbone
from boothlab.dreambooth.data import (
    LatentTable,
    TrainingData,
    TrainingImage,
    draw_items,
    encode_images,
    variants_of,
)
from boothlab.files import sha256_file
from boothlab.images.load import Crop, load_image
from tiny_pipelines import load


@pytest.fixture(scope="module")
def backbone(pipelines: dict[str, Path]) -> Backbone:
    return load(pipelines["sd15"])


def picture(path: Path, shade: int, size: tuple[int, int] = (48, 40)) -> TrainingImage:
    """A photo on disk, with stripes so that crops differ."""
    image = Image.new("RGB", size)
    image.putdata([((x * 5 + shade) % 256, (y * 7) % 256, shade) for y in range(size[1]) for x in range(size[0])])
    image.save(path)
    return TrainingImage(load_image(path), f"a photo of sks dog {shade}", sha256_file(path))


def table(size: int, variants: int = 2, prompt: str = "sks dog") -> LatentTable:
    rows = [list(range(i * variants, (i + 1) * variants)) for i in range(size)]
    means = torch.arange(size * variants, dtype=torch.float32).reshape(-1, 1, 1, 1).expand(-1, 4, 2, 2)
    return LatentTable(means, torch.full_like(means, 0.5), rows, [f"{prompt} {i}" for i in range(size)])


class CountingBackbone:
    """Counts how often the VAE is asked."""

    def __init__(self, inner: Backbone):
        self.inner, self.resolution, self.device, self.calls = inner, inner.resolution, inner.device, 0

    def encode_images(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return self.inner.encode_images(pixels_BCHW)


def encode(backbone: Any, items: list[TrainingImage], cache: Cache, **changes: Any) -> LatentTable:
    settings: dict[str, Any] = {
        "crop": Crop.RANDOM,
        "flip": False,
        "variants": 4,
        "seed": 0,
        "vae_identity": {"v": "1"},
    }
    return encode_images(backbone, items, cache=cache, **(settings | changes))


def test_draw_items_is_a_pure_function() -> None:
    straight = [draw_items(3, "instance", 5, 2, step) for step in range(20)]
    backwards = [draw_items(3, "instance", 5, 2, step) for step in reversed(range(20))][::-1]
    torch.manual_seed(123)  # the global generator has no say
    resumed = [draw_items(3, "instance", 5, 2, step) for step in range(7, 20)]
    assert straight == backwards
    assert straight[7:] == resumed


@pytest.mark.parametrize(("size", "count"), [(5, 1), (5, 2), (4, 4), (3, 7), (1, 2)])
def test_every_item_comes_once_an_epoch(size: int, count: int) -> None:
    drawn = [pair for step in range(4 * size) for pair in draw_items(0, "instance", size, count, step)]
    epochs = Counter(epoch for _, epoch in drawn)
    assert [epoch for _, epoch in drawn] == sorted(epoch for _, epoch in drawn)
    for epoch, number in epochs.items():
        items = [item for item, e in drawn if e == epoch]
        assert len(set(items)) == len(items)
        assert epoch == max(epochs) or number == size


def test_seeds_streams_and_epochs_have_orders_of_their_own() -> None:
    def order(seed: int, name: str, epoch: int) -> list[int]:
        return [item for item, _ in draw_items(seed, name, 12, 12, epoch)]

    orders = [order(0, "instance", 0), order(0, "instance", 1), order(1, "instance", 0), order(0, "prior", 0)]
    assert len({tuple(one) for one in orders}) == 4


def test_class_images_do_not_change_what_the_subject_sees() -> None:
    alone = TrainingData(table(5), None, 3, seed=0)
    with_prior = TrainingData(table(5), table(9, prompt="dog"), 3, seed=0)
    for step in range(12):
        mine, both = alone.batch(step), with_prior.batch(step)
        assert torch.equal(both.means_BCHW[:3], mine.means_BCHW)
        assert torch.equal(both.stds_BCHW[:3], mine.stds_BCHW)
        assert both.prompts[:3] == mine.prompts


def test_the_shapes_of_a_batch() -> None:
    alone = TrainingData(table(5), None, 3, seed=0).batch(0)
    both = TrainingData(table(5), table(2, prompt="dog"), 3, seed=0)
    batch = both.batch(4)
    assert alone.means_BCHW.shape == alone.stds_BCHW.shape == (3, 4, 2, 2)
    assert (alone.num_instance, len(alone.prompts)) == (3, 3)
    assert batch.means_BCHW.shape == batch.stds_BCHW.shape == (6, 4, 2, 2)
    assert (batch.num_instance, len(batch.prompts)) == (3, 6)
    assert all(prompt.startswith("sks") for prompt in batch.prompts[:3])
    assert all(prompt.startswith("dog") for prompt in batch.prompts[3:])
    assert both.prompts == sorted([f"sks dog {i}" for i in range(5)] + ["dog 0", "dog 1"])


def test_a_sample_and_its_prompt_belong_together_and_variants_are_used() -> None:
    data = TrainingData(table(3, variants=4), None, 3, seed=0)
    seen = set()
    for step in range(40):
        batch = data.batch(step)
        for row, prompt in zip(batch.means_BCHW[:, 0, 0, 0].tolist(), batch.prompts, strict=True):
            assert prompt == f"sks dog {int(row) // 4}"
            seen.add(int(row))
    assert seen == set(range(12))


def test_variants_are_distinct_and_drawn_from_the_content(tmp_path: Path) -> None:
    item = picture(tmp_path / "a.png", 1)
    variants = variants_of(item, 32, Crop.RANDOM, flip=True, variants=12, seed=0)
    again = variants_of(TrainingImage(item.image, "another prompt", item.sha256), 32, Crop.RANDOM, True, 12, 0)
    decisions = [decision for decision, _ in variants]
    assert 1 < len(decisions) == len(set(decisions)) <= 12
    assert decisions == [decision for decision, _ in again]
    assert {flipped for _, _, flipped in decisions} == {False, True}
    assert decisions != [d for d, _ in variants_of(item, 32, Crop.RANDOM, True, 12, seed=1)]
    assert len(variants_of(item, 32, Crop.CENTER, flip=False, variants=12, seed=0)) == 1
    assert len(variants_of(item, 32, Crop.CENTER, flip=True, variants=12, seed=0)) == 2


def test_latents_are_encoded_once_and_the_cache_gives_the_same(tmp_path: Path, backbone: Backbone) -> None:
    items = [picture(tmp_path / f"{shade}.png", shade) for shade in (1, 90, 200)]
    cache, counting = Cache(tmp_path / "cache"), CountingBackbone(backbone)
    first = encode(counting, items, cache, batch_size=2)
    calls = counting.calls
    second = encode(counting, items, cache, batch_size=2)
    assert counting.calls == calls > 1
    assert torch.equal(first.means_NCHW, second.means_NCHW)
    assert torch.equal(first.stds_NCHW, second.stds_NCHW)
    assert first.rows == second.rows
    assert sorted(row for rows in first.rows for row in rows) == list(range(len(first.means_NCHW)))
    for item, rows in zip(items, first.rows, strict=True):
        expected = torch.stack([pixels for _, pixels in variants_of(item, 32, Crop.RANDOM, False, 4, 0)])
        assert len(rows) == len(expected)
        assert torch.allclose(first.means_NCHW[rows], backbone.encode_images(expected)[0], atol=1e-5)


def test_a_changed_photo_of_the_same_name_gets_new_latents(tmp_path: Path, backbone: Backbone) -> None:
    """Stale caches: kohya_ss #1629, OneTrainer #175."""
    cache = Cache(tmp_path / "cache")
    before = encode(backbone, [picture(tmp_path / "dog.png", 1)], cache)
    after = encode(backbone, [picture(tmp_path / "dog.png", 120)], cache)
    fresh = encode(backbone, [picture(tmp_path / "dog.png", 120)], Cache(tmp_path / "other"))
    assert not torch.equal(before.means_NCHW[:1], after.means_NCHW[:1])
    assert torch.equal(after.means_NCHW, fresh.means_NCHW)


@pytest.mark.parametrize(
    "changes",
    [{"crop": Crop.CENTER}, {"flip": True}, {"variants": 5}, {"seed": 1}, {"vae_identity": {"v": "2"}}],
    ids=lambda changes: next(iter(changes)),
)
def test_whatever_shapes_a_latent_is_in_its_key(tmp_path: Path, backbone: Backbone, changes: dict[str, Any]) -> None:
    items, cache = [picture(tmp_path / "a.png", 1)], Cache(tmp_path / "cache")
    counting = CountingBackbone(backbone)
    encode(counting, items, cache)
    encode(counting, items, cache, **changes)
    assert counting.calls == 2


def test_a_seed_that_changes_nothing_shares_the_latents(tmp_path: Path, backbone: Backbone) -> None:
    """A sweep over seeds does not encode the same class images again and again."""
    items, cache = [picture(tmp_path / "a.png", 1)], Cache(tmp_path / "cache")
    counting = CountingBackbone(backbone)
    for seed in range(3):
        encode(counting, items, cache, crop=Crop.CENTER, seed=seed)
    assert counting.calls == 1

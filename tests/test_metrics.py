"""The metric registry: one entry a key, with its direction."""

import pytest

from boothlab.tracking import metrics
from boothlab.tracking.metrics import REGISTRY, metric_for, variant


def test_every_constant_is_registered_once_under_its_own_value() -> None:
    constants = [value for name, value in vars(metrics).items() if name.isupper() and isinstance(value, str)]
    assert sorted(constants) == sorted([*REGISTRY, metrics.STEP_KEY])


def test_every_metric_says_what_it_is() -> None:
    for key, metric in REGISTRY.items():
        assert metric.key == key
        assert metric.step_key == "trainer/global_step"
        assert metric.description.endswith(".") and metric.unit
        assert key.split("/")[0] in {"train", "edit", "eval", "inspect", "caption"}


@pytest.mark.parametrize(
    ("key", "higher_is_better"),
    [
        ("train/loss", False),
        ("train/lr_unet", None),
        ("eval/clip_i", True),
        ("eval/dino", True),
        ("eval/clip_t", True),
        ("eval/div", True),
        ("eval/pres", False),
        ("eval/balanced", True),
        ("eval/clip_i_ceiling", None),
        ("eval/constant_images", False),
    ],
)
def test_direction(key: str, higher_is_better: bool | None) -> None:
    assert REGISTRY[key].higher_is_better is higher_is_better


def test_a_variant_keeps_the_direction_of_its_metric() -> None:
    key = variant(metrics.PRES, "dollhouse")
    assert key == "eval/pres/dollhouse"
    assert metric_for(key) is REGISTRY["eval/pres"]


def test_an_unknown_key_has_no_metric() -> None:
    assert metric_for("eval/clip") is None
    assert metric_for("loss") is None
    with pytest.raises(KeyError):
        variant("eval/clip", "dollhouse")

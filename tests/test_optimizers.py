"""The optimizers: each resumed to the bit, evaluated with what it stands for, refused in a line without its library."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from boothlab.building import shared
from boothlab.building.shared import Kept
from boothlab.cli import main
from boothlab.compose.run import compose
from boothlab.compose.schemas import SCHEMAS
from boothlab.compose.typed import load as load_config
from boothlab.config import OptimConfig, OptimizerName
from boothlab.dreambooth.optimizers import WORDS, EvalWeights, WordsPlan, build_optimizer, build_schedule
from boothlab.errors import UserError
from boothlab.tracking.manifest import read_manifest
from training_runs import ADAPTER, Lab, history, same_adapter, stopped_after

OPTIMIZERS: dict[str, tuple[str, ...]] = {
    "prodigy": ("optim.optimizer=prodigy", "optim.lr=1"),
    "prodigy on both": ("optim.optimizer=prodigy", "optim.lr=1", "lora.train_text_encoder=true"),
    "schedule_free": ("optim.optimizer=schedule_free",),
    "schedule_free after a warm-up": (
        *("optim.optimizer=schedule_free", "optim.schedule=constant_with_warmup", "optim.warmup_steps=2"),
    ),
    "schedule_free in two phases": ("optim.optimizer=schedule_free", "method=pivotal", "inversion.steps=1"),
    "adamw8bit": ("optim.optimizer=adamw8bit", "lora.rank=64"),  # large enough for moments of eight bits
}
FAST = ("schedule_free",)
LIBRARIES = {"prodigy": "prodigyopt", "schedule_free": "schedulefree", "adamw8bit": "bitsandbytes"}
MOSTLY_SLOW = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in OPTIMIZERS]
UNSCORED = "evaluation.enabled=false"


@pytest.fixture(scope="module")
def lab(pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"), pipelines["sd15"])


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_backbones", Kept(1))


@pytest.mark.parametrize("name", MOSTLY_SLOW)
def test_stopped_and_resumed_is_straight(name: str, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(LIBRARIES[name.split()[0]])
    straight = lab.train(f"straight {name}", UNSCORED, *OPTIMIZERS[name])
    with stopped_after(3, monkeypatch):
        lab.train(f"stopped {name}", UNSCORED, *OPTIMIZERS[name], code=130)
    stopped = lab.train(f"stopped {name}", UNSCORED, *OPTIMIZERS[name])
    assert same_adapter(straight, stopped)
    assert history(straight) == history(stopped)
    assert LIBRARIES[name.split()[0]] in read_manifest(stopped)["versions"]
    last = Path("checkpoints") / "step_000004" / "resume.safetensors"
    one, two = load_file(straight / last), load_file(stopped / last)
    assert one.keys() == two.keys()
    assert all(one[key].equal(two[key]) for key in one)


@pytest.mark.slow
def test_evaluating_schedule_free_more_often_changes_nothing(lab: Lab) -> None:
    pytest.importorskip("schedulefree")
    rare = lab.train("rare", "optim.optimizer=schedule_free", "evaluation.every=4")
    often = lab.train("often", "optim.optimizer=schedule_free", "evaluation.every=1")
    assert same_adapter(rare, often)


def test_schedule_free_saves_the_average_and_resumes_from_what_it_trains(lab: Lab) -> None:
    """x = (y - (1 - β) z) / β of Defazio et al. 2024, arXiv 2405.15682: y is what is trained, z the base sequence."""
    pytest.importorskip("schedulefree")
    run_dir = lab.train("average", UNSCORED, "optim.optimizer=schedule_free")
    held = load_file(run_dir / "checkpoints" / "step_000004" / "resume.safetensors")
    saved = load_file(run_dir / ADAPTER)
    moved = 0
    for key, value in saved.items():
        name = key.removesuffix(".weight") + ".boothlab.weight"
        y, z = held[f"parameter/{name}"], held[f"optimizer/z/{name}"]
        torch.testing.assert_close(value, (y - (1 - 0.9) * z) / 0.9)
        moved += not value.equal(y)
    assert moved == len(saved)


def test_lent_weights_come_back_to_the_bit() -> None:
    schedulefree = pytest.importorskip("schedulefree")
    value = torch.nn.Parameter(torch.randn(50, generator=torch.Generator().manual_seed(0)))
    optimizer = schedulefree.AdamWScheduleFree([value], lr=0.1)
    optimizer.train()
    for step in range(3):
        value.grad = torch.full((50,), 1.0 / (step + 1))
        optimizer.step()
    before = value.detach().clone()
    weights = EvalWeights({"value": value}, optimizer, {})
    for _ in range(5):
        with weights.lent():
            assert not value.equal(before)
        assert value.equal(before)
    assert optimizer.param_groups[0]["train_mode"]


@pytest.mark.parametrize("name", sorted(LIBRARIES))
def test_a_missing_library_is_named_with_the_line_that_installs_it(
    name: str, lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.import_module

    def missing(module: str, package: str | None = None) -> Any:
        if module == LIBRARIES[name]:
            raise ModuleNotFoundError(f"No module named {module!r}")
        return real(module, package)

    monkeypatch.setattr(importlib, "import_module", missing)
    extra = "prodigy" if name == "prodigy" else LIBRARIES[name]
    assert main(["train", *lab.overrides(f"missing {name}", f"optim.optimizer={name}", "optim.lr=1")]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"boothlab: error: optim.optimizer={name} needs {LIBRARIES[name]}: pip install 'boothlab[{extra}]'"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("optim.optimizer=prodigy", "optim.lr=0.02: multiplies the rate that prodigy finds for itself; set optim.lr=1"),
        ("optim.optimizer=prodigy optim.lr=1 method=pivotal", "finds one rate for all, and method=pivotal has two"),
        ("optim.optimizer=prodigy optim.lr=1 method=textual_inversion", "set inversion.lr=1"),
        ("optim.optimizer=schedule_free optim.schedule=cosine", "has none by design"),
        ("optim.optimizer=schedule_free trainer.ema_decay=0.9", "averages by itself; leave it null"),
    ],
)
def test_what_an_optimizer_cannot_take_is_refused(words: str, said: str, lab: Lab) -> None:
    with pytest.raises(UserError, match=said):
        load_config(compose("train", lab.overrides("refused", *words.split())), SCHEMAS["train"])


def test_who_rests_when() -> None:
    plan = WordsPlan(lr=0.5, alone=2, late_lr=0.0)
    assert [plan.rests("unet", step) for step in range(4)] == [True, True, False, False]
    assert [plan.rests(WORDS, step) for step in range(4)] == [False, False, True, True]
    assert not any(WordsPlan(0.5, 2, 0.1).rests(WORDS, step) for step in range(4))
    assert not any(WordsPlan(0.5).rests(name, 0) for name in ("unet", WORDS))


def test_the_schedule_of_pivotal_tuning_begins_with_the_adapter() -> None:
    config = OptimConfig(lr=0.1)
    config.schedule = type(config.schedule).linear
    groups = [
        {"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr, "name": name}
        for name, lr in (("unet", 0.1), (WORDS, 0.4))
    ]
    optimizer = build_optimizer(config, groups)
    schedule = build_schedule(config, optimizer, 6, WordsPlan(lr=0.4, alone=2, late_lr=0.2))
    rates = []
    for _ in range(6):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    assert [unet for unet, _ in rates] == pytest.approx([0, 0, 0.1, 0.075, 0.05, 0.025])
    assert [words for _, words in rates] == pytest.approx([0.4, 0.4, 0.2, 0.2, 0.2, 0.2])


def test_every_optimizer_has_a_library_or_is_torchs() -> None:
    assert {one.value for one in OptimizerName} == {"adamw", *LIBRARIES}

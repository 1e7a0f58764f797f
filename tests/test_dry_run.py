"""`boothlab train … --dry-run`: parameter counts as published, a sum that adds up, and nothing written."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from boothlab.building import forecast as forecasting
from boothlab.building.forecast import Forecast, forecast
from boothlab.cli import main
from boothlab.commands.dry_run import asks_for_one, normalised, shown_bytes
from boothlab.compose.naming import identity
from boothlab.compose.run import compose
from boothlab.compose.schemas import installed, pick
from boothlab.compose.typed import load
from boothlab.config import Method, TrainConfig
from boothlab.diffusion.activations import activation_bytes
from boothlab.diffusion.architectures import build_skeleton
from boothlab.diffusion.trained import find_trained
from boothlab.errors import UserError
from training_runs import Lab

SUBJECT = ("subject=folder", "subject.images=photos", "subject.class_noun=dog")
#: published sizes of the checkpoints, in parameters
PUBLISHED = {
    "sd15": {"unet": 859_520_964, "text_encoder": 123_060_480, "vae": 83_653_863},
    "sd21": {"unet": 865_910_724, "text_encoder": 340_387_840, "vae": 83_653_863},
    "sdxl": {"unet": 2_567_463_684, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840, "vae": 83_653_863},
}


def of(*words: str) -> Forecast:
    return forecast(load(compose("train", [*words, *SUBJECT]), TrainConfig)[0])


def size_of(found: Forecast, what: str) -> int:
    (size,) = (part.size for part in found.training if part.what.startswith(what))
    return size


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_known_architectures_have_the_published_sizes(name: str) -> None:
    found = of(f"backbone={name}")
    assert found.whole == PUBLISHED[name]
    assert found.known_from.startswith(f"the architecture of {name}")


@pytest.mark.slow
def test_low_memory_is_low() -> None:
    small = of("backbone=sd15", "memory=low", "lora.rank=4")
    assert small.trained["unet"] == 797_184  # 64 attentions' four matrices at rank 4, as diffusers' script says
    assert small.peak <= 6e9
    large = of("backbone=sdxl", "memory=low")
    assert large.peak <= 12e9
    for found in (small, large):
        assert size_of(found, "vae") == size_of(found, "text_encoder,") == 0
        assert size_of(found, "activations") < 2**30


@pytest.mark.slow
def test_what_each_method_and_optimizer_keeps() -> None:
    lora = of("backbone=sd15", "lora.rank=4")
    assert size_of(lora, "optimizer") == 8 * 797_184
    assert (
        size_of(of("backbone=sd15", "lora.rank=4", "optim.optimizer=prodigy", "optim.lr=1"), "optimizer")
        == 16 * 797_184
    )
    eight = size_of(of("backbone=sd15", "lora.rank=64", "optim.optimizer=adamw8bit"), "optimizer")
    assert 2.02 < eight / (16 * 797_184) < 2.1
    full = of("backbone=sd15", "method=full", "trainer.ema_decay=0.99")
    assert size_of(full, "unet, trained") == size_of(full, "gradients") == size_of(full, "average") == 4 * 859_520_964
    assert full.file_bytes == pytest.approx(4 * 859_520_964, rel=0.001)
    words = of("backbone=sdxl", "method=textual_inversion", "inversion.vectors=3")
    assert words.trained["learned words"] == 3 * (768 + 1280)


@pytest.mark.slow
def test_several_devices_need_less_each() -> None:
    full = ("backbone=sd15", "method=full", "data.batch_size=4", "trainer.ema_decay=0.9")
    alone, several = of(*full), of(*full, "trainer.devices=4")
    sharded = of(*full, "trainer.devices=4", "trainer.sharded=true")
    for part in ("unet, trained", "gradients", "optimizer", "average"):
        assert size_of(alone, part) == size_of(several, part) == 4 * size_of(sharded, part)
    assert size_of(several, "activations") == size_of(sharded, "activations") < size_of(alone, "activations")
    assert size_of(several, "DDP") == 4 * 859_520_964
    drawing = next(part.size for part in sharded.evaluating if part.what.startswith("unet"))
    assert drawing == 5 * 859_520_964  # whole, beside the part


def test_activations_grow_with_the_batch_and_shrink_with_checkpointing(pipelines: dict[str, Path]) -> None:
    skeleton = build_skeleton(str(pipelines["sd15"]), "tiny")
    skeleton.unet.requires_grad_(True)
    one, two = (activation_bytes(skeleton, rows, 8, torch.float32, False) for rows in (1, 2))
    assert 1.9 < two / one < 2.01  # the time embedding's table is the same for all
    assert activation_bytes(skeleton, 1, 8, torch.float32, True) < one
    assert activation_bytes(skeleton, 1, 8, torch.float32, False) == one  # the skeleton is as it was


def test_they_are_what_autograd_saves_for_real(pipelines: dict[str, Path]) -> None:
    """The same count on numbers instead of shapes."""
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor

    skeleton = build_skeleton(str(pipelines["sd15"]), "tiny")
    skeleton.unet.requires_grad_(True)
    skeleton.unet.set_attn_processor(AttnProcessor())
    real = UNet2DConditionModel.from_pretrained(pipelines["sd15"] / "unet")
    real.set_attn_processor(AttnProcessor())
    own = {value.untyped_storage().data_ptr() for value in real.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage
        return value

    states = torch.randn(2, 77, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        real(torch.randn(2, 4, 8, 8), torch.tensor([1, 2]), states)
    counted = activation_bytes(skeleton, 2, 8, torch.float32, False)
    tokens = build_skeleton(str(pipelines["sd15"]), "tiny").text_encoders["text_encoder"].config.max_position_embeddings
    assert tokens == 77 or counted  # the tiny text encoder reads fewer tokens; compared at its own length below
    saved.clear()
    states = torch.randn(2, tokens, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        real(torch.randn(2, 4, 8, 8), torch.tensor([1, 2]), states)
    assert counted == pytest.approx(sum(storage.nbytes() for storage in saved.values()), rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [(), ("lora.train_text_encoder=true",), ("method=textual_inversion",), ("method=full",)]
)
def test_counts_and_files_are_those_of_a_real_run(
    words: tuple[str, ...], pipelines: dict[str, Path], tmp_path: Path
) -> None:
    lab = Lab(tmp_path, pipelines["sd15"])
    found = forecast(load(compose("train", lab.overrides("run", *words)), TrainConfig)[0])
    run_dir = lab.train("run", "evaluation.enabled=false", *words)
    held = {file: load_file(file) for file in find_trained(run_dir).files}
    assert sum(found.trained.values()) == sum(value.numel() for state in held.values() for value in state.values())
    assert found.file_bytes == pytest.approx(sum(file.stat().st_size for file in held), rel=0.2, abs=2500)


@pytest.mark.parametrize("word", ["--dry-run", "dry_run=true"])
def test_it_says_and_writes_nothing(
    word: str,
    pipelines: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    lab = Lab(tmp_path, pipelines["sd15"])
    assert main(["train", *lab.overrides("run"), word]) == 0
    printed = "".join(capsys.readouterr())
    for said in (
        "what method=lora trains",
        "memory, training",
        "activations of the UNet",
        "files ",
        "about ",
        "as tried",
    ):
        assert said in printed, said
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_refused_as_by_the_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--dry-run", "lora.rank=0"]) == 2
    assert "lora.rank=0: must be at least 1" in capsys.readouterr().err
    with pytest.raises(UserError, match="only the shapes of sd15, sd21, sdxl are known"):
        of("backbone=sd15", "backbone.name=other", "backbone.source=someone/something")


def test_a_large_model_is_not_loaded_to_be_timed(pipelines: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecasting, "SMALL", 10)
    config = load(compose("train", [f"backbone.source={pipelines['sd15']}"]), TrainConfig)[0]
    assert forecasting.measured_seconds(config) is None
    elsewhere = load(compose("train", ["backbone=sd15", *SUBJECT]), TrainConfig)[0]
    assert forecasting.measured_seconds(elsewhere) is None


def test_low_memory_takes_the_small_optimizer_where_it_is_installed() -> None:
    assert installed("json", "there", "gone") == "there"
    assert installed("no_such_module_at_all", "there", "gone") == "gone"
    config, resolved = load(compose("train", ["memory=low"]), TrainConfig)
    assert resolved["optim"]["optimizer"] in ("adamw", "adamw8bit")  # what it came to, not the question
    assert (config.trainer.offload, config.trainer.gradient_checkpointing, config.data.batch_size) == (True, True, 1)
    assert load(compose("train", ["memory=low", "optim.optimizer=prodigy", "optim.lr=1"]), TrainConfig)


def test_a_table_in_a_config_file_gives_a_value_for_another_key() -> None:
    table = OmegaConf.create({"lora": 1e-3, "full": 1e-4})
    assert (pick("full", table), pick(Method.lora, table)) == (1e-4, 1e-3)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="pivotal: is not in the table lora, full"):
        pick("pivotal", table)


def test_the_words_for_it() -> None:
    assert normalised(["a=1", "dry_run=true", "dry_run=false"]) == ["a=1", "--dry-run"]
    assert asks_for_one(["--dry-run"])
    assert not asks_for_one(["-m", "--dry-run"])
    assert not asks_for_one(["a=1"])
    assert [shown_bytes(size) for size in (2**31, 3 * 2**20, 512)] == ["2.00 GiB", "3.00 MiB", "0.5 KiB"]
    _, plain = load(compose("train"), TrainConfig)
    assert "dry_run" not in plain
    assert identity(plain) == identity(load(compose("train", ["memory=standard"]), TrainConfig)[1])

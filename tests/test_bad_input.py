"""Bad input is one clear line on stderr and exit code 2; nothing that was there before is lost."""

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boothlab.cli import main
from boothlab.dreambooth import checkpoints
from training_runs import ADAPTER, Lab, history, summary

FAST = ("evaluation.enabled=false", "trainer.max_steps=2", "trainer.checkpoint_every=1")


@pytest.fixture(scope="module")
def lab(pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"), pipelines["sd15"])


def photo(path: Path, shade: int = 0, size: tuple[int, int] = (40, 36)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ys, xs = np.mgrid[: size[1], : size[0]]
    Image.fromarray(np.stack([xs * 6 + shade, ys * 7, xs * 0 + shade], axis=2).astype(np.uint8)).save(path)
    return path


def refused(lab: Lab, capsys: pytest.CaptureFixture[str], *extra: str, code: int = 2, name: str = "refused") -> str:
    """The one line that `boothlab train` says before it stops."""
    capsys.readouterr()
    assert main(["train", *lab.overrides(name, *extra)]) == code
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    lines = [line for line in printed.err.splitlines() if line.startswith("boothlab: error: ")]
    assert len(lines) == 1
    assert printed.err.splitlines()[-1] == lines[0]
    return lines[0].removeprefix("boothlab: error: ")


def empty(folder: Path) -> None:
    pass


def no_images(folder: Path) -> None:
    (folder / "notes.txt").write_text("x")
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "Thumbs.db").write_bytes(b"x")


def all_corrupt(folder: Path) -> None:
    whole = photo(folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(whole[: len(whole) // 2])
    (folder / "b.jpg").write_bytes(b"\xff\xd8 this is no photo")


def one_pixel(folder: Path) -> None:
    photo(folder / "dot.png", size=(1, 1))


def a_movie(folder: Path) -> None:
    (folder / "dog.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42" + bytes(50))


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (empty, "the images folder {} is empty; put JPEG"),
        (no_images, "the images folder {} holds no image (only: system or hidden file, text that is no image's"),
        (all_corrupt, "none of the 2 file(s) in {} is a usable image (a.png: it is damaged or cut short"),
        (
            one_pixel,
            "none of the 1 file(s) in {} is a usable image (dot.png: it is 1x1 pixels, below the smallest side",
        ),
        (a_movie, "none of the 1 file(s) in {} is a usable image (dog.mp4: it is not an image in a known format"),
    ],
)
def test_a_folder_without_photos(
    make: Callable[[Path], None], line: str, lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path)
    assert line.format(tmp_path) in refused(lab, capsys, f"subject.images={tmp_path}")


@pytest.mark.parametrize(
    ("extra", "line"),
    [
        (["subject.images=no/photos"], "the images folder no/photos does not exist"),
        (["subject.images=dollhouse:dragon/1"], "'dollhouse:dragon/1' names no toy|dollhouse:dragon/1 names no toy"),
        (["subject.images=dollhouse:robot"], "names no toy of the dollhouse; write dollhouse:CLASS/INDEX"),
        (["subject.instance_prompt=a photo of a dog"], "subject.instance_prompt='a photo of a dog': must contain the"),
        (["subject.token=''"], "subject.token='': must not be empty"),
        (["subject.class_noun=' '"], "subject.class_noun=' ': must not be empty"),
        (["evaluation.sampler.scheduler=ddimm"], "evaluation.sampler.scheduler=ddimm: expected one of .*did you mean"),
        (["data.batch_size=0"], "data.batch_size=0: must be at least 1"),
        (["lora.rank=0"], "lora.rank=0: must be at least 1"),
        (["lora.alpha=0"], "lora.alpha=0.0: must be above 0"),
        (["optim.text_encoder_lr=1e-5"], "optim.text_encoder_lr=1e-05: has no effect without lora.train_text_encoder"),
        (["trainer.checkpoint_every=9"], "trainer.checkpoint_every=9: is beyond trainer.max_steps=4"),
        (["evaluation.every=9"], "evaluation.every=9: is beyond trainer.max_steps=4"),
        (["optim.warmup_steps=9", "optim.schedule=linear"], "optim.warmup_steps=9: is beyond trainer.max_steps=4"),
        (["optim.warmup_steps=2"], "optim.warmup_steps=2: has no effect with optim.schedule=constant"),
        (["lora.unet_targets=[to_z]"], "lora.unet_targets: no layer of the unet ends in 'to_z'; its layers end in"),
        (
            ["lora.train_text_encoder=true", "lora.text_encoder_targets=[mlp.fc9]"],
            "lora.text_encoder_targets: no layer of the text_encoder ends in 'mlp.fc9'",
        ),
        (["backbone.source=/no/model"], "backbone.source=/no/model: no such folder"),
        (["backbone.resolution=33"], "backbone.resolution=33: must be a positive multiple of 8"),
        (["backbone.precision=fp16"], "backbone.precision=fp16: CPUs have no float16 arithmetic"),
        (["encoders.clip=/no/clip"], "/no/clip: no such folder"),
        (["trainer.accelerator=cuda"], "accelerator=cuda: this machine has none"),
        (["prior.enabled=true", "prior.class_images=no/dogs"], "the images folder no/dogs does not exist"),
        (["trainer.max_stpes=3"], "there is no key trainer.max_stpes; did you mean trainer.max_steps?"),
        (["evaluation.prompts=['{token}']"], "prompt 'sks' is only the unique token: write the class noun too"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_setting_that_cannot_be(
    extra: list[str], line: str, lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    message = refused(lab, capsys, *extra)
    assert any(part in message or re.search(part, message) for part in line.split("|")), message


def test_a_model_that_is_pickled_or_lacks_weights(lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("model", "bin"):
        shutil.copytree(lab.pipeline, tmp_path / name)
        (tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (tmp_path / "bin" / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"x")
    for name, why in (("model", "has no weights"), ("bin", "only has pickled weights, which can run code")):
        message = refused(lab, capsys, f"backbone.source={tmp_path / name}")
        assert message.startswith(f"backbone.source={tmp_path / name}: unet/ {why}; save it again as safetensors")


def save_kinds(folder: Path) -> list[str]:
    """One photo of each kind that loaders trip over."""
    image = Image.open(photo(folder / "rgb.png"))
    alpha = image.convert("RGBA")
    alpha.putalpha(Image.new("L", image.size, 100))
    alpha.save(folder / "alpha.png")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("P").save(folder / "palette.gif")
    Image.fromarray((np.arange(40 * 36).reshape(36, 40) * 40).astype(np.uint16)).save(folder / "deep.png")
    image.convert("1").save(folder / "bits.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "turned.jpg", exif=exif)
    image.save(
        folder / "two.mpo", format="MPO", save_all=True, append_images=[image.transpose(Image.Transpose.ROTATE_180)]
    )
    frames = [Image.new("RGB", (30, 30), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "moving.webp", save_all=True, append_images=frames[1:])
    return sorted(path.name for path in folder.iterdir())


def test_every_kind_of_photo_trains(lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names with spaces, umlauts and brackets; a folder full of what systems leave behind."""
    folder = tmp_path / "Füße & Hände [red] [/nothing] 狗"
    kinds = save_kinds(folder)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (folder / name).write_bytes(b"x")
    capsys.readouterr()
    run_dir = lab.train("Läufe [red]", *FAST, f"subject.images='{folder}'")
    printed = capsys.readouterr().err
    assert f"run folder {run_dir}" in printed
    assert "left out" not in printed
    assert summary(run_dir)["counts"]["photos"] == len(kinds) == 9
    assert (run_dir / ADAPTER).exists()


def test_bad_photos_among_good_ones_are_listed_and_left_out(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos [a]"
    for shade in (0, 80):
        photo(folder / f"good{shade}.png", shade)
    photo(folder / "cut.png").write_bytes((folder / "good0.png").read_bytes()[:60])
    photo(folder / "twin.png", 0)
    (folder / "movie.mp4").write_bytes(b"x" * 50)
    capsys.readouterr()
    run_dir = lab.train("mixed", *FAST, f"subject.images='{folder}'")
    lines = capsys.readouterr().err.splitlines()
    left_out = [line for line in lines if line.startswith("left out ")]
    assert [line.split(": ")[0] for line in left_out] == [f"left out {folder}/{n}" for n in ("cut.png", "movie.mp4")]
    assert any(line.startswith("warning ") and "twin.png is the same file as good0.png" in line for line in lines)
    assert summary(run_dir)["counts"] | {"photos": 3, "rejected_files": 2} == summary(run_dir)["counts"]


def test_a_prompt_the_text_encoder_cannot_read_to_its_end_is_named(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    """SimpleTuner #283."""
    long = "a photo of a sks robot " + "on the moon " * 20 + "[end]"
    capsys.readouterr()
    lab.train("long", *FAST, f"subject.instance_prompt='{long}'")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning ")]
    assert re.match(r"warning the text encoder reads 32 tokens and cuts the last \d+ of ", line)
    assert long in line


@pytest.mark.slow
def test_fewer_class_images_than_asked_for_is_said(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo(tmp_path / "dogs" / "one.png")
    (tmp_path / "dogs" / "two.png").write_bytes(b"x")
    capsys.readouterr()
    extra = ("prior.enabled=true", f"prior.class_images={tmp_path / 'dogs'}")
    run_dir = lab.train("few", *FAST, *extra)
    printed = capsys.readouterr().err
    assert f"{tmp_path / 'dogs'} has 1 class images, fewer than prior.num_class_images=2" in printed
    assert f"left out {tmp_path / 'dogs' / 'two.png'}" in printed
    assert summary(run_dir)["counts"]["class_images"] == 1


def test_a_full_disk_at_a_checkpoint_loses_nothing_that_was_written(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = ("trainer.max_steps=4", "trainer.checkpoint_every=1", "evaluation.enabled=false")
    real = checkpoints.write_bytes

    def full(path: Path, data: bytes) -> None:
        if "step_000003" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_bytes", full)
        message = refused(lab, capsys, *extra, name="full")
    (run_dir,) = (lab.folder / "full").glob("*/[!.]*")
    assert "cannot write" in message
    assert "the disk is full" in message
    assert summary(run_dir)["status"] == "failed"
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {"step_000001", "step_000002"}
    assert [step for step, _ in history(run_dir)] == [1, 2, 3]
    lab.train("full", *extra)
    assert summary(run_dir)["status"] == "finished"
    assert [step for step, _ in history(run_dir)] == [1, 2, 3, 4]


def test_a_loss_that_is_no_number_fails_the_run_and_says_where(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """diffusers #4820; sd-scripts #293."""
    message = refused(lab, capsys, "optim.lr=1e30", "optim.grad_clip=null", *FAST, code=1, name="diverged")
    assert re.match(r"the loss became (nan|inf) at step 2 \(batch 1, prompts \['a photo of a sks robot'\]\); ", message)
    (run_dir,) = (lab.folder / "diverged").glob("*/[!.]*")
    found = summary(run_dir)
    assert found["status"] == "failed"
    assert "at step 2" in found["error"]
    assert [step for step, _ in history(run_dir)] == [1]


@pytest.mark.slow
def test_overwriting_with_bad_input_costs_nothing(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """The earlier run is removed only when the new one is sure to start."""
    run_dir = lab.train("kept", *FAST)
    given = [*FAST, "paths.overwrite=true", f"hydra.run.dir={run_dir}"]
    files = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file() and path.suffix != ".log"}
    refused(lab, capsys, *given, "lora.unet_targets=[to_z]", name="kept")
    assert all(path.read_bytes() == data for path, data in files.items() if ".hydra" not in path.parts)

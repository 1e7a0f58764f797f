"""Publishing: the folder, what its card says and does not say, and the way to the hub."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image
from safetensors import safe_open

from boothlab.cli import main
from boothlab.diffusion.formats.adapter import same_update
from boothlab.diffusion.formats.architecture import architecture_of, known_architecture
from boothlab.diffusion.formats.convert import convert
from boothlab.diffusion.formats.read import read_adapter
from boothlab.errors import RunFailedError, UserError
from boothlab.files import sha256_file
from boothlab.publishing import upload as hub
from boothlab.publishing.folder import build_folder
from boothlab.publishing.privacy import public_command, told_by, without_places
from boothlab.publishing.upload import check_repo, upload
from boothlab.quiet import quiet_libraries
from random_adapters import random_adapter
from report_runs import make_runs

TOKEN = "hf_" + "a1B2c3D4" * 4


def finished(folder: Path) -> Path:
    """A finished run with an adapter of the miniature's own architecture."""
    make_runs(folder, [{"lora.rank": 4}])
    (run,) = (path.parent for path in folder.rglob("manifest.json"))
    architecture = architecture_of("dollhouse")
    settings = {"rank": 4, "alpha": 6.0, "step": 200, "run": run.name, "lr": 1e-4}
    settings["backbone"] = {"name": "dollhouse", "source": str(folder / "secret" / "model"), "resolution": 32}
    adapter = random_adapter(architecture, components=["unet"], metadata={"boothlab": json.dumps(settings)})
    convert(adapter, "diffusers", run / "lora" / "pytorch_lora_weights.safetensors", architecture)
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return finished(tmp_path / "outputs")


def front(card: Path) -> dict[str, Any]:
    """The card's front matter, as the hub parses it."""
    found = metadata_load(card)
    assert found is not None
    return dict(found)


# The folder


def test_the_folder_has_adapters_card_and_samples_alone(run: Path) -> None:
    _, files = build_folder(run, run / "publish")
    names = [path.relative_to(run / "publish").as_posix() for path in files]
    assert names == [
        "README.md",
        f"{run.name}_kohya.safetensors",
        "images/grid.png",
        "images/prompt00_seed0.png",
        "images/prompt01_seed0.png",
        "pytorch_lora_weights.safetensors",
    ]
    architecture = architecture_of("dollhouse")
    original = read_adapter(run / "lora" / "pytorch_lora_weights.safetensors", architecture)
    assert same_update(read_adapter(run / "publish" / names[1], architecture), original)
    assert same_update(read_adapter(run / "publish" / names[-1], architecture), original)


def test_the_front_matter_is_what_the_hub_reads(run: Path) -> None:
    build_folder(run, run / "publish", base_model="stable-diffusion-v1-5/stable-diffusion-v1-5")
    card = ModelCard.load(run / "publish" / "README.md")
    data = card.data
    assert data.base_model == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert data.license == "creativeml-openrail-m"
    assert {"text-to-image", "lora", "diffusers", "dreambooth"} <= set(data.tags)
    assert data.pipeline_tag == "text-to-image"
    config = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["config"]
    assert data.instance_prompt == config["subject"]["instance_prompt"]
    assert [item["output"]["url"] for item in data.widget] == ["images/prompt00_seed0.png", "images/prompt01_seed0.png"]
    assert all((run / "publish" / item["output"]["url"]).is_file() for item in data.widget)
    by_type = {result.metric_type: result for result in data.eval_results}
    assert set(by_type) >= {"clip_i", "dino", "clip_t"}
    assert by_type["clip_i"].metric_name == "CLIP-I (dollhouse encoders, clip@3391974)"
    last = json.loads((run / "summary.json").read_text(encoding="utf-8"))["final"]["eval/clip_i/dollhouse"]["value"]
    assert by_type["clip_i"].metric_value == round(last, 6)
    assert by_type["clip_i"].task_type == "text-to-image"


def test_the_card_says_what_a_reader_asks(run: Path) -> None:
    build_folder(run, run / "publish")
    text = (run / "publish" / "README.md").read_text(encoding="utf-8")
    for said in (
        "| score | last (step 100) | best | floor | ceiling |",
        "| rank | 4 |",
        "clip@3391974",
        "They are not the published CLIP-I, CLIP-T and DINO",
        "load_lora_weights",
        "A1111",
        "boothlab train",
        "whose licence is `apache-2.0`",
        "rights in the subject's photos",
        "without their consent",
    ):
        assert said in text, said


def test_the_code_on_the_card_runs_as_it_stands(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_folder(run, run / "publish")
    code = re.search(r"```python\n(.*?)\n```", (run / "publish" / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    monkeypatch.chdir(run / "publish")
    names: dict[str, Any] = {}
    with quiet_libraries():  # the miniature's files are of half precision, of which the libraries think differently
        exec(code[1].replace("height=", "num_inference_steps=1, height="), names)
    assert names["image"].size == (32, 32)


def test_publishing_again_gives_the_same_bytes(run: Path) -> None:
    def digest() -> dict[str, bytes]:
        build_folder(run, run / "publish")
        return {path.name: path.read_bytes() for path in (run / "publish").rglob("*") if path.is_file()}

    assert digest() == digest()


def test_an_sdxl_adapter_is_published_in_kohyas_numbering(tmp_path: Path) -> None:
    run = finished(tmp_path)
    xl = known_architecture("sdxl")
    adapter = random_adapter(xl, components=["unet"], endings=("mid_block.attentions.0.proj_in",))
    (run / "lora" / "pytorch_lora_weights.safetensors").unlink()
    convert(adapter, "diffusers", run / "lora" / "pytorch_lora_weights.safetensors", xl)
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    manifest["config"]["backbone"] |= {"name": "sdxl", "source": "stabilityai/stable-diffusion-xl-base-1.0"}
    (run / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    build_folder(run, run / "publish")
    with safe_open(run / "publish" / f"{run.name}_kohya.safetensors", framework="pt") as file:
        assert "lora_unet_middle_block_1_proj_in.alpha" in list(file.keys())
        assert file.metadata()["ss_base_model_version"] == "sdxl_base_v1-0"
    found = front(run / "publish" / "README.md")
    assert found["license"] == "openrail++"
    assert "stable-diffusion-xl" in found["tags"]


# What must not get out


def test_nothing_tells_where_on_whose_machine(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    home = Path.home() / "ann"
    manifest["command"] = ["boothlab", "train", f"subject.images={home}/photos", "lora.rank=4", f"paths.outputs={home}"]
    manifest["command"] += [f"+note={TOKEN}", "subject.images=relative/ann"]
    manifest["config"]["backbone"]["source"] = f"{home}/models/sd15"
    manifest["config"]["subject"]["token"] = TOKEN
    (run / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    build_folder(run, run / "publish")
    for path in (run / "publish").rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        for secret in (TOKEN, str(home), str(run.parent), "secret/model", "relative/ann"):
            assert secret.encode() not in data, (path, secret)
    text = (run / "publish" / "README.md").read_text(encoding="utf-8")
    assert "subject.images=PATH" in text
    assert "lora.rank=4" in text
    assert "base_model" not in front(run / "publish" / "README.md")


def test_the_photos_stay_out_unless_asked_and_lose_what_cameras_write(run: Path, tmp_path: Path) -> None:
    photo = tmp_path / "me.jpg"
    exif = Image.Exif()
    exif[0x010F] = "Camera of Ann"
    Image.new("RGB", (48, 32), (10, 200, 30)).save(photo, exif=exif)
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    manifest["inputs"] = {str(photo): sha256_file(photo)}
    (run / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    build_folder(run, run / "publish")
    assert not (run / "publish" / "photos").exists()
    build_folder(run, run / "publish", photos=True)
    (copied,) = (run / "publish" / "photos").iterdir()
    assert b"Camera of Ann" not in copied.read_bytes()
    assert Image.open(copied).size == (48, 32)
    photo.write_bytes(photo.read_bytes() + b"x")
    with pytest.raises(UserError, match="another file than was trained on"):
        build_folder(run, run / "publish", photos=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see /home/ann/photos/1.png now", "see PATH now"),
        ("~/photos and ../x/y and C:\\Users\\ann", "PATH and PATH and PATH"),
        ("https://huggingface.co/a/b and stabilityai/sdxl", "https://huggingface.co/a/b and stabilityai/sdxl"),
        ("batch 4 / 2", "batch 4 / 2"),
        (f"key {TOKEN}", "key [redacted]"),
    ],
)
def test_paths_and_keys_are_replaced(text: str, expected: str) -> None:
    assert without_places(text) == expected


def test_the_command_keeps_what_can_be_used_again() -> None:
    words = [
        "lora.rank=4",
        "subject.images=dollhouse:robot/6",
        "subject.images=my/photos",
        "backbone.source=/x/y",
        "-m",
    ]
    expected = ["lora.rank=4", "subject.images=dollhouse:robot/6", "subject.images=PATH", "backbone.source=PATH", "-m"]
    assert public_command(words) == expected


def test_what_a_text_tells_is_named(tmp_path: Path) -> None:
    assert told_by(f"in {tmp_path.resolve()}", tmp_path / "run") == ["the run's place"]
    assert "a key or token" in told_by(TOKEN, tmp_path / "run")
    assert told_by("a card", tmp_path / "run") == []


def test_markup_of_a_run_is_text(tmp_path: Path) -> None:
    evil = "toy | <script>alert(1)</script> `x` [a](http://b) ---"
    run = finished(tmp_path)
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    manifest["config"]["subject"] |= {"class_noun": evil, "instance_prompt": f'"quoted": {evil}\n---\nlicense: mit'}
    (run / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    build_folder(run, run / "publish")
    found = front(run / "publish" / "README.md")
    assert found["instance_prompt"] == f'"quoted": {evil} --- license: mit'
    assert found["license"] == "apache-2.0"
    text = (run / "publish" / "README.md").read_text(encoding="utf-8").split("<!-- written")[1]
    assert "of one toy \\| \\<script" in text


# Refusals


@pytest.mark.parametrize("status", ["failed", "interrupted", "running"])
def test_an_unfinished_run_is_refused(run: Path, status: str, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    (run / "summary.json").write_text(json.dumps({**summary, "status": status}), encoding="utf-8")
    assert main(["publish", f"run={run}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"is not finished (its status is {status})" in line
    assert not (run / "publish").exists()


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "which run?"),
        (["run=absent"], "is no run folder"),
        (["run=RUN", "repo=no-user"], "is no name of the hub"),
        (["run=RUN", "repo=a/b/c"], "is no name of the hub"),
        (["run=RUN", "upload=true"], "to which repository? add repo=user/name"),
        (["run=RUN", "upload=perhaps"], "is neither true nor false"),
        (["run=RUN", "licence=mit"], "did you mean license=?"),
        (["run=RUN", "out=RUN"], "is there and was not written by this command"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], argv: list[str], expected: str
) -> None:
    assert main(["publish", *(word.replace("RUN", str(run)) for word in argv)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line


def test_a_dry_run_says_how_to_upload(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["publish", f"run={run}", "repo=ann/robot"]) == 0
    said = capsys.readouterr().err
    assert "nothing was uploaded" in said
    assert "repo=ann/robot upload=true" in said


# The hub


class FakeApi:
    """What of HfApi is used, remembering what it was asked."""

    def __init__(self, private: bool = True, error: Exception | None = None):
        self.calls: list[tuple[str, Any]] = []
        self.private, self.error = private, error

    def create_repo(self, repo_id: str, **given: Any) -> None:
        self.calls.append(("create_repo", (repo_id, given)))

    def repo_info(self, repo_id: str, **given: Any) -> SimpleNamespace:
        return SimpleNamespace(private=self.private)

    def upload_folder(self, **given: Any) -> SimpleNamespace:
        if self.error:
            raise self.error
        self.calls.append(("upload_folder", given))
        return SimpleNamespace(commit_url="https://huggingface.co/ann/robot/commit/1")


@pytest.fixture
def logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub, "get_token", lambda: TOKEN)


@pytest.mark.usefixtures("logged_in")
def test_the_folder_goes_to_a_private_repository(tmp_path: Path) -> None:
    api = FakeApi()
    assert upload(tmp_path, "ann/robot", api=api) == "https://huggingface.co/ann/robot/commit/1"
    (create, (repo, given)), (name, asked) = api.calls
    assert (create, repo, given) == (
        "create_repo", "ann/robot", {"repo_type": "model", "private": True, "exist_ok": True},
    )  # fmt: skip
    assert name == "upload_folder"
    assert (asked["repo_id"], asked["folder_path"]) == ("ann/robot", str(tmp_path))
    assert TOKEN not in str(api.calls)  # the library adds it


@pytest.mark.usefixtures("logged_in")
def test_a_public_repository_is_not_taken_for_a_private_one(tmp_path: Path) -> None:
    api = FakeApi(private=False)
    with pytest.raises(UserError, match="is there already and public; say private=false"):
        upload(tmp_path, "ann/robot", api=api)
    assert [name for name, _ in api.calls] == ["create_repo"]
    upload(tmp_path, "ann/robot", private=False, api=FakeApi(private=False))


@pytest.mark.usefixtures("logged_in")
@pytest.mark.parametrize("kind", [OSError, HfHubHTTPError])
def test_a_hub_that_refuses_is_one_line_without_the_token(tmp_path: Path, kind: Any) -> None:
    said = f"401 for Bearer {TOKEN}\nmore"
    error = OSError(said)
    if kind is HfHubHTTPError:
        error = HfHubHTTPError(said, response=httpx.Response(401, request=httpx.Request("POST", "http://127.0.0.1")))
    with pytest.raises(RunFailedError) as caught:
        upload(tmp_path, "ann/robot", api=FakeApi(error=error))
    assert TOKEN not in str(caught.value)
    assert "the hub did not take it" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_token_or_network_nothing_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        upload(tmp_path, "ann/robot", api=FakeApi())
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="no token of the hub is set"):
        upload(tmp_path, "ann/robot", api=FakeApi())


@pytest.mark.parametrize("repo", ["ann/robot", "ann-1/robot.v2_x"])
def test_names_of_the_hub(repo: str) -> None:
    check_repo(repo)


def test_a_zero_adapter_is_not_published(run: Path) -> None:
    path = run / "lora" / "pytorch_lora_weights.safetensors"
    path.unlink()
    adapter = random_adapter(architecture_of("dollhouse"), components=["unet"], alphas=(0.0,))
    convert(adapter, "diffusers", path, architecture_of("dollhouse"))
    with pytest.raises(UserError, match="its update is zero"):
        build_folder(run, run / "publish")
    assert not (run / "publish").exists()

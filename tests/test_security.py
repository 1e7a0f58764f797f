"""Nothing that boothlab reads can run code, write outside its folder or leak a key; each refusal is one line."""

import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tokenize
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save as to_safetensors

import boothlab
from boothlab.cli import main
from boothlab.compose.naming import folder_name, run_name
from boothlab.compose.schemas import SCHEMAS
from boothlab.compose.typed import as_data, from_resolved, refuse_targets
from boothlab.config import NOT_HASHED
from boothlab.diffusion.backbone import load_backbone, weights_identity
from boothlab.diffusion.lora import find_adapter, read_metadata
from boothlab.dreambooth.checkpoints import newest_checkpoint
from boothlab.errors import UserError, one_line
from boothlab.evaluation.loading import load_clip, load_dino
from boothlab.files import clear_run, csv_cell, read_json, sha256_file
from boothlab.images.audit import MAX_CAPTION_BYTES, audit_folder
from boothlab.images.load import ImageError, decode_image
from boothlab.rerunning.compare import BIT_FOR_BIT as EXACT
from boothlab.rerunning.compare import Side, compare_runs
from boothlab.rerunning.origin import find_origin
from boothlab.rerunning.recipe import read_recipe
from boothlab.tracking import provenance
from boothlab.tracking.manifest import config_hash, read_manifest
from boothlab.tracking.redaction import REDACTED, redact_command, redact_text
from report_runs import Made, make_config, make_runs
from training_runs import Lab

SOURCES = sorted(Path(boothlab.__file__).parent.rglob("*.py"))
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def said(call: Callable[[], object]) -> str:
    """The one line of the UserError that a call raises."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- code


#: what could run code from data, and where it may be written nevertheless, with the reason
RISKY = re.compile(
    r"(?<!safetensors\.)torch\.load\(|\bpickle\b|\bjoblib\.load|np\.load\(|numpy\.load\(|allow_pickle|yaml\.(?:unsafe_|full_)?load\("
    r"|(?<![.\w])(?:eval|exec|compile|__import__)\(|shell\s*=\s*True|os\.(?:system|popen)|trust_remote_code\s*=\s*(?!False)"
    r"|hydra\.utils|\binstantiate\(|load_from_checkpoint|\bmarshal\b|\bshelve\b"
)
ALLOWED = {
    "dollhouse/pretrain.py": "torch.load(",  # its own blob of a pre-training, with weights_only; no command reads it
    "evaluation/efficientnet.py": "torch.load(",  # a package's own file, by its pinned SHA-256 and with weights_only
}


def code_of(path: Path) -> str:
    """A module without its comments and texts."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
    kept = [(kind, "''" if kind == tokenize.STRING else text) for kind, text, *_ in tokens if kind != tokenize.COMMENT]
    return re.sub(r" ?([.(]) ?", r"\1", tokenize.untokenize(kept))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_module_runs_code_from_data(path: Path) -> None:
    found = {match[0] for match in RISKY.finditer(code_of(path))}
    name = path.relative_to(Path(boothlab.__file__).parent).as_posix()
    assert found <= {ALLOWED.get(name, "")}


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_the_only_pickle_readers_read_weights_only(name: str) -> None:
    text = next(path for path in SOURCES if path.match(name)).read_text(encoding="utf-8")
    assert len(re.findall(r"torch\.load\(", text)) == len(re.findall(r"torch\.load\([^)]*weights_only=True", text)) == 1


def test_the_search_for_risky_code_finds_it(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text('x = torch.load(f)  # torch.load\nmodel.eval()\nprint("pickle")\neval("1")\n')
    assert [match[0] for match in RISKY.finditer(code_of(tmp_path / "a.py"))] == ["torch.load(", "eval("]


class Touch:
    """Unpickling this makes a file: what a malicious .bin would do."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.marker}",))


def evil_python(folder: Path, marker: Path) -> None:
    """Modules of every name that a config below mentions."""
    for name in ("evil.py", "unet.py", "modeling_evil.py", "pipeline.py", "evil/__init__.py"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n"
            "class Evil:\n    @classmethod\n    def from_pretrained(cls, *a, **k): return cls()\n"
        )


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def name_a_class(value: Any) -> Callable[[Path, Path], None]:
    return lambda model, marker: change_json(model / "model_index.json", unet=value)


def name_the_pipeline(value: Any) -> Callable[[Path, Path], None]:
    return lambda model, marker: change_json(model / "model_index.json", _class_name=value)


def add_a_component(model: Path, marker: Path) -> None:
    change_json(model / "model_index.json", evil=["evil", "Evil"])


def name_another_library_class(model: Path, marker: Path) -> None:
    change_json(model / "model_index.json", text_encoder=["transformers", "AutoModel"])


def shards_that_are_pickles(model: Path, marker: Path) -> None:
    torch.save({"a": Touch(marker)}, model / "unet" / "evil.bin")
    index = {"metadata": {}, "weight_map": {"a": "evil.bin"}}
    (model / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def shards_elsewhere(model: Path, marker: Path) -> None:
    index = {"metadata": {}, "weight_map": {"a": "../../x.safetensors"}}
    (model / "text_encoder" / "model.safetensors.index.json").write_text(json.dumps(index))


def pickles_beside_a_decoy(model: Path, marker: Path) -> None:
    folder = model / "text_encoder"
    (folder / "model.safetensors").rename(folder / "decoy.safetensors")
    torch.save({"a": Touch(marker)}, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (name_a_class(["evil", "Evil"]), "its model_index.json names evil.Evil for unet"),
        (name_a_class(["os", "system"]), "its model_index.json names os.system for unet"),
        (name_a_class(["diffusers", "DiffusionPipeline"]), "names diffusers.DiffusionPipeline for unet"),
        (name_a_class(["unet", "Evil", "x"]), "names unet.Evil.x for unet"),
        (name_the_pipeline(["pipeline", "Evil"]), "known are StableDiffusionPipeline"),
        (name_the_pipeline("EvilPipeline"), "is a EvilPipeline"),
        (add_a_component, "its model_index.json names evil.Evil for evil"),
        (name_another_library_class, "names transformers.AutoModel for text_encoder"),
        (shards_that_are_pickles, "names evil.bin; it may only name .safetensors files beside it"),
        (shards_elsewhere, "names ../../x.safetensors; it may only name"),
        (pickles_beside_a_decoy, "cannot be loaded"),
    ],
)
def test_a_model_folder_cannot_run_code(
    change: Callable[[Path, Path], None],
    words: str,
    pipelines: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, marker = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(pipelines["sd15"], model)
    evil_python(model, marker)
    evil_python(model / "unet", marker)
    monkeypatch.syspath_prepend(model)  # as `python -m boothlab` inside the folder would
    monkeypatch.chdir(model)
    change(model, marker)
    load = lambda: load_backbone(str(model), name="x", resolution=64, device=torch.device("cpu"))  # noqa: E731
    assert words in said(load)
    assert not marker.exists()


def test_code_that_a_config_names_is_not_looked_at(
    pipelines: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto_map` is how transformers names code that comes with a model."""
    model, marker = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(pipelines["sd15"], model)
    for part in ("text_encoder", "tokenizer", "unet"):
        evil_python(model / part, marker)
    named = {"AutoModel": "modeling_evil.Evil", "AutoConfig": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
    for file in ("text_encoder/config.json", "tokenizer/tokenizer_config.json", "unet/config.json"):
        change_json(model / file, auto_map=named, custom_pipelines={"x": {"impl": "evil.Evil"}})
    monkeypatch.chdir(model / "text_encoder")
    load_backbone(str(model), name="x", resolution=64, device=torch.device("cpu"))
    assert not marker.exists()


@pytest.mark.parametrize("load", [load_clip, load_dino])
def test_an_encoder_folder_cannot_run_code(load: Callable[[Path], object], tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "evil.Evil"}, "model_type": "clip"}))
    evil_python(tmp_path, marker)
    torch.save({"a": Touch(marker)}, tmp_path / "pytorch_model.bin")
    assert "pytorch_model.bin is pickled, which can run code" in said(lambda: load(tmp_path))
    index = {"metadata": {}, "weight_map": {"a": "pytorch_model.bin"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "names pytorch_model.bin; it may only name .safetensors" in said(lambda: load(tmp_path))
    assert not marker.exists()


@pytest.mark.parametrize("ending", [".bin", ".ckpt", ".pt", ".pth", ".pkl"])
def test_pickled_weights_are_refused_wherever_they_are_given(ending: str, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    file = tmp_path / "lora" / f"weights{ending}"
    file.parent.mkdir()
    torch.save({"a": Touch(marker)}, file)
    for path in (file, file.parent):
        assert "pickled weights can run code and are refused: convert it with" in said(lambda p=path: find_adapter(p))
    line = said(lambda: load_backbone(str(file), name="x", resolution=64, device=torch.device("cpu")))
    assert "is pickled, which can run code" in line and "from_single_file(FILE).save_pretrained(FOLDER)" in line
    assert not marker.exists()


# --- safetensors


def header(entries: Any, data: bytes = bytes(16), size: int | None = None) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def tensor(start: int, end: int, dtype: str = "F32", shape: tuple[int, ...] = (2,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


BAD_FILES = {
    "empty": b"",
    "shorter than its length": b"\x01\0",
    "header longer than the file": header({}, size=1 << 40),
    "header of 100 MB and more": header({}, size=100_000_001),
    "negative length": header({}, size=(1 << 64) - 1),
    "not JSON": header(b"{'a': 1}"),
    "not UTF-8": header(b'{"\xff": 1}'),
    "a list": header([1]),
    "data beyond the end": header({"a": tensor(0, 8), "b": tensor(8, 24, shape=(4,))}),
    "data that overlap": header({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12)),
    "a gap that hides something": header({"a": tensor(0, 8), "b": tensor(12, 20)}, bytes(20)),
    "bytes after the last tensor": header({"a": tensor(0, 8)}, bytes(16)),
    "bytes before the first tensor": header({"a": tensor(8, 16)}),
    "backward offsets": header({"a": tensor(8, 0)}),
    "shape that is not the size": header({"a": tensor(0, 16)}),
    "shape that overflows": header({"a": tensor(0, 16, shape=(2**62, 2**62))}),
    "no such type": header({"a": tensor(0, 16, dtype="PICKLE")}),
    "negative shape": header({"a": tensor(0, 16, shape=(-4,))}),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_safetensors_file_with_a_false_header_is_refused(
    name: str, pipelines: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(BAD_FILES[name])
    assert said(lambda: read_metadata(path)).startswith(f"{path}: is not a readable safetensors file (")
    model = tmp_path / "model"
    shutil.copytree(pipelines["sd15"], model)
    shutil.copy(path, model / "vae" / "diffusion_pytorch_model.safetensors")
    load = lambda: load_backbone(str(model), name="x", resolution=64, device=torch.device("cpu"))  # noqa: E731
    assert "vae/diffusion_pytorch_model.safetensors is not a whole safetensors file" in said(load)


def test_metadata_that_is_no_settings_is_refused_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    weights = {"a": torch.zeros(1)}
    for text in ("[" * 100_000, "{", '{"a": NaN'):
        path.write_bytes(to_safetensors(weights, metadata={"boothlab": text}))
        assert "its boothlab metadata is not JSON" in said(lambda: read_metadata(path))
    path.write_bytes(to_safetensors(weights, metadata={"boothlab": "[1]"}))
    assert read_metadata(path) == {}


def test_a_checkpoint_whose_notes_were_altered_is_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "step_000002"
    folder.mkdir(parents=True)
    (folder / "resume.safetensors").write_bytes(to_safetensors({"a": torch.zeros(1)}))
    good = {"step": 2, "files": {"resume.safetensors": sha256_file(folder / "resume.safetensors")}, "schedule": {}}
    (folder / "state.json").write_text(json.dumps(good))
    assert newest_checkpoint(tmp_path) == (folder, 2)
    for change in (
        {"step": 3},
        {"step": None},
        {"files": {}},
        {"files": []},
        {"files": {"../../x": ""}},
    ):
        (folder / "state.json").write_text(json.dumps(good | change))
        assert newest_checkpoint(tmp_path) is None


# --- the hub


def hub_copy(root: Path, repo: str, model: Path, commit: str) -> None:
    """What huggingface_hub leaves in its cache after a download."""
    folder = root / f"models--{repo.replace('/', '--')}"
    shutil.copytree(model, folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)


def test_a_model_of_the_hub_is_loaded_at_one_commit_and_that_is_recorded(
    pipelines: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import diffusers

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    hub_copy(tmp_path, "org/tiny", pipelines["sd15"], COMMIT)
    asked: list[Any] = []
    real = diffusers.StableDiffusionPipeline.from_pretrained

    def spy(*words: Any, **options: Any) -> Any:
        asked.append(options)
        return real(*words, **options)

    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "from_pretrained", spy)
    load_backbone("org/tiny", name="x", resolution=64, device=torch.device("cpu"))
    assert asked[0]["revision"] == COMMIT and asked[0]["use_safetensors"] is True
    assert not {"trust_remote_code", "custom_pipeline"} & asked[0].keys()
    assert weights_identity("org/tiny") == {"hub": "org/tiny", "revision": COMMIT}


def test_a_model_of_the_hub_without_a_commit_is_refused(
    pipelines: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    hub_copy(tmp_path, "org/tiny", pipelines["sd15"], "not-a-commit")
    line = said(lambda: load_backbone("org/tiny", name="x", resolution=64, device=torch.device("cpu")))
    assert "the hub does not say which commit it is" in line


# --- names and places


@pytest.mark.parametrize(
    "text",
    ["..", "../../etc", "/etc/passwd", "a/../../b", "C:\\x", "\\\\host\\x", "a\0b", ".", "", "-", "…", "a\nb", "~"],
)
def test_a_name_is_one_folder(text: str, tmp_path: Path) -> None:
    name = folder_name(text)
    assert re.fullmatch(r"[\w-][\w.-]*", name) and not name.startswith(".")
    assert (tmp_path / name).resolve().parent == tmp_path.resolve()


@settings(max_examples=50)
@given(st.text(max_size=300), st.integers(0, 2**63 - 1))
@example("\U00020000" * 80, 2**63 - 1)
def test_any_name_is_a_folder_that_a_file_system_takes(text: str, seed: int) -> None:
    config = {"name": text, "seed": seed}
    name = run_name(config)
    assert Path(name).name == name and name not in ("", ".", "..")
    assert len(name.encode()) <= 200


def test_an_experiment_cannot_leave_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only composed: the folder that Hydra would make."""
    for experiment in ("../../up", "/abs/olute", "a/../../b"):
        words = [f"experiment='{experiment}'", "name='../x'", f"paths.outputs={tmp_path}/o", "--cfg", "all"]
        assert main(["train", *words, "--resolve"]) == 0
        (folder,) = re.findall(r"^  run:\n    dir: (.+)$", capsys.readouterr().out, re.MULTILINE)
        assert Path(folder).resolve().parent.parent == tmp_path / "o"


def test_files_of_a_wandb_run_cannot_leave_their_folder(tmp_path: Path) -> None:
    """Only files of known names are fetched, whatever the server lists."""
    fetched = []

    class File:
        def __init__(self, name: str) -> None:
            self.name = name

        def download(self, root: str, replace: bool) -> Any:
            fetched.append(self.name)
            path = Path(root) / self.name
            path.write_text(json.dumps({"config": {}, "seed": 0, "run": "../../x"}))
            return path.open()

    listed = [File(name) for name in ("../../evil", "/etc/evil", "manifest.json", "x/../metrics.jsonl")]
    api = SimpleNamespace(run=lambda path: SimpleNamespace(files=lambda names: listed))
    origin = find_origin("team/project/abc", tmp_path / "d", lambda: api)
    assert fetched == ["manifest.json"] and origin.name == "abc"
    assert origin.folder == tmp_path / "d" / "team" / "project" / "abc"
    for text in ("wandb:../../x", "wandb:a/../b", "wandb:./b/c", "wandb:a/b/c/d", "https://wandb.ai/../b/runs/c"):
        with pytest.raises(UserError):
            find_origin(text, tmp_path / "d", lambda: api)


BAD_NAMES = ("..", "a/..", "", "a/.", "/", "a\0.png")


@pytest.mark.parametrize("section", ["inputs", "captions", "outputs"])
def test_a_manifest_cannot_name_a_folder_as_a_file(section: str, tmp_path: Path) -> None:
    """A rerun copies what it finds under these names."""
    for name in BAD_NAMES:
        (tmp_path / "manifest.json").write_text(json.dumps({"config": {}, section: {name: "0" * 64}}))
        assert f'its "{section}" is not what boothlab writes' in said(lambda: read_manifest(tmp_path))


def test_the_images_folder_is_only_read(tmp_path: Path) -> None:
    """Links in it lead to their files, and nothing is written there or where they point."""
    outside = tmp_path / "outside"
    folder = tmp_path / "photos"
    for place in (outside, folder):
        place.mkdir()
    Image.new("RGB", (30, 30), "red").save(outside / "real.png")
    (folder / "link.png").symlink_to(outside / "real.png")
    (folder / "gone.png").symlink_to(outside / "nothing.png")
    (folder / "folder.png").symlink_to(outside)
    (folder / "link.txt").symlink_to("/dev/zero")
    before = sorted(tmp_path.rglob("*"))
    audit = audit_folder(folder)
    assert [photo.path.name for photo in audit.accepted] == ["link.png"]
    assert (folder / "link.txt", "no ordinary file") in audit.ignored
    assert audit.accepted[0].caption is None
    assert sorted(tmp_path.rglob("*")) == before


def test_clearing_a_run_leaves_what_its_links_point_to(tmp_path: Path) -> None:
    kept = tmp_path / "elsewhere" / "grid.png"
    kept.parent.mkdir()
    kept.write_bytes(b"x")
    run = tmp_path / "run"
    run.mkdir()
    (run / "samples").symlink_to(kept.parent)
    clear_run(run)
    assert kept.read_bytes() == b"x" and list(run.iterdir()) == []


# --- saved configs


def saved(**changes: Any) -> dict[str, Any]:
    """A manifest whose hash fits its config, as somebody who wants it to pass would make it."""
    config = make_config({}, [2, 4], Made())
    for dotted, value in changes.items():
        *path, last = dotted.split("__")
        section = config
        for part in path:
            section = section[part]
        section[last] = value
    return {"config": config, "config_hash": config_hash(config, NOT_HASHED), "seed": 0, "format": 2}


SECRETIVE = (
    *("${oc.env:BOOTHLAB_TEST_SECRET}", "${oc.decode:'[1]'}", "${seed}", "${run_name:}", "\\${seed}", "a ${", "$}{"),
    *("\\\\${seed}", "${", "${${seed}}", "${oc.create:{a:1}}"),
)


def test_nothing_in_a_saved_config_is_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOOTHLAB_TEST_SECRET", "the secret")
    prompts = [f"{{token}} {{class}} {text}" for text in SECRETIVE]
    manifest = saved(tracking__tags=list(SECRETIVE), tracking__group=SECRETIVE[0], evaluation__prompts=prompts)
    for overrides in ([], ["tracking.project=other"], ["optim.lr=0.5"]):
        resolved = read_recipe(manifest, overrides).resolved
        assert resolved["tracking"]["group"] == SECRETIVE[0]
        assert resolved["tracking"]["tags"] == list(SECRETIVE)
        assert resolved["evaluation"]["prompts"] == prompts
    config, plain = from_resolved(resolved, SCHEMAS["train"])
    assert config.tracking.tags == plain["tracking"]["tags"] == list(SECRETIVE)
    assert from_resolved(plain, SCHEMAS["train"])[1] == plain


@settings(max_examples=200)
@given(st.text(alphabet="\\${}:a.'\"[]", max_size=12).filter(lambda text: text != "???"))
def test_text_is_data(text: str) -> None:
    tree = OmegaConf.create(as_data({"a": [text], "b": {"c": text}}))
    assert OmegaConf.to_container(tree, resolve=True) == {"a": [text], "b": {"c": text}}


@pytest.mark.parametrize(
    "tree",
    [
        {"_target_": "os.system"},
        {"a": {"b": [{"c": {"_target_": "os.system", "command": "x"}}]}},
        {"hydra": {"launcher": {"_target_": "os.system"}}},
        {"hydra": {"callbacks": {"x": {"_target_": "hydra_plugins.x"}}}},
        {"hydra": {"job_logging": {"handlers": {"x": {"()": "os.system", "command": "touch x"}}}}},
        {"hydra": {"job_logging": {"formatters": {"x": {"()": {"y": "os.system"}}}}}},
        {"hydra": {"job_logging": {"handlers": {"x": {"class": "logging.os.system"}}}}},
        {"hydra": {"hydra_logging": {"handlers": {"x": {"class": "subprocess.Popen", "args": ["x"]}}}}},
        {"hydra": {"hydra_logging": {"handlers": {"x": {"class": "logging.StreamHandler", "stream": "ext://evil.x"}}}}},
    ],
)
def test_no_key_of_a_config_names_code(tree: Any) -> None:
    assert said(lambda: refuse_targets(tree)).endswith("a config cannot name code to run; remove the key")


def test_a_logging_section_cannot_run_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python's logging calls what its config names, and Hydra hands it the config."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "hydra" / "job_logging").mkdir(parents=True)
    handler = {"()": "os.system", "command": f"touch {tmp_path}/ran"}
    evil = {"version": 1, "handlers": {"x": handler}, "root": {"handlers": ["x"]}}
    (tmp_path / "conf" / "hydra" / "job_logging" / "evil.yaml").write_text(json.dumps(evil))
    for more in ([], ["-m"]):
        assert main(["train", "--config-dir", "conf", "hydra/job_logging=evil", "seed=0", *more]) == 2
        assert "a config cannot name code to run" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["conf"]


# --- keys and tokens

HEX_KEY = "9f8e7d6c5b4a39281706f5e4d3c2b1a098765432"
SECRETS = {
    "WANDB_API_KEY": HEX_KEY,
    "HF_TOKEN": "hf_AbCdEfGhIjKlMnOpQrStUvWx",
    "MY_SERVICE_TOKEN": "service-token-4711",
    "DB_PASSWORD": "hunter2hunter2",
    "NGC_API_KEY": "ngc-0123456789ab",
}


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("https://user:pass-word@host/x", "pass-word"),
        ("https://user:p@ss:word@host/x", "ss:word"),
        ("https://sometokenwithoutaname@host/x.git", "sometokenwithoutaname"),
        ("--token=abc123", "abc123"),
        ("run --hf-token abc123 now", "abc123"),
        ("https://host/x?token=abc123&a=1", "abc123"),
        ("https://host/x?a=1&sig=abc123", "abc123"),
        ("api_key: abc123", "abc123"),
        ("Authorization: Bearer abcdefghijklmnopqrst", "abcdefghijklmnopqrst"),
        (f"WANDB key {HEX_KEY}", HEX_KEY),
        ("hf_AbCdEfGhIjKlMnOpQrStUvWx", "hf_Ab"),
    ],
)
def test_what_looks_like_a_key_is_redacted(text: str, secret: str) -> None:
    assert secret not in redact_text(text) and REDACTED in redact_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "subject.token=sks",
        "a photo of a {token} {class}",
        f"backbone.revision={COMMIT}",
        "git@github.com:org/repo.git",
        "ssh://git@github.com/org/repo",
        "https://huggingface.co/org/model",
        "mail me@example.com",
        "TOKENIZERS_PARALLELISM=false",
    ],
)
def test_what_a_rerun_needs_is_kept(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORT_TOKEN", "sks")
    assert redact_text(text) == text


def test_a_command_line_is_redacted_word_by_word() -> None:
    words = ["boothlab", "--token", "abc", "--api-key", "def", "--token=ghi", "subject.token=sks", "seed=0"]
    assert redact_command(words) == [
        *("boothlab", "--token", REDACTED, "--api-key", REDACTED, f"--token={REDACTED}"),
        *("subject.token=sks", "seed=0"),
    ]


@pytest.fixture
def leaky_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work tree full of secrets as the current folder, and boothlab installed somewhere else."""
    folder = tmp_path / "work"
    folder.mkdir()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    (folder / "settings.py").write_text("x = 1\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], cwd=folder, check=True)
    subprocess.run([*git, "remote", "add", "origin", "https://me:remote-pass-1@host/r.git"], cwd=folder, check=True)
    lines = [f'{name} = "{value}"' for name, value in SECRETS.items()]
    (folder / "settings.py").write_text("\n".join([*lines, 'url = "https://me:diff-pass-2@host/"', ""]))
    (folder / f"{SECRETS['HF_TOKEN']}.txt").write_text("")
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    for name in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR", "ARTIFACT_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / "wandb"))
    installed = SimpleNamespace(__file__=str(tmp_path / "site" / "boothlab.py"), __version__="1")
    monkeypatch.setattr(provenance, "boothlab", installed)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.slow
def test_no_file_of_a_run_holds_a_key(
    leaky_folder: Path, pipelines: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = Lab(leaky_folder.parent / "lab", pipelines["sd15"])
    words = lab.overrides(
        "leaky",
        "tracking.wandb=offline",
        f"tracking.group=https://me:group-pass-3@host/{SECRETS['MY_SERVICE_TOKEN']}",
        f"tracking.tags=[{SECRETS['NGC_API_KEY']}]",
        "tracking.mirrors=[csv]",
        f"sweep.about={SECRETS['HF_TOKEN']}",
        "trainer.max_steps=2",
    )
    monkeypatch.setattr(sys, "argv", ["boothlab", "--token=argument-token-4", "train", *words])
    assert main(["train", *words]) == 0
    secrets = [*SECRETS.values(), "remote-pass-1", "diff-pass-2", "group-pass-3", "argument-token-4"]
    (run,) = (lab.folder / "leaky").glob("*/[!.]*")
    manifest = read_manifest(run)
    assert manifest["git"]["of"] == "working directory" and "settings.py" in manifest["git"]["diff"]
    files = [path for path in (lab.folder / "leaky").rglob("*") if path.is_file()]
    assert {"manifest.json", "config.yaml", "overrides.yaml", "train.log"} <= {path.name for path in files}
    assert any(path.suffix == ".wandb" for path in files)
    leaks = [(path.name, secret) for path in files for secret in secrets if secret.encode() in path.read_bytes()]
    assert leaks == []
    assert not any(secret in capsys.readouterr().err for secret in secrets)


# --- reports


def test_texts_in_csv_files_are_no_formulas(tmp_path: Path) -> None:
    for text in ("=cmd|' /C calc'!A0", "+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1"):
        assert csv_cell(text) == f"'{text}"
    assert [csv_cell(text) for text in ("a=b", "", "robot", "1e-4")] == ["a=b", "", "robot", "1e-4"]
    folder = make_runs(tmp_path, [{"subject.token": "=1+1"}, {"subject.token": "sks"}])
    run = next(folder.glob("dollhouse-*"))
    run.rename(folder / "=cmd()")
    assert main(["report", str(folder), "--no-html"]) == 0
    text = (folder / "runs.csv").read_text()
    assert "'=cmd()," in text and "'=1+1" in text
    assert not re.search(r"(^|,)\"?[=@+]", text, re.MULTILINE)
    assert re.search(r",-?0\.\d+", text)  # numbers stay numbers


VECTORS = (
    "<script>document.title='ran'</script>",
    "</script><script>document.title='ran'</script>",
    '"><img src=x onerror="document.title=\'ran\'">',
    "'><svg onload=document.title='ran'>",
    "javascript:document.title='ran'",
    "<!--<script>",
    "a\u2028b\u2029c",
    "${7*7}{{7*7}}{% raw %}",
    "\\u003cscript\\u003e",
    "]]><b>",
)


EVIL_PROMPTS = [f"a {{token}} {{class}} {text.replace('{', '{{').replace('}', '}}')}" for text in VECTORS]


def evil_study(root: Path) -> Path:
    """Runs that say something evil wherever they can say anything."""
    made = Made(prompts=EVIL_PROMPTS, suffix=VECTORS[2][:40])
    chosen = [{"subject.class_noun": text, "subject.instance_prompt": text, "lora.rank": 4} for text in VECTORS[:3]]
    sweep = {"name": "evil", "title": VECTORS[1], "about": VECTORS[2], "axis": "subject.class_noun"}
    sweep |= {"published": list(VECTORS), "expect": {"clip_i": "rises"}}
    folder = make_runs(root, chosen, sweep=sweep, experiment="evil", made=made)
    for index, run in enumerate(sorted(folder.glob("dollhouse-*"))):
        change_json(run / "manifest.json", run=VECTORS[index], versions={"torch": VECTORS[0], VECTORS[2]: "1"})
        if index == 0:
            run.rename(folder / "<img src=x onerror=document.title='ran'>")
    return folder


class Markup:
    """What a browser would make of a page: its tags, and attributes that could run something."""

    def __init__(self, html: str) -> None:
        from html.parser import HTMLParser

        tags, bad = [], []

        class Reader(HTMLParser):
            def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
                tags.append(tag)
                for name, value in attrs:
                    if name.startswith("on") or (value or "").strip().lower().startswith("javascript:"):
                        bad.append((tag, name, value))
                    if name in ("src", "href") and not re.match(r"#|data:", value or ""):
                        bad.append((tag, name, value))

        Reader(convert_charrefs=True).feed(html)
        self.tags, self.bad = tags, bad


def test_no_text_of_a_run_becomes_markup(tmp_path: Path) -> None:
    folder = evil_study(tmp_path)
    assert main(["report", str(folder), "--title", VECTORS[1]]) == 0
    page = Markup((folder / "report.html").read_text(encoding="utf-8"))
    clean = make_runs(tmp_path / "clean", [{"lora.rank": 4}])
    assert main(["report", str(clean)]) == 0
    usual = Markup((clean / "report.html").read_text(encoding="utf-8"))
    assert page.bad == [] and page.tags.count("script") == usual.tags.count("script")
    assert not set(page.tags) & {"img", "svg", "iframe", "object", "embed", "base", "form"} - set(usual.tags)
    pytest.importorskip("markdown_it")
    from markdown_it import MarkdownIt

    html = MarkdownIt("commonmark", {"html": True}).enable("table").render((folder / "report.md").read_text())
    tags = set(Markup(html).tags)
    assert not tags & {"script", "img", "svg", "a", "b", "iframe"}


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    """The page of a blind comparison of two runs that say evil things."""
    made = Made(prompts=EVIL_PROMPTS, image_seeds=(0,))
    chosen = [{"subject.class_noun": VECTORS[2], "lora.rank": rank} for rank in (4, 8)]
    folder = make_runs(tmp_path, chosen, made=made)
    photo = tmp_path / "photo.png"
    Image.new("RGB", (30, 30), "red").save(photo)
    runs = sorted(folder.glob("dollhouse-*"))
    for run in runs:
        change_json(run / "manifest.json", inputs={str(photo): sha256_file(photo)})
    assert main(["report", "--compare", *map(str, runs), "--out", str(tmp_path)]) == 0
    (page,) = tmp_path.glob("compare-*.html")
    return page


def test_no_prompt_becomes_markup_in_a_comparison(comparison: Path) -> None:
    page = Markup(comparison.read_text(encoding="utf-8"))
    assert page.bad == [] and page.tags.count("script") == 2


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_no_script_of_a_run_runs_in_a_browser(comparison: Path, tmp_path: Path) -> None:
    """The same pages without their policy, so that escaping alone has to do it."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    folder = evil_study(tmp_path / "study")
    assert main(["report", str(folder), "--title", VECTORS[1]]) == 0
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for page in (folder / "report.html", comparison):
            bare = tmp_path / f"bare-{page.stem}.html"
            html = page.read_text(encoding="utf-8")
            bare.write_text(re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html), encoding="utf-8")
            for file in (page, bare):
                tab = browser.new_page()
                asked: list[str] = []
                tab.on("request", lambda request, asked=asked: asked.append(request.url))
                tab.goto(file.as_uri())
                for anchor in ("tradeoff", "curves", "parallel", "heat", "samples", "runs"):
                    tab.evaluate("(id) => document.getElementById(id)?.scrollIntoView()", anchor)
                    tab.wait_for_timeout(150)
                assert tab.title() != "ran"
                assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
                tab.close()
        browser.close()


def test_a_message_cannot_steer_the_terminal() -> None:
    assert one_line("a\x1b[2Jb\nc\u202ed\u2028e") == "a\\x1b[2Jb c\\u202ed e"


# --- images


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *extra: bytes, rows: bytes = b"\0") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


SMALL = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8))
BOMB_TEXT = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80_000_000)))
JPEG = encoded(SMALL, "JPEG")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (png(2**31 - 1, 2**31 - 1), "more than 100 megapixels"),
        (png(60_000, 60_000), "more than 100 megapixels"),
        (png(24, 40, BOMB_TEXT), "too large|damaged"),
        (JPEG.replace(struct.pack(">HH", 24, 40), struct.pack(">HH", 65535, 65535), 1), "more than 100 megapixels"),
        (b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 2**31 - 1, -(2**31), 1, 24, *[0] * 6), "megapixels"),
        (b"P6 99999999999 99999999999 255\n", "megapixels|damaged"),
        (b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x08\x01\0\0;", "megapixels"),
        (JPEG[: len(JPEG) // 2], "cut short"),
        (JPEG[: len(JPEG) // 2] + b"\xff\xd9", "cut short"),
        (JPEG[:-20] + b"\xff\xd9", "cut short"),
        (b"%PDF-1.7\n" + bytes(99), "not an image in a known format"),
        (b"<?xml version='1.0'?><svg onload='x'/>", "not an image in a known format"),
        (b"PK\3\4" + bytes(99), "not an image in a known format"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "HEIC"),
    ],
)
def test_an_image_that_is_a_trap_is_refused_quickly(data: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words) as caught:
        decode_image(data, "x.jpg")
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_in_a_png_is_never_a_picture_of_its_own() -> None:
    """Pillow does not read the checksums of image data; these are at its end, beyond the last row."""
    whole, reference = encoded(SMALL, "PNG"), np.asarray(SMALL)
    for at in range(33, len(whole) - 12, 7):
        data = bytearray(whole)
        data[at] ^= 1
        try:
            found = np.asarray(decode_image(bytes(data), "x").image)
        except ImageError:
            continue
        assert np.array_equal(found, reference)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}, {"quality": 3}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_whole_jpeg_is_never_taken_for_a_cut_one(mode: str, options: dict[str, Any]) -> None:
    for image in (SMALL, Image.new("RGB", (17, 9), (128, 128, 128)), Image.new("RGB", (1, 1))):
        data = encoded(image.convert(mode), "JPEG", **options)
        for tail in (b"", bytes(30), b"\xff\xd9", data):
            assert decode_image(data + tail, "x").image.size == image.size


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_an_animation_of_thousands_of_frames_costs_one_frame(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), (i % 256, i // 256, 0)) for i in range(1500)]
    loaded = decode_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=20), "x")
    assert loaded.image.size == (16, 16) and loaded.notes == ("several frames: only the first is used",)


def test_an_image_bomb_ends_the_command_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], pipelines: dict[str, Path]
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "bomb.jpg").write_bytes(png(60_000, 60_000))
    lab = Lab(tmp_path, pipelines["sd15"])
    assert main(["train", *lab.overrides("bomb", f"subject.images={tmp_path / 'photos'}")]) == 2
    err = capsys.readouterr().err
    assert "bomb.jpg: it has more than 100 megapixels, the limit that guards against image bombs" in err
    assert "Traceback" not in err


def test_samples_that_are_no_images_are_named_in_a_comparison(tmp_path: Path) -> None:
    sides = []
    for name in "ab":
        (tmp_path / name / "samples" / "step_000000").mkdir(parents=True)
        sides.append(Side(tmp_path / name, {"status": "finished"}))
    sample = Path("samples/step_000000/prompt00_seed0.png")
    (tmp_path / "a" / sample).write_bytes(encoded(SMALL, "PNG"))
    for data in (b"", b"\x89PNG\r\n\x1a\n", png(60_000, 60_000), encoded(SMALL, "PNG")[:90]):
        (tmp_path / "b" / sample).write_bytes(data)
        assert "cannot use the image" in said(lambda: compare_runs(*sides, EXACT))


# --- captions


@pytest.mark.parametrize(
    ("data", "caption", "words"),
    [
        (b"a dog\x1b[31m on\x07 the beach\r\n", "a dog[31m on the beach", None),
        ("\ufeffa dog".encode(), "a dog", None),
        ("a dog".encode("utf-16"), None, "is not UTF-8 text"),
        ("a dog".encode("utf-16-le"), None, "is not UTF-8 text"),
        ("a dog".encode("utf-32"), None, "is not UTF-8 text"),
        (b"\xff\xfe", None, "is not UTF-8 text"),
        (b"", None, "is empty"),
        (b"\x01\x02", None, "is empty"),
        (b"a" * (MAX_CAPTION_BYTES + 1), None, "is larger than 64 KiB"),
    ],
)
def test_a_caption_is_text_or_ignored_with_a_warning(
    data: bytes, caption: str | None, words: str | None, tmp_path: Path
) -> None:
    SMALL.save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(data)
    audit = audit_folder(tmp_path)
    assert audit.accepted[0].caption == caption
    assert (words is None and audit.warnings == []) or (words is not None and words in audit.warnings[0])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this platform")
def test_a_pipe_in_the_images_folder_does_not_hang(tmp_path: Path) -> None:
    SMALL.save(tmp_path / "a.png")
    for name in ("a.txt", "b.png"):
        os.mkfifo(tmp_path / name)
    audit = audit_folder(tmp_path)
    assert len(audit.accepted) == 1 and audit.accepted[0].caption is None


# --- JSON


def test_json_that_is_nested_absurdly_is_refused(tmp_path: Path) -> None:
    for depth in (101, 900, 100_000):
        (tmp_path / "a.json").write_text('{"config": ' + "[" * depth + "]" * depth + "}")
        assert "is not valid JSON" in said(lambda: read_json(tmp_path / "a.json"))

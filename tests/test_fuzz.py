"""Damaged, mutated and random input: a documented result or one line of a UserError, never a traceback, never a guess.

Everyday runs take a few examples of each property. The slow tests take 300 more; BOOTHLAB_FUZZ sets another number, as
in `BOOTHLAB_FUZZ=5000 pytest tests/test_fuzz.py -m slow -k images`. What a long run found stays as an @example.
"""

import copy
import io
import json
import math
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save as to_safetensors

from boothlab.commands.sweep import _primary_of, about
from boothlab.compose.run import compose
from boothlab.compose.schemas import SCHEMAS
from boothlab.compose.typed import from_resolved, leaves, load
from boothlab.config import NOT_HASHED
from boothlab.dreambooth.checkpoints import newest_checkpoint
from boothlab.errors import UserError
from boothlab.files import sha256_file
from boothlab.images.audit import audit_folder
from boothlab.images.load import decode_image
from boothlab.reporting.export import checkpoints_frame, csv_text, runs_frame
from boothlab.reporting.markdown import to_markdown
from boothlab.reporting.page import write_page
from boothlab.reporting.study import build_study
from boothlab.reporting.votes import read_votes
from boothlab.reporting.votes import to_markdown as votes_to_markdown
from boothlab.rerunning.check import check_lines
from boothlab.rerunning.circumstances import here
from boothlab.rerunning.compare import BIT_FOR_BIT, Side, compare_runs
from boothlab.rerunning.origin import find_origin
from boothlab.rerunning.plan import make_plan
from boothlab.rerunning.recipe import read_recipe
from boothlab.search.space import parse_space
from boothlab.tracking.history import read_history
from boothlab.tracking.manifest import RunStatus, config_hash, read_manifest
from boothlab.tracking.show import score_table
from boothlab.tracking.summary import make_summary
from report_runs import Made, make_config, make_runs
from test_votes import ballots, key_file, write

MORE = int(os.environ.get("BOOTHLAB_FUZZ", "300"))
Check = Callable[..., None]
PROPERTIES: dict[str, tuple[Check, tuple[Any, ...]]] = {}


def fuzz(examples: int, *strategies: Any) -> Callable[[Check], Check]:
    """A property with a few examples for every day, and the same one under its name for the slow test."""

    def wrap(check: Check) -> Check:
        PROPERTIES[check.__name__.removeprefix("test_")] = (check, strategies)
        quick = settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
        return quick(given(*strategies)(check))

    return wrap


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="boothlab-fuzz-") as name:
        yield Path(name)


def only_user_errors(call: Callable[[], Any]) -> Any:
    """What the call returns, or None if it raises a UserError, which must be one line that says something."""
    try:
        return call()
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) > 15
        return None


# --- strategies

NASTY_TEXT = st.one_of(
    st.sampled_from(
        [
            *("", " ", "???", "${seed}", "${oc.env:HOME}", "\\${x}", "null", "~", "nan", "-inf", "1e999", "0x10"),
            *(
                "../../x",
                "/",
                "..",
                "a\0b",
                "\ud800",
                "\u2028",
                "😀" * 50,
                "<script>",
                "=1+1",
                "%s%n",
                "{token}",
                "[[]]",
            ),
            *("_target_", "2026-13-45T99:99:99Z", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "a" * 5000),
        ]
    ),
    st.text(max_size=12),
)
NASTY_NUMBER = st.one_of(
    st.sampled_from([0, 1, -1, 2**31, 2**53 + 1, 2**64, 10**30, -(10**400), 0.5, 1e308, -0.0, 1e-320]),
    st.sampled_from([math.nan, math.inf, -math.inf]),
    st.integers(),
    st.floats(),
)
SCALAR = st.one_of(st.none(), st.booleans(), NASTY_NUMBER, NASTY_TEXT)
NASTY = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NASTY_TEXT, inner, max_size=3), max_leaves=6
)


def places(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything inside a JSON value."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*at, key)
        yield from places(value, (*at, key))


#: (which place, what to do there, the new value or key)
CHANGES = st.lists(
    st.tuples(st.integers(0, 10**6), st.sampled_from(["set", "delete", "rename", "double"]), NASTY),
    min_size=1,
    max_size=3,
)


def changed(tree: Any, changes: list[tuple[int, str, Any]]) -> Any:
    """A copy of a JSON value with some of its places changed."""
    tree = copy.deepcopy(tree)
    for number, how, value in changes:
        found = list(places(tree))
        if not found:
            return tree
        *path, last = found[number % len(found)]
        parent = tree
        for key in path:
            parent = parent[key]
        if how == "delete":
            del parent[last]
        elif how == "rename" and isinstance(parent, dict):
            parent[str(value)] = parent.pop(last)
        elif how == "double" and isinstance(parent, list):
            parent.append(parent[last])
        else:
            parent[last] = value
    return tree


def json_bytes(value: Any) -> bytes:
    """As a hand or another program writes it: NaN and lone surrogates too."""
    return json.dumps(value).encode()


#: (place as a share of the length, what to do, a byte or a length)
DAMAGE = st.lists(
    st.tuples(
        st.floats(0, 1), st.sampled_from(["flip", "set", "insert", "delete", "cut", "copy"]), st.integers(0, 255)
    ),
    min_size=1,
    max_size=6,
)


def damaged(data: bytes, damage: list[tuple[float, str, int]]) -> bytes:
    content = bytearray(data)
    for share, how, value in damage:
        if not content:
            break
        at = min(int(share * len(content)), len(content) - 1)
        if how == "flip":
            content[at] ^= 1 << (value % 8)
        elif how == "set":
            content[at] = value
        elif how == "insert":
            content[at:at] = bytes([value]) * (1 + value % 7)
        elif how == "delete":
            del content[at : at + 1 + value % 16]
        elif how == "copy":
            content[at:at] = content[max(0, at - value) : at]
        else:
            del content[at:]
    return bytes(content)


# --- configs

KEYS = ("lora.rank", "optim.lr", "optim.betas", "subject.token", "evaluation.prompts", "evaluation.seeds", "seed")
KEYS += ("trainer.max_steps", "trainer.threads", "lora.alpha", "prior.enabled", "backbone.resolution", "name")
KEYS += (
    "optim.schedule",
    "tracking.tags",
    "lora",
    "backbone",
    "subject",
    "paths.outputs",
    "sweep.expect",
    "experiment",
)
WORDS = st.one_of(
    st.builds(lambda key, text: f"{key}={text}", st.sampled_from(KEYS), NASTY_TEXT),
    st.builds(lambda key, value: f"{key}={value}", st.sampled_from(KEYS), NASTY),
    st.builds(lambda key, value: f"{key}={json.dumps(value)}", st.sampled_from(KEYS), NASTY),
    st.builds(lambda sign, key, text: f"{sign}{key}={text}", st.sampled_from(["+", "++", "~", ""]), NASTY_TEXT, SCALAR),
    st.builds(lambda key: f"~{key}", st.sampled_from(KEYS)),
)


@fuzz(6, st.lists(WORDS, min_size=1, max_size=3))
@example(["optim.lr=inf"])
@example(["evaluation.seeds=[100000000000000000000]"])
@example(["subject.token='a\\${seed}'"])
@example(["backbone=[False]"])
@example(["lora.rank=\n"])
def test_configs(words: list[str]) -> None:
    """Command lines: composed and checked, or one line. What passes reads back from a manifest as it was."""
    found = only_user_errors(lambda: load(compose("train", words), SCHEMAS["train"]))
    if found is None:
        return
    plain = found[1]
    assert all(math.isfinite(value) for _, value in leaves(plain) if isinstance(value, float))
    assert from_resolved(plain, SCHEMAS["train"])[1] == plain


@fuzz(40, st.lists(st.one_of(WORDS, st.text(max_size=30)), min_size=1, max_size=2))
@example(["x=tag(log,interval(1,nan))"])
@example(["x=range(0,1e400,1)"])
def test_search_spaces(words: list[str]) -> None:
    space = only_user_errors(lambda: parse_space(words))
    if space is not None and space.size:
        space.overrides(space.at(space.size - 1))


@fuzz(
    12, st.one_of(st.binary(max_size=200), NASTY.map(json_bytes), CHANGES.map(lambda c: json_bytes(changed(SWEEP, c))))
)
@example(b"\xff\xfe")
@example(b"[" * 3000)
@example(b"defaults: &a [*a]")
def test_sweep_files(data: bytes) -> None:
    with folder() as root:
        (root / "x.yaml").write_bytes(data)
        assert only_user_errors(lambda: _primary_of(root / "x.yaml")) in (None, "train", "score")
        assert "\n" not in about(root / "x.yaml")


SWEEP = {
    "defaults": ["train", "_self_"],
    "hydra": {"sweeper": {"params": {"lora.rank": "1,2"}}},
    "sweep": {"axis": "x"},
}


# --- images


@cache
def pictures() -> dict[str, bytes]:
    ys, xs = np.mgrid[:20, :28]
    rgb = Image.fromarray(np.stack([xs * 9, ys * 12, (xs * ys) % 256], axis=2).astype(np.uint8))
    alpha = rgb.convert("RGBA")
    alpha.putalpha(Image.fromarray((xs * 9).astype(np.uint8)))
    deep = Image.fromarray((xs * ys * 100).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    wanted: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("JPEG", rgb, {"exif": exif}),
        ("JPEG", rgb, {"progressive": True}),
        ("JPEG", rgb.convert("CMYK"), {}),
        ("PNG", rgb, {}),
        ("PNG", alpha, {"exif": exif}),
        ("PNG", deep, {}),
        ("PNG", rgb.convert("P"), {"transparency": 0}),
        ("PNG", rgb, {"save_all": True, "append_images": [rgb.rotate(180)]}),
        ("WEBP", alpha, {"lossless": True}),
        ("WEBP", rgb, {"save_all": True, "append_images": [rgb.rotate(180)]}),
        ("GIF", rgb, {"save_all": True, "append_images": [rgb.rotate(180)]}),
        ("TIFF", deep, {}),
        ("TIFF", rgb, {"compression": "tiff_lzw"}),
        ("BMP", rgb, {}),
        ("PPM", rgb, {}),
        ("JPEG2000", rgb, {}),
        ("AVIF", rgb, {}),
    ]
    made = {}
    for index, (kind, image, options) in enumerate(wanted):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        made[f"{kind} {index}"] = buffer.getvalue()
    return made


@cache
def pixels_of(name: str) -> Any:
    return np.asarray(decode_image(pictures()[name], "x").image)


NAMES = st.sampled_from(range(17)).map(lambda index: list(pictures())[index])


@fuzz(150, NAMES, DAMAGE)
def test_images(name: str, damage: list[tuple[float, str, int]]) -> None:
    """A damaged file is a picture or refused; a PNG, whose data have checksums, is its very picture or refused."""
    data = damaged(pictures()[name], damage)
    loaded = only_user_errors(lambda: decode_image(data, "x", max_pixels=10**6))
    if loaded is None:
        return
    assert loaded.image.mode == "RGB" and not loaded.image.info
    found = np.asarray(loaded.image)
    if loaded.format == "PNG" and found.shape == pixels_of(name).shape and {how for _, how, _ in damage} <= {"flip"}:
        transposed = "EXIF" in str(loaded.notes)
        assert transposed or np.array_equal(found, pixels_of(name)) or b"tRNS" in pictures()[name]


@fuzz(100, NAMES, st.floats(0, 1, exclude_max=True), st.booleans())
def test_truncated_images(name: str, share: float, ended: bool) -> None:
    """The beginning of a file is never another picture, such as one that ends in grey."""
    whole = pictures()[name]
    data = whole[: int(share * len(whole))]
    if ended and name.startswith("JPEG ") and name != "JPEG 1":  # a progressive one may end after any of its scans
        data += b"\xff\xd9"
    loaded = only_user_errors(lambda: decode_image(data, "x"))
    if loaded is not None:
        assert np.array_equal(np.asarray(loaded.image), pixels_of(name))


@fuzz(60, st.one_of(st.binary(max_size=60), st.text(max_size=30).map(lambda text: text.encode("utf-16", "replace"))))
@example("a dog".encode("utf-16-le"))
@example(b"\xef\xbb\xbf\xef\xbb\xbfa dog")
def test_captions(data: bytes) -> None:
    """Any bytes: the text, cleaned, or nothing and a warning."""
    with folder() as root:
        (root / "a.png").write_bytes(pictures()["PNG 3"])
        (root / "a.txt").write_bytes(data)
        audit = audit_folder(root)
    (photo,) = audit.accepted
    assert (photo.caption is None) == bool(audit.warnings)
    if photo.caption is not None:
        assert photo.caption == " ".join(photo.caption.split()) and "\0" not in photo.caption
        assert "".join(photo.caption.split()) in "".join(
            char
            for char in data.decode("utf-8-sig")
            if not char.isspace() and (ord(char) > 31 and not 126 < ord(char) < 160)
        )


# --- adapters and checkpoints


@cache
def adapter_bytes() -> bytes:
    weights = {f"unet.a.{kind}.weight": torch.arange(6.0).reshape(2, 3) for kind in ("lora_A", "lora_B")}
    settings_ = {"step": 2, "token": "sks", "backbone": {"name": "x", "source": "dollhouse", "resolution": 32}}
    return to_safetensors(weights, metadata={"format": "pt", "boothlab": json.dumps(settings_)})


@fuzz(60, DAMAGE)
def test_adapters(damage: list[tuple[float, str, int]]) -> None:
    """A rerun compares what it finds, and `sample` reads what the file says of itself."""
    from boothlab.building.sample import _sample_backbone
    from boothlab.config import SampleConfig
    from boothlab.diffusion.lora import read_metadata

    data = damaged(adapter_bytes(), damage)
    with folder() as root:
        sides = []
        for name, content in (("a", adapter_bytes()), ("b", data)):
            path = root / name / "lora" / "pytorch_lora_weights.safetensors"
            path.parent.mkdir(parents=True)
            path.write_bytes(content)
            sides.append(Side(root / name, {"status": "finished"}))
        found = only_user_errors(lambda: compare_runs(*sides, BIT_FOR_BIT))
        said = only_user_errors(lambda: read_metadata(path))
        if found is not None and found.same:
            header = int.from_bytes(data[:8], "little")
            assert data[8 + header :] == adapter_bytes()[-48:]
        if said is not None:
            assert isinstance(said, dict)
            only_user_errors(lambda: _sample_backbone(SampleConfig(run="x", prompt=["x"]), said))


@fuzz(60, CHANGES)
def test_adapter_settings(changes: list[tuple[int, str, Any]]) -> None:
    from boothlab.building.sample import _sample_backbone
    from boothlab.config import SampleConfig

    good = {"step": 2, "token": "sks", "backbone": {"name": "x", "source": "dollhouse", "resolution": 32}}
    found = only_user_errors(lambda: _sample_backbone(SampleConfig(run="x", prompt=["x"]), changed(good, changes)))
    if found is not None:
        assert isinstance(found.source, str) and isinstance(found.resolution, int)
        assert found.revision is None or isinstance(found.revision, str)


@fuzz(60, CHANGES)
@example([(0, "set", math.inf)])
def test_checkpoints(changes: list[tuple[int, str, Any]]) -> None:
    """A checkpoint whose notes were altered is passed over, unless only what resuming checks later was."""
    with folder() as root:
        where = root / "checkpoints" / "step_000002"
        where.mkdir(parents=True)
        (where / "resume.safetensors").write_bytes(adapter_bytes())
        good = {"step": 2, "files": {"resume.safetensors": sha256_file(where / "resume.safetensors")}}
        state = changed(good | {"schedule": {"last_epoch": 2}, "log_window": {}}, changes)
        (where / "state.json").write_bytes(json_bytes(state))
        found = newest_checkpoint(root)
        assert found is None or (found == (where, 2) and state["files"].items() >= good["files"].items())


# --- metrics.jsonl


ROW = {"step": 3, "time": 1.5, "train/loss": 0.25, "eval/clip_i/dollhouse": 0.5, "eval/balanced/dollhouse": "nan"}
LINES = st.one_of(
    CHANGES.map(lambda changes: json_bytes(changed(ROW, changes))),
    st.integers(0, 100).map(lambda cut: json_bytes(ROW)[:cut]),
    DAMAGE.map(lambda damage: damaged(json_bytes(ROW), damage)),
    st.just(json_bytes(ROW)),
    NASTY.map(json_bytes),
    st.binary(max_size=40),
)


@fuzz(100, st.lists(LINES, max_size=5), st.booleans())
@example([b'{"step": 1, "time": 0.5, "a": 1' + b"0" * 400 + b"}"], True)
@example([b'{"step": 1, "time": 1' + b"0" * 400 + b"}"], True)
@example([b'{"step": true, "time": 0.5, "a": 1}'], True)
@example([b'{"step": 1, "time": 0.5, "a": NaN}'], True)
@example([b'{"step": 1, "time": 0.5, "a": 1, "a": 2}'], True)
@example([json_bytes(ROW).decode().encode("utf-16")], True)
@example([b'{"step": 1, "time": 1e999, "a": 1}'], True)
@example([b'{"step": 1' + b"0" * 30 + b', "time": 0.5, "a": 1}'], True)
def test_metrics(lines: list[bytes], ended: bool) -> None:
    """Every row that is read is a whole line as a run writes it; all others are counted; the rest of boothlab copes."""
    with folder() as root:
        (root / "metrics.jsonl").write_bytes(b"\n".join(lines) + (b"\n" if ended else b""))
        content = read_history(root / "metrics.jsonl")
        written = [line for line in b"\n".join(lines).split(b"\n") if line.strip()]
        assert len(content.rows) + content.dropped == len(written)
        for row in content.rows:
            assert type(row.step) is int and row.step >= 0 and math.isfinite(row.time)
            assert all(type(value) in (int, float) for value in row.scalars.values())
        known = [json.loads(line) for line in written if line == json_bytes(ROW)]
        assert len([row for row in content.rows if row.scalars.get("train/loss") == 0.25]) >= len(known)
        make_summary(root, RunStatus.FINISHED)
        score_table(content.rows)


# --- manifests


@cache
def recorded_run() -> Path:
    """A run whose photos and weights are there, as `rerun --check` sees it."""
    root = Path(tempfile.mkdtemp(prefix="boothlab-fuzz-run-"))
    photos, model = root / "photos", root / "model"
    photos.mkdir()
    (photos / "a.png").write_bytes(pictures()["PNG 3"])
    (photos / "a.txt").write_text("a robot")
    for part in ("unet", "vae"):
        (model / part).mkdir(parents=True)
        (model / part / "config.json").write_text("{}")
    (model / "model_index.json").write_text("{}")
    config = make_config({}, [2, 4], Made())
    config["subject"]["images"], config["backbone"]["source"] = str(photos), str(model)
    config["evaluation"]["enabled"] = False
    outputs = {}
    for name in ("summary.json", "metrics.jsonl", "lora/pytorch_lora_weights.safetensors"):
        path = root / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(adapter_bytes())
        outputs[name] = sha256_file(path)
    manifest = {
        "format": 2,
        "run": "tiny-robot-s0",
        "status": "finished",
        "config": config,
        "config_hash": config_hash(config, NOT_HASHED),
        "not_hashed": list(NOT_HASHED),
        "seed": 0,
        "stream_seeds": {"noise": 1},
        "inputs": {str(photos / "a.png"): sha256_file(photos / "a.png")},
        "captions": {str(photos / "a.txt"): sha256_file(photos / "a.txt")},
        "weights": {
            "backbone": {
                path.relative_to(model).as_posix(): sha256_file(path) for path in sorted(model.rglob("*.json"))
            },
            "clip": {"hub": "org/clip", "revision": "0" * 40},
            "dino": "dino@0123456",
        },
        "scored": None,
        "parent": {"run": "x", "fork": False, "changes": {}},
        "command": ["boothlab", "train"],
        "working_directory": str(root),
        "versions": {"boothlab": "0.1.0", "torch": "2.0"},
        "machine": {"device": "cpu", "cpu": "x", "gpu": None},
        "numerics": {"torch_threads": 1, "deterministic_algorithms": True},
        "git": {"of": "boothlab", "commit": "0" * 40, "dirty": True, "diff_sha256": "0" * 64},
        "outputs": outputs,
        "adapter_tensors": "0" * 64,
        "earlier_attempts": [{"status": "failed"}],
    }
    (root / "run" / "manifest.json").write_bytes(json_bytes(manifest))
    return root / "run"


this_machine = cache(here)


def rehashed(manifest: Any) -> Any:
    """With the hash of its config as it is now, as somebody who knows how would make it."""
    with suppress(TypeError, KeyError, ValueError, AttributeError, RecursionError):
        manifest["config_hash"] = config_hash(manifest["config"], manifest.get("not_hashed") or NOT_HASHED)
    return manifest


@fuzz(12, CHANGES, st.booleans(), st.sampled_from([[], ["optim.lr=0.5"], ["seed=1"]]))
def test_manifests(changes: list[tuple[int, str, Any]], hashed: bool, overrides: list[str]) -> None:
    """What `boothlab rerun --check` does, without the words around it."""
    threads = torch.get_num_threads()
    manifest = changed(json.loads((recorded_run() / "manifest.json").read_text()), changes)
    with folder() as root:
        run = root / "run"
        shutil.copytree(recorded_run(), run)
        (run / "manifest.json").write_bytes(json_bytes(rehashed(manifest) if hashed else manifest))

        def check() -> Any:
            origin = find_origin(str(run))
            plan = make_plan(origin, read_recipe(origin.manifest, overrides, ["config"]), root / "cache")
            lines = check_lines(plan)
            only_user_errors(lambda: plan.refuse([]))
            only_user_errors(lambda: plan.settle(root / "out"))
            return lines

        before = sorted(path for path in root.parent.iterdir() if path.name != root.name)
        with patch("boothlab.rerunning.plan.here", this_machine):  # or each example would ask git four times
            lines = only_user_errors(check)
        assert lines is None or all(str(line.detail) is not None for line in lines)
        written = [path.relative_to(root).parts[0] for path in root.iterdir()]
        assert set(written) <= {"run", "cache", "out"}
        assert all(path.exists() for path in before)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def test_an_unchanged_manifest_passes() -> None:
    """Or the property above would say nothing."""
    origin = find_origin(str(recorded_run()))
    with folder() as root:
        lines = check_lines(make_plan(origin, read_recipe(origin.manifest, []), root))
    torch.use_deterministic_algorithms(False)
    assert {line.what: str(line.state) for line in lines if line.what in ("photos", "backbone", "config", "lora")} == {
        **{"photos": "same", "backbone": "same", "config": "same", "lora": "same"}
    }


# --- reports


@cache
def study_folder() -> Path:
    root = Path(tempfile.mkdtemp(prefix="boothlab-fuzz-study-"))
    sweep = {"name": "rank", "axis": "lora.rank", "expect": {"clip_i": "rises"}}
    return make_runs(root, [{"lora.rank": 4}, {"lora.rank": 8}], seeds=(0,), checkpoints=(50,), sweep=sweep)


FILES = ("manifest.json", "summary.json", "samples/step_000050/metrics.json", "sweeps/rank.json")


def report_of(where: Path, page: bool) -> None:
    study = build_study([where])
    to_markdown(study).encode("utf-8", "backslashreplace")
    for frame in (runs_frame, checkpoints_frame):
        csv_text(frame([*study.runs, *study.unfinished]))
    if page:
        write_page(study, where / "report.html")


@fuzz(15, st.sampled_from(FILES), CHANGES, st.integers(1, 15))
def test_reports(name: str, changes: list[tuple[int, str, Any]], number: int) -> None:
    """One altered file of one run: it is left out, or the report has what it says, or one line."""
    with folder() as root:
        where = root / "study"
        shutil.copytree(study_folder(), where)
        run = min(where.glob("dollhouse-*"))
        path = where / name if name.startswith("sweeps") else run / name
        path.write_bytes(json_bytes(changed(json.loads(path.read_text()), changes)))
        only_user_errors(lambda: report_of(where, page=number == 15))


@fuzz(8, st.sampled_from([*FILES, "metrics.jsonl", "samples/step_000050/grid.png"]), DAMAGE, st.integers(0, 3))
@example("metrics.jsonl", [(0.99, "cut", 0)], 0)
def test_reports_of_damaged_files(name: str, damage: list[tuple[float, str, int]], number: int) -> None:
    with folder() as root:
        where = root / "study"
        shutil.copytree(study_folder(), where)
        run = min(where.glob("dollhouse-*"))
        path = where / name if name.startswith("sweeps") else run / name
        path.write_bytes(damaged(path.read_bytes(), damage))
        for image in sorted(run.glob("samples/*/prompt*.png")):
            image.write_bytes(damaged(image.read_bytes(), damage))
        only_user_errors(lambda: report_of(where, page=number == 15))


@fuzz(80, CHANGES, CHANGES, st.booleans())
def test_ballots(votes: list[tuple[int, str, Any]], keys: list[tuple[int, str, Any]], both: bool) -> None:
    given_ = ballots({"p0": "AB", "p1": "Bu"})
    with folder() as root:
        paths = write(root, [changed(given_[0], votes), given_[1]], changed(key_file(), keys) if both else key_file())
        found = only_user_errors(lambda: read_votes(paths))
        if found is not None:
            votes_to_markdown(found).encode("utf-8", "backslashreplace")
            assert sum(one.votes_a + one.votes_b + one.votes_undecided for one in found.questions) <= 5


# --- Optuna's journal


@cache
def journal() -> bytes:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    from boothlab.search.storage import open_storage

    with folder() as root:
        study = optuna.create_study(storage=open_storage(root / "s.log"), study_name="x", directions=["maximize"])
        for index in range(3):
            trial = study.ask()
            trial.suggest_float("optim.lr", 1e-5, 1e-2, log=True)
            trial.suggest_categorical("subject", ["a", "b"])
            trial.set_user_attr("runs", ["a"])
            trial.report(0.5, 1)
            study.tell(trial, 0.1 * index)
        return (root / "s.log").read_bytes()


JOURNALS = st.one_of(
    DAMAGE.map(lambda damage: damaged(journal(), damage)),
    st.tuples(st.integers(0, 100), CHANGES).map(lambda pair: changed_line(*pair)),
    st.binary(max_size=80),
)


def changed_line(number: int, changes: list[tuple[int, str, Any]]) -> bytes:
    lines = journal().splitlines()
    at = number % len(lines)
    lines[at] = json_bytes(changed(json.loads(lines[at]), changes))
    return b"\n".join(lines) + b"\n"


@fuzz(15, JOURNALS)
def test_search_journals(data: bytes) -> None:
    """A file that Optuna did not write is refused; nothing in it is a pickle."""
    pytest.importorskip("optuna")
    from optuna.storages.journal import JournalFileBackend

    from boothlab.search.storage import open_storage

    assert not hasattr(JournalFileBackend, "load_snapshot")  # snapshots are pickles
    with folder() as root:
        (root / "s.log").write_bytes(data)

        def read() -> None:
            storage = open_storage(root / "s.log")
            for study in storage.get_all_studies():
                storage.get_all_trials(study._study_id)

        only_user_errors(read)


# --- the same for longer


@pytest.mark.slow
@pytest.mark.parametrize("name", PROPERTIES)
def test_longer(name: str) -> None:
    check, strategies = PROPERTIES[name]
    longer = settings(max_examples=MORE, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    longer(given(*strategies)(check))()


def test_the_damage_changes_something() -> None:
    """Or all of the above would say nothing."""
    chance = random.Random(0)
    data = bytes(range(200))
    hows = ["flip", "insert", "delete", "cut"]
    assert all(damaged(data, [(chance.random() * 0.9, how, 7)]) != data for how in hows)
    assert changed({"a": [1]}, [(1, "set", 2)]) == {"a": [2]}
    assert read_manifest(recorded_run())["run"] == "tiny-robot-s0"

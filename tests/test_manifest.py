"""manifest.json, summary.json, the config hash and redaction."""

import hashlib
import json
import math
import subprocess
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

import boothlab
from boothlab.errors import UserError
from boothlab.seeding import Stream, derive_seed
from boothlab.tracking import provenance
from boothlab.tracking.history import History
from boothlab.tracking.manifest import (
    FORMAT,
    RunStatus,
    close_manifest,
    config_hash,
    hash8,
    plain,
    read_manifest,
    tensors_digest,
    write_manifest,
)
from boothlab.tracking.provenance import code_state, git_state
from boothlab.tracking.redaction import REDACTED, redact, redact_text
from boothlab.tracking.summary import write_summary

WANDB_KEY = "0123456789abcdef0123456789abcdef01234567"
HF_KEY = "hf_" + "aB3" * 11
COMMIT = "89abcdef0123456789abcdef0123456789abcdef"

LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5))
NAMES = st.text(alphabet="abcdef_", min_size=1, max_size=3)
CONFIGS = st.dictionaries(
    NAMES, st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3))
)


class Method(Enum):
    LORA = "lora-v1"


def write(run_dir: Path, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "resolved_config": {"optimizer": {"lr": 1e-4}, "token": "sks"},
        "config_hash": "ab" * 32,
        "seed": 0,
        "inputs": {"photos/a.png": "cd" * 32},
        "weights": {"unet": {"sha256": "ef" * 32}},
        "command": ["boothlab", "train", "token=sks"],
        "device": "cpu",
    }
    return write_manifest(run_dir, **(arguments | changes))


# --- the hash


@given(CONFIGS)
@settings(max_examples=50, deadline=None)
def test_hash_survives_writing_and_ignores_key_order(config: dict[str, Any]) -> None:
    again = json.loads(json.dumps(config))
    turned = dict(reversed(list(config.items())))
    assert config_hash(config) == config_hash(again) == config_hash(turned)


@given(CONFIGS, CONFIGS)
@settings(max_examples=50, deadline=None)
def test_hash_differs_exactly_when_the_canonical_config_does(one: dict[str, Any], two: dict[str, Any]) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(two, sort_keys=True)
    assert (config_hash(one) == config_hash(two)) is same


def test_hash_is_the_same_in_every_version() -> None:
    digest = config_hash({"b": [1, 2.5, None], "a": {"é": True}})
    assert digest == "76199a22080b039a5007ccf197e5cece75be45f1a2ed47707d40b99e1f78370d"
    assert hash8(digest) == "76199a22"


def test_numbers_of_different_type_are_different() -> None:
    assert len({config_hash({"a": value}) for value in (1, 1.0, True, "1")}) == 4


def test_excluded_keys_do_not_count() -> None:
    base = {"lr": 1.0, "wandb": {"project": "a", "mode": "auto"}, "paths": {"out": "x"}}
    other = {"lr": 1.0, "wandb": {"project": "b", "mode": "auto"}, "paths": {"out": "y", "in": 2}}
    excluded = ["wandb.project", "paths", "not.there", "lr.below.a.leaf"]
    assert config_hash(base) != config_hash(other)
    assert config_hash(base, excluded) == config_hash(other, excluded)
    assert config_hash(base, excluded) != config_hash({**base, "lr": 2.0}, excluded)
    assert config_hash(base, excluded) != config_hash({**base, "wandb": {"mode": "offline"}}, excluded)
    assert base["wandb"] == {"project": "a", "mode": "auto"}


def test_plain_turns_enums_paths_and_tuples_into_what_json_gives_back() -> None:
    value = plain({"method": Method.LORA, "path": Path("a") / "b", "pair": (1, 2), Method.LORA: 1})
    assert value == {"method": "LORA", "path": "a/b", "pair": [1, 2], "LORA": 1}
    with pytest.raises(TypeError, match="set"):
        plain({"a": {1, 2}})


# --- the manifest


def test_manifest_holds_what_a_rerun_needs(tmp_path: Path) -> None:
    write(tmp_path)
    manifest = read_manifest(tmp_path)
    assert manifest["status"] == "running" and manifest["finished"] is None
    assert manifest["config"] == {"optimizer": {"lr": 1e-4}, "token": "sks"}
    assert manifest["stream_seeds"] == {stream.value: derive_seed(0, stream) for stream in Stream}
    assert manifest["inputs"] == {"photos/a.png": "cd" * 32}
    assert manifest["weights"] == {"unet": {"sha256": "ef" * 32}}
    assert manifest["command"] == ["boothlab", "train", "token=sks"]
    assert manifest["versions"]["boothlab"] == boothlab.__version__
    assert manifest["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert {"diffusers", "transformers", "peft", "pytorch-lightning", "wandb"} <= set(manifest["versions"])
    assert manifest["machine"]["device"] == "cpu"
    assert manifest["machine"]["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert manifest["numerics"]["torch_threads"] == torch.get_num_threads()


def test_determinism_flags_are_those_of_the_moment(tmp_path: Path) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        assert write(tmp_path)["numerics"]["deterministic_algorithms"] is True
    finally:
        torch.use_deterministic_algorithms(False)
    assert write(tmp_path)["numerics"]["deterministic_algorithms"] is False


def test_closing_sets_status_and_time_and_nothing_else(tmp_path: Path) -> None:
    before = write(tmp_path)
    close_manifest(tmp_path, RunStatus.INTERRUPTED)
    after = read_manifest(tmp_path)
    assert after["status"] == "interrupted"
    assert after["finished"] >= after["started"]
    assert {**after, "status": None, "finished": None} == {**before, "status": None, "finished": None}


def test_a_finished_run_is_closed_with_the_hashes_of_what_it_left(tmp_path: Path) -> None:
    write(tmp_path)
    files = {
        "lora/pytorch_lora_weights.safetensors": save({"a": torch.ones(2)}, {"boothlab": "{}"}),
        "metrics.jsonl": b"{}\n",
        "samples/step_000002/grid.png": b"png",
        "summary.json": b"{}",
    }
    passed_over = ("samples/drawn/mine.png", "samples/step_000002/scores.csv", "checkpoints/step_000002/state.json")
    for name, content in {**files, **dict.fromkeys(passed_over, b"x")}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    close_manifest(tmp_path, RunStatus.FAILED)
    assert (read_manifest(tmp_path)["outputs"], read_manifest(tmp_path)["adapter_tensors"]) == ({}, None)
    close_manifest(tmp_path, RunStatus.FINISHED)
    manifest = read_manifest(tmp_path)
    assert manifest["outputs"] == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    assert manifest["adapter_tensors"] == tensors_digest(tmp_path / "lora" / "pytorch_lora_weights.safetensors")


def test_a_damaged_adapter_does_not_keep_a_manifest_open(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "pytorch_lora_weights.safetensors").write_bytes(b"not safetensors")
    close_manifest(tmp_path, RunStatus.FINISHED)
    assert read_manifest(tmp_path)["adapter_tensors"] is None


def test_the_digest_of_tensors_is_of_their_numbers_names_and_types_alone(tmp_path: Path) -> None:
    def digest(tensors: dict[str, torch.Tensor], **said: str) -> str:
        (tmp_path / "x.safetensors").write_bytes(save(tensors, said or None))
        return tensors_digest(tmp_path / "x.safetensors")

    one, two = torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])
    first = digest({"a": one, "b": two}, run="one")
    assert first == digest({"b": two, "a": one}, run="another", more="words") == digest({"a": one, "b": two})
    others = [
        digest({"a": torch.tensor([1.0, math.nextafter(2.0, 3.0)], dtype=torch.float64), "b": two}),
        digest({"a": one, "c": two}),
        digest({"a": one}),
        digest({"a": one.reshape(2, 1), "b": two}),
        digest({"a": one.view(torch.int32), "b": two}),
        digest({"a": torch.tensor([1.0, 2.0000002]), "b": two}),
    ]
    assert len({first, *others}) == len(others) + 1
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(UserError, match="is not a safetensors file"):
        tensors_digest(tmp_path / "x.safetensors")


def test_what_the_builder_adds_is_kept(tmp_path: Path) -> None:
    parent = {"run": "other", "config_hash": "ab" * 32, "fork": True, "changes": {"seed": {"from": 0, "to": 1}}}
    write(
        tmp_path / "run",
        captions={str(Path("photos") / "a.txt"): "12" * 32},
        weights={"adapter": {"lora/x.safetensors": "34" * 32}},
        not_hashed=("paths", "threads"),
        scored={"seed": 3, "method": Method.LORA},
        parent=parent,
    )
    manifest = read_manifest(tmp_path / "run")
    assert manifest["format"] == 2 and manifest["run"] == "run"
    assert manifest["captions"] == {"photos/a.txt": "12" * 32}
    assert manifest["weights"] == {"adapter": {"lora/x.safetensors": "34" * 32}}
    assert manifest["not_hashed"] == ["paths", "threads"]
    assert manifest["scored"] == {"seed": 3, "method": "LORA"}
    assert manifest["parent"] == parent
    assert manifest["working_directory"] == Path.cwd().as_posix()
    plain_run = write(tmp_path / "plain")
    assert (plain_run["captions"], plain_run["scored"], plain_run["parent"]) == ({}, None, None)


def test_a_manifest_of_a_later_format_is_refused_and_of_an_earlier_one_read(tmp_path: Path) -> None:
    write(tmp_path)
    manifest = read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "format": FORMAT + 1}))
    with pytest.raises(UserError, match=f"has format {FORMAT + 1}, and boothlab .* reads up to {FORMAT}; update"):
        read_manifest(tmp_path)
    old = {key: value for key, value in manifest.items() if key not in ("run", "captions", "outputs", "parent")}
    (tmp_path / "manifest.json").write_text(json.dumps({**old, "format": 1}))
    assert read_manifest(tmp_path)["config"] == manifest["config"]


def test_an_earlier_attempt_is_remembered(tmp_path: Path) -> None:
    write(tmp_path)
    close_manifest(tmp_path, RunStatus.FAILED)
    write(tmp_path)
    close_manifest(tmp_path, RunStatus.INTERRUPTED)
    attempts = write(tmp_path)["earlier_attempts"]
    assert [attempt["status"] for attempt in attempts] == ["failed", "interrupted"]


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"config": 1}'])
def test_a_folder_without_a_readable_manifest_is_a_user_error(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match="manifest"):
        read_manifest(tmp_path)


def test_no_environment_and_no_key_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-key-of-no-known-form")
    monkeypatch.setenv("BOOTHLAB_TEST_VARIABLE", "value-from-the-environment")
    config = {"wandb": {"api_key": "abc"}, "note": f"{HF_KEY} and a-key-of-no-known-form", "list": [WANDB_KEY]}
    command = ["boothlab", f"hf_token={HF_KEY}", "--api-key", "short", f"+key={WANDB_KEY}", "seed=1"]
    write(tmp_path, resolved_config=config, command=command)
    text = (tmp_path / "manifest.json").read_text()
    for secret in (HF_KEY, WANDB_KEY, "a-key-of-no-known-form", "value-from-the-environment", '"abc"', '"short"'):
        assert secret not in text
    assert read_manifest(tmp_path)["command"][-1] == "seed=1"


# --- redaction


@pytest.mark.parametrize(
    "text",
    [
        WANDB_KEY,
        f"WANDB_API_KEY={WANDB_KEY}",
        f"wandb.login(key='{WANDB_KEY}')",
        f"local-{WANDB_KEY}",
        "wandb_v1_" + "Ab1_" * 15,
        HF_KEY,
        f"+    token = '{HF_KEY}'",
        "api_key: s3cr3t",
        '"password": "s3cr3t"',
        "https://user:s3cr3t@host/x",
        "ghp_" + "aB3" * 12,
    ],
)
def test_secrets_are_redacted(text: str) -> None:
    clean = redact_text(text)
    assert REDACTED in clean
    for secret in (WANDB_KEY, HF_KEY, "s3cr3t", "Ab1_Ab1_", "aB3aB3"):
        assert secret not in clean


@pytest.mark.parametrize(
    "text",
    [
        "token=sks",
        "eval/clip_t_with_token",
        "data.class_token: dog",
        "ef" * 32,
        f"backbone.revision={COMMIT}",
        f"/hub/models--x/snapshots/{COMMIT}/unet",
        f"pip install git+https://github.com/a/b@{COMMIT}",
        "a photo of the secret garden",
        "step 20 of 400",
    ],
)
def test_what_a_rerun_needs_is_kept(text: str) -> None:
    assert redact_text(text) == text


def test_redaction_of_nested_values_looks_at_their_names() -> None:
    value = {"revision": COMMIT, "a": [{"api_key": "x"}, WANDB_KEY], "token": "sks", "secret_key": "", "n": 1}
    assert redact(value) == {
        "revision": COMMIT,
        "a": [{"api_key": REDACTED}, REDACTED],
        "token": "sks",
        "secret_key": "",
        "n": 1,
    }


# --- git


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("one = 1\n")
    git(tmp_path, "add", "code.py")
    return tmp_path


def test_git_state_has_commit_diff_and_untracked_names(repository: Path) -> None:
    git(repository, "commit", "-qm", "first")
    clean = git_state(repository)
    assert clean is not None
    assert clean["commit"] == git(repository, "rev-parse", "HEAD")
    assert (clean["dirty"], clean["diff"], clean["untracked"]) == (False, "", [])

    (repository / "code.py").write_text(f"one = 2\nkey = '{WANDB_KEY}'\n")
    (repository / "nëw.txt").write_text("x")
    dirty = git_state(repository)
    assert dirty is not None
    assert dirty["dirty"] is True and "+one = 2" in dirty["diff"] and "-one = 1" in dirty["diff"]
    assert WANDB_KEY not in json.dumps(dirty)
    assert dirty["untracked"] == ["nëw.txt"]


def test_the_code_is_that_of_the_package_or_else_of_the_working_directory(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "__init__.py").write_text("")
    monkeypatch.setattr(boothlab, "__file__", str(repository / "__init__.py"))
    monkeypatch.chdir(repository)
    installed = code_state()  # as in a .venv within somebody's repository: the file is not part of it
    assert installed is not None and installed["of"] == "working directory"
    git(repository, "add", "__init__.py")
    git(repository, "commit", "-qm", "first")
    checkout = code_state()
    assert checkout is not None and checkout["of"] == "boothlab"
    assert checkout["commit"] == git(repository, "rev-parse", "HEAD")
    outside = tmp_path_factory.mktemp("outside")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(outside.parent))
    monkeypatch.setattr(boothlab, "__file__", str(outside / "__init__.py"))
    monkeypatch.chdir(outside)
    assert code_state() is None


def test_a_huge_diff_is_cut(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(repository, "commit", "-qm", "first")
    monkeypatch.setattr(provenance, "MAX_DIFF_BYTES", 1000)
    (repository / "code.py").write_text("x = 'é'\n" * 500)
    state = git_state(repository)
    assert state is not None
    assert state["diff_truncated"] is True
    assert len(state["diff"].encode()) <= 1005


def test_git_state_without_commit_repository_or_git(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    unborn = git_state(repository)
    assert unborn is not None and unborn["commit"] is None
    outside = tmp_path_factory.mktemp("outside")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(outside.parent))
    assert git_state(outside) is None
    monkeypatch.setenv("PATH", "")
    assert git_state(repository) is None


# --- the summary


def history(run_dir: Path, rows: list[tuple[int, dict[str, float]]]) -> None:
    file = History(run_dir / "metrics.jsonl")
    for step, scalars in rows:
        file.log(step, scalars)
    file.close()


def test_summary_of_a_run(tmp_path: Path) -> None:
    rows = [
        (0, {"eval/clip_i": 0.4, "eval/clip_t": 0.9, "eval/clip_i_ceiling": 0.95, "eval/sampling_seconds": 2.0}),
        (100, {"train/loss": 0.5, "eval/clip_i": 0.8, "eval/clip_t": 0.3, "eval/pres": 0.2, "train/step_seconds": 9.0}),
        (200, {"train/loss": 0.4, "eval/clip_i": 0.8, "eval/pres": 0.1, "eval/sampling_seconds": 3.0}),
        (300, {"train/loss": math.nan, "eval/clip_i": 0.7, "eval/pres": 0.3, "train/lr_unet": 1e-4}),
    ]
    history(tmp_path, rows)
    write_summary(tmp_path, RunStatus.FINISHED, counts={"images": 6}, timings={"prior_seconds": 4.0})
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["error"] is None
    assert summary["final"]["train/loss"] == {"value": "nan", "step": 300}
    assert summary["final"]["eval/clip_t"] == {"value": 0.3, "step": 100}
    assert summary["best"] == {
        "train/loss": {"value": 0.4, "step": 200},
        "eval/clip_i": {"value": 0.8, "step": 100},  # the first step that reached it
        "eval/clip_t": {"value": 0.3, "step": 100},  # step 0 is the baseline, not a result
        "eval/pres": {"value": 0.1, "step": 200},  # lower is better
    }
    assert summary["baselines"] == {"eval/clip_i": 0.4, "eval/clip_t": 0.9}  # scores only
    assert summary["ceilings"] == {"eval/clip_i_ceiling": 0.95}
    assert summary["timings"]["sampling_seconds"] == 5.0
    assert summary["timings"]["median_step_seconds"] == 9.0
    assert summary["timings"]["prior_seconds"] == 4.0
    assert summary["counts"] == {"rows": 4, "dropped_lines": 0, "last_step": 300, "images": 6}


def test_step_0_counts_where_nothing_was_trained(tmp_path: Path) -> None:
    history(tmp_path, [(0, {"eval/clip_i": 0.4}), (0, {"eval/clip_i": 0.6}), (0, {"eval/clip_i": math.inf})])
    best = write_summary(tmp_path, RunStatus.FINISHED)["best"]
    assert best == {"eval/clip_i": {"value": 0.6, "step": 0}}


@pytest.mark.parametrize("steps", [(0, 5), (5, 0)])
def test_the_untrained_model_is_never_the_best_where_something_was_trained(
    tmp_path: Path, steps: tuple[int, int]
) -> None:
    history(tmp_path, [(step, {"eval/clip_t": 0.9 if step == 0 else 0.3}) for step in steps])
    assert write_summary(tmp_path, RunStatus.FINISHED)["best"] == {"eval/clip_t": {"value": 0.3, "step": 5}}


def test_summary_of_a_run_that_failed_before_its_first_row(tmp_path: Path) -> None:
    write_summary(tmp_path, RunStatus.FAILED, error=f"ValueError: bad key {WANDB_KEY}")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert summary["error"] == f"ValueError: bad key {REDACTED}"
    assert summary["best"] == {} and summary["counts"]["last_step"] is None

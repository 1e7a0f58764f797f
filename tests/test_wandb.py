"""The W&B mirror: what is recorded offline, what a server gets, and that no failure reaches the training."""

import json
import math
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from boothlab.errors import UserError
from boothlab.tracking.wandb import KEPT_FILES, WandbMirror, WandbMode, has_key, resolve_mode
from wandb_double import GOOD_KEY, Server, ServerRun, wandb_server

WANDB = [sys.executable, "-m", "wandb"]
SCALAR_KEYS = {"train/loss", "eval/clip_i", "eval/pres"}
CONFIG_SENT = {"optimizer": {"lr": 0.5}, "token": "sks", "hub": {"api_key": "[redacted]"}}
LOGGED = [
    (10, "eval/clip_i", "0.75"),
    (10, "eval/pres", "nan"),
    (10, "train/loss", "0.25"),
    (20, "eval/clip_i", "0.5"),
    (20, "train/loss", "0.5"),
]


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No key, no settings and no folder of the user is seen; W&B's global state ends with the test."""
    import wandb

    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_PROJECT", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("DIR", "DATA_DIR", "CACHE_DIR", "CONFIG_DIR"):
        folder = tmp_path / "wandb_home" / name.lower()
        folder.mkdir(parents=True)
        monkeypatch.setenv(f"WANDB_{name}", str(folder))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens there
    wandb.teardown()  # an earlier test may have left a singleton that remembers another environment
    yield
    wandb.teardown()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with wandb_server() as double:
        monkeypatch.setenv("WANDB_BASE_URL", double.url)
        monkeypatch.setenv("WANDB_API_KEY", GOOD_KEY)
        yield double


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (6, 4), (0, 128, 255)).save(tmp_path / "toy.png")
    return tmp_path / "toy.png"


def started(run_dir: Path, mode: str = "auto", name: str | None = None, **timeouts: float) -> WandbMirror:
    mirror = WandbMirror(**timeouts)
    config = {"optimizer": {"lr": 0.5}, "token": "sks", "hub": {"api_key": "secret"}}
    mirror.start(run_dir, "toys", "study", ["lora", "x" * 80], name, mode, config)
    return mirror


def log_everything(mirror: WandbMirror, picture: Path) -> None:
    mirror.log(10, {"train/loss": 0.25, "eval/clip_i": 0.75})
    mirror.log(20, {"train/loss": 0.5, "eval/clip_i": 0.5})
    mirror.log(10, {"eval/pres": math.nan})  # late: W&B would drop it if its own step were used
    mirror.log_images(20, "samples/grid", [(picture, "a toy"), (picture, "ein Spielzeug ü")])
    mirror.log_table(20, "eval/scores", ["prompt", "image", "file"], [["a toy", picture, Path("a") / "b.txt"]])
    mirror.log_artifact("adapter", "model", [picture], {"rank": 4})
    mirror.summarize({"best/eval/clip_i": 0.75})


def records(run_folder: Path) -> list[dict[str, Any]]:
    command = [*WANDB, "leet", "inspect", "--json", str(run_folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return [json.loads(line) for line in done.stdout.splitlines()]


def of_type(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record for record in found if record["type"] == kind]


def rows_by_step(rows: list[dict[str, Any]]) -> list[tuple[int, str, str]]:
    """Every scalar as (step, key, text of the value); the text makes NaN equal to itself."""
    scalars = ((row["trainer/global_step"], key, value) for row in rows for key, value in row.items())
    return sorted((step, key, str(value).lower()) for step, key, value in scalars if key in SCALAR_KEYS)


def test_offline_run_holds_everything(tmp_path: Path, picture: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="boothlab")
    run_dir = tmp_path / "rün 1"
    run_dir.mkdir()
    mirror = started(run_dir)
    assert mirror.mode is WandbMode.OFFLINE  # auto, and there is no key
    folder = mirror.sync_dir
    assert folder is not None and folder.parent == run_dir / "wandb"
    log_everything(mirror, picture)
    mirror.finish(0)

    found = records(folder)
    run = of_type(found, "run")[0]["run"]
    assert run["config"]["update"] | {"_wandb": {}} == {**CONFIG_SENT, "_wandb": {}}
    assert (run["project"], run["run_group"], run["display_name"]) == ("toys", "study", "rün 1")
    assert run["tags"] == ["lora", "x" * 64]
    history = [record["history"]["item"] for record in of_type(found, "history")]
    assert rows_by_step(history) == LOGGED
    images = next(item for item in history if "samples/grid.captions" in item)
    assert (images["samples/grid.captions"], images["trainer/global_step"]) == (["a toy", "ein Spielzeug ü"], 20)
    assert len(list((folder / "files/media/images/samples").iterdir())) == 1
    table = json.loads(next((folder / "files/media/table/eval").iterdir()).read_text())
    assert table["columns"] == ["prompt", "image", "file"]
    assert table["data"][0][2] == "a/b.txt"
    shown = next(item["artifact"] for item in of_type(found, "artifact") if item["artifact"]["type"] == "run_table")
    assert [entry["path"].rpartition("/")[2] for entry in shown["manifest"]["contents"]] == [
        "scores.table.json",
        "toy.png",
    ]
    adapter = next(
        record["artifact"] for record in of_type(found, "artifact") if record["artifact"]["name"] == "adapter"
    )
    assert (adapter["type"], json.loads(adapter["metadata"])) == ("model", {"rank": 4})
    assert [entry["path"] for entry in adapter["manifest"]["contents"]] == ["toy.png"]
    assert [record["exit"]["exit_code"] for record in of_type(found, "exit")] == [0]
    assert {"best/eval/clip_i": 0.75}.items() <= merged_summary(found).items()
    assert [record.getMessage() for record in caplog.records if record.name.startswith("boothlab")] == [
        f"W&B recorded this run offline. Send it with: wandb sync '{folder}'"
    ]


def test_the_manifest_goes_along_and_a_copy_of_it_stays_offline(tmp_path: Path) -> None:
    mirror = started(tmp_path)
    (tmp_path / "manifest.json").write_text('{"seed": 0}')
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    (tmp_path / "lora").mkdir()
    folder = mirror.sync_dir
    mirror.finish(0)
    assert folder is not None
    kept = {path.name: path for path in (folder / "files").iterdir() if path.name in KEPT_FILES}
    assert {name: path.read_text() for name, path in kept.items()} == {
        "manifest.json": '{"seed": 0}',
        "metrics.jsonl": '{"step": 1}\n',
    }
    assert not any(path.is_symlink() for path in kept.values())
    named = [item["path"] for record in of_type(records(folder), "files") for item in record["files"]["files"]]
    assert {"manifest.json", "metrics.jsonl"} <= set(named)


def merged_summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for record in of_type(found, "summary"):
        merged |= record["summary"].get("update", {})
    return merged


def test_every_metric_is_defined_on_the_step_axis_and_two_runs_do_not_merge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from boothlab.tracking.metrics import REGISTRY

    monkeypatch.setenv("WANDB_RUN_ID", "leftover")
    folders = []
    for index in range(2):
        run_dir = tmp_path / f"job{index}"
        run_dir.mkdir()
        mirror = started(run_dir)
        mirror.log(index, {"train/loss": index})
        folders.append(mirror.sync_dir)
        if index == 1:
            mirror.finish(1)  # the first is never finished, like a job that crashed outside of its tracker
    found = [records(folder) for folder in folders if folder]
    runs = [of_type(records, "run")[0]["run"] for records in found]
    assert [run["display_name"] for run in runs] == ["job0", "job1"]
    assert len({run["run_id"] for run in runs} | {"leftover"}) == 3
    for index, of_one in enumerate(found):
        assert [record["history"]["item"]["train/loss"] for record in of_type(of_one, "history")] == [index]
    assert of_type(found[1], "exit")[0]["exit"]["exit_code"] == 1
    defined = {
        record["metric"].get("name"): record["metric"].get("step_metric") for record in of_type(found[0], "metric")
    }
    assert {key: defined.get(key) for key in REGISTRY} == dict.fromkeys(REGISTRY, "trainer/global_step")


def test_online_run_reaches_the_server(tmp_path: Path, server: Server, picture: Path) -> None:
    mirror = started(tmp_path, name="my run")
    assert mirror.mode is WandbMode.ONLINE  # auto, and a key is set
    log_everything(mirror, picture)
    (tmp_path / "manifest.json").write_text('{"seed": 0}')
    mirror.finish(0)
    (run,) = server.runs.values()
    assert_run_arrived(server, run, "my run")
    assert server.uploads[f"/store/{run.name}/manifest.json"] == b'{"seed": 0}'
    assert run.exit_code == 0
    adapter = next(item for item in server.artifacts.values() if item.fields["artifactCollectionName"] == "adapter")
    assert adapter.committed
    assert server.uploads[adapter.files["toy.png"]] == picture.read_bytes()


def assert_run_arrived(server: Server, run: ServerRun, name: str) -> None:
    assert (run.fields["project"], run.fields["groupName"], run.fields["displayName"]) == ("toys", "study", name)
    assert run.config_values == CONFIG_SENT
    assert rows_by_step(run.history) == LOGGED
    assert any(f"/store/{run.name}/media/images/samples/grid" in address for address in server.uploads)


@pytest.mark.slow
def test_unreachable_server_means_offline_and_the_printed_command_sends_the_run(
    tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", GOOD_KEY)
    start = time.monotonic()
    mirror = started(tmp_path, name="my run")
    assert time.monotonic() - start < 15
    assert mirror.mode is WandbMode.OFFLINE
    log_everything(mirror, picture)
    mirror.finish(0)
    first, second = warnings(caplog)
    assert "offline" in first and "refused" in first
    command = shlex.split(second.partition(": ")[2])
    assert command[:2] == ["wandb", "sync"]
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        subprocess.run([*WANDB, *command[1:]], check=True, capture_output=True, timeout=60)
        (run,) = server.runs.values()
        assert_run_arrived(server, run, "my run")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record for record in caplog.records if record.name.startswith("boothlab")]
    return [record.getMessage() for record in found if record.levelname == "WARNING"]


def test_bad_key_means_offline(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "b" * 40)
    mirror = started(tmp_path)
    assert mirror.mode is WandbMode.OFFLINE
    mirror.log(0, {"train/loss": 1.0})
    mirror.finish(0)
    assert "not logged in" in warnings(caplog)[0]
    assert server.runs == {}


def test_online_without_a_key_does_not_ask_for_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mirror = started(tmp_path, mode="online")
    assert mirror.mode is WandbMode.OFFLINE
    mirror.finish(0)
    assert "wandb login" in warnings(caplog)[0]


@pytest.mark.slow
def test_server_dying_in_the_middle_costs_no_time_and_loses_no_row(
    tmp_path: Path, server: Server, picture: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = started(tmp_path, finish_timeout=2)
    folder = mirror.sync_dir
    assert folder is not None
    server.kill()
    start = time.monotonic()
    log_everything(mirror, picture)
    assert time.monotonic() - start < 0.5  # a table or an artifact alone would wait 19 s for the server
    mirror.finish(0)
    assert time.monotonic() - start < 8
    assert warnings(caplog)[-1].endswith(f"Send it with: wandb sync --include-online {folder}")
    history = [record["history"]["item"] for record in of_type(records(folder), "history")]
    assert rows_by_step(history) == LOGGED


def test_failures_are_reported_once_and_do_not_reach_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = started(tmp_path)
    for step in range(3):
        mirror.log_images(step, "samples/grid", [(tmp_path / "missing.png", "")])
        mirror.log_artifact("adapter", "model", [tmp_path / "missing"], {})
    mirror.log(3, {"train/loss": 1.0})
    folder = mirror.sync_dir
    mirror.finish(0)
    mirror.log(4, {"train/loss": 1.0})  # after the end: ignored
    mirror.finish(0)
    (warning,) = warnings(caplog)
    assert "samples/grid" in warning and "missing.png" in warning
    assert folder is not None
    assert [record["history"]["item"]["train/loss"] for record in of_type(records(folder), "history")] == [1.0]


def test_a_config_that_cannot_be_sent_only_switches_wandb_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mirror = WandbMirror()
    mirror.start(tmp_path, "toys", None, [], None, "offline", {"a": {1, 2}})
    mirror.log(0, {"train/loss": 1.0})
    mirror.finish(0)
    (warning,) = warnings(caplog)
    assert "off for this run" in warning


def test_disabled_writes_nothing(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    mirror = started(run_dir, mode="disabled")
    mirror.log(0, {"train/loss": 1.0})
    mirror.finish(0)
    assert list(run_dir.iterdir()) == []


def test_unknown_mode_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"auto, offline, online, disabled.*'onlin'"):
        started(tmp_path, mode="onlin")


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [("offline", "offline"), ("dryrun", "offline"), ("disabled", "disabled"), ("online", "online"), (None, "online")],
)
def test_auto_follows_wandb_mode_and_then_the_key(
    asked: str | None, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", GOOD_KEY)
    if asked is not None:
        monkeypatch.setenv("WANDB_MODE", asked)
    assert resolve_mode(WandbMode.AUTO) == wanted
    assert resolve_mode(WandbMode.OFFLINE) is WandbMode.OFFLINE


def test_a_key_in_netrc_counts(tmp_path: Path) -> None:
    assert has_key() is False
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1:9 login user password {GOOD_KEY}\n")
    (tmp_path / "netrc").chmod(0o600)
    assert has_key() is True


def test_importing_tracking_is_light() -> None:
    modules = "boothlab.tracking.run, boothlab.tracking.manifest, boothlab.tracking.wandb"
    heavy = "{'torch', 'wandb', 'numpy', 'pytorch_lightning', 'tensorboard'} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, {modules}; print({heavy})"], capture_output=True, text=True
    )
    assert done.stdout == "set()\n", done.stderr

"""Multiruns by every launcher: the same numbers, no job stopped by another, and nothing finished run again."""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

import boothlab
from boothlab.cache import Cache
from boothlab.cli import main
from boothlab.dreambooth.callbacks import StepCallback
from training_runs import ADAPTER, Lab, build, go, history, same_adapter, summary

FAKE_SLURM = Path(__file__).parent / "fake_slurm"
#: launcher → the plugin's own launcher below it, and the extra that brings it
LAUNCHERS = {
    "boothlab_joblib": ("joblib", "joblib"),
    "boothlab_local": ("submitit_local", "submitit"),
    "boothlab_slurm": ("submitit_slurm", "submitit"),
    "boothlab_ray": ("ray", "ray"),
}
TARGETS = ("[to_k,to_q]", "[to_v]", "[to_q]")
NO_SUCH = "[no_such_layer]"
PATIENCE_S = 1800


def need(launcher: str) -> None:
    """Skip the test where the launcher's extra is not installed."""
    extra = LAUNCHERS[launcher][1]
    pytest.importorskip(f"hydra_plugins.hydra_{extra}_launcher", reason=f"needs the extra {extra}")


# --- the bench ----------------------------------------------------------------------------------------------------


@dataclass
class Multirun:
    """What one command left: its exit code, what it printed, and its run folders."""

    process: subprocess.CompletedProcess[str]
    outputs: Path
    words: list[str]

    @property
    def printed(self) -> str:
        return self.process.stdout + self.process.stderr

    def runs(self, status: str = "finished") -> dict[str, Path]:
        """The run folders of a status, by name."""
        folders = [path.parent for path in sorted(self.outputs.glob("*/*/summary.json"))]
        return {folder.name: folder for folder in folders if summary(folder)["status"] == status}


@dataclass
class Bench:
    """A folder to type commands in, as a user does: each in a process of its own, with relative outputs."""

    lab: Lab

    def words(self, name: str, *extra: str) -> list[str]:
        """`train -m` with outputs in the folder `name` and a cache that is cold at first, `name`-cache."""
        return ["train", "-m", *self.lab.overrides(name, f"paths.outputs={name}", f"paths.cache={name}-cache", *extra)]

    def start(self, name: str, *extra: str, **environment: str) -> "subprocess.Popen[str]":
        """Run it without waiting."""
        return subprocess.Popen(
            [sys.executable, "-m", "boothlab", *self.words(name, *extra)],
            cwd=self.lab.folder,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def train(self, name: str, *extra: str, **environment: str) -> Multirun:
        """Run it and wait."""
        words = self.words(name, *extra)
        process = subprocess.run(
            [sys.executable, "-m", "boothlab", *words],
            cwd=self.lab.folder,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        return Multirun(process, self.lab.folder / name, words)

    @property
    def environment(self) -> dict[str, str]:
        """The package that is tested, one thread, and no folder of the user's."""
        isolated = {
            name: str(self.lab.folder / "wandb") for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR")
        }
        package = str(Path(boothlab.__file__).parents[1])
        return {**os.environ, **isolated, "PYTHONPATH": package, "OMP_NUM_THREADS": "1", "COLUMNS": "400"}


def sweep(*targets: str) -> tuple[str, ...]:
    """The sweep of these tests: jobs that share class images, so that they race for them in the cold cache."""
    steps = ("trainer.max_steps=2", "trainer.checkpoint_every=1")
    return (*steps, "prior.enabled=true", f"lora.unet_targets={','.join(targets)}")


@pytest.fixture(scope="module")
def bench(pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(Lab(tmp_path_factory.mktemp("lab"), pipelines["sd15"]))


@pytest.fixture(scope="module")
def basic(bench: Bench) -> Multirun:
    """The three runs that those of every other launcher are compared with."""
    done = bench.train("basic", *sweep(*TARGETS))
    assert done.process.returncode == 0, done.printed
    assert len(done.runs()) == 3
    return done


def check_same_runs(done: Multirun, basic: Multirun) -> None:
    """Finished with each score, loss and image of the basic launcher's runs and, byte by byte, the same adapters."""
    assert done.runs().keys() == basic.runs().keys(), done.printed
    for name, run_dir in done.runs().items():
        other = basic.runs()[name]
        assert any(key.startswith("eval/") for _, row in history(run_dir) for key in row)
        assert history(run_dir) == history(other)
        assert (run_dir / ADAPTER).read_bytes() == (other / ADAPTER).read_bytes()
        for picture in sorted(run_dir.glob("samples/*/prompt*.png")):
            assert picture.read_bytes() == (other / picture.relative_to(run_dir)).read_bytes()
        assert json.loads((run_dir / "manifest.json").read_text())["command"][1:] == done.words


def check_cache(folder: Path) -> None:
    """One entry of each thing that the jobs share, whole, and nothing half-made left behind."""
    assert {kind: len(list((folder / kind).iterdir())) for kind in ("class-images", "dollhouse-photos", "latents")} == {
        "class-images": 1,
        "dollhouse-photos": 1,
        "latents": 2,
    }
    for kind in ("class-images", "dollhouse-photos"):
        (entry,) = (folder / kind).iterdir()
        parts = json.loads((entry / "entry.json").read_text(encoding="utf-8"))["parts"]
        Cache(folder).get_or_make_files(kind, parts, lambda _: pytest.fail("the entry is damaged"))


def check_launcher(bench: Bench, basic: Multirun, name: str, *launcher: str, **environment: str) -> None:
    """Three jobs end as under the basic launcher though a fourth fails; and what is finished is not run again."""
    done = bench.train(name, *sweep(TARGETS[0], NO_SUCH, *TARGETS[1:]), *launcher, **environment)
    assert done.process.returncode == 1, done.printed
    assert "1 of 4 jobs did not finish" in done.process.stderr
    (failed,) = done.runs("failed").values()
    assert "no_such_layer" in summary(failed)["error"]
    assert "Traceback" not in done.printed
    check_same_runs(done, basic)

    before = {path: path.stat().st_mtime_ns for run_dir in done.runs().values() for path in run_dir.iterdir()}
    again = bench.train(name, *sweep(*TARGETS), *launcher, **environment)
    assert again.process.returncode == 0, again.printed
    assert {path: path.stat().st_mtime_ns for path in before} == before


# --- basic, joblib, submitit --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_basic(bench: Bench, basic: Multirun) -> None:
    check_launcher(bench, basic, "basic-again")
    check_cache(bench.lab.folder / "basic-again-cache")


@pytest.mark.slow
def test_joblib(bench: Bench, basic: Multirun) -> None:
    need("boothlab_joblib")
    check_launcher(bench, basic, "joblib", "hydra/launcher=boothlab_joblib")
    check_cache(bench.lab.folder / "joblib-cache")


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(bench: Bench, basic: Multirun) -> None:
    """As by the system when memory runs out: joblib ends the other worker too, and the same command goes on."""
    need("boothlab_joblib")
    words = (*sweep(*TARGETS), "hydra/launcher=boothlab_joblib")
    with bench.start("killed", *words) as command:
        owners = bench.lab.folder / "killed"
        wait_for(lambda: list(owners.glob("*/.locks/*.json")), command)
        owner = json.loads(next(owners.glob("*/.locks/*.json")).read_text(encoding="utf-8"))
        os.kill(owner["pid"], signal.SIGKILL)
        printed, _ = command.communicate(timeout=PATIENCE_S)
    assert command.returncode == 1, printed
    assert "the launcher gave up" in printed
    assert "Traceback" not in printed
    again = bench.train("killed", *words)
    assert again.process.returncode == 0, again.printed
    check_same_runs(again, basic)


@pytest.mark.slow
def test_submitit_without_slurm(bench: Bench, basic: Multirun) -> None:
    need("boothlab_local")
    check_launcher(bench, basic, "local", "hydra/launcher=boothlab_local")
    check_cache(bench.lab.folder / "local-cache")


@pytest.mark.slow
def test_two_jobs_of_one_loky_worker_are_two_wandb_runs(bench: Bench) -> None:
    """W&B keeps one run a process; a worker's second job would have gone on with that of the first."""
    need("boothlab_joblib")
    words = (*sweep(*TARGETS), "hydra/launcher=boothlab_joblib", "tracking.wandb=offline", "evaluation.enabled=false")
    done = bench.train("wandb", *words)
    assert done.process.returncode == 0, done.printed
    workers = []
    for run_dir in done.runs().values():
        (log,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
        found = records(log)
        (begun,) = [record["run"] for record in found if "run" in record]
        assert begun["display_name"] == run_dir.name
        assert [record["exit"]["exit_code"] for record in found if "exit" in record] == [0]
        steps = [record["history"]["item"]["trainer/global_step"] for record in found if "history" in record]
        assert sorted(set(steps)) == [1, 2]
        workers.append(re.findall(r"MainThread:(\d+)", (log.parent / "logs" / "debug.log").read_text())[0])
    assert len(workers) == 3
    assert len(set(workers)) <= 2  # or no worker had two jobs, and nothing was tested


def records(log: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    return [json.loads(line) for line in done.stdout.splitlines()]


# --- SLURM --------------------------------------------------------------------------------------------------------


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The variables of a machine with SLURM on its PATH; $FAKE_SLURM is where the cluster keeps its state."""
    need("boothlab_slurm")
    if shutil.which("bash") is None or shutil.which("xargs") is None:
        pytest.skip("needs bash and xargs")
    commands, state = tmp_path / "bin", tmp_path / "state"
    shutil.copytree(FAKE_SLURM, commands)
    state.mkdir()
    for path in commands.iterdir():
        path.chmod(0o755)
    return {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}", "FAKE_SLURM": str(state)}


@pytest.mark.slow
def test_slurm(bench: Bench, basic: Multirun, slurm: dict[str, str]) -> None:
    check_launcher(bench, basic, "slurm", "hydra/launcher=boothlab_slurm", "hydra.launcher.partition=gpu", **slurm)
    check_cache(bench.lab.folder / "slurm-cache")
    state = Path(slurm["FAKE_SLURM"])
    assert sorted(path.name for path in state.glob("*.pid")) == [f"101_{task}.pid" for task in range(4)]
    script = (state / "101.sh").read_text()
    for line in ("array=0-3%4", "partition=gpu", "gpus-per-node=1", "signal=USR2@60", "time=240", "job-name=boothlab"):
        assert f"#SBATCH --{line}\n" in script.replace("'", "")


@pytest.mark.slow
def test_a_preempted_run_is_queued_again_and_ends_the_same(bench: Bench, slurm: dict[str, str]) -> None:
    """The signal stops it in the middle of a step; until its second go the job must have no result."""
    long = ("trainer.max_steps=120", "trainer.checkpoint_every=5", "evaluation.enabled=false")
    straight = bench.train("straight", *long)
    assert straight.process.returncode == 0, straight.printed
    state = Path(slurm["FAKE_SLURM"])
    with bench.start("preempted", *long, "hydra/launcher=boothlab_slurm", **slurm) as command:
        wait_for(lambda: list(bench.lab.folder.glob("preempted/*/*/checkpoints/step_000010")), command)
        os.kill(int((state / "101.pid").read_text()), signal.SIGUSR2)
        printed, _ = command.communicate(timeout=PATIENCE_S)
    assert command.returncode == 0, printed
    assert (state / "101.requeued").exists()
    (one,) = straight.runs().values()
    other = bench.lab.folder / "preempted" / one.relative_to(straight.outputs)
    assert same_adapter(one, other)
    assert history(one) == history(other)
    attempts = json.loads((other / "manifest.json").read_text())["earlier_attempts"]
    assert [attempt["status"] for attempt in attempts] == ["interrupted"]


def wait_for(ready: Callable[[], object], command: "subprocess.Popen[str]") -> None:
    end = time.monotonic() + PATIENCE_S
    while not ready():
        if command.poll() is not None or time.monotonic() > end:
            pytest.fail(f"it never got there: {command.communicate()[0]}")
        time.sleep(0.01)


@pytest.mark.slow
def test_where_there_is_no_slurm_it_says_so(bench: Bench) -> None:
    need("boothlab_slurm")
    done = bench.train("no-slurm", "seed=0,1", "hydra/launcher=boothlab_slurm", PATH=os.devnull)
    assert done.process.returncode == 1
    assert 'the launcher gave up Could not detect "srun"' in done.process.stderr
    assert "Traceback" not in done.printed


class Watcher(StepCallback):
    """What answers SLURM's signals while a run trains."""

    def __init__(self) -> None:
        self.handlers: list[Any] = []

    def after_step(self, trainer: pl.Trainer, module: Any, step: int) -> None:
        self.handlers.append(signal.getsignal(signal.SIGUSR1))


ALLOCATIONS = {
    "sbatch": {"NTASKS": "1", "NTASKS_PER_NODE": "1"},
    "salloc": {"NTASKS": "4"},
    "four tasks a node": {"NTASKS": "4", "NTASKS_PER_NODE": "4"},
}


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_variables_of_slurm_change_nothing(allocation: str, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning would refuse four tasks, and queue the job again with a checkpoint of its own."""
    steps = ("trainer.max_steps=2", "evaluation.enabled=false")
    before = go(build(bench.lab, f"without {allocation}", *steps))
    place = {"JOB_ID": "77", "NNODES": "1", "JOB_NODELIST": "node[1-2]", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in {**place, **ALLOCATIONS[allocation], "JOB_NAME": "study"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    watcher, handler = Watcher(), signal.getsignal(signal.SIGUSR1)
    within = go(build(bench.lab, f"within {allocation}", *steps), watcher)
    assert same_adapter(before, within)
    assert watcher.handlers == [handler, handler]


# --- Ray ----------------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def ray_node(folder: Path, environment: dict[str, str], *arguments: str) -> Iterator[None]:
    """A node with one core, up until the block ends; `--block` keeps all its processes in the group that is ended."""
    words = [*arguments, "--num-cpus=1", "--num-gpus=0", "--object-store-memory=80000000", "--disable-usage-stats"]
    folder.mkdir()
    with (folder / "node.log").open("w") as log:
        node = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", *words, "--block"],
            cwd=folder,
            env={**environment, "BOOTHLAB_CACHE": str(folder / "cache")},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + PATIENCE_S
        while "Ray runtime started" not in (folder / "node.log").read_text():
            assert node.poll() is None and time.monotonic() < end, (folder / "node.log").read_text()
            time.sleep(0.1)
        yield
    finally:
        node.terminate()
        with suppress(subprocess.TimeoutExpired):
            node.wait(60)
        with suppress(ProcessLookupError):
            os.killpg(node.pid, signal.SIGKILL)
        node.wait()


@pytest.fixture
def ray_cluster(bench: Bench) -> Iterator[dict[str, str]]:
    """The variables that lead to a cluster of two nodes, each with a cache of its own, on this machine."""
    need("boothlab_ray")
    port = free_port()
    folder = Path(
        tempfile.mkdtemp(prefix="ray-")
    )  # not tmp_path: Ray's sockets lie in it, and their names must be short
    (folder / "token").write_text(secrets.token_hex(32))  # the nodes listen on the network
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    address = f"127.0.0.1:{port}"
    environment = {**bench.environment, **token, "RAY_worker_niceness": "0"}  # 15 of itself: they would starve in tests
    environment.pop("RAY_ADDRESS", None)
    head = ("--head", f"--port={port}", f"--temp-dir={folder / 't'}", "--include-dashboard=false")
    try:
        with (
            ray_node(folder / "a", environment, *head, f"--ray-client-server-port={free_port()}"),
            ray_node(folder / "b", environment, f"--address={address}"),
        ):
            yield {**token, "RAY_ADDRESS": address, "NODES": str(folder)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_ray_cluster_of_two_nodes(bench: Bench, basic: Multirun, ray_cluster: dict[str, str]) -> None:
    """The nodes were started in other folders than the command, and with caches of their own: both are seen to work."""
    check_launcher(bench, basic, "ray", "hydra/launcher=boothlab_ray", "paths.cache=null", **ray_cluster)
    for node in ("a", "b"):
        check_cache(Path(ray_cluster["NODES"]) / node / "cache")
        left = {path.name for path in (Path(ray_cluster["NODES"]) / node).iterdir()}
        assert left == {"cache", "node.log"}  # relative paths mean the folder of the command


# --- configs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_our_launchers_are_the_plugins_with_other_values(launcher: str, capsys: pytest.CaptureFixture[str]) -> None:
    need(launcher)
    plain = LAUNCHERS[launcher][0]
    shown = []
    for name in (plain, launcher):
        assert main(["train", "--cfg", "hydra", "--package", "hydra.launcher", f"hydra/launcher={name}"]) == 0
        shown.append(OmegaConf.to_container(OmegaConf.create(capsys.readouterr().out)))
    theirs, ours = shown
    assert isinstance(theirs, dict) and isinstance(ours, dict)
    assert ours["_target_"] == theirs["_target_"]
    assert ours.keys() == theirs.keys()
    assert ours != theirs


@pytest.mark.parametrize("launcher", [*LAUNCHERS, "joblib", "ray", "submitit_slurm"])
def test_a_missing_extra_is_named(
    launcher: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, extra = LAUNCHERS.get(launcher) or next(pair for pair in LAUNCHERS.values() if pair[0] == launcher)
    Plugins.instance()  # they register their configs only once
    registered: Any = ConfigStore.instance().repo["hydra"]
    monkeypatch.delitem(registered["launcher"], f"{plain}.yaml", raising=False)
    assert main(["train", "-m", "seed=0,1", f"hydra/launcher={launcher}"]) == 2
    install = f"pip install 'boothlab[{extra}]'"
    assert capsys.readouterr().err == f"boothlab: error: hydra/launcher={plain} needs an extra: {install}\n"

"""Every fault boothlab must survive, put in for real: what is done, and what must hold afterwards.

A fault never takes what was already written, ends with one clear line and its exit code, and once the cause is mended
the same command goes on and ends with the bits of a run that nothing disturbed.
"""

import importlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from boothlab.tracking.history import read_history
from fault_bench import Bench, CannotInjectError, Ended, Written, expect, small_disk, wait, wait_until
from training_runs import summary
from wandb_double import GOOD_KEY, Server, wandb_server

Scenario = Callable[[Bench, str, str], None]
"""A fault on a bench: (bench, a folder name of its own, which case). Raises LostError or CannotInjectError."""


@dataclass(frozen=True)
class Fault:
    """A kind of fault, its cases, and those that are quick enough to be tried in the process of a test."""

    title: str
    cases: tuple[str, ...]
    scenario: Scenario
    quick: tuple[str, ...] = ()

    def run(self, bench: Bench, case: str) -> None:
        """Try a case, in a folder named after it. Raises LostError or CannotInjectError."""
        self.scenario(bench, re.sub(r"\W+", "-", f"{self.title} {case}"), case)


# --- signals ------------------------------------------------------------------------------------------------------

#: where a signal falls, and what is in the run folder by then; `*` is the run's name
PLACES = {
    "imports": "",
    "start-up": "*/*/.hydra/overrides.yaml",
    "training": "*/*/checkpoints/step_000005/state.json",
    "evaluation": "*/*/samples/step_000010/*.png",
    "checkpoint": "*/*/checkpoints/.step_000010.*",
}
ENDINGS = {
    signal.SIGTERM: (143, "terminated"),
    signal.SIGINT: (130, "interrupted"),
}


def signalled(number: signal.Signals) -> Scenario:
    """The process is sent a signal at a place."""

    def scenario(bench: Bench, name: str, case: str) -> None:
        process = bench.start(["train", *bench.words(name)])
        if PLACES[case]:
            wait_until(process, lambda: next((bench.folder / name).glob(PLACES[case]), None))
        else:
            time.sleep(1.5)
        found = sorted((bench.folder / name).glob("*/[!.]*/"))
        before = Written.below(found[0]) if found and case != "checkpoint" else Written([], {})
        process.send_signal(number)
        ended = wait(process)
        if number in ENDINGS:
            ended.said(*ENDINGS[number])
        else:
            expect(ended.code == 128 + number, f"exit code {ended.code}")
        if found:
            before.kept_in(Written.below(found[0]))
        bench.goes_on(name)

    return scenario


# --- disks --------------------------------------------------------------------------------------------------------


def full_disk(bench: Bench, name: str, case: str) -> None:
    """The disk is full when a run starts, at a checkpoint, at a row of metrics.jsonl, or a file may not grow."""
    if case == "a file may not grow":
        return _limited_file(bench, name)
    extra = (f"trainer.checkpoint_every={4 * bench.every}",) if case == "metrics.jsonl" else ()
    straight = bench.straight(*extra)
    held = sum(-(-path.stat().st_size // 4096) * 4096 for path in straight.rglob("*"))
    size = {"start": 8192, "checkpoint": held * 2 // 3, "metrics.jsonl": held * 4}[case]
    with small_disk(bench.folder / name, size) as mounted:
        ended = _until_full(bench, name, extra) if case == "metrics.jsonl" else bench.train(name, *extra)
        where = "the run folder" if case == "start" else re.escape(str(bench.folder / name))
        ended.said(2, f"cannot write {where}.* disk is full.*; free some space")
        if case == "checkpoint":
            _is_a_part_of(bench.run_dir(name), straight, has_room=False)
        (bench.folder / name / "filler").unlink(missing_ok=True)
        mounted(f"size={8 * held}")
        bench.goes_on(name, *extra)
    return None


def _until_full(bench: Bench, name: str, extra: tuple[str, ...]) -> Ended:
    """Another program takes all that is left of the disk once the run has written its first rows."""
    # Long, so that rows fill up their last page, and without a checkpoint that would meet the full disk first.
    process = bench.start(["train", *bench.words(name, *extra)])
    wait_until(process, lambda: _rows(bench, name) >= 3)
    with (bench.folder / name / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    return wait(process)


def _rows(bench: Bench, name: str) -> int:
    found = list((bench.folder / name).glob("*/*/metrics.jsonl"))
    return found[0].read_bytes().count(b"\n") if found else 0


def _is_a_part_of(run_dir: Path, straight: Path, *, has_room: bool = True) -> None:
    """Expect that what a stopped run has is the beginning of the undisturbed one.

    Without room for it there need not be a summary; if there is one, it must be right.
    """
    written, whole = Written.below(run_dir), Written.below(straight)
    expect(written.rows and written.rows == whole.rows[: len(written.rows)], "rows are gone or altered")
    Written([], {name: digest for name, digest in written.files.items() if "samples" not in name}).kept_in(whole)
    closed = (run_dir / "summary.json").is_file()
    expect(closed or not has_room, "there is no summary")
    expect(not closed or summary(run_dir)["status"] == "failed", "the summary does not say that it failed")


def _limited_file(bench: Bench, name: str) -> None:
    """What a quota does, for those who are not the superuser: no file may grow beyond a size."""
    largest = max(path.stat().st_size for path in bench.straight().rglob("*.safetensors"))
    process = bench.start(["train", *bench.words(name)])
    wait_until(process, lambda: next((bench.folder / name).glob("*/*/checkpoints/step_000005/state.json"), None))
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (largest - 1, resource.RLIM_INFINITY))
    wait(process).said(2, "disk is full")
    _is_a_part_of(bench.run_dir(name), bench.straight())
    bench.goes_on(name)


def read_only(bench: Bench, name: str, case: str) -> None:
    """The folder for outputs cannot be written: from the start, or when a stopped run is to go on."""
    with small_disk(bench.folder / name, 1 << 26, ",ro" if case == "first start" else "") as mounted:
        if case == "when going on":
            fault = ("nan in weights", 2 * bench.every + 2)
            expect(bench.train(name, fault=fault).code == 1, "the run was not stopped")
            mounted("ro")
        held = Written.below(bench.run_dir(name)) if case == "when going on" else None
        bench.train(name).said(2, f"{name}.*read-only")
        if held is not None:
            held.kept_in(Written.below(bench.run_dir(name)))
        mounted("rw")
        bench.goes_on(name)


def unwritable_cache(bench: Bench, name: str, case: str) -> None:
    """The cache cannot be written: the run says so once and is made without it."""
    place = bench.folder / f"{name}-cache"
    with _unwritable(place, case):
        ended = bench.train(name, f"paths.cache={place}")
        expect(ended.code == 0, f"exit code {ended.code}: {ended.printed[-1500:]}")
        warnings = [line for line in ended.printed.splitlines() if "cannot be written" in line]
        expect(len(warnings) == 1 and "going on without it" in warnings[0], f"not one warning: {warnings}")
        bench.is_whole(bench.run_dir(name))


@contextmanager
def _unwritable(place: Path, case: str) -> Iterator[None]:
    if case == "a file in its place":
        place.write_text("no folder")
        yield
        return
    with small_disk(place, 8192, ",ro" if case == "read-only" else ""):
        yield


# --- damaged files ------------------------------------------------------------------------------------------------


def damage(path: Path, case: str) -> None:
    """Cut a file short, or turn over one bit in its middle."""
    data = bytearray(path.read_bytes())
    if case == "truncated":
        del data[len(data) // 2 :]
    else:
        data[len(data) // 2] ^= 1
    path.write_bytes(data)


def damaged_cache(bench: Bench, name: str, case: str) -> None:
    """Every payload in the cache is damaged: it is seen, said, and made again."""
    cache = f"paths.cache={bench.folder / f'{name}-cache'}"
    expect(bench.train(f"{name}-fills", cache).code == 0, "the run that fills the cache failed")
    entries = [entry for entry in sorted((bench.folder / f"{name}-cache").glob("*/*/")) if entry.parent.name != "locks"]
    expect(entries, "there is no cache entry")
    for entry in entries:
        damage(next(path for path in sorted(entry.rglob("*")) if path.is_file() and path.name != "entry.json"), case)
    ended = bench.train(name, cache)
    expect(ended.code == 0, f"exit code {ended.code}: {ended.printed[-1500:]}")
    warned = [entry for entry in entries if f"{entry.name} is damaged" in ended.printed]
    expect(len(warned) == len(entries), f"{len(warned)} of {len(entries)} damaged entries were named")
    bench.is_whole(bench.run_dir(name))
    if bench.inside:  # quick, so without a third run
        return
    again = bench.train(f"{name}-again", cache)
    expect(again.code == 0 and "is damaged" not in again.printed, "an entry is still damaged")
    bench.is_whole(bench.run_dir(f"{name}-again"))


def damaged_checkpoint(bench: Bench, name: str, case: str) -> None:
    """The newest checkpoint of a stopped run is damaged: it is named, and the one before is used."""
    stopped = bench.train(name, fault=("nan in weights", 2 * bench.every + 2))
    expect(stopped.code == 1, "the run was not stopped")
    newest = bench.run_dir(name) / "checkpoints" / f"step_{2 * bench.every:06d}"
    damage(newest / "resume.safetensors", case)
    ended = bench.goes_on(name, cause="damage")
    expect(f"{newest} is damaged" in ended.printed, "the damaged checkpoint is not named")


# --- W&B ----------------------------------------------------------------------------------------------------------


def wandb_fails(bench: Bench, name: str, case: str) -> None:
    """W&B is not there, slow, dies, refuses the key, or the account: the run is as it would be without W&B."""
    online = "tracking.wandb=online"
    with wandb_server() as server:
        url = "http://127.0.0.1:9" if case == "unreachable" else server.url
        key = "b" * 40 if case == "wrong key" else GOOD_KEY
        server.delay_s = {"slow": 2.0, "does not answer": 100.0}.get(case, 0.0)
        server.quota_spent = case == "out of quota"
        server.dies_at_upload = "/store/manifest" if case == "dies while it is sent a table" else None
        words = ["train", *bench.words(name, online)]
        process = bench.start(words, environment={"WANDB_BASE_URL": url, "WANDB_API_KEY": key})
        if case in ("dies in the middle", "out of quota in the middle"):
            _break(server, process, bench, name, case)
        ended = wait(process)
        server.delay_s = 0.0
    expect(ended.code == 0, f"exit code {ended.code}: {ended.printed[-1500:]}")
    expect("Traceback" not in ended.printed, f"a traceback: {ended.printed[-1500:]}")
    bench.is_whole(bench.run_dir(name))
    waited = time.time() - (bench.run_dir(name) / "summary.json").stat().st_mtime  # the run itself is over then
    expect(waited < 240, f"it waited {waited:.0f} s for W&B")
    if case not in ("slow", "out of quota in the middle"):
        expect("wandb sync" in ended.printed, f"it does not say how to send the run later: {ended.printed[-1500:]}")
    recorded = list(bench.run_dir(name).rglob("*.wandb"))
    expect(recorded, "nothing is recorded to be sent later")


def _break(server: Server, process: "subprocess.Popen[str]", bench: Bench, name: str, case: str) -> None:
    wait_until(process, lambda: _rows(bench, name) >= 3)
    if case == "dies in the middle":
        server.kill()
    else:
        server.quota_spent = True


# --- others -------------------------------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from boothlab.tracking.lock import owned
with owned(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def two_processes(bench: Bench, name: str, case: str) -> None:
    """A second process on the same run folder is refused, and the first is not disturbed."""
    if case == "while it trains":
        with bench.start(["train", *bench.words(name)]) as first:
            wait_until(first, lambda: _rows(bench, name) >= 3)
            os.kill(first.pid, signal.SIGSTOP)  # or it could be through before the second has looked
            try:
                second = bench.train(name)
            finally:
                os.kill(first.pid, signal.SIGCONT)
            second.said(
                2, rf"in use by process {first.pid} on {re.escape(socket.gethostname())}, since .*; wait for it"
            )
            expect(wait(first).code == 0, "the first was disturbed")
        bench.is_whole(bench.run_dir(name))
        return
    planned = bench.folder / name / "train" / bench.straight().name
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(planned)],
        env=bench.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None and holder.stdin is not None
        expect(holder.stdout.readline() == "held\n", "the folder could not be taken")
        bench.train(name).said(2, rf"in use by process {holder.pid} on {re.escape(socket.gethostname())}, since ")
        expect(not (planned / "metrics.jsonl").exists(), "the refused process wrote into the folder")
        holder.stdin.close()
    bench.goes_on(name)


def backward_clock(bench: Bench, name: str, case: str) -> None:
    """The system's clock goes back all the time, in a run and in one that goes on."""
    clock = ("clock", 0)
    if case == "when going on":
        expect(bench.train(name, fault=("nan in weights", 2 * bench.every + 2)).code == 1, "the run was not stopped")
    ended = bench.train(name, fault=clock)
    expect(ended.code == 0, f"exit code {ended.code}: {ended.printed[-1500:]}")
    run_dir = bench.run_dir(name)
    times = [row.time for row in read_history(run_dir / "metrics.jsonl").rows]
    expect(times == sorted(times) and times[0] >= 0, "time runs backwards in metrics.jsonl")
    timings = summary(run_dir)["timings"]
    expect(all(value >= 0 for value in timings.values()), f"a negative timing: {timings}")
    bench.is_whole(run_dir)


def out_of_memory(bench: Bench, name: str, case: str) -> None:
    """PyTorch's allocator is asked for too much in a step, or the system refuses a step that takes too much."""
    if case == "in a step":
        extra: tuple[str, ...] = ()
        ended = bench.train(name, fault=("no memory", bench.every + 2))
        kept = f"checkpoints/step_{bench.every:06d}"
    else:
        extra = ("data.batch_size=1500", "trainer.max_steps=2", "trainer.checkpoint_every=1", "evaluation.every=2")
        process = bench.start(["train", *bench.words(name, *extra)])
        wait_until(process, lambda: _rows(bench, name) >= 1)
        kept = _refuse_memory(process)
        ended = wait(process)
    ended.said(1, "out of memory near step .*lower data.batch_size")
    run_dir = bench.run_dir(name)
    expect(summary(run_dir)["status"] == "failed", "the summary does not say that it failed")
    expect("out of memory" in summary(run_dir)["error"], "the summary does not say why")
    expect((run_dir / kept).exists(), f"{kept} is gone")
    bench.goes_on(name, *extra)


def _refuse_memory(process: "subprocess.Popen[str]") -> str:
    """From now on the system gives the process no more than a little."""
    if not sys.platform.startswith("linux"):
        raise CannotInjectError("limiting a living process takes Linux")
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    match = re.search(r"VmSize:\s+(\d+) kB", status)
    assert match is not None
    limit = int(match[1]) * 1024 + (300 << 20)
    resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    return "metrics.jsonl"


def not_a_number(bench: Bench, name: str, case: str) -> None:
    """The weights, or one gradient, stop being numbers at a step: nothing after it is saved."""
    step = bench.every if case == "a gradient" else 2 * bench.every + 2  # of a gradient: at a checkpoint's own step
    fault = "nan in gradients" if case == "a gradient" else "nan in weights"
    ended = bench.train(name, fault=(fault, step))
    ended.said(1, rf"(the loss|the gradient norm) became nan at step {step}\b.*; lower optim.lr")
    run_dir = bench.run_dir(name)
    expect(summary(run_dir)["status"] == "failed", "the summary does not say that it failed")
    steps = [row.step for row in read_history(run_dir / "metrics.jsonl").rows]
    expect(max(steps, default=0) == step - 1, f"the last row is of step {max(steps, default=0)}")
    _is_a_part_of(run_dir, bench.straight())
    bench.goes_on(name)


def killed_worker(bench: Bench, name: str, case: str) -> None:
    """One of two workers of a sweep is killed: the sweep says so, the rest is run, the same command goes on."""
    try:
        importlib.import_module("hydra_plugins.hydra_joblib_launcher")
    except ImportError:
        raise CannotInjectError("it needs the extra joblib") from None
    words = ["train", "-m", *bench.words(name), "seed=0,1,2,3", "hydra/launcher=boothlab_joblib"]
    outputs = bench.folder / name
    process = bench.start(words)
    wait_until(process, lambda: next(outputs.glob("*/*/checkpoints/step_000005/state.json"), None))
    owner = next(iter(sorted(outputs.glob("*/.locks/*.json"))))
    lost = owner.name.removesuffix(".json")
    os.kill(json.loads(owner.read_text(encoding="utf-8"))["pid"], signal.SIGKILL)
    ended = wait(process)
    expect(ended.code == 1 and "Traceback" not in ended.printed, f"{ended.code}: {ended.printed[-1500:]}")
    expect("the launcher gave up" in ended.printed, "it does not say that a worker was killed")
    expect(re.search(rf"seed={lost[-1]}\W+interrupted.*was killed", ended.printed), "the lost job is not named")
    ends = {path.parent.name: json.loads(path.read_text())["status"] for path in outputs.glob("*/*/summary.json")}
    expect(sum(end == "finished" for end in ends.values()) >= 2, f"the others did not finish: {ends}")
    again = wait(bench.start(words))
    expect(again.code == 0, f"it does not go on: {again.printed[-1500:]}")
    for run_dir in sorted(outputs.glob("*/[!.]*-s?/")):
        seed = run_dir.name[-1]
        bench.is_whole(run_dir, *(() if seed == "0" else (f"seed={seed}",)))


FAULTS = (
    Fault("SIGTERM", tuple(PLACES), signalled(signal.SIGTERM)),
    Fault("SIGINT (Ctrl-C)", tuple(PLACES), signalled(signal.SIGINT)),
    Fault("SIGKILL (kill -9)", tuple(PLACES), signalled(signal.SIGKILL)),
    Fault("disk full", ("start", "checkpoint", "metrics.jsonl", "a file may not grow"), full_disk, ("checkpoint",)),
    Fault("outputs read-only", ("first start", "when going on"), read_only),
    Fault(
        "cache cannot be written",
        ("a file in its place", "read-only", "full"),
        unwritable_cache,
    ),
    Fault("cache entries damaged", ("truncated", "a bit flipped"), damaged_cache, ("a bit flipped",)),
    Fault("newest checkpoint damaged", ("truncated", "a bit flipped"), damaged_checkpoint),
    Fault(
        "W&B fails",
        (
            *("unreachable", "wrong key", "slow", "does not answer", "dies in the middle"),
            *("dies while it is sent a table", "out of quota", "out of quota in the middle"),
        ),
        wandb_fails,
    ),
    Fault("two processes on one run", ("while it trains", "while it is held"), two_processes, ("while it is held",)),
    Fault("clock goes back", ("in a run", "when going on"), backward_clock),
    Fault("out of memory", ("in a step", "refused by the system"), out_of_memory, ("in a step",)),
    Fault("not a number", ("the weights", "a gradient"), not_a_number, ("a gradient",)),
    Fault("a sweep's worker killed", ("joblib",), killed_worker),
)

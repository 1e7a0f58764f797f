"""Kills a sweep with SIGKILL at random moments until it is finished, and compares it with one that nobody disturbed.

    python tests/kill_sweep.py --kills 20 --folder DIR

Prints one line: kills, restarts, jobs, and whether runs.csv, the histories and the adapters are equal to the bit.
"""

import argparse
import json
import math
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boothlab.tracking.manifest import output_hashes

LEFT, UNDISTURBED = "killed", "undisturbed"
#: 12 jobs of seconds each: two ranks, with and without the text encoder, three seeds
PARAMS = ("seed=0,1,2", "lora.rank=2,4", "lora.train_text_encoder=false,true")
JOBS = 12
#: lines of metrics.jsonl that a job writes: its steps, its evaluations, and the ceilings
ROWS = 60 + 60 // 12 + 1 + 1
#: where a kill can fall; "start-up" is imports, the plan, the building of a job
PLACES = ("start-up", "training", "evaluation", "checkpoint")
#: where the aimed kills go: not at start-up, which is what the others hit
LATER = PLACES[1:]
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
CLOCKS = ("seconds", "time")  # what a clock says is in no comparison


@dataclass
class Outcome:
    """How it went: kills that hit a living sweep, by what it was doing, and what differs at the end."""

    kills: int
    restarts: int
    jobs: int
    places: dict[str, int]
    differences: list[str]

    @property
    def while_training(self) -> int:
        """Kills after a job had begun."""
        return self.kills - self.places["start-up"]

    def line(self) -> str:
        """The summary."""
        equal = "no: " + "; ".join(self.differences[:3]) if self.differences else "yes"
        where = ", ".join(f"{place} {number}" for place, number in self.places.items())
        return f"kills {self.kills} ({where}), restarts {self.restarts}, jobs {self.jobs}, equal: {equal}"


def command(pipeline: Path, outputs: Path, cache: Path) -> list[str]:
    """The sweep, always in these words. Many checkpoints and evaluations, so that kills fall into all of them."""
    words = {
        "backbone.name": "tiny",
        "backbone.source": pipeline,
        "subject.images": "dollhouse:robot/1",
        "subject.count": 3,
        "lora.unet_targets": "[to_k,to_q,to_v,to_out.0]",
        "optim.lr": 0.02,
        "data.batch_size": 2,
        "data.variants": 2,
        "trainer.max_steps": 60,
        "trainer.checkpoint_every": 4,
        "trainer.accelerator": "cpu",
        "trainer.threads": 1,
        "trainer.log_every": 1,
        "evaluation.every": 12,
        "evaluation.seeds": "[0]",
        "evaluation.prompts": "['a photo of a {token} {class}']",
        "evaluation.sampler.steps": 2,
        "evaluation.pres_images": 1,
        "tracking.wandb": "disabled",
        "paths.outputs": outputs,
        "paths.cache": cache,
    }
    given = [f"{key}={value}" for key, value in words.items()]
    return [sys.executable, "-m", "boothlab", "sweep", "lora_rank", "--no-report", *PARAMS, *given]


def start(words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """The sweep in a process of its own; what it says is appended to `log`."""
    with log.open("ab") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        return subprocess.Popen(words, env=environment, stdout=file, stderr=file)


def rows_below(folder: Path) -> int:
    """Lines of all histories: it grows while a job trains."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("*/*/metrics.jsonl"))


def wait_for(process: subprocess.Popen[bytes], folder: Path, rows: int, more: int, patience_s: float) -> bool:
    """Wait until `more` rows are written beyond `rows`; False if the sweep ended before."""
    deadline = time.monotonic() + patience_s
    while rows_below(folder) < rows + more:
        if process.poll() is not None:
            return False
        if time.monotonic() > deadline:
            process.kill()
            process.wait()
            raise TimeoutError(f"no progress in {folder} within {patience_s:.0f} s")
        time.sleep(0.002)
    return process.poll() is None


def caught_in(folder: Path) -> dict[str, set[Path]]:
    """What lies open where a process was killed: evaluations without their row, checkpoints half written."""
    done = {path.parent.parent: _evaluated(path.parent.parent) for path in folder.glob("*/*/samples/step_*")}
    samples = {path for path in folder.glob("*/*/samples/step_*") if path.name not in done[path.parent.parent]}
    return {"evaluation": samples, "checkpoint": set(folder.glob("*/*/checkpoints/.step_*.tmp"))}


def _evaluated(run_dir: Path) -> set[str]:
    path = run_dir / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return {f"step_{json.loads(line)['step']:06d}" for line in lines if b'"eval/clip_t' in line}


def kill_at(
    process: subprocess.Popen[bytes], folder: Path, chance: random.Random, patience_s: float, rows: int = 70
) -> str:
    """Let it live for a random while, then kill it; says where that was, or `finished` if it ended by itself.

    One kill in four comes by the clock, wherever the sweep is then, which is mostly at start-up. The others come 1 to
    `rows` rows after a job went on: at once, or in the next evaluation or checkpoint.
    """
    before, open_before = rows_below(folder), caught_in(folder)
    if chance.random() < 0.25:
        wait_s = chance.uniform(0.5, 12.0)
        try:
            process.wait(wait_s)
        except subprocess.TimeoutExpired:
            process.kill()
    else:
        aim = chance.choice(LATER)
        if wait_for(process, folder, before, chance.randint(1, rows), patience_s):
            if aim == "training":
                time.sleep(chance.uniform(0, 0.3))
            while aim != "training" and process.poll() is None and not caught_in(folder)[aim] - open_before[aim]:
                time.sleep(0.0005)
        process.kill()
    code = process.wait()
    if code >= 0:
        return "finished" if code == 0 else f"exit code {code}"
    place = next((name for name, paths in caught_in(folder).items() if paths - open_before[name]), None)
    return place or ("training" if rows_below(folder) != before else "start-up")


def until_finished(
    words: Sequence[str],
    folder: Path,
    kills: int,
    seed: int,
    log: Path,
    patience_s: float,
    deadline: float = math.inf,
) -> tuple[int, int, dict[str, int]]:
    """Kill it `kills` times, or as often as it lives so long, then let it end: kills, restarts, kills by place.

    No kill comes after `deadline`, a time of `time.monotonic()`.
    """
    chance, done, restarts, places = random.Random(seed), 0, 0, dict.fromkeys(PLACES, 0)
    while done < kills and time.monotonic() < deadline:
        share = (JOBS * ROWS - rows_below(folder)) / (kills - done)  # so that the rows last for all kills
        ended = kill_at(start(words, log), folder, chance, patience_s, rows=max(4, min(70, int(1.2 * share))))
        if ended == "finished":
            return done, restarts, places
        if ended not in PLACES:
            raise RuntimeError(f"the sweep ended by itself with {ended}; see {log}")
        done, restarts = done + 1, restarts + 1
        places[ended] += 1
        print(f"  kill {done}: {ended}, {rows_below(folder)} rows, {finished(folder)} jobs finished", flush=True)
    code = start(words, log).wait()
    if code:
        raise RuntimeError(f"the sweep ended with exit code {code}; see {log}")
    return done, restarts, places


def finished(folder: Path) -> int:
    """How many runs below a folder are finished."""
    summaries = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*/*/summary.json")]
    return sum(summary.get("status") == "finished" for summary in summaries)


def without_clocks(value: Any) -> Any:
    """JSON without the values that a clock wrote."""
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if not key.endswith(CLOCKS)}
        return {key: without_clocks(item) for key, item in kept.items()}
    return value


def facts(run_dir: Path) -> dict[str, Any]:
    """What must be the same to the bit: the history, the final scores, every image, adapter and checkpoint."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found: dict[str, Any] = {"metrics.jsonl": [without_clocks(json.loads(line)) for line in lines]}
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    found["summary.json"] = {key: summary[key] for key in ("status", "final", "best", "baselines", "ceilings")}
    found["summary.json"] = without_clocks(found["summary.json"])
    names = ("*.png", "*.safetensors", "scores.csv", "metrics.json", "state.json")
    own = (run_dir / folder for folder in ("samples", "checkpoints", "lora"))  # and not what W&B copies
    for path in sorted(path for folder in own for name in names for path in folder.rglob(name)):
        found[path.relative_to(run_dir).as_posix()] = path.read_bytes()
    return found


def unsound(run_dir: Path) -> list[str]:
    """What is wrong with a finished run folder: the manifest is not closed, or half-written files are left."""
    manifest = json.loads((run_dir / "manifest.json").read_text(encoding="utf-8"))
    found = [] if manifest["status"] == "finished" else [f"{run_dir.name}: the manifest says {manifest['status']}"]
    if manifest["outputs"] != output_hashes(run_dir):
        found.append(f"{run_dir.name}: the manifest's hashes are not those of the outputs")
    left = [path.name for path in sorted(run_dir.rglob("*")) if TEMPORARY.fullmatch(path.name)]
    return found + [f"{run_dir.name}: {name} is left" for name in left]


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two folders of runs, by run and file; empty if nothing does."""
    runs = [{path.parent.name: path.parent for path in sorted(f.glob("*/*/summary.json"))} for f in (one, other)]
    found = [f"{name} is in one of them only" for name in sorted(runs[0].keys() ^ runs[1].keys())]
    for name in sorted(runs[0].keys() & runs[1].keys()):
        mine, theirs = facts(runs[0][name]), facts(runs[1][name])
        names = sorted(mine.keys() | theirs.keys())
        found += [f"{name}/{file}" for file in names if mine.get(file) != theirs.get(file)]
    return [*found, *_tables(one, other)]


def _tables(one: Path, other: Path) -> list[str]:
    """Whether the tables that a report would write are the same, byte for byte."""
    from boothlab.reporting.export import csv_text, runs_frame
    from boothlab.reporting.runs import find_runs, read_run

    texts = [csv_text(runs_frame([read_run(path) for path in find_runs([folder])])) for folder in (one, other)]
    return [] if texts[0] == texts[1] else ["runs.csv"]


def kill_sweep(
    folder: Path, pipeline: Path, kills: int, seed: int = 0, patience_s: float = 600.0, deadline: float = math.inf
) -> Outcome:
    """Run the sweep undisturbed, and again under kills; compares them. `folder` takes both, with their logs."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in ((UNDISTURBED, 0), (LEFT, kills)):
        outputs, cache = folder / name, folder / f"cache of {name}"
        words = command(pipeline, outputs, cache)
        log = folder / f"{name}.log"
        done, restarts, places = until_finished(words, outputs, count, seed, log, patience_s, deadline)
    jobs = finished(folder / LEFT)
    found = differences(folder / LEFT, folder / UNDISTURBED)
    if jobs != JOBS:
        found.append(f"{jobs} of {JOBS} jobs finished")
    found += [line for path in sorted((folder / LEFT).glob("*/*/summary.json")) for line in unsound(path.parent)]
    return Outcome(done, restarts, jobs, places, found)


def main() -> int:
    """Build the tiny pipeline, kill, compare, print; 0 if all is equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder, or one to be made")
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which it is killed")
    arguments = parser.parse_args()
    if arguments.folder.is_dir() and any(arguments.folder.iterdir()):
        parser.error(f"{arguments.folder} is not empty")
    from tiny_pipelines import build

    pipeline = build("sd15", arguments.folder / "pipeline")
    outcome = kill_sweep(arguments.folder, pipeline, arguments.kills, arguments.seed)
    print(outcome.line())
    return 1 if outcome.differences else 0


if __name__ == "__main__":
    sys.exit(main())

"""The golden runs: short dollhouse runs, one for each main option, whose curves and metrics are kept in tests/golden/.

    python tests/golden_runs.py [NAME …]          make them anew and keep what comes out; says what moved
    python tests/golden_runs.py --check [NAME …]  only compare, as the tests do; exit code 1 if one moved

A golden folder holds manifest.json, metrics.jsonl and summary.json, no image and no weight. `boothlab rerun` takes it
like any run folder: held to the bit where the processor, threads and versions of its manifest are met, to the
tolerances of docs/reruns.md elsewhere. No clock, place or person is in it (see `keep`).
"""

import argparse
import dataclasses
import io
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from boothlab.cli import main as boothlab
from boothlab.config import PathsConfig
from boothlab.files import atomic_directory, read_json, sha256_file, write_json
from boothlab.rerunning.compare import BIT_FOR_BIT, WITHIN_TOLERANCE, WITHIN_TOLERANCE_IN_HALF, Side, compare_runs
from boothlab.rerunning.differences import is_timing
from boothlab.tracking.history import History, read_history
from boothlab.tracking.manifest import plain, read_manifest

GOLDEN = Path(__file__).parent / "golden"
COMMON = (
    "trainer.max_steps=8",
    "trainer.checkpoint_every=4",
    "trainer.accelerator=cpu",
    "trainer.threads=1",
    "trainer.log_every=1",
    "evaluation.prompts=['a photo of a {token} {class} on the beach','a photo of a {token} {class} in the snow']",
    "evaluation.every=8",
    "evaluation.seeds=[0,1]",
    "evaluation.sampler.steps=5",
    "evaluation.pres_images=4",
    "prior.num_class_images=4",
    "prior.steps=4",
    "tracking.wandb=disabled",
)
TEXT_ENCODER = ("lora.train_text_encoder=true", "optim.text_encoder_lr=5e-4")
PRIOR = ("prior.enabled=true", "prior.weight=0.5")
RUNS: dict[str, tuple[str, ...]] = {
    "default": (),
    "text-encoder": (*TEXT_ENCODER, "evaluation.sampler.scheduler=ddim"),
    "prior-preservation": (*PRIOR, "evaluation.sampler.scheduler=euler"),
    "text-encoder-and-prior": (*TEXT_ENCODER, *PRIOR),
    "min-snr-and-noise-offset": (
        "loss.min_snr_gamma=5.0",
        "loss.noise_offset=0.1",
        "evaluation.sampler.scheduler=dpmpp_2m_karras",
    ),
    "average": ("trainer.ema_decay=0.9", "optim.grad_clip=null", "evaluation.sampler.scheduler=heun"),
    "accumulation": (
        "trainer.accumulate=2",
        "data.batch_size=2",
        "trainer.log_every=3",
        "trainer.gradient_checkpointing=true",
        "evaluation.sampler.scheduler=pndm",
    ),
    "cosine-after-warm-up": (
        "optim.schedule=cosine",
        "optim.warmup_steps=3",
        "optim.weight_decay=0.1",
        "evaluation.sampler.scheduler=unipc",
    ),
    "rank-and-dropout": (
        "lora.rank=2",
        "lora.alpha=4",
        "lora.dropout=0.2",
        "lora.init=kaiming",
        "lora.unet_targets=[to_k,to_q,to_v,to_out.0]",
        "optim.schedule=polynomial",
        "evaluation.sampler.scheduler=euler_a",
    ),
    "captions-and-flips": (
        "subject=bear",
        "subject.captions=true",
        "data.crop=center",
        "data.flip=true",
        "seed=7",
        "evaluation.sampler.scheduler=ddpm",
    ),
    "full": ("method=full", "optim.lr=1e-4", "full.train_text_encoder=true", "optim.text_encoder_lr=1e-5"),
    "textual-inversion": ("method=textual_inversion", "inversion.vectors=2"),
    "pivotal-dora": ("method=pivotal", "lora.variant=dora", "inversion.steps=3", "inversion.late_lr=0.001"),
    "lokr-schedule-free": ("lora.variant=lokr", "optim.optimizer=schedule_free"),
    # No scores: of so few images they differ by more than the tolerance between processors, as bfloat16 rounds.
    "bfloat16": ("backbone.precision=bf16", "evaluation.enabled=false"),
}
"""Name to overrides. Together they use every sampler; a new main option gets a run, or a place in one of these."""

#: what is kept of a manifest: all that `boothlab rerun` reads, but for the state of the code and the folder it ran in
KEPT = (
    *("format", "run", "status", "config", "config_hash", "not_hashed", "seed", "stream_seeds", "inputs", "captions"),
    *("weights", "versions", "machine", "numerics", "outputs", "adapter_tensors"),
)
#: and of its machine: what can change a number
KEPT_OF_MACHINE = ("architecture", "cpu", "cpu_capability", "device", "implementation", "python")


def overrides(name: str) -> list[str]:
    """The command line of a golden run, without the places it is written to. Raises KeyError for another name."""
    return [*COMMON, *RUNS[name]]


def train(name: str, folder: Path) -> Path:
    """Make a run of the list with `boothlab train` and an empty cache; gives its folder, `folder`/NAME."""
    run = folder / name
    code = boothlab(["train", *overrides(name), f"paths.cache={folder / 'cache' / name}", f"hydra.run.dir={run}"])
    if code != 0:
        raise SystemExit(code)
    return run


def keep(run: Path, golden: Path) -> None:
    """Write to `golden` what is kept of a finished run, in place of what stood there.

    The manifest keeps what KEPT names: not when, where, by what command and in which state of the code it was made.
    Photos lose the folder of the cache they lay in. Rows of metrics.jsonl are at time 0 and have no seconds in them,
    the summary has none either. So equal numbers give equal files, byte for byte, whoever makes them.
    """
    manifest = read_manifest(run)
    with atomic_directory(golden, replace=True) as building:
        rows = History(building / "metrics.jsonl", clock=lambda: 0.0)
        for row in read_history(run / "metrics.jsonl").rows:
            if scalars := _without_timings(row.scalars):
                rows.log(row.step, scalars)
        rows.close()
        write_json(building / "summary.json", _summary(run))
        written = {name: sha256_file(building / name) for name in ("metrics.jsonl", "summary.json")}
        write_json(building / "manifest.json", portable(manifest, golden.name, written))


def _without_timings(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if not is_timing(key)}


def _summary(run: Path) -> dict[str, Any]:
    summary: Any = read_json(run / "summary.json")
    return {**summary, "timings": {}, **{key: _without_timings(summary[key]) for key in ("final", "best")}}


def portable(manifest: Mapping[str, Any], name: str, written: Mapping[str, str]) -> dict[str, Any]:
    """The manifest as it is kept, under the run's name; `written` are the hashes of the files beside it."""
    images = manifest["config"]["subject"]["images"]
    outputs = manifest["outputs"].items()
    compared = {
        file: digest for file, digest in outputs if PurePosixPath(file).name != "grid.png"
    }  # made of the others
    return {
        **{key: manifest[key] for key in KEPT},
        "run": name,
        "config": {**manifest["config"], "paths": plain(dataclasses.asdict(PathsConfig()))},
        "inputs": _moved(manifest["inputs"], images),
        "captions": _moved(manifest["captions"], images),
        "machine": {key: manifest["machine"][key] for key in KEPT_OF_MACHINE},
        "outputs": {**compared, **written},
    }


def _moved(files: Mapping[str, str], images: str) -> dict[str, str]:
    """Photos by the toy they show and their file name; class images have no folder."""
    return {
        path if path.startswith("class_images/") else f"{images}/{PurePosixPath(path).name}": digest
        for path, digest in files.items()
    }


@dataclass(frozen=True)
class Outcome:
    """What `boothlab rerun` said of a golden run. `moved` is one line with run, step, key and both values, or empty."""

    code: int
    out: str
    err: str
    moved: str


def again(golden: Path, out: Path, *words: str) -> Outcome:
    """Make a golden run again with `boothlab rerun` in the new folder `out`; `words` are more arguments for it."""
    printed, said = io.StringIO(), io.StringIO()
    with redirect_stdout(printed), redirect_stderr(said):
        code = boothlab(["rerun", str(golden), "--out", str(out), *words])
    return Outcome(code, printed.getvalue(), said.getvalue(), _moved_line(golden.name, code, printed, said))


def _moved_line(name: str, code: int, printed: io.StringIO, said: io.StringIO) -> str:
    if code == 0:
        return ""
    lines = printed.getvalue().splitlines() or said.getvalue().splitlines()
    telling = [line for line in lines if line.startswith(("first difference", "hint", "known to differ"))] or lines[-1:]
    return f"golden run {name}: {'; '.join(telling)} (if that is as it should be: make golden)"


def moved_to(golden: Path, run: Path) -> str:
    """How a run that was made anew compares with the golden one, in words for whoever renews it."""
    if not (golden / "manifest.json").is_file():
        return "new"
    before, after = Side(golden, read_manifest(golden)), Side(run, read_manifest(run))
    found = compare_runs(before, after, BIT_FOR_BIT)
    told = [f"{key} is another" for key in ("config_hash", "machine", "versions") if _differs(before, after, key)]
    if found.first is None:
        return "; ".join(["same bit for bit", *told])
    half = before.manifest["config"]["backbone"]["precision"] != "fp32"
    close = compare_runs(before, after, WITHIN_TOLERANCE_IN_HALF if half else WITHIN_TOLERANCE).same
    where = f"{found.first.what}, {found.first.detail}"
    return "; ".join([f"moved{' within tolerance' if close else ''}: {where}", *told])


def _differs(before: Side, after: Side, key: str) -> bool:
    old, new = before.manifest.get(key), after.manifest.get(key)
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return any(new.get(name) != value for name, value in old.items())
    return old != new


def renew(names: Sequence[str], golden: Path = GOLDEN) -> None:
    """Make runs anew and keep them, saying of each what moved."""
    for name in names:
        with tempfile.TemporaryDirectory(prefix="boothlab-golden-") as folder:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as said:
                try:
                    run = train(name, Path(folder))
                except SystemExit:
                    sys.__stderr__.write(said.getvalue())
                    raise
            print(f"{name:<{_width()}}  {moved_to(golden / name, run)}", flush=True)
            keep(run, golden / name)


def check(names: Sequence[str], golden: Path = GOLDEN) -> int:
    """Make runs again from their manifests and compare; 1 if one moved."""
    moved = 0
    for name in names:
        with tempfile.TemporaryDirectory(prefix="boothlab-golden-") as folder:
            outcome = again(golden / name, Path(folder) / name)
        moved += outcome.code != 0
        print(f"{name:<{_width()}}  {outcome.moved or outcome.out.splitlines()[-1]}", flush=True)
    return 1 if moved else 0


def _width() -> int:
    return max(map(len, RUNS))


def command(argv: Sequence[str] | None = None) -> int:
    """The command line above."""
    parser = argparse.ArgumentParser(prog="golden_runs.py", description="Make the golden runs anew, or check them.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RUNS)}; all if none is given")
    parser.add_argument("--check", action="store_true", help="only compare; exit code 1 if one moved")
    arguments = parser.parse_args(argv)
    if unknown := [name for name in arguments.names if name not in RUNS]:
        parser.error(f"there is no golden run {unknown[0]}; they are {', '.join(RUNS)}")
    names = arguments.names or list(RUNS)
    if arguments.check:
        return check(names)
    renew(names)
    return 0


if __name__ == "__main__":
    sys.exit(command())

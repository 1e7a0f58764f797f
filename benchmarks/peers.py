"""boothlab against the public training scripts, as whole commands: python benchmarks/peers.py PATH/TO/diffusers.

The other side is examples/dreambooth/train_dreambooth_lora.py of a checkout of diffusers (and, with --lora, of
cloneofsimo/lora). Each side trains on the same model folder, photos, steps, batch, rank and precision, in processes of
its own, in turns, so that whatever else the machine does hits all. Printed are medians with the least and the most;
processor time is what another load on the machine moves least. The loss before and after is worked out by one function
for all adapters, through plain diffusers: speed that is bought with learning would show there.

--size dollhouse: the miniature that ships with the package; tiny: a small Stable Diffusion with random weights; sd15:
the networks of Stable Diffusion 1.5 with random float16 weights, for a GPU (2 GB of disk in --work).
"""

import argparse
import json
import platform
import shutil
import tempfile
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import diffusers
import torch
import transformers
from against.cases import (
    LORA_SCRIPT,
    NOUN,
    SCRIPT,
    TOKEN_PROMPT,
    Case,
    boothlab_command,
    lora_script_command,
    script_command,
)
from against.loss import fixed_loss
from against.models import model_folder, picture_folder
from against.runs import CommandFailedError, Measured, measure, summary

OURS, SCRIPT_NAME, READY_NAME, LORA_NAME = "boothlab", "script", "script, text embedded once", "cloneofsimo"
ADAPTER = "pytorch_lora_weights.safetensors"
#: figure: what it is called, its unit, and its factor
FIGURES = {
    "first_step": ("time to first step", "s", 1.0),
    "first_step_processor": ("· processor time", "s", 1.0),
    "step": ("step", "ms", 1000.0),
    "step_processor": ("· processor time", "ms", 1000.0),
    "wall": ("whole command", "s", 1.0),
    "processor": ("· processor time", "s", 1.0),
    "memory": ("peak memory (all processes)", "MiB", 1.0),
    "cuda_memory": ("peak CUDA memory (reserved)", "MiB", 1.0),
    "file_size": ("adapter file", "KiB", 1 / 1024),
    "loss": ("loss after", "", 1.0),
}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("diffusers", type=Path, help="checkout of github.com/huggingface/diffusers, or its script")
    parser.add_argument("--lora", type=Path, help="checkout of github.com/cloneofsimo/lora")
    parser.add_argument("--size", choices=("dollhouse", "tiny", "sd15"), default="tiny")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--lr", type=float, help="default: 1e-4, for the miniature 1e-3")
    parser.add_argument("--resolution", type=int, help="default: the model's own")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="default: fp32 on a CPU, fp16 elsewhere")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--prior", action="store_true", help="with prior preservation as well")
    parser.add_argument("--text-encoder", action="store_true", help="with a trained text encoder as well")
    parser.add_argument("--ready-text", action="store_true", help="the script with its text encoder run once as well")
    parser.add_argument("--ours", nargs="+", default=[], help="settings of boothlab's own: trainer.compile=blocks …")
    parser.add_argument("--runs", type=int, default=1, help="this many runs, one a seed, as well: a sweep")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--draws", type=int, default=16, help="timesteps a photo of the loss; few where drawing is slow"
    )
    parser.add_argument("--work", type=Path, help="folder for models and runs that is kept; default: a temporary one")
    parser.add_argument("--json", type=Path, help="write every figure of every round here")
    parser.add_argument("--only-build", action="store_true", help="build the model folder in --work and stop")
    return parser.parse_args()


def photos(work: Path, resolution: int, batch: int) -> Path:
    """At least five photos, and whole batches of them: the script's last batch of a pass is what is left over."""
    count = -(-5 // batch) * batch
    return picture_folder(work / f"photos-{resolution}-{count}", NOUN, 6, count, resolution)


def cases(args: argparse.Namespace, work: Path) -> list[Case]:
    """Each batch size, and each also with prior preservation and with a trained text encoder where asked for."""
    model, own = model_folder(args.size, work)
    resolution = args.resolution or own
    fitting = {"cpu": "fp32", "cuda": "fp16"}[args.device]
    plain = Case(
        size=args.size,
        model=model,
        photos=photos(work, resolution, 1),
        class_photos=picture_folder(work / f"class-{resolution}", NOUN, 0, 8, resolution),
        resolution=resolution,
        steps=args.steps,
        batch=1,
        rank=args.rank,
        lr=args.lr or (1e-3 if args.size == "dollhouse" else 1e-4),
        precision=args.precision or fitting,
        device=args.device,
        ours=tuple(args.ours),
    )
    found = [replace(plain, batch=batch, photos=photos(work, resolution, batch)) for batch in args.batch]
    found += [replace(case, prior=True) for case in found if args.prior]
    return found + [replace(case, text_encoder=True) for case in found if args.text_encoder]


def stand_in(work: Path) -> Path:
    """A folder in which `from torchvision import transforms` finds a stand-in, where torchvision is not installed."""
    place = work / "stand-in" / "torchvision"
    place.mkdir(parents=True, exist_ok=True)
    (place / "__init__.py").write_text("", encoding="utf-8")
    shutil.copyfile(Path(__file__).parent / "against" / "stand_in.py", place / "transforms.py")
    return place.parent


def sides(args: argparse.Namespace, case: Case) -> dict[str, partial[list[str]]]:
    """How each side is called for a case: functions of the folder it writes to."""
    script = args.diffusers if args.diffusers.is_file() else args.diffusers / SCRIPT
    found = {OURS: partial(boothlab_command, case), SCRIPT_NAME: partial(script_command, script.resolve(), case)}
    if args.ready_text and not case.text_encoder:
        found[READY_NAME] = partial(script_command, script.resolve(), case, ready_text=True)
    if args.lora is not None:
        found[LORA_NAME] = partial(lora_script_command, (args.lora / LORA_SCRIPT).resolve(), case)
    return found


def environment(args: argparse.Namespace, name: str) -> dict[str, str]:
    """Nothing is fetched and nothing is sent; a GPU is hidden where the CPU is measured."""
    changes = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "TOKENIZERS_PARALLELISM": "false"}
    changes["PYTHONDONTWRITEBYTECODE"] = ""  # a checkout then has byte code, as an installed package has
    if args.device == "cpu":
        changes["CUDA_VISIBLE_DEVICES"] = ""
    if name == LORA_NAME:
        changes["PYTHONPATH"] = str(args.lora.resolve())
    return changes


def one_round(args: argparse.Namespace, case: Case, name: str, command: partial[list[str]], work: Path) -> Measured:
    """One side once. The folder it wrote is deleted again."""
    with tempfile.TemporaryDirectory(prefix="round-", dir=work) as folder:
        out = Path(folder)
        torchvision = None if name == OURS else stand_in(work)
        found = measure(command(out), out, environment(args, name), torchvision)
        files = sorted(out.glob(f"run/**/{ADAPTER}"), key=lambda path: "checkpoints" in path.parts)
        adapter = files[0]
        loss = fixed_loss(case.model, adapter, case.photos, TOKEN_PROMPT, case.resolution, case.device, args.draws)
        return replace(found, file_size=adapter.stat().st_size, loss=loss)


def compare(args: argparse.Namespace, case: Case, work: Path) -> dict[str, list[Measured]]:
    """All rounds of all sides, in turns. A side that cannot run is named, and left out from then on."""
    calls = sides(args, case)
    rounds: dict[str, list[Measured]] = {name: [] for name in calls}
    for number in range(args.rounds):
        for name, command in list(calls.items()):
            try:
                rounds[name].append(one_round(args, case, name, command, work))
            except CommandFailedError as error:
                print(f"{name} does not run:\n  " + "\n  ".join(str(error).splitlines()), flush=True)
                del calls[name]
                continue
            print(f"  round {number + 1}, {name}: {rounds[name][-1].wall:.1f} s", flush=True)
    return {name: found for name, found in rounds.items() if found}


def sweep(args: argparse.Namespace, case: Case, work: Path) -> str:
    """Several runs, one a seed: one command of ours, and one of the script's for each."""
    script = sides(args, case)[SCRIPT_NAME]
    with tempfile.TemporaryDirectory(prefix="sweep-", dir=work) as folder:
        out = Path(folder)
        ours = measure(boothlab_command(case, out, args.runs), out, environment(args, OURS), None)
        places = [out / f"script-{seed}" for seed in range(args.runs)]
        theirs = [measure(script(place), place, environment(args, SCRIPT_NAME), stand_in(work)) for place in places]
    wall, processor = sum(one.wall for one in theirs), sum(one.processor for one in theirs)
    assert ours.steps == sum(one.steps for one in theirs)
    return (
        f"{args.runs} runs of {case.name}: boothlab {ours.wall:.1f} s ({ours.processor:.1f} s of processor time), "
        f"script {wall:.1f} s ({processor:.1f} s), ratio {wall / ours.wall:.2f} ({processor / ours.processor:.2f})\n"
    )


def table(case: Case, rounds: dict[str, list[Measured]], before: float) -> str:
    """Medians with the least and the most, and the ratio of each other side to ours, as Markdown."""
    summaries = {name: summary(found) for name, found in rounds.items()}
    others = [name for name in summaries if name != OURS]
    head = ["", *summaries, *(f"{name} / boothlab" for name in others)]
    lines = [f"### {case.name}, {case.steps} steps, rank {case.rank}", ""]
    lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for figure, (label, unit, factor) in FIGURES.items():
        if any(figure not in found for found in summaries.values()):
            continue
        cells = []
        for found in summaries.values():
            middle, least, most = (factor * found[figure][key] for key in ("median", "least", "most"))
            digits = 4 if figure == "loss" else (0 if middle >= 100 else 2)
            cells.append(f"{middle:.{digits}f} ({least:.{digits}f}–{most:.{digits}f}) {unit}".strip())
        ours = summaries[OURS][figure]["median"]
        cells += [f"{summaries[name][figure]['median'] / ours:.2f}" for name in others]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"loss before training: {before:.4f}", ""])


def device_name(device: str) -> str:
    """What computed."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def run(args: argparse.Namespace, work: Path) -> None:
    """Every case: measured, printed, and written to --json."""
    wanted = cases(args, work)
    versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}, transformers {transformers.__version__}"
    print(f"{device_name(args.device)}; {versions}; {datetime.now(UTC):%Y-%m-%d}; {args.rounds} rounds")
    print("torchvision is not used: where it is missing, the script gets a stand-in for its transforms\n")
    written = []
    for case in wanted:
        before = fixed_loss(case.model, None, case.photos, TOKEN_PROMPT, case.resolution, case.device, args.draws)
        rounds = compare(args, case, work)
        print("\n" + table(case, rounds, before), flush=True)
        if args.runs > 1:
            print(sweep(args, case, work), flush=True)
        figures = {name: [asdict(one) for one in found] for name, found in rounds.items()}
        written.append({"case": case.name, "steps": case.steps, "loss_before": before, "rounds": figures})
        if args.json is not None:
            about = {"device": device_name(args.device), "versions": versions, "cases": written}
            args.json.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """As the module says."""
    args = parse()
    if args.work is None:
        with tempfile.TemporaryDirectory(prefix="boothlab-peers-") as name:
            run(args, Path(name))
        return
    args.work.mkdir(parents=True, exist_ok=True)
    if args.only_build:
        print(model_folder(args.size, args.work.resolve())[0])
    else:
        run(args, args.work.resolve())


if __name__ == "__main__":
    main()

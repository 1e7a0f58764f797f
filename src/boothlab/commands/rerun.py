"""`boothlab rerun`: a run again from its manifest alone, and the proof that it came out the same."""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from boothlab.commands.devices import company
from boothlab.errors import NonFiniteLossError, UserError
from boothlab.files import shown
from boothlab.progress import Reporter

if TYPE_CHECKING:  # torch, at run time only once the arguments are known to be good
    from boothlab.rerunning.compare import Comparison
    from boothlab.rerunning.origin import Origin
    from boothlab.rerunning.plan import Plan
    from boothlab.rerunning.recipe import Recipe

OUT = Path("outputs") / "reruns"
"""Where reruns go, each under the name of its run."""
TO_RUN = ("data", "weights", "config")
TO_CHECK = ("versions", "code", "device", "threads", "numerics", "outputs", "status")
_PASSING = ("system",)  # another kernel or release of the operating system is said, and no more
USAGE = "boothlab rerun RUN [options] [key=value …]"
ABOUT = """A run again from its manifest alone, in a new folder, then a comparison: adapter, metrics and images, bit for
bit on the same device and number of threads, else within the tolerances of docs/reruns.md. RUN is a run folder,
wherever it was copied to, or a W&B run (entity/project/run_id). Overrides that can change a result make a fork: another
run, which names this one as its parent, and is compared with nothing."""
EXAMPLES = (
    ("boothlab rerun outputs/train/RUN", "exit code 0: the same; 1: not the same, with the first difference"),
    (
        "boothlab rerun outputs/train/RUN --check",
        "run nothing: are inputs, weights, versions and outputs what they were?",
    ),
    ("boothlab rerun RUN subject.images=photos", "the photos lie elsewhere now; by their hashes they must be the same"),
    ("boothlab rerun RUN --allow data", "run it with the photos that are there"),
    ("boothlab rerun RUN optim.lr=5e-4", "a fork"),
)


class _Parser(argparse.ArgumentParser):
    """Bad arguments raise UserError, so that they end like all bad input."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `boothlab rerun --help` lists what it takes")


def run(argv: list[str]) -> int:
    """Run the command and return its exit code: 0 the same, 1 not the same."""
    parser = _parser()
    if any(word in ("-h", "--help") for word in argv):
        print(_help(parser))
        return 0
    arguments = parser.parse_intermixed_args(argv)
    allowed = _allowed(arguments.allow)
    reporter = Reporter()

    from boothlab.rerunning.origin import find_origin
    from boothlab.rerunning.recipe import read_recipe

    origin = find_origin(arguments.run)
    recipe = read_recipe(origin.manifest, arguments.overrides, allowed)
    if arguments.check:
        return _check(origin, recipe, allowed, arguments)
    out = _new_folder(arguments.out, origin, recipe)
    return _rerun(origin, recipe, allowed, out, reporter)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="boothlab rerun", add_help=False, allow_abbrev=False)
    add = parser.add_argument
    add("run", metavar="RUN", help="a run folder, or entity/project/run_id on W&B")
    add("overrides", nargs="*", metavar="key=value", help="settings: of place and machine, or those of a fork")
    add("--check", action="store_true", help="run nothing; compare what is there with the manifest")
    add(
        "--allow",
        action="append",
        default=[],
        metavar="WHAT",
        help=f"go on although it differs: {', '.join(TO_RUN)}; with --check also {', '.join(TO_CHECK)}",
    )
    add("--out", metavar="DIR", help=f"the new run folder, or an unfinished rerun; default: {OUT.as_posix()}/NAME")
    return parser


def _help(parser: argparse.ArgumentParser) -> str:
    """The page, made of the parser's own arguments."""
    rows = []
    for action in parser._actions:
        names = [action.metavar] if isinstance(action.metavar, str) else []
        rows.append((" ".join([*action.option_strings, *names]), action.help or ""))
    width = max(len(argument) for argument, _ in rows)
    options = "\n".join(f"  {argument:<{width}}  {what}" for argument, what in rows)
    examples = "\n".join(f"  {command}\n      {what}" for command, what in EXAMPLES)
    return f"usage: {USAGE}\n\n{ABOUT}\n\nexamples\n{examples}\n\noptions\n{options}"


def _allowed(words: list[str]) -> list[str]:
    found = [part.strip() for word in words for part in word.split(",") if part.strip()]
    for part in found:
        if part not in (*TO_RUN, *TO_CHECK):
            raise UserError(f"--allow {part}: must be one of {', '.join((*TO_RUN, *TO_CHECK))}")
    return found


def _check(origin: "Origin", recipe: "Recipe", allowed: list[str], arguments: argparse.Namespace) -> int:
    """The table, on standard output; 0 if nothing differs that was not allowed."""
    from boothlab.rerunning.check import State, check_lines
    from boothlab.rerunning.plan import make_plan

    if recipe.forks:
        raise UserError(f"--check runs nothing; leave out {min(recipe.forks)}=…")
    if arguments.out:
        raise UserError("--check writes nothing; leave out --out")
    with tempfile.TemporaryDirectory(prefix="boothlab-check-") as cache:
        lines = check_lines(make_plan(origin, recipe, Path(cache)))
    width = max(len(line.what) for line in lines)
    for line in lines:
        print(f"{line.what:<{width}}  {line.state:<12}  {line.detail}".rstrip())
    wrong = [line for line in lines if line.state is State.DIFFERS and line.area not in (*allowed, *_PASSING)]
    if wrong:
        print(f"{origin.name}: {len(wrong)} of {len(lines)} differ, first {wrong[0].what}")
        return 1
    print(f"{origin.name}: all is as its manifest says")
    return 0


def _new_folder(asked: str | None, origin: "Origin", recipe: "Recipe") -> Path:
    """The folder given, which must be new, empty or hold this rerun unfinished; else the first that is free.

    A second rerun keeps the run's name, which goes into its adapter file, and gets another folder above it.
    """
    from boothlab.compose.naming import run_name
    from boothlab.tracking.manifest import read_manifest

    if asked is not None:
        out = Path(asked).expanduser()
        if out.is_file():
            raise UserError(f"--out {shown(out)}: is a file; give a folder")
        if out.is_dir() and any(out.iterdir()):
            begun: dict[str, Any] = read_manifest(out) if (out / "manifest.json").is_file() else {}
            if begun.get("status") == "finished" or begun.get("parent") != _parent(origin, recipe):
                raise UserError(f"--out {shown(out)}: holds something else; give a new folder")
        return out
    name = run_name(recipe.resolved) if recipe.forks else origin.name
    outputs = recipe.changes.get("paths.outputs")
    base = Path(str(outputs[1])).expanduser() / OUT.name if outputs else OUT
    folders = (base / name, *(base / f"again-{number}" / name for number in range(2, 10_000)))
    return next(folder for folder in folders if not folder.exists())


def _parent(origin: "Origin", recipe: "Recipe") -> dict[str, Any]:
    """What the manifest says of the run that is repeated: a fork when `fork` is true, with what was changed."""
    return {
        "run": origin.name,
        "config_hash": origin.manifest.get("config_hash"),
        "fork": bool(recipe.forks),
        "changes": {key: {"from": before, "to": after} for key, (before, after) in sorted(recipe.changes.items())},
    }


def _rerun(origin: "Origin", recipe: "Recipe", allowed: list[str], out: Path, reporter: Reporter) -> int:
    from boothlab.rerunning.plan import make_plan
    from boothlab.tracking.lock import owned

    # A cache of its own, or the rerun would be handed the very images and latents that it is to make again.
    out.parent.mkdir(parents=True, exist_ok=True)
    own = tempfile.TemporaryDirectory(dir=out.parent, prefix=".cache-", ignore_cleanup_errors=True)
    with own as folder:
        given = recipe.changes.get("paths.cache")
        plan = make_plan(origin, recipe, Path(str(given[1])).expanduser() if given and given[1] else Path(folder))
        let_pass = plan.refuse(allowed)
        with owned(out):
            _say(plan, let_pass, out, reporter)
            failure = _run(plan, out, reporter)
    if recipe.forks:
        return _show_fork(plan, out, failure, reporter)
    known = [*let_pass, *(str(one) for one in plan.circumstances)]
    return _report(plan, _compare(plan, out), known, out, reporter)


def _say(plan: "Plan", let_pass: list[str], out: Path, reporter: Reporter) -> None:
    """What is run, and every difference that is known before it starts."""
    recipe, manifest = plan.recipe, plan.origin.manifest
    reporter.say(f"{plan.origin.name}, in {shown(out)}", tag="fork of " if recipe.forks else "rerun of", style="green")
    for key, (before, after) in sorted(recipe.changes.items()):
        reporter.say(f"{key}: {before} → {after}", tag="changed ")
    for line in (*recipe.warnings, *let_pass):
        reporter.warn(line)
    for one in plan.circumstances:
        reporter.warn(str(one))
    for material in plan.materials:
        if material.gathered or material.same is None:
            reporter.say(f"{material.what}: {material.detail}")
    if manifest.get("status") != "finished":
        reporter.warn(f"the run is {manifest.get('status')}, not finished; what it left so far is compared")
    if manifest.get("earlier_attempts"):
        reporter.say(f"the run was made in {len(manifest['earlier_attempts']) + 1} sittings, this one in one")


def _run(plan: "Plan", out: Path, reporter: Reporter) -> NonFiniteLossError | None:
    """Train, edit or score. A loss that is not finite is what a failed run may have ended with, and is given back."""
    from boothlab.building import build_score_run, build_training_run
    from boothlab.building.edit import build_edit_run
    from boothlab.dreambooth.run import execute

    parent = _parent(plan.origin, plan.recipe)
    config, training = plan.settle(out)
    resolved = plan.recipe.resolved
    if plan.recipe.kind == "score":
        assert plan.adapter is not None
        scoring = build_score_run(config, training, plan.adapter, resolved, out, sys.argv, reporter, parent)
        with scoring.tracker:
            scoring.execute()
        return None
    if plan.recipe.kind == "edit":
        editing = build_edit_run(config, resolved, out, sys.argv, reporter, parent)
        with editing.tracker:
            editing.execute()
        return None
    try:
        with company(config) as others:
            others.meet()
            run = build_training_run(config, resolved, out, sys.argv, reporter, parent, others.ranks)
            with run.tracker, others.explained():
                execute(run)
    except NonFiniteLossError as error:
        if plan.origin.manifest.get("status") != "failed":
            raise
        return error
    return None


def _show_fork(plan: "Plan", out: Path, failure: NonFiniteLossError | None, reporter: Reporter) -> int:
    from boothlab.tracking.show import show_run

    if failure is not None:
        raise failure
    show_run(out, reporter.console)
    changed = ", ".join(f"{key} {before} → {after}" for key, (before, after) in sorted(plan.recipe.forks.items()))
    print(f"{out.name}: a fork of {plan.origin.name} ({changed}); not compared")
    return 0


def _compare(plan: "Plan", out: Path) -> "Comparison":
    from boothlab.rerunning.compare import BIT_FOR_BIT, WITHIN_TOLERANCE, WITHIN_TOLERANCE_IN_HALF, Side, compare_runs
    from boothlab.tracking.manifest import read_manifest

    before, after = Side(plan.origin.folder, plan.origin.manifest), Side(out, read_manifest(out))
    # Losses are means over the steps between two rows.
    skipped = ("train/",) if "trainer.log_every" in plan.recipe.changes else ()
    half = plan.training["backbone"].get("precision", "fp32") != "fp32"
    otherwise = WITHIN_TOLERANCE_IN_HALF if half else WITHIN_TOLERANCE
    return compare_runs(before, after, BIT_FOR_BIT if plan.exact else otherwise, skipped)


def _report(plan: "Plan", comparison: "Comparison", known: list[str], out: Path, reporter: Reporter) -> int:
    """The findings and the verdict, on standard output. `known` is what differed before it was run."""
    width = max((len(one.what) for one in comparison.findings), default=0)
    for one in comparison.findings:
        print(f"{one.what:<{width}}  {one.verdict:<21}  {one.detail}")
    if comparison.same:
        print(f"same: {plan.origin.name} can be made again ({'bit for bit' if plan.exact else 'within tolerance'})")
        return 0
    first = comparison.first
    if first is None:
        print(f"nothing to compare: {shown(plan.origin.folder)} holds no results")
        return 1
    print(f"first difference: {first.what}, {first.detail}")
    if first.hint:
        print(f"hint: {first.hint}")
    if known:
        print(f"known to differ: {'; '.join(known)}")
    reporter.say(shown(out), tag="rerun   ")
    return 1

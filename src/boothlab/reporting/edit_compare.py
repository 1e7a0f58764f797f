"""A human study of two editing runs: the same image under the same edit by both, beside the source and the instruction.

What the scores cannot settle, people can: which of two pictures follows the instruction, and which keeps the rest.
"""

from pathlib import Path

from boothlab.errors import UserError
from boothlab.files import sha256_file, shown
from boothlab.reporting.comparison import EDITING, SIDES, Comparison, Pair, write_page
from boothlab.reporting.edit_runs import EditRun, Key
from boothlab.reporting.edit_runs import Pair as Edited
from boothlab.seeding import derive_seed

MOST_PAIRS = 60
"""Two questions each: half an hour of somebody's time, and a page that opens."""


def write_edit_comparison(run_a: EditRun, run_b: EditRun, path: Path, *, seed: int = 0) -> tuple[int, int]:
    """Write the page to `path` and its key beside it (`comparison.key_path`); returns the pairs asked and those there.

    Every image, edit and seed that both runs have gives two questions. Of more than MOST_PAIRS some are drawn from
    `seed`. The page names no run. The same runs and seed give the same two files.

    Raises:
        UserError: a run against itself, runs without a picture in common, edits or sources that differ under one name,
            a method that draws its own sources, a damaged image, or a place that cannot be written.
    """
    if run_a.folder.resolve() == run_b.folder.resolve():
        raise UserError(f"{shown(run_a.folder)}: is compared with itself; give two different runs")
    for run in (run_a, run_b):
        if run.own_sources:
            what = f"{run.method} draws its own sources, so there is no common one to keep anything of"
            raise UserError(f"{shown(run.name)}: {what}; give a run of another method")
    common = sorted(run_a.by_key.keys() & run_b.by_key.keys())
    found = [pair for key in common if (pair := _pair(key, run_a.by_key[key], run_b.by_key[key]))]
    if not found:
        names = f"{shown(run_a.name)} and {shown(run_b.name)}"
        raise UserError(f"{names} have no picture of the same image, edit and seed; compare runs of the same images")
    chosen = sorted(found, key=lambda pair: derive_seed(seed, "compare/chosen", *pair.identity))[:MOST_PAIRS]
    runs = {
        side: {"name": run.name, "setting": run.record.setting, "seed": run.record.seed, "step": 1}
        for side, run in zip(SIDES, (run_a, run_b), strict=True)
    }
    origin = "Each pair of images is one source, edited in two ways."
    compared = Comparison(runs, sorted(chosen, key=lambda pair: pair.identity), EDITING, "The source", origin)
    write_page(compared, path, seed)
    return len(chosen), len(found)


def _pair(key: Key, one: Edited, other: Edited) -> Pair | None:
    """What both made of one image; None if a picture is missing. UserError if it was not the same that was asked."""
    image, edit, seed = key
    files = [one.file, other.file, one.source, other.source]
    if not all(file and file.is_file() for file in files):
        return None
    drawn_a, drawn_b, source_a, source_b = (file for file in files if file)
    if one.instruction != other.instruction:
        raise UserError(
            f"the edit {shown(edit)} of {shown(image)} has two instructions; compare runs of the same edits"
        )
    if sha256_file(source_a) != sha256_file(source_b):
        raise UserError(f"the image {shown(image)} is not the same in both runs; compare runs of the same images")
    told = {"image": image, "edit": edit, "seed": seed, "instruction": one.instruction}
    return Pair((image, edit, str(seed)), told, (drawn_a, drawn_b), one.instruction, source_a)

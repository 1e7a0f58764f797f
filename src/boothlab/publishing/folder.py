"""The folder that is published: adapter files for each tool, the card, sample images, and nothing of this machine."""

from pathlib import Path
from typing import Any

from PIL import Image

from boothlab.errors import UserError
from boothlab.files import atomic_directory, sha256_file, shown, write_text
from boothlab.images.grid import build_grid, save_png
from boothlab.images.load import load_image
from boothlab.progress import Reporter
from boothlab.publishing.card import MARK, card_text
from boothlab.publishing.facts import Facts, read_facts
from boothlab.publishing.privacy import told_by
from boothlab.publishing.products import write_products
from boothlab.publishing.weights import header_text

GALLERY = 8
"""Images in the hub's gallery: as many prompts, one each."""


def build_folder(
    run_dir: Path,
    out: Path,
    *,
    base_model: str | None = None,
    licence: str | None = None,
    photos: bool = False,
    checkpoint: str = "last",
    best_by: str | None = None,
    repo: str | None = None,
    reporter: Reporter | None = None,
) -> tuple[Facts, list[Path]]:
    """Write the folder for one step of a finished run, replacing one that this wrote before; returns facts and files.

    Raises UserError for a run or a step that cannot be published, and when a text would give this machine away.
    """
    run, facts = read_facts(run_dir, base_model, licence, checkpoint, best_by)
    if out.exists() and not _is_ours(out):
        raise UserError(f"out={shown(out)}: is there and was not written by this command; name another folder")
    with atomic_directory(out, replace=True) as folder:
        files = write_products(facts, folder, reporter or Reporter(quiet=True))
        if photos:
            _copy_photos(run.manifest, folder)
            facts.notes.append("photos/")
        gallery = _gallery(facts, folder)
        grid = _grid(facts, folder)
        write_text(folder / "README.md", card_text(facts, files, gallery, grid, repo))
        _refuse_told(folder, run_dir)
    return facts, sorted(path for path in out.rglob("*") if path.is_file())


def _refuse_told(folder: Path, run_dir: Path) -> None:
    """Raise UserError when the card, a config or what stands in a file of weights would give this machine away."""
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".md", ".json", ".safetensors")):
        text = header_text(path) if path.suffix == ".safetensors" else path.read_text(encoding="utf-8")
        if told := told_by(text, run_dir):
            what = "the card" if path.name == "README.md" else shown(path.relative_to(folder).as_posix())
            raise UserError(f"run={shown(run_dir)}: {what} would tell {' and '.join(told)}; rename what says it")


def _is_ours(out: Path) -> bool:
    """Whether a folder may be replaced: an empty one, or one with a card of ours."""
    card = out / "README.md"
    if not out.is_dir():
        return False
    return not any(out.iterdir()) or (card.is_file() and MARK in card.read_text(encoding="utf-8", errors="replace"))


def _gallery(facts: Facts, folder: Path) -> list[tuple[str, str]]:
    """(prompt, path) of the first image of the first prompts, copied."""
    chosen: dict[str, Path] = {}
    for prompt, path in facts.samples:
        chosen.setdefault(prompt, path)
    made = []
    for prompt, path in list(chosen.items())[:GALLERY]:
        name = f"images/{path.name}"
        save_png(folder / name, _picture(path))
        made.append((prompt, name))
    return made


def _grid(facts: Facts, folder: Path) -> str | None:
    """All samples by prompt and seed. Drawn anew: the run's own grid shows the subject's photos."""
    rows: dict[str, list[Path]] = {}
    for prompt, path in facts.samples:
        rows.setdefault(prompt, []).append(path)
    most = max(map(len, rows.values()), default=0)
    whole = [(prompt, [_picture(path) for path in paths]) for prompt, paths in rows.items() if len(paths) == most]
    if not whole:
        return None
    seeds = [path.stem.split("_")[-1].replace("seed", "seed ") for path in next(iter(rows.values()))]
    save_png(folder / "images" / "grid.png", build_grid(whole, seeds, [], f"step {facts.step}"))
    return "images/grid.png"


def _picture(path: Path) -> Image.Image:
    """A sample's pixels alone: what else is in the file stays behind."""
    with Image.open(path) as image:
        return image.convert("RGB")


def _copy_photos(manifest: dict[str, Any], folder: Path) -> None:
    """The photos that were trained on, without what cameras write into them. Raises UserError when one has changed."""
    for number, (name, digest) in enumerate(sorted((manifest.get("inputs") or {}).items())):
        path = Path(name)
        if not path.is_file() or sha256_file(path) != digest:
            raise UserError(f"photos=true: {shown(path)} is gone or another file than was trained on; leave photos out")
        save_png(folder / "photos" / f"photo_{number:02d}.png", load_image(path))

"""Drawing: the images of a run, batch by batch into a folder, and what is there already when a run goes on."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch.utils.data import DataLoader

from boothlab.editing.checks import check, check_texts
from boothlab.editing.edits import EditTask
from boothlab.editing.methods import (
    EditInput,
    EditMethod,
    EditOutput,
    EditParts,
    EditSettings,
    edit_batch,
    needs,
)
from boothlab.errors import UserError, memory_explained
from boothlab.files import shown, write_bytes
from boothlab.images.grid import png_bytes
from boothlab.loops import quiet_lightning, signals_told
from boothlab.progress import Bar, Reporter
from boothlab.quiet import quiet_libraries

NOTES = "boothlab"
"""The text chunk of a PNG that says how it was made, so that a run that goes on knows it."""


@dataclass(frozen=True)
class Item:
    """One image to make: a task (an image under an edit) and a seed."""

    task: EditTask
    seed: int

    @property
    def stem(self) -> str:
        """Its file name without `.png`."""
        return f"{self.task.image_name}__{self.task.edit.name}__s{self.seed}"


@dataclass(frozen=True)
class Drawn:
    """One image that was made: `steps` denoising steps that were run, and what was noted on the way."""

    item: Item
    image: Image.Image
    source: Image.Image
    steps: int
    notes: tuple[str, ...]


def items_of(tasks: Sequence[EditTask], seeds: Sequence[int]) -> list[Item]:
    """Every image of a run, in order. An edit with a seed of its own is drawn with that one alone."""
    found = []
    for task in tasks:
        own = task.edit.settings.get("seed")
        found += [Item(task, seed) for seed in ([int(own)] if own is not None else seeds)]
    return found


def settings_for(task: EditTask, settings: EditSettings) -> EditSettings:
    """The run's settings with those of the edit itself."""
    own: dict[str, Any] = {key: value for key, value in task.edit.settings.items() if key != "seed"}
    return replace(settings, **own)


def batches_of(items: Sequence[Item], settings: EditSettings, size: int) -> list[list[Item]]:
    """Batches of equal settings, each of at most `size` images, in the order of the items."""
    alike: dict[str, list[Item]] = {}
    for item in items:
        alike.setdefault(repr(settings_for(item.task, settings)), []).append(item)
    return [group[start : start + size] for group in alike.values() for start in range(0, len(group), size)]


class Canvas:
    """Draws batches of items into a folder: one PNG an item, and the condition maps that were used."""

    def __init__(self, method: EditMethod, parts: EditParts, settings: EditSettings, folder: Path):
        self.method, self.parts, self.settings, self.folder = method, parts, settings, folder

    def path(self, item: Item) -> Path:
        """Where an item's image goes."""
        return self.folder / f"{item.stem}.png"

    def source_path(self, item: Item) -> Path:
        """What the method makes of the source: its own source (fixed_noise), or a reconstruction to look at."""
        kind = "source" if self.method is EditMethod.fixed_noise else "reconstruction"
        return self.folder / f"{item.stem}__{kind}.png"

    def condition_path(self, item: Item, kind: str) -> Path:
        """Where a condition map goes: one for all edits and seeds of an image."""
        return self.folder / "conditions" / f"{item.task.image_name}__{kind}.png"

    def input_of(self, item: Item) -> EditInput:
        """The item's texts and the pictures that the method needs, loaded now: one batch of them is in memory."""
        task = item.task
        kinds = needs(self.method, settings_for(task, self.settings)).controls
        return EditInput(
            image=task.source(),
            instruction=task.edit.instruction,
            source_caption=task.edit.source_caption,
            target_caption=task.edit.target_caption,
            mask=task.mask() if task.mask else None,
            controls={kind: task.controls[kind]() for kind in kinds if kind in task.controls},
            seed=item.seed,
            name=self.name_of(item),
        )

    def name_of(self, item: Item) -> str:
        """What messages call it."""
        return f"{item.task.image_name}, {item.task.edit.name}"

    def draw(self, items: Sequence[Item]) -> None:
        """Make a batch of equal settings and write it; images of several sizes are made size by size."""
        settings = settings_for(items[0].task, self.settings)
        inputs = [self.input_of(item) for item in items]
        sizes = list(dict.fromkeys(one.image.size for one in inputs))
        for size in sizes:
            chosen = [index for index, one in enumerate(inputs) if one.image.size == size]
            made = edit_batch(self.method, self.parts, [inputs[index] for index in chosen], settings)
            for index, output in zip(chosen, made, strict=True):
                self._write(items[index], output)

    def _write(self, item: Item, output: EditOutput) -> None:
        for kind, picture in output.conditions.items():
            if not self.condition_path(item, kind).is_file():
                write_bytes(self.condition_path(item, kind), png_bytes(picture))
        if output.source is not None:
            write_bytes(self.source_path(item), png_bytes(output.source))
        info = PngInfo()
        info.add_text(NOTES, json.dumps({"steps": output.steps_run, "notes": list(output.notes)}))
        write_bytes(self.path(item), png_bytes(output.image, info))  # last: it says that the item is done

    def read(self, item: Item) -> Drawn:
        """An item that was drawn. Raises UserError if its file is not what was written."""
        path = self.path(item)
        try:
            with Image.open(path) as file:
                file.load()
                noted = json.loads(file.text[NOTES])  # type: ignore[attr-defined]
                image = file.convert("RGB")
            source = item.task.source()
            if self.method is EditMethod.fixed_noise:
                with Image.open(self.source_path(item)) as file:
                    source = file.convert("RGB")
            return Drawn(item, image, source, int(noted["steps"]), tuple(noted["notes"]))
        except (OSError, ValueError, KeyError, TypeError, SyntaxError) as error:
            raise UserError(f"{shown(path)}: cannot be read ({error}); delete it, and it is made again") from error

    def is_drawn(self, item: Item) -> bool:
        """Whether the item is there and whole."""
        if not self.path(item).is_file():
            return False
        try:
            self.read(item)
        except UserError:
            self.path(item).unlink()
            return False
        return True


class _Drawing(pl.LightningModule):
    """Lightning's predict loop over batches: it shares them among devices."""

    def __init__(self, canvas: Canvas, batches: Sequence[Sequence[Item]], bar: Bar | None):
        super().__init__()
        self.canvas, self.batches, self.bar = canvas, batches, bar

    def predict_step(self, number: torch.Tensor) -> None:
        batch = self.batches[int(number)]
        self.canvas.draw(batch)
        if self.bar is not None:
            self.bar.advance(len(batch))


def _check_all(canvas: Canvas, items: Sequence[Item], batches: Sequence[Sequence[Item]]) -> None:
    """Refuse what would not work before the first long computation: texts of all, pictures and settings of some."""
    for batch in batches:
        task = batch[0].task
        try:
            check(canvas.method, [canvas.input_of(batch[0])], settings_for(task, canvas.settings), canvas.parts)
        except UserError as error:
            named = not task.edit.settings or str(error).startswith(canvas.name_of(batch[0]))
            raise (error if named else UserError(f"the edit {shown(task.edit.name)}: {error}")) from error
    for item in items:
        check_texts(canvas.method, canvas.name_of(item), item.task.edit, canvas.settings)


def draw_all(
    canvas: Canvas, items: Sequence[Item], batch_size: int, trainer_arguments: Mapping[str, Any], reporter: Reporter
) -> float:
    """Draw what is not there yet; returns the seconds it took. What was drawn before an interruption is kept."""
    missing = [item for item in items if not canvas.is_drawn(item)]
    if not missing:
        return 0.0
    batches = batches_of(missing, canvas.settings, batch_size)
    _check_all(canvas, missing, batches)
    remedy = f"lower batch_size={batch_size}, or the size of the images"
    started = time.perf_counter()
    quiet_lightning()
    several = int(trainer_arguments.get("devices", 1)) > 1
    with (
        reporter.bar(f"{canvas.method.value}: drawing", len(missing)) as bar,
        memory_explained(lambda: "while editing", remedy),
        quiet_libraries(),
    ):
        trainer = pl.Trainer(
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            strategy="ddp_spawn" if several else "auto",
            **trainer_arguments,
        )
        drawing = _Drawing(canvas, batches, None if several else bar)
        loader: DataLoader[int] = DataLoader(range(len(batches)), batch_size=None)  # type: ignore[arg-type]
        with torch.no_grad(), signals_told(trainer):
            trainer.predict(drawing, loader, return_predictions=False)
    return time.perf_counter() - started

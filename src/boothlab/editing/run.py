"""An editing run on one screen: draw what is missing, score all of it, write and log what came out."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from boothlab.editing.drawing import Canvas, Drawn, Item, draw_all
from boothlab.editing.edits import EditTask
from boothlab.editing.logged import log_pictures, log_settings, shared_parameters
from boothlab.editing.record import PairRow, write_grid, write_pictures, write_scores
from boothlab.evaluation.edit_definitions import definitions, with_values
from boothlab.evaluation.edit_metrics import EDIT_SCORES, EditScore, metric_key
from boothlab.evaluation.edit_scores import EditedPair, EditScorer
from boothlab.evaluation.edit_summary import EditSummary, summarise
from boothlab.evaluation.preservation import Picture
from boothlab.progress import Reporter
from boothlab.tracking import metrics
from boothlab.tracking.run import Tracker

SOURCE_STEP, EDITED_STEP = 0, 1
"""The steps that scores are logged under: the unedited sources, which every method must beat, and the edits."""
HEADLINE = ("clip_directional", "clip_image", "clip_t", "psnr_outside", "psnr_truth", "happened")
BY_CAPTIONS = ("clip_directional", "clip_t")
MOST_NOTES = 5
Reader = Callable[[Sequence[Picture]], dict[str, list[str]]]
"""Reads facts in pictures: the name of each fact to its value in every picture."""


@dataclass
class EditRun:
    """One method over images, edits and seeds. `suffix` names encoders other than the published ones."""

    canvas: Canvas
    tasks: Sequence[EditTask]
    items: Sequence[Item]
    scorer: EditScorer
    reader: Reader | None
    suffix: str
    batch_size: int
    trainer_arguments: dict[str, Any]
    tracker: Tracker
    reporter: Reporter
    seed: int

    def execute(self) -> None:
        """Draw, score, write, log. Call inside the open tracker; an interrupted run goes on where it stopped."""
        samples = self.canvas.folder.parent
        write_pictures(samples, self.tasks)
        sampling = draw_all(self.canvas, self.items, self.batch_size, self.trainer_arguments, self.reporter)
        started = time.perf_counter()
        edited, copied = self._score()
        more = {metrics.SAMPLING_SECONDS: sampling, metrics.SCORING_SECONDS: time.perf_counter() - started}
        self._finish(SOURCE_STEP, samples / "step_000000", copied, {})
        more |= shared_parameters(self.canvas, self.items)
        summary = self._finish(EDITED_STEP, self.canvas.folder, edited, more)
        line = headline(summary)
        encoders = f"   ({self.suffix} encoders)" if self.suffix else ""
        grid = write_grid(self.canvas, edited, f"{self.canvas.method.value}   {line}{encoders}")
        self._log(edited, summary, grid)
        self._tell(edited, summary, line)

    def _score(self) -> tuple[list[PairRow], list[PairRow]]:
        """Every image's scores, and those that its source would have had unedited."""
        edited: list[PairRow] = []
        copied: list[PairRow] = []
        with self.reporter.bar("scoring", len(self.items)) as bar:
            for start in range(0, len(self.items), self.batch_size):  # pictures of one batch at a time
                drawn = [self.canvas.read(item) for item in self.items[start : start + self.batch_size]]
                for rows, as_copy in ((edited, False), (copied, True)):
                    pairs = [pair_of(one, as_copy=as_copy) for one in drawn]
                    readings = self.reader([pair.edited for pair in pairs]) if self.reader else {}
                    for index, score in enumerate(self.scorer.score(pairs)):
                        read = {name: values[index] for name, values in readings.items()}
                        rows.append(_row(drawn[index], score, read, 0 if as_copy else drawn[index].steps))
                bar.advance(len(drawn))
        return edited, copied

    def _finish(self, step: int, folder: Path, rows: list[PairRow], more: dict[str, float]) -> EditSummary:
        """Means with intervals over images, into the step's folder and the history."""
        summary = summarise([row.row for row in rows], self.seed)
        write_scores(folder, step, rows, summary, with_values(definitions(self.scorer), summary))
        values = {metric_key(name, self.suffix): mean.value for name, mean in summary.overall.items()}
        self.tracker.log(step, {key: value for key, value in values.items() if value is not None} | more)
        return summary

    def _log(self, rows: list[PairRow], summary: EditSummary, grid: Path) -> None:
        """Counts for the summary; pictures, tables and curves for W&B."""
        counts = {"images": len(rows), "edits": summary.edits, "sources": summary.images}
        counts["table_rows"] = log_pictures(self.tracker, self.canvas, rows, grid, EDITED_STEP)
        log_settings(self.tracker, self.canvas, rows, EDITED_STEP)
        self.tracker.note("counts", counts)
        if counts["table_rows"] < len(rows) and self.tracker.mirrored:
            self.reporter.say(f"W&B's table of pictures has the first {counts['table_rows']} of {len(rows)}")

    def _tell(self, rows: list[PairRow], summary: EditSummary, line: str) -> None:
        """What a person should know of the run: the headline, what was odd, and what was not measured."""
        self.reporter.say(f"{self.canvas.method.value}: {len(rows)} image{'' if len(rows) == 1 else 's'}   {line}")
        for note in self.canvas.parts.notes:
            self.reporter.warn(note)
        told = list(dict.fromkeys(note for row in rows for note in (*row.item.task.notes, *row.notes)))
        for note in told[:MOST_NOTES]:
            self.reporter.say(note)
        if len(told) > MOST_NOTES:
            self.reporter.say(f"and {len(told) - MOST_NOTES} more notes, in samples/step_000001/metrics.json")
        missing: dict[tuple[str, int], list[str]] = {}
        for name, mean in summary.overall.items():
            # That a whole run has no masks or answers is known; that its captions do not serve is not.
            for reason, count in mean.absent.items() if mean.rows or name in BY_CAPTIONS else ():
                missing.setdefault((reason, count), []).append(EDIT_SCORES[name].label)
        for (reason, count), labels in missing.items():
            more = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
            self.reporter.say(f"{count} of {len(rows)} images have no {labels[0]}{more}: {reason}")


def headline(summary: EditSummary) -> str:
    """The best known scores in one line."""
    means = {name: summary.overall[name].value for name in HEADLINE if name in summary.overall}
    return "  ".join(f"{EDIT_SCORES[name].label} {value:.3f}" for name, value in means.items() if value is not None)


def _row(drawn: Drawn, score: EditScore, read: Mapping[str, str], steps: int) -> PairRow:
    """A scored image with what is not the scorer's to measure: whether the edit happened, and the steps it took."""
    fact = drawn.item.task.fact
    if fact is None or fact[0] not in read:
        return PairRow.of(drawn, score.plus({"effective_steps": float(steps)}, {"happened": "nothing reads it"}))
    name, wanted = fact
    happened = float(read[name] == wanted)
    return PairRow.of(drawn, score.plus({"effective_steps": float(steps), "happened": happened}), read[name])


def pair_of(drawn: Drawn, *, as_copy: bool = False) -> EditedPair:
    """What is scored; `as_copy` takes the source for the edited picture."""
    task = drawn.item.task
    source = np.array(drawn.source)
    return EditedPair(
        source=source,
        edited=source if as_copy else np.array(drawn.image),
        source_caption=task.edit.source_caption,
        target_caption=task.edit.target_caption,
        mask=np.array(task.mask().convert("L")) > 127 if task.mask else None,
        truth=np.array(task.truth().convert("RGB")) if task.truth else None,
    )

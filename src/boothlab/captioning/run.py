"""A captioning run on one screen: audit, then captions batch by batch, then tables; it goes on where it was stopped."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from boothlab.captioning.captions import Made, Maker, Views
from boothlab.captioning.groups import Groups
from boothlab.captioning.journal import KEPT, Captioned, Entry, Journal
from boothlab.captioning.record import write_captions, write_tags
from boothlab.captioning.sidecars import Sidecars, sidecar_key
from boothlab.files import shown
from boothlab.images.collection import AuditSettings, audit_collection, in_order
from boothlab.images.collection_store import CollectionStore, FileRecord
from boothlab.images.collection_tables import write_audit_csv, write_audit_markdown
from boothlab.images.load import ImageError, read_image
from boothlab.progress import Reporter
from boothlab.tracking.run import Tracker

MOST_WARNINGS = 5
_TABLE_ROWS = 1000


@dataclass(frozen=True)
class Item:
    """An image on its way to a caption. `kept` is the caption that stays; `views` is None where none is looked at."""

    record: FileRecord
    kept: str | None
    sidecar: str | None
    note: str
    views: Views | None = None
    problem: str = ""


@dataclass
class CaptionRun:
    """The audit of a folder and captions for what it accepts. Without a `maker` it is the audit alone.

    `known_side` is the longest side, in pixels, of the pictures that the models were made for; None for any.
    """

    images: Path
    run_dir: Path
    audit: AuditSettings
    store: CollectionStore
    journal: Journal
    maker: Maker | None
    sidecars: Sidecars | None
    groups: Groups
    overwrite: bool
    batch_size: int
    threads: int | None
    known_side: int | None
    tracker: Tracker
    reporter: Reporter
    report: Callable[[Mapping[str, float]], None] = lambda figures: None
    warnings: list[str] = field(default_factory=list)

    def execute(self) -> None:
        """Audit, caption, write, log. Call inside the open tracker."""
        started = time.perf_counter()
        audit_collection(self.images, self.audit, self.store, self.reporter, self.threads)
        self.tracker.note("timings", {"audit_seconds": time.perf_counter() - started})
        self._tell_audit()
        started = time.perf_counter()
        if self.maker is not None:
            self._tell_strangers()
            self._caption_all(self.maker)
        self.tracker.note("timings", {"caption_seconds": time.perf_counter() - started})
        self._write()

    def close(self) -> None:
        """Close the notebooks of a run that has finished. The captions' has done its work: the side-cars are there."""
        self.store.close()
        self.journal.close()
        self.journal.path.unlink(missing_ok=True)

    def _tell_audit(self) -> None:
        write_audit_csv(self.run_dir / "audit.csv", self.store)
        write_audit_markdown(self.run_dir / "audit.md", self.store, self.images)
        counts = self.store.counts()
        alike = {
            name: self.store.query("count(*)", f"WHERE {name}_of IS NOT NULL")[0][0]
            for name in ("duplicate", "near_duplicate")
        }
        found = {status: counts.get(status, 0) for status in ("accepted", "rejected", "ignored")}
        self.tracker.note("counts", found | {f"{name}s": count for name, count in alike.items()})
        line = "   ".join(f"{count} {status}" for status, count in found.items())
        more = f"   {alike['duplicate']} duplicates, {alike['near_duplicate']} near duplicates among the accepted"
        self.reporter.say(line + (more if any(alike.values()) else ""), tag="audit", style="green")
        for path, reason in self.store.query("path, reason", "WHERE status='rejected' ORDER BY place LIMIT 3"):
            self.reporter.say(f"  {shown(os.fsdecode(path))}: {reason}")
        if found["rejected"] > 3:
            self.reporter.say(f"  and {found['rejected'] - 3} more, in {shown(self.run_dir / 'audit.csv')}")

    def _tell_strangers(self) -> None:
        """Pictures too large to be what the models know: what is said of them will be confident and wrong."""
        if self.known_side is None:
            return
        of_these = f"WHERE status='accepted' AND max(width, height) > {self.known_side}"
        if (count := self.store.query("count(*)", of_these)[0][0]) > 0:
            total = self.store.counts().get("accepted", 0)
            self.reporter.warn(
                f"{count} of {total} images have sides of more than {self.known_side} pixels, and the miniature models "
                "know nothing but the dollhouse; for photographs take models=standard"
            )

    def _caption_all(self, maker: Maker) -> None:
        assert self.sidecars is not None
        self._finish_writing()
        total = self.store.counts().get("accepted", 0)
        if done := self.journal.count():
            self.reporter.say(f"{done} images are done, {max(total - done, 0)} are left", tag="captions go on")
        workers = self.threads or 2
        with self.reporter.bar("captions", total) as bar:
            bar.advance(min(done, total))
            loaded = in_order(self._waiting(maker), lambda item: _load(self.images, item, maker), workers)
            while batch := list(islice(loaded, self.batch_size)):
                self._caption_batch(maker, batch)
                bar.advance(len(batch))
        self._tell_warnings()

    def _finish_writing(self) -> None:
        """Write what a killed run had noted; what somebody has put there since is theirs."""
        assert self.sidecars is not None
        left = list(self.journal.unwritten())
        free = [one for one in left if self.overwrite or not self.sidecars.occupied(one.file)]
        self.sidecars.write((one.file, one.caption) for one in free)
        self.journal.mark_written([one.file for one in left])

    def _waiting(self, maker: Maker) -> Iterator[Item]:
        """The images that have no caption in the journal, with what is known of them before they are loaded."""
        assert self.sidecars is not None
        taken: dict[str, str] = {}
        for record in self.store.records("status = 'accepted'"):
            if self.journal.get(record.file, record.sha256) is not None:
                continue
            key = sidecar_key(record.file)
            owner = taken.get(key) or self.journal.owner(key)
            if owner is not None and owner != record.file:
                note = f"its side-car is that of {owner}: rename one of the two"
                self.warnings.append(f"{shown(record.file)}: {note}")
                yield Item(record, None, None, note)
                continue
            taken[key] = record.file
            if len(taken) > 16 * self.batch_size + 1024:  # what is older is in the journal
                del taken[next(iter(taken))]
            kept, note = (None, "") if self.overwrite else self._existing(record.file)
            yield Item(record, kept, None if note else key, note)

    def _existing(self, file: str) -> tuple[str | None, str]:
        """The caption that is there and stays; or why what is there is no caption, and stays too."""
        assert self.sidecars is not None
        said: list[str] = []
        kept = self.sidecars.existing(file, said)
        if kept is None and self.sidecars.occupied(file):
            self.warnings.extend(said)
            return (
                None,
                f"{shown(self.sidecars.path_of(file).name)} is there and is no caption; overwrite=true replaces it",
            )
        return kept, ""

    def _caption_batch(self, maker: Maker, batch: list[Item]) -> None:
        assert self.sidecars is not None
        for item in batch:
            if item.problem:
                self.store.reject(item.record.file, f"since the audit: {item.problem}")
                self.warnings.append(f"{shown(item.record.file)} is left out: {item.problem}")
        self.store.commit()
        usable = [item for item in batch if not item.problem]
        entries = [self._entry(maker, item, made) for item, made in zip(usable, self._made(maker, usable), strict=True)]
        self.journal.note(entries)
        written = [one.captioned for one in entries if one.sidecar is not None and one.captioned.method != KEPT]
        self.sidecars.write((one.file, one.caption) for one in written)
        self.journal.mark_written([one.file for one in written])

    def _made(self, maker: Maker, items: list[Item]) -> list[Made]:
        """A caption for each item that keeps none, and tags for all of them if tags are found."""
        new = [item for item in items if item.kept is None]
        kept = [item for item in items if item.kept is not None]
        views = [item.views for item in new if item.views is not None]
        fresh = iter(maker.make([item.record.file for item in new], self.images.resolve().name, views) if new else [])
        seen = [item.views for item in kept if item.views is not None]
        tags = iter(maker.find_tags(seen)[0] if seen else [None] * len(kept))
        return [next(fresh) if item.kept is None else Made(item.kept, (), next(tags)) for item in items]

    def _entry(self, maker: Maker, item: Item, made: Made) -> Entry:
        file = item.record.file
        method = maker.method if item.kept is None else KEPT
        captioned = Captioned(file, self.groups.of(file), made.caption, method, made.tags, made.found, item.note)
        return Entry(captioned, item.record.sha256 or "", item.sidecar)

    def _tell_warnings(self) -> None:
        for warning in self.warnings[:MOST_WARNINGS]:
            self.reporter.warn(warning)
        if len(self.warnings) > MOST_WARNINGS:
            self.reporter.warn(f"and {len(self.warnings) - MOST_WARNINGS} more; captions.jsonl has them as notes")

    def _write(self) -> None:
        """The tables of the run folder, its report, and the figures to the tracker."""
        if self.maker is None:
            self.report({})
            return
        if self.warnings:  # an image may have been rejected since
            write_audit_csv(self.run_dir / "audit.csv", self.store)
        counts = write_captions(self.run_dir / "captions.jsonl", self.store, self.journal)
        figures: dict[str, float] = {}
        if self.maker.tagger is not None:
            figures = write_tags(self.run_dir, self.store, self.journal).summary()
            self.tracker.log(0, {f"caption/{name}": value for name, value in figures.items()})
        kept, made = counts["kept"], counts["written"]
        self.tracker.note("counts", {f"captions_{name}": count for name, count in counts.items()})
        self._mirror_captions()
        line = f"{made} written" + (f", {kept} that were there are kept (overwrite=true replaces them)" if kept else "")
        where = (
            "beside the images" if self.sidecars is None or self.sidecars.root == self.images else self.sidecars.root
        )
        self.reporter.say(f"{line}, {shown(where)}", tag="captions", style="green")
        for name, value in figures.items():
            self.reporter.say(f"  {name.replace('_', ' '):<24} {value:.4g}")
        self.report(figures)

    def _mirror_captions(self) -> None:
        """The first captions as a table for W&B."""
        from boothlab.captioning.record import captioned_images

        shown_rows = islice(captioned_images(self.store, self.journal), _TABLE_ROWS)
        rows = [[one.file, one.group, one.caption, one.method, ", ".join(one.tags)] for one in shown_rows]
        self.tracker.log_table(0, "captions", ["file", "group", "caption", "method", "tags"], rows)


def _load(folder: Path, item: Item, maker: Maker) -> Item:
    """The item with its picture, where one is looked at: for tags always, for a sentence if there is none yet."""
    if not maker.needs_image or (item.kept is not None and maker.tagger is None):
        return item
    try:
        loaded = read_image(folder / item.record.file)
    except ImageError as error:
        return Item(item.record, item.kept, item.sidecar, item.note, problem=error.reason)
    views = maker.views(loaded.image, captioned=item.kept is not None)
    return Item(item.record, item.kept, item.sidecar, item.note, views)

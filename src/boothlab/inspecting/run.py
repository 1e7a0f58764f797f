"""One inspection: the parts one after another, their files, the page, the history and its mirrors."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boothlab.errors import memory_explained
from boothlab.files import read_json, write_json
from boothlab.inspecting.page import FILE_NAME, write_page
from boothlab.inspecting.sections import Section, files_of, write_section
from boothlab.progress import Reporter
from boothlab.tracking.run import Tracker

RECORD = "inspect.json"
"""What was looked at with what; not a manifest, for the folder is no run that could be repeated or reported."""


def clear(folder: Path) -> None:
    """Remove what an earlier inspection left in its folder, by its own list: the folder may be one of the user's."""
    if not (folder / RECORD).is_file():
        return
    record: Any = read_json(folder / RECORD)
    listed = record.get("files") if isinstance(record, dict) else None
    # First what says that it is finished.
    for name in ("summary.json", *(listed if isinstance(listed, list) else ())):
        if (
            isinstance(name, str)
            and name == Path(name).name
            and Path(name).suffix in (".png", ".csv", ".html", ".json")
        ):
            (folder / name).unlink(missing_ok=True)


@dataclass
class InspectRun:
    """The parts to make, by name, and where they go. `step` is the adapter's own."""

    parts: Mapping[str, Callable[[], Section]]
    folder: Path
    title: str
    lead: str
    settings: Sequence[tuple[str, str]]
    record: Mapping[str, Any]
    step: int
    tracker: Tracker
    reporter: Reporter
    sections: list[Section] = field(default_factory=list)

    def execute(self) -> None:
        """Make every part and the page. Call inside the open tracker, which writes summary.json at the end."""
        clear(self.folder)
        write_json(self.folder / RECORD, dict(self.record))
        remedy = "free some, or leave a part out with without=[PART]"
        with self.reporter.bar("looking", len(self.parts)) as bar:
            for name, make in self.parts.items():
                bar.describe(name)
                started = time.perf_counter()
                with memory_explained(lambda name=name: f"in the part {name}", remedy):  # type: ignore[misc]
                    section = make()
                self._keep(section)
                self.tracker.note("timings", {f"{name}_seconds": time.perf_counter() - started})
                bar.advance()
        write_page(self.sections, self.folder / FILE_NAME, self.title, self.lead, self.settings)
        made = sorted(name for section in self.sections for name in files_of(section))
        write_json(self.folder / RECORD, {**self.record, "files": [*made, FILE_NAME]})
        self.reporter.say(f"{self.folder / FILE_NAME}")

    def _keep(self, section: Section) -> None:
        paths = write_section(section, self.folder)
        self.sections.append(section)
        if section.numbers:
            self.tracker.log(self.step, section.numbers)
        if paths:
            captions = [picture.caption or section.title for picture in section.pictures]
            self.tracker.log_images(self.step, f"inspect/{section.part}", list(zip(paths, captions, strict=True)))
        for table in section.tables:
            self.tracker.log_table(
                self.step, f"inspect/{table.name}", list(table.columns), [list(r) for r in table.rows]
            )
        facts = "  ".join(f"{fact.label} {fact.value}" for fact in section.facts[:2])
        self.reporter.say(f"{section.title}{': ' if facts else ''}{facts}")

"""What a captioning run leaves in its folder: captions.jsonl, tags.csv and groups.csv, an image at a time."""

import json
from collections.abc import Iterator
from pathlib import Path

from boothlab.captioning.journal import KEPT, Captioned, Journal
from boothlab.captioning.statistics import GROUP_COLUMNS, TagStatistics, rounded
from boothlab.captioning.tags import SEPARATOR
from boothlab.files import shown
from boothlab.images.collection_store import CollectionStore
from boothlab.images.collection_tables import atomic_stream, write_rows

TAG_COLUMNS = ("file", "group", "tags", "top1", "top1_cosine", "gap_10", "cosines", "softmax")


def captioned_images(store: CollectionStore, journal: Journal) -> Iterator[Captioned]:
    """Every accepted image that has its row in the journal, in order of path."""
    for record in store.records("status = 'accepted'"):
        found = journal.get(record.file, record.sha256)
        if found is not None:
            yield found


def write_captions(path: Path, store: CollectionStore, journal: Journal) -> dict[str, int]:
    """captions.jsonl: file, group, caption, method (`kept` for one that was there before), tags, note.

    Returns how many were `kept`, `written`, and made but `unwritten`, since their side-car is taken.
    """
    counts = {"kept": 0, "written": 0, "unwritten": 0}
    with atomic_stream(path) as file:
        for one in captioned_images(store, journal):
            counts[KEPT if one.method == KEPT else "unwritten" if one.note else "written"] += 1
            row: dict[str, object] = {
                "file": shown(one.file),
                "group": one.group,
                "caption": one.caption,
                "method": one.method,
            }
            row |= {"tags": list(one.tags)} | ({"note": one.note} if one.note else {})
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return counts


def write_tags(folder: Path, store: CollectionStore, journal: Journal) -> TagStatistics:
    """tags.csv, a row an image, and groups.csv, a row a group."""
    statistics = TagStatistics()

    def rows() -> Iterator[list[object]]:
        for one in captioned_images(store, journal):
            if (found := one.found) is not None:
                statistics.add(one.group, found)
                listed = [
                    SEPARATOR.join(f"{value:.4f}" for value in values) for values in (found.cosines, found.softmax)
                ]
                told = (found.top1, found.top1_cosine, found.gap_10)
                yield [shown(one.file), one.group, SEPARATOR.join(found.tags), *rounded(told), *listed]

    write_rows(folder / "tags.csv", TAG_COLUMNS, rows())
    write_rows(folder / "groups.csv", GROUP_COLUMNS, map(rounded, statistics.rows()))
    return statistics

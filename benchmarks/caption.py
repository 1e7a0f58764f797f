"""Images a second of `boothlab caption`: the audit, and CLIP's tags, each on a folder made for it."""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from boothlab.building.caption import clip_source
from boothlab.building.shared import shared_clip
from boothlab.captioning.captions import Maker
from boothlab.captioning.tags import Tagger, read_labels
from boothlab.images.collection import AuditSettings, audit_collection, in_order
from boothlab.images.collection_store import CollectionStore
from boothlab.images.load import read_image
from boothlab.progress import Reporter

BATCH = 16


def write_images(folder: Path, count: int, side: int, suffix: str) -> None:
    """Pictures with some detail, each its own."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number:05d}.{suffix}")


def audit_speed(count: int, side: int, suffix: str, threads: int) -> tuple[float, float]:
    """Images a second by the clock, and a second of processor time, hashes and near duplicates included."""
    with tempfile.TemporaryDirectory(prefix="boothlab-bench-") as name:
        folder = Path(name, "images")
        folder.mkdir()
        write_images(folder, count, side, suffix)
        settings = AuditSettings()
        store = CollectionStore(Path(name, "audit.sqlite"), settings.digest(folder))
        clock, processor = time.perf_counter(), time.process_time()
        audit_collection(folder, settings, store, Reporter(quiet=True), threads)
        return count / (time.perf_counter() - clock), count / (time.process_time() - processor)


def tag_speed(count: int, side: int, threads: int) -> tuple[float, float]:
    """The same of loading images and tagging them with the miniature CLIP and its label list."""
    clip = shared_clip(clip_source("dollhouse"), None, torch.device("cpu"))
    maker = Maker("clip_tags", Tagger(clip, read_labels("dollhouse").labels, shrink=clip.shrink))
    with tempfile.TemporaryDirectory(prefix="boothlab-bench-") as name:
        write_images(Path(name), count, side, "png")
        files = sorted(path.name for path in Path(name).iterdir())
        clock, processor = time.perf_counter(), time.process_time()
        seen = in_order(
            iter(files), lambda file: maker.views(read_image(Path(name, file)).image, captioned=False), threads
        )
        views = list(seen)
        for start in range(0, count, BATCH):
            maker.make(files[start : start + BATCH], "", views[start : start + BATCH])
        return count / (time.perf_counter() - clock), count / (time.process_time() - processor)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=400)
    count, threads = parser.parse_args().count, os.cpu_count() or 1
    audit_speed(16, 64, "png", threads)  # the libraries load
    print(f"{threads} processors, {count} images; images a second by the clock (of processor time)")
    for side, suffix in ((64, "png"), (512, "jpg"), (512, "png"), (1024, "jpg")):
        clock, processor = audit_speed(count, side, suffix, threads)
        print(f"audit  {side:>4} px {suffix}  {clock:7.0f}  ({processor:.0f})", flush=True)
    for side in (32, 64):
        clock, processor = tag_speed(count, side, threads)
        print(f"tags   {side:>4} px png  {clock:7.0f}  ({processor:.0f})", flush=True)

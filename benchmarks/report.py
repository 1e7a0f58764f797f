"""What the page of a large study costs: seconds to write it, its size, seconds until it can be used in a browser.

`python benchmarks/report.py [RUNS] [SIDE]`: so many synthetic runs (500) of five checkpoints, eight prompts and four
image seeds, with images of so many pixels a side (32). Needs the development extras, and a Chromium for the last part.
"""

import os
import platform
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from report_runs import Made, make_runs

PLACES = (
    "on the beach",
    "in the snow",
    "in the forest",
    "in the city",
    "on the moon",
    "in a hat",
    "at sea",
    "at night",
)
PROMPTS = tuple(f"a photo of a {{token}} {{class}} {place}" for place in PLACES)
SEEDS, IMAGE_SEEDS, CHECKPOINTS = 5, (0, 1, 2, 3), (50, 100, 150, 200, 250)
POOL = 512
"""Different images; each sample is one of them at random, so that hardly any two sheets are alike."""
READY = {
    "tables can be used": "html[data-ready]",
    "samples are shown": "html[data-ready=pictures]",
    "plots can be drawn": "html[data-plotly]",
}


def images(folder: Path, side: int) -> list[Path]:
    """Pictures with about as much detail as photographs."""
    folder.mkdir()
    found = []
    for index in range(POOL):
        coarse = Image.effect_noise((8, 8), 90).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
        picture = Image.blend(coarse, Image.effect_noise((side, side), 40).convert("RGB"), 0.25)
        path = folder / f"{index}.png"
        picture.save(path)
        found.append(path)
    return found


def study_folder(root: Path, runs: int, side: int) -> Path:
    """The folder of an experiment with that many runs."""
    settings: list[dict[str, Any]] = [
        {"lora.rank": 2 ** (index % 7), "optim.lr": 1e-5 * (1 + index // 14), "prior.enabled": index % 14 >= 7}
        for index in range(runs // SEEDS)
    ]
    made = Made(prompts=PROMPTS, image_seeds=IMAGE_SEEDS, images=False)
    experiment = make_runs(root, settings, tuple(range(SEEDS)), CHECKPOINTS, made=made, sweep={"axis": "lora.rank"})
    pool, draw = images(root / "pool", side), random.Random(0)
    for samples in sorted(experiment.glob("*/samples/*")):
        for prompt in range(len(PROMPTS)):
            for seed in IMAGE_SEEDS:
                os.link(draw.choice(pool), samples / f"prompt{prompt:02d}_seed{seed}.png")
    return experiment


def in_browser(page: Path) -> None:
    """Print the seconds from opening the page until each part of it is there."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        print("no Chromium on this machine")
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 1280, "height": 800})
        start = time.perf_counter()
        tab.goto(page.resolve().as_uri(), wait_until="commit")
        for what, selector in READY.items():
            tab.wait_for_selector(selector, state="attached")
            print(f"{what:<24} {time.perf_counter() - start:7.2f} s", flush=True)
        for name in ("tradeoff", "curves", "parallel", "heat"):
            start = time.perf_counter()
            tab.evaluate(f"document.getElementById('plot-{name}').scrollIntoView({{ behavior: 'instant' }})")
            tab.wait_for_selector(f"#plot-{name}.drawn")
            print(f"  {name:<22} {time.perf_counter() - start:7.2f} s")
        browser.close()


def main(runs: int, side: int) -> None:
    """Make the runs in a folder that is thrown away, write their page and open it."""
    from boothlab.reporting.page import write_page
    from boothlab.reporting.study import build_study

    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}: {runs} runs, {side} px")
    with tempfile.TemporaryDirectory(prefix="boothlab-bench-") as folder:
        experiment, page = study_folder(Path(folder), runs, side), Path(folder) / "report.html"
        start = time.perf_counter()
        study = build_study([experiment])
        print(f"{'reading the study':<24} {time.perf_counter() - start:7.2f} s", flush=True)
        start, busy = time.perf_counter(), time.process_time()
        write_page(study, page)
        cpu = time.process_time() - busy
        print(f"{'writing the page':<24} {time.perf_counter() - start:7.2f} s ({cpu:.2f} s of processor time)")
        print(f"{'its size':<24} {page.stat().st_size / 1e6:7.2f} MB", flush=True)
        in_browser(page)


if __name__ == "__main__":
    main(*map(int, [*sys.argv[1:], *("500", "32")[len(sys.argv) - 1 :]]))

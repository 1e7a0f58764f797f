"""Processes that race for one cold cache: every entry is made once, is whole, and is the same for all of them."""

import json
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
import torch

from boothlab.building import photos
from boothlab.cache import Cache
from boothlab.config import SubjectConfig
from boothlab.diffusion.backbone import Backbone, load_backbone, weights_identity
from boothlab.diffusion.sampling import Sampler, SamplerSettings
from boothlab.dreambooth.data import encode_images
from boothlab.dreambooth.prior import class_images
from boothlab.files import sha256_bytes, sha256_file
from boothlab.images.load import Crop
from tiny_pipelines import RESOLUTION

RACERS = 8
SUBJECT = SubjectConfig(images="dollhouse:robot/1", count=3, class_noun="robot", instance_prompt="a sks robot")
STEPS = ("rendered", "drawn", "encoded")
PATIENCE_S = 900

#: what one racer found: the hash of each file and tensor, and the warnings that it gave
Found = tuple[dict[str, str], list[str]]


class Warnings(logging.Handler):
    """Keeps the texts of all warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def traced(make: Callable[..., Any], root: Path, name: str, doomed: str) -> Callable[..., Any]:
    """`make`, leaving a file for each call. If it is the `doomed` step, the first who has done it is killed at once."""

    def make_and_tell(*arguments: Any, **named: Any) -> Any:
        made = make(*arguments, **named)
        (root / f"{name}-{os.getpid()}").touch(exist_ok=False)
        if name == doomed and len(list(root.glob(f"{name}-*"))) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return made

    return make_and_tell


def race(root: Path, pipeline: Path, doomed: str, barrier: Barrier, results: "Queue[Found]") -> None:
    """One racer; an error takes the place of what it found."""
    try:
        results.put(ask_for_everything(root, pipeline, doomed, barrier))
    except Exception as error:
        barrier.abort()
        results.put(({}, [repr(error)]))


def ask_for_everything(root: Path, pipeline: Path, doomed: str, barrier: Barrier) -> Found:
    """Ask for all that a training run takes from the cache, at the same moment as the others."""
    torch.set_num_threads(1)
    warnings = Warnings()
    logging.getLogger("boothlab").addHandler(warnings)
    photos.write_photos = traced(photos.write_photos, root, "rendered", doomed)  # type: ignore[attr-defined]
    Sampler.draw = traced(Sampler.draw, root, "drawn", doomed)  # type: ignore[method-assign]
    Backbone.encode_images = traced(Backbone.encode_images, root, "encoded", doomed)  # type: ignore[method-assign]
    cache, identity = Cache(root / "cache"), weights_identity(str(pipeline))
    backbone = load_backbone(
        str(pipeline), name="tiny", resolution=RESOLUTION, device=torch.device("cpu"), dtype=torch.float32
    )
    barrier.wait(PATIENCE_S)
    subject = photos.build_subject(SUBJECT, cache)
    drawn = class_images(Sampler(backbone, SamplerSettings("ddim", 2, 2.0)), "a robot", 3, 7, cache, identity)
    common: dict[str, Any] = {"crop": Crop.CENTER, "flip": False, "variants": 1, "seed": 7}
    table = encode_images(backbone, subject.items, cache=cache, vae_identity=identity, **common)
    found = {f"photo {index}": item.sha256 for index, item in enumerate(subject.items)}
    found |= {path.name: sha256_file(path) for path in sorted(drawn.iterdir())}
    found |= {"latents": sha256_bytes(table.means_NCHW.numpy().tobytes() + table.stds_NCHW.numpy().tobytes())}
    return found, warnings.texts


def run_race(root: Path, pipeline: Path, doomed: str, monkeypatch: pytest.MonkeyPatch) -> list[Found]:
    """Start the racers and give what those found that lived."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":  # torch is imported once and not eight times
        path = [str(Path(__file__).parent), str(Path(photos.__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
        context.set_forkserver_preload([__name__])
    barrier, results = context.Barrier(RACERS), context.Queue()
    racers = [context.Process(target=race, args=(root, pipeline, doomed, barrier, results)) for _ in range(RACERS)]
    for racer in racers:
        racer.start()
    found = [results.get(timeout=PATIENCE_S) for _ in range(RACERS - bool(doomed))]
    for racer in racers:
        racer.join(PATIENCE_S)
    assert sorted(racer.exitcode for racer in racers) == [-signal.SIGKILL] * bool(doomed) + [0] * len(found)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a system that can kill a process outright")
@pytest.mark.parametrize("doomed", ["", *STEPS])
def test_eight_processes_share_a_cold_cache(
    doomed: str, tmp_path: Path, pipelines: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the one that makes an entry is killed while the others wait for it: another makes it, once."""
    found = run_race(tmp_path, pipelines["sd15"], doomed, monkeypatch)
    hashes = [one for one, _ in found]
    assert [one for _, warnings in found for one in warnings] == []
    assert all(one == hashes[0] for one in hashes)
    assert sorted(hashes[0]) == ["0000.png", "0001.png", "0002.png", "latents", "photo 0", "photo 1", "photo 2"]
    for step in STEPS:
        assert len(list(tmp_path.glob(f"{step}-*"))) == (2 if step == doomed else 1)
    check_entries(tmp_path / "cache", hashes[0])


def check_entries(cache: Path, hashes: dict[str, str]) -> None:
    """One entry of each kind with the content that all racers saw, and no half of one beside it."""
    assert sorted(path.name for path in cache.iterdir()) == ["class-images", "dollhouse-photos", "latents", "locks"]
    for kind, names in (("class-images", ["0000.png", "0001.png", "0002.png"]), ("dollhouse-photos", None)):
        (entry,) = (cache / kind).iterdir()
        sidecar = json.loads((entry / "entry.json").read_text(encoding="utf-8"))
        assert {path.name: sha256_file(path) for path in (entry / "files").iterdir()} == sidecar["sha256"]
        if names is not None:
            assert {name: hashes[name] for name in names} == sidecar["sha256"]
        else:
            assert {hashes[f"photo {index}"] for index in range(3)} <= set(sidecar["sha256"].values())
    (entry,) = (cache / "latents").iterdir()
    assert sorted(path.name for path in entry.iterdir()) == ["entry.json", "payload.safetensors"]

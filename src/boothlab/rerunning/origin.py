"""Where the manifest of a run comes from: a run folder, wherever it was copied to, or the files of a W&B run."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boothlab.errors import UserError
from boothlab.files import shown
from boothlab.tracking.manifest import FILE_NAME as MANIFEST
from boothlab.tracking.manifest import read_manifest

PREFIX = "wandb:"
DOWNLOADS = Path("outputs") / "wandb"
"""Where the files of W&B runs are put."""
TIMEOUT_S = 20
#: small files that a W&B run may hold; only the first is needed
_FILES = (MANIFEST, "metrics.jsonl", "summary.json")
_PART = r"[\w-][\w.-]*"  # no leading dot: these become folders
_PATH = re.compile(f"{_PART}/{_PART}/{_PART}")
_URL = re.compile(rf"https?://[^/]+/({_PART})/({_PART})/runs/({_PART})/?(?:\?.*)?")


@dataclass(frozen=True)
class Origin:
    """A recorded run. `folder` holds its manifest, and as much else of the run as there is."""

    name: str
    folder: Path
    manifest: dict[str, Any]
    complete: bool = True  # False for what W&B keeps: no adapter, no images


def find_origin(text: str, downloads: Path = DOWNLOADS, open_api: Callable[[], Any] | None = None) -> Origin:
    """The run that the user names: a folder, its manifest.json, `entity/project/run_id` on W&B, or the run's address.

    What lies in a folder that is there is a folder; `wandb:` before the path says otherwise. Raises UserError if there
    is no such run.
    """
    folder = Path(text).expanduser()
    path = text.removeprefix(PREFIX)
    if url := _URL.fullmatch(path):
        path = "/".join(url.groups())
    elif text == path and (not _PATH.fullmatch(text) or folder.exists() or Path(folder.parts[0]).is_dir()):
        return _local(folder)
    if not _PATH.fullmatch(path):
        raise UserError(f"{shown(text)}: must be entity/project/run_id, as in the address of the run on W&B")
    return _fetched(path, downloads, open_api or _api)


def _local(folder: Path) -> Origin:
    if folder.name == MANIFEST and folder.is_file():
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"{shown(folder)}: there is no such folder; give a run folder, or entity/project/run_id on W&B")
    manifest = read_manifest(folder)
    return Origin(_name(manifest, folder.resolve().name), folder, manifest)


def _name(manifest: dict[str, Any], otherwise: str) -> str:
    """The run's own name; a copied folder may have another."""
    name = manifest.get("run")
    return name if isinstance(name, str) and re.fullmatch(_PART, name) else otherwise


def _api() -> Any:
    """W&B's public interface. Raises UserError without a key: W&B would ask for one and wait."""
    from boothlab.tracking.wandb import has_key

    if not has_key():
        raise UserError("W&B has no key here; run `wandb login`, set WANDB_API_KEY, or give the run folder itself")
    import wandb

    return wandb.Api(timeout=TIMEOUT_S)


def _fetched(path: str, downloads: Path, open_api: Callable[[], Any]) -> Origin:
    folder = downloads / path
    try:
        run = open_api().run(path)
        there = {file.name: file for file in run.files(list(_FILES))}
        folder.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            if name in there:
                there[name].download(root=str(folder), replace=True).close()
    except UserError:
        raise
    except Exception as error:  # whatever W&B throws: no network, no such run, no access
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"W&B run {path}: cannot be read ({reason}); check the path, the network and the key"
        ) from error
    if MANIFEST not in there:
        raise UserError(f"W&B run {path}: holds no {MANIFEST}; give the run folder itself")
    manifest = read_manifest(folder)
    return Origin(_name(manifest, path.rpartition("/")[2]), folder, manifest, complete=False)

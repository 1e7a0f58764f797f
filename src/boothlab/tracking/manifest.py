"""manifest.json: everything needed to make a run again, written before its first step and closed at its end."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum, StrEnum
from pathlib import Path, PurePath
from typing import Any

import boothlab
from boothlab.errors import UserError
from boothlab.files import read_json, write_json
from boothlab.tracking.provenance import git_state, machine, numerics, package_versions
from boothlab.tracking.redaction import redact

FILE_NAME = "manifest.json"
FORMAT = 1


class RunStatus(StrEnum):
    """How a run stands. A folder that still says `running` when nothing runs was killed outright."""

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


def plain(value: Any) -> Any:
    """The value as JSON holds it, so that a config hashes the same before it is written and after it is read back.

    Enums become their names (as Hydra writes them), paths their text with forward slashes, tuples lists, dataclasses
    dicts. Raises TypeError for anything JSON has no form for.
    """
    if isinstance(value, Enum):
        return value.name
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, PurePath):
        return value.as_posix()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    raise TypeError(f"a config cannot hold a {type(value).__name__}: {value!r}")


def _without(tree: dict[str, Any], dotted: str) -> dict[str, Any]:
    """The tree without one dotted key and all below it; a key that is not there changes nothing."""
    head, _, rest = dotted.partition(".")
    if head not in tree:
        return tree
    if not rest:
        return {key: item for key, item in tree.items() if key != head}
    if not isinstance(tree[head], dict):
        return tree
    return {**tree, head: _without(tree[head], rest)}


def config_hash(resolved: Mapping[str, Any], excluded: Sequence[str] = ()) -> str:
    """SHA-256, 64 hexadecimal digits, of the resolved config without the `excluded` dotted keys and all below them.

    The order of keys does not matter, the order of lists does. 1 and 1.0 are different values, as are 1 and True: the
    typed schema has already turned a 1 in a float field into 1.0, so this never tells two equal configs apart. The
    first 8 digits name the run folder (`hash8`).
    """
    tree: dict[str, Any] = plain(resolved)
    for dotted in excluded:
        tree = _without(tree, dotted)
    canonical = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def hash8(full_hash: str) -> str:
    """The short form used in names of run folders."""
    return full_hash[:8]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _stream_seeds(seed: int) -> dict[str, int]:
    from boothlab.seeding import Stream, derive_seed  # torch: only when a run starts

    return {stream.value: derive_seed(seed, stream) for stream in Stream}


def _code_state() -> dict[str, Any] | None:
    """The work tree of the package itself (a checkout or an editable install), or else of the current folder."""
    return git_state(Path(boothlab.__file__).parent) or git_state(Path.cwd())


def write_manifest(
    run_dir: Path,
    *,
    resolved_config: Mapping[str, Any],
    config_hash: str,
    seed: int,
    inputs: Mapping[str, str],
    weights: Mapping[str, Any],
    command: Sequence[str],
    device: str,
) -> dict[str, Any]:
    """Write manifest.json before the first step and return what was written.

    `inputs` maps the path of each input file to its SHA-256, `weights` names the pre-trained weights with their hashes
    or revisions, `command` is the command line, `device` a torch device such as "cpu" or "cuda:0". No environment
    variable is written, and whatever looks like a key or token is redacted. If the folder has a manifest already (a
    resumed or repeated run), that attempt is kept as one entry of `earlier_attempts`.
    """
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "status": RunStatus.RUNNING.value,
        "started": _now(),
        "finished": None,
        "config": redact(plain(resolved_config)),
        "config_hash": config_hash,
        "seed": seed,
        "stream_seeds": _stream_seeds(seed),
        "inputs": {PurePath(path).as_posix(): digest for path, digest in inputs.items()},
        "weights": redact(plain(weights)),
        "command": _redact_command(command),
        "versions": package_versions(),
        "machine": machine(device),
        "numerics": numerics(),
        "git": _code_state(),
        "earlier_attempts": _earlier_attempts(run_dir),
    }
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json(run_dir / FILE_NAME, manifest)
    return manifest


def _redact_command(command: Sequence[str]) -> list[str]:
    """Redacts each argument, and the one that follows an option such as `--api-key`."""
    options = ["", *(word.lstrip("-").replace("-", "_") if word.startswith("--") else "" for word in command)]
    return [redact(word, option) for option, word in zip(options, command, strict=False)]


def _earlier_attempts(run_dir: Path) -> list[dict[str, Any]]:
    try:
        earlier = read_manifest(run_dir)
    except UserError:
        return []
    attempt = {key: earlier.get(key) for key in ("status", "started", "finished", "config_hash", "command")}
    return [*(earlier.get("earlier_attempts") or []), attempt]


def read_manifest(run_dir: Path) -> dict[str, Any]:
    """The manifest of a run folder. Raises UserError if it is missing or is not a manifest."""
    path = run_dir / FILE_NAME
    if not path.exists():
        raise UserError(f"{run_dir} is not a run folder: it has no {FILE_NAME}")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or "config" not in manifest:
        raise UserError(f"{path} is not a manifest of boothlab: it has no config")
    return manifest


def close_manifest(run_dir: Path, status: RunStatus) -> None:
    """Set how and when the run ended. Raises UserError if there is no manifest to close."""
    manifest = read_manifest(run_dir)
    manifest["status"] = RunStatus(status).value
    manifest["finished"] = _now()
    write_json(run_dir / FILE_NAME, manifest)

"""manifest.json: everything needed to make a run again, written before its first step and closed at its end."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum, StrEnum
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import boothlab
from boothlab.errors import UserError
from boothlab.files import read_json, sha256_file, shown, write_json
from boothlab.tracking.provenance import code_state, machine, numerics, package_versions
from boothlab.tracking.redaction import redact, redact_command, redact_text

FILE_NAME = "manifest.json"
FORMAT = 2
"""1 had no captions, no hashes of the encoders' files, no parent and no outputs; such a manifest is still read."""
ADAPTER = "lora/pytorch_lora_weights.safetensors"
"""Where a training leaves its adapter, in the run folder."""
EMBEDDINGS = "embedding/learned_embeds.safetensors"
"""Where a training that learned words leaves them."""
NETWORKS = ("unet/*.safetensors", "text_encoder/*.safetensors", "text_encoder_2/*.safetensors")
"""Where a training of whole networks leaves them."""
OUTPUTS = (ADAPTER, EMBEDDINGS, *NETWORKS, "metrics.jsonl", "samples/step_*/*.png", "summary.json")
"""What a finished run is worth: the files whose hashes its manifest keeps. Checkpoints keep their own."""


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


def _without(tree: dict[str, Any], dotted: str, value: str | None = None) -> dict[str, Any]:
    """The tree without one dotted key and all below it; a key that is not there changes nothing.

    With `value` only if it has that value, as JSON writes it but for text, which stands bare; a section that this
    leaves empty goes as well.
    """
    head, _, rest = dotted.partition(".")
    if head not in tree:
        return tree
    if not rest:
        if value is not None and value != (tree[head] if isinstance(tree[head], str) else json.dumps(tree[head])):
            return tree
        return {key: item for key, item in tree.items() if key != head}
    if not isinstance(tree[head], dict):
        return tree
    below = _without(tree[head], rest, value)
    if value is not None and tree[head] and not below:
        return {key: item for key, item in tree.items() if key != head}
    return {**tree, head: below}


def config_hash(resolved: Mapping[str, Any], excluded: Sequence[str] = ()) -> str:
    """SHA-256, 64 hexadecimal digits, of the resolved config without the `excluded` dotted keys and all below them.

    `KEY=VALUE` excludes a key only where it has that value: a setting that came later does not rename older runs.
    The order of keys does not matter, the order of lists does. 1 and 1.0 are different values, as are 1 and True: the
    typed schema has already turned a 1 in a float field into 1.0, so this never tells two equal configs apart. The
    first 8 digits name the run folder (`hash8`).
    """
    tree: dict[str, Any] = plain(resolved)
    for one in excluded:
        dotted, equals, value = one.partition("=")
        tree = _without(tree, dotted, value if equals else None)
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
    captions: Mapping[str, str] | None = None,
    not_hashed: Sequence[str] = (),
    scored: Mapping[str, Any] | None = None,
    parent: Mapping[str, Any] | None = None,
    packed: bool = False,
    devices: int = 1,
    libraries: Sequence[str] = (),
) -> dict[str, Any]:
    """Write manifest.json before the first step and return what was written.

    `inputs` maps the path of each photo to its SHA-256 (class images are `class_images/0000`, …), `captions` that of
    each side-car in use. `weights` holds what each frozen network is (hashes of its files, or hub id and commit) and
    the adapter that is scored. `command` is the command line, `device` a torch device such as "cpu" or "cuda:0".
    `not_hashed` are the keys that `config_hash` was made without. `scored` is the config of the run whose adapter is
    scored, `parent` the run that this one repeats or was forked from, `packed` whether it shares its networks' batches
    with other jobs, `devices` how many shared its own, `libraries` what it uses of `provenance.OPTIONAL`. The
    environment is not written, but for the workspace setting of cuBLAS, and whatever looks like a key or token is
    redacted. If the folder has a manifest already (a resumed or repeated run), that attempt is kept as one entry of
    `earlier_attempts`.
    """
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "run": run_dir.name,
        "status": RunStatus.RUNNING.value,
        "started": _now(),
        "finished": None,
        "config": redact(plain(resolved_config)),
        "config_hash": config_hash,
        "not_hashed": list(not_hashed),
        "seed": seed,
        "stream_seeds": _stream_seeds(seed),
        "inputs": _by_path(inputs),
        "captions": _by_path(captions or {}),
        "weights": redact(plain(weights)),
        "scored": None if scored is None else redact(plain(scored)),
        "parent": None if parent is None else redact(plain(parent)),
        "command": redact_command(command),
        "working_directory": redact_text(Path.cwd().as_posix()),
        "versions": package_versions(libraries),
        "machine": machine(device),
        "numerics": numerics(packed, devices),
        "git": code_state(),
        "outputs": {},
        "adapter_tensors": None,
        "earlier_attempts": _earlier_attempts(run_dir),
    }
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json(run_dir / FILE_NAME, manifest)
    return manifest


def _by_path(files: Mapping[str, str]) -> dict[str, str]:
    return {PurePath(path).as_posix(): digest for path, digest in files.items()}


def _earlier_attempts(run_dir: Path) -> list[dict[str, Any]]:
    try:
        earlier = read_manifest(run_dir)
    except UserError:
        return []
    attempt = {key: earlier.get(key) for key in ("status", "started", "finished", "config_hash", "command")}
    return [*(earlier.get("earlier_attempts") or []), attempt]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_table(value: Any) -> bool:
    """Text by text: hashes by path, versions by package."""
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def _is_files(value: Any) -> bool:
    """A table whose keys are paths of files: none without a name of its own, which could be that of a folder."""
    return _is_table(value) and all(
        "\0" not in name and PurePosixPath(name).name not in ("", "..") and not name.endswith(("/", "/."))
        for name in value
    )


_SHAPES: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("run", "status", "started", "finished", "config_hash", "working_directory"), _is_text),
    "adapter_tensors": _is_text,
    **dict.fromkeys(("format", "seed"), _is_whole),
    **dict.fromkeys(("scored", "parent", "machine", "numerics", "git"), _is_object),
    "weights": lambda value: _is_object(value) and all(_is_text(item) or _is_table(item) for item in value.values()),
    **dict.fromkeys(("not_hashed", "command"), _is_list),
    **dict.fromkeys(("inputs", "captions", "outputs"), _is_files),
    "versions": _is_table,
    "stream_seeds": lambda value: _is_object(value) and all(map(_is_whole, value.values())),
    "earlier_attempts": lambda value: isinstance(value, list) and all(map(_is_object, value)),
}
"""What each section of a manifest is, if it is there. A file that was changed is refused here and nowhere else."""


def read_manifest(run_dir: Path) -> dict[str, Any]:
    """The manifest of a run folder. Raises UserError if it is missing, no manifest, altered, or of a later format."""
    path = run_dir / FILE_NAME
    if not path.exists():
        raise UserError(f"{shown(run_dir)} is not a run folder: it has no {FILE_NAME}")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("config"), dict):
        raise UserError(f"{shown(path)} is not a manifest of boothlab: it has no config")
    for key, is_right in _SHAPES.items():
        if manifest.get(key) is not None and not is_right(manifest[key]):
            raise UserError(f'{shown(path)}: its "{key}" is not what boothlab writes; put the original back')
    written_as = manifest.get("format")
    if isinstance(written_as, int) and written_as > FORMAT:
        raise UserError(
            f"{shown(path)} has format {written_as}, and boothlab {boothlab.__version__} reads up to {FORMAT}; "
            "update boothlab"
        )
    return manifest


def output_hashes(run_dir: Path) -> dict[str, str]:
    """SHA-256 of each file in OUTPUTS that the run folder holds, by its path in the folder with forward slashes."""
    found = sorted({path for pattern in OUTPUTS for path in run_dir.glob(pattern) if path.is_file()})
    return {path.relative_to(run_dir).as_posix(): sha256_file(path) for path in found}


def tensors_digest(path: Path) -> str:
    """SHA-256 of the tensors in a safetensors file and their names, without what the file says of itself.

    The file's own hash changes with the run's name in its metadata; this one only with a number. Raises UserError for
    a file that is no safetensors file.
    """
    content = path.read_bytes()
    try:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        header.pop("__metadata__", None)
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{shown(path)} is not a safetensors file ({error}); put the original back") from error
    layout = json.dumps(header, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(layout.encode() + b"\n" + content[8 + length :]).hexdigest()


def close_manifest(run_dir: Path, status: RunStatus, pending: Mapping[str, str] | None = None) -> None:
    """Set how and when the run ended, and for a finished one the hashes of its outputs.

    `pending` has the hashes of outputs that are only written after this.

    Raises UserError if there is no manifest to close.
    """
    manifest = read_manifest(run_dir)
    manifest["status"] = RunStatus(status).value
    manifest["finished"] = _now()
    if manifest["status"] == RunStatus.FINISHED:
        manifest["outputs"] = dict(sorted({**output_hashes(run_dir), **(pending or {})}.items()))
        with suppress(UserError, OSError):  # a scoring has none
            manifest["adapter_tensors"] = tensors_digest(run_dir / ADAPTER)
    write_json(run_dir / FILE_NAME, manifest)

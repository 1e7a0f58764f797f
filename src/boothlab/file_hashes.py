"""SHA-256 of large files, remembered for as long as the file system says that they were not touched.

Weights of a real model are gigabytes, which take seconds to hash and hardly ever change. A file is known again by its
place, size, inode and both of its times; the time of the last change of its status cannot be set by hand.
"""

import os
import time
from pathlib import Path

from boothlab.errors import UserError
from boothlab.files import read_json, sha256_bytes, sha256_file, write_json

WORTH_IT = 16 * 2**20
"""Bytes from which on looking a hash up is quicker than making it again."""
_SETTLED_NS = 2 * 10**9
"""A file that changed so shortly before may change again within one tick of a coarse clock."""


def remembered_sha256(path: Path, folder: Path) -> str:
    """`sha256_file`, looked up in `folder` where this very file was hashed before.

    What cannot be read or written there costs time and nothing else. Raises UserError if the file cannot be read.
    """
    try:
        state = _state_of(path)
    except OSError:
        return sha256_file(path)  # says what is wrong
    if state["size"] < WORTH_IT:
        return sha256_file(path)
    note = folder / f"{sha256_bytes(os.fsencode(path.resolve()))}.json"
    if known := _noted(note, state):
        return known
    digest = sha256_file(path)
    settled = time.time_ns() - max(state["modified"], state["changed"]) > _SETTLED_NS
    try:
        if settled and _state_of(path) == state:
            write_json(note, {**state, "sha256": digest})
    except (UserError, OSError):
        pass
    return digest


def _state_of(path: Path) -> dict[str, int]:
    found = path.stat()
    return {
        "size": found.st_size,
        "modified": found.st_mtime_ns,
        "changed": found.st_ctime_ns,
        "inode": found.st_ino,
        "device": found.st_dev,
    }


def _noted(note: Path, state: dict[str, int]) -> str | None:
    """The hash of a note about a file in just this state."""
    try:
        found = read_json(note) if note.is_file() else None
    except (UserError, OSError, ValueError):
        return None
    if not isinstance(found, dict) or {key: found.get(key) for key in state} != state:
        return None
    digest = found.get("sha256")
    return digest if isinstance(digest, str) and len(digest) == 64 else None

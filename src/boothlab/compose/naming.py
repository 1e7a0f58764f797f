"""The name of a run folder: what was run, a short hash of everything that can change its result, and the seed."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from boothlab.config import NOT_HASHED
from boothlab.tracking.manifest import config_hash, hash8

_LONGEST = 80


def identity(resolved: Mapping[str, Any]) -> tuple[str, int]:
    """What makes a run the same run: the hash of its resolved config without the keys in NOT_HASHED, and its seed.

    The seed is kept out of the hash, so that the runs of one setting with several seeds share it.
    """
    return config_hash(resolved, (*NOT_HASHED, "seed")), int(resolved["seed"])


def run_name(resolved: Mapping[str, Any]) -> str:
    """`<name>-<hash8>-s<seed>`, the folder of a run under its experiment."""
    full_hash, seed = identity(resolved)
    return f"{folder_name(resolved['name'])}-{hash8(full_hash)}-s{seed}"


def folder_name(text: object) -> str:
    """The text as the name of one folder on any platform: letters, digits, `.`, `_` and `-`."""
    safe = re.sub(r"[^\w.-]+", "-", str(text)).strip(".-")
    # File systems count bytes, and a letter may have four.
    short = safe[:_LONGEST].encode()[: 2 * _LONGEST].decode(errors="ignore")
    return short.rstrip(".-") or "run"


def run_name_of_node(*, _root_: DictConfig) -> str:
    """`run_name` for the `${run_name:}` in conf/: the job's own config, as Hydra has composed it.

    A job of a multirun may have a config that cannot be resolved. It is refused when it starts; until then its folder
    needs some name, and an exception here would end the jobs after it too.
    """
    job = OmegaConf.masked_copy(_root_, [str(key) for key in _root_ if key != "hydra"])
    try:
        resolved = OmegaConf.to_container(job, resolve=True, throw_on_missing=True, enum_to_str=True)
        assert isinstance(resolved, dict)
        return run_name({str(key): value for key, value in resolved.items()})
    except (OmegaConfBaseException, KeyError, TypeError):
        return "invalid-" + hashlib.sha256(OmegaConf.to_yaml(job).encode()).hexdigest()[:8]

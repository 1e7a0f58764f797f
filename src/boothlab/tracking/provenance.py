"""What a run was made with: versions, machine, determinism switches, and the state of the code in git."""

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import boothlab
from boothlab.tracking.redaction import redact_text

MAX_DIFF_BYTES = 1_000_000
MAX_UNTRACKED = 200
_PACKAGES = (
    *("torch", "diffusers", "transformers", "peft", "pytorch-lightning", "torchmetrics", "accelerate", "wandb"),
    *("safetensors", "tokenizers", "huggingface-hub", "hydra-core", "omegaconf", "numpy", "pillow"),
)


OPTIONAL = ("bitsandbytes", "prodigyopt", "schedulefree")
"""Packages of extras that can change a result of those runs that use them."""


def package_versions(optional: Sequence[str] = ()) -> dict[str, str]:
    """The installed version of boothlab and of every package that can change a result; missing ones are left out.

    `optional` are those of OPTIONAL that the run uses: of the others a version says nothing.
    """
    versions = {"boothlab": boothlab.__version__}
    for name in (*_PACKAGES, *optional):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def machine(device: str) -> dict[str, Any]:
    """Python, operating system, processor count and the device; no host or user name."""
    import torch

    facts: dict[str, Any] = {
        "python": sys.version.split()[0],
        "implementation": platform.python_implementation(),
        "os": platform.platform(),
        "architecture": platform.machine(),
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_count": os.cpu_count(),
        "device": device,
    }
    if device.startswith("cuda") and torch.cuda.is_available():
        cudnn: Any = torch.backends.cudnn
        facts["gpu"] = torch.cuda.get_device_name(torch.device(device))
        facts["gpu_count"] = torch.cuda.device_count()
        facts["cuda"] = torch.version.cuda
        facts["cudnn"] = cudnn.version()
    return facts


def _cpu_name() -> str:
    """The processor's model: the libraries beneath torch choose their kernels by it, and kernels round differently."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except (OSError, UnicodeDecodeError):  # not Linux
        pass
    return platform.processor()


def numerics(packed: bool = False, devices: int = 1) -> dict[str, Any]:
    """Threads, determinism switches, and whether a run shared batches with others or its own among `devices`.

    Results on the CPU are exact only at the same number of threads.
    """
    import torch

    shared = ({"packed": True} if packed else {}) | ({"devices": devices} if devices > 1 else {})
    return shared | {
        "torch_threads": torch.get_num_threads(),
        "torch_interop_threads": torch.get_num_interop_threads(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
        # Lightning sets it on any device, at a later moment; only cuBLAS reads it.
        "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG") if torch.cuda.is_available() else None,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def code_state() -> dict[str, Any] | None:
    """`git_state` of the package's own work tree (a checkout or an editable install), or else of the current folder.

    `of` says which of the two it is: "boothlab" or "working directory".
    """
    package = Path(boothlab.__file__).parent
    if _git(package, "ls-files", "--", "__init__.py"):  # not a .venv that lies in somebody's repository
        return {"of": "boothlab", **(git_state(package) or {})}
    state = git_state(Path.cwd())
    return state and {"of": "working directory", **state}


def _git(folder: Path, *arguments: str) -> bytes | None:
    """The output of a git command in `folder`; None without git, outside a work tree, or on any failure."""
    # No optional locks: a run must never get in the way of what the user does in the same work tree.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    command = ["git", "-c", "core.quotepath=off", *arguments]
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit, uncommitted changes and untracked file names of the work tree around `folder`; None outside of one.

    The diff is cut at `MAX_DIFF_BYTES`, and its SHA-256 is that of the whole; keys and tokens in it are redacted.
    """
    top = _git(folder, "rev-parse", "--show-toplevel")
    if top is None:
        return None
    root = Path(top.decode(errors="replace").strip())
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    base = ["HEAD"] if commit else []  # a repository without a commit yet has no HEAD to compare with
    diff = _git(root, "diff", "--no-ext-diff", "--no-textconv", "--no-color", *base) or b""
    untracked = (_git(root, "ls-files", "--others", "--exclude-standard", "-z") or b"").decode(errors="replace")
    names = [name for name in untracked.split("\0") if name]
    return {
        "commit": commit.decode().strip() if commit else None,
        "dirty": bool(diff.strip()),
        "diff": redact_text(diff[:MAX_DIFF_BYTES].decode(errors="replace")),
        "diff_sha256": hashlib.sha256(diff).hexdigest(),
        "diff_truncated": len(diff) > MAX_DIFF_BYTES,
        "untracked": [redact_text(name) for name in names[:MAX_UNTRACKED]],
        "untracked_count": len(names),
    }

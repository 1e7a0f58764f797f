"""What a run was made with against what is here: versions, code, device, threads, determinism."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from boothlab.tracking.provenance import OPTIONAL, code_state, machine, numerics, package_versions

ABSENT = "none"
NUMERIC_LIBRARIES = frozenset(
    {"torch", "diffusers", "transformers", "peft", "pytorch-lightning", "torchmetrics", "accelerate", "numpy", "pillow"}
) | set(OPTIONAL)
"""Libraries whose version can change how a number is rounded."""
_MACHINE = {
    "device": "device",
    "gpu": "device",
    "cuda": "device",
    "cudnn": "device",
    "cpu": "device",
    "cpu_capability": "device",
    "architecture": "device",
    "os": "system",
    "python": "versions",
    "implementation": "versions",
}
_THREADS = "torch_threads"
#: set by Lightning after manifests of format 1 were written, so that those say nothing of a run
_NOT_IN_FORMAT_1 = frozenset({"deterministic_algorithms", "cudnn_deterministic", "cudnn_benchmark"})
_NO_EFFECT = frozenset({"torch_interop_threads"})  # no operation in use is split that way


@dataclass(frozen=True)
class Circumstance:
    """One thing that is not as it was. `area` is versions, code, device, threads, numerics or system."""

    area: str
    name: str
    before: str
    now: str

    def __str__(self) -> str:
        return f"{self.name}: {self.before} → {self.now}"

    @property
    def rounds(self) -> bool:
        """Whether it can change how numbers are rounded, so that no equal bits are to be expected.

        Other code of boothlab is no such thing: whether it changed a number is what a rerun is to find out.
        """
        return self.area in ("device", "threads", "numerics") or self.name in NUMERIC_LIBRARIES


def here(device: str, devices: int = 1) -> dict[str, Any]:
    """The sections of a manifest that describe this machine and this process, on a torch device such as "cuda:0".

    `devices` is how many share the run.
    """
    return {
        "versions": package_versions(OPTIONAL),
        "machine": machine(device),
        "numerics": numerics(devices=devices),
        "git": code_state(),
    }


def differing(manifest: Mapping[str, Any], now: Mapping[str, Any]) -> list[Circumstance]:
    """What in `now` (see `here`) is not as the manifest says. What the manifest does not say is passed over."""
    old_versions, new_versions = _section(manifest, "versions"), _section(now, "versions")
    found = [
        Circumstance("versions", name, str(old_versions[name]), str(new_versions.get(name, "not installed")))
        for name in old_versions
        if old_versions[name] != new_versions.get(name)
    ]
    found += _code(manifest.get("git"), now.get("git"))
    before, after = _section(manifest, "machine"), _section(now, "machine")
    for name, area in _MACHINE.items():
        if name in before and _plain(before[name]) != _plain(after.get(name)):
            found.append(Circumstance(area, name, _plain(before[name]), _plain(after.get(name))))
    return found + _numerics(manifest, now)


def _plain(value: Any) -> str:
    return ABSENT if value in (None, "") else str(value)


def _section(manifest: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = manifest.get(name)
    return section if isinstance(section, Mapping) else {}


def _numerics(manifest: Mapping[str, Any], now: Mapping[str, Any]) -> list[Circumstance]:
    before, after = ({"devices": 1, **_section(one, "numerics")} for one in (manifest, now))
    passed_over = _NO_EFFECT | (_NOT_IN_FORMAT_1 if manifest.get("format") == 1 else frozenset())
    return [
        Circumstance("threads" if name == _THREADS else "numerics", name, _plain(value), _plain(after.get(name)))
        for name, value in before.items()
        if name not in passed_over and _plain(value) != _plain(after.get(name))
    ]


def _code(before: Any, now: Any) -> list[Circumstance]:
    """The state of boothlab's own work tree; the version says what an installed package is."""
    old, new = _code_in_words(before), _code_in_words(now)
    if old == new or before is None:
        return []
    return [Circumstance("code", "boothlab's code", old, new)]


def _code_in_words(state: Any) -> str:
    if not isinstance(state, Mapping) or state.get("of", "boothlab") != "boothlab":
        return "an installed package"
    commit = str(state.get("commit") or "no commit")[:12]
    changes = f" with uncommitted changes ({str(state.get('diff_sha256'))[:8]})" if state.get("dirty") else ""
    return f"commit {commit}{changes}"


def expects_same_bits(found: Sequence[Circumstance], manifest: Mapping[str, Any], deterministic: bool) -> bool:
    """Whether the rerun is held to the bit: nothing that rounds differs, and nothing was left to chance."""
    on_cpu = str(_section(manifest, "machine").get("device", "cpu")).startswith("cpu")
    return (deterministic or on_cpu) and not any(one.rounds for one in found)

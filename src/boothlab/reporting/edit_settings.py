"""What tells editing settings apart within a method, in few words, and the lines that a swept key draws."""

from collections.abc import Sequence
from dataclasses import dataclass

from boothlab.reporting.edit_runs import COPY, REGENERATE, EditRun
from boothlab.reporting.plots import setting_label, short_names, told_apart_by
from boothlab.reporting.runs import varied_keys
from boothlab.reporting.settings import label_of, natural_order

SWEPT = ("strength", "image_guidance_scale", "control_scale", "guidance_scale", "steps")
"""The keys along which a line is drawn, the first that a method varies."""


@dataclass(frozen=True)
class EditSetting:
    """The runs of one setting (they differ in the run's seed). `values` are shown values by varied key.

    `label` names it among all, `short` among those of its method.
    """

    method: str
    label: str
    short: str
    values: dict[str, str]
    runs: tuple[EditRun, ...]


@dataclass(frozen=True)
class Line:
    """The settings of a method along one key, by its value; a single setting has no key."""

    method: str
    label: str
    key: str | None
    settings: tuple[int, ...]
    ticks: tuple[str, ...]


def settings_of_group(runs: Sequence[EditRun]) -> list[EditSetting]:
    """The settings of a group: `copy` first, `regenerate` last, the others by method in order, then by value."""
    methods: dict[str, list[EditRun]] = {}
    for run in runs:
        methods.setdefault(run.method, []).append(run)
    order = sorted(methods, key=lambda method: {COPY: -1, REGENERATE: 1}.get(method, 0))
    found = [setting for method in order for setting in _of_method(method, methods[method])]
    seen: dict[str, int] = {}
    unlike = []
    for setting in found:  # labels that were cut may be equal
        count = seen[setting.label] = seen.get(setting.label, 0) + 1
        more = f" ({count})" if count > 1 else ""
        unlike.append(
            EditSetting(setting.method, setting.label + more, setting.short + more, setting.values, setting.runs)
        )
    return unlike


def _of_method(method: str, runs: Sequence[EditRun]) -> list[EditSetting]:
    records = [run.record for run in runs]
    keys = varied_keys(records)
    names = short_names(told_apart_by(records, keys))
    gathered: dict[str, list[EditRun]] = {}
    for run in sorted(runs, key=lambda run: [natural_order(run.record.settings.get(key)) for key in keys]):
        gathered.setdefault(run.record.setting, []).append(run)
    found = []
    for group in gathered.values():
        values = {key: label_of(group[0].record.settings.get(key)) for key in keys}
        short = setting_label(values, names)
        found.append(
            EditSetting(method, f"{method} · {short}" if short else method, short or method, values, tuple(group))
        )
    return found


def lines_of(settings: Sequence[EditSetting]) -> list[Line]:
    """A line for each method and value of what it varies beside the swept key."""
    gathered: dict[tuple[str, str | None, tuple[tuple[str, str], ...]], list[int]] = {}
    for index, setting in enumerate(settings):
        key = next((one for one in SWEPT if one in setting.values), None)
        others = tuple((name, value) for name, value in setting.values.items() if name != key)
        gathered.setdefault((setting.method, key, others), []).append(index)
    found = []
    for (method, key, others), indices in gathered.items():
        rest = setting_label(dict(others), short_names([name for name, _ in others]))
        indices.sort(key=lambda index: natural_order(_value(settings[index], key)))
        ticks = tuple(settings[index].values[key] if key else "" for index in indices)
        found.append(Line(method, f"{method} · {rest}" if rest else method, key, tuple(indices), ticks))
    return found


def _value(setting: EditSetting, key: str | None) -> object:
    return setting.runs[0].record.settings.get(key) if key else None

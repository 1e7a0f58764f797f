"""What the files of a run folder must look like for a report to be made of them; others are refused in one line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boothlab.errors import UserError
from boothlab.files import read_json, shown
from boothlab.tracking.history import decode_number


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if the file is not there, or holds something else. Raises UserError."""
    found = read_json(path) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def read_details(path: Path) -> dict[str, Any]:
    """metrics.json of a checkpoint; empty if it is not there. Raises UserError if it is not what boothlab writes."""
    found = read_object(path)
    rows, prompts = found.get("metrics", []), found.get("per_prompt", [])
    if not _all(rows, _is_score) or not _all(prompts, _is_prompt):
        raise UserError(f"{shown(path)}: is not what boothlab writes; score the run again, or delete the file")
    return found


def scalar(value: Any) -> float | None:
    """A score as JSON holds it; None for one that was not measured. Raises ValueError for anything else."""
    return None if value is None else float(decode_number(value))


def check_config(config: Mapping[str, Any], where: Path) -> None:
    """Raise UserError if the parts of a config that a report reads are not of their types."""
    sections = ("subject", "evaluation", "tracking", "lora", "prior", "encoders", "backbone")
    wrong = [key for key in sections if not isinstance(config.get(key) or {}, Mapping)]
    evaluation: Any = config.get("evaluation") or {}
    if not wrong:
        prompts, seeds = evaluation.get("prompts") or [], evaluation.get("seeds") or []
        wrong += [] if _all(prompts, lambda prompt: isinstance(prompt, str)) else ["evaluation.prompts"]
        wrong += [] if _all(seeds, _is_whole) else ["evaluation.seeds"]
    if wrong:
        raise UserError(f"{shown(where)}: its config.{wrong[0]} is not what boothlab writes; put the original back")


def _all(rows: Any, is_right: Any) -> bool:
    return isinstance(rows, list) and all(map(is_right, rows))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_score(row: Any) -> bool:
    return isinstance(row, dict) and isinstance(row.get("name"), str) and isinstance(row.get("counts") or {}, dict)


def _is_prompt(row: Any) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not _is_whole(row.get("images")):
        return False
    try:
        for key, value in row.items():
            if key != "prompt":
                scalar(value)
    except ValueError:
        return False
    return True

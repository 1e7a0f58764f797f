"""Keeps keys, tokens and passwords out of everything that a run writes down or sends."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from boothlab.files import write_text

REDACTED = "[redacted]"

_SECRET_VARIABLES = (
    "WANDB_API_KEY",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HUGGINGFACE_HUB_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "GITHUB_TOKEN",
    "OPENAI_API_KEY",
)
# Whatever else the environment calls a secret. Such values must be longer: a short one may be a word of a prompt.
_SECRET_VARIABLE = re.compile(
    r"(?:^|_)(?:API_?KEY|ACCESS_?KEY|SECRET_?KEY|PRIVATE_?KEY|TOKEN|SECRET|PASSWORD|PASSWD)$", re.IGNORECASE
)
_SHORTEST_KNOWN, _SHORTEST = 8, 12
# A bare "token" is not in this list: in DreamBooth that is the subject's word, and a rerun needs it.
_SECRET_NAME = (
    r"(?:api_?key|secret|secret_?key|password|passwd|hf_?token|auth_?token|access_?token|bearer|wandb_?(?:key|token))"
)
_SECRET_NAME_PATTERN = re.compile(rf"(?:.*[._-])?{_SECRET_NAME}", re.IGNORECASE)
_ASSIGNMENT = re.compile(
    rf"(?P<name>\b[\w.-]*{_SECRET_NAME}[\"']?(?:\s*[=:]\s*|\s+(?=[\"'\w-]{{16}}))[\"']?)(?P<value>[^\s\"',;&]+)",
    re.IGNORECASE,
)
_KNOWN_FORMS = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\bapi_org_[A-Za-z0-9]{16,}|\bwandb_v\d+_\w{20,}|\blocal-[0-9a-f]{40}\b"
    r"|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bsk-[A-Za-z0-9_-]{20,}|\bAKIA[0-9A-Z]{16}\b"
)
_URL_CREDENTIALS = re.compile(r"(?<=://)(?!git@)[^/\s\"'<>]+(?=@)")
# With dashes, or in an address, a bare "token" is no word of the subject: --token=…, --token …, ?token=…
_BARE_TOKEN = re.compile(
    r"(?P<name>(?:--[\w-]*token(?:=|\s+)|[?&](?:token|key|sig|signature)=)[\"']?)[^\s\"',;&]+", re.IGNORECASE
)
# A W&B key is 40 hexadecimal digits, and so is a git commit. A commit is told by its neighbourhood: a revision of a
# model must survive, or the run could not be made again.
_FORTY_HEX = re.compile(
    r"(?P<commit>[\w.]*(?:revision|commit|sha|hash|digest)[\w.]*[\"']?\s*[=:]\s*[\"']?|snapshots/|@|\bindex |\.\.)?"
    r"(?<![0-9a-fA-F])(?P<digits>[0-9a-fA-F]{40})(?![0-9a-fA-F])"
)
_FORTY_DIGITS = re.compile(r"[0-9a-fA-F]{40}")
_COMMIT_NAME = re.compile(r"revision|commit|sha|hash|digest", re.IGNORECASE)


def redact_text(text: str) -> str:
    """The text with whatever looks like a key or is the value of a known secret variable replaced."""
    for value in _secret_values():
        text = text.replace(value, REDACTED)
    text = _KNOWN_FORMS.sub(REDACTED, text)
    text = _URL_CREDENTIALS.sub(REDACTED, text)
    text = _ASSIGNMENT.sub(lambda match: match["name"] + REDACTED, text)
    text = _BARE_TOKEN.sub(lambda match: match["name"] + REDACTED, text)
    if _FORTY_DIGITS.search(text) is None:  # the neighbourhood is looked for at every character: slow in a long diff
        return text
    return _FORTY_HEX.sub(lambda match: match[0] if match["commit"] else REDACTED, text)


def _secret_values() -> list[str]:
    """The values of the environment that are secret, the longest first: one may be a part of another."""
    known = [os.environ.get(variable, "") for variable in _SECRET_VARIABLES]
    named = [value for variable, value in os.environ.items() if _SECRET_VARIABLE.search(variable)]
    values = {value for value in known if len(value) >= _SHORTEST_KNOWN}
    values |= {value for value in named if len(value) >= _SHORTEST}
    return sorted(values, key=lambda value: (-len(value), value))


def redact_command(command: Sequence[str]) -> list[str]:
    """The words of a command line, each redacted, and the one after an option such as `--api-key` or `--token`."""
    found: list[str] = []
    for before, word in zip(("", *command), command, strict=False):
        option = before.lstrip("-").replace("-", "_") if before.startswith("--") else ""
        found.append(REDACTED if option.lower().endswith("token") else redact(word, option))
    return found


def redact_file(path: Path) -> None:
    """Redact a text file in place, if there is anything to redact; a file that cannot be read is left as it is."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    if (clean := redact_text(text)) != text:
        write_text(path, clean)


class RedactingFilter(logging.Filter):
    """Redacts log records; for handlers that write to files."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always lets the record pass, with its text redacted."""
        text = record.getMessage()
        if (clean := redact_text(text)) != text:
            record.msg, record.args = clean, None
        return True


def redact(value: Any, name: str = "") -> Any:
    """A copy of nested dicts and lists with every string redacted; `name` is the key under which the value lies."""
    if isinstance(value, Mapping):
        return {key: redact(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item, name) for item in value]
    if not isinstance(value, str):
        return value
    if value and _SECRET_NAME_PATTERN.fullmatch(name):
        return REDACTED
    if _COMMIT_NAME.search(name) and re.fullmatch(r"[0-9a-fA-F]{40}", value):
        return REDACTED if value in _secret_values() else value
    return redact_text(value)

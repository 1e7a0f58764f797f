"""What a published text must not say: keys and tokens, and where on whose machine something lies."""

import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from boothlab.diffusion.backbone import local_folder
from boothlab.files import shown
from boothlab.tracking.redaction import redact, redact_command, redact_text

PLACE = "PATH"
"""What stands for a path."""
_ABSOLUTE = re.compile(r"(?<![\w:/.<>])(?:~|/|\.\.?/|[A-Za-z]:[\\/])[^\s,;'\"`\]\[(){}]*[\w/\\][^\s,;'\"`\]\[(){}]*")
_OF_THIS_MACHINE = (
    *("subject.images", "subject.captions_dir", "subject.tag_labels", "subject.tag_clip"),
    *("prior.class_images", "paths.", "cache", "hydra."),
)
_SHORTEST_HOST = 4


def without_places(text: str) -> str:
    """The text with keys and tokens redacted, and `PATH` for every path that is no address of the web."""
    return _ABSOLUTE.sub(PLACE, redact_text(text))


def public_source(source: str) -> str:
    """A model's source as others may read it: a hub id as it is, `dollhouse`, or `PATH` for a local folder."""
    if source == "dollhouse":
        return source
    return PLACE if local_folder(source) is not None else without_places(source)


def public_command(command: Sequence[str]) -> list[str]:
    """The overrides of a command line, with `PATH` for the values that are places on a machine."""
    words = []
    for word in redact_command(command):
        key, equals, value = word.partition("=")
        local = key.lstrip("+~").startswith(_OF_THIS_MACHINE) and not value.startswith("dollhouse")
        named = key.endswith(".source") and local_folder(value) is not None and value != "dollhouse"
        words.append(f"{key}={PLACE}" if equals and (local or named) else without_places(word))
    return words


def public_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in an adapter file, without places."""

    def cleaned(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: public_source(item) if key == "source" and isinstance(item, str) else cleaned(item)
                    for key, item in value.items()}  # fmt: skip
        if isinstance(value, list):
            return [cleaned(item) for item in value]
        return without_places(value) if isinstance(value, str) else value

    found: dict[str, Any] = cleaned(redact(dict(settings)))
    return found


def told_by(text: str, run: Path) -> list[str]:
    """What a text gives away of this machine, in words: the home folder, the run's place, the host's name."""
    host = socket.gethostname()
    looked_for = {
        "your home folder": str(Path.home()) if len(str(Path.home())) > 1 else "",
        "the run's place": str(run.resolve().parent),
        "the working folder": str(Path.cwd()),
        "the host's name": host if len(host) >= _SHORTEST_HOST and host != "localhost" else "",
    }
    found = [what for what, word in looked_for.items() if word.strip("/") and _whole(word).search(text)]
    return found + (["a key or token"] if redact_text(text) != text else [])


def _whole(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w.-]){re.escape(shown(word))}(?![\w-])")

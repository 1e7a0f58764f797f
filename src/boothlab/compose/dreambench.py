"""`${dreambench:WHAT,…}` in a config: class, prompts and names of the DreamBooth data set's subjects."""

from collections.abc import Callable
from pathlib import Path

from omegaconf import ListConfig

from boothlab.errors import UserError
from boothlab.images.dreambench import BenchSubject, images_of, subject_of

_OF_A_SUBJECT: dict[str, Callable[[BenchSubject], str | list[str]]] = {
    "class": lambda subject: subject.class_noun,
    "prompts": lambda subject: list(subject.prompts),
    "name": lambda subject: subject.name,
}


def dreambench(what: str, of: str | None) -> str | ListConfig:
    """`class`, `prompts` or `name` of a subject given as `dreambench:NAME`; `subjects` of a checkout, for a sweep.

    `subjects` are values of `subject.images` with commas between them; null gives those that ship with the package.
    Raises UserError.
    """
    if what == "subjects":
        return ",".join(_quoted(image) for image in images_of(Path(of) if of else None))
    if what not in _OF_A_SUBJECT:
        raise UserError(f"${{dreambench:{what},…}}: must be one of {', '.join(_OF_A_SUBJECT)}, subjects")
    subject = subject_of(str(of))
    if subject is None:
        raise UserError(f"subject.images={of}: is not of the DreamBooth data set; write dreambench:dog or "
                        "dreambench:CHECKOUT/NAME")  # fmt: skip
    value = _OF_A_SUBJECT[what](subject)
    return ListConfig(value) if isinstance(value, list) else value


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

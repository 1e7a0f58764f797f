"""The licence that an adapter of a base model comes under, as far as it is known."""

import re

OPENRAIL = ("creativeml-openrail-m", "https://huggingface.co/spaces/CompVis/stable-diffusion-license")
OPENRAIL_PLUS = ("openrail++", "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md")
KNOWN = {
    "dollhouse": ("apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0"),
    "stable-diffusion-v1-5/stable-diffusion-v1-5": OPENRAIL,
    "runwayml/stable-diffusion-v1-5": OPENRAIL,
    "compvis/stable-diffusion-v1-4": OPENRAIL,
    "stabilityai/stable-diffusion-2-1": OPENRAIL_PLUS,
    "stabilityai/stable-diffusion-2-1-base": OPENRAIL_PLUS,
    "stabilityai/stable-diffusion-2": OPENRAIL_PLUS,
    "stabilityai/stable-diffusion-2-base": OPENRAIL_PLUS,
    "stabilityai/stable-diffusion-xl-base-1.0": OPENRAIL_PLUS,
}
"""By the base model's hub id in small letters: the hub's name of the licence, and where it stands."""


def licence_of(base: str) -> tuple[str, str] | None:
    """The hub's name of a base model's licence and its address; None when it is not known here."""
    return KNOWN.get(base.lower())


def is_hub_id(source: str) -> bool:
    """Whether a model's source is a name of the hub: `user/name`."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None

"""Keys with a name in front that no loader knows, or without the one that all know: told, and mended on request."""

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from boothlab.diffusion.formats import cloneofsimo, diffusers_format, kohya, peft_format
from boothlab.diffusion.formats.container import RawFile
from boothlab.errors import UserError
from boothlab.files import shown

WRAPPERS = ("base_model.model.", "module.", "model.", "transformer.", "pipeline.", "pipe.", "unet.unet.")
"""What training scripts leave in front of the names: PEFT's, DataParallel's and other wrappers'."""
_BARE_UNET = ("down_blocks.", "up_blocks.", "mid_block.", "conv_in.", "conv_out.", "time_embedding.", "add_embedding.")
_BARE_TEXT = ("text_model.", "encoder.layers.")


def without_prefix(raws: Sequence[RawFile], prefix: str) -> list[RawFile]:
    """The files with a named prefix taken off the keys that have it. Raises UserError when none has it."""
    if not any(key.startswith(prefix) for raw in raws for key in raw.tensors):
        first = next((key for raw in raws for key in raw.tensors), "none")
        raise UserError(
            f"{shown(raws[0].path)}: no key begins with prefix={shown(prefix)}; the first is {shown(first)}"
        )
    return [_renamed(raw, {key: key.removeprefix(prefix) for key in raw.tensors}) for raw in raws]


def mend(raws: Sequence[RawFile], *, repair: bool) -> tuple[list[RawFile], list[str]]:
    """The files with names as loaders know them, and what was done, in words.

    Raises UserError, which offers the repair, when something is to be mended and `repair` is not set.
    """
    mended, notes = [], []
    for raw in raws:
        names = {key: _mended(raw, key, repair=repair) for key in raw.tensors}
        changed = [key for key, name in names.items() if name != key]
        if not changed:
            mended.append(raw)
            continue
        what = _what(changed, names)
        if not repair:
            raise UserError(
                f"{shown(raw.path)}: {len(changed)} of {len(names)} keys {what[0]} (first {shown(changed[0])}); "
                f"`boothlab convert {shown(raw.path)} to=diffusers repair=true` {what[1]}"
            )
        notes.append(f"{len(changed)} keys {what[0]}: mended")
        mended.append(_renamed(raw, names))
        if raw.config is None and any(key.startswith(peft_format.PREFIX) for key in changed):
            notes.append("no adapter_config.json: alpha is taken to be the rank")
    return mended, notes


def _what(changed: Sequence[str], names: dict[str, str]) -> tuple[str, str]:
    """What is wrong with the first of them, and what a repair does."""
    key, name = changed[0], names[changed[0]]
    if name.endswith(key):
        added = name.removesuffix(key)
        return f"lack {added!r} in front", "puts it there"
    taken = key[: len(key) - len(name)] if key.endswith(name) else next(w for w in WRAPPERS if key.startswith(w))
    return f"begin with {shown(taken)!r}, which no loader knows", "takes it off"


def _mended(raw: RawFile, key: str, *, repair: bool) -> str:
    if kohya.claims(key) or cloneofsimo.claims(key) or raw.metadata.get(key) == cloneofsimo.EMBED:
        return key
    if peft_format.claims(key):
        rest = key.removeprefix(peft_format.PREFIX)
        whole = raw.config is not None or peft_format.said(raw)
        wrapped = diffusers_format.claims(rest) or kohya.claims(rest) or rest.startswith(peft_format.PREFIX)
        if rest.startswith(peft_format.PREFIX) and whole:
            return rest
        if not wrapped and (whole or not repair):
            return key
    name = key
    while wrapper := next((one for one in WRAPPERS if name.startswith(one)), None):
        name = name.removeprefix("unet." if wrapper == "unet.unet." else wrapper)
    if name.startswith(_BARE_UNET):
        return f"unet.{name}"
    if name.startswith(_BARE_TEXT):
        return f"text_encoder.{name}"
    return name if diffusers_format.claims(name) or kohya.claims(name) else key


def _renamed(raw: RawFile, names: dict[str, str]) -> RawFile:
    tensors: dict[str, Tensor] = {}
    for key, name in names.items():
        if name in tensors:
            raise UserError(f"{shown(raw.path)}: {shown(key)} is {shown(name)} once more; take one of the two out")
        tensors[name] = raw.tensors[key]
    return dataclasses.replace(raw, tensors=tensors)

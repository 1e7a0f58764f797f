"""Textual inversion: new words in the text encoders whose embeddings alone are trained, saved and loaded back.

A prompt goes on saying the subject's token; the tokenizer reads a placeholder `<token>` in its stead, which no
vocabulary has, and one more for each further vector.
"""

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from boothlab.diffusion.backbone import Backbone, first_line
from boothlab.diffusion.formats.container import safetensors_bytes
from boothlab.errors import UserError
from boothlab.files import shown, write_bytes

FILE_NAME = "learned_embeds.safetensors"
FOLDER = "embedding"
_SDXL_KEYS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
"""The names A1111, ComfyUI and diffusers' scripts give the two halves of an SDXL embedding."""


class LearnedEmbedding(nn.Module):
    """A token embedding with N more rows, the only ones that are trained; ids from `first` on are theirs."""

    def __init__(self, base: nn.Embedding, first: int, start_ND: Tensor):
        super().__init__()
        self.base, self.first = base, first
        self.learned = nn.Parameter(start_ND.detach().to(base.weight.device, torch.float32, copy=True))

    @property
    def weight(self) -> Tensor:
        """The vocabulary the model came with."""
        return self.base.weight

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Embeddings [B, T, D] in the precision of the vocabulary."""
        own_BT = (ids_BT >= self.first) & (ids_BT < self.first + len(self.learned))
        known_BTD: Tensor = self.base(ids_BT.masked_fill(own_BT, 0))
        new_BTD = F.embedding((ids_BT - self.first).clamp(0, len(self.learned) - 1), self.learned)
        return torch.where(own_BT.unsqueeze(-1), new_BTD.to(known_BTD.dtype), known_BTD)


@dataclass
class Words:
    """What a backbone has learned to read: the token, what the tokenizers read for it, and the ones of before."""

    token: str
    placeholders: list[str]
    tokenizers: dict[str, Any] = field(default_factory=dict)

    def spell(self, prompt: str) -> str:
        """The prompt with the placeholders for the token, wherever it stands as a word of its own."""
        return re.sub(rf"(?<![\w<]){re.escape(self.token)}(?![\w>])", " ".join(self.placeholders), prompt)


def is_word(name: str) -> bool:
    """Whether a parameter of a text encoder is the embeddings of new words."""
    return name.endswith(".learned") or name == "learned"


def learned(backbone: Backbone) -> dict[str, LearnedEmbedding]:
    """The embeddings that carry new words, by text encoder."""
    found: dict[str, Any] = {name: encoder.get_input_embeddings() for name, encoder in _encoders(backbone).items()}  # type: ignore[operator]
    return {name: one for name, one in found.items() if isinstance(one, LearnedEmbedding)}


def _encoders(backbone: Backbone) -> dict[str, nn.Module]:
    return {name: getattr(encoder, "module", encoder) for name, encoder in backbone.text_encoders.items()}


def placeholders_of(token: str, vectors: int) -> list[str]:
    """`<sks>`, `<sks>_1`, …, as diffusers names the vectors of one word."""
    first = token if token.startswith("<") and token.endswith(">") else f"<{token}>"
    return [first, *(f"{first}_{index}" for index in range(1, vectors))]


def add_words(backbone: Backbone, token: str, vectors: int, init_word: str) -> int:
    """Teach the text encoders `vectors` new embeddings for the token, started from those of a word; returns how many.

    A word of several tokens gives each vector one of its own, in turn. Raises UserError for a word that is none.
    """
    starts: dict[str, Tensor] = {}
    for name, encoder in backbone.text_encoders.items():
        tokenizer = backbone.tokenizers[name]
        ids = tokenizer(init_word, add_special_tokens=False).input_ids
        if not ids or all(one == tokenizer.unk_token_id for one in ids):
            raise UserError(f"inversion.init_word={init_word!r}: the tokenizer of {backbone.name} has no such word")
        table: Tensor = encoder.get_input_embeddings().weight  # type: ignore[operator]
        starts[name] = table.detach()[[ids[index % len(ids)] for index in range(vectors)]]
    _put(backbone, token, starts)
    return vectors


def _put(backbone: Backbone, token: str, rows: Mapping[str, Tensor]) -> None:
    if backbone.learned is not None:
        raise UserError(f"the backbone {backbone.name} carries learned words already; load a fresh backbone")
    count = len(next(iter(rows.values())))
    words = Words(token, placeholders_of(token, count))
    for name, encoder in backbone.text_encoders.items():
        before = backbone.tokenizers[name]
        tokenizer = copy.deepcopy(before)  # a word cannot be taken out of a tokenizer again
        if tokenizer.add_tokens(words.placeholders) != count:
            taken = ", ".join(words.placeholders)
            raise UserError(
                f"subject.token={token}: the tokenizer of {backbone.name} has {taken} already; choose another"
            )
        ids = tokenizer.convert_tokens_to_ids(words.placeholders)
        assert ids == list(range(ids[0], ids[0] + count))
        encoder.set_input_embeddings(LearnedEmbedding(encoder.get_input_embeddings(), ids[0], rows[name]))  # type: ignore[operator]
        words.tokenizers[name] = before
        setattr(backbone.pipeline, name.replace("text_encoder", "tokenizer"), tokenizer)
    backbone.learned = words


def shed_words(backbone: Backbone) -> None:
    """Forget the new words: tokenizers and vocabularies are those that were loaded."""
    if backbone.learned is None:
        return
    for name, tokenizer in backbone.learned.tokenizers.items():
        setattr(backbone.pipeline, name.replace("text_encoder", "tokenizer"), tokenizer)
    for name, one in learned(backbone).items():
        backbone.text_encoders[name].set_input_embeddings(one.base)  # type: ignore[operator]
    backbone.learned = None


@contextmanager
def without_words(backbone: Backbone) -> Iterator[None]:
    """Inside, prompts are read as by the model as it came: the token is the rare word it always was."""
    before, backbone.learned = backbone.learned, None
    try:
        yield
    finally:
        backbone.learned = before


def save_words(folder: Path, backbone: Backbone, settings: Mapping[str, Any]) -> Path:
    """Write `learned_embeds.safetensors`: {placeholder: [N, D]}, or clip_l and clip_g for SDXL, with the settings.

    The first is what `pipe.load_textual_inversion(FILE)` of diffusers reads and A1111 takes by its file name.
    """
    words = backbone.learned
    assert words is not None
    values = {name: one.learned.detach().to("cpu", copy=True).contiguous() for name, one in learned(backbone).items()}
    if backbone.is_sdxl:
        state = {_SDXL_KEYS[name]: value for name, value in values.items()}
    else:
        state = {words.placeholders[0]: values["text_encoder"]}
    said = json.dumps({"token": words.token, "placeholders": words.placeholders}, sort_keys=True)
    metadata = {"format": "pt", "boothlab": json.dumps(dict(settings), sort_keys=True), "words": said}
    write_bytes(folder / FILE_NAME, safetensors_bytes(state, metadata))
    return folder / FILE_NAME


def is_words_file(path: Path) -> bool:
    """Whether a file holds embeddings of new words, of boothlab, diffusers or A1111."""
    try:
        with safe_open(path, framework="pt") as file:
            keys = set(file.keys())
            ranks = [len(file.get_slice(key).get_shape()) for key in keys]
    except (SafetensorError, OSError):
        return False
    return keys == set(_SDXL_KEYS.values()) or (len(keys) == 1 and ranks[0] <= 2 and not min(keys).endswith(".weight"))


def load_words(backbone: Backbone, path: Path) -> str:
    """Teach the backbone the words of a file, frozen; returns the token they are called by.

    In a file of another tool that is its key, or for SDXL the file's own name. Raises UserError for an embedding of
    another model.
    """
    try:
        state = load_file(path)
        with safe_open(path, framework="pt") as file:
            said = json.loads((file.metadata() or {}).get("words", "{}"))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{shown(path)}: is not a readable embedding ({first_line(error)}); is it cut short?"
        ) from error
    token = said.get("token") if isinstance(said, dict) else None
    if backbone.is_sdxl != (state.keys() == set(_SDXL_KEYS.values())):
        raise UserError(f"{shown(path)}: is an embedding of another model than {backbone.name}")
    keys = _SDXL_KEYS if backbone.is_sdxl else {"text_encoder": next(iter(state))}
    rows = {name: state[key].reshape(-1, state[key].shape[-1]) for name, key in keys.items()}
    widths = {name: one.get_input_embeddings().weight.shape[1] for name, one in backbone.text_encoders.items()}  # type: ignore[operator]
    _check_widths(path, backbone.name, rows, widths)
    word = token if isinstance(token, str) and token else (path.stem if backbone.is_sdxl else next(iter(state)))
    _put(backbone, word, rows)
    for one in learned(backbone).values():
        one.requires_grad_(False)
    return word


def _check_widths(path: Path, name: str, rows: Mapping[str, Tensor], widths: Mapping[str, int]) -> None:
    counts: Sequence[int] = [len(value) for value in rows.values()]
    wrong = [part for part, value in rows.items() if value.shape[1] != widths[part]]
    if wrong or len(set(counts)) != 1:
        shape = list(rows[(wrong or list(rows))[0]].shape)
        raise UserError(
            f"{shown(path)}: its embeddings are {shape}, where {name} has words of "
            f"{', '.join(map(str, widths.values()))} numbers; they were made for another model"
        )

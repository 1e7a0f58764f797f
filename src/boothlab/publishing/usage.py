"""How to use what is published: code for diffusers that runs as it stands, and where A1111 and ComfyUI want it."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from boothlab.diffusion.formats.diffusers_format import FILE_NAME
from boothlab.diffusion.learned_words import FILE_NAME as WORDS_FILE
from boothlab.publishing.facts import Facts
from boothlab.publishing.licences import is_hub_id
from boothlab.publishing.markup import code, fenced, table
from boothlab.publishing.weights import size_text
from boothlab.reporting.markdown import escape

KOHYA = "_kohya.safetensors"
ENCODERS = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
GROUPS = ("sd15", "sd21", "sdxl")
"""What `boothlab sample backbone=` knows besides the miniature."""
UNREAD = ("loha", "lokr")
"""Forms of an adapter that diffusers does not read for Stable Diffusion."""


@dataclass(frozen=True)
class Published:
    """One file of the folder that is the thing itself: its name, what it is for, its size in bytes."""

    name: str
    what: str
    size: int


def usage(facts: Facts, files: Sequence[Published], repo: str | None) -> list[str]:
    """The blocks of a card's "How to use it". `repo` is the hub's name of the folder, where it is known."""
    rows = [[code(file.name), escape(file.what), size_text(file.size)] for file in files]
    blocks = [table(["file", "for", "size"], rows)]
    if facts.variant not in UNREAD:
        blocks.append(f"With diffusers:\n\n{fenced(diffusers_code(facts, repo), 'python')}")
    if facts.word:
        blocks.append(_of_the_word(facts))
    return [*blocks, *_with_boothlab(facts), *_other_tools(facts, [file.name for file in files])]


def example_prompt(facts: Facts) -> str:
    """A prompt that the samples show, or the one that was trained on."""
    return facts.samples[0][0] if facts.samples else facts.instance_prompt


def diffusers_code(facts: Facts, repo: str | None) -> str:
    """Python that loads the base model and what was trained, and draws one image.

    The precision is named: else transformers keeps that of a file, diffusers does not, and the two do not multiply.
    """
    where = f"REPO = {repo!r}  # or a folder with these files" if repo else "REPO = '.'  # this folder, or its hub id"
    imports = ["import torch", "from diffusers import AutoPipelineForText2Image"]
    if facts.networks:
        imports[-1] += ", UNet2DConditionModel"
    if encoders := [name for name in facts.networks if name in ENCODERS]:
        imports.append(f"from transformers import {', '.join(ENCODERS[name] for name in encoders)}")
    base = "BASE_MODEL = 'FOLDER'  # the folder of the base model"
    if is_hub_id(facts.base):
        base = f"BASE_MODEL = {facts.base!r}"
    elif facts.base == "dollhouse":
        imports.append("from boothlab.diffusion.backbone import DOLLHOUSE")
        base = "BASE_MODEL = DOLLHOUSE / 'pipeline'"
    lines = ["DTYPE = torch.float32  # on a GPU: torch.float16, and pipeline.to('cuda')"]
    if facts.networks:
        lines.append("unet = UNet2DConditionModel.from_pretrained(REPO, subfolder='unet', torch_dtype=DTYPE)")
    lines += [f"{name} = {ENCODERS[name]}.from_pretrained(REPO, subfolder={name!r}).to(DTYPE)" for name in encoders]
    given = "".join(f", {name}={name}" for name in facts.networks)
    lines.append(f"pipeline = AutoPipelineForText2Image.from_pretrained(BASE_MODEL, torch_dtype=DTYPE{given})")
    if facts.word:
        lines += _load_word(facts, imports, repo)
    if facts.variant:
        lines.append(f"pipeline.load_lora_weights(REPO, weight_name={FILE_NAME!r})")
    size = f", height={facts.resolution}, width={facts.resolution}"
    lines.append(f"image = pipeline({example_prompt(facts)!r}{size}).images[0]")
    return "\n".join([*imports, "", where, base, *lines])


def _load_word(facts: Facts, imports: list[str], repo: str | None) -> list[str]:
    """Before the adapter: an adapter of the text encoder is then put around a vocabulary that stays as it is."""
    assert facts.word is not None
    if not facts.word.has_halves:
        return ["pipeline.load_textual_inversion(REPO)"]
    imports.append("from safetensors.torch import load_file")
    if repo:
        imports.append("from huggingface_hub import hf_hub_download")
        read = f"words = load_file(hf_hub_download(REPO, {WORDS_FILE!r}))"
    else:
        hub = f"load_file(hf_hub_download(REPO, {WORDS_FILE!r}))"
        read = f"words = load_file(REPO + '/{WORDS_FILE}')  # from the hub: {hub}"
    calls = [
        f"pipeline.load_textual_inversion(\n    words[{key!r}], token={facts.word.placeholder!r}, "
        f"text_encoder=pipeline.text_encoder{end}, tokenizer=pipeline.tokenizer{end}\n)"
        for key, end in (("clip_l", ""), ("clip_g", "_2"))
    ]
    return [read, *calls]


def _of_the_word(facts: Facts) -> str:
    assert facts.word is not None
    vectors = facts.word.vectors
    said = f"The word is {code(facts.word.placeholder)} in diffusers"
    if vectors > 1:
        said += f"; it stands for {vectors} vectors, which the pipeline puts there by itself"
    if facts.word.has_halves:
        said += ". The file has a half for each of the two text encoders of SDXL, and both are to be loaded"
    return f"{said}. The prompts of this page are written so."


def _with_boothlab(facts: Facts) -> list[str]:
    """In boothlab's prompts the token is what it was in training: the placeholder is put there by itself."""
    prompt = example_prompt(facts)
    if facts.word:
        prompt = prompt.replace(facts.word.placeholder, facts.token)
    words = ["boothlab", "sample", "run=FOLDER"]
    if facts.base != "dollhouse":
        if facts.base_name not in GROUPS:
            return []
        source = facts.base if is_hub_id(facts.base) else "BASE_MODEL"
        words += [f"backbone={facts.base_name}", f"backbone.source={source}", f"backbone.resolution={facts.resolution}"]
    words.append(shlex.quote(f"prompt={prompt}"))
    return [f"With boothlab, FOLDER being these files:\n\n{fenced(' '.join(words), 'sh')}"]


def _other_tools(facts: Facts, names: Sequence[str]) -> list[str]:
    kohya = next((name for name in names if name.endswith(KOHYA)), None)
    word = next((name for name in names if facts.word and name not in (FILE_NAME, WORDS_FILE, kohya)), WORDS_FILE)
    shown = [name for name in (word if facts.word else None, kohya) if name]
    if facts.base == "dollhouse":
        what = f"{' and '.join(map(code, shown))} {'show' if len(shown) > 1 else 'shows'}"
        known = [f"{what} the format of A1111 and ComfyUI; neither can load the miniature itself."]
        return known if shown else []
    blocks = []
    if facts.word:
        blocks.append(_word_elsewhere(facts, word))
    if kohya:
        tag = f"<lora:{kohya.removesuffix('.safetensors')}:1>"
        blocks.append(
            f"With A1111: put {code(kohya)} into `models/Lora` and add {code(tag)} to the prompt. With ComfyUI: put "
            "it into `models/loras` and use a *Load LoRA* node. Both scale it by the alpha in the file."
        )
    elif facts.variant in UNREAD:
        blocks.append(
            f"{code(FILE_NAME)} has the names of LyCORIS, as A1111 and ComfyUI know them; diffusers does not read it."
        )
    if facts.networks:
        blocks.append(
            "With ComfyUI: put `unet/diffusion_pytorch_model.safetensors` into `models/diffusion_models`, under a name "
            "of its own, and use a *Load Diffusion Model* node; text encoder and VAE are those of the base model"
            + (", or of `text_encoder/` here" if len(facts.networks) > 1 else "")
            + ". A1111 wants a single file: diffusers' script `convert_diffusers_to_original_stable_diffusion.py` "
            "makes it of a pipeline that was saved with `pipeline.save_pretrained(…)`."
        )
    return blocks


def _word_elsewhere(facts: Facts, name: str) -> str:
    """A1111 and ComfyUI call an embedding by its file's name, whatever is written in it."""
    assert facts.word is not None
    stem = name.removesuffix(".safetensors")
    prompt = example_prompt(facts).replace(facts.word.placeholder, stem)
    return (
        f"With A1111: put {code(name)} into `embeddings` and write {code(stem)}, as in {code(prompt)}. With ComfyUI: "
        f"put it into `models/embeddings` and write {code(f'embedding:{stem}')}. The file's name is the word there: "
        "rename the file, and the word is the new name."
    )

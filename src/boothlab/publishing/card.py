"""The model card: front matter as the hub reads it, and a page for people. Every text of the run is escaped."""

import re
import shlex
from collections.abc import Iterable, Sequence

from huggingface_hub import EvalResult, ModelCardData

from boothlab.publishing.facts import Facts, Score
from boothlab.reporting.markdown import escape, number

MARK = "<!-- written by boothlab publish -->"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def front_matter(facts: Facts, images: Sequence[tuple[str, str]]) -> ModelCardData:
    """What the hub reads: base model, licence, tags, prompt, gallery, and the scores as a model index.

    `images` are (prompt, path in the folder) of the gallery.
    """
    known = _HUB_ID.fullmatch(facts.base) is not None
    results = [
        EvalResult(
            task_type="text-to-image",
            dataset_type="boothlab-evaluation",
            dataset_name=f"{len({prompt for prompt, _ in facts.samples})} evaluation prompts of the run",
            metric_type=score.name,
            metric_name=_label(score, facts),
            metric_value=round(score.last, 6),
        )
        for score in facts.scores
        if score.last is not None and score.last == score.last
    ]
    return ModelCardData(
        base_model=facts.base if known else None,
        license=facts.licence or "other",
        license_link=None if facts.licence or not facts.licence_link else facts.licence_link,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=_tags(facts),
        instance_prompt=facts.instance_prompt,
        widget=[{"text": prompt, "output": {"url": path}} for prompt, path in images],
        model_name=facts.name,
        eval_results=results or None,
    )


def _tags(facts: Facts) -> list[str]:
    kind = ["stable-diffusion-xl"] if facts.is_sdxl else [] if facts.base == "dollhouse" else ["stable-diffusion"]
    return ["text-to-image", "diffusers", "lora", "dreambooth", "diffusers-training", *kind, "boothlab"]


def _label(score: Score, facts: Facts) -> str:
    """A score's name with its encoder: a miniature's is never called by the plain name."""
    encoder = score.how.get("encoder")
    parts = [f"{facts.suffix} encoders"] if facts.suffix else []
    return f"{score.label} ({', '.join([*parts, *([encoder] if encoder else [])]) or 'standard encoders'})"


def card_text(
    facts: Facts, files: Sequence[tuple[str, str]], images: Sequence[tuple[str, str]], grid: str | None
) -> str:
    """README.md: front matter and page. `files` are (name, what it is) of the adapter's files."""
    blocks = [
        f"---\n{front_matter(facts, images).to_yaml()}\n---\n{MARK}",
        f"# {escape(facts.name)}",
        _opening(facts),
        *([f"![Samples by prompt and seed]({grid})"] if grid else []),
        "## How to use it",
        *_usage(facts, files),
        "## How it was trained",
        _training(facts),
        _table(["setting", "value"], [[name, escape(value)] for name, value in facts.settings.items()]),
        *_evaluation(facts),
        "## Make it again",
        _again(facts),
        "## Limits and licence",
        _limits(facts),
    ]
    return "\n\n".join(blocks) + "\n"


def _opening(facts: Facts) -> str:
    token = f" Its word is {_code(facts.token)}; prompts say {_code(f'{facts.token} {facts.class_noun}')}."
    return (
        f"A LoRA adapter for {_base(facts)}, trained with DreamBooth on {facts.photos} "
        f"photo{'' if facts.photos == 1 else 's'} of one {escape(facts.class_noun)}, with the prompt "
        f"{_code(facts.instance_prompt)}.{token if facts.token else ''}"
    )


def _base(facts: Facts) -> str:
    if _HUB_ID.fullmatch(facts.base):
        return f"[{escape(facts.base)}](https://huggingface.co/{facts.base})"
    if facts.base == "dollhouse":
        return "boothlab's built-in miniature model (it ships with the package; it is no Stable Diffusion)"
    return f"a local copy of {escape(facts.base_name)}"


def _code(text: str) -> str:
    """Text as code, with a fence that is longer than any run of backticks in it."""
    line = " ".join(text.split())
    longest = max((len(run) for run in re.findall(r"`+", line)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def _usage(facts: Facts, files: Sequence[tuple[str, str]]) -> list[str]:
    names = dict(files)
    blocks = [_table(["file", "for"], [[_code(name), escape(what)] for name, what in files])]
    prompt = facts.samples[0][0] if facts.samples else facts.instance_prompt
    if "pytorch_lora_weights.safetensors" in names:
        base = repr(facts.base) if _HUB_ID.fullmatch(facts.base) else "BASE_MODEL"
        said = "" if base != "BASE_MODEL" else "BASE_MODEL = …  # the folder of the base model\n"
        if facts.base == "dollhouse":
            said = "from boothlab.diffusion.backbone import DOLLHOUSE\nBASE_MODEL = DOLLHOUSE / 'pipeline'\n"
        size = f", height={facts.resolution}, width={facts.resolution}"
        code = (
            "from diffusers import AutoPipelineForText2Image\n"
            f"{said}pipeline = AutoPipelineForText2Image.from_pretrained({base})\n"
            "pipeline.load_lora_weights('.', weight_name='pytorch_lora_weights.safetensors')  # this folder or hub id\n"
            f"image = pipeline({prompt!r}{size}).images[0]"
        )
        blocks.append(f"With diffusers:\n\n{_fenced(code, 'python')}")
    kohya = next((name for name in names if name.endswith("_kohya.safetensors")), None)
    if kohya and facts.base == "dollhouse":
        blocks.append(f"{_code(kohya)} shows the format of A1111 and ComfyUI; neither can load the miniature itself.")
    elif kohya:
        tag = f"<lora:{kohya.removesuffix('.safetensors')}:1>"
        blocks.append(
            f"With A1111: put {_code(kohya)} into `models/Lora` and add {_code(tag)} to the prompt. With ComfyUI: put "
            "it into `models/loras` and use a *Load LoRA* node. Both scale it by the alpha in the file."
        )
    return blocks


def _fenced(text: str, language: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _training(facts: Facts) -> str:
    return (
        f"{facts.photos} photo{'' if facts.photos == 1 else 's'}, {facts.step} steps. The photos are the trainer's and "
        "are not part of this repository."
        if not any("photos/" in note for note in facts.notes)
        else f"{facts.photos} photos, {facts.step} steps. The photos lie in `photos/`; their licence is the trainer's."
    )


def _evaluation(facts: Facts) -> list[str]:
    if not facts.scores:
        return ["## Evaluation", "The run was not evaluated."]
    rows = [
        [
            f"{escape(score.label)} {'↑' if score.higher_is_better else '↓'}",
            number(score.last),
            f"{number(score.best)} (step {score.best_step})" if score.best_step is not None else "–",
            number(score.floor),
            number(score.ceiling),
        ]
        for score in facts.scores
    ]
    images = next((score.counts for score in facts.scores if score.counts), "")
    lines = [
        "## Evaluation",
        f"At step {facts.step}, the published one"
        + (f" ({escape(images)})" if images else "")
        + ". The floor is the base model without the adapter on the same prompts and seeds; the ceiling is the photos "
        "compared among themselves, which a copy of them would reach. ↑ higher is better, ↓ lower.",
        _table(["score", f"last (step {facts.step})", "best", "floor", "ceiling"], rows),
    ]
    if any(score.name == "dino" and score.ceiling and (score.last or 0) > score.ceiling for score in facts.scores):
        lines.append("**DINO is above its ceiling: the adapter may be copying the photos.**")
    if facts.suffix:
        lines.append(
            f"These scores are by the {escape(facts.suffix)} encoders. They are not the published CLIP-I, CLIP-T and "
            "DINO, and compare only with scores by the same encoders."
        )
    definitions = [
        [escape(score.label), escape(score.what), escape("; ".join(filter(None, [_how(score), score.counts])) or "–")]
        for score in facts.scores
    ]
    return [
        *lines,
        "How each is measured:",
        _table(["score", "what it is", "encoder, preprocessing, counts"], definitions),
    ]


def _how(score: Score) -> str:
    return "; ".join(score.how.values())


def _again(facts: Facts) -> str:
    command = " ".join(word if "PATH" in word else shlex.quote(word) for word in facts.rerun)
    versions = ", ".join(f"{name} {value}" for name, value in facts.versions.items())
    said = " `PATH` stands for a place on the trainer's machine." if "PATH" in command else ""
    commit = f" Code at commit {_code(facts.git_commit)}." if facts.git_commit else ""
    return f"{_fenced(command, 'sh')}\n\nWith {escape(versions)}.{commit}{said}"


def _limits(facts: Facts) -> str:
    licence = (
        f"The adapter is a derivative of its base model, whose licence is {_code(facts.licence)}"
        + (f" ([text]({facts.licence_link}))" if facts.licence_link else "")
        + "; its terms of use hold for the adapter and for what is made with it."
        if facts.licence
        else "The licence of the base model is not known here: look it up before you use or pass this on."
    )
    return "\n".join(
        f"- {line}"
        for line in (
            licence,
            "The rights in the subject's photos, and in what they show, are those of the trainer or of the people in "
            "them, and are not licensed here.",
            "An adapter of a few photos can reproduce them closely: a DINO above the ceiling says that it copies.",
            "It has the biases and gaps of its base model, and knows one subject from few sides.",
            "Do not use it to show a real person without their consent, to deceive, or to harass.",
        )
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

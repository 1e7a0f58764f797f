"""The model card: front matter as the hub reads it, and a page for people. Every text of the run is escaped."""

import shlex
from collections.abc import Sequence

from huggingface_hub import EvalResult, ModelCardData

from boothlab.publishing.evaluation import evaluation, label_of
from boothlab.publishing.facts import Facts, Score
from boothlab.publishing.licences import is_hub_id
from boothlab.publishing.markup import code, counted, fenced, table
from boothlab.publishing.usage import Published, usage
from boothlab.reporting.markdown import escape, number

MARK = "<!-- written by boothlab publish -->"
_FORMS = {"dora": "DoRA", "loha": "LoHa", "lokr": "LoKr"}
"""Forms of an adapter that go by a name of their own; rsLoRA is a LoRA of another alpha."""


def front_matter(facts: Facts, images: Sequence[tuple[str, str]]) -> ModelCardData:
    """What the hub reads: base model, licence, tags, prompt, gallery, and the scores as a model index.

    `images` are (prompt, path in the folder) of the gallery.
    """
    known = is_hub_id(facts.base)
    results = [
        EvalResult(
            task_type="text-to-image",
            dataset_type="boothlab-evaluation",
            dataset_name=f"{len({prompt for prompt, _ in facts.samples})} evaluation prompts of the run",
            metric_type=score.name,
            metric_name=_label(score, facts),
            metric_value=round(score.value, 6),
        )
        for score in facts.scores
        if score.value is not None and score.value == score.value
    ]
    return ModelCardData(
        base_model=facts.base if known else None,
        base_model_relation=("finetune" if facts.networks else "adapter") if known else None,
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
    """As diffusers' own training scripts tag what they publish."""
    kind = ["stable-diffusion-xl"] if facts.is_sdxl else [] if facts.base == "dollhouse" else ["stable-diffusion"]
    what = [
        *(["lora"] if facts.variant else []),
        *(["textual_inversion"] if facts.word else []),
        *(["dreambooth"] if facts.variant or facts.networks else []),
    ]
    return ["text-to-image", "diffusers", *what, "diffusers-training", *kind, "boothlab"]


def _label(score: Score, facts: Facts) -> str:
    """A score's name with its encoder: a miniature's is never called by the plain name."""
    encoder = score.how.get("encoder")
    parts = [f"{facts.suffix} encoders"] if facts.suffix else []
    return f"{score.label} ({', '.join([*parts, *([encoder] if encoder else [])]) or 'standard encoders'})"


def card_text(
    facts: Facts,
    files: Sequence[Published],
    images: Sequence[tuple[str, str]],
    grid: str | None,
    repo: str | None = None,
) -> str:
    """README.md: front matter and page. `files` are those of what was trained; `repo` is where it will be, if known."""
    blocks = [
        f"---\n{front_matter(facts, images).to_yaml()}\n---\n{MARK}",
        f"# {escape(facts.name)}",
        _opening(facts),
        _which_step(facts),
        *([f"![Samples by prompt and seed]({grid})"] if grid else []),
        "## How to use it",
        *usage(facts, files, repo),
        "## How it was trained",
        _training(facts),
        table(["setting", "value"], [[name, escape(value)] for name, value in facts.settings.items()]),
        *evaluation(facts),
        "## Make it again",
        _again(facts),
        "## Limits and licence",
        _limits(facts),
    ]
    return "\n\n".join(blocks) + "\n"


def _opening(facts: Facts) -> str:
    """What it is, of what, and how it is called."""
    base, photos = _base(facts), f"{counted(facts.photos, 'photo')} of one {escape(facts.class_noun)}"
    prompt = f"with the prompt {code(facts.instance_prompt)}"
    adapter = f"{_FORMS.get(facts.variant or '', 'LoRA')} adapter"
    if facts.word is None:
        what = f"A {adapter} for {base}"
        if facts.networks:
            encoders = " and the text encoder" + ("s" if len(facts.networks) > 2 else "")
            what = f"Every weight of the UNet{encoders if len(facts.networks) > 1 else ''} of {base}"
        said = f"{what}, trained with DreamBooth on {photos}, {prompt}."
        word = facts.token
    else:
        word = facts.word.placeholder
        vectors = f"a new word of {counted(facts.word.vectors, 'vector')}"
        said = f"Textual inversion for {base}: {vectors}, learned from {photos}, {prompt}."
        if facts.variant:
            said = f"Pivotal tuning of {base}: {vectors}, then a {adapter}, learned from {photos}, {prompt}."
    return f"{said} Its word is {code(word)}; prompts say {code(f'{word} {facts.class_noun}')}." if word else said


def _base(facts: Facts) -> str:
    if is_hub_id(facts.base):
        return f"[{escape(facts.base)}](https://huggingface.co/{facts.base})"
    if facts.base == "dollhouse":
        return "boothlab's built-in miniature model (it ships with the package; it is no Stable Diffusion)"
    return f"a local copy of {escape(facts.base_name)}"


def _which_step(facts: Facts) -> str:
    choice = facts.choice
    of = f"step {choice.step}" + ("" if choice.is_last else f" of {choice.last}")
    why = "the last of the run" if choice.is_last else "as its publisher chose"
    if choice.best_by is not None:
        best = next((score for score in facts.scores if score.name == choice.best_by), None)
        why = f"the best of the {len(facts.scored_steps)} scored steps by {escape(label_of(facts, choice.best_by))}"
        why += f", {number(best.value)}" if best else ""
        if best and not choice.is_last and best.last is not None:
            why += f" (step {facts.last_scored}, the last, has {number(best.last)})"
    said = f"These files are from {of}: {why}."
    if choice.words_alone:
        said += (
            f" The adapter of the run begins to learn after step {choice.starts_after}, so that at this one there is "
            "the word alone."
        )
    return said


def _training(facts: Facts) -> str:
    steps = counted(facts.step, "step") if facts.choice.is_last else f"{facts.step} of {facts.choice.last} steps"
    if any("photos/" in note for note in facts.notes):
        where = "The photos lie in `photos/`; their licence is the trainer's."
    else:
        where = "The photos are the trainer's and are not part of this repository."
    averaged = "The files hold the moving average of what was trained, which is what was evaluated."
    ema = f" {averaged}" if "moving average" in facts.settings else ""
    return f"{counted(facts.photos, 'photo')}, {steps}. {where}{ema}"


def _again(facts: Facts) -> str:
    command = " ".join(word if "PATH" in word else shlex.quote(word) for word in facts.rerun)
    versions = ", ".join(f"{name} {value}" for name, value in facts.versions.items())
    said = " `PATH` stands for a place on the trainer's machine." if "PATH" in command else ""
    commit = f" Code at commit {code(facts.git_commit)}." if facts.git_commit else ""
    step = "" if facts.choice.is_last else f" Of its checkpoints, this is the one of step {facts.step}."
    return f"{fenced(command, 'sh')}\n\nWith {escape(versions)}.{commit}{step}{said}"


def _limits(facts: Facts) -> str:
    noun = facts.noun
    article = "An" if noun[0] in "ae" else "A"
    licence = (
        f"The {noun} is a derivative of its base model, whose licence is {code(facts.licence)}"
        + (f" ([text]({facts.licence_link}))" if facts.licence_link else "")
        + f"; its terms of use hold for the {noun} and for what is made with it."
        if facts.licence
        else "The licence of the base model is not known here: look it up before you use or pass this on."
    )
    return "\n".join(
        f"- {line}"
        for line in (
            licence,
            "The rights in the subject's photos, and in what they show, are those of the trainer or of the people in "
            "them, and are not licensed here.",
            f"{article} {noun} of a few photos can reproduce them closely: a DINO above the ceiling says that it "
            "copies.",
            "It has the biases and gaps of its base model, and knows one subject from few sides.",
            "Do not use it to show a real person without their consent, to deceive, or to harass.",
        )
    )

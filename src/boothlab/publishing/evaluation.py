"""The part of a card that says how well the published step does, how that was measured, and what flatters it."""

from collections.abc import Sequence

from boothlab.publishing.facts import Facts, Score
from boothlab.publishing.markup import table
from boothlab.reporting.markdown import escape, number


def evaluation(facts: Facts) -> list[str]:
    """The blocks of a card's "Evaluation", heading included."""
    if not facts.scores:
        said = f"Step {facts.step} was not evaluated" if facts.scored_steps else "The run was not evaluated"
        there = f"; the scored ones are {', '.join(map(str, facts.scored_steps))}" if facts.scored_steps else ""
        return ["## Evaluation", f"{said}{there}."]
    images = next((score.counts for score in facts.scores if score.counts), "")
    floor = f"the base model without the {facts.noun}" if facts.noun != "model" else "the base model as it was"
    lines = [
        "## Evaluation",
        f"At step {facts.step}, the published one"
        + (f" ({escape(images)})" if images else "")
        + f". The floor is {floor} on the same prompts and seeds; the ceiling is the photos "
        "compared among themselves, which a copy of them would reach. ↑ higher is better, ↓ lower.",
        *_flattery(facts),
        _values(facts),
    ]
    if any(score.name == "dino" and score.ceiling and (score.value or 0) > score.ceiling for score in facts.scores):
        lines.append(f"**DINO is above its ceiling: the {facts.noun} may be copying the photos.**")
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
        table(["score", "what it is", "encoder, preprocessing, counts"], definitions),
    ]


def label_of(facts: Facts, score: str) -> str:
    """A score's label by its short name."""
    return next((one.label for one in facts.scores if one.name == score), score)


def _flattery(facts: Facts) -> Sequence[str]:
    if facts.choice.best_by is None:
        return []
    label = escape(label_of(facts, facts.choice.best_by))
    return [f"The step was picked by {label} on these very prompts and seeds: that score flatters it, others less."]


def _values(facts: Facts) -> str:
    """The last step has its own column where another one is published."""
    other = not facts.choice.is_last and facts.last_scored is not None
    header = ["score", f"step {facts.step}" if not facts.choice.is_last else f"last (step {facts.step})"]
    header += [*([f"last (step {facts.last_scored})"] if other else []), "best", "floor", "ceiling"]
    rows = [
        [
            f"{escape(score.label)} {'↑' if score.higher_is_better else '↓'}",
            number(score.value),
            *([number(score.last)] if other else []),
            f"{number(score.best)} (step {score.best_step})" if score.best_step is not None else "–",
            number(score.floor),
            number(score.ceiling),
        ]
        for score in facts.scores
    ]
    return table(header, rows)


def _how(score: Score) -> str:
    return "; ".join(score.how.values())

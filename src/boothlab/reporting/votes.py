"""What raters said of two runs: their votes unblinded and counted, how far they agree, and whether it can be chance."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boothlab.files import shown
from boothlab.reporting.ballots import ComparedRun, read_ballots
from boothlab.reporting.comparison import ALL_QUESTIONS, EDITING, SIDES

VOTES_PER_ITEM = 3
"""As in DreamBooth's user study: three raters a question, and the majority counts."""
UNDECIDED = "undecided"
CHOICES = (*SIDES, UNDECIDED)


@dataclass(frozen=True)
class QuestionResult:
    """The counts of one question (by its name in the files) over its items, an item being one pair of images.

    `wins_a`, `wins_b` and `undecided` are the items by the majority of their first three votes and add up to the items
    with a vote; `incomplete` of these have fewer than three, `unanswered` further ones have none. The `votes_…` are
    the single votes behind this; `surplus` votes came after the third on their item and count nowhere. `kappa` is
    Fleiss' over `kappa_items` items of `kappa_votes` votes each (None if undefined). `p_value` is of the two-sided
    sign test of wins A against wins B (None without a decided item).
    """

    question: str
    wins_a: int
    wins_b: int
    undecided: int
    incomplete: int
    unanswered: int
    votes_a: int
    votes_b: int
    votes_undecided: int
    surplus: int
    kappa: float | None
    kappa_items: int
    kappa_votes: int
    p_value: float | None

    @property
    def label(self) -> str:
        """The question as the raters read it."""
        return ALL_QUESTIONS[self.question]

    @property
    def items(self) -> int:
        """Items with at least one vote."""
        return self.wins_a + self.wins_b + self.undecided

    @property
    def shares(self) -> tuple[float, float, float] | None:
        """The shares of items, in 0..1, that went to A, to B and to neither; None without a vote."""
        return _shares(self.wins_a, self.wins_b, self.undecided)

    @property
    def vote_shares(self) -> tuple[float, float, float] | None:
        """The shares of single votes, in 0..1, for A, for B and undecided; None without a vote."""
        return _shares(self.votes_a, self.votes_b, self.votes_undecided)


@dataclass(frozen=True)
class HumanStudy:
    """What raters said of two runs. `raters` are their names, sorted; `questions` has one result a question."""

    study: str
    a: ComparedRun
    b: ComparedRun
    raters: tuple[str, ...]
    questions: tuple[QuestionResult, ...]

    @property
    def is_editing(self) -> bool:
        """Whether the runs are of `boothlab edit`."""
        return all(result.question in EDITING for result in self.questions)

    def summary_rows(self) -> list[dict[str, Any]]:
        """One row a question for a table or a CSV file: plain values, shares in 0..1, None where there is none."""
        rows = []
        for result in self.questions:
            shares, vote_shares = result.shares or (None,) * 3, result.vote_shares or (None,) * 3
            rows.append(
                {
                    "question": result.question,
                    "run_a": self.a.name,
                    "step_a": self.a.step,
                    "run_b": self.b.name,
                    "step_b": self.b.step,
                    "raters": len(self.raters),
                    "items": result.items,
                    "wins_a": result.wins_a,
                    "wins_b": result.wins_b,
                    "undecided": result.undecided,
                    **dict(zip(("share_a", "share_b", "share_undecided"), shares, strict=True)),
                    **dict(zip(("vote_share_a", "vote_share_b", "vote_share_undecided"), vote_shares, strict=True)),
                    "kappa": result.kappa,
                    "p_value": result.p_value,
                    "incomplete": result.incomplete,
                    "unanswered": result.unanswered,
                }
            )
        return rows


def read_votes(paths: Sequence[Path], keys: Sequence[Path] = ()) -> HumanStudy:
    """Read, check, unblind and count the exported votes of one study. The order of the files does not matter.

    The key is the one of the study's id among `keys` and the `*.key.json` files beside the votes. Of several exports
    of one sitting the latest counts. The first three votes on an item are those of the raters who began first.
    Raises UserError for whatever `ballots.read_ballots` refuses.
    """
    key, ballots = read_ballots(paths, keys)
    votes: dict[tuple[str, str], list[str]] = {item: [] for item in key.left}
    for ballot in ballots:
        for item, answer in ballot.answers.items():
            votes[item].append(_unblind(answer, key.left[item]))
    results = tuple(_result(name, [votes[item] for item in votes if item[1] == name]) for name in key.questions)
    return HumanStudy(key.study, *key.runs, tuple(sorted(ballot.rater for ballot in ballots)), results)


def _unblind(answer: str, left: str) -> str:
    if answer == UNDECIDED:
        return UNDECIDED
    return left if answer == "left" else SIDES[1 - SIDES.index(left)]


# Counting


def _result(question: str, votes: Sequence[Sequence[str]]) -> QuestionResult:
    """`votes` are those of each item, the earliest first."""
    counted = [given[:VOTES_PER_ITEM] for given in votes]
    wins = Counter(_majority(given) for given in counted if given)
    single = Counter(vote for given in counted for vote in given)
    depth = max((len(given) for given in counted), default=0)
    table = [[given.count(choice) for choice in CHOICES] for given in counted if len(given) == depth]
    return QuestionResult(
        question=question,
        wins_a=wins["a"],
        wins_b=wins["b"],
        undecided=wins[UNDECIDED],
        incomplete=sum(0 < len(given) < VOTES_PER_ITEM for given in counted),
        unanswered=sum(not given for given in counted),
        votes_a=single["a"],
        votes_b=single["b"],
        votes_undecided=single[UNDECIDED],
        surplus=sum(len(given) for given in votes) - sum(len(given) for given in counted),
        kappa=fleiss_kappa(table) if depth > 1 else None,
        kappa_items=len(table) if depth > 1 else 0,
        kappa_votes=depth if depth > 1 else 0,
        p_value=_sign_test(wins["a"], wins["b"]),
    )


def _majority(votes: Sequence[str]) -> str:
    """The answer of more than half of the votes; undecided if there is none."""
    answer, count = Counter(votes).most_common(1)[0]
    return answer if 2 * count > len(votes) else UNDECIDED


def fleiss_kappa(counts: Sequence[Sequence[int]]) -> float | None:
    """Agreement beyond chance, at most 1: `counts[i][j]` raters put item i into category j; n raters an item.

    κ = (P − Pe) / (1 − Pe), where P is the mean over items of (Σ_j n_ij² − n) / (n (n − 1)), the share of pairs of
    raters who agree, and Pe = Σ_j p_j², p_j being the share of all ratings in category j. Source: J. L. Fleiss (1971),
    "Measuring nominal scale agreement among many raters", Psychological Bulletin 76(5), 378–382.

    None where it is undefined: no item, or all ratings in one category (Pe = 1). Raises ValueError for items of
    unequal numbers of raters, or of fewer than two.
    """
    if not counts:
        return None
    raters = sum(counts[0])
    if raters < 2 or any(sum(row) != raters for row in counts):
        raise ValueError("Fleiss' kappa needs the same number of raters, two at least, for every item")
    totals = [sum(column) for column in zip(*counts, strict=True)]
    if max(totals) == sum(totals):
        return None
    observed = sum(sum(n * n for n in row) - raters for row in counts) / (len(counts) * raters * (raters - 1))
    # fsum rounds once, so that the order of the categories does not show in the last digit.
    expected = math.fsum((total / (len(counts) * raters)) ** 2 for total in totals)
    return (observed - expected) / (1 - expected)


def _shares(*counts: int) -> tuple[float, float, float] | None:
    total = sum(counts)
    return (counts[0] / total, counts[1] / total, counts[2] / total) if total else None


def _sign_test(wins_a: int, wins_b: int) -> float | None:
    """Two-sided p of so uneven a split of the decided items, if either run were as likely to win each."""
    from scipy.stats import binomtest  # here, since its import takes over a second

    decided = wins_a + wins_b
    return float(binomtest(min(wins_a, wins_b), decided, 0.5).pvalue) if decided else None


# Showing


def to_markdown(human: HumanStudy) -> str:
    """The study as a section of a report in Markdown: who was compared, a table, and how to read it."""
    unit = "image, edit and seed" if human.is_editing else "prompt and seed"
    lines = [
        "## Human study",
        "",
        f"{_count(len(human.raters), 'rater')}, study {human.study}. "
        f"A is {_side(human, human.a)}, B is {_side(human, human.b)}.",
        "",
        "| question | items | A | B | undecided | votes A / B / undecided | Fleiss' κ | sign test p |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
        *(_table_row(result) for result in human.questions),
        "",
        f"An item is a pair of images of one {unit}; it goes to the run that more than half of its first "
        f"{VOTES_PER_ITEM} votes name, and is undecided otherwise. p is of the items that were decided, taken as "
        "independent: it speaks of these images, not of other subjects.",
    ]
    if remarks := [remark for result in human.questions for remark in _remarks(result)]:
        lines += ["", *(f"- {remark}" for remark in remarks)]
    return "\n".join(lines) + "\n"


def _side(human: HumanStudy, run: ComparedRun) -> str:
    """An edited picture has no checkpoint to name."""
    return _code(run.name) + ("" if human.is_editing else f" at step {run.step}")


def _table_row(result: QuestionResult) -> str:
    wins = (result.wins_a, result.wins_b, result.undecided)
    cells = [f"{won} ({share:.0%})" for won, share in zip(wins, result.shares or (0.0,) * 3, strict=True)]
    votes = " / ".join(f"{share:.0%}" for share in result.vote_shares) if result.vote_shares else "–"
    kappa = "–" if result.kappa is None else f"{result.kappa:.2f}"
    p_value = "–" if result.p_value is None else ("< 0.001" if result.p_value < 0.001 else f"{result.p_value:.3f}")
    return f"| {' | '.join([result.label, str(result.items), *cells, votes, kappa, p_value])} |"


def _remarks(result: QuestionResult) -> list[str]:
    """What a reader must know of votes that are missing or too many."""
    remarks = []
    if result.incomplete:
        remarks.append(f"{_count(result.incomplete, 'item')} with fewer than {VOTES_PER_ITEM} votes, counted by those")
    if result.unanswered:
        remarks.append(f"{_count(result.unanswered, 'item')} without a vote, left out")
    if result.surplus:
        remarks.append(f"{_count(result.surplus, 'vote')} beyond the first {VOTES_PER_ITEM} of an item, left out")
    if result.kappa is not None and result.kappa_items < result.items:
        remarks.append(f"κ is of the {_count(result.kappa_items, 'item')} with {result.kappa_votes} votes")
    return [f"{result.label} {'; '.join(remarks)}."] if remarks else []


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _code(text: str) -> str:
    """Text as inline code on one line, whatever is in it."""
    plain = shown(text)
    longest = max((len(run) for run in "".join(c if c == "`" else " " for c in plain).split()), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {plain} {fence}" if longest else f"`{plain}`"

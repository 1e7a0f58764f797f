"""The files of a human study: the votes that raters exported and the key that unblinds them, read and checked."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from boothlab.errors import UserError
from boothlab.files import read_json, shown
from boothlab.reporting.compare import QUESTIONS
from boothlab.reporting.comparison import ALL_QUESTIONS, ANSWERS, FORMAT, KEY_KIND, KEY_SUFFIX, SIDES, VOTES_KIND

_T = TypeVar("_T")


@dataclass(frozen=True)
class ComparedRun:
    """One side of the study: the run's name, the hash of its settings, its seed, and the step of the checkpoint."""

    name: str
    setting: str
    seed: int
    step: int


@dataclass(frozen=True)
class StudyKey:
    """What the page hid. `left`: (pair, question) → the run (a, b) that was on the left. `questions`: their names."""

    study: str
    runs: tuple[ComparedRun, ComparedRun]
    left: dict[tuple[str, str], str]
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Ballot:
    """One exported file; `answers`: (pair, question) → left, right or undecided.

    `sitting` is drawn anew whenever somebody begins, so that a second export of it is known to be no second rater.
    """

    path: Path
    study: str
    rater: str
    sitting: str
    started: datetime
    exported: datetime
    answers: dict[tuple[str, str], str]


def read_ballots(paths: Sequence[Path], keys: Sequence[Path] = ()) -> tuple[StudyKey, list[Ballot]]:
    """The key of the one study that the votes are of, and one ballot a rater, those who began first in front.

    The key is the one of the study's id among `keys` and the `*.key.json` files beside the votes. Of several exports
    of one sitting the latest counts. The order of the files does not matter.

    Raises:
        UserError: no file, one that is not a vote file or holds none, votes of two studies, votes on a question that
            the study has not, no key, two raters of one name, or two copies of one export that disagree.
    """
    if not paths:
        raise UserError("no votes were given; give the votes-….json files that the raters exported")
    ballots = [_read_ballot(path) for path in paths]
    studies = sorted({ballot.study for ballot in ballots})
    if len(studies) > 1:
        raise UserError(f"the votes are of several studies ({', '.join(map(shown, studies))}); give one at a time")
    key = _find_key(studies[0], paths, keys)
    for ballot in ballots:
        if strangers := sorted(ballot.answers.keys() - key.left.keys()):
            pair, question = strangers[0]
            what = f"study {key.study} has no question {question!r} on the pair {pair!r}"
            raise _malformed(shown(ballot.path), what)
    return key, _one_ballot_each(ballots)


def _read_ballot(path: Path) -> Ballot:
    where = shown(path)
    found = _object(read_json(path), VOTES_KIND, where)
    answers: dict[tuple[str, str], str] = {}
    for vote in _field(found, "votes", list, where):
        if not isinstance(vote, dict):
            raise _malformed(where, "a vote is not an object")
        item = _field(vote, "pair", str, where), _field(vote, "question", str, where)
        answer = _field(vote, "answer", str, where)
        if item[1] not in ALL_QUESTIONS or answer not in ANSWERS:
            raise _malformed(where, f"{answer!r} is no answer to a question {item[1]!r}")
        if item in answers:
            raise _malformed(where, f"it answers the pair {item[0]!r}, question {item[1]!r}, twice")
        answers[item] = answer
    if not answers:
        raise UserError(f"{where}: holds no votes; leave it out")
    rater = " ".join(_field(found, "rater", str, where).split())
    if not rater:
        raise UserError(f'{where}: its rater has no name; write one at "rater"')
    return Ballot(
        path=path,
        study=_field(found, "study", str, where),
        rater=rater,
        sitting=_field(found, "sitting", str, where),
        started=_moment(found, "started", where),
        exported=_moment(found, "exported", where),
        answers=answers,
    )


def _object(found: object, kind: str, where: str) -> dict[str, Any]:
    """The object of a vote or key file, if it is one of this format."""
    if not isinstance(found, dict) or found.get("kind") != kind:
        wanted = {
            KEY_KIND: "the key of a study (….key.json)",
            VOTES_KIND: "votes that the page exported (votes-….json)",
        }
        raise UserError(f"{where}: does not hold {wanted[kind]}; give one that does")
    version = _field(found, "format", int, where)
    if version > FORMAT:
        raise UserError(f"{where}: was written by a newer boothlab; update boothlab")
    if version < 1:
        raise _malformed(where, f'there is no "format" {version}')
    return found


def _field(found: Mapping[str, Any], name: str, kind: type[_T], where: str) -> _T:
    value = found.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _malformed(where, f'"{name}" is missing or is no {kind.__name__}')
    return value


def _moment(found: Mapping[str, Any], name: str, where: str) -> datetime:
    text = _field(found, name, str, where)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise _malformed(where, f'"{name}" is no time: {text!r}') from error
    if moment.tzinfo is None:
        raise _malformed(where, f'"{name}" has no time zone: {text!r}')
    return moment


def _malformed(where: str, what: str) -> UserError:
    return UserError(f"{where}: {shown(what)}; the file was changed since it was written, so take the original again")


def _one_ballot_each(ballots: Iterable[Ballot]) -> list[Ballot]:
    """The latest export of each sitting, those who began first in front."""
    latest: dict[str, Ballot] = {}
    for ballot in sorted(ballots, key=lambda ballot: ballot.exported):
        other = latest.get(ballot.sitting, ballot)
        same = (ballot.rater, ballot.started, ballot.answers) == (other.rater, other.started, other.answers)
        if ballot.exported == other.exported and not same:
            raise UserError(f"{shown(other.path)} and {shown(ballot.path)} are one export, but differ; leave one out")
        latest[ballot.sitting] = ballot
    names: dict[str, Ballot] = {}
    for ballot in latest.values():
        name = unicodedata.normalize("NFKC", ballot.rater).casefold()
        if name in names:
            both = f"{shown(names[name].path)} and {shown(ballot.path)}"
            raise UserError(f'{both} are both by {shown(ballot.rater)}; leave one out, or change the "rater" of one')
        names[name] = ballot
    return sorted(latest.values(), key=lambda ballot: (ballot.started, ballot.sitting))


def _find_key(study: str, votes: Sequence[Path], keys: Sequence[Path]) -> StudyKey:
    given = [_read_key(path) for path in keys]
    beside = sorted({file for path in votes for file in path.parent.glob(f"*{KEY_SUFFIX}")} - set(keys))
    found = [key for key in given if key.study == study]
    for path in beside:
        try:
            key = _read_key(path)
        except UserError:  # some other file of that name: nobody asked for it to be read
            continue
        found += [key] if key.study == study else []
    if not found:
        raise UserError(f"no key of study {shown(study)} is beside the votes; put the page's {KEY_SUFFIX} file there")
    if any(key != found[0] for key in found):
        raise UserError(f"there are different keys of study {shown(study)}; leave only the one that the page came with")
    return found[0]


def _read_key(path: Path) -> StudyKey:
    where = shown(path)
    found = _object(read_json(path), KEY_KIND, where)
    runs = _field(found, "runs", dict, where)
    sides = []
    for side in SIDES:
        run = _field(runs, side, dict, where)
        name, setting = _field(run, "name", str, where), _field(run, "setting", str, where)
        sides.append(ComparedRun(name, setting, _field(run, "seed", int, where), _field(run, "step", int, where)))
    questions = _questions(found, where)
    left: dict[tuple[str, str], str] = {}
    pairs: dict[str, Any] = _field(found, "pairs", dict, where)
    for pair, entry in pairs.items():
        on_left = _field(entry, "left", dict, where) if isinstance(entry, dict) else {}
        for question in questions:
            if on_left.get(question) not in SIDES:
                raise _malformed(where, f"does not say which run was left in the pair {pair!r}, question {question!r}")
            left[pair, question] = on_left[question]
    return StudyKey(_field(found, "study", str, where), (sides[0], sides[1]), left, questions)


def _questions(found: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """What the study asks; a key that does not say so is of trainings."""
    names = found.get("questions", list(QUESTIONS))
    known = isinstance(names, list) and all(isinstance(name, str) and name in ALL_QUESTIONS for name in names)
    if not known or not names or len(set(names)) < len(names):
        raise _malformed(where, '"questions" does not hold questions of boothlab')
    return tuple(names)

"""From a sweep's parameters, in Hydra's own syntax, to a search space, and from chosen values back to overrides."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NoReturn

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    Quote,
    QuotedString,
    RangeSweep,
    Transformer,
)
from hydra.errors import HydraException

from boothlab.errors import UserError
from boothlab.files import shown

Value = str | int | float

REPLICATE_KEYS = frozenset({"seed"})
"""Keys whose values are not searched: every setting is run with each of them, and the objective is the mean."""

SIGNIFICANT_DIGITS = 6
"""Of a number from an interval: short enough to type again, and the same where a library differs in the last bit."""


@dataclass(frozen=True)
class Choice:
    """Values without an order, each as Hydra reads it back. A value of this dimension is one of the texts."""

    key: str
    texts: tuple[str, ...]

    @property
    def size(self) -> int:
        """How many values there are."""
        return len(self.texts)

    def at(self, index: int) -> Value:
        """The value at an index, 0 ≤ index < size."""
        return self.texts[index]

    def text(self, value: Value) -> str:
        """The value as an override has it."""
        return str(value)


@dataclass(frozen=True)
class IntRange:
    """Whole numbers low, low + step, …, high, both ends included; `log` (with step 1) searches their magnitude."""

    key: str
    low: int
    high: int
    step: int = 1
    log: bool = False

    @property
    def size(self) -> int:
        """How many values there are."""
        return (self.high - self.low) // self.step + 1

    def at(self, index: int) -> Value:
        """The value at an index, 0 ≤ index < size."""
        return self.low + index * self.step

    def text(self, value: Value) -> str:
        """The value as an override has it."""
        return str(int(value))


@dataclass(frozen=True)
class FloatRange:
    """Numbers from low to high, both included; with a step only low, low + step, …; `log` searches their magnitude."""

    key: str
    low: float
    high: float
    step: float | None = None
    log: bool = False

    @property
    def size(self) -> int | None:
        """How many values there are; None without a step."""
        return None if self.step is None else round((self.high - self.low) / self.step) + 1

    def at(self, index: int) -> Value:
        """The value at an index, 0 ≤ index < size, as its decimal digits say: 0.1 + 2 × 0.1 is 0.3."""
        assert self.step is not None
        return float(_decimal(self.low) + index * _decimal(self.step))

    def text(self, value: Value) -> str:
        """The value as an override has it: on the grid of the steps, or to six significant digits."""
        if self.step is not None:
            return repr(self.at(round((float(value) - self.low) / self.step)))
        rounded = float(f"{float(value):.{SIGNIFICANT_DIGITS}g}")
        return repr(rounded if self.low <= rounded <= self.high else float(value))


Dimension = Choice | IntRange | FloatRange


@dataclass(frozen=True)
class SearchSpace:
    """What is searched, what is the same in every job (`fixed`), and the overrides of each replicate of a setting."""

    dimensions: tuple[Dimension, ...]
    fixed: tuple[str, ...] = ()
    replicates: tuple[tuple[str, ...], ...] = ((),)

    @property
    def size(self) -> int | None:
        """How many settings there are; None if a dimension is continuous."""
        sizes = [dimension.size for dimension in self.dimensions]
        return None if None in sizes else math.prod(size for size in sizes if size is not None)

    def at(self, index: int) -> dict[str, Value]:
        """The values by key of the setting with this index, 0 ≤ index < size."""
        values: dict[str, Value] = {}
        for dimension in self.dimensions:
            assert dimension.size is not None
            index, place = divmod(index, dimension.size)
            values[dimension.key] = dimension.at(place)
        return values

    def overrides(self, values: Mapping[str, Value]) -> list[str]:
        """`key=value` for every searched key, in the order of the space. Equal lists mean the same setting."""
        return [f"{dimension.key}={dimension.text(values[dimension.key])}" for dimension in self.dimensions]


def parse_space(overrides: Sequence[str]) -> SearchSpace:
    """The space of `key=value` overrides: `a,b`, `choice(a,b)`, `range(2,32,step=2)`, `interval(1e-5,1e-2)`,
    `int(interval(2,32))`, each of the last three also as `tag(log, …)`; a plain value is fixed.

    Several values of `seed` are replicates. Raises UserError for what cannot be read or searched.
    """
    dimensions: dict[str, Dimension] = {}
    fixed: list[str] = []
    replicates: tuple[tuple[str, ...], ...] = ((),)
    seen: set[str] = set()
    for text in overrides:
        parsed = _parse(text)
        key = str(parsed.get_key_element())
        if parsed.key_or_group in seen:
            raise UserError(f"{shown(text)}: {key} is given twice; give it once")
        seen.add(parsed.key_or_group)
        if parsed.key_or_group in REPLICATE_KEYS:
            replicates = _replicates(text, parsed)
        elif parsed.is_sweep_override():
            dimensions[key] = _dimension(text, key, parsed)
        else:
            fixed.append(text)
    if not dimensions:
        raise UserError("there is nothing to search; give a key several values, as in optim.lr=interval(1e-5,1e-2)")
    return SearchSpace(tuple(dimensions.values()), tuple(fixed), replicates)


def _parse(text: str) -> Override:
    try:
        return OverridesParser.create().parse_override(text)
    except (HydraException, ValueError, TypeError, AssertionError) as error:
        reason = " ".join(str(error.__cause__ or error).split("\n")[0].split())
        raise UserError(f"cannot read {shown(text)}: {reason or 'write key=value'}") from error


def _dimension(text: str, key: str, parsed: Override) -> Dimension:
    if parsed.is_hydra_override():
        _refuse(text, "a setting of Hydra itself cannot be searched; give it one value")
    sweep = parsed.value()
    if isinstance(sweep, ChoiceSweep):
        if sweep.tags:
            _refuse(text, "tags mean nothing for listed values; leave tag(…) away, or search an interval")
        return Choice(key, _listed(text, parsed, sweep))
    if isinstance(sweep, IntervalSweep):
        return _interval(text, key, sweep)
    if isinstance(sweep, RangeSweep):
        return _range(text, key, sweep)
    _refuse(text, "glob(…) cannot be searched; list the values, as in backbone=sd15,sd21")


def _replicates(text: str, parsed: Override) -> tuple[tuple[str, ...], ...]:
    """One override a value."""
    if not parsed.is_sweep_override():
        return ((text,),)
    if not isinstance(parsed.value(), ChoiceSweep | RangeSweep):
        _refuse(text, "every setting is run with each seed, so list them, as in seed=0,1,2")
    return tuple((f"{parsed.get_key_element()}={value}",) for value in _listed(text, parsed, parsed.value()))


def _listed(text: str, parsed: Override, sweep: object) -> tuple[str, ...]:
    if isinstance(sweep, ChoiceSweep | RangeSweep):
        sweep.shuffle = False  # it would draw from Python's global generator, and a search knows no order
    values = tuple(_read_back_as(value) for value in parsed.sweep_iterator())
    repeated = [value for index, value in enumerate(values) if value in values[:index]]
    if repeated:
        _refuse(text, f"lists {repeated[0]} twice; list each value once")
    if not values:
        _refuse(text, "holds no value; give it at least one")
    return values


def _read_back_as(value: Any) -> str:
    """The text that Hydra reads as this value. Its choice(…) drops quotes, so that '0' would come back as a number."""
    text = str(Transformer.str(value))
    if not isinstance(value, str):
        return text
    with suppress(HydraException):
        if OverridesParser.create().parse_override(f"x={text}").value() == value:
            return text
    return QuotedString(value, Quote.single).with_quotes()


def _interval(text: str, key: str, sweep: IntervalSweep) -> Dimension:
    low, high, log = sweep.start, sweep.end, _log(text, sweep.tags)
    assert low is not None and high is not None
    _check_bounds(text, low, high, log)
    if low == high:
        _refuse(text, f"holds the one value {low}; give that value alone")
    if isinstance(low, int) and isinstance(high, int):  # int(interval(…)); interval(…) alone makes floats
        return IntRange(key, low, high, log=log)
    return FloatRange(key, float(low), float(high), log=log)


def _range(text: str, key: str, sweep: RangeSweep) -> Dimension:
    start, stop, step, log = sweep.start, sweep.stop, sweep.step, _log(text, sweep.tags)
    assert start is not None and stop is not None
    if not all(math.isfinite(number) for number in (start, stop, step)):
        _refuse(text, "its numbers must be finite")
    count = math.ceil((_decimal(stop) - _decimal(start)) / _decimal(step)) if step else 0
    if count < 1:
        _refuse(text, "is empty; its stop must lie a step or more beyond its start")
    last = _decimal(start) + (count - 1) * _decimal(step)
    low, high = sorted((_decimal(start), last))
    _check_bounds(text, float(low), float(high), log)
    if log and abs(step) != 1:
        _refuse(text, "a logarithmic scale and a step do not go together; use tag(log, interval(…))")
    if all(isinstance(number, int) for number in (start, stop, step)):
        return IntRange(key, int(low), int(high), abs(int(step)), log)
    if log:
        _refuse(text, "a logarithmic scale and a step do not go together; use tag(log, interval(…))")
    return FloatRange(key, float(low), float(high), abs(float(step)))


def _log(text: str, tags: set[str]) -> bool:
    if unknown := sorted(tags - {"log"}):
        _refuse(text, f"there is no tag {unknown[0]}; the only one is log")
    return "log" in tags


def _check_bounds(text: str, low: float, high: float, log: bool) -> None:
    if not (math.isfinite(low) and math.isfinite(high)):
        _refuse(text, "its bounds must be finite numbers")
    if low > high:
        _refuse(text, f"its lower bound {low} is above its upper bound {high}; swap them")
    if log and low <= 0:
        _refuse(text, f"a logarithmic scale needs a lower bound above 0, not {low}")


def _decimal(number: float) -> Decimal:
    """By its shortest digits, as it was typed, and not by its binary fraction."""
    return Decimal(repr(number))


def _refuse(text: str, why: str) -> NoReturn:
    raise UserError(f"cannot search {shown(text)}: {why}")

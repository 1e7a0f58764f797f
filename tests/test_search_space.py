"""Search spaces from Hydra's syntax: golden parses, one-line mistakes, and values that read back as they were."""

import math

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hypothesis import given
from hypothesis import strategies as st

from boothlab.errors import UserError
from boothlab.search.space import Choice, Dimension, FloatRange, IntRange, SearchSpace, parse_space


def read_back(override: str) -> object:
    """The value as Hydra understands it."""
    return OverridesParser.create().parse_override(override).value()


def only(override: str) -> Dimension:
    (dimension,) = parse_space([override]).dimensions
    return dimension


@pytest.mark.parametrize(
    ("override", "dimension"),
    [
        ("optim.lr=1e-4,1e-3", Choice("optim.lr", ("0.0001", "0.001"))),
        ("lora.rank=choice(4,8,16)", Choice("lora.rank", ("4", "8", "16"))),
        ("backbone=dollhouse,sd15", Choice("backbone", ("dollhouse", "sd15"))),
        ("lora.alpha=null,4.0", Choice("lora.alpha", ("null", "4.0"))),
        ("lora.train_text_encoder=true,false", Choice("lora.train_text_encoder", ("True", "False"))),
        ("prompt='a toy, red','b'", Choice("prompt", ("'a toy, red'", "'b'"))),
        ("a=[1,2],[3]", Choice("a", ("[1,2]", "[3]"))),
        ("a=shuffle(choice(1,2))", Choice("a", ("1", "2"))),
        ("+new.key=1,2", Choice("+new.key", ("1", "2"))),
        ("optim.lr=interval(1e-5,1e-2)", FloatRange("optim.lr", 1e-5, 1e-2)),
        ("optim.lr=interval(0,1)", FloatRange("optim.lr", 0.0, 1.0)),
        ("optim.lr=tag(log, interval(1e-5,1e-2))", FloatRange("optim.lr", 1e-5, 1e-2, log=True)),
        ("lora.rank=int(interval(2, 32))", IntRange("lora.rank", 2, 32)),
        ("lora.rank=tag(log, int(interval(2, 32)))", IntRange("lora.rank", 2, 32, log=True)),
        ("lora.rank=int(tag(log, interval(2, 32)))", IntRange("lora.rank", 2, 32, log=True)),
        ("lora.rank=range(2,32,step=2)", IntRange("lora.rank", 2, 30, 2)),
        ("lora.rank=range(4)", IntRange("lora.rank", 0, 3)),
        ("lora.rank=range(10,0,-4)", IntRange("lora.rank", 2, 10, 4)),
        ("lora.rank=tag(log, range(1,9))", IntRange("lora.rank", 1, 8, log=True)),
        ("prior.weight=range(0.1,0.5,0.1)", FloatRange("prior.weight", 0.1, 0.4, 0.1)),
        ("prior.weight=float(range(1,4))", FloatRange("prior.weight", 1.0, 3.0, 1.0)),
    ],
)
def test_each_form_gives_its_dimension(override: str, dimension: Dimension) -> None:
    assert only(override) == dimension


def test_plain_values_are_fixed_and_seeds_are_replicates() -> None:
    space = parse_space(["backbone=sd15", "seed=0,1", "optim.lr=1e-4,1e-3", "lora.rank=range(4,6)", "~a.b"])
    assert space.fixed == ("backbone=sd15", "~a.b")
    assert space.replicates == (("seed=0",), ("seed=1",))
    assert space.overrides({"optim.lr": "0.001", "lora.rank": 5}) == ["optim.lr=0.001", "lora.rank=5"]
    assert space.size == 4
    assert [space.overrides(space.at(index)) for index in range(4)] == [
        ["optim.lr=0.0001", "lora.rank=4"],
        ["optim.lr=0.001", "lora.rank=4"],
        ["optim.lr=0.0001", "lora.rank=5"],
        ["optim.lr=0.001", "lora.rank=5"],
    ]


@pytest.mark.parametrize(
    ("seeds", "replicates"),
    [
        ([], ((),)),
        (["seed=3"], (("seed=3",),)),
        (["seed=range(3)"], (("seed=0",), ("seed=1",), ("seed=2",))),
        (["seed=choice(7,5)"], (("seed=7",), ("seed=5",))),
    ],
)
def test_replicates(seeds: list[str], replicates: tuple[tuple[str, ...], ...]) -> None:
    assert parse_space([*seeds, "a=1,2"]).replicates == replicates


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["optim.lr=1e-4"],
            "there is nothing to search; give a key several values, as in optim.lr=interval(1e-5,1e-2)",
        ),
        (["seed=0,1"], "there is nothing to search; give a key several values, as in optim.lr=interval(1e-5,1e-2)"),
        (["a=1,2", "a=3"], "a=3: a is given twice; give it once"),
        (["a=1,2", "+a=3"], "+a=3: +a is given twice; give it once"),
        (["a=4,4"], "cannot search a=4,4: lists 4 twice; list each value once"),
        (
            ["a=interval(1,0)"],
            "cannot search a=interval(1,0): its lower bound 1.0 is above its upper bound 0.0; swap them",
        ),
        (["a=interval(2,2)"], "cannot search a=interval(2,2): holds the one value 2.0; give that value alone"),
        (["a=interval(0,inf)"], "cannot search a=interval(0,inf): its bounds must be finite numbers"),
        (
            ["a=tag(log,interval(0,1))"],
            "cannot search a=tag(log,interval(0,1)): a logarithmic scale needs a lower bound above 0, not 0.0",
        ),
        (
            ["a=tag(log,range(1,9,2))"],
            "cannot search a=tag(log,range(1,9,2)): a logarithmic scale and a step do not go together; "
            "use tag(log, interval(…))",
        ),
        (
            ["a=tag(log,range(0.5,9.5,1))"],
            "cannot search a=tag(log,range(0.5,9.5,1)): a logarithmic scale and a step do not go together; "
            "use tag(log, interval(…))",
        ),
        (
            ["a=tag(log,choice(1,2))"],
            "cannot search a=tag(log,choice(1,2)): tags mean nothing for listed values; "
            "leave tag(…) away, or search an interval",
        ),
        (
            ["a=tag(lin,interval(1,2))"],
            "cannot search a=tag(lin,interval(1,2)): there is no tag lin; the only one is log",
        ),
        (
            ["a=range(3,3)"],
            "cannot search a=range(3,3): is empty; its stop must lie a step or more beyond its start",
        ),
        (
            ["a=range(0,1,0)"],
            "cannot search a=range(0,1,0): is empty; its stop must lie a step or more beyond its start",
        ),
        (["a=range(0,inf)"], "cannot search a=range(0,inf): its numbers must be finite"),
        (
            ["backbone=glob(*)"],
            "cannot search backbone=glob(*): glob(…) cannot be searched; list the values, as in backbone=sd15,sd21",
        ),
        (
            ["seed=interval(0,9)"],
            "cannot search seed=interval(0,9): every setting is run with each seed, so list them, as in seed=0,1,2",
        ),
        (
            ["hydra.verbose=true,false"],
            "cannot search hydra.verbose=true,false: a setting of Hydra itself cannot be searched; give it one value",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_space(overrides)
    assert str(caught.value) == message


@pytest.mark.parametrize("override", ["a", "a=interval(1)", "a=range(a,b)", "a=nope(1)", "a={", "a=str(interval(1,2))"])
def test_what_hydra_cannot_read_is_refused_in_one_line(override: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_space([override])
    assert str(caught.value).startswith(f"cannot read {override}: ")
    assert "\n" not in str(caught.value)


finite = st.floats(-1e12, 1e12, allow_subnormal=False)
scalars = st.one_of(
    st.integers(-(10**9), 10**9),
    finite,
    st.booleans(),
    st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1).filter(str.isalpha),
    st.text(st.characters(min_codepoint=32, max_codepoint=0x2FFF, exclude_categories=["Cs"]), max_size=12),
)


def typed(value: object) -> str:
    if isinstance(value, str):
        return QuotedString(value, Quote.single).with_quotes()
    return repr(value).lower() if isinstance(value, bool) else repr(value)


@given(st.lists(scalars, min_size=2, max_size=5, unique_by=lambda value: (type(value), value)), st.booleans())
def test_choices_read_back_as_they_were_typed(values: list[object], explicit: bool) -> None:
    listed = ",".join(map(typed, values))
    dimension = only(f"a=choice({listed})" if explicit else f"a={listed}")
    assert isinstance(dimension, Choice)
    back = [read_back(f"a={dimension.text(dimension.at(index))}") for index in range(dimension.size)]
    assert back == values
    assert list(map(type, back)) == list(map(type, values))


@given(st.integers(-1000, 1000), st.integers(-1000, 1000), st.integers(-50, 50))
def test_whole_ranges_hold_what_hydra_would_run(start: int, stop: int, step: int) -> None:
    expected = sorted(range(start, stop, step)) if step else []
    if not expected:
        with pytest.raises(UserError, match="is empty"):
            only(f"a=range({start},{stop},{step})")
        return
    dimension = only(f"a=range({start},{stop},{step})")
    assert isinstance(dimension, IntRange)
    assert [dimension.at(index) for index in range(dimension.size)] == expected


@given(
    st.integers(-50, 50), st.integers(-50, 50), st.integers(-20, 20).filter(bool), st.sampled_from([10, 4, 100, 1000])
)
def test_ranges_of_fractions_hold_what_hydra_means(start: int, stop: int, step: int, unit: int) -> None:
    """As its documentation has it. Its own loop adds binary fractions, and so often includes the stop."""
    override = f"a=range({start / unit!r},{stop / unit!r},{step / unit!r})"
    documented = sorted(number / unit for number in range(start, stop, step))
    if not documented:
        with pytest.raises(UserError, match="is empty"):
            only(override)
        return
    dimension = only(override)
    assert isinstance(dimension, FloatRange)
    assert [dimension.at(index) for index in range(dimension.size or 0)] == documented  # 0.3, not 0.30000000000000004
    for value in documented:
        assert dimension.text(value * (1 + 1e-13)) == repr(value)


@given(finite, finite, st.floats(0, 1))
def test_numbers_from_intervals_are_short_inside_and_still_numbers(one: float, other: float, share: float) -> None:
    low, high = sorted((one, other))
    if low == high:
        return
    dimension = only(f"a=interval({low!r},{high!r})")
    value = min(high, max(low, low + share * (high - low)))
    back = read_back(f"a={dimension.text(value)}")
    assert isinstance(back, float)
    assert low <= back <= high
    assert math.isclose(back, value, rel_tol=1e-5)
    assert dimension.text(back) == dimension.text(value)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_every_index_is_another_setting(sizes: list[int]) -> None:
    space = SearchSpace(tuple(IntRange(f"k{place}", 0, size - 1) for place, size in enumerate(sizes)))
    assert space.size == math.prod(sizes)
    settings = {tuple(space.overrides(space.at(index))) for index in range(space.size)}
    assert len(settings) == space.size


def test_a_space_with_an_interval_has_no_size() -> None:
    assert parse_space(["a=1,2", "b=interval(0,1)"]).size is None

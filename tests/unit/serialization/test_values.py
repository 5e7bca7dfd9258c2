"""Values come back as they were, or are refused with the place named."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, TypedDict
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from sharded_wf import DefinitionError, LimitExceeded, StoredValueMismatch, UnstorableValue
from sharded_wf.limits import PAYLOAD_MAX_BYTES
from sharded_wf.serialization import codec_for


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@dataclass
class Point:
    x: float
    tags: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Nested:
    points: list[Point]
    by_number: dict[int, tuple[Point, ...]]


class Structure(msgspec.Struct):
    when: datetime
    amount: Decimal | None = None


class Model(BaseModel):
    name: str
    at: date


class Pair(NamedTuple):
    left: int
    right: str


class Typed(TypedDict):
    key: bytes


class Text(str):
    __slots__ = ()


EXAMPLES: list[tuple[Any, Any]] = [
    (str, "text\0 é 😀"),
    (int, 2**200),
    (int, -(2**64)),
    (float, -0.0),
    (float, 1e308),
    (bool, True),
    (None, None),
    (bytes, b"\0\xff"),
    (datetime, datetime(2024, 2, 29, 1, 2, 3, 4, UTC)),
    (datetime, datetime(2024, 2, 29, 1, 2, 3, 4)),  # noqa: DTZ001 - naive ones come back naive
    (date, date(1, 1, 1)),
    (time, time(23, 59, 59, 999999)),
    (timedelta, timedelta(days=-3, microseconds=1)),
    (UUID, UUID(int=5)),
    (Decimal, Decimal("1.10")),
    (Color, Color.RED),
    (Level, Level.HIGH),
    (tuple[int, str], (1, "a")),
    (tuple[int, ...], (1, 2, 3)),
    (set[str], {"b", "a"}),
    (frozenset[int], frozenset({1, 2})),
    (list[float], [1.0, 2.5]),
    (dict[int, str], {1: "a"}),
    (dict[str, list[int]], {"b": [1], "a": []}),
    (dict[UUID, int], {UUID(int=1): 1}),
    (Point, Point(1.5, {"b", "a"})),
    (Nested, Nested([Point(1.0)], {3: (Point(2.0), Point(3.0))})),
    (Structure, Structure(datetime(2024, 1, 1, tzinfo=UTC), Decimal("2.50"))),
    (Model, Model(name="m", at=date(2024, 1, 1))),
    (list[Model], [Model(name="m", at=date(2024, 1, 1))]),
    (Pair, Pair(1, "x")),
    (Typed, {"key": b"v"}),
    (Path, Path("/tmp/x")),
    (Text, Text("sub")),
    (int | None, None),
    (str | int, 5),
    (Any, {"a": [1, 2.5, None, True, "x"]}),
    (object, [1]),
]


@pytest.mark.parametrize(("kind", "value"), EXAMPLES, ids=range(len(EXAMPLES)))
def test_values_come_back_as_they_were(kind: Any, value: Any) -> None:
    data, decoded = codec_for(kind).store(value)
    again = codec_for(kind).decode(data)
    assert decoded == again == value
    assert type(again) is type(value)
    if isinstance(value, float):
        assert math.copysign(1, again) == math.copysign(1, value)
    msgspec.json.decode(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=40)
@given(json_values)
def test_plain_values_are_exact(value: Any) -> None:
    data, decoded = codec_for(Any).store(value)
    assert repr(decoded) == repr(codec_for(Any).decode(data))
    assert decoded == value


@given(st.dictionaries(st.text(max_size=3), st.integers(), max_size=6), st.randoms())
def test_equal_values_give_equal_bytes(value: dict[str, int], random: Any) -> None:
    items = list(value.items())
    random.shuffle(items)
    assert codec_for(Any).encode(dict(items)) == codec_for(Any).encode(value)
    numbered = {position: number for position, (_, number) in enumerate(sorted(items))}
    backwards = dict(reversed(numbered.items()))
    assert codec_for(dict[int, int]).encode(numbered) == codec_for(dict[int, int]).encode(backwards)


@pytest.mark.parametrize(
    ("kind", "value", "where"),
    [
        (float, math.nan, "the value is nan"),
        (float | None, math.inf, "the value is inf"),
        (Any, [1, {"a": [math.inf]}], r"the value\[1\]\['a'\]\[0\] is inf"),
        (Point, Point(math.nan), r"the value\.x is nan"),
        (set[float], {math.inf}, r"the value \(in the set\) is inf"),
        (str, "\ud800", "the value is text with a lone surrogate"),
        (Any, {"a": ["\udfff"]}, r"the value\['a'\]\[0\] is text with a lone surrogate"),
        (Any, {1: "a"}, r"the value has the key 1 \(int\), which would come back as text; annotate"),
        (dict[str, int], {1: 1}, r"the value has the key 1 \(int\)"),
        (Any, {"x": {(1, 2): 3}}, r"the value\['x'\] key \(1, 2\) is of type tuple"),
        (Any, {"deep": [object()]}, r"the value\['deep'\]\[0\] is of type object, which has no JSON form"),
        (Any, lambda: None, "the value is of type function"),
        (Any, iter([1]), "the value is of type list_iterator"),
        (Any, 1j, "the value is of type complex"),
    ],
)
def test_what_json_would_bend_is_refused(kind: Any, value: Any, where: str) -> None:
    with pytest.raises(UnstorableValue, match=where):
        codec_for(kind).store(value)


def test_a_value_that_contains_itself() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(UnstorableValue, match="contains itself"):
        codec_for(Any).store(endless)


def test_a_value_must_fit_its_annotation_now_and_later() -> None:
    with pytest.raises(StoredValueMismatch, match="Expected `int`, got `str`"):
        codec_for(int).store("x")
    with pytest.raises(StoredValueMismatch):
        codec_for(int).store(True)
    with pytest.raises(StoredValueMismatch):
        codec_for(Model).decode(b'{"name":1}')
    with pytest.raises(StoredValueMismatch):
        codec_for(Any).decode(b"not json")


def test_types_that_json_can_not_tell_apart() -> None:
    with pytest.raises(DefinitionError, match="can't be stored as JSON"):
        codec_for(Point | Nested)


def test_too_large() -> None:
    with pytest.raises(LimitExceeded, match="the limit is"):
        codec_for(str).store("x" * PAYLOAD_MAX_BYTES)


def test_a_class_whose_comparison_fails_is_still_stored() -> None:
    @dataclass(eq=False)
    class Odd:
        number: int

        def __eq__(self, other: object) -> bool:
            raise RuntimeError

        __hash__ = None  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]

    assert codec_for(Odd).store(Odd(3))[1].number == 3

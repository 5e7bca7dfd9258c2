"""Attributes as text: the same value comes back, and the texts sort as the values do."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharded_wf.errors import LimitExceeded, UnstorableValue
from sharded_wf.limits import ATTRIBUTE_VALUE_MAX_BYTES
from sharded_wf.model.attributes import Value, Where, attr, attributes_of, decode, encode

ints = st.integers(-(1 << 63), (1 << 63) - 1)
floats = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
moments = st.datetimes(timezones=st.just(UTC))
FAMILIES = [st.one_of(ints, floats), texts, moments, st.booleans()]


def fits(where: Where, value: Value) -> bool:
    text = encode(value)[1].encode()
    return all(one.low.encode() <= text < one.high.encode() for one in where.ranges)


@given(st.one_of(ints, floats, texts, moments, st.booleans()))
def test_a_value_comes_back(value: Value) -> None:
    again = decode(*encode(value))
    assert again == value
    assert type(again) is type(value)


@pytest.mark.parametrize("family", FAMILIES, ids=["numbers", "texts", "moments", "booleans"])
@given(st.data())
def test_conditions_compare_as_python_does(family: st.SearchStrategy[Value], data: st.DataObject) -> None:
    one: Any = data.draw(family)
    other: Any = data.draw(st.one_of(family, st.just(one)))
    name = attr("x")
    # Texts compare by code point, as Postgres' "C" does with UTF-8.
    below = bool(one < other)
    assert fits(name == other, one) == (one == other)
    assert fits(name < other, one) == below
    assert fits(name <= other, one) == (below or one == other)
    assert fits(name > other, one) == (not below and one != other)
    assert fits(name >= other, one) == (not below)


def test_numbers_and_texts_do_not_mix() -> None:
    assert not fits(attr("x") >= 1, "2")
    assert not fits(attr("x") == 1, True)
    assert fits(attr("x").startswith("ab"), "abc")
    assert not fits(attr("x").startswith("ab"), "b")


@pytest.mark.parametrize(
    "values",
    [{"x": datetime(2026, 1, 1)}, {"x": float("nan")}, {"x": 1 << 63}, {"x": b"bytes"}],  # noqa: DTZ001 - refused
)
def test_what_has_no_place_is_refused(values: dict[str, Value]) -> None:
    with pytest.raises(UnstorableValue):
        attributes_of(values)


@pytest.mark.parametrize("values", [{"": 1}, {"x": "a" * ATTRIBUTE_VALUE_MAX_BYTES}, {"x": "\0"}, {"n" * 129: 1}])
def test_what_is_too_large_is_refused(values: dict[str, Value]) -> None:
    with pytest.raises(LimitExceeded):
        attributes_of(values)


def test_and_is_no_condition() -> None:
    with pytest.raises(TypeError, match="&"):
        bool(attr("x") == 1)

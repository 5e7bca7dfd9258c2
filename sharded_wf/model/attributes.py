"""Attributes of workflows: typed values that users search by, as text that sorts as they do.

A number becomes its double's bits, in an order that compares, and then its whole part exactly: so 5 and 5.0 are the
same, and integers beyond a double's precision still differ. A moment becomes its microseconds since the epoch, UTC.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import IntEnum

import msgspec

from sharded_wf.errors import LimitExceeded, UnstorableValue
from sharded_wf.limits import ATTRIBUTE_NAME_MAX_BYTES, ATTRIBUTE_VALUE_MAX_BYTES, ATTRIBUTES_MAX

Value = str | int | float | bool | datetime
"""What an attribute may be. A ``datetime`` needs a time zone; an ``int`` fits 64 bits."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INT_HALF = 1 << 63
_TOP = "\U0010ffff"
_NEXT = "\x01"
"""What makes of a text the next one in the order: Postgres stores no NUL."""


class AttributeKind(IntEnum):
    """What an attribute's value is; the numbers are what the rows hold and never change."""

    TEXT = 0
    INT = 1
    FLOAT = 2
    BOOL = 3
    MOMENT = 4


class Attribute(msgspec.Struct, frozen=True):
    """One attribute as a row holds it. ``kind`` and ``value`` are None for one that is to be removed."""

    name: str
    kind: AttributeKind | None = None
    value: str | None = None


def attributes_of(values: Mapping[str, Value | None]) -> tuple[Attribute, ...]:
    """Attributes from a mapping, by name; None removes one. Raises ``LimitExceeded`` and ``UnstorableValue``."""
    if len(values) > ATTRIBUTES_MAX:
        raise LimitExceeded(f"{len(values)} attributes are more than {ATTRIBUTES_MAX}; search by fewer")
    return tuple(_attribute(name, value) for name, value in sorted(values.items()))


def _attribute(name: str, value: Value | None) -> Attribute:
    check_name(name)
    if value is None:
        return Attribute(name)
    kind, text = encode(value)
    if "\0" in text or len(text.encode("utf-8", "surrogatepass")) > ATTRIBUTE_VALUE_MAX_BYTES:
        raise LimitExceeded(
            f"attribute {name!r}: a text is at most {ATTRIBUTE_VALUE_MAX_BYTES - 1} bytes without NUL; "
            "keep what is larger in the workflow's arguments"
        )
    return Attribute(name, kind, text)


def check_name(name: str) -> None:
    """An attribute's name is 1 to ``ATTRIBUTE_NAME_MAX_BYTES`` bytes of text. Raises ``LimitExceeded``."""
    if not name or "\0" in name or len(name.encode("utf-8", "surrogatepass")) > ATTRIBUTE_NAME_MAX_BYTES:
        raise LimitExceeded(f"attribute {name!r}: a name has 1 to {ATTRIBUTE_NAME_MAX_BYTES} bytes")


def encode(value: object) -> tuple[AttributeKind, str]:
    """The kind, and the text that sorts as the values of its family do. Raises ``UnstorableValue``."""
    if isinstance(value, str):
        return AttributeKind.TEXT, f"s{value}"
    if isinstance(value, bool):
        return AttributeKind.BOOL, f"b{int(value)}"
    if isinstance(value, int):
        if not -_INT_HALF <= value < _INT_HALF:
            raise UnstorableValue(f"attribute {value}: an int has 64 bits; store a larger one as text")
        return AttributeKind.INT, _number(float(value), value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UnstorableValue(f"attribute {value}: a float is finite")
        whole = max(-_INT_HALF, min(_INT_HALF - 1, math.floor(value)))
        return AttributeKind.FLOAT, _number(value, whole)
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise UnstorableValue(f"attribute {value}: a moment needs a time zone, as datetime.now(UTC) has it")
        return AttributeKind.MOMENT, f"t{(value - _EPOCH) // timedelta(microseconds=1) + _INT_HALF:016x}"
    raise UnstorableValue(f"attribute {value!r}: an attribute is str, int, float, bool or datetime")


def _number(value: float, whole: int) -> str:
    (bits,) = struct.unpack(">Q", struct.pack(">d", value + 0.0))  # minus zero becomes zero
    ordered = bits ^ 0xFFFFFFFFFFFFFFFF if bits >> 63 else bits | _INT_HALF
    return f"n{ordered:016x}{whole + _INT_HALF:016x}"


def decode(kind: AttributeKind, text: str) -> Value:
    """The value again."""
    match kind:
        case AttributeKind.TEXT:
            return text[1:]
        case AttributeKind.BOOL:
            return text == "b1"
        case AttributeKind.INT:
            return int(text[17:], 16) - _INT_HALF
        case AttributeKind.FLOAT:
            ordered = int(text[1:17], 16)
            bits = ordered & ~_INT_HALF if ordered >> 63 else ordered ^ 0xFFFFFFFFFFFFFFFF
            value: float = struct.unpack(">d", struct.pack(">Q", bits))[0]
            return value
        case AttributeKind.MOMENT:
            return _EPOCH + timedelta(microseconds=int(text[1:], 16) - _INT_HALF)


class Range(msgspec.Struct, frozen=True):
    """A condition: the attribute ``name`` is at least ``low`` and below ``high``."""

    name: str
    low: str
    high: str

    @property
    def one_value(self) -> bool:
        """Whether only one value fits."""
        return self.high == self.low + _NEXT


class Where:
    """Conditions that must all hold: ``attr("customer") == "c-42"``, joined by ``&``."""

    __slots__ = ("ranges",)

    def __init__(self, ranges: tuple[Range, ...]) -> None:
        self.ranges = ranges

    def __and__(self, other: Where) -> Where:
        return Where(self.ranges + other.ranges)

    def __bool__(self) -> bool:
        raise TypeError("join conditions with &, each in parentheses; `and` and `not` can't be searched for")

    def __repr__(self) -> str:
        return f"Where({', '.join(map(repr, self.ranges))})"


class attr:  # noqa: N801 - reads as a word of the condition
    """An attribute in a condition; compare it with ``==``, ``<``, ``<=``, ``>``, ``>=``, or ask ``startswith``. Values
    compare within their family: texts, numbers, booleans, moments."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        check_name(name)
        self.name = name

    def __eq__(self, value: Value) -> Where:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        text = encode(value)[1]
        return self._where(text, text + _NEXT)

    __hash__ = None  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]

    def __ge__(self, value: Value) -> Where:
        text = encode(value)[1]
        return self._where(text, _family_end(text))

    def __gt__(self, value: Value) -> Where:
        text = encode(value)[1]
        return self._where(text + _NEXT, _family_end(text))

    def __le__(self, value: Value) -> Where:
        text = encode(value)[1]
        return self._where(text[0], text + _NEXT)

    def __lt__(self, value: Value) -> Where:
        text = encode(value)[1]
        return self._where(text[0], text)

    def startswith(self, prefix: str) -> Where:
        """Texts that begin so."""
        text = encode(prefix)[1]
        return self._where(text, text + _TOP)

    def _where(self, low: str, high: str) -> Where:
        return Where((Range(self.name, low, high),))


def _family_end(text: str) -> str:
    return chr(ord(text[0]) + 1)

"""Values as Postgres's binary format has them.

A flush of a thousand rows is a dozen arrays. psycopg's general adaptation dumps an array one element at a time through
several Python calls; on the hot path that costs as much as Postgres needs to store the row. The few types that we send
are packed here directly, and the statements are driven through libpq (see ``session``).

Formats: https://www.postgresql.org/docs/current/protocol-overview.html#PROTOCOL-FORMAT-CODES and each type's
``*send`` / ``*recv`` function; an array is (dimensions, has-null flag, element OID, length, lower bound, elements), and
an element is its length and its bytes, -1 for null.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Sequence
from typing import cast

_OID_INT2 = 21
_OID_INT4 = 23
_OID_INT8 = 20
_OID_TEXT = 25
_OID_JSON = 114
_OID_UUID = 2950
_OID_TIMESTAMPTZ = 1184

POSTGRES_EPOCH_US = 946_684_800_000_000
"""2000-01-01 UTC, where Postgres counts from, in microseconds since the Unix epoch."""

_HEADER = struct.Struct("!iiIii").pack
_LENGTH = struct.Struct("!i").pack
_INT2 = struct.Struct("!h")
_INT4 = struct.Struct("!i")
_INT8 = struct.Struct("!q")
_NULL = _LENGTH(-1)
_UUID_LENGTH = _LENGTH(16)
_LENGTHS = tuple(_LENGTH(n) for n in range(4096))
"""Length prefixes made once: nearly every value is short."""


def _header(oid: int, count: int, has_null: int = 0) -> bytes:
    return _HEADER(1, has_null, oid, count, 1) if count else struct.pack("!iiI", 0, 0, oid)


def _varlena_array(oid: int, values: Sequence[bytes], has_null: int = 0) -> bytes:
    sizes = {*map(len, values)}
    if len(sizes) == 1:  # all of one length, as IDs are, and most small results
        prefix = _LENGTH(sizes.pop())
        return _header(oid, len(values), has_null) + prefix + prefix.join(values)
    parts = [_header(oid, len(values), has_null)]
    add, lengths = parts.append, _LENGTHS
    for value in values:
        size = len(value)
        add(lengths[size] if size < 4096 else _LENGTH(size))
        add(value)
    return b"".join(parts)


def text_array(values: Sequence[str]) -> bytes:
    """``text[]``. Raises ``UnicodeEncodeError`` for lone surrogates."""
    count = len(values)
    if count and values[0] is values[-1] and values.count(values[0]) == count:
        value = values[0].encode()  # the same name again and again
        return _header(_OID_TEXT, count) + (_LENGTH(len(value)) + value) * count
    sizes = {*map(len, values)}
    if len(sizes) == 1 and (size := sizes.pop()) < 128:  # IDs: joined as text, and encoded once
        prefix = f"\0\0\0{chr(size)}"
        joined = prefix + prefix.join(values)
        if joined.isascii():
            return _header(_OID_TEXT, count) + joined.encode()
    return _varlena_array(_OID_TEXT, list(map(str.encode, values)))


def nullable_text_array(values: Sequence[str | None]) -> bytes:
    """``text[]`` in which ``None`` is an SQL null."""
    if None not in values:
        return text_array(cast("Sequence[str]", values))
    encoded = [None if value is None else value.encode() for value in values]
    return _header(_OID_TEXT, len(values), 1) + b"".join(
        [_NULL if value is None else _LENGTH(len(value)) + value for value in encoded]
    )


def json_array(values: Sequence[bytes]) -> bytes:
    """``json[]`` of JSON texts."""
    return _varlena_array(_OID_JSON, values)


def nullable_json_array(values: Sequence[bytes | None]) -> bytes:
    """``json[]`` in which ``None`` is an SQL null."""
    if not any(values):
        return _header(_OID_JSON, len(values), 1) + _NULL * len(values)
    if all(values):
        return _varlena_array(_OID_JSON, cast("Sequence[bytes]", values), has_null=1)
    parts = [_header(_OID_JSON, len(values), 1)]
    for value in values:
        if value is None:
            parts.append(_NULL)
        else:
            parts.append(_LENGTH(len(value)))
            parts.append(value)
    return b"".join(parts)


UNPACKABLE = (ValueError, OverflowError, struct.error)
"""What packing raises for a value that has no place in a column: a lone surrogate, a number that is too large."""


def _fixed_array(oid: int, size: int, code: str, values: Sequence[int]) -> bytes:
    count = len(values)
    if count and values.count(values[0]) == count:
        return _header(oid, count) + struct.pack("!i" + code, size, values[0]) * count
    flat = [size] * (2 * count)
    flat[1::2] = values
    return _header(oid, count) + struct.pack("!" + ("i" + code) * count, *flat)


def int2_array(values: Sequence[int]) -> bytes:
    """``smallint[]``."""
    return _fixed_array(_OID_INT2, 2, "h", values)


def int4_array(values: Sequence[int]) -> bytes:
    """``int[]``."""
    return _fixed_array(_OID_INT4, 4, "i", values)


def int8_array(values: Sequence[int]) -> bytes:
    """``bigint[]``."""
    return _fixed_array(_OID_INT8, 8, "q", values)


def timestamp_array(values: Sequence[int]) -> bytes:
    """``timestamptz[]`` of microseconds since the Unix epoch."""
    return _fixed_array(_OID_TIMESTAMPTZ, 8, "q", [value - POSTGRES_EPOCH_US for value in values])


def nullable_timestamp_array(values: Sequence[int | None]) -> bytes:
    """``timestamptz[]`` in which ``None`` is an SQL null."""
    parts = [_header(_OID_TIMESTAMPTZ, len(values), 1)]
    for value in values:
        parts.append(_NULL if value is None else _LENGTH(8) + timestamp(value))
    return b"".join(parts)


def uuid_array(values: Sequence[bytes]) -> bytes:
    """``uuid[]`` of 16-byte values."""
    if not values:
        return _header(_OID_UUID, 0)
    return _header(_OID_UUID, len(values)) + _UUID_LENGTH + _UUID_LENGTH.join(values)


def text(value: str) -> bytes:
    """``text``."""
    return value.encode()


def int2(value: int) -> bytes:
    """``smallint``."""
    return _INT2.pack(value)


def int4(value: int) -> bytes:
    """``int``."""
    return _INT4.pack(value)


def int8(value: int) -> bytes:
    """``bigint``."""
    return _INT8.pack(value)


def boolean(value: bool) -> bytes:
    """``boolean``."""
    return b"\x01" if value else b"\x00"


def timestamp(value: int) -> bytes:
    """``timestamptz`` from microseconds since the Unix epoch."""
    return _INT8.pack(value - POSTGRES_EPOCH_US)


def new_uuid() -> bytes:
    """A random UUID (version 4), as 16 bytes."""
    return uuid.uuid4().bytes


def read_int2(value: bytes) -> int:
    """``smallint``, as received."""
    return _INT2.unpack(value)[0]  # type: ignore[no-any-return]


def read_int(value: bytes) -> int:
    """``smallint``, ``int`` or ``bigint``, as received."""
    return int.from_bytes(value, "big", signed=True)


def read_boolean(value: bytes) -> bool:
    """``boolean``, as received."""
    return value == b"\x01"


def read_timestamp(value: bytes) -> int:
    """``timestamptz`` as received → microseconds since the Unix epoch."""
    return _INT8.unpack(value)[0] + POSTGRES_EPOCH_US  # type: ignore[no-any-return]


def read_text_array(value: bytes) -> list[str]:
    """``text[]`` without nulls, as received."""
    dimensions, _, _ = struct.unpack_from("!iiI", value)
    if not dimensions:
        return []
    (count,) = _INT4.unpack_from(value, 12)
    at, texts = 20, []
    for _ in range(count):
        (size,) = _INT4.unpack_from(value, at)
        texts.append(value[at + 4 : at + 4 + size].decode())
        at += 4 + size
    return texts

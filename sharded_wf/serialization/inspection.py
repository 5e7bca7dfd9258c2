"""Where in a value the part sits that JSON can't hold. Only asked after something went wrong, so it may be slow."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import msgspec

_DEPTH_MAX_LEVELS = 200
"""Deeper values are not looked into; a value that contains itself would have no end."""


def parts_of(value: Any) -> Iterator[tuple[str, Any, Any]]:
    """The direct parts of ``value``: how to write the way there, the key it lies under, and the part."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield f"[{key!r}]", key, part
    elif isinstance(value, (list, tuple)):
        for position, part in enumerate(value):
            yield f"[{position}]", position, part
    elif isinstance(value, AbstractSet):
        for part in value:
            yield " (in the set)", None, part
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield f".{name}", name, getattr(value, name)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield f".{field.name}", field.name, getattr(value, field.name, None)


def find_unstorable(value: Any, encode: Callable[[Any], bytes], depth: int = 0) -> tuple[str, Any]:
    """The way to the innermost part of ``value`` that ``encode`` refuses, and that part."""
    if depth < _DEPTH_MAX_LEVELS:
        if isinstance(value, Mapping):
            for key in value:
                try:
                    encode({key: None})
                except Exception:  # noqa: BLE001 - the question is whether, not why
                    return f" key {key!r}", key
        for way, _, part in parts_of(value):
            try:
                encode(part)
            except Exception:  # noqa: BLE001 - the question is whether, not why
                inner, culprit = find_unstorable(part, encode, depth + 1)
                return way + inner, culprit
    return "", value


def find_bent(value: Any, decoded: Any, depth: int = 0) -> str | None:
    """Why ``value`` would not come back from JSON as it is, or ``None`` if nothing is wrong with it."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return f" is {value!r}, which JSON has no form for"
        return None
    if depth >= _DEPTH_MAX_LEVELS:
        return None
    if isinstance(value, Mapping) and isinstance(decoded, Mapping):
        for key in value:
            if key not in decoded:
                kind = type(key).__qualname__
                return (
                    f" has the key {key!r} ({kind}), which would come back as text; annotate the keys,"
                    f" as in dict[{kind}, ...], or use text"
                )
    for way, key, part in parts_of(value):
        reason = find_bent(part, _same_part(decoded, key), depth + 1)
        if reason is not None:
            return way + reason
    return None


def _same_part(decoded: Any, key: Any) -> Any:
    """The part of ``decoded`` that corresponds to the key of the original, or ``None``."""
    try:
        if isinstance(decoded, (Mapping, list, tuple)):
            return decoded[key]
        return getattr(decoded, key)
    except (LookupError, TypeError, AttributeError):
        return None

"""One value of a known type, to JSON text and back.

The rule is that nothing changes silently. What comes back from storage is compared with what went in; a value that JSON
would bend (NaN becomes ``null``, the key ``1`` becomes ``"1"``) is refused at the line that gave it, and the message
says where in the value it sits. Exact strings, integers, booleans and ``None`` can't bend, and skip the comparison.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import PurePath
from types import NoneType, UnionType
from typing import Any, Generic, TypeVar, Union, cast, get_args, get_origin

import msgspec

from sharded_wf.errors import DefinitionError, LimitExceeded, StoredValueMismatch, UnstorableValue
from sharded_wf.limits import PAYLOAD_MAX_BYTES, PAYLOAD_WARN_BYTES
from sharded_wf.serialization.inspection import find_bent, find_unstorable

T = TypeVar("T")
_log = logging.getLogger("sharded_wf.serialization")

_PLAIN: frozenset[type] = frozenset({str, int, bool, NoneType})
"""Types whose exact values come back from JSON just as they were."""

_CONVERSION_ERRORS = (TypeError, ValueError, OverflowError, RecursionError, NotImplementedError)


_NO_FORM = "a value of type {} has no JSON form"


def _to_storable(value: Any) -> Any:
    """What msgspec should store instead of a value that it doesn't know."""
    dump = getattr(type(value), "model_dump", None)
    if dump is not None:  # a pydantic model; pydantic itself is never imported here
        return dump(value, mode="json")
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    raise TypeError(_NO_FORM.format(type(value).__qualname__))


def _from_storable(kind: Any, value: Any) -> Any:
    """A value of a type that msgspec doesn't know, from what :func:`_to_storable` made of it."""
    if kind is object:
        return value
    validate = getattr(kind, "model_validate", None)
    if validate is not None:
        return validate(value)
    if isinstance(kind, type) and issubclass(kind, (PurePath, str, int, float)):
        return cast("Any", kind)(value)
    raise TypeError(f"a value of type {getattr(kind, '__qualname__', kind)} can't be made from JSON")


encode_text = msgspec.json.Encoder(enc_hook=_to_storable, order="deterministic").encode
"""JSON text, of all but dictionaries whose keys are no strings; see :func:`encode_json`."""


def encode_json(value: Any) -> bytes:
    """JSON text of ``value``; equal values give equal bytes. Raises what msgspec raises.

    msgspec sorts only dictionaries whose keys are strings, so others have their keys turned into strings first.
    """
    try:
        return encode_text(value)
    except TypeError:
        return encode_text(msgspec.to_builtins(value, str_keys=True, enc_hook=_to_storable))


def check_size(data: bytes, what: str) -> None:
    """Log a warning for a value that is large, and refuse one that is too large. Raises :class:`LimitExceeded`."""
    if len(data) > PAYLOAD_MAX_BYTES:
        raise LimitExceeded(
            f"{what}{len(data)} bytes as JSON; the limit is {PAYLOAD_MAX_BYTES}: "
            "store it elsewhere, and pass a reference"
        )
    if len(data) > PAYLOAD_WARN_BYTES:
        _log.warning(
            "%s%d bytes as JSON, which every replay reads again; better store it elsewhere, and pass a reference",
            what,
            len(data),
        )


def make_decoder(kind: Any, where: str) -> msgspec.json.Decoder[Any]:
    """A decoder for an annotation. Raises :class:`DefinitionError`, naming ``where``, if JSON can't tell its values
    apart."""
    try:
        return msgspec.json.Decoder(kind, dec_hook=_from_storable)
    except (TypeError, NotImplementedError) as error:
        raise DefinitionError(f"{where}: the annotation {shown(kind)} can't be stored as JSON: {error}") from None


def shown(kind: Any) -> str:
    """An annotation as it is written."""
    return kind.__qualname__ if isinstance(kind, type) and get_origin(kind) is None else repr(kind)


def unstorable(value: Any, error: BaseException, what: str) -> UnstorableValue:
    """The error for a value that could not be encoded, naming where in the value the cause sits."""
    if isinstance(error, RecursionError):
        return UnstorableValue(f"{what} contains itself, or is nested too deeply for JSON")
    path, culprit = find_unstorable(value, encode_json)
    if isinstance(error, UnicodeEncodeError):
        return UnstorableValue(f"{what}{path} is text with a lone surrogate, which UTF-8 has no form for: {culprit!r}")
    kind = type(culprit).__qualname__
    reason = "" if str(error) == _NO_FORM.format(kind) else f": {error}"
    return UnstorableValue(f"{what}{path} is of type {kind}, which has no JSON form{reason}")


def confirm(value: Any, decoded: Any, what: str) -> None:
    """Make sure that ``decoded``, which came back from JSON, is ``value``. Raises :class:`UnstorableValue` if it was
    bent."""
    try:
        if decoded == value:
            return
    except Exception:  # noqa: BLE001 - a class whose __eq__ fails is no reason to refuse its values
        pass
    reason = find_bent(value, decoded)
    if reason is not None:
        raise UnstorableValue(what + reason)


class ValueCodec(Generic[T]):
    """Stores values of one type. ``kind`` is the annotation; ``Any`` and ``object`` give back plain JSON values."""

    __slots__ = ("_decode", "_plain", "kind", "what")

    def __init__(self, kind: Any, what: str = "the value") -> None:
        self.kind = Any if kind is object else kind
        self.what = what
        self._decode = make_decoder(self.kind, what).decode
        self._plain = _plain_types(self.kind)

    def store(self, value: Any) -> tuple[bytes, T]:
        """The JSON text of ``value``, and the value as it will come back from there.

        Raises :class:`UnstorableValue` if it has no faithful JSON form, :class:`StoredValueMismatch` if it doesn't fit
        the annotation, and :class:`LimitExceeded` if it is too large.
        """
        try:
            data = encode_text(value)
        except _CONVERSION_ERRORS as error:
            data = self._encoded_otherwise(value, error)
        decoded, same = value, type(value) in self._plain
        if not same:
            try:
                decoded = self._decode(data)
                same = decoded == value
            except Exception:  # noqa: BLE001 - it does not fit the annotation, or what a class's own methods raise
                pass
            if not same:
                decoded = self._judged(value, data)
        if len(data) > PAYLOAD_WARN_BYTES:
            check_size(data, f"{self.what} takes ")
        return data, decoded

    def encode(self, value: Any) -> bytes:
        """The JSON text of ``value``. Raises what :meth:`store` raises."""
        return self.store(value)[0]

    def decode(self, data: bytes | msgspec.Raw) -> T:
        """The value, of the annotated type. Raises :class:`StoredValueMismatch` if the stored one does not fit."""
        try:
            decoded: T = self._decode(data)
        except (msgspec.MsgspecError, *_CONVERSION_ERRORS) as error:
            raise StoredValueMismatch(f"{self.what} does not fit its annotation {shown(self.kind)}: {error}") from None
        return decoded

    def _encoded_otherwise(self, value: Any, error: Exception) -> bytes:
        try:
            if isinstance(error, TypeError):
                return encode_json(value)
        except _CONVERSION_ERRORS as second:
            error = second
        raise unstorable(value, error, self.what) from None

    def _judged(self, value: Any, data: bytes) -> T:
        """What came back from JSON is not simply the same: see whether that is all right, or say why not."""
        try:
            decoded = self.decode(data)
        except StoredValueMismatch:
            reason = find_bent(value, value)
            if reason is not None:
                raise UnstorableValue(self.what + reason) from None
            raise
        confirm(value, decoded, self.what)
        return decoded


def _plain_types(kind: Any) -> frozenset[type]:
    """The exact types that ``kind`` gives back unchanged."""
    if kind is Any:
        return _PLAIN
    if kind is None:
        return frozenset({NoneType})
    if get_origin(kind) in (Union, UnionType):
        parts = get_args(kind)
        # With other members in the union a plain value might be read as one of those.
        return frozenset(parts) if all(part in _PLAIN for part in parts) else frozenset()
    return frozenset({kind}) if isinstance(kind, type) and kind in _PLAIN else frozenset()


@lru_cache(maxsize=1024)
def _cached_codec(kind: Any) -> ValueCodec[Any]:
    return ValueCodec(kind)


def codec_for(kind: Any) -> ValueCodec[Any]:
    """The codec of a type, made once. Raises :class:`DefinitionError` if JSON can't tell its values apart."""
    try:
        return _cached_codec(kind)
    except TypeError:  # an annotation that can't be hashed
        return ValueCodec(kind)

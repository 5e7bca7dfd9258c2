"""The arguments of one function, as one JSON document.

Each function gets a msgspec struct of its own, encoded as an array: ``f("o-1", 4200)`` is ``["o-1",4200]`` however the
caller wrote it, with defaults filled in, so that equal arguments give equal bytes. Encoding and decoding are one call
into C each; this is the hot path of every start and every step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from inspect import Parameter
from typing import Any

import msgspec

from sharded_wf.errors import DefinitionError, StoredValueMismatch, UnstorableValue
from sharded_wf.limits import PAYLOAD_WARN_BYTES
from sharded_wf.serialization.inspection import find_bent
from sharded_wf.serialization.values import check_size, confirm, encode_json, encode_text, make_decoder, unstorable

_CONVERSION_ERRORS = (TypeError, ValueError, OverflowError, RecursionError, NotImplementedError)
_NO_KEYWORDS: dict[str, Any] = {}


class ArgumentsCodec:
    """Stores the arguments of ``function``, whose annotations have been resolved to ``hints``.

    With ``typed=False`` nothing is ever decoded (a step's arguments only give a fingerprint), so that annotations which
    JSON can't hold do no harm.
    """

    __slots__ = ("_decode", "_pack", "_positional", "_unpack", "_width", "name", "pack", "signature")

    def __init__(self, function: Callable[..., Any], hints: dict[str, Any], name: str, *, typed: bool) -> None:
        self.name = name
        self.signature = inspect.signature(function)
        parameters = list(self.signature.parameters.values())
        self._positional = all(p.kind is Parameter.POSITIONAL_OR_KEYWORD for p in parameters)
        self._width = len(parameters) if self._positional else -1
        """How many arguments are all of them, none by keyword or default: their tuple has the struct's text."""
        self._pack = _make_struct(function.__name__, parameters, hints if typed else {}, name)
        self.pack: Callable[..., Any] = self._pack if self._positional else self._pack_general
        """The arguments of one call as a value that encodes; raises ``TypeError`` as the call itself would."""
        self._decode = _decoder(self._pack, parameters, hints, name).decode if typed else None
        self._unpack = msgspec.structs.astuple

    def fingerprint_text(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """Bytes that are equal for equal arguments; of arguments that have no JSON form, only the types count.

        Raises ``TypeError`` if the arguments don't fit the signature.
        """
        try:
            if len(args) == self._width and not kwargs:
                return encode_text(args)
            return encode_text(self.pack(*args, **kwargs))
        except _CONVERSION_ERRORS:
            return self._fingerprint_otherwise(args, kwargs)

    def _fingerprint_otherwise(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        try:
            packed = self.pack(*args, **kwargs)
        except TypeError:
            packed = self._explain(args, kwargs)
        try:
            return encode_json(packed)
        except _CONVERSION_ERRORS:
            names = [f"{type(part).__module__}.{type(part).__qualname__}" for part in self._unpack(packed)]
            return encode_json(["types", *names])

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """The arguments as JSON text, faithfully.

        Raises ``TypeError`` if they don't fit the signature, :class:`UnstorableValue` if JSON would bend one of them,
        :class:`StoredValueMismatch` if one does not fit its annotation, :class:`LimitExceeded` if they are too large.
        """
        try:
            packed = self.pack(*args, **kwargs)
        except TypeError:
            packed = self._explain(args, kwargs)
        what = f"the input of {self.name}: "
        try:
            data = encode_json(packed)
        except _CONVERSION_ERRORS as error:
            raise unstorable(packed, error, what) from None
        if self._decode is not None:
            try:
                decoded = self._decode(data)
            except (msgspec.MsgspecError, *_CONVERSION_ERRORS) as error:
                reason = find_bent(packed, packed)
                if reason is not None:
                    raise UnstorableValue(what + reason) from None
                raise StoredValueMismatch(f"{what}it does not fit the annotations: {error}") from None
            confirm(packed, decoded, what)
        if len(data) > PAYLOAD_WARN_BYTES:
            check_size(data, what)
        return data

    def decode(self, data: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments to call the function with. Raises :class:`StoredValueMismatch` if they don't fit the
        annotations."""
        if self._decode is None:
            raise DefinitionError(f"{self.name}: its arguments are never read back")
        try:
            values = self._unpack(self._decode(data))
        except (msgspec.MsgspecError, *_CONVERSION_ERRORS) as error:
            raise StoredValueMismatch(f"the stored input does not fit {self.name}{self.signature}: {error}") from None
        if self._positional:
            return values, _NO_KEYWORDS
        return self._call_form(values)

    def _explain(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Raise the ``TypeError`` that the function itself would raise; the struct's own names no function."""
        try:
            self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.name}(): {error}") from None
        return self.pack(*args, **kwargs)

    def _pack_general(self, *args: Any, **kwargs: Any) -> Any:
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return self._pack(*bound.arguments.values())

    def _call_form(self, values: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for parameter, value in zip(self.signature.parameters.values(), values, strict=True):
            if parameter.kind is Parameter.VAR_POSITIONAL:
                args.extend(value)
            elif parameter.kind is Parameter.VAR_KEYWORD:
                kwargs.update(value)
            elif parameter.kind is Parameter.KEYWORD_ONLY:
                kwargs[parameter.name] = value
            else:
                args.append(value)
        return tuple(args), kwargs


def _decoder(
    pack: type[msgspec.Struct], parameters: list[Parameter], hints: dict[str, Any], name: str
) -> msgspec.json.Decoder[Any]:
    try:
        return make_decoder(pack, name)
    except DefinitionError:
        for parameter in parameters:  # which is it?
            make_decoder(hints.get(parameter.name, Any), f"{name}, parameter {parameter.name!r}")
        raise


def _make_struct(title: str, parameters: list[Parameter], hints: dict[str, Any], name: str) -> type[msgspec.Struct]:
    """The struct whose fields are the parameters, in their order."""
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    has_default = False
    for parameter in parameters:
        kind: Any = hints.get(parameter.name, Any)
        if parameter.kind is Parameter.VAR_POSITIONAL:
            kind = tuple.__class_getitem__((kind, ...))
        elif parameter.kind is Parameter.VAR_KEYWORD:
            kind = dict.__class_getitem__((str, kind))
        default = parameter.default
        if default is not Parameter.empty:
            has_default = True
            # Through a factory, because a struct refuses a mutable default that Python's own functions allow.
            fields.append((parameter.name, kind, msgspec.field(default_factory=_constant(default))))
        elif has_default:  # *args, or keyword-only without a default, after a parameter that has one
            fields.append((parameter.name, kind, _REQUIRED))
        else:
            fields.append((parameter.name, kind))
    try:
        return msgspec.defstruct(f"{title}_arguments", fields, array_like=True, frozen=True)
    except (TypeError, ValueError) as error:
        raise DefinitionError(f"{name}: its parameters can't be stored: {error}") from None


_REQUIRED: Any = None
"""Stands in a struct for a value that the general form always passes."""


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value

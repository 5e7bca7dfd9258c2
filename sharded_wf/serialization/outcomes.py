"""How a child's end travels to its parent: as the payload of a message, JSON like every other."""

from __future__ import annotations

import msgspec

from sharded_wf.errors import StoredValueMismatch
from sharded_wf.model.status import Status
from sharded_wf.model.workflow import Outcome

_NOTHING = msgspec.Raw()


class _StoredOutcome(msgspec.Struct, frozen=True):
    status: int
    output: msgspec.Raw = _NOTHING
    error: msgspec.Raw = _NOTHING


_decode = msgspec.json.Decoder(_StoredOutcome).decode


def encode_outcome(outcome: Outcome) -> bytes:
    """The outcome as JSON text; its output or error goes in as the JSON that it is."""
    parts = [b'{"status":%d' % outcome.status]
    if outcome.output is not None:
        parts += b',"output":', outcome.output
    if outcome.error is not None:
        parts += b',"error":', outcome.error
    return b"".join((*parts, b"}"))


def decode_outcome(data: bytes) -> Outcome:
    """The outcome again. Raises :class:`StoredValueMismatch` if the text is none, or not a final one."""
    try:
        stored = _decode(data)
        status = Status(stored.status)
    except (msgspec.MsgspecError, ValueError) as error:
        raise StoredValueMismatch(f"a child's outcome can't be read: {error}") from None
    if not status.is_final:
        raise StoredValueMismatch(f"a child's outcome is not final: {status.label}")
    # JSON text is never empty, so empty text means that it was not there.
    return Outcome(status, bytes(stored.output) or None, bytes(stored.error) or None)

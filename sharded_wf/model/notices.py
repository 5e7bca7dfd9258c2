"""How a workflow is told of an event that it waits for: by a message whose sender names the event."""

from __future__ import annotations

import msgspec

from sharded_wf.clock import Microseconds

_decode = msgspec.json.Decoder(tuple[str, str, int]).decode


def notice_of(target: str, key: str, set_at: Microseconds) -> str:
    """The sender of the message that tells of an event: of each setting another, so that none is taken for one that was
    told before."""
    return msgspec.json.encode((target, key, set_at)).decode()


def read_notice(sender: str) -> tuple[str, str]:
    """Which event of which workflow a message tells of."""
    target, key, _ = _decode(sender)
    return target, key

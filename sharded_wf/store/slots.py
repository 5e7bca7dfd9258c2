"""Looks over the slots of a shard, and the care of their churning tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from sharded_wf.clock import Microseconds
from sharded_wf.postgres import binary
from sharded_wf.postgres.queries import Query, load
from sharded_wf.postgres.session import Result, Statement
from sharded_wf.store.claims import Lane

_SQL = load("slots")
_PEEK = _SQL["peek"]
_VACUUM = _SQL["vacuum"]
_PEEK_REQUESTS = load("requests")["peek_requests"]

CHURNING_TABLES = ("ready", "claim", "timer", "wake", "message", "outbox")


class Glance(msgspec.Struct, gc=False):
    """What there is to do on a shard. Each slot appears only where it has something."""

    lanes: dict[int, list[Lane]] = {}
    due: dict[int, Microseconds] = {}
    wakes: list[int] = []
    outgoing: list[int] = []
    requests: bool = False
    """Whether users' own transactions left something in the shard's outbox."""
    awaited: list[int] = []


def peek(schemas: Mapping[int, str]) -> Statement:
    """One question over all these slots (number → schema): what is there to do?"""
    parts = [
        Query(f"peek_{number}", _PEEK.text.replace("{slot}", schema).replace("{number}", str(number)))
        for number, schema in schemas.items()
    ]
    parts.append(_PEEK_REQUESTS)
    # Prepared by name: other slots make another statement.
    name = f"peek_{hash(tuple(schemas)) & 0xFFFFFFFF:08x}"
    whole = Query(name, "\nunion all\n".join(part.text for part in parts))
    return Statement(whole, "", parts=[Statement(part, "") for part in parts])


def glance_of(result: Result) -> Glance:
    """The answer to ``peek``."""
    glance = Glance()
    for number, kind, capability, queue, priority, due in result.rows():
        slot = binary.read_int(number or b"")
        match kind:
            case b"\x00\x00":
                lane = Lane((capability or b"").decode(), (queue or b"").decode(), binary.read_int(priority or b""))
                glance.lanes.setdefault(slot, []).append(lane)
            case b"\x00\x01":
                glance.due[slot] = binary.read_timestamp(due or b"")
            case b"\x00\x02":
                glance.wakes.append(slot)
            case b"\x00\x04":
                glance.requests = True
            case b"\x00\x03":
                glance.outgoing.append(slot)
            case _:
                glance.awaited.append(slot)
    return glance


def vacuums(schema: str, tables: Sequence[str] = CHURNING_TABLES) -> list[str]:
    """The vacuum commands for a slot; each runs outside any transaction."""
    return [_VACUUM.text.replace("{slot}", schema).replace("{table}", table) for table in tables]

"""Leases, the fence, and the notifications of a shard: the statements of the control schema."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from sharded_wf.clock import Microseconds
from sharded_wf.postgres import binary
from sharded_wf.postgres.queries import load
from sharded_wf.postgres.session import Result, Statement

_SQL = load("leases")
_MIGRATIONS = load("migrations")

LEASE_LOST_SQLSTATE = "WF001"
"""What ``fence`` raises when the lease is gone."""
READY_CHANNEL = "sharded_wf_ready"
"""Notified with slot numbers when work is ready and an executor has said that it is idle."""
WAKE_CHANNEL = "sharded_wf_wake"
"""Notified with slot numbers when messages have arrived."""
_PAYLOAD_MAX_BYTES = 7_900


class Beat(msgspec.Struct, frozen=True, gc=False):
    """One lease as its neighbours see it."""

    lease_id: bytes
    beat: int
    executor: str


def slots_payload(slots: Sequence[int]) -> bytes:
    """Slot numbers as a notification carries them; ``*`` (look everywhere) if they are too many."""
    payload = ",".join(map(str, slots)).encode()
    return payload if len(payload) <= _PAYLOAD_MAX_BYTES else b"*"


def take_lease(
    lease_id: bytes,
    executor: str,
    capabilities: Sequence[str],
    queues: Sequence[str] | None,
    version: str,
    now: Microseconds,
    *,
    known: tuple[int, int],
    isolated: bool = False,
) -> Statement:
    """Become an executor of this shard; ``queues`` None: of every queue; ``known``: the newest migrations that it
    knows, of the control schema and of a slot."""
    return Statement(
        _SQL["take_lease"],
        "",
        (
            lease_id, executor.encode(), binary.boolean(isolated), binary.text_array(capabilities),
            None if queues is None else binary.text_array(queues), version.encode(), binary.timestamp(now),
            binary.int4(known[0]), binary.int4(known[1]),
        ),
    )  # fmt: skip


def too_new(known: tuple[int, int]) -> list[Statement]:
    """Ask, in one transaction, for a migration here that a process which knows these can't work with; waits for one
    that is under way. The last answer is its name, or nothing."""
    return [
        Statement(_MIGRATIONS["share_migrations"], ""),
        Statement(_MIGRATIONS["read_too_new"], "", (binary.int4(known[0]), binary.int4(known[1]))),
    ]


def too_new_of(results: Sequence[Result]) -> str | None:
    """The answer to ``too_new``."""
    rows = results[-1].rows()
    return rows[0][0].decode() if rows and rows[0][0] else None


def fence(lease_id: bytes) -> Statement:
    """The first statement of every claim and flush: hold the lease until commit, or raise ``LEASE_LOST_SQLSTATE``."""
    return Statement(_SQL["fence"], "", (lease_id,))


def beat(lease_id: bytes, now: Microseconds) -> Statement:
    """Keep the lease, and see the others."""
    return Statement(_SQL["beat"], "", (lease_id, binary.timestamp(now)))


def beats_of(result: Result) -> tuple[bool, list[Beat]]:
    """The answer to ``beat``: whether our lease still stands, and all leases."""
    rows = result.rows()
    beats = [Beat(id_ or b"", binary.read_int(count or b""), (name or b"").decode()) for id_, count, name, _ in rows]
    return any(mine == b"\x01" for *_, mine in rows), beats


def set_idle(lease_id: bytes, idle: bool) -> Statement:
    """Say whether this executor sleeps until it is notified."""
    return Statement(_SQL["set_idle"], "", (lease_id, binary.boolean(idle)))


def mark_flush(lease_id: bytes, number: int) -> Statement:
    """Number the flush, so that a lost answer can be looked up."""
    return Statement(_SQL["mark_flush"], "", (lease_id, binary.int8(number)))


def read_flush(lease_id: bytes, number: int) -> Statement:
    """Ask whether the flush was committed: a row if so."""
    return Statement(_SQL["read_flush"], "", (lease_id, binary.int8(number)))


def forget_flushes(lease_id: bytes, before: int) -> Statement:
    """Remove the marks of flushes whose answers have come."""
    return Statement(_SQL["forget_flushes"], "", (lease_id, binary.int8(before)))


def end_lease(lease_id: bytes, seen_beat: int) -> Statement:
    """Take a dead executor's lease away, if its beat still stands where it was seen."""
    return Statement(_SQL["end_lease"], "", (lease_id, binary.int8(seen_beat)))


def forget_all_flushes(lease_id: bytes) -> Statement:
    """Remove the marks of a lease that is gone."""
    return Statement(_SQL["forget_all_flushes"], "", (lease_id,))


def leave(lease_id: bytes) -> list[Statement]:
    """Give up one's own lease."""
    return [Statement(_SQL["leave"], "", (lease_id,)), Statement(_SQL["forget_all_flushes"], "", (lease_id,))]


def end_lease_holders() -> Statement:
    """End the backends that keep a takeover's ``end_lease`` waiting."""
    return Statement(_SQL["end_lease_holders"], "")


def notify_if_idle(slots: Sequence[int]) -> Statement:
    """Wake idle executors, if there are any."""
    return Statement(_SQL["notify_if_idle"], "", (slots_payload(slots),))


def notify_look() -> Statement:
    """Have idle executors look everywhere, if there are any."""
    return Statement(_SQL["notify_if_idle"], "", (b"*",))


def notify_wakes(slots: Sequence[int]) -> Statement:
    """Tell executors that messages have arrived."""
    return Statement(_SQL["notify_wakes"], "", (slots_payload(slots),))


def notify_waiters(slots: Sequence[int], now: Microseconds) -> Statement:
    """Tell clients that wait for results that some workflows of these slots have ended."""
    return Statement(_SQL["notify_waiters"], "", (slots_payload(slots), binary.timestamp(now)))


def wait_for_results(channel: str, until: Microseconds) -> Statement:
    """Ask to be notified of results on ``channel``."""
    return Statement(_SQL["wait_for_results"], "", (channel.encode(), binary.timestamp(until)))


def stop_waiting(channel: str, now: Microseconds) -> Statement:
    """Take that back, and remove what others left behind."""
    return Statement(_SQL["stop_waiting"], "", (channel.encode(), binary.timestamp(now)))

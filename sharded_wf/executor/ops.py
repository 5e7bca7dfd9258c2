"""What runs want saved, and the one transaction that saves it.

An op is one thing that one run wants; a flush is all ops that have gathered. ``statements_of`` is pure: the same ops
give the same transaction, so it can be sent again after a failure, or in halves to find the one row that Postgres
refuses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum

import msgspec

from sharded_wf.clock import Microseconds
from sharded_wf.executor.held import Claim, Hold
from sharded_wf.limits import FLUSH_MAX_ROWS
from sharded_wf.model.attributes import Attribute
from sharded_wf.model.history import Entry, EntryKind, FailedAttempt, Heartbeat, read_cancellation
from sharded_wf.model.status import Status
from sharded_wf.model.workflow import CANCEL_TOPIC, OUTCOME_TOPIC, Event, Message, Outcome
from sharded_wf.postgres.session import Statement
from sharded_wf.routing import slot_schema
from sharded_wf.serialization.outcomes import encode_outcome
from sharded_wf.store import claims, events, leases, messages, outcomes, steps, timers
from sharded_wf.store.attributes import Owned, set_attributes


class OpKind(IntEnum):
    """What one op saves."""

    RECORD = 0
    ASIDE = 1
    """What the code does not wait for: a failed attempt, a heartbeat, an event."""
    FINISH = 2
    PARK = 3
    GIVE_BACK = 4
    REROUTE = 5
    CONTINUE = 6


Aside = FailedAttempt | Heartbeat | Event


class Renewal(msgspec.Struct, frozen=True, gc=False):
    """The next run of a workflow: the first entry of its history, where it waits to be taken up, and the children to be
    cancelled now."""

    entry: Entry
    capability: str
    queue: str
    cancels: tuple[str, ...] = ()


class Op(msgspec.Struct, frozen=True, gc=False):
    """One thing to save for one held workflow. Which of the other fields count depends on the kind."""

    kind: OpKind
    hold: Hold
    entry: Entry | None = None
    consumed: Message | None = None
    outbox: Message | None = None
    aside: Aside | None = None
    outcome: Outcome | None = None
    due_at: Microseconds | None = None
    renewal: Renewal | None = None
    heir: Hold | None = None
    """The parent, which is held here too and records this outcome with the same flush: nobody needs to be told."""


# Kept under names of their own: before Python 3.12 each look at a member of an enum costs as much as making an op.
RECORD, FINISH, PARK = OpKind.RECORD, OpKind.FINISH, OpKind.PARK
_CANCEL, _ATTRIBUTES, _SUCCEEDED = EntryKind.CANCEL, EntryKind.ATTRIBUTES, Status.SUCCEEDED
_decode_attributes = msgspec.json.Decoder(tuple[Attribute, ...]).decode


class Told(msgspec.Struct, gc=False):
    """What a flush tells others: messages that it delivers itself and messages that it leaves in the outbox for the
    relay, each with its slot; and the slots in which workflows ended (or set an event), or became ready again. ``left``
    says how many workflows leave each claim with it, ``churned`` how many rows of other churning tables it removes, or
    will have removed, by slot and table."""

    delivered: list[tuple[int, Message]]
    outgoing: list[tuple[int, Message]]
    ended: set[int]
    ready: set[int]
    left: dict[Claim, int]
    churned: Counter[tuple[int, str]]


class _Slot:
    """The ops of one slot, by statement."""

    __slots__ = (
        "asides", "attributes", "consumed", "delivered", "ended", "entries", "failed", "given", "mailed", "outgoing",
        "parked", "released", "renewed", "rerouted",
    )  # fmt: skip

    def __init__(self) -> None:
        self.entries: tuple[list[str], list[Entry]] = ([], [])
        self.asides: list[tuple[str, Aside]] = []
        self.attributes: list[Owned] = []
        self.consumed: list[Message] = []
        self.mailed: list[str] = []
        self.delivered: list[Message] = []
        self.outgoing: list[Message] = []
        self.ended: tuple[list[str], list[bytes], list[bytes]] = ([], [], [])
        self.failed: tuple[list[str], list[bytes], list[bytes], list[int]] = ([], [], [], [])
        self.parked: tuple[list[str], list[bytes], list[tuple[Microseconds, str]]] = ([], [], [])
        self.given: tuple[list[str], list[bytes]] = ([], [])
        self.rerouted: tuple[list[str], list[bytes]] = ([], [])
        self.renewed: tuple[list[str], list[bytes], list[Renewal]] = ([], [], [])
        self.released: list[bytes] = []


def statements_of(
    ops: Iterable[Op], is_here: Callable[[str], tuple[int, bool]], now: Microseconds
) -> tuple[list[Statement], Told]:
    """The statements that save these ops, slot by slot in ascending order, and what is told to other workflows.

    ``is_here`` says of a workflow ID its slot, and whether that is on this shard: then a message to it goes in with the
    same transaction, else into the outbox.
    """
    slots: dict[int, _Slot] = {}
    told = Told([], [], set(), set(), {}, Counter())
    left = told.left
    number = -1
    slot = _Slot()
    ids, entries = slot.entries
    for op in ops:
        hold = op.hold
        claim = hold.claim
        if claim.slot != number:  # mostly a claim's workflows go on together
            number = claim.slot
            slot = slots.get(number) or slots.setdefault(number, _Slot())
            ids, entries = slot.entries
        entry, outcome = op.entry, op.outcome
        if entry is not None:
            ids.append(hold.run.id)
            entries.append(entry)
            if op.consumed is not None:
                slot.consumed.append(op.consumed)
                told.churned[claim.slot, "message"] += 1
                told.churned[claim.slot, "wake"] += 1
                if entry.kind is _CANCEL:
                    said = read_cancellation(entry.output)
                    _cancel_children(op, said.told, said.told_as, slots, slot, told, is_here, now)
            elif entry.kind is _ATTRIBUTES:
                slot.attributes += [(hold.run.id, one) for one in _decode_attributes(entry.output or b"[]")]
            if op.outbox is not None:
                slot.outgoing.append(op.outbox)
                told.outgoing.append((claim.slot, op.outbox))
        elif outcome is not None:
            left[claim] = left.get(claim, 0) + 1
            _finish(hold, outcome, slot)
            told.ended.add(claim.slot)
            if outcome.cancels:
                _cancel_children(op, outcome.cancels, outcome.cancels_as, slots, slot, told, is_here, now)
            if hold.parent_id is not None and op.heir is None:
                _tell_parent(op, slots, slot, told, is_here, now)
        elif op.aside is not None:
            slot.asides.append((hold.run.id, op.aside))
            if isinstance(op.aside, Event):
                told.ended.add(claim.slot)
        else:
            left[claim] = left.get(claim, 0) + 1
            _leave(op, slot)
            told.ready.add(claim.slot)
            if op.renewal is not None and op.renewal.cancels:
                _cancel_children(op, op.renewal.cancels, hold.run.id, slots, slot, told, is_here, now)
            if op.due_at is not None:
                told.churned[claim.slot, "timer"] += 1
    for claim, count in left.items():
        if count == claim.held:
            slots[claim.slot].released.append(claim.id)
            told.churned[claim.slot, "claim"] += 1
    for number, _ in told.outgoing:
        told.churned[number, "outbox"] += 1
    statements: list[Statement] = []
    for number in sorted(slots):
        _slot_statements(statements, slot_schema(number), slots[number], now)
    if told.delivered:
        statements.append(leases.notify_wakes(sorted({slot for slot, _ in told.delivered})))
    return statements, told


def _aside_statements(statements: list[Statement], schema: str, asides: list[tuple[str, Aside]]) -> None:
    attempts = [(id_, one) for id_, one in asides if isinstance(one, FailedAttempt)]
    beats = [(id_, one) for id_, one in asides if isinstance(one, Heartbeat)]
    set_ = [(id_, one) for id_, one in asides if isinstance(one, Event)]
    if attempts:
        statements.append(steps.record_attempts(schema, [id_ for id_, _ in attempts], [one for _, one in attempts]))
    if beats:
        statements.append(steps.save_heartbeats(schema, beats))
    if set_:
        statements.append(events.set_events(schema, set_))


def _finish(hold: Hold, outcome: Outcome, slot: _Slot) -> None:
    run_id, claim_id = hold.run.id, hold.claim.id
    if outcome.status is _SUCCEEDED:
        ids, outputs, claim_ids = slot.ended
        ids.append(run_id)
        outputs.append(outcome.output or b"null")
        claim_ids.append(claim_id)
        if hold.mailed:
            slot.mailed.append(run_id)
    else:
        slot.failed[0].append(run_id)
        slot.failed[1].append(outcome.error or b"null")
        slot.failed[2].append(claim_id)
        slot.failed[3].append(outcome.status)


def _leave(op: Op, slot: _Slot) -> None:
    run_id, claim_id = op.hold.run.id, op.hold.claim.id
    match op.kind:
        case OpKind.PARK:
            slot.parked[0].append(run_id)
            slot.parked[1].append(claim_id)
            if op.due_at is not None:
                slot.parked[2].append((op.due_at, run_id))
        case OpKind.GIVE_BACK:
            slot.given[0].append(run_id)
            slot.given[1].append(claim_id)
        case OpKind.REROUTE:
            slot.rerouted[0].append(run_id)
            slot.rerouted[1].append(claim_id)
        case OpKind.CONTINUE:
            assert op.renewal is not None
            slot.renewed[0].append(run_id)
            slot.renewed[1].append(claim_id)
            slot.renewed[2].append(op.renewal)
        case _:
            raise AssertionError(op.kind)


def _tell_parent(
    op: Op,
    slots: dict[int, _Slot],
    slot: _Slot,
    told: Told,
    is_here: Callable[[str], tuple[int, bool]],
    now: Microseconds,
) -> None:
    parent_id, outcome = op.hold.parent_id, op.outcome
    assert parent_id is not None and outcome is not None
    run = op.hold.run
    message = Message(parent_id, OUTCOME_TOPIC, run.id, run.attempt, encode_outcome(outcome), now)
    _tell(op, message, slots, slot, told, is_here)


def _cancel_children(
    op: Op,
    children: Iterable[str],
    sender: str,
    slots: dict[int, _Slot],
    slot: _Slot,
    told: Told,
    is_here: Callable[[str], tuple[int, bool]],
    now: Microseconds,
) -> None:
    for child in children:
        _tell(op, Message(child, CANCEL_TOPIC, sender, 1, b"null", now), slots, slot, told, is_here)


def _tell(
    op: Op,
    message: Message,
    slots: dict[int, _Slot],
    slot: _Slot,
    told: Told,
    is_here: Callable[[str], tuple[int, bool]],
) -> None:
    """Deliver with this flush, or leave it in the outbox."""
    receiver_slot, here = is_here(message.receiver)
    if here:
        slots.setdefault(receiver_slot, _Slot()).delivered.append(message)
        told.delivered.append((receiver_slot, message))
    else:
        slot.outgoing.append(message)
        told.outgoing.append((op.hold.claim.slot, message))


def _slot_statements(statements: list[Statement], schema: str, slot: _Slot, now: Microseconds) -> None:
    """The order is the lock order of ``sql/README.md``: a slot's tables as listed here, slots ascending."""
    if slot.entries[0]:
        statements.append(steps.record_steps(schema, *slot.entries))
    if slot.attributes:
        statements += set_attributes(schema, slot.attributes)
    if slot.asides:
        _aside_statements(statements, schema, slot.asides)
    if slot.consumed:
        statements.append(messages.consume(schema, slot.consumed))
    if slot.renewed[0]:
        # After what their last runs recorded with this flush, which goes with the rest.
        statements.append(steps.forget_runs(schema, slot.renewed[0]))
        statements.append(steps.record_steps(schema, slot.renewed[0], [one.entry for one in slot.renewed[2]]))
    if slot.mailed:
        statements.append(messages.clear_mailboxes(schema, slot.mailed))
    if slot.ended[0]:
        statements.append(outcomes.succeed(schema, *slot.ended, now))
    if slot.failed[0]:
        statements.append(outcomes.fail(schema, *slot.failed, now))
    if slot.given[0]:
        statements.append(claims.give_back(schema, *slot.given, now))
    if slot.rerouted[0]:
        statements.append(claims.reroute(schema, *slot.rerouted, now))
    if slot.renewed[0]:
        ids, claim_ids, renewals = slot.renewed
        statements.append(
            claims.continue_as_new(
                schema, ids, claim_ids, [one.entry.completed_at for one in renewals],
                [one.capability for one in renewals], [one.queue for one in renewals], now,
            )
        )  # fmt: skip
    if slot.delivered:
        statements.append(messages.deliver(schema, slot.delivered))
    if slot.outgoing:
        statements.append(messages.fill_outbox(schema, slot.outgoing))
    if slot.parked[0]:
        statements += timers.park(schema, *slot.parked, now)
    if slot.released:
        statements.append(claims.release_claims(schema, slot.released))


def size_of_flush(waiting: Sequence[Op]) -> int:
    """How many of the ops that wait go with the next flush."""
    size = FLUSH_MAX_ROWS
    while (
        size < len(waiting) and waiting[size].heir is not None
    ):  # what the heir records goes before it, with this flush
        size += 1
    return size


def inseparable(ops: Sequence[Op]) -> list[list[Op]]:
    """The ops of each run in their order, those of a child and of its heir together."""
    groups: dict[Hold, list[Op]] = {}
    for op in ops:
        group = groups.setdefault(op.hold, [])
        group.append(op)
        if op.heir is not None and (other := groups.get(op.heir)) is not None and other is not group:
            other += group
            for hold in {one.hold for one in group}:
                groups[hold] = other
    return list({id(group): group for group in groups.values()}.values())


def torn(ops: Sequence[Op], lost: set[Hold]) -> list[Op]:
    """What is left to save when nothing of ``lost`` is, to which those are added that had the outcome of one of these:
    a child and its heir are saved together or not at all. What a lost heir does not get is told by message."""
    before = -1
    while before != len(lost):
        before = len(lost)
        lost.update(op.heir for op in ops if op.heir is not None and op.hold in lost)
    return [
        op if op.heir is None or op.heir not in lost else msgspec.structs.replace(op, heir=None)
        for op in ops
        if op.hold not in lost
    ]

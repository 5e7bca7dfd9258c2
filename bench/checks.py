"""What must hold within one slot. Each query gives the IDs of the workflows that break it: ``{s}`` is the slot's
schema, ``names`` and ``counts`` say how many steps a finished workflow of a name has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import LiteralString

LOST, DUPLICATED, MISORDERED, UNSOUND = "lost", "duplicated", "misordered", "unsound"


@dataclass(frozen=True)
class Check:
    """``only_drained``: it means something only when all has ended. ``settles``: executors may still be tidying up."""

    kind: str
    what: str
    query: LiteralString
    only_drained: bool = False
    settles: bool = False


_LEFT_BEHIND: tuple[tuple[str, str, LiteralString], ...] = (
    (LOST, "a message was never received", "select workflow_id from {s}.message"),
    (LOST, "a message did not leave the outbox", "select receiver from {s}.outbox"),
    (UNSOUND, "a claim is left behind", "select unnest(workflow_ids) from {s}.claim"),
    (UNSOUND, "a wake is left behind", "select workflow_id from {s}.wake"),
    (UNSOUND, "a timer is left behind", "select workflow_id from {s}.timer where due_at < now()"),
    (UNSOUND, "a workflow stands in the queue, and nothing is left to do", "select id from {s}.ready"),
)

SLOT_CHECKS = (
    Check(LOST, "a workflow has no outcome", "select id from {s}.workflow where status < 3", only_drained=True),
    Check(
        LOST,
        "a workflow has ended, and its outcome is not there",
        "select id from {s}.workflow where status >= 3 and (output is null and error is null or completed_at is null)",
    ),
    Check(
        DUPLICATED,
        "a workflow has two outcomes",
        "select id from {s}.workflow where output is not null and error is not null "
        "or status < 3 and (output is not null or error is not null or completed_at is not null)",
    ),
    Check(
        UNSOUND,
        "a workflow did not succeed, or saw what must not be",
        "select id || ' ' || left(coalesce(error, output)::text, 200) from {s}.workflow "
        "where status > 3 or status = 3 and output::text <> '{{\"ok\":true}}'",
    ),
    Check(
        LOST,
        "a recorded step has no result",
        "select workflow_id from {s}.step where output is null and error is null",
    ),
    Check(
        DUPLICATED,
        "a recorded step has two results",
        "select workflow_id from {s}.step where output is not null and error is not null",
    ),
    Check(
        LOST,
        "what is recorded of a workflow has gaps, or a place twice",
        "select workflow_id from {s}.step group by workflow_id "
        "having max(ordinal) <> count(*) or sum(ordinal) <> count(*) * (count(*) + 1) / 2",
    ),
    Check(
        LOST,
        "a workflow has ended with fewer recorded steps than it made",
        "select w.id from {s}.workflow w join unnest(%(names)s::text[], %(counts)s::int[]) e (name, count) "
        "on e.name = w.name left join (select workflow_id, count(*) from {s}.step where kind = 0 group by 1) s "
        "on s.workflow_id = w.id where w.status = 3 and coalesce(s.count, 0) < e.count",
    ),
    Check(
        DUPLICATED,
        "a workflow has ended with more recorded steps than it made",
        "select w.id from {s}.workflow w join unnest(%(names)s::text[], %(counts)s::int[]) e (name, count) "
        "on e.name = w.name join (select workflow_id, count(*) from {s}.step where kind = 0 group by 1) s "
        "on s.workflow_id = w.id where w.status = 3 and s.count > e.count",
    ),
    Check(
        UNSOUND,
        "there are recorded steps of a workflow that is not there",
        "select s.workflow_id from {s}.step s left join {s}.workflow w on w.id = s.workflow_id where w.id is null",
    ),
    Check(
        MISORDERED,
        "messages of one sender were received in another order, or not each once",
        "select workflow_id from (select workflow_id, (output ->> 'seq')::int as seq, row_number() over "
        "(partition by workflow_id, name, output ->> 'sender' order by ordinal) as place from {s}.step where kind = 2 "
        "and error is null) m where seq <> place",
    ),
    Check(
        UNSOUND,
        "a message that was received is there still",
        "select m.workflow_id from {s}.message m join {s}.step s on s.workflow_id = m.workflow_id and s.kind = 2 "
        "and s.name = m.topic and s.output ->> 'sender' = m.sender and (s.output ->> 'seq')::int = m.seq",
        settles=True,
    ),
    *(Check(kind, what, query, only_drained=True, settles=True) for kind, what, query in _LEFT_BEHIND),
)

AT_REST = frozenset(check.what for check in SLOT_CHECKS if check.settles)
"""What comes right by itself, a little later."""

-- locks: workflow
-- What long steps report, the events that workflows set, and deadlines.

-- The last that a step reported while it ran, or that a sensor's last look found nothing: one row a step, written over.
create table {slot}.heartbeat (
    workflow_id text collate "C" not null,
    place       int not null,
    attempt     int not null,
    beat_at     timestamptz not null,
    next_at     timestamptz,               -- of a sensor: when it looks again
    details     json not null,
    primary key (workflow_id, place)
) with (fillfactor = 70);

-- The latest value of each event.
create table {slot}.event (
    workflow_id text collate "C" not null,
    key         text collate "C" not null,
    set_at      timestamptz not null,
    value       json not null,
    primary key (workflow_id, key)
) with (fillfactor = 70);

-- Who wants to be told when a workflow of this slot sets an event: written by the waiter, wherever it lives.
create table {slot}.event_waiter (
    workflow_id text collate "C" not null,
    key         text collate "C" not null,
    waiter      text collate "C" not null,
    primary key (workflow_id, key, waiter)
);

alter table {slot}.workflow add column deadline timestamptz;

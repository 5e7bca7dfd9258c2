-- One slot: a hash partition of workflow IDs. The same tables in every slot.
-- No index mentions a column that changes, so that claim and finish are HOT updates; every churning table is narrow.

create schema {slot};

-- One row per workflow. Every update copies it: keep it small (larger inputs live in `input`).
create table {slot}.workflow (
    created_at   timestamptz not null,
    started_at   timestamptz,               -- its first claim: the zero of the workflow's own clock
    completed_at timestamptz,
    claim_id     uuid,                      -- the claim that holds it, or held it last; every write of a run matches it
    status       smallint not null,         -- model/status.py
    priority     smallint not null,
    claims       smallint not null default 0,  -- how often it was claimed; capped, for people and for "is there a history"
    deaths       smallint not null default 0,  -- takeovers since it last made progress
    id           text collate "C" primary key,
    name         text not null,             -- app/function
    capability   text not null,
    queue        text not null,
    parent_id    text collate "C",
    input        json,                      -- null: see `input`
    output       json,
    error        json
) with (fillfactor = 50);
create index workflow_created on {slot}.workflow (created_at, id);

-- Inputs too large to be copied with every update. Insert only.
create table {slot}.input (
    workflow_id text collate "C" primary key,
    value       json not null
);

-- The queue: a row while a workflow may be claimed. All churn; vacuumed by the executors' own maintenance.
create table {slot}.ready (
    capability  text collate "C" not null,  -- app or app@version; '~' before it: ran before; '!': suspect
    queue       text collate "C" not null,
    priority    smallint not null,
    enqueued_at timestamptz not null,
    id          text collate "C" not null,
    primary key (capability, queue, priority, enqueued_at, id)
) with (autovacuum_enabled = off);

-- One row per claimed batch: what a takeover needs, at no cost per workflow.
create table {slot}.claim (
    id           uuid primary key,
    lease_id     uuid not null,
    claimed_at   timestamptz not null,
    workflow_ids text[] not null
) with (autovacuum_enabled = off);

-- Recorded results. Insert only; a row is final.
create table {slot}.step (
    fingerprint  bigint not null,           -- of what was asked
    started_at   timestamptz not null,
    completed_at timestamptz not null,
    place        int not null,              -- where the code asked for it
    ordinal      int not null,              -- when it was answered
    kind         smallint not null,         -- model/history.py
    workflow_id  text collate "C" not null,
    name         text not null,
    output       json,
    error        json,
    primary key (workflow_id, place)
);

-- Attempts that failed and will be made again. Insert only.
create table {slot}.attempt (
    workflow_id text collate "C" not null,
    place       int not null,
    attempt     int not null,
    started_at  timestamptz not null,
    failed_at   timestamptz not null,
    retry_at    timestamptz not null,
    error       json not null,
    primary key (workflow_id, place, attempt)
);

-- Messages not yet received. `seq` counts per sender, receiver and topic, so that none overtakes another.
create table {slot}.message (
    workflow_id text collate "C" not null,
    topic       text collate "C" not null,
    sender      text collate "C" not null,
    seq         int not null,
    sent_at     timestamptz not null,
    payload     json not null,
    primary key (workflow_id, topic, sender, seq)
) with (autovacuum_enabled = off);

-- "Something arrived for this workflow": written beside a message, removed by whoever acts on it. A key of its own per
-- row, so that nobody ever waits for a stranger's transaction.
create table {slot}.wake (
    workflow_id text collate "C" not null,
    id          uuid not null,
    primary key (workflow_id, id)
) with (autovacuum_enabled = off);

-- When parked workflows, and those with a delayed start, come due.
create table {slot}.timer (
    due_at      timestamptz not null,
    workflow_id text collate "C" not null,
    primary key (due_at, workflow_id)
) with (autovacuum_enabled = off);

-- Messages on their way to other slots: written with the flush that sends them, removed once they are there.
create table {slot}.outbox (
    receiver text collate "C" not null,
    topic    text collate "C" not null,
    sender   text collate "C" not null,
    seq      int not null,
    sent_at  timestamptz not null,
    payload  json not null,
    primary key (receiver, topic, sender, seq)
) with (autovacuum_enabled = off);

-- The few that ended badly, so that finding them never scans the many that did not.
create table {slot}.failed (
    failed_at   timestamptz not null,
    workflow_id text collate "C" not null,
    status      smallint not null,
    primary key (failed_at, workflow_id)
);

-- The slot's own word on who it is and where it lives; it outranks every copy of the shard map.
create table {slot}.fence (
    only_row boolean primary key default true check (only_row),
    slot     int not null,
    shard    text not null,
    epoch    bigint not null,
    live     boolean not null
);

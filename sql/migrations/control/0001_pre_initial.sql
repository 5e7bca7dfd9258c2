-- The control schema of one shard: what this shard is, its copy of the shard map, and who may run its workflows.

create schema {control};

-- What every process checks before it does anything: one row, written once by `shards init`.
create table {control}.cluster (
    only_row   boolean primary key default true check (only_row),
    cluster_id uuid not null,               -- made at init; the same on every shard
    name       text not null,               -- [cluster] name in shards.toml
    shard      text not null,               -- the name of this shard
    slots      int not null,
    hash       text not null,               -- e.g. 'mmh3_x86_32'
    hash_seed  bigint not null,
    created_at timestamptz not null default now()
);

-- This shard's copy of the shard map. The highest epoch that can be reached wins.
create table {control}.shard_map (
    slot  int primary key,
    shard text not null,
    epoch bigint not null
);

-- Which migrations this database has, for the control schema and for each slot.
create table {control}.migration (
    schema_name text not null,
    version     int not null,
    name        text not null,
    applied_at  timestamptz not null default now(),
    primary key (schema_name, version)
);

-- A lease: one incarnation of an executor on this shard. A takeover deletes the row; nothing else does, but its owner.
-- Heartbeats are no-key updates, so they never wait for a flush that holds the row `for key share`.
create table {control}.lease (
    id           uuid primary key,
    executor     text not null,             -- host:pid, for people
    beat         bigint not null default 0, -- grows with every heartbeat; its rate of change is all that observers look at
    idle         boolean not null default false,
    isolated     boolean not null default false, -- runs suspects of a crash, each alone
    capabilities text[] not null,
    queues       text[],                    -- null: every queue
    version      text not null,
    started_at   timestamptz not null,
    beat_at      timestamptz not null
) with (fillfactor = 50);

-- Clients that wait for results here. Flushes notify them, coalesced, and only if there are any.
create table {control}.waiter (
    channel    text primary key,
    expires_at timestamptz not null
) with (fillfactor = 50);

-- The fence: the first statement of every claim and flush. It locks the lease row against its deletion, or raises.
-- (A mere select would fence nothing: in a pipeline zero rows are no error, and the rest commits.)
create function {control}.fence(lease_id uuid) returns void language plpgsql as $$
begin
    perform 1 from {control}.lease l where l.id = lease_id for key share;
    if not found then
        raise exception 'lease % is gone', lease_id using errcode = 'WF001';
    end if;
end
$$;

-- Which flushes of a lease were committed: the way to know, after an answer that was lost. Insert only but for old rows.
create table {control}.flush (
    lease_id uuid not null,
    number   bigint not null,
    primary key (lease_id, number)
);

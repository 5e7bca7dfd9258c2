-- Moving a slot from one shard to another: see "Moving a slot" in ARCHITECTURE.md.

-- An unfinished move: one row on the source and one on the target, removed when all is done (the target's last). The
-- source's row says what happens until the slot is retired there; from then on the target's row does.
create table {control}.move (
    slot        int primary key,            -- at most one move a slot
    id          uuid not null,
    source      text not null,
    target      text not null,
    epoch       bigint not null,            -- the slot's epoch on the target
    state       text not null check (state in ('planned', 'copying', 'draining', 'retired', 'live', 'undoing')),
    coordinator uuid not null,              -- who drives it: every transaction of the move matches it
    runner      text not null,              -- host:pid, for people
    progress    json,                       -- on the target: what has been copied
    started_at  timestamptz not null default clock_timestamp(),
    beat_at     timestamptz not null default clock_timestamp()
);

-- Leases that still held workflows of a slot when it was retired here. If the slot comes back while such a lease lives,
-- the lease is ended first: its executor may have something to save that it wanted to save before the slot left.
create table {control}.departure (
    slot     int not null,
    lease_id uuid not null,
    primary key (slot, lease_id)
);

-- The trigger of a slot that is being copied: notes the keys of changed rows. Arguments: where, and the key's columns. With its
-- owner's rights, since executors may be another role.
create function {control}.note_changes() returns trigger language plpgsql security definer set search_path = pg_catalog as $$
begin
    if tg_op = 'INSERT' then
        execute format('insert into %s select %s from new_rows', tg_argv[0], tg_argv[1]);
    elsif tg_op = 'DELETE' then
        execute format('insert into %s select %s from old_rows', tg_argv[0], tg_argv[1]);
    else
        execute format('insert into %1$s select %2$s from old_rows union select %2$s from new_rows', tg_argv[0], tg_argv[1]);
    end if;
    return null;
end
$$;

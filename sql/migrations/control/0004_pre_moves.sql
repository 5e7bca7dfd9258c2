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

-- Note the keys of all rows of one table that change from now on. Statement triggers with plans of their own:
-- they cost a flush some microseconds. They have their owner's rights, since executors may be another role. The names
-- come quoted, or need no quotes.
create function {control}.capture_changes(slot text, changes text, name text, key text) returns void language plpgsql as $$
declare
    event text;
    source text;
begin
    execute format('create table if not exists %2$s.%3$s as select %4$s from %1$s.%3$s with no data', slot, changes, name, key);
    foreach event in array array['insert', 'update', 'delete'] loop
        source := case event
            when 'insert' then format('select %s from new_rows', key)
            when 'delete' then format('select %s from old_rows', key)
            else format('select %1$s from old_rows union all select %1$s from new_rows', key) end;
        execute format(
            'create or replace function %1$s.note_%2$s_%3$s() returns trigger language plpgsql security definer as '
            '$body$ begin insert into %1$s.%2$s %4$s; return null; end $body$', changes, name, event, source);
        execute format(
            'create or replace trigger move_%3$s after %3$s on %1$s.%2$s referencing %4$s '
            'for each statement execute function %5$s.note_%2$s_%3$s()', slot, name, event,
            case event
                when 'insert' then 'new table as new_rows'
                when 'delete' then 'old table as old_rows'
                else 'old table as old_rows new table as new_rows' end, changes);
    end loop;
end
$$;

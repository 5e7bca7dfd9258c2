-- Which migrations a database has, and what serializes those who apply them.

-- name: lock_migrations
-- Held to the end of the transaction: one migration at a time on a database, whoever applies it.
select pg_advisory_xact_lock(1526616327, 1)

-- name: set_lock_timeout
-- Until the end of the transaction; for this lock as for those that the migration itself needs.
select set_config('lock_timeout', $1, true)

-- name: has_control
-- Read from the catalog itself: within a transaction, to_regclass may answer from before a wait for an advisory lock.
select exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = '{control}' and c.relname = 'migration')

-- name: read_slot_schemas
-- The slots that lie in this database. Retired ones have another name.
select nspname::text from pg_namespace where nspname ~ '^wf_[0-9]{4,}$' order by nspname

-- name: read_migrations
select schema_name, version, name from {control}.migration

-- name: has_migration
select exists (select from {control}.migration where schema_name = $1 and version = $2::int)

-- name: note_migration
insert into {control}.migration (schema_name, version, name) values ($1, $2::int, $3)

-- name: share_migrations
-- Held to the end of the transaction: no migration is under way; what the next statement reads is what there is.
select pg_advisory_xact_lock_shared(1526616327, 1)

-- name: read_too_new
-- A migration that was applied when no process of a version before it was to run any more, and that ours does not know:
-- the newest known is $1 of the control schema, $2 of a slot.
select m.schema_name || ' has ' || lpad(m.version::text, 4, '0') || '_' || m.name from {control}.migration m
where m.name like 'post\_%' and m.version > case when m.schema_name = '{control}' then $1::int else $2::int end
order by m.schema_name, m.version limit 1

-- name: end_old_leases
-- Of executors that don't know this migration, and are dead ($4: or not). Waits for the flush that holds one; what follows
-- in this transaction is not seen by any that comes later.
delete from {control}.lease
where coalesce(case when $1 = '{control}' then control_known else slot_known end, 0) < $2::int
    and ($4::bool or beat_at < clock_timestamp() - make_interval(secs => $3::float8))

-- name: read_old_leases
select executor, version from {control}.lease
where coalesce(case when $1 = '{control}' then control_known else slot_known end, 0) < $2::int order by 1

-- name: has_moves
select exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = '{control}' and c.relname = 'move')

-- name: read_moving
-- What is being moved or split, on this shard.
select slot, source, target, state from {control}.move order by slot

-- name: name_holders
-- Who holds tables of a schema, for the message.
select distinct a.pid, coalesce(a.application_name, ''), left(coalesce(a.query, ''), 60)
from pg_locks l join pg_class c on c.oid = l.relation join pg_namespace n on n.oid = c.relnamespace
join pg_stat_activity a on a.pid = l.pid
where l.granted and n.nspname = $1 and l.pid <> pg_backend_pid() limit 5

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

-- What a shard says of itself, its copy of the shard map, and the fences of its slots.

-- name: prepare_lock
-- The lock is awaited for so long, and its transaction may be idle while the shards are built.
select set_config('lock_timeout', $1, true), set_config('idle_in_transaction_session_timeout', '0', true)

-- name: lock_cluster
-- Held by whoever initialises a cluster, on each shard in the order of their names, to the end of its transaction.
select pg_advisory_xact_lock(1526616327, 2)

-- name: count_twins
-- How many sessions with this application name are in this database: more than one if two DSNs lead to the same one.
select count(*) from pg_stat_activity where datname = current_database() and application_name = $1

-- name: read_encoding
select pg_encoding_to_char(encoding)::text from pg_database where datname = current_database()

-- name: has_cluster
-- Read from the catalog itself: within a transaction, to_regclass may answer from before a wait for an advisory lock.
select exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = '{control}' and c.relname = 'cluster')

-- name: read_cluster
select cluster_id, name, shard, slots, hash, hash_seed from {control}.cluster

-- name: write_cluster
-- Written once; the caller reads it again, since somebody may have been faster.
insert into {control}.cluster (cluster_id, name, shard, slots, hash, hash_seed)
values ($1::uuid, $2, $3, $4::int, $5, $6::bigint)
on conflict do nothing

-- name: read_shard_map
select slot, shard, epoch from {control}.shard_map order by slot

-- name: write_shard_map
-- A copy only ever moves to higher epochs, slot by slot.
insert into {control}.shard_map as known (slot, shard, epoch)
select * from unnest($1::int[], $2::text[], $3::bigint[])
on conflict (slot) do update set shard = excluded.shard, epoch = excluded.epoch where known.epoch < excluded.epoch

-- name: raise_fence
-- A new slot goes live here. The slot's own word is written once; only a move changes it.
insert into {slot}.fence (slot, shard, epoch, live) values ($1::int, $2, $3::bigint, true)
on conflict do nothing

-- name: read_fence
select slot, shard, epoch, live from {slot}.fence

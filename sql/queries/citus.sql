-- A Citus cluster: its nodes, where its catalog says that slots lie, and what every node's control schema has besides.
--
-- A node's control schema is the node's own: plain tables, which Citus knows nothing of. So a lease, its fence and its
-- notifications are as near to the rows as on any other shard. Slots are distributed schemas, which Citus may put on any node.

-- name: read_version
-- Nothing, if this database has no Citus.
select extversion::text from pg_extension where extname = 'citus'

-- name: read_nodes
-- The workers, and the coordinator if it holds slots, too; by group, which outlives the server that stands for it.
select n.groupid, n.nodename, n.nodeport from pg_dist_node n
where n.noderole = 'primary' and n.isactive and (n.groupid <> 0 or n.shouldhaveshards)
order by n.groupid

-- name: read_places
-- On which node each slot lies. One table says it for all: a schema's tables lie together.
select n.nspname::text, p.groupid
from pg_namespace n
join pg_class c on c.relnamespace = n.oid and c.relname = 'fence'
join pg_dist_shard s on s.logicalrelid = c.oid
join pg_dist_placement p on p.shardid = s.shardid
where n.nspname ~ '^wf_[0-9]{4,}$'
order by n.nspname

-- name: own_schemas
-- What is made from here on is this node's own.
select set_config('citus.enable_ddl_propagation', 'off', false)

-- name: slot_schemas
-- A schema that is made from here on is distributed, and its tables with it.
select set_config('citus.enable_ddl_propagation', 'on', false), set_config('citus.enable_schema_based_sharding', 'on', false)

-- name: guarded
-- Whether this is the database of a node whose control schema is in use.
select to_regproc('{control}.guard') is not null

-- name: own_slots
-- The slots that this node serves.
select m.slot from {control}.shard_map m join {control}.cluster c on c.shard = m.shard
where m.epoch > 0 order by m.slot

-- name: read_slot_notes
-- Which migrations the slots have, as the coordinator knows.
select schema_name, version, name from {control}.migration where schema_name <> '{control}'

-- name: write_slot_notes
insert into {control}.migration (schema_name, version, name)
select * from unnest($1::text[], $2::int[], $3::text[]) on conflict do nothing

-- name: move_schema
select citus_schema_move($1::regnamespace, $2, $3::int)

-- name: plan_rebalance
-- What Citus's own rebalancer would move: a row for each table.
select distinct table_name::text, targetname, targetport from get_rebalance_table_shards_plan()

-- name: guard
-- Last in every transaction on slots.
select {control}.guard($1::text::int[])

-- name: lock_leases
-- Waits for whatever is under way on this node under a lease, and holds up whatever would begin, to the end of the transaction.
select id from {control}.lease order by id for update

-- name: claiming_leases
select distinct lease_id from {slot}.claim

-- name: note_departures
-- As in moves.sql; in two statements, since one table is the node's own and the other one distributed.
insert into {control}.departure (slot, lease_id)
select $1::int, l.id from {control}.lease l where l.id = any($2::uuid[]) on conflict do nothing

-- name: pass_fence
-- The slot's own word on who serves it.
update {slot}.fence set shard = $1, epoch = $2::bigint, live = true where epoch <= $2::bigint

-- name: count_parked
-- As in fleet.sql, but never an estimate: a lower bound. The planner's statistics are of tables that Citus hides.
with sample as materialized (select status from {slot}.workflow limit $1::int + 1)
select count(*) filter (where status = 2), count(*) <= $1::int from sample

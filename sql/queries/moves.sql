-- Moving a slot: its record, the capture of its changes, the copy, the cut-over.
--
-- A move sees a slot's tables as the catalog shows them, so that a table added by a migration moves with the others.
-- Besides {slot} and {control}, these statements have {copy} (where the slot is put together on the target), {changes} (what changed
-- on the source since the copy began), {retired} (the slot's old tables on the source), and {table}, {columns}, {key} …

-- name: watch_moves
-- For executors, every few seconds: a number that grows with each change of this shard's copy of the map; the slots to
-- give back (a coordinator that was not heard of for $1 seconds asks for nothing); and on which timeline each shard is.
select (select coalesce(sum(epoch), 0)::bigint from {control}.shard_map),
    (select coalesce(array_agg(slot::text), '{}') from {control}.move
     where state = 'retired' or (state = 'draining' and beat_at > clock_timestamp() - make_interval(secs => $1::int))),
    (select coalesce(array_agg(concat_ws(' ', shard, system, number, term)), '{}') from {control}.timeline)

-- name: notify_moves
-- Executors look at once.
select pg_notify('sharded_wf_moves', '')

-- name: read_moves
select slot, id, source, target, epoch, state, coordinator, runner, progress::text,
    extract(epoch from clock_timestamp() - beat_at)::float8
from {control}.move order by slot

-- name: plan_move
insert into {control}.move (slot, id, source, target, epoch, state, coordinator, runner)
values ($1::int, $2::uuid, $3, $4, $5::bigint, $6, $7::uuid, $8)
on conflict do nothing

-- name: take_move
-- Become the coordinator. Waits for the transaction in which the old one holds the row.
update {control}.move set coordinator = $3::uuid, runner = $4, beat_at = clock_timestamp()
where slot = $1::int and id = $2::uuid

-- name: hold_move
-- First in every transaction of a move: whoever was replaced changes nothing any more.
select state from {control}.move where slot = $1::int and id = $2::uuid and coordinator = $3::uuid for share

-- name: beat_move
update {control}.move set beat_at = clock_timestamp() where slot = $1::int and id = $2::uuid and coordinator = $3::uuid

-- name: advance_move
update {control}.move set state = $4, beat_at = clock_timestamp()
where slot = $1::int and id = $2::uuid and coordinator = $3::uuid and state = any($5::text[])
returning state

-- name: note_progress
update {control}.move set progress = $4::json, beat_at = clock_timestamp()
where slot = $1::int and id = $2::uuid and coordinator = $3::uuid

-- name: remove_move
delete from {control}.move where slot = $1::int and id = $2::uuid

-- name: end_coordinator
-- The sessions of a coordinator that is replaced: one that froze inside a transaction would keep its locks.
select pg_terminate_backend(pid) from pg_stat_activity
where application_name like $1 || '%' and usename = current_user and pid <> pg_backend_pid()

-- name: backend
select pg_backend_pid()

-- name: look_at_backend
-- What a session has waited for: 'client' (it has nothing to do), 'standby' (at a commit), or something else; and for
-- how many seconds it has done so, or has been busy.
select case when state like 'idle%' then 'client' when wait_event = 'SyncRep' then 'standby' else '' end,
    extract(epoch from clock_timestamp() - state_change)::float8
from pg_stat_activity where pid = $1::int

-- name: set_settings
-- How rows are written as text is the same on both sides; copies go by the primary keys; nothing waits for long.
select set_config('enable_seqscan', 'off', false), set_config('enable_hashjoin', 'off', false),
    set_config('enable_mergejoin', 'off', false), set_config('jit', 'off', false),
    set_config('client_encoding', 'UTF8', false), set_config('datestyle', 'ISO', false),
    set_config('timezone', 'UTC', false), set_config('intervalstyle', 'postgres', false),
    set_config('extra_float_digits', '1', false), set_config('bytea_output', 'hex', false),
    set_config('lock_timeout', $1, false), set_config('idle_in_transaction_session_timeout', $2, false)

-- name: set_switch_timeouts
-- The second bounds what each lock alone would not: `lock table` waits for one table after the other.
select set_config('lock_timeout', $1, true), set_config('statement_timeout', $2, true),
    set_config('idle_in_transaction_session_timeout', $3, true)

-- name: set_local_timeouts
select set_config('lock_timeout', $1, true), set_config('idle_in_transaction_session_timeout', $2, true)

-- name: allow_hash_joins
-- The keys that are left out have no index.
select set_config('enable_hashjoin', 'on', true)

-- name: read_schemas
-- Every schema of this slot in this database: the live one, the copy, the changes, what was retired.
select nspname::text from pg_namespace where nspname = $1 or nspname like $1 || '\_%' order by nspname

-- name: read_columns
-- The tables of a schema and their stored columns in order; position in the primary key, from 1, or null.
select c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod),
    array_position(i.indkey::int2[], a.attnum) - array_lower(i.indkey::int2[], 1) + 1
from pg_class c join pg_namespace n on n.oid = c.relnamespace
join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
left join pg_index i on i.indrelid = c.oid and i.indisprimary
where n.nspname = $1 and c.relkind = 'r' order by c.relname, a.attnum

-- name: estimate_rows
select coalesce(sum(n_live_tup), 0)::bigint from pg_stat_user_tables where schemaname = $1 and relname <> 'fence'

-- name: slot_sizes
-- How much room slots take on disk, in bytes.
select n.nspname::text, sum(pg_total_relation_size(c.oid))::bigint
from pg_namespace n join pg_class c on c.relnamespace = n.oid and c.relkind = 'r'
where n.nspname = any($1::text[]) group by 1

-- name: read_versions
select array_agg(concat_ws(' ', version, name) order by version) from {control}.migration where schema_name = $1

-- name: rename_migrations
update {control}.migration set schema_name = $2 where schema_name = $1

-- name: forget_migrations
delete from {control}.migration where schema_name = $1

-- name: drop_schema
drop schema if exists {schema} cascade

-- name: create_changes
create schema if not exists {changes}

-- name: capture_changes
-- The keys of rows that changed, again and again perhaps.
select {control}.capture_changes('{slot}', '{changes}', '{table}', '{key}')

-- name: drop_triggers
drop trigger if exists move_{event} on {slot}.{table}

-- name: chunk_end
-- The key of the last row of the next chunk; none: the rest of the table is shorter.
select {key_text} from {slot}.{table} where {after} order by {key} offset $1::int limit 1

-- name: copy_chunk
copy (select {columns} from {slot}.{table} where {after} and {until}) to stdout (format binary)

-- name: fill
copy {copy}.{table} ({columns}) from stdin (format binary)

-- name: count_changes
select count(*) from (select from {changes}.{table} limit 100000) counted

-- name: all_changed_keys
select {list}

-- name: changed_keys
-- A part of the above: the keys of one table as rows of text; null: none.
(select array_agg(array[{key_names}]) from (select distinct {key_text} from {changes}.{table}) k)

-- name: copy_changed_keys
copy (select distinct {key} from {changes}.{table}) to stdout (format binary)

-- name: copy_changed_rows
copy (select {t_columns} from (select distinct {key} from {changes}.{table}) k
    join {slot}.{table} t on {k_is_t}) to stdout (format binary)

-- name: forget_changes
delete from {changes}.{table}

-- name: create_keys
create temporary table if not exists move_{table} on commit delete rows as select {key} from {copy}.{table} with no data

-- name: fill_keys
copy move_{table} ({key}) from stdin (format binary)

-- name: delete_changed
delete from {copy}.{table} t using unnest({key_arrays}) k ({key}) where {k_is_t}

-- name: analyze
analyze {copy}.{table}

-- name: checksum
-- Count and checksum of a table, without the rows whose keys are listed as changed.
select count(*), coalesce(sum(('x' || substr(md5(row({columns})::text), 1, 15))::bit(60)::bigint), 0)::text
from {slot}.{table} t where {unchanged}

-- name: lock_slot
lock table {list} in access exclusive mode

-- name: count_claims
select count(*) from {slot}.claim

-- name: note_departures
insert into {control}.departure (slot, lease_id)
select distinct $1::int, c.lease_id from {slot}.claim c join {control}.lease l on l.id = c.lease_id
on conflict do nothing

-- name: give_back_all
-- Whatever is still claimed when the slot is locked: nobody is blamed for it.
with gone as (
    delete from {slot}.claim returning id, workflow_ids),
given as (
    update {slot}.workflow w set status = 0, claim_id = null
    where w.id = any(array(select unnest(gone.workflow_ids) from gone)) and w.status = 1
        and w.claim_id = any(array(select gone.id from gone))
    returning w.capability, w.queue, w.priority, w.id, w.deaths)
insert into {slot}.ready (capability, queue, priority, enqueued_at, id)
select case when deaths > 1 then '!' else '~' end || capability, queue, priority, clock_timestamp(), id from given

-- name: lower_fence
update {slot}.fence set live = $1 where epoch < $2::bigint

-- name: rise_fence
insert into {slot}.fence (slot, shard, epoch, live) values ($1::int, $2, $3::bigint, true)

-- name: rename_schema
alter schema {schema} rename to {name}

-- name: end_departed
-- Before the slot comes back: see `departure`. Waits for the flush that holds the lease.
delete from {control}.lease where id in (select lease_id from {control}.departure where slot = $1::int)

-- name: forget_departures
delete from {control}.departure where slot = $1::int

-- name: may_make_schemas
select has_database_privilege(current_database(), 'create')

-- name: count_leases
select count(*) from {control}.lease

-- name: lock_members
-- No move can begin here meanwhile, and users' open transactions have left what they ask for.
lock table {control}.move, {control}.request in access exclusive mode

-- name: has_requests
select exists (select from {control}.request)

-- name: drop_control
drop schema {control} cascade

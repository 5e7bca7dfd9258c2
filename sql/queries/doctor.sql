-- Examining a shard. Everything here only reads, within a transaction that is read-only and has a statement_timeout; nothing
-- needs a superuser. What other roles may not see (sessions of other roles, the state of standbys) is null, or says
-- '<insufficient privilege>', and the role pg_monitor sees it. Columns are those that PostgreSQL 14 to 18 have in common.

-- name: set_bounds
-- For the transaction. Fixed names, whatever the database's defaults.
select set_config('statement_timeout', $1, true), set_config('lock_timeout', $2, true)

-- name: read_clock
-- In microseconds since 1970.
select (extract(epoch from clock_timestamp()) * 1000000)::bigint

-- name: read_server
select pg_is_in_recovery(), current_database()::text, current_user::text

-- name: read_settings
select name, setting, coalesce(unit, ''), source from pg_settings where name = any($1::text[])

-- name: read_pending_restart
select name, setting from pg_settings where pending_restart order by name

-- name: read_checkpoints
-- Since when, on schedule, requested. (In a view of their own from 17 on, so by the functions.)
select extract(epoch from clock_timestamp() - pg_stat_get_bgwriter_stat_reset_time())::float8,
    pg_stat_get_bgwriter_timed_checkpoints(), pg_stat_get_bgwriter_requested_checkpoints()

-- name: read_checkpoints_17
select extract(epoch from clock_timestamp() - stats_reset)::float8, num_timed, num_requested from pg_stat_checkpointer

-- name: read_wal_bytes
-- Written since the statistics began.
select wal_bytes::float8 from pg_stat_wal

-- name: read_beats
-- The leases, with how far their last beat lies back by the server's clock; the beat is dated by the executor's.
select id::text, beat, extract(epoch from clock_timestamp() - beat_at)::float8 from {control}.lease

-- name: read_tables
-- The tables of our slots: live and dead rows as the statistics have it, bytes of the table and of its indexes, whether
-- the executors vacuum it (autovacuum is off).
select n.nspname::text, c.relname::text, coalesce(s.n_live_tup, 0), coalesce(s.n_dead_tup, 0),
    coalesce(pg_relation_size(c.oid), 0), coalesce(pg_indexes_size(c.oid), 0),
    coalesce('autovacuum_enabled=off' = any(c.reloptions), false)
from pg_class c join pg_namespace n on n.oid = c.relnamespace
left join pg_stat_all_tables s on s.relid = c.oid
where c.relkind = 'r' and n.nspname = any($1::text[])

-- name: read_wraparound
-- Every database of the server: one of them that is not vacuumed stops them all.
select datname::text, age(datfrozenxid)::bigint, mxid_age(datminmxid)::bigint, datname = current_database(), datallowconn
from pg_database order by 2 desc

-- name: read_transactions
-- Sessions of this database that are in a transaction. VACUUM holds back nobody. (Sessions of other roles have no state.)
select a.pid, coalesce(a.usename, '')::text, a.application_name, coalesce(a.state, ''),
    extract(epoch from clock_timestamp() - a.xact_start)::float8,
    extract(epoch from clock_timestamp() - a.state_change)::float8,
    left(regexp_replace(a.query, '\s+', ' ', 'g'), 60), coalesce(greatest(age(a.backend_xmin), age(a.backend_xid)), 0)
from pg_stat_activity a
where a.datname = current_database() and a.pid <> pg_backend_pid() and a.backend_type = 'client backend'
    and a.xact_start is not null and not (a.state = 'active' and a.query ~* '^\s*vacuum')
order by a.xact_start

-- name: count_hidden_sessions
select count(*) from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid() and query = '<insufficient privilege>'

-- name: read_prepared
select gid, owner::text, database::text, extract(epoch from clock_timestamp() - prepared)::float8, age(transaction)
from pg_prepared_xacts order by prepared

-- name: read_blocked
-- Who waits for a lock, for how long, and for whom.
select w.pid, coalesce(w.application_name, ''), left(regexp_replace(w.query, '\s+', ' ', 'g'), 60),
    extract(epoch from clock_timestamp() - w.query_start)::float8,
    array_agg(h.pid), array_agg(coalesce(a.application_name, '')), array_agg(coalesce(a.state, ''))
from pg_stat_activity w cross join lateral (select distinct unnest(pg_blocking_pids(w.pid))) h (pid)
left join pg_stat_activity a on a.pid = h.pid
where w.wait_event_type = 'Lock' and w.datname = current_database() and h.pid > 0
group by w.pid, w.application_name, w.query, w.query_start order by w.query_start

-- name: read_slots
-- Replication slots: how old a transaction they hold back vacuum for, how much WAL they keep.
select slot_name::text, slot_type, active, coalesce(wal_status, ''),
    coalesce(greatest(age(xmin), age(catalog_xmin)), 0),
    coalesce(pg_wal_lsn_diff(
        case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end, restart_lsn), 0)::float8
from pg_replication_slots where not temporary order by 6 desc

-- name: read_standbys
-- Null state: this role may not look.
select coalesce(application_name, ''), coalesce(host(client_addr), 'local'), state, coalesce(sync_state, ''),
    coalesce(extract(epoch from replay_lag), 0)::float8,
    coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), coalesce(replay_lsn, flush_lsn, sent_lsn)), 0)::float8,
    coalesce(age(backend_xmin), 0)
from pg_stat_replication where not pg_is_in_recovery() order by 1

-- name: read_connections
-- Client sessions of the whole server by what they call themselves; a session of ours by its first word. (Of sessions of
-- other roles the kind is unknown; those that are in a database are clients.)
select case when application_name like 'sharded\_wf %' then 'sharded_wf' else coalesce(nullif(application_name, ''), '(no name)') end,
    count(*), count(*) filter (where datname = current_database()), count(*) filter (where usename = current_user)
from pg_stat_activity where datid is not null and coalesce(backend_type, 'client backend') = 'client backend'
group by 1 order by 2 desc

-- name: read_connection_limits
-- Of the server, less what is reserved (the second from 16 on); of this database, of this role; -1: none.
select current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
        - coalesce(current_setting('reserved_connections', true), '0')::int,
    (select datconnlimit from pg_database where datname = current_database()),
    (select rolconnlimit from pg_roles where rolname = current_user)

-- name: read_leftovers
-- Schemas of moves: copies, notes of changes, what was retired.
select nspname::text from pg_namespace where nspname ~ '^wf_[0-9]{4,}_(incoming|changes|retired)_[0-9]+$' order by 1

-- name: read_capturing
-- Slots whose tables note their changes for a move.
select distinct n.nspname::text from pg_trigger t join pg_class c on c.oid = t.tgrelid
join pg_namespace n on n.oid = c.relnamespace
where t.tgname in ('move_insert', 'move_update', 'move_delete') and n.nspname ~ '^wf_[0-9]{4,}$' order by 1

-- name: read_indexes
-- Of the control schema and the slots, by name; whether each can be used; what makes it, as a constraint or by itself.
select n.nspname::text, t.relname::text, i.relname::text, x.indisvalid and x.indisready,
    pg_get_constraintdef(k.oid), pg_get_indexdef(i.oid)
from pg_index x join pg_class i on i.oid = x.indexrelid join pg_class t on t.oid = x.indrelid
join pg_namespace n on n.oid = t.relnamespace
left join pg_constraint k on k.conindid = i.oid and k.contype in ('p', 'u')
where n.nspname = any($1::text[]) order by 1, 2, 3

-- name: read_leading_columns
-- The first column of each index of a slot, and its table.
select i.relname::text, a.attname::text, t.relname::text
from pg_index x join pg_class i on i.oid = x.indexrelid join pg_class t on t.oid = x.indrelid
join pg_attribute a on a.attrelid = i.oid and a.attnum = 1
join pg_namespace n on n.oid = t.relnamespace where n.nspname = $1

-- name: count_parameters
select coalesce(array_length(parameter_types, 1), 0) from pg_prepared_statements where name = $1

-- name: count_orphaned
-- Claims that no lease stands behind, and since when.
select count(*), coalesce(sum(cardinality(c.workflow_ids)), 0)::bigint,
    extract(epoch from clock_timestamp() - min(c.claimed_at))::float8
from {slot}.claim c where c.lease_id <> all(array(select l.id from {control}.lease l))

-- name: count_suspects
-- Those that wait to be run alone, up to $1 of them.
select count(*), extract(epoch from clock_timestamp() - min(enqueued_at))::float8, (array_agg(id))[1:3]
from (select enqueued_at, id from {slot}.ready where capability >= '!' and capability < '"' limit $1::int) waiting

-- name: count_overdue
-- Timers that came due more than $1 seconds ago, up to $2 of them.
select count(*), extract(epoch from clock_timestamp() - min(due_at))::float8
from (select due_at from {slot}.timer where due_at < clock_timestamp() - make_interval(secs => $1::float8)
    order by due_at limit $2::int) late

-- name: count_outgoing
-- Messages to other slots that were sent more than $1 seconds ago, among the first $2.
select count(*), extract(epoch from clock_timestamp() - min(sent_at))::float8, (array_agg(receiver))[1:3]
from (select sent_at, receiver from {slot}.outbox order by receiver, topic, sender, seq limit $2::int) waiting
where sent_at < clock_timestamp() - make_interval(secs => $1::float8)

-- name: read_quarantined
-- Of the last $1 seconds.
select workflow_id, extract(epoch from clock_timestamp() - failed_at)::float8 from {slot}.failed
where failed_at > clock_timestamp() - make_interval(secs => $1::float8) and status = 6 order by failed_at desc limit $2::int

-- name: count_refused
select count(*), (array_agg(error order by id desc))[1] from (select id, error from {control}.request_refused limit $1::int) r

-- name: estimate_workflows
-- Rows of `workflow` in every slot, as the statistics have it.
select n.nspname::text, greatest(c.reltuples, s.n_live_tup, 0)::bigint
from pg_class c join pg_namespace n on n.oid = c.relnamespace left join pg_stat_all_tables s on s.relid = c.oid
where c.relname = 'workflow' and n.nspname = any($1::text[])

-- name: count_parked
-- Those that wait, by capability and queue: whoever wakes will need an executor. $1: how much of the table is read, in percent.
select capability, queue, count(*), (array_agg(id))[1:3]
from {slot}.workflow tablesample system ($1::float4) where status = 2 group by capability, queue

-- name: read_activity
-- For `top`: what was done in every slot since the statistics began (workflows started, claimed or ended, steps
-- recorded), and how large it is. As counters of whole tables; the difference of two looks is the load.
select n.nspname::text,
    coalesce(sum(pg_stat_get_tuples_inserted(c.oid)) filter (where c.relname = 'workflow'), 0)::bigint,
    coalesce(sum(pg_stat_get_tuples_updated(c.oid)) filter (where c.relname = 'workflow'), 0)::bigint,
    coalesce(sum(pg_stat_get_tuples_inserted(c.oid)) filter (where c.relname in ('step', 'attempt')), 0)::bigint,
    coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind = 'r' and n.nspname = any($1::text[]) group by 1

-- name: sample_load
-- For `top`: the workflows that a slot was busy with, by queue and hash tag: created within $1 seconds, running now, ready now;
-- of each kind at most $2. The tag is the routing key, if the ID has one: what stands between the first { and the next }.
select kind, queue, substring(id from '^[^{]*\{([^}]+)\}'), count(*) from (
    (select 0 as kind, queue, id from {slot}.workflow
        where created_at > clock_timestamp() - make_interval(secs => $1::float8) order by created_at desc limit $2::int)
    union all
    (select 1, w.queue, w.id from {slot}.claim c cross join unnest(c.workflow_ids) held (id)
        join {slot}.workflow w on w.id = held.id and w.claim_id = c.id and w.status = 1 limit $2::int)
    union all
    (select 2, queue, id from {slot}.ready limit $2::int)) busy
group by 1, 2, 3

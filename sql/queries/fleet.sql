-- What a shard holds and who works on it, for `shards status`. Nothing here reads more than a bounded number of rows,
-- however long the history is.

-- name: ping
select 1

-- name: read_writable
-- Whether transactions are read-only here, for how many seconds a commit has waited for a synchronous standby (of this
-- role's sessions: of others it may not know), and which are meant.
select current_setting('default_transaction_read_only') = 'on',
    coalesce((select max(extract(epoch from clock_timestamp() - query_start))
        from pg_stat_activity where datname = current_database() and wait_event = 'SyncRep'), 0)::float8,
    current_setting('synchronous_standby_names')

-- name: read_executors
-- (By way of JSON, so that it can be read before the migration that adds the last two columns.)
select id::text, executor, greatest(extract(epoch from clock_timestamp() - beat_at), 0)::float8,
    extract(epoch from clock_timestamp() - started_at)::float8, idle, isolated, capabilities, queues, version,
    coalesce(to_jsonb(l) ->> 'control_known', '0')::int, coalesce(to_jsonb(l) ->> 'slot_known', '0')::int
from {control}.lease l order by executor, started_at

-- name: count_backlog
-- Ready workflows by capability and queue: the pairs by a loose index scan (at most $1), of each at most $2 rows counted.
-- The capability comes without the mark of its lane.
with recursive pair as (
    (select capability, queue, 1 as number from {slot}.ready order by capability, queue limit 1)
    union all
    select next.capability, next.queue, pair.number + 1 from pair cross join lateral (
        select r.capability, r.queue from {slot}.ready r
        where (r.capability, r.queue) > (pair.capability, pair.queue)
        order by r.capability, r.queue limit 1) next
    where pair.number < $1::int)
select ltrim(pair.capability, '~!'), pair.queue,
    (select count(*) from (select from {slot}.ready r
        where r.capability = pair.capability and r.queue = pair.queue limit $2::int) counted)
from pair

-- name: count_running
-- What is claimed now: bounded by what the executors hold.
select count(*) from {slot}.claim c cross join unnest(c.workflow_ids) held (id)
join {slot}.workflow w on w.id = held.id and w.claim_id = c.id and w.status = 1

-- name: count_parked
-- Exact while the slot has at most $1 workflows; beyond, an estimate from the planner's statistics, since no index knows
-- the status (it changes) and the history has no bound. Null: there are no statistics yet.
with sample as materialized (select status from {slot}.workflow limit $1::int + 1),
seen as (select count(*) <= $1::int as all_of_it, count(*) filter (where status = 2) as parked from sample)
select case when seen.all_of_it then seen.parked else (
        select (greatest(c.reltuples, 0) * coalesce(v.frequency, 0))::bigint
        from pg_stats s
        join pg_class c on c.oid = '{slot}.workflow'::regclass
        left join lateral unnest(s.most_common_vals::text::int[], s.most_common_freqs) v (status, frequency) on v.status = 2
        where s.schemaname = '{slot}' and s.tablename = 'workflow' and s.attname = 'status')
    end, seen.all_of_it
from seen

-- name: count_open
-- For `versions`: every workflow that has not ended, by capability, queue and status, and since when the oldest. It reads the
-- whole table, because no index knows the status (it changes), and an estimate would not do: one parked workflow is enough to
-- keep the last executor of its version.
select capability, queue, status, count(*), extract(epoch from clock_timestamp() - min(created_at))::float8
from {slot}.workflow where status < 3 group by capability, queue, status

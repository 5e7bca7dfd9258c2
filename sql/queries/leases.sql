-- Leases: the right of one incarnation of an executor to run the workflows of this shard.

-- name: take_lease
insert into {control}.lease (id, executor, isolated, capabilities, queues, version, started_at, beat_at,
    control_known, slot_known)
values ($1::uuid, $2, $3, $4::text[], $5::text[], $6, $7::timestamptz, $7::timestamptz, $8::int, $9::int)

-- name: fence
select {control}.fence($1::uuid)

-- name: beat
-- One statement keeps the lease and observes the others: a lease whose beat stands still is dead.
with mine as (
    update {control}.lease set beat = beat + 1, beat_at = $2::timestamptz where id = $1::uuid returning id)
select l.id, l.beat, l.executor, exists (select from mine) from {control}.lease l

-- name: set_idle
update {control}.lease set idle = $2 where id = $1::uuid

-- name: mark_flush
-- Tells, after an answer that was lost, whether the flush with this number was committed.
insert into {control}.flush (lease_id, number) values ($1::uuid, $2::bigint)

-- name: read_flush
select 1 from {control}.flush where lease_id = $1::uuid and number = $2::bigint

-- name: forget_flushes
delete from {control}.flush where lease_id = $1::uuid and number < $2::bigint

-- name: end_lease
-- A takeover deletes the row, which waits for, or beats, the flush under way. Only if its beat still stands where it was seen.
delete from {control}.lease where id = $1::uuid and beat = $2::bigint

-- name: leave
-- The owner's own goodbye.
delete from {control}.lease where id = $1::uuid

-- name: forget_all_flushes
delete from {control}.flush where lease_id = $1::uuid

-- name: end_lease_holders
-- A frozen executor can hold its lease's row in an unfinished pipeline, where the server's own timeouts don't fire. Ends
-- whoever a takeover's `end_lease` waits for.
select pg_terminate_backend(holder.pid)
from pg_stat_activity waiting cross join lateral unnest(pg_blocking_pids(waiting.pid)) holder (pid)
where waiting.wait_event_type = 'Lock' and waiting.datname = current_database()
    and waiting.query like 'delete from {control}.lease where id = $1::uuid and beat%'

-- name: notify_if_idle
-- Wake executors that have said they sleep. Within the transaction that starts work, and once more after its commit: an
-- executor that fell asleep between the two sees either the notification or the work.
select pg_notify('sharded_wf_ready', $1) where exists (select from {control}.lease where idle)

-- name: notify_wakes
select pg_notify('sharded_wf_wake', $1)

-- name: notify_waiters
select pg_notify(channel, $1) from {control}.waiter where expires_at > $2::timestamptz

-- name: wait_for_results
insert into {control}.waiter (channel, expires_at) values ($1, $2::timestamptz)
on conflict (channel) do update set expires_at = excluded.expires_at

-- name: stop_waiting
delete from {control}.waiter where channel = $1 or expires_at < $2::timestamptz

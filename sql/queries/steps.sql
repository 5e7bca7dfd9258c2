-- Recorded results. Rows are only ever inserted.

-- name: record_steps
insert into {slot}.step (workflow_id, place, ordinal, kind, name, fingerprint, output, error, started_at, completed_at)
select * from unnest($1::text[], $2::int[], $3::int[], $4::smallint[], $5::text[], $6::bigint[], $7::json[], $8::json[],
    $9::timestamptz[], $10::timestamptz[])

-- name: record_attempts
insert into {slot}.attempt (workflow_id, place, attempt, error, started_at, failed_at, retry_at)
select * from unnest($1::text[], $2::int[], $3::int[], $4::json[], $5::timestamptz[], $6::timestamptz[], $7::timestamptz[])

-- name: forget_run
-- The history of workflows that continue as new: in one transaction with the first entry of the next run. Outcomes of children,
-- and news of events, that the run did not wait for go too: nobody will ask for them.
with attempts as (
    delete from {slot}.attempt where workflow_id = any($1::text[])),
beats as (
    delete from {slot}.heartbeat where workflow_id = any($1::text[])),
told as (
    delete from {slot}.message where workflow_id = any($1::text[]) and topic in ('$outcome', '$event'))
delete from {slot}.step where workflow_id = any($1::text[])

-- name: read_steps
-- The histories of workflows that ran before, in the order in which their code received them.
select workflow_id, place, ordinal, kind, name, fingerprint, output, error, started_at, completed_at
from {slot}.step where workflow_id = any($1::text[]) order by workflow_id, ordinal

-- name: save_heartbeats
-- One row a step, written over. Only the owner of a workflow writes its rows.
insert into {slot}.heartbeat as h (workflow_id, place, attempt, beat_at, next_at, details)
select * from unnest($1::text[], $2::int[], $3::int[], $4::timestamptz[], $5::timestamptz[], $6::json[])
on conflict (workflow_id, place) do update
    set attempt = excluded.attempt, beat_at = excluded.beat_at, next_at = excluded.next_at, details = excluded.details

-- name: read_attempts
-- Failed attempts, and last heartbeats, which have no `failed_at`; in one question, as most workflows have neither.
select workflow_id, place, attempt, error, started_at, failed_at, retry_at
from {slot}.attempt where workflow_id = any($1::text[])
union all
select workflow_id, place, attempt, details, beat_at, null, next_at
from {slot}.heartbeat where workflow_id = any($1::text[])
order by workflow_id, place, attempt

-- name: begin_transaction
-- The first statement of a transaction with the user's data: the lease's fence, and a mark that is gone when the
-- transaction has been ended by something else than us.
select {control}.fence($1::uuid), set_config('sharded_wf.transaction', $2, true)

-- name: record_transaction
-- The last one: the step's row, if this is still the transaction that was begun, and the claim still holds the
-- workflow. What the commit itself waits for (deferred constraints) is waited for no longer than $12 milliseconds.
insert into {slot}.step (workflow_id, place, ordinal, kind, name, fingerprint, output, started_at, completed_at)
select w.id, $2::int, $3::int, $4::smallint, $5, $6::bigint, $7::json, $8::timestamptz, $9::timestamptz
from {slot}.workflow w
where w.id = $1 and w.claim_id = $10::uuid and w.status = 1 and current_setting('sharded_wf.transaction', true) = $11
returning set_config('lock_timeout', $12, true)

-- name: read_step
-- Whether a step is recorded: after an answer that was lost.
select 1 from {slot}.step where workflow_id = $1 and place = $2::int

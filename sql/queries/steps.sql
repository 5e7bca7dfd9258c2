-- Recorded results. Rows are only ever inserted.

-- name: record_steps
insert into {slot}.step (workflow_id, place, ordinal, kind, name, fingerprint, output, error, started_at, completed_at)
select * from unnest($1::text[], $2::int[], $3::int[], $4::smallint[], $5::text[], $6::bigint[], $7::json[], $8::json[],
    $9::timestamptz[], $10::timestamptz[])

-- name: record_attempts
insert into {slot}.attempt (workflow_id, place, attempt, error, started_at, failed_at, retry_at)
select * from unnest($1::text[], $2::int[], $3::int[], $4::json[], $5::timestamptz[], $6::timestamptz[], $7::timestamptz[])

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

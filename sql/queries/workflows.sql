-- Looking at workflows: for people and handles. Nothing here is on the hot path, and nothing counts a history.

-- name: read_workflow
select w.id, w.name, w.queue, w.priority, w.status, w.claims, w.deaths, w.created_at, w.started_at, w.completed_at,
    w.parent_id, coalesce(w.input, i.value), w.output, w.error,
    (select l.executor from {slot}.claim c join {control}.lease l on l.id = c.lease_id where c.id = w.claim_id and w.status = 1),
    exists (select from {slot}.message m where m.workflow_id = w.id and m.topic = '$pause')
from {slot}.workflow w left join {slot}.input i on i.workflow_id = w.id and w.input is null
where w.id = $1

-- name: list_workflows
-- Newest first, before a moment; by the one index that a list needs. Filters look at rows of that range only.
select id, name, queue, priority, status, claims, deaths, created_at, started_at, completed_at, parent_id,
    null::json, null::json, null::json, null::text, false
from {slot}.workflow
where created_at < $1::timestamptz and ($2::text is null or name = $2) and ($3::smallint is null or status = $3::smallint)
    and ($4::text is null or queue = $4)
order by created_at desc, id desc limit $5::int

-- name: list_failed
-- Those that ended badly, newest first, without a look at the others.
select w.id, w.name, w.queue, w.priority, w.status, w.claims, w.deaths, w.created_at, w.started_at, w.completed_at,
    w.parent_id, null::json, null::json, w.error, null::text, false
from {slot}.failed f join {slot}.workflow w on w.id = f.workflow_id
where f.failed_at < $1::timestamptz and ($2::text is null or w.name = $2)
    and ($3::smallint is null or f.status = $3::smallint) and ($4::text is null or w.queue = $4)
order by f.failed_at desc, f.workflow_id desc limit $5::int

-- Retention: finished workflows that are old enough go, with everything that hangs on them.
--
-- No index knows when a workflow ended (that changes), so the sweep walks `workflow_created` from a remembered place on, a
-- page at a time. What it finds it deletes by ID *and* moment of creation: another sweep may have been faster, and the ID
-- be in use again.

-- name: hold_retention
-- One executor of the shard at a time, on the server's clock. (A row and not a lock: behind a transaction-pooling proxy a
-- session's lock belongs to nobody.) Two that sweep at once would only do the same work twice.
update {control}.retention set holder = $1::uuid, until = clock_timestamp() + $2::int * interval '1 second'
where holder = $1::uuid or holder is null or until < clock_timestamp()

-- name: release_retention
update {control}.retention set holder = null, until = '-infinity' where holder = $1::uuid

-- name: find_old
-- A page of the walk: every row, and whether it may go. Cutoffs: of the workflow's name, else of its queue, else of all.
-- What still has messages on their way stays, since whoever has the ID next numbers its messages from 1 again; where more
-- wait than can be looked at, nothing goes. (An input that is null lies in `input`.)
with page as materialized (
    select w.created_at, w.id, w.parent_id, w.status, w.completed_at, w.queue, w.name,
        w.input is null as apart from {slot}.workflow w
    where (w.created_at, w.id) > ($1::timestamptz, $2) and w.created_at < $3::timestamptz
    order by w.created_at, w.id limit $4::int),
leaving as materialized (select o.sender from {slot}.outbox o limit 10001)
select created_at, id, parent_id, queue, name,
    status >= 3 and completed_at < coalesce(
        ($6::timestamptz[])[array_position($5::text[], name)],
        ($8::timestamptz[])[array_position($7::text[], queue)],
        $9::timestamptz)
    and (select count(*) from leaving) <= 10000
    and id not in (select sender from leaving), apart
from page order by created_at, id

-- name: find_unfinished_parents
-- A child is kept while the workflow that started it is unfinished, or may be resumed, because that one starts it again when
-- it is replayed.
-- A parent that is younger than the child is another workflow, which has the ID again, or a later run, which started others.
select distinct w.id from unnest($1::text[], $2::timestamptz[]) u (id, child_created_at)
join {slot}.workflow w on w.id = u.id
where w.status <> 3 and coalesce(w.started_at, w.created_at) <= u.child_created_at + interval '1 minute'

-- name: read_old
-- All that will go, as one JSON object a workflow, for the export. (`json_agg` keeps payloads as they are.) Attributes come
-- beside it, since SQL can't read their values.
select w.id, json_build_object(
    'id', w.id, 'name', w.name, 'queue', w.queue, 'priority', w.priority, 'status', w.status, 'parent_id', w.parent_id,
    'created_at', w.created_at, 'started_at', w.started_at, 'completed_at', w.completed_at, 'claims', w.claims,
    'input', coalesce(w.input, (select i.value from {slot}.input i where i.workflow_id = w.id)),
    'output', w.output, 'error', w.error,
    'steps', coalesce((select json_agg(json_build_object(
        'place', s.place, 'ordinal', s.ordinal, 'kind', s.kind, 'name', s.name, 'started_at', s.started_at,
        'completed_at', s.completed_at, 'output', s.output, 'error', s.error) order by s.ordinal)
        from {slot}.step s where s.workflow_id = w.id), '[]'),
    'attempts', coalesce((select json_agg(json_build_object(
        'place', a.place, 'attempt', a.attempt, 'started_at', a.started_at, 'failed_at', a.failed_at,
        'error', a.error) order by a.place, a.attempt)
        from {slot}.attempt a where a.workflow_id = w.id), '[]'),
    'heartbeats', coalesce((select json_agg(json_build_object(
        'place', h.place, 'attempt', h.attempt, 'beat_at', h.beat_at, 'next_at', h.next_at, 'details', h.details)
        order by h.place)
        from {slot}.heartbeat h where h.workflow_id = w.id), '[]'),
    'events', coalesce((select json_object_agg(e.key, e.value order by e.key)
        from {slot}.event e where e.workflow_id = w.id), '{}'))::text,
    (select json_agg(json_build_array(t.name, t.kind, t.value) order by t.name)
        from {slot}.attribute t where t.workflow_id = w.id)::text
from unnest($1::text[], $2::timestamptz[]) u (id, created_at)
join {slot}.workflow w on w.id = u.id and w.created_at = u.created_at and w.status >= 3 and w.completed_at < $3::timestamptz

-- name: delete_old_inputs
-- First of the two, if any has one; in ascending order of IDs: a start of the same ID that found the old input holds it
-- locked (`save_inputs`), and this waits for it. The workflows are locked before, so that none is resumed without its input.
with locked as materialized (
    select w.id from unnest($1::text[], $2::timestamptz[]) u (id, created_at) join {slot}.workflow w on w.id = u.id
    where w.created_at = u.created_at and w.status >= 3 and w.completed_at < $3::timestamptz
        and exists (select from {slot}.input i where i.workflow_id = w.id)
    order by w.id for update of w)
delete from {slot}.input i using locked where i.workflow_id = locked.id

-- name: delete_old
-- The rows of a finished workflow change only when it is resumed. If that comes first it is not finished here, or, if it
-- has ended once more, not before $3, the latest of the cutoffs. So one snapshot sees all that is deleted.
with gone as (
    delete from {slot}.workflow w using unnest($1::text[], $2::timestamptz[]) u (id, created_at)
    where w.id = u.id and w.created_at = u.created_at and w.status >= 3 and w.completed_at < $3::timestamptz
    returning w.id, w.status, w.completed_at),
these as materialized (
    select array_agg(id) as ids from gone),
steps as (
    delete from {slot}.step where workflow_id = any((select ids from these)::text[])),
attempts as (
    delete from {slot}.attempt where workflow_id = any((select ids from these)::text[])),
beats as (
    delete from {slot}.heartbeat where workflow_id = any((select ids from these)::text[])),
events as (
    delete from {slot}.event where workflow_id = any((select ids from these)::text[])),
unread as (
    delete from {slot}.message where workflow_id = any((select ids from these)::text[])),
found_by as (
    delete from {slot}.attribute where workflow_id = any((select ids from these)::text[])),
wakes as (
    delete from {slot}.wake where workflow_id = any((select ids from these)::text[])),
bad as (
    delete from {slot}.failed f using gone where gone.status > 3
        and f.failed_at = gone.completed_at and f.workflow_id = gone.id)
select count(*) from gone

-- name: estimate_rows
-- What the planner believes `workflow` holds; -1: nobody has looked yet.
select reltuples::bigint from pg_class where oid = '{slot}.workflow'::regclass

-- name: vacuum_history
-- After much was deleted. Autovacuum would let a fifth of the table die first.
vacuum (skip_locked, truncate off) {slot}.{table}

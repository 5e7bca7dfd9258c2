-- Starting workflows. Callers send the IDs of one statement in ascending order, so that two starts of the same IDs wait
-- for each other and never deadlock. An ID that exists is left alone; `read_starts` tells what it is.

-- name: save_inputs
-- Large inputs, in the same transaction as the start and before it. An input that is there is locked, so that it can't be
-- deleted with an old workflow between this and the start; one that was left without its workflow is replaced.
-- The start removes what it did not need (`unused`), since the deletion of the workflow that had the ID can't see it: only
-- here, while we hold its lock, is it certain that nobody else counts on it.
insert into {slot}.input as i (workflow_id, value)
select * from unnest($1::text[], $2::json[])
on conflict (workflow_id) do update set value = excluded.value
    where not exists (select from {slot}.workflow w where w.id = i.workflow_id)

-- name: start_inline
-- Workflows alike in everything but ID and input: the common case, and the cheapest.
with started as (
    insert into {slot}.workflow (id, input, name, capability, queue, priority, created_at, status)
    select u.id, u.input, $3, $4, $5, $6::smallint, $7::timestamptz, 0
    from unnest($1::text[], $2::json[]) u (id, input)
    on conflict (id) do nothing
    returning id)
insert into {slot}.ready (capability, queue, priority, enqueued_at, id)
select $4, $5, $6::smallint, $7::timestamptz, id from started

-- name: start_children
-- The same for children. Each has its parent: those of many parents go into one statement.
with started as (
    insert into {slot}.workflow (id, input, name, capability, queue, priority, parent_id, created_at, status)
    select u.id, u.input, $3, $4, $5, $6::smallint, u.parent_id, $8::timestamptz, 0
    from unnest($1::text[], $2::json[], $7::text[]) u (id, input, parent_id)
    on conflict (id) do nothing
    returning id)
insert into {slot}.ready (capability, queue, priority, enqueued_at, id)
select $4, $5, $6::smallint, $8::timestamptz, id from started

-- name: start_large
-- The same for those whose input is in `input`.
with started as (
    insert into {slot}.workflow (id, name, capability, queue, priority, parent_id, created_at, status)
    select u.id, $2, $3, $4, $5::smallint, u.parent_id, $7::timestamptz, 0
    from unnest($1::text[], $6::text[]) u (id, parent_id)
    on conflict (id) do nothing
    returning id),
unused as (
    delete from {slot}.input i where i.workflow_id = any(array(
        select u.id from unnest($1::text[]) u (id) except select id from started))
    and not exists (select from {slot}.workflow w where w.id = i.workflow_id and w.input is null))
insert into {slot}.ready (capability, queue, priority, enqueued_at, id)
select $3, $4, $5::smallint, $7::timestamptz, id from started

-- name: start_limited
-- With a deadline each. Inputs are in `input`.
with started as (
    insert into {slot}.workflow (id, deadline, name, capability, queue, priority, parent_id, created_at, status)
    select u.id, u.deadline, $3, $4, $5, $6::smallint, u.parent_id, $8::timestamptz, 0
    from unnest($1::text[], $2::timestamptz[], $7::text[]) u (id, deadline, parent_id)
    on conflict (id) do nothing
    returning id)
insert into {slot}.ready (capability, queue, priority, enqueued_at, id)
select $4, $5, $6::smallint, $8::timestamptz, id from started

-- name: start_delayed
-- Not before a moment: parked from the beginning, with a timer. Inputs are in `input`.
with started as (
    insert into {slot}.workflow (id, deadline, name, capability, queue, priority, parent_id, created_at, status)
    select u.id, u.deadline, $3, $4, $5, $6::smallint, u.parent_id, $8::timestamptz, 2
    from unnest($1::text[], $9::timestamptz[], $7::text[]) u (id, deadline, parent_id)
    on conflict (id) do nothing
    returning id),
unused as (
    delete from {slot}.input i where i.workflow_id = any(array(
        select u.id from unnest($1::text[]) u (id) except select id from started))
    and not exists (select from {slot}.workflow w where w.id = i.workflow_id and w.input is null))
insert into {slot}.timer (due_at, workflow_id)
select u.due_at, u.id from unnest($1::text[], $2::timestamptz[]) u (id, due_at) join started using (id)

-- name: start_stillborn
-- Cancelled before they ever ran: children that an executor which had their parent before may be about to start, and whose
-- parent has ended. Now nobody can. Their parent is told, as by any child (see `cancel_unclaimed`). Inputs are in `input`.
with started as (
    insert into {slot}.workflow
        (id, deadline, name, capability, queue, priority, parent_id, created_at, completed_at, status, claims, error)
    select u.id, u.deadline, $3, $4, $5, $6::smallint, $7, $8::timestamptz, $8::timestamptz, 5, 1, $9::json
    from unnest($1::text[], $2::timestamptz[]) u (id, deadline)
    on conflict (id) do nothing
    returning id),
unused as (
    delete from {slot}.input i where i.workflow_id = any(array(
        select u.id from unnest($1::text[]) u (id) except select id from started))
    and not exists (select from {slot}.workflow w where w.id = i.workflow_id and w.input is null)),
told as (
    insert into {slot}.outbox (receiver, topic, sender, seq, sent_at, payload)
    select $7, '$outcome', id, 1, $8::timestamptz, $10::json from started where $7 is not null)
insert into {slot}.failed (failed_at, workflow_id, status) select $8::timestamptz, id, 5 from started

-- name: read_starts
-- What exists under these IDs.
select w.id, w.name, w.created_at, coalesce(w.input, i.value), w.parent_id
from {slot}.workflow w left join {slot}.input i on i.workflow_id = w.id and w.input is null
where w.id = any($1::text[])

-- Events: the latest value that a workflow has set under a key, and who waits for it.
--
-- Nobody locks anything, and no wait is missed: a waiter commits its row in `event_waiter` and *then* looks for the event; the
-- setter commits the event, with a row in its own outbox, and *then* the relay looks for waiters. Whichever committed last
-- sees the other.

-- name: set_events
-- With the flush that records them; of each event the last one only. Only the owner of a workflow sets its events.
insert into {slot}.event (workflow_id, key, set_at, value)
select * from unnest($1::text[], $2::text[], $3::timestamptz[], $4::json[])
on conflict (workflow_id, key) do update set set_at = excluded.set_at, value = excluded.value

-- name: await_events
insert into {slot}.event_waiter (workflow_id, key, waiter)
select * from unnest($1::text[], $2::text[], $3::text[])
on conflict do nothing

-- name: forget_answered
-- Before `look_for_events`, which then sees all that this saw: who finds the event need not be told.
delete from {slot}.event_waiter v using unnest($1::text[], $2::text[], $3::text[]) u (workflow_id, key, waiter)
where v.workflow_id = u.workflow_id and v.key = u.key and v.waiter = u.waiter
    and exists (select from {slot}.event e where e.workflow_id = u.workflow_id and e.key = u.key)

-- name: look_for_events
-- What is set, and where the workflows stand that should set it (null: there is none).
select u.workflow_id, u.key, w.status, e.value from unnest($1::text[], $2::text[]) u (workflow_id, key)
left join {slot}.workflow w on w.id = u.workflow_id
left join {slot}.event e on e.workflow_id = u.workflow_id and e.key = u.key

-- name: read_event_waiters
-- Who is to be told of these events, which were set.
select v.workflow_id, v.key, v.waiter, e.set_at from unnest($1::text[], $2::text[]) u (workflow_id, key)
join {slot}.event e on e.workflow_id = u.workflow_id and e.key = u.key
join {slot}.event_waiter v on v.workflow_id = u.workflow_id and v.key = u.key

-- name: read_missed_waiters
-- Who is to be told and was not: the workflow has ended without the event, or is gone, or the news of the event was lost. A
-- bounded look, from where the last one ended; the flag says whether it is to be told.
select v.workflow_id, v.key, v.waiter, w.id is null or w.status >= 3
    or exists (select from {slot}.event e where e.workflow_id = v.workflow_id and e.key = v.key)
from {slot}.event_waiter v left join {slot}.workflow w on w.id = v.workflow_id
where (v.workflow_id, v.key, v.waiter) > ($1, $2, $3)
order by v.workflow_id, v.key, v.waiter limit $4::int

-- name: forget_event_waiters
-- They have been told.
delete from {slot}.event_waiter v using unnest($1::text[], $2::text[], $3::text[]) u (workflow_id, key, waiter)
where v.workflow_id = u.workflow_id and v.key = u.key and v.waiter = u.waiter

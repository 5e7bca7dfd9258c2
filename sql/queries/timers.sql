-- Parking, and coming due.

-- name: park
update {slot}.workflow w set status = 2, claim_id = null
from unnest($1::text[], $2::uuid[]) u (id, claim_id)
where w.id = u.id and w.claim_id = u.claim_id and w.status = 1

-- name: set_timers
insert into {slot}.timer (due_at, workflow_id)
select * from unnest($1::timestamptz[], $2::text[])
on conflict do nothing

-- name: wake_arrived
-- After `park`, in a statement of its own, so that it sees every message committed until now: whoever has one is ready
-- again at once. A message committed later finds the workflow parked, and its `wake` row wakes it.
-- (As an array: a join reads the whole index of `workflow` when it was planned on empty tables.)
with woken as (
    update {slot}.workflow w set status = 0
    where w.id = any(array(select k.workflow_id from {slot}.wake k where k.workflow_id = any($1::text[]))) and w.status = 2
    returning w.capability, w.queue, w.priority, w.id, w.deaths)
insert into {slot}.ready (capability, queue, priority, enqueued_at, id)
select case when deaths > 1 then '!' else '~' end || capability, queue, priority, $2::timestamptz, id from woken

-- name: fire_timers
-- What is due, a bounded number, in order. A timer whose workflow is not parked any more is only removed.
with due as (
    delete from {slot}.timer
    where ctid = any(array(
        select ctid from {slot}.timer where due_at <= $1::timestamptz
        order by due_at, workflow_id limit $2::int for update skip locked))
    returning workflow_id),
parked as (
    select w.id from {slot}.workflow w where w.id in (select workflow_id from due) and w.status = 2
    order by w.id for update),
woken as (
    update {slot}.workflow w set status = 0 from parked where w.id = parked.id and w.status = 2
    returning w.capability, w.queue, w.priority, w.id, w.deaths)
insert into {slot}.ready (capability, queue, priority, enqueued_at, id)
select case when deaths > 1 then '!' else '~' end || capability, queue, priority, $1::timestamptz, id from woken

-- Messages, and what wakes their receivers. Senders insert and never touch the receiver's row: no flush waits for a
-- stranger's transaction. Rows go in in primary-key order.

-- name: deliver_messages
-- To workflows that exist and have not succeeded (those that ended badly may be resumed, and find it then, unless it is one
-- of ours); a message that is already there, or was received, changes nothing. One that is older than its receiver was meant
-- for another workflow, which had the ID before (a minute is for clocks that differ).
-- The answer: receivers that do not exist.
with receiver as materialized (
    select w.id, w.status, w.created_at from {slot}.workflow w where w.id = any($1::text[])),
arrived as (
    insert into {slot}.message (workflow_id, topic, sender, seq, sent_at, payload)
    select u.* from unnest($1::text[], $2::text[], $3::text[], $4::int[], $5::timestamptz[], $6::json[])
        u (workflow_id, topic, sender, seq, sent_at, payload)
    join receiver r on r.id = u.workflow_id
    where (r.status < 3 or (r.status > 3 and left(u.topic, 1) <> '$')) and r.created_at <= u.sent_at + interval '1 minute'
    on conflict do nothing
    returning workflow_id),
announced as (
    insert into {slot}.wake (workflow_id, id)
    select workflow_id, gen_random_uuid() from (select distinct workflow_id from arrived) woken)
select distinct u.id from unnest($1::text[]) u (id) where u.id not in (select id from receiver)

-- name: deliver_with_start
-- The message that comes with a start: to the workflow of this name that has the ID, which may have been there before.
with arrived as (
    insert into {slot}.message (workflow_id, topic, sender, seq, sent_at, payload)
    select w.id, $3, $4, $5::int, $6::timestamptz, $7::json from {slot}.workflow w
    where w.id = $1 and w.name = $2 and w.status <> 3
    on conflict do nothing
    returning workflow_id)
insert into {slot}.wake (workflow_id, id) select workflow_id, gen_random_uuid() from arrived

-- name: read_messages
select workflow_id, topic, sender, seq, sent_at, payload
from {slot}.message where workflow_id = any($1::text[]) order by workflow_id, sent_at, sender, seq

-- name: consume_messages
delete from {slot}.message m
using unnest($1::text[], $2::text[], $3::text[], $4::int[]) u (workflow_id, topic, sender, seq)
where m.workflow_id = u.workflow_id and m.topic = u.topic and m.sender = u.sender and m.seq = u.seq

-- name: read_wakes
-- A bounded look, from where the last one ended. `unheld`: no executor has the workflow, nor will one claim it by itself.
select k.workflow_id, k.id, coalesce(w.status >= 2, true) as unheld
from (select workflow_id, id from {slot}.wake where workflow_id > $1 order by workflow_id, id limit $2::int) k
left join {slot}.workflow w on w.id = k.workflow_id
order by k.workflow_id, k.id

-- name: forget_wakes
-- By whoever acted on them.
delete from {slot}.wake w using unnest($1::text[], $2::uuid[]) u (workflow_id, id)
where w.workflow_id = u.workflow_id and w.id = u.id

-- name: forget_idle_wakes
-- Of workflows that have ended, or are gone: nobody will ever act on these, nor, if they succeeded or are gone, on what they
-- announce. And of those whose delayed start is still to come: they find their messages when they ask for them.
with idle as (
    select u.id, w.id is null or w.status = 3 as ended from unnest($1::text[]) u (id)
    left join {slot}.workflow w on w.id = u.id
    where w.id is null or w.status >= 3 or (w.status = 2 and w.claims = 0)),
unread as (
    delete from {slot}.message m using idle where m.workflow_id = idle.id and idle.ended)
delete from {slot}.wake k using idle where k.workflow_id = idle.id

-- name: clear_mailboxes
-- With the outcomes of workflows that had mail and succeeded. A delivery that was made twice may have put back what was received.
delete from {slot}.message where workflow_id = any($1::text[])

-- name: withdraw_requests
-- Requests that others of a workflow take the place of.
delete from {slot}.message where workflow_id = $1 and topic = any($2::text[])

-- name: wake_parked
-- Parked workflows go back to the queue, but not before a delayed start. Locks with SKIP LOCKED: a row that somebody
-- holds is being parked or woken.
with parked as (
    select w.id from {slot}.workflow w
    where w.id = any($1::text[]) and w.status = 2 and w.claims > 0 order by w.id for update skip locked),
woken as (
    update {slot}.workflow w set status = 0 from parked where w.id = parked.id and w.status = 2
    returning w.capability, w.queue, w.priority, w.id, w.deaths)
insert into {slot}.ready (capability, queue, priority, enqueued_at, id)
select case when deaths > 1 then '!' else '~' end || capability, queue, priority, $2::timestamptz, id from woken
returning id

-- name: fill_outbox
insert into {slot}.outbox (receiver, topic, sender, seq, sent_at, payload)
select * from unnest($1::text[], $2::text[], $3::text[], $4::int[], $5::timestamptz[], $6::json[])
on conflict do nothing

-- name: read_outbox
-- A bounded look from a receiver on, so that many messages for one that is away don't hide those for others.
select receiver, topic, sender, seq, sent_at, payload from {slot}.outbox
where sent_at <= $1::timestamptz and receiver > $3 order by receiver, topic, sender, seq limit $2::int

-- name: clear_outbox
delete from {slot}.outbox o
using unnest($1::text[], $2::text[], $3::text[], $4::int[]) u (receiver, topic, sender, seq)
where o.receiver = u.receiver and o.topic = u.topic and o.sender = u.sender and o.seq = u.seq

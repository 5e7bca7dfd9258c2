-- Statements of other files in words that Citus can plan: the same parameters, the same answer. Sessions to a node of a Citus
-- cluster use these in place of those of the same name; everywhere else they would be slower.
--
-- What Citus can't do, and how it is said instead:
--   * an INSERT … SELECT that reads a table of the slot in its own FROM or WHERE ("syntax error at or near NOT"): what it
--     reads is a CTE before it;
--   * one changing CTE that reads another's answer, when all of it is sent on at once ("cannot execute a distributed query from
--     a query on a shard"): a CTE that inserts from a CTE makes Citus take one after the other;
--   * the node's own tables joined to a slot's: as an array.

-- name: deliver_messages
with receiver as materialized (
    select w.id, w.status, w.created_at from {slot}.workflow w where w.id = any($1::text[])),
arrived as (
    insert into {slot}.message (workflow_id, topic, sender, seq, sent_at, payload)
    select u.* from unnest($1::text[], $2::text[], $3::text[], $4::int[], $5::timestamptz[], $6::json[])
        u (workflow_id, topic, sender, seq, sent_at, payload)
    where exists (select from receiver w where w.id = u.workflow_id
        and (w.status < 3 or (w.status > 3 and left(u.topic, 1) <> '$'))
        and w.created_at <= u.sent_at + interval '1 minute')
    on conflict do nothing
    returning workflow_id),
announced as (
    insert into {slot}.wake (workflow_id, id) select distinct workflow_id, gen_random_uuid() from arrived)
select distinct u.id from unnest($1::text[]) u (id)
where not exists (select from receiver w where w.id = u.id)

-- name: deliver_with_start
with receiver as materialized (
    select w.id from {slot}.workflow w where w.id = $1 and w.name = $2 and w.status <> 3),
arrived as (
    insert into {slot}.message (workflow_id, topic, sender, seq, sent_at, payload)
    select w.id, $3, $4, $5::int, $6::timestamptz, $7::json from receiver w
    on conflict do nothing
    returning workflow_id)
insert into {slot}.wake (workflow_id, id) select workflow_id, gen_random_uuid() from arrived

-- name: give_back_lease
with mine as (
    delete from {slot}.claim where lease_id = $1::uuid returning id, workflow_ids),
given as (
    update {slot}.workflow w set status = 0, claim_id = null
    where w.id = any(array(select unnest(mine.workflow_ids) from mine)) and w.status = 1
        and w.claim_id = any(array(select mine.id from mine))
    returning w.capability, w.queue, w.priority, w.id, w.deaths),
put as (
    insert into {slot}.ready (capability, queue, priority, enqueued_at, id)
    select case when deaths > 1 then '!' else '~' end || capability, queue, priority, $2::timestamptz, id from given)
select count(*) from given

-- name: give_back_all
-- (Of a slot that is handed over: reshard/citus.py.)
with gone as (
    delete from {slot}.claim returning id, workflow_ids),
given as (
    update {slot}.workflow w set status = 0, claim_id = null
    where w.id = any(array(select unnest(gone.workflow_ids) from gone)) and w.status = 1
        and w.claim_id = any(array(select gone.id from gone))
    returning w.capability, w.queue, w.priority, w.id, w.deaths),
put as (
    insert into {slot}.ready (capability, queue, priority, enqueued_at, id)
    select case when deaths > 1 then '!' else '~' end || capability, queue, priority, clock_timestamp(), id from given)
select count(*) from given

-- name: read_orphans
with orphan as materialized (
    select c.id, c.claimed_at, c.workflow_ids from {slot}.claim c
    where c.lease_id <> all(array(select l.id from {control}.lease l)) order by c.id limit 20),
held as materialized (
    select o.id as claim_id, unnest(o.workflow_ids) as id from orphan o)
select o.id, w.id, w.deaths, w.parent_id,
    exists (select from {slot}.step s where s.workflow_id = w.id and s.completed_at >= o.claimed_at)
    or exists (select from {slot}.attempt a where a.workflow_id = w.id and a.failed_at >= o.claimed_at)
from orphan o
left join (
    select w.* from held h join {slot}.workflow w on w.id = h.id and w.claim_id = h.claim_id and w.status = 1) w
    on w.claim_id = o.id
order by w.id

-- name: resume
with ended as materialized (
    select w.id, w.status, w.completed_at, w.error, w.claims from {slot}.workflow w
    where w.id = any($1::text[]) and w.status > 3 order by w.id for update),
mark as materialized (
    select e.id, e.status, e.error, e.completed_at, (
            select coalesce(max(s.ordinal), 0) from {slot}.step s where s.workflow_id = e.id) as last,
        coalesce((select json_agg(s.place) from {slot}.step s where s.workflow_id = e.id and (
            s.kind = 23
            or e.status = 5 and (s.kind = 5 or s.kind = 31 and (s.output ->> 'cancelled')::boolean)
            or s.place = any(array(select json_array_elements_text(e.error -> 'causes')::int)))), '[]') as void
    from ended e where e.claims > 0),
back as (
    update {slot}.workflow w set status = 0, claim_id = null, completed_at = null, error = null, deaths = 0,
        deadline = $2::timestamptz + (w.deadline - w.created_at)
    from ended e where w.id = e.id
    returning w.id, w.capability, w.queue, w.priority, w.claims),
unlisted as (
    delete from {slot}.failed f using ended e where f.failed_at = e.completed_at and f.workflow_id = e.id),
requests as (
    delete from {slot}.message m using ended e where m.workflow_id = e.id and m.topic >= '$' and m.topic < '%'),
noted as (
    insert into {slot}.step (workflow_id, place, ordinal, kind, name, fingerprint, output, error, started_at, completed_at)
    select m.id, -(m.last + 1), m.last + 1, 10, 'resume', 0,
        json_build_object('void', m.void, 'status', m.status, 'error', m.error), null, m.completed_at, $2::timestamptz
    from mark m)
insert into {slot}.ready (capability, queue, priority, enqueued_at, id)
select case when claims > 0 then '~' else '' end || capability, queue, priority, $2::timestamptz, id from back
returning id

-- name: delete_old
with gone as (
    delete from {slot}.workflow w using unnest($1::text[], $2::timestamptz[]) u (id, created_at)
    where w.id = u.id and w.created_at = u.created_at and w.status >= 3 and w.completed_at < $3::timestamptz
    returning w.id, w.status, w.completed_at),
steps as (
    delete from {slot}.step where workflow_id = any(array(select id from gone))),
attempts as (
    delete from {slot}.attempt where workflow_id = any(array(select id from gone))),
beats as (
    delete from {slot}.heartbeat where workflow_id = any(array(select id from gone))),
events as (
    delete from {slot}.event where workflow_id = any(array(select id from gone))),
unread as (
    delete from {slot}.message where workflow_id = any(array(select id from gone))),
found_by as (
    delete from {slot}.attribute where workflow_id = any(array(select id from gone))),
wakes as (
    delete from {slot}.wake where workflow_id = any(array(select id from gone))),
bad as (
    delete from {slot}.failed f using gone where gone.status > 3
        and f.failed_at = gone.completed_at and f.workflow_id = gone.id),
nothing as (
    insert into {slot}.wake (workflow_id, id) select id, gen_random_uuid() from gone where false)
select count(*) from gone

-- Statements of other files in words that Citus can plan: the same parameters, the same answer. Sessions to a node of a Citus
-- cluster use these in place of those of the same name; everywhere else they would be slower. Where one statement has become
-- several, `name__1`, … go before `name`, and those from `name__50` on after it, in one transaction; `name` answers. (What they
-- don't need of the parameters they mention all the same, so that each has its type.)
--
-- What Citus can't do:
--   * an INSERT … SELECT that reads a table of the slot ("syntax error at or near NOT"), unless in a CTE before it;
--   * such an INSERT within a CTE: what it reads is first copied to every node of the cluster, each of which must be up;
--   * top-level INSERTs from a chain of two changing CTEs ("cannot execute a distributed query from a query on a shard");
--   * ON CONFLICT DO UPDATE with a condition that reads a table; a STABLE function of a column in what an UPDATE sets;
--   * the node's own tables joined to a slot's, unless as an array.

-- name: claim__1
-- The claim first, with the workflows that it will take; they are locked.
with picked as materialized (
    select id from {slot}.ready
    where capability = $1 and queue = $2 and priority = $3::smallint and enqueued_at >= $4::timestamptz
    order by capability, queue, priority, enqueued_at, id
    limit $5::int for update skip locked)
insert into {slot}.claim (id, lease_id, claimed_at, workflow_ids)
select $6::uuid, $7::uuid, $8::timestamptz, array_agg(id) from picked having count(*) > 0

-- name: claim
with taken as (
    delete from {slot}.ready
    where ctid = any(array(
        select ctid from {slot}.ready
        where capability = $1 and queue = $2 and priority = $3::smallint and enqueued_at >= $4::timestamptz
            and id = any(array(select unnest(c.workflow_ids) from {slot}.claim c where c.id = $6::uuid and c.lease_id = $7::uuid))
        order by capability, queue, priority, enqueued_at, id
        limit $5::int))
    returning id, enqueued_at)
update {slot}.workflow w
set status = 1, claim_id = $6::uuid, claims = greatest(w.claims, least(w.claims, 31999) + 1), started_at = coalesce(w.started_at, $8::timestamptz)
from taken t where w.id = t.id
returning w.id, w.name,
    case when w.input is null then (select i.value from {slot}.input i where i.workflow_id = w.id) else w.input end as input,
    w.claims, w.started_at, w.parent_id, t.enqueued_at, w.deadline

-- name: deliver_messages__1
with receiver as materialized (
    select w.id, w.status, w.created_at from {slot}.workflow w where w.id = any($1::text[]))
insert into {slot}.message (workflow_id, topic, sender, seq, sent_at, payload)
select u.* from unnest($1::text[], $2::text[], $3::text[], $4::int[], $5::timestamptz[], $6::json[])
    u (workflow_id, topic, sender, seq, sent_at, payload)
where exists (select from receiver w where w.id = u.workflow_id
    and (w.status < 3 or (w.status > 3 and left(u.topic, 1) <> '$'))
    and w.created_at <= u.sent_at + interval '1 minute')
on conflict do nothing

-- name: deliver_messages__2
-- Perhaps for one that brought nothing new, which does no harm.
with receiver as materialized (
    select w.id from {slot}.workflow w where w.id = any($1::text[]) and w.status <> 3)
insert into {slot}.wake (workflow_id, id)
select id, gen_random_uuid() from receiver
where ($2::text[], $3::text[], $4::int[], $5::timestamptz[]) is not null and $6::json[] is not null

-- name: deliver_messages
select distinct u.id from unnest($1::text[]) u (id)
where not exists (select from {slot}.workflow w where w.id = u.id)
    and ($2::text[], $3::text[], $4::int[], $5::timestamptz[]) is not null and $6::json[] is not null

-- name: deliver_with_start__1
with receiver as materialized (
    select w.id from {slot}.workflow w where w.id = $1 and w.name = $2 and w.status <> 3)
insert into {slot}.message (workflow_id, topic, sender, seq, sent_at, payload)
select w.id, $3, $4, $5::int, $6::timestamptz, $7::json from receiver w
on conflict do nothing

-- name: deliver_with_start
with receiver as materialized (
    select w.id from {slot}.workflow w where w.id = $1 and w.name = $2 and w.status <> 3)
insert into {slot}.wake (workflow_id, id) select id, gen_random_uuid() from receiver
where ($3::text, $4::text, $5::int, $6::timestamptz) is not null and $7::json is not null

-- name: cancel_unclaimed__1
with taken as (
    delete from {slot}.ready r using {slot}.workflow w
    where w.id = $1 and (w.claims = 0 or r.capability = '~' || w.name) and r.queue = w.queue and r.priority = w.priority
        and r.id = w.id
        and r.capability = any(array[w.capability, '~' || w.capability, '!' || w.capability, '~' || w.name])
    returning r.id)
update {slot}.workflow w set status = 5, error = $2::json, completed_at = $3::timestamptz,
    claims = greatest(w.claims, least(w.claims, 31999) + 1)
where w.id = $1 and ((w.status = 2 and w.claims = 0) or (w.status = 0 and exists (select from taken))) and $4::json is not null

-- name: cancel_unclaimed__2
with ended as materialized (
    select w.id from {slot}.workflow w where w.id = $1 and w.status = 5 and w.completed_at = $3::timestamptz)
insert into {slot}.failed (failed_at, workflow_id, status)
select $3::timestamptz, id, 5 from ended where $2::json is not null and $4::json is not null
on conflict do nothing

-- name: cancel_unclaimed__3
with ended as materialized (
    select w.id, w.parent_id, w.claims from {slot}.workflow w where w.id = $1 and w.status = 5 and w.completed_at = $3::timestamptz)
insert into {slot}.outbox (receiver, topic, sender, seq, sent_at, payload)
select parent_id, '$outcome', id, claims, $3::timestamptz, $4::json from ended where parent_id is not null and $2::json is not null
on conflict do nothing

-- name: cancel_unclaimed
select w.id from {slot}.workflow w
where w.id = $1 and w.status = 5 and w.completed_at = $3::timestamptz and $2::json is not null and $4::json is not null

-- name: give_back_lease__1
with mine as (
    select c.id, c.workflow_ids from {slot}.claim c where c.lease_id = $1::uuid),
given as (
    update {slot}.workflow w set status = 0, claim_id = null
    where w.id = any(array(select unnest(mine.workflow_ids) from mine)) and w.status = 1
        and w.claim_id = any(array(select mine.id from mine))
    returning w.capability, w.queue, w.priority, w.id, w.deaths)
insert into {slot}.ready (capability, queue, priority, enqueued_at, id)
select case when deaths > 1 then '!' else '~' end || capability, queue, priority, $2::timestamptz, id from given

-- name: give_back_lease
delete from {slot}.claim where lease_id = $1::uuid and $2::timestamptz is not null

-- name: give_back_all__1
-- (Of a slot that is handed over: reshard/citus.py.)
with gone as (
    select c.id, c.workflow_ids from {slot}.claim c),
given as (
    update {slot}.workflow w set status = 0, claim_id = null
    where w.id = any(array(select unnest(gone.workflow_ids) from gone)) and w.status = 1
        and w.claim_id = any(array(select gone.id from gone))
    returning w.capability, w.queue, w.priority, w.id, w.deaths)
insert into {slot}.ready (capability, queue, priority, enqueued_at, id)
select case when deaths > 1 then '!' else '~' end || capability, queue, priority, clock_timestamp(), id from given

-- name: give_back_all
delete from {slot}.claim

-- name: read_orphans
with orphan as materialized (
    select c.id, c.claimed_at, c.workflow_ids from {slot}.claim c
    where c.lease_id <> all(array(select l.id from {control}.lease l)) order by c.id limit 20),
held as materialized (
    select o.id as claim_id, unnest(o.workflow_ids) as id from orphan o)
select o.id, w.id, w.deaths, w.claims, w.parent_id,
    exists (select from {slot}.step s where s.workflow_id = w.id and s.completed_at >= o.claimed_at)
    or exists (select from {slot}.attempt a where a.workflow_id = w.id and a.failed_at >= o.claimed_at)
from orphan o
left join (
    select w.* from held h join {slot}.workflow w on w.id = h.id and w.claim_id = h.claim_id and w.status = 1) w
    on w.claim_id = o.id
order by w.id

-- name: resume__1
select w.id from {slot}.workflow w
where w.id = any($1::text[]) and w.status > 3 and w.error ->> 'undone_from' is null and $2::timestamptz is not null order by w.id for update

-- name: resume__2
with mark as materialized (
    select w.id, w.status, w.error, w.completed_at, (
            select coalesce(max(s.ordinal), 0) from {slot}.step s where s.workflow_id = w.id) as last,
        coalesce((select json_agg(s.place) from {slot}.step s where s.workflow_id = w.id and (
            s.kind = 23
            or w.status = 5 and (s.kind = 5 or s.kind = 31 and (s.output ->> 'cancelled')::boolean)
            or s.place = any(array(select json_array_elements_text(w.error -> 'causes')::int)))), '[]') as void
    from {slot}.workflow w where w.id = any($1::text[]) and w.status > 3 and w.error ->> 'undone_from' is null and w.claims > 0)
insert into {slot}.step (workflow_id, place, ordinal, kind, name, fingerprint, output, error, started_at, completed_at)
select m.id, -(m.last + 1), m.last + 1, 10, 'resume', 0,
    json_build_object('void', m.void, 'status', m.status, 'error', m.error), null, m.completed_at, $2::timestamptz
from mark m

-- name: resume__3
delete from {slot}.failed f using {slot}.workflow w
where w.id = any($1::text[]) and w.status > 3 and w.error ->> 'undone_from' is null and f.failed_at = w.completed_at and f.workflow_id = w.id
    and $2::timestamptz is not null

-- name: resume__4
delete from {slot}.message m using {slot}.workflow w
where w.id = any($1::text[]) and w.status > 3 and w.error ->> 'undone_from' is null and m.workflow_id = w.id and m.topic >= '$' and m.topic < '%'
    and $2::timestamptz is not null

-- name: resume
with back as (
    update {slot}.workflow w set status = 0, claim_id = null, completed_at = null, error = null, deaths = 0,
        claims = case when w.claims < 32000 then w.claims else least(w.claims, 32766) + 1 end,
        deadline = e.deadline
    from (
        select e.id, $2::timestamptz + (e.deadline - e.created_at) as deadline from {slot}.workflow e
        where e.id = any($1::text[]) and e.status > 3 and e.error ->> 'undone_from' is null) e
    where w.id = e.id
    returning w.id, w.capability, w.queue, w.priority, w.claims)
insert into {slot}.ready (capability, queue, priority, enqueued_at, id)
select case when claims > 0 then '~' else '' end || capability, queue, priority, $2::timestamptz, id from back
returning id

-- name: record_transaction
with held as materialized (
    select w.id from {slot}.workflow w where w.id = $1 and w.claim_id = $10::uuid and w.status = 1)
insert into {slot}.step (workflow_id, place, ordinal, kind, name, fingerprint, output, started_at, completed_at)
select h.id, $2::int, $3::int, $4::smallint, $5, $6::bigint, $7::json, $8::timestamptz, $9::timestamptz
from held h where current_setting('sharded_wf.transaction', true) = $11 and $12::text is not null
returning name

-- name: record_transaction__50
select set_config('lock_timeout', $12, true)
where ($1::text, $2::int, $3::int, $4::smallint, $5::text, $6::bigint, $8::timestamptz, $9::timestamptz) is not null
    and ($10::uuid, $11::text) is not null and coalesce($7::json::text, '') is not null

-- name: save_inputs__1
delete from {slot}.input i where i.workflow_id = any($1::text[]) and $2::json[] is not null
    and not exists (select from {slot}.workflow w where w.id = i.workflow_id)

-- name: save_inputs__2
insert into {slot}.input as i (workflow_id, value)
select * from unnest($1::text[], $2::json[]) on conflict do nothing

-- name: save_inputs
select i.workflow_id from {slot}.input i where i.workflow_id = any($1::text[]) and $2::json[] is not null
order by i.workflow_id for update

-- name: start_stillborn
with started as (
    insert into {slot}.workflow
        (id, deadline, name, capability, queue, priority, parent_id, created_at, completed_at, status, claims, error)
    select u.id, u.deadline, $3, $4, $5, $6::smallint, $7, $8::timestamptz, $8::timestamptz, 5, 1, $9::json
    from unnest($1::text[], $2::timestamptz[]) u (id, deadline)
    on conflict (id) do nothing
    returning id)
insert into {slot}.failed (failed_at, workflow_id, status) select $8::timestamptz, id, 5 from started where $10::json is not null

-- name: start_stillborn__50
with started as materialized (
    select w.id from {slot}.workflow w
    where w.id = any($1::text[]) and w.status = 5 and w.created_at = $8::timestamptz and w.completed_at = $8::timestamptz)
insert into {slot}.outbox (receiver, topic, sender, seq, sent_at, payload)
select $7::text, '$outcome', id, 1, $8::timestamptz, $10::json from started where $7::text is not null
    and ($2::timestamptz[], $3::text, $4::text, $5::text, $6::smallint) is not null and $9::json is not null
on conflict do nothing

-- name: start_stillborn__51
delete from {slot}.input i where i.workflow_id = any($1::text[])
    and not exists (select from {slot}.workflow w where w.id = i.workflow_id and w.input is null)
    and ($2::timestamptz[], $3::text, $4::text, $5::text, $6::smallint, $8::timestamptz) is not null
    and coalesce($7::text, '') is not null and ($9::json is not null or $10::json is not null)

-- name: delete_old__1
select w.id from {slot}.workflow w join unnest($1::text[], $2::timestamptz[]) u (id, created_at) on w.id = u.id and w.created_at = u.created_at
where w.status >= 3 and w.completed_at < $3::timestamptz order by w.id for update of w

-- name: delete_old
select count(*) from {slot}.workflow w join unnest($1::text[], $2::timestamptz[]) u (id, created_at) on w.id = u.id and w.created_at = u.created_at
where w.status >= 3 and w.completed_at < $3::timestamptz

-- name: delete_old__50
delete from {slot}.step t using {slot}.workflow w, unnest($1::text[], $2::timestamptz[]) u (id, created_at)
where w.id = u.id and w.created_at = u.created_at and w.status >= 3 and w.completed_at < $3::timestamptz and t.workflow_id = w.id

-- name: delete_old__51
delete from {slot}.attempt t using {slot}.workflow w, unnest($1::text[], $2::timestamptz[]) u (id, created_at)
where w.id = u.id and w.created_at = u.created_at and w.status >= 3 and w.completed_at < $3::timestamptz and t.workflow_id = w.id

-- name: delete_old__52
delete from {slot}.heartbeat t using {slot}.workflow w, unnest($1::text[], $2::timestamptz[]) u (id, created_at)
where w.id = u.id and w.created_at = u.created_at and w.status >= 3 and w.completed_at < $3::timestamptz and t.workflow_id = w.id

-- name: delete_old__53
delete from {slot}.event t using {slot}.workflow w, unnest($1::text[], $2::timestamptz[]) u (id, created_at)
where w.id = u.id and w.created_at = u.created_at and w.status >= 3 and w.completed_at < $3::timestamptz and t.workflow_id = w.id

-- name: delete_old__54
delete from {slot}.message t using {slot}.workflow w, unnest($1::text[], $2::timestamptz[]) u (id, created_at)
where w.id = u.id and w.created_at = u.created_at and w.status >= 3 and w.completed_at < $3::timestamptz and t.workflow_id = w.id

-- name: delete_old__55
delete from {slot}.attribute t using {slot}.workflow w, unnest($1::text[], $2::timestamptz[]) u (id, created_at)
where w.id = u.id and w.created_at = u.created_at and w.status >= 3 and w.completed_at < $3::timestamptz and t.workflow_id = w.id

-- name: delete_old__56
delete from {slot}.wake t using {slot}.workflow w, unnest($1::text[], $2::timestamptz[]) u (id, created_at)
where w.id = u.id and w.created_at = u.created_at and w.status >= 3 and w.completed_at < $3::timestamptz and t.workflow_id = w.id

-- name: delete_old__57
delete from {slot}.failed f using {slot}.workflow w, unnest($1::text[], $2::timestamptz[]) u (id, created_at)
where w.id = u.id and w.created_at = u.created_at and w.status >= 3 and w.completed_at < $3::timestamptz
    and f.failed_at = w.completed_at and f.workflow_id = w.id

-- name: delete_old__58
delete from {slot}.workflow w using unnest($1::text[], $2::timestamptz[]) u (id, created_at)
where w.id = u.id and w.created_at = u.created_at and w.status >= 3 and w.completed_at < $3::timestamptz

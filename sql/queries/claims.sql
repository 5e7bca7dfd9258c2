-- Taking work from the queue, and giving it back.
--
-- A lane is what one claim can take: a capability (of an app, or an app at a version), a queue, a priority. Work that ran
-- before stands in lanes of its own, so that old work is never found behind a low-water mark: '~' before the capability
-- marks work that was parked, given back or taken over, '!' suspects, which ran when their executor died, more than once.

-- name: claim
-- Take up to $5 workflows of one lane, oldest first from the low-water mark $4 on, for the lease $7 under the claim $6.
-- The ctid array makes the limit exact: `in (select ... limit n for update skip locked)` can take more.
-- `claims` stops at 32000 here; from there on `resume` counts, so that no two lives of a workflow end with the same number.
with taken as (
    delete from {slot}.ready
    where ctid = any(array(
        select ctid from {slot}.ready
        where capability = $1 and queue = $2 and priority = $3::smallint and enqueued_at >= $4::timestamptz
        order by capability, queue, priority, enqueued_at, id
        limit $5::int for update skip locked))
    returning id, enqueued_at),
claimed as (
    update {slot}.workflow w
    set status = 1, claim_id = $6::uuid, claims = greatest(w.claims, least(w.claims, 31999) + 1), started_at = coalesce(w.started_at, $8::timestamptz)
    from taken t where w.id = t.id
    returning w.id, w.name, w.claims, w.started_at, w.parent_id, t.enqueued_at, w.deadline,
        case when w.input is null then (select i.value from {slot}.input i where i.workflow_id = w.id) else w.input end as input),
noted as (
    insert into {slot}.claim (id, lease_id, claimed_at, workflow_ids)
    select $6::uuid, $7::uuid, $8::timestamptz, array_agg(id) from claimed having count(*) > 0)
select id, name, input, claims, started_at, parent_id, enqueued_at, deadline from claimed

-- name: read_claim
-- After an answer that was lost: what this claim holds, in the columns of `claim`.
select w.id, w.name, coalesce(w.input, i.value), w.claims, w.started_at, w.parent_id, w.created_at, w.deadline
from {slot}.claim c cross join unnest(c.workflow_ids) held (id)
join {slot}.workflow w on w.id = held.id and w.claim_id = c.id and w.status = 1
left join {slot}.input i on i.workflow_id = w.id and w.input is null
where c.id = $1::uuid

-- name: release_claims
-- Claims whose last workflow has left.
delete from {slot}.claim where id = any($1::uuid[])

-- name: give_back
-- Unfinished workflows of a draining executor go back to the queue.
with given as (
    update {slot}.workflow w set status = 0, claim_id = null
    from unnest($1::text[], $2::uuid[]) u (id, claim_id)
    where w.id = u.id and w.claim_id = u.claim_id and w.status = 1
    returning w.capability, w.queue, w.priority, w.id, w.deaths)
insert into {slot}.ready (capability, queue, priority, enqueued_at, id)
select case when deaths > 1 then '!' else '~' end || capability, queue, priority, $3::timestamptz, id from given

-- name: adopt
-- With the claim, by an executor whose code goes on with the work of an earlier version: from now on it is of this version,
-- so that no executor of the earlier one takes it back.
update {slot}.workflow w set capability = $2
from {slot}.claim c cross join unnest(c.workflow_ids) held (id)
where c.id = $1::uuid and w.id = held.id and w.claim_id = c.id

-- name: continue_as_new
-- The run has ended, the next is ready. Its clock begins anew; input, moment of creation and parent stay.
with given as (
    update {slot}.workflow w
    set status = 0, claim_id = null, deaths = 0, started_at = u.started_at, capability = u.capability, queue = u.queue
    from unnest($1::text[], $2::uuid[], $3::timestamptz[], $4::text[], $5::text[]) u (id, claim_id, started_at, capability, queue)
    where w.id = u.id and w.claim_id = u.claim_id and w.status = 1
    returning w.capability, w.queue, w.priority, w.id)
insert into {slot}.ready (capability, queue, priority, enqueued_at, id)
select '~' || capability, queue, priority, $6::timestamptz, id from given

-- name: give_back_lease
-- All that the claims of one lease hold goes back to the queue, by its owner, who lives: nobody is blamed for a death.
-- After the statement that removes the lease, in the same transaction, so that nothing can be added to them.
with mine as (
    delete from {slot}.claim where lease_id = $1::uuid returning id, workflow_ids),
given as (
    update {slot}.workflow w set status = 0, claim_id = null
    where w.id = any(array(select unnest(mine.workflow_ids) from mine)) and w.status = 1
        and w.claim_id = any(array(select mine.id from mine))
    returning w.capability, w.queue, w.priority, w.id, w.deaths)
insert into {slot}.ready (capability, queue, priority, enqueued_at, id)
select case when deaths > 1 then '!' else '~' end || capability, queue, priority, $2::timestamptz, id from given

-- name: read_orphans
-- What claims hold whose lease is gone, with how often each workflow has died without progress since it last made any. A
-- claim that holds nothing any more comes back with a null workflow. Bounded: call again until nothing comes.
select c.id, w.id, w.deaths, w.claims, w.parent_id,
    exists (select from {slot}.step s where s.workflow_id = w.id and s.completed_at >= c.claimed_at)
    or exists (select from {slot}.attempt a where a.workflow_id = w.id and a.failed_at >= c.claimed_at)
from (select * from {slot}.claim c
      where not exists (select from {control}.lease l where l.id = c.lease_id)
      order by c.id limit 20) c
left join lateral (
    select w.id, w.deaths, w.claims, w.parent_id from unnest(c.workflow_ids) held (id)
    join {slot}.workflow w on w.id = held.id and w.claim_id = c.id and w.status = 1) w on true
order by w.id

-- name: take_over
-- Back to the queue. Two takeovers at once are harmless: the second finds the claim gone from the rows.
with taken as (
    update {slot}.workflow w set status = 0, claim_id = null, deaths = u.deaths
    from unnest($1::text[], $2::uuid[], $3::smallint[]) u (id, claim_id, deaths)
    where w.id = u.id and w.claim_id = u.claim_id and w.status = 1
    returning w.capability, w.queue, w.priority, w.id, w.deaths)
insert into {slot}.ready (capability, queue, priority, enqueued_at, id)
select case when deaths > 1 then '!' else '~' end || capability, queue, priority, $4::timestamptz, id from taken

-- name: reroute
-- Workflows of a function that this executor's code does not have: into the lane of that very function, where executors
-- that have it look too, and where everybody sees that nobody has it.
with given as (
    update {slot}.workflow w set status = 0, claim_id = null
    from unnest($1::text[], $2::uuid[]) u (id, claim_id)
    where w.id = u.id and w.claim_id = u.claim_id and w.status = 1
    returning w.name, w.queue, w.priority, w.id)
insert into {slot}.ready (capability, queue, priority, enqueued_at, id)
select '~' || name, queue, priority, $3::timestamptz, id from given

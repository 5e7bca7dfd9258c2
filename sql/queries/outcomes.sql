-- How workflows end. Every write matches the claim that the run was made under.

-- name: succeed
update {slot}.workflow w set status = 3, output = u.output, completed_at = $4::timestamptz
from unnest($1::text[], $2::json[], $3::uuid[]) u (id, output, claim_id)
where w.id = u.id and w.claim_id = u.claim_id and w.status = 1

-- name: fail
-- The few that end otherwise, with their row in `failed`.
with ended as (
    update {slot}.workflow w set status = u.status, error = u.error, completed_at = $5::timestamptz
    from unnest($1::text[], $2::json[], $3::uuid[], $4::smallint[]) u (id, error, claim_id, status)
    where w.id = u.id and w.claim_id = u.claim_id and w.status = 1
    returning w.id, w.status)
insert into {slot}.failed (failed_at, workflow_id, status) select $5::timestamptz, id, status from ended

-- name: cancel_unclaimed
-- A workflow whose code never ran is cancelled on the spot: there is nothing to clean up. Its row in `ready` is the right to
-- do so; one whose start is delayed has none yet, and nobody owns it. (In the lane of its own name: nobody could run it.)
-- That counts as a claim: each life of a workflow ends with another number of claims, which is the number of its outcome.
-- As an array: of a list, PostgreSQL before 18 makes conditions that no index begins with, and reads all of `ready_pkey`.
with taken as (
    delete from {slot}.ready r using {slot}.workflow w
    where w.id = $1 and (w.claims = 0 or r.capability = '~' || w.name) and r.queue = w.queue and r.priority = w.priority
        and r.id = w.id
        and r.capability = any(array[w.capability, '~' || w.capability, '!' || w.capability, '~' || w.name]) -- as claims.sql has it
    returning r.id),
ended as (
    update {slot}.workflow w set status = 5, error = $2::json, completed_at = $3::timestamptz,
        claims = greatest(w.claims, least(w.claims, 31999) + 1)
    where w.id = $1 and ((w.status = 2 and w.claims = 0) or (w.status = 0 and exists (select from taken)))
    returning w.id, w.parent_id, w.claims),
noted as (
    insert into {slot}.failed (failed_at, workflow_id, status) select $3::timestamptz, id, 5 from ended),
told as (
    insert into {slot}.outbox (receiver, topic, sender, seq, sent_at, payload)
    select parent_id, '$outcome', id, claims, $3::timestamptz, $4::json from ended where parent_id is not null)
select id from ended

-- name: pause_unclaimed
-- A workflow whose code never ran is parked on the spot, as if it had been claimed once: so its mailbox is read before its
-- code begins. As in `cancel_unclaimed` its row in `ready` is the right to do so.
with taken as (
    delete from {slot}.ready r using {slot}.workflow w
    where w.id = $1 and w.claims = 0 and r.queue = w.queue and r.priority = w.priority and r.id = w.id
        and r.capability = any(array[w.capability, '~' || w.capability, '!' || w.capability, '~' || w.name])
    returning r.id)
update {slot}.workflow w set status = 2, claims = 1
where w.id = $1 and w.claims = 0 and (w.status = 2 or (w.status = 0 and exists (select from taken)))

-- name: read_outcomes
-- For those who wait: only what has ended.
select id, status, output, error from {slot}.workflow where id = any($1::text[]) and status >= 3

-- name: missing_workflows
-- Which of these IDs have no row.
select u.id from unnest($1::text[]) u (id)
where not exists (select from {slot}.workflow w where w.id = u.id)

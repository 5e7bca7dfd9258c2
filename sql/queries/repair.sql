-- Repair: what ended badly goes on, and forks. Nothing here is on the hot path.

-- name: resume
-- Those among these workflows that failed, were cancelled or quarantined go back to the queue. Nothing recorded is removed:
-- an entry of kind 10 says what counts no more, which is what the workflow failed of (`causes`, see workflow/blame.py), or
-- every request to cancel (kind 31: one that the run before handed on when it continued as new), and that its time was over
-- (kind 23): it has all of it again. One that never ran has no history, and needs none. One that has undone its work
-- (`undone_from`, see workflow/blame.py) stays as it is. The answer lists those that were resumed.
with ended as (
    select w.id, w.status, w.completed_at, w.error, w.claims from {slot}.workflow w
    where w.id = any($1::text[]) and w.status > 3 and w.error ->> 'undone_from' is null order by w.id for update),
back as (
    update {slot}.workflow w set status = 0, claim_id = null, completed_at = null, error = null, deaths = 0,
        claims = case when w.claims < 32000 then w.claims else least(w.claims, 32766) + 1 end,
        deadline = $2::timestamptz + (w.deadline - w.created_at)
    from ended e where w.id = e.id
    returning w.id, w.capability, w.queue, w.priority, w.claims),
unlisted as (
    delete from {slot}.failed f using ended e where f.failed_at = e.completed_at and f.workflow_id = e.id),
requests as (
    delete from {slot}.message m using ended e where m.workflow_id = e.id and m.topic >= '$' and m.topic < '%'),
noted as (
    insert into {slot}.step (workflow_id, place, ordinal, kind, name, fingerprint, output, error, started_at, completed_at)
    select e.id, -(o.last + 1), o.last + 1, 10, 'resume', 0,
        json_build_object('void',
            coalesce((select json_agg(s.place) from {slot}.step s where s.workflow_id = e.id and (
                s.kind = 23
                or e.status = 5 and (s.kind = 5 or s.kind = 31 and (s.output ->> 'cancelled')::boolean)
                or s.place = any(array(select json_array_elements_text(e.error -> 'causes')::int)))), '[]'),
            'status', e.status, 'error', e.error),
        null, e.completed_at, $2::timestamptz
    from ended e
    cross join lateral (select coalesce(max(s.ordinal), 0) as last from {slot}.step s where s.workflow_id = e.id) o
    where e.claims > 0)
insert into {slot}.ready (capability, queue, priority, enqueued_at, id)
select case when claims > 0 then '~' else '' end || capability, queue, priority, $2::timestamptz, id from back
returning id

-- name: read_unsent
select 1 from {slot}.outbox where receiver = $1 and topic = $2 and sender = any($3::text[])

-- name: withdraw_cancels
-- Of a workflow that nobody holds; who holds it may have read them. A claim waits for the row's lock, and then reads none.
with unheld as (
    select w.id from {slot}.workflow w where w.id = $1 and w.status in (0, 2) for update)
delete from {slot}.message m using unheld where m.workflow_id = unheld.id and m.topic = '$cancel' and m.sender = any($2::text[])

-- name: read_closed
-- A child that its parent told to end, under one of the names $2. 2: it was cancelled by that since it was last resumed.
-- 1: that is still to come. 0: neither. No row: there is none.
select (case
    when w.status = 5 and c.told then 2
    when w.status < 3 and (c.told or exists (
        select from {slot}.message m where m.workflow_id = w.id and m.topic = '$cancel' and m.sender = any($2::text[]))) then 1
    else 0 end)::int
from {slot}.workflow w
cross join lateral (
    select exists (
        select from {slot}.step s where s.workflow_id = w.id and s.kind = 5 and s.output ->> 'sender' = any($2::text[])
            and s.ordinal > (select coalesce(max(r.ordinal), 0) from {slot}.step r where r.workflow_id = w.id and r.kind = 10)
    ) as told) c
where w.id = $1

-- name: read_revived
-- What a workflow noted when it had a child resumed, since it was itself resumed for the $3rd time.
select payload from {slot}.message where workflow_id = $1 and topic = '$revived' and sender = $2 and seq = $3::int

-- name: read_life
-- The number that the next outcome of a workflow has at least, or its last one has: as `claim` and `cancel_unclaimed` count.
select case when w.status in (0, 2) then greatest(w.claims, least(w.claims, 31999) + 1) else w.claims end, w.status,
    case when w.status > 2 then w.output end, case when w.status > 2 then w.error end
from {slot}.workflow w where w.id = $1

-- name: page_failed
-- The next that ended badly, in the order in which they did, and whether each fits the filter: so that one page costs the
-- same, however few fit.
with page as (
    select failed_at, workflow_id, status from {slot}.failed
    where (failed_at, workflow_id) > ($1::timestamptz, $2::text)
    order by failed_at, workflow_id limit $3::int)
select p.failed_at, p.workflow_id, w.name, w.queue, p.status,
    ($4::text is null or w.name = $4) and ($5::smallint is null or p.status = $5::smallint)
    and ($6::text is null or w.queue = $6) and ($7::text is null or w.error ->> 'type' = $7), (w.error ->> 'undone_from')::int
from page p cross join lateral (
    select w.name, w.queue, w.error from {slot}.workflow w where w.id = p.workflow_id offset 0) w

-- name: read_origin
-- What a fork takes over.
select w.name, w.capability, w.queue, w.priority, w.started_at, coalesce(w.input, i.value), w.created_at, w.deadline,
    case when w.status > 3 then (w.error ->> 'undone_from')::int end
from {slot}.workflow w left join {slot}.input i on i.workflow_id = w.id and w.input is null
where w.id = $1

-- name: fork
-- A workflow that begins with a history. It counts as claimed once, so that its history is read. An ID that exists is left
-- alone. $9 is an input too large for the row; $10 to $18 are the entries; $19 is the end of its time.
with made as (
    insert into {slot}.workflow (id, name, capability, queue, priority, created_at, started_at, status, claims, input, deadline)
    values ($1, $2, $3, $4, $5::smallint, $6::timestamptz, $7::timestamptz, 0, 1, $8::json, $19::timestamptz)
    on conflict (id) do nothing
    returning id),
entered as (
    insert into {slot}.input (workflow_id, value) select id, $9::json from made where $9::json is not null),
copied as (
    insert into {slot}.step (workflow_id, place, ordinal, kind, name, fingerprint, output, error, started_at, completed_at)
    select made.id, u.* from made cross join unnest($10::int[], $11::int[], $12::smallint[], $13::text[], $14::bigint[],
        $15::json[], $16::json[], $17::timestamptz[], $18::timestamptz[]) u)
insert into {slot}.ready (capability, queue, priority, enqueued_at, id)
select '~' || $3, $4, $5::smallint, $6::timestamptz, id from made
returning id

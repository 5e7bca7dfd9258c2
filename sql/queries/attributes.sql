-- Attributes: what users search workflows by.

-- name: save_attributes
-- With starts. Only for rows that this very transaction, or one whose answer was lost, made: a start of an ID that exists
-- changes nothing. Nor for what ran meanwhile: it has them, or has removed them.
insert into {slot}.attribute (workflow_id, name, kind, value, created_at)
select u.id, u.name, u.kind, u.value, w.created_at
from unnest($1::text[], $2::text[], $3::smallint[], $4::text[]) u (id, name, kind, value)
cross join lateral (select w.created_at, w.started_at from {slot}.workflow w where w.id = u.id offset 0) w
where w.created_at = $5::timestamptz and w.started_at is null
on conflict do nothing

-- name: set_attributes
-- With the flush that records that the workflow set them.
insert into {slot}.attribute (workflow_id, name, kind, value, created_at)
select u.id, u.name, u.kind, u.value, w.created_at
from unnest($1::text[], $2::text[], $3::smallint[], $4::text[]) u (id, name, kind, value)
join {slot}.workflow w on w.id = u.id
on conflict (workflow_id, name) do update set kind = excluded.kind, value = excluded.value

-- name: remove_attributes
delete from {slot}.attribute a using unnest($1::text[], $2::text[]) u (id, name)
where a.workflow_id = u.id and a.name = u.name

-- name: read_attributes
select name, kind, value from {slot}.attribute where workflow_id = $1

-- name: find_workflows
-- Those whose attribute $1 has the value $2, newest first, after a place in that order: straight from the index. ($3 is for
-- `search_workflows` only.) The further conditions are looked up one by one. Only as many as are asked for are joined.
select w.id, w.name, w.queue, w.priority, w.status, w.claims, w.deaths, w.created_at, w.started_at, w.completed_at,
    w.parent_id, null::json, null::json, null::json, null::text, false
from {slot}.attribute a join {slot}.workflow w on w.id = a.workflow_id
where a.name = $1 and a.value = $2 and ($3::text is null or true)
    and (a.created_at, a.workflow_id) < ($4::timestamptz, $5)
    and not exists (
        select from unnest($6::text[], $7::text[], $8::text[]) u (name, low, high)
        where not coalesce((
            select b.value >= u.low and b.value < u.high from {slot}.attribute b
            where b.workflow_id = a.workflow_id and b.name = u.name), false))
    and ($9::text is null or w.name = $9) and ($10::smallint is null or w.status = $10::smallint)
    and ($11::text is null or w.queue = $11)
order by a.created_at desc, a.workflow_id desc limit $12::int

-- name: search_workflows
-- The same for a range of values, from $2 up to below $3. What lies in the range is sorted. The further conditions are looked up one by one. Only as many as are asked for are joined.
select w.id, w.name, w.queue, w.priority, w.status, w.claims, w.deaths, w.created_at, w.started_at, w.completed_at,
    w.parent_id, null::json, null::json, null::json, null::text, false
from {slot}.attribute a join {slot}.workflow w on w.id = a.workflow_id
where a.name = $1 and a.value >= $2 and a.value < $3
    and (a.created_at, a.workflow_id) < ($4::timestamptz, $5)
    and not exists (
        select from unnest($6::text[], $7::text[], $8::text[]) u (name, low, high)
        where not coalesce((
            select b.value >= u.low and b.value < u.high from {slot}.attribute b
            where b.workflow_id = a.workflow_id and b.name = u.name), false))
    and ($9::text is null or w.name = $9) and ($10::smallint is null or w.status = $10::smallint)
    and ($11::text is null or w.queue = $11)
order by a.created_at desc, a.workflow_id desc limit $12::int

-- What the demo looks at to show and to check what happened. Only the demo's own small clusters are asked such things.

-- name: count_done
-- How many workflows of one name have ended.
select count(*) filter (where status >= 3) from {slot}.workflow where name = $1

-- name: find_lease
-- The lease of one executor process on this shard.
select id from {control}.lease where executor = $1

-- name: held_under
-- What a lease holds.
select w.id from {slot}.claim c cross join unnest(c.workflow_ids) held (id)
join {slot}.workflow w on w.id = held.id and w.claim_id = c.id and w.status = 1
where c.lease_id = $1

-- name: count_claims
-- How many claims of a lease are left; a takeover leaves none.
select count(*) from {slot}.claim where lease_id = $1

-- name: read_results
-- Every workflow, when it was started, first claimed and ended, and how many steps and children it recorded.
select w.id, w.name, w.status, w.created_at, w.started_at, w.completed_at,
    (select count(*) from {slot}.step s where s.workflow_id = w.id and s.kind = 0),
    (select count(*) from {slot}.step s where s.workflow_id = w.id and s.kind = 3)
from {slot}.workflow w

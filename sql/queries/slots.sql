-- Looks over the slots of a shard. `peek` is written for one slot; the engine joins one copy for each
-- of its slots with `union all`, so that an idle executor asks one question, whatever the number of slots.

-- name: peek
-- What there is to do in a slot: its lanes with ready rows (a loose index scan), when its next timer is due, whether
-- wakes or outgoing messages wait, whether somebody waits for an event. Columns: slot, kind, capability, queue, priority, due.
(with recursive lane as (
    (select capability, queue, priority from {slot}.ready order by capability, queue, priority limit 1)
    union all
    select next.* from lane cross join lateral (
        select r.capability, r.queue, r.priority from {slot}.ready r
        where (r.capability, r.queue, r.priority) > (lane.capability, lane.queue, lane.priority)
        order by r.capability, r.queue, r.priority limit 1) next)
select {number}::int, 0::smallint, capability, queue, priority, null::timestamptz from lane)
union all
(select {number}, 1::smallint, null, null, null, due_at from {slot}.timer order by due_at limit 1)
union all
(select {number}, 2::smallint, null, null, null, null from {slot}.wake limit 1)
union all
(select {number}, 3::smallint, null, null, null, sent_at from {slot}.outbox order by receiver, topic, sender, seq limit 1)
union all
(select {number}, 5::smallint, null, null, null, null from {slot}.event_waiter limit 1)

-- name: vacuum
-- The churning tables, by whoever owns them; autovacuum's one-minute nap is too slow for a queue.
vacuum (skip_locked, truncate off) {slot}.{table}

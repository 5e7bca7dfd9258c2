-- Starts and messages that users' own transactions leave to the executors. {slot} is here the schema that holds them:
-- the control schema of a shard, or `wf_outbox` in a database that is no shard.

-- name: where_am_i
-- What the database on the other end is.
select to_regclass('{control}.cluster') is not null, to_regclass('wf_outbox.owner') is not null,
    to_regproc('{control}.guard') is not null

-- name: read_owner
-- Whose outbox this is.
select cluster_id, name from {slot}.owner

-- name: write_owner
insert into {slot}.owner (cluster_id, name, version) values ($1::uuid, $2, $3::int)

-- name: has_live_slot
-- Whether a slot lies in this database; of a node of a Citus cluster, where all can be seen, whether it serves it.
select to_regclass($1) is not null and (to_regproc('{control}.guard') is null or exists (
    select from {control}.shard_map m join {control}.cluster c on c.shard = m.shard where m.slot = $2::int))

-- name: request
insert into {slot}.request (body) values ($1::json)

-- name: peek_requests
-- Joined to the looks over the slots, in their columns.
(select -1::int, 4::smallint, null::text, null::text, null::smallint, null::timestamptz from {control}.request limit 1)

-- name: read_requests
-- A bounded look from an ID on, so that many for a shard that is away don't hide those for others.
select id, body from {slot}.request where id > $1::bigint order by id limit $2::int

-- name: clear_requests
delete from {slot}.request where id = any($1::bigint[])

-- name: refuse_requests
-- Kept for people, with the reason.
with refused as (
    delete from {slot}.request r using unnest($1::bigint[], $2::text[]) u (id, error) where r.id = u.id
    returning r.id, r.body, u.error)
insert into {slot}.request_refused (id, body, error) select id, body, error from refused on conflict do nothing

-- name: read_refused
select id, body, error, refused_at from {slot}.request_refused order by id desc limit $1::int

-- name: count_requests
-- Up to a bound, since it is only shown.
select count(*) from (select from {slot}.request limit $1::int) waiting

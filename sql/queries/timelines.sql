-- Which timeline each shard is on, as far as this one has heard.

-- name: has_timelines
select exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = '{control}' and c.relname = 'timeline')

-- name: read_timelines
select shard, system, number, term from {control}.timeline

-- name: write_timelines
-- A copy only ever moves on: to a higher term, and within it to a higher number. Two systems in one term can't be.
insert into {control}.timeline as known (shard, system, number, term)
select * from unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[])
on conflict (shard) do update
set system = excluded.system, number = excluded.number, term = excluded.term, seen_at = clock_timestamp()
where known.term < excluded.term
    or (known.term = excluded.term and known.system = excluded.system and known.number < excluded.number)

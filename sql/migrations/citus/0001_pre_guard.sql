-- What a node of a Citus cluster has in its control schema besides. Made anew with every migration.

-- The last statement of every transaction on slots. Any node of a Citus cluster reaches any slot, so nobody with an old map
-- ever meets a missing table; here they do. What the node's own copy of the map says of the slot counts, wherever its rows are.
create or replace function {control}.guard(slots int[]) returns void language plpgsql as $$
declare
    elsewhere int;
begin
    select s into elsewhere from unnest(slots) s where not exists (
        select from {control}.shard_map m where m.slot = s and m.shard = (select c.shard from {control}.cluster c)) limit 1;
    if found then
        raise exception 'relation "wf_%.workflow" is served elsewhere', lpad(elsewhere::text, greatest(4, length(elsewhere::text)), '0')
            using errcode = '42P01';
    end if;
end
$$

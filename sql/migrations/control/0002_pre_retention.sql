-- Who removes old workflows on this shard: one executor at a time, for as long as it keeps saying so.
create table {control}.retention (
    only_row boolean primary key default true check (only_row),
    holder   uuid,
    until    timestamptz not null default '-infinity'
) with (fillfactor = 50);
insert into {control}.retention default values;

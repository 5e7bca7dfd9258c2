-- Which timeline each shard is on, as far as this shard has heard: see docs/runbooks/failover.md. A copy on every shard,
-- because the one thing that does not know it is an old primary of the shard itself.
create table {control}.timeline (
    shard   text primary key,
    term    bigint not null,                -- raised by `shards accept`; a higher one outdoes any number
    system  bigint not null,                -- the identifier of the database system
    number  bigint not null,                -- of the timeline
    seen_at timestamptz not null default clock_timestamp()
);

-- The outbox in a user's own database, which is no shard: the tables of control/0003, and whose they are.
create schema {slot};

create table {slot}.owner (
    only_row   boolean primary key default true check (only_row),
    cluster_id uuid not null,               -- only executors of this cluster carry what is here
    name       text not null,               -- the cluster's name, for people
    version    int not null                 -- of these tables
);

create table {slot}.request (
    id   bigint generated always as identity primary key,
    body json not null
);

create table {slot}.request_refused (
    id         bigint primary key,
    body       json not null,
    error      text not null,
    refused_at timestamptz not null default now()
);

-- What users' own transactions on this shard ask of workflows that live elsewhere: starts and messages, carried by the
-- executors. Rows of one transaction are in its order; whoever carries them deletes them.
create table {control}.request (
    id   bigint generated always as identity primary key,
    body json not null                      -- store/requests.py
);

-- Those that can never be carried out, with the reason. For people; nothing removes them.
create table {control}.request_refused (
    id         bigint primary key,
    body       json not null,
    error      text not null,
    refused_at timestamptz not null default now()
);

-- What users search workflows by. A side table, so that no index on `workflow` mentions a column that changes.
-- `value` is text that sorts as the values do (model/attributes.py), `kind` says what it was. `created_at` is the
-- workflow's, so that a search for one value comes in the order of a list without a sort.
create table {slot}.attribute (
    workflow_id text collate "C" not null,
    name        text collate "C" not null,
    kind        smallint not null,
    value       text collate "C" not null,
    created_at  timestamptz not null,
    primary key (workflow_id, name)
);
create index attribute_value on {slot}.attribute (name, value, created_at, workflow_id);

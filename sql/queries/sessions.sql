-- Sessions themselves.

-- name: end_backend
-- The backend of a session of ours whose answer was lost.
select pg_terminate_backend(pid) from pg_stat_activity where application_name = $1

-- name: read_server
-- Who answers: the backend (another than the handshake's: a pooler), whether it is a standby, and which timeline of which
-- system it writes. Every role may ask. (pg_control_checkpoint() says the timeline of the last checkpoint, which after a
-- promotion is still the old one.)
-- And whether transactions on slots end with a question (`guard`: see citus.sql); from the catalog, since to_regproc wants
-- rights on the schema.
select pg_backend_pid(), pg_is_in_recovery(), s.system_identifier,
    case when pg_is_in_recovery() then null else substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) end,
    exists (select from pg_proc p join pg_namespace n on n.oid = p.pronamespace
        where n.nspname = '{control}' and p.proname = 'guard')
from pg_control_system() s

-- name: read_backend
-- The same where the server has no timelines, or does not tell.
select pg_backend_pid(), pg_is_in_recovery(), null, null, exists (select from pg_proc p join pg_namespace n on n.oid = p.pronamespace
        where n.nspname = '{control}' and p.proname = 'guard')

-- name: read_own_timeline
-- What the shard's own copy says of the shard itself.
select t.system, t.number, t.term from {control}.timeline t join {control}.cluster c on c.shard = t.shard

-- Sessions themselves.

-- name: end_backend
-- The backend of a session of ours whose answer was lost.
select pg_terminate_backend(pid) from pg_stat_activity where application_name = $1

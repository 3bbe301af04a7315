-- What `brewctl doctor` asks. Format as in queries.sql.

-- settings --
-- What is in force for this session, and so for a role's, and where it comes from.
SELECT name, setting, source FROM pg_settings WHERE name = ANY(%(names)s)

-- search_path --
-- What the role or the database says of it, nearest first, and which of them; our sessions do not follow it.
SELECT substr(entry, length('search_path=') + 1), CASE WHEN setrole = 0 THEN 'database' ELSE 'role' END
  FROM pg_db_role_setting, unnest(setconfig) AS entry
 WHERE starts_with(entry, 'search_path=')
   AND setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
   AND setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = session_user))
 ORDER BY setrole <> 0 AND setdatabase <> 0 DESC, setrole <> 0 DESC
 LIMIT 1

-- lacking --
-- Of these tables and indexes, those that are not there.
SELECT name FROM unnest(%(names)s::text[]) AS name WHERE to_regclass(name) IS NULL

-- connections --
-- All of the server's: others' sessions are counted where they can't be looked at.
SELECT coalesce(sum(numbackends), 0)::int FROM pg_stat_database

-- old_transactions --
-- The oldest first: who, and for how many seconds.
SELECT pid, application_name, extract(epoch FROM clock_timestamp() - xact_start)::float8 AS age_s
  FROM pg_stat_activity
 WHERE datname = current_database()
   AND pid <> pg_backend_pid()
   AND backend_type = 'client backend'
   AND xact_start < clock_timestamp() - make_interval(secs => %(age_s)s)
 ORDER BY xact_start

-- outbox --
-- Rows that were set aside, and the age of the oldest one that a publisher could take, in seconds.
SELECT (SELECT count(*) FROM outbox WHERE published_at IS NULL AND failed_at IS NOT NULL) AS set_aside,
       (SELECT extract(epoch FROM clock_timestamp() - o.created_at)::float8
          FROM outbox o
         WHERE o.published_at IS NULL
           AND o.failed_at IS NULL
           AND NOT EXISTS (SELECT FROM outbox p
                            WHERE p.aggregate_id = o.aggregate_id AND p.published_at IS NULL
                              AND p.failed_at IS NOT NULL AND p.id < o.id)
         ORDER BY o.id
         LIMIT 1) AS oldest_s

-- clock --
-- The server's, in seconds since the epoch.
SELECT extract(epoch FROM clock_timestamp())::float8

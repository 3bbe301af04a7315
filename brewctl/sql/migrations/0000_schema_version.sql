-- A row for each migration that is complete together with all before it. The catalog decides which statements run; the
-- rows are for people, and show an older program that a newer one has migrated the database.
CREATE TABLE IF NOT EXISTS schema_version (
    number       integer PRIMARY KEY,
    name         text NOT NULL,
    program      text NOT NULL,  -- the version of the brewctl that completed it
    completed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

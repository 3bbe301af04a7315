-- Which migrations this database has: a row for each that is complete, those before it too. What is there the catalog says;
-- the rows are for a program that does not know all of them yet, and for people.
CREATE TABLE IF NOT EXISTS schema_version (
    number       integer PRIMARY KEY,
    name         text NOT NULL,
    program      text NOT NULL,  -- the version of the brewctl that completed it
    completed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

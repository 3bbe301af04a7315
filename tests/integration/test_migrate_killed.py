"""`brewctl db migrate` that is killed in the middle of each step: older roles work on, and the next run goes on."""

import subprocess

import psycopg

from brewctl.config import Settings, environment
from brewctl.delivery import database
from brewctl.delivery.schema import parts, versions
from brewctl.delivery.schema.parts import Kind
from brewctl.lifecycle import wait_until
from tests.conftest import begin
from tests.integration.test_schema import AT_ONCE, OLDER, Session, lacking, session, settings, write_order

__all__ = ["settings"]  # a fixture
# Each statement that changes the schema stands still until it is in the list: at its end, its locks in hand and not yet
# committed; what runs in no transaction, at its beginning.
PAUSES = """
CREATE SCHEMA pauses;
CREATE TABLE pauses.passed (query text);
CREATE FUNCTION pauses.pause() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (tg_event = 'ddl_command_start') = (current_query() LIKE '%CONCURRENTLY%') THEN
        WHILE NOT EXISTS (SELECT FROM pauses.passed WHERE query = left(current_query(), 1000)) LOOP
            PERFORM pg_sleep(0.01);
        END LOOP;
    END IF;
END $$;
CREATE EVENT TRIGGER pause_at_start ON ddl_command_start EXECUTE FUNCTION pauses.pause();
CREATE EVENT TRIGGER pause_at_end ON ddl_command_end EXECUTE FUNCTION pauses.pause()
"""
PAUSED = """
SELECT pid, left(query, 1000) FROM pg_stat_activity  -- of longer ones it has no more than 1023 bytes
 WHERE datname = current_database() AND wait_event = 'PgSleep' AND application_name = 'brewctl db migrate'
"""
WAITS = """
SELECT count(*) > 0 FROM pg_stat_progress_create_index WHERE datname = current_database() AND phase LIKE 'waiting%'
"""
GONE = "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = %s"
ORDERS = 10


def true(psql: Session, question: str, *parameters: object) -> bool:
    return psql.execute(question.encode(), parameters or None).fetchone() == (True,)


def paused(psql: Session, process: subprocess.Popen[str]) -> tuple[int, str] | None:
    """The statement at which a run stands still; None where it has ended."""
    found: list[tuple[object, ...]] = []

    def seen() -> bool:
        found[:] = psql.execute(PAUSED).fetchall()
        return bool(found) or process.poll() is not None

    wait_until("a step, or the end", seen, timeout_s=60, every_s=0.01)
    return (int(str(found[0][0])), str(found[0][1])) if found else None


def whole_step(query: str) -> list[str]:
    """The statements of a step, of which `query` is one: of new tables there are many in one transaction."""
    new = {part.table for part in parts.PARTS if part.statement[:1000] == query and part.kind is Kind.TABLE}
    migration = {part.migration for part in parts.PARTS if part.table in new and part.kind is Kind.TABLE}
    together = {part.table for part in parts.PARTS if part.migration in migration and part.kind is Kind.TABLE}
    return [query, *(part.statement[:1000] for part in parts.PARTS if part.table in together and new)]


def kill_in_the_middle(psql: Session, settings: Settings, process: subprocess.Popen[str], at: tuple[int, str]) -> None:
    pid, query = at
    if query.startswith("CREATE") and " INDEX CONCURRENTLY " in query:
        with psycopg.connect(settings.database_url) as reader:
            reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            reader.execute("SELECT 1")  # an old snapshot: the build waits for its end
            psql.execute("INSERT INTO pauses.passed VALUES (%s)", (query,))
            wait_until("a build that waits", lambda: true(psql, WAITS), timeout_s=60, every_s=0.01)
            process.kill()
            psql.execute("SELECT pg_terminate_backend(%s, 20000)", (pid,))
            reader.rollback()
    else:
        process.kill()
        # Its session goes on to the end of the statement, finds nobody there, and undoes it.
        for statement in whole_step(query):
            psql.execute("INSERT INTO pauses.passed VALUES (%s)", (statement,))
    process.communicate(timeout=60)
    wait_until("the end of its session", lambda: true(psql, GONE, pid), timeout_s=60, every_s=0.01)


def test_one_that_is_killed_in_the_middle_of_each_step_is_finished_by_others(settings: Settings) -> None:
    with session(settings) as psql, session(settings, options=AT_ONCE) as older_role:
        psql.execute(OLDER[0].read_text("utf-8"))
        for _ in range(ORDERS):
            write_order(older_role)
        psql.execute(PAUSES)
        stopped: list[str] = []
        while True:
            process = begin("db", "migrate", env=environment(settings))
            at = paused(psql, process)
            if at is None:
                break
            assert at[1] not in stopped, "it goes on from where it was"
            stopped.append(at[1])
            kill_in_the_middle(psql, settings, process, at)
            write_order(older_role)
            with database.connect(settings) as connection:
                standing = versions.standing(connection)
            unfinished = min(part.migration for part in standing.lacking)
            assert standing.recorded <= set(range(1, max(unfinished, 1))), "no row of what is not complete"
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert lacking(settings) == []
        assert psql.execute("SELECT count(*) FROM orders").fetchone() == (ORDERS + len(stopped),)
        numbers = [number for (number,) in psql.execute("SELECT number FROM schema_version ORDER BY number")]
        assert numbers == [*range(1, versions.PROGRAM + 1)]
    for kind in ("CREATE TABLE", "ALTER TABLE", "CREATE INDEX CONCURRENTLY", "DROP INDEX", "CREATE OR REPLACE"):
        assert any(query.startswith(kind) for query in stopped), kind

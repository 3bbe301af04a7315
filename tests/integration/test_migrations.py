"""`brewctl db status`, `db migrate` and `db plan`: on older, newer and broken databases, and on several at once."""

import json
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from brewctl import __version__, sql
from brewctl.config import Settings, environment
from brewctl.delivery import database
from brewctl.delivery.schema import parts, setup, versions
from brewctl.errors import BrewError
from brewctl.lifecycle import wait_until
from tests.conftest import Rig, begin, limited, run
from tests.integration.test_schema import OLDER, complete, initialize, lacking, session, settings, write_order
from tests.integration.test_schema_interrupted import older, reading
from tests.pgbouncer import pooled

__all__ = ["complete", "older", "settings"]  # fixtures
FIRST = OLDER[0]
NEWEST = versions.PROGRAM
ALL = [*range(1, NEWEST + 1)]
ORDERS = 20


def db(settings: Settings, *words: str) -> subprocess.CompletedProcess[str]:
    return run("db", *words, env=environment(settings))


def rows(settings: Settings) -> list[tuple[object, ...]]:
    with session(settings) as psql:
        return psql.execute("SELECT number, name, program FROM schema_version ORDER BY number").fetchall()


@pytest.fixture
def first(settings: Settings) -> Settings:
    """A database by the first released schema, with orders in it."""
    with session(settings) as psql:
        psql.execute(FIRST.read_text("utf-8"))
        for _ in range(ORDERS):
            write_order(psql)
    return settings


def newer(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    """Do what a newer program's migration may do: another function, and a better index instead of one of ours."""
    connection.execute("INSERT INTO schema_version (number, name, program) VALUES (99, '0099_later', '9.0.0')")
    (made,) = connection.execute("SELECT pg_get_functiondef('outbox_add'::regproc)").fetchone() or ("",)
    connection.execute(str(made).replace("outbox_add: ", "a later version: ").encode())
    connection.execute("DROP INDEX outbox_published_by_aggregate")


def test_an_empty_database_is_migrated_and_says_how_far_it_is(settings: Settings) -> None:
    before = db(settings, "status")
    assert (before.returncode, before.stdout.splitlines()[0].partition(": ")[2]) == (1, "no tables")
    assert before.stderr == "brewctl: the schema is behind: run `brewctl db init`\n"
    done = db(settings, "migrate")
    assert done.returncode == 0, done.stderr
    assert rows(settings) == [(number, sql.migration_names[number], __version__) for number in ALL]
    after = db(settings, "status")
    assert (after.returncode, after.stderr) == (0, "")
    assert after.stdout.endswith(f": version {NEWEST} of {NEWEST}\n")
    again = db(settings, "migrate")
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.endswith(f": version {NEWEST}: nothing to do\n")


def test_a_database_of_the_first_released_schema_keeps_its_data(first: Settings) -> None:
    behind = db(first, "status", "--json")
    assert behind.returncode == 1
    (found,) = json.loads(behind.stdout)["databases"]
    assert (found["state"], found["version"], found["recorded"]) == ("behind", 1, [])
    assert {"migration": 3, "what": "outbox.event_id"} in found["missing"]
    assert behind.stderr == "brewctl: the schema is behind: run `brewctl db migrate`\n"

    done = db(first, "migrate")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f": version {NEWEST} (was 1)\n")
    numbers = [int(match) for match in re.findall(r"^db migrate (\d{4}) ", done.stderr, re.MULTILINE)]
    assert numbers == sorted(numbers), "migration by migration"
    assert {2, 3} <= set(numbers)
    assert [number for number, *_ in rows(first)] == ALL
    with session(first) as psql:
        counted = "SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM outbox)"
        assert psql.execute(counted).fetchone() == (ORDERS, ORDERS)
        write_order(psql)  # as a role of that release does


def test_what_somebody_dropped_is_missing_although_its_row_is_there(complete: Settings) -> None:
    with session(complete) as psql:
        psql.execute("DROP INDEX orders_idempotency_key")
        written = psql.execute("SELECT * FROM schema_version ORDER BY number").fetchall()
    broken = db(complete, "status")
    assert broken.returncode == 1
    assert "0001_orders_outbox_inbox: missing orders_idempotency_key" in broken.stdout
    mended = db(complete, "migrate")
    assert (mended.returncode, lacking(complete)) == (0, [])
    assert mended.stdout.endswith(f": version {NEWEST} (mended)\n")
    with session(complete) as psql:
        assert psql.execute("SELECT * FROM schema_version ORDER BY number").fetchall() == written


def test_a_row_that_is_missing_is_written_where_all_is_there(complete: Settings) -> None:
    """As after a crash between the last step of a migration and its row."""
    with session(complete) as psql:
        psql.execute("DELETE FROM schema_version WHERE number >= 2")
    said = db(complete, "status")
    assert (said.returncode, "not yet written down" in said.stdout) == (0, True)
    assert db(complete, "migrate").returncode == 0
    assert [number for number, *_ in rows(complete)] == ALL


def test_two_starters_at_once_and_one_does_it(older: Settings) -> None:
    with reading(older, "notifications_log"):
        one = begin("db", "migrate", env=environment(older))
        assert one.stderr is not None
        held = next(line for line in one.stderr if " waits for pid " in line)
        assert held.startswith("db migrate 0003 waits for pid ")
        other = begin("db", "migrate", env=environment(older))
        assert other.stderr is not None
        waits = other.stderr.readline()
        assert re.fullmatch(r"db migrate waits for pid \d+ \(brewctl db migrate\), which migrates this .*\n", waits)
    for process, said in (
        (one, f": version {NEWEST} (was 2)\n"),
        (other, "nothing left to do, another session did it\n"),
    ):
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert out.endswith(said)
    assert lacking(older) == []
    assert [number for number, *_ in rows(older)] == ALL


def test_who_migrates_for_too_long_is_named(older: Settings) -> None:
    with session(older, name="somebody") as other:
        other.execute(sql.queries["begin_migrating"])
        with pytest.raises(BrewError, match=r"^another session migrates this database: pid \d+ \(somebody\)"):
            initialize(limited(older, schema_s=0))
    initialize(older)  # its lock went with its session
    assert lacking(older) == []


def test_several_behind_a_pooler_and_one_beside_it(first: Settings) -> None:
    """There no lock lasts longer than a transaction: each step is done once all the same."""
    with pooled(first.database_url, size=8) as url, ThreadPoolExecutor(4) as pool:
        ways = [url, url, url, first.database_url]
        for done in [pool.submit(initialize, Settings(database_url=way)) for way in ways]:
            done.result()
        left = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database ="
        with session(first) as psql:
            asked = f"{left} (SELECT oid FROM pg_database WHERE datname = current_database())"
            assert psql.execute(asked.encode()).fetchone() == (0,), "no lock stays in a session of the pooler's"
    assert lacking(first) == []
    assert [number for number, *_ in rows(first)] == ALL


def test_a_database_of_a_newer_program_is_left_as_it_is_and_roles_work_on(rig: Rig) -> None:
    newer(rig.connection)
    said = rig.brewctl("db", "status")
    assert (said.returncode, said.stderr) == (0, "")
    assert f"version 99, which a newer program made; this one knows {NEWEST}" in said.stdout
    assert json.loads(rig.brewctl("db", "status", "--json").stdout)["databases"][0]["state"] == "newer"
    before = rig.connection.execute("SELECT pg_get_functiondef('outbox_add'::regproc)").fetchone()
    for words in (("db", "migrate"), ("db", "init"), ("db", "plan")):
        done = rig.brewctl(*words)
        assert done.returncode == 0, done.stderr
        assert "version 99" in done.stdout + done.stderr, words
    assert rig.connection.execute("SELECT pg_get_functiondef('outbox_add'::regproc)").fetchone() == before
    assert rig.connection.execute("SELECT to_regclass('outbox_published_by_aggregate')").fetchone() == (None,)

    node = rig.start("publisher-1", "publish")
    log = Path(node.log).read_text("utf-8")
    assert f'event="the database is newer than this program" database=99 program={NEWEST}' in log
    # What its statements need may not be missing there either.
    rig.connection.execute("ALTER TABLE outbox RENAME COLUMN attempts TO tries")
    refused = rig.brewctl("publish")
    assert (refused.returncode, "missing in postgres: outbox.attempts" in refused.stderr) == (1, True)
    assert rig.brewctl("db", "status").returncode == 1


OWN = "brewctl.roles.inventory:DOWNSTREAM"


def test_own_databases_are_shown_and_migrated_beside_one_that_is_away(rig: Rig) -> None:
    with rig.own_database() as url:
        rig.env["BREW_INVENTORY_DATABASE_URL"] = url
        rig.env["BREW_NOTIFICATIONS_DATABASE_URL"] = "postgresql://brew@127.0.0.1:1/away"
        own = Settings(database_url=url)
        with database.connect(own) as connection:
            setup.initialize(connection, tables=parts.INBOX_TABLES)
            connection.execute("ALTER TABLE parked_events DROP COLUMN settled_at")
            connection.execute("DROP INDEX parked_events_open")
        said = rig.brewctl("db", "status")
        assert said.returncode == 3
        lines = said.stdout.splitlines()
        assert lines[0].endswith(f": version {NEWEST} of {NEWEST}")
        assert any(line.startswith("downstream inventory, ") for line in lines)
        assert "  0003_any_event: missing parked_events_open" in lines
        assert any(re.fullmatch("downstream notifications, .*/away: .* refused the connection", line) for line in lines)
        states = [each["state"] for each in json.loads(rig.brewctl("db", "status", "--json").stdout)["databases"]]
        assert states == ["current", "behind", "away"]

        planned = rig.brewctl("db", "plan", "inventory")
        assert "CREATE INDEX CONCURRENTLY IF NOT EXISTS parked_events_open" in planned.stdout
        done = rig.brewctl("db", "migrate")
        assert (done.returncode, "downstream notifications: " in done.stderr) == (3, True)
        assert "db migrate of inventory 0003 built index parked_events_open in " in done.stderr
        with database.connect(own) as connection:
            assert versions.standing(connection, parts.INBOX_TABLES).is_current
        del rig.env["BREW_NOTIFICATIONS_DATABASE_URL"]
        assert rig.brewctl("db", "status").returncode == 0


# What changes the schema is told to the session that does it.
NOTED = """
CREATE SCHEMA noted;
CREATE FUNCTION noted.note() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN RAISE NOTICE 'runs %', current_query(); END $$;
CREATE EVENT TRIGGER note ON ddl_command_start EXECUTE FUNCTION noted.note()
"""


@pytest.mark.parametrize("way", ["from the first schema", "from nothing", "what was dropped"])
def test_the_plan_is_what_is_run(settings: Settings, way: str) -> None:
    arguments = ["plan", "--all"] if way == "from nothing" else ["plan"]
    ran: dict[str, list[str]] = {"by hand": [], "by db migrate": []}
    with session(settings) as psql:
        psql.execute(NOTED)
    for how, statements in ran.items():
        with session(settings) as psql:
            psql.execute("DROP SCHEMA public CASCADE")
            psql.execute("CREATE SCHEMA public")
            if way == "from the first schema":
                psql.execute(FIRST.read_text("utf-8"))
            if way == "what was dropped":
                initialize(settings)
                psql.execute("DROP INDEX outbox_ready, parked_events_open")
                psql.execute("ALTER TABLE processed_events DROP CONSTRAINT processed_events_pkey")
                psql.execute("ALTER TABLE aggregates DROP CONSTRAINT aggregates_pkey")
        if how == "by hand":
            text = db(settings, *arguments).stdout
            lines = [line for line in text.splitlines() if line and not line.startswith(("--", "\\"))]
            with session(settings) as psql:
                psql.add_notice_handler(lambda note, to=statements: to.append(str(note.message_primary)))  # type: ignore[misc]
                for statement in "\n".join(lines).split(";\n"):
                    psql.execute(statement.encode())
            assert [number for number, *_ in rows(settings)] == ALL
        else:
            with database.connect(settings) as connection:
                connection.add_notice_handler(lambda note, to=statements: to.append(str(note.message_primary)))  # type: ignore[misc]
                setup.initialize(connection)
        assert lacking(settings) == []
    ours = {how: [text.rstrip(";") for text in told if text.startswith("runs ")] for how, told in ran.items()}
    assert len(ours["by hand"]) > 4
    assert ours["by hand"] == ours["by db migrate"]
    assert db(settings, "plan").stdout.endswith(": nothing to do.\n")


def test_each_step_of_the_plan_says_what_it_locks(first: Settings) -> None:
    lines = db(first, "plan").stdout.splitlines()
    steps = [line for line in lines if re.match(r"-- \d{4}_\w+: ", line)]
    changes = [line for line in lines if re.match(r"(ALTER TABLE|CREATE INDEX|DROP INDEX)", line)]
    added = [
        line for line in changes if line.startswith("ALTER") and not re.search(" (nodes|retention|downstreams) ", line)
    ]  # those are new
    assert len([line for line in steps if ": columns " in line and "ACCESS EXCLUSIVE" in line]) == len(added) > 4
    assert any("locks outbox (ACCESS EXCLUSIVE) for a moment; waits 50 ms" in line for line in steps)
    assert any("locks outbox (SHARE UPDATE EXCLUSIVE): reads and writes go on" in line for line in steps)
    assert all(" CONCURRENTLY " in line for line in changes if "INDEX" in line and " outbox " in line)


def test_the_plan_of_all_needs_no_server() -> None:
    done = run("db", "plan", "--all", env={"BREW_DATABASE_URL": "postgresql://127.0.0.1:1/none"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "CREATE TABLE IF NOT EXISTS outbox (" in done.stdout
    refused = run("db", "plan", "--all", "inventory")
    assert (refused.returncode, "leave inventory out" in refused.stderr) == (2, True)
    away = run("db", "plan", env={"BREW_DATABASE_URL": "postgresql://127.0.0.1:1/none"})
    assert away.returncode == 3
    unknown = run("db", "plan", "nobody")
    assert (unknown.returncode, "has no database of its own" in unknown.stderr) == (2, True)


def test_a_row_that_can_not_be_written_yet_is_waited_for(complete: Settings) -> None:
    with session(complete) as psql:
        psql.execute("DELETE FROM schema_version WHERE number = 1")
        with psql.transaction():
            psql.execute("LOCK TABLE schema_version IN SHARE MODE")
            process = begin("db", "migrate", env=environment(complete))
            waits = "SELECT count(*) > 0 FROM pg_locks WHERE relation = 'schema_version'::regclass AND NOT granted"
            wait_until("a wait", lambda: psql.execute(waits).fetchone() == (True,), timeout_s=60, every_s=0.01)
            wait_until("its end", lambda: psql.execute(waits).fetchone() == (False,), timeout_s=60, every_s=0.01)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    assert [number for number, *_ in rows(complete)] == ALL

"""Tables that are put into partitions beside writers: with all that is theirs, or not at all."""

import threading
import uuid
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from brewctl.config import Settings
from brewctl.delivery import database
from brewctl.delivery.retention import retention
from brewctl.delivery.schema import completion, setup
from brewctl.doctor import partitions
from brewctl.errors import BrewError
from brewctl.lifecycle import wait_until
from brewctl.sql import migrations
from tests.conftest import limited, run

ROWS = 20_000
FILL = (
    "INSERT INTO outbox (aggregate_id, topic, payload, published_at, event_type)"
    " SELECT 'order-' || n, 't', repeat('x', 300)::bytea, CASE WHEN n %% 10 > 0 THEN now() END, 'e'"
    " FROM generate_series(1, %s) n"
)
TABLES = ("outbox", "processed_events")
EVENT = "INSERT INTO outbox (aggregate_id, topic, payload) VALUES ('a-1', 't', 'x') RETURNING id"
DEDUP = "INSERT INTO processed_events (consumer, outbox_id) VALUES ('inventory', %s)"
Session = psycopg.Connection[tuple[object, ...]]


@pytest.fixture
def settings(servers: dict[str, str]) -> Iterator[Settings]:
    """A database of the migration before, with rows in tables that are not small."""
    name = f"brew_test_{uuid.uuid4().hex[:12]}"
    url = servers["BREW_DATABASE_URL"]
    with psycopg.connect(url, autocommit=True) as maintenance:
        maintenance.execute(f'CREATE DATABASE "{name}"')
        try:
            settings = Settings(database_url=make_conninfo(url, dbname=name))
            with session(settings) as connection:
                for number in (1, 2, 3):
                    connection.execute(migrations[number])
                connection.execute(FILL, (ROWS,))
                connection.execute("INSERT INTO processed_events SELECT 'inventory', id FROM outbox")
                connection.execute("INSERT INTO processed_events SELECT 'notifications', id FROM outbox")
                connection.execute("INSERT INTO processed_events SELECT 'a ' || n, 1 FROM generate_series(1, 60000) n")
            yield settings
        finally:
            maintenance.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def session(settings: Settings) -> Session:
    return psycopg.connect(settings.database_url, autocommit=True)


def migrate(settings: Settings, told: list[str] | None = None) -> None:
    with database.connect(settings, name="brewctl db init") as connection:
        setup.initialize(connection, tell=([] if told is None else told).append)


def kinds(connection: Session) -> list[object]:
    asked = "SELECT relkind::text FROM pg_class WHERE oid IN ('outbox'::regclass, 'processed_events'::regclass)"
    return [kind for (kind,) in connection.execute(asked)]


def indexes(connection: Session, table: str) -> list[tuple[object, ...]]:
    asked = (
        "SELECT x.relname, indisvalid, indisunique, indisprimary, pg_get_expr(indpred, indrelid), indkey::text"
        "  FROM pg_index JOIN pg_class x ON x.oid = indexrelid WHERE indrelid = %s::regclass ORDER BY 1"
    )
    return connection.execute(asked, (table,)).fetchall()


def columns(connection: Session, table: str) -> list[tuple[object, ...]]:
    asked = (
        "SELECT attname, atttypid, attnotnull, attidentity, attacl::text, col_description(attrelid, attnum),"
        "       pg_get_expr(adbin, adrelid)"
        "  FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum"
        " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
    )
    return connection.execute(asked, (table,)).fetchall()


def test_all_that_is_a_table_s_own_comes_along_and_its_rows_stay_where_they_are(settings: Settings) -> None:
    reader = f"brew_reader_{uuid.uuid4().hex[:8]}"
    with session(settings) as connection:
        connection.execute(f"CREATE ROLE {reader}".encode())
        try:
            connection.execute(f"GRANT SELECT (id), UPDATE (failure) ON outbox TO {reader}".encode())
            connection.execute(f"GRANT DELETE ON outbox TO {reader} WITH GRANT OPTION".encode())
            connection.execute(f"GRANT SELECT ON SEQUENCE outbox_id_seq TO {reader}".encode())
            connection.execute("COMMENT ON TABLE outbox IS 'ours'; COMMENT ON COLUMN outbox.topic IS 'where to'")
            connection.execute("CREATE INDEX of_the_user ON outbox (created_at)")
            connection.execute("ALTER TABLE outbox ADD COLUMN gone text")
            connection.execute("ALTER TABLE outbox DROP COLUMN gone, ADD COLUMN kept text DEFAULT 'k'")
            asked = "SELECT pg_relation_filenode(%s)"
            files = {table: connection.execute(asked, (table,)).fetchone() for table in TABLES}
            before = {table: (columns(connection, table), indexes(connection, table)) for table in TABLES}
            rights = "SELECT relacl::text, relowner, obj_description(oid) FROM pg_class WHERE relname = %s"
            had = connection.execute(rights, ("outbox",)).fetchone()
            ids = "SELECT relacl::text FROM pg_class WHERE relname = 'outbox_id_seq'"
            sequence = connection.execute(ids).fetchone()
            migrate(settings)
            assert kinds(connection) == ["p", "p"]
            assert {table: (columns(connection, table), indexes(connection, table)) for table in TABLES} == before
            assert connection.execute(rights, ("outbox",)).fetchone() == had
            assert connection.execute(ids).fetchone() == sequence
            assert {table: connection.execute(asked, (f"{table}_p0",)).fetchone() for table in TABLES} == files
            # Nobody else has a right to a partition.
            (others,) = connection.execute(
                "SELECT count(*) FROM pg_class, aclexplode(relacl) WHERE relispartition AND grantee <> relowner"
            ).fetchone() or (None,)
            assert others == 0
            assert connection.execute("SELECT count(*), max(id) FROM outbox").fetchone() == (ROWS, ROWS)
            # Ids jump: nothing is written to the first partition any more, which can be dropped one day.
            (bound,) = connection.execute("SELECT upper FROM partitions_of('outbox') LIMIT 1").fetchone() or (0,)
            assert connection.execute(EVENT).fetchone() == (bound,)
            assert int(str(bound)) > ROWS
            migrate(settings)
            assert completion.missing(connection) == []
        finally:
            connection.execute(f"DROP OWNED BY {reader}; DROP ROLE {reader}".encode())


def test_writers_and_readers_go_on_meanwhile(settings: Settings) -> None:
    over, written, failures = threading.Event(), list[object](), list[Exception]()

    def write() -> None:
        try:
            with session(settings) as connection:
                while not over.is_set():
                    (row_id,) = connection.execute(EVENT).fetchone() or (0,)
                    connection.execute(DEDUP, (row_id,))
                    connection.execute("SELECT count(*) FROM outbox WHERE id = %s", (row_id,))
                    written.append(row_id)
        except Exception as error:  # noqa: BLE001 - looked at below
            failures.append(error)

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    try:
        wait_until("rows before", lambda: len(written) > 50, timeout_s=60, every_s=0.01)
        migrate(settings)
        count = len(written)
        wait_until("rows after", lambda: len(written) > count + 50, timeout_s=60, every_s=0.01)
    finally:
        over.set()
        for writer in writers:
            writer.join()
    assert failures == []
    assert len(set(written)) == len(written)
    with session(settings) as connection:
        assert kinds(connection) == ["p", "p"]
        assert connection.execute("SELECT count(*) FROM outbox").fetchone() == (ROWS + len(written),)
        asked = "SELECT count(*) FROM processed_events WHERE outbox_id = ANY(%s)"
        assert connection.execute(asked, (written,)).fetchone() == (len(written),)


HANGING = {
    "view": ("CREATE VIEW seen AS SELECT id FROM outbox", "DROP VIEW seen", "view seen"),
    "foreign key": (
        "CREATE TABLE notes (row_id bigint REFERENCES outbox)",
        "DROP TABLE notes",
        "foreign key notes_row_id_fkey of notes",
    ),
    "trigger": (
        "CREATE TRIGGER told AFTER UPDATE ON outbox EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "DROP TRIGGER told ON outbox",
        "trigger told",
    ),
    "publication": ("CREATE PUBLICATION copies FOR TABLE outbox", "DROP PUBLICATION copies", "publication copies"),
    "policy": ("CREATE POLICY mine ON outbox USING (true)", "DROP POLICY mine ON outbox", "policy mine"),
    "function": (
        "CREATE FUNCTION first_row() RETURNS outbox LANGUAGE sql AS 'SELECT * FROM outbox LIMIT 1'",
        "DROP FUNCTION first_row()",
        "function first_row()",
    ),
    "index": (
        "CREATE UNIQUE INDEX one_event ON outbox (event_id)",
        "DROP INDEX one_event",
        "index one_event, unique without id",
    ),
}


def test_what_would_stay_with_a_part_of_the_table_is_named_before_anything_is_changed(settings: Settings) -> None:
    with session(settings) as connection:
        for make, _, _ in HANGING.values():
            connection.execute(make.encode())
        with pytest.raises(BrewError) as refused:
            migrate(settings)
        for _, _, named in HANGING.values():
            assert named in refused.value.message
        assert refused.value.hint == "take them away, run `brewctl db init` again, and make them anew on outbox"
        assert kinds(connection) == ["r", "r"]
        checks = "SELECT count(*) FROM pg_constraint WHERE conname LIKE '%_before_partitions'"
        assert connection.execute(checks).fetchone() == (0,)
        for _, take_away, _ in HANGING.values():
            connection.execute(take_away.encode())
        migrate(settings)
        assert kinds(connection) == ["p", "p"]


@pytest.mark.parametrize("steps", [1, 2])
def test_an_interrupted_run_is_gone_on_with(settings: Settings, steps: int) -> None:
    with session(settings) as connection:
        connection.execute(migrations[4].partition("SELECT partition_table(")[0])
        for step in ("bound", "validate")[:steps]:
            connection.execute("SELECT partition_table('outbox', %s)", (step,))
        checks = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'outbox_before_partitions'"
        (check,) = connection.execute(checks).fetchone() or ("",)
        # Writers have millions of ids left.
        assert connection.execute(EVENT).fetchone() == (ROWS + 1,)
        assert "11000000" in str(check)
        migrate(settings)
        assert kinds(connection) == ["p", "p"]
        assert connection.execute(checks).fetchall() == []
        assert connection.execute(EVENT).fetchone() == (11_000_000,)


def test_a_check_that_ids_have_come_near_to_is_replaced(settings: Settings) -> None:
    with session(settings) as connection:
        connection.execute(migrations[4].partition("SELECT partition_table(")[0])
        connection.execute("SELECT partition_table('outbox', 'bound')")
        connection.execute("ALTER TABLE outbox ALTER id RESTART WITH 10900000")
        connection.execute(EVENT)
        migrate(settings)
        assert connection.execute(EVENT).fetchone() == (21_000_000,)


def test_an_outbox_id_that_no_outbox_has_given_out_is_named(settings: Settings) -> None:
    with session(settings) as connection:
        connection.execute(DEDUP, (2**63 - 1,))
        with pytest.raises(
            BrewError, match=f"it has a row with outbox_id {2**63 - 1}, and no outbox comes so far"
        ) as no:
            migrate(settings)
        assert f"with outbox_id > {10**15} in psql" in no.value.hint
        connection.execute("DELETE FROM processed_events WHERE outbox_id = %s", (2**63 - 1,))
        migrate(settings)
        assert kinds(connection) == ["p", "p"]


def test_a_database_with_ids_of_another_outbox_is_migrated_and_goes_on(settings: Settings) -> None:
    other, bound = 10**9, 1_011_000_000
    with session(settings) as connection, database.connect(settings) as ours:
        connection.execute(DEDUP, (other,))
        migrate(settings)
        assert kinds(connection) == ["p", "p"]
        (row_id,) = connection.execute(EVENT).fetchone() or (0,)
        assert row_id == 11_000_000  # the outbox's own ids do not follow the other's
        connection.execute(DEDUP, (row_id,))
        connection.execute(DEDUP, (other + 1,))
        # The first partition has them all, so this outbox has room for long, and nothing of it goes so soon.
        first, *rest = connection.execute("SELECT name::text, lower, upper FROM partitions_of('processed_events')")
        assert first == ("processed_events_p0", None, bound)
        [found] = partitions.check(ours, partitions.last_row(ours))
        assert found.found == "ahead are 3 of outbox, 4 of processed_events"
        strays = [verdict for _, verdict in retention.strays(settings, ours)]
        assert [each.partition.name for each in strays] == ["processed_events_p0", *(name for name, _, _ in rest)]
        [why] = strays[0].reasons
        assert why.text.endswith(f"it goes once the watermark has come to {bound}")
        assert "delete its rows with an outbox_id below the watermark" in why.todo


def test_a_small_table_goes_on_without_a_gap(settings: Settings) -> None:
    with session(settings) as connection:
        connection.execute("TRUNCATE outbox, processed_events CONTINUE IDENTITY")
        assert connection.execute(EVENT).fetchone() == (ROWS + 1,)
        migrate(settings)
        assert connection.execute(EVENT).fetchone() == (ROWS + 2,)
        assert kinds(connection) == ["p", "p"]
        done = run("db", "init", "--reset", "--yes", env={"BREW_DATABASE_URL": settings.database_url})
        assert done.returncode == 0, done.stderr
        assert connection.execute(EVENT).fetchone() == (ROWS + 3,)


def test_who_holds_the_table_is_named(settings: Settings) -> None:
    with session(settings) as dump:
        dump.execute("BEGIN")
        dump.execute("LOCK TABLE outbox IN ACCESS SHARE MODE")
        with pytest.raises(
            BrewError, match=rf"table outbox can't be changed: it is in use by pid {dump.info.backend_pid}"
        ):
            migrate(limited(settings, schema_wait_s=0.5))

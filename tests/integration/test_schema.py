"""`brewctl db init` beside roles at work, a pg_dump, another `db init`, and what a crash or an older version left."""

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from brewctl.config import Settings, environment
from brewctl.delivery import database
from brewctl.delivery.orders import acceptance, store
from brewctl.delivery.schema import completion, parts, setup
from brewctl.errors import BrewError
from brewctl.lifecycle import wait_until
from brewctl.proto.orders_pb2 import CreateRequest
from brewctl.sql import queries
from tests.conftest import limited, run

OLDER = sorted((Path(__file__).parent / "schemas").glob("*.sql"))
# An INSERT that waits for a lock at all fails: the tables have no other writer.
AT_ONCE = "-c lock_timeout=50ms"
ORDER = (
    "INSERT INTO orders (id, tenant_id, customer_id, amount_cents, currency, status)"
    " VALUES (%s, 't', 'c', 1, 'EUR', 'ORDER_STATUS_NEW')"
)
EVENT = "INSERT INTO outbox (aggregate_id, topic, payload) VALUES ('order-' || %s, 't', '')"
Session = psycopg.Connection[tuple[object, ...]]


@pytest.fixture
def settings(servers: dict[str, str]) -> Iterator[Settings]:
    """An empty database."""
    name = f"brew_test_{uuid.uuid4().hex[:12]}"
    url = servers["BREW_DATABASE_URL"]
    with psycopg.connect(url, autocommit=True) as maintenance:
        maintenance.execute(f'CREATE DATABASE "{name}"')
        try:
            yield Settings(database_url=make_conninfo(url, dbname=name))
        finally:
            maintenance.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def initialize(settings: Settings, told: list[str] | None = None) -> None:
    with database.connect(settings, name="brewctl db init") as connection:
        setup.initialize(connection, tell=([] if told is None else told).append)


@pytest.fixture
def complete(settings: Settings) -> Settings:
    initialize(settings)
    return settings


def session(settings: Settings, *, name: str = "psql", options: str = "") -> Session:
    return psycopg.connect(settings.database_url, autocommit=True, application_name=name, options=options)


def lacking(settings: Settings) -> list[str]:
    with session(settings) as connection:
        return [str(part) for part in completion.missing(connection)]


@contextlib.contextmanager
def dumping(settings: Settings) -> Iterator[Session]:
    """Somebody who reads all tables in one snapshot, as pg_dump does, until the block ends."""
    with session(settings, name="pg_dump") as dump:
        dump.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        dump.execute(f"LOCK TABLE {', '.join(parts.TABLES)} IN ACCESS SHARE MODE")
        dump.execute("SELECT count(*) FROM orders")
        yield dump
        with contextlib.suppress(psycopg.OperationalError):  # ended by somebody
            dump.rollback()


@contextlib.contextmanager
def begun(action: Callable[[], None]) -> Iterator[Future[None]]:
    """Something that goes on in a thread of its own beside the block."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(action)


def write_order(writer: Session) -> None:
    order_id = uuid.uuid4()
    with writer.transaction():
        writer.execute(ORDER, (order_id,))
        writer.execute(EVENT, (order_id,))


def builders(settings: Settings) -> list[int]:
    """Sessions that build an index and wait for somebody."""
    with session(settings) as connection:
        asked = (
            "SELECT pid FROM pg_stat_progress_create_index WHERE datname = current_database() AND phase LIKE 'waiting%'"
        )
        return [int(str(pid)) for (pid,) in connection.execute(asked)]


def test_a_complete_schema_is_not_touched(complete: Settings) -> None:
    with session(complete) as owner, owner.transaction():
        # Whoever asked for any lock of a table that roles use would wait.
        used = [table for table in parts.TABLES if table != parts.VERSIONS]
        owner.execute(f"LOCK TABLE {', '.join(used)} IN ACCESS EXCLUSIVE MODE")
        initialize(limited(complete, schema_wait_s=0))
        done = run("db", "init", env=environment(complete))
    assert (done.returncode, done.stderr) == (0, "")


def test_an_empty_database_gets_all_of_it_beside_transactions_of_others(settings: Settings) -> None:
    with session(settings, name="psql") as other:
        other.execute("CREATE TABLE theirs ()")
        other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        other.execute("SELECT * FROM theirs")
        initialize(settings)
        other.rollback()
    assert lacking(settings) == []


def test_no_create_waits_for_a_column_that_a_dump_holds_up(complete: Settings) -> None:
    with session(complete) as connection:
        connection.execute("ALTER TABLE outbox DROP COLUMN attempts, DROP COLUMN kafka_offset")
    told: list[str] = []
    with (
        session(complete, options=AT_ONCE) as writer,
        dumping(complete) as dump,
        begun(lambda: initialize(complete, told)) as adding,
    ):
        wait_until("a line about the dump", lambda: bool(told), timeout_s=60, every_s=0.01)
        assert told[0].startswith(f"0002 waits for pid {dump.info.backend_pid} (pg_dump)")
        for _ in range(300):
            write_order(writer)
        assert not adding.done()
        dump.rollback()
        # Its turn comes while orders are written; they wait for it for a moment.
        writer.execute("SET lock_timeout = 0")
        while not adding.done():
            write_order(writer)
        adding.result()
    assert lacking(complete) == []


@pytest.mark.parametrize("way", ["the column", "--reset"])
def test_who_holds_a_table_is_named_and_the_hint_is_true(complete: Settings, way: str) -> None:
    def init(settings: Settings) -> None:
        with database.connect(settings) as connection:
            setup.initialize(connection, reset=way == "--reset")

    with session(complete) as connection:
        if way == "the column":
            connection.execute("ALTER TABLE outbox DROP COLUMN attempts")
    with dumping(complete) as dump:
        pid = dump.info.backend_pid
        with pytest.raises(BrewError) as failed:
            init(limited(complete, schema_wait_s=0.5))
        assert f"in use by pid {pid} (pg_dump), whose transaction is" in failed.value.message
        assert failed.value.hint.startswith("run this again when that is over")
        command = f"SELECT pg_terminate_backend({pid});"
        assert f"`{command}`" in failed.value.hint
        with session(complete) as psql:
            psql.execute(command.replace(")", ", 20000)"))
        init(complete)
    assert lacking(complete) == []


def test_writers_go_on_while_an_index_is_built(complete: Settings) -> None:
    with session(complete) as connection:
        connection.execute("DROP INDEX outbox_ready, outbox_published_by_aggregate")
    with (
        session(complete, options=AT_ONCE) as writer,
        dumping(complete) as dump,
        begun(lambda: initialize(complete)) as building,
    ):
        wait_until("a build that waits for the dump", lambda: bool(builders(complete)), timeout_s=60, every_s=0.01)
        for _ in range(100):
            write_order(writer)
        assert not building.done()
        dump.rollback()
        building.result()
    assert lacking(complete) == []


def test_a_build_that_a_crash_cut_off_is_made_again(complete: Settings) -> None:
    with session(complete) as connection:
        connection.execute("DROP INDEX outbox_ready")
    with dumping(complete), begun(lambda: initialize(complete)) as building:
        wait_until("a build that waits for the dump", lambda: bool(builders(complete)), timeout_s=60, every_s=0.01)
        with session(complete) as psql:
            psql.execute("SELECT pg_terminate_backend(%s, 20000)", builders(complete))
        with pytest.raises(BrewError):
            building.result()
    assert lacking(complete) == ["outbox_ready"]
    with session(complete) as connection, pytest.raises(BrewError, match=r"outbox_ready: run `brewctl db migrate`"):
        setup.require(connection)
    initialize(complete)
    assert lacking(complete) == []


def test_a_build_that_takes_too_long_says_for_whom_it_waits(complete: Settings) -> None:
    with session(complete) as connection:
        connection.execute("DROP INDEX outbox_ready")
    with (
        dumping(complete),
        pytest.raises(BrewError, match=r"^index outbox_ready_p0 can't .* in use by pid \d+ \(pg_dump\)"),
    ):
        initialize(limited(complete, schema_s=1))
    initialize(complete)
    assert lacking(complete) == []


@pytest.mark.parametrize("older", [None, *OLDER[:1]], ids=["empty", "older"])
def test_several_at_once(settings: Settings, older: Path | None) -> None:
    if older:
        with session(settings) as connection:
            connection.execute(older.read_text("utf-8"))
            connection.execute("ALTER TABLE processed_events DROP CONSTRAINT processed_events_pkey")
    with ThreadPoolExecutor(4) as pool:
        together = threading.Barrier(4)

        def init() -> None:
            together.wait(60)
            initialize(settings)

        for done in [pool.submit(init) for _ in range(4)]:
            done.result()
    assert lacking(settings) == []


@pytest.mark.parametrize("older", OLDER, ids=[path.stem for path in OLDER])
def test_an_older_versions_tables_are_brought_up_to_date_with_their_rows(settings: Settings, older: Path) -> None:
    with session(settings) as connection:
        connection.execute(older.read_text("utf-8"))
        for _ in range(20):
            write_order(connection)
        connection.execute("UPDATE outbox SET published_at = now() WHERE id > 10")
        connection.execute("INSERT INTO processed_events (consumer, outbox_id) SELECT 'inventory', id FROM outbox")
        with pytest.raises(BrewError, match=r"^missing in postgres: .*outbox\.event_id.*outbox_add\(\)"):
            setup.require(connection)
        tables = ("orders", "outbox", "processed_events")
        before = {table: connection.execute(f"SELECT count(*) FROM {table}").fetchone() for table in tables}
        initialize(settings)
        assert lacking(settings) == []
        assert before == {table: connection.execute(f"SELECT count(*) FROM {table}").fetchone() for table in tables}
        asked = "SELECT DISTINCT attempts, duplicates FROM outbox JOIN processed_events ON outbox_id = id"
        assert connection.execute(asked).fetchall() == [(0, 0)]
        fetched = {"after": 0, "until": 2**63 - 1, "limit": 100, "bytes": 1000, "without_topics": []}
        assert len(connection.execute(queries["fetch_unpublished"], fetched).fetchall()) == 10
    with database.connect(settings) as ours:
        new = acceptance.accept(
            CreateRequest(customer_id="c", amount_cents=1, currency="EUR"), tenant_id=None, traceparent=None
        )
        assert store.write(ours, [new], topic="t") == {new.id}


def test_a_function_that_is_another_is_made_anew_by_several_at_once(complete: Settings) -> None:
    with session(complete) as connection:
        asked = "SELECT outbox_add(NULL, 'a-1', 'e', 'x')"
        assert connection.execute(asked).fetchone() == (1,)
        (made,) = connection.execute("SELECT pg_get_functiondef('outbox_add'::regproc)").fetchone() or ("",)
        later = str(made).replace("outbox_add: ", "a later version: ")
        connection.execute(later.encode())
        # One of another service's, of the same name, is no concern of ours.
        connection.execute("CREATE FUNCTION outbox_add(int) RETURNS int LANGUAGE sql AS 'SELECT 1'")
        assert lacking(complete) == ["outbox_add()"]
        with pytest.raises(BrewError, match=r"^missing in postgres: outbox_add\(\): run `brewctl db migrate`"):
            setup.require(connection)
        with ThreadPoolExecutor(4) as pool:
            together = threading.Barrier(4)

            def init() -> None:
                together.wait(60)
                initialize(complete)

            for done in [pool.submit(init) for _ in range(4)]:
                done.result()
        assert lacking(complete) == []
        assert connection.execute(asked).fetchone() == (2,)


def test_who_changes_the_schema_is_waited_for(complete: Settings) -> None:
    with session(complete) as connection:
        connection.execute("DROP FUNCTION outbox_add")
        with begun(lambda: initialize(complete)) as adding:
            with connection.transaction():
                connection.execute(queries["lock_schema"])
                asked = "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"

                def waits() -> bool:
                    return connection.execute(asked).fetchone() == (True,)

                # Longer than one wait for a lock: it comes again.
                wait_until("a first wait", waits, timeout_s=60, every_s=0.01)
                wait_until("its end", lambda: not waits(), timeout_s=60, every_s=0.01)
            adding.result()
    assert lacking(complete) == []


def test_a_key_that_is_gone_stops_a_role_and_comes_back(complete: Settings) -> None:
    with session(complete) as connection:
        connection.execute("ALTER TABLE processed_events DROP CONSTRAINT processed_events_pkey")
        key = "the primary key of processed_events (consumer, outbox_id)"
        assert lacking(complete) == [key]
        with pytest.raises(BrewError) as refused:
            setup.require(connection)
        assert str(refused.value) == f"missing in postgres: {key}: run `brewctl db migrate`"
        # Nobody was hindered meanwhile.
        connection.execute(
            "INSERT INTO processed_events (consumer, outbox_id) VALUES ('inventory', 7), ('inventory', 7)"
        )
        with pytest.raises(BrewError) as twice:
            initialize(complete)
        assert "processed_events_p0 are there twice: Key (consumer, outbox_id)=(inventory, 7)" in twice.value.message
        connection.execute("DELETE FROM processed_events WHERE ctid = (SELECT min(ctid) FROM processed_events)")
        initialize(complete)
        assert lacking(complete) == []
        primary = "SELECT indisprimary FROM pg_index WHERE indexrelid = 'processed_events_pkey'::regclass"
        assert connection.execute(primary).fetchone() == (True,)


def test_the_sessions_own_bound_comes_back(complete: Settings) -> None:
    with session(complete) as connection:
        connection.execute("DROP INDEX outbox_ready")
    with database.connect(complete) as connection:
        before = connection.execute("SHOW statement_timeout").fetchone()
        setup.initialize(connection)
        assert connection.execute("SHOW statement_timeout").fetchone() == before


def test_the_printed_schema_is_the_same_one(settings: Settings) -> None:
    """Applied by psql, which splits it by itself; `db init` has nothing to add."""
    printed = run("db", "init", "--print-sql").stdout
    with session(settings) as connection:
        connection.execute(printed)
        assert lacking(settings) == []
        # Again, over what is there; nothing of a transaction's own is in the way.
        connection.execute(printed)
        assert connection.execute("SELECT outbox_add(NULL, 'a-1', 'e', 'x')").fetchone() == (1,)
    done = run("db", "init", env=environment(settings))
    assert (done.returncode, done.stderr) == (0, "")
    assert lacking(settings) == []

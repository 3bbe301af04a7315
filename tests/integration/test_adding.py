"""outbox_add and add_event: an event of any service, in its own transaction, numbered without gaps."""

import contextlib
import dataclasses
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg.rows import dict_row

from brewctl import add_event
from brewctl.delivery import database
from brewctl.delivery.schema import setup
from brewctl.errors import BrewError
from brewctl.proto.orders_pb2 import OrderCreated
from tests.conftest import Rig, open_rig
from tests.integration.outbox_tools import create_order

SPAN = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
Rows = list[tuple[object, ...]]


@pytest.fixture(scope="module")
def rig(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """One for all: each test has aggregates of its own, and nothing is published."""
    with open_rig(servers, tmp_path_factory.mktemp("logs")) as rig:
        yield rig


def add(connection: psycopg.Connection[tuple[object, ...]], key: str | None, **named: object) -> int:
    """Call the function as SQL does, by the names of its arguments."""
    given = {"topic": None, "aggregate_id": key, "event_type": "payment.received", "payload": b"x", **named}
    arguments = ", ".join(f"{name} => %({name})s" for name in given)
    row = connection.execute(f"SELECT outbox_add({arguments})".encode(), given).fetchone() or (0,)
    assert isinstance(row[0], int)
    return row[0]


def seqs(rig: Rig, key: str) -> list[object]:
    """The numbers of an aggregate's events, in the order of their outbox ids."""
    asked = "SELECT aggregate_seq FROM outbox WHERE aggregate_id = %s ORDER BY id"
    return [seq for (seq,) in rig.connection.execute(asked, (key,))]


def row_of(rig: Rig, outbox_id: int) -> dict[str, object]:
    with rig.connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute("SELECT * FROM outbox WHERE id = %s", (outbox_id,)).fetchone() or {}


@contextlib.contextmanager
def session(rig: Rig, **options: bool) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    with psycopg.connect(rig.settings.database_url, autocommit=options.get("autocommit", False)) as connection:
        yield connection


def test_what_is_not_given_has_a_default(rig: Rig) -> None:
    row = row_of(rig, add(rig.connection, "default-1"))
    assert (row["topic"], row["tenant_id"]) == ("usecase-09-01-order-created", "brew")
    assert len(str(row["trace_id"])) == 32
    assert isinstance(row["event_id"], uuid.UUID)
    assert row["traceparent"] is row["content_type"] is row["published_at"] is None


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (f"00-{SPAN}", True),
        (f"01-{SPAN}-later", True),
        (f"00-{SPAN}-more", False),
        (f"ff-{SPAN}", False),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", False),
        (f"00-{SPAN.upper()}", False),
        ("garbage\r\n", False),
        ("", False),
    ],
)
def test_the_trace_is_that_of_a_traceparent_that_is_one(rig: Rig, given: str, kept: bool) -> None:
    row = row_of(rig, add(rig.connection, "trace-1", traceparent=given))
    assert row["traceparent"] == (given if kept else None)
    assert (row["trace_id"] == SPAN[:32]) == kept
    assert len(str(row["trace_id"])) == 32


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"aggregate_id": None}, "aggregate_id must have 1 to 1000 bytes"),
        ({"aggregate_id": ""}, "aggregate_id must have 1 to 1000 bytes"),
        ({"aggregate_id": "ä" * 501}, "aggregate_id must have 1 to 1000 bytes"),
        ({"event_type": None}, "event_type must have 1 to 1000 bytes"),
        ({"event_type": ""}, "event_type must have 1 to 1000 bytes"),
        ({"payload": None}, "payload must not be empty"),
        ({"payload": b""}, "payload must not be empty"),
        ({"topic": ""}, "topic must be 1 to 249 letters"),
        ({"topic": ".."}, "topic must be 1 to 249 letters"),
        ({"topic": "a b"}, "topic must be 1 to 249 letters"),
        ({"topic": "t\n"}, "topic must be 1 to 249 letters"),
        ({"topic": "t" * 250}, "topic must be 1 to 249 letters"),
        ({"tenant_id": ""}, "tenant_id must be 1 to 64 letters"),
        ({"tenant_id": "t" * 65}, "tenant_id must be 1 to 64 letters"),
        ({"trace_id": "t" * 1001}, "trace_id must have at most 1000 bytes"),
        ({"content_type": "t" * 1001}, "content_type must have at most 1000 bytes"),
    ],
)
def test_what_could_never_be_published_or_read_is_refused_at_once(
    rig: Rig, wrong: dict[str, object], said: str
) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=f"^outbox_add: {said}"):
        add(rig.connection, "wrong-1", **wrong)
    assert seqs(rig, "wrong-1") == []


def test_writers_at_once_number_without_gaps_whoever_rolls_back(rig: Rig) -> None:
    keys = [f"many-{number}" for number in range(3)]

    def write(writer: int) -> None:
        with session(rig) as connection:
            for turn in range(60):
                add(connection, keys[(writer + turn) % 3], payload=str(writer).encode())
                connection.rollback() if turn % 3 == writer % 3 else connection.commit()

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(write, writer) for writer in range(6)]:
            done.result()
    for key in keys:
        found = seqs(rig, key)
        assert len(found) > 20
        assert found == list(range(1, len(found) + 1))


def test_a_savepoint_that_is_undone_takes_its_number_back(rig: Rig) -> None:
    with session(rig) as connection, connection.transaction():
        add(connection, "savepoint-1")
        with connection.transaction(force_rollback=True):
            add(connection, "savepoint-1")
        add(connection, "savepoint-1")
    assert seqs(rig, "savepoint-1") == [1, 2]


@pytest.mark.parametrize("outcome", ["commit", "rollback"])
def test_the_second_writer_of_an_aggregate_waits_for_the_first(rig: Rig, outcome: str) -> None:
    key = f"waits-{outcome}"
    with session(rig) as first, session(rig) as second, ThreadPoolExecutor(1) as pool:
        add(first, key)
        waiting = pool.submit(add, second, key)
        pid, asked = second.info.backend_pid, "SELECT wait_event_type FROM pg_stat_activity WHERE pid = %s"
        rig.wait("a lock", lambda: rig.connection.execute(asked, (pid,)).fetchone() == ("Lock",))
        first.commit() if outcome == "commit" else first.rollback()
        waiting.result(60)
        second.commit()
    assert seqs(rig, key) == ([1, 2] if outcome == "commit" else [1])


def test_an_order_has_its_first_event_already(rig: Rig) -> None:
    orders = [create_order(rig) for _ in range(3)]
    keys = [f"order-{order}" for order in orders]
    rig.connection.execute("UPDATE outbox SET published_at = now() WHERE aggregate_id = %s", (keys[1],))
    # Whoever keeps the table small: numbered 1 again, its second event would be taken for an old one.
    rig.connection.execute("DELETE FROM outbox WHERE aggregate_id = %s", (keys[2],))
    for key in keys:
        add(rig.connection, key)
        add(rig.connection, key)
    assert [seqs(rig, key) for key in keys] == [[1, 2, 3], [1, 2, 3], [2, 3]]
    assert add(rig.connection, f"order-{uuid.uuid4()}")
    assert add(rig.connection, "order-4711")


def test_rows_of_the_version_before_are_counted(rig: Rig) -> None:
    for number in range(3):
        rig.connection.execute(
            "INSERT INTO outbox (aggregate_id, topic, payload, published_at) VALUES ('old-1', 't', '', %s)",
            ("2026-01-01" if number else None,),
        )
    add(rig.connection, "old-1")
    assert seqs(rig, "old-1") == [None, None, None, 4]


def test_a_large_outbox_is_looked_up_by_its_indexes(rig: Rig) -> None:
    with rig.connection.transaction(force_rollback=True):
        rig.connection.execute(
            "INSERT INTO outbox (aggregate_id, topic, payload, published_at)"
            " SELECT 'large-' || n, 't', '', CASE WHEN n % 2 = 0 THEN now() END FROM generate_series(1, 100000) n"
        )
        rig.connection.execute("ANALYZE outbox")
        # The other tables are small here, and may be read as a whole.
        asked = "SELECT coalesce(seq_scan, 0) FROM pg_stat_xact_user_tables WHERE relname = 'outbox'"
        before = rig.connection.execute(asked).fetchall()
        # A plan is made anew for the first five calls of a session, then perhaps kept.
        for number in range(1, 9):
            add(rig.connection, f"large-{number}")
        assert rig.connection.execute(asked).fetchall() == before
        asked = "SELECT count(*) FROM outbox WHERE aggregate_id LIKE 'large-%%' AND aggregate_seq = 2"
        assert rig.connection.execute(asked, ()).fetchone() == (8,)


def test_a_service_of_its_own_user_and_schema_finds_the_outbox(rig: Rig) -> None:
    """Its tables may have our names, and its search_path none of ours."""
    role = f"brew_test_{uuid.uuid4().hex[:8]}"
    with session(rig) as service:
        service.execute(f'CREATE ROLE "{role}"'.encode())
        service.execute("CREATE SCHEMA shop")
        service.execute("CREATE TABLE shop.outbox (theirs int)")
        service.execute("CREATE TEMP TABLE aggregates (theirs int)")
        for grant in (
            "SELECT, INSERT, UPDATE ON aggregates",
            "SELECT, INSERT ON outbox",
            "SELECT ON orders",
        ):
            words = grant.replace("ON ", "ON public.")
            service.execute(f'GRANT {words} TO "{role}"'.encode())
        service.execute(f'SET LOCAL ROLE "{role}"'.encode())
        service.execute("SET LOCAL search_path = shop")
        statement = "SELECT public.outbox_add(NULL, 'theirs-1', 'payment.received', 'x')"
        service.execute(statement)
        assert service.execute("SHOW search_path").fetchone() == ("shop",)
        service.execute("RESET ROLE")
        rows = service.execute("SELECT aggregate_seq FROM public.outbox WHERE aggregate_id = 'theirs-1'").fetchall()
        assert rows == [(1,)]
        service.rollback()


@pytest.mark.parametrize("autocommit", [False, True])
def test_add_event_takes_any_connection(rig: Rig, autocommit: bool) -> None:
    key = f"python-{autocommit}"
    event_id = uuid.uuid4()
    with psycopg.connect(rig.settings.database_url, autocommit=autocommit, row_factory=dict_row) as connection:
        order = OrderCreated(order_id=str(uuid.uuid4()))
        first = add_event(connection, aggregate_id=key, event_type="order.created", payload=order)
        second = add_event(
            connection,
            aggregate_id=key,
            event_type="payment.received",
            payload=b"{}",
            topic="payments",
            tenant_id="acme",
            trace_id="a" * 32,
            traceparent=f"00-{SPAN}",
            event_id=str(event_id),
            content_type="application/json",
        )
        assert bool(seqs(rig, key)) == autocommit
        connection.commit()
    assert first < second
    assert seqs(rig, key) == [1, 2]
    assert row_of(rig, first)["payload"] == order.SerializeToString()
    row = row_of(rig, second)
    assert (row["topic"], row["tenant_id"], row["trace_id"]) == ("payments", "acme", "a" * 32)
    assert (row["traceparent"], row["event_id"]) == (f"00-{SPAN}", event_id)
    assert (row["content_type"], row["payload"]) == ("application/json", b"{}")


def test_add_event_in_a_transaction_that_is_undone_adds_nothing(rig: Rig) -> None:
    with session(rig, autocommit=True) as connection, connection.transaction(force_rollback=True):
        add_event(connection, aggregate_id="undone-1", event_type="e", payload=b"x")
    assert seqs(rig, "undone-1") == []
    with database.connect(rig.settings) as ours:
        add_event(ours, aggregate_id="undone-1", event_type="e", payload=b"x")
    assert seqs(rig, "undone-1") == [1]


def test_add_event_says_what_it_can_not_take(rig: Rig) -> None:
    with session(rig) as connection:
        with pytest.raises(TypeError, match="payload must be bytes or a protobuf message, not str"):
            add_event(connection, aggregate_id="a", event_type="e", payload="text")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"takes a psycopg\.Connection, not str"):
            add_event(rig.settings.database_url, aggregate_id="a", event_type="e", payload=b"x")  # type: ignore[arg-type]
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="event_type must have"):
            add_event(connection, aggregate_id="a", event_type="", payload=b"x")
        connection.rollback()
        connection.execute("DROP FUNCTION outbox_add")
        with pytest.raises(BrewError) as missing:
            add_event(connection, aggregate_id="a", event_type="e", payload=b"x")
        assert missing.value.hint.startswith("run `brewctl db init`")
        connection.rollback()


def test_a_function_of_an_owner_with_a_schema_of_its_own(rig: Rig, servers: dict[str, str]) -> None:
    """`"$user"` is another schema for each caller: the function keeps the owner's."""
    name = f"brew_test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(servers["BREW_DATABASE_URL"], autocommit=True) as maintenance:
        maintenance.execute(f'CREATE DATABASE "{name}"'.encode())
        try:
            url = psycopg.conninfo.make_conninfo(servers["BREW_DATABASE_URL"], dbname=name)
            settings = dataclasses.replace(rig.settings, database_url=url)
            with psycopg.connect(url) as owner:
                owner.execute("CREATE SCHEMA AUTHORIZATION CURRENT_USER")
                (schema,) = owner.execute("SELECT current_schema()").fetchone() or ("",)
            with database.connect(settings) as connection:
                setup.initialize(connection)
            with psycopg.connect(url) as caller:
                caller.execute("SET search_path = ''")
                asked = f"SELECT \"{schema}\".outbox_add(NULL, 'a-1', 'e', 'x')"
                assert caller.execute(asked.encode()).fetchone() == (1,)
        finally:
            maintenance.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())

"""What a handler may do with the transaction that it is lent, and what it is told where it may not."""

import dataclasses
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row

from brewctl.delivery import database
from brewctl.delivery.database import BoundedConnection, Pool
from brewctl.delivery.database.lent_transaction import HandlerError, lent
from brewctl.delivery.downstream import Downstream
from brewctl.delivery.inbox.inbox import Inbox
from tests.conftest import Rig, limited, open_rig
from tests.integration.test_inbox import record
from tests.pgbouncer import guest, pooled

Kept = list[Any]

pytestmark = pytest.mark.usefixtures("one_try")


@pytest.fixture(scope="module")
def rig(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with open_rig(servers, tmp_path_factory.mktemp("handed")) as rig:
        rig.connection.execute("CREATE TABLE points (n bigint PRIMARY KEY, word text)")
        yield rig


@pytest.fixture(autouse=True)
def _empty(rig: Rig) -> None:
    rig.connection.execute("TRUNCATE points, processed_events, redeliveries")


@pytest.fixture
def connection(pool: Pool) -> Iterator[BoundedConnection]:
    with pool.connection() as connection:
        yield connection


def handled(
    rig: Rig, pool: Pool, handler: Callable[[Any, Any], None], *, form: str = "handler", count: int = 1
) -> Inbox:
    own: dict[str, Any] = {form: handler}
    inbox = Inbox(rig.settings, pool, Downstream("points", **own, events=("order.created",)), node="points-1")
    inbox.handle([record(number) for number in range(1, count + 1)])
    return inbox


def kept(rig: Rig) -> tuple[int, int]:
    """Return how many effects and how many dedup rows there are."""
    statement = "SELECT (SELECT count(*) FROM points), (SELECT count(*) FROM processed_events)"
    effects, taken = rig.connection.execute(statement).fetchone() or (0, 0)
    return effects, taken


def insert(tx: Any, number: int = 1) -> None:
    tx.execute("INSERT INTO points VALUES (%s, 'one')", (number,))


def test_a_handler_has_a_psycopg_connection(rig: Rig, connection: BoundedConnection) -> None:
    with connection.transaction():
        with lent(connection) as tx:
            assert isinstance(tx, psycopg.Connection)
            assert tx.execute("SELECT 1").connection is tx
            with tx.cursor(row_factory=dict_row) as cursor:
                assert cursor.execute("SELECT 1 AS one").fetchone() == {"one": 1}
                cursor.executemany("INSERT INTO points VALUES (%s, %s)", [(1, "a"), (2, "b"), (3, "c")])
                assert cursor.rowcount == 3
                assert [row["n"] for row in cursor.stream("SELECT n FROM points ORDER BY n")] == [1, 2, 3]
                with cursor.copy("COPY points FROM STDIN") as copy:
                    copy.write_row((4, "d"))
            with tx.cursor("named") as named:
                named.itersize = 2
                assert [n for (n,) in named.execute("SELECT n FROM points ORDER BY n")] == [1, 2, 3, 4]
            with tx.pipeline():
                cursors = [tx.execute("DELETE FROM points WHERE n = %s", (n,)) for n in (1, 2, 9)]
                assert [cursor.fetchone() for cursor in [tx.execute("SELECT 7")]] == [(7,)]
            assert [cursor.rowcount for cursor in cursors] == [1, 1, 0]
            statement = sql.SQL("SELECT {} FROM {}").format(sql.Literal("it's"), sql.Identifier('po"ints'))
            assert statement.as_string(tx) == """SELECT 'it''s' FROM "po""ints\""""
            assert psycopg.ClientCursor(tx).mogrify("SELECT %s", ("x",)) == "SELECT 'x'"
            assert tx.info.encoding == "utf-8"
            tx.row_factory = dict_row  # type: ignore[assignment]
            tx.cursor_factory = psycopg.ClientCursor
            assert tx.execute("SELECT %s AS x", ("y",)).fetchone() == {"x": "y"}  # type: ignore[comparison-overlap]
            with pytest.raises(psycopg.errors.UniqueViolation), tx.transaction():
                insert(tx, 3)
            with tx.transaction() as outer, tx.transaction():
                insert(tx, 5)
                raise psycopg.Rollback(outer)
        assert connection.execute("SELECT 1").fetchone() == (1,)  # what was set on tx is gone with it
    assert rig.connection.execute("SELECT n FROM points ORDER BY n").fetchall() == [(3,), (4,)]


def test_notices_reach_the_handlers_listener_and_ours_afterwards(connection: BoundedConnection) -> None:
    said: list[str] = []
    connection.add_notice_handler(lambda notice: said.append(f"ours: {notice.message_primary}"))
    statement = "DO $$ BEGIN RAISE NOTICE 'here'; END $$"
    with connection.transaction():
        with lent(connection) as tx:
            tx.add_notice_handler(lambda notice: said.append(f"its: {notice.message_primary}"))
            tx.execute(statement)
        connection.execute(statement)
    assert said == ["its: here", "ours: here"]


ENDS: dict[str, Callable[[Any], object]] = {
    "commit": lambda tx: tx.commit(),
    "rollback": lambda tx: tx.rollback(),
    "close": lambda tx: tx.close(),
    "autocommit": lambda tx: setattr(tx, "autocommit", True),
    "autocommit ": lambda tx: tx.set_autocommit(True),
    "isolation_level": lambda tx: setattr(tx, "isolation_level", psycopg.IsolationLevel.SERIALIZABLE),
    "isolation_level ": lambda tx: tx.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE),
    "read_only": lambda tx: setattr(tx, "read_only", True),
    "deferrable": lambda tx: tx.set_deferrable(True),
    "tpc_begin": lambda tx: tx.tpc_begin("x"),
    "with tx:": lambda tx: tx.__enter__(),
    "COMMIT": lambda tx: tx.execute("COMMIT"),
    "ROLLBACK": lambda tx: tx.execute(b"/* now */ rollback"),
    "END": lambda tx: tx.cursor().execute(sql.SQL("SELECT {}; END").format(1)),
    "ABORT": lambda tx: psycopg.Connection.cursor(tx).executemany("ABORT", []),
    "BEGIN": lambda tx: tx.cursor("named").execute("SELECT 1; BEGIN"),
    "START": lambda tx: list(tx.cursor().stream("START TRANSACTION")),
    "PREPARE TRANSACTION": lambda tx: tx.execute("PREPARE TRANSACTION 'x'"),
    "SET": lambda tx: tx.execute("SET search_path TO elsewhere"),
    "RESET": lambda tx: tx.execute("RESET ROLE"),
    "LISTEN": lambda tx: tx.execute("LISTEN told"),
    "set_config": lambda tx: tx.execute("SELECT set_config(%s, %s, false)", ("statement_timeout", "0")),
    "pg_advisory_lock": lambda tx: tx.execute("SELECT pg_advisory_lock(7)"),
    "TEMP": lambda tx: tx.execute("CREATE TEMP TABLE processed_events (a int)"),
    "withhold": lambda tx: tx.cursor("kept", withhold=True),
}


@pytest.mark.parametrize("end", ENDS)
def test_what_ends_the_transaction_is_refused_in_plain_words(rig: Rig, pool: Pool, end: str) -> None:
    def handler(_event: Any, tx: Any) -> None:
        insert(tx)
        ENDS[end](tx)

    with pytest.raises(HandlerError, match=end.strip()) as caught:
        handled(rig, pool, handler)
    assert "the transaction is brewctl's" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert kept(rig) == (0, 0)


def test_a_class_of_cursors_of_the_handlers_own_is_no_way_around(rig: Rig, pool: Pool) -> None:
    def handler(_event: Any, tx: Any) -> None:
        tx.cursor_factory = psycopg.RawCursor
        tx.execute("SELECT $1::int", (1,))
        tx.execute("COMMIT")

    with pytest.raises(HandlerError, match="COMMIT"):
        handled(rig, pool, handler)


def test_a_handler_that_ended_the_transaction_after_all_can_do_no_more_in_it(rig: Rig, pool: Pool) -> None:
    def and_returns(_event: Any, tx: Any) -> None:
        psycopg.Cursor(tx).execute("ROLLBACK")

    def and_goes_on(_event: Any, tx: Any) -> None:
        psycopg.Cursor(tx).execute("ROLLBACK")
        insert(tx)

    for handler in (and_returns, and_goes_on):
        with pytest.raises(HandlerError, match="ended the transaction"):
            handled(rig, pool, handler)
        assert kept(rig) == (0, 0)


def test_a_failed_statement_that_the_handler_keeps_to_itself_is_its_error(rig: Rig, pool: Pool) -> None:
    """PostgreSQL would turn the COMMIT into a ROLLBACK without a word, and the event would count as done."""

    def handler(_event: Any, tx: Any) -> None:
        insert(tx)
        try:
            insert(tx)
        except psycopg.errors.UniqueViolation:
            return

    for form in ("handler", "batch"):
        with pytest.raises(HandlerError, match="failed") as caught:
            handled(rig, pool, handler, form=form)
        assert "with tx.transaction()" in str(caught.value)
        assert kept(rig) == (0, 0)


def test_a_failed_statement_in_a_savepoint_is_none(rig: Rig, pool: Pool) -> None:
    def handler(_event: Any, tx: Any) -> None:
        insert(tx)
        with pytest.raises(psycopg.errors.UniqueViolation), tx.transaction():
            insert(tx)

    assert handled(rig, pool, handler).tally.effects == 1
    assert kept(rig) == (1, 1)


def test_psycopgs_rollback_is_an_error_like_any_other(rig: Rig, pool: Pool) -> None:
    """psycopg leaves its own block with it in silence: the event would count as done."""

    def handler(_event: Any, tx: Any) -> None:
        insert(tx)
        raise psycopg.Rollback

    with pytest.raises(HandlerError, match="Rollback"):
        handled(rig, pool, handler)
    assert kept(rig) == (0, 0)


USES: dict[str, Callable[[Any, Any], object]] = {
    "execute": lambda tx, _cursor: tx.execute("SELECT 1"),
    "cursor": lambda tx, _cursor: tx.cursor(),
    "transaction": lambda tx, _cursor: tx.transaction().__enter__(),
    "attribute": lambda tx, _cursor: tx.info,
    "set": lambda tx, _cursor: setattr(tx, "row_factory", dict_row),
    "commit": lambda tx, _cursor: tx.commit(),
    "with": lambda tx, _cursor: tx.__enter__(),
    "a cursor of it": lambda tx, _cursor: psycopg.Cursor(tx),
    "kept cursor": lambda _tx, cursor: cursor.execute("SELECT 1"),
    "kept cursor's rows": lambda _tx, cursor: cursor.fetchone(),
    "kept cursor's loop": lambda _tx, cursor: list(cursor),
    "kept cursor's many": lambda _tx, cursor: cursor.executemany("SELECT %s", [(1,)]),
    "kept cursor's stream": lambda _tx, cursor: list(cursor.stream("SELECT 1")),
    "kept cursor's connection": lambda _tx, cursor: cursor.connection.execute("SELECT 1"),
}


@pytest.mark.parametrize("use", USES)
def test_tx_is_of_no_use_once_the_handler_has_returned(rig: Rig, pool: Pool, use: str) -> None:
    """Not outside, not in another thread, and not in the next call, whose transaction is the same one."""
    things: list[tuple[Any, Any]] = []
    refused: list[HandlerError] = []

    def try_it() -> None:
        with pytest.raises(HandlerError, match="after the handler had returned") as caught:
            USES[use](*things[0])
        refused.append(caught.value)

    def handler(event: Any, tx: Any) -> None:
        if things:
            try_it()
        things.append((tx, tx.execute("SELECT generate_series(1, 3)")))
        insert(tx, event.outbox_id)

    handled(rig, pool, handler, count=2)
    try_it()
    thread = threading.Thread(target=try_it)
    thread.start()
    thread.join()
    assert len(refused) == 3
    assert "tx of a handler" in repr(things[0][0])
    assert kept(rig) == (2, 2)


def test_a_thread_that_still_uses_tx_when_the_handler_returns_is_an_error(rig: Rig) -> None:
    threads: list[threading.Thread] = []

    def handler(_event: Any, tx: Any) -> None:
        def sleep() -> None:
            with pytest.raises((psycopg.Error, HandlerError)):
                tx.execute("SELECT pg_sleep(30)")

        threads.append(threading.Thread(target=sleep))
        threads[0].start()
        rig.wait("the statement", lambda: sleepers(rig) == 1)

    # The pool's end ends what its sessions do; else the thread waits for its answer until this bound.
    hurried = limited(rig.settings, database_connect_s=5, database_statement_s=7.0, database_answer_s=8.0)
    with database.open_pool(hurried, name="test", size=1) as pool, pytest.raises(HandlerError, match="still running"):
        handled(rig, pool, handler)
    threads[0].join()
    assert kept(rig) == (0, 0)


def sleepers(rig: Rig) -> int:
    statement = (
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(30)%' AND state = 'active'"
        " AND pid <> pg_backend_pid() AND datname = current_database()"
    )
    (count,) = rig.connection.execute(statement).fetchone() or (0,)
    return int(count)


def test_what_a_handler_left_open_is_an_error_and_the_pool_goes_on(rig: Rig, pool: Pool) -> None:
    left: Kept = []

    def stream(_event: Any, tx: Any) -> None:
        left.append(tx.cursor().stream("SELECT generate_series(1, 100000)"))
        next(left[-1])

    def pipeline(_event: Any, tx: Any) -> None:
        tx.pgconn.enter_pipeline_mode()

    for handler in (stream, pipeline):
        with pytest.raises(HandlerError, match="still running"):
            handled(rig, pool, handler)
        assert kept(rig) == (0, 0)
    assert handled(rig, pool, lambda event, tx: insert(tx, event.outbox_id)).tally.effects == 1


@pytest.mark.parametrize("form", ["handler", "batch"])
@pytest.mark.parametrize("says", ["nothing", "something else"])
def test_a_session_lost_under_a_handler_is_a_lost_server_whatever_the_handler_says(
    rig: Rig, pool: Pool, form: str, says: str
) -> None:
    """So the batch is tried again, and the event is not blamed."""
    lost: Kept = []

    def handler(_event: Any, tx: Any) -> None:
        insert(tx, 7)
        pid = tx.info.backend_pid
        if not lost:
            lost.append(pid)
            rig.connection.execute("SELECT pg_terminate_backend(%s, 10000)", (pid,))
            if says == "something else":
                raise KeyError("sorry")

    own: dict[str, Any] = {form: handler}
    inbox = Inbox(rig.settings, pool, Downstream("points", **own, events=("order.created",)), node="points-1")
    batch = inbox.read([record(1)])
    with pytest.raises(psycopg.OperationalError):
        inbox.apply(batch)
    assert (kept(rig), inbox.tally.effects) == ((0, 0), 0)
    inbox.apply(batch)
    assert (kept(rig), inbox.tally.effects, inbox.tally.dead) == ((1, 1), 1, 0)


def test_what_is_said_of_the_transaction_alone_ends_with_the_transaction(rig: Rig) -> None:
    def handler(_event: Any, tx: Any) -> None:
        tx.execute("SET LOCAL search_path TO public, pg_temp")
        tx.execute("SET CONSTRAINTS ALL IMMEDIATE")
        tx.execute("SELECT set_config('statement_timeout', '1s', true), pg_advisory_xact_lock(7)")
        tx.execute("CREATE TEMP TABLE mine ON COMMIT DROP AS SELECT 1 AS a")
        insert(tx)

    with database.open_pool(rig.settings, name="test", size=1) as pool:
        handled(rig, pool, handler)
        with pool.connection() as connection:
            assert connection.execute("SHOW search_path").fetchone() == ('"$user", public',)
            assert connection.execute("SHOW statement_timeout").fetchone() == ("30s",)
            assert connection.execute("SELECT to_regclass('mine')").fetchone() == (None,)
            left = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
            assert connection.execute(left).fetchone() == (0,)


@pytest.mark.parametrize("ignored", ["", "options,extra_float_digits"])
def test_handlers_behind_a_pooler(rig: Rig, ignored: str) -> None:
    """Each transaction may have another session of the server: no statement is prepared there, and nothing stays."""

    def handler(event: Any, tx: Any) -> None:
        for word in ("a", "b"):
            tx.execute("INSERT INTO points VALUES (%s, %s)", (event.outbox_id * 2 + (word == "b"), word))

    with pooled(rig.settings.database_url, ignored=ignored) as url:
        settings = dataclasses.replace(rig.settings, database_url=url)
        with database.open_pool(settings, name="test", size=1) as pool, guest(url) as other:
            handled(rig, pool, lambda events, tx: insert(tx, -len(events)), form="batch", count=3)
            assert handled(rig, pool, handler, count=10).tally.effects == 7
            assert other.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)
    assert kept(rig) == (15, 10)


def test_settings_of_tx_are_not_ours(connection: BoundedConnection) -> None:
    before = connection.prepare_threshold
    with connection.transaction(), lent(connection) as tx:
        tx.prepare_threshold = 0
        tx.adapters.register_dumper(uuid.UUID, psycopg.types.string.StrDumper)
    assert connection.prepare_threshold == before
    assert connection.execute("SELECT pg_typeof(%s)::text", (uuid.uuid4(),)).fetchone() == ("uuid",)

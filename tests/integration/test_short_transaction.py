"""A transaction in two round trips, and a publisher's: what it sends, and what becomes of rows where that fails."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from brewctl.config import Settings
from brewctl.delivery import database
from brewctl.delivery.broker import RefusedError
from brewctl.delivery.database import BoundedConnection, NoAnswerError, Pool
from brewctl.delivery.database.short_transaction import ShortTransaction
from brewctl.delivery.outbox.publisher import Publisher
from tests.conftest import Rig, limited
from tests.integration.outbox_tools import TAKEN, ScriptedProducer, create_order, unpublished
from tests.integration.scan_tools import Instant
from tests.pgbouncer import pooled
from tests.tcp_proxy import Proxy, proxied

STRANGE = "a 'quoted' \\ word; DROP TABLE outbox; -- $1 %(b)s ü"
# How a table refuses what a publisher does to it: at once, or as it is committed.
REFUSALS = {
    "the mark": "CREATE TRIGGER refusal AFTER UPDATE ON outbox FOR EACH ROW EXECUTE FUNCTION refuse()",
    "the commit": "CREATE CONSTRAINT TRIGGER refusal AFTER UPDATE ON outbox DEFERRABLE INITIALLY DEFERRED"
    " FOR EACH ROW EXECUTE FUNCTION refuse()",
}


@pytest.fixture(params=["a session of our own", "behind a pooler"])
def settings(rig: Rig, request: pytest.FixtureRequest) -> Iterator[Settings]:
    if request.param == "a session of our own":
        yield rig.settings
        return
    with pooled(rig.settings.database_url) as url:
        yield replace(rig.settings, database_url=url)


@pytest.fixture
def one(settings: Settings) -> Iterator[Pool]:
    """A publisher's connection."""
    with database.open_pool(settings, name="one", size=1, by_index=True) as pool:
        yield pool


@pytest.fixture
def connection(one: Pool) -> Iterator[BoundedConnection]:
    with one.connection() as connection:
        yield connection


@contextmanager
def behind_proxy(settings: Settings) -> Iterator[tuple[Settings, Proxy]]:
    server = conninfo_to_dict(settings.database_url)
    with proxied(str(server["host"]), int(str(server["port"]))) as proxy:
        yield replace(settings, database_url=make_conninfo(settings.database_url, port=proxy.port)), proxy


def round_trips(pool: Pool, path: Path, ask: Callable[[], object]) -> int:
    """Count the messages that wait for an answer."""
    with path.open("w") as trace:
        with pool.connection() as connection:
            connection.pgconn.trace(trace.fileno())
        ask()
        with pool.connection() as connection:
            connection.pgconn.untrace()
    return len(re.findall(r"\tF\t\d+\t(?:Sync|Query)", path.read_text()))


def found(publisher: Publisher) -> int | None:
    """Return what a look finds; None while the pool has no connection yet."""
    try:
        return publisher.publish_batch(Instant())  # type: ignore[arg-type]
    except psycopg.OperationalError:
        return None


def test_a_batch_takes_two_round_trips_and_a_look_that_finds_nothing_one(rig: Rig, one: Pool, tmp_path: Path) -> None:
    publisher = Publisher(rig.settings, one, node="n")

    def look(*, expects: bool) -> tuple[int | None, int]:
        rows: list[int | None] = []
        publisher._expects = expects
        asked = round_trips(one, tmp_path / "trace", lambda: rows.append(found(publisher)))
        return rows[0], asked

    for _ in range(2):  # the first time each statement is prepared
        create_order(rig)
        assert look(expects=True) == (1, 2)
        assert look(expects=True) == (0, 2)
        assert look(expects=False) == (0, 1)
        create_order(rig)
        assert look(expects=False) == (1, 3), "asked whether there is any, taken, marked"
    assert unpublished(rig) == []


def test_statements_and_what_they_are_given_arrive_as_they_are(rig: Rig, connection: BoundedConnection) -> None:
    query = "SELECT %(a)s::text, %(b)s::bigint -%(c)s, %(d)b::bigint[], %(e)s::text[], %(a)s -- as it ends"
    given = {"a": STRANGE, "b": 5, "c": -3, "d": [1, -2], "e": [STRANGE, ""]}
    for each in (given, given | {"b": 2**60, "d": [], "e": []}):
        expected = (each["a"], each["b"] + 3, each["d"], each["e"], STRANGE)  # type: ignore[operator]
        with ShortTransaction(connection) as transaction:
            assert transaction.peek(query, each).fetchall() == [expected]
            assert not transaction.began
            assert transaction.execute(query, each).fetchall() == [expected]
            assert transaction.execute("SELECT 1 WHERE false").fetchall() == []
            transaction.commit()
    rig.connection.execute("CREATE TABLE kept (a text)")
    with ShortTransaction(connection) as transaction:
        transaction.execute("INSERT INTO kept VALUES (%(a)s)", {"a": "left without a commit"})
    with ShortTransaction(connection) as transaction:
        transaction.commit("INSERT INTO kept VALUES (%(a)s)", {"a": STRANGE})
    assert connection.execute("SELECT a FROM kept").fetchall() == [(STRANGE,)]


def test_it_runs_with_the_settings_that_its_session_asks_for(connection: BoundedConnection) -> None:
    names = ("enable_seqscan", "statement_timeout", "transaction_isolation", "jit")
    query = f"SELECT {', '.join(f'current_setting({name!r})' for name in names)}"
    with ShortTransaction(connection) as transaction:
        for answer in (transaction.peek(query, {}), transaction.execute(query), transaction.execute(query)):
            assert answer.fetchall() == [("off", "30s", "read committed", "off")]


@pytest.mark.parametrize("refused", REFUSALS)
def test_where_the_mark_or_its_commit_is_refused_rows_stay_and_are_taken_again(
    rig: Rig, one: Pool, refused: str
) -> None:
    rig.connection.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not these rows'; END $$"
    )
    publisher = Publisher(rig.settings, one, node="n")
    create_order(rig)
    assert publisher.publish_batch(Instant()) == 1  # type: ignore[arg-type]
    create_order(rig)
    rig.connection.execute(REFUSALS[refused].encode())
    for _ in range(2):
        with pytest.raises(psycopg.errors.RaiseException, match="not these rows"):
            publisher.publish_batch(Instant())  # type: ignore[arg-type]
        assert publisher.work().effects == 1
        assert len(unpublished(rig)) == 1
    rig.connection.execute("DROP TRIGGER refusal ON outbox")
    assert publisher.publish_batch(Instant()) == 1  # type: ignore[arg-type]
    assert unpublished(rig) == []


def test_rows_are_set_aside_and_others_marked_in_one_commit_or_not_at_all(rig: Rig, one: Pool) -> None:
    create_order(rig)
    create_order(rig)
    outcomes = (RefusedError(STRANGE), TAKEN)
    rig.connection.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no mark'; END $$;"
        " CREATE TRIGGER refusal AFTER UPDATE OF published_at ON outbox FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    publisher = Publisher(rig.settings, one, node="n")
    state = "SELECT published_at IS NOT NULL, failure FROM outbox ORDER BY id"
    with pytest.raises(psycopg.errors.RaiseException):
        publisher.publish_batch(ScriptedProducer(*outcomes))  # type: ignore[arg-type]
    assert rig.connection.execute(state).fetchall() == [(False, None)] * 2
    rig.connection.execute("DROP TRIGGER refusal ON outbox")
    assert publisher.publish_batch(ScriptedProducer(*outcomes)) == 2  # type: ignore[arg-type]
    assert rig.connection.execute(state).fetchall() == [(False, STRANGE), (True, None)]


def test_an_error_that_is_not_the_databases_frees_the_rows_and_keeps_the_connection(rig: Rig, one: Pool) -> None:
    class Failing:
        def send(self, *_: object, **__: object) -> None:
            raise RuntimeError

    publisher = Publisher(rig.settings, one, node="n")
    create_order(rig)
    with one.connection() as connection:
        before = connection
    for _ in range(2):
        with pytest.raises(RuntimeError):
            publisher.publish_batch(Failing())  # type: ignore[arg-type]
    with one.connection() as connection:
        assert connection is before
    assert publisher.publish_batch(Instant()) == 1  # type: ignore[arg-type]


def test_a_connection_that_is_lost_at_the_commit_is_an_error_and_the_rows_are_not_lost(rig: Rig) -> None:
    with (
        behind_proxy(rig.settings) as (settings, proxy),
        database.open_pool(settings, name="lost", size=1, by_index=True) as pool,
    ):
        publisher = Publisher(settings, pool, node="n")
        create_order(rig)
        with pytest.raises(psycopg.OperationalError):
            publisher.publish_batch(Instant(proxy.hang_up))  # type: ignore[arg-type]
        assert publisher.work().effects == 0
        assert len(unpublished(rig)) == 1
        rig.wait("its session's end", lambda: found(publisher) == 1)
        assert unpublished(rig) == []


def test_an_answer_to_the_commit_that_never_comes_ends_the_wait(rig: Rig) -> None:
    """What was sent may be committed all the same: then the row is marked, as it was acknowledged."""
    bounded = limited(rig.settings, database_connect_s=1, database_statement_s=2, database_answer_s=3.0)
    with (
        behind_proxy(bounded) as (settings, proxy),
        database.open_pool(settings, name="silent", size=1, by_index=True) as pool,
    ):
        publisher = Publisher(settings, pool, node="n")
        create_order(rig)
        assert publisher.publish_batch(Instant()) == 1  # type: ignore[arg-type]
        create_order(rig)
        with pool.connection() as connection:
            before = connection
        with pytest.raises(NoAnswerError):
            publisher.publish_batch(Instant(proxy.swallowing.set))  # type: ignore[arg-type]
        assert before.closed
        assert publisher.work().effects == 1
        rig.wait("the commit", lambda: unpublished(rig) == [])
        proxy.swallowing.clear()
        rig.wait("another connection", lambda: found(publisher) == 0)

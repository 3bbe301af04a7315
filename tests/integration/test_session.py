"""A session is what brewctl asks for, whatever the server, the database or the shell say."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from brewctl.config import Settings
from brewctl.delivery import database
from brewctl.delivery.broker import Producer
from brewctl.delivery.orders import acceptance, store
from brewctl.delivery.outbox.publisher import Publisher
from brewctl.doctor import Verdict, postgres
from brewctl.errors import UnreachableError
from brewctl.lifecycle import wait_until
from tests.conftest import Rig, limited, open_rig, run
from tests.integration.grpc_tools import order, somebody
from tests.pgbouncer import shown

# A shell in which somebody works with other servers. None of it is about ours.
SHELL = {
    "PGHOSTADDR": "192.0.2.1",
    "PGSERVICE": "elsewhere",
    "PGOPTIONS": "-c statement_timeout=1 -c default_transaction_read_only=on",
    "PGCLIENTENCODING": "LATIN1",
    "PGDATESTYLE": "German",
    "PGTZ": "Nowhere/Land",
    "PGGEQO": "maybe",
    "PGSSLMODE": "verify-full",
    "PGREQUIRESSL": "1",
    "PGSSLROOTCERT": "system",
    "PGSSLNEGOTIATION": "direct",
    "PGSSLCERTMODE": "require",
    "PGSSLMINPROTOCOLVERSION": "none",
    "PGGSSENCMODE": "require",
    "PGCHANNELBINDING": "require",
    "PGREQUIREAUTH": "none",
    "PGTARGETSESSIONATTRS": "standby",
    "PGLOADBALANCEHOSTS": "never",
    "PGMINPROTOCOLVERSION": "9",
    "PGMAXPROTOCOLVERSION": "1",
    "PGAPPNAME": "",
    "PGCONNECT_TIMEOUT": "",
}


@pytest.fixture(scope="module")
def rig(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with open_rig(servers, tmp_path_factory.mktemp("session")) as rig:
        yield rig


@pytest.fixture(scope="module", params=["SQL_ASCII", "LATIN1"])
def narrow(
    servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Rig]:
    """Its database does not keep text as UTF-8."""
    options = f"ENCODING '{request.param}' LOCALE_PROVIDER libc LOCALE 'C' TEMPLATE template0"
    with open_rig(servers, tmp_path_factory.mktemp("narrow"), database_options=options) as rig:
        yield rig


def written(settings: Settings, customer: str) -> acceptance.NewOrder:
    """Write an order as a role does."""
    new = acceptance.accept(order(customer_id=customer), tenant_id=None, traceparent=None)
    with database.open_pool(settings, name="writer", size=1) as pool, pool.connection() as connection:
        assert store.write(connection, [new], topic=settings.topic) == {new.id}
    return new


def test_a_session_is_the_same_whatever_the_database_says(rig: Rig) -> None:
    name = rig.connection.info.dbname
    said = {
        "jit": "on",
        "default_transaction_isolation": "serializable",
        "search_path": "hidden",
        "DateStyle": "German",
        "TimeZone": "Europe/Berlin",
        "statement_timeout": "0",
        "lock_timeout": "1",
        "idle_in_transaction_session_timeout": "0",
        "client_encoding": "LATIN1",
    }
    # Tables of the same names, which nobody made with `db init`.
    rig.connection.execute("CREATE SCHEMA hidden")
    rig.connection.execute("CREATE TABLE hidden.orders (LIKE orders INCLUDING ALL)")
    rig.connection.execute("CREATE TABLE hidden.outbox (LIKE outbox INCLUDING ALL)")
    for setting, value in said.items():
        rig.connection.execute(f"ALTER DATABASE \"{name}\" SET {setting} = '{value}'".encode())
    try:
        with database.connect(rig.settings) as connection:
            found = shown(connection, *said)
        new = written(rig.settings, "café ☕")
        looked = {each.check: each for each in postgres.check(rig.settings)}
    finally:
        for setting in said:
            rig.connection.execute(f'ALTER DATABASE "{name}" RESET {setting}'.encode())
        rig.connection.execute("DROP SCHEMA hidden CASCADE")
    assert found == {
        "jit": "off",
        "default_transaction_isolation": "read committed",
        "search_path": '"$user", public',
        "DateStyle": "ISO, MDY",
        "TimeZone": "UTC",
        "statement_timeout": "30s",
        "lock_timeout": "0",
        "idle_in_transaction_session_timeout": "15s",
        "client_encoding": "UTF8",
    }
    assert store.get(rig.connection, str(new.id)) == new.order
    assert looked["session"].verdict is Verdict.OK
    assert "?options=-csearch_path%3Dhidden" in looked["search_path"].mend


def test_what_the_url_says_wins_and_the_doctor_names_what_that_costs(rig: Rig) -> None:
    options = "-c search_path=pg_catalog,public --statement-timeout=0 -cjit=on"
    settings = replace(rig.settings, database_url=make_conninfo(rig.settings.database_url, options=options))
    with database.connect(settings) as connection:
        assert shown(connection, "search_path", "statement_timeout") == {
            "search_path": "pg_catalog,public",
            "statement_timeout": "0",
        }
    found = {each.check: each for each in postgres.check(settings)}
    assert {check: found[check].verdict for check in ("statement_timeout", "jit")} == {
        "statement_timeout": Verdict.WARN,
        "jit": Verdict.WARN,
    }
    assert "session" not in found


def test_a_server_on_this_machine_is_reached_whatever_the_shell_says(rig: Rig) -> None:
    for arguments in (("db", "init"), ("counts",)):
        done = run(*arguments, env=rig.env | SHELL)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("variable", SHELL)
def test_no_variable_of_the_shell_changes_a_session(rig: Rig, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, SHELL[variable])
    with database.connect(rig.settings, name="shell") as connection:
        names = ("client_encoding", "DateStyle", "TimeZone", "statement_timeout", "application_name", "search_path")
        assert list(shown(connection, *names).values()) == [
            "UTF8",
            "ISO, MDY",
            "UTC",
            "30s",
            "shell",
            '"$user", public',
        ]


def test_a_variable_in_the_way_to_another_machine_is_named(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that is not loopback, and leads here: the shell says how it is spoken to, as in psql."""
    url = make_conninfo(rig.settings.database_url, host="0.0.0.0")
    monkeypatch.setenv("PGSSLMODE", "require")
    with (
        pytest.raises(UnreachableError, match="speaks no TLS") as caught,
        database.connect(replace(rig.settings, database_url=url)),
    ):
        pass
    assert caught.value.hint.startswith("unset PGSSLMODE, or say")
    # What the hint says mends it.
    with database.connect(replace(rig.settings, database_url=make_conninfo(url, sslmode="prefer"))):
        pass


def test_text_that_a_database_can_not_keep_is_refused_and_named(narrow: Rig) -> None:
    encoding = narrow.connection.info.parameter_status("server_encoding")
    assert narrow.connection.info.parameter_status("client_encoding") == "UTF8"
    found = {each.check: each for each in postgres.check(narrow.settings)}["encoding"]
    assert (found.verdict, str(encoding) in found.found) == (Verdict.WARN, True)
    if encoding == "LATIN1":
        with pytest.raises(psycopg.errors.UntranslatableCharacter):
            written(narrow.settings, "café ☕")


def test_orders_of_any_database_are_published(narrow: Rig) -> None:
    encoding = narrow.connection.info.parameter_status("server_encoding")
    new = written(narrow.settings, "café ☕" if encoding == "SQL_ASCII" else "café")
    assert store.get(narrow.connection, str(new.id)) == new.order
    narrow.serve("order-3")
    narrow.wait("its row", lambda: narrow.counts().outbox_unpublished == 0)
    done = narrow.brewctl("doctor")
    assert "KeyError" not in done.stdout + done.stderr
    assert "warn  encoding" in done.stdout


def test_a_direct_connection_asks_no_more_often_than_before(rig: Rig, tmp_path: Path) -> None:
    """The session's settings travel in the startup packet: what is done often pays nothing for them."""
    publisher_producer = Producer(rig.settings, node="test")
    try:
        with database.open_pool(limited(rig.settings), name="test", size=1) as pool:
            publisher = Publisher(rig.settings, pool, node="test")

            def asked(what: str) -> int:
                new = acceptance.accept(order(customer_id=somebody()), tenant_id=None, traceparent=None)
                path = tmp_path / what.replace(" ", "-")
                with path.open("w") as trace:
                    with pool.connection() as connection:
                        assert not connection.pooled
                        connection.pgconn.trace(trace.fileno())
                        if what == "a batch of orders":
                            store.write(connection, [new], topic=rig.settings.topic)
                        elif what == "an order alone":
                            store.create(connection, new, topic=rig.settings.topic)
                        elif what == "an order read":
                            store.get(connection, str(new.id))
                    if what == "a batch to publish":
                        assert publisher.publish_batch(publisher_producer) > 0
                    with pool.connection() as connection:
                        connection.pgconn.untrace()
                return len(re.findall(r"\tF\t\d+\t(?:Sync|Query)", path.read_text()))

            whats = ("a batch of orders", "an order alone", "an order read", "a batch to publish")
            assert {what: asked(what) for what in whats} == {
                "a batch of orders": 1,
                "an order alone": 3,  # BEGIN with its bound, the statement, COMMIT
                "an order read": 1,
                "a batch to publish": 2,  # BEGIN with the fetch, the mark with COMMIT
            }
    finally:
        publisher_producer.abandon()


def test_a_call_whose_connection_was_dead_is_asked_with_another(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's goodbye may still be on its way while the pool looks for it."""
    new = acceptance.accept(order(customer_id=somebody()), tenant_id=None, traceparent=None)
    with database.open_pool(rig.settings, name="ended", size=2) as pool:
        monkeypatch.setattr(database, "has_news", lambda *_args, **_kwargs: False)
        end_all(rig, "ended")
        created = database.ask(
            pool, lambda connection: store.create(connection, new, topic=rig.settings.topic), wait_s=20
        )
        assert created == new.order
        end_all(rig, "ended")
        assert database.ask(pool, lambda connection: store.get(connection, new.order.order_id), wait_s=20) == new.order


def test_a_transaction_that_had_begun_is_not_asked_again(rig: Rig) -> None:
    begun = SimpleNamespace(times=0)
    with database.open_pool(rig.settings, name="begun", size=2) as pool:

        def question(connection: database.BoundedConnection) -> None:
            with connection.transaction():
                begun.times += 1
                end_all(rig, "begun")
                connection.execute("SELECT 1")

        with pytest.raises(psycopg.OperationalError):
            database.ask(pool, question, wait_s=20)
    assert begun.times == 1


def end_all(rig: Rig, name: str) -> None:
    """End the server's processes of these sessions, and wait until they are gone."""
    query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s"
    rig.connection.execute(query, (name,))
    wait_until("their end", lambda: rig.connection.execute(query, (name,)).rowcount == 0, timeout_s=60)

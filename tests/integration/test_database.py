"""Connections that end every wait: through a proxy that swallows what the server says."""

import threading
from collections.abc import Iterator
from dataclasses import replace

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from brewctl.config import Settings
from brewctl.delivery import database
from brewctl.delivery.database import BoundedConnection, NoAnswerError
from brewctl.delivery.database.availability import Availability
from brewctl.errors import UnreachableError
from brewctl.lifecycle import wait_until
from brewctl.limits import Limits
from tests.conftest import Rig
from tests.integration.grpc_tools import Service
from tests.tcp_proxy import Proxy, proxied

LIMITS = Limits(database_connect_s=2, database_statement_s=3, database_answer_s=6, database_look_s=1.5)


@pytest.fixture
def rig(service: Service) -> Rig:
    """Its database is only looked at here."""
    return service.rig


@pytest.fixture
def proxy(rig: Rig) -> Iterator[Proxy]:
    server = conninfo_to_dict(rig.settings.database_url)
    with proxied(str(server["host"]), int(str(server.get("port", 5432)))) as proxy:
        yield proxy


@pytest.fixture
def settings(rig: Rig, proxy: Proxy) -> Settings:
    url = make_conninfo(rig.settings.database_url, host="127.0.0.1", port=proxy.port)
    return replace(rig.settings, database_url=url, limits=LIMITS)


@pytest.fixture
def connection(settings: Settings) -> Iterator[BoundedConnection]:
    with database.open_pool(settings, name="proxied", size=1) as pool, pool.connection() as connection:
        yield connection


def test_a_silent_server_is_given_up_and_its_connection_closed(connection: BoundedConnection, proxy: Proxy) -> None:
    proxy.swallowing.set()
    with pytest.raises(NoAnswerError), connection.answering_within(0.3):
        connection.execute("SELECT 1")
    assert connection.closed
    assert issubclass(NoAnswerError, database.UNAVAILABLE)


def test_a_silent_server_is_given_up_without_being_asked_to(connection: BoundedConnection, proxy: Proxy) -> None:
    proxy.swallowing.set()
    with pytest.raises(NoAnswerError):
        connection.execute("SELECT 1")


def test_a_silent_server_ends_a_pipeline_and_a_transaction(connection: BoundedConnection, proxy: Proxy) -> None:
    def ask() -> None:
        with connection.transaction_within(0.1), connection.pipeline():
            connection.execute("SELECT 1")
            proxy.swallowing.set()

    with pytest.raises(NoAnswerError):
        ask()
    assert connection.closed


def test_the_server_ends_a_statement_before_the_client_gives_up(connection: BoundedConnection) -> None:
    with pytest.raises(psycopg.errors.QueryCanceled), connection.transaction_within(0.5):
        connection.execute("SELECT pg_sleep(20)")
    assert connection.execute("SHOW statement_timeout").fetchone() == ("3s",)


def test_a_bound_is_gone_after_its_block(connection: BoundedConnection) -> None:
    with connection.answering_within(1.5):
        connection.execute("SELECT 1")
    assert connection.execute("SELECT 1 FROM pg_sleep(2)").fetchone() == (1,)


def test_a_command_says_that_the_server_does_not_answer(settings: Settings, proxy: Proxy) -> None:
    def ask() -> None:
        with database.connect(settings) as connection:
            proxy.swallowing.set()
            connection.execute("SELECT 1")

    with pytest.raises(UnreachableError, match="does not answer"):
        ask()


def test_a_pool_hands_out_no_connection_that_the_server_has_ended(rig: Rig, settings: Settings) -> None:
    with database.open_pool(settings, name="ended", size=1) as pool:
        with pool.connection() as ended:
            pid = ended.info.backend_pid
        rig.connection.execute("SELECT pg_terminate_backend(%s)", (pid,))
        # The process may take its time to end, and its goodbye to come here: the pool can't know before.
        wait_until("its goodbye", lambda: database.has_news(ended, within_s=0), timeout_s=60)
        with pool.connection() as connection:
            assert connection.info.backend_pid != pid


def test_the_watch_calls_a_silent_server_away_and_finds_it_back(settings: Settings, proxy: Proxy) -> None:
    told: list[bool] = []
    stop = threading.Event()
    watch = Availability(settings, (), name="watch")
    watch.on_change = told.append
    thread = threading.Thread(target=watch.run, args=(stop,))
    assert not watch.away
    thread.start()
    try:
        proxy.swallowing.set()
        wait_until("a database that is away", lambda: watch.away and told == [False], timeout_s=60)
        proxy.swallowing.clear()
        wait_until("a database that is back", lambda: not watch.away, timeout_s=60)
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()
    assert told == [False, True]

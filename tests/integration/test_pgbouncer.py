"""Behind PgBouncer in transaction mode each transaction may have another server session, which others used before."""

import dataclasses
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from brewctl.config import Settings, environment
from brewctl.delivery import database
from brewctl.delivery.database import BoundedConnection
from brewctl.delivery.database.availability import Availability
from brewctl.delivery.orders import acceptance, store
from brewctl.delivery.schema import setup
from brewctl.doctor import Verdict, postgres
from brewctl.errors import BrewError
from brewctl.lab.play.nodes import Nodes
from brewctl.lifecycle import wait_until
from brewctl.limits import Limits
from tests.conftest import Rig, limited, open_rig, run
from tests.integration.grpc_tools import order, somebody
from tests.pgbouncer import guest, pooled, shown, tell
from tests.tcp_proxy import proxied

# What sessions of ours ask for, and could leave behind.
ASKED = (
    *("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "jit", "search_path"),
    *("synchronous_commit", "transaction_isolation", "DateStyle", "TimeZone"),
)
OURS = {
    "statement_timeout": "4s",
    "idle_in_transaction_session_timeout": "15s",
    "jit": "off",
    "search_path": '"$user", public',
    "synchronous_commit": "on",
    "transaction_isolation": "read committed",
    "TimeZone": "UTC",
}


@pytest.fixture(scope="module")
def rig(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """One for all: most tests only look."""
    with open_rig(servers, tmp_path_factory.mktemp("pgbouncer")) as rig:
        yield rig


@pytest.fixture(scope="module", params=["options refused", "options dropped", "session mode"])
def url(rig: Rig, request: pytest.FixtureRequest) -> Iterator[str]:
    """One server session for all clients; but not in session mode, where each client keeps one."""
    mode, size = ("session", 20) if request.param == "session mode" else ("transaction", 1)
    ignored = "options,extra_float_digits" if request.param == "options dropped" else ""
    with pooled(rig.settings.database_url, mode=mode, size=size, ignored=ignored) as url:
        yield url


@pytest.fixture
def settings(rig: Rig, url: str) -> Settings:
    return through(rig.settings, url)


def through(settings: Settings, url: str) -> Settings:
    return dataclasses.replace(limited(settings, database_statement_s=6), database_url=url)


@pytest.fixture
def connection(settings: Settings) -> Iterator[BoundedConnection]:
    open_pool = database.open_pool(settings, name="pooled", size=1, statement_s=4, lock_s=2.5)
    with open_pool as pool, pool.connection() as connection:
        yield connection


def test_each_transaction_brings_its_settings_and_leaves_none(connection: BoundedConnection, url: str) -> None:
    with guest(url) as other:
        before = shown(other, *ASKED)
        assert connection.pooled
        alone = shown(connection, *ASKED)
        with connection.transaction():
            together = shown(connection, *ASKED)
        with connection.transaction_within(1.5):
            bounded = shown(connection, *ASKED)
        assert alone == together == bounded | {"statement_timeout": "4s"}
        assert alone.items() >= OURS.items()
        assert alone["lock_timeout"] == "2500ms"
        assert bounded["statement_timeout"] == "2s"
        assert shown(other, *ASKED) == before


def test_what_another_client_left_in_a_session_decides_nothing(connection: BoundedConnection, url: str) -> None:
    with guest(url) as other:
        for name, value in (
            ("synchronous_commit", "off"),
            ("search_path", "pg_catalog"),
            ("statement_timeout", "0"),
            ("default_transaction_isolation", "serializable"),
            ("DateStyle", "German"),
        ):
            other.execute(f"SET {name} = '{value}'".encode())
        try:
            assert shown(connection, *OURS).items() >= OURS.items()
            assert connection.execute("SELECT now(), count(*) FROM orders").fetchone() is not None
        finally:
            other.execute("RESET ALL")


def test_statements_and_waits_for_locks_are_ended(rig: Rig, connection: BoundedConnection) -> None:
    for ask in (lambda: connection.execute("SELECT pg_sleep(60)"), lambda: sleep_in_transaction(connection)):
        with pytest.raises(psycopg.errors.QueryCanceled, match="statement timeout"):
            ask()
        assert connection.execute("SELECT 1").fetchone() == (1,)
    with psycopg.connect(rig.settings.database_url) as holder:
        holder.execute("LOCK TABLE inventory_reservations")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            connection.execute("SELECT count(*) FROM inventory_reservations")
    assert not connection.closed


def sleep_in_transaction(connection: BoundedConnection) -> None:
    with connection.transaction_within(0.5):
        connection.execute("SELECT pg_sleep(60)")


def test_statements_that_are_asked_again_and_again_are_not_prepared(rig: Rig) -> None:
    with pooled(rig.settings.database_url, size=2) as url:
        settings = through(rig.settings, url)
        with database.open_pool(settings, name="again", size=1) as pool, guest(url) as other:
            for _ in range(8):
                with pool.connection() as connection:
                    assert connection.execute("SELECT %s::int", (1,)).fetchone() == (1,)
                with other.transaction():  # the next transaction has the other server session
                    other.execute("SELECT 1")
                    with pool.connection() as connection, connection.transaction():
                        assert connection.execute("SELECT %s::int", (1,)).fetchone() == (1,)


def test_a_statement_is_one_round_trip(connection: BoundedConnection, tmp_path: Path) -> None:
    written = tmp_path / "trace"
    new = acceptance.accept(order(customer_id=somebody()), tenant_id=None, traceparent=None)
    with written.open("w") as trace:
        connection.pgconn.trace(trace.fileno())
        assert store.write(connection, [new], topic="nowhere") == {new.id}
        connection.pgconn.untrace()
    assert re.findall(r"\tF\t\d+\t(?:Sync|Query)", written.read_text()) == ["\tF\t4\tSync"]


def test_a_statement_that_fails_is_rolled_back_alone(connection: BoundedConnection) -> None:
    new = acceptance.accept(order(customer_id=somebody()), tenant_id=None, traceparent=None)
    assert store.write(connection, [new], topic="nowhere") == {new.id}
    with pytest.raises(psycopg.errors.DivisionByZero):
        connection.execute("DELETE FROM orders WHERE id = %s AND 1 / (amount_cents - 450) = 1", (new.id,))
    assert store.get(connection, str(new.id)) == new.order


def test_the_doctor_says_that_a_pooler_stands_between(settings: Settings) -> None:
    found = {each.check: each for each in postgres.check(settings)}
    assert "PgBouncer" in found["pooler"].found
    assert found["session"].verdict is Verdict.OK


def test_commands_work_or_say_what_they_need(rig: Rig, settings: Settings) -> None:
    env = environment(settings)
    for arguments in (("db", "init"), ("counts",), ("outbox", "list"), ("dlq", "list")):
        done = run(*arguments, env=env)
        assert done.returncode == 0, done.stderr
    new = acceptance.accept(order(customer_id=somebody()), tenant_id=None, traceparent=None)
    assert store.write(rig.connection, [new], topic=settings.topic) == {new.id}
    assert run("trace", str(new.id), env=env).stdout.count("created") == 1
    done = run("verify", env=env)
    assert done.returncode == 0, done.stdout + done.stderr


def test_db_init_adds_what_is_missing_and_leaves_no_setting_behind(rig: Rig, settings: Settings) -> None:
    """An index is built outside a transaction, under a bound of the session's: a pooled one is not ours to change."""
    with guest(settings.database_url) as other:
        before = shown(other, "statement_timeout", "lock_timeout")
    rig.connection.execute("DROP INDEX outbox_ready; ALTER TABLE nodes DROP COLUMN rival")
    done = run("db", "init", env=environment(settings))
    assert done.returncode == 0, done.stderr
    assert setup.missing_tables(rig.connection) == []
    with guest(settings.database_url) as other:
        assert shown(other, "statement_timeout", "lock_timeout") == before


def test_a_pooler_of_statements_is_named(rig: Rig) -> None:
    with pooled(rig.settings.database_url, mode="statement") as url:
        settings = through(rig.settings, url)
        with pytest.raises(BrewError, match="pools statements") as caught, database.connect(settings):
            pass
        assert "pool_mode = transaction" in caught.value.hint


class Counting(Availability):
    """Keeps why it had no connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lost: list[BrewError] = []

    def _lost(self, error: BrewError) -> None:
        super()._lost(error)
        self.lost.append(error)


def test_the_watch_sees_through_a_pooler_that_waits_for_its_server(rig: Rig) -> None:
    """PgBouncer takes a client while its server is away: that alone does not say that the database is back."""
    told: list[bool] = []
    stop = threading.Event()
    limits = Limits(database_connect_s=2, database_statement_s=3, database_answer_s=3.5, database_look_s=0.5)
    with pooled(rig.settings.database_url) as url:
        settings = dataclasses.replace(rig.settings, database_url=url, limits=limits)
        watch = Counting(settings, (), name="watch")
        watch.on_change = told.append
        thread = threading.Thread(target=watch.run, args=(stop,))
        thread.start()
        try:
            with database.connect(settings):
                pass
            tell(url, "PAUSE")
            wait_until("a database that is away", lambda: watch.away and told == [False], timeout_s=60)
            seen = len(watch.lost)
            wait_until("more tries to connect", lambda: len(watch.lost) >= seen + 3, timeout_s=120)
            assert told == [False]
            tell(url, "RESUME")
            wait_until("a database that is back", lambda: told == [False, True], timeout_s=60)
        finally:
            stop.set()
            thread.join(60)
    assert not thread.is_alive()


def test_the_story_behind_a_pooler(rig: Rig, tmp_path: Path) -> None:
    """Orders, a kill -9 of a consumer, and a verdict; what a session sets is seen by none that shares it."""
    setup.initialize(rig.connection, reset=True)
    with pooled(rig.settings.database_url, size=3) as url:
        settings = dataclasses.replace(rig.settings, database_url=url)
        with Nodes(settings, logs=tmp_path, on_line=lambda _line: None) as nodes:
            names = ("order-1", "order-2", "inventory-1", "inventory-2", "notification-1")
            commands = (
                *(("serve", "order", "--port", "0"),) * 2,
                *(("consume", "inventory", "--session-timeout", "6"),) * 2,
                ("consume", "notifications"),
            )
            cast = {name: nodes.start(name, *command) for name, command in zip(names, commands, strict=True)}
            for node in cast.values():
                node.wait_ready()
            addresses = [f"--addr={cast[name].address}" for name in ("order-1", "order-2")]

            def create(count: int) -> None:
                done = run("create-order", "--customer", "café ☕", "--count", str(count), *addresses, env=rig.env)
                assert done.returncode == 0, done.stderr

            create(60)
            os.kill(cast["inventory-1"].process.pid, signal.SIGKILL)
            create(60)

            def settled() -> bool:
                counts = rig.counts()
                return counts.outbox_unpublished == 0 and counts.reservations == counts.notifications == counts.orders

            rig.wait("every effect", settled, timeout_s=120)
            for name in ("order-1", "inventory-2", "notification-1"):
                assert cast[name].process.poll() is None
            done = run("verify", "--wait", "60", env=rig.env, timeout=240)
            assert done.returncode == 0, done.stdout
    logs = "".join(path.read_text("utf-8") for path in tmp_path.rglob("*") if path.is_file())
    assert "prepared statement" not in logs


def test_no_server_session_is_left_with_commits_that_wait_for_no_disk(rig: Rig, tmp_path: Path) -> None:
    """Such a session goes on to commit orders, or another program's work, which a crash then takes back."""
    with pooled(rig.settings.database_url, size=1) as url, guest(url) as other:
        settings = dataclasses.replace(rig.settings, database_url=url)
        with Nodes(settings, logs=tmp_path, on_line=lambda _line: None) as nodes:
            nodes.start("order-7", "serve", "order", "--port", "0").wait_ready()
            rig.wait(
                "its row", lambda: rig.connection.execute("SELECT FROM nodes WHERE node_id = 'order-7'").rowcount == 1
            )
            assert shown(other, "synchronous_commit") == {"synchronous_commit": "on"}


def test_roles_wait_for_a_server_that_its_pooler_can_not_reach(rig: Rig, tmp_path: Path) -> None:
    """They start once it is there, and go on over sessions that end behind the pooler."""
    setup.initialize(rig.connection, reset=True)
    server = conninfo_to_dict(rig.settings.database_url)
    place = str(server["host"]), int(str(server["port"]))
    with ExitStack() as stack:
        with proxied(*place) as behind:
            port = behind.port
            direct = make_conninfo(rig.settings.database_url, host="127.0.0.1", port=port)
            url = stack.enter_context(pooled(direct, size=5))
        settings = dataclasses.replace(rig.settings, database_url=url)
        nodes = stack.enter_context(Nodes(settings, logs=tmp_path, on_line=lambda _line: None))
        cast = [
            nodes.start(name, *command, "--wait", "forever")
            for name, command in (
                ("order-1", ("serve", "order", "--port", "0", "--no-publisher")),
                ("publisher-1", ("publish",)),
                ("inventory-1", ("consume", "inventory")),
                ("notification-1", ("consume", "notifications")),
            )
        ]
        for node in cast:
            wait_until(
                "a word of it",
                lambda node=node: "can't be reached by the pooler in front of it" in node.log.read_text("utf-8"),  # type: ignore[misc]
                timeout_s=120,
            )
        behind = stack.enter_context(proxied(*place, at=port))
        for node in cast:
            node.wait_ready(timeout_s=120)
        for _ in range(2):
            done = run(
                "create-order",
                "--customer",
                "c1",
                "--count",
                "20",
                f"--addr={cast[0].address}",
                "--timeout",
                "60",
                env=rig.env,
            )
            assert done.returncode == 0, done.stderr
            behind.hang_up()

        def settled() -> bool:
            counts = rig.counts()
            return counts.orders == 40 == counts.reservations == counts.notifications

        rig.wait("every effect", settled, timeout_s=120)
        assert all(node.alive for node in cast)
    logs = "".join(path.read_text("utf-8") for path in tmp_path.rglob("*") if path.is_file())
    assert "prepared statement" not in logs

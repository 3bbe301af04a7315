"""`brewctl db init` that is ended in the middle: what was added stays, roles work, and another run adds the rest."""

import contextlib
import signal
import subprocess
from collections.abc import Iterator

import psycopg
import pytest

from brewctl.config import Settings, environment
from brewctl.lifecycle import wait_until
from tests.conftest import begin, run
from tests.integration.test_schema import (
    OLDER,
    begun,
    builders,
    complete,
    dumping,
    lacking,
    session,
    settings,
    write_order,
)

__all__ = ["complete", "settings"]  # fixtures
ORDERS = 1000
BEFORE = OLDER[-1]


@pytest.fixture
def older(settings: Settings) -> Settings:
    """A database of the version before, with orders in it."""
    with session(settings) as connection:
        connection.execute(BEFORE.read_text("utf-8"))
        connection.execute(
            "INSERT INTO orders (id, tenant_id, customer_id, amount_cents, currency, status)"
            " SELECT gen_random_uuid(), 't', 'c', 1, 'EUR', 'ORDER_STATUS_NEW' FROM generate_series(1, %s)",
            (ORDERS,),
        )
        connection.execute(
            "INSERT INTO outbox (aggregate_id, topic, payload) SELECT 'order-' || id, 't', '' FROM orders"
        )
        connection.execute("INSERT INTO notifications_log (order_id, node_id, channel) SELECT id, 'n', 'c' FROM orders")
    return settings


@contextlib.contextmanager
def reading(settings: Settings, table: str) -> Iterator[None]:
    with psycopg.connect(settings.database_url) as reader:
        reader.execute(f"SELECT count(*) FROM {table}".encode())
        yield


def end(process: subprocess.Popen[str], how: signal.Signals) -> int:
    process.send_signal(how)
    process.communicate(timeout=60)
    return process.returncode


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_one_that_was_ended_between_two_steps_is_finished_by_another(
    older: Settings, how: signal.Signals, code: int
) -> None:
    before = set(lacking(older))
    with reading(older, "notifications_log"):
        first = begin("db", "init", env=environment(older))
        assert first.stderr is not None
        lines = []
        for line in first.stderr:
            lines.append(line)
            if " waits for pid " in line:
                break
        assert end(first, how) == code
        assert any(line.startswith("db init 0003 added 8 columns to outbox in ") for line in lines), lines
    left = set(lacking(older))
    assert {"notifications_log.state", "outbox_add()"} <= left < before
    with session(older) as writer:
        write_order(writer)

    again = run("db", "init", env=environment(older))
    assert (again.returncode, lacking(older)) == (0, [])
    told = [line.partition(" in ")[0] for line in again.stderr.splitlines()]
    assert "db init 0003 added 3 columns to notifications_log" in told
    assert any(line.endswith(" made function outbox_add()") for line in told)
    assert not any("outbox" in line for line in told if "column" in line), "that was done"
    with session(older) as connection:
        counted = "SELECT (SELECT count(*) FROM orders), count(*), min(seq), max(state) FROM notifications_log"
        assert connection.execute(counted).fetchone() == (ORDERS + 1, ORDERS, 1, "created")
        names = connection.execute("SELECT consumer FROM downstreams ORDER BY consumer").fetchall()
        assert names == [("inventory",), ("notifications",)]


def test_one_that_was_killed_while_it_built_an_index_is_finished_by_another(complete: Settings) -> None:
    with session(complete) as connection:
        connection.execute("DROP INDEX outbox_ready")
    with dumping(complete) as dump:
        first = begin("db", "init", env=environment(complete))
        wait_until("a build that waits for the dump", lambda: bool(builders(complete)), timeout_s=60, every_s=0.01)
        assert end(first, signal.SIGKILL) == -signal.SIGKILL
        # The server does not know yet that nobody waits for its build.
        with begun(lambda: assert_done(complete)) as second:
            dump.rollback()
            second.result()
    assert lacking(complete) == []


def assert_done(settings: Settings) -> None:
    done = run("db", "init", env=environment(settings))
    assert done.returncode == 0, done.stderr


def test_what_takes_how_long_is_said(older: Settings) -> None:
    done = run("db", "init", env=environment(older))
    told = [line for line in done.stderr.splitlines() if " in " in line]
    assert told[1].startswith("db init 0003 made 4 tables in ")
    assert told[1].endswith(" s: aggregates, publishing, parked_events, downstreams")
    assert all(float(line.partition(" in ")[2].split(" s")[0]) >= 0 for line in told)
    tables = [line.split(" to ")[1].split(" in ")[0] for line in told if " column" in line]
    flow, effects = {"orders", "outbox", "processed_events", "nodes"}, {"inventory_reservations", "notifications_log"}
    assert set(tables) == flow | effects
    assert len(tables) == len(set(tables))  # each is locked once

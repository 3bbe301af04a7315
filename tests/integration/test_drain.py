"""A stop ends in time whatever is locked or silent, and nothing of the replica goes on in the database after it."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from kafka import KafkaProducer
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from brewctl.delivery.broker.kafka_python.connection_settings import connection
from brewctl.lab.play.nodes import Node, Nodes
from tests.conftest import Rig
from tests.integration.held_node import by_way_of
from tests.integration.kafka_tools import good_record
from tests.tcp_proxy import proxied

RECORDS = 20
# Longer than a drain and its margin on any machine, and shorter than a statement may take.
BOUND_S = 25


@contextlib.contextmanager
def locked(rig: Rig, table: str) -> Iterator[None]:
    with psycopg.connect(rig.settings.database_url) as holder:
        holder.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(sql.Identifier(table)))
        yield
        holder.rollback()


def waiting(rig: Rig, name: str) -> int:
    """How many sessions of a node wait at a lock."""
    (count,) = rig.connection.execute(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = %s AND wait_event_type = 'Lock'",
        (name,),
    ).fetchone() or (0,)
    return int(str(count))


def send_records(rig: Rig) -> None:
    producer = KafkaProducer(**connection(rig.settings, name="test"))
    for good in (good_record() for _ in range(RECORDS)):
        producer.send(rig.settings.topic, good.value, good.key, headers=good.headers)
    producer.close()


def stop(node: Node) -> int:
    node.process.send_signal(signal.SIGTERM)
    return node.ended(within_s=BOUND_S)


def of_node(node: Node) -> str:
    return "\n".join(node.lines) + node.log.read_text()


@pytest.mark.parametrize("arguments", [("inventory-1", "consume", "inventory"), ("order-1", "serve", "order")])
def test_a_row_of_presence_holds_up_no_stop(rig: Rig, arguments: tuple[str, ...]) -> None:
    name, *command = arguments
    node = rig.start(name, *command, *(["--port", "0"] if "order" in command else []))
    with locked(rig, "nodes"):
        rig.wait("a row that can't be written", lambda: waiting(rig, name) > 0)
        assert stop(node) == 0
        rig.wait("no session at the lock", lambda: waiting(rig, name) == 0, timeout_s=10)


def test_rows_of_presence_do_not_pile_up_at_a_lock(rig: Rig) -> None:
    """Each is given up after a second: in PostgreSQL too, not only here."""
    rig.start("inventory-1", "consume", "inventory")
    most = 0
    with locked(rig, "nodes"):
        pids: set[object] = set()

        def several_tries() -> bool:
            nonlocal most
            found = rig.connection.execute(
                "SELECT pid FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'inventory-1' AND wait_event_type = 'Lock'"
            ).fetchall()
            pids.update(pid for (pid,) in found)
            most = max(most, len(found))
            return len(pids) >= 4

        rig.wait("several tries", several_tries)
    assert most <= 2


@pytest.mark.parametrize("table", ["inventory_reservations", "processed_events"])
def test_a_consumer_whose_transaction_waits_at_a_lock_stops_and_leaves_nothing_behind(rig: Rig, table: str) -> None:
    send_records(rig)
    with locked(rig, table):
        node = rig.nodes.start("inventory-1", "consume", "inventory")
        rig.wait("a transaction at the lock", lambda: waiting(rig, "inventory-1") > 0)
        assert stop(node) == 1
        assert "the transaction in hand was not finished in time" in of_node(node)
        rig.wait("no session at the lock", lambda: waiting(rig, "inventory-1") == 0, timeout_s=10)
    assert rig.counts().reservations == 0
    other = rig.start("inventory-2", "consume", "inventory")
    rig.wait("all reserved", lambda: rig.counts().reservations == RECORDS)
    assert stop(other) == 0
    assert other.lines[-1].endswith(f"processed={RECORDS} reserved={RECORDS} skipped=0")


def test_an_order_service_whose_publisher_waits_at_a_lock_stops_and_leaves_nothing_behind(rig: Rig) -> None:
    node, _ = rig.serve()
    with locked(rig, "outbox"):
        rig.wait("a publisher at the lock", lambda: waiting(rig, "order-1") > 0)
        assert stop(node) == 1
        assert "publisher did not stop within" in of_node(node)
        rig.wait("no session at the lock", lambda: waiting(rig, "order-1") == 0, timeout_s=10)


@pytest.mark.parametrize("role", ["order", "inventory"])
def test_a_silent_database_holds_up_no_stop(rig: Rig, role: str, tmp_path: Path) -> None:
    """It takes what is sent, connections too, and says nothing: as one that is paused."""
    send_records(rig)
    server = conninfo_to_dict(rig.settings.database_url)
    with (
        proxied(str(server["host"]), int(str(server["port"]))) as proxy,
        Nodes(by_way_of(rig.settings, proxy.port), logs=tmp_path, on_line=lambda _line: None) as nodes,
    ):
        if role == "order":
            node = nodes.start("order-1", "serve", "order", "--port", "0")
            node.wait_ready()
        else:
            gate = rig.no_reservations()
            gate.__enter__()
            node = nodes.start("inventory-1", "consume", "inventory")
            rig.wait("a transaction at work", lambda: waiting(rig, "inventory-1") > 0)
        proxy.swallowing.set()
        try:
            assert stop(node) in {0, 1}
        finally:
            if role == "inventory":
                gate.__exit__(None, None, None)

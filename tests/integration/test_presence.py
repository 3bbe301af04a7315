"""Presence: the row that each replica keeps of itself."""

import os
import signal

import psycopg
import pytest

from brewctl import overview
from brewctl.overview.replicas import SILENT_S
from brewctl.sql import queries
from tests.conftest import Rig


def row(rig: Rig, name: str) -> overview.NodeRow:
    (found,) = [node for node in overview.nodes(rig.connection) if node.name == name]
    return found


def test_replicas_say_who_they_are_and_what_they_have_done(rig: Rig) -> None:
    order, address = rig.serve("order-1")
    inventory = rig.start("inventory-1", "consume", "inventory")
    assert rig.brewctl("create-order", "--customer", "c1", "--count", "3", "--addr", address).returncode == 0
    rig.wait("the work in the rows", lambda: [node.effects for node in overview.nodes(rig.connection)] == [3, 3])

    said = overview.nodes(rig.connection)
    assert [(node.name, node.role, node.address) for node in said] == [
        ("order-1", "order", address),
        ("inventory-1", "inventory", ""),
    ]
    assert [node.pid for node in said] == [order.process.pid, inventory.process.pid]
    assert all(node.there and node.host == os.uname().nodename for node in said)

    # A table that was emptied has the row again.
    rig.connection.execute("DELETE FROM nodes")
    rig.wait("the rows again", lambda: len(overview.nodes(rig.connection)) == 2)

    # Told to stop just when its connections were cut, it says so all the same.
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'inventory-1'"
    rig.connection.execute(cut)
    inventory.process.send_signal(signal.SIGTERM)
    assert inventory.ended(within_s=30) == 0
    stopped = row(rig, "inventory-1")
    assert (stopped.stopped, stopped.there) == (True, False)
    assert (stopped.processed, stopped.effects, stopped.skipped) == (3, 3, 0)

    order.kill()
    rig.wait("silence", lambda: row(rig, "order-1").silent_s > SILENT_S)
    killed = row(rig, "order-1")
    assert (killed.stopped, killed.there) == (False, False)


ROW = {
    "node": "order-1",
    "role": "order",
    "host": "h",
    "pid": 1,
    "address": "",
    "age_s": 0.0,
    "stopped": False,
    "again": False,
    "processed": 0,
    "effects": 0,
    "skipped": 0,
    "dead": 0,
    "trouble": "",
    "publishes": True,
}


@pytest.mark.parametrize("query", ["keep_presence", "forget_replicas", "forget_redeliveries"])
def test_presence_waits_for_no_disk_and_leaves_the_session_as_it_was(rig: Rig, query: str) -> None:
    """Behind a pooler the next transaction of the session may be the commit of an order."""
    rig.connection.execute("INSERT INTO redeliveries VALUES ('c', 'n', now() - interval '1 month', '{1}')")
    rig.connection.execute(queries["keep_presence"], ROW)
    with psycopg.connect(rig.settings.database_url) as connection:
        connection.execute(queries[query], ROW)
        assert connection.execute("SHOW synchronous_commit").fetchone() == ("off",), "when it is committed"
        connection.commit()
        assert connection.execute("SHOW synchronous_commit").fetchone() == ("on",)
    assert len(overview.nodes(rig.connection)) == 1
    kept = rig.connection.execute("SELECT count(*) FROM redeliveries").fetchone()
    assert kept == (0 if query == "forget_redeliveries" else 1,)


def test_what_keeps_a_replica_from_its_work_is_in_its_row_and_doctor_says_so(rig: Rig) -> None:
    order, address = rig.serve("order-1")
    rig.start("inventory-1", "consume", "inventory")
    with rig.no_reservations():
        assert rig.brewctl("create-order", "--customer", "c1", "--addr", address).returncode == 0
        rig.wait("its trouble", lambda: "has run for" in row(rig, "inventory-1").trouble)
        said = rig.brewctl("doctor", "--addr", address).stdout
        assert "warn  inventory" in said
        assert "inventory-1: its transaction of 1 event has run for" in said
    rig.wait("no trouble", lambda: row(rig, "inventory-1").trouble == "")
    assert "warn  inventory" not in rig.brewctl("doctor", "--addr", address).stdout
    assert row(rig, "order-1").trouble == ""
    assert order.alive

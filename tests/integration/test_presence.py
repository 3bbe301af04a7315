"""Presence: the row that each replica keeps of itself."""

import os
import signal

from brewctl import overview
from brewctl.overview.replicas import SILENT_S
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
    assert inventory.process.wait(30) == 0
    stopped = row(rig, "inventory-1")
    assert (stopped.stopped, stopped.there) == (True, False)
    assert (stopped.processed, stopped.effects, stopped.skipped) == (3, 3, 0)

    order.kill()
    rig.wait("silence", lambda: row(rig, "order-1").silent_s > SILENT_S)
    killed = row(rig, "order-1")
    assert (killed.stopped, killed.there) == (False, False)

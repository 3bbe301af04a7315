"""The story's own integration test: eight steps, through the installed binary, with a real SIGKILL.

1 servers answer · 2 empty tables, new topic · 3 no groups (the rig) · 4 five nodes · 5 orders round robin, a kill at
the half · 6 the other half · 7 four counters reach the number of orders · 8 the survivor did its share.
"""

import signal

from brewctl import overview
from tests.conftest import Rig

ORDERS = 200


def send(rig: Rig, count: int, addresses: list[str]) -> list[str]:
    flags = [part for address in addresses for part in ("--addr", address)]
    sent = rig.brewctl("create-order", "--customer", "c1", "--count", str(count), *flags)
    assert sent.returncode == 0, sent.stderr
    return sent.stdout.split()


def test_two_hundred_orders_survive_a_kill(rig: Rig) -> None:
    assert rig.brewctl("db", "init", "--reset", "--yes").returncode == 0
    assert rig.brewctl("topic", "create", "--recreate", "--yes").returncode == 0

    order_1, order_2 = rig.serve("order-1"), rig.serve("order-2")
    inventory_1 = rig.start("inventory-1", "consume", "inventory")
    inventory_2 = rig.start("inventory-2", "consume", "inventory")
    notification = rig.start("notification-1", "consume", "notifications")
    inventory_1.wait_for("its half", lambda node: node.assignment == [0, 2, 4])
    inventory_2.wait_for("its half", lambda node: node.assignment == [1, 3, 5])
    notification.wait_for("all partitions", lambda node: node.assignment == [0, 1, 2, 3, 4, 5])

    addresses = [order_1[1], order_2[1]]
    ids = send(rig, ORDERS // 2, addresses)
    inventory_1.kill()
    ids += send(rig, ORDERS // 2, addresses)
    assert inventory_1.process.returncode == -signal.SIGKILL

    done = overview.Counts(ORDERS, 0, ORDERS, ORDERS)
    rig.wait(f"{done}", lambda: rig.counts() == done)
    assert inventory_2.assignment == [0, 1, 2, 3, 4, 5]
    shares = overview.distribution(rig.connection)
    assert shares["inventory-2"] > 0
    assert sum(shares.values()) == ORDERS

    assert len(set(ids)) == ORDERS
    assert overview.missing(rig.connection, ids) == []
    # Primary keys hold at most one reservation and one notification an order; this holds at least one.
    assert overview.unfinished(rig.connection) == []
    line = rig.brewctl("counts").stdout
    assert line == f"counts: orders={ORDERS} outbox_unpublished=0 reservations={ORDERS} notifications={ORDERS}\n"

    # The first SIGTERM drains: exit 0, the counters as the last line.
    assert rig.nodes.stop() == []
    own = shares["inventory-2"]
    assert inventory_2.lines[-1].startswith("[inventory-2] inventory-service stopped. processed=")
    assert f" reserved={own} skipped=" in inventory_2.lines[-1]
    assert f"notification-service stopped. processed={ORDERS} notified={ORDERS} skipped=0" in notification.lines[-1]

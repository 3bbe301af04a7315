"""The story's own integration test: eight steps, through the installed binary, with a real SIGKILL.

1 servers answer · 2 empty tables, new topic · 3 no groups (the rig) · 4 five nodes · 5 orders round robin, a kill at
the half · 6 the other half · 7 four counters reach the number of orders · 8 the survivor did its share.
"""

import signal

from kafka.admin import ConfigResource, ConfigResourceType

from brewctl import overview
from brewctl.delivery.broker import open_admin
from tests.conftest import Rig
from tests.integration.kafka_tools import kafka_admin

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
    shares = overview.distribution(rig.databases)
    assert shares["inventory-2"] > 0
    assert sum(shares.values()) == ORDERS

    assert len(set(ids)) == ORDERS
    assert overview.missing(rig.connection, ids) == []
    # Primary keys hold at most one reservation and one notification an order; this holds at least one.
    assert overview.unfinished(rig.databases) == []
    line = rig.brewctl("counts").stdout
    assert line == f"counts: orders={ORDERS} outbox_unpublished=0 reservations={ORDERS} notifications={ORDERS}\n"

    # The first SIGTERM drains: exit 0, the counters as the last line.
    assert rig.nodes.stop() == []
    own = shares["inventory-2"]
    assert inventory_2.lines[-1].startswith("[inventory-2] inventory-service stopped. processed=")
    assert f" reserved={own} skipped=" in inventory_2.lines[-1]
    assert f"notification-service stopped. processed={ORDERS} notified={ORDERS} skipped=0" in notification.lines[-1]


def test_both_topics_have_six_partitions_on_three_brokers_two_in_sync(rig: Rig) -> None:
    names = [rig.settings.topic, rig.settings.dead_letter_topic]
    with open_admin(rig.settings) as ours:
        replicas = min(3, len(ours.brokers()))
    with kafka_admin(rig.settings) as admin:
        for topic in admin.describe_topics(names):
            assert sorted(partition["partition"] for partition in topic["partitions"]) == list(range(6))
            assert {len(set(partition["replicas"])) for partition in topic["partitions"]} == {replicas}
        for name in names:
            asked = ConfigResource(ConfigResourceType.TOPIC, name, {"min.insync.replicas": None})
            (answer,) = admin.describe_configs([asked])
            ((_, _, _, _, ((_, in_sync, *_),)),) = answer.resources
            assert int(in_sync) == min(2, replicas)

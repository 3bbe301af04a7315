"""Kill busy processes at random moments: nothing acknowledged is lost, nothing happens twice."""

import random

from brewctl import overview
from tests.acceptance.test_story import send
from tests.conftest import Rig

_KILLS = 6
_ORDERS_PER_KILL = 150
# Kafka notices a dead member in 3 s instead of 15: the same code, more kills.
_SESSION = ("--session-timeout", "3")


def test_a_busy_consumer_killed_again_and_again_loses_no_reservation(rig: Rig) -> None:
    """Two statements instead of one transaction for dedup row and effect fail here about every second time."""
    chance = random.Random(20261123)
    _, address = rig.serve()
    ids: list[str] = []
    for number in range(_KILLS):
        victim = rig.start(f"inventory-{number}", "consume", "inventory", *_SESSION)
        victim.wait_for("partitions", lambda node: node.assignment == [0, 1, 2, 3, 4, 5], timeout_s=60)
        before = rig.counts().reservations
        ids += send(rig, _ORDERS_PER_KILL, [address])
        # Somewhere in the middle of its work, where exactly the seed and the machine decide.
        some = before + chance.randrange(1, _ORDERS_PER_KILL)
        rig.wait(f"{some} reservations", lambda some=some: rig.counts().reservations >= some)  # type: ignore[misc]
        victim.kill()
    rig.start("inventory-last", "consume", "inventory", *_SESSION)
    total = _KILLS * _ORDERS_PER_KILL
    rig.wait(f"{total} reservations", lambda: rig.counts().reservations == total, timeout_s=90)
    rig.start("notification-1", "consume", "notifications")
    rig.wait(f"{total} notifications", lambda: rig.counts().notifications == total)
    assert overview.missing(rig.connection, ids) == []
    assert overview.unfinished(rig.databases) == []


def test_offsets_are_never_ahead_of_the_database(rig: Rig) -> None:
    """Killed between poll and commit, with nothing left to chance: the database holds the batch back."""
    _, address = rig.serve()
    victim = rig.start("inventory-1", "consume", "inventory", *_SESSION)
    victim.wait_for("partitions", lambda node: node.assignment == [0, 1, 2, 3, 4, 5])
    with rig.no_reservations():
        ids = send(rig, 30, [address])
        rig.wait("the batch at the gate", lambda: at_the_gate(rig))
        rig.wait("all published", lambda: rig.counts().outbox_unpublished == 0)
        victim.kill()
    rig.start("inventory-2", "consume", "inventory", *_SESSION)
    rig.wait("30 reservations", lambda: rig.counts().reservations == 30)
    assert overview.missing(rig.connection, ids) == []


def at_the_gate(rig: Rig) -> bool:
    found = rig.connection.execute(
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'inventory-1' AND wait_event_type = 'Lock'"
    )
    return found.fetchone() is not None


def test_a_killed_order_node_loses_no_acknowledged_order(rig: Rig) -> None:
    ids: list[str] = []
    for number in range(4):
        victim, address = rig.serve(f"order-{number}")
        ids += send(rig, 50, [address])
        victim.kill()
    rig.serve("order-last")
    rig.start("inventory-1", "consume", "inventory")
    rig.start("notification-1", "consume", "notifications")
    done = overview.Counts(200, 0, 200, 200)
    rig.wait(f"{done}", lambda: rig.counts() == done)
    assert overview.missing(rig.connection, ids) == []
    assert overview.unfinished(rig.databases) == []

"""The whole cast over librdkafka: what one process was killed in the middle of is finished by the others."""

import pytest

from brewctl import overview
from brewctl.config import KafkaClient
from tests.acceptance.test_story import send
from tests.conftest import Rig

ORDERS = 150
SESSION = ("--session-timeout", "6")


@pytest.mark.parametrize("kafka_client", [KafkaClient.LIBRDKAFKA])
def test_every_order_is_reserved_and_notified_though_nodes_are_killed(rig: Rig) -> None:
    assert rig.env["BREW_KAFKA_CLIENT"] == "librdkafka"
    servers = [rig.serve(f"order-{number}") for number in (1, 2)]
    consumers = [rig.start(f"inventory-{number}", "consume", "inventory", *SESSION) for number in (1, 2)]
    rig.start("notification-1", "consume", "notifications")
    ids = send(rig, ORDERS, [address for _, address in servers])
    consumers[0].kill()
    servers[0][0].kill()
    ids += send(rig, ORDERS, [servers[1][1]])
    done = overview.Counts(2 * ORDERS, 0, 2 * ORDERS, 2 * ORDERS)
    rig.wait(f"{done}", lambda: rig.counts() == done)
    assert overview.missing(rig.connection, ids) == []
    assert overview.unfinished(rig.databases) == []
    verified = rig.brewctl("verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    found = rig.brewctl("doctor")
    assert "librdkafka 2." in found.stdout, found.stdout + found.stderr

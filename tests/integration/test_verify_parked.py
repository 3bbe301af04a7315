"""`verify` knows parked events: why an order has no effect, and that nothing of their keys overtakes them."""

from collections.abc import Iterator
from unittest import mock

import pytest

from brewctl.delivery import database
from brewctl.delivery.inbox import parking
from brewctl.delivery.inbox.parking import Parking
from brewctl.roles import inventory
from brewctl.verify import verify
from tests.integration.chain_tools import Chain, broken, open_chain


@pytest.fixture
def chain(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    with open_chain(servers, tmp_path_factory.mktemp("logs")) as chain:
        yield chain


def park_one(chain: Chain) -> None:
    """Two orders, of which the second's reservation is rejected; both are cancelled."""
    good, bad = (chain.order() for _ in range(2))
    reject = f"CHECK (order_id <> '{bad.order_id}')"
    chain.rig.connection.execute(f"ALTER TABLE inventory_reservations ADD CONSTRAINT bad {reject}")
    chain.send(good)
    chain.send(bad)
    chain.consume()
    chain.execute("ALTER TABLE inventory_reservations DROP CONSTRAINT bad")
    for row in (good, bad):
        chain.send(chain.cancel(row))


def test_a_parked_event_is_named_with_its_command_and_a_redrive_mends_it(chain: Chain) -> None:
    park_one(chain)
    chain.consume()
    found = verify(chain.rig.settings, late_s=0)
    assert broken(found) == {"inventory-missing": 1}
    assert found.facts.parked == 2
    (sample,) = found.check("inventory-missing").offenders
    assert "is parked: brewctl dlq redrive p" in sample
    key = chain.execute("SELECT DISTINCT key FROM parked_events").fetchall()
    with database.connect(chain.rig.settings) as connection:
        parking.redrive(connection, inventory.DOWNSTREAM, [name for (name,) in key], node="cli")
    found = verify(chain.rig.settings, late_s=0)
    assert (broken(found), found.facts.parked) == ({}, 0)


def test_an_event_that_overtakes_a_parked_one_of_its_key_is_found(chain: Chain) -> None:
    park_one(chain)
    # A node that does not look whether a key has parked events.
    with mock.patch.object(Parking, "park_behind", lambda _self, _connection, part: ([event for _, event in part], 0)):
        chain.consume()
    assert broken(verify(chain.rig.settings, late_s=0)) == {"inventory-overtaken": 1}


def test_trace_and_counts_know_what_is_parked(chain: Chain) -> None:
    park_one(chain)
    chain.consume()
    assert "parked=2: see `brewctl dlq list`" in chain.rig.brewctl("counts").stdout
    ((number, key),) = chain.execute("SELECT min(id), key FROM parked_events GROUP BY key").fetchall()
    shown = chain.rig.brewctl("trace", key.removeprefix("order-"))
    assert f"p{number} of group inventory: postgres rejected its effect" in shown.stdout
    assert f"brewctl dlq redrive p{number}" in shown.stdout + shown.stderr
    assert chain.rig.brewctl("dlq", "redrive", f"p{number}").stdout == "redriven=2 already=0 refused=0\n"
    assert chain.rig.brewctl("trace", key.removeprefix("order-")).returncode == 0
    assert "parked=" not in chain.rig.brewctl("counts").stdout

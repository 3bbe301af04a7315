"""`verify` and an event that is published again behind a later one of its key, for its record was lost."""

from collections.abc import Iterator

import pytest

from brewctl.delivery.repair import republish
from brewctl.verify import verify
from tests.integration.chain_tools import Chain, broken, open_chain

LOST = 99  # an offset behind the topic's end


@pytest.fixture
def chain(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    with open_chain(servers, tmp_path_factory.mktemp("logs")) as chain:
        yield chain


def swapped(chain: Chain, *, by_command: bool) -> int:
    """Lose the record of an order's first event, and publish it again behind the second; its outbox id."""
    first = chain.order()
    chain.mark(first, offset=LOST)
    chain.send(chain.cancel(first))
    chain.consume()
    if by_command:
        assert republish.again(chain.rig.connection, [first.outbox_id]) == [first.outbox_id]
    chain.send(first)
    chain.consume()
    return first.outbox_id


def test_an_event_that_was_published_again_may_come_behind_later_ones(chain: Chain) -> None:
    swapped(chain, by_command=True)
    found = verify(chain.rig.settings, late_s=0)
    assert (broken(found), found.facts.republished) == ({}, 1)
    shown = chain.rig.brewctl("verify")
    assert shown.returncode == 0
    assert "1 row was published again by `outbox republish`" in shown.stdout


def test_an_event_that_nobody_had_published_again_may_not(chain: Chain) -> None:
    """Nor may another one, where one was."""
    swapped(chain, by_command=True)
    outbox_id = swapped(chain, by_command=False)
    found = verify(chain.rig.settings, late_s=0)
    assert broken(found) == {"out-of-order": 1, "inventory-sequence": 1, "notifications-sequence": 1}
    (line,) = found.check("inventory-sequence").offenders
    assert line == f"outbox {outbox_id} had its inventory effect after outbox {outbox_id + 1} of the same key"

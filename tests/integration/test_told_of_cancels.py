"""What clients were told of their cancels, against the tables: where each table agrees with the next, and the client
alone knows better, no check of `verify` can find it.
"""

from collections.abc import Iterator

import pytest

from brewctl.errors import BrewError
from brewctl.lab.chaos import record_faults, verdict
from brewctl.lab.load.cancels import Cancel
from brewctl.lab.load.load import CallOutcome
from brewctl.verify import verify
from tests.integration.chain_tools import Chain, Row, broken, open_chain


@pytest.fixture(scope="module")
def chain(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """One for all tests here: each has orders of its own."""
    with open_chain(servers, tmp_path_factory.mktemp("logs")) as chain:
        yield chain


def told(order: Row, outcome: CallOutcome) -> Cancel:
    error = None if outcome is CallOutcome.ACKNOWLEDGED else BrewError("order-service answered so")
    return Cancel(order.order_id, outcome, error, retried=False, at_once=True, begun_s=0.0, answered_s=0.1)


def orders(chain: Chain) -> tuple[Row, Row]:
    """Make two orders, of which the second is cancelled, with every event and effect."""
    new, cancelled = chain.order(), chain.order()
    for row in (new, cancelled, chain.cancel(cancelled)):
        chain.send(row)
    chain.consume()
    return new, cancelled


def contradictions(chain: Chain, *cancels: Cancel) -> tuple[list[str], list[str]]:
    """What the verdict finds of each kind, where `verify` finds nothing."""
    assert broken(verify(chain.rig.settings, late_s=0)) == {}
    found = verdict.compare(chain.rig.connection, [], cancels)
    assert len(list(found.findings())) == len(found.not_cancelled) + len(found.refused_cancelled)
    return found.not_cancelled, [cancel.order_id for cancel in found.refused_cancelled]


def test_what_is_so_is_no_contradiction(chain: Chain) -> None:
    new, cancelled = orders(chain)
    assert contradictions(chain, told(new, CallOutcome.FAILED), told(cancelled, CallOutcome.ACKNOWLEDGED)) == ([], [])


def test_a_cancel_whose_answer_was_lost_may_be_either(chain: Chain) -> None:
    new, cancelled = orders(chain)
    assert contradictions(chain, told(new, CallOutcome.UNKNOWN), told(cancelled, CallOutcome.UNKNOWN)) == ([], [])


def test_an_acknowledged_cancel_of_an_order_that_is_not_cancelled_is_found(chain: Chain) -> None:
    new, _ = orders(chain)
    assert contradictions(chain, told(new, CallOutcome.ACKNOWLEDGED)) == ([new.order_id], [])


def test_a_refused_cancel_of_an_order_that_is_cancelled_is_found(chain: Chain) -> None:
    _, cancelled = orders(chain)
    assert contradictions(chain, told(cancelled, CallOutcome.FAILED)) == ([], [cancelled.order_id])


@pytest.mark.parametrize("outcome", [CallOutcome.ACKNOWLEDGED, CallOutcome.UNKNOWN])
def test_a_refused_cancel_of_an_order_that_another_has_cancelled_is_right(chain: Chain, outcome: CallOutcome) -> None:
    _, cancelled = orders(chain)
    assert contradictions(chain, told(cancelled, CallOutcome.FAILED), told(cancelled, outcome)) == ([], [])


# Parked events


def wrongly_parked(chain: Chain) -> list[str]:
    return verdict.wrongly_parked(chain.rig.connection, cause=record_faults.REFUSING)


@pytest.mark.parametrize("constraint", [record_faults.REFUSING, "another"])
def test_only_events_that_were_refused_on_purpose_may_have_been_parked(chain: Chain, constraint: str) -> None:
    good, bad = chain.order(), chain.order()
    chain.execute(
        f"ALTER TABLE inventory_reservations ADD CONSTRAINT {constraint} CHECK (order_id <> '{bad.order_id}')"
    )
    for row in (good, bad, chain.cancel(bad)):
        chain.send(row)
    chain.consume()
    chain.execute(f"ALTER TABLE inventory_reservations DROP CONSTRAINT {constraint}")
    waiting = wrongly_parked(chain)
    assert [line.split(" by ")[0] for line in waiting] == [
        f"outbox {bad.outbox_id} is parked",
        f"outbox {chain.row(bad.order_id).outbox_id} is parked",
    ]
    assert f'check constraint "{constraint}"' in waiting[0]
    assert chain.rig.brewctl("dlq", "redrive", "--group", "inventory").returncode == 0
    settled = wrongly_parked(chain)
    chain.execute("DELETE FROM parked_events")
    assert [" was parked by inventory: " in line for line in settled] == (
        [] if constraint == record_faults.REFUSING else [True] * 2
    )

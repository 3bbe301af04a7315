"""After partitions were dropped: what is lost is still found, numbers go on, and what looks on says so."""

import json
from collections.abc import Iterator

import pytest

from brewctl import overview
from brewctl.exporter.collector import Collector
from brewctl.verify import verify
from tests.integration.chain_tools import Chain, Row, broken, open_chain
from tests.integration.retention_tools import fill, remove_records, run, small_partitions
from tests.scraping import Page


@pytest.fixture(scope="module")
def chain(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """A chain of which ids below 20 are dropped, and ids up to 25 are there."""
    with open_chain(servers, tmp_path_factory.mktemp("logs")) as chain:
        small_partitions(chain.rig.connection)
        DROPPED[:] = fill(chain, 25)
        remove_records(chain)
        assert run(chain.rig.settings).watermark == 20
        yield chain


DROPPED: list[Row] = []


def offenders(chain: Chain, name: str) -> list[str]:
    return verify(chain.rig.settings, late_s=0).check(name).offenders


def test_a_row_that_is_lost_behind_the_watermark_is_found(chain: Chain) -> None:
    """Of an order that is younger than all that was dropped."""
    lost = chain.order()
    chain.send(lost)
    chain.consume()
    chain.execute("CREATE TABLE saved AS SELECT * FROM outbox WHERE id = %s", lost.outbox_id)
    chain.execute("DELETE FROM outbox WHERE id = %s", lost.outbox_id)
    assert offenders(chain, "event-per-order") == [f"order {lost.order_id} has no outbox row"]
    chain.execute("INSERT INTO outbox OVERRIDING SYSTEM VALUE SELECT * FROM saved")
    chain.execute("DROP TABLE saved")
    assert broken(verify(chain.rig.settings, late_s=0)) == {}


def test_an_old_order_that_lost_its_row_is_counted_against_what_was_dropped(chain: Chain) -> None:
    before = broken(verify(chain.rig.settings, late_s=0))
    chain.execute("UPDATE retention SET dropped_created = dropped_created - 1")
    (said,) = offenders(chain, "event-per-order")
    assert said.startswith("19 orders up to ")
    assert said.endswith(" have no order.created in the outbox, and 18 were dropped")
    chain.execute("UPDATE retention SET dropped_created = dropped_created + 1")
    assert broken(verify(chain.rig.settings, late_s=0)) == before


def test_a_dedup_row_behind_the_watermark_without_its_event_is_found(chain: Chain) -> None:
    chain.execute("INSERT INTO processed_events (consumer, outbox_id) VALUES ('inventory', 39)")
    assert offenders(chain, "inventory-dedup") == ["outbox 39 was processed, and is not in the outbox"]
    chain.execute("DELETE FROM processed_events WHERE outbox_id = 39")


def test_the_events_of_an_old_aggregate_are_numbered_on(chain: Chain) -> None:
    cancelled = chain.cancel(DROPPED[0])
    number = "SELECT aggregate_seq FROM outbox WHERE id = %s"
    assert chain.execute(number, cancelled.outbox_id).fetchone() == (2,)
    chain.send(cancelled)
    add = "SELECT outbox_add(%s, 'account-7', 'account.opened', 'x')"
    for place in (1, 2):
        chain.execute(add, "other-topic")
        found = chain.execute(
            "SELECT aggregate_seq FROM outbox WHERE aggregate_id = 'account-7' ORDER BY id DESC LIMIT 1"
        )
        assert found.fetchone() == (place,)
        chain.execute("DELETE FROM outbox WHERE aggregate_id = 'account-7'")  # as retention does
    chain.consume()
    assert broken(verify(chain.rig.settings, late_s=0)) == {}
    # An event that is missing between two that are there is found.
    chain.execute("UPDATE outbox SET aggregate_seq = 4 WHERE id = %s", cancelled.outbox_id)
    twin = chain.twin(cancelled)
    chain.execute("UPDATE outbox SET aggregate_seq = 6, event_type = 'order.noted' WHERE id = %s", twin.outbox_id)
    assert any(f"outbox {twin.outbox_id} " in each for each in offenders(chain, "numbered"))
    chain.execute("DELETE FROM outbox WHERE id = %s", twin.outbox_id)
    chain.execute("UPDATE outbox SET aggregate_seq = 2 WHERE id = %s", cancelled.outbox_id)


def test_a_trace_says_that_the_rows_were_dropped(chain: Chain) -> None:
    done = chain.rig.brewctl("trace", DROPPED[5].order_id)
    assert done.returncode == 0, done.stderr
    assert "finished: its outbox row, of an id below 20, was dropped by retention" in done.stdout
    found = json.loads(chain.rig.brewctl("trace", DROPPED[5].order_id, "--json").stdout)
    assert found["finished"] is True


def test_no_old_order_counts_as_unfinished(chain: Chain) -> None:
    old = {row.order_id for row in DROPPED[1:19]}
    assert not old & {str(each.order_id) for each in overview.unfinished(chain.rig.connection, limit=100)}


def test_the_exporter_says_how_many_partitions_are_left_and_when_retention_ran(chain: Chain) -> None:
    with Collector(chain.rig.settings, within_s=30).looking() as collector:
        found = Page(collector.page().decode())
    assert found.value("brew_partitions", server="postgres", table="outbox") == 5
    assert found.value("brew_partitions_ahead", server="postgres", table="outbox") in {3, 4}
    assert found.value("brew_partitions_ahead", server="postgres", table="processed_events") in {3, 4}
    assert found.value("brew_retention_watermark") == 20
    since = found.value("brew_retention_last_run_seconds")
    assert since is not None
    assert 0 <= since < float("inf")
    assert found.value("brew_retention_held_back_seconds") == 0
    assert found.value("brew_retention_refused") == 0

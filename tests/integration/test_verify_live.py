"""`brewctl verify` on a system that runs: what is on its way is no fault, whatever moves meanwhile."""

import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from kafka.admin import NewPartitions

from brewctl.delivery import events
from brewctl.delivery.broker import PARTITIONS, Reader
from brewctl.delivery.broker.partitions import partition_for
from brewctl.lab.load.load import CallOutcome, History, Load
from brewctl.lifecycle import wait_until
from brewctl.verify import verify
from tests.conftest import Rig
from tests.integration.chain_tools import Chain, Row, broken, open_chain
from tests.integration.kafka_tools import kafka_admin


@pytest.fixture
def chain(servers: dict[str, str], tmp_path: Path) -> Iterator[Chain]:
    with open_chain(servers, tmp_path / "logs") as chain:
        yield chain


def make_old(chain: Chain, *rows: Row) -> None:
    ids = [row.outbox_id for row in rows]
    chain.execute("UPDATE outbox SET created_at = created_at - interval '1 hour' WHERE id = ANY(%s)", ids)


# On its way


def test_a_healthy_system_under_load_is_ok_at_any_moment(rig: Rig) -> None:
    _, address = rig.serve()
    rig.start("inventory-1", "consume", "inventory")
    rig.start("notification-1", "consume", "notifications")
    told, stop = History(), threading.Event()
    load = Load([address], told.record, rate=100)
    answers = []
    with ThreadPoolExecutor(1) as executor:
        sending = executor.submit(load.run, stop)
        try:
            rig.wait("the first orders", lambda: rig.counts().notifications > 0)
            for _ in range(4):
                shown = rig.brewctl("verify", "--late", "600", "--json")
                answers.append((shown.returncode, json.loads(shown.stdout)["verdict"], shown.stderr))
        finally:
            stop.set()
        sending.result()
    assert [answer for answer in answers if answer[0] or answer[2]] == []
    assert told.count(CallOutcome.ACKNOWLEDGED) > 0

    shown = rig.brewctl("verify", "--wait", "60", "--late", "0")
    assert (shown.returncode, shown.stderr) == (0, ""), shown.stdout


def test_what_is_late_is_a_fault_and_what_is_young_is_counted(chain: Chain) -> None:
    unpublished, late, unread, left = (chain.order() for _ in range(4))
    chain.send(unread)
    chain.send(left, partition=1)
    found = verify(chain.rig.settings)
    assert broken(found) == {}
    assert (found.facts.unpublished, found.facts.unread) == (2, {"inventory": 2, "notifications": 2})
    assert 0 < found.facts.oldest_s < 60
    assert "on the way: 2 unpublished, 2 unread by inventory, 2 unread by notifications, the oldest" in found.verdict

    make_old(chain, late, left)
    found = verify(chain.rig.settings)
    assert broken(found) == {"unpublished": 1, "inventory-missing": 2, "notifications-missing": 2}
    (offender,) = found.check("unpublished").offenders
    assert re.fullmatch(rf"outbox {late.outbox_id} of .* is not published 3\d\d\d s after it was written", offender)
    assert found.facts.unpublished == 1
    assert broken(verify(chain.rig.settings, late_s=7200)) == {}
    assert chain.rig.brewctl("verify", "--late", "7200", "--quiet").stdout == ""
    assert f"outbox {unpublished.outbox_id} " not in chain.rig.brewctl("verify", "--quiet").stdout


def test_what_will_never_come_is_a_fault_at_once(chain: Chain) -> None:
    aside, dead, passed = (chain.order() for _ in range(3))
    chain.execute("UPDATE outbox SET failed_at = now() WHERE id = %s", aside.outbox_id)
    chain.bury(dead, chain.send(dead))
    chain.commit("notifications", {1: chain.send(passed, partition=1) + 1})
    found = verify(chain.rig.settings)
    assert broken(found) == {
        "unpublished": 1,
        "inventory-missing": 2,
        "notifications-missing": 2,
        "notifications-offsets": 1,
    }
    assert found.facts.unread == {"inventory": 1, "notifications": 1}


# What operators do meanwhile


def test_a_row_that_is_published_again_is_no_fault(chain: Chain) -> None:
    first = chain.order()
    second = chain.twin(first)
    chain.send(first)
    chain.send(second)
    chain.consume()
    make_old(chain, first, second)
    chain.execute("UPDATE outbox SET published_at = NULL WHERE id = %s", first.outbox_id)
    found = verify(chain.rig.settings)
    assert broken(found) == {"event-per-order": 1}
    assert found.facts.unpublished == 1
    chain.send(first, node="order-2")
    assert broken(verify(chain.rig.settings, late_s=0)) == {"event-per-order": 1}


def test_a_row_is_published_again_after_retention_took_its_first_record(chain: Chain) -> None:
    first = chain.order()
    second = chain.twin(first)
    end = chain.send(first) + 1
    make_old(chain, first)
    chain.send(second)
    chain.consume()
    chain.delete_records(end)
    chain.send(first)
    assert broken(verify(chain.rig.settings, late_s=0)) == {"event-per-order": 1}


def test_retention_may_remove_records_while_they_are_read(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    for partition in (0, 0, 0, 1):
        chain.send(chain.order(), partition=partition)
    chain.consume()
    read = Reader.read

    def removing(reader: Reader, topic: str, ranges: dict[int, tuple[int, int]]) -> Any:
        if topic == chain.rig.settings.topic and ranges[0][0] == 0:
            chain.delete_records(2)
        return read(reader, topic, ranges)

    monkeypatch.setattr(Reader, "read", removing)
    found = verify(chain.rig.settings, late_s=0)
    assert broken(found) == {}
    assert (found.facts.removed, found.facts.removed_events, found.facts.events) == (2, 2, 2)


def test_partitions_that_are_added_make_no_fault_of_old_places(chain: Chain) -> None:
    added = PARTITIONS + 3

    def moving() -> Row:
        while True:
            row = chain.order()
            chain.send(row, partition=partition_for(row.key, PARTITIONS))
            if partition_for(row.key, PARTITIONS) != partition_for(row.key, added):
                return row

    row, wrong = moving(), moving()
    with kafka_admin(chain.rig.settings) as admin:
        admin.create_partitions({chain.rig.settings.topic: NewPartitions(added)})
    chain.client.cluster.request_update()

    def there() -> bool:
        chain.client.poll(timeout_ms=100)
        with kafka_admin(chain.rig.settings) as admin:
            (topic,) = admin.describe_topics([chain.rig.settings.topic])
        return len(topic["partitions"]) == added and all(each["leader"] >= 0 for each in topic["partitions"])

    wait_until("the new partitions", there, timeout_s=60)
    chain.send(row, partition=partition_for(row.key, added), node="order-2")
    chain.consume()
    found = verify(chain.rig.settings, late_s=0)
    assert broken(found) == {}
    assert found.facts.moved_keys == 1
    assert "1 keys in two partitions" in chain.rig.brewctl("verify").stdout

    possible = {partition_for(wrong.key, count) for count in range(PARTITIONS, added + 1)}
    chain.send(wrong, partition=min(set(range(added)) - possible), node="order-2")
    found = verify(chain.rig.settings, late_s=0)
    assert broken(found) == {"split-keys": 1}
    assert f"the key of outbox {wrong.outbox_id} is in partitions" in found.check("split-keys").offenders[0]


# What it can't be fooled by


def test_wrong_headers_are_found_though_the_publishers_own_function_agrees(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = events.headers_for

    def wrong(*arguments: Any, **named: Any) -> events.Headers:
        return [(name, b"coffee" if name == "tenant-id" else value) for name, value in right(*arguments, **named)]

    monkeypatch.setattr(events, "headers_for", wrong)
    chain.send(chain.order())
    chain.consume()
    found = verify(chain.rig.settings)
    assert broken(found) == {"wrong-headers": 1}
    assert found.check("wrong-headers").offenders[0].endswith("tenant-id is coffee, not tea")


def test_the_node_in_a_record_is_the_one_that_marked_its_row(chain: Chain) -> None:
    row = chain.order()
    at = chain.send(row, node="order-2")
    chain.mark(row, offset=at, node="order-1")
    chain.consume()
    (offender,) = verify(chain.rig.settings).check("wrong-headers").offenders
    assert offender.endswith("publisher-node is order-2, not order-1")


def test_a_ledger_without_a_key_shows_effects_that_the_tables_hide(chain: Chain) -> None:
    row = chain.order()
    chain.send(row)
    chain.consume()
    chain.execute("CREATE TABLE effect_ledger (consumer text, outbox_id bigint, node_id text)")
    for node in ("inventory-1", "inventory-2"):
        chain.execute("INSERT INTO effect_ledger VALUES ('inventory', %s, %s)", row.outbox_id, node)
    found = verify(chain.rig.settings)
    assert broken(found) == {"inventory-doubled": 1}
    assert found.check("inventory-doubled").offenders == [
        f"outbox {row.outbox_id} had its inventory effect made 2 times"
    ]

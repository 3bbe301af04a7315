"""A consumer that waits for its database stays a member of its group, with its partitions and its place in them."""

import contextlib
import dataclasses
import threading
import time
from typing import Any

import pytest
from kafka import KafkaProducer

from brewctl.config import Settings
from brewctl.delivery import database
from brewctl.delivery.broker import PARTITIONS, Consumer, Record
from brewctl.delivery.broker.client import connection
from brewctl.delivery.inbox import Inbox
from brewctl.roles import inventory
from tests.conftest import Rig
from tests.integration.kafka_tools import good_record, refused_connections

PARTITION = 3
RECORDS = 40


@pytest.fixture
def settings(rig: Rig) -> Settings:
    """A member may be silent for 6 s, longer than one try, and takes a few of a batch's records at a time."""
    limits = dataclasses.replace(
        rig.settings.limits,
        session_s=6.0,
        poll_interval_s=6.0,
        database_wait_s=0.2,
        database_connect_s=1,
        database_statement_s=2,
        database_answer_s=2.5,
        publish_s=1.5,
        consume_records=7,
    )
    return dataclasses.replace(rig.settings, limits=limits)


@pytest.fixture
def goods(rig: Rig) -> None:
    """Records that are one batch on the wire: a client that drops the rest of it must come back to it."""
    producer = KafkaProducer(**connection(rig.settings, name="test"), linger_ms=1000, batch_size=2**20)
    for good in (good_record() for _ in range(RECORDS)):
        producer.send(rig.settings.topic, good.value, good.key, headers=good.headers, partition=PARTITION)
    producer.close()


@pytest.mark.usefixtures("goods")
def test_an_outage_of_the_database_moves_no_partition_and_loses_no_record(
    rig: Rig,
    settings: Settings,
    servers: dict[str, str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    stop, began = threading.Event(), threading.Event()
    with database.open_pool(settings, name="inventory-1", size=1) as pool:
        inbox = Inbox(settings, pool, inventory.PROJECTION, node="inventory-1")
        settle = inbox._settle

        def settle_and_say(*arguments: object) -> bool:
            began.set()
            return settle(*arguments)  # type: ignore[arg-type]

        inbox._settle = settle_and_say  # type: ignore[method-assign,assignment]
        member = threading.Thread(target=inbox.run, args=(stop,))
        with refused_connections(rig, servers, "inventory-1"):
            member.start()
            try:
                assert began.wait(30)
                # Longer than a member may be silent.
                time.sleep(settings.limits.poll_interval_s + 1.5)
            except BaseException:
                stop.set()
                raise
        try:
            rig.wait("all reserved", lambda: rig.counts().reservations == RECORDS)
        finally:
            stop.set()
            member.join()
    said = capfd.readouterr().out
    assert said.count("partitions assigned") == 1
    assert (inbox.tally.effects, inbox.tally.processed) == (RECORDS, RECORDS), "nothing came twice"
    assert 1 <= said.count("postgres_unavailable") <= 5, "said once a while, not once a try"


@pytest.mark.usefixtures("goods")
def test_a_rebalance_while_a_batch_waits_is_told_and_loses_no_record(rig: Rig, settings: Settings) -> None:
    joined: list[list[int]] = []
    one = Consumer(settings, threading.Event(), group="inventory", node="one", on_assigned=joined.append)
    try:
        first = read_some(one)
        assert len(first) == settings.limits.consume_records
        assert one.keep_alive()
        second = read_some(one)
        assert [record.offset for record in second] == list(range(7, 14)), "the rest of what was dropped comes again"
        other = threading.Thread(target=join_and_leave, args=(settings,))
        other.start()
        kept = []
        while other.is_alive():
            kept.append(one.keep_alive())
        other.join()
        assert not all(kept), "the batch must be given up"
        rig.wait("all partitions again", lambda: one.keep_alive() and joined[-1] == list(range(PARTITIONS)))
        # Nothing was committed: all of it comes again, from the first.
        again = [record.offset for _ in range(6) for record in read_some(one)]
        assert again == list(range(RECORDS))
    finally:
        one.close()


def test_losing_its_broker_never_lets_a_member_wait_for_itself(settings: Settings) -> None:
    """The client's threads take its two locks in opposite orders: they have to be one."""
    member = Consumer(settings, threading.Event(), group="inventory", node="one", on_assigned=lambda _partitions: None)
    locks = [member._consumer._client._lock, member._consumer._coordinator._lock]
    meeting = threading.Barrier(2)
    got: list[bool] = []

    def take(first: Any, second: Any) -> None:
        with first:
            with contextlib.suppress(threading.BrokenBarrierError):
                meeting.wait(1)
            got.append(second.acquire(timeout=2))
            if got[-1]:
                second.release()

    threads = [threading.Thread(target=take, args=order) for order in (locks, reversed(locks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    member.close()
    assert got == [True, True]


def read_some(consumer: Consumer) -> list[Record]:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if records := consumer.poll(timeout_s=0.2):
            return records
    raise AssertionError("nothing to read")


def join_and_leave(settings: Settings) -> None:
    joined: list[list[int]] = []
    two = Consumer(settings, threading.Event(), group="inventory", node="two", on_assigned=joined.append)
    deadline = time.monotonic() + 30
    while not joined and time.monotonic() < deadline:
        two.poll(timeout_s=0.2)
    two.close()

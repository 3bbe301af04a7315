"""A consumer that waits for its database stays a member of its group, with its partitions and its place in them."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from kafka import KafkaProducer

from brewctl.config import KafkaClient, Settings
from brewctl.delivery import database
from brewctl.delivery.broker import PARTITIONS, Consumer, Record
from brewctl.delivery.broker.kafka_python.connection_settings import connection
from brewctl.delivery.downstream import Downstream
from brewctl.delivery.inbox.batch import Batch
from brewctl.delivery.inbox.consumption import Consumption
from brewctl.delivery.inbox.inbox import Inbox
from brewctl.limits import Limits
from brewctl.roles import inventory
from tests.conftest import Rig, limited
from tests.integration.kafka_tools import committed_offsets, good_record, kafka_admin, refused_connections

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
        inbox = Inbox(settings, pool, inventory.DOWNSTREAM, node="inventory-1")
        apply = inbox.apply

        def apply_and_say(batch: Batch) -> None:
            began.set()
            apply(batch)

        inbox.apply = apply_and_say  # type: ignore[method-assign]
        consumption = Consumption(settings, inbox, group="inventory", node="inventory-1")
        member = threading.Thread(target=consumption.run, args=(stop,))
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
    one = a_member(settings, "one", joined.append)
    try:
        first = read_some(one)
        assert len(first) == settings.limits.consume_records
        before = one.assignments
        one.keep_alive()
        assert one.assignments == before
        second = read_some(one)
        assert [record.offset for record in second] == list(range(7, 14)), "the rest of what was dropped comes again"
        other = threading.Thread(target=join_and_leave, args=(settings,))
        other.start()
        while other.is_alive():
            one.keep_alive()
        other.join()
        assert one.assignments > before, "the batch must be given up"

        def all_again() -> bool:
            one.keep_alive()
            return joined[-1] == list(range(PARTITIONS))

        rig.wait("all partitions again", all_again)
        # Nothing was committed: all of it comes again, from the first.
        again = [record.offset for _ in range(6) for record in read_some(one)]
        assert again == list(range(RECORDS))
    finally:
        one.close()


@pytest.mark.usefixtures("goods")
def test_what_is_in_the_database_when_partitions_leave_is_finished_first(rig: Rig, settings: Settings) -> None:
    """Its offsets are committed in time: the new owner begins behind it, and nothing comes twice."""
    rig.connection.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.1); RETURN new; END $$;"
        "CREATE TRIGGER slow BEFORE INSERT ON inventory_reservations FOR EACH ROW EXECUTE FUNCTION slow()"
    )
    stop = threading.Event()
    joined: list[list[int]] = []
    with database.open_pool(settings, name="inventory-1", size=1) as pool:
        inbox = Inbox(settings, pool, inventory.DOWNSTREAM, node="inventory-1")
        consumption = Consumption(settings, inbox, group="inventory", node="inventory-1")
        member = threading.Thread(target=consumption.run, args=(stop,))
        member.start()
        try:
            # Seven records take 0.7 s: whenever the other one joins, some are being written.
            rig.wait("the first batch", lambda: rig.counts().reservations > 0)
            other = a_member(settings, "two", joined.append)
            while not joined:
                other.poll(timeout_s=0)
            other.close()
            rig.wait("all reserved", lambda: rig.counts().reservations == RECORDS)
        finally:
            stop.set()
            member.join()
    assert (inbox.tally.effects, inbox.tally.skipped) == (RECORDS, 0)


@pytest.mark.usefixtures("goods")
def test_a_rebalance_while_the_database_is_at_work_for_longer_than_a_session_evicts_nobody(
    rig: Rig, settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    """One transaction takes twice the session. What it wrote is committed in time, and nothing comes twice."""
    rig.connection.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(12) WHERE (SELECT count(*) FROM inventory_reservations) = 0; RETURN new; END $$;"
        "CREATE TRIGGER slow BEFORE INSERT ON inventory_reservations FOR EACH STATEMENT EXECUTE FUNCTION slow()"
    )
    limits = dataclasses.replace(Limits(), session_s=6.0, consume_records=RECORDS)
    settings = dataclasses.replace(settings, limits=limits)
    stop, joined = threading.Event(), list[list[int]]()
    read: list[Record] = []
    with database.open_pool(settings, name="inventory-1", size=1) as pool:
        inbox = Inbox(settings, pool, inventory.DOWNSTREAM, node="inventory-1")
        consumption = Consumption(settings, inbox, group="inventory", node="inventory-1")
        member = threading.Thread(target=consumption.run, args=(stop,))
        member.start()
        try:
            rig.wait("a transaction at work", lambda: at_work(rig))
            other = a_member(settings, "two", joined.append)
            try:
                while not joined:
                    read += other.poll(timeout_s=0)
                read += other.poll(timeout_s=2)
            finally:
                other.close()
            rig.wait("all reserved", lambda: rig.counts().reservations == RECORDS)
        finally:
            stop.set()
            member.join()
    assert len(joined[0]) == PARTITIONS // 2, "both are members"
    assert len(read) + inbox.tally.processed == RECORDS, "each was read once"
    assert (inbox.tally.effects, inbox.tally.skipped) == (RECORDS - len(read), 0)
    assert "commit_refused" not in capfd.readouterr().out


def at_work(rig: Rig) -> bool:
    found = rig.connection.execute(
        "SELECT FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'inventory-1' AND wait_event = 'PgSleep'"
    )
    return found.fetchone() is not None


@pytest.mark.usefixtures("goods")
def test_a_slow_batch_lets_others_join_between_its_transactions_and_commits_what_is_done(
    rig: Rig, settings: Settings
) -> None:
    """Forty effects of 0.5 s are 20 s: neither a new member nor the lag waits for all of them."""
    rig.connection.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.5); RETURN new; END $$;"
        "CREATE TRIGGER slow BEFORE INSERT ON inventory_reservations FOR EACH ROW EXECUTE FUNCTION slow()"
    )
    settings = dataclasses.replace(
        settings, limits=dataclasses.replace(settings.limits, poll_interval_s=60.0, consume_records=RECORDS)
    )
    stop, joined = threading.Event(), list[list[int]]()
    with database.open_pool(settings, name="inventory-1", size=1) as pool:
        inbox = Inbox(settings, pool, inventory.DOWNSTREAM, node="inventory-1")
        consumption = Consumption(settings, inbox, group="inventory", node="inventory-1")
        member = threading.Thread(target=consumption.run, args=(stop,))
        member.start()
        try:
            with kafka_admin(settings) as admin:

                def committed() -> int:
                    return committed_offsets(admin, "inventory", settings.topic).get(PARTITION, 0)

                rig.wait("offsets of a part", lambda: 0 < committed() < RECORDS)
            other = a_member(settings, "two", joined.append)
            while not joined:
                other.poll(timeout_s=0)
            assert rig.counts().reservations < RECORDS, "it did not wait for all"
            other.close()
            rig.wait("all reserved", lambda: rig.counts().reservations == RECORDS)
        finally:
            stop.set()
            member.join()
    assert (inbox.tally.effects, inbox.tally.skipped) == (RECORDS, 0)


@pytest.mark.usefixtures("goods")
def test_failed_tries_of_events_whose_partitions_leave_are_forgotten(rig: Rig, settings: Settings) -> None:
    """Whoever has them then counts anew; kept here, they would stay for as long as the process runs."""
    stop, joined = threading.Event(), list[list[int]]()
    left: list[int] = []

    def handler(_event: Any, _tx: Any) -> None:
        raise ValueError("not now")

    fails = Downstream("inventory", handler=handler, events=("order.created",), attempts=1000)
    settings = limited(settings, failures_in_a_row=1000, poll_interval_s=60.0)
    with database.open_pool(settings, name="inventory-1", size=1) as pool:
        inbox = Inbox(settings, pool, fails, node="inventory-1")
        forget, tries = inbox.forget, inbox._failures._tries

        def forget_and_say(batch: Batch) -> None:
            before = len(tries)
            forget(batch)
            left.extend((before, len(tries)))

        inbox.forget = forget_and_say  # type: ignore[method-assign]
        consumption = Consumption(settings, inbox, group="inventory", node="inventory-1")
        member = threading.Thread(target=consumption.run, args=(stop,))
        member.start()
        try:
            rig.wait("failed tries", lambda: len(tries) > 0)
            other = a_member(settings, "two", joined.append)
            while not joined:
                other.poll(timeout_s=0)
            other.close()
        finally:
            stop.set()
            member.join()
    before, after = left[:2]
    assert before > 0
    assert after == 0


@pytest.mark.parametrize("kafka_client", [KafkaClient.KAFKA_PYTHON_NG])  # librdkafka has its locks in C
def test_losing_its_broker_never_lets_a_member_wait_for_itself(settings: Settings) -> None:
    """The client's threads take its two locks in opposite orders: they have to be one."""
    member = a_member(settings, "one", lambda _partitions: None)
    library = member._member._consumer  # type: ignore[attr-defined]
    locks = [library._client._lock, library._coordinator._lock]
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


def a_member(settings: Settings, name: str, on_assigned: Callable[[list[int]], None]) -> Consumer:
    return Consumer(
        settings, threading.Event(), group="inventory", node=name, on_assigned=on_assigned, on_revoked=lambda: None
    )


def read_some(consumer: Consumer) -> list[Record]:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if records := consumer.poll(timeout_s=0.2):
            return records
    raise AssertionError("nothing to read")


def join_and_leave(settings: Settings) -> None:
    joined: list[list[int]] = []
    two = a_member(settings, "two", joined.append)
    deadline = time.monotonic() + 30
    while not joined and time.monotonic() < deadline:
        two.poll(timeout_s=0.2)
    two.close()


def test_a_stop_wakes_a_member_that_waits_for_records(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    assigned, woken = threading.Event(), threading.Event()
    stop = threading.Event()
    member = Consumer(
        rig.settings, stop, group="inventory", node="one", on_assigned=lambda _: assigned.set(), on_revoked=lambda: None
    )
    client = member._member._consumer._client  # type: ignore[attr-defined]
    wakeup = client.wakeup

    def wake() -> None:
        if stop.is_set():
            woken.set()
        wakeup()

    monkeypatch.setattr(client, "wakeup", wake)
    waiting = threading.Thread(target=member.poll, kwargs={"timeout_s": 3600.0})
    waiting.start()
    try:
        assert assigned.wait(30)
    finally:
        stop.set()
        waiting.join(30)
    assert not waiting.is_alive()
    assert woken.wait(30)
    member.close()

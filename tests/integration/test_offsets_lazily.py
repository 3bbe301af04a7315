"""Offsets are committed once a second, before partitions leave, at a stop and within a bound; never ahead of effects.

What is committed is read in Kafka's own topic of commits, where each partition of a commit is a record.
"""

import contextlib
import itertools
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from brewctl.config import Settings, environment
from brewctl.delivery import database, rest
from brewctl.delivery.broker.kafka_python.connection_settings import connection
from brewctl.delivery.inbox import consumption
from brewctl.delivery.inbox.batch import Batch, Tally
from brewctl.delivery.inbox.consumption import Consumption
from brewctl.delivery.inbox.inbox import Inbox
from brewctl.roles import inventory
from tests.conftest import Rig, limited
from tests.integration.kafka_tools import committed_offsets, finish, good_record, kafka_admin
from tests.integration.test_membership import a_member
from tests.integration.test_transactions import send, transactional

PARTITION = 3
COMMITS = "__consumer_offsets"
NEVER_S = 3600.0
# A consumer to be killed long before its second commit.
VICTIM = f"""
import os, threading
from brewctl import config
from brewctl.limits import Limits
from brewctl.delivery.inbox.node import consume
from brewctl.roles import inventory

limits = Limits(session_s=3.0, offset_commit_s={NEVER_S})
consume(config.resolve({{}}, os.environ, {{}}, limits), inventory.DOWNSTREAM, threading.Event(), node="inventory-1")
"""


def put(rig: Rig, count: int, *, every_s: float = 0.0) -> None:
    """Put so many records into one partition; with `every_s` one after the other, else in one batch."""
    producer = KafkaProducer(
        **connection(rig.settings, name="test"), linger_ms=0 if every_s else 1000, batch_size=2**20
    )
    for good in (good_record() for _ in range(count)):
        producer.send(rig.settings.topic, good.value, good.key, headers=good.headers, partition=PARTITION)
        time.sleep(every_s)
    producer.close()


def commits(rig: Rig, *, group: str = "inventory") -> list[int]:
    """Read every offset that a group has committed of the partition, in order."""
    key = b"".join([struct.pack(">h", 1), string(group), string(rig.settings.topic), struct.pack(">i", PARTITION)])
    with contextlib.closing(KafkaConsumer(**connection(rig.settings, name="test"), group_id=None)) as reader:
        places = [TopicPartition(COMMITS, each) for each in reader.partitions_for_topic(COMMITS) or ()]
        reader.assign(places)
        reader.seek_to_beginning(*places)
        ends = reader.end_offsets(places)
        found: list[int] = []
        while any(reader.position(place) < end for place, end in ends.items()):
            for read in reader.poll(timeout_ms=100).values():
                found += [struct.unpack_from(">hq", each.value)[1] for each in read if each.key == key and each.value]
    return found


def string(text: str) -> bytes:
    return struct.pack(">h", len(text)) + text.encode()


@contextlib.contextmanager
def member(settings: Settings) -> Iterator[Tally]:
    """One of the group `inventory`, in a thread of this process; its tally."""
    stop = threading.Event()
    with database.open_pool(settings, name="inventory-1", size=1) as pool:
        inbox = Inbox(settings, pool, inventory.DOWNSTREAM, node="inventory-1")
        consumption = Consumption(settings, inbox, group="inventory", node="inventory-1")
        thread = threading.Thread(target=consumption.run, args=(stop,))
        thread.start()
        try:
            yield inbox.tally
        finally:
            stop.set()
            thread.join()


def await_reserved(rig: Rig, count: int) -> None:
    rig.wait(f"{count} reservations", lambda: rig.counts().reservations == count)


def await_committed(rig: Rig, settings: Settings, offset: int) -> None:
    with kafka_admin(settings) as admin:
        rig.wait(
            f"offset {offset}",
            lambda: committed_offsets(admin, "inventory", settings.topic).get(PARTITION) == offset,
        )


def test_a_steady_load_is_committed_once_a_second_and_its_last_offset_soon(rig: Rig) -> None:
    began = time.monotonic()
    with member(rig.settings):
        put(rig, 150, every_s=0.02)
        await_reserved(rig, 150)
        await_committed(rig, rig.settings, 150)
        took_s = time.monotonic() - began
    found = commits(rig)
    assert found == sorted(set(found)), "each once, and none back"
    assert found[-1] == 150
    assert len(found) <= took_s + 1


def test_a_lone_record_is_committed_at_once(rig: Rig) -> None:
    with member(limited(rig.settings, offset_commit_s=NEVER_S)):
        put(rig, 1)
        await_committed(rig, rig.settings, 1)


def test_a_stop_commits_what_is_done(rig: Rig) -> None:
    with member(limited(rig.settings, offset_commit_s=NEVER_S)):
        put(rig, 1)
        await_committed(rig, rig.settings, 1)
        put(rig, 20)
        await_reserved(rig, 21)
        assert commits(rig) == [1]
    assert commits(rig) == [1, 21]


def test_before_partitions_leave_what_is_done_is_committed(rig: Rig) -> None:
    settings = limited(rig.settings, offset_commit_s=NEVER_S)
    joined: list[list[int]] = []
    with member(settings) as tally:
        put(rig, 1)
        await_committed(rig, settings, 1)
        put(rig, 20)
        await_reserved(rig, 21)
        other = a_member(settings, "two", joined.append)
        while not joined:
            other.poll(timeout_s=0.1)
        assert commits(rig) == [1, 21]
        other.close()
        put(rig, 1)
        await_reserved(rig, 22)
    assert (tally.effects, tally.skipped) == (22, 0), "nothing came twice"


def test_a_commit_comes_before_more_records_than_the_bound_could_come_again(rig: Rig) -> None:
    put(rig, 200)
    settings = limited(rig.settings, offset_commit_s=NEVER_S, consume_records=5, redelivery_records=30)
    with member(settings):
        await_reserved(rig, 200)
    found = [0, *commits(rig)]
    assert found[-1] == 200
    assert max(after - before for before, after in itertools.pairwise(found)) <= 30
    assert len(found) < 200 / 5, "not after each batch"


def test_what_a_killed_member_did_not_commit_comes_again_and_is_skipped(rig: Rig) -> None:
    with subprocess.Popen([sys.executable, "-c", VICTIM], env={**os.environ, **environment(rig.settings)}) as victim:
        try:
            put(rig, 1)
            await_committed(rig, rig.settings, 1)
            put(rig, 20)
            await_reserved(rig, 21)
        finally:
            victim.kill()
    assert commits(rig) == [1]
    put(rig, 5)
    heir = rig.start("inventory-2", "consume", "inventory", "--session-timeout", "3")
    await_reserved(rig, 26)
    await_committed(rig, rig.settings, 26)
    assert finish(heir) == 0
    assert heir.lines[-1].endswith("processed=25 reserved=5 skipped=20")


def test_offsets_behind_markers_are_committed_no_more_often(rig: Rig) -> None:
    """What is aborted moves a position without a record."""
    began = time.monotonic()
    with member(rig.settings), transactional(rig) as producer:
        for _ in range(40):
            producer.begin_transaction()
            send(rig, producer, [good_record()], partition=PARTITION)
            producer.abort_transaction(30)
            time.sleep(0.05)
        await_committed(rig, rig.settings, 80)
        took_s = time.monotonic() - began
    found = commits(rig)
    assert found == sorted(set(found))
    assert len(found) <= took_s + 1


def crowd(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """Let members find the machine so full."""
    monkeypatch.setattr(consumption, "Crowding", lambda: SimpleNamespace(share=lambda: share))


@pytest.mark.parametrize("bytes_at_a_time", [2_000, 2**20])
def test_a_backlog_is_read_without_a_rest_and_a_stop_ends_one(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, bytes_at_a_time: int
) -> None:
    """Also where the brokers have more of it than one answer brings. A rest would have no end."""
    monkeypatch.setattr(rest, "_TIMES", 1e9)
    crowd(monkeypatch, 1.0)
    put(rig, 100)
    settings = limited(rig.settings, consume_rest_s=NEVER_S, consume_records=7, consume_partition_bytes=bytes_at_a_time)
    with member(settings):
        await_reserved(rig, 100)


def test_where_there_is_room_a_member_rests_for_less_time(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of a full machine would have no end."""
    monkeypatch.setattr(rest, "_TIMES", 1e9)
    crowd(monkeypatch, 0.0)
    with member(limited(rig.settings, consume_rest_s=NEVER_S)):
        for count in range(1, 4):
            put(rig, 1)
            await_reserved(rig, count)


def test_records_that_come_one_by_one_share_a_transaction_while_the_member_rests(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each batch takes 10 ms or more, and on a full machine so long thrice over is rested."""
    crowd(monkeypatch, 1.0)
    sizes: list[int] = []
    apply = Inbox.apply

    def slowly(inbox: Inbox, batch: Batch) -> None:
        sizes.append(len(batch.records))
        until_s = time.thread_time() + 0.01
        while time.thread_time() < until_s:
            pass
        apply(inbox, batch)

    monkeypatch.setattr(Inbox, "apply", slowly)
    with member(limited(rig.settings, consume_rest_s=NEVER_S)):
        put(rig, 1)
        await_reserved(rig, 1)
        began = time.monotonic()
        put(rig, 100, every_s=0.01)
        await_reserved(rig, 101)
        took_s = time.monotonic() - began
    assert sum(sizes) == 101
    assert len(sizes) - 1 <= took_s / (4 * 0.01) + 1


def test_a_member_is_behind_where_records_wait_that_it_may_read(rig: Rig) -> None:
    put(rig, 10)
    one = a_member(limited(rig.settings, consume_records=7), "one", lambda _partitions: None)
    try:
        assert not one.behind, "nothing is known yet"
        rig.wait("the first records", lambda: len(one.poll(timeout_s=0.2)) == 7)
        assert one.behind
        assert len(one.poll(timeout_s=1)) == 3
        assert not one.behind
        with transactional(rig) as producer:
            producer.begin_transaction()
            send(rig, producer, [good_record()], partition=PARTITION)
            assert one.poll(timeout_s=1) == []
            assert not one.behind, "a transaction is open: there is nothing to be read"
    finally:
        one.close()

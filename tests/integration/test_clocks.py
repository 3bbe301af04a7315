"""Clocks that are wrong, or are set while a replica runs: nothing is set aside for it, and nothing stands still."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from kafka.admin import ConfigResource, ConfigResourceType

from brewctl.delivery.broker import Consumer, Place, Producer, Record, open_admin
from brewctl.delivery.database import Pool
from brewctl.delivery.outbox.publisher import Publisher
from brewctl.doctor import kafka, postgres
from brewctl.lifecycle import wait_until
from tests.conftest import Rig, limited
from tests.integration.kafka_tools import good_record, kafka_admin, raw_client, send_raw
from tests.integration.outbox_tools import create_order, unpublished
from tests.integration.reading import read_topic

HOUR_S = 3600.0
# A process on a machine whose clock is two hours ahead: set before anything is imported.
AHEAD = """
import os, sys, threading, time
real = time.time
time.time = lambda: real() + 2 * 3600
"""
CONSUMER = """
from brewctl.cli.main import main
sys.argv[1:] = ["consume", "inventory", "--node", "inventory-1"]
main()
"""
# Without gRPC, whose core asks another clock than Python's.
PUBLISHER = """
from brewctl import config
from brewctl.delivery import database
from brewctl.delivery.outbox.publisher import Publisher
settings = config.resolve({}, os.environ, {})
with database.open_pool(settings, name="order-1", size=2) as pool:
    Publisher(settings, pool, node="order-1").run(threading.Event())
"""


@contextlib.contextmanager
def ahead(rig: Rig, role: str) -> Iterator[None]:
    """Run a role whose clock is ahead."""
    process = subprocess.Popen(
        [sys.executable, "-c", AHEAD + role],
        env={**os.environ, **rig.env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


def test_a_publisher_whose_clock_is_ahead_publishes_and_sets_nothing_aside(rig: Rig) -> None:
    create_order(rig)
    with ahead(rig, PUBLISHER):
        rig.wait("the row in kafka", lambda: rig.counts().outbox_unpublished == 0)
    assert rig.counts().outbox_failed == 0
    assert len(read_topic(rig.settings)) == 1


def test_a_consumer_whose_clock_is_ahead_buries_what_it_cannot_read(rig: Rig) -> None:
    with raw_client(rig.settings) as client:
        send_raw(client, (rig.settings.topic, 0), b"k", b"?", [("event-type", b"order.created")])
        good = good_record()
        send_raw(client, (rig.settings.topic, 0), good.key, good.value, good.headers)
    with ahead(rig, CONSUMER), open_admin(rig.settings) as admin:
        rig.wait("the effect behind it", lambda: rig.counts().reservations == 1)
        rig.wait("both offsets", lambda: admin.committed("inventory", rig.settings.topic) == {0: 2})
    (letter,) = read_topic(rig.settings, dead_letters=True)
    assert letter.key == b"k"


def test_rows_that_kafka_refuses_for_their_time_wait_until_a_clock_is_mended(
    rig: Rig, pool: Pool, capfd: pytest.CaptureFixture[str]
) -> None:
    """As where the clock of PostgreSQL is wrong: each time is too old for this topic."""

    def tolerate(ms: int) -> None:
        bound = {"message.timestamp.before.max.ms": str(ms)}
        with kafka_admin(rig.settings) as admin:
            admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, rig.settings.topic, bound)])

    producer = Producer(rig.settings, node="probe")
    old = Record(rig.settings.topic, b"probe", b"", [], timestamp_ms=1)
    tolerate(0)
    wait_until(
        "the bound is in force", lambda: not isinstance(producer.send([old], timeout_s=5)[0], Place), timeout_s=30
    )
    create_order(rig)
    (row,) = unpublished(rig)
    publisher, stop = Publisher(rig.settings, pool, node="order-1"), threading.Event()
    running = threading.Thread(target=publisher.run, args=(stop,))
    running.start()
    said = ""
    try:

        def refused() -> bool:
            nonlocal said
            said += capfd.readouterr().out
            return "clock_refused" in said

        wait_until("a line that names the clock", refused, timeout_s=60)
        assert unpublished(rig) == [row]
        assert rig.counts().outbox_failed == 0
        tolerate(2**63 - 1)
        rig.wait("the row in kafka", lambda: unpublished(rig) == [], timeout_s=90)
    finally:
        stop.set()
        publisher.notify()
        running.join()
        producer.abandon()
    assert "synchronise the clocks" in said


def test_doctor_names_a_clock_that_is_not_like_the_others(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def clocks() -> dict[str, tuple[str, str]]:
        found = [*kafka.check(rig.settings), *postgres.check(rig.settings)]
        return {each.check: (each.verdict, each.found.partition(" is ")[0]) for each in found if "clock" in each.check}

    assert clocks() == {"kafka-clock": ("ok", "kafka's controller"), "clock": ("ok", "postgres")}
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + HOUR_S)
    assert clocks() == {"kafka-clock": ("fail", "kafka's controller"), "clock": ("fail", "postgres")}


@pytest.mark.parametrize("step_s", [-HOUR_S, HOUR_S])
def test_a_clock_that_is_set_while_a_member_runs_costs_it_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    settings = limited(rig.settings, session_s=6.0, heartbeat_s=0.5)
    joined: list[list[int]] = []
    member = Consumer(
        settings,
        threading.Event(),
        group="inventory",
        node="one",
        on_assigned=joined.append,
        on_revoked=lambda: None,
    )
    producer = Producer(settings, node="test")
    try:
        deadline = time.monotonic() + 30
        while not joined and time.monotonic() < deadline:
            member.poll(timeout_s=0.2)
        assert len(joined) == 1
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + step_s)
        # Longer than a session: only heartbeats keep the partitions.
        until = time.monotonic() + 1.25 * settings.limits.session_s
        while time.monotonic() < until:
            began = time.monotonic()
            member.poll(timeout_s=0.2)
            assert time.monotonic() - began < settings.limits.session_s, "an idle poll ends"
        with open_admin(settings) as admin:
            assert [each.client_id for each in admin.group("inventory", settings.topic).members] == ["one"]
        assert len(joined) == 1
        good = good_record()
        (place,) = producer.send(
            [Record(settings.topic, good.key, good.value, good.headers, timestamp_ms=int(real() * 1000))], timeout_s=30
        )
        assert isinstance(place, Place)
        read: list[Record] = []
        deadline = time.monotonic() + 30
        while not read and time.monotonic() < deadline:
            read = member.poll(timeout_s=0.2)
        assert [record.key for record in read] == [good.key]
    finally:
        monkeypatch.undo()
        producer.abandon()
        member.close()

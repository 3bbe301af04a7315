"""The publisher: what is committed reaches Kafka, in order per aggregate, whoever dies when."""

import contextlib
import dataclasses
import json
import threading
import time
import uuid
from collections.abc import Iterator, Sequence

import psycopg
import pytest
from kafka.admin import NewTopic

from brewctl.delivery import database, events, orders, outbox
from brewctl.delivery.broker import (
    HeldError,
    Outcome,
    Place,
    Producer,
    Record,
    RefusedError,
    UnavailableError,
    UnsentError,
    open_admin,
)
from brewctl.delivery.database import Pool
from brewctl.delivery.outbox import Publisher
from brewctl.lifecycle import wait_until
from brewctl.proto.orders_pb2 import CreateRequest, OrderCreated
from brewctl.sql import queries
from tests.conftest import Rig
from tests.integration.kafka_tools import kafka_admin
from tests.integration.reading import read_topic


@pytest.fixture
def pool(rig: Rig) -> Iterator[Pool]:
    with database.open_pool(rig.settings, name="test", size=4) as pool:
        yield pool


@pytest.fixture
def producer(rig: Rig) -> Iterator[Producer]:
    producer = Producer(rig.settings, node="test")
    yield producer
    producer.abandon()


TAKEN = Place(0, 0)
# No bound on the bytes, and no topic left out.
UNBOUNDED: dict[str, object] = {"bytes": 2**40, "without_topics": []}


class ScriptedProducer:
    """Answers as told, since a real broker can't be made to acknowledge just every second record."""

    def __init__(self, *outcomes: Outcome) -> None:
        self._outcomes = list(outcomes)

    def send(self, records: Sequence[Record], *, timeout_s: float) -> list[Outcome]:
        assert timeout_s > 0
        return [self._outcomes.pop(0) for _ in records]


def create_order(rig: Rig) -> str:
    new = orders.accept(
        CreateRequest(customer_id="c1", amount_cents=1, currency="EUR"), tenant_id=None, traceparent=None
    )
    return orders.create(rig.connection, new, topic=rig.settings.topic).order_id


def add_event(rig: Rig, order_id: str, connection: psycopg.Connection[tuple[object, ...]] | None = None) -> int:
    """Add one more event to an order's outbox, as a writer of other events would."""
    row = (connection or rig.connection).execute(
        "INSERT INTO outbox (aggregate_id, topic, payload) VALUES (%s, %s, %s) RETURNING id",
        (events.aggregate_id(order_id), rig.settings.topic, OrderCreated(order_id=order_id).SerializeToString()),
    )
    (outbox_id,) = row.fetchone() or (0,)
    assert isinstance(outbox_id, int)
    return outbox_id


def unpublished(rig: Rig) -> list[object]:
    return [row[0] for row in rig.connection.execute("SELECT id FROM outbox WHERE published_at IS NULL ORDER BY id")]


def test_every_committed_row_is_published_and_marked_with_its_node(rig: Rig, pool: Pool, producer: Producer) -> None:
    ids = {create_order(rig) for _ in range(20)}
    publisher = Publisher(rig.settings, pool, node="order-7")
    assert publisher.publish_batch(producer) == 20
    assert publisher.publish_batch(producer) == 0
    assert unpublished(rig) == []
    assert {OrderCreated.FromString(record.value or b"").order_id for record in read_topic(rig.settings)} == ids
    nodes = rig.connection.execute("SELECT DISTINCT publisher_node FROM outbox").fetchall()
    assert nodes == [("order-7",)]


def test_only_acknowledged_rows_are_marked(rig: Rig, pool: Pool) -> None:
    for _ in range(3):
        create_order(rig)
    first, second, third = unpublished(rig)
    with pytest.raises(UnavailableError):
        Publisher(rig.settings, pool, node="n").publish_batch(ScriptedProducer(TAKEN, UnavailableError("away"), TAKEN))  # type: ignore[arg-type]
    assert unpublished(rig) == [second]
    assert {first, third}.isdisjoint(unpublished(rig))


def test_a_refused_row_is_set_aside_and_its_aggregate_waits_behind_it(rig: Rig, pool: Pool) -> None:
    bad, good = create_order(rig), create_order(rig)
    first, other = unpublished(rig)
    later = add_event(rig, bad)
    publisher = Publisher(rig.settings, pool, node="n")
    outcomes = RefusedError("too large"), TAKEN, HeldError("behind it")
    assert publisher.publish_batch(ScriptedProducer(*outcomes)) == 3  # type: ignore[arg-type]
    assert publisher.publish_batch(ScriptedProducer()) == 0, good  # type: ignore[arg-type]
    assert unpublished(rig) == [first, later]
    assert rig.connection.execute("SELECT failure FROM outbox WHERE id = %s", (first,)).fetchone() == ("too large",)
    assert rig.connection.execute("SELECT failed_at FROM outbox WHERE id = %s", (other,)).fetchone() == (None,)


def test_a_real_broker_refuses_only_the_guilty_row(rig: Rig, pool: Pool, producer: Producer) -> None:
    create_order(rig)
    large = OrderCreated(order_id=str(uuid.uuid4()), customer_id="x" * 1_500_000).SerializeToString()
    rig.connection.execute(
        "INSERT INTO outbox (aggregate_id, topic, payload) VALUES ('order-large', %s, %s)", (rig.settings.topic, large)
    )
    create_order(rig)
    limits = dataclasses.replace(rig.settings.limits, publish_bytes=2**22)  # all of them together
    publisher = Publisher(dataclasses.replace(rig.settings, limits=limits), pool, node="n")
    assert publisher.publish_batch(producer) == 3
    failed = rig.connection.execute("SELECT aggregate_id, failure FROM outbox WHERE failed_at IS NOT NULL").fetchall()
    assert [aggregate for aggregate, _ in failed] == ["order-large"]
    assert "MessageSizeTooLarge" in str(failed[0][1])
    assert len(read_topic(rig.settings)) == 2


def test_an_unreadable_row_is_set_aside(rig: Rig, pool: Pool, producer: Producer) -> None:
    rig.connection.execute(
        "INSERT INTO outbox (aggregate_id, topic, payload) VALUES ('order-x', %s, 'rubbish')", (rig.settings.topic,)
    )
    create_order(rig)
    Publisher(rig.settings, pool, node="n").publish_batch(producer)
    assert len(read_topic(rig.settings)) == 1
    assert rig.connection.execute("SELECT count(*) FROM outbox WHERE failed_at IS NOT NULL").fetchone() == (1,)


def test_a_crash_between_acknowledgement_and_commit_publishes_twice(rig: Rig, pool: Pool, producer: Producer) -> None:
    create_order(rig)

    class CrashingProducer:
        def send(self, records: Sequence[Record], *, timeout_s: float) -> list[Outcome]:
            outcomes = producer.send(records, timeout_s=timeout_s)
            # The publisher's session dies after Kafka has the records and before they are marked.
            rig.connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND state = 'idle in transaction'"
            )
            return outcomes

    publisher = Publisher(rig.settings, pool, node="n")
    with pytest.raises(psycopg.OperationalError):
        publisher.publish_batch(CrashingProducer())  # type: ignore[arg-type]
    assert len(unpublished(rig)) == 1
    assert publisher.publish_batch(producer) == 1
    assert unpublished(rig) == []
    records = read_topic(rig.settings)
    assert len(records) == 2
    assert len({dict(record.headers)["outbox-id"] for record in records}) == 1


def test_publishers_skip_each_others_rows_and_whatever_stands_behind_them(rig: Rig) -> None:
    """Two publishers stepped by hand: SKIP LOCKED alone would hand the second row of a key to the other."""
    one, two = create_order(rig), create_order(rig)
    head, other = unpublished(rig)
    second = add_event(rig, one)
    fetch, limit = queries["fetch_unpublished"], UNBOUNDED | {"limit": 1}
    with database.connect(rig.settings) as a, database.connect(rig.settings) as b:
        with a.transaction():
            assert [row[0] for row in a.execute(fetch, limit)] == [head]
            with b.transaction():
                assert [row[0] for row in b.execute(fetch, UNBOUNDED | {"limit": 10})] == [other], two
            a.execute(queries["mark_published"], {"ids": [head], "node": "a"})
        with b.transaction():
            assert [row[0] for row in b.execute(fetch, UNBOUNDED | {"limit": 10})] == [other, second]


def test_behind_its_locked_head_an_aggregate_drains_in_runs(rig: Rig, pool: Pool, producer: Producer) -> None:
    hot, other = str(uuid.uuid4()), str(uuid.uuid4())
    ids = [add_event(rig, hot) for _ in range(70)]
    add_event(rig, other)
    publisher = Publisher(rig.settings, pool, node="n")
    assert publisher.publish_batch(producer) == 71
    assert unpublished(rig) == []
    assert published_ids(rig, hot) == ids


def test_a_run_stops_in_front_of_what_is_set_aside(rig: Rig, pool: Pool, producer: Producer) -> None:
    order = str(uuid.uuid4())
    ids = [add_event(rig, order) for _ in range(5)]
    rig.connection.execute("UPDATE outbox SET failed_at = now() WHERE id = %s", (ids[2],))
    publisher = Publisher(rig.settings, pool, node="n")
    assert [publisher.publish_batch(producer) for _ in range(2)] == [2, 0]
    assert unpublished(rig) == ids[2:]


def test_what_a_broker_refuses_in_a_run_holds_back_what_comes_after_it(
    rig: Rig, pool: Pool, producer: Producer
) -> None:
    """The broker names the whole batch: no part of it may have been sent on its own before."""
    order, topic = str(uuid.uuid4()), f"{rig.settings.topic}-narrow"
    sizes = [100] * 9 + [5000] + [100] * 30
    ids = []
    for size in sizes:
        payload = OrderCreated(order_id=order, customer_id="x" * size).SerializeToString()
        row = rig.connection.execute(
            "INSERT INTO outbox (aggregate_id, topic, payload) VALUES (%s, %s, %s) RETURNING id",
            (events.aggregate_id(order), topic, payload),
        )
        ids += [row_id for (row_id,) in row.fetchall()]
    with kafka_admin(rig.settings) as admin:
        admin.create_topics([NewTopic(topic, 1, 1, topic_configs={"max.message.bytes": "3000"})])
        try:
            publisher = Publisher(rig.settings, pool, node="n")
            rig.wait("the run", lambda: publisher.publish_batch(producer) == len(sizes))
            assert publisher.publish_batch(producer) == 0
            assert unpublished(rig) == ids[9:]
            assert published_ids(rig, order, topic) == ids[:9]
        finally:
            admin.delete_topics([topic])
    failed = rig.connection.execute("SELECT id FROM outbox WHERE failed_at IS NOT NULL").fetchall()
    assert failed == [(ids[9],)]


def published_ids(rig: Rig, order_id: str, topic: str = "") -> list[int]:
    """The outbox ids of an order's records, in the order that they have in the topic."""
    settings = dataclasses.replace(rig.settings, topic=topic or rig.settings.topic)
    key = events.aggregate_id(order_id).encode()
    return [int(dict(record.headers)["outbox-id"]) for record in read_topic(settings) if record.key == key]


def test_a_row_that_commits_late_is_still_found(rig: Rig, pool: Pool, producer: Producer) -> None:
    """Ids become visible out of order: a publisher that remembers the last id would lose this one."""
    slow, quick = str(uuid.uuid4()), str(uuid.uuid4())
    publisher = Publisher(rig.settings, pool, node="n")
    with database.connect(rig.settings) as writer:
        with writer.transaction():
            late = add_event(rig, slow, writer)
            assert add_event(rig, quick) > late
            assert publisher.publish_batch(producer) == 1
        assert publisher.publish_batch(producer) == 1
    assert unpublished(rig) == []


def test_order_per_key_holds_with_many_publishers(rig: Rig) -> None:
    keys, per_key = [str(uuid.uuid4()) for _ in range(5)], 40
    # One consistent writer; the rows of the keys alternate.
    with rig.connection.transaction():
        for _ in range(per_key):
            for key in keys:
                add_event(rig, key)
    stop = threading.Event()
    with database.open_pool(rig.settings, name="test", size=4) as pool:
        publishers = [Publisher(rig.settings, pool, node=f"order-{number}") for number in range(4)]
        threads = [threading.Thread(target=publisher.run, args=(stop,)) for publisher in publishers]
        for thread in threads:
            thread.start()
        try:
            rig.wait("an empty outbox", lambda: not unpublished(rig))
        finally:
            stop.set()
            for publisher in publishers:
                publisher.notify()
            for thread in threads:
                thread.join()
    seen: dict[bytes | None, list[int]] = {}
    for record in read_topic(rig.settings):
        seen.setdefault(record.key, []).append(int(dict(record.headers)["outbox-id"]))
    assert len(seen) == len(keys)
    for outbox_ids in seen.values():
        assert outbox_ids == sorted(outbox_ids)
        assert len(outbox_ids) == per_key


def test_a_commit_wakes_the_publisher_without_a_poll(rig: Rig) -> None:
    settings = dataclasses.replace(rig.settings, limits=dataclasses.replace(rig.settings.limits, publish_poll_s=60.0))
    stop = threading.Event()
    with database.open_pool(settings, name="test", size=2) as pool:
        publisher = Publisher(settings, pool, node="n")
        thread = threading.Thread(target=publisher.run, args=(stop,))
        thread.start()
        try:
            create_order(rig)
            publisher.notify()
            # The next poll, 30 s away at least, can't explain it.
            wait_until("the row published", lambda: not unpublished(rig), timeout_s=20)
            create_order(rig)
            publisher.notify()
            wait_until("the next row published", lambda: not unpublished(rig), timeout_s=20)
        finally:
            stop.set()
            publisher.notify()
            thread.join()


def test_fetch_uses_the_partial_indexes(rig: Rig) -> None:
    rig.connection.execute(
        "INSERT INTO outbox (aggregate_id, topic, payload, published_at)"
        " SELECT 'order-' || n, 't', '', clock_timestamp() FROM generate_series(1, 20000) n"
    )
    for _ in range(5):
        create_order(rig)
    rig.connection.execute("ANALYZE outbox")
    plan = "\n".join(
        str(line)
        for (line,) in rig.connection.execute("EXPLAIN " + queries["fetch_unpublished"], UNBOUNDED | {"limit": 200})
    )
    assert "outbox_ready" in plan
    assert "outbox_unpublished_by_aggregate" in plan
    assert "Seq Scan" not in plan


def test_however_stale_the_statistics_a_fetch_reads_no_more_than_it_takes(rig: Rig) -> None:
    """The planner believes that nothing waits. Sorting the rows, or looking heads up by id, would read them all."""
    rig.connection.execute("ANALYZE outbox")
    rig.connection.execute("ALTER TABLE outbox SET (autovacuum_enabled = off)")
    rig.connection.execute(
        "INSERT INTO outbox (aggregate_id, topic, payload)"
        " SELECT 'order-' || n, 't', '' FROM generate_series(1, 50000) n"
    )
    (analyzed,) = rig.connection.execute(
        "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + queries["fetch_unpublished"], UNBOUNDED | {"limit": 100}
    ).fetchone() or ([],)
    plan = analyzed[0]["Plan"]
    assert plan["Actual Rows"] == 100
    # Three or four pages a look-up, and the rows themselves.
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 100 * 10, json.dumps(plan, indent=1)


def test_the_producer_waits_for_all_in_sync_replicas_and_keeps_order(producer: Producer) -> None:
    """What the client defaults to, acks=1 and no retries, loses acknowledged records with a broker."""
    config = producer._producer.config
    assert config["acks"] == -1
    assert config["max_in_flight_requests_per_connection"] == 1
    assert config["retries"] > 1000


def test_a_publisher_that_stands_still_gives_its_rows_up(rig: Rig, pool: Pool, producer: Producer) -> None:
    """Paused between fetch and commit, it would keep its rows from the others for ever."""
    limits = dataclasses.replace(rig.settings.limits, database_idle_transaction_s=6)
    create_order(rig)
    arguments = database._arguments(dataclasses.replace(rig.settings, limits=limits), "order-1")
    with contextlib.closing(psycopg.connect(**arguments)) as paused:
        paused.execute("BEGIN")
        assert len(paused.execute(queries["fetch_unpublished"], UNBOUNDED | {"limit": 10}).fetchall()) == 1
        publisher = Publisher(rig.settings, pool, node="order-2")
        assert publisher.publish_batch(producer) == 0
        rig.wait("its row", lambda: publisher.publish_batch(producer) == 1, timeout_s=30)
        with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
            paused.execute("COMMIT")


def test_a_topic_that_is_missing_slows_no_other(rig: Rig, pool: Pool, producer: Producer) -> None:
    absent = f"{rig.settings.topic}-absent"
    stray = OrderCreated(order_id=str(uuid.uuid4())).SerializeToString()
    rig.connection.execute(
        "INSERT INTO outbox (aggregate_id, topic, payload) VALUES ('order-stray', %s, %s)", (absent, stray)
    )
    (waiting,) = unpublished(rig)
    create_order(rig)
    publisher = Publisher(rig.settings, pool, node="n")
    assert publisher.publish_batch(producer) == 2
    assert unpublished(rig) == [waiting]
    # Its rows are not even fetched for a while: nothing waits for its metadata again.
    backoff, _ = publisher._absent[absent]
    publisher._absent[absent] = (backoff, time.monotonic() + 3600)
    create_order(rig)
    assert publisher.publish_batch(producer) == 1
    assert unpublished(rig) == [waiting]
    with open_admin(rig.settings) as admin:
        admin.create_topic(absent, replicas=1)
        try:
            publisher._absent[absent] = (backoff, time.monotonic())
            rig.wait("the stray row", lambda: publisher.publish_batch(producer) == 0 and not unpublished(rig))
            assert not publisher._absent
        finally:
            admin.delete_topic(absent)


def test_a_batch_is_bounded_by_bytes_and_what_is_left_stays_in_order(rig: Rig) -> None:
    sizes = [400, 400, 400, 3000, 100, 100]
    for number, size in enumerate(sizes):
        rig.connection.execute(
            "INSERT INTO outbox (aggregate_id, topic, payload) VALUES (%s, 't', %s)", (f"order-{number}", bytes(size))
        )
    ids = unpublished(rig)
    bounds = UNBOUNDED | {"limit": 10, "bytes": 1000}
    with database.connect(rig.settings) as a, database.connect(rig.settings) as b:
        taken: list[list[object]] = []
        while unpublished(rig):
            with a.transaction():
                batch = [row[0] for row in a.execute(queries["fetch_unpublished"], bounds)]
                # Heads that are locked and not taken are no one else's either, until the commit.
                with b.transaction():
                    assert b.execute(queries["fetch_unpublished"], bounds).fetchall() == []
                a.execute(queries["mark_published"], {"ids": batch, "node": "a"})
            taken.append(batch)
    assert taken == [ids[0:2], ids[2:3], ids[3:4], ids[4:6]], "one row always fits, whatever its size"


def test_the_publisher_heeds_its_bytes(rig: Rig, pool: Pool, producer: Producer) -> None:
    settings = dataclasses.replace(rig.settings, limits=dataclasses.replace(rig.settings.limits, publish_bytes=1))
    create_order(rig)
    create_order(rig)
    publisher = Publisher(settings, pool, node="n")
    assert [publisher.publish_batch(producer) for _ in range(3)] == [1, 1, 0]
    # What Kafka never takes is no different, such as a topic's name that can't be: the client would look for ever.
    payload = OrderCreated(order_id=str(uuid.uuid4())).SerializeToString()
    for name in ("no topic!", "..", ""):
        rig.connection.execute(
            "INSERT INTO outbox (aggregate_id, topic, payload) VALUES (%s, %s, %s)", (name, name, payload)
        )
    assert [publisher.publish_batch(producer) for _ in range(4)] == [1, 1, 1, 0]
    failed = rig.connection.execute("SELECT topic FROM outbox WHERE failed_at IS NOT NULL ORDER BY topic").fetchall()
    assert failed == [("",), ("..",), ("no topic!",)]
    assert len(unpublished(rig)) == 3


def test_an_invalid_record_is_refused(rig: Rig, producer: Producer) -> None:
    """A compacted topic takes nothing without a key; the client knows no name for that."""
    with kafka_admin(rig.settings) as admin:
        topic = f"{rig.settings.topic}-compacted"
        admin.create_topics([NewTopic(topic, 1, 1, topic_configs={"cleanup.policy": "compact"})])
        try:
            keyless, keyed = Record(topic, None, b"v", []), Record(topic, b"k", b"v", [])
            rig.wait("the topic", lambda: isinstance(producer.send([keyed], timeout_s=5)[0], Place))
            refused, taken = producer.send([keyless, keyed], timeout_s=5)
        finally:
            admin.delete_topics([topic])
    assert isinstance(refused, RefusedError)
    assert "InvalidRecord" in str(refused)
    assert isinstance(taken, Place)


def test_what_was_set_aside_is_shown_and_retried(rig: Rig, pool: Pool) -> None:
    """On the command line, from the refusal to an empty outbox."""
    bad, good = create_order(rig), create_order(rig)
    first, other = unpublished(rig)
    later = add_event(rig, bad)
    assert rig.brewctl("counts").stdout.count("\n") == 1
    publisher = Publisher(rig.settings, pool, node="n")
    refusal = RefusedError("too large \x1b[31m" + "x" * 100)
    outcomes = refusal, UnsentError("topic t: gone"), HeldError("behind it")
    publisher.publish_batch(ScriptedProducer(*outcomes))  # type: ignore[arg-type]

    shown = rig.brewctl("outbox", "list")
    assert max(map(len, shown.stdout.splitlines())) <= 80
    states = [line.split()[-3:] for line in shown.stdout.splitlines()[1:] if "order-" in line]
    assert [words[-2:] for words in states] == [["set", "aside"], [f"order-{good}", "ready"], ["row", str(first)]]
    assert "\x1b" not in shown.stdout
    assert "brewctl outbox retry" in shown.stderr
    failed = [json.loads(line) for line in rig.brewctl("outbox", "list", "--failed", "--json").stdout.splitlines()]
    assert [(row["id"], row["state"], row["attempts"], row["failure"]) for row in failed] == [
        (first, "set aside", 1, str(refusal))
    ]
    line, more = rig.brewctl("counts").stdout.splitlines()
    assert line == "counts: orders=2 outbox_unpublished=3 reservations=0 notifications=0"
    assert more == "outbox_failed=1: see `brewctl outbox list --failed`"

    retried = rig.brewctl("outbox", "retry", str(first), str(other))
    assert (retried.returncode, retried.stdout) == (1, f"back in the queue: {first}\n")
    assert f"not set aside: {other}" in retried.stderr
    again = rig.brewctl("outbox", "retry", "--all")
    assert (again.returncode, again.stdout) == (0, "nothing to retry\n")
    assert rig.brewctl("outbox", "retry").returncode == 2
    publisher._absent.clear()
    publisher.publish_batch(ScriptedProducer(refusal, TAKEN, HeldError("behind it")))  # type: ignore[arg-type]
    assert rig.connection.execute("SELECT attempts FROM outbox WHERE id = %s", (first,)).fetchone() == (2,)
    assert outbox.retry(rig.connection) == [first]
    publisher.publish_batch(ScriptedProducer(TAKEN, TAKEN))  # type: ignore[arg-type]
    assert unpublished(rig) == [], f"row {later} was waiting behind"

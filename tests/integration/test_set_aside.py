"""Rows that Kafka, or nobody, can take: set aside with the reason, shown, and retried; no neighbour suffers."""

import json
import uuid

from kafka.admin import NewTopic

from brewctl.delivery import events
from brewctl.delivery.broker import HeldError, Producer, RefusedError, UnsentError
from brewctl.delivery.database import Pool
from brewctl.delivery.outbox.publisher import Publisher
from brewctl.delivery.repair import outbox_rows
from brewctl.proto.orders_pb2 import OrderCreated
from tests.conftest import Rig, limited
from tests.integration.kafka_tools import kafka_admin
from tests.integration.outbox_tools import TAKEN, ScriptedProducer, add_event, create_order, published_ids, unpublished
from tests.integration.reading import read_topic


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
    publisher = Publisher(limited(rig.settings, publish_bytes=2**22), pool, node="n")  # all of them together
    assert publisher.publish_batch(producer) == 3
    failed = rig.connection.execute("SELECT aggregate_id, failure FROM outbox WHERE failed_at IS NOT NULL").fetchall()
    assert [aggregate for aggregate, _ in failed] == ["order-large"]
    assert "message size too large" in str(failed[0][1]).lower() or "MessageSizeTooLarge" in str(failed[0][1])
    assert len(read_topic(rig.settings)) == 2


def test_an_unreadable_row_is_set_aside(rig: Rig, pool: Pool, producer: Producer) -> None:
    rig.connection.execute(
        "INSERT INTO outbox (aggregate_id, topic, payload) VALUES ('order-x', %s, 'rubbish')", (rig.settings.topic,)
    )
    create_order(rig)
    Publisher(rig.settings, pool, node="n").publish_batch(producer)
    assert len(read_topic(rig.settings)) == 1
    assert rig.connection.execute("SELECT count(*) FROM outbox WHERE failed_at IS NOT NULL").fetchone() == (1,)


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
    assert outbox_rows.retry(rig.connection) == [first]
    publisher.publish_batch(ScriptedProducer(TAKEN, TAKEN))  # type: ignore[arg-type]
    assert unpublished(rig) == [], f"row {later} was waiting behind"

"""Rows of the outbox, a producer that answers as told, and what became of both."""

import dataclasses
from collections.abc import Sequence

import psycopg

from brewctl.delivery import events
from brewctl.delivery.broker import Outcome, Place, Record
from brewctl.delivery.orders import acceptance, store
from brewctl.proto.orders_pb2 import CreateRequest, OrderCreated
from brewctl.sql import queries
from tests.conftest import Rig
from tests.integration.reading import read_topic

TAKEN = Place(0, 0)
# All ids, no bound on the bytes, and no topic left out.
UNBOUNDED: dict[str, object] = {"after": 0, "until": 2**63 - 1, "bytes": 2**40, "without_topics": []}


class ScriptedProducer:
    """Answers as told, since a real broker can't be made to acknowledge just every second record."""

    def __init__(self, *outcomes: Outcome) -> None:
        self._outcomes = list(outcomes)

    def send(self, records: Sequence[Record], *, timeout_s: float) -> list[Outcome]:
        assert timeout_s > 0
        return [self._outcomes.pop(0) for _ in records]


def create_order(rig: Rig) -> str:
    new = acceptance.accept(
        CreateRequest(customer_id="c1", amount_cents=1, currency="EUR"), tenant_id=None, traceparent=None
    )
    return store.create(rig.connection, new, topic=rig.settings.topic).order_id


def add_event(rig: Rig, order_id: str, connection: psycopg.Connection[tuple[object, ...]] | None = None) -> int:
    """Add one more event to an order's outbox, as a writer of other events would."""
    row = (connection or rig.connection).execute(
        "INSERT INTO outbox (aggregate_id, topic, payload) VALUES (%s, %s, %s) RETURNING id",
        (events.aggregate_id(order_id), rig.settings.topic, OrderCreated(order_id=order_id).SerializeToString()),
    )
    (outbox_id,) = row.fetchone() or (0,)
    assert isinstance(outbox_id, int)
    return outbox_id


def fetch(connection: psycopg.Connection[tuple[object, ...]], **bounds: object) -> list[object]:
    """Return the ids of the rows that a fetch takes, from the first id on unless `bounds` say otherwise."""
    found = connection.execute(queries["fetch_unpublished"], UNBOUNDED | bounds).fetchall()
    return [row[0] for row in found if row[0] is not None]


def mark_published(
    connection: psycopg.Connection[tuple[object, ...]],
    ids: Sequence[object],
    *,
    partition: int = 0,
    offset: int = 0,
    node: str = "order-1",
) -> None:
    """Mark rows as published to the offsets from one on."""
    offsets = list(range(offset, offset + len(ids)))
    marks = {"node": node, "ids": ids, "partitions": [partition] * len(ids), "offsets": offsets}
    connection.execute(queries["mark_published"], marks)


def unpublished(rig: Rig) -> list[object]:
    return [row[0] for row in rig.connection.execute("SELECT id FROM outbox WHERE published_at IS NULL ORDER BY id")]


def published_ids(rig: Rig, order_id: str, topic: str = "") -> list[int]:
    """The outbox ids of an order's records, in the order that they have in the topic."""
    settings = dataclasses.replace(rig.settings, topic=topic or rig.settings.topic)
    key = events.aggregate_id(order_id).encode()
    return [int(dict(record.headers)["outbox-id"]) for record in read_topic(settings) if record.key == key]

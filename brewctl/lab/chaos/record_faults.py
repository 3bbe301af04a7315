"""Faults of records and effects: unreadable records, and effects that PostgreSQL refuses."""

import uuid

from psycopg import sql

from brewctl.delivery import events
from brewctl.delivery.broker import Producer, Record
from brewctl.delivery.downstream import Downstream
from brewctl.errors import BrewError
from brewctl.lab.chaos.faults import Fault
from brewctl.lab.chaos.stage import Stage
from brewctl.proto.orders_pb2 import OrderCreated


def poison() -> Fault:
    """Send unreadable records to the topic, and events of another type."""

    def begin(stage: Stage) -> None:
        producer = Producer(stage.settings, node="chaos")
        try:
            outcomes = producer.send([_poisoned(stage, kind) for kind in _POISONS for _ in range(3)], timeout_s=30)
        finally:
            producer.close()
        if failed := [outcome for outcome in outcomes if isinstance(outcome, Exception)]:
            raise BrewError(f"kafka did not take a poison record: {failed[0]}")

    return Fault("poison records", begin)


_POISONS = ("payload", "outbox-id", "content-type", "tombstone", "no headers", "event-type")


def _poisoned(stage: Stage, kind: str) -> Record:
    order = OrderCreated(order_id=str(uuid.UUID(int=stage.chance.getrandbits(128), version=4)), tenant_id="brew")
    key = events.aggregate_id(order.order_id)
    headers = dict(events.order_headers(2**62 + stage.chance.getrandbits(32), order, node="chaos"))
    value: bytes | None = order.SerializeToString()
    match kind:
        case "payload":
            value = b"\xff rubbish"
        case "tombstone":
            value = None
        case "no headers":
            headers = {}
        case _:
            headers[kind] = {"outbox-id": b"-1", "content-type": b"text/plain"}.get(kind, b"order.paid")
    return Record(stage.settings.topic, key.encode(), value, list(headers.items()))


# The name of the constraint that refuses effects. It appears in the reasons of the parked events.
REFUSING = "chaos_refuses"


def reject_effects(downstream: Downstream) -> Fault:
    """Let PostgreSQL refuse every 20th effect of a downstream. Afterwards `dlq redrive` is run until all are done."""
    what = downstream.counter.removesuffix("s") or f"effect of {downstream.group}"

    def begin(stage: Stage) -> None:
        with stage.postgres(downstream) as connection:
            # Each effect includes a dedup row, whatever other tables it writes to.
            connection.execute(
                sql.SQL(
                    "ALTER TABLE processed_events ADD CONSTRAINT {}"
                    " CHECK (consumer <> {} OR outbox_id % 20 <> 0) NOT VALID"
                ).format(sql.Identifier(REFUSING), downstream.group)
            )

    def redrive(stage: Stage) -> None:
        stage.brewctl("dlq", "redrive", "--group", downstream.group, "--reason", "postgres rejected")

    def end(stage: Stage) -> None:
        with stage.postgres(downstream) as connection:
            connection.execute(f"ALTER TABLE processed_events DROP CONSTRAINT IF EXISTS {REFUSING}")
        stage.while_waiting.append(lambda: redrive(stage))

    return Fault(f"every 20th {what} refused", begin, end)

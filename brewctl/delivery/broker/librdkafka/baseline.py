"""The speed of librdkafka alone, without brewctl's code around it: see `baseline` of the broker package."""

import time
from collections.abc import Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaException, Message, Producer

from brewctl.config import Settings
from brewctl.delivery.broker.librdkafka.connection_settings import connection, explained
from brewctl.delivery.broker.read_rate import WAIT_S, read_rate
from brewctl.delivery.broker.record import Record
from brewctl.errors import UnreachableError

_POLL_S = 0.5


def produce(settings: Settings, records: Sequence[Record], *, batch: int) -> float:
    """Send records with acks=all and idempotence, as the publisher does; return how many a second."""

    def note(error: object, _message: Message) -> None:
        if error is not None:
            raise KafkaException(error)

    with explained(settings):
        producer = Producer({"enable.idempotence": True, **connection(settings, name="bare")})
        for topic in {record.topic for record in records}:
            producer.list_topics(topic, timeout=WAIT_S)
        began = time.perf_counter()
        for first in range(0, len(records), batch):
            for each in records[first : first + batch]:
                headers: Any = each.headers
                producer.produce(each.topic, each.value, each.key, headers=headers, on_delivery=note)
            if producer.flush(WAIT_S):
                raise UnreachableError(f"kafka did not acknowledge in {WAIT_S:g} s")
        return len(records) / (time.perf_counter() - began)


def fetch(settings: Settings, count: int) -> float:
    """Read `count` records from the topic's beginning; return how many a second."""
    options = {"group.id": "bare", "enable.auto.commit": False, "auto.offset.reset": "earliest"}
    with explained(settings):
        consumer = Consumer({**options, **connection(settings, name="bare")})
        try:
            consumer.subscribe([settings.topic])

            def read_some() -> int:
                some: list[Any] = consumer.consume(settings.limits.consume_records, 0) or [consumer.poll(_POLL_S)]
                # Headers and values are read too, because the other library has always read them.
                return sum(1 for each in some if each is not None and (each.headers(), each.value()) is not None)

            return read_rate(settings.topic, count, read_some)
        finally:
            consumer.close()

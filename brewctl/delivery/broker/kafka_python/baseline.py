"""The speed of kafka-python-ng alone, without brewctl's code around it: see `baseline` of the broker package."""

import time
from collections.abc import Sequence

from kafka import KafkaConsumer, KafkaProducer

from brewctl.config import Settings
from brewctl.delivery.broker.kafka_python.connection_settings import connection, explained
from brewctl.delivery.broker.read_rate import WAIT_S, read_rate
from brewctl.delivery.broker.record import Record


def produce(settings: Settings, records: Sequence[Record], *, batch: int) -> float:
    """Send records with acks=all and one request in flight, as the publisher does; return how many a second."""
    with explained(settings):
        producer = KafkaProducer(
            acks="all", max_in_flight_requests_per_connection=1, **connection(settings, name="bare")
        )
        try:
            for topic in {record.topic for record in records}:
                producer.partitions_for(topic)
            began = time.perf_counter()
            for first in range(0, len(records), batch):
                some = records[first : first + batch]
                sent = [producer.send(each.topic, each.value, each.key, headers=each.headers) for each in some]
                for future in sent:
                    future.get(WAIT_S)
            return len(records) / (time.perf_counter() - began)
        finally:
            producer.close(timeout=1)


def fetch(settings: Settings, count: int) -> float:
    """Read `count` records from the topic's beginning; return how many a second."""
    with explained(settings):
        consumer = KafkaConsumer(
            settings.topic,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_records=settings.limits.consume_records,
            max_partition_fetch_bytes=settings.limits.consume_partition_bytes,
            **connection(settings, name="bare"),
        )
        try:
            return read_rate(
                settings.topic, count, lambda: sum(len(records) for records in consumer.poll(timeout_ms=500).values())
            )
        finally:
            consumer.close(autocommit=False)
